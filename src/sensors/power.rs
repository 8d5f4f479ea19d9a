//! Clocks, governors, throttling, batteries and mains.

use super::{Machine, command, windows};
use serde::Serialize;

/// Clocks of the processor, in MHz.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Clock {
    /// Of the fastest core at the moment.
    pub fastest_mhz: Option<f64>,
    /// Mean over the clock domains at the moment.
    pub mean_mhz: Option<f64>,
    /// What the fastest core may reach: lowered by the user, and on ARM by the kernel when it is hot.
    pub limit_mhz: Option<f64>,
    /// What the hardware could.
    pub hardware_mhz: Option<f64>,
}

/// A battery, or mains.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Supply {
    /// The kernel's name.
    pub name: String,
    /// `Battery`, `Mains`, `USB` and so on.
    pub kind: String,
    /// Of a battery: `Charging`, `Discharging`, `Full`.
    pub status: Option<String>,
    /// Of mains: is it plugged in?
    pub online: Option<bool>,
    /// Charge of a battery.
    pub percent: Option<f64>,
    /// Power that flows into or out of a battery.
    pub watts: Option<f64>,
}

/// What a system with a processor of this kind can draw; a number outside comes from a driver that means another unit.
const SENSIBLE_WATTS: std::ops::RangeInclusive<f64> = 0.05..=1000.0;

/// What a processor can run at, in kHz.
const SENSIBLE_KHZ: std::ops::RangeInclusive<f64> = 1e3..=1e8;

/// Folders of the clock domains.
pub(super) fn domains(machine: &Machine) -> Vec<String> {
    let policies = machine.numbered("sys/devices/system/cpu/cpufreq", "policy");
    if !policies.is_empty() {
        return policies;
    }
    let cpus = machine.numbered("sys/devices/system/cpu", "cpu");
    cpus.into_iter().map(|cpu| format!("{cpu}/cpufreq")).collect()
}

pub(super) fn clock(machine: &Machine) -> Clock {
    let domains = domains(machine);
    let all = |name: &str| -> Vec<f64> {
        let khz = domains.iter().filter_map(|d| machine.number::<f64>(&format!("{d}/{name}")));
        khz.filter(|khz| SENSIBLE_KHZ.contains(khz)).map(|khz| khz / 1000.0).collect()
    };
    let most = |mhz: &[f64]| mhz.iter().copied().max_by(f64::total_cmp);
    let now = all("scaling_cur_freq");
    Clock {
        fastest_mhz: most(&now),
        mean_mhz: (!now.is_empty()).then(|| now.iter().sum::<f64>() / now.len() as f64),
        limit_mhz: most(&all("scaling_max_freq")),
        hardware_mhz: most(&all("cpuinfo_max_freq")),
    }
}

pub(super) fn governors(machine: &Machine) -> Vec<String> {
    let governor = |d: String| machine.text(&format!("{d}/scaling_governor"));
    let mut found: Vec<_> = domains(machine).into_iter().filter_map(governor).collect();
    found.sort();
    found.dedup();
    found
}

pub(super) fn profile(machine: &Machine) -> Option<String> {
    machine
        .text("sys/firmware/acpi/platform_profile")
        .or_else(|| low_power_mode(&command::output("/usr/bin/pmset", &["-g"])?))
}

/// The low power mode in what `pmset -g` prints.
fn low_power_mode(text: &str) -> Option<String> {
    let line = text.lines().find_map(|l| l.trim().strip_prefix("lowpowermode"))?;
    Some(if line.trim() == "0" { "low power mode off" } else { "low power mode on" }.to_owned())
}

pub(super) fn throttle_count(machine: &Machine) -> Option<u64> {
    let count = |cpu: String| machine.number::<u64>(&format!("{cpu}/thermal_throttle/core_throttle_count"));
    let counts: Vec<_> = machine.numbered("sys/devices/system/cpu", "cpu").into_iter().filter_map(count).collect();
    (!counts.is_empty()).then(|| counts.iter().fold(0u64, |a, &b| a.saturating_add(b)))
}

pub(super) fn cpu_pressure(machine: &Machine) -> Option<f64> {
    stalled(&machine.text("proc/pressure/cpu")?)
}

/// The share in `some avg10=1.53 avg60=…`, of which the kernel writes per cents.
fn stalled(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|l| l.strip_prefix("some "))?;
    let percent = some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    percent.parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)).map(|p| p / 100.0)
}

pub(super) fn thermal_pressure(_: &Machine) -> Option<String> {
    command::output("/usr/bin/pmset", &["-g", "therm"]).map(|text| one_sentence(&text))
}

/// What `pmset -g therm` prints, without its line breaks.
fn one_sentence(text: &str) -> String {
    let lines = text.lines().map(|l| l.trim().trim_start_matches("Note: ")).filter(|l| !l.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

pub(super) fn supplies(machine: &Machine) -> Vec<Supply> {
    const CLASS: &str = "sys/class/power_supply";
    let all = machine.names(CLASS).into_iter().filter_map(|name| {
        let text = |key: &str| machine.text(&format!("{CLASS}/{name}/{key}"));
        // The battery of a mouse is none of ours.
        if text("scope").as_deref() == Some("Device") {
            return None;
        }
        Some(Supply {
            kind: text("type")?,
            status: text("status"),
            online: text("online").map(|s| s != "0"),
            percent: text("capacity").and_then(|s| s.parse().ok()).filter(|p| (0.0..=100.0).contains(p)),
            watts: watts(machine, &format!("{CLASS}/{name}")),
            name,
        })
    });
    let found: Vec<_> = all.collect();
    if !found.is_empty() {
        return found;
    }
    let found = windows::supplies();
    if !found.is_empty() {
        return found;
    }
    let battery = command::output("/usr/sbin/ioreg", &["-rw0", "-c", "AppleSmartBattery"]);
    battery.as_deref().and_then(smart_battery).into_iter().collect()
}

/// Power of a battery: `power_now`, else current times voltage, all in millionths.
fn watts(machine: &Machine, battery: &str) -> Option<f64> {
    let number = |key: &str| machine.number::<f64>(&format!("{battery}/{key}"));
    let power = number("power_now").map(|micro| micro / 1e6);
    let product = || Some(number("current_now")? / 1e6 * (number("voltage_now")? / 1e6));
    power.or_else(product).map(f64::abs).filter(|w| SENSIBLE_WATTS.contains(w))
}

/// The battery of a Mac, in what `ioreg -rw0 -c AppleSmartBattery` prints.
fn smart_battery(text: &str) -> Option<Supply> {
    let value = |key: &str| {
        let key = format!("\"{key}\" = ");
        text.lines().find_map(|l| l.trim().strip_prefix(&key).map(str::trim))
    };
    let volts = value("Voltage")?.parse::<f64>().ok()? / 1000.0;
    // Printed as 64 bits without a sign; what flows out is negative.
    let current = value("InstantAmperage").or_else(|| value("Amperage"));
    let amperes = current.and_then(|s| s.parse::<u64>().map(|n| n as i64).or_else(|_| s.parse()).ok());
    let watts = amperes.map(|milli| (milli as f64 / 1000.0 * volts).abs()).filter(|w| SENSIBLE_WATTS.contains(w));
    let yes = |key: &str| value(key) == Some("Yes");
    let status = match (yes("ExternalConnected"), yes("IsCharging")) {
        (_, true) => "Charging",
        (true, false) => "Not charging",
        (false, false) => "Discharging",
    };
    let of = |key: &str| value(key)?.parse::<f64>().ok();
    let percent = of("CurrentCapacity").zip(of("MaxCapacity")).map(|(now, full)| 100.0 * now / full);
    Some(Supply {
        name: "AppleSmartBattery".into(),
        kind: "Battery".into(),
        status: Some(status.into()),
        online: None,
        percent: percent.filter(|p| p.is_finite()),
        watts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;

    #[test]
    fn clocks_of_two_clusters() {
        let fake = Fake::new(&[
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1800000"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1800000"),
            ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "1800000"),
            ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "schedutil\n"),
            ("sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "2000000"),
            ("sys/devices/system/cpu/cpufreq/policy4/scaling_max_freq", "2208000"),
            ("sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq", "2400000"),
            ("sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "schedutil\n"),
        ]);
        let state = fake.machine().state();
        let expected = Clock {
            fastest_mhz: Some(2000.0),
            mean_mhz: Some(1900.0),
            limit_mhz: Some(2208.0),
            hardware_mhz: Some(2400.0),
        };
        assert_eq!((state.clock, state.governors), (expected, vec!["schedutil".to_owned()]));
    }

    #[test]
    fn cores_without_policies_have_clocks_too() {
        let fake = Fake::new(&[
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1000000"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "performance"),
            ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3"),
            ("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "4"),
            ("sys/firmware/acpi/platform_profile", "balanced\n"),
        ]);
        let state = fake.machine().state();
        assert_eq!(state.clock.fastest_mhz, Some(1000.0));
        assert_eq!(state.clock.limit_mhz, None);
        assert_eq!(state.governors, ["performance", "powersave"]);
        assert_eq!((state.throttle_count, state.profile.as_deref()), (Some(7), Some("balanced")));
    }

    #[test]
    fn batteries_of_laptops_and_phones() {
        let fake = Fake::new(&[
            ("sys/class/power_supply/AC/type", "Mains"),
            ("sys/class/power_supply/AC/online", "0"),
            ("sys/class/power_supply/BAT0/type", "Battery"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("sys/class/power_supply/BAT0/capacity", "83"),
            ("sys/class/power_supply/BAT0/power_now", "9500000"),
            ("sys/class/power_supply/battery/type", "Battery"),
            ("sys/class/power_supply/battery/current_now", "-1500000"),
            ("sys/class/power_supply/battery/voltage_now", "4000000"),
            // A driver that means milliamperes.
            ("sys/class/power_supply/odd/type", "Battery"),
            ("sys/class/power_supply/odd/current_now", "500"),
            ("sys/class/power_supply/odd/voltage_now", "4000000"),
            ("sys/class/power_supply/mouse/type", "Battery"),
            ("sys/class/power_supply/mouse/scope", "Device"),
        ]);
        let supplies = fake.machine().state().supplies;
        let found: Vec<_> = supplies.iter().map(|s| (s.name.as_str(), s.watts, s.online)).collect();
        let expected =
            [("AC", None, Some(false)), ("BAT0", Some(9.5), None), ("battery", Some(6.0), None), ("odd", None, None)];
        assert_eq!(found, expected);
        assert_eq!((supplies[1].percent, supplies[1].status.as_deref()), (Some(83.0), Some("Discharging")));
    }

    #[test]
    fn pressure_is_a_share() {
        let psi = "some avg10=1.50 avg60=0.90 avg300=0.40 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        let fake = Fake::new(&[("proc/pressure/cpu", psi)]);
        assert_eq!(fake.machine().state().cpu_pressure, Some(0.015));
        for wrong in ["", "some", "some avg10=", "some avg10=-1", "some avg10=nan", "some avg10=1e9", "full avg10=1"] {
            assert_eq!(stalled(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_macos_prints() {
        let pmset =
            "System-wide power settings:\nCurrently in use:\n standby              1\n lowpowermode         1\n";
        assert_eq!(low_power_mode(pmset).as_deref(), Some("low power mode on"));
        assert_eq!(low_power_mode("sleep 1"), None);
        let therm =
            "Note: No thermal warning level has been recorded\nNote: No performance warning level has been recorded\n";
        let sentence = "No thermal warning level has been recorded; No performance warning level has been recorded";
        assert_eq!(one_sentence(therm), sentence);
        let ioreg = "+-o AppleSmartBattery  <class AppleSmartBattery>\n    {\n      \"ExternalConnected\" = No\n      \
                     \"IsCharging\" = No\n      \"CurrentCapacity\" = 50\n      \"MaxCapacity\" = 100\n      \
                     \"Voltage\" = 12000\n      \"InstantAmperage\" = 18446744073709550616\n    }";
        let battery = smart_battery(ioreg).unwrap();
        assert_eq!(battery.watts, Some(12.0), "1000 mA out of it");
        assert_eq!((battery.percent, battery.status.as_deref()), (Some(50.0), Some("Discharging")));
        assert_eq!(smart_battery("no battery"), None);
    }
}
