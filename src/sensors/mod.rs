//! What the machine tells of itself: processor, caches, memory, temperatures, clocks, power and energy.
//!
//! Only what can be read without special rights, and nothing is made up: what is not readable is `None`, or missing from its list;
//! [`Machine::availability`] says why. On Linux and Android everything comes from `/proc` and `/sys`; on macOS from `sysctl`, `pmset`
//! and `ioreg`; on Windows there are mains and battery; elsewhere there is little to read.
//!
//! Reading takes milliseconds on Linux and a tenth of a second on macOS, whose programs must be run. Who needs readings while
//! tokens are computed has a [`Poller`] read them on a thread of its own.

mod availability;
mod command;
mod cpu;
mod energy;
mod poller;
mod power;
mod thermal;
mod windows;

pub use availability::{Sensor, Unavailable};
pub use cpu::{Cache, Facts};
pub use energy::{EnergyMeter, EnergySample, EnergySource};
pub use poller::{Polled, Poller};
pub use power::{Clock, Supply};
pub use thermal::{Temperature, hottest};

use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a pseudo file that are looked at. `/proc/cpuinfo` of a large server is the longest of them.
const LONGEST: u64 = 4 << 20;

/// A machine, read through its pseudo files.
#[derive(Debug, Clone)]
pub struct Machine {
    root: PathBuf,
}

/// What changes while the machine works.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct State {
    /// Every sensor that gives a sensible number.
    pub temperatures: Vec<Temperature>,
    /// Clocks of the processor.
    pub clock: Clock,
    /// Frequency governors in force, each once.
    pub governors: Vec<String>,
    /// ACPI platform profile, or macOS's low power mode.
    pub profile: Option<String>,
    /// How often the processor has throttled since the machine started, summed over its cores.
    pub throttle_count: Option<u64>,
    /// Share of the last ten seconds in which some program waited for a processor, by Linux's pressure stall information.
    pub cpu_pressure: Option<f64>,
    /// What the system says of its thermal state, where it says it in words: on macOS what `pmset -g therm` prints.
    pub thermal_pressure: Option<String>,
    /// Batteries and mains.
    pub supplies: Vec<Supply>,
}

impl State {
    /// The hottest sensor of the processor, or of all sensors where none has the name of one.
    pub fn hottest(&self) -> Option<&Temperature> {
        thermal::hottest(&self.temperatures)
    }
}

impl Machine {
    /// The machine that this program runs on.
    pub fn here() -> Self {
        Self::at("/")
    }

    /// A machine whose `proc` and `sys` lie in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// What does not change.
    pub fn facts(&self) -> Facts {
        cpu::facts(self)
    }

    /// What does.
    pub fn state(&self) -> State {
        State {
            temperatures: thermal::temperatures(self),
            clock: power::clock(self),
            governors: power::governors(self),
            profile: power::profile(self),
            throttle_count: power::throttle_count(self),
            cpu_pressure: power::cpu_pressure(self),
            thermal_pressure: power::thermal_pressure(self),
            supplies: power::supplies(self),
        }
    }

    /// What can be read of a machine and, where something cannot, why.
    pub fn availability(&self) -> Vec<Sensor> {
        availability::availability(self)
    }

    /// A pseudo file without the white space and zero bytes around its text.
    fn text(&self, path: &str) -> Option<String> {
        self.look(path).ok()
    }

    /// The same, or why there is none. Never waits: not for what is no file, and not for more than [`LONGEST`] bytes.
    fn look(&self, path: &str) -> Result<String, Unavailable> {
        let mut options = std::fs::File::options();
        #[cfg(any(target_os = "linux", target_os = "android", target_os = "macos"))]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK);
        let file = options.read(true).open(self.root.join(path)).map_err(|e| Unavailable::of(&e))?;
        if !file.metadata().map_err(|e| Unavailable::of(&e))?.is_file() {
            return Err(Unavailable::Unreadable);
        }
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(|e| Unavailable::of(&e))?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        if text.is_empty() { Err(Unavailable::Unreadable) } else { Ok(text.to_owned()) }
    }

    fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// Names in a folder that are `prefix` and a number, in the order of the numbers.
    fn numbered(&self, folder: &str, prefix: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let mut found: Vec<(u64, String)> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let digits = name.strip_prefix(prefix)?;
                Some((digits.parse().ok()?, name))
            })
            .collect();
        found.sort();
        found.into_iter().map(|(_, name)| format!("{folder}/{name}")).collect()
    }

    /// All names in a folder, in order.
    fn names(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

/// A made-up machine for tests: files under a temporary folder.
#[cfg(test)]
pub(crate) struct Fake {
    folder: tempfile::TempDir,
}

#[cfg(test)]
impl Fake {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        files.iter().for_each(|(path, text)| fake.write(path, text));
        fake
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::at(self.folder.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing readable is nothing, not zeros.
    #[test]
    fn an_empty_machine_tells_nothing() {
        let fake = Fake::new(&[]);
        // (On macOS the commands answer, whatever the root.)
        if cfg!(not(target_os = "macos")) {
            assert_eq!(fake.machine().state(), State::default());
            let facts = fake.machine().facts();
            assert_eq!((facts.cpu, facts.memory_total, facts.caches.len()), (None, None, 0));
            assert!(EnergyMeter::new(&fake.machine()).sample().is_none());
        }
    }

    #[test]
    fn numbered_folders_come_in_their_order() {
        let fake =
            Fake::new(&[("sys/a/cpu10/x", ""), ("sys/a/cpu9/x", ""), ("sys/a/cpufreq/x", ""), ("sys/a/cpu/x", "")]);
        assert_eq!(fake.machine().numbered("sys/a", "cpu"), ["sys/a/cpu9", "sys/a/cpu10"]);
    }

    #[test]
    fn text_loses_what_device_trees_add() {
        let fake = Fake::new(&[("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"), ("empty", "\n")]);
        assert_eq!(fake.machine().text("proc/device-tree/model").unwrap(), "Raspberry Pi 5 Model B Rev 1.0");
        assert_eq!(fake.machine().text("empty"), None);
    }
}
