//! NEON on every 64-bit ARM: byte products by the widening multiplications.

use super::neon::{Blocks, Dot, Neon, Sums, less_32, transpose_sum};
use super::simd::LANES;
use core::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

/// Products by the widening multiplications that every NEON has.
#[derive(Clone, Copy)]
pub(super) struct Plain(());

impl Neon<Plain> {
    /// The proof, if the running CPU has NEON.
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Neon(Plain(())))
    }
}

impl Dot for Plain {
    #[inline(always)]
    fn i8(self, w: &Blocks, a: &[i16; 32]) -> Sums {
        // SAFETY: the token proves NEON; the four loads cover the 64 bytes of `a`.
        unsafe {
            let (a0, a1) = (vld1q_s16(a.as_ptr()), vld1q_s16(a.as_ptr().add(8)));
            let (a2, a3) = (vld1q_s16(a.as_ptr().add(16)), vld1q_s16(a.as_ptr().add(24)));
            let mut v = [vdupq_n_s32(0); LANES];
            // Written out: with loops inside, the compiler leaves the one over the rows rolled, and `v` in memory.
            for (v, &(lo, hi)) in v.iter_mut().zip(w) {
                let (w0, w1) = (vmovl_s8(vget_low_s8(lo)), vmovl_high_s8(lo));
                let (w2, w3) = (vmovl_s8(vget_low_s8(hi)), vmovl_high_s8(hi));
                let mut sum = vmull_s16(vget_low_s16(w0), vget_low_s16(a0));
                sum = vmlal_high_s16(sum, w0, a0);
                sum = vmlal_s16(sum, vget_low_s16(w1), vget_low_s16(a1));
                sum = vmlal_high_s16(sum, w1, a1);
                sum = vmlal_s16(sum, vget_low_s16(w2), vget_low_s16(a2));
                sum = vmlal_high_s16(sum, w2, a2);
                sum = vmlal_s16(sum, vget_low_s16(w3), vget_low_s16(a3));
                *v = vmlal_high_s16(sum, w3, a3);
            }
            transpose_sum(v)
        }
    }
    #[inline(always)]
    fn u5(self, w: &Blocks, a: &[i8; 32]) -> Sums {
        // A product is at most 31 * 127 = 3937, so eight of them still fit 16 bits, where sums cost half: four in the
        // multiplications and one level of pairs.
        // SAFETY: the token proves NEON; the two loads cover the 32 bytes of `a`.
        unsafe {
            let (a_lo, a_hi) = (vld1q_s8(a.as_ptr()), vld1q_s8(a.as_ptr().add(16)));
            let mut v = [vdupq_n_s16(0); LANES];
            for (v, &(lo, hi)) in v.iter_mut().zip(w) {
                *v = vmull_s8(vget_low_s8(lo), vget_low_s8(a_lo));
                *v = vmlal_high_s8(*v, lo, a_lo);
                *v = vmlal_s8(*v, vget_low_s8(hi), vget_low_s8(a_hi));
                *v = vmlal_high_s8(*v, hi, a_hi);
            }
            let (v0, v2) = (vpaddlq_s16(vpaddq_s16(v[0], v[1])), vpaddlq_s16(vpaddq_s16(v[2], v[3])));
            let (v4, v6) = (vpaddlq_s16(vpaddq_s16(v[4], v[5])), vpaddlq_s16(vpaddq_s16(v[6], v[7])));
            (vpaddq_s32(v0, v2), vpaddq_s32(v4, v6))
        }
    }
    #[inline(always)]
    fn s8(self, w: &Blocks, a: &[i8; 32]) -> Sums {
        // Two products, at most 2 * 127 * 127 = 32258, fit 16 bits.
        // SAFETY: the token proves NEON; the two loads cover the 32 bytes of `a`.
        unsafe {
            let (a_lo, a_hi) = (vld1q_s8(a.as_ptr()), vld1q_s8(a.as_ptr().add(16)));
            let mut v = [vdupq_n_s32(0); LANES];
            for (v, &(lo, hi)) in v.iter_mut().zip(w) {
                let lo = vmlal_high_s8(vmull_s8(vget_low_s8(lo), vget_low_s8(a_lo)), lo, a_lo);
                let hi = vmlal_high_s8(vmull_s8(vget_low_s8(hi), vget_low_s8(a_hi)), hi, a_hi);
                *v = vpadalq_s16(vpaddlq_s16(lo), hi);
            }
            transpose_sum(v)
        }
    }
    #[inline(always)]
    fn u6(self, w: &Blocks, a: &[i8; 32]) -> [Sums; 2] {
        // A product is at most 32 * 127 = 4064, so eight of them still fit 16 bits: two in the multiplications and two levels
        // of pairs.
        // SAFETY: the token proves NEON; the two loads cover the 32 bytes of `a`.
        unsafe {
            let (a_lo, a_hi) = (vld1q_s8(a.as_ptr()), vld1q_s8(a.as_ptr().add(16)));
            let mut v = [[vdupq_n_s16(0); LANES]; 2];
            for (r, &(lo, hi)) in w.iter().enumerate() {
                let (lo, hi) = (less_32(lo), less_32(hi));
                v[0][r] = vmlal_high_s8(vmull_s8(vget_low_s8(lo), vget_low_s8(a_lo)), lo, a_lo);
                v[1][r] = vmlal_high_s8(vmull_s8(vget_low_s8(hi), vget_low_s8(a_hi)), hi, a_hi);
            }
            let mut sums = [(vdupq_n_s32(0), vdupq_n_s32(0)); 2];
            for (sums, v) in sums.iter_mut().zip(v) {
                *sums = (
                    vpaddlq_s16(vpaddq_s16(vpaddq_s16(v[0], v[1]), vpaddq_s16(v[2], v[3]))),
                    vpaddlq_s16(vpaddq_s16(vpaddq_s16(v[4], v[5]), vpaddq_s16(v[6], v[7]))),
                );
            }
            sums
        }
    }
}

const ISA: super::Isa = super::Isa::Neon;
super::stamp::stamp!(Neon(Plain(())), crate::kernels::scalar::Scalar, Neon(Plain(())), "neon");
