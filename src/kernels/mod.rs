//! CPU arithmetic: a table of kernels per instruction set, chosen once when a session starts.
//!
//! The algorithms (`generic`, `matmul`, `attention`) are written once over eight lanes (`simd::Simd`); a file per
//! instruction set implements the lanes and stamps out the table. No kernel knows of models, threads or files.
//!
//! Bits: every kernel computes each of its outputs by one fixed sequence of IEEE operations that depends on nothing but the
//! row it belongs to. So results are equal on every instruction set, for any number of rows in a call, and for any split of
//! the work over threads. The module tests hold the scalar form as the oracle and compare bit for bit.

mod acts;
mod attention;
mod attention_rows;
mod formats;
mod generic;
mod matmul;
mod panel;
mod scalar;
mod simd;
mod stamp;

#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512_rows;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
// The lanes are loaded as they lie in memory, which is little-endian everywhere that matters.
#[cfg(all(test, target_os = "linux"))]
mod guard;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_dotprod;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_i8mm;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon_plain;
#[cfg(test)]
mod tests;

pub use acts::{ActRows, Acts, ByteScale, Form, Q8_BLOCK, WIDE_MAX, WideScale};
pub use panel::{PANEL_ALIGN, PanelLayout, PanelMatMul};

use crate::gguf::TensorType;
use std::fmt;
use std::str::FromStr;

/// The weight formats that there are matrix kernels for.
pub const WEIGHT_TYPES: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q8_0,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::IQ4_NL,
    TensorType::IQ4_XS,
];

/// An instruction set that kernels exist for; within an architecture, in ascending order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: every CPU.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// And AVX-VNNI, which adds up products of bytes in one instruction: Intel since Alder Lake, AMD since Zen 5.
    AvxVnni,
    /// x86-64 with AVX-512 (F, BW, VL) and its VNNI: Intel since Cascade Lake and Ice Lake, AMD since Zen 4.
    Avx512Vnni,
    /// And AMX for bytes, the matrix unit of Intel's servers since Sapphire Rapids; on Linux, which must permit its use.
    AmxInt8,
    /// 64-bit ARM.
    Neon,
    /// And the matrix product of bytes: ARMv8.6. Not preferred to the dot product: with panels as they are it saves no
    /// instructions, and it was never timed.
    NeonI8mm,
    /// 64-bit ARM with the byte dot product of ARMv8.2.
    NeonDotprod,
}

impl Isa {
    /// Every instruction set that the library knows, whether this machine has it or not.
    pub const ALL: [Isa; 8] = [
        Isa::Scalar,
        Isa::Avx2,
        Isa::AvxVnni,
        Isa::Avx512Vnni,
        Isa::AmxInt8,
        Isa::Neon,
        Isa::NeonI8mm,
        Isa::NeonDotprod,
    ];

    /// The name used in the environment variable `RDT_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::AmxInt8 => "amx-int8",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon-dotprod",
            Isa::NeonI8mm => "neon-i8mm",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        Isa::ALL.into_iter().find(|i| i.name() == s).ok_or_else(|| Error::UnknownIsa(s.to_owned()))
    }
}

/// Why no kernels could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `RDT_ISA` holds a name that is none of [`Isa::ALL`].
    #[error("RDT_ISA is '{0}'; known instruction sets are {known}", known = Isa::ALL.map(Isa::name).join(", "))]
    UnknownIsa(String),
    /// The machine, or the build, does not have the instruction set.
    #[error("instruction set '{0}' is not available on this machine")]
    Unavailable(Isa),
    /// No kernel multiplies this weight format.
    #[error("no kernel for weights of type {0}; there are kernels for {known}", known = weight_names())]
    UnsupportedType(TensorType),
}

fn weight_names() -> String {
    WEIGHT_TYPES.map(TensorType::name).join(", ")
}

/// A KV cache storage format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 32-bit floats: what parity with the reference is tested with.
    F32,
    /// Half precision.
    F16,
    /// Blocks of 32 signed bytes with a half-precision scale (8.5 bits per value); the head size must be a multiple of 32.
    Q8_0,
}

impl KvType {
    /// Bytes of one key or value row of `dim` values; `None` if the format cannot store that size.
    pub fn row_bytes(self, dim: usize) -> Option<usize> {
        match self {
            KvType::F32 => dim.checked_mul(4),
            KvType::F16 => dim.checked_mul(2),
            KvType::Q8_0 => dim.is_multiple_of(Q8_BLOCK).then(|| dim / Q8_BLOCK * (2 + Q8_BLOCK)),
        }
    }

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        [KvType::F32, KvType::F16, KvType::Q8_0]
            .into_iter()
            .find(|t| t.name() == s)
            .ok_or_else(|| format!("unknown KV cache type '{s}'; known are f32, f16 and q8_0"))
    }
}

/// Squared norms and dot products of one row's latent states, for exit rules (s_k the new state, Δ_k = s_k − s_{k−1}).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LatentSums {
    /// ‖s_k‖².
    pub state: f32,
    /// ‖Δ_k‖².
    pub step: f32,
    /// ‖Δ_k − Δ_{k−1}‖².
    pub change: f32,
    /// Δ_k · Δ_{k−1}.
    pub step_dot: f32,
    /// ‖Δ_{k−1}‖².
    pub previous_step: f32,
    /// s_k · s_{k−1}.
    pub state_dot: f32,
    /// ‖s_{k−1}‖².
    pub previous_state: f32,
}

/// Query rows against the keys and values of one cache plane: whatever rows read the same ones, neighbouring positions and the
/// query heads that share a key head alike.
///
/// A row's output does not depend on the others, but together they are faster: keys and values are then read once, and fastest
/// where rows that see about as much stand next to each other.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// How keys and values are stored.
    pub kv: KvType,
    /// Values per head.
    pub dim: usize,
    /// Scores are multiplied by it.
    pub scale: f32,
    /// `[rows][dim]`: the queries.
    pub q: &'a [f32],
    /// `[rows]`: how many keys each row sees, from the first on; at least one.
    pub seen: &'a [usize],
    /// Keys as stored, at least as many as any row sees.
    pub keys: &'a [u8],
    /// Values as stored.
    pub values: &'a [u8],
}

/// Rows that attention computes together at most; any number may be handed in.
pub const ATTEND_ROWS: usize = 64;

/// What attention needs besides its inputs; one per thread.
pub struct AttendScratch {
    dim: usize,
    memory: Vec<f32>,
}

impl AttendScratch {
    /// Scratch for heads of up to `dim` values. Memory is taken from the system as it is used.
    pub fn new(dim: usize) -> Self {
        Self { dim, memory: vec![0.0; attention_rows::scratch_len(dim)] }
    }
}

/// `(weights, rows, acts, out)`: `out[c * rows + r]` = weight row r · activation row c. `weights` holds exactly `rows` rows.
pub type MatMul = fn(&[u8], usize, Acts<'_>, &mut [f32]);
/// `(a, scratch, out)`: row `i` of `out` = `softmax(scale · q_i Kᵀ) V` over the keys and values that row `i` sees.
pub type Attend = fn(Attention<'_>, &mut AttendScratch, &mut [f32]);

/// `(x, q, scales)`: quantises activations to bytes.
pub type QuantizeRow = fn(&[f32], &mut [i8], &mut [ByteScale]);
/// `(x, wide, high, low, scales)`: quantises activations to 16-bit numbers.
pub type QuantizeRowWide = fn(&[f32], &mut [i16], &mut [i8], &mut [i8], &mut [WideScale]);
/// `(x, weight, bias, eps, out)`.
pub type LayerNorm = fn(&[f32], &[f32], &[f32], f32, &mut [f32]);
/// `(x, row)`: writes a key or value row in a cache format.
pub type StoreKv = fn(&[f32], &mut [u8]);

/// The kernels of one instruction set.
///
/// All of them check the lengths they are given and panic on a mismatch, which is a bug in the caller.
pub struct Kernels {
    /// Which instruction set this is.
    pub isa: Isa,
    /// `(x, weight, eps, out)`: `out = x / sqrt(mean(x²) + eps) · weight`.
    pub rms_norm: fn(&[f32], &[f32], f32, &mut [f32]),
    /// `(gate, up, out)`: `out = silu(gate) · up`.
    pub silu_mul: fn(&[f32], &[f32], &mut [f32]),
    /// `(x, out)`: `out += x`.
    pub add: fn(&[f32], &mut [f32]),
    /// `(x, weight, bias, eps, out)`: `out = (x − mean(x)) / sqrt(var(x) + eps) · weight + bias`.
    pub layer_norm: LayerNorm,
    /// `(x, y)`: sum of products.
    pub dot: fn(&[f32], &[f32]) -> f32,
    /// `(gate, out)`: `out *= sigmoid(gate)`.
    pub sigmoid_mul: fn(&[f32], &mut [f32]),
    /// GELU by its tanh approximation, in place.
    pub gelu_tanh: fn(&mut [f32]),
    /// `x = max(x, 0)² / 2`.
    pub half_relu_squared: fn(&mut [f32]),
    /// `(x, y, out)`: `out += x · y`.
    pub add_product: fn(&[f32], &[f32], &mut [f32]),
    /// `(x, cos, sin)`: rotates the pairs `(x[2i], x[2i + 1])`.
    pub rope_interleaved: fn(&mut [f32], &[f32], &[f32]),
    /// `(x, cos, sin)`: rotates the pairs `(x[i], x[i + n/2])`, n the length.
    pub rope_halves: fn(&mut [f32], &[f32], &[f32]),
    /// An activation row in the form [`Form::Bytes`]; its length is a multiple of 32.
    pub quantize_row: QuantizeRow,
    /// An activation row in the form [`Form::Wide`]; its length is a multiple of 32.
    pub quantize_row_wide: QuantizeRowWide,
    /// `(new, state, delta)`: statistics of a loop step; `state` becomes `new`, `delta` becomes `new − state`.
    pub latent_sums: fn(&[f32], &mut [f32], &mut [f32]) -> LatentSums,
    /// Attention of a group of rows.
    pub attend: Attend,
    /// In the order of [`WEIGHT_TYPES`].
    matmul: [MatMul; WEIGHT_TYPES.len()],
    panels: &'static PanelKernels,
    store: [StoreKv; 3],
}

/// The kernels for panels of one instruction set.
struct PanelKernels {
    /// Weight rows of a panel.
    rows: usize,
    /// In the order of [`WEIGHT_TYPES`].
    multiply: [Option<PanelMatMul>; WEIGHT_TYPES.len()],
}

impl Kernels {
    /// The best kernels for this machine, or those that the environment variable `RDT_ISA` names.
    pub fn detect() -> Result<&'static Kernels, Error> {
        match crate::isa::forced() {
            Some(name) => Self::of(name.parse()?),
            None => Ok(Isa::ALL.into_iter().rev().find_map(|isa| Self::of(isa).ok()).unwrap_or(&scalar::KERNELS)),
        }
    }

    /// The kernels of an instruction set, if the machine has it.
    pub fn of(isa: Isa) -> Result<&'static Kernels, Error> {
        match isa {
            Isa::Scalar => Ok(&scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if avx2::Avx2::detect().is_some() => Ok(&avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni if avx_vnni::detect() => Ok(&avx_vnni::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::AmxInt8 if amx_int8::detect() => Ok(&amx_int8::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni if avx512_vnni::detect() => Ok(&avx512_vnni::KERNELS),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon if neon::Neon::<neon_plain::Plain>::detect().is_some() => Ok(&neon_plain::KERNELS),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::NeonDotprod if neon::Neon::<neon_dotprod::Dotprod>::detect().is_some() => Ok(&neon_dotprod::KERNELS),
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::NeonI8mm if neon_i8mm::detect() => Ok(&neon_i8mm::KERNELS),
            isa => Err(Error::Unavailable(isa)),
        }
    }

    /// The matrix kernel for a weight format.
    pub fn matmul(&self, ty: TensorType) -> Result<MatMul, Error> {
        let at = WEIGHT_TYPES.iter().position(|&known| known == ty).ok_or(Error::UnsupportedType(ty))?;
        Ok(self.matmul[at])
    }

    /// How rows of `k` weights lie in panels, and the kernel that multiplies them; `None` for types without blocks, and where
    /// `k` is not whole blocks.
    pub fn panel(&self, ty: TensorType, k: usize) -> Option<(PanelLayout, PanelMatMul)> {
        let at = WEIGHT_TYPES.iter().position(|&known| known == ty)?;
        Some((PanelLayout::new(ty, k, self.panels.rows)?, self.panels.multiply[at]?))
    }

    /// Writes a key or value row in a cache format.
    pub fn store_kv(&self, kv: KvType) -> StoreKv {
        self.store[kv as usize]
    }
}
