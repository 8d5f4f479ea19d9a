//! What the families of `model_type` "huginn_raven" share: the published layout of prelude, core and coda, and the keys and
//! tensors of their GGUF files. In which norms, rotation and read-out they differ is theirs.

use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use super::convert::Error;
use super::keys::{Keys, Sizes, Stacks};
use super::planner::{Planner, stack_names};
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::model::{
    self, Block, Config, Injection, Linear, LoopPlan, Looped, Matrix, Mlp, Norm, Parts, PostNorm, Rope, Start, Tensors,
};

/// `model_type` of the checkpoints.
pub(super) const MODEL_TYPE: &str = "huginn_raven";

/// Which norms a block has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `x = norm_2(attn(norm_1 x) + x)`, `x = norm_4(mlp(norm_3 x) + x)`.
    Sandwich,
    /// `x = attn(norm_1 x) + x`, `x = mlp(norm_2 x) + x`.
    PreNorm,
}

impl Kind {
    /// `loop.block_kind`.
    fn name(self) -> &'static str {
        match self {
            Self::Sandwich => "sandwich",
            Self::PreNorm => "pre-norm",
        }
    }

    /// Our names of the published norms, in their order.
    fn norms(self) -> &'static [&'static str] {
        match self {
            Self::Sandwich => &["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"],
            Self::PreNorm => &["attn_norm", "ffn_norm"],
        }
    }
}

/// A GGUF file, as far as its metadata tell.
pub(super) struct Stored<'a> {
    keys: &'a Keys<'a>,
    kind: Kind,
    stacks: Stacks,
    sizes: Sizes,
    eps: f32,
}

impl<'a> Stored<'a> {
    /// Reads the sizes, and refuses what is not implemented.
    pub(super) fn read(keys: &'a Keys<'a>, kind: Kind) -> Result<Self, model::Error> {
        keys.only("loop.injection", "linear")?;
        keys.only("loop.state_init", "like-init")?;
        keys.only("loop.block_kind", kind.name())?;
        keys.only("loop.activation", "silu")?;
        let stacks = keys.stacks()?;
        let sizes = keys.sizes(stacks.count)?;
        keys.equal("loop.state_length", sizes.width, "the embedding length")?;
        Ok(Self { keys, kind, stacks, sizes, eps: keys.positive("attention.layer_norm_rms_epsilon")? })
    }

    /// Values per head.
    pub(super) fn head_dim(&self) -> usize {
        self.sizes.head_dim
    }

    /// The model, rotated by `rope`.
    pub(super) fn load(self, tensors: &mut Tensors<'_>, rope: Rope) -> Result<Parts, model::Error> {
        let Self { keys, stacks, sizes, eps, .. } = &self;
        let (width, vocab) = (sizes.width, sizes.vocab);
        let config = Config {
            architecture: keys.prefix.to_owned(),
            name: keys.name()?,
            width,
            state_width: width,
            vocab,
            context: sizes.context,
            head_dim: sizes.head_dim,
            embedding_scale: keys.positive("embedding_scale")?,
            loops: vec![keys.depth()?],
            state_std: keys.state_std()?,
            prefix_lm: false,
            exit_gate: false,
        };
        // What is optional is announced, so that a file which has lost a tensor is not another model in silence.
        let (qk_bias, adapter_bias) = (keys.flag("loop.qk_bias")?, keys.flag("loop.adapter_bias")?);
        let blocks = (0..stacks.count).map(|b| self.block(tensors, b, qk_bias)).collect::<Result<_, _>>()?;
        let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
        let head = match keys.flag("loop.tied_head")? {
            false => tensors.matrix("output.weight", vocab, width)?,
            true => token_embedding.clone(),
        };
        let output_norm = Norm::rms(tensors.vector("output_norm.weight", width)?, *eps);
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
            ..Looped::plain(stacks.core..stacks.coda)
        };
        Ok(Parts {
            config,
            plan: LoopPlan::around(0..stacks.core, looped, stacks.coda..stacks.count),
            blocks,
            rope: Some(rope),
            positions: None,
            token_embedding,
            head,
            output_norm: Some(output_norm),
        })
    }

    fn block(&self, tensors: &mut Tensors<'_>, b: usize, qk_bias: bool) -> Result<Block, model::Error> {
        let Self { sizes, kind, eps, .. } = self;
        let width = sizes.width;
        let name = |part: &str| format!("blk.{b}.{part}");
        // Bounded, so the products cannot overflow.
        let (q, kv, f) = (sizes.heads[b] * sizes.head_dim, sizes.kv_heads[b] * sizes.head_dim, sizes.hidden[b]);
        let norm = |tensors: &mut Tensors<'_>, part: &str| {
            Ok::<_, model::Error>(Norm::rms(tensors.vector(&name(part), width)?, *eps))
        };
        let post = |tensors: &mut Tensors<'_>, part: &str| match kind {
            Kind::Sandwich => norm(tensors, part).map(PostNorm::Sum),
            Kind::PreNorm => Ok(PostNorm::None),
        };
        let matrix = |tensors: &mut Tensors<'_>, part: &str, rows, columns| -> Result<Matrix, model::Error> {
            tensors.matrix(&name(part), rows, columns)
        };
        Ok(Block {
            heads: sizes.heads[b],
            kv_heads: sizes.kv_heads[b],
            attn_norm: norm(tensors, "attn_norm.weight")?,
            q: Linear {
                weight: matrix(tensors, "attn_q.weight", q, width)?,
                bias: tensors.vector_if(qk_bias, &name("attn_q.bias"), q)?,
            },
            k: Linear {
                weight: matrix(tensors, "attn_k.weight", kv, width)?,
                bias: tensors.vector_if(qk_bias, &name("attn_k.bias"), kv)?,
            },
            v: matrix(tensors, "attn_v.weight", kv, width)?.into(),
            qk_norm: None,
            value_embedding: None,
            attn_gate: None,
            attn_output: matrix(tensors, "attn_output.weight", width, q)?.into(),
            post_attn: post(tensors, "post_attention_norm.weight")?,
            ffn_norm: norm(tensors, "ffn_norm.weight")?,
            mlp: Mlp::gated(
                matrix(tensors, "ffn_gate.weight", f, width)?,
                matrix(tensors, "ffn_up.weight", f, width)?,
                matrix(tensors, "ffn_down.weight", width, f)?,
            ),
            post_ffn: post(tensors, "post_ffw_norm.weight")?,
        })
    }
}

/// A published checkpoint, as far as its config.json tells.
pub(super) struct Published<'a> {
    checkpoint: &'a Checkpoint,
    kind: Kind,
    /// Blocks of prelude, core and coda.
    stacks: [usize; 3],
    width: usize,
    heads: usize,
    kv_heads: usize,
    hidden: usize,
    vocab: usize,
    tied: bool,
    qk_bias: bool,
    adapter_bias: bool,
}

impl<'a> Published<'a> {
    /// Reads the sizes, and refuses by name what is not implemented.
    pub(super) fn read(checkpoint: &'a Checkpoint, kind: Kind) -> Result<Self, Error> {
        let config = checkpoint.config();
        let settings = Settings(config);
        settings.only("injection_type", "linear", "linear")?;
        settings.only("state_init", "like-init", "like-init")?;
        settings.only("nonlin_name", "SiLU", "SiLU")?;
        settings.only("mlp_class_name", "GatedMLP", "GatedMLP")?;
        settings.only("norm_class_name", "RMSNorm_llama", "RMSNorm_llama")?;
        // Said of pre-norm blocks too.
        settings.only("block_class_name", "SandwichBlock", "SandwichBlock")?;
        settings.unset("test_time_noise")?;
        let width = settings.size("n_embd", MOST_WIDTH)?;
        let heads = match config.usize("n_heads")? {
            Some(n) => n,
            None => config.require_usize("num_attention_heads")?,
        };
        let heads = settings.heads("n_heads", heads, width)?;
        let kv_heads = settings.kv_heads("num_key_value_heads", heads)?;
        let blocks = |key: &str, least: usize| settings.within(key, config.require_usize(key)?, least, MOST_BLOCKS);
        let tied = match config.bool("tie_word_embeddings")? {
            Some(tied) => tied,
            None => config.bool("tie_embeddings")?.unwrap_or(true),
        };
        let qk_bias = config.bool("qk_bias")?.unwrap_or(false);
        if qk_bias && kv_heads != heads {
            return Err(settings.unsupported("qk_bias", &qk_bias, "false where query heads share keys"));
        }
        Ok(Self {
            checkpoint,
            kind,
            stacks: [
                blocks("n_layers_in_prelude", 0)?,
                blocks("n_layers_in_recurrent_block", 1)?,
                blocks("n_layers_in_coda", 0)?,
            ],
            width,
            heads,
            kv_heads,
            hidden: settings.size("intermediate_size", MOST_WIDTH)?,
            vocab: match config.usize("padded_vocab_size")? {
                Some(n) => settings.within("padded_vocab_size", n, 1, MOST_TOKENS)?,
                None => settings.size("vocab_size", MOST_TOKENS)?,
            },
            tied,
            qk_bias,
            adapter_bias: checkpoint.contains("transformer.adapter.bias"),
        })
    }

    /// Writes the keys that [`Stored`] reads, except those of the rotation; `context`: positions where config.json is silent.
    pub(super) fn write(&self, keys: &mut KeyWriter, context: usize, readout_norm: bool) -> Result<(), Error> {
        let config = self.checkpoint.config();
        let settings = Settings(config);
        let [prelude, core, coda] = self.stacks;
        let head_dim = self.width / self.heads;
        // The reference scales the state as it scales embeddings.
        let std = (config.require_f64("init_values.std")? * config.require_f64("init_values.embed_scale")?) as f32;
        if !(std.is_finite() && std >= 0.0) {
            return Err(settings.unsupported("init_values.std", &std, "a number not below 0"));
        }
        let count = prelude + core + coda;
        keys.sizes(&Sizes {
            width: self.width,
            head_dim,
            vocab: self.vocab,
            context: settings.within("block_size", context, 1, MOST_CONTEXT)?,
            heads: vec![self.heads; count],
            kv_heads: vec![self.kv_heads; count],
            hidden: vec![self.hidden; count],
        });
        keys.set("attention.layer_norm_rms_epsilon", settings.number("norm_eps")?);
        keys.size("rope.dimension_count", head_dim);
        keys.set("embedding_scale", settings.number("init_values.embed_scale")?);
        keys.stacks(self.stacks);
        keys.size("loop.mean_steps", settings.size("mean_recurrence", MOST_STEPS)?);
        keys.set("loop.injection", "linear");
        keys.set("loop.state_init", "like-init");
        keys.set("loop.state_std", std);
        keys.size("loop.state_length", self.width);
        keys.set("loop.readout_norm", readout_norm);
        keys.set("loop.qk_bias", self.qk_bias);
        keys.set("loop.adapter_bias", self.adapter_bias);
        keys.set("loop.tied_head", self.tied);
        keys.set("loop.block_kind", self.kind.name());
        keys.set("loop.activation", "silu");
        Ok(())
    }

    /// Plans all tensors.
    pub(super) fn take(&self, p: &mut Planner<'_>) -> Result<(), Error> {
        let Self { width, vocab, .. } = *self;
        p.know("freqs_cis"); // the rotation table, computed here
        p.matrix("token_embd.weight".into(), "transformer.wte.weight", vocab, width)?;
        if self.tied {
            p.know("lm_head.weight"); // some files carry the tied copy too
        } else {
            p.matrix("output.weight".into(), "lm_head.weight", vocab, width)?;
        }
        p.vector("output_norm.weight".into(), "transformer.ln_f.weight", width)?;
        let adapter = "transformer.adapter.weight";
        for (name, columns) in [("state", 0..width), ("input", width..2 * width)] {
            p.take(format!("loop.adapter_{name}.weight"), adapter, &[width, 2 * width], 0..width, columns, false)?;
        }
        if self.adapter_bias {
            p.vector("loop.adapter.bias".into(), "transformer.adapter.bias", width)?;
        }
        for (b, place) in stack_names(self.stacks).enumerate() {
            self.take_block(p, b, &place)?;
        }
        Ok(())
    }

    fn take_block(&self, p: &mut Planner<'_>, b: usize, place: &str) -> Result<(), Error> {
        let Self { width, heads, hidden, .. } = *self;
        let head_dim = width / heads;
        let kv = self.kv_heads * head_dim;
        let from = |part: &str| format!("{place}.{part}");
        let to = |part: &str| format!("blk.{b}.{part}");
        for (i, norm) in self.kind.norms().iter().enumerate() {
            p.vector(to(&format!("{norm}.weight")), &from(&format!("norm_{}.weight", i + 1)), width)?;
        }
        let (qkv, all) = (from("attn.Wqkv.weight"), width + 2 * kv);
        for (name, rows) in [("attn_q", 0..width), ("attn_k", width..width + kv), ("attn_v", width + kv..all)] {
            p.take(to(&format!("{name}.weight")), &qkv, &[all, width], rows, 0..width, false)?;
        }
        if self.qk_bias {
            let shape = [2, 1, heads, head_dim];
            for (name, rows) in [("attn_q", 0..heads), ("attn_k", heads..2 * heads)] {
                p.take(to(&format!("{name}.bias")), &from("attn.qk_bias"), &shape, rows, 0..head_dim, true)?;
            }
        }
        p.matrix(to("attn_output.weight"), &from("attn.proj.weight"), width, width)?;
        let fc = from("mlp.fc.weight");
        for (name, rows) in [("ffn_gate", 0..hidden), ("ffn_up", hidden..2 * hidden)] {
            p.take(to(&format!("{name}.weight")), &fc, &[2 * hidden, width], rows, 0..width, false)?;
        }
        p.matrix(to("ffn_down.weight"), &from("mlp.proj.weight"), width, hidden)
    }
}
