//! Which GPUs there are, what they can do, and how one is opened.

use super::Error;
use super::shader::Pipelines;
use pollster::block_on;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, PoisonError};

/// What kind of device an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// With memory of its own.
    Discrete,
    /// Sharing the processor's memory.
    Integrated,
    /// Of a virtual machine.
    Virtual,
    /// A program that acts as one, on the processor.
    Software,
    /// The driver does not say.
    Other,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Discrete => "discrete",
            Kind::Integrated => "integrated",
            Kind::Virtual => "virtual",
            Kind::Software => "software",
            Kind::Other => "other",
        })
    }
}

/// A GPU as its driver describes it, with what this library makes use of.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// What it is.
    pub kind: Kind,
    /// The driver, with its version.
    pub driver: String,
    /// Bytes of the largest buffer that a kernel can read at once. Larger matrices are split.
    pub max_binding_bytes: u64,
    /// What its kernels can use.
    pub abilities: Abilities,
}

/// What kernels may use of an adapter. Each has a kernel that does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Abilities {
    /// Sums across the lanes of a subgroup, whatever its size.
    pub subgroups: bool,
    /// Half-precision weights in shared memory.
    pub f16: bool,
    /// Products of four signed bytes at once.
    pub packed_dot: bool,
}

/// What a device is to be taken for, where it is to be taken for less than it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Within {
    /// Of its abilities, these at most.
    pub abilities: Option<Abilities>,
    /// Bytes that a kernel can read at once, at most.
    pub max_binding_bytes: Option<u64>,
    /// Multiplications, about, that are submitted together.
    pub work: Option<u64>,
}

/// Multiplications, about, in one submission, where nobody says. Drivers give up on work that takes seconds; a slow device takes half a
/// one for these.
const WORK: u64 = 10_000_000_000;

/// A GPU that has been opened. Models are [loaded](super::load) on it.
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pipelines: Pipelines,
    /// Multiplications, about, in one submission.
    pub(super) work: u64,
    info: DeviceInfo,
    /// The first thing that went wrong.
    failure: Arc<Mutex<Option<String>>>,
}

/// An instance that sees every backend this library is built for.
fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    // Every indirect dispatch would be preceded by one that checks its sizes. They are written by our own kernel.
    descriptor.flags.remove(wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL);
    // Sources within shaders are for debuggers, and validation layers older than the language object to them.
    descriptor.flags.remove(wgpu::InstanceFlags::DEBUG);
    wgpu::Instance::new(descriptor)
}

fn adapters() -> Vec<wgpu::Adapter> {
    let mut adapters = block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    // The fastest kind first; otherwise in the driver's order.
    adapters.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// The GPUs of this machine, the likely fastest first. Empty where there is no driver.
pub fn devices() -> Vec<DeviceInfo> {
    adapters().iter().map(describe).collect()
}

fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let (info, features, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
    let driver = [info.driver.as_str(), info.driver_info.as_str()].map(str::trim);
    DeviceInfo {
        name: info.name.trim().to_owned(),
        backend: info.backend.to_str().to_owned(),
        kind: match info.device_type {
            wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
            wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
            wgpu::DeviceType::VirtualGpu => Kind::Virtual,
            wgpu::DeviceType::Cpu => Kind::Software,
            wgpu::DeviceType::Other => Kind::Other,
        },
        driver: driver.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(", "),
        max_binding_bytes: max_binding_bytes(&limits),
        abilities: Abilities {
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            f16: features.contains(wgpu::Features::SHADER_F16),
            // Where a driver has no such instruction it is four products, which is no slower than what we would write.
            packed_dot: true,
        },
    }
}

fn in_words(error: wgpu::Error) -> String {
    match error {
        wgpu::Error::OutOfMemory { .. } => "out of memory".into(),
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => description,
    }
}

fn max_binding_bytes(limits: &wgpu::Limits) -> u64 {
    // Some drivers count bytes in signed 32 bits.
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(i32::MAX as u64)
}

impl Gpu {
    /// Opens the GPU whose name contains `name` (whatever the case), or, without one, the likely fastest that is no software.
    ///
    /// # Errors
    /// There is none; it cannot be opened.
    pub fn open(name: Option<&str>) -> Result<Arc<Self>, Error> {
        Self::open_within(name, &Within::default())
    }

    /// As [`open`](Self::open), as if the device could do less. For tests of what this machine would not choose.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_within(name: Option<&str>, within: &Within) -> Result<Arc<Self>, Error> {
        let adapters = adapters();
        let named = |a: &&wgpu::Adapter| match name {
            Some(name) => a.get_info().name.to_lowercase().contains(&name.to_lowercase()),
            None => a.get_info().device_type != wgpu::DeviceType::Cpu,
        };
        let adapter = adapters.iter().find(named).ok_or_else(|| {
            let names: Vec<_> = adapters.iter().map(|a| a.get_info().name.trim().to_owned()).collect();
            match name {
                _ if names.is_empty() => Error::NoDriver,
                None => Error::OnlySoftware(names.join(", ")),
                Some(name) => Error::NoSuchDevice { name: name.to_owned(), known: names.join(", ") },
            }
        })?;
        let mut info = describe(adapter);
        if let Some(Abilities { subgroups, f16, packed_dot }) = within.abilities {
            info.abilities.subgroups &= subgroups;
            info.abilities.f16 &= f16;
            info.abilities.packed_dot &= packed_dot;
        }
        let mut limits = adapter.limits();
        let enough = limits.max_storage_buffers_per_shader_stage >= 8
            && limits.max_compute_invocations_per_workgroup >= 256
            && limits.max_compute_workgroup_storage_size >= 16 << 10;
        if !enough {
            let why = "its kernels cannot have 8 buffers, 256 threads and 16 KiB of shared memory".into();
            return Err(Error::Open { name: info.name, why });
        }
        info.max_binding_bytes =
            within.max_binding_bytes.map_or(info.max_binding_bytes, |n| n.min(info.max_binding_bytes));
        limits.max_storage_buffer_binding_size = info.max_binding_bytes;
        let mut features = wgpu::Features::empty();
        features.set(wgpu::Features::SUBGROUP, info.abilities.subgroups);
        features.set(wgpu::Features::SHADER_F16, info.abilities.f16);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("rdt"),
            required_features: features,
            required_limits: limits,
            // Weights are large and few; blocks of memory kept for more would be wasted.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..wgpu::DeviceDescriptor::default()
        };
        let (device, queue) = block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::Open { name: info.name.clone(), why: e.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: Arc<Mutex<Option<String>>>| {
            move |why: String| {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
        };
        let uncaptured = note(Arc::clone(&failure));
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            uncaptured(in_words(error));
        }));
        let lost = note(Arc::clone(&failure));
        device.set_device_lost_callback(move |_, why| lost(format!("the device is lost ({why})")));
        let pipelines = Pipelines::new(info.abilities);
        let work = within.work.unwrap_or(WORK);
        Ok(Arc::new(Self { device, queue, pipelines, work, info, failure }))
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn note(&self, why: String) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// Fails if anything has gone wrong on the device so far.
    pub(super) fn check(&self) -> Result<(), String> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    }

    /// Makes something on the device. What fails for want of memory, or by a limit, fails this call and nothing else.
    pub(super) fn make<T>(&self, make: impl FnOnce(&wgpu::Device) -> T) -> Result<T, String> {
        self.check()?;
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let limits = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let made = make(&self.device);
        match (block_on(limits.pop()), block_on(memory.pop())) {
            (None, None) => Ok(made),
            (Some(error), _) | (_, Some(error)) => Err(in_words(error)),
        }
    }

    /// A buffer of at least `bytes`, in whole words.
    pub(super) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, String> {
        let size = bytes.max(16).next_multiple_of(16);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        self.make(|device| device.create_buffer(&descriptor)).map_err(|why| format!("{why} ({size} bytes for {label})"))
    }

    /// Waits until all that was submitted is done.
    pub(super) fn wait(&self) -> Result<(), String> {
        // A device that is lost while it is waited for is a panic there, after all callbacks have been called; here it is a failure
        // like any other.
        let wait = || self.device.poll(wgpu::PollType::wait_indefinitely());
        match panic::catch_unwind(AssertUnwindSafe(wait)) {
            Ok(done) => done.map(|_| ()).map_err(|e| e.to_string())?,
            Err(_) => self.note("the device is lost".into()),
        }
        self.check()
    }

    /// Bytes that are allocated on the device, by the driver's allocator; `None` where it does not tell.
    pub fn allocated(&self) -> Option<u64> {
        self.device.generate_allocator_report().map(|r| r.total_allocated_bytes)
    }

    /// Destroys the device, as if it had been pulled out: what runs on it fails from now on. For tests of what happens then.
    pub fn lose(&self) {
        self.device.destroy();
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("info", &self.info).finish_non_exhaustive()
    }
}
