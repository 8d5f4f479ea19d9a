//! Processor, caches, memory and system.

use super::{Machine, command};
use serde::Serialize;

/// What a machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// Operating system and architecture that this program was built for.
    pub system: String,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Board or device, where it has a name.
    pub board: Option<String>,
    /// Processor.
    pub cpu: Option<String>,
    /// Hardware threads that this process may use.
    pub cpus: Option<usize>,
    /// Every data cache, once per instance.
    pub caches: Vec<Cache>,
    /// Bytes of memory.
    pub memory_total: Option<u64>,
    /// Bytes that programs can have without others being pushed out.
    pub memory_available: Option<u64>,
}

/// A cache that holds data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 is nearest to the core.
    pub level: u32,
    /// Bytes.
    pub bytes: u64,
    /// Cores that share it, as the kernel writes lists; empty where unknown.
    pub cpus: String,
}

impl Facts {
    /// Bytes of all caches of the last level; `None` where no cache is known.
    pub fn last_level_cache(&self) -> Option<u64> {
        let last = self.caches.iter().map(|c| c.level).max()?;
        Some(self.caches.iter().filter(|c| c.level == last).fold(0, |sum, c| sum.saturating_add(c.bytes)))
    }
}

pub(super) fn facts(machine: &Machine) -> Facts {
    let cpuinfo = machine.text("proc/cpuinfo").unwrap_or_default();
    let (total, available) = memory(machine);
    Facts {
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        kernel: machine.text("proc/sys/kernel/osrelease").or_else(|| command::sysctl("kern.osrelease")),
        board: machine
            .text("proc/device-tree/model")
            .or_else(|| machine.text("sys/class/dmi/id/product_name"))
            .or_else(|| command::sysctl("hw.model")),
        cpu: processor(&cpuinfo).or_else(|| command::sysctl("machdep.cpu.brand_string")),
        cpus: std::thread::available_parallelism().ok().map(std::num::NonZeroUsize::get),
        caches: caches(machine),
        memory_total: total,
        memory_available: available,
    }
}

pub(super) fn memory(machine: &Machine) -> (Option<u64>, Option<u64>) {
    let text = machine.text("proc/meminfo").unwrap_or_default();
    let of = |key: &str| {
        let kib = text.lines().find_map(|l| l.strip_prefix(key)?.trim().strip_suffix("kB"))?;
        kib.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = of("MemTotal:").or_else(|| command::sysctl("hw.memsize")?.parse().ok());
    (total, of("MemAvailable:"))
}

fn caches(machine: &Machine) -> Vec<Cache> {
    let mut found: Vec<Cache> = Vec::new();
    for cpu in machine.numbered("sys/devices/system/cpu", "cpu") {
        for index in machine.numbered(&format!("{cpu}/cache"), "index") {
            let text = |name: &str| machine.text(&format!("{index}/{name}"));
            let cache = || {
                let data = text("type")? != "Instruction";
                let level = text("level")?.parse().ok()?;
                let bytes = text("size").as_deref().and_then(size)?;
                data.then(|| Cache { level, bytes, cpus: text("shared_cpu_list").unwrap_or_default() })
            };
            if let Some(cache) = cache()
                && !found.contains(&cache)
            {
                found.push(cache);
            }
        }
    }
    if found.is_empty() {
        // Apple's performance cores; the cache behind all of them is not told.
        let of =
            |name: &str, level| Some(Cache { level, bytes: command::sysctl(name)?.parse().ok()?, cpus: String::new() });
        found.extend(of("hw.perflevel0.l1dcachesize", 1));
        found.extend(of("hw.perflevel0.l2cachesize", 2));
    }
    found
}

/// A size as the kernel writes it: `512K`, `32M`.
fn size(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix('K') {
        Some(digits) => (digits, 1u64 << 10),
        None => text.strip_suffix('M').map_or((text, 1), |digits| (digits, 1 << 20)),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The processor in `/proc/cpuinfo`: by its name, or on ARM by the kinds of its cores.
fn processor(cpuinfo: &str) -> Option<String> {
    let field = |line: &str, key: &str| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key && !value.trim().is_empty()).then(|| value.trim().to_owned())
    };
    if let Some(name) = cpuinfo.lines().find_map(|l| field(l, "model name")) {
        // Old ARM kernels say only this.
        if !name.starts_with("ARMv8 Processor") && !name.starts_with("AArch64 Processor") {
            return Some(name);
        }
    }
    let mut kinds: Vec<(String, usize)> = Vec::new();
    let mut implementer = String::new();
    for line in cpuinfo.lines() {
        if let Some(code) = field(line, "CPU implementer") {
            implementer = code;
        }
        let Some(part) = field(line, "CPU part") else { continue };
        let name = core_name(&implementer, &part);
        match kinds.iter_mut().find(|(n, _)| *n == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    let kinds: Vec<_> = kinds.into_iter().map(|(name, count)| format!("{count}x {name}")).collect();
    (!kinds.is_empty()).then(|| kinds.join(" + "))
}

/// A core by the numbers of its identification register, as in Linux's `cputype.h`.
fn core_name(implementer: &str, part: &str) -> String {
    let arm = match part {
        "0xd03" => "Cortex-A53",
        "0xd05" => "Cortex-A55",
        "0xd08" => "Cortex-A72",
        "0xd09" => "Cortex-A73",
        "0xd0a" => "Cortex-A75",
        "0xd0b" => "Cortex-A76",
        "0xd0c" => "Neoverse-N1",
        "0xd0d" => "Cortex-A77",
        "0xd40" => "Neoverse-V1",
        "0xd41" => "Cortex-A78",
        "0xd44" => "Cortex-X1",
        "0xd46" => "Cortex-A510",
        "0xd47" => "Cortex-A710",
        "0xd48" => "Cortex-X2",
        "0xd49" => "Neoverse-N2",
        "0xd4d" => "Cortex-A715",
        "0xd4e" => "Cortex-X3",
        "0xd4f" => "Neoverse-V2",
        "0xd80" => "Cortex-A520",
        "0xd81" => "Cortex-A720",
        "0xd82" => "Cortex-X4",
        _ => "",
    };
    match (implementer, arm) {
        ("0x41", name) if !name.is_empty() => name.to_owned(),
        ("0x51", _) if part == "0x001" => "Oryon".to_owned(),
        _ => format!("core {implementer}/{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;

    #[test]
    fn processors_have_names() {
        assert_eq!(processor("processor\t: 0\nmodel name\t: A fast one\nflags\t: x").as_deref(), Some("A fast one"));
        let core = |part: &str| format!("processor : 0\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n");
        let rk3588 = core("0xd05").repeat(4) + &core("0xd0b").repeat(4);
        assert_eq!(processor(&rk3588).as_deref(), Some("4x Cortex-A55 + 4x Cortex-A76"));
        let old = format!("model name : ARMv8 Processor rev 1 (v8l)\n{}", core("0xfff"));
        assert_eq!(processor(&old).as_deref(), Some("1x core 0x41/0xfff"));
        assert_eq!(processor(""), None);
        assert_eq!(processor("nonsense\n:\nCPU part"), None);
    }

    #[test]
    fn caches_are_counted_once_per_instance() {
        let fake = Fake::new(&[]);
        for cpu in 0..4 {
            let file = |index: usize, name: &str| format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}/{name}");
            let caches = [
                (0, "1", "Data", "48K", cpu.to_string()),
                (1, "1", "Instruction", "32K", cpu.to_string()),
                (2, "2", "Unified", "1M", format!("{}-{}", cpu / 2 * 2, cpu / 2 * 2 + 1)),
            ];
            for (index, level, kind, size, shared) in caches {
                fake.write(&file(index, "level"), level);
                fake.write(&file(index, "type"), kind);
                fake.write(&file(index, "size"), size);
                fake.write(&file(index, "shared_cpu_list"), &shared);
            }
        }
        let facts = fake.machine().facts();
        let levels: Vec<_> = facts.caches.iter().map(|c| (c.level, c.bytes)).collect();
        assert_eq!(levels, [(1, 48 << 10), (2, 1 << 20), (1, 48 << 10), (1, 48 << 10), (2, 1 << 20), (1, 48 << 10)]);
        assert_eq!(facts.last_level_cache(), Some(2 << 20), "two of them");
        assert_eq!(
            (size("491520K"), size("12"), size("x"), size("18446744073709551615M")),
            (Some(480 << 20), Some(12), None, None)
        );
    }

    #[test]
    fn memory_is_in_bytes() {
        let fake =
            Fake::new(&[("proc/meminfo", "MemTotal:        8000 kB\nMemFree: 1 kB\nMemAvailable:    6000 kB\n")]);
        let facts = fake.machine().facts();
        assert_eq!((facts.memory_total, facts.memory_available), (Some(8000 << 10), Some(6000 << 10)));
    }
}
