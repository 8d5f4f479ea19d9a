//! Temperatures: thermal zones and hardware monitors.

use super::Machine;
use serde::Serialize;

/// A sensor and what it shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Temperature {
    /// The kernel's name for it.
    pub sensor: String,
    /// Degrees.
    pub celsius: f64,
}

/// What silicon in a running machine can have. Phones list battery voltages and percentages among their thermal zones, and
/// switched-off sensors show extremes.
const SENSIBLE: std::ops::RangeInclusive<f64> = -40.0..=150.0;

/// Parts of the names of sensors that lie on the processor.
const PROCESSOR: [&str; 11] =
    ["cpu", "core", "pkg", "package", "tctl", "tdie", "k10temp", "soc-thermal", "soc_thermal", "cluster", "mtktscpu"];

pub(super) fn temperatures(machine: &Machine) -> Vec<Temperature> {
    let mut found = Vec::new();
    let mut add = |sensor: String, input: &str| {
        let celsius = machine.number::<f64>(input).map(|thousandths| thousandths / 1000.0);
        if let Some(celsius) = celsius.filter(|c| SENSIBLE.contains(c)) {
            found.push(Temperature { sensor, celsius });
        }
    };
    for zone in machine.numbered("sys/class/thermal", "thermal_zone") {
        add(machine.text(&format!("{zone}/type")).unwrap_or_else(|| "thermal zone".into()), &format!("{zone}/temp"));
    }
    for chip in machine.numbered("sys/class/hwmon", "hwmon") {
        let name = machine.text(&format!("{chip}/name")).unwrap_or_else(|| "hwmon".into());
        for input in machine.names(&chip) {
            let Some(number) = input.strip_prefix("temp").and_then(|s| s.strip_suffix("_input")) else { continue };
            let sensor = match machine.text(&format!("{chip}/temp{number}_label")) {
                Some(label) => format!("{name} {label}"),
                None => name.clone(),
            };
            add(sensor, &format!("{chip}/{input}"));
        }
    }
    found
}

/// The hottest sensor of the processor; of all, where none has the name of one.
pub fn hottest(all: &[Temperature]) -> Option<&Temperature> {
    let on_processor = |t: &&Temperature| {
        let name = t.sensor.to_lowercase();
        PROCESSOR.iter().any(|part| name.contains(part))
    };
    let max = |a: &&Temperature, b: &&Temperature| a.celsius.total_cmp(&b.celsius);
    all.iter().filter(on_processor).max_by(max).or_else(|| all.iter().max_by(max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;

    #[test]
    fn zones_and_monitors_are_read_and_nonsense_is_not() {
        let fake = Fake::new(&[
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("sys/class/thermal/thermal_zone0/temp", "48200\n"),
            ("sys/class/thermal/thermal_zone1/type", "vbat"),
            ("sys/class/thermal/thermal_zone1/temp", "4123000"),
            ("sys/class/thermal/thermal_zone2/type", "off"),
            ("sys/class/thermal/thermal_zone2/temp", "-274000"),
            ("sys/class/thermal/thermal_zone3/type", "broken"),
            ("sys/class/thermal/cooling_device0/type", "fan"),
            ("sys/class/hwmon/hwmon3/name", "nvme"),
            ("sys/class/hwmon/hwmon3/temp1_input", "71850"),
            ("sys/class/hwmon/hwmon3/temp1_label", "Composite"),
            ("sys/class/hwmon/hwmon3/temp1_crit", "84850"),
        ]);
        let state = fake.machine().state();
        let found: Vec<_> = state.temperatures.iter().map(|t| (t.sensor.as_str(), t.celsius)).collect();
        assert_eq!(found, [("cpu-thermal", 48.2), ("nvme Composite", 71.85)]);
        assert_eq!(state.hottest().unwrap().sensor, "cpu-thermal", "a disk is hotter, but it does not compute");
    }

    #[test]
    fn without_a_processor_the_hottest_is_taken() {
        let of = |sensor: &str, celsius| Temperature { sensor: sensor.into(), celsius };
        assert_eq!(hottest(&[of("a", 1.0), of("b", 3.0), of("c", 2.0)]).unwrap().sensor, "b");
        assert_eq!(hottest(&[]), None);
    }
}
