//! The controller: from readings and the latest tokens to depth, threads and pace.

use super::decision::History;
use super::duty::{self, Duty};
use super::estimate::{Power, Ratio, Scale};
use super::{Budget, Cause, Decision, Ladder, Mode, Readings, Summary};
use crate::exit::{ExitRule, Signal};
use std::collections::VecDeque;

/// Tokens per second that are comfortable to read: some 270 English words a minute, a little more than most people read.
pub const READING_RATE: f64 = 6.0;

/// The setting in force is left for a cheaper one at once when it takes longer than allowed by the first factor, and when it took
/// longer by the second for so many tokens in a row,
const URGENT: f64 = 1.1;
const STAY: f64 = 1.03;
const STAY_TOKENS: u32 = 12;
/// for one that takes at most this share,
const CHEAPER: f64 = 0.98;
/// and for a dearer one only if that takes at most this share.
const DEARER: f64 = 0.92;
/// Threads that were taken away for heat or energy come back when a token takes at most this share of what is allowed.
const THREADS_BACK: f64 = 0.7;
/// Seconds, and tokens, between a change and one to a dearer setting or to fewer threads.
const DWELL: f64 = 2.0;
const DWELL_TOKENS: u32 = 8;
/// The longest time that failed tries make of [`DWELL`], each trebling it.
const LONGEST_DWELL: f64 = 600.0;
/// Within so many degrees of a cap, changes to dearer settings are so many seconds apart.
const WARM: (f64, f64) = (8.0, 30.0);
/// Seconds for which a dearer setting must hold, at least, to have been right; devices take a minute to warm up.
const HELD: f64 = 90.0;
/// Seconds between two changes of the mode.
const MODE_DWELL: f64 = 5.0;
/// A battery is nearly empty below the first, and no longer so from the second, in per cent.
const NEARLY_EMPTY: (f64, f64) = (20.0, 23.0);
/// What may be caught up after slow tokens: periods of the pace, and seconds.
const CREDIT: (f64, f64) = (1.5, 1.0);
/// Longest pause behind a token, in seconds: a token of two minutes at the least duty. Who sleeps asks [`Controller::wait`] meanwhile.
pub const LONGEST_PAUSE: f64 = 3600.0;
/// Shorter pauses, in seconds, are not worth a system call; they are made up for later.
const SHORTEST_PAUSE: f64 = 0.0005;
/// Tokens that the rate is told of.
const RATE_TOKENS: usize = 16;
/// Readings after which what was never read counts as unreadable.
const PATIENCE: u32 = 3;

/// A token that was generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Seconds that it was computed in, pauses not counted.
    pub seconds: f64,
    /// Loop steps that it took.
    pub steps: usize,
    /// Joules that the device spent since they were told last, if they are told now.
    pub joules: Option<f64>,
}

/// Turns a budget into depth, threads and pace. It has no clock: all times are the caller's, in seconds from any beginning.
///
/// The caller tells it of each token and of readings as they come, changes the exit rule and the threads to what
/// [`rule`](Self::rule) and [`threads`](Self::threads) say, and pauses as [`token`](Self::token) asks.
#[derive(Debug, Clone)]
pub struct Controller {
    ladder: Ladder,
    budget: Budget,
    /// Threads that there are, and whether they mean anything.
    most: usize,
    threaded: bool,
    mode: Mode,
    mode_since: f64,
    rung: usize,
    threads: usize,
    /// Seconds per token to which the text is paced; 0: not.
    period: f64,
    /// Is it the temperature that asks for the pace?
    cooling: bool,
    scale: Scale,
    ratio: Ratio,
    power: Power,
    duty: Option<Duty>,
    /// Seconds at full power since the latest reading, and when that was.
    used: f64,
    used_since: f64,
    readings: Readings,
    read: u32,
    now: f64,
    /// When the next token should begin, and from when on its period counts.
    next: f64,
    since: f64,
    /// When the latest token ended, and the pause that was asked for behind it.
    ended: f64,
    asked: f64,
    /// Seconds of the latest token.
    latest: f64,
    depth_change: Change,
    thread_change: Change,
    /// Tokens in a row that took longer than allowed by [`STAY`].
    over: u32,
    short: bool,
    /// Duty of the latest decision about heat.
    told_duty: f64,
    told_at: f64,
    told_cooling: bool,
    joules_missing: bool,
    celsius_missing: bool,
    battery_missing: bool,
    ends: VecDeque<f64>,
    paused: f64,
    history: History,
}

/// When something was changed last, and how long it must stay before it is made dearer.
#[derive(Debug, Clone, Copy)]
struct Change {
    at: f64,
    tokens: u32,
    dearer: bool,
    dwell: f64,
}

impl Change {
    fn new() -> Self {
        Self { at: f64::NEG_INFINITY, tokens: 0, dearer: false, dwell: DWELL }
    }

    /// May it become dearer?
    fn ripe(&self, now: f64, least: f64) -> bool {
        self.tokens >= DWELL_TOKENS && now - self.at >= self.dwell.max(least)
    }

    fn note(&mut self, now: f64, dearer: bool) {
        let (held, long) = (now - self.at, (8.0 * self.dwell).max(HELD));
        if !dearer && self.dearer && held < long {
            // What was tried did not hold: wait longer before the next try.
            self.dwell = (3.0 * self.dwell).max(held).min(LONGEST_DWELL);
        } else if held > long {
            self.dwell = (self.dwell / 2.0).max(DWELL);
        }
        (self.at, self.tokens, self.dearer) = (now, 0, dearer);
    }
}

/// What the budget comes to at the moment.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rung: usize,
    threads: usize,
    period: f64,
    cooling: bool,
    /// The bound that decides, in seconds of compute per token.
    limit: f64,
    cause: Cause,
    /// The cheapest rung with all threads takes longer than allowed.
    short: bool,
}

impl Controller {
    /// A governor of `threads` worker threads, at time `now`; 0: the model runs where they mean nothing.
    pub fn new(ladder: Ladder, budget: Budget, threads: usize, now: f64) -> Self {
        let now = if now.is_finite() { now } else { 0.0 };
        let mode = match budget.mode {
            Mode::Auto => Mode::Quality,
            mode => mode,
        };
        let top = ladder.rungs().len() - 1;
        let most = threads.max(1);
        let measured = ladder.measured();
        let mut governor = Self {
            duty: budget.max_temp.map(Duty::new),
            ladder,
            budget,
            most,
            threaded: threads > 0,
            mode,
            mode_since: f64::NEG_INFINITY,
            rung: top,
            threads: most,
            period: 0.0,
            cooling: false,
            scale: Scale::default(),
            ratio: Ratio::new(measured),
            power: Power::default(),
            used: 0.0,
            used_since: now,
            readings: Readings::default(),
            read: 0,
            now,
            next: now,
            since: now,
            ended: now,
            asked: 0.0,
            latest: 0.0,
            depth_change: Change::new(),
            thread_change: Change::new(),
            over: 0,
            short: false,
            told_duty: 1.0,
            told_at: f64::NEG_INFINITY,
            told_cooling: false,
            joules_missing: false,
            celsius_missing: false,
            battery_missing: false,
            ends: VecDeque::new(),
            paused: 0.0,
            history: History::default(),
        };
        if mode != Mode::Off {
            let plan = governor.plan();
            (governor.rung, governor.threads) = (plan.rung, plan.threads);
            (governor.period, governor.cooling) = (plan.period, plan.cooling);
            let mut reason = format!("{mode}: {}", governor.setting());
            if plan.limit.is_finite() {
                reason += &format!(" for {}", governor.bound(&plan));
            }
            if let Some(note) = governor.ladder.note() {
                reason += &format!("; {note}");
            }
            governor.tell(Cause::Start, reason);
        }
        governor
    }

    /// The exit rule in force.
    pub fn rule(&self) -> ExitRule {
        self.ladder.rungs()[self.rung].rule
    }

    /// Threads in force, from 1.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The ladder.
    pub fn ladder(&self) -> &Ladder {
        &self.ladder
    }

    /// What was asked for.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// The model runs elsewhere from `now` on, with `threads` worker threads, or 0 as in [`new`](Self::new): all of them are used, and
    /// what was learned of its times and its power counts no more.
    pub fn set_threads(&mut self, now: f64, threads: usize) {
        self.advance(now);
        (self.most, self.threads, self.threaded) = (threads.max(1), threads.max(1), threads > 0);
        (self.scale, self.ratio) = (Scale::default(), Ratio::new(self.ladder.measured()));
        (self.power, self.thread_change) = (Power::default(), Change::new());
        if self.mode != Mode::Off {
            let reason = match threads {
                0 => format!("{}: the model runs on a device now", self.setting()),
                _ => format!("{}: the model runs on the CPU now", self.setting()),
            };
            self.tell(Cause::Start, reason);
        }
    }

    /// Keeps the depth to one rule from `now` on, of `steps` loop steps at most; threads and pace remain. `why` says whose rule it is.
    pub fn pin(&mut self, now: f64, rule: ExitRule, steps: f64, why: &str) {
        self.advance(now);
        self.ladder = Ladder::of_rule(rule, steps, why);
        (self.rung, self.scale, self.ratio) = (0, Scale::default(), Ratio::new(false));
        if self.mode != Mode::Off {
            self.tell(Cause::Limit, format!("{rule}: {why}"));
        }
    }

    /// A text begins, or goes on after the user had the word: what was before is not caught up.
    pub fn start(&mut self, now: f64) {
        self.advance(now);
        (self.next, self.since, self.asked) = (self.now, self.now, 0.0);
        self.ends.clear();
        // What was spent in between was spent on something else.
        self.power.clear();
    }

    /// Takes the first readings, and says at once what cannot be read although the budget needs it. `energy`: can that be read?
    pub fn first(&mut self, now: f64, readings: &Readings, energy: bool) {
        self.read(now, readings);
        if self.mode != Mode::Off {
            self.complain(true, !energy);
        }
    }

    /// Takes readings, once a second or so.
    pub fn read(&mut self, now: f64, readings: &Readings) {
        self.advance(now);
        self.readings = readings.clone().sensible();
        self.read = self.read.saturating_add(1);
        if self.mode == Mode::Off {
            return;
        }
        if let Some(duty) = &mut self.duty {
            let passed = self.now - self.used_since;
            let used = if passed > 0.0 { (self.used / passed).clamp(0.0, 1.0) } else { 0.0 };
            duty.read(self.now, used, &self.readings);
            (self.used, self.used_since) = (0.0, self.now);
        }
        self.complain(self.read >= PATIENCE, self.read >= PATIENCE && self.depth_change.tokens > 64);
        self.choose_mode();
        self.decide();
    }

    /// Takes a token that ended at `now`; gives the seconds to pause before the next, from 0 to [`LONGEST_PAUSE`].
    pub fn token(&mut self, now: f64, seen: Observation) -> f64 {
        self.advance(now);
        if self.ends.len() > RATE_TOKENS {
            self.ends.pop_front();
        }
        self.ends.push_back(self.now);
        if self.mode == Mode::Off {
            return 0.0;
        }
        // What was really paused, which may have been cut short.
        let paused = self.now - seen.seconds - self.ended;
        self.paused += if paused > 0.0 { paused.min(self.asked) } else { 0.0 };
        if seen.seconds > 0.0 && seen.seconds < 3600.0 && seen.steps > 0 {
            self.latest = seen.seconds;
            let steps = seen.steps as f64;
            let speed = self.ladder.speed(self.threads, self.most);
            self.scale.add(seen.seconds * speed / self.ladder.seconds(self.rung, steps));
            if self.adaptive(self.rung) {
                self.ratio.add(steps / self.ladder.rungs()[self.rung].steps);
            }
            self.used += seen.seconds * power_share(self.threads, self.most);
            self.power.add(seen.seconds, power_share(self.threads, self.most), seen.joules);
        }
        self.depth_change.tokens = self.depth_change.tokens.saturating_add(1);
        self.thread_change.tokens = self.thread_change.tokens.saturating_add(1);
        let over = self.seconds(self.rung, self.most) > STAY * self.plan().limit;
        self.over = if over { self.over.saturating_add(1) } else { 0 };
        self.decide();
        (self.ended, self.since) = (self.now, self.next);
        self.pause()
    }

    /// Seconds of the pause behind the latest token that are left at `now`, after what was read meanwhile.
    pub fn wait(&mut self, now: f64) -> f64 {
        self.advance(now);
        if self.mode == Mode::Off || self.asked == 0.0 {
            return 0.0;
        }
        let slept = (self.now - self.ended).min(self.asked);
        self.asked = self.pause().max(slept);
        (self.next - self.now).max(0.0)
    }

    /// The oldest decision that was not taken yet.
    pub fn take_decision(&mut self) -> Option<Decision> {
        self.history.take()
    }

    /// Where it stands.
    pub fn summary(&self) -> Summary {
        let span = self.ends.back().zip(self.ends.front()).map(|(b, a)| b - a);
        Summary {
            asked: self.budget.mode,
            mode: self.mode,
            rule: self.rule().to_string(),
            rung: self.rung,
            rungs: self.ladder.rungs().len(),
            loss: finite(self.ladder.rungs()[self.rung].loss),
            threads: self.threaded.then_some(self.threads),
            of_threads: self.threaded.then_some(self.most),
            target_tps: self.target(),
            tokens_per_second: span.filter(|&s| s > 0.0).map(|s| (self.ends.len() - 1) as f64 / s),
            paused_seconds: self.paused,
            duty: self.duty.as_ref().map(Duty::value),
            watts: self.power.watts(),
            decisions: self.history.count(),
            latest: self.history.latest(),
        }
    }

    fn advance(&mut self, now: f64) {
        if now.is_finite() {
            self.now = self.now.max(now);
        }
    }

    fn adaptive(&self, rung: usize) -> bool {
        self.ladder.rungs()[rung].rule.signal() != Signal::None
    }

    /// Predicted seconds of compute per token; infinite while nothing at all is known.
    fn seconds(&self, rung: usize, threads: usize) -> f64 {
        let scale = match self.scale.value() {
            Some(scale) => scale,
            None if self.ladder.timed() => 1.0,
            None => return f64::NAN,
        };
        let rung_steps = self.ladder.rungs()[rung].steps;
        let steps = if self.adaptive(rung) { rung_steps * self.ratio.value() } else { rung_steps };
        self.ladder.seconds(rung, steps) * scale / self.ladder.speed(threads, self.most)
    }

    /// Tokens per second that are wanted.
    fn target(&self) -> Option<f64> {
        // As fast as people read, or as a bound needs.
        let bound = self.budget.max_ms_per_token.map_or(0.0, |ms| 1e3 / ms);
        let reading = (self.mode == Mode::Saver).then_some(READING_RATE.max(bound));
        self.budget.target_tps.or(reading)
    }

    /// The dearest rung that the mode would take without bounds.
    fn ceiling(&self) -> usize {
        let rungs = self.ladder.rungs();
        let bounded = self.budget.target_tps.is_some() || self.budget.max_ms_per_token.is_some();
        match self.mode {
            Mode::Saver => 0,
            Mode::Balanced if !bounded => {
                let half = self.budget.max_loss / 2.0;
                rungs.iter().position(|r| r.loss <= half).unwrap_or(rungs.len() - 1)
            }
            _ => rungs.len() - 1,
        }
    }

    /// Watts that computing at a setting is predicted to draw, by what was read, else by the profile.
    fn joules(&self, rung: usize, threads: usize) -> Option<f64> {
        let seconds = self.seconds(rung, threads);
        let share = power_share(threads, self.most);
        let read = self.power.watts().map(|w| w * share * seconds);
        let speed = self.ladder.speed(threads, self.most);
        read.or_else(|| Some(self.ladder.rungs()[rung].joules? * share / speed)).filter(|j| j.is_finite())
    }

    fn plan(&self) -> Plan {
        let ceiling = self.ceiling();
        let target = self.target();
        let duty = self.duty.as_ref().map_or(1.0, Duty::value);
        // What each bound comes to in seconds of compute per token.
        let (mut limit, mut cause) = (f64::INFINITY, Cause::Rate);
        let mut bound = |seconds: f64, by: Cause| {
            if seconds < limit {
                (limit, cause) = (seconds, by);
            }
        };
        bound(target.map_or(f64::INFINITY, |rate| 1.0 / rate), Cause::Rate);
        bound(self.budget.max_ms_per_token.map_or(f64::INFINITY, |ms| ms / 1e3), Cause::Rate);
        if let Some(most) = self.budget.max_joules_per_token
            && let Some(joules) = self.joules(ceiling, self.most)
        {
            bound(self.seconds(ceiling, self.most) * most / joules, Cause::Energy);
        }
        if duty < 0.999 {
            // The rate is kept at first: less depth is less heat at the same rate.
            let full = self.seconds(ceiling, self.most);
            let usual =
                target.map_or(full, |rate| if self.mode == Mode::Quality { full.min(1.0 / rate) } else { 1.0 / rate });
            bound(usual * duty, Cause::Heat);
        }

        // Depth comes back after the threads.
        let held_back = self.threads < self.most && matches!(cause, Cause::Heat | Cause::Energy);
        let allowed = |rung: usize| {
            let share = match rung.cmp(&self.rung) {
                std::cmp::Ordering::Less => CHEAPER,
                std::cmp::Ordering::Equal => STAY,
                std::cmp::Ordering::Greater if held_back => DEARER * THREADS_BACK,
                std::cmp::Ordering::Greater => DEARER,
            };
            // Where nothing is known yet (NaN), nothing is forbidden.
            let seconds = self.seconds(rung, self.most);
            seconds.is_nan() || seconds <= limit * share
        };
        // Warmth comes late: where there is a cap, up one at a time.
        let highest =
            if self.duty.is_some() && !self.history.is_empty() { ceiling.min(self.rung + 1) } else { ceiling };
        let rung = (0..=highest).rev().find(|&r| allowed(r)).unwrap_or(0);
        let threads = self.plan_threads(rung, limit, cause, duty);
        let seconds = self.seconds(rung, threads);
        let share = power_share(threads, self.most);
        let pace = match (self.mode, target) {
            (Mode::Quality, _) | (_, None) => 0.0,
            (_, Some(rate)) => 1.0 / rate,
        };
        let cool = if duty < 0.999 && seconds.is_finite() { seconds * share / duty } else { 0.0 };
        // That the rate falls when it is hot goes without saying.
        let short = rung == 0
            && cause != Cause::Heat
            && self.seconds(0, self.most) > limit * if self.short { CHEAPER } else { 1.05 };
        Plan { rung, threads, period: pace.max(cool), cooling: cool > pace, limit, cause, short }
    }

    /// The bound that decides, in words.
    fn bound(&self, plan: &Plan) -> String {
        let budget = &self.budget;
        match plan.cause {
            _ if plan.limit.is_infinite() => format!("the mode {}", self.mode),
            Cause::Energy => format!("{} J per token", budget.max_joules_per_token.unwrap_or(f64::NAN)),
            Cause::Heat => {
                let (cap, duty) = (budget.max_temp.unwrap_or(f64::NAN), self.duty.as_ref().map_or(1.0, Duty::value));
                let shown = self.readings.celsius.map_or("no temperature".into(), |c| format!("{c:.1} °C"));
                format!("{:.0} % of full power ({shown}, cap {cap} °C)", 100.0 * duty)
            }
            _ => match self.target().filter(|rate| 1.0 / rate <= plan.limit) {
                Some(rate) => format!("{} tokens/s ({:.1} ms per token)", shown(rate), 1e3 / rate),
                None => format!("{} ms per token", shown(1e3 * plan.limit)),
            },
        }
    }

    /// How many threads a setting gets.
    fn plan_threads(&self, rung: usize, limit: f64, cause: Cause, duty: f64) -> usize {
        let seconds = |t: usize| self.seconds(rung, t);
        let energy = |t: usize| power_share(t, self.most) * seconds(t);
        let all = 1..=self.most;
        if seconds(self.most).is_nan() {
            return self.threads;
        }
        // Fewer threads spend less, and so make room for more of them: back only when there is much.
        let share = if self.threads < self.most && cause != Cause::Rate { THREADS_BACK } else { CHEAPER };
        let strained = rung == 0 && seconds(self.most) > limit * share;
        match cause {
            // All of them are needed, and may not be enough.
            Cause::Rate if strained => self.most,
            // Fewer threads draw less than they are slower by: the most tokens within the power that is allowed.
            Cause::Heat if strained => {
                let rate = |t: usize| (1.0 / seconds(t)).min(duty / energy(t));
                all.fold(self.threads.min(self.most), |best, t| if rate(t) > 1.02 * rate(best) { t } else { best })
            }
            Cause::Energy if strained => all.min_by(|&a, &b| energy(a).total_cmp(&energy(b))).unwrap_or(self.most),
            _ if self.mode == Mode::Saver => {
                let holds = |t: &usize| {
                    let share = if *t >= self.threads { STAY } else { DEARER };
                    seconds(*t) <= limit * share
                };
                let efficient = all.filter(holds).min_by(|&a, &b| energy(a).total_cmp(&energy(b)));
                efficient.unwrap_or(self.most)
            }
            _ => self.most,
        }
    }

    /// Compares the plan with what is in force, and changes what is worth changing.
    fn decide(&mut self) {
        let plan = self.plan();
        (self.period, self.cooling) = (plan.period, plan.cooling);
        let (old_rung, old_threads) = (self.rung, self.threads);
        let warm = self.budget.max_temp.zip(self.readings.celsius).is_some_and(|(cap, celsius)| celsius > cap - WARM.0);
        let dwell = if warm { WARM.1 } else { 0.0 };
        let before = self.seconds(old_rung, old_threads);
        let urgent = self.over >= STAY_TOKENS || self.seconds(self.rung, self.most) > URGENT * plan.limit;
        // A mode that wants less is obeyed; a bound must really be overstepped.
        let cheaper = plan.rung < self.rung && (urgent || self.rung > self.ceiling());
        if cheaper || (plan.rung > self.rung && self.depth_change.ripe(self.now, dwell)) {
            self.depth_change.note(self.now, plan.rung > self.rung);
            (self.rung, self.over) = (plan.rung, 0);
            // What came late before the change is not made up for: the rate is to be right from here on.
            self.next = self.now - self.latest;
        }
        // Fewer threads are a trial where a rate must be held, more are one where it is hot; what corrects a trial does not wait.
        let trial = (plan.threads > self.threads) != (plan.cause == Cause::Rate);
        if plan.threads != self.threads && (!trial || self.thread_change.ripe(self.now, dwell)) {
            self.thread_change.note(self.now, trial);
            self.threads = plan.threads;
        }
        let ms = |seconds: f64| if seconds.is_finite() { format!("{:.1} ms", 1e3 * seconds) } else { "?".into() };
        if (self.rung, self.threads) != (old_rung, old_threads) {
            let cheaper = self.rung < old_rung || (self.rung == old_rung && plan.cause != Cause::Rate);
            let after = self.seconds(self.rung, self.threads);
            let bound = self.bound(&plan);
            let (old, setting) = (self.setting_of(old_rung, old_threads), self.setting());
            let reason = format!("{bound}: from {old} at {} per token to {setting} at {}", ms(before), ms(after));
            self.tell(if cheaper { plan.cause } else { Cause::Room }, reason);
        }
        if plan.short != self.short {
            self.short = plan.short;
            let seconds = self.seconds(0, self.most);
            let reason = match plan.short {
                true => format!(
                    "{} cannot be held: {}, the cheapest setting within the quality floor, takes {} per token where {} are allowed",
                    self.bound(&plan),
                    self.ladder.rungs()[0].rule,
                    ms(seconds),
                    ms(plan.limit)
                ),
                false => format!("{} can be held again, at {} per token", self.bound(&plan), ms(seconds)),
            };
            self.tell(Cause::Short, reason);
        }
        self.tell_duty();
    }

    /// A line when the temperature changes the pace by much; now and then, not at each token.
    fn tell_duty(&mut self) {
        let Some(duty) = self.duty.as_ref().map(Duty::value) else { return };
        let much =
            duty < 0.8 * self.told_duty || duty > 1.25 * self.told_duty || (duty > 0.999) != (self.told_duty > 0.999);
        // Where the pace is the user's, the duty is no news.
        let news = self.cooling || self.told_cooling;
        if !(much && news && self.now - self.told_at >= 15.0) {
            return;
        }
        (self.told_duty, self.told_at, self.told_cooling) = (duty, self.now, self.cooling);
        let shown = self.readings.celsius.map_or(String::new(), |c| format!("{c:.1} °C, "));
        let cap = self.budget.max_temp.unwrap_or(f64::NAN);
        let rate =
            if self.period > 0.0 { format!("at most {:.2} tokens/s", 1.0 / self.period) } else { "no pauses".into() };
        self.tell(Cause::Heat, format!("{shown}cap {cap} °C: {:.0} % of full power, {rate}", 100.0 * duty));
    }

    fn choose_mode(&mut self) {
        if self.budget.mode != Mode::Auto {
            return;
        }
        let percent = self.readings.battery_percent;
        let bound = if self.mode == Mode::Saver { NEARLY_EMPTY.1 } else { NEARLY_EMPTY.0 };
        let mode = match self.readings.on_battery {
            Some(true) if percent.is_some_and(|p| p < bound) => Mode::Saver,
            Some(true) => Mode::Balanced,
            Some(false) => Mode::Quality,
            // Not readable at the moment: as it was.
            None => self.mode,
        };
        if mode == self.mode || self.now - self.mode_since < MODE_DWELL {
            return;
        }
        (self.mode, self.mode_since) = (mode, self.now);
        // The new mode's setting is taken as it is.
        let plan = self.plan();
        (self.rung, self.threads, self.period, self.cooling) = (plan.rung, plan.threads, plan.period, plan.cooling);
        let charge = percent.map_or(String::new(), |p| format!(" at {p:.0} %"));
        let why = match mode {
            Mode::Saver => format!("the battery is nearly empty{charge}"),
            Mode::Balanced => format!("on battery{charge}"),
            _ => "on mains".into(),
        };
        self.tell(Cause::Mode, format!("{why}: {mode}, {}", self.setting()));
    }

    /// Says once what cannot be read although the budget needs it: temperature and battery `now`, energy if it is `silent`.
    fn complain(&mut self, now: bool, silent: bool) {
        if let (Some(cap), true) = (self.budget.max_temp, now && !self.celsius_missing)
            && !self.duty.as_ref().is_some_and(Duty::seen)
        {
            self.celsius_missing = true;
            let signs = self.readings.clock_share.is_some() || self.readings.throttle_count.is_some();
            let instead = if signs { "the signs of throttling are gone by instead" } else { "the cap has no effect" };
            self.tell(Cause::Limit, format!("{cap} °C at most: no temperature can be read here; {instead}"));
        }
        if self.budget.mode == Mode::Auto && now && !self.battery_missing && self.readings.on_battery.is_none() {
            self.battery_missing = true;
            let mode = self.mode;
            self.tell(Cause::Limit, format!("auto: neither battery nor mains can be read here; it stays with {mode}"));
        }
        if let (Some(most), true) = (self.budget.max_joules_per_token, silent && !self.joules_missing)
            && self.power.watts().is_none()
        {
            self.joules_missing = true;
            let profiled = self.ladder.rungs().iter().any(|r| r.joules.is_some());
            let instead = if profiled { "the profile's figures are gone by" } else { "the bound has no effect" };
            self.tell(Cause::Limit, format!("{most} J per token at most: no energy can be read here; {instead}"));
        }
    }

    /// When the next token may begin, by what is in force now; gives the seconds from the end of the latest until then.
    fn pause(&mut self) -> f64 {
        self.asked = 0.0;
        if !(self.period > 0.0 && self.period.is_finite()) {
            self.next = self.ended;
            return 0.0;
        }
        // Heat is not caught up.
        let credit = if self.cooling { 0.0 } else { (CREDIT.0 * self.period).min(CREDIT.1) };
        self.next = (self.since + self.period).clamp(self.ended - credit, self.ended + LONGEST_PAUSE);
        let pause = self.next - self.ended;
        if pause >= SHORTEST_PAUSE {
            self.asked = pause;
        }
        self.asked
    }

    /// What is in force, in words.
    fn setting(&self) -> String {
        self.setting_of(self.rung, self.threads)
    }

    /// Rule and threads in words.
    fn setting_of(&self, rung: usize, threads: usize) -> String {
        let rung = &self.ladder.rungs()[rung];
        let loss = finite(rung.loss).map_or(String::new(), |l| format!(" ({:.2} % loss)", 100.0 * l));
        let threads =
            if threads == self.most { String::new() } else { format!(", {threads} of {} threads", self.most) };
        format!("{}{loss}{threads}", rung.rule)
    }

    fn tell(&mut self, cause: Cause, reason: String) {
        let rung = &self.ladder.rungs()[self.rung];
        let decision = Decision {
            at: self.now,
            cause,
            mode: self.mode,
            rule: rung.rule.to_string(),
            rung: self.rung,
            rungs: self.ladder.rungs().len(),
            loss: finite(rung.loss),
            threads: self.threaded.then_some(self.threads),
            pace: (self.period > 0.0).then(|| 1.0 / self.period).filter(|r| r.is_finite()),
            predicted_ms: finite(1e3 * self.seconds(self.rung, self.threads)),
            duty: self.duty.as_ref().map(Duty::value),
            reason,
        };
        self.history.add(decision);
    }
}

fn finite(x: f64) -> Option<f64> {
    x.is_finite().then_some(x)
}

/// A number of the user's, without what arithmetic added.
fn shown(x: f64) -> f64 {
    (x * 1e4).round() / 1e4
}

/// Power with `threads` as a share of that with `most`: each thread draws the same, and what all of them share draws as much as one.
fn power_share(threads: usize, most: usize) -> f64 {
    (threads.min(most) + 1) as f64 / (most + 1) as f64
}

/// The least duty that a temperature can ask for.
pub const LEAST_DUTY: f64 = duty::LEAST;
