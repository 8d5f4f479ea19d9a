//! What can be read here, and why something cannot.

use super::{EnergyMeter, EnergySource, Machine, State};
use serde::Serialize;
use std::fmt;
use std::io;

/// Why a sensor tells nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unavailable {
    /// This system has no such thing, or none that programs are shown.
    NotOnThisSystem,
    /// This machine has none.
    Missing,
    /// It is there, and what it says is no sensible value.
    Unreadable,
    /// It is there, for others.
    PermissionDenied,
}

impl Unavailable {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::PermissionDenied,
            _ => Self::Unreadable,
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotOnThisSystem => "not on this system",
            Self::Missing => "missing",
            Self::Unreadable => "unreadable",
            Self::PermissionDenied => "permission denied",
        })
    }
}

/// A sensor, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sensor {
    /// What it measures.
    pub name: &'static str,
    /// Where it is looked for.
    pub source: &'static str,
    /// What it says now, for people; `None`: nothing, see `why`.
    pub shows: Option<String>,
    /// Why it says nothing; `None` where it says something.
    pub why: Option<Unavailable>,
}

/// Systems that tell something.
#[derive(Clone, Copy)]
enum On {
    /// Linux and Android, from these files.
    Linux,
    Mac,
    LinuxAndMac,
    AllThree,
}

impl On {
    fn here(self) -> bool {
        let (linux, mac) = (cfg!(any(target_os = "linux", target_os = "android")), cfg!(target_os = "macos"));
        match self {
            Self::Linux => linux,
            Self::Mac => mac,
            Self::LinuxAndMac => linux || mac,
            Self::AllThree => linux || mac || cfg!(windows),
        }
    }
}

pub(super) fn availability(machine: &Machine) -> Vec<Sensor> {
    let state: State = machine.state();
    let sensor = |name, source, on: On, shows: Option<String>, files: Vec<String>| {
        let why = match (&shows, on.here()) {
            (Some(_), _) => None,
            (None, false) => Some(Unavailable::NotOnThisSystem),
            (None, true) => Some(worst(machine, &files)),
        };
        Sensor { name, source, shows, why }
    };
    let within = |folders: Vec<String>, file: &str| -> Vec<String> {
        folders.into_iter().map(|folder| format!("{folder}/{file}")).collect()
    };
    let zones = || within(machine.numbered("sys/class/thermal", "thermal_zone"), "temp");
    let monitors = machine.numbered("sys/class/hwmon", "hwmon").into_iter().flat_map(|chip| {
        let inputs = machine.names(&chip).into_iter().filter(|n| n.starts_with("temp") && n.ends_with("_input"));
        inputs.map(move |input| format!("{chip}/{input}")).collect::<Vec<_>>()
    });
    let temperatures = zones().into_iter().chain(monitors).collect();
    let clocks = |file: &str| within(super::power::domains(machine), file);
    let supplies = |file: &str| {
        let class = "sys/class/power_supply";
        within(machine.names(class).into_iter().map(|name| format!("{class}/{name}")).collect(), file)
    };
    let counters = machine.names("sys/class/powercap").into_iter().filter(|n| n.starts_with("intel-rapl:"));
    let counters = within(counters.map(|n| format!("sys/class/powercap/{n}")).collect(), "energy_uj");
    let cpus = || machine.numbered("sys/devices/system/cpu", "cpu");

    let hottest = state
        .hottest()
        .map(|t| format!("{:.1} °C, {} (hottest of {})", t.celsius, one_line(&t.sensor), state.temperatures.len()));
    let mhz = |x: Option<f64>| x.map(|mhz| format!("{mhz:.0} MHz"));
    let limit = state.clock.limit_mhz.zip(state.clock.hardware_mhz);
    let limit = limit.map(|(limit, hardware)| format!("{limit:.0} of {hardware:.0} MHz"));
    let power = state.supplies.iter().map(|s| {
        let online = s.online.map(|on| if on { "plugged in" } else { "not plugged in" });
        format!("{}: {}", one_line(&s.name), one_line(s.status.as_deref().or(online).unwrap_or("unknown")))
    });
    let power: Vec<_> = power.collect();
    let first = |value: fn(&super::Supply) -> Option<f64>, unit: &str| {
        state.supplies.iter().find_map(value).map(|x| format!("{x:.1} {unit}"))
    };
    let meter = EnergyMeter::new(machine).sample().map(|s| s.source());
    let energy = meter.map(|source| match source {
        EnergySource::Rapl => "counters of the processor".to_owned(),
        EnergySource::Battery => "the battery, while it discharges".to_owned(),
    });
    let facts = super::cpu::memory(machine);
    vec![
        sensor("temperature", "/sys/class/thermal, /sys/class/hwmon", On::Linux, hottest, temperatures),
        sensor(
            "clock",
            "cpufreq/scaling_cur_freq",
            On::Linux,
            mhz(state.clock.fastest_mhz),
            clocks("scaling_cur_freq"),
        ),
        sensor(
            "clock limit",
            "cpufreq/scaling_max_freq, cpuinfo_max_freq",
            On::Linux,
            limit,
            [clocks("scaling_max_freq"), clocks("cpuinfo_max_freq")].concat(),
        ),
        sensor(
            "throttle count",
            "cpu*/thermal_throttle",
            On::Linux,
            state.throttle_count.map(|n| n.to_string()),
            within(cpus(), "thermal_throttle/core_throttle_count"),
        ),
        sensor(
            "processor pressure",
            "/proc/pressure/cpu",
            On::Linux,
            state.cpu_pressure.map(|p| format!("{:.1} % of the last 10 s", 100.0 * p)),
            vec!["proc/pressure/cpu".into()],
        ),
        sensor("thermal pressure", "pmset -g therm", On::Mac, state.thermal_pressure.as_deref().map(one_line), vec![]),
        sensor(
            "mains and battery",
            "/sys/class/power_supply, ioreg, GetSystemPowerStatus",
            On::AllThree,
            (!power.is_empty()).then(|| power.join(", ")),
            supplies("type"),
        ),
        sensor("battery charge", "as above", On::AllThree, first(|s| s.percent, "%"), supplies("capacity")),
        sensor(
            "battery power",
            "power_supply/*/power_now, current_now; ioreg",
            On::LinuxAndMac,
            first(|s| s.watts, "W"),
            [supplies("power_now"), supplies("current_now")].concat(),
        ),
        sensor("energy", "/sys/class/powercap (RAPL), else the battery", On::LinuxAndMac, energy, counters),
        sensor(
            "frequency governor",
            "cpufreq/scaling_governor",
            On::Linux,
            (!state.governors.is_empty()).then(|| one_line(&state.governors.join(", "))),
            clocks("scaling_governor"),
        ),
        sensor(
            "power profile",
            "platform_profile, pmset -g",
            On::LinuxAndMac,
            state.profile.as_deref().map(one_line),
            vec!["sys/firmware/acpi/platform_profile".into()],
        ),
        sensor(
            "memory",
            "/proc/meminfo, sysctl",
            On::LinuxAndMac,
            facts.0.map(|total| format!("{:.1} GiB", total as f64 / f64::from(1 << 30))),
            vec!["proc/meminfo".into()],
        ),
    ]
}

/// Why none of these files says anything: the reason that tells most.
fn worst(machine: &Machine, files: &[String]) -> Unavailable {
    let why = |file: &String| match machine.look(file) {
        // There is text, but nobody could make sense of it.
        Ok(_) => Unavailable::Unreadable,
        Err(why) => why,
    };
    files.iter().map(why).max().unwrap_or(Unavailable::Missing)
}

/// Names and words of a driver, without what would break a line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;

    fn of<'a>(sensors: &'a [Sensor], name: &str) -> &'a Sensor {
        sensors.iter().find(|s| s.name == name).unwrap()
    }

    const PHONE: [(&str, &str); 9] = [
        ("sys/class/thermal/thermal_zone0/type", "cpu-1-0"),
        ("sys/class/thermal/thermal_zone0/temp", "41200"),
        ("sys/class/power_supply/battery/type", "Battery"),
        ("sys/class/power_supply/battery/status", "Discharging"),
        ("sys/class/power_supply/battery/capacity", "77"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1800000"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "1500000"),
        ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2000000"),
        ("proc/pressure/cpu", "some avg10=12.00 avg60=0.00 avg300=0.00 total=0"),
    ];

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_there_and_what_is_not() {
        let sensors = Fake::new(&PHONE).machine().availability();
        let shows = |name: &str| of(&sensors, name).shows.as_deref();
        assert_eq!(shows("temperature"), Some("41.2 °C, cpu-1-0 (hottest of 1)"));
        assert_eq!(shows("clock limit"), Some("1500 of 2000 MHz"));
        assert_eq!(shows("battery charge"), Some("77.0 %"));
        assert_eq!(shows("mains and battery"), Some("battery: Discharging"));
        assert_eq!(shows("processor pressure"), Some("12.0 % of the last 10 s"));
        let why = |name: &str| of(&sensors, name).why.unwrap();
        assert_eq!(why("energy"), Unavailable::Missing);
        assert_eq!(why("battery power"), Unavailable::Missing);
        assert_eq!(why("thermal pressure"), Unavailable::NotOnThisSystem);
        for s in &sensors {
            assert_eq!(s.shows.is_some(), s.why.is_none(), "{s:?}");
        }
    }

    /// Everything that a file can be instead of a number: nothing panics or waits, and all of it is told apart from what is missing.
    #[test]
    #[cfg(target_os = "linux")]
    fn hostile_files_are_unreadable() {
        let huge = "9".repeat(100_000);
        for text in ["", "\n", "garbage", &huge, "-99999999999999999999", "-1", "NaN", "inf", "1e999", "\u{0}\u{0}"] {
            let fake = Fake::new(&PHONE);
            for (path, _) in PHONE {
                fake.write(path, text);
            }
            let sensors = fake.machine().availability();
            for name in ["temperature", "clock limit", "processor pressure"] {
                let sensor = of(&sensors, name);
                let cold = name == "temperature" && text == "-1";
                assert!(cold || sensor.why == Some(Unavailable::Unreadable), "{text:.20}: {sensor:?}");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn folders_devices_pipes_and_bytes_are_unreadable() {
        use std::os::unix::fs::symlink;
        type Make = fn(&std::path::Path);
        let makers: [Make; 5] = [
            |path| std::fs::create_dir(path).unwrap(),
            // Endless, each in its way.
            |path| symlink("/dev/zero", path).unwrap(),
            |path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success()),
            |path| symlink(path, path).unwrap(),
            |path| std::fs::write(path, [0xff, 0xfe, 0x00, 0x80]).unwrap(),
        ];
        for (i, make) in makers.iter().enumerate() {
            let fake = Fake::new(&PHONE);
            for (path, _) in PHONE {
                let path = fake.folder.path().join(path);
                std::fs::remove_file(&path).unwrap();
                make(&path);
            }
            let sensors = fake.machine().availability();
            for name in ["temperature", "clock limit", "battery charge", "processor pressure"] {
                assert_eq!(of(&sensors, name).why, Some(Unavailable::Unreadable), "{i}: {name}");
            }
            let State { temperatures, clock, cpu_pressure, supplies, .. } = fake.machine().state();
            assert_eq!((temperatures, clock, cpu_pressure), Default::default(), "{i}");
            assert!(supplies.iter().all(|s| s.kind != "Battery" && s.percent.is_none()), "{i}");
        }
    }

    /// A sparse file of a terabyte is read no further than any pseudo file is long.
    #[test]
    #[cfg(target_os = "linux")]
    fn endless_files_end() {
        let fake = Fake::new(&[("sys/class/thermal/thermal_zone0/temp", "1")]);
        let path = fake.folder.path().join("sys/class/thermal/thermal_zone0/temp");
        std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        let _ = fake.machine().availability();
    }

    #[test]
    fn what_is_unplugged_between_two_reads_is_gone() {
        let fake = Fake::new(&PHONE);
        let machine = fake.machine();
        let before = machine.state();
        std::fs::remove_dir_all(fake.folder.path().join("sys/class/power_supply")).unwrap();
        std::fs::remove_dir_all(fake.folder.path().join("sys/class/thermal/thermal_zone0")).unwrap();
        if cfg!(target_os = "linux") {
            let after = machine.state();
            assert_eq!((before.supplies[0].percent, before.hottest().map(|t| t.celsius)), (Some(77.0), Some(41.2)));
            assert_eq!((after.supplies.len(), after.temperatures.len()), (0, 0));
            assert_eq!(after.clock, before.clock);
            assert_eq!(of(&machine.availability(), "battery charge").why, Some(Unavailable::Missing));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn energy_is_the_battery_where_there_are_no_counters() {
        let fake = Fake::new(&[
            ("sys/class/power_supply/BAT0/type", "Battery"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("sys/class/power_supply/BAT0/power_now", "8000000"),
        ]);
        let shows = |fake: &Fake| of(&fake.machine().availability(), "energy").shows.clone();
        assert_eq!(shows(&fake).as_deref(), Some("the battery, while it discharges"));
        fake.write("sys/class/power_supply/BAT0/status", "Charging");
        assert_eq!(shows(&fake), None);
    }

    #[test]
    fn reasons_come_from_the_system() {
        let of = |kind: io::ErrorKind| Unavailable::of(&kind.into());
        assert_eq!(of(io::ErrorKind::NotFound), Unavailable::Missing);
        assert_eq!(of(io::ErrorKind::PermissionDenied), Unavailable::PermissionDenied);
        assert_eq!(of(io::ErrorKind::WouldBlock), Unavailable::Unreadable);
        assert!(Unavailable::PermissionDenied > Unavailable::Missing);
    }

    /// (Root may read everything, and then there is nothing to see.)
    #[test]
    #[cfg(target_os = "linux")]
    fn files_for_others_are_denied() {
        use std::os::unix::fs::PermissionsExt;
        let fake = Fake::new(&[
            ("sys/class/powercap/intel-rapl:0/name", "package-0"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "5"),
        ]);
        let path = fake.folder.path().join("sys/class/powercap/intel-rapl:0/energy_uj");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
        let sensors = fake.machine().availability();
        match std::fs::File::open(&path) {
            Ok(_) => assert!(of(&sensors, "energy").shows.is_some()),
            Err(_) => assert_eq!(of(&sensors, "energy").why, Some(Unavailable::PermissionDenied)),
        }
    }
}
