//! Huginn (`model_type` "huginn_raven" with four norms per block): Geiping et al., "Scaling up Test-Time Compute with Latent
//! Reasoning: A Recurrent Depth Approach". Reference implementation: seal-rg/recurrent-pretraining,
//! `recpre/raven_modeling_minimal.py`.
//!
//! e = prelude(embedding · scale); s_0 truncated normal; s ← core(W_a·[s, e]); logits = head(ln_f(coda(ln_f(s)))). A block is a
//! sandwich: `x = norm_2(attn(norm_1 x) + x)`, `x = norm_4(mlp(norm_3 x) + x)`. Rotary angles act on interleaved pairs.

use super::convert::{Conversion, Error, Planner};
use super::{Keys, Tensors};
use crate::checkpoint::Checkpoint;
use crate::gguf::{Metadata, Value};
use crate::model::{self, Adapter, Block, Config, LoopPlan, Parts};

/// `general.architecture`.
pub(super) const NAME: &str = "huginn";

/// Bounds on sizes from files: far above any real model, far below what overflows or exhausts memory.
const MOST_BLOCKS: usize = 4096;
const MOST_WIDTH: usize = 1 << 20;
const MOST_HEADS: usize = 1 << 16;
const MOST_STEPS: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 26;
const MOST_CONTEXT: usize = 1 << 30;

/// The parts of a model, from its GGUF.
pub(super) fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    keys.only("loop.injection", "linear")?;
    keys.only("loop.state_init", "like-init")?;
    keys.only("loop.block_kind", "sandwich")?;
    keys.only("loop.activation", "silu")?;
    keys.only("loop.rope_style", "interleaved")?;
    let prelude = keys.count("loop.prelude_count", MOST_BLOCKS)?;
    let core = keys.size("loop.core_count", MOST_BLOCKS)?;
    let coda = keys.count("loop.coda_count", MOST_BLOCKS)?;
    let plan = LoopPlan::new(prelude, core, coda);
    let count = keys.size("block_count", 3 * MOST_BLOCKS)?;
    let wrong = |name: &str, found: usize, expected: String| model::Error::Key {
        key: keys.key(name),
        found: found.to_string(),
        expected,
    };
    if count != plan.blocks() {
        return Err(wrong("block_count", count, format!("{} (prelude + core + coda)", plan.blocks())));
    }
    let width = keys.size("embedding_length", MOST_WIDTH)?;
    let head_dim = keys.size("attention.key_length", MOST_WIDTH)?;
    for name in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.size(name, MOST_WIDTH)?;
        if found != head_dim {
            return Err(wrong(name, found, format!("{head_dim}, the head size")));
        }
    }
    let state = keys.size("loop.state_length", MOST_WIDTH)?;
    if state != width {
        return Err(wrong("loop.state_length", state, format!("{width}, the embedding length")));
    }
    let vocab = keys.size("vocab_size", MOST_TOKENS)?;
    let heads = metadata.require_usize_per_block(&keys.key("attention.head_count"), count)?;
    let kv_heads = metadata.require_usize_per_block(&keys.key("attention.head_count_kv"), count)?;
    let hidden = metadata.require_usize_per_block(&keys.key("feed_forward_length"), count)?;
    for b in 0..count {
        if heads[b] == 0 || heads[b] > MOST_HEADS {
            return Err(wrong("attention.head_count", heads[b], format!("1 to {MOST_HEADS}")));
        }
        if kv_heads[b] == 0 || !heads[b].is_multiple_of(kv_heads[b]) {
            return Err(wrong("attention.head_count_kv", kv_heads[b], format!("a divisor of {}", heads[b])));
        }
        if hidden[b] == 0 || hidden[b] > MOST_WIDTH {
            return Err(wrong("feed_forward_length", hidden[b], format!("1 to {MOST_WIDTH}")));
        }
    }
    let state_std = metadata.require_f32(&keys.key("loop.state_std"))?;
    if !(state_std.is_finite() && state_std >= 0.0) {
        return Err(model::Error::Key {
            key: keys.key("loop.state_std"),
            found: state_std.to_string(),
            expected: "a number not below 0".into(),
        });
    }
    let max_steps = match metadata.usize(&keys.key("loop.max_steps"))? {
        None => None,
        Some(_) => Some(keys.size("loop.max_steps", MOST_STEPS)?),
    };
    let config = Config {
        architecture: NAME.to_owned(),
        name: metadata.str("general.name")?.unwrap_or_default().to_owned(),
        width,
        vocab,
        context: keys.size("context_length", MOST_CONTEXT)?,
        head_dim,
        norm_eps: keys.positive("attention.layer_norm_rms_epsilon")?,
        rope_base: keys.positive("rope.freq_base")?,
        embedding_scale: keys.positive("embedding_scale")?,
        mean_steps: keys.size("loop.mean_steps", MOST_STEPS)?,
        max_steps,
        state_std,
    };
    // What is optional is announced, so that a file which has lost a tensor is not another model in silence.
    let (qk_bias, adapter_bias) = (keys.flag("loop.qk_bias")?, keys.flag("loop.adapter_bias")?);
    let mut blocks = Vec::new();
    for b in 0..count {
        let name = |part: &str| format!("blk.{b}.{part}");
        // Bounded above, so the products cannot overflow.
        let (q, kv, f) = (heads[b] * head_dim, kv_heads[b] * head_dim, hidden[b]);
        blocks.push(Block {
            heads: heads[b],
            kv_heads: kv_heads[b],
            attn_norm: tensors.vector(&name("attn_norm.weight"), width)?,
            q: tensors.matrix(&name("attn_q.weight"), q, width)?,
            k: tensors.matrix(&name("attn_k.weight"), kv, width)?,
            v: tensors.matrix(&name("attn_v.weight"), kv, width)?,
            q_bias: tensors.vector_if(qk_bias, &name("attn_q.bias"), q)?,
            k_bias: tensors.vector_if(qk_bias, &name("attn_k.bias"), kv)?,
            attn_output: tensors.matrix(&name("attn_output.weight"), width, q)?,
            post_attn_norm: tensors.vector(&name("post_attention_norm.weight"), width)?,
            ffn_norm: tensors.vector(&name("ffn_norm.weight"), width)?,
            gate: tensors.matrix(&name("ffn_gate.weight"), f, width)?,
            up: tensors.matrix(&name("ffn_up.weight"), f, width)?,
            down: tensors.matrix(&name("ffn_down.weight"), width, f)?,
            post_ffn_norm: tensors.vector(&name("post_ffw_norm.weight"), width)?,
        });
    }
    let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
    let head = match keys.flag("loop.tied_head")? {
        false => tensors.matrix("output.weight", vocab, width)?,
        true => token_embedding.clone(),
    };
    let output_norm = tensors.vector("output_norm.weight", width)?;
    let readout_norm = keys.flag("loop.readout_norm")?.then(|| output_norm.clone());
    Ok(Parts {
        adapter: Adapter {
            state: tensors.matrix("loop.adapter_state.weight", width, width)?,
            input: tensors.matrix("loop.adapter_input.weight", width, width)?,
            bias: tensors.vector_if(adapter_bias, "loop.adapter.bias", width)?,
        },
        config,
        plan,
        blocks,
        token_embedding,
        head,
        output_norm,
        readout_norm,
    })
}

/// Keys and tensors of our GGUF, from a published checkpoint.
pub(super) fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let only = |key: &str, supported: &str, otherwise: &str| -> Result<(), Error> {
        let found = config.str(key)?.unwrap_or(otherwise);
        if found == supported {
            return Ok(());
        }
        let found = format!("'{}'", found.chars().take(80).collect::<String>());
        Err(Error::Setting { key: key.to_owned(), found, supported: format!("'{supported}'") })
    };
    if !checkpoint.contains("transformer.core_block.0.norm_3.weight") {
        return Err(Error::Family {
            found: "model_type 'huginn_raven' without norm_3 (a retrofitted model)".into(),
            known: "huginn_raven with four norms per block".into(),
        });
    }
    only("injection_type", "linear", "linear")?;
    only("state_init", "like-init", "like-init")?;
    only("nonlin_name", "SiLU", "SiLU")?;
    only("mlp_class_name", "GatedMLP", "GatedMLP")?;
    only("norm_class_name", "RMSNorm_llama", "RMSNorm_llama")?;
    only("block_class_name", "SandwichBlock", "SandwichBlock")?;

    let setting = |key: &str, found: &dyn std::fmt::Display, supported: String| Error::Setting {
        key: key.into(),
        found: found.to_string(),
        supported,
    };
    let within = |key: &str, n: usize, least: usize, most: usize| {
        if (least..=most).contains(&n) { Ok(n) } else { Err(setting(key, &n, format!("{least} to {most}"))) }
    };
    let size = |key: &str, most: usize| within(key, config.require_usize(key)?, 1, most);
    let number = |key: &str| {
        let x = config.require_f32(key)?;
        if x > 0.0 { Ok(x) } else { Err(setting(key, &x, "a number above 0".to_owned())) }
    };

    let width = size("n_embd", MOST_WIDTH)?;
    let heads = match config.usize("n_heads")? {
        Some(n) => n,
        None => config.require_usize("num_attention_heads")?,
    };
    let kv_heads = config.usize("num_key_value_heads")?.unwrap_or(heads);
    if heads == 0 || heads > MOST_HEADS || !width.is_multiple_of(2 * heads) {
        return Err(setting("n_heads", &heads, format!("a divisor of half of n_embd, {width}")));
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(setting("num_key_value_heads", &kv_heads, format!("a divisor of n_heads, {heads}")));
    }
    let head_dim = width / heads;
    let hidden = size("intermediate_size", MOST_WIDTH)?;
    let vocab = match config.usize("padded_vocab_size")? {
        Some(n) => within("padded_vocab_size", n, 1, MOST_TOKENS)?,
        None => size("vocab_size", MOST_TOKENS)?,
    };
    let context = within("block_size", config.usize("block_size")?.unwrap_or(4096), 1, MOST_CONTEXT)?;
    let blocks = |key: &str, least: usize| within(key, config.require_usize(key)?, least, MOST_BLOCKS);
    let prelude = blocks("n_layers_in_prelude", 0)?;
    let core = blocks("n_layers_in_recurrent_block", 1)?;
    let coda = blocks("n_layers_in_coda", 0)?;
    let plan = LoopPlan::new(prelude, core, coda);
    let mean_steps = size("mean_recurrence", MOST_STEPS)?;
    let scale = number("init_values.embed_scale")?;
    // The reference scales the state as it scales embeddings.
    let std = (config.require_f64("init_values.std")? * config.require_f64("init_values.embed_scale")?) as f32;
    if !(std.is_finite() && std >= 0.0) {
        return Err(setting("init_values.std", &std, "a number not below 0".to_owned()));
    }

    let tied = match config.bool("tie_word_embeddings")? {
        Some(tied) => tied,
        None => config.bool("tie_embeddings")?.unwrap_or(true),
    };
    let qk_bias = config.bool("qk_bias")?.unwrap_or(false);
    let adapter_bias = checkpoint.contains("transformer.adapter.bias");

    let mut metadata = Metadata::new();
    let folder = checkpoint.folder().canonicalize().unwrap_or_else(|_| checkpoint.folder().to_owned());
    let name = folder.file_name().map_or_else(|| NAME.into(), |n| n.to_string_lossy());
    metadata.insert("general.architecture", NAME);
    metadata.insert("general.name", name.as_ref());
    metadata.insert("general.quantization_version", 2u32);
    let mut set = |name: &str, value: Value| {
        metadata.insert(format!("{NAME}.{name}"), value);
    };
    // All are bounded above.
    let number_of = |n: usize| Value::U32(n as u32);
    set("block_count", number_of(plan.blocks()));
    set("context_length", number_of(context));
    set("vocab_size", number_of(vocab));
    set("embedding_length", number_of(width));
    set("feed_forward_length", number_of(hidden));
    set("attention.head_count", number_of(heads));
    set("attention.head_count_kv", number_of(kv_heads));
    set("attention.key_length", number_of(head_dim));
    set("attention.value_length", number_of(head_dim));
    set("attention.layer_norm_rms_epsilon", Value::F32(number("norm_eps")?));
    set("rope.freq_base", Value::F32(number("rope_base")?));
    set("rope.dimension_count", number_of(head_dim));
    set("embedding_scale", Value::F32(scale));
    set("loop.prelude_count", number_of(prelude));
    set("loop.core_count", number_of(core));
    set("loop.coda_count", number_of(coda));
    set("loop.mean_steps", number_of(mean_steps));
    set("loop.injection", "linear".into());
    set("loop.state_init", "like-init".into());
    set("loop.state_std", Value::F32(std));
    set("loop.state_length", number_of(width));
    set("loop.readout_norm", Value::Bool(true));
    set("loop.qk_bias", Value::Bool(qk_bias));
    set("loop.adapter_bias", Value::Bool(adapter_bias));
    set("loop.tied_head", Value::Bool(tied));
    set("loop.block_kind", "sandwich".into());
    set("loop.activation", "silu".into());
    set("loop.rope_style", "interleaved".into());

    let mut p = Planner::new(checkpoint);
    p.know("freqs_cis"); // the rotation table, computed here
    p.matrix("token_embd.weight".into(), "transformer.wte.weight", vocab, width)?;
    if tied {
        p.know("lm_head.weight"); // the published file carries the tied copy too
    } else {
        p.matrix("output.weight".into(), "lm_head.weight", vocab, width)?;
    }
    p.vector("output_norm.weight".into(), "transformer.ln_f.weight", width)?;
    let adapter = "transformer.adapter.weight";
    for (name, columns) in [("state", 0..width), ("input", width..2 * width)] {
        p.take(format!("loop.adapter_{name}.weight"), adapter, &[width, 2 * width], 0..width, columns, false)?;
    }
    if adapter_bias {
        p.vector("loop.adapter.bias".into(), "transformer.adapter.bias", width)?;
    }
    let kv = kv_heads * head_dim;
    for b in 0..plan.blocks() {
        let place = if plan.prelude.contains(&b) {
            format!("prelude.{b}")
        } else if plan.core.contains(&b) {
            format!("core_block.{}", b - plan.core.start)
        } else {
            format!("coda.{}", b - plan.coda.start)
        };
        let from = |part: &str| format!("transformer.{place}.{part}");
        let to = |part: &str| format!("blk.{b}.{part}");
        p.vector(to("attn_norm.weight"), &from("norm_1.weight"), width)?;
        let (qkv, all) = (from("attn.Wqkv.weight"), width + 2 * kv);
        for (name, rows) in [("attn_q", 0..width), ("attn_k", width..width + kv), ("attn_v", width + kv..all)] {
            p.take(to(&format!("{name}.weight")), &qkv, &[all, width], rows, 0..width, false)?;
        }
        if qk_bias {
            let shape = [2, 1, heads, head_dim];
            for (name, rows) in [("attn_q", 0..heads), ("attn_k", heads..2 * heads)] {
                p.take(to(&format!("{name}.bias")), &from("attn.qk_bias"), &shape, rows, 0..head_dim, true)?;
            }
        }
        p.matrix(to("attn_output.weight"), &from("attn.proj.weight"), width, width)?;
        p.vector(to("post_attention_norm.weight"), &from("norm_2.weight"), width)?;
        p.vector(to("ffn_norm.weight"), &from("norm_3.weight"), width)?;
        let fc = from("mlp.fc.weight");
        for (name, rows) in [("ffn_gate", 0..hidden), ("ffn_up", hidden..2 * hidden)] {
            p.take(to(&format!("{name}.weight")), &fc, &[2 * hidden, width], rows, 0..width, false)?;
        }
        p.matrix(to("ffn_down.weight"), &from("mlp.proj.weight"), width, hidden)?;
        p.vector(to("post_ffw_norm.weight"), &from("norm_4.weight"), width)?;
    }
    Ok(Conversion { metadata, tensors: p.finish()? })
}
