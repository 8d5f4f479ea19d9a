//! The seam between the loop and whoever decides its depth.

use super::session::Row;
use crate::kernels::LatentSums;

/// How a row's latent state moved in its latest loop step (s_0 is the initial state, Δ_k = s_k − s_{k−1}).
///
/// What does not exist yet is NaN: the quantities that compare two steps, at step 1.
#[derive(Clone, Copy, Debug)]
pub struct LatentStats {
    /// Steps done, from 1: the k below.
    pub step: usize,
    /// ‖s_k‖.
    pub state_norm: f32,
    /// ‖Δ_k‖.
    pub step_norm: f32,
    /// ‖Δ_k − Δ_{k−1}‖: the second-order quantity of "Two-Scale Latent Dynamics for Recurrent-Depth Transformers".
    pub acceleration: f32,
    /// cos(Δ_k, Δ_{k−1}).
    pub step_cosine: f32,
    /// cos(s_k, s_{k−1}); NaN where either is zero.
    pub state_cosine: f32,
}

impl LatentStats {
    pub(super) fn new(step: usize, sums: &LatentSums) -> Self {
        let cosine = |dot: f32, a: f32, b: f32| dot / (a.sqrt() * b.sqrt());
        let second = |x: f32| if step > 1 { x } else { f32::NAN };
        Self {
            step,
            state_norm: sums.state.sqrt(),
            step_norm: sums.step.sqrt(),
            acceleration: second(sums.change.sqrt()),
            step_cosine: second(cosine(sums.step_dot, sums.step, sums.previous_step)),
            state_cosine: cosine(sums.state_dot, sums.state, sums.previous_state),
        }
    }
}

/// What a row does after a loop step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another step.
    Stay,
    /// Out of the loop.
    Leave,
    /// Read out the logits at this depth and ask [`DepthPolicy::after_readout`].
    ///
    /// Honoured where a row runs alone and the caller allows it ([`super::Batch::readout_exits`]); elsewhere it means
    /// [`Verdict::Stay`], since the coda of a batched prompt waits for all of its rows.
    ReadOut,
}

/// Decides the depth of every row, and may watch.
///
/// Calls come from one thread, for a row in order: [`begin`](Self::begin), then
/// [`after_step`](Self::after_step) (and perhaps [`after_readout`](Self::after_readout)) for each step. `index` is the row's
/// place in the running chunk, below [`super::SessionOptions::chunk_rows`].
pub trait DepthPolicy: Send + Sync {
    /// Steps after which every row leaves; at least 1.
    fn max_steps(&self) -> usize;

    /// A row enters the loop with the prelude's output `[D]` and its initial state `[D]`.
    fn begin(&mut self, index: usize, row: &Row, prelude: &[f32], initial: &[f32]);

    /// A row has done a step and has this latent state `[D]` now.
    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict;

    /// The logits `[V]` at this depth, after [`Verdict::ReadOut`]. True: the row leaves.
    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        let _ = (index, row, stats, logits);
        false
    }
}

/// The same number of steps for every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedDepth(
    /// Steps, at least 1.
    pub usize,
);

impl DepthPolicy for FixedDepth {
    fn max_steps(&self) -> usize {
        self.0
    }
    fn begin(&mut self, _: usize, _: &Row, _: &[f32], _: &[f32]) {}
    fn after_step(&mut self, _: usize, _: &Row, _: &LatentStats, _: &[f32]) -> Verdict {
        Verdict::Stay
    }
}
