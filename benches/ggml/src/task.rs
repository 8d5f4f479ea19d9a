//! What both sides multiply, and what should come out.

use rdt::gguf::TensorType;
use rdt::quant;
use std::error::Error;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Activation rows of a product: one token, a few, and prompts.
pub(crate) const COLUMNS: [usize; 6] = [1, 2, 4, 8, 64, 512];
/// The most of them.
pub(crate) const MOST: usize = 512;

/// Weight rows whose products are compared, at least, if there are as many.
const COMPARED: usize = 64;

/// Matrices, all with the same weights but each in memory of its own, that multiply the same activations in turn.
pub(crate) struct Task<'a> {
    pub(crate) ty: TensorType,
    /// Weight rows of a matrix.
    pub(crate) rows: usize,
    /// Weights of a row.
    pub(crate) k: usize,
    /// Matrices.
    pub(crate) copies: usize,
    /// Products of a matrix before the next one's turn: many of a small one, so that what ggml does once per graph hardly
    /// counts.
    pub(crate) per_step: usize,
    /// `[rows][k]` as they are in a file.
    pub(crate) stored: Vec<u8>,
    /// `[MOST][k]`.
    pub(crate) x: &'a [f32],
    /// `[MOST][compared rows]`, in double precision.
    want: Vec<f64>,
}

impl<'a> Task<'a> {
    /// From the first of `weights` and of `x`.
    pub(crate) fn new(
        ty: TensorType,
        [rows, k]: [usize; 2],
        copies: usize,
        weights: &[f32],
        x: &'a [f32],
    ) -> Result<Self> {
        let row_bytes = ty.row_bytes(k).ok_or("rows are not whole blocks")?;
        let (weights, x) = (&weights[..rows * k], &x[..MOST * k]);
        let mut stored = vec![0; rows * row_bytes];
        quant::quantize_rows(ty, weights, k, &mut stored, None)?;
        let mut meant = vec![0.0; rows * k];
        quant::dequantize_rows(ty, &stored, k, &mut meant)?;
        let per_step = if copies == 1 { 32 } else { 1 };
        let mut task = Self { ty, rows, k, copies, per_step, stored, x, want: Vec::new() };
        task.want = x
            .chunks_exact(k)
            .flat_map(|x| task.compared().map(|r| dot(&meant[r * k..(r + 1) * k], x)).collect::<Vec<_>>())
            .collect();
        Ok(task)
    }

    /// Weight rows whose products are compared: from all over the matrix, and the last.
    fn compared(&self) -> impl Iterator<Item = usize> + use<> {
        let last = self.rows - 1;
        (0..last).step_by((self.rows / COMPARED).max(1)).chain([last])
    }

    /// The relative root mean square error of a product `[n][rows]`.
    pub(crate) fn error(&self, got: &[f32]) -> f64 {
        let each = self.compared().count();
        let (mut wrong, mut all) = (0.0, 0.0);
        for (got, want) in got.chunks_exact(self.rows).zip(self.want.chunks_exact(each)) {
            for (r, want) in self.compared().zip(want) {
                wrong += (f64::from(got[r]) - want).powi(2);
                all += want.powi(2);
            }
        }
        f64::sqrt(wrong / all)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// One side of the race.
pub(crate) trait Racer: Send {
    /// How the weights lie.
    fn name(&self) -> &str;
    /// [`Task::per_step`] products of the next matrix with the first `n` activation rows (one of [`COLUMNS`]), each with its
    /// quantisation of the activations.
    fn step(&mut self, n: usize) -> Result<()>;
    /// The last product, `[n][rows]`.
    fn product(&self, n: usize) -> Result<Vec<f32>>;
}
