//! Where the bytes of a looped model lie, and how many of them a token has to read.

use super::convert::block;
use super::role;
use crate::gguf::TensorInfo;
use crate::model::{Injection, Looped, Model, Segment};
use crate::quant::Role;
use serde::Serialize;

/// A part of a looped model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Tables that are read a row per token: token, position and value embeddings.
    Embedding,
    /// Blocks before the first loop, and what else is computed once per token before it.
    Prelude,
    /// What loop steps run.
    Core,
    /// Blocks between two loops.
    Between,
    /// Blocks after the last loop, and what takes the state out of it.
    Coda,
    /// The output head and the norm before it. A tied head is the embedding's table and counts there.
    Head,
    /// Tensors that are in none of these.
    Other,
}

impl Part {
    const ALL: [Self; 7] =
        [Self::Embedding, Self::Prelude, Self::Core, Self::Between, Self::Coda, Self::Head, Self::Other];

    /// The name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Prelude => "prelude",
            Self::Core => "core",
            Self::Between => "between",
            Self::Coda => "coda",
            Self::Head => "head",
            Self::Other => "other",
        }
    }
}

/// What a part takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Share {
    /// The part.
    pub part: Part,
    /// Tensors in it.
    pub tensors: usize,
    /// Values in them.
    pub values: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// What a step of a loop takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StepShare {
    /// Steps that the model takes by default.
    pub mean_steps: usize,
    /// Deepest loop that the model supports, where there is such a limit.
    pub max_steps: Option<usize>,
    /// Weight bytes that every step reads: its blocks, as often as it runs them, and the state's half of the adapter.
    pub bytes_per_step: u64,
}

impl StepShare {
    /// Steps that are taken where `asked` are wanted.
    pub fn steps(&self, asked: Option<usize>) -> usize {
        let steps = asked.unwrap_or(self.mean_steps);
        self.max_steps.map_or(steps, |most| steps.min(most))
    }
}

/// The parts of a looped model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anatomy {
    /// Every part that has tensors.
    pub parts: Vec<Share>,
    /// Every loop, in order.
    pub loops: Vec<StepShare>,
    /// Weight bytes that a token reads outside the loops: a row of every table, the blocks that run once, the head.
    pub bytes_outside: u64,
}

impl Anatomy {
    /// The anatomy of a model, by its plan and the names of its tensors.
    pub fn of(model: &Model) -> Self {
        let tensors = &model.header().tensors;
        let blocks = parts_of_blocks(model);
        let part = |t: &TensorInfo| part(&t.name, &blocks);
        let parts: Vec<Share> = Part::ALL
            .into_iter()
            .map(|p| {
                let of_part = || tensors.iter().filter(|t| part(t) == p);
                Share {
                    part: p,
                    tensors: of_part().count(),
                    values: of_part().map(values).sum(),
                    bytes: of_part().map(|t| t.bytes as u64).sum(),
                }
            })
            .filter(|share| share.tensors > 0)
            .collect();
        let once = [Part::Prelude, Part::Between, Part::Coda, Part::Head];
        let once: u64 = parts.iter().filter(|s| once.contains(&s.part)).map(|s| s.bytes).sum();
        let tables = tensors.iter().filter(|t| part(t) == Part::Embedding);
        let rows: u64 = tables.map(|t| t.bytes as u64 / t.dims.get(1).map_or(1, |&n| n as u64).max(1)).sum();
        let tied = if is_tied(model) { model.head().bytes() } else { 0 };

        let mut block_bytes = vec![0u64; blocks.len()];
        for t in tensors.iter().filter(|t| part(t) != Part::Embedding) {
            if let Some(bytes) = block(&t.name).and_then(|b| block_bytes.get_mut(b)) {
                *bytes += t.bytes as u64;
            }
        }
        let step_bytes = |l: &Looped| {
            let adapter = if let Injection::Linear { state, .. } = &l.injection { state.bytes() } else { 0 };
            let blocks = l.passes.iter().flat_map(|pass| &block_bytes[pass.blocks.clone()]);
            blocks.fold(adapter, |sum, &bytes| sum.saturating_add(bytes))
        };
        let loops = model.plan().loops().zip(&model.config().loops).map(|(l, depth)| StepShare {
            mean_steps: depth.mean_steps,
            max_steps: depth.max_steps,
            bytes_per_step: step_bytes(l),
        });
        Self { loops: loops.collect(), bytes_outside: rows + once + tied, parts }
    }

    /// Weight bytes that one step of every loop reads.
    pub fn step_bytes(&self) -> u64 {
        self.loops.iter().fold(0, |sum, l| sum.saturating_add(l.bytes_per_step))
    }

    /// Weight bytes that a token reads when it is generated alone: with `steps` steps in every loop, or with each loop's own,
    /// and never more than a loop supports.
    pub fn bytes_per_token(&self, steps: Option<usize>) -> u64 {
        self.loops.iter().fold(self.bytes_outside, |sum, l| {
            sum.saturating_add(l.bytes_per_step.saturating_mul(l.steps(steps) as u64))
        })
    }
}

/// Is the output head the table of token embeddings?
pub(super) fn is_tied(model: &Model) -> bool {
    model.header().tensor("output.weight").is_none()
}

fn values(tensor: &TensorInfo) -> u64 {
    tensor.dims.iter().product::<usize>() as u64
}

/// The part of every physical block.
fn parts_of_blocks(model: &Model) -> Vec<Part> {
    let mut parts = vec![Part::Other; model.blocks().len()];
    let mut loops = model.plan().loops().count();
    let all = loops;
    for segment in &model.plan().segments {
        match segment {
            Segment::Looped(l) => {
                loops -= 1;
                l.blocks().for_each(|b| parts[b] = Part::Core);
            }
            Segment::Once(blocks) => parts[blocks.clone()].fill(match loops {
                n if n == all => Part::Prelude,
                0 => Part::Coda,
                _ => Part::Between,
            }),
        }
    }
    parts
}

/// The part that a tensor belongs to, by its name.
fn part(name: &str, blocks: &[Part]) -> Part {
    let role = role(name);
    if matches!(role, Role::TokenEmbedding | Role::ValueEmbedding) || name == "position_embd.weight" {
        return Part::Embedding;
    }
    if let Some(block) = block(name) {
        return blocks.get(block).copied().unwrap_or(Part::Other);
    }
    match name {
        "output.weight" | "output_norm.weight" | "output_norm.bias" => Part::Head,
        // Their part in a step is the same in every step, and computed once.
        "loop.adapter_input.weight" | "loop.adapter.bias" | "loop.entry_norm.weight" => Part::Prelude,
        "loop.readout.weight" => Part::Coda,
        _ if matches!(role, Role::Gate | Role::State) || name.starts_with("loop.") => Part::Core,
        _ => Part::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tensor_is_in_one_part() {
        let blocks = [Part::Prelude, Part::Core, Part::Coda];
        let of = |name: &str| part(name, &blocks).name();
        assert_eq!(of("token_embd.weight"), "embedding");
        assert_eq!(of("blk.1.value_embd.weight"), "embedding");
        assert_eq!(of("blk.0.ffn_up.weight"), "prelude");
        assert_eq!(of("blk.1.value_gate.weight"), "core");
        assert_eq!(of("blk.2.attn_norm.weight"), "coda");
        assert_eq!(of("blk.3.ffn_up.weight"), "other");
        assert_eq!(of("blk.x"), "other");
        assert_eq!(of("loop.adapter_input.weight"), "prelude");
        assert_eq!(of("loop.adapter_state.weight"), "core");
        assert_eq!(of("loop.a_log"), "core");
        assert_eq!(of("loop.readout.weight"), "coda");
        assert_eq!(of("output.weight"), "head");
        assert_eq!(of("rope_freqs.weight"), "other");
    }

    #[test]
    fn depth_is_what_is_asked_for_within_limits() {
        let share = |mean_steps, max_steps, bytes_per_step| StepShare { mean_steps, max_steps, bytes_per_step };
        let loops = vec![share(3, None, 100), share(2, Some(4), 10)];
        let anatomy = Anatomy { parts: Vec::new(), loops, bytes_outside: 7 };
        assert_eq!(anatomy.bytes_per_token(None), 7 + 300 + 20);
        assert_eq!(anatomy.bytes_per_token(Some(1)), 7 + 100 + 10);
        assert_eq!(anatomy.bytes_per_token(Some(9)), 7 + 900 + 40);
        assert_eq!(anatomy.bytes_per_token(Some(usize::MAX)), u64::MAX);
    }
}
