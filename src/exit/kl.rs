//! `kl`: the read-out has stopped changing.
//!
//! The statistic is KL(p ‖ q) = Σ p_i (ln p_i − ln q_i) with p the previous read-out's distribution and q
//! this one's, in nats: `F.kl_div(log q, log p, log_target=True)` of Huginn's public reference
//! implementation, whose threshold of 1e-3 is the default. The read-out before the first is the uniform
//! distribution. "Previous" is the last one that was *checked*: after `min` steps without a check the first
//! comparison is with the uniform distribution too, as there.

use super::{Rule, Statistic};

pub(super) static RULE: Rule = Rule {
    name: "kl",
    statistic: Statistic::Readout(divergence),
    threshold: Some(1e-3),
    hits: 1,
};

/// The read-out before this one.
#[derive(Clone, Debug)]
pub(super) struct Previous {
    /// `[vocab]`; empty if the rule needs no read-out.
    logits: Box<[f32]>,
    /// ln Σ exp(logits)
    log_sum: f64,
}

impl Previous {
    pub(super) fn new(vocab: usize) -> Self {
        let mut previous = Self {
            logits: vec![0.0; vocab].into_boxed_slice(),
            log_sum: 0.0,
        };
        previous.reset();
        previous
    }

    /// Back to the uniform distribution: equal logits.
    pub(super) fn reset(&mut self) {
        self.logits.fill(0.0);
        self.log_sum = libm::log(self.logits.len() as f64);
    }
}

/// KL(previous ‖ `logits`), and makes `logits` the previous read-out.
///
/// All in f64 from the logits themselves, summed in index order and with `libm`'s exp and log, so that the
/// result is the same bits on every machine; only the sum is rounded to f32. An entry whose probability was
/// 0 adds 0, the limit of p ln p; one that has become impossible makes the divergence infinite; NaN stays
/// NaN.
fn divergence(previous: &mut Previous, logits: &[f32]) -> f32 {
    assert_eq!(
        logits.len(),
        previous.logits.len(),
        "the rule's memory is for another vocabulary"
    );
    let log_sum = log_sum_exp(logits);
    let mut sum = 0.0f64;
    for (&old, &new) in previous.logits.iter().zip(logits) {
        let old = f64::from(old) - previous.log_sum;
        let p = libm::exp(old);
        // Not a shortcut: an old logit of minus infinity would give 0 times infinity.
        if p != 0.0 {
            sum += p * (old - (f64::from(new) - log_sum));
        }
    }
    previous.logits.copy_from_slice(logits);
    previous.log_sum = log_sum;
    sum as f32
}

/// ln Σ exp(x), with the largest taken out first so that nothing overflows; NaN if any is NaN.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits
        .iter()
        .map(|&x| libm::exp(f64::from(x) - largest))
        .sum();
    largest + libm::log(sum)
}
