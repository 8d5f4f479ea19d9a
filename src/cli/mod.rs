//! Flags that the programs share, defined once, and what their `main` functions have in common.
//!
//! Data goes to stdout, words to stderr. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "doc comments of flags are help texts, where brackets mean optional"
)]

mod auto;
pub mod bench;
pub mod built_in;
pub mod calibrate;
pub mod chat;
mod decode;
mod device;
pub mod eval;
mod governor;
mod parallel;
mod process;
mod profile;
mod reading;

pub use auto::{AutoFlags, Decided};
pub use decode::{DecodeFlags, acceptance_words, decode_json, decode_note, decode_words};
pub use device::{Cpu, DeviceChoice, DeviceFlags, OnDevice, Place, device_name, device_words, ran_on};
pub use governor::{Governor, GovernorFlags, Prepared, Usual};
pub use parallel::ParallelFlags;
pub use process::{Interrupted, exit, one_line, parse, run};
pub use profile::{ExitChoice, ProfileFlags};
pub use reading::{CONTEXT, Stop, TextFlags, bos};

use crate::arch::{self, Input, Load};
use crate::calibrate::Profile;
use crate::checkpoint::Checkpoint;
use crate::exit::{self, ExitRule, RulePolicy};
use crate::files::Bytes;
use crate::generate::SamplerConfig;
use crate::kernels::KvType;
use crate::model::{self, Config, InitialState, Model, Repack, Repacked, Session, SessionOptions, cache_folder};
use crate::quant::Recipe;
use crate::text;
use anyhow::{Context, bail};
use clap::Args;
use profile::NO_PROFILE;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which model, and how it comes into memory.
#[derive(Args, Debug, Clone)]
pub struct ModelFlags {
    /// Model file (GGUF), or the folder of a published checkpoint, which is then converted in memory as it is
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
    /// On the CPU, block-quantised weights interleaved for the kernels, faster and with the same results: auto keeps them in
    /// memory, off does without, cache keeps them in a file in the user's cache folder (or RDT_CACHE_DIR) that is mapped
    #[arg(long, value_name = "auto|off|cache", value_enum, default_value_t, hide_possible_values = true)]
    pub repack: RepackFlag,
}

/// Values of `--repack`.
#[derive(clap::ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepackFlag {
    /// [`Repack::Auto`].
    #[default]
    Auto,
    /// [`Repack::Off`].
    Off,
    /// [`Repack::Cache`].
    Cache,
}

/// Models from this size on are worth a line about how they came into memory.
const TELL_FROM: u64 = 16 << 20;

impl LoadFlags {
    /// The library's word for it.
    pub fn load(&self) -> Load {
        if self.no_mmap { Load::Read } else { Load::Map }
    }

    /// Opens a model file, or the folder of a checkpoint, to run on the CPU.
    ///
    /// # Errors
    /// As [`arch::open`], or as converting the checkpoint; no folder for caches.
    pub fn open(&self, path: &Path) -> anyhow::Result<Arc<Model>> {
        self.ready(self.contents(path)?.open()?)
    }

    /// As [`open`](Self::open), to run at a place; `threads` is what sessions will ask for, if they do.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(&self, path: &Path, place: &Place, threads: Option<NonZeroUsize>) -> anyhow::Result<Arc<Model>> {
        place.ready(*self, &self.contents(path)?, threads)
    }

    /// What a model file holds, or would if the checkpoint in a folder were converted to one.
    fn contents(&self, path: &Path) -> anyhow::Result<Contents> {
        match path.is_dir() {
            true => Ok(Contents { bytes: converted(path)?, path: None }),
            false => Ok(Contents { bytes: arch::read(path, self.load())?, path: Some(path.to_owned()) }),
        }
    }

    /// Makes a model ready for the CPU: interleaves its weights as the flags say, and tells what that costs, unless it is next to
    /// nothing.
    fn ready(&self, mut model: Model) -> anyhow::Result<Arc<Model>> {
        let repacked = self.interleave(&mut model)?;
        Self::tell(&model, &repacked);
        Ok(Arc::new(model))
    }

    fn interleave(&self, model: &mut Model) -> anyhow::Result<Repacked> {
        let how = match self.repack {
            RepackFlag::Auto => Repack::Auto,
            RepackFlag::Off => Repack::Off,
            RepackFlag::Cache => Repack::Cache(
                cache_folder().context("--repack cache: there is no cache folder; name one in RDT_CACHE_DIR")?,
            ),
        };
        Ok(model.repack(&how)?)
    }

    fn tell(model: &Model, done: &Repacked) {
        let large = model.tensor_bytes() >= TELL_FROM;
        match done {
            Repacked::InMemory { bytes, time } if large => {
                eprintln!("weights interleaved in memory: {} in {:.2} s", human_bytes(*bytes), time.as_secs_f64());
            }
            Repacked::InFile { path, bytes, time } if large || time.is_some() => {
                let time = time.map_or("as it was".into(), |t| format!("written in {:.2} s", t.as_secs_f64()));
                eprintln!("weights interleaved in {}: {}, {time}", path.display(), human_bytes(*bytes));
            }
            Repacked::No { reason: Some(reason) } if large => {
                eprintln!("weights multiplied as they are in the file, which is slower: {reason}");
            }
            _ => {}
        }
    }
}

/// What a model is opened from, as often as need be.
struct Contents {
    bytes: Bytes,
    /// Where they were read, for errors.
    path: Option<PathBuf>,
}

impl Contents {
    fn open(&self) -> Result<Model, model::Error> {
        arch::from_bytes(self.bytes.clone()).map_err(|source| match &self.path {
            Some(path) => model::Error::InFile { path: path.clone(), source: Box::new(source) },
            None => source,
        })
    }
}

impl ModelFlags {
    /// Opens the model.
    ///
    /// # Errors
    /// As [`arch::open`].
    pub fn open(&self) -> anyhow::Result<Arc<Model>> {
        self.load.open(&self.model)
    }
}

/// A model's tokenizer for `program`, which tells the user where it may differ from the model's own.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn tokenizer(program: &str, model: &Model) -> anyhow::Result<text::Tokenizer> {
    let tokenizer = text::Tokenizer::from_gguf(model.metadata())?;
    warn(program, tokenizer.warnings());
    Ok(tokenizer)
}

/// Puts warnings on stderr.
fn warn(program: &str, warnings: &[String]) {
    for warning in warnings {
        eprintln!("{program}: warning: {}", one_line(warning));
    }
}

/// A checkpoint converted in memory, every tensor in the type it was published in.
fn converted(folder: &Path) -> anyhow::Result<Bytes> {
    let checkpoint = Checkpoint::open(folder)?;
    let mut conversion = arch::conversion(&checkpoint)?;
    text::write_metadata(&checkpoint, conversion.vocabulary(), &mut conversion.metadata)?;
    let input = Input::Checkpoint(&checkpoint);
    let (bytes, _) = conversion.write(&input, Recipe::Published, Vec::new(), &mut |_| true)?;
    Ok(bytes.into())
}

/// How deep the loop goes, and where it starts.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Depth")]
pub struct DepthFlags {
    /// Loop steps at most (default: the exit rule's max, else the model's own)
    #[arg(long, value_name = "N", value_parser = positive)]
    pub steps: Option<usize>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub exits: ExitFlags,
}

/// When tokens leave the loop, and where it starts.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Depth")]
pub struct ExitFlags {
    /// When a token leaves the loop: NAME[:THRESHOLD][,hits=N][,min=N][,every=N][,max=N] with NAME one of
    /// acceleration, acceleration-step, acceleration-raw, step-norm, cosine, kl, min-p-kl, entropy, argmax,
    /// gate (of models that have learnt one), fixed; or auto, what the model's calibration recommends
    #[arg(long, visible_alias = "exit", value_name = "RULE")]
    pub exit_rule: Option<ExitChoice>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub profile: ProfileFlags,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub init: InitFlags,
}

/// Where latent states start.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Depth")]
pub struct InitFlags {
    /// Initial latent state: zeros, noise (see --seed), or a safetensors file with a tensor 'init_state' [T,D], D the
    /// width of the latent state
    #[arg(long, value_name = "zeros|noise|FILE", default_value = "noise")]
    pub init: String,
    /// Seed of the initial state and of sampling
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

impl InitFlags {
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
}

impl ExitFlags {
    /// The exit rule in force for a model: the one that is asked for, what its profile recommends where that is asked for, and else
    /// `default`. `path` is the model's file.
    ///
    /// # Errors
    /// As [`ProfileFlags::find`]; a recommendation is asked for, and there is no profile.
    pub fn rule(&self, model: &Model, path: Option<&Path>, default: ExitRule) -> anyhow::Result<ExitRule> {
        match self.exit_rule {
            Some(ExitChoice::Rule(rule)) => Ok(rule),
            None if !self.profile.is_given() => Ok(default),
            None | Some(ExitChoice::Auto) => {
                let profile = self.profile.find(model, path)?.context(NO_PROFILE)?;
                self.profile.recommended(&profile)
            }
        }
    }

    /// As [`rule`](Self::rule), but what a profile recommends is the default wherever there is one, save for models whose tokens
    /// [never leave early](exit::can_exit); the profile is given too.
    ///
    /// # Errors
    /// As [`rule`](Self::rule).
    pub fn recommended(
        &self,
        model: &Model,
        path: Option<&Path>,
        default: ExitRule,
    ) -> anyhow::Result<(ExitRule, Option<Profile>)> {
        let profile = self.profile.find(model, path)?;
        let rule = match (self.exit_rule, &profile) {
            (None, Some(_)) if !exit::can_exit(model.config()) => default,
            (None, Some(profile)) => self.profile.recommended(profile)?,
            _ => self.rule(model, path, default)?,
        };
        Ok((rule, profile))
    }

    /// The initial state that the flags name.
    ///
    /// # Errors
    /// As [`InitFlags::initial`].
    pub fn initial(&self, width: usize) -> anyhow::Result<InitialState> {
        self.init.initial(width)
    }
}

impl DepthFlags {
    /// The exit rule in force.
    ///
    /// # Errors
    /// As [`ExitFlags::rule`].
    pub fn rule(&self, model: &Model, path: Option<&Path>, default: ExitRule) -> anyhow::Result<ExitRule> {
        self.exits.rule(model, path, default)
    }

    /// The initial state that the flags name.
    ///
    /// # Errors
    /// As [`ExitFlags::initial`].
    pub fn initial(&self, width: usize) -> anyhow::Result<InitialState> {
        self.exits.initial(width)
    }

    /// The deepest loop that can occur.
    pub fn depth_limit(&self, rule: &ExitRule, model: &Model) -> usize {
        RulePolicy::depth_limit(rule, self.steps, model.config())
    }
}

/// What to tell a user who asks for more loop steps than the model was trained for. `sign` stands before the flags' names: two
/// dashes, or the slash of a command.
pub fn too_deep(sign: &str, rule: &ExitRule, steps: Option<usize>, config: &Config) -> Option<String> {
    let most = config.max_steps()?;
    let (what, asked) = match (steps, rule.max_steps()) {
        (Some(n), max) if max.is_none_or(|max| n <= max) => (format!("steps {n}"), n),
        (_, Some(max)) => (format!("exit-rule {rule}"), max),
        (_, None) => return None,
    };
    let plural = if most == 1 { "" } else { "s" };
    (asked > most).then(|| {
        format!("{sign}{what}: this model was trained for {most} step{plural} and breaks beyond; using {most}")
    })
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
    /// Worker threads (default: performance cores; fewer for a very small model)
    #[arg(short, long, value_name = "N", value_parser = positive_count)]
    pub threads: Option<NonZeroUsize>,
    /// Positions in the KV cache (default: what the model was trained for, if it fits the memory budget)
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub ctx_size: Option<usize>,
    /// Tokens that go through the model together; results do not depend on it (default: 64; all of a prompt for models that
    /// read prompts in both directions)
    #[arg(short, long, value_name = "N", value_parser = positive)]
    pub batch_size: Option<usize>,
    /// KV cache storage: f32, f16 or q8_0
    #[arg(long, value_name = "TYPE")]
    pub kv_type: Option<KvType>,
    /// Loop steps that keep their own keys and values (default: all, if they fit the memory budget); 'last' is 1: after
    /// a token's last step only that step's are left, the published policy for Ouro, at a quarter of the memory
    #[arg(long, value_name = "N", value_parser = kv_steps)]
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
        stay_on_fast_cores();
        Ok(Session::new(Arc::clone(model), &self.options(steps, initial, kv_type))?)
    }

    /// What these flags ask for, for loops of up to `steps` steps; `kv_type` is the program's default.
    pub fn options(&self, steps: usize, initial: InitialState, kv_type: KvType) -> SessionOptions {
        SessionOptions {
            threads: self.threads,
            context: self.ctx_size,
            kv_type: self.kv_type.unwrap_or(kv_type),
            kv_slots: self.kv_steps,
            steps: Some(steps),
            kv_budget: (self.kv_memory as u64).saturating_mul(1 << 20),
            sequences: 1,
            chunk_rows: self.batch_size,
            initial,
            on_device: true,
        }
    }
}

/// Keeps the main thread, which is one of the workers, where the others are: a library must not do that to its caller's thread, a
/// program may to its own.
pub(crate) fn stay_on_fast_cores() {
    crate::cores::keep_to_fast();
}

/// How the next token is chosen, under llama.cpp's names. The seed is [`DepthFlags`]'s.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Sampling")]
pub struct SamplerFlags {
    /// Temperature; 0 takes the most likely token every time, 0.8 is usual for models that are not tiny
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temp: f32,
    /// Keep only the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = SamplerConfig::default().top_k)]
    pub top_k: usize,
    /// Keep the most likely tokens whose probabilities add up to P; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().top_p)]
    pub top_p: f32,
    /// Keep tokens at least P times as likely as the most likely one; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = SamplerConfig::default().min_p)]
    pub min_p: f32,
    /// Penalty on tokens that have just occurred; 1 is off
    #[arg(long, value_name = "X", default_value_t = SamplerConfig::default().repeat_penalty)]
    pub repeat_penalty: f32,
    /// How many tokens back the penalty looks; 0 is off
    #[arg(long, value_name = "N", default_value_t = SamplerConfig::default().repeat_last_n)]
    pub repeat_last_n: usize,
}

impl SamplerFlags {
    /// The sampler's settings.
    ///
    /// # Errors
    /// A value out of range.
    pub fn config(&self, seed: u64) -> anyhow::Result<SamplerConfig> {
        let config = SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            seed,
        };
        config.validate()?;
        Ok(config)
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

/// As [`positive`], or `last` for the last step alone.
fn kv_steps(s: &str) -> Result<usize, String> {
    if s == "last" { Ok(1) } else { positive(s).map_err(|e| format!("{e}, or last")) }
}

/// As [`positive`], of a type that says so.
///
/// # Errors
/// As [`positive`].
pub fn positive_count(s: &str) -> Result<NonZeroUsize, String> {
    positive(s).and_then(|n| NonZeroUsize::new(n).ok_or_else(|| "must be at least 1".into()))
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
