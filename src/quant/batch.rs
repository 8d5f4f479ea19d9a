//! Quantising a run of rows by a search, `L` blocks at a time; see [`lanes`](super::lanes).

use super::lanes::{Columns, Lanes};
use super::search;
use crate::gguf::TensorType;
use std::array::from_fn;

/// A format whose blocks of `N` values are searched for.
pub(super) trait Search<const N: usize> {
    /// Whether weights depend on the mean square of a block's row.
    const ROW: bool;

    /// Fills blocks, one after the other in `dst`, for the values in `x`: the first lanes' where there are fewer than `L`.
    /// The result says for each lane whether all stored numbers are finite.
    fn search<const L: usize>(
        &self,
        x: &Columns<N, L>,
        weighting: Option<&Weighting<N, L>>,
        dst: &mut [u8],
    ) -> [bool; L];

    /// Fills one block where the weighted search failed: weights or their sums left the range of f32, and ggml would store a
    /// NaN or an infinity.
    fn fallback(&self, x: &[f32; N], block: &mut [u8]) {
        self.search::<1>(&Columns::of([x]), None, block);
    }
}

/// What errors count in the blocks of a batch.
pub(super) struct Weighting<const N: usize, const L: usize> {
    /// Of every value.
    pub(super) importance: Columns<N, L>,
    /// Of each block's row; zero unless the format asks for it.
    pub(super) row_mean_square: Lanes<L>,
}

/// Quantises `src` to blocks of `ty` in `dst`. With importance `src` is a whole number of rows as long as that.
#[inline(always)]
pub(super) fn quantize<const N: usize, const L: usize, F: Search<N>>(
    format: &F,
    ty: TensorType,
    src: &[f32],
    dst: &mut [u8],
    importance: Option<&[f32]>,
) {
    let blocks = src.as_chunks::<N>().0;
    let row_len = importance.map_or(src.len(), <[f32]>::len);
    let means = if F::ROW && !src.is_empty() { row_mean_squares::<N, L>(blocks, row_len / N) } else { Vec::new() };
    for (batch, dst) in dst.chunks_mut(L * ty.block_bytes()).enumerate() {
        // The last batch may be short; it is filled up with copies of its last block, which are thrown away.
        let at: [usize; L] = from_fn(|l| (batch * L + l).min(blocks.len() - 1));
        let x = Columns::of(at.map(|at| &blocks[at]));
        let Some(importance) = importance else {
            format.search(&x, None, dst);
            continue;
        };
        let importance = importance.as_chunks::<N>().0;
        let weighting = Weighting {
            importance: Columns::of(at.map(|at| &importance[at % importance.len()])),
            row_mean_square: Lanes(at.map(|at| means.get(at / importance.len()).copied().unwrap_or(0.0))),
        };
        let finite = format.search(&x, Some(&weighting), dst);
        if finite != [true; L] {
            again(format, &at.map(|at| &blocks[at]), &finite, dst.chunks_exact_mut(ty.block_bytes()));
        }
    }
}

/// Fills the blocks of a batch, as many as `dst` has room for and at most `L`. `store` fills the one of a lane and says whether all
/// stored numbers are finite.
#[inline(always)]
pub(super) fn fill<const L: usize>(
    dst: &mut [u8],
    ty: TensorType,
    mut store: impl FnMut(usize, &mut [u8]) -> bool,
) -> [bool; L] {
    let mut finite = [true; L];
    for (l, block) in dst.chunks_exact_mut(ty.block_bytes()).enumerate().take(L) {
        finite[l] = store(l, block);
    }
    finite
}

/// The blocks that are not finite, without importance.
#[cold]
#[inline(never)]
fn again<'a, const N: usize>(
    format: &impl Search<N>,
    x: &[&[f32; N]],
    finite: &[bool],
    dst: impl Iterator<Item = &'a mut [u8]>,
) {
    for ((x, finite), block) in x.iter().zip(finite).zip(dst) {
        if !finite {
            format.fallback(x, block);
        }
    }
}

/// The mean square of every row of `per_row` blocks. One lane is one row: a row's sum is one long chain of additions.
#[inline(always)]
fn row_mean_squares<const N: usize, const L: usize>(blocks: &[[f32; N]], per_row: usize) -> Vec<f32> {
    let rows = blocks.len() / per_row;
    let mut means = Vec::with_capacity(rows + L);
    for first in (0..rows).step_by(L) {
        let at: [usize; L] = from_fn(|l| (first + l).min(rows - 1) * per_row);
        let mut sum = Lanes::splat(0.0);
        for i in 0..per_row {
            search::add_squares(&mut sum, &Columns::of(at.map(|at| &blocks[at + i])).0);
        }
        means.extend((sum / Lanes::splat((per_row * N) as f32)).0);
    }
    means
}
