//! A run against a base run, token by token.

use super::score::{Estimate, Moments, exp};
use crate::exit::{divergence, log_sum_exp, top};
use serde::Serialize;

/// llama.cpp's `--kl-divergence` leaves out tokens that a stored base run gives a log-probability of no more than this: among
/// them are those that its 16 bits cut off, all at the same value.
const STORED_FLOOR: f64 = -16.0;

/// What llama.cpp's `--kl-divergence` reports, gathered position by position.
#[derive(Debug, Clone, Default)]
pub struct Comparison {
    nll: Moments,
    base_nll: Moments,
    /// nll − base nll of the same token. Its spread is what that of the two leaves when they go together.
    difference: Moments,
    kl_mean: Moments,
    kl: Vec<f64>,
    change: Vec<f64>,
    same_top: u64,
}

impl Comparison {
    /// Nothing compared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in one position: the base run's logits and this run's, both `[V]`, and the token that follows in the text. KL is taken
    /// over the whole vocabulary, and is exactly 0 for equal logits.
    ///
    /// # Panics
    /// If the two have not the same length, or `target` is no entry of them.
    pub fn add_logits(&mut self, base: &[f32], logits: &[f32], target: u32) {
        self.add(base, log_sum_exp(base), f64::NEG_INFINITY, logits, target);
    }

    /// Takes in one position of a stored base run: its log-probabilities as they come out of 16 bits ([`super::BaseRun`]), this run's
    /// logits, both `[V]`, and the token that follows. As llama.cpp does it: the log-probabilities are not normalised again,
    /// and tokens at −16 or below add nothing to KL.
    ///
    /// # Panics
    /// As [`add_logits`](Self::add_logits).
    pub fn add_log_probs(&mut self, base: &[f32], logits: &[f32], target: u32) {
        self.add(base, 0.0, STORED_FLOOR, logits, target);
    }

    fn add(&mut self, base: &[f32], base_log_sum: f64, floor: f64, logits: &[f32], target: u32) {
        assert_eq!(base.len(), logits.len(), "the two runs have vocabularies of different sizes");
        let log_sum = log_sum_exp(logits);
        let nll = log_sum - f64::from(logits[target as usize]);
        let base_nll = base_log_sum - f64::from(base[target as usize]);
        self.nll.add(nll);
        self.base_nll.add(base_nll);
        self.difference.add(nll - base_nll);
        let kl = divergence((base, base_log_sum), (logits, log_sum), floor);
        self.kl_mean.add(kl);
        self.kl.push(kl);
        self.change.push(libm::exp(-nll) - libm::exp(-base_nll));
        self.same_top += u64::from(top(base) == top(logits));
    }

    /// KL(base ‖ run) at one position, in nats, and whether both find the same token most likely; from logits `[V]`.
    ///
    /// # Panics
    /// If the two have not the same length.
    pub fn position(base: &[f32], logits: &[f32]) -> (f64, bool) {
        assert_eq!(base.len(), logits.len(), "the two runs have vocabularies of different sizes");
        let kl = divergence((base, log_sum_exp(base)), (logits, log_sum_exp(logits)), f64::NEG_INFINITY);
        (kl, top(base) == top(logits))
    }

    /// Positions compared.
    pub fn count(&self) -> u64 {
        self.kl.len() as u64
    }

    /// Mean of KL(base ‖ this run) so far, in nats: what a running estimate or a search needs of the [`summary`](Self::summary).
    pub fn kl(&self) -> Estimate {
        self.kl_mean.mean()
    }

    /// Everything, with standard errors.
    pub fn summary(&self) -> Summary {
        let (nll, base) = (self.nll.mean(), self.base_nll.mean());
        let difference = self.difference.mean();
        let (perplexity, base_perplexity) = (exp(nll), exp(base));
        // Var(a − b) = Var a + Var b − 2 Cov(a, b), all of means.
        let square = |x: f64| x * x;
        let covariance = (square(nll.error) + square(base.error) - square(difference.error)) / 2.0;
        let spread = square(perplexity.error) + square(base_perplexity.error)
            - 2.0 * perplexity.value * base_perplexity.value * covariance;
        let n = self.kl.len() as f64;
        let same = self.same_top as f64 / n;
        let squares = mean(self.change.iter().map(|x| x * x));
        let rms = libm::sqrt(squares.value);
        Summary {
            count: self.count(),
            perplexity,
            base_perplexity,
            log_ratio: difference,
            ratio: exp(difference),
            difference: Estimate {
                value: perplexity.value - base_perplexity.value,
                error: libm::sqrt(spread.max(0.0)),
            },
            correlation: covariance / (nll.error * base.error),
            kl: self.kl(),
            kl_quantiles: Quantiles::of(&self.kl),
            // Gaussian approximation of the binomial distribution.
            same_top: Estimate { value: same, error: libm::sqrt(same * (1.0 - same) / (n - 1.0)) },
            change: mean(self.change.iter().copied()),
            change_rms: Estimate {
                value: rms,
                error: if rms > 0.0 { 0.5 / rms * squares.error } else { squares.error },
            },
            change_quantiles: Quantiles::of(&self.change),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Estimate {
    let mut moments = Moments::default();
    values.for_each(|x| moments.add(x));
    moments.mean()
}

/// How two runs differ, as llama.cpp reports it; p is the probability of the token that follows in the text.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Positions compared.
    pub count: u64,
    /// This run's perplexity.
    pub perplexity: Estimate,
    /// The base run's, over the same tokens.
    pub base_perplexity: Estimate,
    /// ln(PPL / base PPL).
    pub log_ratio: Estimate,
    /// PPL / base PPL.
    pub ratio: Estimate,
    /// PPL − base PPL.
    pub difference: Estimate,
    /// Correlation of the two runs' ln p.
    pub correlation: f64,
    /// Mean of KL(base ‖ this run), in nats.
    pub kl: Estimate,
    /// How KL is spread over positions.
    pub kl_quantiles: Quantiles,
    /// Share of positions at which both runs find the same token most likely.
    pub same_top: Estimate,
    /// Mean of p − base p.
    pub change: Estimate,
    /// Root of the mean square of p − base p.
    pub change_rms: Estimate,
    /// How p − base p is spread over positions.
    pub change_quantiles: Quantiles,
}

/// Values below which a share of all lies, by linear interpolation between the two nearest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Quantiles {
    pub min: f64,
    pub p0_1: f64,
    pub p1: f64,
    pub p5: f64,
    pub p10: f64,
    pub p25: f64,
    pub median: f64,
    pub p75: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
}

impl Quantiles {
    /// Of these values; all NaN if there are none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
            let place = share * last as f64;
            let below = place as usize;
            let part = place - below as f64;
            (1.0 - part) * sorted[below] + part * sorted[(below + 1).min(last)]
        };
        Self {
            min: at(0.0),
            p0_1: at(0.001),
            p1: at(0.01),
            p5: at(0.05),
            p10: at(0.1),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p99_9: at(0.999),
            max: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities as logits, with a constant that must not matter.
    fn logits(p: &[f64]) -> Vec<f32> {
        p.iter().map(|p| (p.ln() + 2.0) as f32).collect()
    }

    #[test]
    fn two_positions_by_hand() {
        let mut comparison = Comparison::new();
        comparison.add_logits(&logits(&[0.5, 0.25, 0.25]), &logits(&[0.25, 0.5, 0.25]), 0);
        comparison.add_logits(&logits(&[0.1, 0.8, 0.1]), &logits(&[0.2, 0.6, 0.2]), 1);
        let found = comparison.summary();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a}, expected {b}: {found:#?}");
        let kl = [0.25 * 2.0f64.ln(), 0.2 * 0.5f64.ln() + 0.8 * (0.8f64 / 0.6).ln()];
        near(found.kl.value, (kl[0] + kl[1]) / 2.0);
        near(found.kl.error, (kl[0] - kl[1]).abs() / 2.0);
        near(found.kl_quantiles.min, kl[1]);
        near(found.kl_quantiles.p75, 0.25 * kl[1] + 0.75 * kl[0]);
        near(found.same_top.value, 0.5);
        near(found.same_top.error, 0.5);
        near(found.change.value, (-0.25 - 0.2) / 2.0);
        near(found.change_rms.value, ((0.0625f64 + 0.04) / 2.0).sqrt());
        near(found.change_rms.error, 0.5 / ((0.0625f64 + 0.04) / 2.0).sqrt() * (0.0625 - 0.04) / 2.0);
        near(found.perplexity.value, (1.0 / (0.25f64 * 0.6)).sqrt());
        near(found.base_perplexity.value, (1.0 / (0.5f64 * 0.8)).sqrt());
        near(found.log_ratio.value, ((0.4f64 / 0.15).ln()) / 2.0);
        near(found.ratio.value, (0.4f64 / 0.15).sqrt());
        // Two points lie on a line.
        near(found.correlation, 1.0);
    }

    #[test]
    fn a_run_is_its_own_equal() {
        let mut comparison = Comparison::new();
        for target in 0..3 {
            let logits = [0.3, -7.0, 55.5];
            comparison.add_logits(&logits, &logits, target);
        }
        let found = comparison.summary();
        assert_eq!((found.kl.value, found.kl_quantiles.max, found.log_ratio.value), (0.0, 0.0, 0.0));
        assert_eq!((found.same_top.value, found.same_top.error), (1.0, 0.0));
        assert_eq!((found.change_rms.value, found.change_rms.error), (0.0, 0.0));
        assert_eq!(found.difference, Estimate { value: 0.0, error: 0.0 });
    }

    #[test]
    fn stored_log_probabilities_stop_at_the_floor() {
        let mut comparison = Comparison::new();
        // The second entry would add e^-16 · something.
        comparison.add_log_probs(&[0.0, -16.0], &[0.0, 0.0], 0);
        assert_eq!(comparison.summary().kl.value, 2.0f64.ln());
    }

    #[test]
    fn nothing_compared_is_nothing_told() {
        let found = Comparison::new().summary();
        assert!(found.kl.value.is_nan() && found.kl_quantiles.max.is_nan() && found.same_top.value.is_nan());
    }
}
