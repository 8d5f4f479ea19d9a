//! One window run to the deepest depth, and read out at every step on the way.

use super::super::compare::Comparison;
use super::super::score::negative_log_likelihood;
use super::super::trajectory::Recorder;
use super::super::{Error, Window};
use super::rows::Rows;
use crate::exit::{ExitRule, Signal};
use crate::model::{DepthPolicy, LatentStats, Logits, Row, Segment, Session, Verdict};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// A fixed depth that writes down how the states of the last looped segment moved.
#[derive(Debug, Clone)]
pub(super) struct StatLog {
    steps: usize,
    rows: usize,
    /// `[steps][rows]`
    stats: Vec<Option<LatentStats>>,
}

impl StatLog {
    fn new(steps: usize, rows: usize) -> Self {
        Self { steps, rows, stats: vec![None; steps * rows] }
    }
}

impl DepthPolicy for StatLog {
    fn max_steps(&self, _: usize) -> usize {
        self.steps
    }

    fn begin(&mut self, _: usize, _: &Row, _: usize, _: &[f32], _: &[f32]) {}

    fn after_step(&mut self, _: usize, row: &Row, stats: &LatentStats, _: &[f32]) -> Verdict {
        if let Some(place) = self.stats.get_mut((stats.step - 1) * self.rows + row.position) {
            *place = Some(*stats);
        }
        Verdict::Stay
    }
}

/// A window that has been run to the deepest depth, with all of its latent states.
pub(super) struct DeepRun<'a> {
    session: &'a mut Session,
    recorder: Recorder<StatLog>,
    scored: Range<usize>,
    /// Do positions see each other behind the loop?
    coda: bool,
}

impl<'a> DeepRun<'a> {
    /// Runs the window up to its last scored position; the first `prefix` tokens see each other in both directions.
    pub(super) fn new(
        session: &'a mut Session,
        window: &Window,
        scored: Range<usize>,
        prefix: usize,
        steps: usize,
    ) -> Result<Self, Error> {
        let mut recorder = Recorder::new(StatLog::new(steps, scored.end), session.model().config());
        recorder.expect(0..scored.end);
        super::run_window(session, window, &scored, prefix, &mut recorder)?;
        let coda = session.model().plan().coda().iter().any(|segment| matches!(segment, Segment::Once(_)));
        Ok(Self { session, recorder, scored, coda })
    }

    /// The logits `[scored][V]` of a run that ends after `step` steps.
    pub(super) fn read_out(&mut self, step: usize) -> Result<&[f32], Error> {
        let last = self.recorder.segments() - 1;
        let width = self.session.model().config().state_width;
        let states = self.recorder.states(last, step).unwrap_or_default();
        let (before, scored) = states.split_at(self.scored.start * width);
        // Keys behind the loop are those of this depth for all positions.
        if self.coda && !before.is_empty() {
            self.session.read_out(0, 0, before, Logits::None)?;
        }
        Ok(self.session.read_out(0, self.scored.start, scored, Logits::All)?)
    }

    /// The scored positions of a run that ends after `step` steps, against full depth's logits `[scored][V]`.
    pub(super) fn rows(&mut self, step: usize, full: &[f32], targets: &[u32]) -> Result<Rows, Error> {
        let vocab = self.session.model().config().vocab;
        let mut rows = Rows::default();
        let logits = self.read_out(step)?.chunks_exact(vocab);
        for ((full, logits), &target) in full.chunks_exact(vocab).zip(logits).zip(targets) {
            rows.add(Some(full), logits, target, step);
        }
        Ok(rows)
    }

    /// How scored position number `row` moved in a step.
    fn stats(&self, step: usize, row: usize) -> Option<&LatentStats> {
        let log = self.recorder.policy();
        log.stats[(step - 1) * log.rows + self.scored.start + row].as_ref()
    }
}

/// What screening needs of a window: every number `[steps][scored]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DeepWindow {
    /// Scored positions.
    pub(super) rows: usize,
    /// Negative log-likelihoods, in nats.
    pub(super) nll: Vec<f64>,
    /// KL(deepest ‖ this depth), in nats.
    pub(super) kl: Vec<f64>,
    /// Of every kind of rule, in the order that was asked for.
    pub(super) statistics: Vec<Vec<f32>>,
}

impl DeepWindow {
    /// Is this of so many positions, steps and kinds of rules?
    pub(super) fn fits(&self, rows: usize, steps: usize, kinds: usize) -> bool {
        let of = |n: usize| n == rows * steps;
        let all = self.statistics.iter().all(|s| of(s.len())) && self.statistics.len() == kinds;
        rows > 0 && self.rows == rows && of(self.nll.len()) && of(self.kl.len()) && all
    }

    /// Reads out every step of a run, and measures what the rules (one of each kind) would see.
    pub(super) fn measure(
        run: &mut DeepRun<'_>,
        targets: &[u32],
        steps: usize,
        kinds: &[ExitRule],
    ) -> Result<Self, Error> {
        let (rows, vocab) = (targets.len(), run.session.model().config().vocab);
        let mut memories: Vec<Vec<_>> = kinds.iter().map(|rule| vec![rule.memory(vocab); rows]).collect();
        let mut window = Self {
            rows,
            nll: Vec::with_capacity(steps * rows),
            kl: Vec::with_capacity(steps * rows),
            statistics: vec![Vec::new(); kinds.len()],
        };
        let deepest = run.read_out(steps)?.to_vec();
        for step in 1..=steps {
            for ((rule, memories), out) in kinds.iter().zip(&mut memories).zip(&mut window.statistics) {
                if rule.signal() != Signal::Readout {
                    for (row, memory) in memories.iter_mut().enumerate() {
                        out.push(run.stats(step, row).map_or(f32::NAN, |stats| rule.measure_latent(memory, stats)));
                    }
                }
            }
            let logits = run.read_out(step)?;
            let both = deepest.chunks_exact(vocab).zip(logits.chunks_exact(vocab));
            for (row, ((deepest, logits), &target)) in both.zip(targets).enumerate() {
                window.nll.push(negative_log_likelihood(logits, target));
                window.kl.push(Comparison::position(deepest, logits).0);
                for ((rule, memories), out) in kinds.iter().zip(&mut memories).zip(&mut window.statistics) {
                    if rule.signal() == Signal::Readout {
                        out.push(rule.measure_readout(&mut memories[row], logits));
                    }
                }
            }
        }
        Ok(window)
    }
}
