//! `fixed`: no early exit. `fixed:N` is N steps, plain `fixed` the model's own number.

use super::{ExitRule, Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "fixed",
    statistic: Statistic::Nothing,
    threshold: Threshold::None(0.0),
    hits: 1,
    device: DeviceStatistic::Nothing,
};

/// Plain `fixed`.
pub(super) const fn full_depth() -> ExitRule {
    ExitRule { rule: &RULE, threshold: 0.0, hits: 1, min: 0, every: 1, max: None }
}
