//! Matrices repacked into panels: groups of weight rows, interleaved four weights at a time.
//!
//! A kernel that takes weight rows as they are stored must gather their scales, and sum each row's products across the lanes of
//! a register. In a panel a lane is a row: one load brings four weights of every row, they meet four activations in every lane,
//! and the sums are never across lanes. Several such loads follow each other in memory, in the order in which they are used.
//! Nothing is rounded again: a panel holds exactly what the file holds.
//!
//! # Layout
//! `R` rows (8 or 16, as suits the registers) of `k` weights are three parts, each beginning at a multiple of 64 bytes:
//!
//! * halves: for every block, the half-precision scale of each row; then, where the format has one, the minimum of each;
//! * sub: for every 32 weights of a format with blocks of 256, the small scale of each row as a byte; then, where there is one,
//!   the small minimum of each, or the second scale;
//! * quants: for every 32 weights, vectors of four bytes per row. Nibbles: vector g of four has weights 4g to 4g + 3 in the lower
//!   halves of the bytes and weights 16 + 4g to 19 + 4g in the upper. Then, for formats of five bits, one vector: bit g of byte i
//!   is the fifth bit of weight 4g + i. For six bits, two vectors: bits 2m and 2m + 1 of byte i of vector h belong to weight
//!   4 (4h + m) + i. Eight bits: vector g of eight has weights 4g to 4g + 3.
//!
//! The last panel of a matrix is filled up with zeros.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
mod formats;
mod pack;
mod product;
pub(super) mod scalar;
pub(super) mod wide;
#[cfg(target_arch = "x86_64")]
pub(super) mod ymm;
#[cfg(target_arch = "x86_64")]
pub(super) mod zmm;

pub(super) use formats::{Iq4Nl, Iq4Xs, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
pub(super) use product::multiply;

use super::{Acts, Q8_BLOCK};
use crate::gguf::TensorType;
use formats::Shape;
use std::ops::Range;

/// Parts of a panel, and panels, begin at multiples of this.
pub const PANEL_ALIGN: usize = 64;

/// `(panels, skip, rows, acts, out)`: `out[c * rows + r]` = weight row `skip + r` of the panels · activation row c.
pub type PanelMatMul = fn(&[u8], usize, usize, Acts<'_>, &mut [f32]);

/// How a matrix of one type lies in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PanelLayout {
    /// The type in a file.
    pub ty: TensorType,
    /// Weights per row, a multiple of the type's block.
    pub k: usize,
    /// Weight rows per panel.
    pub panel_rows: usize,
}

impl PanelLayout {
    /// The layout of rows of `k` weights; `None` for types without blocks, which are not repacked, and where `k` is not whole
    /// blocks or so large that the size of a panel has no number.
    pub fn new(ty: TensorType, k: usize, panel_rows: usize) -> Option<Self> {
        Shape::of(ty)?;
        let fits = k.checked_mul(panel_rows)?.checked_mul(4).is_some_and(|n| n < usize::MAX / 2);
        (fits && k > 0 && k.is_multiple_of(ty.block_len())).then_some(Self { ty, k, panel_rows })
    }

    /// Bytes of a panel.
    pub fn panel_bytes(&self) -> usize {
        self.parts().map_or(0, |[.., quants]| quants.end.next_multiple_of(PANEL_ALIGN))
    }

    /// Panels of a matrix of `rows` rows.
    pub fn panels(&self, rows: usize) -> usize {
        rows.div_ceil(self.panel_rows)
    }

    /// Bytes of a matrix of `rows` rows; `None` if that has no number.
    pub fn bytes(&self, rows: usize) -> Option<usize> {
        self.panels(rows).checked_mul(self.panel_bytes())
    }

    /// The panels that hold some rows, and how many rows of the first come before them.
    pub fn cover(&self, rows: &Range<usize>) -> (Range<usize>, usize) {
        (rows.start / self.panel_rows..rows.end.div_ceil(self.panel_rows), rows.start % self.panel_rows)
    }

    /// Where halves, sub-scales and quants are in a panel.
    fn parts(&self) -> Option<[Range<usize>; 3]> {
        let shape = Shape::of(self.ty)?;
        let (blocks, subs, rows) = (self.k / self.ty.block_len(), self.k / Q8_BLOCK, self.panel_rows);
        let halves = 0..2 * shape.halves * blocks * rows;
        let start = halves.end.next_multiple_of(PANEL_ALIGN);
        let sub = start..start + shape.sub * subs * rows;
        let start = sub.end.next_multiple_of(PANEL_ALIGN);
        Some([halves, sub, start..start + shape.quants() * subs * rows])
    }

    /// Packs up to `panel_rows` stored rows into one panel.
    ///
    /// # Panics
    /// If the sizes do not fit.
    pub fn pack(&self, stored: &[u8], panel: &mut [u8]) {
        pack::pack(self, stored, panel);
    }
}
