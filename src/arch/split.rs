//! A GGUF that was cut into several files, as `llama-gguf-split` does it: all keys in the first, tensors in any.

use super::{Conversion, Load, read};
use crate::files::{self, Bytes};
use crate::gguf::{self, Header, TensorInfo};
use std::path::{Path, PathBuf};

/// The file's number, from 0.
const NUMBER: &str = "split.no";
/// How many files there are.
const COUNT: &str = "split.count";
/// Tensors in all of them.
const TENSORS: &str = "split.tensors.count";

/// What is wrong with a set of files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// A file cannot be opened.
    #[error("{source}; all {count} files of the set are needed")]
    File {
        /// The files that there should be.
        count: usize,
        /// What is wrong; it names the file.
        source: files::Error,
    },
    /// A file is no GGUF, or a damaged one.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: gguf::Error,
    },
    /// The name of a file does not say which the others are.
    #[error(
        "{} is one of {count} files that belong together, but is not named so; \
         expected NAME-00001-of-{count:05}.gguf",
        path.display()
    )]
    Name {
        /// The file.
        path: PathBuf,
        /// The files that there should be.
        count: usize,
    },
    /// A file is not the one that its name says, or of another set.
    #[error("{}: {key} is {}; expected {expected}", path.display(), found.map_or("missing".to_owned(), |n| n.to_string()))]
    Part {
        /// The file.
        path: PathBuf,
        /// The key that tells.
        key: &'static str,
        /// Its value, if it is there.
        found: Option<usize>,
        /// What it should be.
        expected: usize,
    },
    /// The files do not hold as many tensors as the first one says.
    #[error("the {count} files of {} hold {found} tensors; expected {expected}", path.display())]
    Tensors {
        /// The first file.
        path: PathBuf,
        /// How many files there are.
        count: usize,
        /// Tensors in the files.
        found: usize,
        /// Tensors that the first file speaks of.
        expected: usize,
    },
}

/// An open set of files.
pub struct Split {
    first: Part,
    others: Vec<Part>,
}

/// One of the files.
struct Part {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

/// How many files the one with this header is one of; 1 if it is whole.
///
/// # Errors
/// The key that says so holds no number.
pub fn split_count(header: &Header) -> Result<usize, gguf::Error> {
    Ok(header.metadata.usize(COUNT)?.unwrap_or(1).max(1))
}

/// The name of a set and how many files it has, from the name of one of them without its extension.
pub fn split_stem(name: &str) -> Option<(&str, usize)> {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let (rest, count) = name.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    if is_number(number) && is_number(count) { Some((stem, count.parse().ok()?)) } else { None }
}

impl Split {
    /// Opens all files of the set that the file at `path` is one of. They are mapped, as [`read`] does it.
    ///
    /// # Errors
    /// A file is missing or damaged, or they do not belong together.
    pub fn open(path: &Path, count: usize) -> Result<Self, SplitError> {
        let wrong_name = || SplitError::Name { path: path.to_owned(), count };
        let mut paths = paths(path, count).ok_or_else(wrong_name)?;
        let first = Part::open(0, paths.next().ok_or_else(wrong_name)?, count)?;
        let others = paths.enumerate().map(|(i, path)| Part::open(i + 1, path, count)).collect::<Result<_, _>>()?;
        let set = Self { first, others };
        let found = set.parts().map(|part| part.header.tensors.len()).sum();
        let Part { path, header, .. } = &set.first;
        let expected = header.metadata.usize(TENSORS);
        match expected.map_err(|source| SplitError::Gguf { path: path.clone(), source })? {
            Some(expected) if expected != found => {
                Err(SplitError::Tensors { path: path.clone(), count, found, expected })
            }
            _ => Ok(set),
        }
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The files, in order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.parts().map(|part| part.path.as_path())
    }

    /// The keys and tensors of the set, to be written to one file. As [`Conversion::of_gguf`].
    pub fn conversion(&self) -> Conversion {
        let mut whole = Conversion::of_gguf(&self.first.header);
        whole.tensors.extend(self.others.iter().flat_map(|part| Conversion::of_gguf(&part.header).tensors));
        for key in [NUMBER, COUNT, TENSORS] {
            whole.metadata.remove(key);
        }
        whole
    }

    /// The header of the first file, which has the keys.
    pub fn header(&self) -> &Header {
        &self.first.header
    }

    /// A tensor, and the file it lies in.
    pub(super) fn tensor(&self, name: &str) -> Option<(&Bytes, &TensorInfo)> {
        self.parts().find_map(|part| Some((&part.bytes, part.header.tensor(name)?)))
    }
}

impl Part {
    /// Opens one file of a set, and makes sure that it is the one that its name says.
    fn open(number: usize, path: PathBuf, count: usize) -> Result<Self, SplitError> {
        let bytes = read(&path, Load::Map).map_err(|source| SplitError::File { count, source })?;
        let in_file = |source| SplitError::Gguf { path: path.clone(), source };
        let header = Header::parse(&bytes).map_err(in_file)?;
        for (key, expected) in [(COUNT, count), (NUMBER, number)] {
            let found = header.metadata.usize(key).map_err(in_file)?;
            if found != Some(expected) {
                return Err(SplitError::Part { path, key, found, expected });
            }
        }
        Ok(Self { path, bytes, header })
    }
}

/// The files of a set, in order; `None` if `path` is not named like one of them.
fn paths(path: &Path, count: usize) -> Option<impl Iterator<Item = PathBuf>> {
    let (name, extension) = (path.file_stem()?.to_str()?, path.extension()?.to_str()?);
    let (stem, named) = split_stem(name)?;
    // The name has five digits for it, so this is bounded.
    let (stem, extension) = (stem.to_owned(), extension.to_owned());
    let folder = path.to_owned();
    let file = move |number| folder.with_file_name(format!("{stem}-{number:05}-of-{count:05}.{extension}"));
    (named == count).then(|| (1..=count).map(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_files() {
        let named = |path: &str, count| paths(Path::new(path), count).map(Iterator::collect::<Vec<_>>);
        let expected = ["m/a-b-00001-of-00002.gguf", "m/a-b-00002-of-00002.gguf"].map(PathBuf::from);
        assert_eq!(named("m/a-b-00002-of-00002.gguf", 2), Some(expected.to_vec()));
        for other in ["a.gguf", "a-00001-of-00003.gguf", "a-0001-of-00002.gguf", "00001-of-00002.gguf", ""] {
            assert_eq!(named(other, 2), None, "{other}");
        }
        assert_eq!(named("a-00001-of-184467.gguf", 184_467), None);
    }
}
