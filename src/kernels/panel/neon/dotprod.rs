//! Byte products four at a time: `sdot`.

use super::bytes::Bytes;
use core::arch::aarch64::*;
use core::arch::asm;

/// Products by `sdot`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Dotprod(());

pub(super) const TOKEN: Dotprod = Dotprod(());

/// Adds to every lane of `sum` the products of its four bytes of `w` and those of lane `LANE` of `a`.
///
/// The compiler's own name for the instruction, `vdotq_laneq_s32`, is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const LANE: usize>(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes only the registers named, and the function has its feature.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {a:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            a = in(vreg) a,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Bytes for Dotprod {
    #[inline(always)]
    fn start<const C: usize>(self, start: [i32; C]) -> [int32x4_t; C] {
        start.map(
            #[inline(always)]
            // SAFETY: the token proves NEON.
            |start| unsafe { vdupq_n_s32(start) },
        )
    }
    #[inline(always)]
    fn add_sixteen<const C: usize>(self, sums: &mut [int32x4_t; C], w: [int8x16_t; 4], a: &[int8x16_t; C]) {
        /// Lane by lane, so that the next instruction does not wait for this one's sum. A macro, since a lane is a constant
        /// and a closure would not have the feature.
        macro_rules! lanes {
            ($($lane:literal),+) => { $(
                for (sum, &a) in sums.iter_mut().zip(a) {
                    // SAFETY: the token proves the dot product.
                    *sum = unsafe { sdot::<$lane>(*sum, w[$lane], a) };
                }
            )+ };
        }
        lanes!(0, 1, 2, 3);
    }
    #[inline(always)]
    fn rows<const C: usize>(self, sums: [int32x4_t; C]) -> [int32x4_t; C] {
        sums
    }
}
