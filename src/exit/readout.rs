//! What rules on the read-out share: the read-out before this one, and the distances between two.

/// The latest read-out that was checked, and what rules make of it.
#[derive(Clone, Debug)]
pub(super) struct Previous {
    /// `[vocab]`; empty if the rule needs no read-out.
    pub(super) logits: Box<[f32]>,
    /// ln Σ exp(logits)
    pub(super) log_sum: f64,
    /// Entropy of it, in nats.
    pub(super) entropy: f32,
    /// The most likely token; `None` before the first read-out, and where one is not a number.
    pub(super) top: Option<usize>,
}

/// The entropy that the reference puts before the first read-out: none that a vocabulary has.
const NO_ENTROPY: f32 = 100.0;

impl Previous {
    pub(super) fn new(vocab: usize) -> Self {
        let mut previous =
            Self { logits: vec![0.0; vocab].into_boxed_slice(), log_sum: 0.0, entropy: NO_ENTROPY, top: None };
        previous.reset();
        previous
    }

    /// Back to what is before the first read-out: the uniform distribution, equal logits.
    pub(super) fn reset(&mut self) {
        self.logits.fill(0.0);
        self.log_sum = libm::log(self.logits.len() as f64);
        self.entropy = NO_ENTROPY;
        self.top = None;
    }

    /// The next read-out takes this one's place.
    pub(super) fn replace(&mut self, logits: &[f32], log_sum: f64) {
        self.logits.copy_from_slice(logits);
        self.log_sum = log_sum;
    }
}

/// KL(p ‖ q) in nats, of logits each with its ln Σ exp; entries with ln p at `floor` or below add nothing.
///
/// All in f64 from the logits themselves, summed in index order and with `libm`'s exp and log, so that the
/// result is the same bits on every machine. An entry whose probability was 0 adds 0, the limit of p ln p; one
/// that has become impossible makes the divergence infinite; NaN stays NaN.
pub(crate) fn divergence(p: (&[f32], f64), q: (&[f32], f64), floor: f64) -> f64 {
    let mut sum = 0.0f64;
    for (&old, &new) in p.0.iter().zip(q.0) {
        let old = f64::from(old) - p.1;
        if old <= floor {
            continue;
        }
        let p = libm::exp(old);
        // Not a shortcut: a probability that is 0, or too small for an f64, would be multiplied by infinity.
        if p != 0.0 {
            sum += p * (old - (f64::from(new) - q.1));
        }
    }
    sum
}

/// ln Σ exp(x), with the largest taken out first so that nothing overflows; NaN if any is NaN.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&x| libm::exp(f64::from(x) - largest)).sum();
    largest + libm::log(sum)
}

/// The first of the largest entries; `None` if any is NaN.
pub(crate) fn top(x: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (i, value) in x.iter().enumerate() {
        if value.is_nan() {
            return None;
        }
        if *value > x[best] {
            best = i;
        }
    }
    (!x.is_empty()).then_some(best)
}
