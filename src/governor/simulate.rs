//! Devices in virtual time, for tests and plots: a laptop and a phone with a battery, a mass that warms up, a clock that throttles,
//! and another program that comes and goes.
//!
//! Nothing here is measured. The numbers are such as devices of their kind have: watts per core, degrees per watt, the
//! temperatures at which clocks are lowered. What is tested on them is the governor, not the devices.
//!
//! ```
//! use rdt::governor::{Budget, Controller, Ladder, Mode, simulate};
//!
//! let profile = simulate::profile(12.0, 6.5);
//! let budget = Budget { target_tps: Some(10.0), ..Budget::of_mode(Mode::Balanced) };
//! let ladder = Ladder::of_points(&profile, budget.max_loss).ok_or("no ladder")?;
//! let mut device = simulate::Device::new(simulate::Spec::laptop());
//! let mut governor = Controller::new(ladder, budget, device.spec().cores, 0.0);
//! let trace = simulate::run(&mut device, &mut governor, &profile, 60.0);
//! assert!((trace.rate(20.0, 60.0) - 10.0).abs() < 0.5);
//! # Ok::<(), &str>(())
//! ```

use super::{Controller, Decision, Observation, Readings};
use crate::calibrate::{Cost, Estimate, FORMAT, MachineId, ModelId, Point, Profile, TextId, Timing};
use crate::exit::ExitRule;
use crate::random;
use std::collections::BTreeMap;

/// Seconds of a slice in which temperature and clock count as constant.
const SLICE: f64 = 0.05;
/// Seconds between two readings of the sensors.
const POLL: f64 = 1.0;
/// Degrees below its threshold at which a throttled clock comes back.
const HYSTERESIS: f64 = 4.0;

/// Another program that wants the processor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// Seconds at which it comes.
    pub from: f64,
    /// Seconds at which it leaves.
    pub until: f64,
    /// Cores that it keeps busy.
    pub cores: f64,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// For people.
    pub name: &'static str,
    /// Cores, and worker threads at most.
    pub cores: usize,
    /// Milliseconds of a token outside the loop, with all cores at full clock.
    pub base_ms: f64,
    /// Milliseconds of a loop step, likewise.
    pub step_ms: f64,
    /// Speed with t of n threads is (t/n) to this power.
    pub parallel: f64,
    /// Spread of a token's time, as a share of it.
    pub noise: f64,
    /// Watts while nothing runs: screen, memory, radios.
    pub idle_watts: f64,
    /// Watts of a busy core at full clock; with the clock they fall to the power of 2.5.
    pub core_watts: f64,
    /// Joules in the full battery; `None`: on mains.
    pub battery: Option<f64>,
    /// Degrees around it.
    pub ambient: f64,
    /// Degrees of warming per watt, in the long run.
    pub kelvin_per_watt: f64,
    /// Joules that warm it by a degree.
    pub joules_per_kelvin: f64,
    /// Temperatures and the clock, as a share of the full one, from there on; ascending.
    pub throttle: Vec<(f64, f64)>,
    /// Does it tell what energy it spends?
    pub tells_energy: bool,
    /// Other programs.
    pub loads: Vec<Load>,
}

impl Spec {
    /// A laptop: four cores of 5 W, a battery of 50 Wh, a fan that keeps full load below its limit.
    pub fn laptop() -> Self {
        Self {
            name: "laptop",
            cores: 4,
            base_ms: 12.0,
            step_ms: 6.5,
            parallel: 0.7,
            noise: 0.05,
            idle_watts: 4.0,
            core_watts: 5.0,
            battery: None,
            ambient: 22.0,
            kelvin_per_watt: 2.2,
            joules_per_kelvin: 60.0,
            throttle: vec![(95.0, 0.8), (100.0, 0.5)],
            tells_energy: true,
            loads: Vec::new(),
        }
    }

    /// A phone: four fast cores of 1.6 W, 16 Wh, no fan; at full load it would reach 88 °C, and throttles from 70 °C.
    pub fn phone() -> Self {
        Self {
            name: "phone",
            cores: 4,
            base_ms: 20.0,
            step_ms: 11.0,
            parallel: 0.7,
            noise: 0.05,
            idle_watts: 0.6,
            core_watts: 1.6,
            battery: Some(16.0 * 3600.0),
            ambient: 25.0,
            kelvin_per_watt: 9.0,
            joules_per_kelvin: 8.0,
            throttle: vec![(70.0, 0.9), (75.0, 0.8), (80.0, 0.6), (85.0, 0.4)],
            tells_energy: false,
            loads: Vec::new(),
        }
    }
}

/// A device at a moment.
#[derive(Debug, Clone)]
pub struct Device {
    spec: Spec,
    now: f64,
    celsius: f64,
    clock: f64,
    joules: f64,
    tokens: u64,
}

impl Device {
    /// A cool one with a full battery, at second 0.
    pub fn new(spec: Spec) -> Self {
        Self { now: 0.0, celsius: spec.ambient, clock: 1.0, joules: 0.0, tokens: 0, spec }
    }

    /// What it is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Seconds since the start.
    pub fn now(&self) -> f64 {
        self.now
    }

    /// Joules spent since the start.
    pub fn joules(&self) -> f64 {
        self.joules
    }

    /// Degrees of the processor.
    pub fn celsius(&self) -> f64 {
        self.celsius
    }

    /// Charge that is left, 0 to 1; `None` on mains.
    pub fn charge(&self) -> Option<f64> {
        Some((1.0 - self.joules / self.spec.battery?).max(0.0))
    }

    /// What its sensors show; temperatures in steps of a tenth.
    pub fn readings(&self) -> Readings {
        Readings {
            on_battery: Some(self.spec.battery.is_some()),
            battery_percent: self.charge().map(|c| (100.0 * c).floor()),
            watts: None,
            celsius: Some((self.celsius * 10.0).round() / 10.0),
            clock_share: Some(self.clock),
            throttle_count: None,
            cpu_pressure: Some((self.load() / self.spec.cores as f64).min(1.0)),
            thermal_pressure: None,
        }
    }

    /// Cores that other programs keep busy.
    fn load(&self) -> f64 {
        self.spec.loads.iter().filter(|l| (l.from..l.until).contains(&self.now)).map(|l| l.cores).sum()
    }

    /// Lets `seconds` pass with `busy` cores at work.
    fn pass(&mut self, seconds: f64, busy: f64) {
        let Spec { idle_watts, core_watts, ambient, kelvin_per_watt, joules_per_kelvin, .. } = self.spec;
        let cores = (busy + self.load()).min(self.spec.cores as f64);
        let watts = idle_watts + core_watts * cores * libm::pow(self.clock, 2.5);
        self.joules += watts * seconds;
        self.celsius += (watts - (self.celsius - ambient) / kelvin_per_watt) / joules_per_kelvin * seconds;
        self.now += seconds;
        // Down at each threshold, up again some degrees below it.
        let at = |celsius: f64| {
            let reached = self.spec.throttle.iter().filter(|(from, _)| celsius >= *from);
            reached.map(|&(_, clock)| clock).fold(1.0, f64::min)
        };
        self.clock = self.clock.clamp(at(self.celsius + HYSTERESIS), at(self.celsius));
    }

    /// Does nothing for so many seconds.
    pub fn rest(&mut self, seconds: f64) {
        let mut left = seconds.max(0.0);
        while left > 0.0 {
            let slice = left.min(SLICE);
            self.pass(slice, 0.0);
            left -= slice;
        }
    }

    /// Computes a token; gives the seconds that it took.
    pub fn token(&mut self, steps: usize, threads: usize) -> f64 {
        let (begin, cores) = (self.now, self.spec.cores as f64);
        let threads = threads.clamp(1, self.spec.cores) as f64;
        let speed = libm::pow(threads / cores, self.spec.parallel);
        self.tokens += 1;
        let noise = 1.0 + self.spec.noise * random::truncated_normal(0, 1, self.tokens, 3.0);
        let mut work = (self.spec.base_ms + self.spec.step_ms * steps as f64) / 1e3 / speed * noise;
        while work > 1e-12 {
            // Threads that share cores with another program wait for each other.
            let crowd = ((threads + self.load()) / cores).max(1.0);
            let rate = self.clock / crowd;
            let slice = SLICE.min(work / rate);
            self.pass(slice, threads);
            work -= slice * rate;
        }
        self.now - begin
    }
}

/// A token in a [`Trace`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Seconds at its end.
    pub at: f64,
    /// Seconds of compute.
    pub seconds: f64,
    /// Pause behind it.
    pub pause: f64,
    /// Loop steps.
    pub steps: usize,
    /// What its exit rule loses, as a share of perplexity.
    pub loss: f64,
    /// Threads.
    pub threads: usize,
    /// Degrees at its end.
    pub celsius: f64,
    /// Clock at its end, as a share of the full one.
    pub clock: f64,
    /// Charge at its end, 0 to 1; 1 on mains.
    pub charge: f64,
}

/// What happened.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// Tokens, in order.
    pub tokens: Vec<Sample>,
    /// Decisions, in order.
    pub decisions: Vec<Decision>,
}

impl Trace {
    /// Tokens whose ends lie in a span of time.
    pub fn between(&self, from: f64, until: f64) -> impl Iterator<Item = &Sample> {
        self.tokens.iter().filter(move |t| (from..until).contains(&t.at))
    }

    /// Tokens per second in a span of time; 0 if there are fewer than two.
    pub fn rate(&self, from: f64, until: f64) -> f64 {
        let mut tokens = self.between(from, until);
        let Some(first) = tokens.next() else { return 0.0 };
        let (count, last) = tokens.fold((0u32, first.at), |(n, _), t| (n + 1, t.at));
        if last > first.at { f64::from(count) / (last - first.at) } else { 0.0 }
    }

    /// Decisions in a span of time.
    pub fn decided(&self, from: f64, until: f64) -> usize {
        self.decisions.iter().filter(|d| (from..until).contains(&d.at)).count()
    }

    /// Mean of what the tokens' rules lose; NaN without tokens.
    pub fn mean_loss(&self) -> f64 {
        self.tokens.iter().map(|t| t.loss).sum::<f64>() / self.tokens.len() as f64
    }

    /// Highest temperature.
    pub fn hottest(&self) -> f64 {
        self.tokens.iter().map(|t| t.celsius).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// Generates on a device under a governor until second `until`, or until the battery is empty. Steps of a token are drawn from what
/// `profile` has of the rule in force.
pub fn run(device: &mut Device, governor: &mut Controller, profile: &Profile, until: f64) -> Trace {
    run_with(device, governor, profile, until, &mut |_, readings| readings)
}

/// As [`run`], where `sensors` makes of each reading what the governor is shown, at the seconds given.
pub fn run_with(
    device: &mut Device,
    governor: &mut Controller,
    profile: &Profile,
    until: f64,
    sensors: &mut dyn FnMut(f64, Readings) -> Readings,
) -> Trace {
    let mut trace = Trace::default();
    let (mut polled, mut told, mut fresh) = (f64::NEG_INFINITY, device.joules(), false);
    governor.start(device.now());
    let mut look = |device: &Device, governor: &mut Controller| {
        let due = device.now() - polled >= POLL;
        if due {
            polled = device.now();
            governor.read(polled, &sensors(polled, device.readings()));
        }
        due
    };
    while device.now() < until && device.charge() != Some(0.0) {
        fresh |= look(device, governor);
        let joules = (device.spec.tells_energy && fresh).then(|| device.joules() - told);
        if joules.is_some() {
            (told, fresh) = (device.joules(), false);
        }
        let (rule, threads) = (governor.rule(), governor.threads());
        let point = profile.points().find(|p| p.rule == rule);
        let steps = point.map_or(1, |p| draw(p, device.tokens));
        let seconds = device.token(steps, threads);
        let end = device.now();
        let mut pause = governor.token(end, Observation { seconds, steps, joules });
        trace.tokens.push(Sample {
            at: end,
            seconds,
            pause: 0.0,
            steps,
            loss: point.map_or(f64::NAN, |p| profile.loss(p)),
            threads,
            celsius: device.celsius,
            clock: device.clock,
            charge: device.charge().unwrap_or(1.0),
        });
        // What is read during a pause may change it.
        while pause > 1e-9 {
            device.rest(pause.min(POLL));
            fresh |= look(device, governor);
            pause = governor.wait(device.now());
        }
        if let Some(token) = trace.tokens.last_mut() {
            token.pause = device.now() - end;
        }
        trace.decisions.extend(std::iter::from_fn(|| governor.take_decision()));
    }
    trace
}

/// Steps of the next token, from how often the point's tokens took how many.
fn draw(point: &Point, token: u64) -> usize {
    let total: u64 = point.steps.values().sum();
    let mut left = (random::uniform(0, 2, token) * total as f64) as u64;
    for (&steps, &count) in &point.steps {
        if left < count {
            return steps;
        }
        left -= count;
    }
    point.mean_steps.round().max(1.0) as usize
}

/// A made-up profile of a model that was published at 32 loop steps: what depth loses falls off as e^(−steps/3.2), and
/// `acceleration` gets as far with three fifths of the steps. `base_ms` and `step_ms` are a token's cost.
pub fn profile(base_ms: f64, step_ms: f64) -> Profile {
    const PUBLISHED: usize = 32;
    let estimate = |value: f64| Estimate { value, error: value * 0.002 };
    let point = |rule: ExitRule, steps: BTreeMap<usize, u64>, worth: f64| {
        let count: u64 = steps.values().sum();
        let mean_steps = steps.iter().map(|(&n, &c)| n as f64 * c as f64).sum::<f64>() / count as f64;
        let perplexity = 20.0 * (1.0 + 1.2 * libm::exp(-worth * mean_steps / 3.2));
        let ms = base_ms + step_ms * mean_steps;
        Point {
            rule,
            mean_steps,
            steps,
            cross_entropy: estimate(libm::log(perplexity)),
            perplexity: estimate(perplexity),
            kl: estimate((libm::exp(-worth * mean_steps / 3.2) - libm::exp(-(PUBLISHED as f64) / 3.2)).max(0.0)),
            same_top: estimate(1.0 - 0.5 * libm::exp(-worth * mean_steps / 3.2)),
            capped: 0.0,
            seed_variance: None,
            timing: Some(Timing { ms_per_token: ms, mean_steps, joules_per_token: None }),
        }
    };
    let fixed = |n: usize| format!("fixed:{n}").parse::<ExitRule>().unwrap_or_default();
    let depths = (1..=PUBLISHED).map(|n| point(fixed(n), BTreeMap::from([(n, 1000)]), 1.0)).collect();
    let rule = |threshold: f64, mean: f64| {
        let rule = format!("acceleration:{threshold},hits=2,max=64").parse::<ExitRule>().unwrap_or_default();
        let share = |part: f64| (mean * part).round() as usize;
        let steps = [(0.7, 200), (0.85, 250), (1.0, 250), (1.2, 200), (1.5, 100)];
        let mut counts = BTreeMap::new();
        steps.into_iter().for_each(|(part, count)| *counts.entry(share(part)).or_insert(0) += count);
        point(rule, counts, 5.0 / 3.0)
    };
    let rules =
        [(0.2, 5.0), (0.14, 6.5), (0.1, 8.0), (0.07, 9.5), (0.05, 11.0), (0.035, 13.0), (0.025, 15.5), (0.018, 18.5)];
    Profile {
        format: FORMAT,
        program: "made up".into(),
        model: ModelId {
            name: "made up".into(),
            architecture: "huginn".into(),
            fingerprint: String::new(),
            bytes: 2 << 30,
        },
        machine: MachineId { system: "made up".into(), cpu: None, isa: "scalar".into(), threads: 4 },
        text: TextId {
            name: "made up".into(),
            fingerprint: String::new(),
            special: false,
            context: 512,
            windows: 8,
            scored: 1000,
            prefix: 0,
            kv_type: "f16".into(),
            kv_steps: 64,
            init: "noise".into(),
            seed: 0,
        },
        published_steps: PUBLISHED,
        full_depth: 28,
        depths,
        rules: rules.into_iter().map(|(threshold, mean)| rule(threshold, mean)).collect(),
        cost: Some(Cost { base_ms, step_ms, threads: BTreeMap::from([(1, 0.38), (2, 0.62), (3, 0.82), (4, 1.0)]) }),
    }
}
