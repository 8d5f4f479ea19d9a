//! The zip archive around a PyTorch file: which bytes of the file are the pickle, and which are the tensors' values.

use super::TorchError;
use crate::checkpoint::error::shorten;
use rawzip::{CompressionMethod, ZipArchive, ZipFileHeaderRecord, ZipSliceArchive};
use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

/// How a zip archive with something in it begins.
const ZIP: &[u8] = b"PK\x03\x04";

/// The number 0x1950a86a20f9469cfc6c as a pickle, which opens the files of PyTorch before 1.6, after the two bytes of the
/// pickle protocol.
const LEGACY: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// The parts of an archive that matter.
pub(super) struct Container<'a> {
    /// `FOLDER/data.pkl`.
    pub(super) pickle: &'a [u8],
    /// `FOLDER/data/KEY`, by key: where its bytes lie in the file.
    pub(super) storages: HashMap<Vec<u8>, Range<usize>>,
}

impl<'a> Container<'a> {
    /// Finds the parts. PyTorch stores them as they are, so that they can be read in place; compressed ones are refused.
    /// All ranges lie inside `file`. Takes time and memory in proportion to the archive's directory.
    pub(super) fn parse(file: &'a [u8]) -> Result<Self, TorchError> {
        if !file.starts_with(ZIP) {
            let legacy = file.get(2..).is_some_and(|rest| rest.starts_with(LEGACY));
            return Err(if legacy { TorchError::Legacy } else { TorchError::NotZip });
        }
        let zip = ZipArchive::from_slice(file).map_err(unreadable)?;
        let folder = folder(&zip)?;
        let mut pickle = None;
        let mut storages = HashMap::new();
        let mut entries = 0;
        for entry in zip.entries() {
            entries += 1;
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_path().as_bytes().strip_prefix(folder.as_slice());
            let Some(name) = name.and_then(|name| name.strip_prefix(b"/")) else {
                continue;
            };
            let printed = || shorten(&String::from_utf8_lossy(name));
            let part = || range(&zip, &entry, &printed());
            let twice = || TorchError::DuplicateEntry { name: printed() };
            match name {
                b"data.pkl" => {
                    let bytes = file.get(part()?).unwrap_or_default();
                    if pickle.replace(bytes).is_some() {
                        return Err(twice());
                    }
                }
                b"byteorder" => {
                    if file.get(part()?).is_some_and(|order| order == b"big") {
                        return Err(TorchError::BigEndian);
                    }
                }
                b"constants.pkl" => return Err(TorchError::TorchScript),
                _ => {
                    let Some(key) = name.strip_prefix(b"data/") else { continue };
                    match storages.entry(key.to_vec()) {
                        Entry::Vacant(vacant) => vacant.insert(part()?),
                        Entry::Occupied(_) => return Err(twice()),
                    };
                }
            }
        }
        if entries != zip.entries_hint() {
            let reason = format!("it says that it has {} parts and lists {entries}", zip.entries_hint());
            return Err(TorchError::Zip { reason });
        }
        Ok(Self { pickle: pickle.ok_or(TorchError::NoPickle)?, storages })
    }
}

/// The folder in the archive that PyTorch writes everything into: the one with a `data.pkl` in it.
fn folder(zip: &ZipSliceArchive<&[u8]>) -> Result<Vec<u8>, TorchError> {
    for entry in zip.entries() {
        let entry = entry.map_err(unreadable)?;
        let folder = entry.file_path().as_bytes().strip_suffix(b"/data.pkl");
        if let Some(folder) = folder.filter(|folder| !folder.is_empty() && !folder.contains(&b'/')) {
            return Ok(folder.to_vec());
        }
    }
    Err(TorchError::NoPickle)
}

/// Where the bytes of a plainly stored part lie.
fn range(
    zip: &ZipSliceArchive<&[u8]>,
    entry: &ZipFileHeaderRecord<'_>,
    name: &str,
) -> Result<Range<usize>, TorchError> {
    let packed = |how| TorchError::Packed { name: name.to_owned(), how };
    if entry.flags().is_encrypted() {
        return Err(packed("encrypted"));
    }
    if entry.compression_method() != CompressionMethod::STORE {
        return Err(packed("compressed"));
    }
    let (start, end) = zip.get_entry(entry.wayfinder()).map_err(unreadable)?.compressed_data_range();
    if end - start != entry.uncompressed_size_hint() {
        return Err(TorchError::Zip { reason: format!("{name:?} has two sizes") });
    }
    // `get_entry` has checked that both lie inside the file, which is in memory.
    Ok(start as usize..end as usize)
}

fn unreadable(error: rawzip::Error) -> TorchError {
    TorchError::Zip { reason: error.to_string() }
}
