//! Watches a pass: how often the core ran, over how many keys, and how long that took.

use crate::exit::{RulePolicy, Signal};
use crate::model::{DepthPolicy, DeviceRule, LatentStats, Row, Verdict};
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
    /// Time in core steps; none on a device, which does not tell of them.
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

    /// Counts what a device did, which does not show it step by step: a pass of rows that took these steps, `[rows][loops]`, the last of
    /// which sees `sees` positions. With `read_out` it was one row, and the rule was asked after each step.
    pub(super) fn passed(&mut self, loop_steps: &[usize], sees: usize, read_out: bool) {
        let loops = self.counts.loops.len();
        let sees = sees as u64;
        self.counts.passes += 1;
        self.counts.seen += sees;
        let mut deepest = vec![0; loops];
        for of_row in loop_steps.chunks_exact(loops) {
            for ((counts, deepest), &steps) in self.counts.loops.iter_mut().zip(&mut deepest).zip(of_row) {
                *deepest = steps.max(*deepest);
                counts.row_steps += steps as u64;
            }
        }
        for (counts, &steps) in self.counts.loops.iter_mut().zip(&deepest) {
            counts.steps += steps as u64;
            counts.seen += steps as u64 * sees;
        }
        if let (true, Signal::Readout, Some(&last)) = (read_out, self.rule.rule().signal(), deepest.last()) {
            // The last one was either no read-out or the pass's own.
            let readouts = (1..last).filter(|&step| self.rule.rule().is_checked(step)).count() as u64;
            self.counts.readouts += readouts;
            self.counts.seen_by_readouts += readouts * sees;
        }
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

    /// What it decides is not seen here then: [`passed`](Self::passed) counts it.
    fn device_rule(&self) -> Option<DeviceRule> {
        self.rule.device_rule()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{self, Load};
    use crate::exit::ExitRule;
    use crate::model::{Batch, Logits, Session, SessionOptions};
    use std::path::Path;
    use std::sync::Arc;

    /// What is counted from the outside is what is seen from the inside.
    #[test]
    fn both_ways_of_counting_agree() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = Arc::new(arch::open(&path, Load::Map).unwrap());
        let config = model.config();
        for rule in ["fixed:4", "acceleration:0.3,max=8", "kl:0.5,max=8", "kl:0.01,min=1,every=2,max=6"] {
            let rule: ExitRule = rule.parse().unwrap();
            let options = SessionOptions { context: Some(32), steps: rule.max_steps(), ..SessionOptions::default() };
            let mut session = Session::new(Arc::clone(&model), &options).unwrap();
            let policy = || {
                let rule = RulePolicy::new(rule, None, config, 64).unwrap();
                Counting::new(rule, config.loops.len())
            };
            let (mut inside, mut outside) = (policy(), policy());
            for (tokens, readout_exits) in [(&[1, 2, 3, 4, 5][..], false), (&[6], true), (&[7], true), (&[8, 9], false)]
            {
                let batch = Batch { sequence: 0, tokens, logits: Logits::Last, readout_exits, both_ways: false };
                let steps = session.run(batch, &mut inside).unwrap().loop_steps.to_vec();
                outside.passed(&steps, session.len(0), readout_exits);
            }
            assert!(outside.counts().same_work(inside.counts()), "{rule}: {:?}, {:?}", outside.counts, inside.counts);
        }
    }
}
