//! From a checkpoint, or from another GGUF, to a GGUF: what becomes of each tensor. [`stream`] does the work.

use super::role;
use super::split::Split;
use super::stream::{self, Job};
use super::unfit::Unfit;
use crate::checkpoint::{self, Checkpoint};
use crate::files::{self, Bytes};
use crate::gguf::{self, Header, Metadata, TensorDecl, TensorType, Writer};
use crate::quant::recipe;
use crate::quant::{self, Choice, Imatrix, Override, Recipe, Role, Seen};
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

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
    /// The values of a tensor could not be read.
    #[error("tensor '{tensor}': {source}")]
    Read {
        /// The tensor, by its name in the GGUF.
        tensor: String,
        /// What is wrong; it names the file.
        source: files::Error,
    },
    /// Tensors with values that are NaN, infinite or too large for the chosen format: all there are, in the order of the file.
    #[error("{}", unfit_text(.0))]
    Unfit(Vec<Unfit>),
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
    #[error("the checkpoint has {} tensors that this family does not know: {}", .0.len(), first_few(.0))]
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

fn unfit_text(tensors: &[Unfit]) -> String {
    if let [tensor] = tensors {
        return tensor.to_string();
    }
    let names: Vec<_> = tensors.iter().map(|t| t.tensor.clone()).collect();
    format!("{} tensors have values that are NaN, infinite or too large: {}", names.len(), first_few(&names))
}

/// Some names, so that a message stays a line.
fn first_few(names: &[String]) -> String {
    const FEW: usize = 4;
    let shown = names.iter().take(FEW).map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
    if names.len() > FEW { shown + ", ..." } else { shown }
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
    /// The rows are those of heads of this size, taken in another order: row i and row i + half of a head become its rows
    /// 2i and 2i + 1. What was rotated by halves is then rotated by neighbouring pairs.
    pub paired: Option<usize>,
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
    /// Whether it stays as it is under every recipe: nobody here knows what it is for.
    pub keep: bool,
}

/// Keys and tensors of a GGUF to be written.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// All keys; the tokenizer's are added by [`crate::text`].
    pub metadata: Metadata,
    /// All tensors, in the order of the file.
    pub tensors: Vec<Planned>,
    /// What the user should know, a line each.
    pub notes: Vec<String>,
}

/// What a conversion is to make. A [`Recipe`] alone is one, too.
#[derive(Debug, Clone)]
pub struct Target {
    /// What most tensors become.
    pub recipe: Recipe,
    /// Types for tensors by name, which go before the recipe's. Where several match, the last one holds.
    pub overrides: Vec<Override>,
    /// How much an error in each column counts, as far as it is known.
    pub importance: Option<Arc<Imatrix>>,
    /// What becomes of NaN and infinity.
    pub non_finite: NonFinite,
}

impl From<Recipe> for Target {
    fn from(recipe: Recipe) -> Self {
        Self { recipe, overrides: Vec::new(), importance: None, non_finite: NonFinite::default() }
    }
}

/// Where values come from.
pub enum Input<'a> {
    /// A published checkpoint.
    Checkpoint(&'a Checkpoint),
    /// A GGUF file that was made before.
    Gguf(&'a Bytes, &'a Header),
    /// A GGUF in several files.
    Split(&'a Split),
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

/// What becomes of values that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NonFinite {
    /// They are an error.
    #[default]
    Refuse,
    /// They are stored as well as the format can. f32, f16 and bf16 keep them; in a block format they make the whole block
    /// meaningless, and what is read back may be finite.
    Store,
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
    /// Tensors with values that are not finite, stored as the caller wished.
    pub non_finite: Vec<Unfit>,
}

impl Report {
    /// Number of values.
    pub fn values(&self) -> u64 {
        self.dims.iter().product::<usize>() as u64
    }

    /// Bytes before.
    pub fn bytes_before(&self) -> u64 {
        self.bytes(self.published)
    }

    /// Bytes now.
    pub fn bytes_after(&self) -> u64 {
        self.bytes(self.ty)
    }

    fn bytes(&self, ty: TensorType) -> u64 {
        self.values() / ty.block_len() as u64 * ty.block_bytes() as u64
    }
}

impl Summary {
    /// Mean bits per weight of the tensors.
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes_after as f64 * 8.0 / self.values as f64
    }
}

impl Conversion {
    /// The conversion that keeps the keys and tensors of a GGUF and gives the tensors other formats. A tensor whose role is
    /// not known, or that holds no weights but whole numbers, stays as it is.
    pub fn of_gguf(header: &Header) -> Self {
        let tensors = header
            .tensors
            .iter()
            .map(|t| {
                let k = t.dims.first().copied().unwrap_or(1);
                let rows = t.dims.iter().skip(1).product();
                use TensorType::{F64, I8, I16, I32, I64};
                let role = role(&t.name);
                Planned {
                    name: t.name.clone(),
                    role,
                    dims: t.dims.clone(),
                    source: Slice { tensor: t.name.clone(), rows: 0..rows, columns: 0..k, paired: None },
                    published: t.ty,
                    keep: role == Role::Other || matches!(t.ty, I8 | I16 | I32 | I64 | F64),
                }
            })
            .collect();
        let mut metadata = header.metadata.clone();
        // It was measured on weights as they were.
        metadata.remove(crate::gguf::CALIBRATION_KEY);
        Self { metadata, tensors, notes: Vec::new() }
    }

    /// Rows of the embedding table, 0 if there is none.
    pub fn vocabulary(&self) -> usize {
        let table = self.tensors.iter().find(|t| t.role == Role::TokenEmbedding);
        table.and_then(|t| t.dims.get(1)).copied().unwrap_or(0)
    }

    /// The type that each tensor gets.
    pub fn choose(&self, target: &Target) -> Vec<Report> {
        let blocks = self.tensors.iter().filter_map(|t| block(&t.name)).max().map_or(0, |last| last + 1);
        self.tensors
            .iter()
            .map(|t| {
                let seen = Seen {
                    role: t.role,
                    dims: &t.dims,
                    published: t.published,
                    block: block(&t.name).map(|b| (b, blocks)),
                };
                let mut choice = target.recipe.tensor_type(&seen);
                let asked = target.overrides.iter().rev().find(|o| o.matches(&t.name));
                if let Some(Override { ty, .. }) = asked.filter(|_| is_matrix(t)) {
                    choice = recipe::fitting(*ty, t.dims[0]);
                }
                if t.keep && choice.ty != t.published {
                    choice = Choice { ty: t.published, why: Some("not known here, kept as it was".to_owned()) };
                }
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

    /// What [`write`](Self::write) would do.
    ///
    /// # Errors
    /// Keys, names or shapes that no GGUF may have.
    pub fn summary(&self, target: &Target) -> Result<Summary, Error> {
        Ok(self.begin(target, std::io::sink())?.1)
    }

    /// Writes the header.
    fn begin<W: Write>(&self, target: &Target, out: W) -> Result<(Writer<W>, Summary), Error> {
        let tensors = self.choose(target);
        let decls: Vec<_> =
            tensors.iter().map(|r| TensorDecl { name: r.name.clone(), ty: r.ty, dims: r.dims.clone() }).collect();
        let mut metadata = self.metadata.clone();
        match file_type(target.recipe, &tensors) {
            Some(id) => metadata.insert(FILE_TYPE, id),
            None => metadata.remove(FILE_TYPE),
        };
        if let Some(importance) = &target.importance {
            note_importance(&mut metadata, importance);
        }
        let writer = Writer::new(out, &metadata, &decls)?;
        let sum = |f: fn(&Report) -> u64| tensors.iter().map(f).sum();
        let summary = Summary {
            values: sum(Report::values),
            bytes_before: sum(Report::bytes_before),
            bytes_after: sum(Report::bytes_after),
            file_bytes: writer.file_size(),
            non_finite: Vec::new(),
            tensors,
        };
        Ok((writer, summary))
    }

    /// The importance of the columns of a tensor, where it is known.
    fn importance(&self, target: &Target, plan: &Planned) -> Result<Option<Vec<f32>>, Error> {
        let importance = target.importance.as_ref().filter(|_| is_matrix(plan));
        let Some(importance) = importance.and_then(|i| i.get(&plan.name)?.importance()) else { return Ok(None) };
        let columns = plan.source.columns.len();
        if importance.len() != columns {
            let source = quant::Error::Length { what: "importance", expected: columns, found: importance.len() };
            return Err(Error::Quant { tensor: plan.name.clone(), source });
        }
        Ok(Some(importance))
    }

    /// Writes the file to `out`. `progress` is called often; if it gives `false`, the conversion stops.
    ///
    /// As many threads convert as rayon has, and the calling one writes what they make, in order: the bytes do not depend on
    /// their number. Tensors that keep their type are copied.
    ///
    /// Memory: the chunks under way, a few MiB, and of a tensor whose rows do not lie in one piece all bytes. Mapped input is
    /// read from its files and not through the map.
    ///
    /// # Errors
    /// Values that cannot be read or stored, NaN and infinity among them; `out` fails; [`Error::Stopped`].
    pub fn write<W: Write>(
        &self,
        input: &Input<'_>,
        target: impl Into<Target>,
        out: W,
        progress: &mut dyn FnMut(Progress<'_>) -> bool,
    ) -> Result<(W, Summary), Error> {
        let target = target.into();
        let (mut writer, mut summary) = self.begin(&target, out)?;
        let importance: Vec<_> =
            self.tensors.iter().map(|plan| self.importance(&target, plan)).collect::<Result<_, Error>>()?;
        let pairs = self.tensors.iter().zip(&summary.tensors).zip(&importance);
        let jobs: Vec<_> = pairs
            .map(|((plan, report), importance)| Job::new(input, plan, report, importance.as_deref()))
            .collect::<Result<_, Error>>()?;
        let non_finite = stream::run(&jobs, &mut writer, target.non_finite == NonFinite::Store, progress)?;
        summary.non_finite = non_finite;
        Ok((writer.finish()?, summary))
    }
}

/// Key of the id that llama.cpp gives a mixture of formats.
const FILE_TYPE: &str = "general.file_type";

/// What llama.cpp's quantiser writes about the importance matrix it used.
fn note_importance(metadata: &mut Metadata, importance: &Imatrix) {
    if let Some(name) = importance.datasets.first() {
        metadata.insert("quantize.imatrix.dataset", name.as_str());
    }
    metadata.insert("quantize.imatrix.entries_count", importance.entries().len() as u32);
    metadata.insert("quantize.imatrix.chunks_count", importance.chunk_count);
}

/// The physical block that a tensor belongs to, by its name.
pub(super) fn block(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Does a recipe choose its type?
fn is_matrix(t: &Planned) -> bool {
    t.dims.len() > 1 && !t.keep && !t.role.is_small()
}

/// `llama_ftype` in llama.h: what most of the model is stored in. None where there is no id for it.
fn file_type(recipe: Recipe, tensors: &[Report]) -> Option<u32> {
    let most = match recipe {
        Recipe::Q4_K_M => return Some(15),
        Recipe::Q5_K_M => return Some(17),
        _ => {
            let values = |ty| tensors.iter().filter(|r| r.ty == ty).map(Report::values).sum::<u64>();
            tensors.iter().map(|r| r.ty).max_by_key(|&ty| values(ty))?
        }
    };
    Some(match most {
        TensorType::F32 => 0,
        TensorType::F16 => 1,
        TensorType::Q4_0 => 2,
        TensorType::Q4_1 => 3,
        TensorType::Q8_0 => 7,
        TensorType::Q5_0 => 8,
        TensorType::Q5_1 => 9,
        TensorType::Q4_K => 14,
        TensorType::Q5_K => 16,
        TensorType::Q6_K => 18,
        TensorType::IQ4_NL => 25,
        TensorType::IQ4_XS => 30,
        TensorType::BF16 => 32,
        _ => return None,
    })
}
