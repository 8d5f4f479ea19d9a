//! The model that is built in, for those who name none.

use super::{Contents, LoadFlags, Place};
use crate::files::Bytes;
use crate::model::Model;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How the model that is built in is called where a file could be named.
pub(super) const NAME: &str = "built-in";

/// What the model says of itself to those who have named none.
pub(super) const GREETING: &str = "\
a small model, trained for this program; it knows nothing of the world, and can be asked things like
  Red leads to Blue. Blue leads to Green. Start at Red and take 2 steps. Where are you?
  What is 4 + 5 - 2?    Sort 7 2 4.    a = 4; x = a + 2; c = x - 1. What is c?    Hello!";

/// Bytes at an address that suits every tensor of a GGUF file.
#[repr(align(64))]
struct Aligned<T: ?Sized>(T);

/// What `rdt-quantize --type q4_k_m` makes of `models/huginn-nano`.
static MODEL: &Aligned<[u8]> = &Aligned(*include_bytes!("../../models/huginn-nano-q4_k_m.gguf"));
/// Questions that it was not trained on, with their answers, kinds and numbers of reasoning steps, as JSON lines.
pub(super) static QUESTIONS: &str = include_str!("../../models/huginn-nano/eval.jsonl");

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A GGUF file, or the folder of a checkpoint.
    File(PathBuf),
    /// The program itself.
    BuiltIn,
}

impl Source {
    /// The model that is named, or the one that is built in. A file called `built-in` goes first.
    pub fn choose(named: Option<&Path>) -> Self {
        match named {
            Some(path) if path.as_os_str() != NAME || path.exists() => Self::File(path.to_owned()),
            _ => Self::BuiltIn,
        }
    }

    /// Opens it, to run at a place; `threads` is what sessions will ask for, if they do.
    ///
    /// # Errors
    /// As [`LoadFlags::open_at`].
    pub fn open(&self, flags: LoadFlags, place: &Place, threads: Option<NonZeroUsize>) -> anyhow::Result<Arc<Model>> {
        match self {
            Self::File(path) => flags.open_at(path, place, threads),
            Self::BuiltIn => place.ready(flags, &Contents { bytes: Bytes::from_static(&MODEL.0), path: None }, threads),
        }
    }

    /// Its file, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::BuiltIn => None,
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::BuiltIn => f.write_str("built in"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_taken() {
        assert_eq!(Source::choose(None), Source::BuiltIn);
        assert_eq!(Source::choose(Some(Path::new(NAME))), Source::BuiltIn);
        assert_eq!(Source::choose(Some(Path::new("a.gguf"))), Source::File("a.gguf".into()));
    }

    #[test]
    fn what_is_built_in_belongs_together() {
        let model = Source::choose(Some(Path::new(NAME))).open(LoadFlags::default(), &Place::Cpu, None).unwrap();
        assert_eq!(model.config().name, "huginn-nano");
        assert!(MODEL.0.len() <= 3_000_000, "{}", MODEL.0.len());
        assert_eq!(QUESTIONS.lines().next().map(|line| line.starts_with("{\"question\": ")), Some(true));
    }
}
