//! What can be wrong with a PyTorch file.

use safetensors::Dtype;

/// Why a PyTorch file could not be read. Names that come out of the file are cut to a readable length and shown escaped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file does not begin like a zip archive.
    #[error("no PyTorch file: it does not begin like a zip archive")]
    NotZip,
    /// The format of PyTorch before 1.6, which is not a zip archive.
    #[error(
        "a file in PyTorch's format from before version 1.6; load it with a newer PyTorch and save it again: \
         torch.save(torch.load(old, weights_only=True), new)"
    )]
    Legacy,
    /// The zip archive cannot be read.
    #[error("the zip archive cannot be read ({reason}); was the download cut short?")]
    Zip {
        /// What is wrong with it.
        reason: String,
    },
    /// The archive holds no pickle where PyTorch puts it.
    #[error("a zip archive, but no PyTorch file: it holds no FOLDER/data.pkl")]
    NoPickle,
    /// Two parts of the archive have the same name.
    #[error("the archive holds {name:?} twice")]
    DuplicateEntry {
        /// The name, after the archive's folder.
        name: String,
    },
    /// The archive is a compiled program.
    #[error("a TorchScript program; save the state dict of the model instead")]
    TorchScript,
    /// Part of the archive is compressed or encrypted.
    #[error("{name:?} is {how} in the archive; PyTorch stores it plainly, and only that can be read in place")]
    Packed {
        /// The part, after the archive's folder.
        name: String,
        /// "compressed" or "encrypted".
        how: &'static str,
    },
    /// The file was written on a machine that stores numbers the other way round.
    #[error("its numbers are big endian; only little endian ones are read")]
    BigEndian,
    /// The pickle contradicts itself.
    #[error("byte {at} of data.pkl: {problem}")]
    Malformed {
        /// Where the opcode stands that cannot be followed.
        at: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// An opcode that dicts of tensors do not need.
    #[error(
        "byte {at} of data.pkl is the pickle opcode {opcode:#04x}, which builds something else than tensors; \
         convert the file to safetensors"
    )]
    Opcode {
        /// Where it stands.
        at: usize,
        /// Its value.
        opcode: u8,
    },
    /// A class or function other than those which stand for tensors.
    #[error("the file asks for {name:?}; this reader runs nothing and builds tensors only; convert it to safetensors")]
    Callable {
        /// Module and name.
        name: String,
    },
    /// There are more opcodes than any real file has.
    #[error("data.pkl has more than {limit} opcodes; no checkpoint needs that many")]
    TooLong {
        /// The most that are followed.
        limit: usize,
    },
    /// The file holds something else than a dict.
    #[error("the file holds no dict of tensors but {found}")]
    NotADict {
        /// What it holds.
        found: &'static str,
    },
    /// A dict without tensors.
    #[error("the file holds a dict without tensors; its keys are {keys}")]
    NoTensors {
        /// The first few keys.
        keys: String,
    },
    /// A name is given twice, or a tensor has no name.
    #[error("the dict of tensors has {what} as a key{}", if *twice { " twice" } else { ", which is no name" })]
    Key {
        /// The key, shown as it would be in Python.
        what: String,
        /// Whether the key is a string, but there twice.
        twice: bool,
    },
    /// The bytes of a tensor are not in the archive.
    #[error("tensor {tensor:?} lies in data/{key:?}, which the archive does not hold")]
    NoStorage {
        /// The tensor.
        tensor: String,
        /// Name of the part.
        key: String,
    },
    /// The part of the archive which holds a tensor has another size than the pickle says.
    #[error(
        "tensor {tensor:?} lies in data/{key}, which should hold {expected} values of {dtype} and has {found} bytes"
    )]
    StorageSize {
        /// The tensor.
        tensor: String,
        /// Name of the part.
        key: String,
        /// Values promised.
        expected: i64,
        /// Their type.
        dtype: Dtype,
        /// Bytes there are.
        found: u64,
    },
    /// A tensor's shape, strides and offset make no sense or leave its bytes.
    #[error("tensor {tensor:?} {problem}")]
    Layout {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        problem: &'static str,
    },
}
