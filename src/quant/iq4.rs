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

use super::nibbles::{self, LEN as SUB};
use super::{BlockFormat, blocks, blocks_mut, check_lengths, half, search, store_half};
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

impl BlockFormat for Iq4Nl {
    fn tensor_type(&self) -> TensorType {
        TensorType::IQ4_NL
    }

    fn limit(&self) -> f32 {
        LIMIT
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let quantize = |x: &[f32; SUB], block: &mut [u8], importance| {
            let d = best_scale(x, &weights(x, importance, search::mean_square(x)));
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            nibbles::pack(&x.map(|x| level(inverse * x)), &mut block[2..]);
            store_half(block, 0, d)
        };
        let blocks = blocks_mut(TensorType::IQ4_NL, src, dst);
        let Some(importance) = importance else {
            return blocks.for_each(|(x, block)| {
                quantize(x, block, None);
            });
        };
        for ((x, block), importance) in blocks.zip(importance.as_chunks::<SUB>().0) {
            if !quantize(x, block, Some(importance)) {
                // Weights or their sums left the range of f32; ggml would store this NaN or infinity.
                quantize(x, block, None);
            }
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in blocks(TensorType::IQ4_NL, src, dst) {
            *x = values(half(block, 0), &block[2..]);
        }
    }
}

impl BlockFormat for Iq4Xs {
    fn tensor_type(&self) -> TensorType {
        TensorType::IQ4_XS
    }

    fn limit(&self) -> f32 {
        32.0 * LIMIT
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let blocks = blocks_mut(TensorType::IQ4_XS, src, dst);
        let Some(importance) = importance else {
            return blocks.for_each(|(x, block)| {
                quantize_super(x, block, None);
            });
        };
        for ((x, block), importance) in blocks.zip(importance.as_chunks::<LEN>().0) {
            if !quantize_super(x, block, Some(importance)) {
                quantize_super(x, block, None);
            }
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
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

/// ggml's `quantize_row_iq4_nl_impl` for one super-block; false if a number to store is not finite.
fn quantize_super(x: &[f32; LEN], block: &mut [u8], importance: Option<&[f32; LEN]>) -> bool {
    let mean_square = search::mean_square(x);
    let x = x.as_chunks::<SUB>().0;
    let mut scales = [0.0f32; SUBS];
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for (j, x) in x.iter().enumerate() {
        let importance = importance.map(|w| &w.as_chunks::<SUB>().0[j]);
        scales[j] = best_scale(x, &weights(x, importance, mean_square));
        if scales[j].abs() > largest {
            largest = scales[j].abs();
            extreme = scales[j];
        }
    }
    let d = -extreme / 32.0;
    let finite = store_half(block, 0, d);
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (head, q) = block.split_at_mut(8);
    let (mut high, low) = (0u16, &mut head[4..]);
    low.fill(0);
    for (j, (x, q)) in x.iter().zip(q.chunks_exact_mut(SUB / 2)).enumerate() {
        let s = search::nearest(inverse * scales[j]).clamp(-32, 31);
        // Of `d` as it was before it was stored.
        let d = d * s as f32;
        let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
        nibbles::pack(&x.map(|x| level(inverse * x)), q);
        let s = (s + 32) as u8;
        low[j / 2] |= (s & 15) << (j % 2 * 4);
        high |= u16::from(s >> 4) << (2 * j);
    }
    head[2..4].copy_from_slice(&high.to_le_bytes());
    finite
}

fn weights(x: &[f32; SUB], importance: Option<&[f32; SUB]>, mean_square: f32) -> [f32; SUB] {
    match importance {
        // Doubling is exact, so it may come last.
        Some(importance) => search::weights(x, importance, 2.0 * mean_square),
        None => x.map(|x| x * x),
    }
}

/// The level that stands for the number nearest to `x`; of two equally near ones the upper.
fn level(x: f32) -> u8 {
    let above = VALUES.partition_point(|&v| f32::from(v) <= x);
    if above == 0 {
        0
    } else if above == VALUES.len() || x - f32::from(VALUES[above - 1]) < f32::from(VALUES[above]) - x {
        above as u8 - 1
    } else {
        above as u8
    }
}

/// What the levels in sixteen bytes stand for, times `d`.
fn values(d: f32, q: &[u8]) -> [f32; SUB] {
    nibbles::unpack(q).map(|q| d * f32::from(VALUES[usize::from(q)]))
}

/// The scale `d` for which `d * VALUES[q]` is nearest to `x` in weighted least squares, of the stretches tried.
fn best_scale(x: &[f32; SUB], weights: &[f32; SUB]) -> f32 {
    let (mut amax, mut max) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > amax {
            amax = v.abs();
            max = v;
        }
    }
    if amax < search::SMALLEST_BLOCK {
        return 0.0;
    }
    let sums = |inverse: f32| {
        let (mut xq, mut qq) = (0.0f32, 0.0f32);
        for (&x, &w) in x.iter().zip(weights) {
            let q = f32::from(VALUES[usize::from(level(inverse * x))]);
            xq += w * q * x;
            qq += w * q * q;
        }
        (xq, qq)
    };
    let first = f32::from(VALUES[0]);
    let (xq, qq) = sums(1.0 / (-max / first));
    let mut scale = if qq > 0.0 { xq / qq } else { 0.0 };
    let mut best = scale * xq;
    for tried in -TRIES..=TRIES {
        let (xq, qq) = sums((tried as f32 + first) / max);
        if qq > 0.0 && xq * xq > best * qq {
            scale = xq / qq;
            best = scale * xq;
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_the_nearest() {
        for x in (-1400..1400).map(|x| x as f32 / 10.0) {
            let distance = |q: u8| (f32::from(VALUES[usize::from(q)]) - x).abs();
            assert!((0..16).all(|q| distance(level(x)) <= distance(q)), "{x}");
        }
        // Ties.
        assert_eq!((level(-4.5), level(7.0), level(101.0)), (8, 9, 15));
        let _ = (level(f32::NAN), level(f32::INFINITY), level(f32::NEG_INFINITY));
    }
}
