//! `rdt-quantize --auto`: types chosen by what errors do at the end of the loop.

use super::{Interrupted, Stop, TextFlags, positive};
use crate::arch::{self, Conversion, Input, Load, Target};
use crate::calibrate::allocate::{Limits, Offer, Wanting, allocate};
use crate::calibrate::{self, Reading, Sensitivity, Trial};
use crate::exit::ExitRule;
use crate::files::{AtomicFile, Bytes};
use crate::gguf::TensorType;
use crate::kernels::KvType;
use crate::model::{InitialState, SessionOptions};
use crate::quant::{Imatrix, Override, Recipe, Role};
use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// How `--auto` measures, and what it may spend.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Types by measurement")]
pub struct AutoFlags {
    /// Measure on a text (-f; 8 windows of it, or --chunks) what an error in each tensor does at the end of the loop, and give
    /// bits to those where they buy most
    #[arg(long, conflicts_with = "recipe", requires = "file")]
    pub auto: bool,
    /// Bits per weight, over all tensors, that --auto may spend (default: those of q4_k_m)
    #[arg(long, value_name = "BITS", value_parser = bits, requires = "auto", conflicts_with = "target_size")]
    pub target_bpw: Option<f64>,
    /// Size of the file that --auto may not exceed, such as 900M or 1.9G (powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "auto")]
    pub target_size: Option<u64>,
    /// Bits per weight that a token may move from memory, counting a weight as often as it is read (default: as many as are
    /// stored)
    #[arg(long, value_name = "BITS", value_parser = bits, requires = "auto")]
    pub target_moved: Option<f64>,
    /// Loop steps to measure with (default: the model's own)
    #[arg(long, value_name = "N", value_parser = positive, requires = "auto")]
    pub steps: Option<usize>,
    /// Tokens per window of the text
    #[arg(short, long, value_name = "N", value_parser = positive, default_value_t = 256, requires = "auto")]
    pub ctx_size: usize,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub text: TextFlags,
}

/// Windows of the text that are used where nobody says.
const WINDOWS: usize = 8;

fn bits(s: &str) -> Result<f64, String> {
    match s.parse() {
        Ok(x) if (1.0..=32.0).contains(&x) => Ok(x),
        _ => Err("expected bits per weight, from 1 to 32".into()),
    }
}

/// A number of bytes, with K, M or G for powers of 1024.
fn size(s: &str) -> Result<u64, String> {
    let wrong = || "expected a size in bytes, such as 900M or 1.9G".to_owned();
    let s = s.trim_end_matches(['B', 'b']).trim_end_matches('i');
    let (number, unit) = match s.char_indices().last().ok_or_else(wrong)? {
        (at, 'k' | 'K') => (&s[..at], 1u64 << 10),
        (at, 'm' | 'M') => (&s[..at], 1 << 20),
        (at, 'g' | 'G') => (&s[..at], 1 << 30),
        _ => (s, 1),
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit as f64;
    if bytes >= 1.0 && bytes < 2f64.powi(63) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// What was measured and decided.
#[derive(Debug, Serialize)]
pub struct Decided {
    /// Tensors, most sensitive first.
    pub tensors: Vec<DecidedTensor>,
    /// KL that is expected of the whole, in nats per token.
    pub expected_kl: f64,
    /// The same of the named recipes, with their bits per weight stored and moved.
    pub recipes: Vec<Expected>,
    /// Bits per weight that are moved per token, counting a weight as often as it is read.
    pub moved_bpw: f64,
}

/// What is expected of a recipe.
#[derive(Debug, Serialize)]
pub struct Expected {
    /// The recipe.
    pub recipe: String,
    /// Bits per weight of its file.
    pub bits_per_weight: f64,
    /// Bits per weight that a token moves.
    pub moved_bpw: f64,
    /// KL that is expected of it; absent where it uses types that were not measured.
    pub kl: Option<f64>,
}

/// One tensor of [`Decided`].
#[derive(Debug, Serialize)]
pub struct DecidedTensor {
    /// The tensor.
    pub tensor: String,
    /// The type it gets.
    #[serde(serialize_with = "as_name")]
    pub ty: TensorType,
    /// Reads per token.
    pub reads: f64,
    /// The coarsest type, in which it was tried.
    #[serde(serialize_with = "as_name")]
    pub probe: TensorType,
    /// KL of the read-out then.
    pub probe_kl: f64,
    /// Mean relative distance of the latent states then.
    pub probe_drift: f64,
    /// KL that is expected of the type it gets.
    pub expected_kl: f64,
}

fn as_name<S: serde::Serializer>(ty: &TensorType, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(ty.name())
}

/// Types that a matrix may be given.
fn types(role: Role, k: usize) -> Vec<TensorType> {
    use TensorType::{F16, IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};
    if role.is_small() || matches!(role, Role::PositionEmbedding | Role::Other) {
        return Vec::new();
    }
    let all = [IQ4_XS, Q4_K, IQ4_NL, Q4_0, Q4_1, Q5_K, Q5_0, Q5_1, Q6_K, Q8_0, F16];
    all.into_iter().filter(|ty| ty.row_bytes(k).is_some()).collect()
}

impl AutoFlags {
    /// Measures, decides, and gives what is to be made.
    ///
    /// # Errors
    /// The input is no model of a known family, or its text cannot be used; the limits are too tight; interrupted.
    pub fn decide(
        &self,
        conversion: &Conversion,
        input: &Input<'_>,
        given: Option<Arc<Imatrix>>,
        threads: Option<NonZeroUsize>,
        stop: &Stop,
        beside: &Path,
    ) -> anyhow::Result<(Target, Decided)> {
        let (bytes, _folder) = base(conversion, input, beside, stop)?;
        let model = Arc::new(arch::from_bytes(bytes.clone())?);
        let mut windows = self.text.windows("rdt-quantize", &model, self.ctx_size)?;
        if self.text.chunks.is_none() {
            windows = windows.first(WINDOWS);
        }
        let trial = Trial {
            bytes,
            windows: &windows,
            reading: Reading { prefix: self.text.prefix(&model, &windows), readout_exits: false },
            options: SessionOptions {
                threads,
                kv_type: KvType::F32,
                initial: InitialState::Noise { seed: 0 },
                ..SessionOptions::default()
            },
            rule: ExitRule::full_depth(),
            steps: self.steps,
        };
        drop(model);
        // Draws on stderr, and only if that is a terminal.
        let style = ProgressStyle::with_template("measuring {wide_msg} {bar:30} {pos}/{len} tensors, {eta} left")?;
        let bar = ProgressBar::new(0).with_style(style);
        let measured = trial.measure(&types, given, &mut |step| {
            bar.set_length(step.total as u64);
            bar.set_position(step.done as u64);
            bar.set_message(step.tensor.to_owned());
            !stop.asked()
        });
        bar.finish_and_clear();
        let (measured, importance) = measured.map_err(|e| match e {
            calibrate::Error::Stopped => anyhow::Error::from(Interrupted(e.to_string())),
            e => e.into(),
        })?;
        self.spend(conversion, measured, importance)
    }

    /// Gives out the bytes.
    fn spend(
        &self,
        conversion: &Conversion,
        measured: Vec<Sensitivity>,
        importance: Arc<Imatrix>,
    ) -> anyhow::Result<(Target, Decided)> {
        let target = |overrides| Target {
            overrides,
            importance: Some(Arc::clone(&importance)),
            ..Recipe::Pure(TensorType::F16).into()
        };
        let least = measured.iter().filter_map(|s| Some(Override::exactly(&s.tensor, s.candidates.first()?.ty)));
        let least = conversion.summary(&target(least.collect()))?;
        let smallest: u64 = measured.iter().filter_map(|s| Some(s.candidates.first()?.bytes)).sum();
        let values: u64 = measured.iter().map(|s| s.values).sum();
        // What is not chosen here: norms and the like, and what a file has besides tensors.
        let stored = match self.target_size {
            // Other types may need other padding behind a tensor, up to the 31 bytes that alignment can ask for.
            Some(size) => size.saturating_sub(least.file_bytes - smallest + 31 * measured.len() as u64),
            None => {
                let usual = conversion.summary(&Recipe::Q4_K_M.into())?.bits_per_weight();
                let all = self.target_bpw.unwrap_or(usual) * least.values as f64 / 8.0;
                (all as u64).saturating_sub(least.bytes_after - smallest)
            }
        };
        let reads: f64 = measured.iter().map(|s| s.reads * s.values as f64).sum();
        let moved_bpw = self.target_moved.unwrap_or(stored as f64 * 8.0 / values as f64);
        let limits = Limits { stored, moved: moved_bpw / 8.0 * reads };
        let wanting: Vec<Wanting> = measured
            .iter()
            .map(|s| Wanting {
                offers: s.candidates.iter().map(|c| Offer { bytes: c.bytes, loss: c.kl }).collect(),
                reads: s.reads,
            })
            .collect();
        let chosen = allocate(&wanting, limits).map_err(|e| {
            let bpw = least.bits_per_weight();
            anyhow::anyhow!("{e}: the smallest file has {bpw:.2} bits per weight, {} bytes", least.file_bytes)
        })?;

        let mut tensors = Vec::new();
        let (mut moved, mut expected_kl) = (0.0, 0.0);
        for (s, &choice) in measured.iter().zip(&chosen) {
            let c = s.candidates[choice];
            moved += s.reads * c.bytes as f64;
            expected_kl += c.kl;
            tensors.push(DecidedTensor {
                tensor: s.tensor.clone(),
                ty: c.ty,
                reads: s.reads,
                probe: s.candidates[0].ty,
                probe_kl: s.kl,
                probe_drift: s.drift,
                expected_kl: c.kl,
            });
        }
        let overrides = tensors.iter().map(|t| Override::exactly(&t.tensor, t.ty)).collect();
        tensors.sort_by(|a, b| b.probe_kl.total_cmp(&a.probe_kl));
        let recipes =
            [Recipe::Q4_0, Recipe::IQ4_NL, Recipe::Q4_K_S, Recipe::Q4_K_M, Recipe::Q5_K_M, Recipe::Q6_K, Recipe::Q8_0];
        let recipes = recipes
            .into_iter()
            .map(|recipe| expected(conversion, recipe, &measured, reads))
            .collect::<anyhow::Result<_>>()?;
        Ok((target(overrides), Decided { tensors, expected_kl, recipes, moved_bpw: moved * 8.0 / reads }))
    }
}

/// What is expected of a named recipe.
fn expected(conversion: &Conversion, recipe: Recipe, measured: &[Sensitivity], reads: f64) -> anyhow::Result<Expected> {
    let summary = conversion.summary(&recipe.into())?;
    let (mut kl, mut moved) = (Some(0.0), 0.0);
    for s in measured {
        let ty = summary.tensors.iter().find(|r| r.name == s.tensor).map(|r| r.ty);
        let candidate = s.candidates.iter().find(|c| Some(c.ty) == ty);
        kl = kl.zip(candidate).map(|(sum, c)| sum + c.kl);
        moved += s.reads * candidate.map_or(0.0, |c| c.bytes as f64);
    }
    Ok(Expected {
        recipe: recipe.name(),
        bits_per_weight: summary.bits_per_weight(),
        moved_bpw: moved * 8.0 / reads,
        kl,
    })
}

/// The model as it is, mapped: the input itself, or a GGUF of a checkpoint in a folder that is gone when it is dropped.
fn base(
    conversion: &Conversion,
    input: &Input<'_>,
    beside: &Path,
    stop: &Stop,
) -> anyhow::Result<(Bytes, Option<TempDir>)> {
    if let Input::Gguf(bytes, header) = input {
        let name = header.metadata.str("general.architecture").ok().flatten().unwrap_or_default();
        if !arch::families().iter().any(|f| f.name == name) {
            bail!("--auto runs the model, and the family '{}' is not known here", super::one_line(name));
        }
        return Ok(((*bytes).clone(), None));
    }
    let folder = beside.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = tempfile::tempdir_in(folder).context("no room for the model as it is, which --auto runs")?;
    let path = folder.path().join("published.gguf");
    let file = AtomicFile::create(&path)?;
    let (file, _) = conversion.write(input, Recipe::Published, file, &mut |_| !stop.asked())?;
    file.commit()?;
    Ok((arch::read(&path, Load::Map)?, Some(folder)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in
            [("5", 5), ("1k", 1024), ("1.5M", 3 << 19), ("2G", 2 << 30), ("2GiB", 2 << 30), ("7MB", 7 << 20)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "-1", "0", "1T", "x", "nan", "inf", "1e30"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert!(bits("4.5").is_ok() && bits("0").is_err() && bits("nan").is_err() && bits("x").is_err());
    }
}
