//! Rules that differ in their threshold only.

use crate::calibrate::{Findings, Point, Screened};
use crate::exit::ExitRule;
use crate::plot::PALETTE;

/// Rules that differ in their threshold only, and how they look in every chart.
#[derive(Debug)]
pub(super) struct Family<'a> {
    key: (&'static str, usize, usize),
    pub(super) name: String,
    pub(super) style: usize,
    pub(super) exact: Vec<&'a Point>,
    pub(super) screened: Vec<&'a Screened>,
}

/// Names that always look the same, in the order of styles.
const USUAL: [&str; 5] = ["acceleration", "step-norm", "kl", "gate", "acceleration-raw"];

/// The families of all rules, in the order in which they were measured.
pub(super) fn families(findings: &Findings) -> Vec<Family<'_>> {
    let mut all: Vec<Family> = Vec::new();
    for point in &findings.profile.rules {
        of(&mut all, &point.rule).exact.push(point);
    }
    for screened in &findings.screened {
        of(&mut all, &screened.rule).screened.push(screened);
    }
    let keys: Vec<_> = all.iter().map(|f| f.key).collect();
    let mut used = Vec::new();
    for family in &mut all {
        let (name, hits, min) = family.key;
        // Only what sets two apart is said.
        let same: Vec<_> = keys.iter().filter(|k| k.0 == name).collect();
        family.name = name.into();
        if same.iter().any(|k| k.1 != hits) {
            family.name += &format!(", hits {hits}");
        }
        if same.iter().any(|k| k.2 != min) {
            family.name += &format!(", min {min}");
        }
        let usual = USUAL.iter().position(|n| *n == name).map(|i| i + 1).filter(|s| !used.contains(s));
        let free = (1..=PALETTE).rev().find(|s| !used.contains(s));
        family.style = usual.or(free).unwrap_or(used.len() + 1);
        used.push(family.style);
    }
    all
}

fn of<'v, 'a>(all: &'v mut Vec<Family<'a>>, rule: &ExitRule) -> &'v mut Family<'a> {
    let key = (rule.name(), rule.hits(), rule.min_steps());
    let at = all.iter().position(|f| f.key == key).unwrap_or(all.len());
    if at == all.len() {
        all.push(Family { key, name: String::new(), style: 0, exact: Vec::new(), screened: Vec::new() });
    }
    &mut all[at]
}
