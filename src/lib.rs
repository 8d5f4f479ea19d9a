//! An edge runtime for recurrent-depth (looped) language models.

pub mod checkpoint;
mod float16;
pub mod gguf;
pub mod quant;
