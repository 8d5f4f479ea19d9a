//! From a checkpoint, or from another GGUF, to a GGUF: tensor by tensor, a few rows at a time.

use super::role;
use crate::checkpoint::{self, Checkpoint};
use crate::files::Bytes;
use crate::gguf::{self, Header, Metadata, TensorDecl, TensorType, Writer};
use crate::quant::{self, Recipe, Role};
use std::io::Write;
use std::ops::Range;

/// Why a conversion failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// The GGUF could not be read or written.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// A tensor's values cannot be stored in the chosen format.
    #[error("tensor '{tensor}': {source}")]
    Quant {
        /// The tensor, by its name in the GGUF.
        tensor: String,
        /// What is wrong.
        source: quant::Error,
    },
    /// A checkpoint of a family that cannot be converted.
    #[error("this checkpoint has {found}, which cannot be converted; supported: {known}")]
    Family {
        /// What config.json says.
        found: String,
        /// What would be accepted.
        known: String,
    },
    /// A setting of a supported family that is not.
    #[error("config.json: {key} is {found}, which is not supported (supported: {supported})")]
    Setting {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        supported: String,
    },
    /// Tensors that the family does not know. Leaving out a weight would be silent damage.
    #[error("the checkpoint has tensors that this family does not know: {}", .0.join(", "))]
    UnknownTensors(Vec<String>),
    /// A tensor of another shape than config.json implies.
    #[error("tensor '{tensor}' has shape {found:?}; config.json asks for {expected:?}")]
    Shape {
        /// The tensor, by its published name.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor that was planned is not in the file.
    #[error("tensor '{0}' is missing")]
    Missing(String),
    /// The caller stopped the conversion.
    #[error("stopped; nothing was written under the final name")]
    Stopped,
}

/// Part of a published tensor: some rows, and of each some columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Published name.
    pub tensor: String,
    /// Rows of the tensor seen as a matrix.
    pub rows: Range<usize>,
    /// Columns of each row.
    pub columns: Range<usize>,
}

/// A tensor of the file to be written.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Name in the GGUF.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Shape, row length first.
    pub dims: Vec<usize>,
    /// Where its values come from.
    pub source: Slice,
    /// Type it was published in.
    pub published: TensorType,
}

/// Keys and tensors of a GGUF to be written.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// All keys; the tokenizer's are added by [`crate::text`].
    pub metadata: Metadata,
    /// All tensors, in the order of the file.
    pub tensors: Vec<Planned>,
}

/// Where values come from.
pub enum Input<'a> {
    /// A published checkpoint.
    Checkpoint(&'a Checkpoint),
    /// A GGUF file that was made before.
    Gguf(&'a Bytes, &'a Header),
}

/// What has been done, for a progress bar.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The tensor in work.
    pub tensor: &'a str,
    /// Values converted.
    pub done: u64,
    /// Values in all.
    pub total: u64,
}

/// What a conversion did to one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Name in the GGUF.
    pub name: String,
    /// Shape, row length first.
    pub dims: Vec<usize>,
    /// Type before.
    pub published: TensorType,
    /// Type now.
    pub ty: TensorType,
    /// Why it is not what the recipe meant for its role; `None` when it is.
    pub why: Option<String>,
}

/// What a conversion did.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Every tensor.
    pub tensors: Vec<Report>,
    /// Values in all tensors.
    pub values: u64,
    /// Bytes of the tensors as they were.
    pub bytes_before: u64,
    /// Bytes of the tensors as they are.
    pub bytes_after: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

impl Summary {
    /// Mean bits per weight of the tensors.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes_after as f64 * 8.0 / self.values as f64
    }
}

/// Values converted at a time: 4 MiB of f32.
const CHUNK: usize = 1 << 20;

impl Conversion {
    /// The conversion that keeps the tensors of a GGUF and gives them other formats.
    pub fn of_gguf(header: &Header) -> Self {
        let tensors = header
            .tensors
            .iter()
            .map(|t| {
                let k = t.dims.first().copied().unwrap_or(1);
                let rows = t.dims.iter().skip(1).product();
                Planned {
                    name: t.name.clone(),
                    role: role(&t.name),
                    dims: t.dims.clone(),
                    source: Slice { tensor: t.name.clone(), rows: 0..rows, columns: 0..k },
                    published: t.ty,
                }
            })
            .collect();
        Self { metadata: header.metadata.clone(), tensors }
    }

    /// Rows of the embedding table, 0 if there is none.
    pub fn vocabulary(&self) -> usize {
        let table = self.tensors.iter().find(|t| t.role == Role::TokenEmbedding);
        table.and_then(|t| t.dims.get(1)).copied().unwrap_or(0)
    }

    /// The type that a recipe gives each tensor.
    pub fn choose(&self, recipe: Recipe) -> Vec<Report> {
        self.tensors
            .iter()
            .map(|t| {
                let choice = recipe.tensor_type(t.role, &t.dims, t.published);
                Report {
                    name: t.name.clone(),
                    dims: t.dims.clone(),
                    published: t.published,
                    ty: choice.ty,
                    why: choice.why,
                }
            })
            .collect()
    }

    /// Writes the file to `out`. `progress` is called often; if it gives `false`, the conversion stops.
    ///
    /// Memory: the chunk in work, a few MiB.
    ///
    /// # Errors
    /// Values that cannot be read or stored; `out` fails; [`Error::Stopped`].
    pub fn write<W: Write>(
        &self,
        input: &Input<'_>,
        recipe: Recipe,
        out: W,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
    ) -> Result<(W, Summary), Error> {
        let reports = self.choose(recipe);
        let decls: Vec<_> =
            reports.iter().map(|r| TensorDecl { name: r.name.clone(), ty: r.ty, dims: r.dims.clone() }).collect();
        let mut writer = Writer::new(out, &self.metadata, &decls)?;
        let values = |dims: &[usize]| dims.iter().product::<usize>() as u64;
        let total = reports.iter().map(|r| values(&r.dims)).sum();
        let size = |ty: TensorType, dims: &[usize]| values(dims) / ty.block_len() as u64 * ty.block_bytes() as u64;
        let mut done = 0;
        let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
        for (plan, report) in self.tensors.iter().zip(&reports) {
            let k = plan.source.columns.len();
            let of_tensor = |source| Error::Quant { tensor: plan.name.clone(), source };
            // One-dimensional tensors are one row, however many rows their source has.
            let row_bytes = report.ty.row_bytes(k).unwrap_or(0);
            writer.begin_tensor(&plan.name)?;
            let step = (CHUNK / k.max(1)).max(1);
            for start in plan.source.rows.clone().step_by(step) {
                let rows = start..(start + step).min(plan.source.rows.end);
                numbers.resize(rows.len() * k, 0.0);
                input.read(plan, rows.clone(), &mut numbers)?;
                bytes.resize(rows.len() * row_bytes, 0);
                quant::quantize_rows(report.ty, &numbers, k, &mut bytes, None).map_err(of_tensor)?;
                writer.write_chunk(&bytes)?;
                done += numbers.len() as u64;
                if !progress(Progress { tensor: &plan.name, done, total }) {
                    return Err(Error::Stopped);
                }
            }
        }
        let file_bytes = writer.file_size();
        let summary = Summary {
            values: total,
            bytes_before: reports.iter().map(|r| size(r.published, &r.dims)).sum(),
            bytes_after: reports.iter().map(|r| size(r.ty, &r.dims)).sum(),
            file_bytes,
            tensors: reports,
        };
        Ok((writer.finish()?, summary))
    }
}

impl Input<'_> {
    /// Reads `rows` of a planned tensor's source as f32.
    fn read(&self, plan: &Planned, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        let Slice { tensor, columns, .. } = &plan.source;
        match self {
            Input::Checkpoint(checkpoint) => {
                let view = checkpoint.tensor(tensor)?;
                let k = view.row_len();
                if columns.len() == k {
                    return Ok(view.rows_f32(rows, out)?);
                }
                let mut row = vec![0.0; k];
                for (r, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
                    view.rows_f32(r..r + 1, &mut row)?;
                    out.copy_from_slice(&row[columns.clone()]);
                }
                Ok(())
            }
            Input::Gguf(bytes, header) => {
                let missing = || Error::Missing(tensor.clone());
                let info = header.tensor(tensor).ok_or_else(missing)?;
                let data = info.data(bytes).ok_or_else(missing)?;
                let row_bytes = info.ty.row_bytes(columns.len()).unwrap_or(0);
                let data = data.get(rows.start * row_bytes..rows.end * row_bytes).ok_or_else(missing)?;
                quant::dequantize_rows(info.ty, data, columns.len(), out)
                    .map_err(|source| Error::Quant { tensor: tensor.clone(), source })
            }
        }
    }
}

/// Collects the tensors that a family makes of a checkpoint, checks their shapes, and notices what is left over.
pub(super) struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    tensors: Vec<Planned>,
    used: Vec<String>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint, tensors: Vec::new(), used: Vec::new() }
    }

    /// Marks a published tensor as known, whether it is used or not.
    pub(super) fn know(&mut self, published: &str) {
        self.used.push(published.to_owned());
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
        let view = self.checkpoint.tensor(published)?;
        if view.shape != shape {
            return Err(Error::Shape {
                tensor: published.to_owned(),
                found: view.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        self.know(published);
        let dims = if vector { vec![rows.len() * columns.len()] } else { vec![columns.len(), rows.len()] };
        self.tensors.push(Planned {
            role: role(&name),
            name,
            dims,
            published: view.tensor_type().unwrap_or(TensorType::F32),
            source: Slice { tensor: published.to_owned(), rows, columns },
        });
        Ok(())
    }

    /// A published matrix `[rows, columns]`, whole.
    pub(super) fn matrix(&mut self, name: String, published: &str, rows: usize, columns: usize) -> Result<(), Error> {
        self.take(name, published, &[rows, columns], 0..rows, 0..columns, false)
    }

    /// A published vector.
    pub(super) fn vector(&mut self, name: String, published: &str, len: usize) -> Result<(), Error> {
        self.take(name, published, &[len], 0..1, 0..len, true)
    }

    /// All tensors, if the checkpoint has no others.
    pub(super) fn finish(self) -> Result<Vec<Planned>, Error> {
        let unknown: Vec<_> =
            self.checkpoint.names().filter(|n| !self.used.iter().any(|u| u == n)).map(str::to_owned).collect();
        if unknown.is_empty() { Ok(self.tensors) } else { Err(Error::UnknownTensors(unknown)) }
    }
}
