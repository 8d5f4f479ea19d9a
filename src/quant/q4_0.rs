//! q4_0: blocks of 32 values, each `d * (q - 8)` with `q` in 0..16.
//!
//! ```text
//! byte 0..2   d   f16, of either sign
//! byte 2..18  q   byte i holds value i in its low half and value i + 16 in its high half
//! ```
//! Without importance the value of largest magnitude is laid on `q = 0`, which is the side with one more level; so the
//! opposite extreme can be off by a whole `d`, everything else by half of it. With importance the scale is searched for
//! (see [`search`]), each value weighing `importance * sqrt(mean square of the row + x²)`.
//!
//! A non-finite value in a block makes the whole block meaningless. Values so small that `d` is zero in f16 are read
//! back as zero.

use super::{BlockFormat, check_lengths, search};
use crate::{
    float16::{f16_to_f32, f32_to_f16},
    gguf::TensorType,
};

const LEN: usize = 32;
const HALF: usize = LEN / 2;
const BYTES: usize = 2 + HALF;

/// The format; see the module.
pub(super) struct Q4_0;

impl BlockFormat for Q4_0 {
    fn tensor_type(&self) -> TensorType {
        TensorType::Q4_0
    }

    fn limit(&self) -> f32 {
        8.0 * 65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let blocks = src.as_chunks::<LEN>().0.iter().zip(dst.as_chunks_mut::<BYTES>().0);
        let Some(importance) = importance else {
            return blocks.for_each(|(x, block)| by_extreme(x, block));
        };
        let mut sum = 0.0f32;
        for x in src {
            sum += x * x;
        }
        let mean_square = sum / src.len() as f32;
        for ((x, block), importance) in blocks.zip(importance.as_chunks::<LEN>().0) {
            by_search(x, block, importance, mean_square);
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in src.as_chunks::<BYTES>().0.iter().zip(dst.as_chunks_mut::<LEN>().0) {
            let [d0, d1, q @ ..] = block;
            let d = f16_to_f32(u16::from_le_bytes([*d0, *d1]));
            let (low, high) = x.split_at_mut(HALF);
            for ((low, high), &q) in low.iter_mut().zip(high).zip(q) {
                *low = (i32::from(q & 15) - 8) as f32 * d;
                *high = (i32::from(q >> 4) - 8) as f32 * d;
            }
        }
    }
}

/// ggml's `quantize_row_q4_0_ref` for one block.
fn by_extreme(x: &[f32; LEN], block: &mut [u8; BYTES]) {
    let (mut largest, mut extreme) = (0.0f32, 0.0f32);
    for &v in x {
        if largest < v.abs() {
            largest = v.abs();
            extreme = v;
        }
    }
    let d = extreme / -8.0;
    // 1/d is infinite for the smallest subnormal d, which f16 stores as zero anyway.
    let inverse = if d == 0.0 || (1.0 / d).is_infinite() { 0.0 } else { 1.0 / d };
    store(block, d, |i| ((x[i] * inverse + 8.5) as i8).clamp(0, 15) as u8);
}

/// ggml's `quantize_row_q4_0_impl` for one block.
fn by_search(x: &[f32; LEN], block: &mut [u8; BYTES], importance: &[f32; LEN], mean_square: f32) {
    let weights: [f32; LEN] = std::array::from_fn(|i| importance[i] * (mean_square + x[i] * x[i]).sqrt());
    let mut levels = [0u8; LEN];
    let d = search::symmetric(8, x, &mut levels, Some(&weights));
    if !f16_to_f32(f32_to_f16(d)).is_finite() {
        // The squares or their sums left the range of f32; ggml would store this NaN or infinity.
        return by_extreme(x, block);
    }
    store(block, d, |i| levels[i]);
}

fn store(block: &mut [u8; BYTES], d: f32, level: impl Fn(usize) -> u8) {
    let (head, q) = block.split_at_mut(2);
    head.copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for (i, q) in q.iter_mut().enumerate() {
        *q = level(i) | level(i + HALF) << 4;
    }
}
