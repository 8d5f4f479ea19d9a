//! The one place of this room that maps files.

use super::Error;
use memmap2::Mmap;
use std::{fs::File, ops::Deref, path::Path};

/// The contents of a file, mapped read-only.
pub(super) struct Map(Mmap);

impl Map {
    /// Maps the regular file at `path`. Nothing is read until it is looked at.
    ///
    /// # Safety
    /// The file must not be changed while the map lives: the bytes are handed out as `&[u8]`. A file that another
    /// program shortens makes the operating system end this one when the missing part is read.
    pub(super) unsafe fn open(path: &Path) -> Result<Self, Error> {
        super::require_regular_file(path)?;
        let map = || {
            let file = File::open(path)?;
            // SAFETY: the caller promises that nobody changes the file.
            unsafe { Mmap::map(&file) }
        };
        map().map(Self).map_err(|source| Error::Io { path: path.to_owned(), source })
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
