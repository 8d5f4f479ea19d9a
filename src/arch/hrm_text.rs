//! HRM-Text (`model_type` "hrm_text"): two stacks of blocks over the same tokens, a slow one above a fast one. Reference
//! implementation: `HrmText` in transformers (5.23); the training code is sapientinc/HRM-Text.
//!
//! zH = embedding · scale, zL = a stored vector; H cycles of { L cycles of zL = L(zH + zL), then zH = H(zH + zL) }; logits =
//! head(zH). Blocks are Llama's with norms without weights and a sigmoid gate on the output of attention, elementwise and before
//! the output projection; a weightless norm ends every pass over a stack. Prompts were trained as prefixes: their tokens see
//! each other in both directions.
//!
//! The keys are llama.cpp's: `block_count` counts passes over blocks (its KV slots), while `blk.0..n` are the low stack and
//! `blk.n..2n` the high one.

use super::Family;
use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_HEADS, MOST_TOKENS, MOST_WIDTH};
use super::convert::{Conversion, Error};
use super::keys::{Keys, Sizes};
use super::planner::Planner;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{
    self, Block, Config, Depth, Injection, LoopPlan, Looped, Mlp, Norm, Parts, PostNorm, Rope, RopeStyle, StackPass,
    Tensors,
};

/// `general.architecture`.
const NAME: &str = "hrm_text";
/// z before the first pass over the low stack. llama.cpp's name, without `.weight`.
const INNER: &str = "hrm.z_l_init";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type hrm_text, split or fused projections (sapientinc/HRM-Text-1B)",
    notes: "llama.cpp's keys, both ways (llama.cpp itself runs prompts causally, these models were trained with prompts whose \
            tokens see each other both ways, and so they are run here)",
    recognise,
    convert,
    load,
};

fn recognise(checkpoint: &Checkpoint) -> Result<bool, Error> {
    Ok(checkpoint.config().str("model_type")? == Some("hrm_text"))
}

/// Passes over blocks that a token takes in all: llama.cpp's `block_count`.
fn passes(per_stack: usize, h_cycles: usize, l_cycles: usize) -> Option<usize> {
    let all = per_stack.checked_mul(h_cycles)?.checked_mul(l_cycles.checked_add(1)?)?;
    (all <= MOST_BLOCKS).then_some(all)
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    let per_stack = keys.size("hrm.layers_per_stack", MOST_BLOCKS)?;
    let h_cycles = keys.size("hrm.h_cycles", MOST_BLOCKS)?;
    let l_cycles = keys.size("hrm.l_cycles", MOST_BLOCKS)?;
    let expanded = keys.size("block_count", MOST_BLOCKS)?;
    if passes(per_stack, h_cycles, l_cycles) != Some(expanded) {
        let expected = format!("{per_stack} blocks · {h_cycles} H cycles · ({l_cycles} L cycles + 1)");
        return Err(keys.wrong("block_count", expanded, expected));
    }
    // Lists have an entry per pass, and all passes are over the same blocks.
    let sizes = keys.sizes(expanded)?;
    let one = |name: &str, list: &[usize]| match list.iter().find(|&&n| n != list[0]) {
        None => Ok(list[0]),
        Some(n) => Err(keys.wrong(name, n, format!("{} in every block", list[0]))),
    };
    let heads = one("attention.head_count", &sizes.heads)?;
    let kv_heads = one("attention.head_count_kv", &sizes.kv_heads)?;
    let hidden = one("feed_forward_length", &sizes.hidden)?;
    keys.plain_rope()?;
    let (width, vocab, head_dim) = (sizes.width, sizes.vocab, sizes.head_dim);
    let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
    let config = Config {
        architecture: NAME.to_owned(),
        name: keys.name()?,
        width,
        state_width: width,
        vocab,
        context: sizes.context,
        head_dim,
        embedding_scale: keys.positive_or("embedding_scale", 1.0)?,
        loops: vec![Depth { mean_steps: h_cycles, max_steps: Some(h_cycles) }],
        state_std: 0.0,
        // Where a file is silent, what published models are.
        prefix_lm: metadata.bool(&keys.key("hrm.prefix_lm"))?.unwrap_or(true),
        exit_gate: false,
    };
    let norm = || Norm::weightless(width, eps);
    let mut blocks = Vec::new();
    for b in 0..2 * per_stack {
        let name = |part: &str| format!("blk.{b}.{part}.weight");
        // Bounded above, so the products cannot overflow.
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        blocks.push(Block {
            heads,
            kv_heads,
            attn_norm: norm(),
            q: tensors.matrix(&name("attn_q"), q, width)?.into(),
            k: tensors.matrix(&name("attn_k"), kv, width)?.into(),
            v: tensors.matrix(&name("attn_v"), kv, width)?.into(),
            qk_norm: None,
            value_embedding: None,
            attn_gate: Some(tensors.matrix(&name("attn_gate"), q, width)?),
            attn_output: tensors.matrix(&name("attn_output"), width, q)?.into(),
            post_attn: PostNorm::None,
            ffn_norm: norm(),
            mlp: Mlp::gated(
                tensors.matrix(&name("ffn_gate"), hidden, width)?,
                tensors.matrix(&name("ffn_up"), hidden, width)?,
                tensors.matrix(&name("ffn_down"), width, hidden)?,
            ),
            post_ffn: PostNorm::None,
        });
    }
    let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
    // As llama.cpp: without a head of its own, the model has a tied one.
    let head = match tensors.matrix("output.weight", vocab, width) {
        Err(model::Error::MissingTensor(_)) => token_embedding.clone(),
        found => found?,
    };
    let low = (0..l_cycles).map(|nth| StackPass { blocks: 0..per_stack, nth });
    let high = StackPass { blocks: per_stack..2 * per_stack, nth: 0 };
    let looped = Looped {
        injection: Injection::Inner { initial: tensors.vector(INNER, width)? },
        passes: low.chain([high]).collect(),
        norm: Some(norm()),
        ..Looped::plain(0..0)
    };
    Ok(Parts {
        config,
        plan: LoopPlan::around(0..0, looped, 0..0),
        blocks,
        rope: Some(Rope::new(RopeStyle::Halves, keys.positive_or("rope.freq_base", 10000.0)?, head_dim)),
        positions: None,
        token_embedding,
        head,
        output_norm: None,
    })
}

/// Keys and tensors of llama.cpp's GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    settings.only("hidden_act", "silu", "silu")?;
    settings.only_bool("attention_bias", false)?;
    settings.only_bool("mlp_bias", false)?;
    let width = settings.size("hidden_size", MOST_WIDTH)?;
    let heads = settings.size("num_attention_heads", MOST_HEADS)?;
    let kv_heads = settings.size_or("num_key_value_heads", MOST_HEADS, heads)?;
    if kv_heads != heads {
        return Err(settings.unsupported("num_key_value_heads", &kv_heads, format!("num_attention_heads, {heads}")));
    }
    // The reference's own default, which does not follow from the others.
    let head_dim = settings.size_or("head_dim", MOST_WIDTH, 128)?;
    let hidden = settings.size("intermediate_size", MOST_WIDTH)?;
    let vocab = settings.size("vocab_size", MOST_TOKENS)?;
    let context = settings.size("max_position_embeddings", MOST_CONTEXT)?;
    let h_cycles = settings.size_or("H_cycles", MOST_BLOCKS, 2)?;
    let l_cycles = settings.size_or("L_cycles", MOST_BLOCKS, 3)?;
    let per_stack = layers_per_stack(checkpoint, h_cycles, l_cycles)?;
    let Some(expanded) = passes(per_stack, h_cycles, l_cycles) else {
        let supported = format!("at most {MOST_BLOCKS} passes over blocks in all");
        return Err(settings.unsupported("H_cycles", &h_cycles, supported));
    };
    let scale = match config.f64("embedding_scale")? {
        Some(scale) => scale,
        None => 1.0 / config.f64("initializer_range")?.unwrap_or(0.02),
    } as f32;
    if !(scale.is_finite() && scale > 0.0) {
        return Err(settings.unsupported("embedding_scale", &scale, "a number above 0"));
    }
    let tied = config.bool("tie_word_embeddings")?.unwrap_or(false);

    let mut keys = KeyWriter::new(NAME, checkpoint);
    keys.sizes(&Sizes {
        width,
        head_dim,
        vocab,
        context,
        heads: vec![heads; expanded],
        kv_heads: vec![heads; expanded],
        hidden: vec![hidden; expanded],
    });
    keys.set("attention.layer_norm_rms_epsilon", settings.number("rms_norm_eps")?);
    keys.set("rope.freq_base", settings.plain_rope()?);
    keys.size("rope.dimension_count", head_dim);
    keys.set("embedding_scale", scale);
    keys.size("hrm.layers_per_stack", per_stack);
    keys.size("hrm.h_cycles", h_cycles);
    keys.size("hrm.l_cycles", l_cycles);
    keys.set("hrm.prefix_lm", config.bool("prefix_lm")?.unwrap_or(true));

    let mut p = Planner::new(checkpoint);
    p.matrix("token_embd.weight".into(), "model.embed_tokens.weight", vocab, width)?;
    if tied {
        p.know("lm_head.weight"); // a copy of the table
    } else {
        p.matrix("output.weight".into(), "lm_head.weight", vocab, width)?;
    }
    p.vector(INNER.into(), "model.z_L_init", width)?;
    let q = heads * head_dim;
    for (s, stack) in ["L", "H"].into_iter().enumerate() {
        for layer in 0..per_stack {
            let from = |part: &str| format!("model.{stack}_module.layers.{layer}.{part}.weight");
            let to = |part: &str| format!("blk.{}.{part}.weight", s * per_stack + layer);
            let attention = [("attn_gate", "gate"), ("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v")];
            let fused = from("attn.gqkv_proj");
            if checkpoint.contains(&fused) {
                for (i, (name, _)) in attention.into_iter().enumerate() {
                    p.take(to(name), &fused, &[4 * q, width], i * q..(i + 1) * q, 0..width, false)?;
                }
                p.matrix(to("attn_output"), &from("attn.o_proj"), width, q)?;
            } else {
                for (name, part) in attention {
                    p.matrix(to(name), &from(&format!("self_attn.{part}_proj")), q, width)?;
                }
                p.matrix(to("attn_output"), &from("self_attn.o_proj"), width, q)?;
            }
            let feed_forward = [("ffn_gate", "gate"), ("ffn_up", "up")];
            let fused = from("mlp.gate_up_proj");
            if checkpoint.contains(&fused) {
                for (i, (name, _)) in feed_forward.into_iter().enumerate() {
                    let rows = i * hidden..(i + 1) * hidden;
                    p.take(to(name), &fused, &[2 * hidden, width], rows, 0..width, false)?;
                }
            } else {
                for (name, part) in feed_forward {
                    p.matrix(to(name), &from(&format!("mlp.{part}_proj")), hidden, width)?;
                }
            }
            p.matrix(to("ffn_down"), &from("mlp.down_proj"), width, hidden)?;
        }
    }
    p.conversion(keys)
}

/// Blocks per stack. `num_hidden_layers` is that number, or that of both stacks (the training code's own export), or that of all
/// passes (what transformers saves, with the true one in `num_layers_per_stack`): the tensors decide.
fn layers_per_stack(checkpoint: &Checkpoint, h_cycles: usize, l_cycles: usize) -> Result<usize, Error> {
    let settings = Settings(checkpoint.config());
    let block = |i: usize| format!("model.L_module.layers.{i}.mlp.down_proj.weight");
    let found = (0..MOST_BLOCKS).take_while(|&i| checkpoint.contains(&block(i))).count();
    if found == 0 {
        return Err(Error::Missing(block(0)));
    }
    let (key, n) = match checkpoint.config().usize("num_layers_per_stack")? {
        Some(n) => ("num_layers_per_stack", n),
        None => ("num_hidden_layers", checkpoint.config().require_usize("num_hidden_layers")?),
    };
    let exact = key == "num_layers_per_stack";
    let meant = n == found || !exact && (n == 2 * found || Some(n) == passes(found, h_cycles, l_cycles));
    if meant { Ok(found) } else { Err(settings.unsupported(key, &n, format!("{found}, as there are tensors for"))) }
}
