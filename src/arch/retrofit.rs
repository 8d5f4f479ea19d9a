//! Llama blocks in Huginn's loop: McLeish et al., "Teaching Pretrained Language Models to Think Deeper with Retrofitted
//! Recurrence". Published as `model_type` "huginn_raven" too, told from Huginn by blocks of two norms. Reference
//! implementation: LoopedLMs/retrofitting-recurrence, `convert_pretrained_model/raven_modeling_minimal_llama.py`.
//!
//! e = prelude(embedding · scale); s_0 truncated normal; s ← core(W_a·[s, e]); logits = head(ln_f(coda(s))). Blocks are those of
//! Llama: pre-norm, grouped queries, rotation of halves, with the frequency scaling of Llama 3 where config.json has it.
//! Models made from OLMo 2 have other blocks (norms behind attention and MLP, norms of queries and keys) and are refused.

use super::Family;
use super::convert::{Conversion, Error};
use super::keys::Keys;
use super::planner::Planner;
use super::raven::{Kind, MODEL_TYPE, Published, Stored};
use super::rope::Scaling;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{self, Parts, Rope, RopeStyle, Tensors};

/// `general.architecture`.
const NAME: &str = "huginn-retrofit";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type huginn_raven with two norms per block: Llama models retrofitted into Huginn's loop (McLeish et al.)",
    notes: "rdt's own keys; models made from OLMo 2 are not supported",
    recognise,
    convert,
    load,
};

/// Huginn itself has four norms per block.
fn recognise(checkpoint: &Checkpoint) -> Result<bool, Error> {
    let named = checkpoint.config().str("model_type")? == Some(MODEL_TYPE);
    Ok(named && !checkpoint.contains("transformer.core_block.0.norm_3.weight"))
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    keys.only("loop.rope_style", "halves")?;
    let stored = Stored::read(&keys, Kind::PreNorm)?;
    let rope = Rope::new(RopeStyle::Halves, keys.positive("rope.freq_base")?, stored.head_dim());
    stored.load(tensors, Scaling::stored(&keys)?.apply(rope))
}

/// Keys and tensors of our GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    settings.only("initial_state_mode", "random", "random")?;
    if checkpoint.contains("transformer.core_block.0.attn.q_norm.weight") {
        return Err(settings.unsupported("model_type", &"'huginn_raven' with OLMo 2 blocks", "Llama blocks"));
    }
    let published = Published::read(checkpoint, Kind::PreNorm)?;
    // `block_size` and `rope_base` are left from Huginn's own configuration and say nothing here.
    let context = match config.usize("max_position_embeddings")? {
        Some(n) => n,
        None => config.usize("block_size")?.unwrap_or(4096),
    };
    let (theta, scaling) = match config.get("rope_parameters") {
        // Written by newer versions of transformers.
        Some(_) => ("rope_parameters.rope_theta", "rope_parameters"),
        None => ("rope_theta", "rope_scaling"),
    };
    let mut keys = KeyWriter::new(NAME, checkpoint);
    published.write(&mut keys, context, false)?;
    keys.set("rope.freq_base", settings.number(theta)?);
    keys.set("loop.rope_style", "halves");
    Scaling::published(&settings, scaling)?.write(&mut keys);
    let mut p = Planner::new(checkpoint);
    published.take(&mut p)?;
    p.conversion(keys)
}
