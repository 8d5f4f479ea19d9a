//! NEON with the byte dot product `sdot`: ARMv8.2's option, ARMv8.4's rule; Apple since A11 and M1, Cortex since A75 and A55,
//! Neoverse since N1.

use super::neon::{Blocks, Dot, Neon, Sums, less_32, transpose_sum};
use super::simd::LANES;
use core::arch::aarch64::*;
use core::arch::asm;
use std::arch::is_aarch64_feature_detected;

/// Products by `sdot`.
#[derive(Clone, Copy)]
pub(super) struct Dotprod(());

impl Neon<Dotprod> {
    /// The proof, if the running CPU has NEON and the dot product.
    pub(super) fn detect() -> Option<Self> {
        (is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")).then_some(Neon(Dotprod(())))
    }
}

/// Adds to every lane of `sum` the products of its four bytes of `a` and `b`.
///
/// The compiler's own name for the instruction, `vdotq_s32`, is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes only the registers named, and the function has its feature.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// The products of eight blocks with 32 signed bytes.
#[inline(always)]
fn bytes(_: Dotprod, w: &Blocks, lo: int8x16_t, hi: int8x16_t) -> Sums {
    // SAFETY: the token proves NEON and the dot product.
    unsafe {
        let mut v = [vdupq_n_s32(0); LANES];
        for (v, &(w_lo, w_hi)) in v.iter_mut().zip(w) {
            *v = sdot(sdot(*v, w_lo, lo), w_hi, hi);
        }
        transpose_sum(v)
    }
}

/// Sixteen activations in ±[`WIDE_MAX`](super::WIDE_MAX) as `128 * high + low`: high in ±127, low in -64..=63.
#[inline(always)]
fn split(_: Dotprod, x: int16x8_t, y: int16x8_t) -> (int8x16_t, int8x16_t) {
    // SAFETY: the token proves NEON.
    unsafe {
        let high = vrshrn_high_n_s16::<7>(vrshrn_n_s16::<7>(x), y);
        // In arithmetic modulo 256, which the low byte survives.
        let low = vsubq_s8(vmovn_high_s16(vmovn_s16(x), y), vshlq_n_s8::<7>(high));
        (high, low)
    }
}

impl Dot for Dotprod {
    #[inline(always)]
    fn i8(self, w: &Blocks, a: &[i16; 32]) -> Sums {
        // SAFETY: the token proves NEON; the four loads cover the 64 bytes of `a`.
        unsafe {
            let (high_0, low_0) = split(self, vld1q_s16(a.as_ptr()), vld1q_s16(a.as_ptr().add(8)));
            let (high_1, low_1) = split(self, vld1q_s16(a.as_ptr().add(16)), vld1q_s16(a.as_ptr().add(24)));
            let (high, low) = (bytes(self, w, high_0, high_1), bytes(self, w, low_0, low_1));
            (vaddq_s32(vshlq_n_s32::<7>(high.0), low.0), vaddq_s32(vshlq_n_s32::<7>(high.1), low.1))
        }
    }
    #[inline(always)]
    fn u5(self, w: &Blocks, a: &[i8; 32]) -> Sums {
        self.s8(w, a)
    }
    #[inline(always)]
    fn s8(self, w: &Blocks, a: &[i8; 32]) -> Sums {
        // SAFETY: the token proves NEON; the two loads cover the 32 bytes of `a`.
        let (lo, hi) = unsafe { (vld1q_s8(a.as_ptr()), vld1q_s8(a.as_ptr().add(16))) };
        bytes(self, w, lo, hi)
    }
    #[inline(always)]
    fn u6(self, w: &Blocks, a: &[i8; 32]) -> [Sums; 2] {
        // SAFETY: the token proves NEON and the dot product; the two loads cover the 32 bytes of `a`.
        unsafe {
            let (lo, hi) = (vld1q_s8(a.as_ptr()), vld1q_s8(a.as_ptr().add(16)));
            let zero = vdupq_n_s32(0);
            let mut v = [[zero; LANES]; 2];
            for (r, &(w_lo, w_hi)) in w.iter().enumerate() {
                v[0][r] = sdot(zero, less_32(w_lo), lo);
                v[1][r] = sdot(zero, less_32(w_hi), hi);
            }
            [transpose_sum(v[0]), transpose_sum(v[1])]
        }
    }
}

const ISA: super::Isa = super::Isa::NeonDotprod;
super::stamp::stamp!(Neon(Dotprod(())), crate::kernels::scalar::Scalar, Neon(Dotprod(())), "neon,dotprod");
