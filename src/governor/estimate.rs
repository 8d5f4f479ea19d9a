//! What the latest tokens say of the machine and of the text.

use std::collections::VecDeque;

/// Tokens that are looked back at.
const WINDOW: usize = 16;
/// Tokens in a row that must agree that something has changed.
const JUMP: usize = 3;
/// By which factor they must all be off.
const FACTOR: f64 = 1.15;
/// How far beyond the median a single token counts.
const OUTLIER: f64 = 1.5;

/// Tokens that depth is averaged over: it varies more from token to token than the machine does.
const RATIO_TOKENS: f64 = 64.0;
/// A token takes a step at least, of hundreds at most.
const LEAST_RATIO: f64 = 1e-3;
/// Seconds of computing without a joule after which an energy source counts as silent. Batteries tell every half a minute.
const SILENCE: f64 = 60.0;

/// Measured over predicted time per token: a mean over the latest tokens in which single outliers count little, and which begins
/// anew when three tokens in a row are all off to the same side.
#[derive(Debug, Clone, Default)]
pub(super) struct Scale {
    window: VecDeque<f64>,
    mean: Option<f64>,
}

impl Scale {
    pub(super) fn add(&mut self, ratio: f64) {
        if !(ratio.is_finite() && ratio > 0.0) {
            return;
        }
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(ratio.clamp(1e-9, 1e9));
        let old = self.window.len().saturating_sub(JUMP);
        if old > 0 {
            let before = median(self.window.iter().take(old));
            let mut latest = self.window.iter().skip(old);
            let slower = latest.clone().all(|&x| x > FACTOR * before);
            if slower || latest.all(|&x| x * FACTOR < before) {
                self.window.drain(..old);
            }
        }
        let most = OUTLIER * median(self.window.iter());
        self.mean = Some(self.window.iter().map(|x| x.min(most)).sum::<f64>() / self.window.len() as f64);
    }

    /// The mean; `None` before the first token.
    pub(super) fn value(&self) -> Option<f64> {
        self.mean
    }
}

fn median<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let (mut sorted, mut n) = ([0.0; WINDOW], 0);
    for (slot, &value) in sorted.iter_mut().zip(values) {
        *slot = value;
        n += 1;
    }
    let sorted = &mut sorted[..n];
    sorted.sort_unstable_by(f64::total_cmp);
    if n == 0 { 0.0 } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 }
}

/// Observed over profiled mean steps: harder text than that of the calibration goes deeper under the same rule.
#[derive(Debug, Clone)]
pub(super) struct Ratio {
    mean: f64,
    /// For how many tokens the mean counts.
    weight: f64,
}

impl Ratio {
    /// Where a calibration has `measured` the mean steps, single tokens say little against it. Where it is only known how many they
    /// are at most, the first tokens say all.
    pub(super) fn new(measured: bool) -> Self {
        Self { mean: 1.0, weight: if measured { RATIO_TOKENS - 1.0 } else { 0.0 } }
    }

    pub(super) fn add(&mut self, ratio: f64) {
        if ratio.is_finite() && ratio > 0.0 {
            self.weight = (self.weight + 1.0).min(RATIO_TOKENS);
            self.mean += (ratio.clamp(LEAST_RATIO, 10.0) - self.mean) / self.weight;
        }
    }

    pub(super) fn value(&self) -> f64 {
        self.mean.clamp(LEAST_RATIO, 4.0)
    }
}

/// Watts while computing with all threads, idle power of the device included.
#[derive(Debug, Clone, Default)]
pub(super) struct Power {
    joules: f64,
    seconds: f64,
    tokens: u32,
    watts: Option<f64>,
    /// Nothing was told for long: what is told next is of an unknown time.
    silent: bool,
}

impl Power {
    /// A token of `seconds` of compute with a share of the power; `joules` were spent since they were last told.
    pub(super) fn add(&mut self, seconds: f64, share: f64, joules: Option<f64>) {
        self.seconds += seconds * share;
        self.tokens = self.tokens.saturating_add(1);
        let joules = joules.filter(|j| j.is_finite() && *j >= 0.0 && *j < 1e7).unwrap_or(0.0);
        if joules == 0.0 {
            if self.seconds > SILENCE {
                self.clear();
                self.silent = true;
            }
            return;
        }
        if self.silent {
            self.clear();
            return;
        }
        self.joules += joules;
        // Counters tick seldom; a few tokens and something to divide are needed.
        if self.tokens >= 4 && self.seconds > 0.0 {
            let watts = self.joules / self.seconds;
            self.watts = Some(self.watts.map_or(watts, |old| old + 0.5 * (watts - old)));
            self.clear();
        }
    }

    /// What was told of energy and time does not belong together: both begin anew. What is known stays known.
    pub(super) fn clear(&mut self) {
        (self.joules, self.seconds, self.tokens, self.silent) = (0.0, 0.0, 0, false);
    }

    pub(super) fn watts(&self) -> Option<f64> {
        self.watts.filter(|w| w.is_finite() && *w > 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_count_little_and_changes_count_at_once() {
        let mut scale = Scale::default();
        assert_eq!(scale.value(), None);
        [1.0, 1.02, 0.98, 1.0, 50.0, 1.0, 1.0, f64::NAN, -1.0, 0.0].into_iter().for_each(|x| scale.add(x));
        let value = scale.value().unwrap();
        assert!((1.0..1.08).contains(&value), "{value}");
        scale.add(2.0);
        scale.add(2.1);
        assert!(scale.value().unwrap() < 1.3);
        scale.add(1.9);
        assert_eq!(scale.value(), Some(2.0), "three tokens say so");
        (0..3).for_each(|_| scale.add(1.0));
        assert_eq!(scale.value(), Some(1.0));
    }

    #[test]
    fn ratios_follow_slowly_and_stay_in_bounds() {
        let mut ratio = Ratio::new(true);
        ratio.add(2.0);
        assert!((1.015..1.016).contains(&ratio.value()));
        (0..1000).for_each(|_| ratio.add(1e300));
        assert_eq!(ratio.value(), 4.0);
        ratio.add(f64::NAN);
        assert_eq!(ratio.value(), 4.0);
        let mut unknown = Ratio::new(false);
        assert_eq!(unknown.value(), 1.0);
        unknown.add(0.05);
        assert!((unknown.value() - 0.05).abs() < 1e-12, "the first token says all");
        unknown.add(0.15);
        assert!((unknown.value() - 0.1).abs() < 1e-12);
    }

    #[test]
    fn watts_are_joules_over_seconds_of_compute() {
        let mut power = Power::default();
        for i in 0..8 {
            power.add(0.5, 1.0, (i % 4 == 3).then_some(20.0));
        }
        assert_eq!(power.watts(), Some(10.0));
        power.add(0.5, 1.0, Some(f64::INFINITY));
        power.add(0.5, 1.0, Some(-5.0));
        assert_eq!(power.watts(), Some(10.0));
    }

    #[test]
    fn energy_and_time_that_do_not_belong_together_are_not_divided() {
        let tell = |power: &mut Power, n: u32| (0..n).for_each(|_| power.add(1.0, 1.0, Some(10.0)));
        let mut power = Power::default();
        tell(&mut power, 4);
        // An hour without a word, then the source is back and tells of one token's time.
        (0..3600).for_each(|_| power.add(1.0, 1.0, None));
        tell(&mut power, 9);
        assert_eq!(power.watts(), Some(10.0));
        // Energy of a pause between two texts.
        power.add(1.0, 1.0, Some(1000.0));
        power.clear();
        tell(&mut power, 4);
        assert_eq!(power.watts(), Some(10.0));
    }
}
