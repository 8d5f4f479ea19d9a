//! Products of four weights of four rows with four activations at a time, whatever instruction it is that makes them.

use super::{Dot, Q, Sums, all, in_order};
use crate::kernels::panel::wide::{Columns, GROUPS};
use core::arch::aarch64::*;

/// An instruction that adds products of bytes to sums of 32 bits.
///
/// A value is a proof that the CPU has it, and all methods must be inlined. A register per row of activations holds the sums of
/// four weight rows, in an order of the implementation's own until [`rows`](Self::rows) gives one row each.
pub(in crate::kernels) trait Bytes: Copy {
    /// Sums of four weight rows that begin at `start[j]` for activation row `j`.
    fn start<const C: usize>(self, start: [i32; C]) -> [int32x4_t; C];
    /// Adds the products of four groups with sixteen activations of each row.
    fn add_sixteen<const C: usize>(self, sums: &mut [int32x4_t; C], w: [int8x16_t; 4], a: &[int8x16_t; C]);
    /// The sums by rows of activations.
    fn rows<const C: usize>(self, sums: [int32x4_t; C]) -> [int32x4_t; C];
}

/// Sixteen activations of each row, the first of 32 or the others.
///
/// # Safety
/// There are `C` blocks in the form that `of` gives.
#[inline(always)]
unsafe fn sixteen<const C: usize>(
    a: &Columns,
    of: impl Fn(&Columns, usize) -> *const i8,
    part: usize,
) -> [int8x16_t; C] {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        let mut out = [vdupq_n_s8(0); C];
        for (j, out) in out.iter_mut().enumerate() {
            *out = vld1q_s8(of(a, j).add(16 * part));
        }
        out
    }
}

/// Four groups of rows 4h to 4h + 3.
#[inline(always)]
fn four(w: &[Q; GROUPS], first: usize, h: usize) -> [int8x16_t; 4] {
    [w[first][h], w[first + 1][h], w[first + 2][h], w[first + 3][h]]
}

/// Four groups of rows 4h to 4h + 3, as they lie in memory.
///
/// # Safety
/// 256 bytes are at `w`.
#[inline(always)]
unsafe fn four_at(w: *const u8, first: usize, h: usize) -> [int8x16_t; 4] {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        let w = w.add(32 * first + 16 * h).cast();
        [vld1q_s8(w), vld1q_s8(w.add(32)), vld1q_s8(w.add(64)), vld1q_s8(w.add(96))]
    }
}

/// By rows of activations, sums of rows 0 to 3 and of rows 4 to 7. `of` is called for one half after the other, so that fewer
/// registers are busy; in a loop, the compiler might keep it one, and the sums in memory.
#[inline(always)]
fn halves<const C: usize>(of: impl Fn(usize) -> [int32x4_t; C]) -> [Sums; C] {
    let first = of(0);
    if C > 2 {
        in_order();
    }
    let second = of(1);
    let mut out = [all(0); C];
    for (out, (first, second)) in out.iter_mut().zip(first.into_iter().zip(second)) {
        *out = [first, second];
    }
    out
}

/// `start[j]` plus the products of all groups with the activations of row `j`.
///
/// # Safety
/// There are `C` blocks.
#[inline(always)]
unsafe fn products<B: Bytes, const C: usize>(b: B, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C] {
    halves(
        #[inline(always)]
        |h| {
            let mut sums = b.start(start);
            // SAFETY: as the caller promises.
            unsafe {
                b.add_sixteen(&mut sums, four(w, 0, h), &sixteen(a, Columns::q, 0));
                b.add_sixteen(&mut sums, four(w, 4, h), &sixteen(a, Columns::q, 1));
            }
            b.rows(sums)
        },
    )
}

/// The products of sixteen weights, `part` of 32, up to 63, less 32.
///
/// # Safety
/// There are `C` blocks.
#[inline(always)]
unsafe fn sixes<B: Bytes, const C: usize>(b: B, w: &[Q; GROUPS], a: &Columns, part: usize) -> [Sums; C] {
    let mut start = [0; C];
    for (j, start) in start.iter_mut().enumerate() {
        // SAFETY: as the caller promises.
        *start = unsafe { a.scale(j) }.minus_32[part];
    }
    halves(
        #[inline(always)]
        |h| {
            let mut sums = b.start(start);
            // SAFETY: as the caller promises.
            b.add_sixteen(&mut sums, four(w, 4 * part, h), &unsafe { sixteen(a, Columns::q, part) });
            b.rows(sums)
        },
    )
}

impl<B: Bytes> Dot for B {
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C] {
        // SAFETY: as the caller promises.
        unsafe { products(self, w, a, start) }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C] {
        // SAFETY: as the caller promises.
        unsafe { products(self, w, a, start) }
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [[Sums; 2]; C] {
        // SAFETY: as the caller promises.
        let (first, second) = unsafe { (sixes::<B, C>(self, w, a, 0), sixes::<B, C>(self, w, a, 1)) };
        let mut out = [[all(0); 2]; C];
        for (out, (first, second)) in out.iter_mut().zip(first.into_iter().zip(second)) {
            *out = [first, second];
        }
        out
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [Sums; C] {
        // SAFETY: as the caller promises.
        unsafe { products(self, w, a, [0; C]) }
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: *const u8, a: &Columns) -> [Sums; C] {
        // 128 · Σ high·w + Σ low·w.
        halves(
            #[inline(always)]
            |h| {
                let (mut high, mut low) = (self.start([0; C]), self.start([0; C]));
                // SAFETY: the token proves NEON; the caller promises 256 bytes at `w`, and `C` blocks.
                unsafe {
                    let first = four_at(w, 0, h);
                    self.add_sixteen(&mut high, first, &sixteen(a, Columns::high, 0));
                    self.add_sixteen(&mut low, first, &sixteen(a, Columns::low, 0));
                    let second = four_at(w, 4, h);
                    self.add_sixteen(&mut high, second, &sixteen(a, Columns::high, 1));
                    self.add_sixteen(&mut low, second, &sixteen(a, Columns::low, 1));
                    for (high, low) in high.iter_mut().zip(low) {
                        *high = vaddq_s32(vshlq_n_s32::<7>(*high), low);
                    }
                }
                self.rows(high)
            },
        )
    }
}
