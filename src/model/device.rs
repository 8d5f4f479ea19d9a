//! The seam between a session and a device that runs the looped forward pass in its place: a GPU.
//!
//! A session drives a device with whole chunks of rows. Everything between the embedding of a row and its logits happens
//! there, exits included; what comes back is how deep every row went, and the logits that were asked for. The session keeps
//! what a device cannot be trusted to keep: the tokens, and the depth of each. Should the device fail, it runs them again
//! on the CPU, to the same depths, and goes on.

use super::{Error, InitialState, KvShape, Model, Row};
use crate::kernels::KvType;
use std::fmt;
use std::ops::Range;

/// A device that holds a model's weights. See [`Model::place_on`].
pub trait Device: Send + Sync + fmt::Debug {
    /// What people call it.
    fn name(&self) -> &str;

    /// Bytes of keys, or of values, of one block that it can hold together, as [`KvType::row_bytes`] counts them. A KV cache is made
    /// no larger than that allows.
    fn most_kv(&self, ty: KvType, head_dim: usize) -> u64;

    /// Sets up what a session needs on the device: KV cache and scratch.
    ///
    /// # Errors
    /// What the device lacks, in words: memory, mostly.
    fn session(&self, model: &Model, shape: &KvShape) -> Result<Box<dyn DeviceSession>, String>;
}

/// What a session has on a device.
pub trait DeviceSession: Send {
    /// Rows that it can run together; a session makes its chunks no larger, but for prompts that are read in both directions.
    fn most_rows(&self, model: &Model) -> usize {
        let _ = model;
        usize::MAX
    }

    /// One chunk of rows through the model.
    ///
    /// # Errors
    /// [`DeviceError::Model`]: what the model computed is no number; the device is well. [`DeviceError::Failed`]: it is not, and what
    /// this session holds there is lost.
    fn pass(&mut self, pass: &DevicePass<'_>, out: &mut DeviceOutput) -> Result<(), DeviceError>;
}

/// A chunk of rows for a device.
pub struct DevicePass<'a> {
    /// The model whose weights it holds.
    pub model: &'a Model,
    /// The rows; positions of a sequence ascend by one.
    pub rows: &'a [Row],
    /// Per row: how many positions of its sequence it sees, from the first on.
    pub sees: &'a [usize],
    /// Where latent states begin.
    pub initial: &'a InitialState,
    /// Chunk rows whose logits are wanted, ascending.
    pub wanted: &'a [usize],
    /// When a row leaves a loop.
    pub rule: DeviceRule,
    /// Steps after which every row leaves, per loop.
    pub max_steps: &'a [usize],
    /// May a rule on the read-out act? Only where the chunk is one row.
    pub readout_exits: bool,
}

/// What a pass on a device gives.
#[derive(Debug, Default)]
pub struct DeviceOutput {
    /// `[loops][rows]`: steps done.
    pub steps: Vec<u32>,
    /// `[rows wanted][V]`.
    pub logits: Vec<f32>,
}

/// Why a pass on a device gave nothing.
#[derive(Debug)]
pub enum DeviceError {
    /// As on any processor.
    Model(Error),
    /// The device, in words.
    Failed(String),
}

/// An exit rule that a device can decide by itself; what its parts mean is said in [`crate::exit`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceRule {
    /// What is compared with the threshold.
    pub statistic: DeviceStatistic,
    /// A statistic strictly below it is a hit; a gate's must reach it.
    pub threshold: f32,
    /// Checked steps in a row, at least 1.
    pub hits: usize,
    /// Steps at the start that are not checked.
    pub min: usize,
    /// Of the steps from the first check on, every which one is checked, at least 1.
    pub every: usize,
    /// Steps from which on none is checked.
    pub max: Option<usize>,
}

impl DeviceRule {
    /// No exit before the last step.
    pub const FIXED: Self =
        Self { statistic: DeviceStatistic::Nothing, threshold: 0.0, hits: 1, min: 0, every: 1, max: None };

    /// Is the statistic looked at after `step` steps?
    pub fn is_checked(&self, step: usize) -> bool {
        let due = step > self.min && (step - self.min - 1).is_multiple_of(self.every);
        self.statistic != DeviceStatistic::Nothing && due && self.max.is_none_or(|max| step < max)
    }
}

/// The statistics of exit rules, by what they are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceStatistic {
    /// None: the depth is fixed.
    Nothing,
    /// ‖Δ_k − Δ_{k−1}‖ / ‖s_k‖.
    Acceleration,
    /// ‖Δ_k − Δ_{k−1}‖.
    AccelerationRaw,
    /// ‖Δ_k − Δ_{k−1}‖ / (‖Δ_k‖ + ‖Δ_{k−1}‖).
    AccelerationByStep,
    /// ‖Δ_k‖ / ‖s_k‖.
    StepNorm,
    /// 1 − cos(s_k, s_{k−1}).
    Cosine,
    /// The probability to have left by now, by the learned gate.
    Gate,
    /// KL of the previous read-out from this one.
    Kl,
    /// The same with levelled tails.
    MinPKl,
    /// Change of the read-out's entropy.
    Entropy,
    /// 0 if the most likely token is the one before, else 1.
    Argmax,
}

impl DeviceStatistic {
    /// Is it made of the read-out?
    pub fn of_readout(self) -> bool {
        matches!(self, Self::Kl | Self::MinPKl | Self::Entropy | Self::Argmax)
    }
}

/// Every position at the depth it once had, on its way to the same cache.
pub(super) struct Recorded<'a> {
    /// `[positions][loops]`, from the position `first` on.
    pub depths: &'a [u32],
    pub loops: usize,
    pub first: usize,
}

impl Recorded<'_> {
    fn depth(&self, position: usize, segment: usize) -> usize {
        self.depths.get((position - self.first) * self.loops + segment).map_or(1, |&n| n as usize)
    }
}

impl super::DepthPolicy for Recorded<'_> {
    fn max_steps(&self, segment: usize) -> usize {
        self.depths.iter().skip(segment).step_by(self.loops).copied().max().unwrap_or(1).max(1) as usize
    }

    fn begin(&mut self, _: usize, _: &Row, _: usize, _: &[f32], _: &[f32]) {}

    fn after_step(&mut self, _: usize, row: &Row, stats: &super::LatentStats, _: &[f32]) -> super::Verdict {
        match stats.step >= self.depth(row.position, stats.segment) {
            true => super::Verdict::Leave,
            false => super::Verdict::Stay,
        }
    }
}

/// The chunks in which `0..held` positions are run again: at most `most` rows, and those that see each other both ways together.
pub(super) fn chunks(held: usize, both_ways: &[Range<usize>], most: usize) -> Vec<Range<usize>> {
    let (mut chunks, mut at) = (Vec::new(), 0);
    while at < held {
        let next = both_ways.iter().find(|r| r.end > at);
        let end = match next {
            Some(range) if range.start <= at => range.end,
            Some(range) => range.start.min(at + most),
            None => held.min(at + most),
        };
        chunks.push(at..end.min(held));
        at = end;
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_what_sees_each_other_together() {
        assert!(chunks(0, &[], 4).is_empty());
        assert_eq!(chunks(9, &[], 4), [0..4, 4..8, 8..9]);
        assert_eq!(chunks(12, &[0..6, 7..9], 4), [0..6, 6..7, 7..9, 9..12]);
        assert_eq!(chunks(5, &[0..2, 2..5], 4), [0..2, 2..5]);
    }

    #[test]
    fn checks_are_those_of_the_rules() {
        for text in ["acceleration:0.1", "kl:0.1,min=3", "cosine:0.1,min=1,every=3,max=9", "fixed:4", "argmax,every=2"]
        {
            let rule: crate::exit::ExitRule = text.parse().unwrap();
            let device = rule.on_device();
            for step in 1..20 {
                assert_eq!(device.is_checked(step), rule.is_checked(step), "{text}, step {step}");
            }
        }
    }
}
