//! `acceleration`: the loop's steps have stopped changing, to second order.
//!
//! With Δ_k = s_k − s_{k−1}, the statistic is ‖Δ_k − Δ_{k−1}‖, and the source (arXiv:2509.23314) asks for two
//! steps in a row below the threshold. A state that creeps on by nearly the same small step each time passes
//! although it never comes to rest.
//!
//! `acceleration-raw` is that rule as stated. It depends on the scale of the latent, so it has no default
//! threshold; quantised activations set a floor under which it never fires. `acceleration` divides by
//! ‖s_k‖, as the public reference implementation of Huginn does in its sampler, which asks for one step below 0.03.
//! `acceleration-step` divides by ‖Δ_k‖ + ‖Δ_{k−1}‖: between 0 (the same step again) and 1 (straight back), and 0.7 for
//! steps at right angles, however small they are. It tells a state that moves evenly from one that does not, and nothing of
//! how far; the reference's authors note that runs normalised by steps did not come to rest.
//!
//! Two steps below 0.05 leave a little earlier than two below 0.03 and answer as well (README, "What depth buys").

use super::{ExitRule, Rule, Statistic, Threshold};
use crate::model::{DeviceStatistic, LatentStats};

const THRESHOLD: f32 = 0.05;
const HITS: usize = 2;

pub(super) static NORMALISED: Rule = Rule {
    name: "acceleration",
    statistic: Statistic::Latent(normalised),
    threshold: Threshold::Usual(THRESHOLD),
    hits: HITS,
    device: DeviceStatistic::Acceleration,
};

pub(super) static RAW: Rule = Rule {
    name: "acceleration-raw",
    statistic: Statistic::Latent(raw),
    threshold: Threshold::Needed,
    hits: 2,
    device: DeviceStatistic::AccelerationRaw,
};

pub(super) static BY_STEP: Rule = Rule {
    name: "acceleration-step",
    statistic: Statistic::Latent(by_step),
    threshold: Threshold::Needed,
    hits: HITS,
    device: DeviceStatistic::AccelerationByStep,
};

/// Plain `acceleration`.
pub(super) const fn settled() -> ExitRule {
    ExitRule { rule: &NORMALISED, threshold: THRESHOLD, hits: HITS, min: 0, every: 1, max: None }
}

fn normalised(stats: &LatentStats) -> f32 {
    stats.acceleration / stats.state_norm
}

fn by_step(stats: &LatentStats) -> f32 {
    stats.acceleration / (stats.step_norm + stats.previous_step_norm)
}

fn raw(stats: &LatentStats) -> f32 {
    stats.acceleration
}
