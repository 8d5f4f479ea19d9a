//! `step-norm`: the state itself has stopped moving, to first order.
//!
//! The statistic is ‖s_k − s_{k−1}‖ / ‖s_k‖, with the initial state before the first step, and the default
//! threshold is that of the criterion `latent-diff` of Huginn's public reference implementation. It
//! averages over the positions of a prompt; here every row decides for itself.

use super::{Rule, Statistic, Threshold};
use crate::model::{DeviceStatistic, LatentStats};

pub(super) static RULE: Rule = Rule {
    name: "step-norm",
    statistic: Statistic::Latent(relative),
    threshold: Threshold::Usual(0.03),
    hits: 1,
    device: DeviceStatistic::StepNorm,
};

fn relative(stats: &LatentStats) -> f32 {
    stats.step_norm / stats.state_norm
}
