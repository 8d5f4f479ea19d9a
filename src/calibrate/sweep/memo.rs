//! Results that are kept in a folder until all of them are there, so that an interrupted calibration goes on where it was.

use super::super::Error;
use crate::files::AtomicFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder of results, or none.
#[derive(Debug)]
pub(super) struct Memo {
    folder: Option<PathBuf>,
    /// Results that were found.
    pub(super) found: usize,
}

/// Where the setting lies that all results of a folder belong to.
const SETUP: &str = "setup.json";

impl Memo {
    /// Results under `folder` for this setting; those of another are removed with `restart`, and otherwise an error.
    pub(super) fn open(folder: Option<&Path>, setup: &str, restart: bool) -> Result<Self, Error> {
        let Some(folder) = folder else { return Ok(Self { folder: None, found: 0 }) };
        let path = folder.join(SETUP);
        if restart && path.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
        match std::fs::read_to_string(&path) {
            Ok(found) if found == setup => {}
            Ok(_) => return Err(Error::Unfinished { path: folder.to_owned() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => write(&path, setup.as_bytes())?,
            Err(e) => return Err(e.into()),
        }
        Ok(Self { folder: Some(folder.to_owned()), found: 0 })
    }

    /// The result of this name: as it was found, or made now and kept. One that cannot be read is made anew.
    pub(super) fn get<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(folder) = &self.folder else { return make() };
        let path = folder.join(format!("{name}.bin"));
        if let Some(found) = std::fs::read(&path).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok()) {
            self.found += 1;
            return Ok(found);
        }
        let made = make()?;
        write(&path, &postcard::to_stdvec(&made).map_err(std::io::Error::other)?)?;
        Ok(made)
    }

    /// Is there a result of this name?
    pub(super) fn has(&self, name: &str) -> bool {
        self.folder.as_ref().is_some_and(|folder| folder.join(format!("{name}.bin")).exists())
    }

    /// Removes all results: they have served.
    pub(super) fn clear(self) -> Result<(), Error> {
        match self.folder {
            Some(folder) => Ok(std::fs::remove_dir_all(folder)?),
            None => Ok(()),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    Ok(file.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_made_once_and_kept_for_their_setting_only() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("x.partial");
        let mut memo = Memo::open(Some(&at), "a", false).unwrap();
        let odd = vec![f64::NAN, 0.1 + 0.2, f64::NEG_INFINITY];
        let made = memo.get("one", || Ok(odd.clone())).unwrap();
        assert_eq!(made.len(), 3);
        let mut memo = Memo::open(Some(&at), "a", false).unwrap();
        let found: Vec<f64> = memo.get("one", || panic!("it is there")).unwrap();
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&found), memo.found), (bits(&odd), 1));
        assert!(memo.has("one") && !memo.has("two"));

        std::fs::write(at.join("one.bin"), b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
        let again: Vec<f64> = memo.get("one", || Ok(vec![1.0])).unwrap();
        assert_eq!(again, [1.0], "damaged results are made anew");

        assert!(matches!(Memo::open(Some(&at), "b", false), Err(Error::Unfinished { .. })));
        let memo = Memo::open(Some(&at), "b", true).unwrap();
        assert!(!memo.has("one"));
        memo.clear().unwrap();
        assert!(!at.exists());
    }
}
