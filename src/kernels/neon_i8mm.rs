//! NEON with the dot product and the matrix product of bytes, `smmla`: ARMv8.2's option, ARMv8.6's rule; Apple since A15 and M2,
//! Cortex since A510 and A710, Neoverse since V1 and N2. Panels use it, all else is that of the dot product.

use super::neon::Neon;
use super::neon_dotprod::{self, Dotprod};
use super::{Isa, Kernels};
use std::arch::is_aarch64_feature_detected;

/// Has the running CPU all of it?
pub(super) fn detect() -> bool {
    Neon::<Dotprod>::detect().is_some() && is_aarch64_feature_detected!("i8mm")
}

super::stamp::stamp!(panels: crate::kernels::panel::neon::NEON_I8MM, "neon,dotprod,i8mm");

pub(super) static KERNELS: Kernels = Kernels { isa: Isa::NeonI8mm, panels: &panels::PANELS, ..neon_dotprod::TABLE };
