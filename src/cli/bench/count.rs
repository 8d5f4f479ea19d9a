//! Watches a pass: how often the core ran, over how many keys, and how long that took.

use crate::exit::RulePolicy;
use crate::model::{DepthPolicy, LatentStats, Row, Verdict};
use std::time::{Duration, Instant};

/// What happened in some passes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    /// Tokens that were run.
    pub(super) tokens: u64,
    /// Passes through the model, of one or more rows each.
    pub(super) passes: u64,
    /// Passes in which the head made logits.
    pub(super) heads: u64,
    /// Times that coda and head ran inside the loop besides (read-out exit rules).
    pub(super) readouts: u64,
    /// Per looped segment.
    pub(super) loops: Vec<LoopCounts>,
    /// Positions that the last row of a pass sees, summed over the passes.
    pub(super) seen: u64,
    /// The same summed over the read-outs.
    pub(super) seen_by_readouts: u64,
    /// Time in core steps.
    pub(super) in_loop: Duration,
}

/// What happened in one looped segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LoopCounts {
    /// Steps that a pass took, which are those of its deepest row, summed over the passes.
    pub(super) steps: u64,
    /// Positions that the last row of a pass sees, summed over these steps.
    pub(super) seen: u64,
    /// Steps of all rows.
    pub(super) row_steps: u64,
}

impl Counts {
    /// Steps of all loops and passes.
    pub(super) fn steps(&self) -> u64 {
        self.loops.iter().map(|l| l.steps).sum()
    }

    /// Steps of all rows in all loops.
    pub(super) fn row_steps(&self) -> u64 {
        self.loops.iter().map(|l| l.row_steps).sum()
    }

    /// The same, whatever time it took?
    pub(super) fn same_work(&self, other: &Self) -> bool {
        *self == Self { in_loop: self.in_loop, ..other.clone() }
    }
}

/// An exit rule, and what it saw.
pub(super) struct Counting {
    rule: RulePolicy,
    counts: Counts,
    /// Positions that the last row of this pass sees.
    sees: usize,
    /// Steps that this pass has done in the loop that it is in.
    step: usize,
    mark: Instant,
}

impl Counting {
    pub(super) fn new(rule: RulePolicy, loops: usize) -> Self {
        let counts = Counts { loops: vec![LoopCounts::default(); loops], ..Counts::default() };
        Self { rule, counts, sees: 0, step: 0, mark: Instant::now() }
    }

    /// Starts from zero.
    pub(super) fn clear(&mut self) {
        let loops = self.counts.loops.len();
        self.counts = Counts { loops: vec![LoopCounts::default(); loops], ..Counts::default() };
    }

    /// What was counted since.
    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Tokens were run, of which the last pass, or every one, made logits.
    pub(super) fn ran(&mut self, tokens: usize, heads: u64) {
        self.counts.tokens += tokens as u64;
        self.counts.heads += heads;
    }
}

impl DepthPolicy for Counting {
    fn max_steps(&self, segment: usize) -> usize {
        self.rule.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]) {
        self.rule.begin(index, row, segment, input, initial);
        if index == 0 {
            self.sees = 0;
            self.step = 0;
            self.counts.passes += u64::from(segment == 0);
        }
        // The rows of a pass come in the order of their positions; only the growth counts.
        let sees = (row.position + 1).max(self.sees);
        if segment == 0 {
            self.counts.seen += (sees - self.sees) as u64;
        }
        self.sees = sees;
        self.mark = Instant::now();
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        if stats.step > self.step {
            // The first row to tell of a new step of the pass.
            let now = Instant::now();
            self.counts.in_loop += now - self.mark;
            self.mark = now;
            self.step = stats.step;
            let counts = &mut self.counts.loops[stats.segment];
            counts.steps += 1;
            counts.seen += self.sees as u64;
        }
        self.counts.loops[stats.segment].row_steps += 1;
        self.rule.after_step(index, row, stats, latent)
    }

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        let leaves = self.rule.after_readout(index, row, stats, logits);
        if !leaves {
            // One that leaves was the pass's own read-out.
            self.counts.readouts += 1;
            self.counts.seen_by_readouts += self.sees as u64;
        }
        self.mark = Instant::now();
        leaves
    }
}
