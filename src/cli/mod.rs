//! Flags that the programs share, defined once, and what their `main` functions have in common.
//!
//! Data goes to stdout, words to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage.

use crate::arch::{self, Load};
use crate::exit::{ExitRule, RulePolicy};
use crate::kernels::KvType;
use crate::model::{InitialState, Model, Session, SessionOptions};
use anyhow::{Context, bail};
use clap::Args;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Which model, and how it comes into memory.
#[derive(Args, Debug, Clone)]
pub struct ModelFlags {
    /// Model file (GGUF); rdt-quantize makes one from a published checkpoint
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub load: LoadFlags,
}

/// How a model comes into memory.
#[derive(Args, Debug, Clone, Copy, Default)]
pub struct LoadFlags {
    /// Read the model into memory instead of mapping it
    #[arg(long)]
    pub no_mmap: bool,
}

impl LoadFlags {
    /// The library's word for it.
    pub fn load(&self) -> Load {
        if self.no_mmap { Load::Read } else { Load::Map }
    }
}

impl ModelFlags {
    /// Opens the model.
    ///
    /// # Errors
    /// As [`arch::open`].
    pub fn open(&self) -> anyhow::Result<Arc<Model>> {
        Ok(Arc::new(arch::open(&self.model, self.load.load())?))
    }
}

/// How deep the loop goes, and where it starts.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Depth")]
pub struct DepthFlags {
    /// Loop steps at most (default: the exit rule's max, else the model's own)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<usize>,
    /// When a token leaves the loop: NAME[:THRESHOLD][,hits=N][,min=N][,max=N] with NAME one of
    /// acceleration, acceleration-raw, step-norm, kl, fixed
    #[arg(long, value_name = "RULE")]
    pub exit_rule: Option<ExitRule>,
    /// Initial latent state: zeros, noise (see --seed), or a safetensors file with a tensor 'init_state' [T,D]
    #[arg(long, value_name = "zeros|noise|FILE", default_value = "noise")]
    pub init: String,
    /// Seed of the initial state and of sampling
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl DepthFlags {
    /// The exit rule in force.
    pub fn rule(&self, default: ExitRule) -> ExitRule {
        self.exit_rule.unwrap_or(default)
    }

    /// The initial state that the flags name.
    ///
    /// # Errors
    /// The file cannot be read, or holds no `init_state` of this width.
    pub fn initial(&self, width: usize) -> anyhow::Result<InitialState> {
        Ok(match self.init.as_str() {
            "zeros" => InitialState::Zeros,
            "noise" => InitialState::Noise { seed: self.seed },
            path => InitialState::Given(read_states(path, width)?.into()),
        })
    }

    /// The deepest loop that can occur.
    pub fn depth_limit(&self, rule: &ExitRule, model: &Model) -> usize {
        RulePolicy::depth_limit(rule, self.steps, model.config())
    }
}

/// Reads `init_state` [T, D] from a safetensors file.
fn read_states(path: &str, width: usize) -> anyhow::Result<Vec<f32>> {
    let wrong = || format!("--init {path}: expected zeros, noise, or a safetensors file with a tensor 'init_state'");
    let bytes = std::fs::read(path).with_context(wrong)?;
    let file = safetensors::SafeTensors::deserialize(&bytes).with_context(wrong)?;
    let tensor = file.tensor("init_state").with_context(wrong)?;
    if tensor.dtype() != safetensors::Dtype::F32 || tensor.shape().len() != 2 || tensor.shape()[1] != width {
        bail!(
            "--init {path}: init_state is {:?} {:?}; this model needs F32 [T, {width}]",
            tensor.dtype(),
            tensor.shape()
        );
    }
    let states: Vec<f32> = tensor.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if !states.iter().all(|x| x.is_finite()) {
        bail!("--init {path}: init_state holds values that are not finite");
    }
    Ok(states)
}

/// Threads, context and KV cache.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Session")]
pub struct SessionFlags {
    /// Worker threads (default: performance cores)
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Positions in the KV cache (default: what the model was trained for, if it fits the memory budget)
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub ctx_size: Option<usize>,
    /// Tokens that go through the model together; results do not depend on it
    #[arg(short, long, value_name = "N", value_parser = positive, default_value_t = 64)]
    pub batch_size: usize,
    /// KV cache storage: f32, f16 or q8_0
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<KvType>,
    /// Loop steps that keep their own keys and values (default: all, if they fit the memory budget)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub kv_steps: Option<usize>,
    /// Memory that the KV cache may take, in MiB
    #[arg(long, value_name = "MiB", value_parser = positive, default_value_t = 2048)]
    pub kv_memory: usize,
}

impl SessionFlags {
    /// A session with these flags, for loops of up to `steps` steps.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(
        &self,
        model: &Arc<Model>,
        steps: usize,
        initial: InitialState,
        kv_type: KvType,
    ) -> anyhow::Result<Session> {
        let options = SessionOptions {
            threads: self.threads,
            context: self.ctx_size,
            kv_type: self.kv_type.unwrap_or(kv_type),
            kv_slots: self.kv_steps,
            steps: Some(steps),
            kv_budget: (self.kv_memory as u64).saturating_mul(1 << 20),
            sequences: 1,
            chunk_rows: self.batch_size,
            initial,
        };
        Ok(Session::new(Arc::clone(model), &options)?)
    }
}

/// A whole number from 1.
///
/// # Errors
/// Anything else, said in words.
pub fn positive(s: &str) -> Result<usize, String> {
    match s.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("expected a whole number from 1".into()),
    }
}

/// A number of bytes for people.
pub fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut x = n as f64 / 1024.0;
    let mut unit = 0;
    while x >= 1024.0 && unit + 1 < UNITS.len() {
        x /= 1024.0;
        unit += 1;
    }
    format!("{x:.1} {}", UNITS[unit])
}

/// Ends a program: an error becomes one line on stderr and exit code 1; a reader who has gone away (`| head`) is no error.
pub fn exit(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e)
            if e.chain()
                .any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)) =>
        {
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("{program}: {e:#}");
            ExitCode::FAILURE
        }
    }
}
