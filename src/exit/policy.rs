//! An exit rule at work: one memory per row of a chunk.

use super::{ExitRule, Memory, Signal};
use crate::model::{Config, Depth, DepthPolicy, DeviceRule, LatentStats, Row, Verdict};

/// Decides every row's depth by an [`ExitRule`].
#[derive(Debug, Clone)]
pub struct RulePolicy {
    rule: ExitRule,
    /// Per looped segment.
    max_steps: Vec<usize>,
    /// Per row of a chunk; of a read-out rule, whose memories are large, per sequence, as far as it has been asked about one: only the
    /// oldest row of a sequence asks.
    memories: Vec<Memory>,
    /// Per memory of a read-out rule: the row that asked last.
    asking: Vec<Option<usize>>,
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
        let rows = if rule.signal() == Signal::Readout { 1 } else { chunk_rows };
        let memories = vec![rule.memory(config.vocab); rows];
        let max_steps = config.loops.iter().map(|depth| Self::limit(&rule, steps, depth)).collect();
        Ok(Self { max_steps, rule, memories, asking: vec![None] })
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

    fn begin(&mut self, index: usize, row: &Row, _: usize, _: &[f32], _: &[f32]) {
        if self.rule.signal() == Signal::Readout {
            // The place that a row asked from may have another now.
            self.asking.get_mut(row.sequence).and_then(|asking| asking.take_if(|place| *place == index));
        } else if let Some(memory) = self.memories.get_mut(index) {
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

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        if self.rule.signal() != Signal::Readout {
            return self.rule.check_readout(&mut self.memories[index], stats.step, logits);
        }
        while self.memories.len() <= row.sequence {
            self.memories.push(self.rule.memory(logits.len()));
            self.asking.push(None);
        }
        let memory = &mut self.memories[row.sequence];
        if self.asking[row.sequence].replace(index) != Some(index) {
            memory.reset();
        }
        self.rule.check_readout(memory, stats.step, logits)
    }

    fn device_rule(&self) -> Option<DeviceRule> {
        Some(self.rule.on_device())
    }
}
