//! The settings that a governor chooses from.

use crate::calibrate::{Point, Profile};
use crate::exit::{ExitRule, RulePolicy, can_exit};
use crate::model::Config;
use std::collections::BTreeMap;

/// One setting: an exit rule, and what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Rung {
    /// The exit rule.
    pub rule: ExitRule,
    /// Mean loop steps of a token, all loops together; where nothing is known, how many they are at most.
    pub steps: f64,
    /// What it loses, as [`Profile::loss`] counts: 0.01 is one per cent of perplexity. NaN where nothing is known.
    pub loss: f64,
    /// Milliseconds per token with all threads, by the profile; NaN where nothing is known.
    pub ms: f64,
    /// Joules per token, by the profile.
    pub joules: Option<f64>,
}

/// What a rung must gain over the one below, as a share of the loss that is allowed.
const WORTH: f64 = 0.01;

/// Settings ascending in price and quality, all within the quality floor.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    rungs: Vec<Rung>,
    base_ms: f64,
    step_ms: f64,
    threads: BTreeMap<usize, f64>,
    /// Are times more than guesses?
    timed: bool,
    note: Option<String>,
}

/// What to say of a model whose tokens [cannot exit](can_exit).
pub fn whole_loop(config: &Config) -> String {
    let family = &config.architecture;
    format!("{family} models always run their whole loop, so that no budget is held by depth")
}

impl Ladder {
    /// The points of a profile's front that lose at most `max_loss` and that a session for up to `most_steps` loop steps can run.
    /// `force` is the only rung for a family whose tokens never leave early.
    pub fn of_profile(
        profile: &Profile,
        config: &Config,
        max_loss: f64,
        most_steps: Option<usize>,
        force: ExitRule,
    ) -> Self {
        if !can_exit(config) {
            return Self::single(config, force, whole_loop(config));
        }
        let runs = |p: &Point| {
            let deep = RulePolicy::depth_limit(&p.rule, None, config);
            let allowed = most_steps.is_none_or(|most| deep <= most);
            allowed && RulePolicy::new(p.rule, None, config, 1).is_ok()
        };
        Self::new(profile, max_loss, runs)
            .unwrap_or_else(|| Self::single(config, force, "no setting in the calibration profile can be run here"))
    }

    /// As [`of_profile`](Self::of_profile) for a model that can run whatever the profile has; `None` where that is nothing.
    pub fn of_points(profile: &Profile, max_loss: f64) -> Option<Self> {
        Self::new(profile, max_loss, |_| true)
    }

    fn new(profile: &Profile, max_loss: f64, runs: impl Fn(&Point) -> bool) -> Option<Self> {
        let front: Vec<&Point> = profile.front().into_iter().filter(|p| runs(p)).collect();
        let best = *front.last()?;
        let within = |p: &&&Point| profile.loss(p) <= max_loss;
        let mut points: Vec<&Point> = front.iter().filter(within).copied().collect();
        let mut note = None;
        if points.is_empty() {
            note = Some(format!(
                "no calibrated setting loses {} % or less; the best of them, {}, loses {:.2} %",
                100.0 * max_loss,
                best.rule,
                100.0 * profile.loss(best)
            ));
            points.push(best);
        }
        // A rung must be worth climbing: the front of a good measurement has many that differ by nothing that anyone could notice.
        let worth = WORTH * max_loss.clamp(0.0, 1.0);
        let (mut reached, top) = (f64::INFINITY, *points.last()?);
        points.retain(|p| {
            let loss = profile.loss(p);
            let better = loss.is_nan() || loss <= reached - worth;
            if better {
                reached = loss;
            }
            better
        });
        // The best is always to be had; what nearly is, for much less, is to be had too.
        if !points.last().is_some_and(|p| std::ptr::eq(*p, top)) {
            points.push(top);
        }
        let known = |x: f64| x.is_finite() && x >= 0.0;
        let cost =
            profile.cost.as_ref().filter(|c| known(c.base_ms) && known(c.step_ms) && c.base_ms + c.step_ms > 0.0);
        let timed = cost.is_some() || points.iter().all(|p| p.timing.is_some());
        let (base_ms, step_ms) = match cost {
            Some(c) => (c.base_ms, c.step_ms),
            None => (0.0, profile.price(points[0]) / points[0].mean_steps),
        };
        let rung = |p: &Point| Rung {
            rule: p.rule,
            steps: p.mean_steps,
            loss: profile.loss(p),
            ms: profile.price(p),
            joules: p.timing.and_then(|t| t.joules_per_token).filter(|j| j.is_finite() && *j > 0.0),
        };
        let threads = profile.cost.as_ref().map(|c| c.threads.clone()).unwrap_or_default();
        let rungs = points.into_iter().map(rung).collect();
        Some(Self { rungs, base_ms, step_ms, threads, timed, note })
    }

    /// A ladder of one rung: the rule in force, of which nothing is known. `why` says why there is no other.
    pub fn single(config: &Config, rule: ExitRule, why: impl Into<String>) -> Self {
        Self::of_rule(rule, RulePolicy::total_limit(&rule, None, config) as f64, why)
    }

    /// As [`single`](Self::single), with the loop steps that the rule takes at most; how many it takes as a mean is learnt.
    pub fn of_rule(rule: ExitRule, steps: f64, why: impl Into<String>) -> Self {
        let rung = Rung { rule, steps: steps.max(1.0), loss: f64::NAN, ms: f64::NAN, joules: None };
        let note = Some(why.into());
        Self { rungs: vec![rung], base_ms: 0.0, step_ms: 1.0, threads: BTreeMap::new(), timed: false, note }
    }

    /// The rungs, at least one, ascending in price.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs
    }

    /// Why it is not the ladder that was asked for, in a sentence.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The deepest loop that any rung may ask for, where the user allows `most_steps`.
    pub fn depth_limit(&self, config: &Config, most_steps: Option<usize>) -> usize {
        self.rungs.iter().map(|r| RulePolicy::depth_limit(&r.rule, most_steps, config)).max().unwrap_or(1)
    }

    /// Are the mean steps of its rungs measured?
    pub(super) fn measured(&self) -> bool {
        self.rungs[0].loss.is_finite()
    }

    /// Are its times measured, or guesses up to a factor?
    pub(super) fn timed(&self) -> bool {
        self.timed
    }

    /// Predicted seconds, up to the factor that the governor estimates, of a token of `steps` loop steps at a rung.
    pub(super) fn seconds(&self, rung: usize, steps: f64) -> f64 {
        let at = |steps: f64| self.base_ms + self.step_ms * steps;
        let rung = &self.rungs[rung];
        // What a rule costs besides its steps, such as read-outs, is in its own time.
        let own = if self.timed && rung.ms.is_finite() { rung.ms / at(rung.steps) } else { 1.0 };
        at(steps) * own.clamp(0.2, 5.0) / 1e3
    }

    /// Speed with `threads`, as a share of that with `most`: by the profile, else by a power law between not at all and fully
    /// parallel.
    pub(super) fn speed(&self, threads: usize, most: usize) -> f64 {
        if threads >= most {
            return 1.0;
        }
        let guess = |n: usize| libm::pow(n as f64, 0.65);
        let known = |n: usize| {
            let sound = |(&n, &share): (&usize, &f64)| (share.is_finite() && share > 0.0).then_some((n as f64, share));
            let below = self.threads.range(..=n).next_back().and_then(sound)?;
            let above = self.threads.range(n..).next().and_then(sound).unwrap_or(below);
            let way = if above.0 > below.0 { (n as f64 - below.0) / (above.0 - below.0) } else { 0.0 };
            Some(below.1 + way * (above.1 - below.1))
        };
        let share = match (known(threads), known(most)) {
            (Some(a), Some(b)) => a / b,
            _ => guess(threads) / guess(most),
        };
        share.clamp(0.02, 1.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governor::simulate;
    use std::path::Path;

    fn config() -> Config {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        crate::arch::open(&path, crate::arch::Load::Map).unwrap().config().clone()
    }

    #[test]
    fn rungs_are_within_the_floor_and_worth_climbing() {
        let profile = simulate::profile(12.0, 6.5);
        for max_loss in [0.0, 0.001, 0.01, 0.1, 3.0] {
            let ladder = Ladder::of_points(&profile, max_loss).unwrap();
            let rungs = ladder.rungs();
            assert!(rungs.iter().all(|r| r.loss <= max_loss), "{max_loss}");
            let worth = 0.009 * max_loss.min(1.0);
            assert!(rungs.windows(2).all(|w| w[0].ms < w[1].ms && w[0].loss > w[1].loss));
            assert!(rungs[..rungs.len() - 1].windows(2).all(|w| w[0].loss > w[1].loss + worth));
            assert_eq!(ladder.note(), None);
            let best = profile.front().into_iter().rfind(|p| profile.loss(p) <= max_loss).unwrap();
            assert_eq!(rungs.last().unwrap().rule, best.rule, "the best is never pruned");
        }
        let mut worse = profile;
        worse.depths.iter_mut().chain(&mut worse.rules).for_each(|p| p.kl.value += 0.5);
        let ladder = Ladder::of_points(&worse, 0.01).unwrap();
        assert!(
            ladder.rungs().len() == 1 && ladder.note().unwrap().contains("no calibrated setting loses 1 % or less")
        );
    }

    #[test]
    fn the_model_decides_what_can_be_run() {
        let (profile, config) = (simulate::profile(12.0, 6.5), config());
        let force: ExitRule = "fixed:6".parse().unwrap();
        let of = |config: &Config, most| Ladder::of_profile(&profile, config, 0.01, most, force);
        assert!(can_exit(&config) && of(&config, None).rungs().len() > 3);
        assert_eq!(of(&config, None).depth_limit(&config, None), 64);
        assert_eq!(Ladder::single(&config, "kl".parse().unwrap(), "").depth_limit(&config, Some(3)), 3);
        // The rules have a maximum of 64 steps of their own.
        let shallow = of(&config, Some(32));
        assert!(shallow.rungs().iter().all(|r| r.rule.name() == "fixed"), "{:?}", shallow.rungs());
        let nothing = of(&config, Some(1));
        assert!(nothing.rungs()[0].rule.max_steps() == Some(1) || nothing.rungs()[0].rule == force);

        let mut whole = config;
        whole.exit_gate = false;
        whole.loops.iter_mut().for_each(|l| l.max_steps = Some(l.mean_steps));
        let ladder = of(&whole, None);
        assert_eq!((ladder.rungs().len(), ladder.rungs()[0].rule), (1, force));
        assert!(ladder.note().unwrap().contains("whole loop"));
        whole.exit_gate = true;
        assert!(can_exit(&whole), "Ouro has a gate");
    }

    #[test]
    fn speeds_are_interpolated_or_guessed() {
        let ladder = Ladder::of_points(&simulate::profile(12.0, 6.5), 0.01).unwrap();
        assert_eq!((ladder.speed(4, 4), ladder.speed(2, 4), ladder.speed(9, 4)), (1.0, 0.62, 1.0));
        assert!((ladder.speed(2, 3) - 0.62 / 0.82).abs() < 1e-12);
        let unknown = Ladder::of_rule("fixed:2".parse().unwrap(), 2.0, "alone");
        let half = unknown.speed(2, 4);
        assert!(half > 0.5 && half < 1.0);
    }
}
