//! An edge runtime for recurrent-depth (looped) language models.
//!
//! Such a model applies one block of layers again and again to a latent state before it emits a token, so the amount of
//! thinking is a dial. This library converts published checkpoints to GGUF, maps the file, runs the loop with SIMD kernels and
//! lets an exit rule decide, token by token, how deep to go.
//!
//! # One token's way
//! *text* → [`text::Tokenizer`] → *ids* → [`model::Session`]: embedding → prelude (once) → \[inject → core blocks →
//! [`exit::ExitRule`]\]* → coda → *logits* → [`generate::Sampler`] → *id* → [`text::StreamDecoder`] → *text*.
//!
//! | room | knows |
//! |---|---|
//! | [`files`], [`gguf`], [`checkpoint`] | bytes: mapped and atomically written files, the container, what people download |
//! | [`quant`] | block formats, and recipes that choose one per tensor |
//! | [`kernels`], [`team`] | CPU arithmetic, and the threads that run one forward pass together |
//! | [`model`] | the looped forward pass: [`model::Model`] is immutable, [`model::Session`] is all that changes |
//! | [`arch`] | one file per model family |
//! | `gpu` | the same forward pass on a GPU (with the feature `gpu`) |
//! | [`exit`] | when a token leaves the loop |
//! | [`generate`], [`text`] | sampling and decoding; tokenizer and chat templates |
//! | `plot` | charts as SVG (with the feature `cli`) |
//! | [`calibrate`] | quality measured on text: perplexity, and what another file, depth or rule changes |
//! | [`sensors`] | what the machine tells of itself: caches, temperatures, clocks, power, energy |
//! | [`governor`] | a budget of time, energy and heat, turned into depth, threads and pace |
//!
//! A room uses only rooms above it in this table ([`random`] serves all).
//!
//! # Example
//! Load, prompt, stream, and stop whenever you like:
//! ```no_run
//! use rdt::{arch, exit::ExitRule, generate::{Engine, SamplerConfig}, model::{Session, SessionOptions}, text};
//! use std::{io::Write, path::Path, sync::Arc};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let model = Arc::new(arch::open(Path::new("model.gguf"), arch::Load::Map)?);
//!     let tokenizer = text::Tokenizer::from_gguf(model.metadata())?;
//!     let stops = text::stop_tokens(model.metadata(), &tokenizer)?;
//!
//!     let rule: ExitRule = "acceleration:0.05,hits=2,max=32".parse()?;
//!     let options = SessionOptions { steps: rule.max_steps(), ..SessionOptions::default() };
//!     let session = Session::new(Arc::clone(&model), &options)?;
//!     let mut engine = Engine::new(session, rule, None, SamplerConfig::greedy(), tokenizer.vocabulary())?;
//!     let cancel = engine.cancel_flag(); // set it from any thread to end the call in progress
//! #   let _ = cancel;
//!
//!     engine.prompt(&tokenizer.encode_prompt("Once upon a time")?)?;
//!     let mut decoder = text::StreamDecoder::new();
//!     while let Some(step) = engine.next_token()? {
//!         if stops.contains(&step.token) {
//!             break;
//!         }
//!         print!("{}", decoder.push(&tokenizer, step.token)?); // step.steps: how deep this token went
//!         std::io::stdout().flush()?;
//!     }
//!     Ok(())
//! }
//! ```
//! `examples/stream.rs` is the same with a chat template, on the model that ships with the repository.

pub mod arch;
pub mod calibrate;
pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod cli;
mod cores;
pub mod exit;
pub mod files;
mod float16;
pub mod generate;
pub mod gguf;
pub mod governor;
#[cfg(feature = "gpu")]
pub mod gpu;
mod hash;
mod isa;
pub mod kernels;
pub mod model;
#[cfg(feature = "cli")]
pub mod plot;
pub mod quant;
pub mod random;
pub mod sensors;
pub mod team;
pub mod text;
