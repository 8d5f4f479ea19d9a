//! What can be wrong with a GGUF file, or with what one is to be made of.

use std::{fmt, io};

use thiserror::Error;

use super::TensorType;
use crate::files;

/// Why a GGUF file cannot be read, a key not used, or a file not written.
///
/// Names in messages are escaped and shortened, because they come out of the file. The path is not known
/// here; whoever opened the file adds it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with \"{}\", not \"GGUF\"", .found.escape_ascii())]
    NotGguf {
        /// The first bytes, four at most.
        found: Vec<u8>,
    },
    /// A big-endian file.
    #[error("a big-endian GGUF file, which is not supported; convert it with gguf_convert_endian.py")]
    BigEndian,
    /// A version of the format that is not read here.
    #[error("GGUF version {found} is not supported (2 and 3 are); convert the model again")]
    Version {
        /// The version the file declares.
        found: u32,
    },
    /// The file ends inside its header, or a length or count in the header is larger than the file.
    #[error(
        "the header is cut short or damaged: {what} at byte {at} needs {needed} bytes, and {left} are left; \
         if the file was downloaded, download it again"
    )]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Position in the file.
        at: usize,
        /// Bytes needed at the least, as far as they can be counted.
        needed: u64,
        /// Bytes left in the file.
        left: usize,
    },
    /// A string that is not UTF-8.
    #[error("{what} at byte {at} is not valid UTF-8")]
    Utf8 {
        /// What was being read.
        what: &'static str,
        /// Position of the text in the file.
        at: usize,
    },
    /// A key or tensor name that is empty or longer than [`MAX_NAME`](super::MAX_NAME).
    #[error("{what} has {found} bytes; names have 1 to {} bytes", super::MAX_NAME)]
    NameLength {
        /// "a metadata key" or "a tensor name".
        what: &'static str,
        /// The length found.
        found: u64,
    },
    /// A key that stands twice.
    #[error("metadata key {} stands twice", Quoted(key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A tensor name that stands twice.
    #[error("tensor {} stands twice", Quoted(tensor))]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A value type that GGUF does not define.
    #[error("metadata key {}: unknown value type {found}", Quoted(key))]
    ValueType {
        /// The key.
        key: String,
        /// The id found; 0 to 12 are defined.
        found: u32,
    },
    /// A truth value that is neither 0 nor 1.
    #[error("metadata key {}: a bool is stored as 0 or 1, not {found}", Quoted(key))]
    Bool {
        /// The key.
        key: String,
        /// The byte found.
        found: u8,
    },
    /// Arrays within arrays within arrays.
    #[error("metadata key {}: arrays nested more than {} deep", Quoted(key), super::MAX_DEPTH)]
    Depth {
        /// The key.
        key: String,
    },
    /// An alignment that is no power of two, or too large.
    #[error("general.alignment is {found}; it must be a power of two up to {}", super::MAX_ALIGNMENT)]
    Alignment {
        /// The value found.
        found: u32,
    },
    /// A number of dimensions that is not 1 to 4.
    #[error("tensor {} has {found} dimensions; 1 to {} are allowed", Quoted(tensor), super::MAX_DIMS)]
    Dims {
        /// The tensor.
        tensor: String,
        /// The number found.
        found: u64,
    },
    /// A dimension of length zero.
    #[error("tensor {} has the shape {dims:?}: no dimension may be 0", Quoted(tensor))]
    ZeroDim {
        /// The tensor.
        tensor: String,
        /// Its shape, row length first.
        dims: Vec<u64>,
    },
    /// A tensor whose size cannot be counted.
    #[error("tensor {} has the shape {dims:?}, which is too large to count", Quoted(tensor))]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape, row length first.
        dims: Vec<u64>,
    },
    /// A tensor type that is not in ggml's list, or newer than ours.
    #[error("tensor {} has the unknown type id {found}; the file may be newer than this program", Quoted(tensor))]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The id found.
        found: u32,
    },
    /// A row that is no whole number of blocks.
    #[error("tensor {}: rows of {row} values do not divide into {ty} blocks of {}", Quoted(tensor), ty.block_len())]
    RowLength {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: TensorType,
        /// Its row length.
        row: usize,
    },
    /// A tensor that does not start on the file's alignment.
    #[error("tensor {} starts at offset {found} of the data, not a multiple of {alignment}", Quoted(tensor))]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its offset within the data section.
        found: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// Two tensors that share bytes.
    #[error("tensors {} and {} overlap", Quoted(first), Quoted(second))]
    Overlap {
        /// The one that starts first.
        first: String,
        /// The one that starts before the first ends.
        second: String,
    },
    /// The file ends before its last tensor does.
    #[error(
        "the file is shorter than its header promises: tensor {} needs {expected} bytes, the file has {found}; \
         the download was probably cut short",
        Quoted(tensor)
    )]
    FileTooShort {
        /// The tensor that ends last.
        tensor: String,
        /// The least size of the file, in bytes.
        expected: u64,
        /// The size of the file, in bytes.
        found: u64,
    },
    /// A key that must be there and is not.
    #[error("metadata key {} is missing", Quoted(key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key whose value has another type.
    #[error("metadata key {} must be {expected}, but is {found}", Quoted(key))]
    KeyType {
        /// The key.
        key: String,
        /// The type wanted.
        expected: &'static str,
        /// The type found.
        found: &'static str,
    },
    /// A number that does not fit where it is wanted: negative, too large, or not finite.
    #[error("metadata key {} is {found}, which is not {expected}", Quoted(key))]
    KeyRange {
        /// The key.
        key: String,
        /// What was wanted.
        expected: &'static str,
        /// The number found.
        found: String,
    },
    /// An array of the wrong length.
    #[error("metadata key {} has {found} entries, expected {expected}", Quoted(key))]
    KeyLength {
        /// The key.
        key: String,
        /// The number of entries wanted.
        expected: usize,
        /// The number of entries found.
        found: usize,
    },
    /// More blocks than any model has.
    #[error("metadata key {} is wanted for {found} blocks; {most} is the most", Quoted(key))]
    TooManyBlocks {
        /// The key.
        key: String,
        /// The largest number of blocks.
        most: usize,
        /// The number of blocks asked for.
        found: usize,
    },
    /// A tensor begun or ended out of turn while writing.
    #[error("tensor {} is not the next to write: {}", Quoted(tensor), Turn(expected.as_deref()))]
    Order {
        /// The tensor that was begun.
        tensor: String,
        /// The tensor whose turn it is, or that is still unfinished; `None` when all are written.
        expected: Option<String>,
    },
    /// More bytes, or fewer, than the tensor's declared size.
    #[error("tensor {} has {expected} bytes, and was given {found}", Quoted(tensor))]
    Size {
        /// The tensor.
        tensor: String,
        /// Its size.
        expected: usize,
        /// The bytes given, or at least this many.
        found: usize,
    },
    /// A file finished before all of its tensors were written.
    #[error("the file is not complete: {written} of {declared} tensors are written, the next is {}", Quoted(next))]
    Unfinished {
        /// Tensors written whole.
        written: usize,
        /// Tensors declared.
        declared: usize,
        /// The first that is missing, or partly so.
        next: String,
    },
    /// The output could not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The output file could not be made or finished.
    #[error(transparent)]
    File(#[from] files::Error),
}

/// A name out of a file, safe to print: in quotes, escaped, and not longer than a line.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 80;
        match self.0.char_indices().nth(SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}...", &self.0[..end]),
        }
    }
}

/// Whose turn it is, in words.
struct Turn<'a>(Option<&'a str>);

impl fmt::Display for Turn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(next) => write!(f, "{} is", Quoted(next)),
            None => f.write_str("all are written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_a_file_are_escaped_and_shortened() {
        let key = format!("\x1b[31m{}", "é".repeat(70_000));
        let text = Error::DuplicateKey { key }.to_string();
        assert!(text.starts_with("metadata key \"\\u{1b}[31mé"), "{text}");
        assert!(text.len() < 250, "{}", text.len());
    }
}
