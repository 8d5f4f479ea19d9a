//! Huginn (`model_type` "huginn_raven" with four norms per block): Geiping et al., "Scaling up Test-Time Compute with Latent
//! Reasoning: A Recurrent Depth Approach". Reference implementation: seal-rg/recurrent-pretraining,
//! `recpre/raven_modeling_minimal.py`.
//!
//! e = prelude(embedding · scale); s_0 truncated normal; s ← core(W_a·[s, e]); logits = head(ln_f(coda(ln_f(s)))). A block is a
//! sandwich: `x = norm_2(attn(norm_1 x) + x)`, `x = norm_4(mlp(norm_3 x) + x)`. Rotary angles act on interleaved pairs.

use super::Family;
use super::convert::{Conversion, Error};
use super::keys::Keys;
use super::planner::Planner;
use super::raven::{Kind, MODEL_TYPE, Published, Stored};
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{self, Parts, Rope, RopeStyle, Tensors};

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
    let named = checkpoint.config().str("model_type")? == Some(MODEL_TYPE);
    Ok(named && checkpoint.contains("transformer.core_block.0.norm_3.weight"))
}

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    keys.only("loop.rope_style", "interleaved")?;
    let stored = Stored::read(&keys, Kind::Sandwich)?;
    let rope = Rope::new(RopeStyle::Interleaved, keys.positive("rope.freq_base")?, stored.head_dim());
    stored.load(tensors, rope)
}

/// Keys and tensors of our GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let published = Published::read(checkpoint, Kind::Sandwich)?;
    let mut keys = KeyWriter::new(NAME, checkpoint);
    published.write(&mut keys, config.usize("block_size")?.unwrap_or(4096), true)?;
    keys.set("rope.freq_base", Settings(config).number("rope_base")?);
    keys.set("loop.rope_style", "interleaved");
    let mut p = Planner::new(checkpoint);
    published.take(&mut p)?;
    p.conversion(keys)
}
