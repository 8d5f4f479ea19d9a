//! How good a model is, measured on text: perplexity, and what another file, another depth or another exit rule changes.
//!
//! [`Windows`] cuts a text's tokens into pieces as llama.cpp does, [`evaluate`] runs a session over them and hands out the logits of
//! every scored position, and the accumulators of this room take them in: [`Perplexity`], [`Comparison`] with a base run, [`Depths`]
//! taken, [`Cosines`] of latent trajectories, and the [`Dynamics`] of these. A base run is stored in llama.cpp's own file layout
//! ([`BaseWriter`], [`BaseRun`]), or runs beside the other one ([`Evaluation`]) without being stored.
//!
//! All sums are in f64, in the order of the text, so that a result is the same digits whatever the threads and chunks; exp and log
//! are `libm`'s, as in [`crate::exit`].
//!
//! ```no_run
//! use rdt::{arch, calibrate::{self, Comparison, Perplexity, Reading, Windows}, model::{FixedDepth, Session, SessionOptions}};
//! use std::{path::Path, sync::Arc};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let text_tokens: Vec<u32> = Vec::new();
//! let windows = Windows::new(text_tokens, 512, None)?;
//! let options = SessionOptions { context: Some(512), steps: Some(8), ..SessionOptions::default() };
//!
//! // A base run that is held in memory, and another model compared with it.
//! let mut base = Vec::new();
//! let mut session = Session::new(Arc::new(arch::open(Path::new("f16.gguf"), arch::Load::Map)?), &options)?;
//! calibrate::evaluate(&mut session, FixedDepth(8), &windows, Reading::default(), &mut |row| {
//!     base.push(row.logits.to_vec());
//!     Ok(())
//! })?;
//!
//! let (mut comparison, mut base) = (Comparison::new(), base.iter());
//! let mut session = Session::new(Arc::new(arch::open(Path::new("q4.gguf"), arch::Load::Map)?), &options)?;
//! calibrate::evaluate(&mut session, FixedDepth(8), &windows, Reading::default(), &mut |row| {
//!     if let Some(base) = base.next() {
//!         comparison.add_logits(base, row.logits, row.target);
//!     }
//!     Ok(())
//! })?;
//! println!("KL {:.6}", comparison.summary().kl.value);
//! # Ok(())
//! # }
//! ```

mod ahead;
pub mod allocate;
mod base;
mod compare;
mod dynamics;
mod error;
mod evaluate;
mod findings;
mod identity;
mod importance;
mod plane;
mod profile;
#[cfg(feature = "cli")]
pub mod report;
mod score;
mod sensitivity;
pub mod sweep;
mod trajectory;
mod windows;

pub use base::{BaseRun, BaseWriter};
pub use compare::{Comparison, Quantiles, Summary};
pub use dynamics::{
    Band, Drift, Dynamics, DynamicsOptions, DynamicsRecorder, LoopDynamics, Path, Paths, SeedSpread, drift,
};
pub use error::Error;
pub use evaluate::{Evaluation, Reading, Scored, evaluate};
pub use findings::{Findings, Sample, SampleToken, Screened};
pub use importance::importance;
pub use plane::{Plane, principal_plane};
pub use profile::{BEARABLE, Cost, FORMAT, MachineId, ModelId, Point, Profile, TextId, Timing};
pub use score::{Depths, Estimate, Moments, Perplexity};
pub use sensitivity::{Candidate, Sensitivity, Step, Trial};
pub use trajectory::{Cosines, Recorder, StepCosine};
pub use windows::{Window, Windows};
