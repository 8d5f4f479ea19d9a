//! What the sensors say, as far as decisions depend on it.

use crate::sensors::State;
use serde::{Deserialize, Serialize};

/// What was read of the machine at a moment. `None` is what could not be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Readings {
    /// Does the machine run on its battery?
    pub on_battery: Option<bool>,
    /// Charge of the battery, 0 to 100.
    pub battery_percent: Option<f64>,
    /// Power that the battery gives, in watts.
    pub watts: Option<f64>,
    /// The hottest sensor of the processor, in degrees.
    pub celsius: Option<f64>,
    /// What the fastest core may run at, as a share of what the hardware could: less than 1 where the user, the vendor or the
    /// system's own thermal control has lowered it. Which of them it was is not told; only a fall is taken for heat.
    pub clock_share: Option<f64>,
    /// How often the processor has throttled, ever.
    pub throttle_count: Option<u64>,
    /// Share of the last ten seconds in which some program waited for a processor. Nothing is decided by it.
    pub cpu_pressure: Option<f64>,
    /// What the system says of thermal pressure in words.
    pub thermal_pressure: Option<String>,
}

impl Readings {
    /// What a machine's state says.
    pub fn of(state: &State) -> Self {
        let batteries = || state.supplies.iter().filter(|s| s.kind == "Battery");
        let is = |status: &str| batteries().any(|b| b.status.as_deref() == Some(status));
        let online: Vec<bool> =
            state.supplies.iter().filter(|s| s.kind != "Battery").filter_map(|s| s.online).collect();
        let on_battery = match () {
            () if is("Discharging") => Some(true),
            () if online.contains(&true) => Some(false),
            () if ["Charging", "Full", "Not charging"].into_iter().any(is) => Some(false),
            () if batteries().next().is_some() && !online.is_empty() => Some(true),
            () => None,
        };
        // The one that is used up last keeps the machine going.
        let percent = batteries().filter_map(|b| b.percent).max_by(f64::total_cmp);
        let limited = state.clock.limit_mhz.zip(state.clock.hardware_mhz).map(|(limit, hardware)| limit / hardware);
        let read = Self {
            on_battery,
            battery_percent: percent,
            watts: batteries().filter_map(|b| b.watts).reduce(|a, b| a + b),
            celsius: state.hottest().map(|t| t.celsius),
            clock_share: limited.or_else(|| state.thermal_pressure.as_deref().and_then(speed_limit)),
            throttle_count: state.throttle_count,
            cpu_pressure: state.cpu_pressure,
            thermal_pressure: state.thermal_pressure.clone(),
        };
        read.sensible()
    }

    /// Without what cannot be true: numbers that are none, and such as no machine has.
    pub fn sensible(mut self) -> Self {
        let keep = |x: &mut Option<f64>, range: std::ops::RangeInclusive<f64>| *x = x.filter(|x| range.contains(x));
        keep(&mut self.battery_percent, 0.0..=100.0);
        keep(&mut self.watts, 0.0..=1000.0);
        keep(&mut self.celsius, -40.0..=150.0);
        keep(&mut self.clock_share, 0.01..=1.5);
        keep(&mut self.cpu_pressure, 0.0..=1.0);
        self
    }
}

/// The limit in `CPU_Speed_Limit = 70`, which `pmset -g therm` prints on Intel Macs, as a share.
fn speed_limit(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("CPU_Speed_Limit")?;
    let digits: String =
        rest.trim_start_matches([' ', '\t', '=']).chars().take_while(char::is_ascii_digit).take(4).collect();
    Some(digits.parse::<f64>().ok()? / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::{Clock, Supply, Temperature};

    fn supply(kind: &str, status: Option<&str>, online: Option<bool>, percent: Option<f64>) -> Supply {
        let (name, status) = (kind.to_owned(), status.map(str::to_owned));
        Supply { name, kind: kind.into(), status, online, percent, watts: None }
    }

    #[test]
    fn mains_and_batteries() {
        let of = |supplies: Vec<Supply>| Readings::of(&State { supplies, ..State::default() }).on_battery;
        assert_eq!(of(vec![]), None);
        assert_eq!(of(vec![supply("Battery", Some("Discharging"), None, None)]), Some(true));
        assert_eq!(of(vec![supply("Battery", Some("Full"), None, None)]), Some(false));
        assert_eq!(of(vec![supply("Battery", Some("Unknown"), None, None)]), None);
        let unknown = || supply("Battery", Some("Unknown"), None, None);
        assert_eq!(of(vec![unknown(), supply("Mains", None, Some(true), None)]), Some(false));
        assert_eq!(of(vec![unknown(), supply("Mains", None, Some(false), None)]), Some(true));
        assert_eq!(of(vec![supply("Mains", None, Some(true), None)]), Some(false));
    }

    #[test]
    fn what_cannot_be_true_is_not_read() {
        let state = State {
            temperatures: vec![Temperature { sensor: "cpu".into(), celsius: 1e6 }],
            clock: Clock { limit_mhz: Some(0.0), hardware_mhz: Some(0.0), ..Clock::default() },
            supplies: vec![supply("Battery", None, None, Some(-3.0))],
            ..State::default()
        };
        assert_eq!(Readings::of(&state), Readings::default());
    }

    #[test]
    fn a_mac_tells_its_limit_in_words() {
        assert_eq!(speed_limit("CPU_Scheduler_Limit = 100; CPU_Speed_Limit \t= 70"), Some(0.7));
        assert_eq!(speed_limit("No thermal warning level has been recorded"), None);
        assert_eq!(speed_limit("CPU_Speed_Limit"), None);
    }
}
