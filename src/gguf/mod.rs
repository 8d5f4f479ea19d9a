//! The GGUF container: keys and values, then tensors. Knows no model.
//!
//! A file is: the magic `GGUF`, a version, the number of tensors and of keys; the keys with their values; one
//! entry per tensor with name, shape, type and offset; padding; then the tensors' data, each on a multiple of
//! the file's alignment. All numbers are little-endian. The format is described in ggml's `docs/gguf.md`; what
//! that leaves open is settled as ggml's own reader (`gguf.cpp`) settles it, or more strictly.
//!
//! [`Header::parse`] reads everything but the data from bytes that nobody vouches for: every count, length and
//! offset is compared with the bytes there are before it is used or anything is allocated for it, so time and
//! memory are bounded by a small multiple of the header's own size. [`Writer`] makes a file in one pass.
//!
//! ```
//! use rdt::gguf::{Header, Metadata, TensorDecl, TensorType, Writer};
//!
//! let mut metadata = Metadata::new();
//! metadata.insert("general.architecture", "huginn");
//! let tensors = [TensorDecl { name: "loop.state".into(), ty: TensorType::F32, dims: vec![2, 1] }];
//! let mut writer = Writer::new(Vec::new(), &metadata, &tensors)?;
//! writer.write_tensor("loop.state", &[0; 8])?;
//! let file = writer.finish()?;
//!
//! let header = Header::parse(&file)?;
//! assert_eq!(header.metadata.require_str("general.architecture")?, "huginn");
//! let state = header.tensor("loop.state").unwrap();
//! assert_eq!(state.data(&file), Some(&[0; 8][..]));
//! # Ok::<(), rdt::gguf::Error>(())
//! ```

mod error;
mod header;
mod metadata;
mod rewrite;
mod types;
mod value;
mod writer;

pub use error::Error;
pub use header::{Header, TensorInfo};
pub use metadata::Metadata;
pub use rewrite::rewrite;
pub use types::{TensorType, UnknownType};
pub use value::{Array, Value};
pub use writer::{TensorDecl, Writer};

/// First bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written. Version 2 has the same layout and is read too.
const VERSION: u32 = 3;

/// Longest metadata key, and longest tensor name, in bytes. The specification sets this limit for keys; it
/// allows tensor names only 64 bytes (ggml takes 63), but reading longer ones does no harm.
pub const MAX_NAME: usize = (1 << 16) - 1;

/// Most dimensions of a tensor, as in ggml.
pub const MAX_DIMS: usize = 4;

/// Deepest nesting of arrays. ggml reads a depth of one.
pub const MAX_DEPTH: usize = 4;

/// Alignment of a file that declares none.
pub const DEFAULT_ALIGNMENT: usize = 32;

/// Largest alignment. ggml takes any power of two, but beyond the largest pages it is only a way to make files
/// huge.
pub const MAX_ALIGNMENT: usize = 1 << 20;

/// Where a model file keeps its calibration profile, as a string of JSON.
pub const CALIBRATION_KEY: &str = "rdt.calibration.profile";

/// The key under which a file declares its alignment, of type u32.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment that these keys declare.
fn alignment(metadata: &Metadata) -> Result<usize, Error> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(&Value::U32(found)) => usize::try_from(found)
            .ok()
            .filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT)
            .ok_or(Error::Alignment { found }),
        Some(other) => Err(Error::KeyType { key: ALIGNMENT_KEY.into(), expected: "u32", found: other.type_name() }),
    }
}

/// Checks the length of a key or tensor name before it is read or written.
fn check_name_length(what: &'static str, found: u64) -> Result<(), Error> {
    if (1..=MAX_NAME as u64).contains(&found) { Ok(()) } else { Err(Error::NameLength { what, found }) }
}

/// The size in bytes of a tensor's data, once its shape is known to be one a tensor can have.
fn tensor_bytes(name: &str, ty: TensorType, dims: &[u64]) -> Result<usize, Error> {
    let tensor = || name.to_owned();
    let Some((&row, outer)) = dims.split_first() else {
        return Err(Error::Dims { tensor: tensor(), found: 0 });
    };
    if dims.len() > MAX_DIMS {
        return Err(Error::Dims { tensor: tensor(), found: dims.len() as u64 });
    }
    if dims.contains(&0) {
        return Err(Error::ZeroDim { tensor: tensor(), dims: dims.to_vec() });
    }
    let too_large = || Error::TooLarge { tensor: tensor(), dims: dims.to_vec() };
    let row = usize::try_from(row).map_err(|_| too_large())?;
    if !row.is_multiple_of(ty.block_len()) {
        return Err(Error::RowLength { tensor: tensor(), ty, row });
    }
    // Counting values as well as bytes: for a format of less than a byte per value the bytes can fit where
    // the values do not.
    let times = |product: Option<usize>, &n: &u64| product?.checked_mul(usize::try_from(n).ok()?);
    let values = dims.iter().fold(Some(1), times);
    let bytes = outer.iter().fold(ty.row_bytes(row), times);
    match (values, bytes) {
        (Some(values), Some(bytes)) if values.max(bytes) <= isize::MAX as usize => Ok(bytes),
        _ => Err(too_large()),
    }
}
