//! The governor at work in a program: its flags, its clock, its sensors and its log.

use crate::calibrate::Profile;
use crate::exit::{ExitRule, RulePolicy};
use crate::governor::{Budget, Cause, Controller, Decision, Ladder, Log, Mode, Observation, Readings, Summary};
use crate::model::Model;
use crate::sensors::{EnergyMeter, EnergySource, Machine, Poller};
use anyhow::Context;
use clap::{Args, error::ErrorKind};
use serde_json::{Value, json};
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What may be spent on an answer.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Governor")]
pub struct GovernorFlags {
    /// What to spend: quality, balanced, saver, auto (by mains and battery), or off [default: off; balanced where one of
    /// the bounds below is given]
    #[arg(long, value_name = "MODE")]
    pub governor: Option<Mode>,
    /// Tokens per second to hold, 0.05 or more: depth is lowered and raised, within what quality may be lost, and pauses do the rest
    #[arg(long, value_name = "N")]
    pub target_tps: Option<f64>,
    /// Milliseconds per token at most, as a mean
    #[arg(long, value_name = "N")]
    pub max_ms_per_token: Option<f64>,
    /// Joules per token at most, as a mean, where energy can be read
    #[arg(long, value_name = "N")]
    pub max_joules_per_token: Option<f64>,
    /// Degrees Celsius to keep the processor at or below, as well as heat that comes late can be foreseen
    #[arg(long, value_name = "N")]
    pub max_temp: Option<f64>,
    /// Write every decision of the governor to FILE, as lines of JSON
    #[arg(long, value_name = "FILE")]
    pub governor_log: Option<PathBuf>,
}

/// The rule that a program would run without a governor.
#[derive(Debug, Clone, Copy)]
pub struct Usual {
    /// The rule.
    pub rule: ExitRule,
    /// Loop steps at most under it.
    pub limit: usize,
    /// Did the user ask for it? Then it is kept.
    pub asked: bool,
    /// The user's own bound on loop steps, which no setting exceeds.
    pub most_steps: Option<usize>,
}

/// A governor that has not begun: what it may choose from, and what it may spend.
#[derive(Debug)]
pub struct Prepared {
    ladder: Ladder,
    budget: Budget,
    log: Option<PathBuf>,
    most_steps: Option<usize>,
}

impl GovernorFlags {
    /// What the flags ask for; `None`: nothing is to be governed. `max_loss` is what of the quality may be lost.
    ///
    /// # Errors
    /// Numbers that make no sense, or bounds beside `--governor off`: wrong usage.
    pub fn budget(&self, max_loss: f64) -> Result<Option<Budget>, clap::Error> {
        let wrong = |message: String| clap::Error::raw(ErrorKind::ValueValidation, message);
        let mut budget = Budget {
            mode: Mode::Balanced,
            target_tps: self.target_tps,
            max_ms_per_token: self.max_ms_per_token,
            max_joules_per_token: self.max_joules_per_token,
            max_temp: self.max_temp,
            max_loss,
        };
        match self.governor {
            Some(Mode::Off) if budget.has_bounds() || self.governor_log.is_some() => {
                Err(wrong("--governor off holds no bounds and writes no log".into()))
            }
            Some(Mode::Off) => Ok(None),
            None if !budget.has_bounds() && self.governor_log.is_some() => {
                Err(wrong("--governor-log needs a governor: add --governor or a bound".into()))
            }
            None if !budget.has_bounds() => Ok(None),
            mode => {
                budget.mode = mode.unwrap_or(Mode::Balanced);
                budget.checked().map(Some).map_err(|e| wrong(e.to_string()))
            }
        }
    }

    /// Gets a governor of `model`, which has this profile, ready; `None`: nothing is to be governed. `max_loss` is what of the
    /// quality may be lost.
    ///
    /// # Errors
    /// As [`budget`](Self::budget).
    pub fn prepare(
        &self,
        model: &Model,
        profile: Option<&Profile>,
        usual: Usual,
        max_loss: f64,
    ) -> Result<Option<Prepared>, clap::Error> {
        let Some(budget) = self.budget(max_loss)? else { return Ok(None) };
        let config = model.config();
        let most = RulePolicy::total_limit(&usual.rule, Some(usual.limit), config);
        let of_usual = |why: &str| Ladder::of_rule(usual.rule, most as f64, why);
        let ladder = if usual.asked {
            of_usual("the exit rule that was asked for is kept, so that no budget is held by depth")
        } else {
            match profile {
                Some(profile) => Ladder::of_profile(profile, config, max_loss, usual.most_steps, usual.rule),
                None if !crate::governor::can_exit(config) => of_usual(&crate::governor::whole_loop(config)),
                None => of_usual(
                    "the model has no calibration profile (rdt-calibrate makes one), so that no budget is held by depth",
                ),
            }
        };
        let most_steps = usual.most_steps;
        Ok(Some(Prepared { ladder, budget, log: self.governor_log.clone(), most_steps }))
    }
}

impl Prepared {
    /// The deepest loop that it may ask for, which the session must have room for.
    pub fn depth_limit(&self, model: &Model) -> usize {
        self.ladder.depth_limit(model.config(), self.most_steps)
    }

    /// Begins, with `threads` that it may use: not as long as the model runs `on_device`, where they mean nothing.
    ///
    /// # Errors
    /// The log cannot be written, or the system refuses to start a thread.
    pub fn begin(self, threads: usize, on_device: bool) -> anyhow::Result<Governor> {
        let log = match &self.log {
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                Some(Log::new(file))
            }
            None => None,
        };
        self.begin_on(&Machine::here(), log, threads, on_device)
    }

    /// As [`begin`](Self::begin) on a machine. It is read once before anything else, so that the first prompt runs under a setting
    /// that fits, and so that what cannot be read is known even to somebody who asks one question and leaves.
    fn begin_on(
        self,
        machine: &Machine,
        log: Option<Log<File>>,
        threads: usize,
        on_device: bool,
    ) -> anyhow::Result<Governor> {
        let by_energy = self.budget.max_joules_per_token.is_some();
        let mut controller = Controller::new(self.ladder, self.budget, if on_device { 0 } else { threads }, 0.0);
        let energy = EnergyMeter::new(machine).sample().map(|sample| sample.source());
        controller.first(0.0, &Readings::of(&machine.state()), energy.is_some());
        let poller = Poller::start(machine.clone(), Poller::EVERY).context("cannot start the sensors' thread")?;
        let mut governor = Governor {
            controller,
            poller,
            threads,
            on_device,
            warnings: Vec::new(),
            number: 0,
            joules: None,
            spent: None,
            began: Instant::now(),
            log,
            missing: Vec::new(),
            notes: Vec::new(),
        };
        governor.write_down();
        governor.missing = std::mem::take(&mut governor.notes);
        if on_device {
            governor.missing.push("on a GPU threads are left alone, and the temperature is the processor's".into());
            let partial = by_energy && energy.is_some_and(|source| source != EnergySource::Battery);
            if partial {
                let words = "the energy that can be read here is the processor's: what the GPU takes is not in it, and not held by \
                             --max-joules-per-token";
                governor.warnings.push(words.into());
            }
        }
        Ok(governor)
    }
}

/// A governor in real time.
#[derive(Debug)]
pub struct Governor {
    controller: Controller,
    poller: Poller,
    /// That the CPU has.
    threads: usize,
    on_device: bool,
    /// What the budget does not hold.
    warnings: Vec<String>,
    /// The reading seen last.
    number: u64,
    /// Joules until then.
    joules: Option<f64>,
    /// Joules since a token was last told of any.
    spent: Option<f64>,
    began: Instant,
    log: Option<Log<File>>,
    /// What was amiss at the beginning.
    missing: Vec<String>,
    /// What the user should know.
    notes: Vec<String>,
}

impl Governor {
    fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Looks at the sensors; rule and threads may have changed.
    pub fn look(&mut self) {
        self.poll();
        self.write_down();
    }

    /// A text begins.
    pub fn start(&mut self) {
        self.poll();
        // The prompt's, and what went before it.
        self.spent = None;
        self.controller.start(self.now());
        self.write_down();
    }

    /// A token was computed in so much time and so many loop steps. [`wait`](Self::wait) says how long to pause before the next; rule
    /// and threads may have changed.
    pub fn token(&mut self, took: Duration, steps: usize) {
        self.poll();
        let joules = self.spent.take();
        let seen = Observation { seconds: took.as_secs_f64(), steps, joules };
        self.controller.token(self.now(), seen);
        self.write_down();
    }

    /// How long the next token should still wait, after what the sensors say now.
    pub fn wait(&mut self) -> Duration {
        self.look();
        Duration::from_secs_f64(self.controller.wait(self.now()))
    }

    /// Shows the controller what the sensors say, if that is new, and counts the joules since the last time.
    fn poll(&mut self) {
        let Some(polled) = self.poller.newer(self.number) else { return };
        self.number = polled.number;
        self.controller.read(self.now(), &Readings::of(&polled.state));
        if let Some(now) = polled.joules {
            self.spent = Some(self.spent.unwrap_or(0.0) + now - self.joules.unwrap_or(0.0));
            self.joules = Some(now);
        }
    }

    fn write_down(&mut self) {
        while let Some(decision) = self.controller.take_decision() {
            if matches!(decision.cause, Cause::Limit | Cause::Short) {
                self.notes.push(decision.reason.clone());
            }
            self.log_one(&decision);
        }
    }

    fn log_one(&mut self, decision: &Decision) {
        if let Some(log) = &mut self.log
            && let Err(e) = log.write(decision)
        {
            self.notes.push(format!("the log has ended: {e}"));
            self.log = None;
        }
    }

    /// Keeps to a rule from now on, of `most` loop steps in all loops together; `whose` rule it is.
    pub fn pin(&mut self, rule: ExitRule, most: usize, whose: &str) {
        let why = format!("the exit rule that {whose} is kept, so that no budget is held by depth");
        self.controller.pin(self.now(), rule, most as f64, &why);
        self.write_down();
    }

    /// The exit rule that it wants.
    pub fn rule(&self) -> ExitRule {
        self.controller.rule()
    }

    /// The threads that it wants; `None`: they are not its business.
    pub fn threads(&self) -> Option<usize> {
        (!self.on_device).then(|| self.controller.threads())
    }

    /// What the user should be warned of at the beginning.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The model runs on a device, or does not: it may have left one.
    pub fn runs_on_device(&mut self, on_device: bool) {
        if on_device != self.on_device {
            self.on_device = on_device;
            self.controller.set_threads(self.now(), if on_device { 0 } else { self.threads });
            self.write_down();
        }
    }

    /// One line at the beginning, with what cannot be read or held here.
    pub fn headline(&self) -> String {
        let ladder = self.controller.ladder();
        let budget = self.controller.budget();
        let bounds = [
            budget.target_tps.map(|x| format!("{x} tokens/s")),
            budget.max_ms_per_token.map(|x| format!("{x} ms per token at most")),
            budget.max_joules_per_token.map(|x| format!("{x} J per token at most")),
            budget.max_temp.map(|x| format!("{x} °C at most")),
        ];
        let bounds: Vec<_> = std::iter::once(budget.mode.to_string()).chain(bounds.into_iter().flatten()).collect();
        let rungs = match ladder.note() {
            Some(note) => note.to_owned(),
            None => format!("{} settings that lose {} % at most", ladder.rungs().len(), 100.0 * budget.max_loss),
        };
        let missing: String = self.missing.iter().map(|m| format!("; {m}")).collect();
        format!("governor: {}; {rungs}{missing}", bounds.join(", "))
    }

    /// What came up that the user should know, in sentences; each once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Where it stands.
    pub fn summary(&self) -> Summary {
        self.controller.summary()
    }

    /// Where it stands and what it can read, in lines.
    pub fn lines(&self) -> Vec<String> {
        let sensors = Machine::here().availability();
        let shown = sensors.iter().map(|s| match (&s.shows, s.why) {
            (Some(shows), _) => format!("{}: {shows}", s.name),
            (None, why) => format!("{}: {}", s.name, why.map_or(String::new(), |w| w.to_string())),
        });
        let sensors = format!("sensors: {}", shown.collect::<Vec<_>>().join("; "));
        self.summary().lines().into_iter().chain([sensors]).collect()
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let mut value = serde_json::to_value(self.summary()).unwrap_or_default();
        if let Value::Object(fields) = &mut value {
            fields.insert("sensors".into(), json!(Machine::here().availability()));
        }
        value
    }
}

#[cfg(test)]
impl Prepared {
    /// With a ladder of one's own.
    pub(super) fn of(ladder: Ladder, budget: Budget) -> Self {
        Self { ladder, budget, log: None, most_steps: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        governor: GovernorFlags,
    }

    fn budget(args: &[&str]) -> Result<Option<Budget>, clap::Error> {
        Flags::try_parse_from([&["x"], args].concat())?.governor.budget(0.01)
    }

    fn prepared(budget: Budget) -> Prepared {
        Prepared::of(Ladder::of_rule("fixed:2".parse().unwrap(), 2.0, "alone"), budget)
    }

    /// Somebody who asks one question reads it before the answer.
    #[test]
    fn the_first_line_says_what_cannot_be_read() {
        use crate::sensors::Fake;
        let all = Budget { max_temp: Some(60.0), max_joules_per_token: Some(3.0), ..Budget::of_mode(Mode::Auto) };
        let begin = |fake: &Fake, budget| prepared(budget).begin_on(&fake.machine(), None, 1, false).unwrap();
        let mut bare = begin(&Fake::new(&[]), all);
        let line = bare.headline();
        for missing in ["no temperature can be read", "neither battery nor mains", "no energy can be read"] {
            assert_eq!(line.matches(missing).count(), 1, "{line}");
        }
        assert_eq!(bare.take_notes(), [""; 0], "it is said once");
        let plain = begin(&Fake::new(&[]), Budget { target_tps: Some(8.0), ..Budget::of_mode(Mode::Balanced) });
        assert!(!plain.headline().contains("can be read"), "no bound needs any");
        if cfg!(target_os = "linux") {
            let laptop = Fake::new(&[
                ("sys/class/thermal/thermal_zone0/temp", "40000"),
                ("sys/class/power_supply/BAT0/type", "Battery"),
                ("sys/class/power_supply/BAT0/status", "Discharging"),
                ("sys/class/power_supply/BAT0/capacity", "12"),
                ("sys/class/power_supply/BAT0/power_now", "8000000"),
            ]);
            let governor = begin(&laptop, all);
            assert!(!governor.headline().contains("can be read"), "{}", governor.headline());
            assert_eq!(governor.summary().mode, Mode::Saver, "before the first prompt");
        }
    }

    /// What a processor's counters tell is not all of what a model on a GPU takes; a battery feeds both.
    #[test]
    fn energy_that_is_not_all_is_told_of() {
        use crate::sensors::Fake;
        let rapl: &[_] = &[
            ("sys/class/powercap/intel-rapl:0/name", "package-0"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "1000"),
            ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "100000000"),
        ];
        let battery: &[_] = &[
            ("sys/class/power_supply/BAT0/type", "Battery"),
            ("sys/class/power_supply/BAT0/status", "Discharging"),
            ("sys/class/power_supply/BAT0/power_now", "8000000"),
        ];
        let joules = Budget { max_joules_per_token: Some(3.0), ..Budget::of_mode(Mode::Balanced) };
        let warned = |files: &[(&str, &str)], budget, on_device| {
            let fake = Fake::new(files);
            prepared(budget).begin_on(&fake.machine(), None, 1, on_device).unwrap().warnings().len()
        };
        assert_eq!(warned(rapl, joules, true), usize::from(cfg!(target_os = "linux")));
        assert_eq!((warned(battery, joules, true), warned(rapl, joules, false)), (0, 0));
        assert_eq!(warned(rapl, Budget::of_mode(Mode::Balanced), true), 0, "nothing is to be held");
    }

    /// `--steps 3` under a rule without a maximum of its own: the session needs room for 3 steps, not for the model's mean.
    #[test]
    fn a_users_cap_bounds_the_depth() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = crate::arch::open(&path, crate::arch::Load::Map).unwrap();
        let flags = GovernorFlags { target_tps: Some(8.0), ..Default::default() };
        let usual = Usual { rule: "kl".parse().unwrap(), limit: 3, asked: true, most_steps: Some(3) };
        let depth = |usual| flags.prepare(&model, None, usual, 0.01).unwrap().unwrap().depth_limit(&model);
        assert_eq!(depth(usual), 3);
        assert!(depth(Usual { limit: 12, most_steps: None, ..usual }) > 3);
    }

    #[test]
    fn flags_become_a_budget() {
        assert_eq!(budget(&[]).unwrap(), None);
        assert_eq!(budget(&["--governor", "off"]).unwrap(), None);
        assert_eq!(budget(&["--governor", "saver"]).unwrap().unwrap(), Budget::of_mode(Mode::Saver));
        let asked = budget(&["--target-tps", "8", "--max-temp", "60"]).unwrap().unwrap();
        assert_eq!((asked.mode, asked.target_tps, asked.max_temp), (Mode::Balanced, Some(8.0), Some(60.0)));
        for wrong in [
            &["--governor", "warp"][..],
            &["--governor", "off", "--target-tps", "8"],
            &["--target-tps", "0"],
            &["--target-tps", "0.049"],
            &["--target-tps", "nan"],
            &["--max-ms-per-token", "inf"],
            &["--max-joules-per-token=-1"],
            &["--max-temp", "1000"],
            &["--governor-log", "x"],
        ] {
            assert!(budget(wrong).is_err(), "{wrong:?}");
        }
    }
}
