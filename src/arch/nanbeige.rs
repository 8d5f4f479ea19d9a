//! Nanbeige 4.2 (`NanbeigeForCausalLM`): a stack of Llama blocks that runs `num_loops` times. The final norm closes every pass, or
//! only the last one with `skip_loop_final_norm`.
//!
//! Files are those of llama.cpp's architecture of the same name, both ways. The published configuration has switches for other
//! arithmetic (n-gram embeddings, hyper-connections, split loops and more); released models leave them off, and a checkpoint that
//! sets one is refused.

use super::Family;
use super::convert::{Conversion, Error};
use super::keys::Keys;
use super::llama::{self, BranchNorms, Published};
use super::planner::Planner;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{self, Parts, Tensors};

/// `general.architecture`.
const NAME: &str = "nanbeige";

/// Settings that change the arithmetic when set.
const REFUSED: [&str; 17] = [
    "qk_layernorm",
    "enable_double_loop_split",
    "loop_middle_layers",
    "loop_share_kv",
    "enable_hyper_connection",
    "enable_mhc",
    "enable_h_res_identity",
    "mhc_diff_for_loop",
    "mhc_identity_nohresparam",
    "mhc_double_stream_position_for_loop",
    "enable_depth_attention",
    "emb_neighbor_num",
    "emb_split_num",
    "ngram_vocab_size_ratio",
    "ngram_embedding_hidden_size",
    "insert_ngram_layer_idx",
    "ngram_insert_all_layers",
];

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type nanbeige (Nanbeige/Nanbeige4.2-3B)",
    notes: "llama.cpp reads and writes the same files; n-gram embeddings, hyper-connections, split loops and shared caches are not \
            supported",
    recognise: |checkpoint| llama::is_named(checkpoint, NAME),
    convert,
    load,
};

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    llama::load(&Keys { metadata, prefix: NAME }, tensors, BranchNorms::Without)
}

/// Keys and tensors of the GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let config = checkpoint.config();
    let settings = Settings(config);
    for key in REFUSED {
        settings.unset(key)?;
    }
    let loops = llama::loops(&settings, "num_loops")?;
    // Where the list is not empty, the reference takes the number of loops from its length.
    if let Some(weights) = config.get("loop_loss_weights").and_then(|v| v.as_array())
        && !weights.is_empty()
        && weights.len() + 1 != loops
    {
        let found = format!("a list of {}", weights.len());
        return Err(settings.unsupported("loop_loss_weights", &found, format!("a list of {}, or none", loops - 1)));
    }
    // Another name for the head size.
    if let (Some(channels), Some(head_dim)) = (config.usize("kv_channels")?, config.usize("head_dim")?)
        && channels != head_dim
    {
        return Err(settings.unsupported("kv_channels", &channels, format!("head_dim, {head_dim}")));
    }
    let mut keys = KeyWriter::new(NAME, checkpoint);
    let stack = Published::read(&settings, loops, &mut keys)?;
    keys.set("skip_loop_final_norm", config.bool("skip_loop_final_norm")?.unwrap_or(false));
    let mut p = Planner::new(checkpoint);
    stack.take(&mut p, &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")])?;
    p.conversion(keys)
}
