//! `--device auto`: which of GPU and CPU is faster, measured once and remembered.
//!
//! What decides is here; what opens, loads and runs is given.

use crate::cli::RepackFlag;
use crate::files::AtomicFile;
use crate::gpu::{DeviceInfo, Kind};
use crate::hash::Fnv;
use crate::model::Model;
use crate::sensors::Machine;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// What the files say they are.
const FORMAT: &str = "rdt-device 1";
/// Bytes of a file that are read; one has some hundred.
const LONGEST: u64 = 64 << 10;

/// The faster one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Faster {
    Cpu,
    Gpu,
}

/// Milliseconds per generated token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Timings {
    pub(super) gpu_ms: f64,
    pub(super) cpu_ms: f64,
}

impl Timings {
    fn faster(&self) -> Faster {
        if self.gpu_ms < self.cpu_ms { Faster::Gpu } else { Faster::Cpu }
    }

    fn is_sound(&self) -> bool {
        [self.gpu_ms, self.cpu_ms].iter().all(|ms| ms.is_finite() && *ms > 0.0)
    }
}

/// What came of measuring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Measured {
    /// Per generated token.
    Milliseconds(Timings),
    /// Why the GPU cannot take the model.
    Failed(String),
}

impl Measured {
    fn faster(&self) -> Faster {
        match self {
            Self::Milliseconds(timings) => timings.faster(),
            Self::Failed(_) => Faster::Cpu,
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Milliseconds(timings) => timings.is_sound(),
            Self::Failed(_) => true,
        }
    }
}

/// What timings depend on. Other weights of the same shape take the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    /// Whose kernels they were.
    program: String,
    /// Were they made to be debugged?
    debug: bool,
    gpu: String,
    backend: String,
    driver: String,
    cpu: Option<String>,
    isa: String,
    threads: usize,
    repack: RepackFlag,
    architecture: String,
    /// A hash of the names, types and shapes of all tensors.
    tensors: String,
}

impl Key {
    pub(super) fn of(gpu: &DeviceInfo, model: &Model, threads: NonZeroUsize, repack: RepackFlag) -> Self {
        let mut hash = Fnv::new();
        for info in &model.header().tensors {
            hash.add(info.name.as_bytes());
            hash.add_numbers(std::iter::once(info.ty as usize).chain(info.dims.iter().copied()));
        }
        Self {
            program: env!("CARGO_PKG_VERSION").into(),
            debug: cfg!(debug_assertions),
            gpu: gpu.name.clone(),
            backend: gpu.backend.clone(),
            driver: gpu.driver.clone(),
            cpu: Machine::here().facts().cpu,
            isa: model.kernels().isa.to_string(),
            threads: threads.get(),
            repack,
            architecture: model.config().architecture.clone(),
            tensors: hash.to_string(),
        }
    }

    fn path(&self, folder: &Path) -> Result<PathBuf, serde_json::Error> {
        let mut hash = Fnv::new();
        hash.add(&serde_json::to_vec(self)?);
        Ok(folder.join(format!("device-{hash}.json")))
    }
}

/// A file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: String,
    measured: Key,
    result: Measured,
    faster: Faster,
}

/// What was remembered; `None`: nothing, or nothing that makes sense, and it is measured anew.
fn recall(path: &Path, key: &Key) -> Option<Faster> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
    let Written { format, measured, result, .. } = serde_json::from_slice(&text).ok()?;
    (format == FORMAT && measured == *key && result.is_sound()).then(|| result.faster())
}

fn remember(path: &Path, key: Key, result: Measured) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let faster = result.faster();
    let written = Written { format: FORMAT.into(), measured: key, result, faster };
    let mut file = AtomicFile::create(path)?;
    serde_json::to_writer_pretty(&mut file, &written)?;
    file.write_all(b"\n")?;
    Ok(file.commit()?)
}

/// Chooses between the CPU and the first of `gpus` that is no software. `measure` runs the model on that one and on the CPU, which
/// is asked for only where `folder` has no answer under the `key`; an error of it is not the GPU's, and is not remembered. `say` is
/// shown lines for people: none, where there is nothing to choose or the answer is known.
pub(super) fn choose(
    gpus: &[DeviceInfo],
    key: impl FnOnce(&DeviceInfo) -> Key,
    folder: Option<&Path>,
    measure: impl FnOnce(&DeviceInfo) -> Result<Measured, String>,
    say: &mut dyn FnMut(&str),
) -> Faster {
    let Some(gpu) = gpus.iter().find(|gpu| gpu.kind != Kind::Software) else { return Faster::Cpu };
    let key = key(gpu);
    let path = folder.and_then(|folder| key.path(folder).ok());
    if let Some(faster) = path.as_deref().and_then(|path| recall(path, &key)) {
        return faster;
    }
    say(&format!("measuring this model on {} and on the CPU, once", gpu.name));
    let result = match measure(gpu) {
        Ok(result) => result,
        Err(why) => {
            say(&format!("{why}; using the CPU"));
            return Faster::Cpu;
        }
    };
    let (faster, what) = (result.faster(), result.to_string());
    let kept = match &path {
        Some(path) => match remember(path, key, result) {
            Ok(()) => format!("remembered in {}", path.display()),
            Err(e) => format!("not remembered: {e}"),
        },
        None => "not remembered: there is no cache folder; name one in RDT_CACHE_DIR".into(),
    };
    let name = match faster {
        Faster::Cpu => "CPU",
        Faster::Gpu => "GPU",
    };
    say(&format!("{what}; using the {name} ({kept})"));
    faster
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Milliseconds(Timings { gpu_ms, cpu_ms }) => {
                let [gpu, cpu] = [gpu_ms, cpu_ms].map(|ms| three_digits(*ms));
                write!(f, "generation: GPU {gpu} ms, CPU {cpu} ms per token")
            }
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// A number with three digits that count, and all of those before the point.
fn three_digits(x: f64) -> String {
    let digits = (2.0 - x.abs().log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{x:.digits$}")
}

/// Can there be a GPU at all? Asking drivers takes them into memory, and software that acts as a GPU with them: where the system
/// lists its devices it is asked first.
pub(super) fn may_have_gpu() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    // Kernel drivers: those with a render node, NVIDIA's own, WSL's, and those of boards.
    const NAMES: [&str; 7] = ["nvidia", "nvhost", "nvgpu", "dxg", "mali", "kgsl", "pvr"];
    let has = |folder: &str, names: &[&str]| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|e| e.file_name()).any(|name| names.iter().any(|n| name.to_string_lossy().starts_with(n)))
    };
    has("/dev/dri", &["render"]) || has("/dev", &NAMES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Abilities;

    fn gpu(name: &str, kind: Kind) -> DeviceInfo {
        let abilities = Abilities { subgroups: true, f16: true, packed_dot: true };
        let (backend, driver) = ("vulkan".into(), "1.0".into());
        DeviceInfo { name: name.into(), backend, kind, driver, max_binding_bytes: 1 << 30, abilities }
    }

    fn key(gpu: &DeviceInfo) -> Key {
        Key {
            program: "1".into(),
            debug: false,
            gpu: gpu.name.clone(),
            backend: gpu.backend.clone(),
            driver: gpu.driver.clone(),
            cpu: Some("Cortex-A76".into()),
            isa: "scalar".into(),
            threads: 4,
            repack: RepackFlag::Auto,
            architecture: "huginn".into(),
            tensors: "0".into(),
        }
    }

    /// A choice: what it was, how often it was measured, and what was said.
    fn chosen(
        gpus: &[DeviceInfo],
        folder: Option<&Path>,
        result: Result<(f64, f64), &str>,
    ) -> (Faster, usize, Vec<String>) {
        let (mut measured, mut said) = (0, Vec::new());
        let measure = |_: &DeviceInfo| {
            measured += 1;
            Ok(match result {
                Ok((gpu_ms, cpu_ms)) => Measured::Milliseconds(Timings { gpu_ms, cpu_ms }),
                Err(why) => Measured::Failed(why.to_owned()),
            })
        };
        let faster = choose(gpus, key, folder, measure, &mut |line| said.push(line.to_owned()));
        (faster, measured, said)
    }

    fn only_file(folder: &Path) -> PathBuf {
        let mut entries = fs::read_dir(folder).unwrap();
        let path = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        path
    }

    #[test]
    fn without_a_gpu_nothing_is_done_or_said() {
        let dir = tempfile::tempdir().unwrap();
        for gpus in [vec![], vec![gpu("llvmpipe", Kind::Software)]] {
            assert_eq!(chosen(&gpus, Some(dir.path()), Ok((1.0, 9.0))), (Faster::Cpu, 0, vec![]));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_was_measured_is_remembered() {
        for (timings, faster, name) in [((3.25, 9.8), Faster::Gpu, "GPU"), ((9.8, 3.25), Faster::Cpu, "CPU")] {
            let dir = tempfile::tempdir().unwrap();
            // A folder that is not there yet.
            let folder = dir.path().join("rdt");
            let gpus = [gpu("llvmpipe", Kind::Software), gpu("Arc", Kind::Integrated)];
            let (first, measured, said) = chosen(&gpus, Some(&folder), Ok(timings));
            assert_eq!((first, measured, said.len()), (faster, 1, 2), "{said:?}");
            assert_eq!(said[0], "measuring this model on Arc and on the CPU, once");
            let path = only_file(&folder);
            let (gpu_ms, cpu_ms) = timings;
            assert_eq!(
                said[1],
                format!(
                    "generation: GPU {} ms, CPU {} ms per token; using the {name} (remembered in {})",
                    three_digits(gpu_ms),
                    three_digits(cpu_ms),
                    path.display()
                )
            );
            let written: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(
                (&written["result"]["milliseconds"]["gpu_ms"], &written["measured"]["gpu"]),
                (&gpu_ms.into(), &"Arc".into())
            );
            assert_eq!(written["faster"], name.to_lowercase());
            // Whatever it would be now.
            assert_eq!(chosen(&gpus, Some(&folder), Ok((cpu_ms, gpu_ms))), (faster, 0, vec![]));
        }
    }

    #[test]
    fn another_driver_is_measured_anew() {
        let dir = tempfile::tempdir().unwrap();
        let old = gpu("Arc", Kind::Integrated);
        let new = DeviceInfo { driver: "2.0".into(), ..old.clone() };
        assert_eq!(chosen(std::slice::from_ref(&old), Some(dir.path()), Ok((9.0, 1.0))).0, Faster::Cpu);
        let (faster, measured, _) = chosen(&[new], Some(dir.path()), Ok((1.0, 9.0)));
        assert_eq!((faster, measured), (Faster::Gpu, 1));
        let (faster, measured, _) = chosen(&[old], Some(dir.path()), Ok((1.0, 9.0)));
        assert_eq!((faster, measured), (Faster::Cpu, 0), "the old one is not forgotten");
    }

    #[test]
    fn a_damaged_file_is_written_anew() {
        let gpus = [gpu("Arc", Kind::Integrated)];
        let dir = tempfile::tempdir().unwrap();
        chosen(&gpus, Some(dir.path()), Ok((9.0, 1.0)));
        let path = only_file(dir.path());
        let good = fs::read_to_string(&path).unwrap();
        let damaged = [
            String::new(),
            "{}".into(),
            good[..good.len() / 2].into(),
            "[".repeat(100_000),
            good.replace("9.0", "-9.0"),
            good.replace("9.0", "\"9\""),
            good.replace(FORMAT, "rdt-device 2"),
            good.replace("Arc", "Another"),
        ];
        for text in damaged {
            fs::write(&path, &text).unwrap();
            let (faster, measured, _) = chosen(&gpus, Some(dir.path()), Ok((9.0, 1.0)));
            assert_eq!((faster, measured), (Faster::Cpu, 1), "{text}");
            assert_eq!(fs::read_to_string(&path).unwrap(), good);
        }
    }

    #[test]
    fn a_gpu_that_fails_leaves_it_to_the_cpu() {
        let dir = tempfile::tempdir().unwrap();
        let gpus = [gpu("Arc", Kind::Integrated)];
        let (faster, measured, said) = chosen(&gpus, Some(dir.path()), Err("cannot put the model on Arc: no memory"));
        assert_eq!((faster, measured), (Faster::Cpu, 1));
        let path = only_file(dir.path());
        let line = format!("cannot put the model on Arc: no memory; using the CPU (remembered in {})", path.display());
        assert_eq!(said[1..], [line]);
        assert!(fs::read_to_string(&path).unwrap().contains("\"failed\": \"cannot put the model on Arc: no memory\""));
        assert_eq!(chosen(&gpus, Some(dir.path()), Ok((1.0, 9.0))), (Faster::Cpu, 0, vec![]), "it is known");
    }

    #[test]
    fn what_is_not_the_gpus_fault_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (mut said, gpus) = (Vec::new(), [gpu("Arc", Kind::Integrated)]);
        let measure = |_: &DeviceInfo| Err("the file has gone".to_owned());
        let faster = choose(&gpus, key, Some(dir.path()), measure, &mut |line| said.push(line.to_owned()));
        assert_eq!((faster, &said[1..]), (Faster::Cpu, &["the file has gone; using the CPU".to_owned()][..]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn milliseconds_have_three_digits() {
        let shown = [0.01234, 0.5, 3.25, 9.8, 31.26, 123.4, 4321.0].map(three_digits);
        assert_eq!(shown, ["0.0123", "0.500", "3.25", "9.80", "31.3", "123", "4321"]);
    }

    #[test]
    fn a_choice_that_cannot_be_kept_is_made_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for folder in [None, Some(file.as_path())] {
            let (faster, measured, said) = chosen(&[gpu("Arc", Kind::Discrete)], folder, Ok((1.0, 9.0)));
            assert_eq!((faster, measured), (Faster::Gpu, 1));
            assert!(said[1].contains("using the GPU (not remembered: "), "{said:?}");
        }
    }
}
