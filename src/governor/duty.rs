//! How much of its time a device may work without getting too hot.

use super::Readings;
use std::collections::VecDeque;

/// Seconds of readings that the rate of rise is taken from.
const LOOK_BACK: f64 = 8.0;
/// Seconds that it is extended into the future.
const LOOK_AHEAD: f64 = 20.0;
/// Degrees below the cap that are aimed at.
const BELOW: f64 = 1.5;
/// Change of the duty per degree and second.
const GAIN: f64 = 0.005;
/// Degrees per second above which the gain is lowered in proportion: a bare chip answers within seconds, and would swing.
const FAST: f64 = 1.5;
/// Share of the duty that is taken away per second and degree above the cap.
const CUT: f64 = 0.15;
/// Degrees from the aim within which the duty rises to this many times what is used, plus this, and no further.
const NEAR: f64 = 3.0;
const USED: (f64, f64) = (1.15, 0.03);
/// Fastest rise of the duty per second.
const RISE: f64 = 0.05;
/// Least duty: the text goes on, if slowly.
pub(super) const LEAST: f64 = 0.04;
/// Longest time between two readings that is believed to be one, in seconds.
const GAP: f64 = 5.0;
/// A clock below this share of the highest that was seen is taken for throttled,
const THROTTLED: f64 = 0.97;
/// until the least duty has not brought it back for so many seconds: then somebody has lowered it for good.
const FOR_GOOD: f64 = 180.0;

/// The duty u: the share of full power that is allowed, from [`LEAST`] to 1.
///
/// What is controlled is not the temperature but where it will be in [`LOOK_AHEAD`] seconds at its present rate; summed up, its
/// distance from the aim is the duty. In the words of control theory that is a PI controller with a proportional gain of
/// `GAIN × LOOK_AHEAD` per degree, well damped for the minutes that devices take
/// to warm up. Above the cap itself the duty falls by [`CUT`] besides.
#[derive(Debug, Clone)]
pub(super) struct Duty {
    cap: f64,
    sum: f64,
    readings: VecDeque<(f64, f64)>,
    at: Option<f64>,
    throttled: Option<u64>,
    /// Highest share of its clock that the processor was allowed since the start; 0: none was told.
    clock: f64,
    /// Seconds at the least duty with a clock below that.
    low: f64,
    /// Fastest rise seen, in degrees per second.
    fastest: f64,
    /// Has there ever been a temperature?
    seen: bool,
}

impl Duty {
    pub(super) fn new(cap: f64) -> Self {
        Self {
            cap,
            sum: 1.0,
            readings: VecDeque::new(),
            at: None,
            throttled: None,
            clock: 0.0,
            low: 0.0,
            fastest: 0.0,
            seen: false,
        }
    }

    pub(super) fn value(&self) -> f64 {
        self.sum
    }

    pub(super) fn seen(&self) -> bool {
        self.seen
    }

    /// Takes readings at time `now`, in seconds; `used` is the share of full power that was drawn since the last ones.
    pub(super) fn read(&mut self, now: f64, used: f64, readings: &Readings) {
        let passed = self.at.map_or(0.0, |at| (now - at).clamp(0.0, GAP));
        self.at = Some(now);
        match readings.celsius {
            Some(celsius) => {
                self.seen = true;
                self.temperature(now, passed, used, celsius);
            }
            // A sensor that has gone silent may be a hot one: the duty stays as it is.
            None if self.seen => {}
            None => self.signs(passed, readings),
        }
    }

    fn temperature(&mut self, now: f64, passed: f64, used: f64, celsius: f64) {
        self.readings.retain(|&(at, _)| at < now && now - at <= LOOK_BACK);
        self.readings.push_back((now, celsius));
        let rate = self.rate();
        let error = self.cap - BELOW - (celsius + LOOK_AHEAD * rate);
        self.fastest = self.fastest.max(rate.abs());
        let gain = GAIN * (FAST / self.fastest.max(FAST));
        let sum = self.sum + (gain * error).min(RISE) * passed;
        // What is not drawn does not warm: near the aim, a duty far beyond what is used says nothing.
        let useful = if error < NEAR { (USED.0 * used + USED.1).max(self.sum) } else { 1.0 };
        self.sum = sum.min(useful).clamp(LEAST, 1.0);
        // Above the cap itself there is no time to sum up.
        let above = (celsius + 2.0 * rate.max(0.0) - self.cap).clamp(0.0, 2.0);
        self.sum = (self.sum * (1.0 - CUT * above * passed.min(1.0))).max(LEAST);
    }

    /// Degrees per second, by least squares; 0 while there is too little to tell.
    fn rate(&self) -> f64 {
        let n = self.readings.len() as f64;
        let span = self.readings.back().zip(self.readings.front()).map_or(0.0, |(b, a)| b.0 - a.0);
        if span < 0.9 {
            return 0.0;
        }
        let sums = self.readings.iter().fold((0.0, 0.0), |s, r| (s.0 + r.0, s.1 + r.1));
        let (at, celsius) = (sums.0 / n, sums.1 / n);
        let products = self.readings.iter().map(|r| ((r.0 - at) * (r.1 - celsius), (r.0 - at) * (r.0 - at)));
        let (above, below) = products.fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        if below > 0.0 { (above / below).clamp(-5.0, 5.0) } else { 0.0 }
    }

    /// Without a temperature: down while the system's own thermal control is at work, slowly up while it is not. A clock that was low
    /// from the start is somebody's choice; only one that falls is a sign of heat.
    fn signs(&mut self, passed: f64, readings: &Readings) {
        let counted = self.throttled.zip(readings.throttle_count).is_some_and(|(old, new)| new > old);
        self.throttled = readings.throttle_count.or(self.throttled);
        let share = readings.clock_share.unwrap_or(self.clock);
        self.clock = self.clock.max(share);
        let fallen = share < THROTTLED * self.clock;
        self.low = if fallen && self.sum <= LEAST { self.low + passed } else { 0.0 };
        if self.low >= FOR_GOOD {
            self.clock = share;
        }
        let strained = counted || share < THROTTLED * self.clock;
        self.sum = if strained { self.sum * (1.0 - 0.1 * passed.min(1.0)) } else { self.sum + 0.01 * passed };
        self.sum = self.sum.clamp(LEAST, 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mass that warms by `gain` degrees at full duty, with time constant `tau`, and a chip on it that is `chip` degrees hotter at
    /// once: gives the hottest, and the mean duty of the last five minutes and its spread.
    fn warm(cap: f64, gain: f64, tau: f64, chip: f64, step: f64) -> (f64, f64, f64) {
        let (mut duty, mut mass, mut hottest) = (Duty::new(cap), 25.0f64, 0.0f64);
        let (mut lowest, mut highest, mut sum) = (1.0f64, 0.0f64, 0.0);
        for second in 0..1800 {
            mass += (25.0 + gain * duty.value() - mass) / tau;
            let celsius = mass + chip * duty.value();
            hottest = hottest.max(celsius);
            let shown = (celsius / step).round() * step;
            duty.read(f64::from(second), duty.value(), &Readings { celsius: Some(shown), ..Readings::default() });
            if second >= 1500 {
                lowest = lowest.min(duty.value());
                highest = highest.max(duty.value());
                sum += duty.value() / 300.0;
            }
        }
        (hottest, sum, highest - lowest)
    }

    /// From a bare chip to a thick laptop, and sensors that show whole degrees.
    #[test]
    fn a_cap_is_held_on_light_and_heavy_devices() {
        for step in [0.001, 0.1, 1.0] {
            for gain in [40.0, 60.0, 100.0] {
                for (tau, chip) in [(20.0, 0.0), (60.0, 0.0), (60.0, 10.0), (200.0, 0.0), (200.0, 15.0), (600.0, 0.0)] {
                    let (hottest, mean, spread) = warm(60.0, gain, tau, chip, step);
                    assert!(hottest <= 62.0, "{gain} {tau} {chip} {step}: {hottest}");
                    // 33.5 degrees of rise are aimed at.
                    let aim = (33.5 / (gain + chip)).min(1.0);
                    let told = format!("{gain} {tau} {chip} {step}: duty {mean}, aim {aim}, spread {spread}");
                    assert!((mean - aim).abs() < 0.06 && spread < 0.3, "{told}");
                }
            }
        }
    }

    #[test]
    fn a_cool_device_is_not_held_back() {
        let (_, mean, _) = warm(60.0, 20.0, 60.0, 0.0, 1.0);
        assert!(mean > 0.9999, "{mean}");
    }

    #[test]
    fn a_silent_sensor_changes_nothing_and_signs_do_without_one() {
        let of = |celsius| Readings { celsius, ..Readings::default() };
        let mut duty = Duty::new(60.0);
        (0..40).for_each(|t| duty.read(f64::from(t), 1.0, &of(Some(70.0))));
        let low = duty.value();
        assert!(low < 0.1);
        (40..80).for_each(|t| duty.read(f64::from(t), 1.0, &of(None)));
        assert_eq!(duty.value(), low);
        let mut duty = Duty::new(60.0);
        let at = |share| Readings { clock_share: Some(share), ..Readings::default() };
        duty.read(0.0, 1.0, &at(1.0));
        (1..20).for_each(|t| duty.read(f64::from(t), 1.0, &at(0.8)));
        assert!(!duty.seen() && duty.value() < 0.2);
        (20..120).for_each(|t| duty.read(f64::from(t), 1.0, &of(None)));
        assert_eq!(duty.value(), 1.0);
        let mut duty = Duty::new(60.0);
        for t in 0..20u32 {
            duty.read(f64::from(t), 1.0, &Readings { throttle_count: Some(u64::from(t)), ..Readings::default() });
        }
        assert!(duty.value() < 0.2);
    }

    /// `scaling_max_freq` is the user's too, and the vendor's.
    #[test]
    fn a_clock_that_was_lowered_for_good_is_no_heat() {
        let at = |share| Readings { clock_share: Some(share), ..Readings::default() };
        let mut duty = Duty::new(60.0);
        (0..100).for_each(|t| duty.read(f64::from(t), 1.0, &at(0.6)));
        assert_eq!(duty.value(), 1.0, "it never was higher");
        duty.read(100.0, 1.0, &at(0.7));
        (101..120).for_each(|t| duty.read(f64::from(t), 1.0, &at(0.6)));
        assert!(duty.value() < 0.2, "it has fallen");
        (120..1000).for_each(|t| duty.read(f64::from(t), 1.0, &at(0.6)));
        assert_eq!(duty.value(), 1.0, "not even the least duty has brought it back");
    }
}
