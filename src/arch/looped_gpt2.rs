//! A GPT-2-style stack of which some segments are looped, each for itself: the model of "Two-Scale Latent Dynamics for
//! Recurrent-Depth Transformers" (arXiv 2509.23314) loops layer 4, layers 5 and 6, and layer 7 of twelve. No weights of it are
//! published; the layout of the checkpoint is that of nanoGPT with matrices as `nn.Linear` has them, and two keys more.
//!
//! x = wte + wpe; segments in the order of the layers, each looped one applied to its own output again and again; logits =
//! wte·ln_f(x). A block: `x = x + attn(ln_1 x)`, `x = x + mlp(ln_2 x)`, LayerNorms and biases throughout, GELU by its tanh
//! approximation.

use super::Family;
use super::bounds::{MOST_BLOCKS, MOST_CONTEXT, MOST_STEPS, MOST_TOKENS, MOST_WIDTH};
use super::convert::{Conversion, Error};
use super::keys::{Keys, Sizes};
use super::planner::Planner;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::{Metadata, Value};
use crate::model::{
    self, Activation, Block, Config, Depth, Linear, LoopPlan, Looped, Mlp, Norm, Parts, PostNorm, Segment, Tensors,
};
use std::ops::Range;

/// `general.architecture`, and `model_type` of checkpoints.
const NAME: &str = "looped_gpt2";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type looped_gpt2: nanoGPT's layout with loop_segments and loop_steps",
    notes: "rdt's own keys; every looped segment has its own exit",
    recognise,
    convert,
    load,
};

fn recognise(checkpoint: &Checkpoint) -> Result<bool, Error> {
    Ok(checkpoint.config().str("model_type")? == Some(NAME))
}

/// What is wrong with a list of looped segments `start..end` of `count` blocks, if anything is.
fn fault(segments: &[Range<usize>], steps: &[usize], count: usize) -> Option<String> {
    if segments.is_empty() || segments.len() > count {
        return Some(format!("1 to {count} segments"));
    }
    let mut free = 0;
    for s in segments {
        if s.start < free || s.start >= s.end || s.end > count {
            return Some(format!("segments in order, none empty, within 0 to {count}"));
        }
        free = s.end;
    }
    let fits = steps.len() == segments.len() && steps.iter().all(|n| (1..=MOST_STEPS).contains(n));
    (!fits).then(|| format!("{} numbers of steps, each 1 to {MOST_STEPS}", segments.len()))
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    let count = keys.size("block_count", MOST_BLOCKS)?;
    let flat = keys.counts("loop.segments", 2 * MOST_BLOCKS)?;
    let steps = keys.counts("loop.steps", MOST_BLOCKS)?;
    let (pairs, rest) = flat.as_chunks::<2>();
    let segments: Vec<_> = pairs.iter().map(|&[start, end]| start..end).collect();
    let fault = if rest.is_empty() { fault(&segments, &steps, count) } else { Some("pairs of start and end".into()) };
    if let Some(expected) = fault {
        let found = format!("{} numbers, with {} in loop.steps", flat.len(), steps.len());
        return Err(keys.wrong("loop.segments", found, expected));
    }
    let sizes = keys.sizes(count)?;
    let (width, vocab, head_dim, context) = (sizes.width, sizes.vocab, sizes.head_dim, sizes.context);
    let eps = keys.positive("attention.layer_norm_epsilon")?;
    let config = Config {
        architecture: NAME.to_owned(),
        name: keys.name()?,
        width,
        state_width: width,
        vocab,
        context,
        head_dim,
        embedding_scale: 1.0,
        loops: steps.iter().map(|&mean_steps| Depth { mean_steps, max_steps: None }).collect(),
        state_std: 0.0,
        prefix_lm: false,
        exit_gate: false,
    };
    let mut parts = Reader { tensors, eps };
    let mut blocks = Vec::new();
    for b in 0..count {
        let name = |part: &str| format!("blk.{b}.{part}");
        // Bounded above, so the products cannot overflow.
        let (q, kv, f) = (sizes.heads[b] * head_dim, sizes.kv_heads[b] * head_dim, sizes.hidden[b]);
        blocks.push(Block {
            heads: sizes.heads[b],
            kv_heads: sizes.kv_heads[b],
            attn_norm: parts.norm(&name("attn_norm"), width)?,
            q: parts.linear(&name("attn_q"), q, width)?,
            k: parts.linear(&name("attn_k"), kv, width)?,
            v: parts.linear(&name("attn_v"), kv, width)?,
            qk_norm: None,
            value_embedding: None,
            attn_gate: None,
            attn_output: parts.linear(&name("attn_output"), width, q)?,
            post_attn: PostNorm::None,
            ffn_norm: parts.norm(&name("ffn_norm"), width)?,
            mlp: Mlp {
                gate: None,
                up: parts.linear(&name("ffn_up"), f, width)?,
                down: parts.linear(&name("ffn_down"), width, f)?,
                activation: Activation::GeluTanh,
            },
            post_ffn: PostNorm::None,
        });
    }
    let output_norm = Some(parts.norm("output_norm", width)?);
    let token_embedding = tensors.matrix("token_embd.weight", vocab, width)?;
    let head = match keys.flag("loop.tied_head")? {
        false => tensors.matrix("output.weight", vocab, width)?,
        true => token_embedding.clone(),
    };
    Ok(Parts {
        config,
        plan: plan(&segments, count),
        blocks,
        rope: None,
        positions: Some(tensors.matrix("position_embd.weight", context, width)?),
        token_embedding,
        head,
        output_norm,
    })
}

/// The looped segments, and what lies between them.
fn plan(looped: &[Range<usize>], count: usize) -> LoopPlan {
    let mut segments = Vec::new();
    let mut free = 0;
    for s in looped {
        segments.extend((free < s.start).then_some(Segment::Once(free..s.start)));
        segments.push(Segment::Looped(Box::new(Looped::plain(s.clone()))));
        free = s.end;
    }
    segments.extend((free < count).then_some(Segment::Once(free..count)));
    LoopPlan { segments }
}

/// Takes tensors that have biases.
struct Reader<'a, 'b> {
    tensors: &'a mut Tensors<'b>,
    eps: f32,
}

impl Reader<'_, '_> {
    fn norm(&mut self, name: &str, len: usize) -> Result<Norm, model::Error> {
        let weight = self.tensors.vector(&format!("{name}.weight"), len)?;
        let bias = Some(self.tensors.vector(&format!("{name}.bias"), len)?);
        Ok(Norm { weight, bias, eps: self.eps })
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear, model::Error> {
        let weight = self.tensors.matrix(&format!("{name}.weight"), rows, cols)?;
        let bias = Some(self.tensors.vector(&format!("{name}.bias"), rows)?);
        Ok(Linear { weight, bias })
    }
}

/// Keys and tensors of our GGUF, from a checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    settings.only_bool("bias", true)?;
    settings.only("activation_function", "gelu_new", "gelu_new")?;
    let width = settings.size("n_embd", MOST_WIDTH)?;
    let heads = settings.heads("n_head", config.require_usize("n_head")?, width)?;
    let head_dim = width / heads;
    let hidden = settings.size_or("n_inner", MOST_WIDTH, (4 * width).min(MOST_WIDTH))?;
    let vocab = settings.size("vocab_size", MOST_TOKENS)?;
    // The first is GPT-2's name, the second nanoGPT's.
    let context = if config.get("n_positions").is_some() { "n_positions" } else { "block_size" };
    let context = settings.size(context, MOST_CONTEXT)?;
    let count = settings.size("n_layer", MOST_BLOCKS)?;
    let tied = config.bool("tie_word_embeddings")?.unwrap_or(true);
    let eps = match config.f32("layer_norm_epsilon")? {
        Some(_) => settings.number("layer_norm_epsilon")?,
        None => 1e-5,
    };
    let (segments, steps) = loops(&settings)?;
    if let Some(expected) = fault(&segments, &steps, count) {
        let found = format!("{segments:?} with loop_steps {steps:?}");
        return Err(settings.unsupported("loop_segments", &shortened(&found), expected));
    }

    let mut keys = KeyWriter::new(NAME, checkpoint);
    keys.sizes(&Sizes {
        width,
        head_dim,
        vocab,
        context,
        heads: vec![heads; count],
        kv_heads: vec![heads; count],
        hidden: vec![hidden; count],
    });
    keys.set("attention.layer_norm_epsilon", eps);
    // Bounded above.
    let list = |numbers: &mut dyn Iterator<Item = usize>| Value::from(numbers.map(|n| n as u32).collect::<Vec<_>>());
    keys.set("loop.segments", list(&mut segments.iter().flat_map(|s| [s.start, s.end])));
    keys.set("loop.steps", list(&mut steps.into_iter()));
    keys.set("loop.tied_head", tied);

    let mut p = Planner::new(checkpoint);
    p.matrix("token_embd.weight".into(), "transformer.wte.weight", vocab, width)?;
    p.matrix("position_embd.weight".into(), "transformer.wpe.weight", context, width)?;
    if tied {
        p.know("lm_head.weight"); // a copy of the table
    } else {
        p.matrix("output.weight".into(), "lm_head.weight", vocab, width)?;
    }
    for part in ["weight", "bias"] {
        p.vector(format!("output_norm.{part}"), &format!("transformer.ln_f.{part}"), width)?;
    }
    for b in 0..count {
        let from = |part: &str| format!("transformer.h.{b}.{part}");
        let to = |part: &str| format!("blk.{b}.{part}");
        p.know(&from("attn.bias")); // the causal mask, which older files carry
        for (name, published) in [("attn_norm", "ln_1"), ("ffn_norm", "ln_2")] {
            for part in ["weight", "bias"] {
                p.vector(to(&format!("{name}.{part}")), &from(&format!("{published}.{part}")), width)?;
            }
        }
        for (i, name) in ["attn_q", "attn_k", "attn_v"].into_iter().enumerate() {
            let rows = i * width..(i + 1) * width;
            let weight = from("attn.c_attn.weight");
            p.take(to(&format!("{name}.weight")), &weight, &[3 * width, width], rows.clone(), 0..width, false)?;
            p.take(to(&format!("{name}.bias")), &from("attn.c_attn.bias"), &[3 * width], 0..1, rows, true)?;
        }
        for (name, published, rows, columns) in [
            ("attn_output", "attn.c_proj", width, width),
            ("ffn_up", "mlp.c_fc", hidden, width),
            ("ffn_down", "mlp.c_proj", width, hidden),
        ] {
            p.matrix(to(&format!("{name}.weight")), &from(&format!("{published}.weight")), rows, columns)?;
            p.vector(to(&format!("{name}.bias")), &from(&format!("{published}.bias")), rows)?;
        }
    }
    p.conversion(keys)
}

/// Looped segments and their steps, as config.json has them.
fn loops(settings: &Settings<'_>) -> Result<(Vec<Range<usize>>, Vec<usize>), Error> {
    let wrong = |key: &str, expected: &str| {
        let found = settings.0.get(key).map_or("missing".to_owned(), |v| shortened(&v.to_string()));
        settings.unsupported(key, &found, expected)
    };
    let list = |key: &str| settings.0.get(key).and_then(|v| v.as_array());
    let number = |v: &serde_json::Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let segment = |v: &serde_json::Value| match v.as_array().map(Vec::as_slice) {
        Some([start, end]) => Some(number(start)?..number(end)?),
        _ => None,
    };
    let segments = list("loop_segments").and_then(|l| l.iter().map(segment).collect::<Option<Vec<_>>>());
    let steps = list("loop_steps").and_then(|l| l.iter().map(number).collect::<Option<Vec<_>>>());
    Ok((
        segments.ok_or_else(|| wrong("loop_segments", "a list of pairs [start, end]"))?,
        steps.ok_or_else(|| wrong("loop_steps", "a list of numbers"))?,
    ))
}

/// So that a message stays a line.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}
