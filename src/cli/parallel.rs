//! Several sequences at a time.

use super::positive;
use crate::generate::Lanes;
use crate::model::{Model, Session, SessionOptions};
use clap::{Args, CommandFactory};
use std::ffi::OsString;
use std::sync::Arc;

/// The flag of llama.cpp that stands for `--parallel`; clap knows no short flags of two letters.
const SHORT: &str = "-np";

/// How many sequences share the model's passes.
#[derive(Args, Debug, Clone, Copy)]
#[command(next_help_heading = "Session")]
pub struct ParallelFlags {
    /// Sequences that go through the model together (also -np), as many as -b and the KV cache's memory have room for; results do not
    /// depend on it. One at a time on a GPU, under --decode, and for models with several loops or prompts that are read in both directions
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 8)]
    pub parallel: usize,
}

impl ParallelFlags {
    /// A session for these flags, of up to `most` sequences.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(self, model: &Arc<Model>, mut options: SessionOptions, most: usize) -> anyhow::Result<Session> {
        options.sequences = self.parallel.min(most).max(1);
        Ok(Lanes::session(model, &options)?)
    }
}

/// A program's arguments, with llama.cpp's `-np` in clap's words where the program has that flag.
pub(super) fn arguments<T: CommandFactory>(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let known = T::command().get_arguments().any(|arg| arg.get_long() == Some("parallel"));
    given.map(|arg| if known && arg == SHORT { "--parallel".into() } else { arg }).collect()
}
