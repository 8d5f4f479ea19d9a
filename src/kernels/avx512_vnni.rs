//! AVX-512 with VNNI: panels and attention use it, all else has eight lanes and is AVX2.

use super::avx2::{self, Avx2};
use super::{Isa, Kernels};

/// Has the running CPU, and the operating system, all of it?
pub(super) fn detect() -> bool {
    Avx2::detect().is_some()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

super::stamp::stamp!(
    panels: crate::kernels::panel::zmm::AVX512_VNNI,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
);
super::stamp::stamp!(
    attention: Avx2(()),
    crate::kernels::avx512_rows::SIXTEEN,
    "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"
);

pub(super) const TABLE: Kernels =
    Kernels { isa: Isa::Avx512Vnni, panels: &panels::PANELS, attend: attention::attend, ..avx2::TABLE };
pub(super) static KERNELS: Kernels = TABLE;
