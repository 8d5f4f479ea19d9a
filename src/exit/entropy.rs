//! `entropy`: the read-out is as sure as it was before.
//!
//! The statistic is |H_k − H_{k−1}| with H = −Σ p ln(p + 1e-10) in nats, the criterion `entropy-diff` of Huginn's public
//! reference implementation with its threshold; before the first read-out H is 100. "Before" is the read-out that was
//! checked last. A read-out that swaps two tokens keeps its entropy: the rule does not see that.

use super::readout::{Previous, log_sum_exp};
use super::{Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "entropy",
    statistic: Statistic::Readout { measure: change, whole: false },
    threshold: Threshold::Usual(1e-3),
    hits: 1,
    device: DeviceStatistic::Entropy,
};

fn change(previous: &mut Previous, logits: &[f32]) -> f32 {
    let log_sum = log_sum_exp(logits);
    let term = |&x: &f32| {
        let p = libm::exp(f64::from(x) - log_sum);
        -p * libm::log(p + 1e-10)
    };
    let entropy = logits.iter().map(term).sum::<f64>() as f32;
    let change = (entropy - previous.entropy).abs();
    previous.entropy = entropy;
    change
}
