//! NEON: every 64-bit ARM.
//!
//! Only the integer products of quantised blocks differ between ARM generations, so they are a parameter ([`Dot`]) of the
//! lanes: [`Plain`] here, and [`super::neon_dotprod`] for CPUs that multiply bytes four at a time.

use super::simd::{LANES, Simd};
use core::arch::aarch64::*;
use core::arch::asm;
use std::arch::is_aarch64_feature_detected;

/// Proof that the CPU has NEON and what `D` needs.
#[derive(Clone, Copy)]
pub(super) struct Neon<D>(pub(super) D);

/// Eight blocks of 32 bytes, each as elements 0 to 15 and 16 to 31.
pub(super) type Blocks = [(int8x16_t, int8x16_t); LANES];

/// Eight i32 lanes.
pub(super) type Sums = (int32x4_t, int32x4_t);

/// Exact integer products of eight blocks with one block of activations: [`Simd::dot_i8`] and [`Simd::dot_u4`] before their
/// conversion to f32.
pub(super) trait Dot: Copy {
    fn i8(self, w: &Blocks, a: &[i16; 32]) -> Sums;
    fn u4(self, w: &Blocks, a: &[i8; 32]) -> Sums;
}

/// Products by the widening multiplications that every NEON has.
#[derive(Clone, Copy)]
pub(super) struct Plain(());

impl Neon<Plain> {
    /// The proof, if the running CPU has NEON.
    pub(super) fn detect() -> Option<Self> {
        is_aarch64_feature_detected!("neon").then_some(Neon(Plain(())))
    }
}

/// Lane `i` of the result is the sum of all lanes of `v[i]`; integer sums do not care about order.
#[inline(always)]
pub(super) fn transpose_sum(v: [int32x4_t; LANES]) -> Sums {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe {
        (
            vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])),
            vpaddq_s32(vpaddq_s32(v[4], v[5]), vpaddq_s32(v[6], v[7])),
        )
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
    fn u4(self, w: &Blocks, a: &[i8; 32]) -> Sums {
        // A product is at most 15 * 127 = 1905, so sixteen of them still fit 16 bits, where sums cost half: four in the
        // multiplications and two levels of pairs.
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
            (
                vpaddlq_s16(vpaddq_s16(vpaddq_s16(v[0], v[1]), vpaddq_s16(v[2], v[3]))),
                vpaddlq_s16(vpaddq_s16(vpaddq_s16(v[4], v[5]), vpaddq_s16(v[6], v[7]))),
            )
        }
    }
}

/// Two vectors of four lanes.
type V = (float32x4_t, float32x4_t);

/// Applies an instruction to both halves.
macro_rules! halves {
    ($f:ident, $($v:expr),+) => {
        // SAFETY: the token proves NEON.
        unsafe { ($f($($v.0),+), $f($($v.1),+)) }
    };
}

#[inline(always)]
fn widen(v: int16x8_t) -> V {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { (vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))) }
}

#[inline(always)]
fn from_halves(v: uint16x8_t) -> V {
    // SAFETY: every caller is reached through a token, which proves NEON; this conversion is part of it.
    unsafe {
        let v = vreinterpretq_f16_u16(v);
        (vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v))
    }
}

/// Truncates to 16 bits, saturating.
#[inline(always)]
fn narrow(v: V) -> int16x8_t {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { vqmovn_high_s32(vqmovn_s32(vcvtq_s32_f32(v.0)), vcvtq_s32_f32(v.1)) }
}

impl<D: Dot> Simd for Neon<D> {
    type V = V;
    type Block = Blocks;

    #[inline(always)]
    fn splat(self, x: f32) -> V {
        halves!(vdupq_n_f32, (x, x))
    }
    #[inline(always)]
    fn load(self, p: &[f32; LANES]) -> V {
        // SAFETY: the token proves NEON; the reference covers the 32 bytes of both loads.
        unsafe { (vld1q_f32(p.as_ptr()), vld1q_f32(p.as_ptr().add(4))) }
    }
    #[inline(always)]
    fn store(self, v: V, p: &mut [f32; LANES]) {
        // SAFETY: the token proves NEON; the reference covers the 32 bytes of both stores.
        unsafe {
            vst1q_f32(p.as_mut_ptr(), v.0);
            vst1q_f32(p.as_mut_ptr().add(4), v.1);
        }
    }
    #[inline(always)]
    fn load_f16(self, p: &[u8; 16]) -> V {
        // SAFETY: the token proves NEON; the reference covers 16 bytes, and a load of bytes asks for no alignment.
        from_halves(unsafe { vreinterpretq_u16_u8(vld1q_u8(p.as_ptr())) })
    }
    #[inline(always)]
    fn load_bf16(self, p: &[u8; 16]) -> V {
        // SAFETY: the token proves NEON; the reference covers 16 bytes, and a load of bytes asks for no alignment.
        unsafe {
            let v = vreinterpretq_u16_u8(vld1q_u8(p.as_ptr()));
            let (lo, hi) = (vshll_n_u16::<16>(vget_low_u16(v)), vshll_high_n_u16::<16>(v));
            (vreinterpretq_f32_u32(lo), vreinterpretq_f32_u32(hi))
        }
    }
    #[inline(always)]
    fn load_i8(self, p: &[u8; 8]) -> V {
        // SAFETY: the token proves NEON; the reference covers the 8 bytes of the load.
        widen(unsafe { vmovl_s8(vreinterpret_s8_u8(vld1_u8(p.as_ptr()))) })
    }
    #[inline(always)]
    fn store_f16(self, v: V, p: &mut [u8; 16]) {
        // SAFETY: the token proves NEON; the reference covers 16 bytes, and a store of bytes asks for no alignment.
        unsafe {
            let h = vcvt_high_f16_f32(vcvt_f16_f32(v.0), v.1);
            vst1q_u8(p.as_mut_ptr(), vreinterpretq_u8_f16(h));
        }
    }
    #[inline(always)]
    fn add(self, a: V, b: V) -> V {
        halves!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: V, b: V) -> V {
        halves!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: V, b: V) -> V {
        halves!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: V, b: V) -> V {
        halves!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn fma(self, a: V, b: V, c: V) -> V {
        // The instruction's accumulator comes first.
        halves!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn max(self, a: V, b: V) -> V {
        // `fmax` gives NaN for a NaN on either side.
        let first = halves!(vcgtq_f32, a, b);
        halves!(vbslq_f32, first, a, b)
    }
    #[inline(always)]
    fn min(self, a: V, b: V) -> V {
        let first = halves!(vcltq_f32, a, b);
        halves!(vbslq_f32, first, a, b)
    }
    #[inline(always)]
    fn abs(self, a: V) -> V {
        halves!(vabsq_f32, a)
    }
    #[inline(always)]
    fn round(self, a: V) -> V {
        halves!(vrndnq_f32, a)
    }
    #[inline(always)]
    fn pow2(self, n: V) -> V {
        let n = halves!(vcvtq_s32_f32, n);
        // SAFETY: the token proves NEON.
        let bias = unsafe { vdupq_n_s32(127) };
        let e = halves!(vaddq_s32, n, (bias, bias));
        // SAFETY: the token proves NEON.
        unsafe { (vreinterpretq_f32_s32(vshlq_n_s32::<23>(e.0)), vreinterpretq_f32_s32(vshlq_n_s32::<23>(e.1))) }
    }
    #[inline(always)]
    fn zero_below(self, x: V, limit: V, v: V) -> V {
        let below = halves!(vcltq_f32, x, limit);
        halves!(vbslq_f32, below, self.splat(0.0), v)
    }
    #[inline(always)]
    fn store_i8(self, v: V, p: &mut [i8; LANES]) {
        // SAFETY: the token proves NEON; the reference covers the 8 bytes of the store.
        unsafe { vst1_s8(p.as_mut_ptr(), vqmovn_s16(narrow(v))) }
    }
    #[inline(always)]
    fn store_i16(self, v: V, p: &mut [i16; LANES]) {
        // SAFETY: the token proves NEON; the reference covers the 16 bytes of the store.
        unsafe { vst1q_s16(p.as_mut_ptr(), narrow(v)) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // The compiler's own name for the instruction, `_prefetch`, is not stable.
        // SAFETY: a prefetch has no effect that a program could observe, whatever the address.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn gather_f16(self, p: [*const u8; LANES]) -> V {
        /// Puts what lies behind a pointer in one lane. Through memory, the wide load would wait for eight small stores.
        macro_rules! lanes {
            ($h:ident, $($i:literal),*) => {
                // SAFETY: the token proves NEON; the caller promises two readable bytes behind every pointer.
                unsafe { $($h = vsetq_lane_u16::<$i>(p[$i].cast::<u16>().read_unaligned(), $h);)* }
            };
        }
        // SAFETY: the token proves NEON.
        let mut h = unsafe { vdupq_n_u16(0) };
        lanes!(h, 0, 1, 2, 3, 4, 5, 6, 7);
        from_halves(h)
    }
    #[inline(always)]
    unsafe fn block_i8(self, p: [*const u8; LANES]) -> Blocks {
        // SAFETY: the token proves NEON.
        let mut out = [unsafe { (vdupq_n_s8(0), vdupq_n_s8(0)) }; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the token proves NEON; the caller promises 32 readable bytes behind every pointer.
            *o = unsafe { (vld1q_s8(p.cast()), vld1q_s8(p.cast::<i8>().add(16))) };
        }
        out
    }
    #[inline(always)]
    unsafe fn block_u4(self, p: [*const u8; LANES]) -> Blocks {
        // SAFETY: the token proves NEON.
        let mut out = [unsafe { (vdupq_n_s8(0), vdupq_n_s8(0)) }; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the token proves NEON; the caller promises 16 readable bytes behind every pointer.
            *o = unsafe {
                let b = vld1q_u8(p);
                (vreinterpretq_s8_u8(vandq_u8(b, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(b)))
            };
        }
        out
    }
    #[inline(always)]
    fn dot_i8(self, w: &Blocks, a: &[i16; 32]) -> V {
        let sums = self.0.i8(w, a);
        halves!(vcvtq_f32_s32, sums)
    }
    #[inline(always)]
    fn dot_u4(self, w: &Blocks, a: &[i8; 32]) -> V {
        let sums = self.0.u4(w, a);
        halves!(vcvtq_f32_s32, sums)
    }
    #[inline(always)]
    fn sum(self, v: V) -> f32 {
        // SAFETY: the token proves NEON.
        unsafe {
            let m = vaddq_f32(v.0, v.1);
            vpadds_f32(vadd_f32(vget_low_f32(m), vget_high_f32(m)))
        }
    }
}

const ISA: super::Isa = super::Isa::Neon;
super::stamp!(Neon(Plain(())), "neon");
