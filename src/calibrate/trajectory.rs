//! Latent states on their way through the loop, kept for a few positions at a time.

use super::score::{Estimate, Moments};
use crate::model::{Config, DepthPolicy, DeviceRule, LatentStats, Row, Verdict};
use serde::Serialize;
use std::ops::Range;

/// Keeps the latent states of some positions while another policy decides their depth.
#[derive(Debug, Clone)]
pub struct Recorder<P> {
    policy: P,
    width: usize,
    rows: Range<usize>,
    segments: Vec<Trajectories>,
}

/// What happens in one looped segment.
#[derive(Debug, Clone, Default)]
struct Trajectories {
    /// `[steps][rows][S]`
    latents: Vec<Vec<f32>>,
    /// `[rows]`: steps done.
    taken: Vec<usize>,
}

impl<P: DepthPolicy> Recorder<P> {
    /// A recorder for models of this kind, which keeps nothing until it is [told](Self::expect) what.
    pub fn new(policy: P, config: &Config) -> Self {
        let segments = vec![Trajectories::default(); config.loops.len()];
        Self { policy, width: config.state_width, rows: 0..0, segments }
    }

    /// Forgets what it holds, and keeps the states of these positions from now on.
    pub fn expect(&mut self, rows: Range<usize>) {
        for segment in &mut self.segments {
            segment.taken.clear();
            segment.taken.resize(rows.len(), 0);
        }
        self.rows = rows;
    }

    /// Looped segments of the model.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Steps that position number `row` of those kept did in a looped segment.
    ///
    /// # Panics
    /// If there is no such segment or position.
    pub fn steps(&self, segment: usize, row: usize) -> usize {
        self.segments[segment].taken[row]
    }

    /// What decides.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The latent states `[rows][S]` of all positions that are kept, after `step` steps (from 1) of a looped segment; `None` if none
    /// was so deep.
    pub fn states(&self, segment: usize, step: usize) -> Option<&[f32]> {
        self.segments.get(segment)?.latents.get(step.checked_sub(1)?).map(Vec::as_slice)
    }

    /// The latent state `[S]` of position number `row` of those kept, after `step` steps (from 1) of a looped segment; `None` if it
    /// was not so deep.
    pub fn latent(&self, segment: usize, row: usize, step: usize) -> Option<&[f32]> {
        let kept = self.segments.get(segment)?;
        let step = step.checked_sub(1)?;
        (step < *kept.taken.get(row)?).then(|| &kept.latents[step][row * self.width..(row + 1) * self.width])
    }
}

impl<P: DepthPolicy> DepthPolicy for Recorder<P> {
    fn max_steps(&self, segment: usize) -> usize {
        self.policy.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]) {
        self.policy.begin(index, row, segment, input, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        if self.rows.contains(&row.position) {
            let (at, size) = (row.position - self.rows.start, self.rows.len() * self.width);
            let segment = &mut self.segments[stats.segment];
            if segment.latents.len() < stats.step {
                segment.latents.resize(stats.step, Vec::new());
            }
            let latents = &mut segment.latents[stats.step - 1];
            if latents.len() < size {
                latents.resize(size, 0.0);
            }
            latents[at * self.width..(at + 1) * self.width].copy_from_slice(latent);
            segment.taken[at] = stats.step;
        }
        self.policy.after_step(index, row, stats, latent)
    }

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        self.policy.after_readout(index, row, stats, logits)
    }

    /// States are seen on the CPU only: there is one while none is to be kept.
    fn device_rule(&self) -> Option<DeviceRule> {
        self.policy.device_rule().filter(|_| self.rows.is_empty())
    }
}

/// How far two models' latent states point the same way, step by step.
#[derive(Debug, Clone, Default)]
pub struct Cosines {
    /// `[segments][steps]`
    means: Vec<Vec<Moments>>,
}

/// Mean cosine after one step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepCosine {
    /// Looped segment, from 0.
    pub segment: usize,
    /// Step in it, from 1.
    pub step: usize,
    /// Mean over positions of cos(s_k, s'_k).
    pub cosine: Estimate,
    /// Positions that were so deep in both models.
    pub positions: u64,
}

impl Cosines {
    /// Nothing compared yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the positions that two recorders hold: those of the same window in two models.
    ///
    /// # Panics
    /// If the models' states have not the same width.
    pub fn add<A: DepthPolicy, B: DepthPolicy>(&mut self, a: &Recorder<A>, b: &Recorder<B>) {
        let segments = a.segments.len().min(b.segments.len());
        self.means.resize(segments.max(self.means.len()), Vec::new());
        for (segment, means) in self.means.iter_mut().enumerate().take(segments) {
            for row in 0..a.rows.len().min(b.rows.len()) {
                let mut step = 0;
                while let (Some(x), Some(y)) = (a.latent(segment, row, step + 1), b.latent(segment, row, step + 1)) {
                    if means.len() == step {
                        means.push(Moments::default());
                    }
                    means[step].add(cosine(x, y));
                    step += 1;
                }
            }
        }
    }

    /// The mean after each step of each looped segment.
    pub fn summary(&self) -> Vec<StepCosine> {
        let steps = |(segment, means): (usize, &Vec<Moments>)| {
            let each =
                |(i, m): (usize, &Moments)| StepCosine { segment, step: i + 1, cosine: m.mean(), positions: m.count() };
            means.iter().enumerate().map(each).collect::<Vec<_>>()
        };
        self.means.iter().enumerate().flat_map(steps).collect()
    }
}

/// cos(a, b), in f64.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "states of different widths");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / libm::sqrt(dot(a, a) * dot(b, b))
}
