//! iq4_nl and iq4_xs: four-bit levels that stand for sixteen fixed numbers, close together near zero and far apart at the
//! ends, as weights are.
//!
//! ```text
//! iq4_nl, 32 values d * VALUES[q]:
//! byte 0..2    d     f16, of either sign
//! byte 2..18   q     see `nibbles`
//!
//! iq4_xs, 256 values in eight blocks of 32, d * (s[j] - 32) * VALUES[q] with s in 0..64:
//! byte 0..2    d     f16, of either sign
//! byte 2..4    high  bits 2 * j and 2 * j + 1 (little endian) are the upper two bits of s[j]
//! byte 4..8    low   byte j / 2 has the lower four bits of s[j], in its low half for even j
//! byte 8..136  q     sixteen bytes per block, see `nibbles`
//! ```
//! The scale of every 32 values is searched for, a value weighing `importance * sqrt(2 * mean square of the block or
//! super-block + x²)`, or its square without importance.
//!
//! A non-finite value in a block makes the whole block or super-block meaningless.

use super::batch::{self, Search, Weighting};
use super::lanes::{Columns, Lanes};
use super::nibbles::{self, LEN as SUB};
use super::{Coder, blocks, half, search, store_half};
use crate::gguf::TensorType;

/// What the levels stand for.
pub(crate) const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// The largest magnitude is laid on -127 and stretches up to this much shorter or longer are tried as well.
const TRIES: i32 = 7;
/// The largest value on level 15, the worst a search may do.
const LIMIT: f32 = 112.0 * 65504.0;

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;

/// The format with a scale in every block; see the module.
pub(super) struct Iq4Nl;

/// The format with super-blocks; see the module.
pub(super) struct Iq4Xs;

impl Coder for Iq4Nl {
    fn tensor_type(&self) -> TensorType {
        TensorType::IQ4_NL
    }

    fn limit(&self) -> f32 {
        LIMIT
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        batch::quantize::<SUB, L, _>(self, TensorType::IQ4_NL, src, dst, importance);
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks(TensorType::IQ4_NL, src, dst) {
            *x = values(half(block, 0), &block[2..]);
        }
    }
}

impl Coder for Iq4Xs {
    fn tensor_type(&self) -> TensorType {
        TensorType::IQ4_XS
    }

    fn limit(&self) -> f32 {
        32.0 * LIMIT
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        batch::quantize::<LEN, L, _>(self, TensorType::IQ4_XS, src, dst, importance);
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(TensorType::IQ4_XS, src, dst) {
            let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
            let subs = x.as_chunks_mut::<SUB>().0.iter_mut().zip(block[8..].chunks_exact(SUB / 2));
            for (j, (x, q)) in subs.enumerate() {
                let s = i32::from(block[4 + j / 2] >> (j % 2 * 4) & 15) | i32::from(high >> (2 * j) & 3) << 4;
                *x = values(d * (s - 32) as f32, q);
            }
        }
    }
}

impl Search<SUB> for Iq4Nl {
    const ROW: bool = false;

    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<SUB, L>,
        weighting: Option<&Weighting<SUB, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let mean_square = search::mean_square(&x.0);
        let d = best_scale(&x.0, &weights(&x.0, weighting.map(|w| &w.importance.0), mean_square));
        let mut levels = Columns::ZERO;
        fill_levels(&x.0, d, &mut levels.0);
        batch::fill(dst, TensorType::IQ4_NL, |l, block| {
            nibbles::pack(&levels.block(l), &mut block[2..]);
            store_half(block, 0, d.0[l])
        })
    }
}

impl Search<LEN> for Iq4Xs {
    const ROW: bool = false;

    /// ggml's `quantize_row_iq4_nl_impl` for super-blocks.
    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<LEN, L>,
        weighting: Option<&Weighting<LEN, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let mean_square = search::mean_square(&x.0);
        let mut levels = Columns::<LEN, L>::ZERO;
        let mut scales = [Lanes::splat(0.0); SUBS];
        for (j, (x, _)) in search::subs::<SUB, L>(&x.0, &mut levels.0).enumerate() {
            let importance = weighting.map(|w| &w.importance.0.as_chunks::<SUB>().0[j]);
            scales[j] = best_scale(x, &weights(x, importance, mean_square));
        }
        let d = -search::extreme(&scales).0 / Lanes::splat(32.0);
        let inverse = inverse(d);
        for ((x, levels), scale) in search::subs::<SUB, L>(&x.0, &mut levels.0).zip(&mut scales) {
            // From here on an integer.
            *scale = (inverse * *scale).nearest_wrapping().max(Lanes::splat(-32.0)).min(Lanes::splat(31.0));
            // Of `d` as it was before it was stored.
            fill_levels(x, d * *scale, levels);
        }
        batch::fill(dst, TensorType::IQ4_XS, |l, block| {
            store(block, &scales.map(|s| (s.0[l] + 32.0) as u8), &levels.block(l));
            store_half(block, 0, d.0[l])
        })
    }
}

/// Fills a super-block, all but its first two bytes.
#[inline(always)]
fn store(block: &mut [u8], scales: &[u8; SUBS], levels: &[f32; LEN]) {
    let (head, q) = block.split_at_mut(8);
    let (mut high, low) = (0u16, &mut head[4..]);
    low.fill(0);
    for (j, s) in scales.iter().enumerate() {
        low[j / 2] |= (s & 15) << (j % 2 * 4);
        high |= u16::from(s >> 4) << (2 * j);
    }
    head[2..4].copy_from_slice(&high.to_le_bytes());
    for (levels, q) in levels.as_chunks::<SUB>().0.iter().zip(q.chunks_exact_mut(SUB / 2)) {
        nibbles::pack(levels, q);
    }
}

#[inline(always)]
fn weights<const L: usize>(
    x: &[Lanes<L>; SUB],
    importance: Option<&[Lanes<L>; SUB]>,
    mean_square: Lanes<L>,
) -> Columns<SUB, L> {
    match importance {
        // Doubling is exact, so it may come last.
        Some(importance) => search::weights_about(x, importance, Lanes::splat(2.0) * mean_square),
        None => search::squares(x),
    }
}

/// What a number is multiplied with to be divided by `d`; 0 if that is zero.
#[inline(always)]
fn inverse<const L: usize>(d: Lanes<L>) -> Lanes<L> {
    d.ne(Lanes::splat(0.0)).select(Lanes::splat(1.0) / d, Lanes::splat(0.0))
}

/// The middle between what level `q` and the next one stand for, a number that f32 holds exactly.
const fn middle(q: usize) -> f32 {
    (VALUES[q] as f32 + VALUES[q + 1] as f32) / 2.0
}

/// What the level stands for that is nearest to `x`; of two equally near ones the upper.
#[inline(always)]
fn nearest_value<const L: usize>(x: Lanes<L>) -> Lanes<L> {
    let zero = Lanes::splat(0.0);
    let mut value = Lanes::splat(f32::from(VALUES[0]));
    for q in 0..VALUES.len() - 1 {
        // Exact: integers.
        let step = Lanes::splat(f32::from(VALUES[q + 1]) - f32::from(VALUES[q]));
        value += x.ge(Lanes::splat(middle(q))).select(step, zero);
    }
    value
}

/// The levels that stand for the numbers nearest to `x / d`.
#[inline(always)]
fn fill_levels<const L: usize>(x: &[Lanes<L>; SUB], d: Lanes<L>, levels: &mut [Lanes<L>; SUB]) {
    let (zero, one) = (Lanes::splat(0.0), Lanes::splat(1.0));
    let inverse = inverse(d);
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = (0..VALUES.len() - 1)
            .fold(zero, |level, q| level + (inverse * x).ge(Lanes::splat(middle(q))).select(one, zero));
    }
}

/// What the levels in sixteen bytes stand for, times `d`.
#[inline(always)]
fn values(d: f32, q: &[u8]) -> [f32; SUB] {
    let mut scaled = [0.0; VALUES.len()];
    for (scaled, v) in scaled.iter_mut().zip(VALUES) {
        *scaled = d * f32::from(v);
    }
    let mut x = [0.0; SUB];
    for (x, q) in x.iter_mut().zip(nibbles::unpack(q)) {
        *x = scaled[usize::from(q & 15)];
    }
    x
}

/// The scale `d` for which `d * VALUES[q]` is nearest to `x` in weighted least squares, of the stretches tried.
#[inline(always)]
fn best_scale<const L: usize>(x: &[Lanes<L>; SUB], weights: &Columns<SUB, L>) -> Lanes<L> {
    let zero = Lanes::splat(0.0);
    let (max, amax) = search::extreme(x);
    let sums = |inverse: Lanes<L>| {
        let (mut xq, mut qq) = (zero, zero);
        for (&x, &w) in x.iter().zip(&weights.0) {
            let q = nearest_value(inverse * x);
            let wq = w * q;
            xq += wq * x;
            qq += wq * q;
        }
        (xq, qq)
    };
    let first = f32::from(VALUES[0]);
    let (xq, qq) = sums(Lanes::splat(1.0) / (-max / Lanes::splat(first)));
    let mut scale = qq.gt(zero).select(xq / qq, zero);
    let mut best = scale * xq;
    for tried in -TRIES..=TRIES {
        let (xq, qq) = sums(Lanes::splat(tried as f32 + first) / max);
        let better = qq.gt(zero) & (xq * xq).gt(best * qq);
        scale = better.select(xq / qq, scale);
        best = better.select(scale * xq, best);
    }
    Lanes::splat(search::SMALLEST_BLOCK).gt(amax).select(zero, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_nearest() {
        let level = |x: f32| {
            let mut levels = [Lanes([0.0]); SUB];
            fill_levels(&[Lanes([x]); SUB], Lanes([1.0]), &mut levels);
            assert_eq!(nearest_value(Lanes([x])).0, [f32::from(VALUES[levels[0].0[0] as usize])]);
            levels[0].0[0] as usize
        };
        let middles = (0..15).map(middle).flat_map(|x| [x.next_down(), x, x.next_up()]);
        for x in (-1400..1400).map(|x| x as f32 / 10.0).chain(middles) {
            // As ggml has it, roundings included.
            let above = VALUES.partition_point(|&v| f32::from(v) <= x).clamp(1, 15);
            let (a, b) = (f32::from(VALUES[above - 1]), f32::from(VALUES[above]));
            assert_eq!(level(x), if x - a < b - x { above - 1 } else { above }, "{x}");
        }
        // Ties.
        assert_eq!((level(-4.5), level(7.0), level(101.0)), (8, 9, 15));
        let _ = (level(f32::NAN), level(f32::INFINITY), level(f32::NEG_INFINITY));
    }
}
