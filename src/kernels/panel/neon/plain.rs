//! Byte products by the widening multiplications that every NEON has.

use super::{Dot, Q, Sums, all, in_order};
use crate::kernels::panel::wide::{Columns, GROUPS};
use core::arch::aarch64::*;

/// Products by `smlal`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Plain(());

pub(super) const TOKEN: Plain = Plain(());

/// Sums of 16 bits, four to a row: rows 4h and 4h + 1, and 4h + 2 and 4h + 3.
type Short = [int16x8_t; 2];

/// Four groups of all rows.
type Quad = [Q; 4];

/// Adds the products of a group with four activations in every lane of 32 bits.
#[inline(always)]
fn add_group(sums: Short, w: int8x16_t, a: int32x4_t) -> Short {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe {
        let a = vreinterpretq_s8_s32(a);
        [vmlal_s8(sums[0], vget_low_s8(w), vget_low_s8(a)), vmlal_high_s8(sums[1], w, a)]
    }
}

#[inline(always)]
fn zero() -> Short {
    // SAFETY: every caller is reached through a token, which proves NEON.
    [unsafe { vdupq_n_s16(0) }; 2]
}

/// Adds the products of four groups of rows 4h to 4h + 3 with the sixteen activations at `a`.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn add_sixteen(sums: Short, w: &Quad, h: usize, a: *const i8) -> Short {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        let a = vreinterpretq_s32_s8(vld1q_s8(a));
        let sums = add_group(sums, w[0][h], vdupq_laneq_s32::<0>(a));
        let sums = add_group(sums, w[1][h], vdupq_laneq_s32::<1>(a));
        let sums = add_group(sums, w[2][h], vdupq_laneq_s32::<2>(a));
        add_group(sums, w[3][h], vdupq_laneq_s32::<3>(a))
    }
}

/// As [`add_sixteen`], for bytes in ±127: two sums of 32 bits to a row.
///
/// # Safety
/// The activations are there.
#[inline(always)]
unsafe fn add_sixteen_large(sums: [int32x4_t; 2], w: &Quad, h: usize, a: *const i8) -> [int32x4_t; 2] {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        let a = vreinterpretq_s32_s8(vld1q_s8(a));
        // Two products are at most 2 · 127 · 127 = 32258.
        let one = add_group(zero(), w[0][h], vdupq_laneq_s32::<0>(a));
        let one = add_group(one, w[1][h], vdupq_laneq_s32::<1>(a));
        let two = add_group(zero(), w[2][h], vdupq_laneq_s32::<2>(a));
        let two = add_group(two, w[3][h], vdupq_laneq_s32::<3>(a));
        [vpadalq_s16(vpadalq_s16(sums[0], one[0]), two[0]), vpadalq_s16(vpadalq_s16(sums[1], one[1]), two[1])]
    }
}

/// Sums of rows, whose lanes are too large to be added in 16 bits.
#[inline(always)]
fn long(sums: Short) -> int32x4_t {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1])) }
}

/// Sums of rows, where two lanes together still fit 16 bits.
#[inline(always)]
fn small(sums: Short) -> int32x4_t {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { vpaddlq_s16(vpaddq_s16(sums[0], sums[1])) }
}

#[inline(always)]
fn plus(v: int32x4_t, x: i32) -> int32x4_t {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe { vaddq_s32(v, vdupq_n_s32(x)) }
}

/// Weights in 0..=63 as those in -32..=31 that they stand for.
#[inline(always)]
fn less_32(w: &Quad) -> Quad {
    w.map(
        #[inline(always)]
        |[a, b]| {
            // SAFETY: every caller is reached through a token, which proves NEON.
            unsafe { [vsubq_s8(a, vdupq_n_s8(32)), vsubq_s8(b, vdupq_n_s8(32))] }
        },
    )
}

/// The groups of the first sixteen weights, and of the others.
#[inline(always)]
fn quads(w: &[Q; GROUPS]) -> [Quad; 2] {
    let [a, b, c, d, e, f, g, h] = *w;
    [[a, b, c, d], [e, f, g, h]]
}

/// What `of` gives for row `j` of `columns`. Many are made one after the other.
#[inline(always)]
fn after<T>(of: &impl Fn(usize) -> T, j: usize, columns: usize) -> T {
    if columns > 2 {
        in_order();
    }
    of(j)
}

/// What `of` gives for each row of activations. The compiler would not unroll a loop of so much, and keep the weights in memory,
/// so four are written out: more, no tile has.
#[inline(always)]
fn columns<T: Copy, const C: usize>(of: impl Fn(usize) -> T) -> [T; C] {
    let mut out = [of(0); C];
    if C > 1 {
        out[1] = after(&of, 1, C);
    }
    if C > 2 {
        out[2] = after(&of, 2, C);
    }
    if C > 3 {
        out[3] = after(&of, 3, C);
    }
    for (j, out) in out.iter_mut().enumerate().skip(4) {
        *out = of(j);
    }
    out
}

/// What `of` gives for each row of activations j and each half h of the weight rows, 4h to 4h + 3, which share the spread
/// activations.
#[inline(always)]
fn halves<const C: usize>(of: impl Fn(usize, usize) -> int32x4_t) -> [Sums; C] {
    columns(
        #[inline(always)]
        |j| [of(j, 0), of(j, 1)],
    )
}

/// Adds to four sums each of four weight rows the products of two groups, at `w` and 32 bytes further, with 16-bit activations.
///
/// # Safety
/// 48 bytes are at `w`, and activations in each of the rows that `a` gives.
#[inline(always)]
unsafe fn add_wide<const C: usize>(sums: &mut [[int32x4_t; 4]; C], w: *const u8, a: impl Fn(usize) -> *const i16) {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        // Two groups of a row side by side meet eight activations as these lie in memory.
        let (one, two) = (vreinterpretq_s32_u8(vld1q_u8(w)), vreinterpretq_s32_u8(vld1q_u8(w.add(32))));
        let (lo, hi) = (vreinterpretq_s8_s32(vzip1q_s32(one, two)), vreinterpretq_s8_s32(vzip2q_s32(one, two)));
        let rows = [vmovl_s8(vget_low_s8(lo)), vmovl_high_s8(lo), vmovl_s8(vget_low_s8(hi)), vmovl_high_s8(hi)];
        for (j, sums) in sums.iter_mut().enumerate() {
            let a = vld1q_s16(a(j));
            for (sum, w) in sums.iter_mut().zip(rows) {
                *sum = vmlal_high_s16(vmlal_s16(*sum, vget_low_s16(w), vget_low_s16(a)), w, a);
            }
        }
    }
}

/// The products of rows 4h to 4h + 3 and 16-bit activations.
///
/// # Safety
/// 256 bytes are at `w`, and `C` blocks.
#[inline(always)]
unsafe fn wide<const C: usize>(w: *const u8, a: &Columns, h: usize) -> [int32x4_t; C] {
    // SAFETY: as the caller promises, who is reached through a token, which proves NEON.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); 4]; C];
        let w = w.add(16 * h);
        add_wide(
            &mut sums,
            w,
            #[inline(always)]
            |j| a.wide(j),
        );
        add_wide(
            &mut sums,
            w.add(64),
            #[inline(always)]
            |j| a.wide(j).add(8),
        );
        add_wide(
            &mut sums,
            w.add(128),
            #[inline(always)]
            |j| a.wide(j).add(16),
        );
        add_wide(
            &mut sums,
            w.add(192),
            #[inline(always)]
            |j| a.wide(j).add(24),
        );
        columns(
            #[inline(always)]
            |j| {
                let [s, t, u, v] = sums[j];
                vpaddq_s32(vpaddq_s32(s, t), vpaddq_s32(u, v))
            },
        )
    }
}

impl Dot for Plain {
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C] {
        let [first, second] = quads(w);
        halves(
            #[inline(always)]
            |j, h| {
                // A lane takes a product per group: two are at most 2 · 8 · 15 · 127 = 30480.
                // SAFETY: the caller promises `C` blocks.
                let sums = unsafe {
                    let sums = add_sixteen(zero(), &first, h, a.q(j));
                    add_sixteen(sums, &second, h, a.q(j).add(16))
                };
                plus(small(sums), start[j])
            },
        )
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[Q; GROUPS], a: &Columns, start: [i32; C]) -> [Sums; C] {
        let [first, second] = quads(w);
        halves(
            #[inline(always)]
            |j, h| {
                // A lane is at most 8 · 31 · 127 = 31496.
                // SAFETY: the caller promises `C` blocks.
                let sums = unsafe {
                    let sums = add_sixteen(zero(), &first, h, a.q(j));
                    add_sixteen(sums, &second, h, a.q(j).add(16))
                };
                plus(long(sums), start[j])
            },
        )
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [[Sums; 2]; C] {
        // Two lanes are at most 2 · 4 · 32 · 127 = 32512, where weights up to 63 would not fit: the subtractions are made
        // once for all rows of activations, and spare each wider sums and its own correction.
        let [first, second] = quads(w);
        let (first, second) = (less_32(&first), less_32(&second));
        let first: [_; C] = halves(
            #[inline(always)]
            // SAFETY: the caller promises `C` blocks.
            |j, h| small(unsafe { add_sixteen(zero(), &first, h, a.q(j)) }),
        );
        if C > 2 {
            in_order();
        }
        let second: [_; C] = halves(
            #[inline(always)]
            // SAFETY: the caller promises `C` blocks.
            |j, h| small(unsafe { add_sixteen(zero(), &second, h, a.q(j).add(16)) }),
        );
        let mut out = [[all(0); 2]; C];
        for (out, (first, second)) in out.iter_mut().zip(first.into_iter().zip(second)) {
            *out = [first, second];
        }
        out
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[Q; GROUPS], a: &Columns) -> [Sums; C] {
        let [first, second] = quads(w);
        halves(
            #[inline(always)]
            |j, h| {
                // SAFETY: the caller promises `C` blocks; the token proves NEON.
                unsafe {
                    let sums = add_sixteen_large([vdupq_n_s32(0); 2], &first, h, a.q(j));
                    let sums = add_sixteen_large(sums, &second, h, a.q(j).add(16));
                    vpaddq_s32(sums[0], sums[1])
                }
            },
        )
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: *const u8, a: &Columns) -> [Sums; C] {
        // One half of the rows after the other: all 32 sums of four columns would fill the registers.
        // SAFETY: as the caller promises.
        let first = unsafe { wide::<C>(w, a, 0) };
        in_order();
        // SAFETY: as the caller promises.
        let second = unsafe { wide::<C>(w, a, 1) };
        let mut out = [all(0); C];
        for (out, (first, second)) in out.iter_mut().zip(first.into_iter().zip(second)) {
            *out = [first, second];
        }
        out
    }
}
