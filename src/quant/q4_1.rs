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

use super::batch::{self, Search, Weighting};
use super::lanes::Columns;
use super::nibbles::{self, LEN};
use super::{Coder, blocks, blocks_mut, first, half, inverse, range, round, search, store_half};
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

impl Coder for Affine {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        65504.0
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        if importance.is_some() {
            return batch::quantize::<LEN, L, _>(self, self.ty, src, dst, importance);
        }
        for (x, block) in blocks_mut(self.ty, src, dst) {
            self.by_extremes(x, block);
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let (d, m) = (half(block, 0), half(block, 2));
            for (x, q) in x.iter_mut().zip(nibbles::unpack(&block[4..])) {
                *x = f32::from(q) * d + m;
            }
        }
    }
}

impl Search<LEN> for Affine {
    const ROW: bool = true;

    /// ggml's `quantize_row_q4_1_impl` and `quantize_row_q5_1_impl`.
    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<LEN, L>,
        weighting: Option<&Weighting<LEN, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let weights = search::weights(&x.0, weighting);
        let mut levels = Columns::ZERO;
        let (d, m) = search::affine(self.last_level(), &x.0, &weights, &mut levels.0, search::WEIGHTED);
        batch::fill(dst, self.ty, |l, block| store(block, d.0[l], -m.0[l], &levels.block(l)))
    }

    fn fallback(&self, x: &[f32; LEN], block: &mut [u8]) {
        self.by_extremes(x, block);
    }
}

impl Affine {
    #[inline(always)]
    fn last_level(&self) -> u8 {
        (1 << self.bits) - 1
    }

    /// ggml's `quantize_row_q4_1_ref` and `quantize_row_q5_1_ref` for one block.
    #[inline(always)]
    fn by_extremes(&self, x: &[f32; LEN], block: &mut [u8]) {
        let (mut least, most) = range(x);
        if least == 0.0 {
            // The sign of the first zero is stored.
            least = first(x, |v| v == 0.0);
        }
        let last = f32::from(self.last_level());
        // Adding zero makes a negative zero positive, as the difference of equal numbers is.
        let d = (most - least + 0.0) / last;
        let inverse = inverse(d);
        let mut levels = [0.0; LEN];
        for (level, x) in levels.iter_mut().zip(x) {
            *level = round::at_most(round::floor((x - least) * inverse + 0.5), last);
        }
        store(block, d, least, &levels);
    }
}

/// Fills a block; false if one of the numbers is not finite as a half float.
#[inline(always)]
fn store(block: &mut [u8], d: f32, m: f32, levels: &[f32; LEN]) -> bool {
    nibbles::pack(levels, &mut block[4..]);
    store_half(block, 0, d) & store_half(block, 2, m)
}
