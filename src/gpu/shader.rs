//! The kernels' sources, put together from the files in `shaders/`, and the pipelines made of them.
//!
//! No kernel is written twice: a block format is a file that unpacks 32 weights, and the products, for few rows and for many,
//! with or without packed products, half precision and subgroups, are made of the same parts for all formats.

use super::{Abilities, Gpu};
use crate::gguf::TensorType;
use crate::kernels::KvType;
#[cfg(test)]
use crate::kernels::WEIGHT_TYPES;
use crate::quant::IQ4_VALUES;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

/// A kernel, in the variant that suits its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    /// A matrix times up to `rows` rows, in one reading.
    Few {
        ty: TensorType,
        rows: u32,
        shape: Shape,
    },
    /// A matrix times many rows.
    Many {
        ty: TensorType,
    },
    Quantise,
    Norm,
    Inject,
    Enter,
    Settle,
    /// With the values of a head.
    Place {
        kv: KvType,
        dim: u32,
    },
    /// With the values of a head.
    Attend {
        kv: KvType,
        dim: u32,
    },
    Value,
    Decide,
    Readout,
}

/// How threads share the rows of a matrix that is multiplied with few rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    /// Eight threads per weight row: short rows have no work for more.
    Short,
    /// All threads of a workgroup.
    Long,
}

/// What a kernel's binding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Binding {
    Uniform,
    Read,
    Write,
}

/// Threads of the kernels that multiply.
const THREADS: u32 = 64;
/// Weight rows and rows that a workgroup of [`Kernel::Many`] computes.
pub(super) const TILE: (u32, u32) = (64, 32);

/// Does this type multiply activations in signed bytes? As the CPU's kernels: 8-bit weights would lose by it.
pub(super) fn takes_bytes(ty: TensorType) -> bool {
    ty.block_len() > 1 && ty != TensorType::Q8_0
}

macro_rules! file {
    ($name:literal) => {
        include_str!(concat!("shaders/", $name, ".wgsl"))
    };
}

impl Kernel {
    /// Weight rows that a workgroup computes.
    pub(super) fn rows_per_group(self) -> u32 {
        match self {
            Kernel::Few { shape, .. } => {
                let (team, each) = shape.of();
                THREADS / team * each
            }
            Kernel::Many { .. } => TILE.0,
            _ => 1,
        }
    }

    /// The kernel's bindings, in order.
    pub(super) fn bindings(self) -> &'static [Binding] {
        use Binding::{Read as R, Uniform as U, Write as W};
        match self {
            Kernel::Few { ty, .. } | Kernel::Many { ty } if takes_bytes(ty) => &[U, R, R, R, R, W, R, R],
            Kernel::Few { .. } | Kernel::Many { .. } => &[U, R, R, R, R, W, R],
            Kernel::Quantise => &[U, R, R, W, W],
            Kernel::Norm => &[U, R, R, R, W],
            Kernel::Inject => &[U, R, R, R, R, W],
            Kernel::Enter => &[U, R, R, R, R, W, W, W],
            Kernel::Settle => &[U, R, R, R, W, W, W],
            Kernel::Place { .. } => &[U, R, R, R, W, R, R, W, W],
            Kernel::Attend { .. } => &[U, R, R, R, R, R, R, R, W],
            Kernel::Value => &[U, R, R, R, R, W],
            Kernel::Decide => &[U, W, U, R, R, W, W, R, W, R],
            Kernel::Readout => &[U, R, U, R, W, W],
        }
    }

    /// Its source in WGSL.
    pub(super) fn source(self, abilities: Abilities) -> String {
        let mut s = String::new();
        if abilities.f16 && matches!(self, Kernel::Many { ty } if half_is_enough(ty)) {
            s.push_str("enable f16;\n");
        }
        if !matches!(self, Kernel::Decide) {
            s.push_str(file!("flow"));
        }
        match self {
            Kernel::Few { ty, rows, shape } => {
                let (team, each) = shape.of();
                let by_subgroup = abilities.subgroups && shape == Shape::Long;
                constants(&mut s, &[("MOST", rows), ("TEAM", team), ("TEAMS", THREADS / team), ("EACH", each)]);
                s.push_str(file!("epilogue"));
                format(&mut s, ty, abilities);
                s.push_str(if takes_bytes(ty) { file!("few_bytes") } else { file!("few_plain") });
                s.push_str(if by_subgroup { file!("gather_subgroup") } else { file!("gather_shared") });
                let (inputs, arguments) = if by_subgroup {
                    (
                        ",\n    @builtin(subgroup_invocation_id) place: u32, @builtin(subgroup_id) id: u32, @builtin(num_subgroups) groups: u32",
                        ", place, id, groups",
                    )
                } else {
                    ("", "")
                };
                s.push_str(&file!("few").replace("SUBGROUP_INPUTS", inputs).replace("SUBGROUP_ARGUMENTS", arguments));
            }
            Kernel::Many { ty } => {
                s.push_str(file!("epilogue"));
                format(&mut s, ty, abilities);
                s.push_str(file!("many"));
                if takes_bytes(ty) {
                    s.push_str(file!("many_bytes"));
                } else {
                    let tile = if abilities.f16 && half_is_enough(ty) { "f16" } else { "f32" };
                    let _ = writeln!(s, "alias Tile = {tile};");
                    s.push_str(file!("many_plain"));
                }
            }
            Kernel::Quantise => {
                s.push_str(file!("quantise"));
                s.push_str(file!("bytes"));
            }
            Kernel::Norm => {
                constants(&mut s, &[("THREADS", 128)]);
                s.extend([file!("total"), file!("norm")]);
            }
            Kernel::Inject => s.push_str(file!("inject")),
            Kernel::Enter => s.push_str(file!("enter")),
            Kernel::Settle => s.push_str(file!("settle")),
            Kernel::Place { kv, dim } => {
                constants(&mut s, &[("UNITS", units(dim))]);
                let (words, store) = match kv {
                    KvType::F32 => (file!("kv_f32"), file!("store_f32")),
                    KvType::F16 => (file!("kv_f16"), file!("store_f16")),
                    KvType::Q8_0 => (file!("kv_q8_0"), file!("store_q8_0")),
                };
                s.extend([words, file!("place"), file!("half"), store]);
            }
            Kernel::Attend { kv, dim } => {
                constants(&mut s, &[("UNITS", units(dim)), ("GROUPS", THREADS / units(dim))]);
                let (words, unit) = match kv {
                    KvType::F32 => (file!("kv_f32"), file!("unit_f32")),
                    KvType::F16 => (file!("kv_f16"), file!("unit_f16")),
                    KvType::Q8_0 => (file!("kv_q8_0"), file!("unit_q8_0")),
                };
                s.extend([words, unit, file!("attend")]);
            }
            Kernel::Value => s.push_str(file!("value")),
            Kernel::Decide => s.extend([file!("rule"), file!("decide")]),
            Kernel::Readout => {
                constants(&mut s, &[("THREADS", 256)]);
                s.extend([file!("rule"), file!("total"), file!("readout")]);
            }
        }
        s
    }

    /// Every kernel that could be asked for, with one head size.
    #[cfg(test)]
    pub(super) fn all() -> Vec<Self> {
        let mut all = vec![
            Kernel::Quantise,
            Kernel::Norm,
            Kernel::Inject,
            Kernel::Enter,
            Kernel::Settle,
            Kernel::Value,
            Kernel::Decide,
            Kernel::Readout,
        ];
        for ty in WEIGHT_TYPES {
            all.push(Kernel::Many { ty });
            for rows in [1, 4, 8] {
                all.extend([Shape::Short, Shape::Long].map(|shape| Kernel::Few { ty, rows, shape }));
            }
        }
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            all.extend([Kernel::Place { kv, dim: 96 }, Kernel::Attend { kv, dim: 96 }]);
        }
        all
    }
}

impl Shape {
    /// For rows of so many pieces of 32 weights.
    pub(super) fn for_pieces(pieces: usize) -> Self {
        if pieces >= 32 { Shape::Long } else { Shape::Short }
    }

    /// Threads per weight row, and weight rows that they take at once.
    fn of(self) -> (u32, u32) {
        match self {
            Shape::Short => (8, 1),
            Shape::Long => (THREADS, 4),
        }
    }
}

/// A head in fours, rounded up.
pub(super) fn units(dim: u32) -> u32 {
    dim.div_ceil(4)
}

/// Is a weight of this type, in half precision, as good as itself?
fn half_is_enough(ty: TensorType) -> bool {
    matches!(ty, TensorType::F16 | TensorType::Q8_0)
}

fn constants(s: &mut String, values: &[(&str, u32)]) {
    for (name, value) in values {
        let _ = writeln!(s, "const {name}: u32 = {value}u;");
    }
}

/// What unpacks a block format, and multiplies what it unpacks.
fn format(s: &mut String, ty: TensorType, abilities: Abilities) {
    match ty {
        TensorType::F32 => return s.push_str(file!("f32")),
        TensorType::F16 => return s.push_str(file!("f16")),
        TensorType::BF16 => return s.push_str(file!("bf16")),
        _ => s.push_str(file!("piece")),
    }
    match ty {
        TensorType::Q4_0 => s.push_str(file!("q4_0")),
        TensorType::Q4_1 => s.push_str(file!("q4_1")),
        TensorType::Q5_0 => s.extend([file!("q5"), file!("q5_0")]),
        TensorType::Q5_1 => s.extend([file!("q5"), file!("q5_1")]),
        TensorType::IQ4_NL | TensorType::IQ4_XS => {
            let values = IQ4_VALUES.map(|v| format!("{}u", v as u8)).join(", ");
            s.push_str(&file!("iq4").replace("TABLE_VALUES", &values));
            s.push_str(if ty == TensorType::IQ4_NL { file!("iq4_nl") } else { file!("iq4_xs") });
        }
        TensorType::Q4_K => s.extend([file!("k"), file!("q4_k")]),
        TensorType::Q5_K => s.extend([file!("k"), file!("q5_k")]),
        TensorType::Q6_K => s.push_str(file!("q6_k")),
        _ => s.push_str(file!("q8_0")),
    }
    s.push_str(match takes_bytes(ty) {
        true if abilities.packed_dot => file!("dot_packed"),
        true => file!("dot_plain"),
        false => file!("floats"),
    });
}

/// A kernel that is ready to run.
pub(super) struct Pipeline {
    pub(super) compute: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// The pipelines of a device, made when they are first asked for.
pub(super) struct Pipelines {
    abilities: Abilities,
    made: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
}

impl Pipelines {
    pub(super) fn new(abilities: Abilities) -> Self {
        Self { abilities, made: Mutex::default() }
    }

    pub(super) fn get(&self, gpu: &Gpu, kernel: Kernel) -> Result<Arc<Pipeline>, String> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&kernel) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(gpu.make(|device| make(device, kernel, self.abilities))?);
        made.insert(kernel, Arc::clone(&pipeline));
        Ok(pipeline)
    }
}

fn make(device: &wgpu::Device, kernel: Kernel, abilities: Abilities) -> Pipeline {
    let label = format!("{kernel:?}");
    let entries: Vec<_> = kernel
        .bindings()
        .iter()
        .enumerate()
        .map(|(i, binding)| wgpu::BindGroupLayoutEntry {
            binding: i as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match binding {
                    Binding::Uniform => wgpu::BufferBindingType::Uniform,
                    Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                    Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    let layout =
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
    let source = wgpu::ShaderModuleDescriptor {
        label: Some(&label),
        source: wgpu::ShaderSource::Wgsl(kernel.source(abilities).into()),
    };
    // SAFETY: the sources are this library's own. All their loops end: each counts up to a constant, to a size of the model, which was
    // checked when it was opened, or to a count of rows that the host or our own kernel wrote. Indices are sums and products of
    // these, for which the buffers were made (`Buffers::new`, `Weights::get`), and of positions and sequences, which are checked
    // against the cache before each pass (`GpuSession::check`).
    let module = unsafe { device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked()) };
    let of = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&label),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let compute = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&of),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[],
            // Every kernel writes what it reads there.
            zero_initialize_workgroup_memory: false,
        },
        cache: None,
    });
    Pipeline { compute, layout }
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::valid::{Capabilities, ValidationFlags, Validator};
    use naga::{back::msl, front::wgsl};

    fn abilities() -> impl Iterator<Item = Abilities> {
        (0..8).map(|i| Abilities { subgroups: i & 1 != 0, f16: i & 2 != 0, packed_dot: i & 4 != 0 })
    }

    /// Every kernel, with and without everything that an adapter may lack, is valid, and becomes Metal's language.
    #[test]
    fn every_kernel_is_valid_and_becomes_metal() {
        let mut seen = std::collections::HashSet::new();
        for abilities in abilities() {
            for kernel in Kernel::all() {
                let source = kernel.source(abilities);
                if !seen.insert(source.clone()) {
                    continue;
                }
                let module = wgsl::parse_str(&source)
                    .unwrap_or_else(|e| panic!("{kernel:?}, {abilities:?}: {}", e.emit_to_string(&source)));
                let mut allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
                allowed.set(Capabilities::SUBGROUP, abilities.subgroups);
                allowed.set(Capabilities::SHADER_FLOAT16, abilities.f16);
                let info = Validator::new(ValidationFlags::all(), allowed)
                    .validate(&module)
                    .unwrap_or_else(|e| panic!("{kernel:?}, {abilities:?}: {}", e.emit_to_string(&source)));
                let bound = module.global_variables.iter().filter(|(_, v)| v.binding.is_some()).count();
                // No compiler of Direct3D has seen it; that it can be written is all that is known.
                let mut hlsl = String::new();
                let options = naga::back::hlsl::Options {
                    shader_model: naga::back::hlsl::ShaderModel::V6_2,
                    fake_missing_bindings: true,
                    ..Default::default()
                };
                naga::back::hlsl::Writer::new(&mut hlsl, &options, &Default::default())
                    .write(&module, &info, None)
                    .unwrap_or_else(|e| panic!("{kernel:?}, {abilities:?} for Direct3D: {e}"));
                assert!(bound <= kernel.bindings().len(), "{kernel:?}");
                let options =
                    msl::Options { lang_version: (3, 0), fake_missing_bindings: true, ..msl::Options::default() };
                let (metal, _) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                    .unwrap_or_else(|e| panic!("{kernel:?}, {abilities:?} in Metal: {e}"));
                assert!(
                    metal.contains("kernel void main_")
                        && metal.contains("[[threadgroup_position_in_grid]]") | !source.contains("workgroup_id"),
                    "{kernel:?}"
                );
                assert_eq!(metal.contains("simd_sum"), source.contains("subgroupAdd"), "{kernel:?}");
                assert_eq!(metal.contains("half "), source.contains("f16;"), "{kernel:?}: {metal}");
            }
        }
        // Fourteen kernels besides those that multiply; of these, three sizes and two shapes for few rows and one for many.
        assert!(seen.len() > 14 + 13 * 7, "{}", seen.len());
    }
}
