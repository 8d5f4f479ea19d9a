//! q4_K and q5_K: super-blocks of 256 values in eight blocks of 32; a value of block `j` is `d * s[j] * q - n * m[j]` with
//! six-bit `s` and `m` and `q` in 0..16 or 0..32.
//!
//! ```text
//! byte 0..2    d       f16
//! byte 2..4    n       f16
//! byte 4..16   s, m    6 bits each, see `scales`
//! 32 bytes     fifth   q5_K only: bit j of byte i is the fifth bit of value i of block j
//! 128 bytes    q       byte i of the p-th 32 is value i of block 2p in its low half, of block 2p + 1 in its high half
//! ```
//! Scales and minima are searched for (see [`search`]): without importance per block, every value weighing
//! `|x| + root mean square of the block`, with importance each value weighing
//! `importance * sqrt(2 * mean square of the super-block + x²)`, and the eight scales and minima weighted in turn.
//!
//! A non-finite value makes the whole super-block meaningless. Where `d * s[j]` is zero, the block is read back as its
//! minimum.

use super::{BlockFormat, blocks, blocks_mut, check_lengths, half, search, store_half};
use crate::gguf::TensorType;

const LEN: usize = 256;
const SUB: usize = 32;
const SUBS: usize = LEN / SUB;
/// The last of the six-bit scales.
const LAST_SCALE: u8 = 63;

/// A format of this kind; see the module.
pub(super) struct Affine {
    ty: TensorType,
    bits: u32,
    search: search::Steps,
}

/// Four bits.
pub(super) const Q4_K: Affine =
    Affine { ty: TensorType::Q4_K, bits: 4, search: search::Steps { from: -1.0, step: 0.1, last: 20 } };
/// Five bits.
pub(super) const Q5_K: Affine =
    Affine { ty: TensorType::Q5_K, bits: 5, search: search::Steps { from: -0.5, step: 0.1, last: 15 } };

/// The scale and minimum of block `j`, packed: the first four blocks have the low six bits of bytes 0..4 and 4..8, the last
/// four have the nibbles of bytes 8..12 and, above those, the two bits left in the former.
fn scales(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// The reverse of [`scales`].
fn pack_scales(scales: &[u8; SUBS], mins: &[u8; SUBS], packed: &mut [u8]) {
    for j in 0..4 {
        let (s, m) = (scales[j + 4], mins[j + 4]);
        packed[j] = scales[j] | s >> 4 << 6;
        packed[j + 4] = mins[j] | m >> 4 << 6;
        packed[j + 8] = s & 15 | (m & 15) << 4;
    }
}

impl BlockFormat for Affine {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        // The largest minimum is 63 · 65504; a search may go a step beyond the smallest value.
        56.0 * 65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let blocks = blocks_mut(self.ty, src, dst);
        let Some(importance) = importance else {
            return blocks.for_each(|(x, block)| {
                self.unweighted(x, block);
            });
        };
        for ((x, block), importance) in blocks.zip(importance.as_chunks::<LEN>().0) {
            if !self.weighted(x, block, importance) {
                // Weights or their sums left the range of f32; ggml would store this NaN or infinity.
                self.unweighted(x, block);
            }
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let (d, n) = (half(block, 0), half(block, 2));
            let (packed, levels) = block[4..].split_at(12);
            let (fifth, low) = levels.split_at(levels.len() - LEN / 2);
            for (j, x) in x.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                let (s, m) = scales(packed, j);
                let (d, m) = (d * f32::from(s), n * f32::from(m));
                for (i, x) in x.iter_mut().enumerate() {
                    let low = low[j / 2 * SUB + i] >> (j % 2 * 4) & 15;
                    let q = low | fifth.get(i).map_or(0, |f| (f >> j & 1) << 4);
                    *x = d * f32::from(q) - m;
                }
            }
        }
    }
}

impl Affine {
    fn last_level(&self) -> u8 {
        (1 << self.bits) - 1
    }

    /// ggml's `quantize_row_q4_K_ref` and `quantize_row_q5_K_ref` for one super-block.
    fn unweighted(&self, x: &[f32; LEN], block: &mut [u8]) -> bool {
        let mut levels = [0u8; LEN];
        let (mut scales, mut mins) = ([0.0f32; SUBS], [0.0f32; SUBS]);
        for (j, (x, levels)) in subs(x, &mut levels).enumerate() {
            let average = search::mean_square(x).sqrt();
            let weights = x.map(|x| average + x.abs());
            (scales[j], mins[j]) = search::affine(self.last_level(), x, &weights, levels, self.search);
        }
        // Each is a share of the largest; all are positive, but for rounding.
        let shares = |of: &[f32; SUBS]| {
            let most = of.iter().fold(0.0f32, |m, &v| if v > m { v } else { m });
            let inverse = if most > 0.0 { f32::from(LAST_SCALE) / most } else { 0.0 };
            (most / f32::from(LAST_SCALE), of.map(|v| (search::nearest(inverse * v) as u8).min(LAST_SCALE)))
        };
        let ((d, s), (n, m)) = (shares(&scales), shares(&mins));
        self.store(x, block, (d, &s), (n, &m), &mut levels)
    }

    /// ggml's `quantize_row_q4_K_impl` and `quantize_row_q5_K_impl` for one super-block; false if a number to store is not
    /// finite.
    fn weighted(&self, x: &[f32; LEN], block: &mut [u8], importance: &[f32; LEN]) -> bool {
        let mut levels = [0u8; LEN];
        let (mut scales, mut mins, mut total) = ([0.0f32; SUBS], [0.0f32; SUBS], [0.0f32; SUBS]);
        // Doubling is exact, so it may come last.
        let mean_square = 2.0 * search::mean_square(x);
        let importance = importance.as_chunks::<SUB>().0;
        for (j, ((x, levels), importance)) in subs(x, &mut levels).zip(importance).enumerate() {
            let weights = search::weights(x, importance, mean_square);
            for w in weights {
                total[j] += w;
            }
            (scales[j], mins[j]) = search::affine(self.last_level(), x, &weights, levels, search::WEIGHTED);
        }
        let (mut s, mut m) = ([0u8; SUBS], [0u8; SUBS]);
        let d = search::positive(LAST_SCALE, &scales, &total, &mut s);
        let n = search::positive(LAST_SCALE, &mins, &total, &mut m);
        let [s, m] = [s, m].map(|of| of.map(|v| v.min(LAST_SCALE)));
        self.store(x, block, (d, &s), (n, &m), &mut levels)
    }

    /// Chooses the levels once more for the scales as they are stored, and fills the block; false if a number is not finite
    /// as a half float. Where a scale is zero, `levels` are kept.
    fn store(
        &self,
        x: &[f32; LEN],
        block: &mut [u8],
        (d, s): (f32, &[u8; SUBS]),
        (n, m): (f32, &[u8; SUBS]),
        levels: &mut [u8; LEN],
    ) -> bool {
        let finite = store_half(block, 0, d) & store_half(block, 2, n);
        let (d, n) = (half(block, 0), half(block, 2));
        for (j, (x, levels)) in subs(x, levels).enumerate() {
            let (d, m) = (d * f32::from(s[j]), n * f32::from(m[j]));
            if d != 0.0 {
                let last = i32::from(self.last_level());
                *levels = x.map(|x| search::nearest((x + m) / d).clamp(0, last) as u8);
            }
        }
        let (packed, rest) = block[4..].split_at_mut(12);
        pack_scales(s, m, packed);
        let (fifth, low) = rest.split_at_mut(rest.len() - LEN / 2);
        for (i, q) in low.iter_mut().enumerate() {
            let at = i / SUB * 2 * SUB + i % SUB;
            *q = levels[at] & 15 | levels[at + SUB] << 4;
        }
        // Empty for four bits.
        for (i, f) in fifth.iter_mut().enumerate() {
            *f = (0..SUBS).fold(0, |f, j| f | (levels[j * SUB + i] >> 4) << j);
        }
        finite
    }
}

/// The blocks of a super-block and their levels.
fn subs<'a>(x: &'a [f32; LEN], levels: &'a mut [u8; LEN]) -> impl Iterator<Item = (&'a [f32; SUB], &'a mut [u8; SUB])> {
    x.as_chunks().0.iter().zip(levels.as_chunks_mut().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_come_back() {
        let [s, m]: [[u8; SUBS]; 2] = [3, 37].map(|f| std::array::from_fn(|j| ((j + 1) * f % 64) as u8));
        let mut packed = [0xaa; 12];
        pack_scales(&s, &m, &mut packed);
        for j in 0..SUBS {
            assert_eq!(scales(&packed, j), (s[j], m[j]));
        }
    }
}
