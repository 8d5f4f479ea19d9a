//! Bytes that have to come from memory: every weight and every key and value once per pass and step that uses it.

use super::count::Counts;
use crate::arch::{Anatomy, Part};
use crate::kernels::KvType;
use crate::model::{Looped, Model, Segment};
use std::ops::Range;

/// What the parts of a model read.
///
/// Weights are the sizes of the tensors in the file ([`Anatomy`]); keys and values follow from the plan, the heads of its blocks and
/// the storage of the cache. What is read again by the rows of one pass is not counted again: it is in a cache by then. Activations,
/// which are, too, and what is written are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Traffic {
    /// A row of every table, per token.
    rows: u64,
    /// Blocks that run once, and what else does, per pass.
    once: u64,
    /// Of that, what follows the loops.
    coda: u64,
    /// Head and its norm, per pass with logits.
    head: u64,
    /// Per loop step.
    steps: Vec<u64>,
    /// Keys and values per position seen: of blocks that run once, of those after the loops, and per step of every loop.
    kv_once: u64,
    kv_coda: u64,
    kv_steps: Vec<u64>,
}

/// Bytes read, by what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moved {
    pub(super) weights: u64,
    pub(super) kv: u64,
}

impl Moved {
    pub(super) fn all(self) -> u64 {
        self.weights + self.kv
    }
}

impl Traffic {
    pub(super) fn of(model: &Model, kv: KvType) -> Self {
        let anatomy = Anatomy::of(model);
        let part = |part: Part| anatomy.parts.iter().filter(|s| s.part == part).map(|s| s.bytes).sum::<u64>();
        let is_tied = model.header().tensor("output.weight").is_none();
        let head = part(Part::Head) + if is_tied { model.head().bytes() } else { 0 };
        let once = part(Part::Prelude) + part(Part::Between) + part(Part::Coda);
        let row = kv.row_bytes(model.config().head_dim).unwrap_or(0) as u64;
        let kv_of =
            |blocks: Range<usize>| model.blocks()[blocks].iter().map(|b| 2 * b.kv_heads as u64 * row).sum::<u64>();
        let kv_of_segments = |segments: &[Segment]| {
            let once = segments.iter().filter_map(|s| match s {
                Segment::Once(blocks) => Some(kv_of(blocks.clone())),
                Segment::Looped(_) => None,
            });
            once.sum()
        };
        let kv_of_step = |l: &Looped| l.passes.iter().map(|pass| kv_of(pass.blocks.clone())).sum();
        Self {
            rows: anatomy.bytes_outside - once - head,
            once,
            coda: part(Part::Coda),
            head,
            steps: anatomy.loops.iter().map(|l| l.bytes_per_step).collect(),
            kv_once: kv_of_segments(&model.plan().segments),
            kv_coda: kv_of_segments(model.plan().coda()),
            kv_steps: model.plan().loops().map(kv_of_step).collect(),
        }
    }

    /// Weights of one step of every loop.
    pub(super) fn step_bytes(&self) -> u64 {
        self.steps.iter().sum()
    }

    /// Weights that the loop steps of some passes read.
    pub(super) fn loop_bytes(&self, c: &Counts) -> u64 {
        self.steps.iter().zip(&c.loops).map(|(bytes, l)| bytes * l.steps).sum()
    }

    /// What some passes read.
    pub(super) fn moved(&self, c: &Counts) -> Moved {
        let outside = c.tokens * self.rows + c.passes * self.once + c.heads * self.head;
        let kv_in_loops: u64 = self.kv_steps.iter().zip(&c.loops).map(|(bytes, l)| bytes * l.seen).sum();
        Moved {
            weights: outside + self.loop_bytes(c) + c.readouts * (self.coda + self.head),
            kv: c.seen * self.kv_once + kv_in_loops + c.seen_by_readouts * self.kv_coda,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Load};
    use crate::cli::bench::count::LoopCounts;
    use std::path::Path;

    /// One token generated alone reads what the anatomy says, and every key and value that the cache keeps of what it sees.
    #[test]
    fn a_token_reads_what_there_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = arch::open(&path, Load::Map).unwrap();
        let traffic = Traffic::of(&model, KvType::F16);
        for (steps, sees) in [(1, 1), (6, 1), (8, 100)] {
            let loops = vec![LoopCounts { steps, seen: steps * sees, row_steps: steps }];
            let one = Counts { tokens: 1, passes: 1, heads: 1, loops, seen: sees, ..Counts::default() };
            let moved = traffic.moved(&one);
            assert_eq!(moved.weights, Anatomy::of(&model).bytes_per_token(Some(steps as usize)));
            let kept = model.kv_layout().bytes_per_position(KvType::F16, steps as usize).unwrap();
            assert_eq!(moved.kv, sees * kept);
        }
        assert!(traffic.step_bytes() >= model.step_bytes(), "its matrices, and vectors");
        assert!(traffic.kv_coda > 0 && traffic.kv_coda < traffic.kv_once);
    }
}
