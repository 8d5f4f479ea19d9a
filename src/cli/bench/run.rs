//! One test on one session: what is run, timed, counted and checked.

use super::super::Stop;
use super::super::device::reason;
use super::count::{Counting, Counts};
use super::flags::{Flags, Test};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::kernels::KvType;
use crate::model::{Batch, Error, Logits, Model, Session, SessionOptions};
use crate::random;
use crate::sensors::{EnergyMeter, EnergySample, EnergySource, Machine, State};
use anyhow::{Context, bail};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seed of all random tokens.
const SEED: u64 = 0;
/// Passes of a generation that warm it up.
const WARM_UP: usize = 4;

/// What a session is set up with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) threads: Option<NonZeroUsize>,
    pub(super) kv_type: KvType,
    pub(super) steps: Option<usize>,
    pub(super) rule: ExitRule,
}

/// One repetition.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) time: Duration,
    /// From its beginning until the first token was chosen.
    pub(super) first_token: Duration,
    pub(super) counts: Counts,
    /// A hash of all tokens that were chosen and of the last logits.
    pub(super) answer: u64,
    pub(super) joules: Option<f64>,
}

/// Some seconds of a run without pause.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Interval {
    /// When it ended, in seconds since the start.
    pub(super) at: f64,
    pub(super) seconds: f64,
    pub(super) tokens: u64,
    pub(super) tokens_per_second: f64,
    /// The hottest sensor of the processor at its end.
    pub(super) sensor: Option<String>,
    pub(super) celsius: Option<f64>,
    /// Clock of the fastest core at its end, and what it may reach.
    pub(super) mhz: Option<f64>,
    pub(super) limit_mhz: Option<f64>,
    pub(super) watts: Option<f64>,
}

/// A session with a test in it.
pub(super) struct Run {
    session: Session,
    policy: Counting,
    test: Test,
    both_ways: bool,
    readout_exits: bool,
    prompt: Vec<u32>,
    /// What a generation begins with, `[rows]`.
    first: Vec<u32>,
    /// What its next pass runs, `[rows]`.
    next: Vec<u32>,
    /// What was chosen.
    chosen: Vec<u32>,
    /// Logits of the last row of the last pass.
    logits: Vec<f32>,
    /// Loop steps of the rows that were run last.
    steps: Vec<usize>,
}

impl Run {
    /// Sets a session up and fills its context as deep as the test wants it.
    pub(super) fn new(
        model: &Arc<Model>,
        flags: &Flags,
        setting: Setting,
        test: Test,
        on_device: bool,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let config = model.config();
        let context = test.context().with_context(|| format!("{}: too many tokens", test.name()))?;
        let both_ways = config.prefix_lm && test.batch.is_none();
        // A batch is for prompts, but the rows of a generation have to fit, too.
        let chunk_rows = match test.batch {
            None if config.prefix_lm || test.rows <= CHUNK_ROWS => None,
            batch => Some(batch.unwrap_or(CHUNK_ROWS).max(test.rows)),
        };
        let options = SessionOptions {
            threads: setting.threads,
            context: Some(context),
            kv_type: setting.kv_type,
            kv_slots: flags.kv_steps,
            steps: Some(RulePolicy::depth_limit(&setting.rule, setting.steps, config)),
            kv_budget: (flags.kv_memory as u64).saturating_mul(1 << 20),
            sequences: 1,
            chunk_rows,
            initial: flags.exits.initial(config.state_width)?,
            on_device,
        };
        crate::cli::stay_on_fast_cores();
        let session = Session::new(Arc::clone(model), &options)?;
        stop.watch(&session)?;
        let policy = RulePolicy::new(setting.rule, setting.steps, config, session.chunk_rows())?;
        let vocab = config.vocab as u64;
        let tokens = |stream: u64, n: usize| -> Vec<u32> {
            (0..n as u64).map(|i| (random::bits(SEED, stream, i) % vocab) as u32).collect()
        };
        let mut run = Self {
            policy: Counting::new(policy, config.loops.len()),
            both_ways,
            readout_exits: setting.rule.signal() == Signal::Readout,
            prompt: tokens(1, test.n_prompt),
            first: tokens(2, test.rows.min(test.n_gen)),
            next: Vec::new(),
            chosen: Vec::with_capacity(test.n_gen + 1),
            logits: vec![0.0; config.vocab],
            steps: Vec::new(),
            test,
            session,
        };
        if test.n_depth > 0 {
            run.read(&tokens(0, test.n_depth), Logits::None)?;
        }
        Ok(run)
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn test(&self) -> Test {
        self.test
    }

    /// Why it left its device, if it has since this was last asked.
    pub(super) fn take_notice(&mut self) -> Option<String> {
        self.session.take_notice()
    }

    /// Does the prompt see itself in both directions?
    pub(super) fn both_ways(&self) -> bool {
        self.both_ways
    }

    /// Brings weights, keys and threads into the state that they have in the middle of work.
    pub(super) fn warm_up(&mut self) -> Result<(), Error> {
        self.rewind();
        self.prompt()?;
        self.generate(self.test.n_gen.min(WARM_UP * self.test.rows), |_| true)
    }

    /// The whole test, once.
    pub(super) fn repetition(&mut self, meter: &EnergyMeter) -> Result<Sample, Error> {
        self.rewind();
        self.policy.clear();
        let energy = meter.sample();
        let start = Instant::now();
        self.prompt()?;
        let mut first_token = (self.test.n_prompt > 0).then(|| start.elapsed());
        self.generate(self.test.n_gen, |_| {
            first_token.get_or_insert_with(|| start.elapsed());
            true
        })?;
        let time = start.elapsed();
        let joules = joules(self.session.device().is_some(), meter, energy.as_ref(), meter.sample().as_ref());
        let counts = self.policy.counts().clone();
        Ok(Sample { time, first_token: first_token.unwrap_or(time), counts, answer: self.answer(), joules })
    }

    /// Generates for some time, again and again from the same context, and tells of every interval as it ends. Gives one sample for all
    /// of it.
    pub(super) fn sustained(
        &mut self,
        total: Duration,
        interval: Duration,
        machine: &Machine,
        meter: &EnergyMeter,
        mut tell: impl FnMut(Interval) -> anyhow::Result<()>,
    ) -> anyhow::Result<Sample> {
        self.policy.clear();
        let (n, on_device) = (self.test.n_gen, self.session.device().is_some());
        let (mut expected, mut first_token, mut all_joules) = (None, None, Some(0.0));
        let start = Instant::now();
        let (mut since, mut tokens, mut energy) = (start, 0u64, meter.sample());
        let mut over = false;
        while !over {
            self.rewind();
            let mut done = 0;
            let mut failed = None;
            self.generate(n, |rows| {
                let now = Instant::now();
                first_token.get_or_insert(now - start);
                tokens += rows as u64;
                done += rows;
                over = now - start >= total;
                if now - since < interval && !over {
                    return true;
                }
                let seconds = (now - since).as_secs_f64();
                let later = meter.sample();
                let joules = joules(on_device, meter, energy.as_ref(), later.as_ref());
                all_joules = all_joules.zip(joules).map(|(a, b)| a + b);
                let State { temperatures, clock, .. } = machine.state();
                let hottest = crate::sensors::hottest(&temperatures);
                failed = tell(Interval {
                    at: (now - start).as_secs_f64(),
                    seconds,
                    tokens,
                    tokens_per_second: tokens as f64 / seconds,
                    sensor: hottest.map(|t| t.sensor.clone()),
                    celsius: hottest.map(|t| t.celsius),
                    mhz: clock.fastest_mhz,
                    limit_mhz: clock.limit_mhz,
                    watts: joules.map(|j| j / seconds),
                })
                .err();
                (since, tokens, energy) = (Instant::now(), 0, later);
                !over && failed.is_none()
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            if let Some(notice) = self.take_notice() {
                bail!("{}: {}; a run without pause is of one device", self.test.name(), reason(&notice));
            }
            if done == n {
                let answer = self.answer();
                if *expected.get_or_insert(answer) != answer {
                    bail!("{}: a later round generated something else than the first", self.test.name());
                }
            }
        }
        let time = start.elapsed();
        let (counts, answer) = (self.policy.counts().clone(), expected.unwrap_or(0));
        Ok(Sample { time, first_token: first_token.unwrap_or(time), counts, answer, joules: all_joules })
    }

    /// Back to the context that the test starts with.
    fn rewind(&mut self) {
        self.session.truncate(0, self.test.n_depth);
        self.chosen.clear();
        self.next.clone_from(&self.first);
    }

    /// Reads the prompt and chooses the token behind it.
    fn prompt(&mut self) -> Result<(), Error> {
        if self.prompt.is_empty() {
            return Ok(());
        }
        let prompt = std::mem::take(&mut self.prompt);
        let result = self.read(&prompt, Logits::Last);
        self.prompt = prompt;
        result?;
        let token = argmax(&self.logits);
        self.chosen.push(token);
        if let Some(next) = self.next.first_mut() {
            *next = token;
        }
        Ok(())
    }

    /// Runs tokens as a prompt.
    fn read(&mut self, tokens: &[u32], logits: Logits) -> Result<(), Error> {
        let batch = Batch { sequence: 0, tokens, logits, readout_exits: false, both_ways: self.both_ways };
        let output = self.session.run(batch, &mut self.policy)?;
        let heads = match logits {
            Logits::None => 0,
            _ => {
                self.logits.copy_from_slice(output.last());
                1
            }
        };
        self.steps.clear();
        self.steps.extend_from_slice(output.steps);
        self.count(false);
        self.policy.ran(tokens.len(), heads);
        Ok(())
    }

    /// Generates up to `n` tokens, while `go_on` of the rows just run says so. Every row of a pass runs what the same row of the pass
    /// before has chosen: a single one is plain greedy generation.
    fn generate(&mut self, n: usize, mut go_on: impl FnMut(usize) -> bool) -> Result<(), Error> {
        let mut left = n;
        while left > 0 {
            let rows = self.test.rows.min(left);
            let readout_exits = self.readout_exits && rows == 1;
            let batch =
                Batch { sequence: 0, tokens: &self.next[..rows], logits: Logits::All, readout_exits, both_ways: false };
            let output = self.session.run(batch, &mut self.policy)?;
            let logits = output.logits.chunks_exact(self.logits.len());
            self.next.iter_mut().zip(logits).for_each(|(next, logits)| *next = argmax(logits));
            self.chosen.extend_from_slice(&self.next[..rows]);
            left -= rows;
            if left == 0 {
                self.logits.copy_from_slice(output.last());
            }
            self.steps.clear();
            self.steps.extend_from_slice(output.loop_steps);
            self.count(readout_exits);
            self.policy.ran(rows, 1);
            if !go_on(rows) {
                break;
            }
        }
        Ok(())
    }

    /// Counts what was just run, unless the policy saw it.
    fn count(&mut self, read_out: bool) {
        if self.session.device().is_none() {
            return;
        }
        let loops = self.session.model().config().loops.len();
        let mut sees = self.session.len(0) - self.steps.len() / loops;
        for steps in self.steps.chunks(self.session.chunk_rows() * loops) {
            sees += steps.len() / loops;
            self.policy.passed(steps, sees, read_out);
        }
    }

    /// FNV-1a over the tokens that were chosen and the bits of the last logits.
    fn answer(&self) -> u64 {
        let words = self.chosen.iter().copied().chain(self.logits.iter().map(|x| x.to_bits()));
        let mut hash = crate::hash::Fnv::new();
        words.for_each(|word| hash.add(&word.to_le_bytes()));
        hash.number()
    }
}

/// What was spent between two samples, if all of it can be known: counters of the processor know nothing of a device, and a battery
/// feeds both.
fn joules(on_device: bool, meter: &EnergyMeter, from: Option<&EnergySample>, to: Option<&EnergySample>) -> Option<f64> {
    let (from, to) = from.zip(to).filter(|(from, _)| !on_device || from.source() == EnergySource::Battery)?;
    meter.joules(from, to)
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in logits.iter().enumerate() {
        if *x > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Rows per pass where nobody says, as [`SessionOptions::chunk_rows`] has it.
const CHUNK_ROWS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::device::fake;
    use clap::Parser;
    use std::path::Path;

    /// A device is counted from the outside, to the same numbers; one that fails is told of.
    #[test]
    fn devices_are_measured_alike() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let flags =
            Flags::try_parse_from("rdt-bench -m m -p 7 -n 5 --rows 1,2 -b 3 -d 0,2 --pg 4,3".split(' ')).unwrap();
        let meter = EnergyMeter::new(&Machine::here());
        let setting = Setting { threads: None, kv_type: KvType::F16, steps: Some(3), rule: ExitRule::full_depth() };
        for test in flags.tests() {
            let sample = |model: Arc<Model>| {
                let mut run = Run::new(&model, &flags, setting, test, true, &Stop::never()).unwrap();
                run.warm_up().unwrap();
                let sample = run.repetition(&meter).unwrap();
                assert_eq!(sample.counts.in_loop.is_zero(), run.session().device().is_some());
                (sample, run.take_notice())
            };
            let (there, notice) = sample(fake::model(&path, None));
            let (here, _) = sample(Arc::new(crate::arch::open(&path, crate::arch::Load::Map).unwrap()));
            assert_eq!((there.answer, notice), (here.answer, None), "{test:?}");
            assert!(here.counts.same_work(&there.counts), "{test:?}: {:?}, {:?}", here.counts, there.counts);
            let (_, notice) = sample(fake::model(&path, Some(2)));
            assert!(notice.is_some_and(|n| n.contains(fake::NAME)), "{test:?}");
        }
    }
}
