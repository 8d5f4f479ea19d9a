//! An edge runtime for recurrent-depth (looped) language models.

mod float16;
pub mod gguf;
pub mod quant;
