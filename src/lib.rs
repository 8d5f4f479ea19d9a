//! An edge runtime for recurrent-depth (looped) language models.
pub mod gguf;
pub mod kernels;
pub mod team;
