//! The seam between the loop and whoever decides its depth.

use super::session::Row;
use super::{Config, DeviceRule};
use crate::kernels::LatentSums;

/// How a row's latent state moved in its latest loop step (s_0 is the initial state, Δ_k = s_k − s_{k−1}).
///
/// What does not exist yet is NaN: the quantities that compare two steps, at step 1.
#[derive(Clone, Copy, Debug)]
pub struct LatentStats {
    /// Which of the model's looped segments, from 0.
    pub segment: usize,
    /// Steps done in it, from 1: the k below.
    pub step: usize,
    /// ‖s_k‖.
    pub state_norm: f32,
    /// ‖Δ_k‖.
    pub step_norm: f32,
    /// ‖Δ_{k−1}‖.
    pub previous_step_norm: f32,
    /// ‖Δ_k − Δ_{k−1}‖: the second-order quantity of "Two-Scale Latent Dynamics for Recurrent-Depth Transformers".
    pub acceleration: f32,
    /// cos(Δ_k, Δ_{k−1}).
    pub step_cosine: f32,
    /// cos(s_k, s_{k−1}); NaN where either is zero.
    pub state_cosine: f32,
    /// What the learned exit gate says of s_k, before the sigmoid; NaN where the model has none.
    pub gate: f32,
}

impl LatentStats {
    /// The angle between Δ_k and Δ_{k−1} in radians: 0 is straight on, π/2 a right angle, π to and fro. NaN where either is zero or does
    /// not exist.
    ///
    /// Near 0 and π, where a cosine is flat, its f32 tells angles apart to some 5e-4.
    pub fn turning_angle(&self) -> f64 {
        libm::acos(f64::from(self.step_cosine).clamp(-1.0, 1.0))
    }

    /// How sharply the path bends at s_{k−1}, without a scale: the [turning angle](Self::turning_angle) over the mean length of the two
    /// steps, times the length of the state, `angle / ((‖Δ_k‖ + ‖Δ_{k−1}‖) / 2) · ‖s_k‖`. On a circle around the origin with small
    /// steps it is 1.
    pub fn curvature(&self) -> f64 {
        let length = 0.5 * (f64::from(self.step_norm) + f64::from(self.previous_step_norm));
        self.turning_angle() / length * f64::from(self.state_norm)
    }

    pub(super) fn new(segment: usize, step: usize, sums: &LatentSums, gate: f32) -> Self {
        let cosine = |dot: f32, a: f32, b: f32| dot / (a.sqrt() * b.sqrt());
        let second = |x: f32| if step > 1 { x } else { f32::NAN };
        Self {
            segment,
            step,
            state_norm: sums.state.sqrt(),
            step_norm: sums.step.sqrt(),
            previous_step_norm: second(sums.previous_step.sqrt()),
            acceleration: second(sums.change.sqrt()),
            step_cosine: second(cosine(sums.step_dot, sums.step, sums.previous_step)),
            state_cosine: cosine(sums.state_dot, sums.state, sums.previous_state),
            gate,
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
    /// Honoured in the last looped segment, where a row runs alone and the caller allows it ([`super::Batch::readout_exits`]);
    /// elsewhere it means [`Verdict::Stay`], since the coda of a batched prompt waits for all of its rows.
    ReadOut,
}

/// Decides the depth of every row, and may watch.
///
/// Calls come from one thread, for a row in order and for every looped segment of the model: [`begin`](Self::begin), then
/// [`after_step`](Self::after_step) (and perhaps [`after_readout`](Self::after_readout)) for each step. `index` is the row's
/// place in the running chunk, below [`super::Session::chunk_rows`].
pub trait DepthPolicy: Send + Sync {
    /// Steps after which every row leaves the looped segment `segment` (from 0); at least 1. What the model supports is a limit
    /// besides.
    fn max_steps(&self, segment: usize) -> usize;

    /// A row enters looped segment `segment` with its constant input e `[D]` and its initial state `[S]`.
    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]);

    /// A row has done a step and has this latent state `[S]` now.
    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict;

    /// The logits `[V]` at this depth, after [`Verdict::ReadOut`]. True: the row leaves.
    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        let _ = (index, row, stats, logits);
        false
    }

    /// The same decisions as a rule that a [`Device`](super::Device) follows without asking; `None` if they can only be made here.
    /// What such a device runs is not shown to [`begin`](Self::begin), [`after_step`](Self::after_step) and
    /// [`after_readout`](Self::after_readout).
    fn device_rule(&self) -> Option<DeviceRule> {
        None
    }
}

/// Steps after which every row leaves a model's loop `number`: what the policy says, and the model supports.
pub(super) fn most_steps(policy: &dyn DepthPolicy, config: &Config, number: usize) -> usize {
    let supported = config.loops[number].max_steps.unwrap_or(usize::MAX);
    policy.max_steps(number).min(supported)
}

/// The same number of steps for every row, in every looped segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedDepth(
    /// Steps, at least 1.
    pub usize,
);

impl DepthPolicy for FixedDepth {
    fn max_steps(&self, _: usize) -> usize {
        self.0
    }
    fn begin(&mut self, _: usize, _: &Row, _: usize, _: &[f32], _: &[f32]) {}
    fn after_step(&mut self, _: usize, _: &Row, _: &LatentStats, _: &[f32]) -> Verdict {
        Verdict::Stay
    }
    fn device_rule(&self) -> Option<DeviceRule> {
        Some(DeviceRule::FIXED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Isa, Kernels};

    /// Statistics of a few steps of a made-up trajectory, by definition in f64.
    #[test]
    fn statistics_are_what_their_names_say() {
        let states: [&[f32]; 5] =
            [&[0.0, 0.0, 0.0], &[1.0, 2.0, 2.0], &[2.0, 2.0, 1.0], &[2.0, 2.0, 1.0], &[-1.0, 0.5, 9.0]];
        let (mut state, mut delta) = (states[0].to_vec(), vec![0.0; 3]);
        let kernels = Kernels::of(Isa::Scalar).unwrap();
        let minus = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a - b).collect() };
        let wide = |a: &[f32]| -> Vec<f64> { a.iter().map(|&x| f64::from(x)).collect() };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        for k in 1..states.len() {
            let sums = (kernels.latent_sums)(states[k], &mut state, &mut delta);
            let stats = LatentStats::new(0, k, &sums, f32::NAN);
            let (s, before) = (wide(states[k]), wide(states[k - 1]));
            let d = minus(&s, &before);
            let same = |found: f32, expected: f64, name: &str| {
                let close = (f64::from(found) - expected).abs() < 1e-6 * expected.abs().max(1.0);
                assert!(close || found.is_nan() && expected.is_nan(), "{name}, step {k}: {found}, {expected}");
            };
            assert_eq!(stats.step, k);
            same(stats.state_norm, dot(&s, &s).sqrt(), "state norm");
            same(stats.step_norm, dot(&d, &d).sqrt(), "step norm");
            same(stats.state_cosine, cosine(&s, &before), "state cosine");
            if k == 1 {
                assert!(stats.acceleration.is_nan() && stats.step_cosine.is_nan());
                assert!(
                    stats.previous_step_norm.is_nan() && stats.turning_angle().is_nan() && stats.curvature().is_nan()
                );
                assert!(stats.state_cosine.is_nan(), "the initial state was zero");
            } else {
                let earlier = minus(&before, &wide(states[k - 2]));
                let change = minus(&d, &earlier);
                same(stats.previous_step_norm, dot(&earlier, &earlier).sqrt(), "previous step norm");
                same(stats.acceleration, dot(&change, &change).sqrt(), "acceleration");
                // Step 3 does not move: it and the one after have no angle.
                same(stats.step_cosine, cosine(&d, &earlier), "step cosine");
                assert_eq!(stats.step_cosine.is_nan(), k >= 3);
            }
            assert_eq!(state, states[k]);
        }
    }

    /// Two steps at a right angle from (3, 4), of lengths 1 and 2: π/2 over 1.5, times ‖(4, 6)‖. Then straight on, then back.
    #[test]
    fn angle_and_curvature_by_hand() {
        let kernels = Kernels::of(Isa::Scalar).unwrap();
        let (mut state, mut delta) = ([3.0, 4.0], [0.0; 2]);
        let mut after = |k: usize, s: [f32; 2]| {
            LatentStats::new(0, k, &(kernels.latent_sums)(&s, &mut state, &mut delta), f32::NAN)
        };
        use std::f64::consts::PI;
        after(1, [4.0, 4.0]);
        let turn = after(2, [4.0, 6.0]);
        assert!((turn.turning_angle() - PI / 2.0).abs() < 1e-6);
        assert!((turn.curvature() - PI / 2.0 / 1.5 * 52f64.sqrt()).abs() < 1e-5, "{}", turn.curvature());
        let on = after(3, [4.0, 7.0]);
        assert_eq!((on.turning_angle(), on.curvature()), (0.0, 0.0));
        let back = after(4, [4.0, 6.0]);
        assert!((back.turning_angle() - PI).abs() < 1e-6);
        let stays = after(5, [4.0, 6.0]);
        assert!(stays.turning_angle().is_nan() && stays.curvature().is_nan() && stays.step_norm == 0.0);
    }

    /// Norms of the largest numbers overflow to infinity, which no rule takes for small.
    #[test]
    fn what_overflows_is_not_small() {
        let kernels = Kernels::of(Isa::Scalar).unwrap();
        let sums = (kernels.latent_sums)(&[f32::MAX; 3], &mut [0.0; 3], &mut [0.0; 3]);
        let stats = LatentStats::new(0, 2, &sums, f32::NAN);
        assert_eq!((stats.state_norm, stats.step_norm), (f32::INFINITY, f32::INFINITY));
        assert!(stats.step_cosine.is_nan());
    }
}
