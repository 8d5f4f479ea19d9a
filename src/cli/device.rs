//! Where a model runs: on the CPU, on a GPU, or on whichever of the two is faster.
//!
//! This is settled before weights are interleaved for the CPU, which a model on a GPU has no use for.

#[cfg(feature = "gpu")]
mod auto;
#[cfg(test)]
pub(super) mod fake;
#[cfg(feature = "gpu")]
mod measure;

use super::{Contents, LoadFlags};
#[cfg(feature = "gpu")]
use super::{TELL_FROM, human_bytes, one_line};
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::kernels::{self, Kernels};
use crate::model::{Model, Session};
use clap::Args;
#[cfg(feature = "gpu")]
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::cell::Cell;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;
#[cfg(feature = "gpu")]
use std::time::Instant;

/// What `--device` takes, in the words of the help.
#[cfg(feature = "gpu")]
pub(super) const DEVICE_HELP: &str = "Where the model runs: cpu; gpu, the likely fastest one; gpu:NAME, one whose name \
    contains NAME (rdt-inspect --devices lists them); or auto, whichever of the two is faster: measured once for each kind \
    of model, and kept in the user's cache folder (or RDT_CACHE_DIR)";
#[cfg(not(feature = "gpu"))]
pub(super) const DEVICE_HELP: &str = "Where the model runs: on the CPU, which auto means too; this program was \
    built without GPU support (cargo's feature 'gpu')";

/// Where the model runs.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Device")]
pub struct DeviceFlags {
    /// Where the model runs.
    #[arg(long, value_name = "auto|cpu|gpu[:NAME]", default_value_t, help = DEVICE_HELP)]
    pub device: DeviceChoice,
}

/// A value of `--device`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Whichever is faster.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU: the one whose name contains this, or the likely fastest.
    Gpu(Option<String>),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(None)),
            _ => match text.strip_prefix("gpu:").map(str::trim) {
                Some(name) if !name.is_empty() => Ok(Self::Gpu(Some(name.to_owned()))),
                _ => Err("expected auto, cpu, gpu or gpu:NAME".into()),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(None) => f.write_str("gpu"),
            Self::Gpu(Some(name)) => write!(f, "gpu:{name}"),
        }
    }
}

/// A choice that can be had: its GPU is open.
#[derive(Debug, Clone)]
pub enum Place {
    /// Whichever is faster.
    Auto,
    /// The CPU.
    Cpu,
    /// This one.
    #[cfg(feature = "gpu")]
    Gpu(Arc<Gpu>),
}

impl DeviceChoice {
    /// Opens the GPU, if one is asked for: before a model is read, so that what cannot be had is told at once.
    ///
    /// # Errors
    /// There is no such GPU, or it cannot be opened; the program was built without support for any.
    pub fn open(&self) -> anyhow::Result<Place> {
        match self {
            Self::Auto => Ok(Place::Auto),
            Self::Cpu => Ok(Place::Cpu),
            #[cfg(feature = "gpu")]
            Self::Gpu(name) => Ok(Place::Gpu(Gpu::open(name.as_deref())?)),
            #[cfg(not(feature = "gpu"))]
            Self::Gpu(_) => {
                anyhow::bail!("--device {self}: this program was built without GPU support (cargo's feature 'gpu')")
            }
        }
    }
}

impl Place {
    /// Opens a model and makes it ready to run here. A GPU that does not take it leaves it to the CPU, which is told in a line.
    /// `threads` is what sessions will ask for, if they do.
    ///
    /// # Errors
    /// The model cannot be opened; as [`LoadFlags::open`].
    pub(super) fn ready(
        &self,
        load: LoadFlags,
        contents: &Contents,
        threads: Option<NonZeroUsize>,
    ) -> anyhow::Result<Arc<Model>> {
        let _ = threads;
        match self {
            #[cfg(feature = "gpu")]
            Self::Auto => auto(load, contents, threads),
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => on_gpu(load, contents.open()?, || Ok(Arc::clone(gpu))),
            _ => load.ready(contents.open()?),
        }
    }

    /// As [`ready`](Self::ready), for programs whose results would be of the wrong device otherwise: a GPU that does not take the
    /// model is an error where it was asked for.
    ///
    /// # Errors
    /// As [`ready`](Self::ready), and that.
    pub(super) fn ready_here(
        &self,
        load: LoadFlags,
        contents: &Contents,
        threads: Option<NonZeroUsize>,
    ) -> anyhow::Result<Arc<Model>> {
        match self {
            #[cfg(feature = "gpu")]
            Self::Gpu(gpu) => {
                let mut model = contents.open()?;
                put(gpu, &mut model)?.iter().for_each(|line| say(line));
                Ok(Arc::new(model))
            }
            _ => self.ready(load, contents, threads),
        }
    }

    /// Was a GPU asked for?
    pub(super) fn is_gpu(&self) -> bool {
        !matches!(self, Self::Auto | Self::Cpu)
    }

    /// Is it the same one, by whatever name it was asked for?
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Auto, Self::Auto) | (Self::Cpu, Self::Cpu) => true,
            #[cfg(feature = "gpu")]
            (Self::Gpu(a), Self::Gpu(b)) => {
                let [a, b] = [a, b].map(|gpu| gpu.info());
                (&a.name, &a.backend) == (&b.name, &b.backend)
            }
            _ => false,
        }
    }
}

/// Puts a model on a GPU, or leaves it to the CPU if that fails.
#[cfg(feature = "gpu")]
fn on_gpu(
    load: LoadFlags,
    mut model: Model,
    open: impl FnOnce() -> Result<Arc<Gpu>, gpu::Error>,
) -> anyhow::Result<Arc<Model>> {
    match open().and_then(|gpu| put(&gpu, &mut model)) {
        Ok(said) => {
            said.iter().for_each(|line| say(line));
            Ok(Arc::new(model))
        }
        Err(e) => {
            say(&format!("{e}; using the CPU"));
            load.ready(model)
        }
    }
}

/// The device that `--device auto` stands for, with the model on it.
#[cfg(feature = "gpu")]
fn auto(load: LoadFlags, contents: &Contents, threads: Option<NonZeroUsize>) -> anyhow::Result<Arc<Model>> {
    let model = contents.open()?;
    if !auto::may_have_gpu() {
        return load.ready(model);
    }
    // Sessions will do it; until then the system would count more threads than they get.
    super::stay_on_fast_cores();
    let mut kept = None;
    let faster = auto::choose(
        &gpu::devices(),
        |info| auto::Key::of(info, &model, threads.unwrap_or_else(Cpu::threads), load.repack),
        crate::model::cache_folder().as_deref(),
        |_| measure::measure(load, contents, threads, &mut kept),
        &mut say,
    );
    match (faster, kept) {
        (auto::Faster::Gpu, Some(measure::Kept { model, said })) => {
            said.iter().for_each(|line| say(line));
            Ok(model)
        }
        // Found by the same rule as the one that was measured: the likely fastest that is no software.
        (auto::Faster::Gpu, None) => on_gpu(load, model, || Gpu::open(None)),
        (auto::Faster::Cpu, kept) => {
            // It makes room before the other one takes any.
            drop(kept);
            load.ready(model)
        }
    }
}

/// Puts a model's weights on a GPU. Gives a line about it, if it is worth one.
#[cfg(feature = "gpu")]
fn put(gpu: &Arc<Gpu>, model: &mut Model) -> Result<Option<String>, gpu::Error> {
    let large = model.tensor_bytes() >= TELL_FROM;
    let name = &gpu.info().name;
    // Draws on stderr, and only if that is a terminal.
    let bar = if large { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}, {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(format!("weights to {}", one_line(name)));
    let begin = Instant::now();
    let loaded = gpu::load(gpu, model, &mut |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    model.place_on(loaded?);
    let size = human_bytes(model.tensor_bytes());
    Ok(large.then(|| format!("weights on {name}: {size} in {:.1} s", begin.elapsed().as_secs_f64())))
}

/// A line for people.
#[cfg(feature = "gpu")]
fn say(text: &str) {
    eprintln!("{}", one_line(text));
}

/// How records name the CPU.
pub(super) const CPU: &str = "cpu";

/// What a session runs on, as records have it: the GPU's name, or `cpu`.
pub fn device_name(session: &Session) -> &str {
    session.device().unwrap_or(CPU)
}

/// What something ran on that began in one place, as records have it, and is in another by now.
pub fn ran_on(began: &str, now: &str) -> String {
    match began == now {
        true => now.to_owned(),
        // Depths were decided there, and numbers computed anew here.
        false => format!("{began}, then {now}"),
    }
}

/// What a session's notice says, without its ending: for those who do not go on.
pub(super) fn reason(notice: &str) -> &str {
    notice.strip_suffix("; continuing on the CPU").unwrap_or(notice)
}

/// Whether a program's sessions still begin on their model's device: no more, once one had to leave it. The next would fare alike,
/// and the user is told once.
#[derive(Debug, Default)]
pub struct OnDevice {
    left: Cell<bool>,
}

impl OnDevice {
    /// For [`SessionOptions::on_device`](crate::model::SessionOptions::on_device).
    pub fn still(&self) -> bool {
        !self.left.get()
    }

    /// Takes note of what [`Session::take_notice`] gave, and gives it.
    pub fn heed(&self, notice: Option<String>) -> Option<String> {
        self.left.set(self.left.get() || notice.is_some());
        notice
    }
}

/// What of the processor counts for speed, in words: a GPU's name, or the CPU's threads and instruction set.
pub fn device_words(session: &Session) -> String {
    let threads = session.threads();
    match session.device() {
        Some(name) => format!("on {name}"),
        None => {
            let plural = if threads == 1 { "" } else { "s" };
            format!("{threads} thread{plural}, {}", session.model().kernels().isa)
        }
    }
}

/// The processor, as far as it decides how fast a model runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cpu {
    /// Instruction set of the kernels.
    pub isa: &'static str,
    /// Threads that a model which is not very small gets.
    pub threads: NonZeroUsize,
}

impl Cpu {
    /// That of this machine.
    ///
    /// # Errors
    /// As [`Kernels::detect`].
    pub fn here() -> Result<Self, kernels::Error> {
        Ok(Self { isa: Kernels::detect()?.isa.name(), threads: Self::threads() })
    }

    fn threads() -> NonZeroUsize {
        let allowed = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        crate::cores::fast_count().map_or(allowed, |n| n.min(allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_was_left_is_not_tried_again() {
        let on_device = OnDevice::default();
        assert_eq!((on_device.heed(None), on_device.still()), (None, true));
        assert_eq!(on_device.heed(Some("lost".into())).as_deref(), Some("lost"));
        assert_eq!((on_device.heed(None), on_device.still()), (None, false));
        assert_eq!((ran_on("a", "a"), ran_on("a", CPU)), ("a".into(), "a, then cpu".into()));
        assert_eq!(reason("a: it is lost; continuing on the CPU"), "a: it is lost");
    }

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "gpu", "gpu:llvmpipe", "gpu:Radeon RX"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for wrong in ["", "gpu:", "gpu: ", "GPU", "cuda", "gpu1", "cpu:0"] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
        assert_eq!(DeviceFlags::default().device, DeviceChoice::Auto);
    }
}
