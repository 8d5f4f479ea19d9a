//! From logits to token ids: the sampler chain, and decoding.

pub mod decode;
pub mod engine;
pub mod lanes;
pub mod parallel;
pub mod sampler;
pub mod wavefront;

pub use decode::{DecodeStats, Strategy};
pub use engine::{Engine, PromptStats, Step, Way};
pub use lanes::{Due, Lanes};
pub use parallel::{Event, Failed, Parallel};
pub use sampler::{Sampler, SamplerConfig};
pub use wavefront::{Wavefront, WavefrontConfig};
