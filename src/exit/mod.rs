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
//! - otherwise checked: a statistic strictly below the threshold is a hit; any other, NaN included, ends
//!   the run of hits.
//!
//! A statistic that does not exist yet is NaN: accelerations exist from step 2, so two hits mean step 3 at
//! the earliest. The boundaries of `min` and the strict comparison are those of the public reference
//! implementation of Huginn, whose evaluators all use one hit. They are shown nothing before the first check
//! and so compare that state with the initial one; here Δ_k is always the latest step.
//!
//! # How a rule is written
//!
//! ```text
//! rule     = name [ ":" argument ] ( "," key "=" integer )*
//! argument = the threshold, a positive number; for `fixed` the number of steps
//! key      = hits | min | max, each at most once, in any order; none for `fixed`
//! ```
//!
//! | name | statistic | default |
//! |---|---|---|
//! | `acceleration` | ‖Δ_k − Δ_{k−1}‖ / ‖s_k‖ with Δ_k = s_k − s_{k−1} | `acceleration:0.05,hits=2` |
//! | `acceleration-raw` | ‖Δ_k − Δ_{k−1}‖ | no threshold, `hits=2` |
//! | `step-norm` | ‖Δ_k‖ / ‖s_k‖ | `step-norm:0.03,hits=1` |
//! | `kl` | KL(previous read-out ‖ this one), the first previous one uniform | `kl:0.001,hits=1` |
//! | `gate` | probability to have left by now, by the model's learned gate: must *reach* the threshold | no threshold, `hits=1` |
//! | `fixed` | none: the model's own number of steps, or `fixed:N` | `fixed` |
//!
//! [`Display`](std::fmt::Display) prints everything that decides, so that a recorded rule keeps its meaning
//! should a default change: name, threshold and hits always, then `min` unless it is 0 and `max` if there
//! is one. Parsing what was printed gives the same rule back.
//!
//! ```
//! use rdt::exit::ExitRule;
//!
//! let rule: ExitRule = "acceleration:0.03,max=32,min=4".parse()?;
//! assert_eq!(rule.to_string(), "acceleration:0.03,hits=2,min=4,max=32");
//! # Ok::<(), rdt::exit::Error>(())
//! ```

mod acceleration;
mod fixed;
mod gate;
mod grammar;
mod kl;
mod step_norm;

mod policy;

use crate::model::{Config, LatentStats};

pub use grammar::Error;
pub(crate) use kl::{divergence, log_sum_exp};
pub use policy::{NoGate, RulePolicy};

/// The rules there are, in the order in which messages list them. A new rule is a file and a line here.
static RULES: [&Rule; 6] =
    [&acceleration::NORMALISED, &acceleration::RAW, &step_norm::RULE, &kl::RULE, &gate::RULE, &fixed::RULE];

/// What sets one kind of rule apart from another; each file here defines one or two of them.
#[derive(Debug)]
struct Rule {
    /// As written by users.
    name: &'static str,
    statistic: Statistic,
    /// The threshold if none is written; `None` where there is no sensible default and one must be.
    threshold: Option<f32>,
    /// Checked steps in a row below the threshold, if not written.
    hits: usize,
}

/// How a rule comes by its number.
#[derive(Debug)]
enum Statistic {
    /// It has none.
    Nothing,
    Latent(fn(&LatentStats) -> f32),
    /// From a row's read-out, `[vocabulary]`, and the one before it, which the function replaces.
    Readout(fn(&mut kl::Previous, &[f32]) -> f32),
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
    /// Positive and finite; unused, and 0, if the rule has no statistic.
    threshold: f32,
    /// At least 1.
    hits: usize,
    /// Steps that are not checked.
    min: usize,
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
            Statistic::Readout(_) => Signal::Readout,
            Statistic::Gate(_) => Signal::Gate,
        }
    }

    /// The statistic must be strictly below this, or, if it is a gate's, reach it; `None` if the rule has no statistic.
    pub fn threshold(&self) -> Option<f32> {
        (self.signal() != Signal::None).then_some(self.threshold)
    }

    /// The number of checked steps in a row on which the statistic must pass the threshold, from 1.
    pub fn hits(&self) -> usize {
        self.hits
    }

    /// The number of steps at the start that are not checked.
    pub fn min_steps(&self) -> usize {
        self.min
    }

    /// The number of steps after which a row leaves in any case, from 1; `None` leaves that to the model.
    pub fn max_steps(&self) -> Option<usize> {
        self.max
    }

    /// Whether the rule looks at its statistic after `step` steps. Where it does not, a read-out rule needs
    /// no read-out either: below the cap the row goes on, at the cap it leaves.
    pub fn is_checked(&self, step: usize) -> bool {
        self.signal() != Signal::None && step > self.min && !self.is_capped(step)
    }

    /// What the rule remembers of one row, allocated once; `vocab` is the number of logits in a read-out
    /// (of no account unless the [signal](Self::signal) is [`Signal::Readout`]).
    pub fn memory(&self, vocab: usize) -> Memory {
        let logits = if self.signal() == Signal::Readout { vocab } else { 0 };
        Memory { run: 0, previous: kl::Previous::new(logits), survival: gate::Survival::new() }
    }

    /// Whether the row leaves the loop now, after the step that `stats` describes.
    ///
    /// To be called once per step, in order. A rule with another signal leaves only at its cap.
    pub fn check_latent(&self, memory: &mut Memory, stats: &LatentStats) -> bool {
        let hit = match self.rule.statistic {
            Statistic::Latent(_) if !self.is_checked(stats.step) => return self.is_capped(stats.step),
            Statistic::Latent(statistic) => statistic(stats) < self.threshold,
            Statistic::Gate(statistic) => {
                // The gate's earlier words count, whether or not they were checked.
                let left = statistic(&mut memory.survival, stats.gate);
                if !self.is_checked(stats.step) {
                    return self.is_capped(stats.step);
                }
                left >= self.threshold && self.threshold < gate::OFF
            }
            Statistic::Nothing | Statistic::Readout(_) => return self.is_capped(stats.step),
        };
        self.count(memory, hit)
    }

    /// Whether the row leaves the loop now, after `step` steps (from 1) and with the read-out `logits`,
    /// `[vocab]`.
    ///
    /// To be called once per step, in order; steps that are not [checked](Self::is_checked) may be left
    /// out, and their logits are not looked at. A rule with another signal leaves only at its cap. A NaN
    /// among the logits, in this read-out or the previous one, means go on.
    ///
    /// # Panics
    /// If a checked step brings another number of logits than [`memory`](Self::memory) was told.
    pub fn check_readout(&self, memory: &mut Memory, step: usize, logits: &[f32]) -> bool {
        let Statistic::Readout(statistic) = self.rule.statistic else {
            return self.is_capped(step);
        };
        if !self.is_checked(step) {
            return self.is_capped(step);
        }
        let hit = statistic(&mut memory.previous, logits) < self.threshold;
        self.count(memory, hit)
    }

    fn is_capped(&self, step: usize) -> bool {
        self.max.is_some_and(|max| step >= max)
    }

    /// Counts a checked step; true once the run of hits is long enough.
    fn count(&self, memory: &mut Memory, hit: bool) -> bool {
        // A NaN compares as false, is no hit and so ends the run.
        memory.run = if hit { memory.run.saturating_add(1) } else { 0 };
        memory.run >= self.hits
    }
}

/// What a rule remembers of one row between steps; made by [`ExitRule::memory`].
#[derive(Clone, Debug)]
pub struct Memory {
    /// Hits in a row so far.
    run: usize,
    previous: kl::Previous,
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
