//! Which cores are fast, and keeping threads on them.
//!
//! Processors of phones, boards and laptops have cores of several kinds. Workers share the work evenly and meet at barriers, so
//! one on a slow core makes all the others wait: the team has as many workers as there are fast cores, and where the system
//! allows it they stay there. Threads are kept to the fast cores together and not to one each, so that the system can still move
//! one aside when another program wants its core.

use std::num::NonZeroUsize;

/// Physical cores of the fastest kind; `None` where the system does not tell.
pub(crate) fn fast_count() -> Option<NonZeroUsize> {
    #[cfg(target_os = "macos")]
    return macos_fast_count();
    #[cfg(not(target_os = "macos"))]
    NonZeroUsize::new(
        fastest(&kinds())?.iter().map(|core| core.siblings.as_str()).collect::<std::collections::HashSet<_>>().len(),
    )
}

/// Keeps the calling thread to the fast cores, if there are others. A hint: where the system refuses, nothing changes.
pub(crate) fn keep_to_fast() {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::sync::LazyLock;
        static FAST: LazyLock<Option<Vec<usize>>> = LazyLock::new(|| {
            let all = kinds();
            let fast = fastest(&all)?;
            (fast.len() < all.len()).then(|| fast.iter().map(|core| core.cpu).collect())
        });
        if let Some(fast) = &*FAST {
            keep_to(fast);
        }
    }
}

/// A logical processor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Core {
    cpu: usize,
    /// The processors of its physical core, in the system's words.
    siblings: String,
    /// What the system says of its speed, in any unit; 0 where it says nothing.
    speed: u64,
}

/// The logical processors, as Linux tells.
fn kinds() -> Vec<Core> {
    read_kinds(std::path::Path::new("/sys/devices/system/cpu"))
}

fn read_kinds(root: &std::path::Path) -> Vec<Core> {
    let mut cores = Vec::new();
    for cpu in 0..1024 {
        let read = |name: &str| std::fs::read_to_string(root.join(format!("cpu{cpu}")).join(name)).ok();
        let Some(siblings) = read("topology/thread_siblings_list") else { break };
        let number = |name: &str| read(name).and_then(|s| s.trim().parse().ok());
        let speed = number("cpu_capacity").or_else(|| number("cpufreq/cpuinfo_max_freq")).unwrap_or(0);
        cores.push(Core { cpu, siblings, speed });
    }
    cores
}

/// Those of the fastest kind.
fn fastest(cores: &[Core]) -> Option<Vec<Core>> {
    let best = cores.iter().map(|core| core.speed).max()?;
    // Cores of one kind differ by some per cent in their best clock; another kind is slower by a quarter or more.
    Some(cores.iter().filter(|core| core.speed * 4 >= best * 3).cloned().collect())
}

/// Keeps the calling thread to those of the given processors that it may run on.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn keep_to(cpus: &[usize]) {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a set of processors is plain bits, for which zeros are valid. The calls get its size and, as the thread, 0: the
    // calling one. `CPU_ISSET` and `CPU_SET` are given numbers below its size.
    unsafe {
        let (mut allowed, mut wanted): (libc::cpu_set_t, libc::cpu_set_t) = (std::mem::zeroed(), std::mem::zeroed());
        if libc::sched_getaffinity(0, size, &raw mut allowed) != 0 {
            return;
        }
        let mut any = false;
        for &cpu in cpus.iter().filter(|&&cpu| cpu < 8 * size) {
            if libc::CPU_ISSET(cpu, &allowed) {
                libc::CPU_SET(cpu, &mut wanted);
                any = true;
            }
        }
        // Whoever started us on the slow cores alone means it.
        if any {
            let _ = libc::sched_setaffinity(0, size, &raw const wanted);
        }
    }
}

/// The number of performance cores that macOS tells.
#[cfg(target_os = "macos")]
fn macos_fast_count() -> Option<NonZeroUsize> {
    let (mut count, mut size) = (0i32, size_of::<i32>());
    // SAFETY: the name ends with a zero, and the value is as large as the size says.
    let result = unsafe {
        libc::sysctlbyname(
            c"hw.perflevel0.physicalcpu".as_ptr(),
            (&raw mut count).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    (result == 0).then(|| usize::try_from(count).ok().and_then(NonZeroUsize::new)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(cores: &[(&str, u64)], file: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (cpu, (siblings, speed)) in cores.iter().enumerate() {
            let folder = root.path().join(format!("cpu{cpu}"));
            std::fs::create_dir_all(folder.join("topology")).unwrap();
            std::fs::create_dir_all(folder.join("cpufreq")).unwrap();
            std::fs::write(folder.join("topology/thread_siblings_list"), format!("{siblings}\n")).unwrap();
            if *speed > 0 {
                std::fs::write(folder.join(file), format!("{speed}\n")).unwrap();
            }
        }
        root
    }

    fn fast(root: &tempfile::TempDir) -> Vec<usize> {
        fastest(&read_kinds(root.path())).unwrap_or_default().iter().map(|core| core.cpu).collect()
    }

    #[test]
    fn fast_cores_are_told_from_slow_ones() {
        // RK3588: four A55, four A76 whose capacities differ a little.
        let board: Vec<_> = ["0", "1", "2", "3", "4", "5", "6", "7"]
            .into_iter()
            .zip([381, 381, 381, 381, 1024, 1024, 980, 980])
            .collect();
        assert_eq!(fast(&machine(&board, "cpu_capacity")), [4, 5, 6, 7]);
        // A laptop with hyper-threads on its performance cores, by clocks.
        let laptop = [("0-1", 5_000_000), ("0-1", 5_000_000), ("2-3", 4_900_000), ("2-3", 4_900_000), ("4", 3_600_000)];
        assert_eq!(fast(&machine(&laptop, "cpufreq/cpuinfo_max_freq")), [0, 1, 2, 3]);
        // One that says nothing of speed has one kind, and one that says nothing at all has none.
        assert_eq!(fast(&machine(&[("0", 0), ("1", 0)], "cpu_capacity")), [0, 1]);
        assert_eq!(fast(&machine(&[], "cpu_capacity")), [0usize; 0]);
    }

    /// On a thread of its own: it is kept to what it may run on already, and can still run.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_thread_that_is_kept_to_cores_runs_on() {
        let count = || std::thread::available_parallelism().unwrap().get();
        let before = count();
        let alone = std::thread::spawn(move || {
            keep_to_fast();
            keep_to(&[1023, usize::MAX]);
            assert!(count() >= 1);
            keep_to(&(0..8).collect::<Vec<_>>());
            count()
        });
        assert!((1..=before).contains(&alone.join().unwrap()));
    }
}
