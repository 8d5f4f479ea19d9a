//! q4_1 and q5_1: blocks of 32 values, each `d * q + m` with `q` in 0..16 or 0..32.
//!
//! ```text
//! byte 0..2  d   f16
//! byte 2..4  m   f16
//! byte 4..   q   the 32 levels, see `nibbles`: 16 bytes, or 20 with five bits
//! ```
//! Without importance `m` is the smallest value and the largest is laid on the last level. With importance both are
//! searched for (see [`search`]), with `m` at most zero, each value weighing
//! `importance * sqrt(mean square of the row + x²)`.
//!
//! A non-finite value in a block makes the whole block meaningless.

use super::nibbles::{self, LEN};
use super::{BlockFormat, blocks, blocks_mut, check_lengths, half, inverse, search, store_half};
use crate::gguf::TensorType;

/// A format of this kind; see the module.
pub(super) struct Affine {
    ty: TensorType,
    bits: u32,
}

/// Four bits.
pub(super) const Q4_1: Affine = Affine { ty: TensorType::Q4_1, bits: 4 };
/// Five bits.
pub(super) const Q5_1: Affine = Affine { ty: TensorType::Q5_1, bits: 5 };

impl BlockFormat for Affine {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        65504.0
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        check_lengths(self, src.len(), dst.len(), importance);
        let Some(importance) = importance else {
            return blocks_mut(self.ty, src, dst).for_each(|(x, block)| self.by_extremes(x, block));
        };
        let mean_square = search::mean_square(src);
        for ((x, block), importance) in blocks_mut(self.ty, src, dst).zip(importance.as_chunks::<LEN>().0) {
            self.by_search(x, block, importance, mean_square);
        }
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        check_lengths(self, dst.len(), src.len(), None);
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let (d, m) = (half(block, 0), half(block, 2));
            for (x, q) in x.iter_mut().zip(nibbles::unpack(&block[4..])) {
                *x = f32::from(q) * d + m;
            }
        }
    }
}

impl Affine {
    fn last_level(&self) -> u8 {
        (1 << self.bits) - 1
    }

    /// ggml's `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref` for one block.
    fn by_extremes(&self, x: &[f32; LEN], block: &mut [u8]) {
        let (mut least, mut most) = (f32::MAX, -f32::MAX);
        for &v in x {
            least = if v < least { v } else { least };
            most = if v > most { v } else { most };
        }
        let last = self.last_level();
        let d = (most - least) / f32::from(last);
        let inverse = inverse(d);
        store(block, d, least, &x.map(|x| (((x - least) * inverse + 0.5) as u8).min(last)));
    }

    /// ggml's `quantize_row_q4_1_impl` and `quantize_row_q5_1_impl` for one block.
    fn by_search(&self, x: &[f32; LEN], block: &mut [u8], importance: &[f32; LEN], mean_square: f32) {
        let weights = search::weights(x, importance, mean_square);
        let mut levels = [0u8; LEN];
        let (d, m) = search::affine(self.last_level(), x, &weights, &mut levels, search::WEIGHTED);
        if !store(block, d, -m, &levels) {
            // The squares or their sums left the range of f32; ggml would store this NaN or infinity.
            self.by_extremes(x, block);
        }
    }
}

/// Fills a block; false if one of the numbers is not finite as a half float.
fn store(block: &mut [u8], d: f32, m: f32, levels: &[u8; LEN]) -> bool {
    nibbles::pack(levels, &mut block[4..]);
    store_half(block, 0, d) & store_half(block, 2, m)
}
