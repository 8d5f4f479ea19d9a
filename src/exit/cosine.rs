//! `cosine`: the state points where it pointed before.
//!
//! The statistic is 1 − cos(s_k, s_{k−1}), the criterion `cosine` of Huginn's public reference implementation with its
//! threshold. It is blind to the state's length. Near its threshold it is half the square of a relative step across the
//! state, so a threshold of 1e-3 is one of about 0.045 for `step-norm`; below 1e-6 it is rounding.

use super::{Rule, Statistic, Threshold};
use crate::model::{DeviceStatistic, LatentStats};

pub(super) static RULE: Rule = Rule {
    name: "cosine",
    statistic: Statistic::Latent(turned),
    threshold: Threshold::Usual(1e-3),
    hits: 1,
    device: DeviceStatistic::Cosine,
};

fn turned(stats: &LatentStats) -> f32 {
    1.0 - stats.state_cosine
}
