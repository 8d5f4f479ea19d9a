//! How latent states move, as "Two-Scale Latent Dynamics for Recurrent-Depth Transformers" (arXiv:2509.23314) looks at it: small
//! refinements inside a loop, larger drift from block to block.

use super::score::{Estimate, Moments, number};
use super::{Quantiles, principal_plane};
use crate::model::{Config, DepthPolicy, LatentStats, Model, Row, Segment, Verdict, Waypoints};
use crate::random;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;

/// How latent states moved over many positions of a text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dynamics {
    /// Every looped segment.
    pub loops: Vec<LoopDynamics>,
    /// Every block, in the order of the model; looped ones once per step that was looked at.
    pub drift: Vec<Drift>,
    /// Paths of a few tokens in the plane of their largest spread, of the last looped segment.
    pub paths: Paths,
}

/// What happens in one looped segment, step by step; s_0 is the initial state, Δ_k = s_k − s_{k−1}. Entry k − 1 is step k. What does
/// not exist (angles, accelerations and curvatures at step 1) is a band of NaN.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopDynamics {
    /// ‖s_k‖.
    pub state_norm: Vec<Band>,
    /// ‖Δ_k‖ / ‖s_k‖.
    pub step_norm: Vec<Band>,
    /// The angle between Δ_k and Δ_{k−1}, in degrees: 90 is orthogonal, 180 is to and fro.
    pub angle: Vec<Band>,
    /// ‖Δ_k − Δ_{k−1}‖ / ‖s_k‖.
    pub acceleration: Vec<Band>,
    /// Turning angle (in radians) over the mean length of the two steps, times ‖s_k‖: how sharply the path bends, without a scale.
    pub curvature: Vec<Band>,
}

/// How a number is spread over positions, those where it is finite; NaN if it is nowhere. Quantiles are interpolated as in
/// [`Quantiles`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Band {
    #[serde(deserialize_with = "number")]
    pub p10: f64,
    #[serde(deserialize_with = "number")]
    pub p25: f64,
    #[serde(deserialize_with = "number")]
    pub median: f64,
    #[serde(deserialize_with = "number")]
    pub p75: f64,
    #[serde(deserialize_with = "number")]
    pub p90: f64,
}

impl Band {
    /// Of these values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().filter(|x| x.is_finite()).collect();
        let Quantiles { p10, p25, median, p75, p90, .. } = Quantiles::of(&values);
        Self { p10, p25, median, p75, p90 }
    }
}

/// How far one block moves the residual stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Physical block, from 0.
    pub block: usize,
    /// `prelude`, `core` or `coda`; `between` for blocks between two loops.
    pub part: String,
    /// Loop step, from 1; `None` outside loops.
    pub step: Option<usize>,
    /// ‖x_out − x_in‖ / ‖x_in‖ of the residual stream; over all of its runs where a step runs it more than once.
    pub moved: Band,
    /// Cosine of x_out − x_in with that of the block before it in the same pass over a stack; NaN where there is none.
    pub cosine: Band,
}

/// Trajectories of a few tokens, projected onto the two directions in which all of their states together spread most (principal
/// component analysis about their mean).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// Share of the variance along either direction.
    pub explained: [f64; 2],
    /// The tokens.
    pub tokens: Vec<Path>,
}

/// One token's trajectory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Its text.
    pub text: String,
    /// Position in its window.
    pub position: usize,
    /// Where it was after 0, 1, 2, … steps.
    pub points: Vec<[f64; 2]>,
}

/// What [`DynamicsRecorder`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicsOptions {
    /// Positions of every window that count; those early in a window have little to go by.
    pub positions: Range<usize>,
    /// Positions, of all that count, whose steps are kept. More are a sample: all are equally likely to be in it, whichever window they
    /// are of (Vitter's algorithm R, ACM TOMS 11, 1985), and which ones is the same in every run. Each takes 20 bytes per step.
    pub most: usize,
    /// Positions whose paths are kept, of the first window that has them. Each takes 4 bytes per step and value of the state.
    pub paths: Vec<usize>,
}

impl Default for DynamicsOptions {
    /// Every position, of which 4096 are kept, and no paths.
    fn default() -> Self {
        Self { positions: 0..usize::MAX, most: 4096, paths: Vec::new() }
    }
}

/// Watches latent states on their way through the loops while another policy decides their depth, and makes [`Dynamics`] of them.
///
/// It is meant for runs of one sequence at a time, such as [`super::Evaluation`]'s. What it finds depends neither on threads nor on
/// chunks. Blocks are watched by the session ([`crate::model::Session::record_waypoints`]), whose findings [`finish`](Self::finish)
/// takes in.
#[derive(Debug, Clone)]
pub struct DynamicsRecorder<P> {
    policy: P,
    width: usize,
    options: DynamicsOptions,
    /// Positions that have counted so far.
    seen: u64,
    kept: Vec<Kept>,
    /// Per row of the running chunk.
    running: Vec<Running>,
    /// Loops of the model.
    loops: usize,
    paths: Vec<KeptPath>,
}

/// A position that is kept.
#[derive(Debug, Clone)]
struct Kept {
    /// Which of all that counted.
    number: u64,
    /// `[loops][steps]`
    steps: Vec<Vec<Moved>>,
}

/// What [`LoopDynamics`] is made of, of one step of one position: in its order.
type Moved = [f32; 5];

/// Where what is seen of a row goes.
#[derive(Debug, Clone, Copy, Default)]
struct Running {
    /// Number of the position, and its place in `kept`.
    kept: Option<(u64, usize)>,
    /// Place in `paths`.
    path: Option<usize>,
}

#[derive(Debug, Clone)]
struct KeptPath {
    row: Row,
    /// `[1 + steps][S]`
    states: Vec<f32>,
}

impl<P: DepthPolicy> DynamicsRecorder<P> {
    /// A recorder for models of this kind.
    pub fn new(policy: P, config: &Config, options: DynamicsOptions) -> Self {
        Self {
            policy,
            width: config.state_width,
            options,
            seen: 0,
            kept: Vec::new(),
            running: Vec::new(),
            loops: config.loops.len(),
            paths: Vec::new(),
        }
    }

    /// What decides how deep tokens go.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The same, to be changed.
    pub fn policy_mut(&mut self) -> &mut P {
        &mut self.policy
    }

    /// Positions that counted so far, kept or not.
    pub fn positions(&self) -> u64 {
        self.seen
    }

    /// What was seen: bands over the positions kept, of those that did a step for each step; paths in the plane of their largest spread,
    /// in the order of the text; and what the session saw of blocks, if it was told to look. `text` gives the text of a path's token.
    pub fn finish(
        &self,
        model: &Model,
        waypoints: Option<&mut Waypoints>,
        mut text: impl FnMut(u32) -> String,
    ) -> Dynamics {
        let points: Vec<f32> = self.paths.iter().flat_map(|p| &p.states).copied().collect();
        let plane = principal_plane(&points, self.width);
        let mut points = plane.points.into_iter();
        let tokens = self.paths.iter().map(|p| Path {
            text: text(p.row.token),
            position: p.row.position,
            points: points.by_ref().take(p.states.len() / self.width).collect(),
        });
        Dynamics {
            loops: (0..self.loops).map(|i| self.bands(i)).collect(),
            paths: Paths { explained: plane.explained, tokens: tokens.collect() },
            drift: waypoints.map_or_else(Vec::new, |points| drift(model, points)),
        }
    }

    fn bands(&self, index: usize) -> LoopDynamics {
        let of_loop = || self.kept.iter().map(|k| &k.steps[index]);
        let steps = of_loop().map(Vec::len).max().unwrap_or(0);
        let bands = |what: usize| {
            let band =
                |k| Band::of(of_loop().filter_map(|steps| steps.get(k)).map(|moved: &Moved| f64::from(moved[what])));
            (0..steps).map(band).collect()
        };
        LoopDynamics {
            state_norm: bands(0),
            step_norm: bands(1),
            angle: bands(2),
            acceleration: bands(3),
            curvature: bands(4),
        }
    }

    /// Where the steps of the next position that counts go, if anywhere.
    fn place(&mut self) -> Option<usize> {
        /// A stream of random numbers that nothing else uses.
        const STREAM: u64 = 0x6479_6e61_6d69_6373;
        let number = self.seen;
        self.seen += 1;
        let fresh = || Kept { number, steps: vec![Vec::new(); self.loops] };
        if self.kept.len() < self.options.most {
            self.kept.push(fresh());
            return Some(self.kept.len() - 1);
        }
        // Uniform over 0..=number; below `most`, it takes the place of another.
        let at = (random::uniform(0, STREAM, number) * (number + 1) as f64) as usize;
        let fresh = fresh();
        let kept = self.kept.get_mut(at)?;
        *kept = fresh;
        Some(at)
    }
}

impl<P: DepthPolicy> DepthPolicy for DynamicsRecorder<P> {
    fn max_steps(&self, segment: usize) -> usize {
        self.policy.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]) {
        if self.running.len() <= index {
            self.running.resize(index + 1, Running::default());
        }
        if segment == 0 {
            self.running[index] = Running::default();
            if self.options.positions.contains(&row.position) {
                let number = self.seen;
                self.running[index].kept = self.place().map(|at| (number, at));
            }
        }
        let wanted = segment + 1 == self.loops && self.options.paths.contains(&row.position);
        if wanted && !self.paths.iter().any(|p| p.row.position == row.position) {
            self.running[index].path = Some(self.paths.len());
            self.paths.push(KeptPath { row: *row, states: initial.to_vec() });
        }
        self.policy.begin(index, row, segment, input, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let running = self.running.get(index).copied().unwrap_or_default();
        // A later position of the chunk may have taken its place.
        if let Some((number, at)) = running.kept
            && let Some(kept) = self.kept.get_mut(at).filter(|kept| kept.number == number)
        {
            kept.steps[stats.segment].push([
                stats.state_norm,
                stats.step_norm / stats.state_norm,
                stats.turning_angle().to_degrees() as f32,
                stats.acceleration / stats.state_norm,
                stats.curvature() as f32,
            ]);
        }
        if stats.segment + 1 == self.loops
            && let Some(path) = running.path.and_then(|i| self.paths.get_mut(i))
        {
            path.states.extend_from_slice(latent);
        }
        self.policy.after_step(index, row, stats, latent)
    }

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        self.policy.after_readout(index, row, stats, logits)
    }
}

/// How far blocks move the residual stream: an entry per block and step, in the order in which a token comes to them, over all positions
/// that were looked at and came so far.
pub fn drift(model: &Model, waypoints: &mut Waypoints) -> Vec<Drift> {
    /// A block in a step of a segment, and moves and cosines of all positions there.
    struct Place {
        key: (usize, usize, usize),
        moved: Vec<f64>,
        cosine: Vec<f64>,
    }
    let (mut places, mut all) = (HashMap::new(), Vec::<Place>::new());
    for passage in waypoints.visited().iter().flat_map(|v| v.passages()) {
        let key = (passage.segment, passage.step, passage.block);
        let at = *places.entry(key).or_insert_with(|| {
            all.push(Place { key, moved: Vec::new(), cosine: Vec::new() });
            all.len() - 1
        });
        all[at].moved.push(passage.move_norm / passage.in_norm);
        all[at].cosine.push(passage.cosine);
    }
    // Positions that left a loop early met later segments first. The order within a step is kept.
    all.sort_by_key(|place| (place.key.0, place.key.1));
    let entry = |Place { key: (segment, step, block), moved, cosine }| Drift {
        block,
        part: part(model, segment).to_owned(),
        step: (step > 0).then_some(step),
        moved: Band::of(moved),
        cosine: Band::of(cosine),
    };
    all.into_iter().map(entry).collect()
}

/// What a segment of the plan is called.
fn part(model: &Model, segment: usize) -> &'static str {
    let segments = &model.plan().segments;
    let looped = |s: &Segment| matches!(s, Segment::Looped(_));
    match segments.get(segment) {
        Some(Segment::Looped(_)) => "core",
        _ if !segments.iter().take(segment).any(looped) => "prelude",
        _ if !segments.iter().skip(segment).any(looped) => "coda",
        _ => "between",
    }
}

/// How much the initial state matters: how far the log-likelihoods of a text's tokens differ between runs that differ in its seed
/// alone. A loop that settles forgets where it began.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeedSpread {
    /// Per scored position, over seeds.
    positions: Vec<Moments>,
    seeds: usize,
}

impl SeedSpread {
    /// No seed yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in the log-likelihoods, in nats, of all scored positions, in order, of the run with one more seed.
    ///
    /// # Panics
    /// If they are not as many as those of the first seed.
    pub fn add(&mut self, log_likelihoods: impl IntoIterator<Item = f64>) {
        let mut count = 0;
        for (i, x) in log_likelihoods.into_iter().enumerate() {
            count = i + 1;
            if self.seeds == 0 {
                self.positions.push(Moments::default());
            }
            assert!(i < self.positions.len(), "more positions than with the first seed");
            self.positions[i].add(x);
        }
        assert_eq!(count, self.positions.len(), "positions of another text");
        self.seeds += 1;
    }

    /// Seeds taken in.
    pub fn seeds(&self) -> usize {
        self.seeds
    }

    /// Per scored position, the unbiased variance of its log-likelihood over seeds, in nats²; NaN with fewer than two seeds.
    pub fn variances(&self) -> impl Iterator<Item = f64> + '_ {
        self.positions.iter().map(Moments::variance)
    }

    /// The mean of [`variances`](Self::variances) over positions. Its error is that of a mean over positions; that seeds are few shows in
    /// it too, as every position's variance is then uncertain.
    pub fn variance(&self) -> Estimate {
        let mut moments = Moments::default();
        self.variances().for_each(|x| moments.add(x));
        moments.mean()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Depth, FixedDepth};
    use std::f64::consts::PI;

    fn config(loops: usize) -> Config {
        Config {
            architecture: String::new(),
            name: String::new(),
            width: 3,
            state_width: 3,
            vocab: 1,
            context: 1,
            head_dim: 2,
            embedding_scale: 1.0,
            loops: vec![Depth { mean_steps: 4, max_steps: None }; loops],
            state_std: 1.0,
            prefix_lm: false,
            exit_gate: false,
        }
    }

    type State = [f64; 3];

    /// Shows a recorder what the forward pass would of a row in one segment.
    fn show(recorder: &mut DynamicsRecorder<FixedDepth>, index: usize, row: Row, segment: usize, states: &[State]) {
        let f = |s: &State| s.map(|x| x as f32);
        let minus = |a: State, b: State| [0, 1, 2].map(|i| a[i] - b[i]);
        let dot = |a: State, b: State| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let norm = |a: State| dot(a, a).sqrt() as f32;
        recorder.begin(index, &row, segment, &[], &f(&states[0]));
        for k in 1..states.len() {
            let step = minus(states[k], states[k - 1]);
            let before = (k > 1).then(|| minus(states[k - 1], states[k - 2]));
            let or_nan = |x: Option<f32>| x.unwrap_or(f32::NAN);
            let stats = LatentStats {
                segment,
                step: k,
                state_norm: norm(states[k]),
                step_norm: norm(step),
                previous_step_norm: or_nan(before.map(norm)),
                acceleration: or_nan(before.map(|b| norm(minus(step, b)))),
                step_cosine: or_nan(before.map(|b| (dot(step, b) / dot(step, step).sqrt() / dot(b, b).sqrt()) as f32)),
                state_cosine: f32::NAN,
                gate: f32::NAN,
            };
            assert_eq!(recorder.after_step(index, &row, &stats, &f(&states[k])), Verdict::Stay);
        }
    }

    fn row(position: usize) -> Row {
        Row { sequence: 0, position, token: position as u32 + 100 }
    }

    fn recorder(loops: usize, options: DynamicsOptions) -> DynamicsRecorder<FixedDepth> {
        DynamicsRecorder::new(FixedDepth(9), &config(loops), options)
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-3 * expected.abs().max(0.1), "{found}, {expected}");
    }

    /// s_k = r^k (cos kφ, sin kφ): every step is the one before turned by φ and r times as long.
    #[test]
    fn a_spiral() {
        let (r, phi) = (0.8f64, PI / 5.0);
        let states: Vec<State> = (0..7)
            .map(|k| r.powi(k))
            .zip(0..)
            .map(|(r, k)| [5.0 * r * (phi * f64::from(k)).cos(), 5.0 * r * (phi * f64::from(k)).sin(), 0.0])
            .collect();
        let mut recorder = recorder(1, DynamicsOptions::default());
        show(&mut recorder, 0, row(0), 0, &states);
        let bands = recorder.bands(0);
        // |r·e^iφ − 1|
        let moved = (r * r - 2.0 * r * phi.cos() + 1.0).sqrt();
        for k in 1..7 {
            close(bands.state_norm[k - 1].median, 5.0 * r.powi(k as i32));
            close(bands.step_norm[k - 1].median, moved / r);
            if k == 1 {
                for band in [bands.angle[0], bands.acceleration[0], bands.curvature[0]] {
                    assert!([band.p10, band.p25, band.median, band.p75, band.p90].iter().all(|x| x.is_nan()));
                }
                continue;
            }
            close(bands.angle[k - 1].median, 36.0);
            close(bands.acceleration[k - 1].median, moved * moved / (r * r));
            // The two steps are moved / r and moved / r² of the state long.
            close(bands.curvature[k - 1].median, phi / (0.5 * (moved / r + moved / (r * r))));
        }
        assert_eq!(bands.angle.len(), 6);
    }

    /// A circle in small steps has curvature one; a line none; to and fro is 180 degrees.
    #[test]
    fn a_circle_a_line_and_a_geometric_approach() {
        let one = |states: &[State]| {
            let mut recorder = recorder(1, DynamicsOptions::default());
            show(&mut recorder, 0, row(0), 0, states);
            recorder.bands(0)
        };
        let circle: Vec<State> = (0..5).map(|k| (0.05 * f64::from(k)).sin_cos()).map(|(s, c)| [0.0, c, s]).collect();
        close(one(&circle).curvature[3].median, 1.0);
        let line: Vec<State> = (0..5).map(|k| [f64::from(k), 2.0 * f64::from(k), 3.0]).collect();
        let line = one(&line);
        assert!(line.angle[2].median < 0.05 && line.acceleration[2].median == 0.0);
        close(line.step_norm[1].median, 5f64.sqrt() / (4.0 + 16.0 + 9.0f64).sqrt());
        // (4, 0, 0) + (1, 1, 0)·q^k, from the same side and from both.
        for (q, angle) in [(0.5f64, 0.0), (-0.5, 180.0)] {
            let states: Vec<State> = (0..6).map(|k| [4.0 + q.powi(k), q.powi(k), 0.0]).collect();
            let found = one(&states);
            for (k, state) in states.iter().enumerate().skip(2) {
                let norm = state.iter().map(|x| x * x).sum::<f64>().sqrt();
                let step = 2f64.sqrt() * q.abs().powi(k as i32 - 1) * (q - 1.0).abs();
                assert!((found.angle[k - 1].median - angle).abs() < 0.05, "{:?}", found.angle);
                close(found.step_norm[k - 1].median, step / norm);
                close(found.acceleration[k - 1].median, step * (1.0 - 1.0 / q).abs() / norm);
            }
        }
    }

    /// Bands are quantiles over positions; a step counts those that did it; segments are apart.
    #[test]
    fn bands_are_over_positions() {
        let options = DynamicsOptions { positions: 2..13, ..DynamicsOptions::default() };
        let mut recorder = recorder(2, options);
        for position in 0..20 {
            let at = |k: f64| [position as f64 + k, 0.0, 0.0];
            show(&mut recorder, position % 3, row(position), 0, &[at(0.0), at(1.0)]);
            let deep: Vec<State> = (0..if position < 7 { 3 } else { 4 }).map(|k| at(10.0 * f64::from(k))).collect();
            show(&mut recorder, position % 3, row(position), 1, &deep);
        }
        assert_eq!(recorder.positions(), 11);
        let first = recorder.bands(0);
        assert_eq!(first.state_norm, [Band { p10: 4.0, p25: 5.5, median: 8.0, p75: 10.5, p90: 12.0 }]);
        let second = recorder.bands(1);
        assert_eq!(second.state_norm.len(), 3);
        assert_eq!(second.state_norm[0].median, 17.0);
        assert_eq!(second.state_norm[2].median, 39.5, "of 7 to 12 only");
        assert!(Band::of([f64::NAN, f64::INFINITY]).median.is_nan());
    }

    /// Memory stays within bounds, and what is kept is spread over all that came.
    #[test]
    fn more_positions_than_are_kept_are_a_sample() {
        let of = |chunk: usize| {
            let mut recorder = recorder(1, DynamicsOptions { most: 50, ..DynamicsOptions::default() });
            for start in (0..5000).step_by(chunk) {
                // As in a chunk: all begin, then all step.
                for i in 0..chunk {
                    recorder.begin(i, &row(start + i), 0, &[], &[0.0; 3]);
                }
                for i in 0..chunk {
                    let x = (start + i) as f32;
                    let stats = LatentStats {
                        segment: 0,
                        step: 1,
                        state_norm: x,
                        step_norm: 1.0,
                        previous_step_norm: f32::NAN,
                        acceleration: f32::NAN,
                        step_cosine: f32::NAN,
                        state_cosine: f32::NAN,
                        gate: f32::NAN,
                    };
                    recorder.after_step(i, &row(start + i), &stats, &[x, 0.0, 0.0]);
                }
            }
            assert_eq!((recorder.kept.len(), recorder.positions()), (50, 5000));
            recorder.bands(0).state_norm[0]
        };
        let band = of(1);
        assert!(band.p10 > 100.0 && band.p10 < 1200.0 && (band.median - 2500.0).abs() < 900.0, "{band:?}");
        assert_eq!(of(1000), band, "chunks do not show");
        let mut none = recorder(1, DynamicsOptions { most: 0, ..DynamicsOptions::default() });
        show(&mut none, 0, row(0), 0, &[[0.0; 3]; 2]);
        assert!(none.kept.is_empty() && none.bands(0).state_norm.is_empty());
    }

    /// Three seeds at two positions: variances 1 and 4, mean 2.5, error 1.5.
    #[test]
    fn spread_over_seeds_by_hand() {
        let mut spread = SeedSpread::new();
        assert!(spread.variance().value.is_nan());
        spread.add([-1.0, -6.0]);
        assert!(spread.variance().value.is_nan() && spread.seeds() == 1);
        spread.add([-2.0, -2.0]);
        spread.add([-3.0, -4.0]);
        assert_eq!(spread.variances().collect::<Vec<_>>(), [1.0, 4.0]);
        assert_eq!(spread.variance(), Estimate { value: 2.5, error: 1.5 });
        assert_eq!(spread.seeds(), 3);
    }

    #[test]
    #[should_panic(expected = "another text")]
    fn seeds_of_another_text() {
        let mut spread = SeedSpread::new();
        spread.add([-1.0, -6.0]);
        spread.add([-1.0]);
    }
}
