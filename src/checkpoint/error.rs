//! What can be wrong with a checkpoint.

use super::TorchError;
use crate::files;
use safetensors::{Dtype, SafeTensorError};
use std::{io, path::PathBuf};

/// Why a checkpoint could not be opened or read.
///
/// Names that come out of a file are cut to a readable length and shown escaped, so that a message is always one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// A file could not be mapped.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A checkpoint is a folder.
    #[error("{} is not a folder; give the folder that holds config.json and the weights", path.display())]
    NotAFolder {
        /// What was given.
        path: PathBuf,
    },
    /// A pipe, device or folder stands where a file is needed.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was found.
        path: PathBuf,
    },
    /// There is no `config.json`.
    #[error(
        "{} holds no config.json; a published checkpoint has config.json, tokenizer.json and model.safetensors \
         (or model.safetensors.index.json with its shards, or pytorch_model.bin or model.pt)",
        folder.display()
    )]
    NoConfig {
        /// The folder.
        folder: PathBuf,
    },
    /// There are no weights.
    #[error(
        "{} holds no weights: none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, \
         pytorch_model.bin.index.json, model.pt, model.pth, model.bin",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// There are no weights under a name that is looked for, but a file that may be PyTorch weights.
    #[error(
        "{} may hold the weights, but not under a name that is looked for; rename it to model.pt, or, if it is one of \
         several, download pytorch_model.bin.index.json too",
        path.display()
    )]
    UnknownName {
        /// The file.
        path: PathBuf,
    },
    /// A PyTorch file cannot be read.
    #[error("{}: {source}", path.display())]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TorchError,
    },
    /// A text file is larger than any real one.
    #[error("{} has {found} bytes; at most {limit} are accepted", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A text file is not UTF-8.
    #[error("{} is not UTF-8 text: byte {offset} is wrong", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Bytes before the first wrong one.
        offset: usize,
    },
    /// A JSON file, or the JSON header of a weights file, is malformed.
    #[error("{}: {message} at line {line} column {column}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// 1-based line, counted from the start of the JSON text.
        line: usize,
        /// 1-based column.
        column: usize,
    },
    /// A key is missing.
    #[error("{}: {key} is missing; expected {expected}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key, with a dot between levels.
        key: String,
        /// What should stand there.
        expected: &'static str,
    },
    /// A key holds something else than it should.
    #[error("{}: {key} is {found}; expected {expected}", path.display())]
    KeyType {
        /// The file.
        path: PathBuf,
        /// The key, with a dot between levels.
        key: String,
        /// What should stand there.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A weights file is shorter or longer than its header says.
    #[error("{} should have {expected} bytes by its header and has {found}{}", path.display(), shorter(*expected, *found))]
    Size {
        /// The file.
        path: PathBuf,
        /// Bytes promised by the header.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// The length in front of a weights file's header cannot be right.
    #[error(
        "{} is no safetensors file: it says its header has {found} bytes; at most {limit} are accepted",
        path.display()
    )]
    HeaderLength {
        /// The file.
        path: PathBuf,
        /// Length given in the file.
        found: u64,
        /// The most that is accepted.
        limit: u64,
    },
    /// A weights file's header contradicts itself.
    #[error("{}: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: SafeTensorError,
    },
    /// A tensor's shape and type do not match the bytes set aside for it.
    #[error(
        "{}: tensor {tensor:?} of type {dtype} and shape {shape} does not fill its {found} bytes",
        path.display()
    )]
    TensorSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape, as text.
        shape: String,
        /// Bytes between its offsets.
        found: u64,
    },
    /// A tensor's offsets are not a range.
    #[error("{}: tensor {tensor:?} ends at byte {end}, before its start at {start}", path.display())]
    Offsets {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// Byte after the last.
        end: u64,
    },
    /// An index names a shard that is not a plain file name.
    #[error("{}: {shard:?} is not the name of a file in the same folder", index.display())]
    ShardName {
        /// The index file.
        index: PathBuf,
        /// The name in it.
        shard: String,
    },
    /// A shard that the index names is not there.
    #[error("{}, which {} names, is missing; download it too", shard.display(), index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing file.
        shard: PathBuf,
    },
    /// A shard lacks a tensor that the index says is in it.
    #[error("{} does not hold tensor {tensor:?}, which {} says is in it", shard.display(), index.display())]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// Two shards hold a tensor of the same name and the index does not say which counts.
    #[error("tensor {tensor:?} is both in {} and in {}", first.display(), second.display())]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Two tensors have the same name after the prefixes of training programs are taken away.
    #[error("tensors {first:?} and {second:?} in {} have the same name but for a prefix", folder.display())]
    SameName {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// One tensor, as the file names it.
        first: String,
        /// The other.
        second: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{} has no tensor {tensor:?}", folder.display())]
    NoTensor {
        /// The checkpoint's folder.
        folder: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// The tensor's type cannot be read as f32.
    #[error("tensor {tensor:?} is of type {dtype}; only F64, F32, F16 and BF16 weights can be read")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Rows were asked for that the tensor does not have.
    #[error("rows {start}..{end} of tensor {tensor:?} do not exist; it has {rows}")]
    Rows {
        /// The tensor.
        tensor: String,
        /// First row asked for.
        start: usize,
        /// Row after the last asked for.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The buffer for converted rows has the wrong length.
    #[error("the buffer for tensor {tensor:?} has {found} values where {expected} are needed")]
    Buffer {
        /// The tensor.
        tensor: String,
        /// Values needed.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

fn shorter(expected: u64, found: u64) -> &'static str {
    if found < expected { "; was the download cut short?" } else { "" }
}

/// `name` cut to a length that fits a message.
pub(super) fn shorten(name: &str) -> String {
    const MOST: usize = 120;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// A type and shape as text, cut to a length that fits a message.
pub(super) fn shape_text(shape: &[usize]) -> String {
    shorten(&format!("{:?}", &shape[..shape.len().min(16)]))
}
