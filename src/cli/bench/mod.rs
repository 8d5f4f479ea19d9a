//! `rdt-bench`: how fast a model reads prompts and generates, at any depth, and what that costs in bytes, joules and heat.
//!
//! `run` runs one test, under a policy that counts (`count`); `traffic` makes bytes of the counts, `bandwidth` measures what memory
//! could give; `record` puts everything together, `compare` sets it beside an earlier run, and `output` writes it.
//! `sensors` lists what can be read of the machine.

mod bandwidth;
mod commit;
mod compare;
mod count;
mod decode;
mod flags;
mod output;
mod record;
mod run;
mod sensors;
mod stats;
mod traffic;

use super::device::{CPU, reason};
use super::{Interrupted, OnDevice, Place, Stop, device_words, human_bytes, one_line, too_deep};
use crate::arch::Anatomy;
use crate::exit::{ExitRule, RulePolicy};
use crate::generate::engine;
use crate::model::{self, Model};
use crate::sensors::{EnergyMeter, Facts, Machine};
use crate::text;
use anyhow::{Context, bail};
use bandwidth::{Bandwidths, Size};
use clap::{CommandFactory, error::ErrorKind};
use compare::Old;
use flags::{Flags, Test};
use indicatif::{ProgressBar, ProgressStyle};
use output::{Output, Shown};
use record::{Found, Measured, Record, Subject};
use run::{Run, Setting};
use std::collections::HashMap;
use std::io::{self, StdoutLock};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use traffic::Traffic;

/// The program.
pub fn main() -> ExitCode {
    super::run("rdt-bench", work)
}

/// Words for the user, beside the data.
fn note(text: &str) {
    eprintln!("rdt-bench: {}", one_line(text));
}

fn work(flags: &Flags) -> anyhow::Result<()> {
    if flags.sensors {
        return Ok(sensors::write(io::stdout().lock(), flags.format())?);
    }
    let tests = flags.tests();
    if tests.is_empty() {
        let message = match flags.sustained {
            Some(_) => "--sustained generates; give -n a number",
            None => "nothing to measure; give -p, -n or --pg a number",
        };
        return Err(Flags::command().error(ErrorKind::ValueValidation, message).into());
    }
    if !flags.decode.is_empty() {
        decode::check(flags)?;
    }
    let devices = flags.devices()?;
    let old = flags.compare.as_deref().map(compare::read).transpose()?;
    // All of them first, so that a wrong name is told before the first has run for an hour.
    let mut places: Vec<Place> = Vec::new();
    for device in devices {
        let place = device.open()?;
        // One device has many names.
        if !places.iter().any(|known| known.is(&place)) {
            places.push(place);
        }
    }
    let threads = if let [one] = flags.threads[..] { Some(one) } else { None };
    let models = flags.model.iter().map(|path| {
        let contents = flags.load.contents(path)?;
        let on = places.iter().map(|place| {
            let model = place.ready_here(flags.load, &contents, threads)?;
            Ok(Placed { model, asked: place.is_gpu(), on_device: OnDevice::default() })
        });
        let models = on.collect::<anyhow::Result<Vec<_>>>()?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let subject = Subject::of(name, &models.first().context("no device to measure on")?.model);
        Ok(Opened { path, subject, models })
    });
    let models = models.collect::<anyhow::Result<Vec<_>>>()?;
    if !flags.decode.is_empty() {
        return decode::measure(flags, &models, &Stop::install()?).map_err(|e| match e.downcast_ref() {
            Some(engine::Error::Model(model::Error::Cancelled)) => Interrupted("stopped".into()).into(),
            _ => e,
        });
    }
    let on_devices = models.iter().flat_map(|opened| &opened.models).filter_map(|placed| placed.model.device());
    let device = on_devices.map(|device| device.name().chars().count().max("device".len())).max();
    let machine = Machine::here();
    let (facts, meter) = (machine.facts(), EnergyMeter::new(&machine));
    let shown = Shown {
        bandwidth: flags.bandwidth_size != Some(0),
        temperature: machine.state().hottest().is_some(),
        energy: meter.sample().is_some(),
        compared: old.is_some(),
        model: models.iter().map(|opened| opened.subject.filename.chars().count()).max().unwrap_or(0),
        device: device.unwrap_or(0),
    };
    let size = match flags.bandwidth_size {
        Some(mib) => Size { bytes: mib.saturating_mul(1 << 20), cache: facts.last_level_cache() },
        None => Size::choose(&facts),
    };
    let mut bench = Bench {
        flags,
        tests,
        machine,
        facts,
        meter,
        commit: commit::commit(),
        old: old.unwrap_or_default(),
        output: Output::new(io::stdout().lock(), flags.format(), shown),
        bandwidths: Bandwidths::default(),
        buffer: size,
        answers: HashMap::new(),
        stop: Stop::install()?,
        done: 0,
        slowed: Vec::new(),
        told_length: false,
    };
    let result = models.iter().try_for_each(|opened| bench.model(opened));
    // What was measured is worth having, however it ended.
    let words = bench.words(&models);
    bench.output.finish(&words)?;
    result.map_err(|e| match e.downcast_ref() {
        Some(model::Error::Cancelled) => Interrupted(format!("stopped after {} tests", bench.done)).into(),
        _ => e,
    })
}

/// A model to measure.
struct Opened<'a> {
    path: &'a Path,
    subject: Subject,
    /// The same one on each device, at least one.
    models: Vec<Placed>,
}

/// A model on a device.
struct Placed {
    model: Arc<Model>,
    /// Was this GPU asked for? Then nothing is measured elsewhere in its place.
    asked: bool,
    on_device: OnDevice,
}

impl Placed {
    /// Tells why a run has left its device, if it has. True: what it measured until now is of no single device.
    ///
    /// # Errors
    /// That device was asked for.
    fn left(&self, run: &mut Run, bar: &ProgressBar) -> anyhow::Result<bool> {
        let Some(notice) = self.on_device.heed(run.take_notice()) else { return Ok(false) };
        if self.asked {
            bail!("{}: {}", run.test().name(), reason(&notice));
        }
        bar.suspend(|| note(&notice));
        Ok(true)
    }
}

/// All that the tests have in common.
struct Bench<'a> {
    flags: &'a Flags,
    tests: Vec<Test>,
    machine: Machine,
    facts: Facts,
    meter: EnergyMeter,
    commit: Option<String>,
    old: Vec<Old>,
    output: Output<StdoutLock<'static>>,
    bandwidths: Bandwidths,
    /// What memory bandwidth is measured over.
    buffer: Size,
    /// What tests gave that must give the same however they are run.
    answers: HashMap<String, u64>,
    stop: Stop,
    /// Tests that were measured.
    done: usize,
    /// How runs without pause ended, in words.
    slowed: Vec<String>,
    /// Was it said that tests are longer than what the model was trained with?
    told_length: bool,
}

impl Bench<'_> {
    /// Every test on a model, in every setting. Devices take turns at each test, so that whatever else changes meets them alike.
    fn model(&mut self, opened: &Opened<'_>) -> anyhow::Result<()> {
        let Opened { path, subject, models } = opened;
        let Some(Placed { model, .. }) = models.first() else { return Ok(()) };
        let flags = self.flags;
        self.answers.clear();
        let rule = flags.exits.rule(model, Some(path), ExitRule::full_depth())?;
        let threads: Vec<Option<NonZeroUsize>> = optional(&flags.threads);
        let mut settings = Vec::new();
        for steps in depths(flags, &rule, model) {
            settings.extend(
                flags
                    .kv_type
                    .iter()
                    .flat_map(|&kv_type| threads.iter().map(move |&threads| Setting { threads, kv_type, steps, rule })),
            );
        }
        self.told_length = false;
        for setting in settings {
            // Threads make no difference to a device.
            let again = setting.threads != threads.first().copied().flatten();
            let models = || models.iter().filter(|placed| !(again && placed.model.device().is_some()));
            for test in self.tests.clone() {
                for placed in models() {
                    self.test(subject, placed, setting, test)?;
                    self.done += 1;
                }
            }
        }
        Ok(())
    }

    fn test(&mut self, subject: &Subject, placed: &Placed, setting: Setting, test: Test) -> anyhow::Result<()> {
        let (flags, model) = (self.flags, &placed.model);
        let mut run = Run::new(model, flags, setting, test, placed.on_device.still(), &self.stop)?;
        placed.left(&mut run, &ProgressBar::hidden())?;
        let trained = model.config().context;
        if test.context().is_some_and(|n| n > trained) && !self.told_length {
            self.told_length = true;
            note(&format!("{}: trained with {trained} tokens at most, and tests are longer", subject.filename));
        }
        let bandwidth = self.bandwidth(&run)?;
        let bar = self.bar(subject, &run, test);
        self.pause()?;
        let before = self.machine.state();
        if !flags.no_warmup {
            run.warm_up()?;
            placed.left(&mut run, &bar)?;
        }
        let (samples, intervals) = match flags.sustained {
            None => (self.repetitions(placed, &mut run, &bar)?, None),
            Some(seconds) => {
                bar.finish_and_clear();
                let (sample, intervals) = self.sustained(&mut run, seconds)?;
                (vec![sample], Some(intervals))
            }
        };
        let after = self.machine.state();
        bar.finish_and_clear();
        let record = Record::new(Found {
            facts: &self.facts,
            commit: self.commit.as_deref(),
            time: text::now_utc(),
            subject,
            session: run.session(),
            setting,
            test,
            init: &flags.exits.init.init,
            both_ways: run.both_ways(),
            warmup: !flags.no_warmup,
            sustained: flags.sustained,
            samples: &samples,
            intervals,
            bandwidth,
            energy_source: self.meter.sample().map(|s| s.source()),
            before,
            after,
        });
        let mut record = record.context("nothing was measured")?;
        if flags.sustained.is_none() {
            self.check(&record, &samples)?;
        }
        record.compared = compare::find(&self.old, &record);
        self.slowed.extend(record.in_the_end());
        self.warn(&record);
        self.output.record(&record)?;
        Ok(())
    }

    /// Bandwidths of memory and of what holds a loop step's weights, by as many threads as the session has.
    fn bandwidth(&mut self, run: &Run) -> anyhow::Result<Option<Measured>> {
        let buffer = self.buffer.bytes;
        // A GPU reads from memory of its own, or in ways of its own.
        if buffer == 0 || run.session().device().is_some() {
            return Ok(None);
        }
        if let (Some(doubt), None) = (self.buffer.doubt(), self.bandwidths.known().next()) {
            note(&doubt);
        }
        let session = run.session();
        let threads = NonZeroUsize::new(session.threads()).unwrap_or(NonZeroUsize::MIN);
        let step = Traffic::of(session.model(), session.kv_shape().ty).step_bytes();
        let core = step.clamp(4096, buffer.max(4096));
        let memory = self.bandwidths.of(threads, buffer).context("cannot measure memory bandwidth")?;
        let core = self.bandwidths.of(threads, core).context("cannot measure memory bandwidth")?;
        Ok(Some(Measured { memory, buffer, cache: self.buffer.cache, core }))
    }

    fn repetitions(&self, placed: &Placed, run: &mut Run, bar: &ProgressBar) -> anyhow::Result<Vec<run::Sample>> {
        let mut samples: Vec<run::Sample> = Vec::new();
        while samples.len() < self.flags.repetitions {
            let sample = run.repetition(&self.meter)?;
            if placed.left(run, bar)? {
                // A record is of one device: from the beginning, on the CPU.
                bar.reset();
                samples.clear();
                continue;
            }
            if let Some(first) = samples.first()
                && !(first.answer == sample.answer && first.counts.same_work(&sample.counts))
            {
                bail!(
                    "repetition {} did not do what the first did: the kernels, or this machine, are broken",
                    samples.len() + 1
                );
            }
            samples.push(sample);
            bar.inc(1);
        }
        Ok(samples)
    }

    fn sustained(&mut self, run: &mut Run, seconds: usize) -> anyhow::Result<(run::Sample, Vec<run::Interval>)> {
        let [total, interval] = [seconds, self.flags.interval].map(|s| Duration::from_secs(s as u64));
        let mut intervals: Vec<run::Interval> = Vec::new();
        let (output, machine, meter) = (&mut self.output, &self.machine, &self.meter);
        let sample = run.sustained(total, interval, machine, meter, |interval| {
            output.interval(&interval, intervals.is_empty())?;
            intervals.push(interval);
            Ok(())
        })?;
        Ok((sample, intervals))
    }

    /// The same test must give the same bits at every number of threads and for every cut of the prompt, provided that
    /// every loop step has its own keys and values. A GPU promises that for the same cut only, and has bits of its own.
    fn check(&mut self, r: &Record, samples: &[run::Sample]) -> anyhow::Result<()> {
        let Some(answer) = samples.last().map(|s| s.answer) else { return Ok(()) };
        if r.kv_steps < r.steps {
            return Ok(());
        }
        let cut = if r.device == CPU { 0 } else { r.n_batch };
        let key = format!(
            "{}\n{}\n{}\n{}\n{}\n{}\n{cut}",
            r.model_filename, r.test, r.type_kv, r.steps, r.both_ways, r.device
        );
        if *self.answers.entry(key).or_insert(answer) != answer {
            let (threads, batch) = (r.n_threads, r.n_batch);
            bail!("{}: {threads} threads and {batch} rows give other results than before: please report this", r.test);
        }
        Ok(())
    }

    /// What makes numbers hard to compare.
    fn warn(&self, r: &Record) {
        if r.kv_steps < r.steps {
            note(&format!("{}: {} of {} steps keep their keys and values (--kv-memory)", r.test, r.kv_steps, r.steps));
        }
        if self.flags.compare.is_none() {
            return;
        }
        match &r.compared {
            None => note(&format!("{}: the old file has no such test at {} steps", r.test, r.steps)),
            Some(c) => {
                c.differs.iter().for_each(|what| note(&format!("{}: {what}", r.test)));
                if !c.same_answer && c.differs.is_empty() {
                    note(&format!("{}: other tokens or logits than in the old run", r.test));
                }
            }
        }
    }

    /// Waits before a test, for the machine to cool.
    fn pause(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(self.flags.delay.min(u64::from(u32::MAX)));
        while Instant::now() < end {
            if self.stop.asked() {
                return Err(model::Error::Cancelled.into());
            }
            std::thread::sleep(Duration::from_millis(50).min(end - Instant::now()));
        }
        Ok(())
    }

    /// Draws on stderr, and only if that is a terminal.
    fn bar(&self, subject: &Subject, run: &Run, test: Test) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len}, {eta} left");
        let (name, on, steps) = (test.name(), device_words(run.session()), run.session().steps());
        ProgressBar::new(self.flags.repetitions as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(format!("{}: {name}, {steps} steps, {on}", one_line(&subject.filename)))
    }

    /// What stands below the table.
    fn words(&self, models: &[Opened<'_>]) -> Vec<String> {
        let f = &self.facts;
        let mut words = self.slowed.clone();
        let first = || models.iter().filter_map(|opened| Some((&opened.subject, &opened.models.first()?.model)));
        words.extend(first().map(|(subject, model)| {
            let (weights, bits) = (subject.n_params as f64 / 1e6, subject.bits_per_weight());
            let [size, step] = [subject.size, Anatomy::of(model).step_bytes()].map(human_bytes);
            let Subject { filename, kind, .. } = subject;
            format!("{filename}: {kind}, {weights:.1} M weights of {bits:.2} bits, {size}; a loop step reads {step}")
        }));
        let commit = self.commit.as_deref().unwrap_or("commit unknown");
        let isa = first().next().map_or("none", |(_, model)| model.kernels().isa.name());
        words.push(format!("rdt {} ({commit}), kernels: {isa}", env!("CARGO_PKG_VERSION")));
        let named = [f.board.as_deref(), f.cpu.as_deref(), f.kernel.as_deref()];
        let named: Vec<_> = named.into_iter().flatten().chain([f.system.as_str()]).collect();
        words.push(named.join(", "));
        let state = self.machine.state();
        let limit = state.clock.limit_mhz.map(|mhz| format!("up to {mhz:.0} MHz"));
        let power = state.supplies.iter().map(|s| {
            let percent = s.percent.map(|p| format!(" {p:.0} %"));
            let status =
                s.status.clone().or(s.online.map(|on| if on { "plugged in" } else { "not plugged in" }.into()));
            format!("{} {}{}", s.name, status.unwrap_or_default(), percent.unwrap_or_default())
        });
        let said = state.governors.iter().cloned().chain(state.profile.clone()).chain(limit).chain(power);
        let said: Vec<_> = said.chain(state.thermal_pressure.clone()).collect();
        if !said.is_empty() {
            words.push(format!("power: {}", said.join(", ")));
        }
        words.extend(self.bandwidths.known().map(|(threads, bytes, rate)| {
            let plural = if threads.get() == 1 { "" } else { "s" };
            format!("reading {}: {:.1} GB/s with {threads} thread{plural}", human_bytes(bytes), rate / 1e9)
        }));
        words.extend(self.bandwidths.known().next().and(self.buffer.doubt()));
        words
    }
}

/// The depths that the flags ask of a model, each once; tells where they go deeper than it was trained to.
fn depths(flags: &Flags, rule: &ExitRule, model: &Model) -> Vec<Option<usize>> {
    let mut known: Vec<usize> = Vec::new();
    let mut distinct = optional(&flags.steps);
    distinct.retain(|&steps| {
        too_deep("--", rule, steps, model.config()).iter().for_each(|words| note(words));
        // Beyond what a model supports, several depths are the same one.
        let depth = RulePolicy::depth_limit(rule, steps, model.config());
        let new = !known.contains(&depth);
        known.push(depth);
        new
    });
    distinct
}

/// What a list asks for; an empty one leaves it to the library.
fn optional<T: Copy>(list: &[T]) -> Vec<Option<T>> {
    if list.is_empty() { vec![None] } else { list.iter().copied().map(Some).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::device::fake;
    use crate::kernels::KvType;
    use clap::Parser;

    fn setting() -> Setting {
        Setting { threads: None, kv_type: KvType::F16, steps: Some(3), rule: ExitRule::full_depth() }
    }

    /// What a session measures that has left its device is no record of that device; where this one was asked for, it is an error.
    #[test]
    fn a_device_that_is_lost_is_not_called_the_cpu() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let flags = Flags::try_parse_from("rdt-bench -m m -p 0 -n 5".split(' ')).unwrap();
        let (setting, bar) = (setting(), ProgressBar::hidden());
        for (passes, asked) in [(Some(0), true), (Some(2), true), (Some(2), false)] {
            let placed = Placed { model: fake::model(&path, passes), asked, on_device: OnDevice::default() };
            let run = || {
                let on_device = placed.on_device.still();
                Run::new(&placed.model, &flags, setting, flags.tests()[0], on_device, &Stop::never()).unwrap()
            };
            let mut first = run();
            first.warm_up().unwrap();
            match placed.left(&mut first, &bar) {
                Ok(left) => assert!(left && !asked),
                Err(e) => assert!(asked && e.to_string().starts_with("tg5: a fake: "), "{e}"),
            }
            // The next one does not try again, and so has nothing to tell.
            assert!(run().session().device().is_none() && !placed.left(&mut run(), &bar).unwrap());
        }
    }
}
