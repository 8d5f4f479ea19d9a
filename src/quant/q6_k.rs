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

use super::{BlockFormat, blocks, blocks_mut, check_lengths, half, search, store_half};
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

/// Value `at` of a super-block: the place and shift of its four low bits, and of its two high ones.
fn place(at: usize) -> ((usize, usize), (usize, usize)) {
    let (part, run, i) = (at / 128, at / RUN % 4, at % RUN);
    ((64 * part + RUN * (run % 2) + i, run / 2 * 4), (HIGH + RUN * part + i, 2 * run))
}

impl BlockFormat for Q6K {
    fn tensor_type(&self) -> TensorType {
        TensorType::Q6_K
    }

    fn limit(&self) -> f32 {
        // A search may lay the largest value on level 31 instead of 32, and a few rounding errors further.
        128.0 * 30.0 * 65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let blocks = blocks_mut(TensorType::Q6_K, src, dst);
        let Some(importance) = importance else {
            return blocks.for_each(|(x, block)| {
                quantize(x, block, None);
            });
        };
        for ((x, block), importance) in blocks.zip(importance.as_chunks::<LEN>().0) {
            if !quantize(x, block, Some(importance)) {
                // Weights or their sums left the range of f32; ggml would store this NaN or infinity.
                quantize(x, block, None);
            }
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in blocks::<LEN>(TensorType::Q6_K, src, dst) {
            let d = half(block, D);
            for (at, x) in x.iter_mut().enumerate() {
                let ((low, low_shift), (high, high_shift)) = place(at);
                let q = block[low] >> low_shift & 15 | (block[high] >> high_shift & 3) << 4;
                let s = block[SCALES + at / SUB].cast_signed();
                *x = d * f32::from(s) * (i32::from(q) - 32) as f32;
            }
        }
    }
}

/// ggml's `quantize_row_q6_K_impl` for one super-block; false if a number to store is not finite.
fn quantize(x: &[f32; LEN], block: &mut [u8], importance: Option<&[f32; LEN]>) -> bool {
    let mut levels = [0u8; LEN];
    let mut scales = [0.0f32; SUBS];
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    let subs = x.as_chunks::<SUB>().0.iter().zip(levels.as_chunks_mut::<SUB>().0);
    for (j, (x, levels)) in subs.enumerate() {
        let weights = importance.map(|w| &w[j * SUB..(j + 1) * SUB]);
        scales[j] = search::symmetric(32, x, levels, weights);
        if scales[j].abs() > largest {
            largest = scales[j].abs();
            extreme = scales[j];
        }
    }
    block.fill(0);
    if largest < search::SMALLEST_BLOCK {
        return true;
    }
    let inverse = -128.0 / extreme;
    let finite = store_half(block, D, 1.0 / inverse);
    let d = half(block, D);
    let subs = x.as_chunks::<SUB>().0.iter().zip(levels.as_chunks_mut::<SUB>().0);
    for (j, (x, levels)) in subs.enumerate() {
        let s = search::nearest(inverse * scales[j]).min(127) as i8;
        block[SCALES + j] = s.cast_unsigned();
        let d = d * f32::from(s);
        if d != 0.0 {
            *levels = x.map(|x| (search::nearest(x / d).clamp(-32, 31) + 32) as u8);
        }
    }
    for (at, q) in levels.into_iter().enumerate() {
        let ((low, low_shift), (high, high_shift)) = place(at);
        block[low] |= (q & 15) << low_shift;
        block[high] |= (q >> 4) << high_shift;
    }
    finite
}
