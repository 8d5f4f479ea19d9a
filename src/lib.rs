//! An edge runtime for recurrent-depth (looped) language models.
pub mod arch;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
pub mod exit;
pub mod files;
mod float16;
pub mod generate;
pub mod gguf;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod random;
pub mod team;
pub mod text;
