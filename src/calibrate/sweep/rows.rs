//! Scored positions of one setting, and the point that they make.

use super::super::compare::Comparison;
use super::super::score::{Estimate, Moments, Perplexity, negative_log_likelihood};
use super::super::{Error, Point, Reading, SeedSpread, Windows, evaluate};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::model::Session;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Scored positions in the order of the text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Rows {
    /// Negative log-likelihoods, in nats.
    pub(super) nll: Vec<f64>,
    /// KL(full depth ‖ this), in nats.
    pub(super) kl: Vec<f64>,
    /// Is the most likely token that of full depth?
    pub(super) same_top: Vec<bool>,
    /// Loop steps.
    pub(super) steps: Vec<u32>,
}

impl Rows {
    /// Takes in a position: full depth's logits, if it is to be compared, and this setting's, both `[V]`, and the token that follows.
    pub(super) fn add(&mut self, full: Option<&[f32]>, logits: &[f32], target: u32, steps: usize) {
        self.nll.push(negative_log_likelihood(logits, target));
        self.steps.push(u32::try_from(steps).unwrap_or(u32::MAX));
        if let Some(full) = full {
            let (kl, same_top) = Comparison::position(full, logits);
            self.kl.push(kl);
            self.same_top.push(same_top);
        }
    }

    /// Are these so many positions, compared with full depth or not?
    pub(super) fn fits(&self, count: usize, compared: bool) -> bool {
        let other = if compared { count } else { 0 };
        (self.nll.len(), self.steps.len(), self.kl.len(), self.same_top.len()) == (count, count, other, other)
    }

    /// Runs one window under a rule, against full depth's logits `[scored][V]`; empty: against nothing.
    pub(super) fn run(
        session: &mut Session,
        rule: ExitRule,
        window: &Windows,
        prefix: usize,
        full: &[f32],
    ) -> Result<Self, Error> {
        let config = session.model().config();
        let policy = RulePolicy::new(rule, None, config, session.chunk_rows())?;
        let mut full = full.chunks_exact(config.vocab);
        let mut rows = Self::default();
        let reading = Reading { prefix, readout_exits: rule.signal() == Signal::Readout };
        evaluate(session, policy, window, reading, &mut |row| {
            rows.add(full.next(), row.logits, row.target, row.steps);
            Ok(())
        })?;
        Ok(rows)
    }
}

/// What all windows together say of a setting.
pub(super) fn point(rule: ExitRule, windows: &[Rows]) -> Point {
    let (mut perplexity, mut kl, mut top) = (Perplexity::new(), Moments::default(), Moments::default());
    let (mut steps, mut sum, mut capped) = (BTreeMap::new(), 0u64, 0u64);
    let cap = rule.max_steps().unwrap_or(usize::MAX);
    for rows in windows {
        rows.nll.iter().for_each(|&x| perplexity.add_nll(x));
        rows.kl.iter().for_each(|&x| kl.add(x));
        rows.same_top.iter().for_each(|&same| top.add(f64::from(u8::from(same))));
        for &n in &rows.steps {
            *steps.entry(n as usize).or_insert(0u64) += 1;
            sum += u64::from(n);
            capped += u64::from(rule.signal() != Signal::None && n as usize >= cap);
        }
    }
    let count = perplexity.count() as f64;
    Point {
        rule,
        mean_steps: sum as f64 / count,
        steps,
        cross_entropy: perplexity.cross_entropy(),
        perplexity: perplexity.perplexity(),
        kl: kl.mean(),
        same_top: top.mean(),
        capped: capped as f64 / count,
        seed_variance: None,
        timing: None,
    }
}

/// The mean over positions of the variance over seeds, from each seed's numbers in the same order; `None` where one seed was run.
pub(super) fn spread(seeds: &[Vec<f64>]) -> Option<Estimate> {
    if seeds.len() < 2 {
        return None;
    }
    let mut spread = SeedSpread::new();
    seeds.iter().for_each(|seed| spread.add(seed.iter().copied()));
    Some(spread.variance())
}
