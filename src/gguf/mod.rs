//! The GGUF container.

mod types;

pub use types::TensorType;
