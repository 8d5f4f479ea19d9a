//! An edge runtime for recurrent-depth (looped) language models.

pub mod files;
pub mod gguf;
