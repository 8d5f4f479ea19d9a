//! Decoding strategies against each other: the same text by each in turn, timed, counted and compared to the last bit.

use super::flags::Flags;
use super::output::Format;
use super::{Opened, depths, note, optional};
use crate::cli::device::CPU;
use crate::cli::{DeviceChoice, Stop, decode_json, decode_note};
use crate::exit::{ExitRule, RulePolicy};
use crate::files::AtomicFile;
use crate::generate::decode::Oracle;
use crate::generate::{DecodeStats, Engine, SamplerConfig, Strategy};
use crate::model::{Model, Session, SessionOptions};
use crate::plot::{self, Axis, Chart, Marks, Series};
use crate::random;
use crate::text::{Conversation, Role, Template, Tokenizer};
use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes of a file with prompts, at most.
const MOST_BYTES: u64 = 16 << 20;
/// Tokens of a random prompt, at most: more than any KV cache holds.
const MOST_TOKENS: usize = 1 << 24;
/// Tokens of a prompt where none is given.
const RANDOM_PROMPT: usize = 16;

/// How often guesses are to come true: by the part of the loop that is behind them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Acceptance(Vec<(f64, f64)>);

impl FromStr for Acceptance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected PART:RATE,.. with both from 0 to 1, such as 0.125:0.7,0.25:0.9,0.5:0.98".to_owned();
        let point = |s: &str| {
            let (part, rate) = s.split_once(':')?;
            let within = |s: &str| s.trim().parse::<f64>().ok().filter(|x| (0.0..=1.0).contains(x));
            Some((within(part)?, within(rate)?))
        };
        let mut points: Vec<_> = text.split(',').map(point).collect::<Option<_>>().ok_or_else(wrong)?;
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(Self(points))
    }
}

impl Acceptance {
    /// The rate at a part of the loop: straight lines between what is given, flat before and behind.
    fn at(&self, part: f64) -> f64 {
        let behind = self.0.iter().position(|p| p.0 >= part);
        match behind {
            None => self.0.last().map_or(0.0, |p| p.1),
            Some(0) => self.0[0].1,
            Some(i) => {
                let ((a, low), (b, high)) = (self.0[i - 1], self.0[i]);
                low + (part - a) / (b - a) * (high - low)
            }
        }
    }
}

/// A text of random tokens, and guesses about it that come true at given rates: once one is right, deeper ones are, too.
struct Forced {
    acceptance: Acceptance,
    depth: usize,
    vocab: u64,
}

impl Forced {
    fn token(&self, position: usize) -> u32 {
        (random::bits(0, 3, position as u64) % self.vocab) as u32
    }
}

impl Oracle for Forced {
    fn guess(&self, position: usize, steps: usize, _: u32) -> u32 {
        let right = random::uniform(0, 4, position as u64) < self.acceptance.at(steps as f64 / self.depth as f64);
        let token = self.token(position);
        if right { token } else { ((u64::from(token) + 1) % self.vocab) as u32 }
    }

    fn draw(&self, position: usize, _: u32) -> u32 {
        self.token(position)
    }
}

/// A strategy at work.
struct Candidate {
    strategy: Strategy,
    engine: Engine,
    times: Vec<f64>,
    stats: DecodeStats,
}

/// What is measured, and how.
struct Task<'a> {
    flags: &'a Flags,
    rule: ExitRule,
    steps: Option<usize>,
    threads: Option<NonZeroUsize>,
    prompts: &'a [Vec<u32>],
    stops: &'a [u32],
    n: usize,
}

/// What cannot be measured together is refused before anything is.
pub(super) fn check(flags: &Flags) -> Result<(), clap::Error> {
    let refuse = |kind, message: &str| Err(Flags::command().error(kind, message));
    let wave = flags.decode.iter().any(|strategy| matches!(strategy, Strategy::Wavefront(_)));
    let drawn = |s: &Strategy| matches!(s, Strategy::Pipeline { every: Some(_), .. });
    if flags.n_gen.len() != 1 || flags.n_gen == [0] || flags.n_depth.len() != 1 || flags.kv_type.len() != 1 {
        return refuse(ErrorKind::ValueValidation, "--decode takes one -n (at least 1), one -d and one --kv-type");
    }
    if flags.n_depth[0] > MOST_TOKENS {
        return refuse(ErrorKind::ValueValidation, "-d: too many tokens");
    }
    if flags.format() == Format::Csv {
        return refuse(ErrorKind::ArgumentConflict, "--decode writes md, json or jsonl");
    }
    if flags.devices()?.iter().any(|device| !matches!(device, DeviceChoice::Cpu | DeviceChoice::Auto)) {
        return refuse(ErrorKind::ArgumentConflict, "--decode is measured on the CPU; a GPU runs a token as a whole");
    }
    if wave && flags.acceptance.is_some() {
        return refuse(ErrorKind::ArgumentConflict, "--acceptance: a wavefront has no guesses that could be forced");
    }
    if flags.plot.is_some() && !flags.decode.iter().any(drawn) {
        return refuse(ErrorKind::ValueValidation, "--plot draws 'pipeline:every=N,rows=N', and there is none");
    }
    Ok(())
}

/// All models in all settings.
pub(super) fn measure(flags: &Flags, models: &[Opened<'_>], stop: &Stop) -> anyhow::Result<()> {
    // Tried, and made when there is something to write: an interrupted program would leave it behind.
    flags.plot.as_deref().map(AtomicFile::create).transpose()?;
    let (mut records, mut charted) = (Vec::new(), Vec::new());
    let mut out = io::stdout().lock();
    for opened in models {
        let Some(placed) = opened.models.first() else { continue };
        let model = &placed.model;
        let rule = flags.exits.rule(model, Some(opened.path), ExitRule::full_depth())?;
        let (prompts, stops) = prompts(flags, model)?;
        for steps in depths(flags, &rule, model) {
            for threads in optional(&flags.threads) {
                let (prompts, stops, n) = (&prompts[..], &stops[..], flags.n_gen[0]);
                let task = Task { flags, rule, steps, threads, prompts, stops, n };
                let rows = task.run(model, stop)?;
                if flags.format() == Format::Md {
                    table(&mut out, &opened.subject.filename, &rows, records.is_empty())?;
                }
                if flags.plot.is_some() && charted.is_empty() {
                    charted = points(&opened.subject.filename, &rows);
                }
                records.extend(rows.into_iter().map(|mut row| {
                    row["model_filename"] = json!(opened.subject.filename);
                    row
                }));
            }
        }
    }
    match flags.format() {
        Format::Md => {}
        Format::Jsonl => records.iter().try_for_each(|record| writeln!(out, "{record}"))?,
        _ => writeln!(out, "{}", serde_json::to_string_pretty(&records)?)?,
    }
    out.flush()?;
    if let Some(path) = &flags.plot {
        let mut file = AtomicFile::create(path)?;
        file.write_all(plot::standalone(&chart(charted)).as_bytes())?;
        file.commit()?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Speed against distance, by rows: (rows, [(every, times plain)]).
type Points = Vec<(String, Vec<(f64, f64)>)>;

/// Of the pipelines whose distance was given.
fn points(model: &str, rows: &[Value]) -> Points {
    let mut all: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows {
        let strategy = row["strategy"].as_str().and_then(|s| s.parse().ok());
        if let Some(Strategy::Pipeline { every: Some(every), rows }) = strategy
            && let Some(times) = row["times_plain"].as_f64()
        {
            all.entry(rows).or_default().push((every as f64, times));
        }
    }
    all.into_iter()
        .map(|(rows, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            (format!("{model}, up to {rows} rows"), points)
        })
        .collect()
}

fn chart(points: Points) -> Chart {
    let lines = points.into_iter().enumerate().map(|(i, (name, p))| Series::new(name, i + 1, Marks::LinePoints(p)));
    Chart {
        title: "Pipelined decoding".into(),
        x: Axis::steps("loop steps between a token and its successor"),
        y: Axis::linear("tokens per second, times plain decoding"),
        series: lines.chain([Series::new("plain", 0, Marks::Horizontal(1.0))]).collect(),
        size: (640, 420),
    }
}

/// What is continued: the prompts of the file, as questions in the model's chat template, or random tokens.
fn prompts(flags: &Flags, model: &Model) -> anyhow::Result<(Vec<Vec<u32>>, Vec<u32>)> {
    let Some(path) = &flags.prompts else {
        let vocab = model.config().vocab as u64;
        let depth = if flags.n_depth[0] > 0 { flags.n_depth[0] } else { RANDOM_PROMPT };
        return Ok((vec![(0..depth as u64).map(|i| (random::bits(0, 0, i) % vocab) as u32).collect()], Vec::new()));
    };
    let name = path.display().to_string();
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    if read.with_context(|| format!("cannot read {name}"))? as u64 > MOST_BYTES {
        bail!("{name} has more than {MOST_BYTES} bytes: too many prompts");
    }
    let tokenizer = Tokenizer::from_gguf(model.metadata())?;
    let template = Template::of_model(model.metadata(), &tokenizer, model.config().prefix_lm)?;
    let mut stops = crate::text::stop_tokens(model.metadata(), &tokenizer)?;
    stops.extend(template.stop_token(&tokenizer));
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let prompts = lines.map(|line| {
        let mut conversation = Conversation::new(None);
        conversation.push(Role::User, line);
        Ok(template.prompt(&tokenizer, &conversation.messages(), true, None)?)
    });
    let prompts = prompts.collect::<anyhow::Result<Vec<_>>>()?;
    if prompts.is_empty() {
        bail!("{name} has no line to answer");
    }
    Ok((prompts, stops))
}

impl Task<'_> {
    fn engine(&self, model: &Arc<Model>, strategy: Strategy, stop: &Stop) -> anyhow::Result<Engine> {
        let config = model.config();
        let longest = self.prompts.iter().map(Vec::len).max().unwrap_or(0);
        let depth = RulePolicy::depth_limit(&self.rule, self.steps, config);
        let mut options = SessionOptions {
            threads: self.threads,
            context: Some(longest.checked_add(self.n).context("too many tokens")?),
            kv_type: self.flags.kv_type[0],
            kv_slots: self.flags.kv_steps,
            steps: Some(depth),
            kv_budget: (self.flags.kv_memory as u64).saturating_mul(1 << 20),
            initial: self.flags.exits.initial(config.state_width)?,
            on_device: false,
            ..SessionOptions::default()
        };
        options.kv_slots = options.kv_slots.or(strategy.wants_slots(model, &options));
        crate::cli::stay_on_fast_cores();
        let session = Session::new(Arc::clone(model), &options)?;
        stop.watch(&session)?;
        let mut engine = Engine::new(session, self.rule, self.steps, SamplerConfig::greedy(), config.vocab)?;
        engine.set_strategy(strategy);
        engine.set_stops(self.stops.to_vec());
        if let Some(acceptance) = &self.flags.acceptance {
            let (acceptance, vocab) = (acceptance.clone(), config.vocab as u64);
            engine.drive_mut().ask(Box::new(Forced { acceptance, depth, vocab }));
        }
        Ok(engine)
    }

    /// Every strategy in turn, as often as is asked for; plain decoding is always one of them.
    fn run(&self, model: &Arc<Model>, stop: &Stop) -> anyhow::Result<Vec<Value>> {
        let mut strategies = vec![Strategy::Plain];
        for &strategy in &self.flags.decode {
            if !strategies.contains(&strategy) {
                strategies.push(strategy);
            }
        }
        let candidate = |&strategy: &Strategy| {
            let engine = self.engine(model, strategy, stop)?;
            Ok(Candidate { strategy, engine, times: Vec::new(), stats: DecodeStats::default() })
        };
        let mut candidates = strategies.iter().map(candidate).collect::<anyhow::Result<Vec<_>>>()?;
        for candidate in &candidates {
            decode_note(&candidate.engine).iter().for_each(|words| note(words));
        }
        let warm_ups = usize::from(!self.flags.no_warmup);
        let mut expected = None;
        let mut tokens = 0;
        for round in 0..self.flags.repetitions + warm_ups {
            for candidate in &mut candidates {
                let (time, n, answer) = self.generate(&mut candidate.engine)?;
                let stats = candidate.engine.take_decode_stats();
                // Plain decoding is the first. (Where steps share KV slots, those of a wavefront are others.)
                if *expected.get_or_insert(answer) != answer && candidate.engine.is_exact() {
                    bail!("{} gives another text than plain decoding: please report this", candidate.strategy);
                }
                if round >= warm_ups {
                    candidate.times.push(time.as_secs_f64());
                    candidate.stats.merge(&stats);
                    tokens = n;
                }
            }
        }
        let plain = candidates.first().map_or(f64::NAN, |plain| median(&plain.times));
        Ok(candidates.iter().map(|candidate| self.record(candidate, tokens, plain)).collect())
    }

    /// All prompts once: the time that tokens took, how many they were, and a hash of them and the last logits.
    fn generate(&self, engine: &mut Engine) -> anyhow::Result<(Duration, usize, u64)> {
        let mut hash = crate::hash::Fnv::new();
        let (mut time, mut tokens) = (Duration::ZERO, 0);
        for prompt in self.prompts {
            // From nothing, so that every round does the same.
            engine.reset();
            engine.prompt(prompt)?;
            let start = Instant::now();
            for _ in 0..self.n {
                let Some(step) = engine.next_token()? else { break };
                hash.add(&step.token.to_le_bytes());
                hash.add(&(step.steps as u64).to_le_bytes());
                if self.stops.contains(&step.token) {
                    break;
                }
                tokens += 1;
            }
            time += start.elapsed();
            engine.logits().iter().for_each(|x| hash.add(&x.to_bits().to_le_bytes()));
        }
        Ok((time, tokens, hash.number()))
    }

    fn record(&self, candidate: &Candidate, tokens: usize, plain: f64) -> Value {
        let session = candidate.engine.session();
        let time = median(&candidate.times);
        json!({
            "build_version": env!("CARGO_PKG_VERSION"),
            "isa": session.model().kernels().isa.name(),
            "device": CPU,
            "decode": decode_json(&candidate.engine, &candidate.stats),
            "strategy": candidate.strategy.to_string(),
            "type_kv": session.kv_shape().ty.name(),
            "kv_steps": session.kv_shape().slots,
            "n_gen": self.n,
            "warmup": !self.flags.no_warmup,
            "exit_rule": self.rule.to_string(),
            "steps": session.steps(),
            "n_threads": session.threads(),
            "prompts": self.prompts.len(),
            "tokens": tokens,
            "acceptance_forced": self.flags.acceptance.is_some(),
            "median_ts": tokens as f64 / time,
            "samples_ts": candidate.times.iter().map(|t| tokens as f64 / t).collect::<Vec<_>>(),
            "times_plain": plain / time,
        })
    }
}

/// As a table in markdown.
fn table(out: &mut impl Write, model: &str, rows: &[Value], first: bool) -> io::Result<()> {
    if first {
        writeln!(
            out,
            "| model | threads | steps | decoding | t/s | x plain | rows per pass | passes per token | guesses that came true, after loop steps |"
        )?;
        writeln!(out, "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |")?;
    }
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |x| format!("{x:.2}"));
    for row in rows {
        let guesses = row["decode"]["guesses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let rate = |g: &Value| 100.0 * g["right"].as_f64().unwrap_or(0.0) / g["made"].as_f64().unwrap_or(1.0);
        let guesses: Vec<_> = guesses.iter().map(|g| format!("{}: {:.0} %", g["steps"], rate(g))).collect();
        writeln!(
            out,
            "| {model} | {} | {} | {} | {} | {} | {} | {} | {}{} |",
            row["n_threads"],
            row["steps"],
            row["strategy"].as_str().unwrap_or_default(),
            number(&row["median_ts"]),
            number(&row["times_plain"]),
            number(&row["decode"]["rows_per_pass"]),
            number(&row["decode"]["passes_per_token"]),
            if row["acceptance_forced"] == true && !guesses.is_empty() { "forced: " } else { "" },
            guesses.join(", "),
        )?;
    }
    Ok(())
}

fn median(times: &[f64]) -> f64 {
    super::stats::median(times.iter().copied()).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceptance_is_read_and_interpolated() {
        let a: Acceptance = "0.5:0.9, 0.25:0.5".parse().unwrap();
        let rates = [0.0, 0.25, 0.375, 0.5, 1.0].map(|part| a.at(part));
        assert_eq!(rates.map(|r| (r * 1000.0).round()), [500.0, 500.0, 700.0, 900.0, 900.0]);
        for wrong in ["", "0.5", "0.5:2", "-1:0.5", "a:b", "0.5:0.5,"] {
            assert!(wrong.parse::<Acceptance>().is_err(), "{wrong}");
        }
    }

    /// A line for each number of rows, in the order of distances; what was chosen while it ran is on none.
    #[test]
    fn lines_are_pipelines_of_given_distances() {
        let row = |strategy: &str, times: f64| json!({"strategy": strategy, "times_plain": times});
        let rows = [
            row("plain", 1.0),
            row("pipeline:every=4,rows=4", 1.5),
            row("pipeline:every=2,rows=8", 1.9),
            row("pipeline:every=2,rows=4", 1.2),
            row("pipeline:rows=8", 2.0),
        ];
        let points = points("m", &rows);
        assert_eq!(points[0], ("m, up to 4 rows".into(), vec![(2.0, 1.2), (4.0, 1.5)]));
        assert_eq!(points.len(), 2);
        assert!(plot::standalone(&chart(points)).contains("up to 8 rows"));
    }

    /// Deeper guesses are right where shallower ones were, and as often as is asked for.
    #[test]
    fn forced_guesses_come_true_at_their_rate() {
        let forced = Forced { acceptance: "0.25:0.3,0.5:0.8".parse().unwrap(), depth: 8, vocab: 100 };
        let right = |steps| (0..2000).filter(|&p| forced.guess(p, steps, 0) == forced.draw(p, 0)).count();
        assert!((500..700).contains(&right(2)) && (1500..1700).contains(&right(4)), "{} {}", right(2), right(4));
        for p in 0..2000 {
            assert!(forced.guess(p, 2, 0) != forced.draw(p, 0) || forced.guess(p, 4, 0) == forced.draw(p, 0));
        }
    }
}
