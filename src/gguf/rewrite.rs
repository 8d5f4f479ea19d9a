//! The same file with other keys.

use std::path::Path;

use super::{Error, Header, Metadata, TensorDecl, Writer};

/// Writes the GGUF whose bytes are `file` to `path` with changed metadata; tensors stay as they are. The file appears whole or not at
/// all, and may replace the one that the bytes are mapped from.
///
/// # Errors
/// `file` is no GGUF, or lacks tensor data; the new keys are none that a file may have; the file cannot be written.
pub fn rewrite(file: &[u8], path: &Path, change: impl FnOnce(&mut Metadata)) -> Result<(), Error> {
    let header = Header::parse(file)?;
    let mut metadata = header.metadata.clone();
    change(&mut metadata);
    let tensors: Vec<TensorDecl> = header.tensors.iter().map(TensorDecl::from).collect();
    let mut writer = Writer::create(path, &metadata, &tensors)?;
    for info in &header.tensors {
        // The header was parsed from these bytes, so the data is there.
        writer.write_tensor(&info.name, info.data(file).unwrap_or_default())?;
    }
    writer.commit()
}
