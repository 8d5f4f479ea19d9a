//! How far apart tokens follow each other: chosen from what passes cost on this machine and from how often guesses come true.
//!
//! With tokens `every` steps apart, a token of R steps has k = ⌈R / every⌉ rows in flight (its own and those of its successors). If all
//! guesses come true, a token takes `every` passes of k rows. A guess that was wrong is found out at the latest when its token is done;
//! with a(d) the share of guesses at depth d that come true, a token then takes
//!
//! ```text
//! every + (1 − a(every)) · (R − every)
//! ```
//!
//! passes, and two read-outs in all: one for the guess, one at the end. Or tokens are read out every `every` steps all the way, which costs
//! more, and finds out earlier what was wrong: each read-out that still guesses wrong delays the successor by `every` passes, and a token
//! takes
//!
//! ```text
//! every · (1 + Σ (1 − a(m · every)))   for m = 1 .. k − 1
//! ```
//!
//! Both, for every distance, are compared with R passes of one row and one read-out.

use std::time::Duration;

/// Rows up to which costs are kept apart.
const ROWS: usize = 64;
/// Weight of a new measurement.
const ALPHA: f64 = 0.1;
/// Counts of guesses fade by this factor with every token: the text of some fifty tokens matters.
const FADE: f64 = 0.98;
/// What is believed before anything was seen: so many guesses, of which this part was right.
const BELIEF: (f64, f64) = (2.0, 0.9);
/// Part of a pass that another row is believed to add before it was measured: little, so that it is tried.
const ROW: f64 = 0.1;
/// What a choice must gain over the one in force, and over plain decoding: measurements are not exact.
const GAIN: f64 = 0.95;
/// Every so many tokens it is thought over.
const THINK: u64 = 8;
/// Guesses that come true as often as this are not worth another look before the end.
const SURE: f64 = 0.85;
/// Without guesses in flight, every so many tokens the costs and guesses are looked at again.
pub(super) const LOOK: u64 = 32;

/// Mean cost by number of rows, in seconds.
#[derive(Debug, Clone)]
struct Costs {
    seconds: Vec<f64>,
    times: Vec<u64>,
}

impl Costs {
    fn new() -> Self {
        Self { seconds: vec![0.0; ROWS + 1], times: vec![0; ROWS + 1] }
    }

    fn note(&mut self, rows: usize, seconds: f64) {
        let rows = rows.min(ROWS);
        let known = self.times[rows];
        self.times[rows] += 1;
        // The first measurements count more, and one that took several times as long was held up by something else.
        let weight = (1.0 / (known + 1) as f64).max(ALPHA);
        let seconds = if known > 2 { seconds.min(3.0 * self.seconds[rows]) } else { seconds };
        self.seconds[rows] += weight * (seconds - self.seconds[rows]);
    }

    /// What a call with this many rows costs: measured, or from the nearest number of rows that was.
    fn of(&self, rows: usize) -> f64 {
        let rows = rows.clamp(1, ROWS);
        if self.times[rows] > 0 {
            return self.seconds[rows];
        }
        let fewer = (1..rows).rev().find(|&n| self.times[n] > 0);
        let more = (rows + 1..=ROWS).find(|&n| self.times[n] > 0);
        let scaled = |n: usize| self.seconds[n] * (1.0 + ROW * (rows as f64 - 1.0)) / (1.0 + ROW * (n as f64 - 1.0));
        match (fewer, more) {
            (Some(a), Some(b)) => {
                let part = (rows - a) as f64 / (b - a) as f64;
                self.seconds[a] + part * (self.seconds[b] - self.seconds[a])
            }
            (Some(n), None) | (None, Some(n)) => scaled(n),
            (None, None) => 0.0,
        }
    }
}

/// How tokens follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Loop steps between a token and its successor.
    pub every: usize,
    /// Are tokens read out again at all multiples of it?
    pub refine: bool,
}

/// What is known, and the plan in force.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    steps: Costs,
    reads: Costs,
    enters: Costs,
    /// Guesses by depth: (made, right), fading.
    guesses: Vec<(f64, f64)>,
    /// Steps that tokens take, on average.
    depth: f64,
    /// Tokens seen.
    tokens: u64,
    /// The plan in force; `None`: nothing in flight but the token itself.
    plan: Option<Plan>,
}

impl Choice {
    pub(super) fn new() -> Self {
        Self {
            steps: Costs::new(),
            reads: Costs::new(),
            enters: Costs::new(),
            guesses: Vec::new(),
            depth: 0.0,
            tokens: 0,
            plan: None,
        }
    }

    pub(super) fn passed(&mut self, passes: usize, rows: usize, took: Duration) {
        if passes > 0 {
            self.steps.note(rows, took.as_secs_f64() / passes as f64);
        }
    }

    pub(super) fn read(&mut self, rows: usize, took: Duration) {
        self.reads.note(rows, took.as_secs_f64());
    }

    pub(super) fn entered(&mut self, took: Duration) {
        self.enters.note(1, took.as_secs_f64());
    }

    /// A guess at depth `steps` came true, or did not.
    pub(super) fn guessed(&mut self, steps: usize, right: bool) {
        if self.guesses.len() <= steps {
            self.guesses.resize(steps + 1, (0.0, 0.0));
        }
        let (made, came) = &mut self.guesses[steps];
        *made += 1.0;
        *came += f64::from(u8::from(right));
    }

    /// A token was drawn from a row that took so many steps; `most` is what one may take.
    pub(super) fn drawn(&mut self, steps: usize, most: usize, rows: usize) {
        self.tokens += 1;
        let weight = (1.0 / self.tokens as f64).max(ALPHA);
        self.depth += weight * (steps as f64 - self.depth);
        for (made, right) in &mut self.guesses {
            *made *= FADE;
            *right *= FADE;
        }
        if self.tokens.is_multiple_of(THINK) {
            self.choose(most, rows);
        }
    }

    /// Share of the guesses at a depth that come true.
    fn rate(&self, steps: usize) -> f64 {
        let (made, right) = self.guesses.get(steps).copied().unwrap_or_default();
        // What shallower guesses achieve deeper ones do, too, where these were never made.
        let (belief, rate) = BELIEF;
        let rate = if made > 0.0 {
            rate
        } else {
            let shallower = self.guesses.iter().take(steps).rev().find(|g| g.0 > 0.5);
            shallower.map_or(rate, |&(made, right)| (right / made).max(rate * 0.5))
        };
        (right + belief * rate) / (made + belief)
    }

    /// Seconds that a token is expected to take with nothing in flight but itself.
    pub(super) fn plain(&self) -> f64 {
        self.depth * self.steps.of(1) + self.reads.of(1) + self.enters.of(1)
    }

    /// Seconds that a token is expected to take under a plan, with `rows` in flight at most.
    fn expected(&self, Plan { every, refine }: Plan, rows: usize) -> f64 {
        let step = every as f64;
        let in_flight = (self.depth / step).ceil().clamp(1.0, rows as f64);
        let least = step.max(self.depth / in_flight);
        let passes = if refine {
            least * (1.0 + (1..in_flight as usize).map(|m| 1.0 - self.rate(m * every)).sum::<f64>())
        } else {
            least + (1.0 - self.rate(every)) * (self.depth - step).max(0.0)
        };
        let passes = passes.min(self.depth);
        let reads = (passes / step).max(1.0);
        let read = if refine { in_flight as usize } else { 2 };
        passes * self.steps.of(in_flight as usize) + reads * self.reads.of(read) + self.enters.of(1)
    }

    fn choose(&mut self, most: usize, rows: usize) {
        let cost = |plan: Option<Plan>| plan.map_or_else(|| self.plain(), |plan| self.expected(plan, rows));
        let plans = (self.closest(most, rows)..most)
            .flat_map(|every| [false, true].map(|refine| Plan { every, refine }))
            .map(|plan| (self.expected(plan, rows), plan));
        let mut chosen = self.plan;
        if let Some((seconds, plan)) = plans.min_by(|a, b| a.0.total_cmp(&b.0))
            && seconds < GAIN * cost(chosen)
            && seconds < GAIN * self.plain()
        {
            chosen = Some(plan);
        }
        if chosen.is_some() && self.plain() < GAIN * cost(chosen) {
            chosen = None;
        }
        self.plan = chosen;
    }

    /// The smallest distance for which there are rows enough.
    fn closest(&self, most: usize, rows: usize) -> usize {
        let depth = if self.tokens == 0 { most } else { (self.depth.ceil() as usize).min(most) };
        depth.div_ceil(rows).max(1)
    }

    /// How tokens are to follow each other from here on, in tokens of `most` steps with `rows` in flight at most; `None`: nothing is to be
    /// guessed.
    pub(super) fn plan(&self, most: usize, rows: usize) -> Option<Plan> {
        // At first as close together as there are rows for: that shows passes of all numbers of rows.
        let first = self.closest(most, rows);
        if most <= first {
            return None;
        }
        if self.tokens < LOOK / 2 { Some(self.at(first)) } else { self.plan }
    }

    /// The plan for a distance that is given.
    pub(super) fn at(&self, every: usize) -> Plan {
        Plan { every, refine: self.rate(every) < SURE }
    }

    /// Is this a token to look again at?
    pub(super) fn looks(&self) -> bool {
        self.plan.is_none() && self.tokens.is_multiple_of(LOOK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells a choice of passes whose costs grow by `row` per row, and of guesses that come true as `rate` says.
    fn seen(row: f64, rate: impl Fn(usize) -> f64, depth: usize) -> Choice {
        let mut choice = Choice::new();
        let cost = |rows: usize| Duration::from_secs_f64(1e-3 * (1.0 + row * (rows as f64 - 1.0)));
        for t in 0..200 {
            for rows in 1..=8 {
                choice.passed(2, rows, cost(rows) * 2);
                choice.read(rows, cost(rows));
            }
            choice.entered(cost(1));
            for d in 1..depth {
                // As many of a hundred as the rate says.
                choice.guessed(d, f64::from((t * 37 + d as u32) % 100) < 100.0 * rate(d));
            }
            choice.drawn(depth, depth, 8);
        }
        choice
    }

    #[test]
    fn cheap_rows_and_good_guesses_are_used() {
        let choice = seen(0.05, |_| 0.98, 32);
        let plan = choice.plan(32, 8).unwrap();
        assert_eq!(plan, Plan { every: 4, refine: false }, "as many rows as there may be, and sure");
        assert!(choice.expected(plan, 8) < 0.3 * choice.plain());
    }

    #[test]
    fn dear_rows_are_not() {
        assert_eq!(seen(0.95, |_| 0.98, 32).plan(32, 8), None);
    }

    #[test]
    fn guesses_that_fail_are_not_made() {
        assert_eq!(seen(0.2, |_| 0.02, 16).plan(16, 8), None);
    }

    #[test]
    fn guesses_that_need_depth_are_given_it() {
        let choice = seen(0.05, |d| if d >= 16 { 0.99 } else { 0.1 }, 32);
        let plan = choice.plan(32, 8).unwrap();
        assert!((14..=24).contains(&plan.every), "{plan:?}");
    }

    #[test]
    fn one_hold_up_does_not_count() {
        let mut costs = Costs::new();
        (0..20).for_each(|_| costs.note(2, 1.0));
        costs.note(2, 100.0);
        assert!(costs.of(2) < 1.3);
        // Numbers of rows that were not measured lie between those that were.
        costs.note(6, 2.0);
        assert!((1.0..2.0).contains(&costs.of(4)) && costs.of(8) > 2.0 && costs.of(1) < costs.of(2));
        assert_eq!(Costs::new().of(3), 0.0);
    }

    #[test]
    fn it_begins_with_a_look_at_everything() {
        let choice = Choice::new();
        assert_eq!([32, 8, 6].map(|most| choice.plan(most, 8).unwrap().every), [4, 1, 1]);
        assert_eq!((choice.plan(1, 8), choice.looks()), (None, true));
    }
}
