//! Means with standard errors, perplexity, and how deep tokens went.

use crate::exit::log_sum_exp;
use serde::{Deserialize, Deserializer, Serialize};

/// A number and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    /// Its standard error; NaN (null in JSON) where there is none to tell.
    #[serde(deserialize_with = "number")]
    pub error: f64,
}

/// A number of a JSON file; null, as which JSON writes it, is NaN.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Mean and spread of numbers as they come, by Welford's recurrence (Technometrics 4, 1962): what llama.cpp takes from the sums of
/// values and squares, without their cancellation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Moments {
    count: u64,
    mean: f64,
    /// Σ (x − mean)²
    squares: f64,
}

impl Moments {
    /// Takes a number in.
    pub fn add(&mut self, x: f64) {
        self.count += 1;
        let before = x - self.mean;
        self.mean += before / self.count as f64;
        self.squares += before * (x - self.mean);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The unbiased variance, with n − 1; NaN for fewer than two numbers.
    pub fn variance(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.squares / (self.count - 1) as f64 }
    }

    /// The mean and its standard error sqrt(variance / n), the variance with n − 1; NaN for what too few numbers do not tell.
    pub fn mean(&self) -> Estimate {
        let n = self.count as f64;
        Estimate {
            value: if self.count == 0 { f64::NAN } else { self.mean },
            error: if self.count < 2 { f64::NAN } else { libm::sqrt(self.squares / (n * (n - 1.0))) },
        }
    }
}

/// Perplexity: exp of the mean negative log-likelihood of tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    nll: Moments,
}

impl Perplexity {
    /// Nothing scored yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scores the token `target` under `logits`, `[V]`.
    ///
    /// # Panics
    /// If `target` is no entry of `logits`.
    pub fn add(&mut self, logits: &[f32], target: u32) {
        self.add_nll(negative_log_likelihood(logits, target));
    }

    /// Takes in a token's negative log-likelihood.
    pub fn add_nll(&mut self, nll: f64) {
        self.nll.add(nll);
    }

    /// Tokens scored.
    pub fn count(&self) -> u64 {
        self.nll.count()
    }

    /// Mean negative log-likelihood, the cross-entropy in nats per token.
    pub fn cross_entropy(&self) -> Estimate {
        self.nll.mean()
    }

    /// The perplexity; its error is that of the mean, carried through exp: PPL times it.
    pub fn perplexity(&self) -> Estimate {
        exp(self.nll.mean())
    }
}

/// exp of an estimate, its error carried through to first order.
pub(super) fn exp(x: Estimate) -> Estimate {
    let value = libm::exp(x.value);
    Estimate { value, error: value * x.error }
}

/// −ln p(target) with p = softmax(logits), `[V]`.
pub(super) fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    log_sum_exp(logits) - f64::from(logits[target as usize])
}

/// Loop steps that tokens took.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Depths {
    /// `[steps]`: tokens that took so many.
    counts: Vec<u64>,
}

impl Depths {
    /// Takes in a token's steps.
    pub fn add(&mut self, steps: usize) {
        if self.counts.len() <= steps {
            self.counts.resize(steps + 1, 0);
        }
        self.counts[steps] += 1;
    }

    /// The mean; NaN if there were none.
    pub fn mean(&self) -> f64 {
        let (mut sum, mut count) = (0, 0);
        for (steps, n) in self.counts() {
            sum += steps as u64 * n;
            count += n;
        }
        sum as f64 / count as f64
    }

    /// Steps and the number of tokens that took them, ascending, without those that none took.
    pub fn counts(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.counts.iter().copied().enumerate().filter(|&(_, n)| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_by_hand() {
        let mut moments = Moments::default();
        assert!(moments.mean().value.is_nan());
        moments.add(2.0);
        assert_eq!(moments.mean().value, 2.0);
        assert!(moments.mean().error.is_nan());
        for x in [4.0, 9.0] {
            moments.add(x);
        }
        // Mean 5, squares 9 + 1 + 16 = 26, variance 13, error sqrt(13 / 3).
        assert_eq!((moments.mean().value, moments.variance()), (5.0, 13.0));
        assert!((moments.mean().error - (13.0f64 / 3.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn perplexity_of_uniform_predictions_is_the_vocabulary() {
        let mut perplexity = Perplexity::new();
        for target in 0..5 {
            perplexity.add(&[-3.5; 5], target);
        }
        let found = perplexity.perplexity();
        assert!((found.value - 5.0).abs() < 1e-14 && found.error < 1e-14, "{found:?}");
        // Probabilities 1/4 and 3/4 of a token: the geometric mean of 4 and 4/3.
        let mut perplexity = Perplexity::new();
        let logits = [0.0, 3.0f32.ln()];
        perplexity.add(&logits, 0);
        perplexity.add(&logits, 1);
        assert!((perplexity.perplexity().value - 4.0 / 3.0f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn depths_are_counted() {
        let mut depths = Depths::default();
        [3, 5, 3, 1].into_iter().for_each(|n| depths.add(n));
        assert_eq!(depths.mean(), 3.0);
        assert_eq!(depths.counts().collect::<Vec<_>>(), [(1, 1), (3, 2), (5, 1)]);
        assert!(Depths::default().mean().is_nan());
    }
}
