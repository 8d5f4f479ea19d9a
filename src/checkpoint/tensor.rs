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
    /// Its values, little endian, with no alignment promised. They follow each other in the order of the shape, except
    /// in a tensor that is transposed or cut out of another; [`rows_f32`](Self::rows_f32) reads both.
    pub data: &'a [u8],
    /// Where `data` begins in its file.
    pub(crate) offset: usize,
    /// How many values lie between neighbours along each dimension; `None` where they follow each other in order.
    /// Where there are strides, no dimension is 0 and the last value ends where `data` does.
    pub(crate) strides: Option<Vec<usize>>,
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

    /// Converts `rows` to f32, exactly but for F64, which is rounded; infinities and NaN are handed on. `out` takes
    /// `rows.len() *` [`row_len`](Self::row_len) values.
    ///
    /// # Errors
    /// [`Error::Dtype`] unless the values are F64, F32, F16 or BF16, [`Error::Rows`], [`Error::Buffer`].
    pub fn rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        match self.dtype {
            Dtype::F64 => self.convert(rows, out, |b| f64::from_le_bytes(b) as f32),
            Dtype::F32 => self.convert(rows, out, f32::from_le_bytes),
            Dtype::F16 => self.convert(rows, out, |b| float16::f16_to_f32(u16::from_le_bytes(b))),
            Dtype::BF16 => self.convert(rows, out, |b| float16::bf16_to_f32(u16::from_le_bytes(b))),
            dtype => Err(Error::Dtype { tensor: shorten(self.name), dtype }),
        }
    }

    /// All values as f32, in the order of the shape.
    ///
    /// # Errors
    /// [`Error::Dtype`] unless the values are F64, F32, F16 or BF16.
    pub fn to_f32(&self) -> Result<Vec<f32>, Error> {
        let value_bytes = (self.dtype.bitsize() / 8).max(1);
        let stored = self.data.len() / value_bytes;
        // Never more than the file has bytes for, whatever the shape says.
        let values = match self.strides {
            Some(_) => self.rows().saturating_mul(self.row_len()).min(stored),
            None => stored,
        };
        let mut out = vec![0.0; values];
        self.rows_f32(0..self.rows(), &mut out)?;
        Ok(out)
    }

    /// Converts `rows` with `value`, which takes the bytes of one.
    fn convert<const N: usize>(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32,
    ) -> Result<(), Error> {
        let name = || shorten(self.name);
        let no_such_rows = || Error::Rows { tensor: name(), start: rows.start, end: rows.end, rows: self.rows() };
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(no_such_rows());
        }
        let row_len = self.row_len();
        let expected = rows.len().checked_mul(row_len).ok_or_else(no_such_rows)?;
        let wrong_buffer = || Error::Buffer { tensor: name(), expected, found: out.len() };
        let (values, _) = self.data.as_chunks::<N>();
        let Some(strides) = &self.strides else {
            let start = rows.start.checked_mul(row_len);
            let values = start.and_then(|start| values.get(start..start.checked_add(expected)?));
            let values = values.ok_or_else(no_such_rows)?;
            if out.len() != expected {
                return Err(wrong_buffer());
            }
            for (out, &bytes) in out.iter_mut().zip(values) {
                *out = value(bytes);
            }
            return Ok(());
        };
        if out.len() != expected {
            return Err(wrong_buffer());
        }
        let step = strides.last().copied().unwrap_or(1);
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(row_len.max(1))) {
            let start = self.row_start(row, strides);
            for (column, out) in out.iter_mut().enumerate() {
                // All values lie in `data`, so neither can this overflow nor the value be missing.
                *out = value(*values.get(start + column * step).ok_or_else(no_such_rows)?);
            }
        }
        Ok(())
    }

    /// The first value of a row, counted from the start of `data`.
    fn row_start(&self, row: usize, strides: &[usize]) -> usize {
        let outer = self.shape.iter().zip(strides).rev().skip(1);
        let (start, _) =
            outer.fold((0, row), |(start, rest), (&dim, &stride)| (start + rest % dim * stride, rest / dim));
        start
    }
}
