//! Energy: RAPL counters of the processor, or the battery of the whole device.

use super::{Machine, power};
use serde::Serialize;
use std::time::Instant;

/// Where joules come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EnergySource {
    /// Processor packages and memory, by the counters of Linux's `powercap` (Intel and AMD). Most systems let only root read them.
    Rapl,
    /// Everything in the device, by its battery while it discharges. Batteries tell rarely and roughly.
    Battery,
}

/// Reads what there is to read.
#[derive(Debug, Clone)]
pub struct EnergyMeter {
    machine: Machine,
    counters: Vec<Counter>,
}

/// A RAPL domain.
#[derive(Debug, Clone)]
struct Counter {
    path: String,
    /// The counter starts again at 0 after this many microjoules.
    range: Option<u64>,
}

/// A reading at a moment.
#[derive(Debug, Clone)]
pub struct EnergySample {
    at: Instant,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// Microjoules of every counter.
    Counters(Vec<u64>),
    /// Watts, or else the energy left in joules.
    Battery { watts: Option<f64>, left: Option<f64> },
}

impl EnergySample {
    /// Where it comes from.
    pub fn source(&self) -> EnergySource {
        match self.what {
            What::Counters(_) => EnergySource::Rapl,
            What::Battery { .. } => EnergySource::Battery,
        }
    }
}

impl EnergyMeter {
    /// Looks for counters that can be read.
    pub fn new(machine: &Machine) -> Self {
        const CLASS: &str = "sys/class/powercap";
        // A package is `intel-rapl:0`, its parts are `intel-rapl:0:1`. Cores are in their package, memory is not; `psys` is the
        // platform with all of them.
        let counts = |name: &str| name.starts_with("package") || name == "dram";
        let domain = |name: String| {
            let path = format!("{CLASS}/{name}");
            let ours = name.starts_with("intel-rapl:") && counts(&machine.text(&format!("{path}/name"))?);
            let range = machine.number(&format!("{path}/max_energy_range_uj"));
            let path = format!("{path}/energy_uj");
            (ours && machine.number::<u64>(&path).is_some()).then_some(Counter { path, range })
        };
        let counters = machine.names(CLASS).into_iter().filter_map(domain).collect();
        Self { machine: machine.clone(), counters }
    }

    /// What the meters show now; `None` if there is none.
    pub fn sample(&self) -> Option<EnergySample> {
        let at = Instant::now();
        if !self.counters.is_empty() {
            let counters: Option<_> = self.counters.iter().map(|c| self.machine.number(&c.path)).collect();
            return Some(EnergySample { at, what: What::Counters(counters?) });
        }
        let supplies = power::supplies(&self.machine);
        let batteries = || supplies.iter().filter(|s| s.kind == "Battery");
        let discharging = batteries().all(|b| b.status.as_deref() == Some("Discharging"));
        if batteries().next().is_none() || !discharging {
            return None;
        }
        let watts = batteries().map(|b| b.watts).sum::<Option<f64>>();
        let left = batteries().map(|b| self.left(&b.name)).sum::<Option<f64>>();
        (watts.is_some() || left.is_some()).then_some(EnergySample { at, what: What::Battery { watts, left } })
    }

    /// Joules in a battery.
    fn left(&self, battery: &str) -> Option<f64> {
        let number = |key: &str| self.machine.number::<f64>(&format!("sys/class/power_supply/{battery}/{key}"));
        // Millionths of watt hours, or of ampere hours.
        let charge = || Some(number("charge_now")? / 1e6 * number("voltage_now")?);
        number("energy_now").or_else(charge).map(|micro| micro / 1e6 * 3600.0)
    }

    /// Joules between two samples: at least one per turn of the counters, whose range is some minutes of full load. Where a battery
    /// tells its power, that is taken as the mean of both samples.
    pub fn joules(&self, from: &EnergySample, to: &EnergySample) -> Option<f64> {
        match (&from.what, &to.what) {
            (What::Counters(a), What::Counters(b)) => {
                let each = self.counters.iter().zip(a.iter().zip(b));
                let micro = each.map(|(counter, (&a, &b))| used(a, b, counter.range)).sum::<Option<u64>>()?;
                Some(micro as f64 / 1e6)
            }
            (What::Battery { watts: Some(a), .. }, What::Battery { watts: Some(b), .. }) => {
                Some((a + b) / 2.0 * (to.at - from.at).as_secs_f64())
            }
            (What::Battery { left: Some(a), .. }, What::Battery { left: Some(b), .. }) => {
                Some(a - b).filter(|&j| j > 0.0)
            }
            _ => None,
        }
    }
}

/// What a counter counted from `a` to `b`, if it turned over once at most.
fn used(a: u64, b: u64, range: Option<u64>) -> Option<u64> {
    match b.checked_sub(a) {
        Some(n) => Some(n),
        None => range?.checked_sub(a)?.checked_add(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;
    use std::time::Duration;

    const RAPL: [(&str, &str); 11] = [
        ("sys/class/powercap/intel-rapl:0/name", "package-0\n"),
        ("sys/class/powercap/intel-rapl:0/energy_uj", "262143000000\n"),
        ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n"),
        ("sys/class/powercap/intel-rapl:0:0/name", "core"),
        ("sys/class/powercap/intel-rapl:0:0/energy_uj", "5"),
        ("sys/class/powercap/intel-rapl:0:1/name", "dram"),
        ("sys/class/powercap/intel-rapl:0:1/energy_uj", "1000000"),
        ("sys/class/powercap/intel-rapl:1/name", "psys"),
        ("sys/class/powercap/intel-rapl:1/energy_uj", "7"),
        ("sys/class/powercap/intel-rapl/enabled", "1"),
        ("sys/class/powercap/intel-rapl:2/name", "package-1"),
    ];

    #[test]
    fn counters_turn_over() {
        assert_eq!(used(10, 25, None), Some(15));
        assert_eq!(used(90, 5, Some(100)), Some(15));
        assert_eq!(used(90, 5, None), None, "without its range nothing is known");
        assert_eq!(used(190, 5, Some(100)), None, "beyond its range");
        assert_eq!(used(u64::MAX, u64::MAX - 1, Some(u64::MAX)), Some(u64::MAX - 1));
    }

    #[test]
    fn packages_and_memory_are_counted_and_their_parts_are_not() {
        let fake = Fake::new(&RAPL);
        let meter = EnergyMeter::new(&fake.machine());
        let before = meter.sample().unwrap();
        assert_eq!(before.source(), EnergySource::Rapl);
        fake.write("sys/class/powercap/intel-rapl:0/energy_uj", "671150");
        fake.write("sys/class/powercap/intel-rapl:0:0/energy_uj", "999999999");
        fake.write("sys/class/powercap/intel-rapl:0:1/energy_uj", "3500000");
        fake.write("sys/class/powercap/intel-rapl:1/energy_uj", "999999999");
        let after = meter.sample().unwrap();
        // 0.328850 + 0.671150 of the package around its turn, and 2.5 of the memory.
        assert_eq!(meter.joules(&before, &after), Some(3.5));
        fake.write("sys/class/powercap/intel-rapl:0:1/energy_uj", "nonsense");
        assert!(meter.sample().is_none());
    }

    #[test]
    fn a_battery_counts_while_it_discharges() {
        let fake = Fake::new(&[
            ("sys/class/power_supply/BAT0/type", "Battery"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("sys/class/power_supply/BAT0/power_now", "8000000"),
            ("sys/class/power_supply/AC/type", "Mains"),
        ]);
        let meter = EnergyMeter::new(&fake.machine());
        let before = meter.sample().unwrap();
        fake.write("sys/class/power_supply/BAT0/power_now", "12000000");
        let mut after = meter.sample().unwrap();
        after.at = before.at + Duration::from_secs(3);
        assert_eq!(meter.joules(&before, &after), Some(30.0));
        fake.write("sys/class/power_supply/BAT0/status", "Charging");
        assert!(meter.sample().is_none());
    }

    #[test]
    fn charge_that_is_gone_is_energy() {
        let fake = Fake::new(&[
            ("sys/class/power_supply/bms/type", "Battery"),
            ("sys/class/power_supply/bms/status", "Discharging"),
            ("sys/class/power_supply/bms/charge_now", "2000000"),
            ("sys/class/power_supply/bms/voltage_now", "4000000"),
        ]);
        let meter = EnergyMeter::new(&fake.machine());
        let before = meter.sample().unwrap();
        fake.write("sys/class/power_supply/bms/charge_now", "1999000");
        let after = meter.sample().unwrap();
        let joules = meter.joules(&before, &after).unwrap();
        assert!((joules - 0.001 * 4.0 * 3600.0).abs() < 1e-6, "{joules}");
        assert_eq!(meter.joules(&after, &before), None, "it does not run backwards");
    }
}
