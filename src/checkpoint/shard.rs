//! One weights file: its header is parsed, its tensors stay where they are.

use super::{
    Error, TensorView, TorchFile,
    error::{shape_text, shorten},
    json::{self, Keys},
};
use crate::files::Bytes;
use safetensors::{
    SafeTensorError,
    tensor::{Metadata, TensorInfo},
};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The longest header that is read, as in the safetensors crate.
pub(super) const HEADER_LIMIT: u64 = 100_000_000;

/// Bytes that give the header's length.
const LENGTH_BYTES: usize = 8;

/// What a weights file is written in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Safetensors,
    Torch,
}

/// A mapped file whose header has been checked.
pub(super) struct Shard {
    path: PathBuf,
    map: Bytes,
    header: Header,
}

/// What the file says about its tensors.
enum Header {
    Safetensors {
        metadata: Metadata,
        /// Where the tensors' bytes begin in the file.
        data_start: usize,
    },
    Torch(TorchFile),
}

impl Shard {
    /// Maps the file and checks its header: every tensor lies inside the file, and in safetensors fills its bytes exactly
    /// and they follow each other without gap or overlap.
    ///
    /// # Safety
    /// The file must not be changed while the shard lives.
    pub(super) unsafe fn open(path: PathBuf, format: Format) -> Result<Self, Error> {
        super::require_regular_file(&path)?;
        // SAFETY: handed on to the caller.
        let map = unsafe { Bytes::map(&path)? };
        let header = match format {
            Format::Safetensors => {
                let (metadata, data_start) = parse_header(&path, &map)?;
                Header::Safetensors { metadata, data_start }
            }
            Format::Torch => match TorchFile::parse(&map) {
                Ok(file) => Header::Torch(file),
                Err(source) => return Err(Error::Torch { path, source }),
            },
        };
        Ok(Self { path, map, header })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.map
    }

    /// Names of the tensors.
    pub(super) fn names(&self) -> Vec<String> {
        match &self.header {
            Header::Safetensors { metadata, .. } => metadata.offset_keys(),
            Header::Torch(file) => file.names().map(str::to_owned).collect(),
        }
    }

    pub(super) fn holds(&self, tensor: &str) -> bool {
        match &self.header {
            Header::Safetensors { metadata, .. } => metadata.info(tensor).is_some(),
            Header::Torch(file) => file.contains(tensor),
        }
    }

    pub(super) fn tensor<'a>(&'a self, name: &'a str) -> Option<TensorView<'a>> {
        match &self.header {
            Header::Safetensors { metadata, data_start } => {
                let info = metadata.info(name)?;
                let (start, end) = info.data_offsets;
                let data = self.map.get(*data_start..)?.get(start..end)?;
                let (shape, offset) = (info.shape.clone(), data_start + start);
                Some(TensorView { name, dtype: info.dtype, shape, data, offset, strides: None })
            }
            Header::Torch(file) => file.tensor(&self.map, name),
        }
    }
}

/// Reads the header of a file with the contents `bytes`; returns it and the offset of the data behind it.
///
/// The safetensors crate can parse a whole file too. It keeps the last of two tensors of one name without a word,
/// names no tensor in most errors, and adds up offsets from the file unchecked; so its parser gets the pieces after
/// they were looked at here, and checks once more that the tensors tile the data.
fn parse_header(path: &Path, bytes: &[u8]) -> Result<(Metadata, usize), Error> {
    let found = bytes.len() as u64;
    let size = |expected: u64| Error::Size { path: path.to_owned(), expected, found };
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(size(LENGTH_BYTES as u64));
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_LIMIT {
        return Err(Error::HeaderLength { path: path.to_owned(), found: length, limit: HEADER_LIMIT });
    }
    // At most HEADER_LIMIT, so nothing below overflows.
    let length = length as usize;
    let data_start = LENGTH_BYTES + length;
    let Some((header, data)) = rest.split_at_checked(length) else {
        return Err(size(data_start as u64));
    };
    let header = std::str::from_utf8(header)
        .map_err(|e| Error::Utf8 { path: path.to_owned(), offset: LENGTH_BYTES + e.valid_up_to() })?;
    let Tensors(mut tensors) = json::parse(path, header)?;

    let mut data_end = 0;
    for (name, info) in &tensors {
        check_tensor(path, name, info)?;
        data_end = data_end.max(info.data_offsets.1);
    }
    if data_end != data.len() {
        return Err(size((data_start as u64).saturating_add(data_end as u64)));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let metadata = Metadata::new(None, tensors).map_err(|source| {
        let source = match source {
            SafeTensorError::InvalidOffset(name) => SafeTensorError::InvalidOffset(json::printable(&name)),
            other => other,
        };
        Error::Header { path: path.to_owned(), source }
    })?;
    Ok((metadata, data_start))
}

/// Checks that the tensor's shape and type fill the bytes between its offsets.
fn check_tensor(path: &Path, name: &str, info: &TensorInfo) -> Result<(), Error> {
    let (start, end) = info.data_offsets;
    let Some(found) = end.checked_sub(start) else {
        return Err(Error::Offsets {
            path: path.to_owned(),
            tensor: shorten(name),
            start: start as u64,
            end: end as u64,
        });
    };
    let values = info.shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim as u64));
    let bits = values.and_then(|n| n.checked_mul(info.dtype.bitsize() as u64));
    if bits.is_none_or(|bits| Some(bits) != (found as u64).checked_mul(8)) {
        return Err(Error::TensorSize {
            path: path.to_owned(),
            tensor: shorten(name),
            dtype: info.dtype,
            shape: shape_text(&info.shape),
            found: found as u64,
        });
    }
    Ok(())
}

/// The header's tensors in the order they are written, with no name twice. `__metadata__` is free text and is skipped.
struct Tensors(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let mut tensors = Vec::new();
                let mut keys = Keys::default();
                while let Some(key) = map.next_key::<String>()? {
                    keys.insert(&key)?;
                    if key == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        tensors.push((key, map.next_value()?));
                    }
                }
                Ok(Tensors(tensors))
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}
