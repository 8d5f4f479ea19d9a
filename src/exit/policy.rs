//! An exit rule at work: one memory per row of a chunk.

use super::{ExitRule, Memory, Signal};
use crate::model::{Config, Depth, DepthPolicy, DeviceRule, LatentStats, Row, Verdict};

/// Decides every row's depth by an [`ExitRule`].
#[derive(Debug, Clone)]
pub struct RulePolicy {
    rule: ExitRule,
    /// Per looped segment.
    max_steps: Vec<usize>,
    /// Per row of a chunk; a read-out rule acts on rows that run alone, and what it remembers is large: one will do.
    memories: Vec<Memory>,
}

/// The rule needs a gate that the model does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("exit rule '{rule}' needs a learned exit gate, which {architecture} models do not have")]
pub struct NoGate {
    rule: String,
    architecture: String,
}

impl RulePolicy {
    /// A policy for chunks of up to `chunk_rows` rows. The depth is capped by the rule's own `max`, by `steps` if given, and
    /// otherwise by the model's mean; the same in every looped segment, each of which a row leaves on its own.
    ///
    /// # Errors
    /// The rule needs a gate that the model does not have.
    pub fn new(rule: ExitRule, steps: Option<usize>, config: &Config, chunk_rows: usize) -> Result<Self, NoGate> {
        if rule.signal() == Signal::Gate && !config.exit_gate {
            return Err(NoGate { rule: rule.to_string(), architecture: config.architecture.clone() });
        }
        // Read-out rules act on rows that run alone, and what they remember of one is as large as the vocabulary.
        let rows = if rule.signal() == Signal::Readout { 1 } else { chunk_rows };
        let memories = vec![rule.memory(config.vocab); rows];
        let max_steps = config.loops.iter().map(|depth| Self::limit(&rule, steps, depth)).collect();
        Ok(Self { max_steps, rule, memories })
    }

    /// The deepest of a model's loops under a rule: the rule's own `max` and `steps` where given (the smaller, if both are), else
    /// the model's mean; never deeper than the model supports.
    pub fn depth_limit(rule: &ExitRule, steps: Option<usize>, config: &Config) -> usize {
        config.loops.iter().map(|depth| Self::limit(rule, steps, depth)).max().unwrap_or(1)
    }

    /// The most loop steps that a token takes under a rule: [`depth_limit`](Self::depth_limit) of each loop, all together.
    pub fn total_limit(rule: &ExitRule, steps: Option<usize>, config: &Config) -> usize {
        config.loops.iter().fold(0, |sum: usize, depth| sum.saturating_add(Self::limit(rule, steps, depth))).max(1)
    }

    fn limit(rule: &ExitRule, steps: Option<usize>, depth: &Depth) -> usize {
        let asked = match (rule.max_steps(), steps) {
            (Some(a), Some(b)) => a.min(b),
            (Some(n), None) | (None, Some(n)) => n,
            (None, None) => depth.mean_steps,
        };
        depth.max_steps.map_or(asked, |most| asked.min(most))
    }

    /// The rule.
    pub fn rule(&self) -> &ExitRule {
        &self.rule
    }
}

impl DepthPolicy for RulePolicy {
    fn max_steps(&self, segment: usize) -> usize {
        self.max_steps[segment]
    }

    fn begin(&mut self, index: usize, _: &Row, _: usize, _: &[f32], _: &[f32]) {
        if let Some(memory) = self.memories.get_mut(index) {
            memory.reset();
        }
    }

    fn after_step(&mut self, index: usize, _: &Row, stats: &LatentStats, _: &[f32]) -> Verdict {
        match self.rule.signal() {
            Signal::Readout if self.rule.is_checked(stats.step) => Verdict::ReadOut,
            Signal::Latent | Signal::Gate if self.rule.check_latent(&mut self.memories[index], stats) => Verdict::Leave,
            _ => Verdict::Stay,
        }
    }

    fn after_readout(&mut self, index: usize, _: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        self.rule.check_readout(&mut self.memories[index], stats.step, logits)
    }

    fn device_rule(&self) -> Option<DeviceRule> {
        Some(self.rule.on_device())
    }
}
