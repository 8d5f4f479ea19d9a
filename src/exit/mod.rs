//! Exit rules: when does a row leave the loop?
//!
//! A rule sees numbers, never models. After every loop step the engine hands it either what became of the
//! row's latent state ([`LatentStats`]) or the row's read-out, and the rule says go on or leave. Which of
//! the two a rule needs is its [`Signal`]; a latent rule costs nothing beyond the norms, a read-out rule
//! pays for coda and head at every check.
//!
//! # How a rule decides
//!
//! Every rule reduces what it sees to one number, its *statistic*, and leaves once the statistic has been
//! below the threshold on `hits` checked steps in a row. In detail, for the step k = 1, 2, …:
//!
//! - `k >= max`: leave, whatever the statistic. The cap is the only thing that NaN does not stop.
//! - `k <= min`: not checked. Nothing is counted and nothing is forgotten, so the first check comes after
//!   step `min + 1` and, with `hits = h`, the first exit that the rule itself decides after step `min + h`.
//! - with `every = n`, only each n-th step from the first check on is checked: steps `min + 1`, `min + 1 + n`, and so on.
//! - otherwise checked: a statistic strictly below the threshold is a hit; any other, NaN included, ends
//!   the run of hits.
//!
//! A statistic that does not exist yet is NaN: accelerations exist from step 2, so two hits mean step 3 at
//! the earliest. The boundaries of `min` and the strict comparison are those of the public reference
//! implementation of Huginn, whose evaluators all use one hit. They are shown nothing between checks
//! and so compare a state with the one that was checked last; here Δ_k is always the latest step. Read-outs are compared with
//! the one checked last here, too.
//!
//! # How a rule is written
//!
//! ```text
//! rule     = name [ ":" argument ] ( "," key "=" integer )*
//! argument = the threshold, a positive number; for `fixed` the number of steps
//! key      = hits | min | every | max, each at most once, in any order; none for `fixed`
//! ```
//!
//! | name | statistic | default |
//! |---|---|---|
//! | `acceleration` | ‖Δ_k − Δ_{k−1}‖ / ‖s_k‖ with Δ_k = s_k − s_{k−1} | `acceleration:0.05,hits=2` |
//! | `acceleration-raw` | ‖Δ_k − Δ_{k−1}‖ | no threshold, `hits=2` |
//! | `acceleration-step` | ‖Δ_k − Δ_{k−1}‖ / (‖Δ_k‖ + ‖Δ_{k−1}‖) | no threshold, `hits=2` |
//! | `step-norm` | ‖Δ_k‖ / ‖s_k‖ | `step-norm:0.03,hits=1` |
//! | `cosine` | 1 − cos(s_k, s_{k−1}) | `cosine:0.001,hits=1` |
//! | `kl` | KL(previous read-out ‖ this one), the first previous one uniform | `kl:0.001,hits=1` |
//! | `min-p-kl` | the same between read-outs whose tail is levelled | `min-p-kl:0.00001,hits=1` |
//! | `entropy` | change of the read-out's entropy | `entropy:0.001,hits=1` |
//! | `argmax` | none: a hit is the same most likely token as before | `argmax,hits=5` |
//! | `gate` | probability to have left by now, by the model's learned gate: must *reach* the threshold | no threshold, `hits=1` |
//! | `fixed` | none: the model's own number of steps, or `fixed:N` | `fixed` |
//!
//! [`Display`](std::fmt::Display) prints everything that decides, so that a recorded rule keeps its meaning
//! should a default change: name, threshold and hits always, then `min` unless it is 0, `every` unless it is 1 and `max` if
//! there is one. Parsing what was printed gives the same rule back.
//!
//! ```
//! use rdt::exit::ExitRule;
//!
//! let rule: ExitRule = "acceleration:0.03,max=32,min=4".parse()?;
//! assert_eq!(rule.to_string(), "acceleration:0.03,hits=2,min=4,max=32");
//! # Ok::<(), rdt::exit::Error>(())
//! ```

mod acceleration;
mod argmax;
mod cosine;
mod entropy;
mod fixed;
mod gate;
mod grammar;
mod kl;
mod min_p_kl;
mod readout;
mod step_norm;

mod policy;

use crate::model::{Config, DeviceRule, DeviceStatistic, LatentStats};
use readout::Previous;

pub use grammar::Error;
pub use policy::{NoGate, RulePolicy};
pub(crate) use readout::{divergence, log_sum_exp, top};

/// The rules there are, in the order in which messages list them. A new rule is a file and a line here.
static RULES: [&Rule; 11] = [
    &acceleration::NORMALISED,
    &acceleration::BY_STEP,
    &acceleration::RAW,
    &step_norm::RULE,
    &cosine::RULE,
    &kl::RULE,
    &min_p_kl::RULE,
    &entropy::RULE,
    &argmax::RULE,
    &gate::RULE,
    &fixed::RULE,
];

/// What sets one kind of rule apart from another; each file here defines one or two of them.
#[derive(Debug)]
struct Rule {
    /// As written by users.
    name: &'static str,
    statistic: Statistic,
    threshold: Threshold,
    /// Checked steps in a row below the threshold, if not written.
    hits: usize,
    /// The statistic, for a device that computes it itself.
    device: DeviceStatistic,
}

/// What a rule compares its statistic with.
#[derive(Clone, Copy, Debug)]
enum Threshold {
    /// This, unless another is written.
    Usual(f32),
    /// There is no sensible default: one must be written.
    Needed,
    /// None is ever written; this is what the statistic is compared with.
    None(f32),
}

/// How a rule comes by its number.
#[derive(Debug)]
enum Statistic {
    /// It has none.
    Nothing,
    Latent(fn(&LatentStats) -> f32),
    /// From a row's read-out, `[vocabulary]`, and what is remembered of the one before it, which the function replaces.
    Readout {
        measure: fn(&mut Previous, &[f32]) -> f32,
        /// Is the whole read-out before this one needed?
        whole: bool,
    },
    /// From the logit of the model's exit gate and what the gate said before. It has to reach the threshold, not to fall below it.
    Gate(fn(&mut gate::Survival, f32) -> f32),
}

/// What a rule needs to see after each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Nothing: the depth is known beforehand ([`ExitRule::max_steps`], else the model's own).
    None,
    /// How the latent state moved: [`ExitRule::check_latent`].
    Latent,
    /// The logits that coda and head make of the state: [`ExitRule::check_readout`].
    Readout,
    /// The logit of a gate that the model has learnt: [`ExitRule::check_latent`].
    Gate,
}

/// A rule with its settings: when a row leaves the loop. See the [module](self) for the exact meaning.
///
/// The default is `fixed`, which never leaves early.
#[derive(Clone, Copy, Debug)]
pub struct ExitRule {
    rule: &'static Rule,
    /// Positive and finite; 0 if the rule has no statistic.
    threshold: f32,
    /// At least 1.
    hits: usize,
    /// Steps that are not checked.
    min: usize,
    /// From one check to the next, at least 1.
    every: usize,
    /// The cap, at least 1 and above `min`.
    max: Option<usize>,
}

impl Default for ExitRule {
    fn default() -> Self {
        fixed::full_depth()
    }
}

impl PartialEq for ExitRule {
    fn eq(&self, other: &Self) -> bool {
        // A name stands for one rule.
        self.rule.name == other.rule.name
            && self.threshold == other.threshold
            && self.hits == other.hits
            && self.min == other.min
            && self.every == other.every
            && self.max == other.max
    }
}

impl ExitRule {
    /// The rule for a model if nobody asks for one: `acceleration`, but `fixed` for a model that was trained at one depth only,
    /// whose state does not come to rest before it. There, rules that watch the state fire too late to save anything, or too
    /// early; Nanbeige, for one, answers no question of GSM8K after one of its two passes.
    pub fn for_model(config: &Config) -> Self {
        match config.loops.iter().all(|l| l.max_steps == Some(l.mean_steps)) {
            true => fixed::full_depth(),
            false => acceleration::settled(),
        }
    }

    /// `acceleration` with its usual threshold and hits.
    pub fn usual() -> Self {
        acceleration::settled()
    }

    /// Every token to the end of the loop.
    pub fn full_depth() -> Self {
        fixed::full_depth()
    }

    /// The rule's name, without its settings.
    pub fn name(&self) -> &'static str {
        self.rule.name
    }

    /// What the rule needs to see.
    pub fn signal(&self) -> Signal {
        match self.rule.statistic {
            Statistic::Nothing => Signal::None,
            Statistic::Latent(_) => Signal::Latent,
            Statistic::Readout { .. } => Signal::Readout,
            Statistic::Gate(_) => Signal::Gate,
        }
    }

    /// The statistic must be strictly below this, or, if it is a gate's, reach it; `None` if the rule is written without.
    pub fn threshold(&self) -> Option<f32> {
        (!matches!(self.rule.threshold, Threshold::None(_))).then_some(self.threshold)
    }

    /// The same rule at another threshold; unchanged if it has none.
    ///
    /// # Errors
    /// [`Error::BadThreshold`]: it is not positive and finite.
    pub fn with_threshold(self, threshold: f32) -> Result<Self, Error> {
        if !(threshold.is_finite() && threshold > 0.0) {
            return Err(Error::BadThreshold { rule: self.rule.name, found: threshold.to_string() });
        }
        Ok(if self.threshold().is_some() { Self { threshold, ..self } } else { self })
    }

    /// The same rule with this cap, at least 1; `min` gives way.
    pub fn with_max(self, max: usize) -> Self {
        let max = max.max(1);
        Self { max: Some(max), min: self.min.min(max - 1), ..self }
    }

    /// The same rule with this many hits, at least 1; unchanged if it has no statistic.
    pub fn with_hits(self, hits: usize) -> Self {
        if self.signal() == Signal::None { self } else { Self { hits: hits.max(1), ..self } }
    }

    /// One rule of every kind that a model can follow, but `fixed`; thresholds that need to be written are 1. None for a model whose
    /// tokens [cannot leave early](can_exit).
    pub fn kinds(config: &Config) -> Vec<Self> {
        if !can_exit(config) {
            return Vec::new();
        }
        let rule = |&rule: &&'static Rule| {
            let threshold = match rule.threshold {
                Threshold::Usual(x) | Threshold::None(x) => x,
                Threshold::Needed => 1.0,
            };
            Self { rule, threshold, hits: rule.hits, min: 0, every: 1, max: None }
        };
        let follows = |rule: &Self| match rule.signal() {
            Signal::None => false,
            Signal::Gate => config.exit_gate,
            Signal::Latent | Signal::Readout => true,
        };
        RULES.iter().map(rule).filter(follows).collect()
    }

    /// Has the rule a threshold that is used if none is written?
    pub fn has_usual_threshold(&self) -> bool {
        matches!(self.rule.threshold, Threshold::Usual(_))
    }

    /// `fixed:N`, of at least 1 step.
    pub fn fixed(steps: usize) -> Self {
        fixed::full_depth().with_max(steps)
    }

    /// The number of checked steps in a row on which the statistic must pass the threshold, from 1.
    pub fn hits(&self) -> usize {
        self.hits
    }

    /// The number of steps at the start that are not checked.
    pub fn min_steps(&self) -> usize {
        self.min
    }

    /// Of the steps from the first check on, every which one is checked, from 1.
    pub fn every(&self) -> usize {
        self.every
    }

    /// The number of steps after which a row leaves in any case, from 1; `None` leaves that to the model.
    pub fn max_steps(&self) -> Option<usize> {
        self.max
    }

    /// Whether the rule looks at its statistic after `step` steps. Where it does not, a read-out rule needs
    /// no read-out either: below the cap the row goes on, at the cap it leaves.
    pub fn is_checked(&self, step: usize) -> bool {
        let due = step > self.min && (step - self.min - 1).is_multiple_of(self.every);
        self.signal() != Signal::None && due && !self.is_capped(step)
    }

    /// The rule for a device that decides by itself.
    pub fn on_device(&self) -> DeviceRule {
        // Where a gate is switched off, nothing ever passes.
        let off = matches!(self.rule.statistic, Statistic::Gate(_)) && self.threshold >= gate::OFF;
        let statistic = if off { DeviceStatistic::Nothing } else { self.rule.device };
        let threshold = if let Threshold::None(x) = self.rule.threshold { x } else { self.threshold };
        DeviceRule { statistic, threshold, hits: self.hits, min: self.min, every: self.every, max: self.max }
    }

    /// What the rule remembers of one row, allocated once; `vocab` is the number of logits in a read-out
    /// (of no account unless the [signal](Self::signal) is [`Signal::Readout`]).
    pub fn memory(&self, vocab: usize) -> Memory {
        let whole = matches!(self.rule.statistic, Statistic::Readout { whole: true, .. });
        let logits = if whole { vocab } else { 0 };
        Memory { run: 0, previous: Previous::new(logits), survival: gate::Survival::new() }
    }

    /// The statistic after the step that `stats` describes, for rules on latent states and gates; NaN for others. To be called
    /// once per step, in order, instead of [`check_latent`](Self::check_latent), by those who want the number itself.
    pub fn measure_latent(&self, memory: &mut Memory, stats: &LatentStats) -> f32 {
        match self.rule.statistic {
            Statistic::Latent(statistic) => statistic(stats),
            Statistic::Gate(statistic) => statistic(&mut memory.survival, stats.gate),
            Statistic::Nothing | Statistic::Readout { .. } => f32::NAN,
        }
    }

    /// As [`measure_latent`](Self::measure_latent), of a read-out `[vocab]`, for rules on these.
    ///
    /// # Panics
    /// If the rule compares whole read-outs and this one has another number of logits than [`memory`](Self::memory) was told.
    pub fn measure_readout(&self, memory: &mut Memory, logits: &[f32]) -> f32 {
        match self.rule.statistic {
            Statistic::Readout { measure, .. } => measure(&mut memory.previous, logits),
            Statistic::Nothing | Statistic::Latent(_) | Statistic::Gate(_) => f32::NAN,
        }
    }

    /// Whether the row leaves the loop now, after `step` steps (from 1), at a statistic that was measured: what the other checks
    /// do with theirs.
    pub fn check_value(&self, memory: &mut Memory, step: usize, statistic: f32) -> bool {
        if !self.is_checked(step) {
            return self.is_capped(step);
        }
        let hit = match self.rule.statistic {
            Statistic::Gate(_) => statistic >= self.threshold && self.threshold < gate::OFF,
            _ => statistic < self.threshold,
        };
        // A NaN compares as false, is no hit and so ends the run.
        memory.run = if hit { memory.run.saturating_add(1) } else { 0 };
        memory.run >= self.hits
    }

    /// Whether the row leaves the loop now, after the step that `stats` describes.
    ///
    /// To be called once per step, in order. A rule with another signal leaves only at its cap.
    pub fn check_latent(&self, memory: &mut Memory, stats: &LatentStats) -> bool {
        match self.signal() {
            Signal::None | Signal::Readout => self.is_capped(stats.step),
            // A gate's earlier words count, whether or not they were checked.
            Signal::Latent | Signal::Gate => {
                let statistic = self.measure_latent(memory, stats);
                self.check_value(memory, stats.step, statistic)
            }
        }
    }

    /// Whether the row leaves the loop now, after `step` steps (from 1) and with the read-out `logits`,
    /// `[vocab]`.
    ///
    /// To be called once per step, in order; steps that are not [checked](Self::is_checked) may be left
    /// out, and their logits are not looked at. A rule with another signal leaves only at its cap. A NaN
    /// among the logits, in this read-out or the previous one, means go on.
    ///
    /// # Panics
    /// As [`measure_readout`](Self::measure_readout), at a checked step.
    pub fn check_readout(&self, memory: &mut Memory, step: usize, logits: &[f32]) -> bool {
        if self.signal() != Signal::Readout || !self.is_checked(step) {
            return self.is_capped(step);
        }
        let statistic = self.measure_readout(memory, logits);
        self.check_value(memory, step, statistic)
    }

    fn is_capped(&self, step: usize) -> bool {
        self.max.is_some_and(|max| step >= max)
    }
}

/// Can tokens of this model leave its loop early at all? HRM-Text and Nanbeige were trained at one depth, and have no gate to say
/// when less would do.
pub fn can_exit(config: &Config) -> bool {
    config.exit_gate || config.loops.iter().any(|l| l.max_steps != Some(l.mean_steps))
}

/// What a rule remembers of one row between steps; made by [`ExitRule::memory`].
#[derive(Clone, Debug)]
pub struct Memory {
    /// Hits in a row so far.
    run: usize,
    previous: Previous,
    survival: gate::Survival,
}

impl Memory {
    /// Forgets everything, for the next row. Does not allocate.
    pub fn reset(&mut self) {
        self.run = 0;
        self.previous.reset();
        self.survival = gate::Survival::new();
    }
}

#[cfg(test)]
mod tests;
