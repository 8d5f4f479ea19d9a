//! NEON: every 64-bit ARM.
//!
//! Only the integer products of quantised blocks differ between ARM generations, so they are a parameter ([`Dot`]) of the
//! lanes: [`super::neon_plain`], and [`super::neon_dotprod`] for CPUs that multiply bytes four at a time.

use super::simd::{LANES, Simd};
use core::arch::aarch64::*;
use core::arch::asm;

/// Proof that the CPU has NEON and what `D` needs.
#[derive(Clone, Copy)]
pub(super) struct Neon<D>(pub(super) D);

/// Eight blocks of 32 bytes, each as elements 0 to 15 and 16 to 31.
pub(super) type Blocks = [(int8x16_t, int8x16_t); LANES];

/// Eight i32 lanes.
pub(super) type Sums = (int32x4_t, int32x4_t);

/// Exact integer products of eight blocks with one block of activations: the `dot_` methods of [`Simd`] before their
/// conversion to f32.
pub(super) trait Dot: Copy {
    fn i8(self, w: &Blocks, a: &[i16; 32]) -> Sums;
    fn u5(self, w: &Blocks, a: &[i8; 32]) -> Sums;
    fn s8(self, w: &Blocks, a: &[i8; 32]) -> Sums;
    fn u6(self, w: &Blocks, a: &[i8; 32]) -> [Sums; 2];
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

/// Weights in 0..=63 as those in -32..=31 that they stand for.
#[inline(always)]
pub(super) fn less_32(w: int8x16_t) -> int8x16_t {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { vsubq_s8(w, vdupq_n_s8(32)) }
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

/// Four vectors, transposed.
#[inline(always)]
fn four(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe {
        let (a, b) = (vtrn1q_f32(v[0], v[1]), vtrn2q_f32(v[0], v[1]));
        let (c, d) = (vtrn1q_f32(v[2], v[3]), vtrn2q_f32(v[2], v[3]));
        let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
        let (c, d) = (vreinterpretq_f64_f32(c), vreinterpretq_f64_f32(d));
        [
            vreinterpretq_f32_f64(vzip1q_f64(a, c)),
            vreinterpretq_f32_f64(vzip1q_f64(b, d)),
            vreinterpretq_f32_f64(vzip2q_f64(a, c)),
            vreinterpretq_f32_f64(vzip2q_f64(b, d)),
        ]
    }
}

/// Four rows of four words, transposed.
///
/// # Safety
/// 16 bytes behind every pointer must be readable.
#[inline(always)]
unsafe fn transposed(p: [*const u8; 4]) -> [uint32x4_t; 4] {
    // SAFETY: the caller promises the bytes, and is reached through a token, which proves NEON.
    unsafe {
        let mut v = [vdupq_n_u32(0); 4];
        for (v, p) in v.iter_mut().zip(p) {
            *v = vreinterpretq_u32_u8(vld1q_u8(p));
        }
        let (a, b) = (vzip1q_u32(v[0], v[1]), vzip2q_u32(v[0], v[1]));
        let (c, d) = (vzip1q_u32(v[2], v[3]), vzip2q_u32(v[2], v[3]));
        let [a, b, c, d] = [a, b, c, d].map(
            #[inline(always)]
            |v| vreinterpretq_u64_u32(v),
        );
        [vzip1q_u64(a, c), vzip2q_u64(a, c), vzip1q_u64(b, d), vzip2q_u64(b, d)].map(
            #[inline(always)]
            |v| vreinterpretq_u32_u64(v),
        )
    }
}

/// Sixteen bytes shifted down (up, if negative), under `mask`.
///
/// # Safety
/// 16 bytes must be readable.
#[inline(always)]
unsafe fn bits_of(p: *const u8, down: i32, mask: u8) -> int8x16_t {
    // SAFETY: the caller promises the bytes, and is reached through a token, which proves NEON.
    unsafe {
        let shifted = vshlq_u8(vld1q_u8(p), vdupq_n_s8(-down as i8));
        vreinterpretq_s8_u8(vandq_u8(shifted, vdupq_n_u8(mask)))
    }
}

impl<D: Dot> Simd for Neon<D> {
    type V = V;
    type W = (uint32x4_t, uint32x4_t);
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
    fn pick(self, x: V, limit: V, a: V, b: V) -> V {
        let below = halves!(vcltq_f32, x, limit);
        halves!(vbslq_f32, below, a, b)
    }
    #[inline(always)]
    fn transpose(self, v: [V; LANES]) -> [V; LANES] {
        let [a, b, c, d] = [
            four([v[0].0, v[1].0, v[2].0, v[3].0]),
            four([v[4].0, v[5].0, v[6].0, v[7].0]),
            four([v[0].1, v[1].1, v[2].1, v[3].1]),
            four([v[4].1, v[5].1, v[6].1, v[7].1]),
        ];
        let mut out = v;
        for i in 0..4 {
            out[i] = (a[i], b[i]);
            out[i + 4] = (c[i], d[i]);
        }
        out
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
    unsafe fn words(self, p: [*const u8; LANES]) -> [Self::W; 4] {
        // SAFETY: the token proves NEON.
        let mut out = [unsafe { (vdupq_n_u32(0), vdupq_n_u32(0)) }; 4];
        // SAFETY: the token proves NEON; the caller promises 16 readable bytes behind every pointer.
        let (lo, hi) = unsafe { (transposed([p[0], p[1], p[2], p[3]]), transposed([p[4], p[5], p[6], p[7]])) };
        for (out, (lo, hi)) in out.iter_mut().zip(lo.into_iter().zip(hi)) {
            *out = (lo, hi);
        }
        out
    }
    #[inline(always)]
    fn field(self, w: Self::W, from: u32, bits: u32) -> V {
        // SAFETY: the token proves NEON.
        let (down, mask) = unsafe { (vdupq_n_s32(-(from as i32)), vdupq_n_u32((1 << bits) - 1)) };
        let v = halves!(vshlq_u32, w, (down, down));
        let v = halves!(vandq_u32, v, (mask, mask));
        halves!(vcvtq_f32_u32, v)
    }
    #[inline(always)]
    fn signed_byte(self, w: Self::W, i: u32) -> V {
        // SAFETY: the token proves NEON.
        unsafe {
            let up = vdupq_n_s32(24 - 8 * i as i32);
            let (lo, hi) = (vshlq_s32(vreinterpretq_s32_u32(w.0), up), vshlq_s32(vreinterpretq_s32_u32(w.1), up));
            (vcvtq_f32_s32(vshrq_n_s32::<24>(lo)), vcvtq_f32_s32(vshrq_n_s32::<24>(hi)))
        }
    }
    #[inline(always)]
    fn half(self, w: Self::W, i: u32) -> V {
        // SAFETY: the token proves NEON.
        unsafe {
            let down = vdupq_n_s32(-16 * i as i32);
            from_halves(vmovn_high_u32(vmovn_u32(vshlq_u32(w.0, down)), vshlq_u32(w.1, down)))
        }
    }
    #[inline(always)]
    unsafe fn block_nibbles(self, p: [*const u8; LANES], shift: u32) -> Blocks {
        // SAFETY: the token proves NEON.
        let mut out = [unsafe { (vdupq_n_s8(0), vdupq_n_s8(0)) }; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the token proves NEON; the caller promises 32 readable bytes behind every pointer.
            *o = unsafe { (bits_of(p, shift as i32, 15), bits_of(p.add(16), shift as i32, 15)) };
        }
        out
    }
    #[inline(always)]
    unsafe fn raise(self, mut w: Blocks, p: [*const u8; LANES], shift: u32, mask: u8) -> Blocks {
        for (w, p) in w.iter_mut().zip(p) {
            // SAFETY: the token proves NEON; the caller promises 32 readable bytes behind every pointer.
            unsafe {
                let down = shift as i32 - 4;
                let (lo, hi) = (bits_of(p, down, mask << 4), bits_of(p.add(16), down, mask << 4));
                *w = (vorrq_s8(w.0, lo), vorrq_s8(w.1, hi));
            }
        }
        w
    }
    #[inline(always)]
    unsafe fn raise_bits(self, mut w: Blocks, p: [*const u8; LANES]) -> Blocks {
        // Every byte of bits goes to eight elements, of which each keeps its own bit.
        // SAFETY: the token proves NEON.
        let own = unsafe { vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201)) };
        for (w, p) in w.iter_mut().zip(p) {
            // SAFETY: the token proves NEON; the caller promises four readable bytes behind every pointer.
            unsafe {
                let bits = p.cast::<[u8; 4]>().read();
                let lo = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
                let hi = vcombine_u8(vdup_n_u8(bits[2]), vdup_n_u8(bits[3]));
                let set = vdupq_n_u8(16);
                let (lo, hi) = (vandq_u8(vtstq_u8(lo, own), set), vandq_u8(vtstq_u8(hi, own), set));
                *w = (vorrq_s8(w.0, vreinterpretq_s8_u8(lo)), vorrq_s8(w.1, vreinterpretq_s8_u8(hi)));
            }
        }
        w
    }
    #[inline(always)]
    fn lookup(self, mut w: Blocks, table: &[i8; 16]) -> Blocks {
        // SAFETY: the token proves NEON; the load covers the 16 bytes of the table.
        unsafe {
            let table = vld1q_s8(table.as_ptr());
            for w in &mut w {
                *w = (vqtbl1q_s8(table, vreinterpretq_u8_s8(w.0)), vqtbl1q_s8(table, vreinterpretq_u8_s8(w.1)));
            }
        }
        w
    }
    #[inline(always)]
    fn dot_u5(self, w: &Blocks, a: &[i8; 32]) -> V {
        let sums = self.0.u5(w, a);
        halves!(vcvtq_f32_s32, sums)
    }
    #[inline(always)]
    fn dot_s8(self, w: &Blocks, a: &[i8; 32]) -> V {
        let sums = self.0.s8(w, a);
        halves!(vcvtq_f32_s32, sums)
    }
    #[inline(always)]
    fn dot_u6(self, w: &Blocks, a: &[i8; 32]) -> [V; 2] {
        let [first, second] = self.0.u6(w, a);
        [halves!(vcvtq_f32_s32, first), halves!(vcvtq_f32_s32, second)]
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
