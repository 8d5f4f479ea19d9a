//! AVX-512 with VNNI and AMX: panels use the matrix unit for many rows of activations, all else is that of AVX-512 with VNNI.

use super::{Isa, Kernels, avx512_vnni};

/// Has the running CPU all of it, and may the process use it?
pub(super) fn detect() -> bool {
    avx512_vnni::detect() && super::panel::amx::detect()
}

super::stamp::stamp!(
    panels: crate::kernels::panel::zmm::AMX_INT8,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
);

pub(super) static KERNELS: Kernels = Kernels { isa: Isa::AmxInt8, panels: &panels::PANELS, ..avx512_vnni::TABLE };
