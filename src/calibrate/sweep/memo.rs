//! Results that are kept in a folder until all of them are there, so that an interrupted calibration goes on where it was.

use super::super::Error;
use crate::files::AtomicFile;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A folder of results, or none.
#[derive(Debug, Default)]
pub(super) struct Memo {
    folder: Option<PathBuf>,
    /// Results that were found.
    pub(super) found: usize,
}

/// Where the setting lies that all results of a folder belong to.
const SETUP: &str = "setup.json";

impl Memo {
    /// Results under `folder` for this setting; those of another are removed with `restart`, and otherwise an error, as is a folder
    /// with anything else in it.
    pub(super) fn open(folder: Option<&Path>, setup: &str, restart: bool) -> Result<Self, Error> {
        let Some(folder) = folder else { return Ok(Self::default()) };
        let path = folder.join(SETUP);
        let this = Self { folder: Some(folder.to_owned()), found: 0 };
        if restart && path.exists() {
            this.clear()?;
        }
        std::fs::create_dir_all(folder)?;
        match std::fs::read_to_string(&path) {
            Ok(found) if found == setup => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && is_free(folder)? => write(&path, setup.as_bytes())?,
            Ok(_) | Err(_) => return Err(Error::Unfinished { path: folder.to_owned() }),
        }
        Ok(this)
    }

    /// The result of this name, if there is one that can be read and that `fits`.
    pub(super) fn find<T: DeserializeOwned>(&mut self, name: &str, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let bytes = std::fs::read(self.folder.as_ref()?.join(format!("{name}.bin"))).ok()?;
        let found = postcard::from_bytes(&bytes).ok().filter(fits)?;
        self.found += 1;
        Some(found)
    }

    /// Keeps a result under a name.
    pub(super) fn keep<T: Serialize>(&self, name: &str, made: &T) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        write(&folder.join(format!("{name}.bin")), &postcard::to_stdvec(made).map_err(std::io::Error::other)?)
    }

    /// The result of this name: as it was found, or made now and kept. One that cannot be read or does not fit is made anew.
    pub(super) fn get<T: Serialize + DeserializeOwned>(
        &mut self,
        name: &str,
        fits: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        if let Some(found) = self.find(name, fits) {
            return Ok(found);
        }
        let made = make()?;
        self.keep(name, &made)?;
        Ok(made)
    }

    /// Removes all results, and the folder if nothing else is in it.
    pub(super) fn clear(&self) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "bin") || path.ends_with(SETUP) || is_leftover(&path) {
                std::fs::remove_file(path)?;
            }
        }
        // Left alone where somebody has put something else there.
        let _ = std::fs::remove_dir(folder);
        Ok(())
    }
}

/// Is this what a killed program had half written?
fn is_leftover(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ours = name.contains(".bin.") || name.contains(SETUP);
    ours && name.starts_with('.') && name.ends_with(".tmp")
}

/// Is there nothing of anybody else's in the folder?
fn is_free(folder: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if !is_leftover(&entry?.path()) {
            return Ok(false);
        }
    }
    Ok(true)
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
        let any = |_: &Vec<f64>| true;
        let made = memo.get("one", any, || Ok(odd.clone())).unwrap();
        assert_eq!(made.len(), 3);
        let mut memo = Memo::open(Some(&at), "a", false).unwrap();
        let found: Vec<f64> = memo.get("one", any, || panic!("it is there")).unwrap();
        let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(&found), memo.found), (bits(&odd), 1));
        assert!(memo.find("two", any).is_none());

        let again: Vec<f64> = memo.get("one", |found: &Vec<f64>| found.len() == 1, || Ok(vec![2.0])).unwrap();
        assert_eq!(again, [2.0], "results that do not fit are made anew");
        std::fs::write(at.join("one.bin"), b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
        let again: Vec<f64> = memo.get("one", any, || Ok(vec![1.0])).unwrap();
        assert_eq!(again, [1.0], "and damaged ones");

        // What a killed program had half written goes with the rest.
        std::fs::write(at.join(".two.bin.Xy12.tmp"), b"half").unwrap();
        assert!(matches!(Memo::open(Some(&at), "b", false), Err(Error::Unfinished { .. })));
        let mut memo = Memo::open(Some(&at), "b", true).unwrap();
        assert!(memo.find("one", any).is_none());
        memo.clear().unwrap();
        assert!(!at.exists());

        // Somebody's own folder of that name is none of ours.
        std::fs::create_dir(&at).unwrap();
        std::fs::write(at.join("novel.txt"), "It was a dark night").unwrap();
        for restart in [false, true] {
            assert!(matches!(Memo::open(Some(&at), "a", restart), Err(Error::Unfinished { .. })));
        }
        assert!(at.join("novel.txt").exists());
    }
}
