//! What a calibration found, as a file: the quality, depth and cost of every setting that is worth having.
//!
//! A profile is JSON: beside the model as `NAME.calibration.json`, or inside its GGUF under [`KEY`](crate::gguf::CALIBRATION_KEY). Every [`Point`] was run
//! exactly as it says; nothing in a profile is estimated from another setting.

use super::Error;
use super::score::{Estimate, number};
use crate::exit::{ExitRule, Signal};
use crate::files::AtomicFile;
use crate::gguf::{CALIBRATION_KEY as KEY, Metadata};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The version of the format that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Settings that a profile can have, and loop steps that one can take: far more than a calibration measures.
const MOST_POINTS: usize = 4096;
const MOST_STEPS: usize = 4096;
/// A loss that is not missed, as a share: what is allowed where nobody says.
pub const BEARABLE: f64 = 0.01;
/// Losses below this are as good as none, on a scale that is logarithmic.
const LEAST_LOSS: f64 = 1e-4;
/// Bytes of a profile file that are read: far more than any has.
const LONGEST: u64 = 16 << 20;

/// What a calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program that made it.
    pub program: String,
    /// Which model.
    pub model: ModelId,
    /// Which machine; its times are of no use on another, its qualities are the same.
    pub machine: MachineId,
    /// What was measured, and how.
    pub text: TextId,
    /// The depth that the model was published with: [`Config::mean_steps`](crate::model::Config::mean_steps).
    pub published_steps: usize,
    /// The smallest depth from which on cross-entropy stays within 0.1 % of the deepest's and KL from it below 0.002 nats; KL and
    /// agreement of all points are against it.
    pub full_depth: usize,
    /// Fixed depths, ascending from 1: rules `fixed:N`.
    pub depths: Vec<Point>,
    /// Exit rules at the thresholds that were worth running exactly.
    pub rules: Vec<Point>,
    /// What a token costs on this machine.
    pub cost: Option<Cost>,
}

/// A model, as far as a profile needs to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// `general.name`.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// [`Model::fingerprint`](crate::model::Model::fingerprint), in hexadecimal.
    pub fingerprint: String,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// A machine, as far as times depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineId {
    /// Operating system and architecture.
    pub system: String,
    /// Processor, where it has a name.
    pub cpu: Option<String>,
    /// Instruction set tier of the kernels.
    pub isa: String,
    /// Worker threads.
    pub threads: usize,
}

/// The text, and how it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextId {
    /// Name of the file, or `built in`.
    pub name: String,
    /// A hash over its tokens.
    pub fingerprint: String,
    /// Whether special tokens that are written out in it were taken as such.
    pub special: bool,
    /// Tokens per window.
    pub context: usize,
    /// Windows.
    pub windows: usize,
    /// Positions that were scored.
    pub scored: u64,
    /// Tokens at the start of each window that see each other in both directions.
    pub prefix: usize,
    /// KV cache storage.
    pub kv_type: String,
    /// Loop steps that keep keys and values of their own.
    pub kv_steps: usize,
    /// Initial latent states: `zeros`, `noise` with `seed`, or a file's name.
    pub init: String,
    /// Seed of the initial states.
    pub seed: u64,
}

/// One setting, run exactly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The exit rule, its `max` included.
    pub rule: ExitRule,
    /// Mean loop steps of the scored positions.
    #[serde(deserialize_with = "number")]
    pub mean_steps: f64,
    /// Loop steps, and how many scored positions took so many.
    pub steps: BTreeMap<usize, u64>,
    /// Mean negative log-likelihood, in nats per token.
    pub cross_entropy: Estimate,
    /// exp of it.
    pub perplexity: Estimate,
    /// Mean KL(full depth ‖ this), in nats.
    pub kl: Estimate,
    /// Share of positions at which this and full depth find the same token most likely.
    pub same_top: Estimate,
    /// Share of scored positions that a rule ran to its cap; 0 for fixed depths.
    #[serde(deserialize_with = "number")]
    pub capped: f64,
    /// Variance of a scored token's log-likelihood over seeds of the initial state, in nats², mean over positions; `None` where one
    /// seed was run or the initial state is not random.
    #[serde(default)]
    pub seed_variance: Option<Estimate>,
    /// What it costs in generation, measured by running it.
    #[serde(default)]
    pub timing: Option<Timing>,
}

/// What generating a token cost at a setting: forward passes of single tokens behind a context, with the text's own tokens in place
/// of drawn ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Median over repetitions of the mean milliseconds per token.
    #[serde(deserialize_with = "number")]
    pub ms_per_token: f64,
    /// Mean loop steps of the tokens that were timed.
    #[serde(deserialize_with = "number")]
    pub mean_steps: f64,
    /// Joules per token, where the machine tells.
    #[serde(default)]
    pub joules_per_token: Option<f64>,
}

/// Time per token as base + steps × step, by least squares over the timed fixed depths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Milliseconds per token outside the loop.
    #[serde(deserialize_with = "number")]
    pub base_ms: f64,
    /// Milliseconds per loop step.
    #[serde(deserialize_with = "number")]
    pub step_ms: f64,
    /// Threads, and the speed with so many as a share of that with [`MachineId::threads`].
    pub threads: BTreeMap<usize, f64>,
}

impl Profile {
    /// Perplexity at the model's published number of steps, which losses are counted from; NaN if it was not measured.
    pub fn reference(&self) -> f64 {
        let published = self.depths.iter().find(|p| p.rule == ExitRule::fixed(self.published_steps));
        published.map_or(f64::NAN, |p| p.perplexity.value)
    }

    /// What a point loses in perplexity, as a share: the larger of two. One is on the text, over the
    /// [reference](Self::reference). The other is exp(KL) − 1, what it would lose on text that full depth itself had written.
    ///
    /// The text alone can deceive: where most of its tokens need no depth, the few that do hardly show in the mean, and a depth
    /// that fails them can even have the lower perplexity. That it says something else than full depth does shows in KL.
    pub fn loss(&self, point: &Point) -> f64 {
        self.loss_over(point, self.reference())
    }

    fn loss_over(&self, point: &Point, reference: f64) -> f64 {
        let (text, apart) = (point.perplexity.value / reference - 1.0, libm::expm1(point.kl.value));
        // What is not known is not small: `max` would pass a NaN over.
        if text.is_nan() || apart.is_nan() { f64::NAN } else { text.max(apart) }
    }

    /// The part of the loss that is on the text; negative where a point is better than the reference.
    pub fn text_loss(&self, point: &Point) -> f64 {
        point.perplexity.value / self.reference() - 1.0
    }

    /// What a point's token costs: milliseconds where it was timed, else what [`Cost`] makes of its steps; steps where there is no cost. A rule that was
    /// not timed and reads out at every step is taken to pay for all of a token's work outside the loop each time; without a
    /// cost, as much as a step.
    pub fn price(&self, point: &Point) -> f64 {
        let readouts = if point.rule.signal() == Signal::Readout { point.mean_steps } else { 0.0 };
        match (&point.timing, &self.cost) {
            (Some(timing), Some(_)) => timing.ms_per_token,
            (None, Some(cost)) => cost.base_ms * (1.0 + readouts) + cost.step_ms * point.mean_steps,
            // Without a cost, times of some cannot be set beside steps of others.
            (_, None) => point.mean_steps + readouts,
        }
    }

    /// All points.
    pub fn points(&self) -> impl Iterator<Item = &Point> {
        self.depths.iter().chain(&self.rules)
    }

    /// The Pareto front: points of which no other costs as little or less ([`price`](Self::price)) and loses less
    /// ([`loss`](Self::loss)); ascending in cost, so that each is better than those before it.
    pub fn front(&self) -> Vec<&Point> {
        let reference = self.reference();
        let keyed = self.points().map(|p| (self.price(p), self.loss_over(p, reference), p));
        let mut points: Vec<_> = keyed.filter(|(price, loss, _)| price.is_finite() && loss.is_finite()).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut best = f64::INFINITY;
        points.retain(|&(_, loss, _)| {
            let better = loss < best;
            best = best.min(loss);
            better
        });
        points.into_iter().map(|(.., point)| point).collect()
    }

    /// The cheapest point that loses at most `max_loss` (0.01 is one per cent); where none does, the one that loses least.
    pub fn cheapest(&self, max_loss: f64) -> Option<&Point> {
        let front = self.front();
        front.iter().find(|p| self.loss(p) <= max_loss).or(front.last()).copied()
    }

    /// A point along the front: 0 is the cheapest, 100 the best. Between, the nearest in the share of the way from the one's loss to
    /// the other's, in logarithms.
    pub fn quality(&self, percent: f64) -> Option<&Point> {
        let front = self.front();
        let level = |p: &Point| libm::log(self.loss(p).max(LEAST_LOSS));
        let (worst, best) = (level(front.first()?), level(front.last()?));
        let wanted = worst + (best - worst) * percent.clamp(0.0, 100.0) / 100.0;
        let distance = |p: &&Point| (level(p) - wanted).abs();
        // Of equals the last is the best.
        front.into_iter().rev().min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }

    /// A profile from JSON.
    ///
    /// # Errors
    /// [`Error::Profile`]: it is none, or of a newer format, or says what cannot be.
    pub fn parse(json: &str) -> Result<Self, Error> {
        let profile: Self = serde_json::from_str(json).map_err(|e| Error::Profile(e.to_string()))?;
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Profile(what));
        if self.format > FORMAT {
            return wrong(format!("format {} is newer than {FORMAT}, the newest that this program reads", self.format));
        }
        if self.published_steps == 0 || self.full_depth == 0 || self.depths.is_empty() {
            return wrong("it has no depths".into());
        }
        if self.text.windows == 0 || self.text.context == 0 {
            return wrong("it was measured on no text".into());
        }
        if self.depths.len() + self.rules.len() > MOST_POINTS {
            return wrong(format!("it has more than {MOST_POINTS} settings"));
        }
        let depth = |p: &Point| p.rule.max_steps().filter(|&n| p.rule == ExitRule::fixed(n));
        if !self.depths.is_sorted_by(|a, b| depth(a) < depth(b)) || self.depths.iter().any(|p| depth(p).is_none()) {
            return wrong("its depths are not fixed ones in order".into());
        }
        if let Some(p) = self.points().find(|p| p.rule.max_steps().is_none_or(|n| n > MOST_STEPS)) {
            return wrong(format!("{} has no cap, or one beyond {MOST_STEPS} steps", p.rule));
        }
        for p in self.points() {
            let sound =
                p.mean_steps.is_finite() && p.mean_steps > 0.0 && p.perplexity.value > 0.0 && !p.kl.value.is_nan();
            if !sound || p.timing.is_some_and(|t| t.ms_per_token.is_nan() || t.ms_per_token <= 0.0) {
                return wrong(format!("the numbers of {} make no sense", p.rule));
            }
        }
        match &self.cost {
            Some(c) if !(c.base_ms >= 0.0 && c.step_ms >= 0.0 && c.base_ms + c.step_ms > 0.0) => {
                wrong("its costs make no sense".into())
            }
            _ => Ok(()),
        }
    }

    /// As JSON, one key a line.
    ///
    /// # Errors
    /// [`Error::Profile`], which only numbers that JSON cannot write give.
    pub fn to_json(&self) -> Result<String, Error> {
        serde_json::to_string_pretty(self).map_err(|e| Error::Profile(e.to_string()))
    }

    /// Reads a profile file.
    ///
    /// # Errors
    /// The file cannot be read; as [`Profile::parse`]; each with the path.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let read = || {
            let size = std::fs::metadata(path)?.len();
            if size > LONGEST {
                return Err(Error::Profile(format!("{size} bytes are no profile")));
            }
            Self::parse(&std::fs::read_to_string(path)?)
        };
        read().map_err(|source| Error::InFile { path: path.to_owned(), source: Box::new(source) })
    }

    /// Writes a profile file: whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(self.to_json()?.as_bytes())?;
        file.write_all(b"\n")?;
        Ok(file.commit()?)
    }

    /// The profile inside a model file, if it has one.
    ///
    /// # Errors
    /// As [`Profile::parse`].
    pub fn embedded(metadata: &Metadata) -> Result<Option<Self>, Error> {
        let text = metadata.str(KEY).map_err(|e| Error::Profile(e.to_string()))?;
        if let Some(text) = text.filter(|text| text.len() as u64 > LONGEST) {
            return Err(Error::Profile(format!("{} bytes are no profile", text.len())));
        }
        text.map(Self::parse).transpose()
    }

    /// Where what belongs to a model's calibration lies: `model.gguf` → `model.calibration.json` for the ending `json`, and beside the
    /// folder of a checkpoint likewise.
    pub fn beside(model: &Path, ending: &str) -> PathBuf {
        let ending = format!("calibration.{ending}");
        match (model.is_dir(), model.file_name()) {
            (true, Some(name)) => model.with_file_name(format!("{}.{ending}", name.to_string_lossy())),
            _ => model.with_extension(ending),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(value: f64) -> Estimate {
        Estimate { value, error: f64::NAN }
    }

    fn point(rule: &str, mean_steps: f64, perplexity: f64, kl: f64) -> Point {
        Point {
            rule: rule.parse().unwrap(),
            mean_steps,
            steps: BTreeMap::from([(mean_steps as usize, 10)]),
            cross_entropy: estimate(perplexity.ln()),
            perplexity: estimate(perplexity),
            kl: estimate(kl),
            same_top: estimate(0.99),
            capped: 0.0,
            seed_variance: None,
            timing: None,
        }
    }

    fn profile() -> Profile {
        Profile {
            format: FORMAT,
            program: "0".into(),
            model: ModelId { name: "m".into(), architecture: "huginn".into(), fingerprint: "f".into(), bytes: 1 },
            machine: MachineId { system: "s".into(), cpu: None, isa: "scalar".into(), threads: 1 },
            text: TextId {
                name: "t".into(),
                fingerprint: "f".into(),
                special: false,
                context: 8,
                windows: 1,
                scored: 10,
                prefix: 0,
                kv_type: "f32".into(),
                kv_steps: 4,
                init: "noise".into(),
                seed: 0,
            },
            published_steps: 4,
            full_depth: 4,
            depths: vec![
                point("fixed:1", 1.0, 20.0, 0.7),
                point("fixed:2", 2.0, 10.5, 0.05),
                point("fixed:3", 3.0, 9.9, 0.02),
                point("fixed:4", 4.0, 10.0, 0.0),
            ],
            rules: vec![
                point("acceleration:0.1,hits=2,max=4", 1.5, 10.05, 0.008),
                point("kl:0.001,hits=1,max=4", 2.5, 10.4, 0.04),
            ],
            cost: None,
        }
    }

    fn names(points: &[&Point]) -> Vec<String> {
        points.iter().map(|p| p.rule.to_string()).collect()
    }

    #[test]
    fn the_front_has_no_point_that_another_beats() {
        let profile = profile();
        let accelerated = "acceleration:0.1,hits=2,max=4";
        assert_eq!(names(&profile.front()), ["fixed:1", accelerated, "fixed:4"]);
        // Text alone would call three steps better than four; KL tells them apart.
        assert!(profile.text_loss(&profile.depths[2]) < 0.0 && profile.loss(&profile.depths[2]) > 0.02);
        assert_eq!(profile.cheapest(0.01).unwrap().rule.to_string(), accelerated);
        assert_eq!(profile.cheapest(0.001).unwrap().rule.to_string(), "fixed:4");
        assert_eq!(profile.cheapest(-1.0).unwrap().rule.to_string(), "fixed:4", "else the best");
        assert_eq!(profile.cheapest(9.0).unwrap().rule.to_string(), "fixed:1");
        let at = |q| profile.quality(q).unwrap().rule.to_string();
        assert_eq!([at(0.0), at(50.0), at(100.0)], ["fixed:1", accelerated, "fixed:4"]);
    }

    /// Prices are times where there are any.
    #[test]
    fn prices_come_from_the_best_source_there_is() {
        let mut profile = profile();
        assert_eq!(profile.price(&profile.rules[0]), 1.5);
        profile.cost = Some(Cost { base_ms: 1.0, step_ms: 2.0, threads: BTreeMap::new() });
        assert_eq!(profile.price(&profile.rules[0]), 4.0);
        // A rule that pays for read-outs: more steps' worth of time than it saves.
        let timing = Timing { ms_per_token: 9.5, mean_steps: 1.5, joules_per_token: None };
        profile.rules[0].timing = Some(timing);
        assert_eq!(profile.price(&profile.rules[0]), 9.5);
        assert!(!names(&profile.front()).contains(&"acceleration:0.1,hits=2,max=4".to_owned()));
    }

    #[test]
    fn what_is_written_is_read_again_and_nonsense_is_refused() {
        let whole = profile();
        let json = whole.to_json().unwrap();
        let again = Profile::parse(&json).unwrap();
        assert_eq!(again.to_json().unwrap(), json);
        assert!(again.depths[0].perplexity.error.is_nan());
        let with = |change: &dyn Fn(&mut Profile)| {
            let mut profile = whole.clone();
            change(&mut profile);
            Profile::parse(&profile.to_json().unwrap())
        };
        assert!(with(&|p| p.format = FORMAT + 1).unwrap_err().to_string().contains("newer"));
        let nonsense: [&dyn Fn(&mut Profile); 13] = [
            &|p| p.depths[0].kl.value = f64::NAN,
            &|p| p.depths.swap(0, 1),
            &|p| p.depths[3] = point("kl,max=4", 4.0, 10.0, 0.0),
            &|p| p.rules[0].rule = "kl".parse().unwrap(),
            &|p| p.rules[0].rule = "fixed:999999999999".parse().unwrap(),
            &|p| p.text.windows = 0,
            &|p| p.published_steps = 0,
            &|p| p.depths.clear(),
            &|p| p.depths[0].mean_steps = f64::NAN,
            &|p| p.rules[0].perplexity.value = -1.0,
            &|p| p.cost = Some(Cost { base_ms: f64::NAN, step_ms: 1.0, threads: BTreeMap::new() }),
            &|p| p.cost = Some(Cost { base_ms: 0.0, step_ms: 0.0, threads: BTreeMap::new() }),
            &|p| p.rules[0].timing = Some(Timing { ms_per_token: 0.0, mean_steps: 1.0, joules_per_token: None }),
        ];
        for (i, change) in nonsense.iter().enumerate() {
            assert!(matches!(with(change), Err(Error::Profile(_))), "{i}");
        }
        for end in 0..json.len() {
            assert!(Profile::parse(&json[..end]).is_err(), "cut at {end}");
        }
        assert!(Profile::parse(&"[".repeat(1 << 20)).is_err());
    }
}
