//! Importance matrices: how much an error in each column of a matrix counts, measured on text.
//!
//! The importance of a column is the mean square of the activation that it is multiplied with. In a looped model a matrix of
//! the core meets an activation in every loop step, and all of them count. The file is llama.cpp's own, a GGUF with
//! `general.type` "imatrix": per matrix a tensor `NAME.in_sum2`, f32 `[cols]`, of sums of squares, and a tensor
//! `NAME.counts`, f32 `[1]`, of the rows that were summed. So files move freely between the two programs.

use crate::files::AtomicFile;
use crate::gguf::{self, Array, Header, Metadata, TensorDecl, TensorInfo, TensorType, Value, Writer};
use std::collections::BTreeMap;
use std::path::Path;

const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
const TYPE: &str = "general.type";
const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// An importance matrix of a whole model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imatrix {
    /// What it was measured on.
    pub datasets: Vec<String>,
    /// Windows of text that were run.
    pub chunk_count: u32,
    /// Tokens in each.
    pub chunk_size: u32,
    entries: BTreeMap<String, Entry>,
}

/// What is known of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `[cols]`: sums of squares of the activations, not negative.
    pub sums: Vec<f32>,
    /// Rows of activations that were summed: tokens times loop steps.
    pub rows: f32,
}

impl Entry {
    /// `[cols]`: mean squares; `None` if nothing was summed, or nothing but zeros.
    pub fn importance(&self) -> Option<Vec<f32>> {
        let told = self.rows > 0.0 && self.sums.iter().any(|&s| s > 0.0);
        told.then(|| self.sums.iter().map(|s| s / self.rows).collect())
    }
}

/// Why a file is no importance matrix, or does not go with another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is no GGUF, or a damaged one, or could not be written.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// It is another kind of GGUF.
    #[error("this GGUF is no importance matrix: its {TYPE} is {found:?}, not \"imatrix\"")]
    Kind {
        /// What it says it is.
        found: String,
    },
    /// The older format of llama.cpp.
    #[error(
        "this is no GGUF; an importance matrix in llama.cpp's older format is read after \
         `llama-imatrix --in-file OLD --output-format gguf -o NEW`"
    )]
    Legacy,
    /// A tensor that should not be there, or is not as it should be.
    #[error("tensor '{tensor}' of the importance matrix {problem}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two files that are to be added have matrices of different sizes.
    #[error("the importance of '{tensor}' has {found} columns in one file and {expected} in another")]
    Columns {
        /// The matrix.
        tensor: String,
        /// Its columns in the second file.
        found: usize,
        /// Its columns in the first.
        expected: usize,
    },
}

impl Imatrix {
    /// Adds a matrix.
    pub fn insert(&mut self, tensor: &str, entry: Entry) {
        self.entries.insert(tensor.to_owned(), entry);
    }

    /// What is known of the matrix stored as `tensor`.
    pub fn get(&self, tensor: &str) -> Option<&Entry> {
        self.entries.get(tensor)
    }

    /// All matrices, by name.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Adds what was measured on other text.
    ///
    /// # Errors
    /// [`Error::Columns`]: they are not of the same model.
    pub fn add(&mut self, other: &Self) -> Result<(), Error> {
        for (name, theirs) in &other.entries {
            if let Some(ours) = self.entries.get(name)
                && ours.sums.len() != theirs.sums.len()
            {
                let (found, expected) = (theirs.sums.len(), ours.sums.len());
                return Err(Error::Columns { tensor: name.clone(), found, expected });
            }
        }
        for (name, theirs) in &other.entries {
            match self.entries.get_mut(name) {
                None => self.insert(name, theirs.clone()),
                Some(ours) => {
                    ours.sums.iter_mut().zip(&theirs.sums).for_each(|(sum, s)| *sum += s);
                    ours.rows += theirs.rows;
                }
            }
        }
        self.datasets.extend_from_slice(&other.datasets);
        self.chunk_count = self.chunk_count.saturating_add(other.chunk_count);
        self.chunk_size = self.chunk_size.max(other.chunk_size);
        Ok(())
    }

    /// Reads a file of llama.cpp's, or of [`Imatrix::save`].
    ///
    /// # Errors
    /// It is none, or damaged: a tensor without its partner, of another type or shape, or with a number that is negative or
    /// not finite.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        if !file.starts_with(b"GGUF") {
            return Err(Error::Legacy);
        }
        let header = Header::parse(file)?;
        let kind = header.metadata.str(TYPE)?.unwrap_or_default();
        if kind != "imatrix" {
            return Err(Error::Kind { found: kind.chars().take(80).collect() });
        }
        let number =
            |key: &str| header.metadata.usize(key).map(|n| n.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX)));
        let mut imatrix = Self {
            datasets: header.metadata.strings(DATASETS)?.unwrap_or_default().to_vec(),
            chunk_count: number(CHUNK_COUNT)?,
            chunk_size: number(CHUNK_SIZE)?,
            entries: BTreeMap::new(),
        };
        for sums in &header.tensors {
            let Some(name) = sums.name.strip_suffix(SUMS) else {
                match sums.name.strip_suffix(COUNTS) {
                    Some(name) if header.tensor(&format!("{name}{SUMS}")).is_some() => continue,
                    _ => return Err(wrong(sums, "has no partner")),
                }
            };
            let counts = header.tensor(&format!("{name}{COUNTS}")).ok_or_else(|| wrong(sums, "has no partner"))?;
            let sums = numbers(file, sums)?;
            let [rows] = numbers(file, counts)?[..] else {
                return Err(wrong(counts, "has counts of several experts, which no looped model here has"));
            };
            imatrix.insert(name, Entry { sums, rows });
        }
        Ok(imatrix)
    }

    /// Writes a file that [`Imatrix::parse`] and llama.cpp read.
    ///
    /// # Errors
    /// The file cannot be written; nothing is left under its name then.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut metadata = Metadata::new();
        metadata.insert(TYPE, "imatrix");
        metadata.insert(DATASETS, Value::Array(Array::String(self.datasets.clone())));
        metadata.insert(CHUNK_COUNT, self.chunk_count);
        metadata.insert(CHUNK_SIZE, self.chunk_size);
        let decl = |name: String, dims: Vec<usize>| TensorDecl { name, ty: TensorType::F32, dims };
        let decls: Vec<_> = self
            .entries
            .iter()
            .flat_map(|(name, e)| {
                [decl(format!("{name}{SUMS}"), vec![e.sums.len()]), decl(format!("{name}{COUNTS}"), vec![1])]
            })
            .collect();
        let mut out = Writer::<AtomicFile>::create(path, &metadata, &decls)?;
        let bytes = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        for (name, entry) in &self.entries {
            out.write_tensor(&format!("{name}{SUMS}"), &bytes(&entry.sums))?;
            out.write_tensor(&format!("{name}{COUNTS}"), &bytes(&[entry.rows]))?;
        }
        Ok(out.commit()?)
    }
}

fn wrong(tensor: &TensorInfo, problem: impl Into<String>) -> Error {
    Error::Tensor { tensor: tensor.name.chars().take(200).collect(), problem: problem.into() }
}

/// The numbers of an f32 tensor, none of them negative.
fn numbers(file: &[u8], tensor: &TensorInfo) -> Result<Vec<f32>, Error> {
    let data = tensor.data(file).filter(|_| tensor.ty == TensorType::F32);
    let data = data.ok_or_else(|| wrong(tensor, format!("has type {}, not f32", tensor.ty)))?;
    let numbers: Vec<f32> = data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    match numbers.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
        None => Ok(numbers),
        Some(x) => Err(wrong(tensor, format!("holds {x}, which is no sum of squares"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Imatrix {
        let mut imatrix =
            Imatrix { datasets: vec!["a.txt".into()], chunk_count: 3, chunk_size: 32, entries: BTreeMap::new() };
        imatrix.insert("blk.0.attn_q.weight", Entry { sums: vec![1.0, 4.0, 0.0], rows: 2.0 });
        imatrix.insert("token_embd.weight", Entry { sums: vec![0.5; 5], rows: 96.0 });
        imatrix
    }

    fn saved(imatrix: &Imatrix) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i.gguf");
        imatrix.save(&path).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn what_is_saved_is_read_back() {
        let imatrix = sample();
        assert_eq!(Imatrix::parse(&saved(&imatrix)).unwrap(), imatrix);
        assert_eq!(imatrix.get("blk.0.attn_q.weight").unwrap().importance(), Some(vec![0.5, 2.0, 0.0]));
        assert_eq!(Entry { sums: vec![1.0], rows: 0.0 }.importance(), None);
        assert_eq!(Entry { sums: vec![0.0], rows: 3.0 }.importance(), None);
        let empty = Imatrix::default();
        assert_eq!(Imatrix::parse(&saved(&empty)).unwrap(), empty);
    }

    #[test]
    fn sums_are_added() {
        let mut twice = sample();
        twice.add(&sample()).unwrap();
        assert_eq!(twice.get("blk.0.attn_q.weight").unwrap(), &Entry { sums: vec![2.0, 8.0, 0.0], rows: 4.0 });
        assert_eq!((twice.chunk_count, twice.datasets.len()), (6, 2));
        let mut other = Imatrix::default();
        other.insert("token_embd.weight", Entry { sums: vec![0.5; 4], rows: 96.0 });
        let before = twice.clone();
        assert!(matches!(twice.add(&other), Err(Error::Columns { found: 4, expected: 5, .. })));
        assert_eq!(twice, before, "all or nothing");
    }

    #[test]
    fn damaged_files_are_refused() {
        let whole = saved(&sample());
        for end in 0..whole.len() {
            // The padding behind the last number may be lost.
            assert!(Imatrix::parse(&whole[..end]).is_err() || whole.len() - end < 32, "{end}");
        }
        assert!(matches!(Imatrix::parse(b"\x03\0\0\0old"), Err(Error::Legacy)));
        let edit = |name: &str, ty: TensorType, dims: &[usize], data: &[u8]| {
            let mut metadata = Metadata::new();
            metadata.insert(TYPE, "imatrix");
            let decl = |name: &str, ty, dims: &[usize]| TensorDecl { name: name.into(), ty, dims: dims.into() };
            let decls = [decl(name, ty, dims), decl("x.counts", TensorType::F32, &[1])];
            let mut writer = Writer::new(Vec::new(), &metadata, &decls).unwrap();
            writer.write_tensor(name, data).unwrap();
            writer.write_tensor("x.counts", &1.0f32.to_le_bytes()).unwrap();
            Imatrix::parse(&writer.finish().unwrap())
        };
        let one = 1.0f32.to_le_bytes();
        assert!(edit("x.in_sum2", TensorType::F32, &[1], &one).is_ok());
        assert!(edit("y.in_sum2", TensorType::F32, &[1], &one).is_err(), "no partner");
        assert!(edit("x.other", TensorType::F32, &[1], &one).is_err(), "an unknown tensor");
        assert!(edit("x.in_sum2", TensorType::F16, &[2], &one).is_err(), "another type");
        for bad in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(edit("x.in_sum2", TensorType::F32, &[1], &bad.to_le_bytes()).is_err(), "{bad}");
        }
        let mut model = Metadata::new();
        model.insert("general.architecture", "huginn");
        let model = Writer::new(Vec::new(), &model, &[]).unwrap().finish().unwrap();
        assert!(matches!(Imatrix::parse(&model), Err(Error::Kind { .. })));
    }
}
