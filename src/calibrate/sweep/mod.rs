//! Quality against depth, for fixed depths and for every exit rule over a grid of thresholds.
//!
//! Fixed depths share one run: the state after step k of the deepest run is that of a run of k steps, and reading it out gives the
//! same bits ([`Session::read_out`]). Exit rules are first judged on the trajectories of that run ([`Screened`]), which costs nothing
//! more; there, later tokens see keys and values of the deep run. Settings that look worth it are then run exactly, and only these
//! make [`Point`]s. What has been measured is kept in a folder until all of it is there.

mod deep;
mod memo;
mod rows;
mod screen;
mod timing;

use super::score::Moments;
use super::{
    BEARABLE, Dynamics, DynamicsOptions, DynamicsRecorder, Error, Point, Sample, SampleToken, Screened, Timing, Window,
    Windows,
};
use crate::exit::ExitRule;
use crate::hash::Fnv;
use crate::model::{Batch, DepthPolicy, FixedDepth, InitialState, Logits, Session, WaypointOptions};
use crate::sensors::{EnergyMeter, Machine};
use deep::{DeepRun, DeepWindow};
use memo::Memo;
use rows::{Rows, point, spread};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use timing::{ROUNDS, Run};

/// Counts the changes of what is kept: results of an older program are none of ours.
const RESULTS: u32 = 1;
/// Depths up to this are all measured; beyond, some ([`depths`]).
const EVERY_DEPTH: usize = 16;
/// Full depth is the smallest from which on cross-entropy stays within this share of the deepest's,
const FULL: f64 = 0.001;
/// and KL from the deepest below this, in nats.
const FULL_KL: f64 = 0.002;
/// Positions whose trajectories are drawn.
const PATHS: usize = 6;
/// Windows whose trajectories are looked at.
const WINDOWS_WATCHED: usize = 4;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// The deepest depth.
    pub steps: usize,
    /// The depth that losses are counted from: the published one.
    pub published: usize,
    /// Exit rules, one of each kind; thresholds are found.
    pub kinds: Vec<ExitRule>,
    /// Settings of each kind that are run exactly, at most 8, besides the usual one.
    pub points: usize,
    /// Initial states that full depth, the published one and the best setting of each kind are run from.
    pub seeds: u64,
    /// Tokens at the start of every window that see each other in both directions.
    pub prefix: usize,
    /// Are settings timed?
    pub timing: bool,
}

/// How far a sweep is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub stage: &'static str,
    /// Windows run by loop steps, done and in all as far as can be told.
    pub done: f64,
    /// See `done`.
    pub all: f64,
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Swept {
    /// The smallest depth from which on cross-entropy stays within 0.1 % of the deepest's and KL from it below 0.002 nats.
    pub full_depth: usize,
    /// Fixed depths, ascending.
    pub depths: Vec<Point>,
    /// Exit rules.
    pub rules: Vec<Point>,
    /// Time per token as base and step.
    pub cost: Option<super::Cost>,
    /// Rules over their grids.
    pub screened: Vec<Screened>,
    /// How latent states move.
    pub dynamics: Dynamics,
    /// The first window under the usual rule; texts are empty.
    pub sample: Sample,
    /// Results that an earlier run had left.
    pub found: usize,
}

/// Depths that are measured, up to `deepest`: all up to 16, then steps of half an octave, and these three.
pub fn depths(deepest: usize, published: usize, full: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (1..=deepest.min(EVERY_DEPTH)).collect();
    let (mut n, mut half) = (EVERY_DEPTH, false);
    while n < deepest {
        n = if half { n / 3 * 4 } else { n / 2 * 3 };
        half = !half;
        all.push(n);
    }
    all.extend([deepest, published, full]);
    all.retain(|n| (1..=deepest).contains(n));
    all.sort_unstable();
    all.dedup();
    all
}

/// Results in their folder, which have served.
#[derive(Debug)]
pub struct Kept(Memo);

impl Kept {
    /// Removes them.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn clear(self) -> Result<(), Error> {
        self.0.clear()
    }
}

/// A sweep over a text.
pub struct Sweep<'a> {
    session: &'a mut Session,
    windows: &'a Windows,
    plan: &'a Plan,
    memo: Memo,
    report: &'a mut dyn FnMut(Progress),
    progress: Progress,
}

impl<'a> Sweep<'a> {
    /// A sweep with a session whose KV cache has slots for all of the plan's steps. Results are kept in `folder`, for this `setup` (a
    /// text that names everything that they depend on besides the plan).
    ///
    /// # Errors
    /// [`Error::Unfinished`]: the folder holds results of another setup, and `restart` does not say to remove them; it cannot be
    /// made; [`Error::Shared`]: the model's depths cannot share a run; [`Error::Plan`]; a prefix that does not suit.
    pub fn new(
        session: &'a mut Session,
        windows: &'a Windows,
        plan: &'a Plan,
        folder: Option<(&Path, &str)>,
        restart: bool,
        report: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, Error> {
        super::evaluate::check(session, windows, plan.prefix)?;
        let config = session.model().config();
        let most = config.max_steps().unwrap_or(usize::MAX).min(session.steps());
        if windows.is_empty() || !(1..=most).contains(&plan.steps) || !(1..=plan.steps).contains(&plan.published) {
            return Err(Error::Plan { windows: windows.len(), steps: plan.steps, published: plan.published, most });
        }
        let loops = config.loops.len();
        if loops != 1 || session.kv_shape().slots < plan.steps {
            return Err(Error::Shared { loops, slots: session.kv_shape().slots, steps: plan.steps });
        }
        let plan_text = serde_json::to_string(plan).map_err(|e| Error::Profile(e.to_string()))?;
        let setup = folder.map(|(_, setup)| format!("{RESULTS}\n{setup}\n{plan_text}\n"));
        let memo = Memo::open(folder.map(|(path, _)| path), setup.as_deref().unwrap_or_default(), restart)?;
        let all = (windows.len() * plan.steps) as f64 * 4.0;
        let progress = Progress { stage: "deepest depth", done: 0.0, all };
        Ok(Self { session, windows, plan, memo, report, progress })
    }

    fn stage(&mut self, stage: &'static str) {
        self.progress.stage = stage;
        (self.report)(self.progress);
    }

    fn advance(&mut self, steps: f64) {
        self.progress.done += steps;
        (self.report)(self.progress);
    }

    /// Measures everything. What was kept on the way stays until [`Kept::clear`], so that nothing is lost if what was found cannot
    /// be written.
    ///
    /// # Errors
    /// As [`Session::run`]; results that cannot be kept.
    pub fn run(mut self) -> Result<(Swept, Kept), Error> {
        let (initial, threads) = (self.session.initial().clone(), self.session.most_threads());
        let result = self.measure();
        self.session.set_initial(initial);
        self.session.set_threads(threads);
        // An error may have left it at work.
        self.session.take_waypoints();
        Ok((result?, Kept(self.memo)))
    }

    fn measure(&mut self) -> Result<Swept, Error> {
        let deep = self.deep()?;
        let full_depth = self.full_depth(&deep);
        let screened: Vec<Vec<Screened>> = self.screen(&deep);
        let rules = self.choose(&deep, &screened);
        drop(deep);
        let depths = depths(self.plan.steps, self.plan.published, full_depth);

        // The rest is known now.
        let mean = |rule: &ExitRule| {
            let found = screened.iter().flatten().find(|s| s.rule == *rule);
            found.map_or(self.plan.steps as f64, |s| s.mean_steps)
        };
        let windows = self.windows.len() as f64;
        let exact: f64 = rules.iter().map(mean).sum();
        let deepest = self.plan.steps as f64;
        self.progress.all = windows * (3.0 * deepest + depths.len() as f64 + exact);
        self.progress.all += windows * (self.plan.seeds.saturating_sub(1)) as f64 * 4.0 * deepest;

        let (mut depth_rows, mut rule_rows) = (vec![Vec::new(); depths.len()], vec![Vec::new(); rules.len()]);
        for w in 0..self.windows.len() {
            let (of_depths, of_rules) = self.exact(w, full_depth, &depths, &rules)?;
            depth_rows.iter_mut().zip(of_depths).for_each(|(all, rows)| all.push(rows));
            rule_rows.iter_mut().zip(of_rules).for_each(|(all, rows)| all.push(rows));
        }
        let points = |rules: &mut dyn Iterator<Item = ExitRule>, rows: &[Vec<Rows>]| -> Vec<Point> {
            rules.zip(rows).map(|(rule, rows)| point(rule, rows)).collect()
        };
        let mut of_depths = points(&mut depths.iter().map(|&n| ExitRule::fixed(n)), &depth_rows);
        let mut of_rules = points(&mut rules.iter().copied(), &rule_rows);
        self.seeds(full_depth, &mut of_depths, &mut of_rules, (&depth_rows, &rule_rows))?;
        let threads = self.time(full_depth, &mut of_depths, &mut of_rules)?;
        let dynamics = self.dynamics()?;
        let sample = self.sample(&of_depths, &of_rules, &rule_rows, &depth_rows);
        Ok(Swept {
            full_depth,
            cost: timing::cost(&of_depths, threads),
            depths: of_depths,
            rules: of_rules,
            screened: screened.into_iter().flatten().collect(),
            dynamics,
            sample,
            found: self.memo.found,
        })
    }

    /// Every window at the deepest depth.
    fn deep(&mut self) -> Result<Vec<DeepWindow>, Error> {
        self.stage("deepest depth");
        let (steps, scored, prefix) = (self.plan.steps, self.windows.scored(), self.plan.prefix);
        let mut all = Vec::with_capacity(self.windows.len());
        for w in 0..self.windows.len() {
            let Self { memo, session, windows, plan, .. } = self;
            all.push(memo.get(
                &format!("deep-{w}"),
                |found: &DeepWindow| found.fits(scored.len(), steps, plan.kinds.len()),
                || {
                    let window = windows.get(w);
                    let targets = &window.tokens[scored.start + 1..=scored.end];
                    let mut run = DeepRun::new(session, &window, scored.clone(), prefix, steps)?;
                    DeepWindow::measure(&mut run, targets, steps, &plan.kinds)
                },
            )?);
            self.advance(2.0 * steps as f64);
        }
        Ok(all)
    }

    /// Cross-entropy at each depth, from 1.
    fn cross_entropies(&self, deep: &[DeepWindow]) -> Vec<f64> {
        self.means(deep, |window| &window.nll)
    }

    /// The mean of something at each depth, from 1.
    fn means(&self, deep: &[DeepWindow], what: fn(&DeepWindow) -> &[f64]) -> Vec<f64> {
        let mut means = vec![Moments::default(); self.plan.steps];
        for window in deep {
            for (mean, values) in means.iter_mut().zip(what(window).chunks_exact(window.rows)) {
                values.iter().for_each(|&x| mean.add(x));
            }
        }
        means.iter().map(|mean| mean.mean().value).collect()
    }

    /// The smallest depth from which on nothing changes any more. Cross-entropy alone would take a depth where it happens to cross the
    /// deepest's on its way.
    fn full_depth(&self, deep: &[DeepWindow]) -> usize {
        let (entropy, kl) = (self.cross_entropies(deep), self.means(deep, |window| &window.kl));
        let deepest = entropy.last().copied().unwrap_or(f64::NAN);
        let same = |(x, kl): (&f64, &f64)| (x - deepest).abs() <= FULL * deepest.abs() && *kl <= FULL_KL;
        let settled = entropy.iter().zip(&kl).rev().take_while(|&pair| same(pair)).count();
        self.plan.steps + 1 - settled.max(1)
    }

    fn screen(&self, deep: &[DeepWindow]) -> Vec<Vec<Screened>> {
        let of_kind = |(number, kind): (usize, &ExitRule)| {
            let settings = screen::settings(*kind, deep, number, self.plan.steps);
            settings.into_iter().map(|rule| screen::screen(rule, deep, number)).collect()
        };
        self.plan.kinds.iter().enumerate().map(of_kind).collect()
    }

    /// Settings to run exactly: of each kind those that look worth it, and the usual one.
    fn choose(&self, deep: &[DeepWindow], screened: &[Vec<Screened>]) -> Vec<ExitRule> {
        let reference = self.cross_entropies(deep)[self.plan.published.min(self.plan.steps) - 1];
        let mut chosen = Vec::new();
        for (kind, screened) in self.plan.kinds.iter().zip(screened) {
            let usual = Some(kind.with_max(self.plan.steps)).filter(ExitRule::has_usual_threshold);
            for rule in screen::choose(screened, reference, self.plan.points).into_iter().chain(usual) {
                if !chosen.contains(&rule) {
                    chosen.push(rule);
                }
            }
        }
        chosen
    }

    /// One window at every depth and under every rule, against full depth.
    fn exact(
        &mut self,
        w: usize,
        full_depth: usize,
        depths: &[usize],
        rules: &[ExitRule],
    ) -> Result<(Vec<Rows>, Vec<Rows>), Error> {
        self.stage("fixed depths");
        let Self { session, memo, windows, plan, .. } = self;
        let (window, scored) = (windows.get(w), windows.scored());
        let (depths_name, rule_name) =
            (format!("depths-{w}-{full_depth}"), |i: usize| format!("rule-{i}-{w}-{full_depth}"));
        let fits = |rows: &Rows| rows.fits(scored.len(), true);
        let of_depths = memo.find(&depths_name, |all: &Vec<Rows>| all.len() == depths.len() && all.iter().all(fits));
        let of_rules: Vec<Option<Rows>> = (0..rules.len()).map(|i| memo.find(&rule_name(i), fits)).collect();
        let (mut full, vocab) = (Vec::new(), session.model().config().vocab);
        let of_depths = match of_depths {
            Some(found) if of_rules.iter().all(Option::is_some) => found,
            found => {
                let mut run = DeepRun::new(session, &window, scored.clone(), plan.prefix, plan.steps)?;
                full = run.read_out(full_depth)?.to_vec();
                match found {
                    Some(found) => found,
                    None => {
                        let targets = &window.tokens[scored.start + 1..=scored.end];
                        let all = depths.iter().map(|&n| run.rows(n, &full, targets)).collect::<Result<Vec<_>, _>>()?;
                        memo.keep(&depths_name, &all)?;
                        all
                    }
                }
            }
        };
        debug_assert!(full.is_empty() || full.len() == scored.len() * vocab);
        self.advance(self.plan.steps as f64 + depths.len() as f64);
        self.stage("exit rules");
        let mut all = Vec::with_capacity(rules.len());
        for (i, (&rule, found)) in rules.iter().zip(of_rules).enumerate() {
            let Self { session, memo, windows, plan, .. } = self;
            let rows = match found {
                Some(found) => found,
                None => {
                    let rows = Rows::run(session, rule, &windows.only(w), plan.prefix, &full)?;
                    memo.keep(&rule_name(i), &rows)?;
                    rows
                }
            };
            let mean = rows.steps.iter().map(|&n| f64::from(n)).sum::<f64>() / rows.steps.len().max(1) as f64;
            all.push(rows);
            self.advance(mean);
        }
        Ok((of_depths, all))
    }

    /// Runs some settings from other initial states.
    fn seeds(
        &mut self,
        full_depth: usize,
        depths: &mut [Point],
        rules: &mut [Point],
        rows: (&[Vec<Rows>], &[Vec<Rows>]),
    ) -> Result<(), Error> {
        let InitialState::Noise { seed: first } = *self.session.initial() else { return Ok(()) };
        if self.session.model().config().state_std == 0.0 || self.plan.seeds < 2 {
            return Ok(());
        }
        self.stage("seeds");
        let reference = reference(depths, self.plan.published);
        let mut points: Vec<(&mut Point, &[Rows])> = Vec::new();
        for (point, rows) in depths.iter_mut().zip(rows.0) {
            if [Some(full_depth), Some(self.plan.published)].contains(&point.rule.max_steps()) {
                points.push((point, rows));
            }
        }
        let best = best_of_kinds(rules, reference);
        for (i, (point, rows)) in rules.iter_mut().zip(rows.1).enumerate() {
            if best.contains(&i) {
                points.push((point, rows));
            }
        }
        for (point, rows) in points {
            let nll = |windows: &[Rows]| windows.iter().flat_map(|w| w.nll.iter().copied()).collect::<Vec<_>>();
            let mut seeds = vec![nll(rows)];
            for s in 1..self.plan.seeds {
                let mut all = Vec::new();
                for w in 0..self.windows.len() {
                    let Self { session, memo, windows, plan, .. } = self;
                    session.set_initial(InitialState::Noise { seed: first.wrapping_add(s) });
                    let rule = point.rule;
                    // Rules have characters that file names may not have.
                    let mut name = Fnv::new();
                    name.add(rule.to_string().as_bytes());
                    let (name, scored) = (format!("seed-{s}-{w}-{name}"), windows.scored().len());
                    let run = || Rows::run(session, rule, &windows.only(w), plan.prefix, &[]);
                    all.push(memo.get(&name, |rows: &Rows| rows.fits(scored, false), run)?);
                    self.advance(point.mean_steps);
                }
                seeds.push(nll(&all));
            }
            self.session.set_initial(InitialState::Noise { seed: first });
            point.seed_variance = spread(&seeds);
        }
        Ok(())
    }

    /// Times the settings that can matter, the best of each kind and some fixed depths; gives the speed at fewer threads, as a share of
    /// that with all.
    fn time(
        &mut self,
        full_depth: usize,
        depths: &mut [Point],
        rules: &mut [Point],
    ) -> Result<BTreeMap<usize, f64>, Error> {
        if !self.plan.timing {
            return Ok(BTreeMap::new());
        }
        self.stage("time per token");
        let (published, deepest) = (self.plan.published, self.plan.steps);
        let wanted = [1, 2, published.div_ceil(2), published, full_depth, deepest];
        let reference = reference(depths, published);
        let best = best_of_kinds(rules, reference);
        let of_depths = depths.iter_mut().filter(|p| p.rule.max_steps().is_some_and(|n| wanted.contains(&n)));
        let of_rules = rules.iter_mut().enumerate().filter(|(i, p)| {
            best.contains(i) || p.rule.name() == "acceleration" && p.perplexity.value < 1.1 * reference
        });
        let mut points: Vec<&mut Point> = of_depths.chain(of_rules.map(|(_, p)| p)).collect();
        let meter = EnergyMeter::new(&Machine::here());
        let window = self.windows.get(0);
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); points.len()];
        for _ in 0..ROUNDS {
            for (point, runs) in points.iter().zip(&mut runs) {
                runs.push(timing::run(self.session, point.rule, &window, self.plan.prefix, &meter)?);
            }
        }
        for (point, runs) in points.iter_mut().zip(runs) {
            point.timing = Some(timing::timing(runs));
        }
        // All of a few numbers, and powers of two of many.
        let (all, rule) = (self.session.threads(), ExitRule::fixed(published));
        let counts: Vec<usize> = (1..=all).filter(|n| all <= 4 || n.is_power_of_two() || *n == all).collect();
        let mut of_threads = vec![Vec::new(); counts.len()];
        for _ in 0..ROUNDS {
            for (&count, runs) in counts.iter().zip(&mut of_threads) {
                self.session.set_threads(count);
                runs.push(timing::run(self.session, rule, &window, self.plan.prefix, &meter)?);
            }
        }
        let ms: Vec<f64> = of_threads.into_iter().map(|runs| timing::timing(runs).ms_per_token).collect();
        let whole = ms.last().copied().unwrap_or(f64::NAN);
        Ok(counts.iter().zip(&ms).map(|(&count, one)| (count, whole / one)).collect())
    }

    /// How states move, over the first windows; blocks and paths, over the first.
    fn dynamics(&mut self) -> Result<Dynamics, Error> {
        self.stage("trajectories");
        let Self { session, windows, plan, memo, .. } = self;
        memo.get(
            "dynamics",
            |_: &Dynamics| true,
            || {
                let scored = windows.scored();
                let paths = (0..PATHS).map(|i| scored.start + i * scored.len() / PATHS).collect();
                let options = DynamicsOptions { positions: scored.clone(), paths, ..DynamicsOptions::default() };
                let model = Arc::clone(session.model());
                let mut recorder = DynamicsRecorder::new(FixedDepth(plan.steps), model.config(), options);
                session.record_waypoints(WaypointOptions { positions: scored.clone(), ..WaypointOptions::default() });
                let mut waypoints = None;
                for window in windows.iter().take(WINDOWS_WATCHED) {
                    run_window(session, &window, &scored, plan.prefix, &mut recorder)?;
                    waypoints = waypoints.or_else(|| session.take_waypoints());
                }
                Ok(recorder.finish(&model, waypoints.as_mut(), |_| String::new()))
            },
        )
    }

    /// The first window under the usual rule, or at the published depth if that was not run.
    fn sample(&self, depths: &[Point], rules: &[Point], rule_rows: &[Vec<Rows>], depth_rows: &[Vec<Rows>]) -> Sample {
        let all = rules.iter().zip(rule_rows).chain(depths.iter().zip(depth_rows));
        let wanted = [ExitRule::usual().with_max(self.plan.steps), ExitRule::fixed(self.plan.published)];
        let mut found = wanted.iter().filter_map(|rule| all.clone().find(|(p, _)| p.rule == *rule));
        let Some((point, rows)) = found.next() else { return Sample::default() };
        let token = |(&steps, &nll): (&u32, &f64)| SampleToken { text: String::new(), steps: steps as usize, nll };
        let tokens = rows.first().map(|rows| rows.steps.iter().zip(&rows.nll).map(token).collect());
        Sample { rule: point.rule, tokens: tokens.unwrap_or_default() }
    }
}

/// Runs a window up to its last scored position, for what a policy sees; the first `prefix` tokens see each other in both directions.
fn run_window(
    session: &mut Session,
    window: &Window,
    scored: &Range<usize>,
    prefix: usize,
    policy: &mut dyn DepthPolicy,
) -> Result<(), Error> {
    session.truncate(0, 0);
    for (part, both_ways) in [(0..prefix, true), (prefix..scored.end, false)] {
        if !part.is_empty() {
            let tokens = &window.tokens[part];
            let batch = Batch { sequence: 0, tokens, logits: Logits::None, readout_exits: false, both_ways };
            session.run(batch, policy)?;
        }
    }
    Ok(())
}

/// What a token costs under a rule: one setting of those that a sweep times.
///
/// # Errors
/// As [`Session::run`]; [`Error::Gate`].
pub fn time(
    session: &mut Session,
    rule: ExitRule,
    window: &Window,
    prefix: usize,
    meter: &EnergyMeter,
) -> Result<Timing, Error> {
    let runs = (0..ROUNDS).map(|_| timing::run(session, rule, window, prefix, meter)).collect::<Result<_, _>>()?;
    Ok(timing::timing(runs))
}

/// Perplexity at a fixed depth.
fn reference(depths: &[Point], steps: usize) -> f64 {
    depths.iter().find(|p| p.rule.max_steps() == Some(steps)).map_or(f64::NAN, |p| p.perplexity.value)
}

/// Of each kind of rule the number of the cheapest setting that loses at most 1 %; where none does, of that which loses least.
fn best_of_kinds(rules: &[Point], reference: f64) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::new();
    for (i, point) in rules.iter().enumerate() {
        let good =
            |p: &Point| p.perplexity.value <= (1.0 + BEARABLE) * reference && libm::expm1(p.kl.value) <= BEARABLE;
        let better = |a: &Point, b: &Point| match (good(a), good(b)) {
            (true, true) => a.mean_steps < b.mean_steps,
            (false, false) => a.kl.value < b.kl.value,
            (a, _) => a,
        };
        match best.iter_mut().find(|b| rules[**b].rule.name() == point.rule.name()) {
            Some(b) if better(point, &rules[*b]) => *b = i,
            Some(_) => {}
            None => best.push(i),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_are_dense_where_they_matter() {
        assert_eq!(depths(4, 4, 2), [1, 2, 3, 4]);
        let deep = depths(64, 32, 21);
        assert_eq!(&deep[..16], (1..=16).collect::<Vec<_>>());
        assert_eq!(&deep[16..], [21, 24, 32, 48, 64]);
        assert_eq!(depths(20, 99, 0).last(), Some(&20));
    }
}
