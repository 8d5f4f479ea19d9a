//! `gate`: the model's own learned gate says that it is time.
//!
//! The gate gives a number after every step, and λ_k = sigmoid of it is the probability to leave after step k for a row that has not
//! left before: p_k = λ_k · (1 − λ_1) ⋯ (1 − λ_{k−1}), as in Ouro (arXiv 2510.25741). The statistic is the sum p_1 + … + p_k, the
//! probability to have left by now; the row leaves once it has *reached* the threshold, on `hits` checked steps in a row. It never
//! falls, so further hits are further steps. Steps that are not checked count in the sum.
//!
//! A threshold of 1 or more switches the rule off: a sum that rounding has brought to 1 is no certainty. There is no default
//! threshold: how often a gate speaks depends on its training.
//!
//! The reference computes all steps and picks the state of one afterwards, so that later tokens see the keys and values of all
//! steps. Here the steps after the exit are not computed, and later tokens see for them the last keys and values that there are. Up
//! to the first early exit of a sequence the two are the same; after it they differ. With random weights, whose steps have little
//! in common, the logits of later tokens moved by up to 0.6 of their standard deviation, and up to 5 of 16 exits moved
//! (`tests/families/ouro.rs`); on trained weights this has not been measured.

use super::{Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "gate",
    statistic: Statistic::Gate(|memory, logit| memory.step(logit)),
    threshold: Threshold::Needed,
    hits: 1,
    device: DeviceStatistic::Gate,
};

/// At this threshold and above, the rule never leaves.
pub(super) const OFF: f32 = 1.0;

/// What has become of a row's probability so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Survival {
    /// Π (1 − λ): not to have left.
    staying: f32,
    /// Σ p: to have left.
    left: f32,
}

impl Survival {
    pub(super) const fn new() -> Self {
        Self { staying: 1.0, left: 0.0 }
    }

    /// Takes a step's gate in; gives the probability to have left by now. A gate that is not a number makes this and all that
    /// follow none.
    fn step(&mut self, logit: f32) -> f32 {
        let lambda = 1.0 / (1.0 + libm::expf(-logit));
        self.left += lambda * self.staying;
        self.staying *= 1.0 - lambda;
        self.left
    }
}
