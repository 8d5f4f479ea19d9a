//! AVX-512 with VNNI and AMX: panels use the matrix unit for many rows of activations, all else is that of AVX-512 with VNNI.

use super::avx2::Avx2;

/// Has the running CPU all of it, and may the process use it?
pub(super) fn detect() -> bool {
    super::avx512_vnni::detect() && super::panel::amx::detect()
}

const ISA: super::Isa = super::Isa::AmxInt8;
super::stamp!(Avx2(()), crate::kernels::panel::zmm::AMX_INT8, "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni");
