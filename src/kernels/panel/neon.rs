//! Panels of eight rows in pairs of 128-bit registers: 64-bit ARM. A register holds four bytes of each of four rows.
//!
//! What multiplies the bytes is a parameter ([`Dot`]): [`Plain`] on every CPU, [`Dotprod`] and [`I8mm`] where there are such
//! instructions.

mod bytes;
mod dotprod;
mod i8mm;
mod plain;

pub(in crate::kernels) use dotprod::Dotprod;
pub(in crate::kernels) use i8mm::I8mm;
pub(in crate::kernels) use plain::Plain;

use super::formats::Packed;
use super::wide::{Columns, GROUPS, Wide};
use core::arch::aarch64::*;
use core::arch::asm;

/// Four weights of rows 0 to 3, and of rows 4 to 7.
type Q = [int8x16_t; 2];
/// An i32 per row.
type Sums = [int32x4_t; 2];
/// An f32 per row.
type F = [float32x4_t; 2];

/// How bytes are multiplied: the products of [`Wide`] before they become f32.
pub(in crate::kernels) trait Dot: Copy {
    unsafe fn dot_u4<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C];
    unsafe fn dot_u5<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C];
    unsafe fn dot_u6<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [[Sums; 2]; C];
    unsafe fn dot_s8<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [Sums; C];
    unsafe fn dot_wide<const C: usize>(self, w: *const u8, a: &Columns) -> [Sums; C];
}

/// Proof that the CPU has NEON and what `D` needs.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Neon8<D>(D);

/// The token for a table of kernels, which is handed out only where the CPU has NEON.
pub(in crate::kernels) const NEON: Neon8<Plain> = Neon8(plain::TOKEN);
/// As [`NEON`], where it has the dot product of bytes too.
pub(in crate::kernels) const NEON_DOTPROD: Neon8<Dotprod> = Neon8(dotprod::TOKEN);
/// As [`NEON_DOTPROD`], where it has the matrix product of bytes too.
pub(in crate::kernels) const NEON_I8MM: Neon8<I8mm> = Neon8(i8mm::TOKEN);

/// The same number for every row.
#[inline(always)]
fn all(x: i32) -> Sums {
    // SAFETY: every caller is reached through a token, which proves NEON.
    let v = unsafe { vdupq_n_s32(x) };
    [v, v]
}

/// Keeps loads from being moved from behind this place to before it.
///
/// The scheduler begins what is independent early, whether there are registers for it or not; where the next activations are
/// not loaded yet, it cannot.
#[inline(always)]
fn in_order() {
    // SAFETY: no instruction at all.
    unsafe { asm!("", options(nostack, preserves_flags)) }
}

/// Exact sums, rounded once.
#[inline(always)]
fn rounded<const C: usize>(sums: [Sums; C]) -> [F; C] {
    sums.map(
        #[inline(always)]
        // SAFETY: every caller is reached through a token, which proves NEON.
        |[a, b]| unsafe { [vcvtq_f32_s32(a), vcvtq_f32_s32(b)] },
    )
}

/// Bytes as f32, after they were widened to 16 bits.
#[inline(always)]
fn widened(v: int16x8_t) -> F {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { [vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))] }
}

/// The same on both registers of some variables.
macro_rules! both {
    (|$($v:ident),+| $e:expr) => {
        // SAFETY: the token proves NEON.
        [unsafe { $(let $v = $v[0];)+ $e }, unsafe { $(let $v = $v[1];)+ $e }]
    };
}

impl<D: Dot> Wide for Neon8<D> {
    const ROWS: usize = 8;
    const COLUMNS: usize = 4;
    type F = F;
    type Q = Q;

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // The compiler's own name for the instruction, `_prefetch`, is not stable.
        // SAFETY: a prefetch has no effect that a program could observe, whatever the address.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: the token proves NEON.
        let v = unsafe { vdupq_n_f32(x) };
        [v, v]
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        both!(|a, b| vmulq_f32(a, b))
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        // The instruction's accumulator comes first.
        both!(|a, b, c| vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    unsafe fn store(self, v: F, p: *mut f32) {
        // SAFETY: the token proves NEON; the caller promises room.
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> F {
        // SAFETY: the token proves NEON; the caller promises the bytes.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn keep<P: Packed>(self, q: Q, p: *mut u8) {
        // SAFETY: the token proves NEON; the caller promises room.
        unsafe {
            vst1q_s8(p.cast(), q[0]);
            vst1q_s8(p.add(16).cast(), q[1]);
        }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> F {
        // SAFETY: the token proves NEON, which has the conversion; the caller promises the bytes.
        unsafe {
            let v = vreinterpretq_f16_u8(vld1q_u8(p));
            [vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)]
        }
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> F {
        // SAFETY: the token proves NEON; the caller promises the bytes.
        unsafe { widened(vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p)))) }
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> F {
        // SAFETY: the token proves NEON; the caller promises the bytes.
        unsafe { widened(vmovl_s8(vld1_s8(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> Q {
        // SAFETY: the token proves NEON; the caller promises the bytes.
        unsafe { [vld1q_s8(p.cast()), vld1q_s8(p.add(16).cast())] }
    }
    #[inline(always)]
    fn low(self, q: Q) -> Q {
        both!(|q| vandq_s8(q, vdupq_n_s8(15)))
    }
    #[inline(always)]
    fn high(self, q: Q) -> Q {
        both!(|q| vreinterpretq_s8_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s8(q))))
    }
    #[inline(always)]
    fn raise(self, q: Q, bits: Q, from: u32, mask: u8) -> Q {
        // A select, which leaves the other bits of `q` as they are, is one instruction where "and" and "or" are two.
        both!(|q, bits| {
            let placed = vshlq_u8(vreinterpretq_u8_s8(bits), vdupq_n_s8(4 - from as i8));
            vbslq_s8(vdupq_n_u8(mask << 4), vreinterpretq_s8_u8(placed), q)
        })
    }
    #[inline(always)]
    fn lookup(self, q: Q, table: &[i8; 16]) -> Q {
        // SAFETY: the token proves NEON; the table is 16 bytes.
        let table = unsafe { vld1q_s8(table.as_ptr()) };
        both!(|q| vqtbl1q_s8(table, vreinterpretq_u8_s8(q)))
    }
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [F; C] {
        // SAFETY: as the caller promises.
        rounded(unsafe { self.0.dot_u4(w, a, start) })
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [F; C] {
        // SAFETY: as the caller promises.
        rounded(unsafe { self.0.dot_u5(w, a, start) })
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [[F; 2]; C] {
        // SAFETY: as the caller promises.
        let sums = unsafe { self.0.dot_u6::<C>(w, a) };
        sums.map(rounded)
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [F; C] {
        // SAFETY: as the caller promises.
        rounded(unsafe { self.0.dot_s8(w, a) })
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [F; C] {
        // SAFETY: as the caller promises; the groups are as they lay in memory.
        rounded(unsafe { self.0.dot_wide(w.as_ptr().cast(), a) })
    }
}
