//! From logits to token ids.

pub mod sampler;

pub use sampler::{Sampler, SamplerConfig};
