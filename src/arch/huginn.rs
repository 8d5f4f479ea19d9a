//! Huginn (`model_type` "huginn_raven" with four norms per block): Geiping et al., "Scaling up Test-Time Compute with Latent
//! Reasoning: A Recurrent Depth Approach". Reference implementation: seal-rg/recurrent-pretraining,
//! `recpre/raven_modeling_minimal.py`.
//!
//! e = prelude(embedding · scale); s_0 truncated normal; s ← core(W_a·[s, e]); logits = head(ln_f(coda(ln_f(s)))). A block is a
//! sandwich: `x = norm_2(attn(norm_1 x) + x)`, `x = norm_4(mlp(norm_3 x) + x)`. Rotary angles act on interleaved pairs.

use super::Family;
use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_HEADS, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use super::convert::{Conversion, Error, Planner};
use super::keys::Keys;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{
    self, Block, Config, Injection, Linear, LoopPlan, Looped, Mlp, Norm, Parts, PostNorm, Rope, RopeStyle, Start,
    Tensors,
};

/// `general.architecture`.
const NAME: &str = "huginn";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type huginn_raven with four norms per block (tomg-group-umd/huginn-0125)",
    notes: "rdt's own keys",
    recognise,
    convert,
    load,
};

/// Retrofitted models share the model type, but have two norms per block.
fn recognise(checkpoint: &Checkpoint) -> Result<bool, Error> {
    let named = checkpoint.config().str("model_type")? == Some("huginn_raven");
    Ok(named && checkpoint.contains("transformer.core_block.0.norm_3.weight"))
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    keys.only("loop.injection", "linear")?;
    keys.only("loop.state_init", "like-init")?;
    keys.only("loop.block_kind", "sandwich")?;
    keys.only("loop.activation", "silu")?;
    keys.only("loop.rope_style", "interleaved")?;
    let prelude = keys.count("loop.prelude_count", MOST_BLOCKS)?;
    let core = prelude + keys.size("loop.core_count", MOST_BLOCKS)?;
    let all = core + keys.count("loop.coda_count", MOST_BLOCKS)?;
    let count = keys.size("block_count", 3 * MOST_BLOCKS)?;
    if count != all {
        return Err(keys.wrong("block_count", count, format!("{all} (prelude + core + coda)")));
    }
    let sizes = keys.sizes(count)?;
    let (width, vocab, head_dim) = (sizes.width, sizes.vocab, sizes.head_dim);
    keys.equal("loop.state_length", width, "the embedding length")?;
    let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
    let state_std = metadata.require_f32(&keys.key("loop.state_std"))?;
    if !(state_std.is_finite() && state_std >= 0.0) {
        return Err(keys.wrong("loop.state_std", state_std, "a number not below 0"));
    }
    let config = Config {
        architecture: NAME.to_owned(),
        name: keys.name()?,
        width,
        state_width: width,
        vocab,
        context: sizes.context,
        head_dim,
        embedding_scale: keys.positive("embedding_scale")?,
        loops: vec![keys.depth()?],
        state_std,
        prefix_lm: false,
        exit_gate: false,
    };
    // What is optional is announced, so that a file which has lost a tensor is not another model in silence.
    let (qk_bias, adapter_bias) = (keys.flag("loop.qk_bias")?, keys.flag("loop.adapter_bias")?);
    let mut blocks = Vec::new();
    for b in 0..count {
        let name = |part: &str| format!("blk.{b}.{part}");
        // Bounded above, so the products cannot overflow.
        let (q, kv, f) = (sizes.heads[b] * head_dim, sizes.kv_heads[b] * head_dim, sizes.hidden[b]);
        let mut norm = |part: &str| Ok::<_, model::Error>(Norm::rms(tensors.vector(&name(part), width)?, eps));
        let (attn_norm, post_attn) = (norm("attn_norm.weight")?, norm("post_attention_norm.weight")?);
        let (ffn_norm, post_ffn) = (norm("ffn_norm.weight")?, norm("post_ffw_norm.weight")?);
        blocks.push(Block {
            heads: sizes.heads[b],
            kv_heads: sizes.kv_heads[b],
            attn_norm,
            q: Linear {
                weight: tensors.matrix(&name("attn_q.weight"), q, width)?,
                bias: tensors.vector_if(qk_bias, &name("attn_q.bias"), q)?,
            },
            k: Linear {
                weight: tensors.matrix(&name("attn_k.weight"), kv, width)?,
                bias: tensors.vector_if(qk_bias, &name("attn_k.bias"), kv)?,
            },
            v: tensors.matrix(&name("attn_v.weight"), kv, width)?.into(),
            qk_norm: None,
            value_embedding: None,
            attn_gate: None,
            attn_output: tensors.matrix(&name("attn_output.weight"), width, q)?.into(),
            post_attn: PostNorm::Sum(post_attn),
            ffn_norm,
            mlp: Mlp::gated(
                tensors.matrix(&name("ffn_gate.weight"), f, width)?,
                tensors.matrix(&name("ffn_up.weight"), f, width)?,
                tensors.matrix(&name("ffn_down.weight"), width, f)?,
            ),
            post_ffn: PostNorm::Sum(post_ffn),
        });
    }
    let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
    let head = match keys.flag("loop.tied_head")? {
        false => tensors.matrix("output.weight", vocab, width)?,
        true => token_embedding.clone(),
    };
    let output_norm = Norm::rms(tensors.vector("output_norm.weight", width)?, eps);
    let injection = Injection::Linear {
        state: tensors.matrix("loop.adapter_state.weight", width, width)?,
        input: Linear {
            weight: tensors.matrix("loop.adapter_input.weight", width, width)?,
            bias: tensors.vector_if(adapter_bias, "loop.adapter.bias", width)?,
        },
    };
    let looped = Looped {
        start: Start::Initial,
        injection,
        readout_norm: keys.flag("loop.readout_norm")?.then(|| output_norm.clone()),
        ..Looped::plain(prelude..core)
    };
    Ok(Parts {
        config,
        plan: LoopPlan::around(0..prelude, looped, core..all),
        blocks,
        rope: Some(Rope::new(RopeStyle::Interleaved, keys.positive("rope.freq_base")?, head_dim)),
        positions: None,
        token_embedding,
        head,
        output_norm: Some(output_norm),
    })
}

/// Keys and tensors of our GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    settings.only("injection_type", "linear", "linear")?;
    settings.only("state_init", "like-init", "like-init")?;
    settings.only("nonlin_name", "SiLU", "SiLU")?;
    settings.only("mlp_class_name", "GatedMLP", "GatedMLP")?;
    settings.only("norm_class_name", "RMSNorm_llama", "RMSNorm_llama")?;
    settings.only("block_class_name", "SandwichBlock", "SandwichBlock")?;

    let width = settings.size("n_embd", MOST_WIDTH)?;
    let heads = match config.usize("n_heads")? {
        Some(n) => n,
        None => config.require_usize("num_attention_heads")?,
    };
    let kv_heads = config.usize("num_key_value_heads")?.unwrap_or(heads);
    if heads == 0 || heads > MOST_HEADS || !width.is_multiple_of(2 * heads) {
        return Err(settings.unsupported("n_heads", &heads, format!("a divisor of half of n_embd, {width}")));
    }
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(settings.unsupported("num_key_value_heads", &kv_heads, format!("a divisor of n_heads, {heads}")));
    }
    let head_dim = width / heads;
    let hidden = settings.size("intermediate_size", MOST_WIDTH)?;
    let vocab = match config.usize("padded_vocab_size")? {
        Some(n) => settings.within("padded_vocab_size", n, 1, MOST_TOKENS)?,
        None => settings.size("vocab_size", MOST_TOKENS)?,
    };
    let context = settings.within("block_size", config.usize("block_size")?.unwrap_or(4096), 1, MOST_CONTEXT)?;
    let blocks = |key: &str, least: usize| settings.within(key, config.require_usize(key)?, least, MOST_BLOCKS);
    let prelude = blocks("n_layers_in_prelude", 0)?;
    let core = blocks("n_layers_in_recurrent_block", 1)?;
    let coda = blocks("n_layers_in_coda", 0)?;
    let count = prelude + core + coda;
    let mean_steps = settings.size("mean_recurrence", MOST_STEPS)?;
    let scale = settings.number("init_values.embed_scale")?;
    // The reference scales the state as it scales embeddings.
    let std = (config.require_f64("init_values.std")? * config.require_f64("init_values.embed_scale")?) as f32;
    if !(std.is_finite() && std >= 0.0) {
        return Err(settings.unsupported("init_values.std", &std, "a number not below 0"));
    }

    let tied = match config.bool("tie_word_embeddings")? {
        Some(tied) => tied,
        None => config.bool("tie_embeddings")?.unwrap_or(true),
    };
    let qk_bias = config.bool("qk_bias")?.unwrap_or(false);
    let adapter_bias = checkpoint.contains("transformer.adapter.bias");

    let mut keys = KeyWriter::new(NAME, checkpoint);
    keys.size("block_count", count);
    keys.size("context_length", context);
    keys.size("vocab_size", vocab);
    keys.size("embedding_length", width);
    keys.size("feed_forward_length", hidden);
    keys.size("attention.head_count", heads);
    keys.size("attention.head_count_kv", kv_heads);
    keys.size("attention.key_length", head_dim);
    keys.size("attention.value_length", head_dim);
    keys.set("attention.layer_norm_rms_epsilon", settings.number("norm_eps")?);
    keys.set("rope.freq_base", settings.number("rope_base")?);
    keys.size("rope.dimension_count", head_dim);
    keys.set("embedding_scale", scale);
    keys.size("loop.prelude_count", prelude);
    keys.size("loop.core_count", core);
    keys.size("loop.coda_count", coda);
    keys.size("loop.mean_steps", mean_steps);
    keys.set("loop.injection", "linear");
    keys.set("loop.state_init", "like-init");
    keys.set("loop.state_std", std);
    keys.size("loop.state_length", width);
    keys.set("loop.readout_norm", true);
    keys.set("loop.qk_bias", qk_bias);
    keys.set("loop.adapter_bias", adapter_bias);
    keys.set("loop.tied_head", tied);
    keys.set("loop.block_kind", "sandwich");
    keys.set("loop.activation", "silu");
    keys.set("loop.rope_style", "interleaved");

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
    for b in 0..count {
        let place = if b < prelude {
            format!("prelude.{b}")
        } else if b < prelude + core {
            format!("core_block.{}", b - prelude)
        } else {
            format!("coda.{}", b - prelude - core)
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
    Ok(Conversion { metadata: keys.metadata, tensors: p.finish()? })
}
