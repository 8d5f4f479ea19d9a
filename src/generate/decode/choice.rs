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
//! Both, for every distance, are compared with R passes of one row and one read-out. What a plan promises it must keep: where tokens take longer
//! under it than plain ones should, nothing is guessed for a while, and for twice as long each time that this happens.

use std::time::Duration;

/// Rows up to which costs are kept apart.
const ROWS: usize = 64;
/// Weight of a new measurement.
const ALPHA: f64 = 0.1;
/// The first measurements.
const FEW: u64 = 4;
/// A measurement counts as this many times the mean at most.
const HELD_UP: f64 = 2.0;
/// Counts of guesses fade by this factor with every guess at the same depth: the latest fifty or so matter.
const FADE: f64 = 0.98;
/// What is believed before anything was seen: so many guesses, of which this part was right.
const BELIEF: (f64, f64) = (2.0, 0.9);
/// Tokens after which a plan must have kept what it promised.
const TRIAL: u64 = 16;
/// What a token is taken to have cost at most, in plain ones.
const MOST_SPENT: f64 = 2.0;
/// Longest time without guesses, in tokens.
const LONGEST_REST: u64 = 4096;
/// Part of a pass that another row is believed to add before it was measured: little, so that it is tried.
const ROW: f64 = 0.1;
/// What a plan must gain over plain decoding, and the other way round: measurements are not exact.
const GAIN: f64 = 0.95;
/// What a plan must gain over the one in force. Plans differ little, and what they cost is measured at different times.
const CHANGE: f64 = 0.85;
/// Every so many tokens it is thought over, for the first time after as many.
const THINK: u64 = 4;
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
        // One that took several times as long was held up by something else; of the first few the quickest counts.
        match known {
            0 => self.seconds[rows] = seconds,
            1..FEW => self.seconds[rows] = seconds.min(self.seconds[rows]),
            _ => self.seconds[rows] += ALPHA * (seconds.min(HELD_UP * self.seconds[rows]) - self.seconds[rows]),
        }
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
    /// Seconds of passes, read-outs and entries since the latest token was drawn.
    spent: f64,
    /// Seconds that tokens took since guesses were made at all, and how many they are.
    took: (f64, u64),
    /// Nothing is guessed before so many tokens were seen, and how long that lasts next time.
    rest_until: u64,
    rest: u64,
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
            spent: 0.0,
            took: (0.0, 0),
            rest_until: 0,
            rest: LOOK,
        }
    }

    pub(super) fn passed(&mut self, passes: usize, rows: usize, took: Duration) {
        if passes > 0 {
            self.steps.note(rows, took.as_secs_f64() / passes as f64);
            self.spent += took.as_secs_f64();
        }
    }

    pub(super) fn read(&mut self, rows: usize, took: Duration) {
        self.reads.note(rows, took.as_secs_f64());
        self.spent += took.as_secs_f64();
    }

    pub(super) fn entered(&mut self, took: Duration) {
        self.enters.note(1, took.as_secs_f64());
        self.spent += took.as_secs_f64();
    }

    /// A guess at depth `steps` came true, or did not.
    pub(super) fn guessed(&mut self, steps: usize, right: bool) {
        if self.guesses.len() <= steps {
            self.guesses.resize(steps + 1, (0.0, 0.0));
        }
        let (made, came) = &mut self.guesses[steps];
        *made = *made * FADE + 1.0;
        *came = *came * FADE + f64::from(u8::from(right));
    }

    /// A token was drawn from a row that took so many steps; `most` is what one may take.
    pub(super) fn drawn(&mut self, steps: usize, most: usize, rows: usize) {
        self.tokens += 1;
        let weight = (1.0 / self.tokens as f64).max(ALPHA);
        self.depth += weight * (steps as f64 - self.depth);
        self.keep_promises();
        if self.tokens.is_multiple_of(THINK) {
            self.choose(most, rows);
        }
    }

    /// Compares what tokens took with what plain ones would have.
    fn keep_promises(&mut self) {
        let spent = std::mem::take(&mut self.spent);
        if self.plan.is_none() {
            self.took = (0.0, 0);
            return;
        }
        // One that took several times as long was held up by something else.
        let (spent, plain) = (spent.min(MOST_SPENT * self.plain()), self.plain());
        let (seconds, tokens) = &mut self.took;
        (*seconds, *tokens) = (*seconds + spent, *tokens + 1);
        let (mean, tokens) = (*seconds / *tokens as f64, *tokens);
        if tokens < TRIAL {
            return;
        }
        if mean > plain {
            self.plan = None;
            self.rest_until = self.tokens + self.rest;
            self.rest = (2 * self.rest).min(LONGEST_REST);
        } else if tokens >= 3 * TRIAL {
            // It has been good for so long; the next tokens are judged anew.
            self.rest = LOOK;
            self.took = (0.0, 0);
        }
    }

    /// Share of the guesses at a depth that come true.
    fn rate(&self, steps: usize) -> f64 {
        let seen = |g: &&(f64, f64)| g.0 > 0.5;
        let (belief, rate) = BELIEF;
        let of = |&(made, right): &(f64, f64)| (right + belief * rate) / (made + belief);
        if let Some(here) = self.guesses.get(steps).filter(seen) {
            return of(here);
        }
        // Where none were made they are as good as shallower ones, and no better than deeper ones.
        let shallower = self.guesses.iter().take(steps).rev().find(seen);
        let deeper = self.guesses.iter().skip(steps + 1).find(seen);
        shallower.or(deeper).map_or(rate, of)
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
        let plans = (self.closest(most, rows)..most)
            .flat_map(|every| [false, true].map(|refine| Plan { every, refine }))
            .map(|plan| (self.expected(plan, rows), plan));
        // The first choice is between what was done until then and the others.
        let looked = (self.tokens <= THINK).then(|| self.at(self.closest(most, rows)));
        let mut chosen = self.plan.or(looked);
        if let Some((seconds, plan)) = plans.min_by(|a, b| a.0.total_cmp(&b.0))
            && seconds < CHANGE * chosen.map_or(f64::INFINITY, |plan| self.expected(plan, rows))
            && seconds < GAIN * self.plain()
        {
            chosen = Some(plan);
        }
        if self.tokens < self.rest_until || chosen.is_some_and(|plan| self.plain() < GAIN * self.expected(plan, rows)) {
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
        if self.tokens < THINK { Some(self.at(first)) } else { self.plan }
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
            // These were no costs of a single token.
            choice.spent = 0.0;
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
        // Every eight steps with another look is as good as every sixteen.
        assert!((8..=24).contains(&plan.every) && (plan.refine || plan.every >= 14), "{plan:?}");
        assert!(choice.expected(plan, 8) < 0.65 * choice.plain());
    }

    /// Tokens of `depth` steps whose guesses are never right, where a pass costs 1 and `row` for every further row, and a read-out or an entry
    /// 0.9: the cost of `n` tokens by that of plain ones.
    fn failing(depth: usize, row: f64, n: usize) -> f64 {
        let mut choice = Choice::new();
        let cost = |rows: usize| 1.0 + row * (rows as f64 - 1.0);
        let seconds = Duration::from_secs_f64;
        let (mut all, plain) = (0.0, depth as f64 + 1.8);
        for _ in 0..n {
            let looks = choice.looks();
            let plan = choice.plan(depth, 8);
            let every = plan.map(|plan| plan.every).or(looks.then_some(depth.div_ceil(8)));
            all += 0.9;
            choice.entered(seconds(0.9));
            for step in 1..=depth {
                // The token, and those that entered behind it.
                let rows = if plan.is_some() { every.map_or(1, |n| (1 + (step - 1) / n).min(8)) } else { 1 };
                all += cost(rows);
                choice.passed(1, rows, seconds(cost(rows)));
                let due = every.is_some_and(|n| step % n == 0);
                if due && step < depth {
                    let read = if plan.is_some_and(|plan| plan.refine) { rows } else { 1 };
                    all += 0.9 * cost(read);
                    choice.read(read, seconds(0.9 * cost(read)));
                    if plan.is_some() && rows < 8 {
                        all += 0.9;
                        choice.entered(seconds(0.9));
                    }
                    if read > 1 || step == every.unwrap_or(1) || looks {
                        choice.guessed(step, false);
                    }
                }
            }
            all += 0.9;
            choice.read(1, seconds(0.9));
            choice.drawn(depth, depth, 8);
        }
        all / (plain * n as f64)
    }

    #[test]
    fn guesses_that_never_come_true_cost_little() {
        for depth in [4, 8, 32] {
            for row in [0.05, 0.1, 0.2, 0.5, 0.9] {
                let (early, late) = (failing(depth, row, 200), failing(depth, row, 3000));
                // The first four tokens show what passes of up to eight rows cost.
                assert!(early < 1.15 && late < 1.05, "{depth} steps, rows at {row}: {early:.3}, {late:.3}");
            }
        }
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
