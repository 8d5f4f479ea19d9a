//! The side of rdt: tiles as in its forward pass, on one thread.

use crate::task::{MOST, Racer, Result, Task};
use rdt::files::Bytes;
use rdt::kernels::{Acts, ByteScale, Form, Kernels, MatMul, PanelLayout, PanelMatMul, Q8_BLOCK, WideScale};
use std::ops::Range;

/// Tiles of the forward pass: weight rows, whole panels of them, and activation rows.
const TILE_ROWS: usize = 32;
const TILE_COLUMNS: usize = 128;

/// How weights lie, and what multiplies them.
enum Way {
    Panels(PanelLayout, PanelMatMul),
    Stored { row_bytes: usize, multiply: MatMul },
}

pub(crate) struct Ours<'a> {
    task: &'a Task<'a>,
    kernels: &'static Kernels,
    way: Way,
    /// All matrices, `each` bytes per matrix.
    weights: Bytes,
    each: usize,
    next: usize,
    // The parts of activations that the weights' form needs: see `Acts`.
    q: Vec<i8>,
    scales: Vec<ByteScale>,
    wide: Vec<i16>,
    high: Vec<i8>,
    low: Vec<i8>,
    wide_scales: Vec<WideScale>,
    /// `[TILE_COLUMNS][TILE_ROWS]`.
    tile: Vec<f32>,
    /// `[n][rows]`.
    out: Vec<f32>,
}

impl<'a> Ours<'a> {
    pub(crate) fn new(task: &'a Task<'a>, kernels: &'static Kernels) -> Result<Self> {
        let row_bytes = task.stored.len() / task.rows;
        let (way, one) = match kernels.panel(task.ty, task.k) {
            Some((layout, multiply)) => {
                assert!(TILE_ROWS.is_multiple_of(layout.panel_rows));
                let mut panels = vec![0; layout.bytes(task.rows).ok_or("the panels are too large")?];
                let stored = task.stored.chunks(layout.panel_rows * row_bytes);
                for (stored, panel) in stored.zip(panels.chunks_exact_mut(layout.panel_bytes())) {
                    layout.pack(stored, panel);
                }
                (Way::Panels(layout, multiply), panels)
            }
            None => (Way::Stored { row_bytes, multiply: kernels.matmul(task.ty)? }, task.stored.clone()),
        };
        // Memory as a model's panels have it.
        let weights = Bytes::filled(task.copies * one.len(), |all| {
            all.chunks_exact_mut(one.len()).for_each(|copy| copy.copy_from_slice(&one));
        })?;
        let form = Form::of(task.ty);
        let (bytes, wide) = (form == Form::Bytes, form == Form::Wide);
        let (n, blocks) = (MOST * task.k, MOST * task.k / Q8_BLOCK);
        let if_needed = |needed: bool, n: usize| if needed { n } else { 0 };
        Ok(Self {
            task,
            kernels,
            way,
            weights,
            each: one.len(),
            next: 0,
            q: vec![0; if_needed(bytes, n)],
            scales: vec![ByteScale::default(); if_needed(bytes, blocks)],
            wide: vec![0; if_needed(wide, n)],
            high: vec![0; if_needed(wide, n)],
            low: vec![0; if_needed(wide, n)],
            wide_scales: vec![WideScale::default(); if_needed(wide, blocks)],
            tile: vec![0.0; TILE_COLUMNS * TILE_ROWS],
            out: vec![0.0; MOST * task.rows],
        })
    }

    /// Puts the first `n` activation rows into the form that the weights multiply.
    fn quantize(&mut self, n: usize) {
        let (values, blocks) = (n * self.task.k, n * self.task.k / Q8_BLOCK);
        let x = &self.task.x[..values];
        match Form::of(self.task.ty) {
            Form::Plain => {}
            Form::Bytes => (self.kernels.quantize_row)(x, &mut self.q[..values], &mut self.scales[..blocks]),
            Form::Wide => (self.kernels.quantize_row_wide)(
                x,
                &mut self.wide[..values],
                &mut self.high[..values],
                &mut self.low[..values],
                &mut self.wide_scales[..blocks],
            ),
        }
    }

    /// One product, of the matrix at these bytes.
    fn multiply(&mut self, n: usize, matrix: Range<usize>) {
        self.quantize(n);
        let Task { rows, k, x, .. } = *self.task;
        let blocks = k / Q8_BLOCK;
        let matrix = &self.weights[matrix];
        for r in (0..rows).step_by(TILE_ROWS) {
            let r = r..(r + TILE_ROWS).min(rows);
            for c in (0..n).step_by(TILE_COLUMNS) {
                let columns = (n - c).min(TILE_COLUMNS);
                let acts = Acts {
                    rows: columns,
                    k,
                    f: &x[c * k..(c + columns) * k],
                    q: self.q.get(c * k..).unwrap_or_default(),
                    scales: self.scales.get(c * blocks..).unwrap_or_default(),
                    wide: self.wide.get(c * k..).unwrap_or_default(),
                    high: self.high.get(c * k..).unwrap_or_default(),
                    low: self.low.get(c * k..).unwrap_or_default(),
                    wide_scales: self.wide_scales.get(c * blocks..).unwrap_or_default(),
                };
                let tile = &mut self.tile[..columns * r.len()];
                match &self.way {
                    Way::Panels(layout, multiply) => {
                        let (panels, skip) = layout.cover(&r);
                        let size = layout.panel_bytes();
                        multiply(&matrix[panels.start * size..panels.end * size], skip, r.len(), acts, tile);
                    }
                    Way::Stored { row_bytes, multiply } => {
                        multiply(&matrix[r.start * row_bytes..r.end * row_bytes], r.len(), acts, tile);
                    }
                }
                for (j, tile) in tile.chunks_exact(r.len()).enumerate() {
                    let row = (c + j) * rows;
                    self.out[row + r.start..row + r.end].copy_from_slice(tile);
                }
            }
        }
    }
}

impl Racer for Ours<'_> {
    fn name(&self) -> &str {
        match self.way {
            Way::Panels(..) => "panels",
            Way::Stored { .. } => "as stored",
        }
    }

    fn step(&mut self, n: usize) -> Result<()> {
        for _ in 0..self.task.per_step {
            self.multiply(n, self.next * self.each..(self.next + 1) * self.each);
        }
        self.next = (self.next + 1) % self.task.copies;
        Ok(())
    }

    fn product(&self, n: usize) -> Result<Vec<f32>> {
        Ok(self.out[..n * self.task.rows].to_vec())
    }
}
