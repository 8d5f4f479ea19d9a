//! A stack of Llama-type blocks in llama.cpp's layout that is run several times: what the families that loop such a stack share.
//!
//! In these files `{arch}.num_loops` says how often the stack runs, `{arch}.skip_loop_final_norm` whether the output norm closes
//! every pass or the last one only, and `block_count` is the number of blocks that are stored. The rows of the query and key
//! projections are in the order of rotation on neighbouring pairs; published checkpoints have them in the order of rotation on
//! halves, and are reordered. What is optional (an output head of its own, biases of q, k and v, factors of the rotation) is
//! there or is not; no key announces it.

use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_HEADS, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use super::convert::Error;
use super::keys::{Keys, Sizes};
use super::planner::Planner;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::model::{
    self, Block, Config, Depth, Linear, LoopPlan, Looped, Mlp, Norm, Parts, PostNorm, Rope, RopeStyle, Tensors,
};

/// The norms of a block on what attention and MLP add to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BranchNorms {
    /// Llama's block has none.
    Without,
    /// `post_attention_norm` and `post_ffw_norm`.
    With,
}

/// A model that is nothing but such a stack in a loop.
pub(super) fn load(keys: &Keys<'_>, tensors: &mut Tensors<'_>, norms: BranchNorms) -> Result<Parts, model::Error> {
    let count = keys.size("block_count", MOST_BLOCKS)?;
    let loops = keys.size_or("num_loops", MOST_STEPS, 1)?;
    let every_pass = !keys.flag_or("skip_loop_final_norm", false)?;
    let sizes = keys.sizes(count)?;
    let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
    let blocks = (0..count).map(|b| block(tensors, &sizes, b, eps, norms)).collect::<Result<_, _>>()?;
    let token_embedding = tensors.matrix("token_embd.weight", sizes.vocab, sizes.width)?;
    let head = match tensors.contains("output.weight") {
        true => tensors.matrix("output.weight", sizes.vocab, sizes.width)?,
        false => token_embedding.clone(),
    };
    let norm = Norm::rms(tensors.vector("output_norm.weight", sizes.width)?, eps);
    let (of_pass, of_output) = if every_pass { (Some(norm), None) } else { (None, Some(norm)) };
    Ok(Parts {
        config: Config {
            architecture: keys.prefix.to_owned(),
            name: keys.name()?,
            width: sizes.width,
            state_width: sizes.width,
            vocab: sizes.vocab,
            context: sizes.context,
            head_dim: sizes.head_dim,
            embedding_scale: 1.0,
            // Trained at this one depth: fewer steps read out an unfinished state, more break it.
            loops: vec![Depth { mean_steps: loops, max_steps: Some(loops) }],
            state_std: 0.0,
            prefix_lm: false,
            exit_gate: false,
        },
        plan: LoopPlan::around(0..0, Looped { norm: of_pass, ..Looped::plain(0..count) }, count..count),
        blocks,
        rope: Some(rope(keys, tensors, sizes.head_dim)?),
        positions: None,
        token_embedding,
        head,
        output_norm: of_output,
    })
}

fn block(
    tensors: &mut Tensors<'_>,
    sizes: &Sizes,
    b: usize,
    eps: f32,
    norms: BranchNorms,
) -> Result<Block, model::Error> {
    let name = |part: &str| format!("blk.{b}.{part}");
    let width = sizes.width;
    // Bounded, so the products cannot overflow.
    let (q, kv, f) = (sizes.heads[b] * sizes.head_dim, sizes.kv_heads[b] * sizes.head_dim, sizes.hidden[b]);
    let mut norm = |part: &str| Ok::<_, model::Error>(Norm::rms(tensors.vector(&name(part), width)?, eps));
    let (attn_norm, ffn_norm) = (norm("attn_norm.weight")?, norm("ffn_norm.weight")?);
    let (post_attn, post_ffn) = match norms {
        BranchNorms::Without => (PostNorm::None, PostNorm::None),
        BranchNorms::With => {
            let (attn, ffn) = (norm("post_attention_norm.weight")?, norm("post_ffw_norm.weight")?);
            (PostNorm::Branch(attn), PostNorm::Branch(ffn))
        }
    };
    let mut linear = |part: &str, rows: usize| {
        let bias = name(&format!("{part}.bias"));
        Ok::<_, model::Error>(Linear {
            weight: tensors.matrix(&name(&format!("{part}.weight")), rows, width)?,
            bias: tensors.vector_if(tensors.contains(&bias), &bias, rows)?,
        })
    };
    Ok(Block {
        heads: sizes.heads[b],
        kv_heads: sizes.kv_heads[b],
        attn_norm,
        q: linear("attn_q", q)?,
        k: linear("attn_k", kv)?,
        v: linear("attn_v", kv)?,
        qk_norm: None,
        value_embedding: None,
        attn_gate: None,
        attn_output: tensors.matrix(&name("attn_output.weight"), width, q)?.into(),
        post_attn,
        ffn_norm,
        mlp: Mlp::gated(
            tensors.matrix(&name("ffn_gate.weight"), f, width)?,
            tensors.matrix(&name("ffn_up.weight"), f, width)?,
            tensors.matrix(&name("ffn_down.weight"), width, f)?,
        ),
        post_ffn,
    })
}

/// The rotation, with the scaling that llama.cpp's keys and its `rope_freqs` tensor may ask for.
fn rope(keys: &Keys<'_>, tensors: &mut Tensors<'_>, head_dim: usize) -> Result<Rope, model::Error> {
    let mut rope = Rope::new(RopeStyle::Interleaved, keys.positive_or("rope.freq_base", 10_000.0)?, head_dim);
    let kind = keys.metadata.str(&keys.key("rope.scaling.type"))?.unwrap_or("linear");
    match kind {
        "none" => {}
        "linear" => {
            let old = keys.positive_or("rope.scale_linear", 1.0)?;
            let factor = keys.positive_or("rope.scaling.factor", old)?;
            rope.frequencies.iter_mut().for_each(|f| *f /= factor);
        }
        other => {
            let found = format!("'{}'", other.chars().take(80).collect::<String>());
            return Err(keys.wrong("rope.scaling.type", found, "'none' or 'linear'"));
        }
    }
    let attention = keys.positive_or("rope.scaling.attn_factor", 1.0)?;
    if attention != 1.0 {
        return Err(keys.wrong("rope.scaling.attn_factor", attention, "1"));
    }
    const FACTORS: &str = "rope_freqs.weight";
    if let Some(factors) = tensors.vector_if(tensors.contains(FACTORS), FACTORS, head_dim / 2)? {
        for (frequency, factor) in rope.frequencies.iter_mut().zip(factors.iter()) {
            *frequency /= factor;
        }
        if let Some(wrong) = factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
            return Err(model::Error::Key {
                key: FACTORS.to_owned(),
                found: wrong.to_string(),
                expected: "numbers above 0".to_owned(),
            });
        }
    }
    Ok(rope)
}

/// The sizes in a published configuration of a Llama-type stack.
pub(super) struct Published {
    width: usize,
    blocks: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    hidden: usize,
    vocab: usize,
    tied: bool,
}

impl Published {
    /// Reads what config.json says and writes the keys that follow from it.
    pub(super) fn read(settings: &Settings<'_>, loops: usize, keys: &mut KeyWriter) -> Result<Self, Error> {
        settings.only("hidden_act", "silu", "silu")?;
        settings.only_bool("attention_bias", false)?;
        settings.only_bool("mlp_bias", false)?;
        let width = settings.size("hidden_size", MOST_WIDTH)?;
        let heads = settings.size("num_attention_heads", MOST_HEADS)?;
        let kv_heads = settings.kv_heads("num_key_value_heads", heads)?;
        let head_dim = settings.size_or("head_dim", MOST_WIDTH, width / heads)?;
        if !head_dim.is_multiple_of(2) {
            return Err(settings.unsupported("head_dim", &head_dim, "an even head size"));
        }
        let this = Self {
            width,
            blocks: settings.size("num_hidden_layers", MOST_BLOCKS)?,
            heads,
            kv_heads,
            head_dim,
            hidden: settings.size("intermediate_size", MOST_WIDTH)?,
            vocab: settings.size("vocab_size", MOST_TOKENS)?,
            tied: settings.0.bool("tie_word_embeddings")?.unwrap_or(false),
        };
        keys.sizes(&Sizes {
            width,
            head_dim,
            vocab: this.vocab,
            context: settings.size("max_position_embeddings", MOST_CONTEXT)?,
            heads: vec![heads; this.blocks],
            kv_heads: vec![kv_heads; this.blocks],
            hidden: vec![this.hidden; this.blocks],
        });
        keys.set("attention.layer_norm_rms_epsilon", settings.number("rms_norm_eps")?);
        keys.set("rope.freq_base", settings.plain_rope()?);
        keys.size("rope.dimension_count", head_dim);
        keys.size("num_loops", loops);
        Ok(this)
    }

    /// Residual stream.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Takes the tensors of the stack, of the table and of the head. `norms` gives the published names of a block's norms, by
    /// their names here.
    pub(super) fn take(&self, p: &mut Planner<'_>, norms: &[(&str, &str)]) -> Result<(), Error> {
        let (width, hidden, vocab) = (self.width, self.hidden, self.vocab);
        p.matrix("token_embd.weight".into(), "model.embed_tokens.weight", vocab, width)?;
        if self.tied {
            p.know("lm_head.weight"); // some files carry the tied copy too
        } else {
            p.matrix("output.weight".into(), "lm_head.weight", vocab, width)?;
        }
        p.vector("output_norm.weight".into(), "model.norm.weight", width)?;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        for b in 0..self.blocks {
            let from = |part: &str| format!("model.layers.{b}.{part}.weight");
            let to = |part: &str| format!("blk.{b}.{part}.weight");
            p.know(&format!("model.layers.{b}.self_attn.rotary_emb.inv_freq")); // computed here
            for (name, published) in norms {
                p.vector(to(name), &from(published), width)?;
            }
            p.paired(to("attn_q"), &from("self_attn.q_proj"), q, width, self.head_dim)?;
            p.paired(to("attn_k"), &from("self_attn.k_proj"), kv, width, self.head_dim)?;
            p.matrix(to("attn_v"), &from("self_attn.v_proj"), kv, width)?;
            p.matrix(to("attn_output"), &from("self_attn.o_proj"), width, q)?;
            p.matrix(to("ffn_gate"), &from("mlp.gate_proj"), hidden, width)?;
            p.matrix(to("ffn_up"), &from("mlp.up_proj"), hidden, width)?;
            p.matrix(to("ffn_down"), &from("mlp.down_proj"), width, hidden)?;
        }
        Ok(())
    }
}

/// Loops in 1..=[`MOST_STEPS`], as config.json names them.
pub(super) fn loops(settings: &Settings<'_>, key: &str) -> Result<usize, Error> {
    settings.size(key, MOST_STEPS)
}

/// Whether the model_type of a checkpoint is this.
pub(super) fn is_named(checkpoint: &Checkpoint, model_type: &str) -> Result<bool, Error> {
    Ok(checkpoint.config().str("model_type")? == Some(model_type))
}
