//! `min-p-kl`: the likely part of the read-out has stopped changing.
//!
//! As [`kl`](super::kl), between distributions in which every token less than a tenth as likely as the most likely one
//! has been given 1/V before all are divided by their sum: the criterion `minp-kl` of Huginn's public reference
//! implementation with its threshold. The tail, where most of a vocabulary lies and little is decided, counts for
//! nothing as long as it stays the tail.

use super::readout::{Previous, log_sum_exp};
use super::{Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "min-p-kl",
    statistic: Statistic::Readout { measure: change, whole: true },
    threshold: Threshold::Usual(1e-5),
    hits: 1,
    device: DeviceStatistic::MinPKl,
};

/// Tokens less likely than this share of the most likely one are the tail.
const MIN_P: f64 = 0.1;

fn change(previous: &mut Previous, logits: &[f32]) -> f32 {
    assert_eq!(logits.len(), previous.logits.len(), "the rule's memory is for another vocabulary");
    let log_sum = log_sum_exp(logits);
    let (p, q) = (Filtered::new(&previous.logits, previous.log_sum), Filtered::new(logits, log_sum));
    let pairs = previous.logits.iter().zip(logits);
    let sum: f64 = pairs.map(|(&a, &b)| (p.log_of(a), q.log_of(b))).map(|(a, b)| libm::exp(a) * (a - b)).sum();
    previous.replace(logits, log_sum);
    sum as f32
}

/// A distribution whose tail has been levelled.
struct Filtered {
    log_sum: f64,
    /// Logits below this belong to the tail.
    least: f64,
    /// ln of what a token of the tail gets, and of the sum over all.
    tail: f64,
    log_total: f64,
}

impl Filtered {
    fn new(logits: &[f32], log_sum: f64) -> Self {
        let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let level = 1.0 / logits.len() as f64;
        let mut this = Self { log_sum, least: largest + libm::log(MIN_P), tail: libm::log(level), log_total: 0.0 };
        let total: f64 = logits.iter().map(|&x| libm::exp(this.log_of(x))).sum();
        this.log_total = libm::log(total);
        this
    }

    fn log_of(&self, logit: f32) -> f64 {
        let x = f64::from(logit);
        // Written so that NaN is no part of the tail.
        (if x < self.least { self.tail } else { x - self.log_sum }) - self.log_total
    }
}
