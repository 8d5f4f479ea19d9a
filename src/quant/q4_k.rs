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

use super::batch::{self, Search, Weighting};
use super::lanes::{Columns, Lanes};
use super::{Coder, blocks, half, round, search, store_half};
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
#[inline(always)]
fn scales(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    }
}

/// The reverse of [`scales`].
#[inline(always)]
fn pack_scales(scales: &[u8; SUBS], mins: &[u8; SUBS], packed: &mut [u8]) {
    for j in 0..4 {
        let (s, m) = (scales[j + 4], mins[j + 4]);
        packed[j] = scales[j] | s >> 4 << 6;
        packed[j + 4] = mins[j] | m >> 4 << 6;
        packed[j + 8] = s & 15 | (m & 15) << 4;
    }
}

impl Coder for Affine {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        // The largest minimum is 63 · 65504; a search may go a step beyond the smallest value.
        56.0 * 65504.0
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        batch::quantize::<LEN, L, _>(self, self.ty, src, dst, importance);
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let (d, n) = (half(block, 0), half(block, 2));
            let (packed, levels) = block[4..].split_at(12);
            let (fifth, low) = levels.split_at(levels.len() - LEN / 2);
            for (j, x) in x.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                let (s, m) = scales(packed, j);
                let (d, m) = (d * f32::from(s), n * f32::from(m));
                let mut levels = low.as_chunks::<SUB>().0[j / 2];
                for q in &mut levels {
                    *q = *q >> (j % 2 * 4) & 15;
                }
                // Empty for four bits.
                for (q, f) in levels.iter_mut().zip(fifth) {
                    *q |= (f >> j & 1) << 4;
                }
                for (x, q) in x.iter_mut().zip(levels) {
                    *x = d * f32::from(q) - m;
                }
            }
        }
    }
}

impl Search<LEN> for Affine {
    const ROW: bool = false;

    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<LEN, L>,
        weighting: Option<&Weighting<LEN, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let mut levels = Columns::ZERO;
        let (mut d, mut n) = match weighting {
            None => self.unweighted(&x.0, &mut levels.0),
            Some(weighting) => self.weighted(&x.0, &weighting.importance.0, &mut levels.0),
        };
        let packed = pack_shares(&mut d, &mut n);
        self.refine(&x.0, &d, &n, &mut levels.0);
        batch::fill(dst, self.ty, |l, block| {
            block[4..16].copy_from_slice(&packed[l]);
            store(&mut block[16..], &round::low_bytes(&levels.block(l)));
            store_half(block, 0, d.unit.0[l]) & store_half(block, 2, n.unit.0[l])
        })
    }
}

/// What a number in each block of a super-block is stored as: a share, which is an integer, of a unit.
struct Shares<const L: usize> {
    unit: Lanes<L>,
    shares: [Lanes<L>; SUBS],
}

impl<const L: usize> Shares<L> {
    /// Shares of the largest. All are positive, but for rounding.
    #[inline(always)]
    fn of_largest(numbers: &[Lanes<L>; SUBS]) -> Self {
        let (zero, last) = (Lanes::splat(0.0), Lanes::splat(f32::from(LAST_SCALE)));
        let most = numbers.iter().fold(zero, |most, &v| v.max(most));
        let inverse = most.gt(zero).select(last / most, zero);
        let shares = numbers.map(|v| (inverse * v).nearest_wrapping().wrapping_byte().min(last));
        Shares { unit: most / last, shares }
    }

    /// The best fit. Where a number is negative, by a fit gone astray, its share may be any byte, of which ggml keeps at most
    /// `last`.
    #[inline(always)]
    fn fitted(numbers: &[Lanes<L>; SUBS], weights: &[Lanes<L>; SUBS], last: u8) -> Self {
        let mut shares = [Lanes::splat(0.0); SUBS];
        let unit = search::positive(LAST_SCALE, numbers, weights, &mut shares);
        Shares { unit, shares: shares.map(|share| share.min(Lanes::splat(f32::from(last)))) }
    }
}

impl Affine {
    #[inline(always)]
    fn last_level(&self) -> u8 {
        (1 << self.bits) - 1
    }

    /// ggml's `quantize_row_q4_K_ref` and `quantize_row_q5_K_ref`: scales and minima.
    #[inline(always)]
    fn unweighted<const L: usize>(&self, x: &[Lanes<L>; LEN], levels: &mut [Lanes<L>; LEN]) -> (Shares<L>, Shares<L>) {
        let (mut scales, mut mins) = ([Lanes::splat(0.0); SUBS], [Lanes::splat(0.0); SUBS]);
        for (j, (x, levels)) in search::subs::<SUB, L>(x, levels).enumerate() {
            let average = search::mean_square(x).sqrt();
            let mut weights = Columns::ZERO;
            for (w, x) in weights.0.iter_mut().zip(x) {
                *w = average + x.abs();
            }
            (scales[j], mins[j]) = search::affine(self.last_level(), x, &weights, levels, self.search);
        }
        (Shares::of_largest(&scales), Shares::of_largest(&mins))
    }

    /// ggml's `quantize_row_q4_K_impl` and `quantize_row_q5_K_impl`: scales and minima.
    #[inline(always)]
    fn weighted<const L: usize>(
        &self,
        x: &[Lanes<L>; LEN],
        importance: &[Lanes<L>; LEN],
        levels: &mut [Lanes<L>; LEN],
    ) -> (Shares<L>, Shares<L>) {
        let zero = Lanes::splat(0.0);
        let (mut scales, mut mins, mut total) = ([zero; SUBS], [zero; SUBS], [zero; SUBS]);
        // Doubling is exact, so it may come last.
        let mean_square = Lanes::splat(2.0) * search::mean_square(x);
        let importance = importance.as_chunks::<SUB>().0;
        for (j, (x, levels)) in search::subs::<SUB, L>(x, levels).enumerate() {
            let weights = search::weights_about(x, &importance[j], mean_square);
            for &w in &weights.0 {
                total[j] += w;
            }
            (scales[j], mins[j]) = search::affine(self.last_level(), x, &weights, levels, search::WEIGHTED);
        }
        let last = if self.bits == 4 { u8::MAX } else { LAST_SCALE };
        (Shares::fitted(&scales, &total, last), Shares::fitted(&mins, &total, last))
    }

    /// Chooses the levels once more for the scales as they are stored. Where a scale is zero, they are kept.
    #[inline(always)]
    fn refine<const L: usize>(
        &self,
        x: &[Lanes<L>; LEN],
        scale: &Shares<L>,
        min: &Shares<L>,
        levels: &mut [Lanes<L>; LEN],
    ) {
        let (zero, last) = (Lanes::splat(0.0), Lanes::splat(f32::from(self.last_level())));
        let (d, n) = (scale.unit.to_half(), min.unit.to_half());
        for (j, (x, levels)) in search::subs::<SUB, L>(x, levels).enumerate() {
            let (d, m) = (d * scale.shares[j], n * min.shares[j]);
            let some = d.ne(zero);
            for (level, &x) in levels.iter_mut().zip(x) {
                let q = ((x + m) / d).nearest_wrapping().max(zero).min(last);
                *level = some.select(q, *level);
            }
        }
    }
}

/// Packs the shares of scales and minima, and makes them what a reader finds: the same again, unless they have more than six
/// bits.
#[inline(always)]
fn pack_shares<const L: usize>(d: &mut Shares<L>, n: &mut Shares<L>) -> [[u8; 12]; L] {
    let mut packed = [[0; 12]; L];
    for (l, packed) in packed.iter_mut().enumerate() {
        let (mut s, mut m) = ([0; SUBS], [0; SUBS]);
        for j in 0..SUBS {
            s[j] = round::low_byte(d.shares[j].0[l]);
            m[j] = round::low_byte(n.shares[j].0[l]);
        }
        pack_scales(&s, &m, packed);
        for j in 0..SUBS {
            let (s, m) = scales(packed, j);
            d.shares[j].0[l] = f32::from(s);
            n.shares[j].0[l] = f32::from(m);
        }
    }
    packed
}

/// Fills the levels of a super-block.
#[inline(always)]
fn store(dst: &mut [u8], levels: &[u8; LEN]) {
    let (fifth, low) = dst.split_at_mut(dst.len() - LEN / 2);
    let levels = levels.as_chunks::<SUB>().0;
    for (low, pair) in low.as_chunks_mut::<SUB>().0.iter_mut().zip(levels.as_chunks::<2>().0) {
        for (i, q) in low.iter_mut().enumerate() {
            *q = pair[0][i] & 15 | pair[1][i] << 4;
        }
    }
    // Empty for four bits.
    fifth.fill(0);
    for (j, levels) in levels.iter().enumerate() {
        for (f, q) in fifth.iter_mut().zip(levels) {
            *f |= q >> 4 << j;
        }
    }
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
