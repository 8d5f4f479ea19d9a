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

use super::batch::{self, Search, Weighting};
use super::lanes::Columns;
use super::nibbles::{self, LEN};
use super::{Coder, blocks, blocks_mut, first, half, inverse, range, round, search, store_half};
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

impl Coder for Symmetric {
    fn tensor_type(&self) -> TensorType {
        self.ty
    }

    fn limit(&self) -> f32 {
        self.middle() as f32 * 65504.0
    }

    #[inline(always)]
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        if importance.is_some() {
            return batch::quantize::<LEN, L, _>(self, self.ty, src, dst, importance);
        }
        for (x, block) in blocks_mut(self.ty, src, dst) {
            self.by_extreme(x, block);
        }
    }

    #[inline(always)]
    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        for (block, x) in blocks::<LEN>(self.ty, src, dst) {
            let d = half(block, 0);
            for (x, q) in x.iter_mut().zip(nibbles::unpack(&block[2..])) {
                *x = (i32::from(q) - self.middle()) as f32 * d;
            }
        }
    }
}

impl Search<LEN> for Symmetric {
    const ROW: bool = true;

    /// ggml's `quantize_row_q4_0_impl` and `quantize_row_q5_0_impl`.
    #[inline(always)]
    fn search<const L: usize>(
        &self,
        x: &Columns<LEN, L>,
        weighting: Option<&Weighting<LEN, L>>,
        dst: &mut [u8],
    ) -> [bool; L] {
        let weights = search::weights(&x.0, weighting);
        let mut levels = Columns::ZERO;
        let d = search::symmetric(self.middle(), &x.0, &weights, &mut levels.0);
        batch::fill(dst, self.ty, |l, block| store(block, d.0[l], &levels.block(l)))
    }

    fn fallback(&self, x: &[f32; LEN], block: &mut [u8]) {
        self.by_extreme(x, block);
    }
}

impl Symmetric {
    /// The level that stands for zero.
    #[inline(always)]
    fn middle(&self) -> i32 {
        1 << (self.bits - 1)
    }

    /// ggml's `quantize_row_q4_0_ref` and `quantize_row_q5_0_ref` for one block.
    #[inline(always)]
    fn by_extreme(&self, x: &[f32; LEN], block: &mut [u8]) {
        let (least, most) = range(x);
        // Which of the two it is no one can foresee, so it must not become a branch.
        let mut extreme = if most > -least { most } else { least };
        if most == -least {
            // The first of two that are opposite. In a block of zeros, d is negative zero.
            extreme = if most > 0.0 { first(x, |v| v.abs() == most) } else { 0.0 };
        }
        let middle = self.middle();
        let d = extreme / -middle as f32;
        let inverse = inverse(d);
        // Where 1/d is infinite, ggml casts what is no number to an integer, which gives 0 on x86.
        let shift = if d != 0.0 && inverse == 0.0 { 0.0 } else { middle as f32 + 0.5 };
        let last = (2 * middle - 1) as f32;
        let mut levels = [0.0; LEN];
        for (level, x) in levels.iter_mut().zip(x) {
            *level = round::at_most(round::floor(x * inverse + shift), last);
        }
        store(block, d, &levels);
    }
}

/// Fills a block; false if the scale is not finite as a half float.
#[inline(always)]
fn store(block: &mut [u8], d: f32, levels: &[f32; LEN]) -> bool {
    nibbles::pack(levels, &mut block[2..]);
    store_half(block, 0, d)
}
