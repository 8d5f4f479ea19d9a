//! From logits to token ids: the sampler chain, and decoding.

pub mod engine;
pub mod sampler;

pub use engine::{Engine, PromptStats, Step, Way};
pub use sampler::{Sampler, SamplerConfig};
