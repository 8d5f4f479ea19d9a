//! Everything that a calibration has to tell: the profile that is kept, and what a report shows beside it.

use super::{Dynamics, Profile};
use crate::exit::ExitRule;
use serde::{Deserialize, Serialize};

/// What a report is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// What is kept.
    pub profile: Profile,
    /// Rules over their whole grid of thresholds, judged on trajectories of the deepest run.
    pub screened: Vec<Screened>,
    /// How latent states move.
    pub dynamics: Dynamics,
    /// A piece of the text, and how deep its tokens went.
    pub sample: Sample,
}

/// A rule judged on trajectories of the deepest run: where it would have left each, and how good the read-out was there. Later tokens
/// still see the keys and values of the deep run, so this is near what the rule does, and not what it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Screened {
    /// The rule.
    pub rule: ExitRule,
    /// Mean loop steps.
    pub mean_steps: f64,
    /// Mean negative log-likelihood, in nats per token.
    pub cross_entropy: f64,
    /// Mean KL(deepest depth ‖ this), in nats.
    pub kl: f64,
}

/// A piece of text under a rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The rule; `fixed` where there is no sample.
    pub rule: ExitRule,
    /// Its tokens in order.
    pub tokens: Vec<SampleToken>,
}

/// A token of a sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleToken {
    /// Its text; characters that are more than one token may be damaged (U+FFFD).
    pub text: String,
    /// Loop steps of the position that predicted it; 0 for the first.
    pub steps: usize,
    /// Its negative log-likelihood in nats; NaN for the first.
    #[serde(deserialize_with = "super::score::number")]
    pub nll: f64,
}
