//! q4_0 and q5_0: blocks of 32 values, each `d * (q - 8)` with `q` in 0..16, or `d * (q - 16)` with `q` in 0..32.
//!
//! ```text
//! byte 0..2  d   f16, of either sign
//! byte 2..   q   the 32 levels, see `nibbles`: 16 bytes, or 20 with five bits
//! ```
//! Without importance the value of largest magnitude is laid on `q = 0`, which is the side with one more level; so the
//! opposite extreme can be off by a whole `d`, everything else by half of it. With importance the scale is searched for
//! (see [`search`]), each value weighing `importance * sqrt(mean square of the row + x²)`.
//!
//! A non-finite value in a block makes the whole block meaningless. Values so small that `d` is zero in f16 are read
//! back as zero.

use super::nibbles::{self, LEN};
use super::{BlockFormat, blocks, blocks_mut, check_lengths, half, inverse, search, store_half};
use crate::gguf::TensorType;

/// A format of this kind; see the module.
pub(super) struct Symmetric {
    ty: TensorType,
    bits: u32,
}

/// Four bits.
pub(super) const Q4_0: Symmetric = Symmetric { ty: TensorType::Q4_0, bits: 4 };
/// Five bits.
pub(super) const Q5_0: Symmetric = Symmetric { ty: TensorType::Q5_0, bits: 5 };

impl BlockFormat for Symmetric {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        self.middle() as f32 * 65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let Some(importance) = importance else {
            return blocks_mut(self.ty, src, dst).for_each(|(x, block)| self.by_extreme(x, block));
        };
        let mean_square = search::mean_square(src);
        for ((x, block), importance) in blocks_mut(self.ty, src, dst).zip(importance.as_chunks::<LEN>().0) {
            self.by_search(x, block, importance, mean_square);
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let d = half(block, 0);
            for (x, q) in x.iter_mut().zip(nibbles::unpack(&block[2..])) {
                *x = (i32::from(q) - self.middle()) as f32 * d;
            }
        }
    }
}

impl Symmetric {
    /// The level that stands for zero.
    fn middle(&self) -> i32 {
        1 << (self.bits - 1)
    }

    /// ggml's `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref` for one block.
    fn by_extreme(&self, x: &[f32; LEN], block: &mut [u8]) {
        let (mut largest, mut extreme) = (0.0f32, 0.0f32);
        for &v in x {
            if largest < v.abs() {
                largest = v.abs();
                extreme = v;
            }
        }
        let middle = self.middle();
        let d = extreme / -middle as f32;
        let inverse = inverse(d);
        let (shift, most) = (middle as f32 + 0.5, 2 * middle - 1);
        store(block, d, &x.map(|x| i32::from((x * inverse + shift) as i8).clamp(0, most) as u8));
    }

    /// ggml's `quantize_row_q4_0_impl` and `quantize_row_q5_0_impl` for one block.
    fn by_search(&self, x: &[f32; LEN], block: &mut [u8], importance: &[f32; LEN], mean_square: f32) {
        let weights = search::weights(x, importance, mean_square);
        let mut levels = [0u8; LEN];
        let d = search::symmetric(self.middle(), x, &mut levels, Some(&weights));
        if !store(block, d, &levels) {
            // The squares or their sums left the range of f32; ggml would store this NaN or infinity.
            self.by_extreme(x, block);
        }
    }
}

/// Fills a block; false if the scale is not finite as a half float.
fn store(block: &mut [u8], d: f32, levels: &[u8; LEN]) -> bool {
    nibbles::pack(levels, &mut block[2..]);
    store_half(block, 0, d)
}
