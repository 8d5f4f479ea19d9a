//! AVX2 with AVX-VNNI: panels use it, all else is AVX2.

use super::avx2::{self, Avx2};
use super::{Isa, Kernels};

/// Has the running CPU, and the operating system, all of it?
pub(super) fn detect() -> bool {
    Avx2::detect().is_some() && is_x86_feature_detected!("avxvnni")
}

super::stamp::stamp!(panels: crate::kernels::panel::ymm::AVX_VNNI, "avx2,fma,f16c,avxvnni");

pub(super) static KERNELS: Kernels = Kernels { isa: Isa::AvxVnni, panels: &panels::PANELS, ..avx2::TABLE };
