//! AVX2 with AVX-VNNI: panels use it, all else is AVX2.

use super::avx2::Avx2;

/// Has the running CPU, and the operating system, all of it?
pub(super) fn detect() -> bool {
    Avx2::detect().is_some() && is_x86_feature_detected!("avxvnni")
}

const ISA: super::Isa = super::Isa::AvxVnni;
super::stamp!(Avx2(()), crate::kernels::panel::ymm::AVX_VNNI, Avx2(()), "avx2,fma,f16c,avxvnni");
