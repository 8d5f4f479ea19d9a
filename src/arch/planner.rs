//! From the tensors of a published checkpoint to those of a file.

use super::convert::{Conversion, Error, Planned, Slice};
use super::role;
use super::settings::KeyWriter;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::gguf::TensorType;
use std::fmt::Display;
use std::ops::Range;

/// Collects the tensors that a family makes of a checkpoint, checks their shapes, and notices what is left over.
pub(super) struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    tensors: Vec<Planned>,
    used: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, tensors: Vec::new(), used: Vec::new(), notes: Vec::new() }
    }

    /// Marks a published tensor as known, whether it is used or not.
    pub(super) fn know(&mut self, published: &str) {
        self.used.push(published.to_owned());
    }

    /// Leaves out a published tensor that the reference leaves unused too, and says why.
    pub(super) fn ignore(&mut self, published: &str, why: impl Display) {
        self.know(published);
        self.notes.push(format!("tensor '{published}' is left out: {why}"));
    }

    fn view(&self, published: &str, shape: &[usize]) -> Result<TensorView<'a>, Error> {
        let view = self.checkpoint.tensor(published)?;
        if view.shape == shape {
            return Ok(view);
        }
        Err(Error::Shape { tensor: published.to_owned(), found: view.shape.clone(), expected: shape.to_vec() })
    }

    /// Part of a published tensor of this shape becomes a tensor of ours. `vector`: all of the part is one dimension.
    pub(super) fn take(
        &mut self,
        name: String,
        published: &str,
        shape: &[usize],
        rows: Range<usize>,
        columns: Range<usize>,
        vector: bool,
    ) -> Result<(), Error> {
        let view = self.view(published, shape)?;
        self.know(published);
        let dims = if vector { vec![rows.len() * columns.len()] } else { vec![columns.len(), rows.len()] };
        self.tensors.push(Planned {
            role: role(&name),
            name,
            dims,
            published: view.tensor_type().unwrap_or(TensorType::F32),
            keep: false,
            source: Slice { tensor: published.to_owned(), rows, columns, paired: None },
        });
        Ok(())
    }

    /// The values of a small published tensor of this shape, for the file's metadata.
    pub(super) fn values(&mut self, published: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let values = self.view(published, shape)?.to_f32()?;
        self.know(published);
        Ok(values)
    }

    /// A published matrix `[rows, columns]`, whole.
    pub(super) fn matrix(&mut self, name: String, published: &str, rows: usize, columns: usize) -> Result<(), Error> {
        self.take(name, published, &[rows, columns], 0..rows, 0..columns, false)
    }

    /// A published matrix `[rows, columns]` whose rows are heads of `head_dim`, rotated by halves there and by neighbouring
    /// pairs here. `rows` is a multiple of `head_dim`, which is even.
    pub(super) fn paired(
        &mut self,
        name: String,
        published: &str,
        rows: usize,
        columns: usize,
        head_dim: usize,
    ) -> Result<(), Error> {
        self.matrix(name, published, rows, columns)?;
        if let Some(planned) = self.tensors.last_mut() {
            planned.source.paired = Some(head_dim);
        }
        Ok(())
    }

    /// A published vector.
    pub(super) fn vector(&mut self, name: String, published: &str, len: usize) -> Result<(), Error> {
        self.take(name, published, &[len], 0..1, 0..len, true)
    }

    /// The conversion with these keys and all tensors taken, if the checkpoint has no others.
    pub(super) fn conversion(mut self, keys: KeyWriter) -> Result<Conversion, Error> {
        let notes = std::mem::take(&mut self.notes);
        Ok(Conversion { metadata: keys.metadata, tensors: self.finish()?, notes })
    }

    /// All tensors, if the checkpoint has no others.
    fn finish(self) -> Result<Vec<Planned>, Error> {
        let unknown: Vec<_> =
            self.checkpoint.names().filter(|n| !self.used.iter().any(|u| u == n)).map(str::to_owned).collect();
        if unknown.is_empty() { Ok(self.tensors) } else { Err(Error::UnknownTensors(unknown)) }
    }
}

/// Published names of the blocks of prelude, core and coda, in the order in which a file numbers them.
pub(super) fn stack_names([prelude, core, coda]: [usize; 3]) -> impl Iterator<Item = String> {
    let stacks = [("prelude", prelude), ("core_block", core), ("coda", coda)];
    stacks.into_iter().flat_map(|(stack, n)| (0..n).map(move |i| format!("transformer.{stack}.{i}")))
}
