//! AVX-512 with VNNI: panels use it; all else has eight lanes, and is AVX2 with more registers.

use super::avx2::Avx2;

/// Has the running CPU, and the operating system, all of it?
pub(super) fn detect() -> bool {
    Avx2::detect().is_some()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

const ISA: super::Isa = super::Isa::Avx512Vnni;
super::stamp!(
    Avx2(()),
    crate::kernels::panel::zmm::AVX512_VNNI,
    crate::kernels::avx512_rows::SIXTEEN,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
);
