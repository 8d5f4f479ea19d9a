//! Ouro (`OuroForCausalLM`): Zhu et al., "Scaling Latent Reasoning via Looped Language Models" (arXiv 2510.25741). Reference
//! implementation: LoopedLMs/ouro_rl, `modeling_ouro.py`.
//!
//! No prelude, no coda, no injection: the whole stack runs `total_ut_steps` times, and the final norm after every pass is both what
//! the next pass starts from and what the head reads. Blocks have four norms: `x + norm(attn(norm x))`, `x + norm(mlp(norm x))`.
//! The published names mislead: `input_layernorm_2` follows attention, `post_attention_layernorm` precedes the MLP.
//!
//! A gate on the normed state says with what probability a token leaves after each pass (exit rule `gate`).
//!
//! # The file
//! Keys, tensors and the order of rows are those that llama.cpp was offered for this family (its pull request 29823); no released
//! version reads them. That proposal leaves the gate out. Here it is kept, as metadata and not as a tensor: llama.cpp refuses files
//! with tensors that it does not know, and passes over such keys.

use super::Family;
use super::convert::{Conversion, Error};
use super::keys::Keys;
use super::llama::{self, BranchNorms, Published};
use super::planner::Planner;
use super::settings::{KeyWriter, Settings};
use crate::checkpoint::Checkpoint;
use crate::gguf::Metadata;
use crate::model::{self, ExitGate, Parts, Segment, Tensors, Vector};

/// `general.architecture`.
const NAME: &str = "ouro";
/// Weights of the exit gate, `[D]` f32, and the bias that goes with them.
const GATE: &str = "loop.exit_gate.weight";
const GATE_BIAS: &str = "loop.exit_gate.bias";

pub(super) static FAMILY: Family = Family {
    name: NAME,
    checkpoints: "model_type ouro (ByteDance/Ouro-1.4B, Ouro-2.6B and their Thinking versions)",
    notes: "llama.cpp: keys and tensors as proposed there, read by no released version; sliding windows and scaled rotation are \
            not supported",
    recognise: |checkpoint| llama::is_named(checkpoint, NAME),
    convert,
    load,
};

/// The parts of a model, from its GGUF.
fn load(metadata: &Metadata, tensors: &mut Tensors<'_>) -> Result<Parts, model::Error> {
    let keys = Keys { metadata, prefix: NAME };
    let mut parts = llama::load(&keys, tensors, BranchNorms::With)?;
    // Files that other programs wrote have no gate.
    if let Some(weight) = metadata.f32s(&keys.key(GATE))? {
        let width = parts.config.width;
        if weight.len() != width || !weight.iter().all(|x| x.is_finite()) {
            return Err(keys.wrong(GATE, format!("a list of {}", weight.len()), format!("{width} finite numbers")));
        }
        let bias = keys.number(GATE_BIAS)?;
        let gate = ExitGate { weight: Vector::of(weight), bias };
        parts.config.exit_gate = true;
        for segment in &mut parts.plan.segments {
            if let Segment::Looped(looped) = segment {
                looped.gate = Some(gate);
                break;
            }
        }
    }
    Ok(parts)
}

/// Keys and tensors of our GGUF, from a published checkpoint.
fn convert(checkpoint: &Checkpoint) -> Result<Conversion, Error> {
    let settings = Settings(checkpoint.config());
    settings.only_bool("use_sliding_window", false)?;
    settings.full_attention()?;
    let mut keys = KeyWriter::new(NAME, checkpoint);
    let stack = Published::read(&settings, llama::loops(&settings, "total_ut_steps")?, &mut keys)?;
    keys.set("skip_loop_final_norm", false);

    let mut p = Planner::new(checkpoint);
    let norms = [
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "input_layernorm_2"),
        ("ffn_norm", "post_attention_layernorm"),
        ("post_ffw_norm", "post_attention_layernorm_2"),
    ];
    stack.take(&mut p, &norms)?;
    let [weight, bias] = ["model.early_exit_gate.weight", "model.early_exit_gate.bias"];
    if checkpoint.contains(weight) {
        keys.set(GATE, p.values(weight, &[1, stack.width()])?);
        keys.set(GATE_BIAS, p.values(bias, &[1])?[0]);
    }
    p.conversion(keys)
}
