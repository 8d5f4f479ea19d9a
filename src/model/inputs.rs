//! What the matrices of a model are multiplied with: the statistics that an importance matrix is made of.

use super::{Matrix, Model};
use crate::team::{Buffer, Worker};
use std::collections::HashMap;
use std::sync::Arc;

/// For every matrix, the sum over all rows it was multiplied with, in all loop steps, of each column's square.
///
/// Every row counts, and the rows of a chunk are added in order, so the sums depend neither on threads nor, but for the last
/// bits of an f64, on chunks.
pub struct InputSquares {
    places: HashMap<Arc<str>, usize>,
    entries: Vec<Entry>,
}

struct Entry {
    name: Arc<str>,
    /// `[cols]`.
    sums: Buffer<f64>,
    /// One element: rows so far.
    rows: Buffer<u64>,
}

impl InputSquares {
    /// Zeros for every matrix that the model multiplies.
    pub(super) fn new(model: &Model) -> Self {
        let mut inputs = Self { places: HashMap::new(), entries: Vec::new() };
        for m in model.matrices() {
            if !inputs.places.contains_key(&m.name) {
                inputs.places.insert(Arc::clone(&m.name), inputs.entries.len());
                inputs.entries.push(Entry {
                    name: Arc::clone(&m.name),
                    sums: Buffer::new(m.cols),
                    rows: Buffer::new(1),
                });
            }
        }
        inputs
    }

    /// Adds rows `x` `[n][cols]` that `m` is multiplied with. Every worker calls it, with equal rows, in the same region; each
    /// takes its share of the columns.
    pub(super) fn add(&self, w: &Worker<'_>, m: &Matrix, x: &[f32]) {
        let Some(&place) = self.places.get(&m.name) else { return };
        let (entry, columns) = (&self.entries[place], w.share(m.cols));
        // SAFETY: shares of the columns are disjoint, as are the regions in which a matrix is multiplied.
        let sums = unsafe { entry.sums.write(columns.clone()) };
        for row in x.chunks_exact(m.cols) {
            for (sum, &x) in sums.iter_mut().zip(&row[columns.clone()]) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        if w.id() == 0 {
            // SAFETY: only worker 0 touches it.
            unsafe { entry.rows.write(0..1)[0] += (x.len() / m.cols) as u64 };
        }
    }

    /// Tensor name, sums of squares `[cols]` and rows of every matrix, in the order in which a token meets them.
    pub fn entries(&mut self) -> impl Iterator<Item = (&str, &[f64], u64)> {
        self.entries.iter_mut().map(|e| (&*e.name, &*e.sums.get_mut(), e.rows.get_mut()[0]))
    }
}
