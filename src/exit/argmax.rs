//! `argmax`: the most likely token has stayed the same.
//!
//! A hit is a checked step whose most likely token is that of the checked step before it; five in a row let a row
//! leave, as in the criterion `argmax-stability` of Huginn's public reference implementation. There is no threshold:
//! `argmax,hits=3` asks for three. Of equally likely tokens the first counts.

use super::readout::{Previous, top};
use super::{Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "argmax",
    statistic: Statistic::Readout { measure: changed, whole: false },
    threshold: Threshold::None(0.5),
    hits: 5,
    device: DeviceStatistic::Argmax,
};

/// 0 if the most likely token is the one before, 1 if it is another; NaN if there is none.
fn changed(previous: &mut Previous, logits: &[f32]) -> f32 {
    let top = top(logits);
    let changed = match (previous.top, top) {
        (_, None) => f32::NAN,
        (Some(a), Some(b)) if a == b => 0.0,
        _ => 1.0,
    };
    previous.top = top;
    changed
}
