//! Parcae (config.json with `_class_name` "ParcaeConfig", or `model_class_name` "Parcae"): Prairie et al., "Parcae: Scaling Laws For Stable Looped Language
//! Models", arXiv 2604.12946. Reference implementation: sandyresearch/parcae, `parcae_lm/models/parcae/parcae.py`.
//!
//! e = norm(prelude(embedding)), the norm optional; s_0 truncated normal; s ← core(s ⊙ exp(−dt·A) + dt ⊙ (B·e)) with
//! dt = softplus(dt_bias) and A = exp(A_log); logits = head(ln_f(coda(C·s))). The state may be wider or narrower than the stream,
//! and the blocks of the core with it; the head size is the same everywhere. Blocks are pre-norm with an MLP of
//! `proj(0.5·relu(fc x)²)`; queries and keys are rotated in interleaved pairs and then normed without weights. Every second block
//! adds a value embedding, a table of values by token id, behind a gate.

use super::Family;
use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use super::convert::{Conversion, Error};
use super::keys::{Keys, Sizes, Stacks};
use super::planner::{Planner, stack_names};
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{
    self, Activation, Block, Config, Injection, LoopPlan, Looped, Mlp, Norm, Parts, PostNorm, Rates, Rope, RopeStyle,
    Start, Tensors, ValueEmbedding,
};

/// `general.architecture`.
const NAME: &str = "parcae";
/// Key of the epsilon of the norm of queries and keys; there is none where the key is missing.
const QK_NORM: &str = "loop.qk_norm_epsilon";
/// Key that says of every block whether it has a value embedding: 1 or 0.
const VALUE_EMBEDDING: &str = "loop.value_embedding";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "_class_name ParcaeConfig (SandyResearch/parcae-140m to parcae-1.3b)",
    notes: "rdt's own keys; only the diagonal injection, RMSNorm and the squared-ReLU MLP",
    recognise,
    convert,
    load,
};

/// One of the reference's two ways of saving a model leaves `_class_name` out.
fn recognise(checkpoint: &Checkpoint) -> Result<bool, Error> {
    let config = checkpoint.config();
    Ok(match config.str("_class_name")? {
        Some(name) => name == "ParcaeConfig",
        None => config.get("model_type").is_none() && config.str("model_class_name")? == Some("Parcae"),
    })
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    keys.only("loop.injection", "diagonal")?;
    keys.only("loop.state_init", "like-init")?;
    keys.only("loop.block_kind", "pre-norm")?;
    keys.only("loop.activation", "half-relu-squared")?;
    keys.only("loop.rope_style", "interleaved")?;
    if keys.flag("loop.readout_norm")? {
        return Err(keys.wrong("loop.readout_norm", true, "false"));
    }
    let stacks = keys.stacks()?;
    let sizes = keys.sizes(stacks.count)?;
    let (width, vocab, head_dim) = (sizes.width, sizes.vocab, sizes.head_dim);
    let state_width = keys.size("loop.state_length", MOST_WIDTH)?;
    let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
    let qk_norm = match metadata.get(&keys.key(QK_NORM)) {
        Some(_) => Some(keys.positive(QK_NORM)?),
        None => None,
    };
    let value_embeddings = metadata.require_usize_per_block(&keys.key(VALUE_EMBEDDING), stacks.count)?;
    let config = Config {
        architecture: NAME.to_owned(),
        name: keys.name()?,
        width,
        state_width,
        vocab,
        context: sizes.context,
        head_dim,
        embedding_scale: keys.positive("embedding_scale")?,
        loops: vec![keys.depth()?],
        state_std: keys.state_std()?,
        prefix_lm: false,
        exit_gate: false,
    };
    let mut blocks = Vec::new();
    for (b, &values) in value_embeddings.iter().enumerate() {
        let width = if (stacks.core..stacks.coda).contains(&b) { state_width } else { width };
        let mut block = block(tensors, &sizes, b, width, eps)?;
        block.qk_norm = qk_norm;
        block.value_embedding = match values {
            0 => None,
            1 if width >= ValueEmbedding::GATE_INPUTS => Some(ValueEmbedding {
                table: tensors.matrix(&format!("blk.{b}.value_embd.weight"), vocab, block.kv_heads * head_dim)?,
                gate: tensors
                    .vector(&format!("blk.{b}.value_gate.weight"), block.kv_heads * ValueEmbedding::GATE_INPUTS)?,
            }),
            1 => return Err(keys.wrong(VALUE_EMBEDDING, 1, format!("0 for a block of width {width}"))),
            n => return Err(keys.wrong(VALUE_EMBEDDING, n, "0 or 1")),
        };
        blocks.push(block);
    }
    let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
    let head = match keys.flag("loop.tied_head")? {
        false => tensors.matrix("output.weight", vocab, width)?,
        true => token_embedding.clone(),
    };
    let entry_norm = match keys.flag("loop.entry_norm")? {
        true => Some(Norm::rms(tensors.vector("loop.entry_norm.weight", width)?, eps)),
        false => None,
    };
    let rates = Rates::new(tensors.vector("loop.a_log", state_width)?, tensors.vector("loop.dt_bias", state_width)?);
    let looped = Looped {
        entry_norm,
        start: Start::Initial,
        injection: Injection::Diagonal {
            input: tensors.matrix("loop.adapter_input.weight", state_width, width)?,
            rates,
        },
        readout: Some(tensors.matrix("loop.readout.weight", width, state_width)?),
        ..Looped::plain(stacks.core..stacks.coda)
    };
    let Stacks { core, coda, count } = stacks;
    Ok(Parts {
        config,
        plan: LoopPlan::around(0..core, looped, coda..count),
        blocks,
        rope: Some(Rope::new(RopeStyle::Interleaved, keys.positive("rope.freq_base")?, head_dim)),
        positions: None,
        token_embedding,
        head,
        output_norm: Some(Norm::rms(tensors.vector("output_norm.weight", width)?, eps)),
    })
}

/// What every block has.
fn block(tensors: &mut Tensors<'_>, sizes: &Sizes, b: usize, width: usize, eps: f32) -> Result<Block, model::Error> {
    let name = |part: &str| format!("blk.{b}.{part}.weight");
    // Bounded, so the products cannot overflow.
    let (q, kv) = (sizes.heads[b] * sizes.head_dim, sizes.kv_heads[b] * sizes.head_dim);
    Ok(Block {
        heads: sizes.heads[b],
        kv_heads: sizes.kv_heads[b],
        attn_norm: Norm::rms(tensors.vector(&name("attn_norm"), width)?, eps),
        q: tensors.matrix(&name("attn_q"), q, width)?.into(),
        k: tensors.matrix(&name("attn_k"), kv, width)?.into(),
        v: tensors.matrix(&name("attn_v"), kv, width)?.into(),
        qk_norm: None,
        value_embedding: None,
        attn_gate: None,
        attn_output: tensors.matrix(&name("attn_output"), width, q)?.into(),
        post_attn: PostNorm::None,
        ffn_norm: Norm::rms(tensors.vector(&name("ffn_norm"), width)?, eps),
        mlp: Mlp {
            gate: None,
            up: tensors.matrix(&name("ffn_up"), sizes.hidden[b], width)?.into(),
            down: tensors.matrix(&name("ffn_down"), width, sizes.hidden[b])?.into(),
            activation: Activation::HalfReluSquared,
        },
        post_ffn: PostNorm::None,
    })
}

/// Sizes of a stack's blocks.
#[derive(Clone, Copy)]
struct Stack {
    width: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
}

impl Stack {
    fn head_dim(self) -> usize {
        self.width / self.heads
    }
}

/// Keys and tensors of our GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    refuse_others(&settings)?;
    let (outer, inner) = stacks(&settings)?;
    let head_dim = outer.head_dim();
    let vocab = padded_vocabulary(&settings)?;
    let blocks = |key: &str, least: usize| settings.within(key, config.require_usize(key)?, least, MOST_BLOCKS);
    let prelude = blocks("n_layers_in_prelude", 0)?;
    let core = blocks("n_layers_in_recurrent_block", 1)?;
    let coda = blocks("n_layers_in_coda", 0)?;
    let count = prelude + core + coda;
    let of_block = |b: usize| if (prelude..prelude + core).contains(&b) { inner } else { outer };
    let per_block = |f: fn(Stack) -> usize| (0..count).map(|b| f(of_block(b))).collect::<Vec<_>>();
    let tied = config.bool("tie_embeddings")?.unwrap_or(false);
    let head = config.str("use_fused_head")?.unwrap_or("pytorch");
    if !tied && !["pytorch", "cce"].contains(&head) {
        // Another head may be stored the other way round.
        settings.only("use_fused_head", "pytorch", "pytorch")?;
    }
    let entry_norm = config.bool("prelude_norm")?.unwrap_or(false);
    let (scale, std) = initial_scales(&settings, outer.width)?;

    let mut p = Planner::new(checkpoint);
    p.know("freqs_cis"); // the rotation table, computed here
    p.matrix("token_embd.weight".into(), "transformer.wte.weight", vocab, outer.width)?;
    if tied {
        p.know("lm_head.weight"); // the tied copy
    } else {
        p.matrix("output.weight".into(), "lm_head.weight", vocab, outer.width)?;
    }
    p.vector("output_norm.weight".into(), "transformer.ln_f.weight", outer.width)?;
    if entry_norm {
        p.vector("loop.entry_norm.weight".into(), "transformer.ln_prelude.weight", outer.width)?;
    }
    for (name, published) in [("loop.a_log", "A_log"), ("loop.dt_bias", "dt_bias")] {
        p.vector(name.into(), &format!("transformer.adapter.{published}"), inner.width)?;
    }
    p.matrix("loop.adapter_input.weight".into(), "transformer.adapter.B", inner.width, outer.width)?;
    p.matrix("loop.readout.weight".into(), "transformer.C.weight", outer.width, inner.width)?;
    let mut value_embeddings = Vec::new();
    for (b, place) in stack_names([prelude, core, coda]).enumerate() {
        value_embeddings.push(usize::from(take_block(&mut p, checkpoint, b, &place, of_block(b), vocab)?));
    }

    let mut keys = KeyWriter::new(NAME, checkpoint);
    keys.sizes(&Sizes {
        width: outer.width,
        head_dim,
        vocab,
        context: settings.size_or("block_size", MOST_CONTEXT, 4096)?,
        heads: per_block(|s| s.heads),
        kv_heads: per_block(|s| s.kv_heads),
        hidden: per_block(|s| s.hidden),
    });
    keys.set("attention.layer_norm_rms_epsilon", settings.number("norm_eps")?);
    let base = "rope_settings.rope_base";
    keys.set("rope.freq_base", if config.get(base).is_some() { settings.number(base)? } else { 50_000.0 });
    keys.size("rope.dimension_count", head_dim);
    keys.set("embedding_scale", scale);
    keys.stacks([prelude, core, coda]);
    keys.size("loop.mean_steps", settings.size("mean_recurrence", MOST_STEPS)?);
    keys.set("loop.injection", "diagonal");
    keys.set("loop.state_init", "like-init");
    keys.set("loop.state_std", std);
    keys.size("loop.state_length", inner.width);
    keys.set("loop.entry_norm", entry_norm);
    keys.set("loop.readout_norm", false);
    keys.set("loop.tied_head", tied);
    keys.set("loop.block_kind", "pre-norm");
    keys.set("loop.activation", "half-relu-squared");
    keys.set("loop.rope_style", "interleaved");
    if config.bool("qk_norm")?.unwrap_or(false) {
        keys.set(QK_NORM, f32::EPSILON); // what torch takes where no epsilon is given
    }
    keys.per_block(VALUE_EMBEDDING, &value_embeddings);
    p.conversion(keys)
}

/// Everything that changes the arithmetic and is not implemented, by name. The defaults are the reference's.
fn refuse_others(settings: &Settings<'_>) -> Result<(), Error> {
    settings.only("injection_type", "diagonal", "diagonal")?;
    settings.only("state_init", "like-init", "like-init")?;
    settings.only("block_class_name", "TransformerPreNormBlock", "TransformerPreNormBlock")?;
    settings.only("norm_class_name", "RMSNorm", "LayerNorm")?;
    settings.only("mlp_class_name", "BaseMLP", "BaseMLP")?;
    settings.only("nonlin_name", "ReLU2", "GELU")?;
    settings.only("model_class_name", "Parcae", "Parcae")?;
    for key in ["bias", "qk_bias", "clip_qkv", "logit_softcap"] {
        settings.unset(key)?;
    }
    settings.only_bool("rope_settings.use_rope", true)?;
    for key in ["mup_model_scaling_factor", "rope_settings.rope_condense_ratio"] {
        match settings.0.f64(key)? {
            Some(found) if found != 1.0 => return Err(settings.unsupported(key, &found, "1")),
            _ => {}
        }
    }
    Ok(())
}

/// Sizes of the blocks outside and inside the loop.
fn stacks(settings: &Settings<'_>) -> Result<(Stack, Stack), Error> {
    let config = settings.0;
    let width = settings.size("n_embd", MOST_WIDTH)?;
    let heads = settings.heads("num_attention_heads", config.require_usize("num_attention_heads")?, width)?;
    let kv_heads = settings.kv_heads("num_key_value_heads", heads)?;
    let hidden = settings.size_or("intermediate_size", MOST_WIDTH, 4 * width)?;
    let outer = Stack { width, heads, kv_heads, hidden };
    let width = settings.size("recurrent_embedding_dimension", MOST_WIDTH)?;
    let key = "recurrent_num_attention_heads";
    let heads = settings.heads(key, config.usize(key)?.unwrap_or(heads), width)?;
    let hidden = settings.size("recurrent_intermediation_embedding_dimension", MOST_WIDTH)?;
    let inner = Stack { width, heads, kv_heads: heads, hidden };
    if inner.head_dim() != outer.head_dim() {
        let supported =
            format!("{}, for the head size outside the loop, {}", width / outer.head_dim(), outer.head_dim());
        return Err(settings.unsupported(key, &heads, supported));
    }
    Ok((outer, inner))
}

/// Rows of the tables.
fn padded_vocabulary(settings: &Settings<'_>) -> Result<usize, Error> {
    let key = "padded_vocab_size";
    if settings.0.get(key).is_some() {
        return settings.size(key, MOST_TOKENS);
    }
    let multiple = settings.size_or("padding_multiple", MOST_TOKENS, 512)?;
    let vocab = settings.size("vocab_size", MOST_TOKENS)?;
    settings.within(key, vocab.next_multiple_of(multiple), 1, MOST_TOKENS)
}

/// Factor on embeddings, and standard deviation of s_0, which the factor scales too. Both follow from the initialisation.
fn initial_scales(settings: &Settings<'_>, width: usize) -> Result<(f32, f32), Error> {
    let std = (2.0 / (5.0 * width as f64)).sqrt();
    let key = "init_strategy";
    let scale = match settings.0.str(key)?.unwrap_or("scaled") {
        "small" | "scaled" | "scaled-geiping" | "scaled-zero" | "scaled-stuck" => 1.0,
        "takase" => (width as f64).sqrt(),
        other => {
            let found = format!("'{}'", other.chars().take(80).collect::<String>());
            let supported = "'small', 'scaled', 'scaled-geiping', 'scaled-zero', 'scaled-stuck', 'takase'";
            return Err(settings.unsupported(key, &found, supported));
        }
    };
    Ok((scale as f32, (std * scale) as f32))
}

/// Plans a block's tensors. Does it have a value embedding? It takes both the table and the gate; the reference leaves the
/// one without the other unused.
fn take_block(
    p: &mut Planner<'_>,
    checkpoint: &Checkpoint,
    b: usize,
    place: &str,
    stack: Stack,
    vocab: usize,
) -> Result<bool, Error> {
    let Stack { width, heads, kv_heads, hidden } = stack;
    let (q, kv) = (heads * stack.head_dim(), kv_heads * stack.head_dim());
    let from = |part: &str| format!("{place}.{part}.weight");
    let to = |part: &str| format!("blk.{b}.{part}.weight");
    p.vector(to("attn_norm"), &from("norm_1"), width)?;
    p.matrix(to("attn_q"), &from("attn.c_q"), q, width)?;
    p.matrix(to("attn_k"), &from("attn.c_k"), kv, width)?;
    p.matrix(to("attn_v"), &from("attn.c_v"), kv, width)?;
    p.matrix(to("attn_output"), &from("attn.c_proj"), width, q)?;
    p.vector(to("ffn_norm"), &from("norm_2"), width)?;
    p.matrix(to("ffn_up"), &from("mlp.fc"), hidden, width)?;
    p.matrix(to("ffn_down"), &from("mlp.proj"), width, hidden)?;
    let (table, gate) = (format!("value_embeds.{b}.weight"), from("attn.ve_gate"));
    match (checkpoint.contains(&table), checkpoint.contains(&gate)) {
        (true, true) => {
            p.matrix(to("value_embd"), &table, vocab, kv)?;
            let inputs = ValueEmbedding::GATE_INPUTS;
            p.take(to("value_gate"), &gate, &[kv_heads, inputs], 0..kv_heads, 0..inputs, true)?;
            return Ok(true);
        }
        (true, false) => p.ignore(&table, format!("block {b} has no gate for it")),
        (false, true) => p.ignore(&gate, format!("block {b} has no value embedding for it")),
        (false, false) => {}
    }
    Ok(false)
}
