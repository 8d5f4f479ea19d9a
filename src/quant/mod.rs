//! Weight formats: how rows of f32 become blocks of bytes and come back.
//!
//! One file per format, or per few closely related ones; each implements [`BlockFormat`] and is entered in [`format()`].
//! The bytes are those that ggml writes for the same input, so files move freely between the two. [`recipe`] says
//! which format a tensor gets from the part it plays in a model, [`imatrix`] how much an error in each of its columns counts.
//!
//! ```
//! use rdt::{gguf::TensorType, quant};
//! let row: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
//! let mut bytes = vec![0; TensorType::Q8_0.row_bytes(64).unwrap()];
//! quant::quantize_rows(TensorType::Q8_0, &row, 64, &mut bytes, None)?;
//! let mut back = vec![0.0; 64];
//! quant::dequantize_rows(TensorType::Q8_0, &bytes, 64, &mut back)?;
//! assert!(row.iter().zip(&back).all(|(a, b)| (a - b).abs() < 0.5 / 127.0 + 1e-3));
//! # Ok::<(), quant::Error>(())
//! ```

mod batch;
pub mod imatrix;
mod iq4;
mod lanes;
mod nibbles;
mod plain;
mod q4_0;
mod q4_1;
mod q4_k;
mod q6_k;
mod q8_0;
pub mod recipe;
mod round;
mod search;
mod tier;

pub use imatrix::Imatrix;
pub(crate) use iq4::VALUES as IQ4_VALUES;
pub use recipe::{Choice, Override, Recipe, Role, Seen};

use crate::float16::{f16_to_f32, f32_to_f16};
use crate::gguf::TensorType;
use rayon::prelude::*;
use tier::{Tier, Work};

/// Values in a piece of work: enough to be worth handing to another thread and to fill the lanes of a search, few enough to
/// stay in a core's cache between the check and the conversion.
const VALUES_PER_TASK: usize = 8 * 1024;

/// Why rows were not converted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The type has no quantiser here.
    #[error("tensors cannot be converted to or from {ty}; supported are {}", supported_names())]
    Unsupported {
        /// The type asked for.
        ty: TensorType,
    },
    /// Rows of this length do not divide into blocks.
    #[error("a row of {k} values does not divide into {ty} blocks of {}", ty.block_len())]
    RowLength {
        /// The type asked for.
        ty: TensorType,
        /// Values in a row.
        k: usize,
    },
    /// A buffer has the wrong length.
    #[error("the {what} has {found} elements where {expected} are needed")]
    Length {
        /// Which buffer.
        what: &'static str,
        /// Elements (values or bytes) needed.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// The values are not a whole number of rows.
    #[error("{found} {unit} are not a whole number of rows of {row}")]
    PartialRow {
        /// "values" or "bytes".
        unit: &'static str,
        /// Elements in a row.
        row: usize,
        /// Elements given.
        found: usize,
    },
    /// A value is NaN or infinite, or becomes infinite in this type.
    #[error("row {row}, column {column} is {value}, which {ty} cannot hold (its largest magnitude is {limit})")]
    Value {
        /// Row of the first such value.
        row: usize,
        /// Its column.
        column: usize,
        /// The value.
        value: f32,
        /// The type asked for.
        ty: TensorType,
        /// [`BlockFormat::limit`] of the type.
        limit: f32,
    },
    /// An importance is negative, NaN or infinite.
    #[error("the importance of column {column} is {value}; it must be a finite number that is not negative")]
    Importance {
        /// The first such column.
        column: usize,
        /// Its importance.
        value: f32,
    },
}

/// A storage format for rows of numbers.
///
/// The methods convert any whole number of blocks, or of rows where an importance is given, on the calling thread. They take
/// any float without panicking; what becomes of non-finite values, and of values past [`limit`](Self::limit), is said in the
/// format's module. [`quantize_rows`] refuses both.
///
/// # Panics
/// Both conversions panic when the lengths of their arguments do not fit each other.
pub trait BlockFormat: Sync {
    /// The type in a GGUF file.
    fn tensor_type(&self) -> TensorType;

    /// The largest magnitude that is stored without some stored number becoming infinite.
    fn limit(&self) -> f32;

    /// Writes `src` (values, a multiple of the block length) to `dst` (bytes, the same number of blocks).
    ///
    /// `importance`, one non-negative number per value of the row, says how much an error in that column matters:
    /// usually the mean square of the activation it is multiplied with. With it `src` must be a whole number of rows,
    /// because formats may look at the whole row. Formats that have no use for it ignore it.
    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>);

    /// Writes the values in `src` (bytes, a multiple of the block size) to `dst` (as many values). Any bytes are
    /// accepted.
    fn dequantize(&self, src: &[u8], dst: &mut [f32]);
}

/// What a format's file provides: [`BlockFormat`] with lengths that have been checked, to be compiled for every [`Tier`].
/// All of it is inlined, or it would be compiled for the least of them.
trait Coder: Sync {
    fn tensor_type(&self) -> TensorType;
    fn limit(&self) -> f32;
    /// `L` is how many blocks a search may take at once; the bytes do not depend on it.
    fn quantize<const L: usize>(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>);
    fn dequantize(&self, src: &[u8], dst: &mut [f32]);
}

/// A coder as a format: checks lengths and chooses the tier.
struct Tiered<C>(C);

impl<C: Coder> BlockFormat for Tiered<C> {
    fn tensor_type(&self) -> TensorType {
        self.0.tensor_type()
    }

    fn limit(&self) -> f32 {
        self.0.limit()
    }

    fn quantize(&self, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        self.quantize_on(Tier::best(), src, dst, importance);
    }

    fn dequantize(&self, src: &[u8], dst: &mut [f32]) {
        self.dequantize_on(Tier::best(), src, dst);
    }
}

/// [`BlockFormat`] on a given tier.
trait OnTier: BlockFormat {
    fn quantize_on(&self, tier: Tier, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>);
    fn dequantize_on(&self, tier: Tier, src: &[u8], dst: &mut [f32]);
}

impl<C: Coder> OnTier for Tiered<C> {
    fn quantize_on(&self, tier: Tier, src: &[f32], dst: &mut [u8], importance: Option<&[f32]>) {
        self.check_lengths(src.len(), dst.len());
        if let Some(importance) = importance {
            assert!(
                src.is_empty() || !importance.is_empty() && src.len().is_multiple_of(importance.len()),
                "one importance is needed for each value of a row"
            );
            // Blocks must not straddle rows.
            assert!(
                importance.len().is_multiple_of(self.0.tensor_type().block_len()),
                "a row is not a whole number of blocks"
            );
        }
        tier.run(Quantize { coder: &self.0, src, dst, importance });
    }

    fn dequantize_on(&self, tier: Tier, src: &[u8], dst: &mut [f32]) {
        self.check_lengths(dst.len(), src.len());
        tier.run(Dequantize { coder: &self.0, src, dst });
    }
}

impl<C: Coder> Tiered<C> {
    /// Panics unless the lengths fit: what the conversions promise under "Panics".
    #[track_caller]
    fn check_lengths(&self, values: usize, bytes: usize) {
        let ty = self.0.tensor_type();
        assert_eq!(ty.row_bytes(values), Some(bytes), "{values} values of {ty} do not fill {bytes} bytes");
    }
}

struct Quantize<'a, C> {
    coder: &'a C,
    src: &'a [f32],
    dst: &'a mut [u8],
    importance: Option<&'a [f32]>,
}

impl<C: Coder> Work for Quantize<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<const L: usize>(self) {
        self.coder.quantize::<L>(self.src, self.dst, self.importance);
    }
}

struct Dequantize<'a, C> {
    coder: &'a C,
    src: &'a [u8],
    dst: &'a mut [f32],
}

impl<C: Coder> Work for Dequantize<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<const L: usize>(self) {
        self.coder.dequantize(self.src, self.dst);
    }
}

/// Every format there is.
static FORMATS: [&dyn OnTier; 13] = [
    &Tiered(plain::F32),
    &Tiered(plain::F16),
    &Tiered(plain::BF16),
    &Tiered(q8_0::Q8_0),
    &Tiered(q4_0::Q4_0),
    &Tiered(q4_1::Q4_1),
    &Tiered(q4_0::Q5_0),
    &Tiered(q4_1::Q5_1),
    &Tiered(q4_k::Q4_K),
    &Tiered(q4_k::Q5_K),
    &Tiered(q6_k::Q6K),
    &Tiered(iq4::Iq4Nl),
    &Tiered(iq4::Iq4Xs),
];

/// The format that reads and writes `ty`, if this library has one.
pub fn format(ty: TensorType) -> Option<&'static dyn BlockFormat> {
    FORMATS.into_iter().find(|format| format.tensor_type() == ty).map(|format| format as _)
}

/// Converts rows of `k` values to `ty`, in parallel over rows. The bytes do not depend on the number of threads.
///
/// `src` holds n rows one after the other, `dst` takes n · [`row_bytes`](TensorType::row_bytes)`(k)` bytes, and
/// `importance` (see [`BlockFormat::quantize`]) has `k` entries, the same for every row.
///
/// # Errors
/// Lengths that do not fit, a type without a format, an importance that is negative or not finite, and the first value
/// (in row order) that is not finite or too large for the type. After an error the contents of `dst` are unspecified.
pub fn quantize_rows(
    ty: TensorType,
    src: &[f32],
    k: usize,
    dst: &mut [u8],
    importance: Option<&[f32]>,
) -> Result<(), Error> {
    let (format, row_bytes) = checked_row(ty, k)?;
    if !src.len().is_multiple_of(k) {
        return Err(Error::PartialRow { unit: "values", row: k, found: src.len() });
    }
    let expected = (src.len() / k).saturating_mul(row_bytes);
    if dst.len() != expected {
        return Err(Error::Length { what: "output", expected, found: dst.len() });
    }
    if let Some(importance) = importance {
        if importance.len() != k {
            return Err(Error::Length { what: "importance", expected: k, found: importance.len() });
        }
        if let Some(column) = importance.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(Error::Importance { column, value: importance[column] });
        }
    }
    let limit = format.limit();
    let rows = rows_per_task(k);
    let first_bad = src
        .par_chunks(rows * k)
        .zip(dst.par_chunks_mut(rows * row_bytes))
        .enumerate()
        .filter_map(|(task, (values, bytes))| {
            if let Some(at) = first_outside(values, limit) {
                return Some(task * rows * k + at);
            }
            format.quantize(values, bytes, importance);
            None
        })
        .min();
    match first_bad {
        None => Ok(()),
        Some(at) => Err(Error::Value { row: at / k, column: at % k, value: src[at], ty, limit }),
    }
}

/// Converts rows of `k` values of type `ty` to f32, in parallel over rows: the reverse of [`quantize_rows`].
///
/// # Errors
/// Lengths that do not fit and a type without a format. The bytes themselves are never at fault: a stored NaN or
/// infinity is handed on.
pub fn dequantize_rows(ty: TensorType, src: &[u8], k: usize, dst: &mut [f32]) -> Result<(), Error> {
    let (format, row_bytes) = checked_row(ty, k)?;
    if !src.len().is_multiple_of(row_bytes) {
        return Err(Error::PartialRow { unit: "bytes", row: row_bytes, found: src.len() });
    }
    let expected = (src.len() / row_bytes).saturating_mul(k);
    if dst.len() != expected {
        return Err(Error::Length { what: "output", expected, found: dst.len() });
    }
    let rows = rows_per_task(k);
    src.par_chunks(rows * row_bytes)
        .zip(dst.par_chunks_mut(rows * k))
        .for_each(|(bytes, values)| format.dequantize(bytes, values));
    Ok(())
}

/// The format of `ty` and the bytes in one of its rows; neither `k` nor the bytes are 0.
fn checked_row(ty: TensorType, k: usize) -> Result<(&'static dyn BlockFormat, usize), Error> {
    let format = format(ty).ok_or(Error::Unsupported { ty })?;
    let row_bytes = ty.row_bytes(k).filter(|&bytes| bytes > 0).ok_or(Error::RowLength { ty, k })?;
    Ok((format, row_bytes))
}

/// Rows of `k` values to be converted at a time.
fn rows_per_task(k: usize) -> usize {
    (VALUES_PER_TASK / k).max(1)
}

/// The first value that is NaN or of a magnitude above `limit`.
pub(crate) fn first_outside(values: &[f32], limit: f32) -> Option<usize> {
    struct AllInside<'a>(&'a [f32], f32);
    impl Work for AllInside<'_> {
        type Output = bool;
        #[inline(always)]
        fn run<const L: usize>(self) -> bool {
            // The fold has no early exit, so that it vectorises; almost every row passes.
            self.0.iter().fold(true, |ok, v| ok & (v.abs() <= self.1))
        }
    }
    if Tier::best().run(AllInside(values, limit)) {
        return None;
    }
    values.iter().position(|v| v.is_nan() || v.abs() > limit)
}

/// The blocks of `LEN` values in `x`, each with its bytes in `ty`.
#[inline(always)]
fn blocks<'a, const LEN: usize>(
    ty: TensorType,
    bytes: &'a [u8],
    x: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8], &'a mut [f32; LEN])> {
    bytes.chunks_exact(ty.block_bytes()).zip(x.as_chunks_mut().0)
}

/// As [`blocks`], to fill the bytes.
#[inline(always)]
fn blocks_mut<'a, const LEN: usize>(
    ty: TensorType,
    x: &'a [f32],
    bytes: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; LEN], &'a mut [u8])> {
    x.as_chunks().0.iter().zip(bytes.chunks_exact_mut(ty.block_bytes()))
}

/// The least and the largest value of a block. Of zeros of both signs it may be either.
#[inline(always)]
fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    (fold(x, |a, b| if a < b { a } else { b }), fold(x, |a, b| if a > b { a } else { b }))
}

/// Folds a block in an order that vectorises: eight chains, and then halves with halves.
#[inline(always)]
fn fold<const N: usize>(x: &[f32; N], f: impl Fn(f32, f32) -> f32) -> f32 {
    const { assert!(N.is_multiple_of(8)) };
    let mut chains = [x[0]; 8];
    for x in x.as_chunks::<8>().0 {
        for (chain, &x) in chains.iter_mut().zip(x) {
            *chain = f(x, *chain);
        }
    }
    let [a, b, c, d, e, g, h, i] = chains;
    f(f(f(a, e), f(c, h)), f(f(b, g), f(d, i)))
}

/// The first value of a block of which something holds; 0 if there is none. For what hardly ever happens.
#[cold]
#[inline(never)]
fn first(x: &[f32], holds: impl Fn(f32) -> bool) -> f32 {
    x.iter().copied().find(|&v| holds(v)).unwrap_or(0.0)
}

/// The half float at byte `at` of a block.
#[inline(always)]
fn half(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// Stores a half float at byte `at` of a block; false if it is not finite.
#[inline(always)]
fn store_half(block: &mut [u8], at: usize, x: f32) -> bool {
    let stored = f32_to_f16(x);
    block[at..at + 2].copy_from_slice(&stored.to_le_bytes());
    f16_to_f32(stored).is_finite()
}

/// What values are multiplied with to be divided by the scale `d`; 0 if that is zero.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    // 1/d is infinite for the smallest subnormal d, which f16 stores as zero anyway.
    if d == 0.0 || (1.0 / d).is_infinite() { 0.0 } else { 1.0 / d }
}

fn supported_names() -> String {
    FORMATS.map(|format| format.tensor_type().name()).join(", ")
}

#[cfg(test)]
mod held_out;
#[cfg(test)]
mod tests;
