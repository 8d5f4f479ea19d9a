//! q6_K: super-blocks of 256 values in sixteen blocks of 16; a value of block `j` is `d * s[j] * (q - 32)` with an
//! eight-bit `s` and `q` in 0..64.
//!
//! ```text
//! byte 0..128    low   four bits of every level
//! byte 128..192  high  the other two
//! byte 192..208  s     i8
//! byte 208..210  d     f16
//! ```
//! Each half of the super-block, 128 values, has 64 bytes of `low` and 32 of `high`. Of its four runs of 32 values, run `r`
//! has the low (r < 2) or high halves of bytes `32 * (r % 2) + i` of `low`, and bits `2 * r` and `2 * r + 1` of byte `i` of
//! `high`.
//!
//! Scales are searched for (see [`search`]), a value weighing its importance, or its square without importance. A
//! non-finite value makes the whole super-block meaningless. A block whose `d * s[j]` is zero is read back as zero.

use super::batch::{self, Search, Weighting};
use super::lanes::{Columns, Lanes};
use super::{Coder, blocks, half, round, search, store_half};
use crate::gguf::TensorType;

const LEN: usize = 256;
const SUB: usize = 16;
const SUBS: usize = LEN / SUB;
const RUN: usize = 32;
/// Offsets in a block.
const HIGH: usize = 128;
const SCALES: usize = 192;
const D: usize = 208;

/// The format; see the module.
pub(super) struct Q6K;

impl Coder for Q6K {
    fn tensor_type(&self) -> TensorType {
        TensorType::Q6_K
    }

    fn limit(&self) -> f32 {
        // A search may lay the largest value on level 31 instead of 32, and a few rounding errors further.
        128.0 * 30.0 * 65504.0
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        batch::quantize::<LEN, L, _>(self, TensorType::Q6_K, src, dst, importance);
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(TensorType::Q6_K, src, dst) {
            let d = half(block, D);
            for (run, x) in x.as_chunks_mut::<RUN>().0.iter_mut().enumerate() {
                let (low, low_shift, high, high_shift) = place(run);
                let (low, high) =
                    (&block[..HIGH].as_chunks::<RUN>().0[low], &block[HIGH..SCALES].as_chunks::<RUN>().0[high]);
                for (j, x) in x.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                    let s = block[SCALES + run * (RUN / SUB) + j].cast_signed();
                    let d = d * f32::from(s);
                    for (i, x) in x.iter_mut().enumerate() {
                        let at = j * SUB + i;
                        let q = low[at] >> low_shift & 15 | (high[at] >> high_shift & 3) << 4;
                        *x = d * (i32::from(q) - 32) as f32;
                    }
                }
            }
        }
    }
}

/// Where run `run` of a super-block is: the run of `low` and the shift in it, the run of `high` and the shift in that.
#[inline(always)]
fn place(run: usize) -> (usize, usize, usize, usize) {
    let (part, run) = (run / 4, run % 4);
    (2 * part + run % 2, run / 2 * 4, part, 2 * run)
}

impl Search<LEN> for Q6K {
    const ROW: bool = false;

    /// ggml's `quantize_row_q6_K_impl`.
    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<LEN, L>,
        weighting: Option<&Weighting<LEN, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let mut levels = Columns::<LEN, L>::ZERO;
        let mut scales = [Lanes::splat(0.0); SUBS];
        for (j, (x, levels)) in search::subs::<SUB, L>(&x.0, &mut levels.0).enumerate() {
            let weights = match weighting {
                Some(weighting) => Columns(weighting.importance.0.as_chunks::<SUB>().0[j]),
                None => search::squares(x),
            };
            scales[j] = search::symmetric(32, x, &weights, levels);
        }
        let (extreme, largest) = search::extreme(&scales);
        let inverse = Lanes::splat(-128.0) / extreme;
        let unit = Lanes::splat(1.0) / inverse;
        let stored = unit.to_half();
        for ((x, levels), scale) in search::subs::<SUB, L>(&x.0, &mut levels.0).zip(&mut scales) {
            // From here on an integer.
            *scale = (inverse * *scale).nearest_wrapping().min(Lanes::splat(127.0));
            let d = stored * *scale;
            let some = d.ne(Lanes::splat(0.0));
            for (level, &x) in levels.iter_mut().zip(x) {
                let q = (x / d).nearest_wrapping().max(Lanes::splat(-32.0)).min(Lanes::splat(31.0));
                *level = some.select(q + Lanes::splat(32.0), *level);
            }
        }
        batch::fill(dst, TensorType::Q6_K, |l, block| {
            if largest.0[l] < search::SMALLEST_BLOCK {
                block.fill(0);
                return true;
            }
            store(block, &scales.map(|s| s.0[l] as i8), &round::low_bytes(&levels.block(l)));
            store_half(block, D, unit.0[l])
        })
    }
}

/// Fills a super-block, all but its last two bytes.
#[inline(always)]
fn store(block: &mut [u8], scales: &[i8; SUBS], levels: &[u8; LEN]) {
    block[..SCALES].fill(0);
    let (low, high) = block[..SCALES].split_at_mut(HIGH);
    let (low, high) = (low.as_chunks_mut::<RUN>().0, high.as_chunks_mut::<RUN>().0);
    for (run, levels) in levels.as_chunks::<RUN>().0.iter().enumerate() {
        let (at, low_shift, high_at, high_shift) = place(run);
        for (i, q) in levels.iter().enumerate() {
            low[at][i] |= (q & 15) << low_shift;
            high[high_at][i] |= (q >> 4) << high_shift;
        }
    }
    for (byte, s) in block[SCALES..D].iter_mut().zip(scales) {
        *byte = s.cast_unsigned();
    }
}
