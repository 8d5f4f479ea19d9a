//! Activation rows in the forms that weights multiply.

use super::Kernels;
use crate::gguf::TensorType;
use std::ops::Range;

/// Activations of a block format share a scale over this many values.
pub const Q8_BLOCK: usize = 32;

/// Largest magnitude of a 16-bit activation: 128 · 127 + 63, so that it is also two signed bytes, `128 · high + low`, for
/// instruction sets that multiply only bytes quickly.
pub const WIDE_MAX: i16 = 128 * 127 + 63;

/// A form that activations take before they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// f32, for weights without blocks.
    Plain,
    /// Signed bytes with a scale and sums per 32, for weights of 4 to 6 bits.
    Bytes,
    /// 16-bit numbers up to [`WIDE_MAX`] with a scale per 32, for 8-bit weights.
    Wide,
}

impl Form {
    /// The form that weights of this type multiply.
    pub fn of(ty: TensorType) -> Self {
        match ty {
            TensorType::Q8_0 => Form::Wide,
            _ if ty.block_len() > 1 => Form::Bytes,
            _ => Form::Plain,
        }
    }
}

/// What belongs to 32 signed bytes a: their scale, and sums that take off what weights are offset by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct ByteScale {
    /// The value of one.
    pub d: f32,
    /// `d · Σ a`.
    pub d_sum: f32,
    /// `-8 · Σ a`.
    pub minus_8: i32,
    /// `-32 · Σ a` of the first sixteen, and of the others.
    pub minus_32: [i32; 2],
}

impl ByteScale {
    /// Of the bytes `a` with the scale `d`.
    #[inline(always)]
    pub(super) fn new(d: f32, a: &[i8]) -> Self {
        let mut sums = [0i32; 2];
        for (sum, a) in sums.iter_mut().zip(a.chunks_exact(Q8_BLOCK / 2)) {
            *sum = a.iter().map(|&a| i32::from(a)).sum();
        }
        let sum = sums[0] + sums[1];
        Self {
            d,
            d_sum: d * sum as f32,
            minus_8: -8 * sum,
            minus_32: sums.map(
                #[inline(always)]
                |s| -32 * s,
            ),
        }
    }
}

/// What belongs to 32 16-bit numbers a.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct WideScale {
    /// The value of one.
    pub d: f32,
    /// `-128 · Σ a`.
    pub minus_128: i32,
}

/// Activation rows as matrix kernels read them.
///
/// A weight format reads one [`Form`]; the parts that are not needed may be empty.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    /// Number of rows.
    pub rows: usize,
    /// Values per row.
    pub k: usize,
    /// `[rows][k]` as f32.
    pub f: &'a [f32],
    /// `[rows][k]` as signed bytes.
    pub q: &'a [i8],
    /// `[rows][k / 32]`, of `q`.
    pub scales: &'a [ByteScale],
    /// `[rows][k]` as 16-bit numbers.
    pub wide: &'a [i16],
    /// `[rows][k]`: `wide` is `128 · high + low`.
    pub high: &'a [i8],
    /// `[rows][k]`, -64 to 63.
    pub low: &'a [i8],
    /// `[rows][k / 32]`, of `wide`.
    pub wide_scales: &'a [WideScale],
}

impl Acts<'_> {
    /// Panics unless everything that a form is made of is there.
    #[inline(always)]
    pub(super) fn check(&self, form: Form) {
        let (n, blocks) = (self.rows * self.k, self.rows * (self.k / Q8_BLOCK));
        let there = match form {
            Form::Plain => self.f.len() >= n,
            Form::Bytes => self.q.len() >= n && self.scales.len() >= blocks,
            Form::Wide => {
                self.wide.len() >= n && self.high.len() >= n && self.low.len() >= n && self.wide_scales.len() >= blocks
            }
        };
        assert!(there, "activations are not there in the form {form:?}");
    }
}

/// Activation rows of their own in every form, for tests and benchmarks; a forward pass keeps its in buffers.
#[derive(Clone, Debug, Default)]
pub struct ActRows {
    k: usize,
    f: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<ByteScale>,
    wide: Vec<i16>,
    high: Vec<i8>,
    low: Vec<i8>,
    wide_scales: Vec<WideScale>,
}

impl ActRows {
    /// Takes rows `f` `[rows][k]`; quantises them if `k` is a multiple of 32.
    ///
    /// # Panics
    /// If `f` is not whole rows.
    pub fn new(kernels: &Kernels, f: Vec<f32>, k: usize) -> Self {
        assert!(f.len().is_multiple_of(k));
        let (n, blocks) = (f.len(), f.len() / Q8_BLOCK);
        let mut rows = Self {
            k,
            f,
            q: vec![0; n],
            scales: vec![ByteScale::default(); blocks],
            wide: vec![0; n],
            high: vec![0; n],
            low: vec![0; n],
            wide_scales: vec![WideScale::default(); blocks],
        };
        if k.is_multiple_of(Q8_BLOCK) {
            rows.quantize(kernels);
        }
        rows
    }

    /// Quantises all rows (again).
    pub fn quantize(&mut self, kernels: &Kernels) {
        let Self { f, q, scales, wide, high, low, wide_scales, .. } = self;
        (kernels.quantize_row)(f, q, scales);
        (kernels.quantize_row_wide)(f, wide, high, low, wide_scales);
    }

    /// Some rows.
    pub fn acts(&self, rows: Range<usize>) -> Acts<'_> {
        let (k, blocks) = (self.k, self.k / Q8_BLOCK);
        let (a, b) = (rows.start * k..rows.end * k, rows.start * blocks..rows.end * blocks);
        Acts {
            rows: rows.len(),
            k,
            f: &self.f[a.clone()],
            q: &self.q[a.clone()],
            scales: &self.scales[b.clone()],
            wide: &self.wide[a.clone()],
            high: &self.high[a.clone()],
            low: &self.low[a],
            wide_scales: &self.wide_scales[b],
        }
    }

    /// What a form really stands for, `[rows][k]`.
    pub fn meant(&self, form: Form) -> Vec<f64> {
        match form {
            Form::Plain => self.f.iter().map(|&x| f64::from(x)).collect(),
            Form::Bytes => {
                self.q.iter().enumerate().map(|(i, &q)| f64::from(q) * f64::from(self.scales[i / Q8_BLOCK].d)).collect()
            }
            Form::Wide => {
                let d = |i: usize| f64::from(self.wide_scales[i / Q8_BLOCK].d);
                self.wide.iter().enumerate().map(|(i, &q)| f64::from(q) * d(i)).collect()
            }
        }
    }
}
