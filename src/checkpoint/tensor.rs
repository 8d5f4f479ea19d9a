//! A tensor as it lies in the file, and its conversion to f32.

use super::{Error, error::shorten};
use crate::{float16, gguf::TensorType};
use safetensors::Dtype;
use std::ops::Range;

/// A tensor of a checkpoint, in place in the mapped file.
///
/// A row is what the last dimension spans; a tensor without dimensions is one row of one value.
#[derive(Debug, Clone)]
pub struct TensorView<'a> {
    /// The name it was published under.
    pub name: &'a str,
    /// The type of its values.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first, as PyTorch prints it.
    pub shape: Vec<usize>,
    /// Its values, little endian, with no alignment promised.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// Values in a row.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows in the tensor.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).fold(1, |n, &dim| n.saturating_mul(dim))
    }

    /// The tensor type in which these values can be kept unchanged, for the types that can be converted.
    pub fn tensor_type(&self) -> Option<TensorType> {
        match self.dtype {
            Dtype::F32 => Some(TensorType::F32),
            Dtype::F16 => Some(TensorType::F16),
            Dtype::BF16 => Some(TensorType::BF16),
            _ => None,
        }
    }

    /// Converts `rows` to f32, exactly; infinities and NaN are handed on. `out` takes
    /// `rows.len() *` [`row_len`](Self::row_len) values.
    ///
    /// # Errors
    /// [`Error::Dtype`] unless the values are F32, F16 or BF16, [`Error::Rows`], [`Error::Buffer`].
    pub fn rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let name = || shorten(self.name);
        let wrong_dtype = || Error::Dtype { tensor: name(), dtype: self.dtype };
        let value_bytes = self.tensor_type().ok_or_else(wrong_dtype)?.block_bytes();
        let no_such_rows = || Error::Rows { tensor: name(), start: rows.start, end: rows.end, rows: self.rows() };
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(no_such_rows());
        }
        let byte = |row: usize| row.checked_mul(self.row_len())?.checked_mul(value_bytes);
        let data = byte(rows.start).zip(byte(rows.end)).and_then(|(start, end)| self.data.get(start..end));
        let data = data.ok_or_else(no_such_rows)?;
        let expected = data.len() / value_bytes;
        if out.len() != expected {
            return Err(Error::Buffer { tensor: name(), expected, found: out.len() });
        }
        match self.dtype {
            Dtype::F32 => convert(data, out, f32::from_le_bytes),
            Dtype::F16 => convert(data, out, |b| float16::f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => convert(data, out, |b| float16::bf16_to_f32(u16::from_le_bytes(b))),
            _ => return Err(wrong_dtype()),
        }
        Ok(())
    }

    /// All values as f32, in the order they are stored.
    ///
    /// # Errors
    /// [`Error::Dtype`] unless the values are F32, F16 or BF16.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let value_bytes = self.tensor_type().map_or(1, TensorType::block_bytes);
        // As many as the file has bytes for, whatever the shape says.
        let mut out = vec![0.0; self.data.len() / value_bytes];
        self.rows_f32(0..self.rows(), &mut out)?;
        Ok(out)
    }
}

fn convert<const N: usize>(data: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, &bytes) in out.iter_mut().zip(data.as_chunks::<N>().0) {
        *out = value(bytes);
    }
}
