//! How well a model predicts a text, at one depth or several, and how far it is from another run of itself or of another file.

use anyhow::bail;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use indicatif::{ProgressBar, ProgressStyle};
use rdt::calibrate::{
    self, BaseRun, BaseWriter, Comparison, Cosines, Depths, Estimate, Evaluation, Perplexity, Reading, Recorder,
    StepCosine, Summary, Windows,
};
use rdt::cli::{
    self, DeviceChoice, DeviceFlags, ExitFlags, Interrupted, ModelFlags, OnDevice, ParallelFlags, SessionFlags, Stop,
    TextFlags,
};
use rdt::exit::{ExitRule, RulePolicy, Signal};
use rdt::files::AtomicFile;
use rdt::kernels::KvType;
use rdt::model::{self, Model, Session};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Perplexity on a text, at one or several depths, and how far a run is from a base run
#[derive(Parser)]
#[command(
    version,
    mut_arg("file", |a| a.required_unless_present_any(["prompt", "base"])),
    mut_arg("ctx_size", |a| a.help("Tokens per window (default: 512, or the base run's)")),
    after_help = "\
Perplexity is llama.cpp's: the text is tokenised once, cut into windows of -c tokens side by side, and in each
the second half is predicted; the error is that of the mean, carried through exp. --ppl-stride N moves windows
on by N and scores their last N tokens instead. The newline that ends a file is not part of the text, as there.

A base run is stored in the layout of llama.cpp's --kl-divergence-base, so the two programs read each other's.
It keeps log-probabilities in 16 bits and nothing of how it was made: depth, rule and prefix are yours to
remember. --base-model compares two files directly, in f32, and tells how far their latent states part (on the
CPU, where these can be seen).

Rules on the read-out (kl, entropy and so on) read a window token by token, and then --parallel windows share
the passes, if their logits fit 256 MiB and there is no --base-model. Otherwise the tokens of one window do.

For models whose prompts are read in both directions, the half of a window that is not scored is such a prompt;
--prefix-len 0 reads them as llama.cpp does. Keys and values are f32 unless --kv-type says otherwise.

Examples:
  rdt-perplexity -m model.gguf -f wiki.test.raw
  rdt-perplexity -m model.gguf -f text.txt -c 256 --steps 1,2,4,8,16
  rdt-perplexity -m model.gguf -f text.txt --exit-rule acceleration:0.03 --steps 32
  rdt-perplexity -m model.gguf -f text.txt --device gpu
  rdt-perplexity -m f16.gguf -f text.txt --save-base f16.base
  rdt-perplexity -m q4_0.gguf --base f16.base
  rdt-perplexity -m q4_0.gguf --base-model f16.gguf -f text.txt --steps 4,8 --json"
)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Move windows on by N tokens and score the last N of each
    #[arg(long, value_name = "N", value_parser = cli::positive, conflicts_with_all = ["save_base", "base"])]
    ppl_stride: Option<usize>,
    /// Store this run, to compare others with
    #[arg(long, value_name = "FILE", conflicts_with_all = ["base", "base_model"])]
    save_base: Option<PathBuf>,
    /// Compare with a stored run; its text is scored if none is given
    #[arg(long, value_name = "FILE", conflicts_with = "base_model")]
    base: Option<PathBuf>,
    /// Compare with another model file, run beside this one at the same depth
    #[arg(long, value_name = "FILE")]
    base_model: Option<PathBuf>,
    /// Loop steps at most; several, separated by commas, are a run each (default: the exit rule's max, else the
    /// model's own)
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = cli::positive, help_heading = "Depth")]
    steps: Vec<usize>,
    #[command(flatten)]
    exits: ExitFlags,
    #[command(flatten)]
    session: SessionFlags,
    #[command(flatten)]
    parallel: ParallelFlags,
    #[command(flatten)]
    device: DeviceFlags,
    /// Machine-readable results on stdout
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::run("rdt-perplexity", run)
}

/// Words for the user, beside the data.
fn note(text: &str) {
    eprintln!("rdt-perplexity: {}", cli::one_line(text));
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    if flags.save_base.is_some() && flags.steps.len() > 1 {
        let message = "--save-base stores one run; give --steps one number";
        return Err(Flags::command().error(ErrorKind::ArgumentConflict, message).into());
    }
    let place = match (&flags.base_model, &flags.device.device) {
        (None, choice) => choice,
        // It compares latent states, step by step.
        (Some(_), DeviceChoice::Auto | DeviceChoice::Cpu) => &DeviceChoice::Cpu,
        (Some(_), DeviceChoice::Gpu(_)) => {
            let message = "--base-model compares the latent states of every step, which are seen on the CPU only";
            return Err(Flags::command().error(ErrorKind::ArgumentConflict, message).into());
        }
    };
    let place = place.open()?;
    let open = |path| flags.model.load.open_at(path, &place, flags.session.threads);
    let model = open(&flags.model.model)?;
    let base_model = flags.base_model.as_deref().map(open).transpose()?;
    let base = flags.base.as_deref().map(BaseRun::open).transpose()?;
    let windows = windows(flags, &model, base.as_ref())?;
    let vocab = model.config().vocab;
    if let Some(other) = &base_model
        && other.config().vocab != vocab
    {
        bail!("the base model has a vocabulary of {} tokens, and this one of {vocab}", other.config().vocab);
    }
    let prefix = flags.text.prefix(&model, &windows);
    let rule = flags.exits.rule(&model, Some(&flags.model.model), ExitRule::default())?;
    let job = Job {
        flags,
        model: &model,
        base_model: base_model.as_ref(),
        windows: &windows,
        rule,
        reading: Reading { prefix, readout_exits: rule.signal() == Signal::Readout },
        stop: Stop::install()?,
        on_device: OnDevice::default(),
    };

    let depths = match flags.steps.as_slice() {
        [] => vec![None],
        steps => steps.iter().copied().map(Some).collect(),
    };
    let mut out = io::stdout().lock();
    let mut outcomes = Vec::new();
    for steps in depths {
        let first = outcomes.is_empty();
        let outcome = job.measure(steps, first)?;
        if !flags.json {
            // Line by line: the next depth may take long.
            print_row(&mut out, &outcome, first)?;
            out.flush()?;
        }
        outcomes.push(outcome);
    }
    if flags.json {
        let report = json!({
            "model": flags.model.model.display().to_string(),
            "text": flags.text.file.as_ref().map(|path| path.display().to_string()),
            "base": flags.base.as_ref().or(flags.base_model.as_ref()).map(|path| path.display().to_string()),
            "text_tokens": windows.text_len(),
            "context": windows.context(),
            "stride": windows.is_strided().then(|| windows.scored().len()),
            "windows": windows.len(),
            "scored": windows.scored_len(),
            "prefix": prefix,
            "runs": outcomes,
        });
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        outcomes.iter().try_for_each(|outcome| print_details(&mut out, outcome))?;
    }
    out.flush()?;
    Ok(())
}

/// The text that is asked for, cut up.
fn windows<R: io::Read>(flags: &Flags, model: &Model, base: Option<&BaseRun<R>>) -> anyhow::Result<Windows> {
    let tokenizer = cli::tokenizer("rdt-perplexity", model)?;
    let bos = cli::bos(&tokenizer);
    let context = flags.session.ctx_size.or(base.map(BaseRun::context)).unwrap_or(cli::CONTEXT);
    let given = flags.text.read()?;
    let windows = match (given, base, flags.ppl_stride) {
        (None, Some(base), _) => Windows::whole(base.tokens().to_vec(), context, bos)?,
        (given, _, stride) => {
            let tokens = flags.text.tokens(&tokenizer, &given.unwrap_or_default())?;
            match stride {
                Some(stride) => Windows::strided(tokens, context, stride)?,
                None => Windows::new(tokens, context, bos)?,
            }
        }
    };
    // What a base run does not have cannot be compared with it.
    let most = [flags.text.chunks, base.map(BaseRun::windows)].into_iter().flatten().min();
    Ok(windows.first(most.unwrap_or(usize::MAX)))
}

/// What all runs have in common.
struct Job<'a> {
    flags: &'a Flags,
    model: &'a Arc<Model>,
    base_model: Option<&'a Arc<Model>>,
    windows: &'a Windows,
    rule: ExitRule,
    reading: Reading,
    stop: Stop,
    on_device: OnDevice,
}

/// Results at one depth.
#[derive(Serialize)]
struct Outcome {
    rule: String,
    max_steps: usize,
    kv_type: String,
    kv_steps: usize,
    /// What it ran on, one after the other.
    device: String,
    threads: usize,
    /// Windows that were read at a time, at most.
    parallel: usize,
    /// Loop steps of the scored positions.
    mean_steps: f64,
    steps: BTreeMap<usize, u64>,
    cross_entropy: Estimate,
    perplexity: Estimate,
    comparison: Option<Summary>,
    /// Cosines of the two models' latent states; `None` where their shapes differ, or there is one model.
    latent_cosines: Option<Vec<StepCosine>>,
    seconds: f64,
    tokens_per_second: f64,
}

/// What is gathered as a run goes on.
#[derive(Default)]
struct Tally {
    perplexity: Perplexity,
    depths: Depths,
    comparison: Comparison,
    cosines: Cosines,
    /// Time in this model, without a base model's.
    time: Duration,
}

type Policy = Recorder<RulePolicy>;

impl Job<'_> {
    /// A session of a model for loops of up to `steps` steps, and what decides their depth.
    fn session(&self, model: &Arc<Model>, steps: Option<usize>) -> anyhow::Result<(Session, Policy)> {
        let config = model.config();
        let depth = RulePolicy::depth_limit(&self.rule, steps, config);
        let initial = self.flags.exits.initial(config.state_width)?;
        let mut options = self.flags.session.options(depth, initial, KvType::F32);
        options.context = Some(self.windows.context());
        options.on_device = self.on_device.still();
        // Elsewhere the rows of a chunk share passes; and states are recorded of one window at a time.
        let alone = !self.reading.readout_exits || self.reading.prefix > 0 || self.base_model.is_some();
        let most = if alone { 1 } else { self.windows.len() };
        let mut session = self.flags.parallel.session(model, options, most)?;
        self.on_device.heed(session.take_notice()).iter().for_each(|notice| note(notice));
        let policy = RulePolicy::new(self.rule, steps, config, session.chunk_rows())?;
        self.stop.watch(&session)?;
        Ok((session, Recorder::new(policy, config)))
    }

    fn measure(&self, steps: Option<usize>, first: bool) -> anyhow::Result<Outcome> {
        let (mut session, policy) = self.session(self.model, steps)?;
        let (max_steps, threads, shape) = (session.steps(), session.threads(), *session.kv_shape());
        let (speed, began_on) = (cli::device_words(&session), cli::device_name(&session).to_owned());
        let mut base_session = self.base_model.map(|model| self.session(model, steps)).transpose()?;
        let mut base = match &mut base_session {
            None => None,
            Some((session, policy)) => Some(Evaluation::new(session, policy.clone(), self.windows, self.reading)?),
        };
        let run = Evaluation::new(&mut session, policy, self.windows, self.reading)?;
        let parallel = run.at_a_time();
        // From its start at every depth.
        let stored = self.flags.base.as_deref().map(BaseRun::open).transpose()?;
        stored.iter().try_for_each(|base| base.check(self.windows, self.model.config().vocab))?;
        let saved = match &self.flags.save_base {
            None => None,
            Some(path) => Some(BaseWriter::new(AtomicFile::create(path)?, self.windows, self.model.config().vocab)?),
        };
        // Whatever can be refused has been.
        if let Some(words) = cli::too_deep("--", &self.rule, steps, self.model.config()) {
            note(&words);
        }
        if first {
            self.introduce();
        }
        let several = if parallel > 1 { format!(", {parallel} windows at a time") } else { String::new() };
        note(&format!(
            "up to {max_steps} steps, {}; KV {} with {} of {max_steps} slots, {speed}{several}",
            self.rule, shape.ty, shape.slots,
        ));

        let mut tally = Tally::default();
        let bar = self.bar(max_steps);
        let saved = self.read_on(run, base.as_mut(), stored, saved, &mut tally, &bar);
        bar.finish_and_clear();
        let saved = saved.map_err(|e| self.ended(e, &tally))?;
        if let Some(saved) = saved {
            let file = saved.finish()?;
            let path = file.path().display().to_string();
            file.commit()?;
            note(&format!("wrote {path}"));
        }

        let compared = tally.comparison.count() > 0;
        let seconds = tally.time.as_secs_f64();
        Ok(Outcome {
            rule: self.rule.to_string(),
            max_steps,
            kv_type: shape.ty.to_string(),
            kv_steps: shape.slots,
            device: cli::ran_on(&began_on, cli::device_name(&session)),
            threads,
            parallel,
            mean_steps: tally.depths.mean(),
            steps: tally.depths.counts().collect(),
            cross_entropy: tally.perplexity.cross_entropy(),
            perplexity: tally.perplexity.perplexity(),
            comparison: compared.then(|| tally.comparison.summary()),
            latent_cosines: Some(tally.cosines.summary()).filter(|all| !all.is_empty()),
            seconds,
            tokens_per_second: self.tokens_run() as f64 / seconds,
        })
    }

    /// Reads all windows, and gives back what the run was written to.
    fn read_on(
        &self,
        mut run: Evaluation<'_, Policy>,
        mut base: Option<&mut Evaluation<'_, Policy>>,
        mut stored: Option<BaseRun<BufReader<File>>>,
        mut saved: Option<BaseWriter<AtomicFile>>,
        tally: &mut Tally,
        bar: &ProgressBar,
    ) -> Result<Option<BaseWriter<AtomicFile>>, calibrate::Error> {
        let same_shape = self.base_model.is_some_and(|other| {
            let (a, b) = (self.model.config(), other.config());
            a.state_width == b.state_width && a.loops.len() == b.loops.len()
        });
        while let Some((window, rows)) = run.upcoming() {
            bar.set_position(window as u64);
            if let Some(base) = &mut base {
                base.policy_mut().expect(rows.clone());
                run.policy_mut().expect(rows);
                base.advance()?;
            }
            let start = Instant::now();
            run.advance()?;
            tally.time += start.elapsed();
            if let Some(notice) = self.on_device.heed(run.take_notice()) {
                bar.suspend(|| note(&notice));
            }
            let mut base_rows = base.as_ref().map(|base| base.scored());
            for row in run.scored() {
                tally.perplexity.add(row.logits, row.target);
                tally.depths.add(row.steps);
                if let Some(saved) = &mut saved {
                    saved.push(row.logits)?;
                }
                if let Some(stored) = &mut stored {
                    tally.comparison.add_log_probs(stored.next_row()?, row.logits, row.target);
                }
                if let Some(base) = base_rows.as_mut().and_then(Iterator::next) {
                    tally.comparison.add_logits(base.logits, row.logits, row.target);
                }
            }
            if let (Some(base), true) = (&base, same_shape) {
                tally.cosines.add(base.policy(), run.policy());
            }
            if !bar.is_hidden() {
                bar.set_message(running(tally));
            }
        }
        Ok(saved)
    }

    /// What became of a run that did not come to its end.
    fn ended(&self, error: calibrate::Error, tally: &Tally) -> anyhow::Error {
        if !matches!(error, calibrate::Error::Model(model::Error::Cancelled)) {
            return error.into();
        }
        let per_window = self.windows.scored().len() as u64;
        let (done, all) = (tally.perplexity.count() / per_window, self.windows.len());
        let so_far = if tally.perplexity.count() > 0 { format!("; so far {}", running(tally)) } else { String::new() };
        Interrupted(format!("stopped after {done} of {all} windows{so_far}")).into()
    }

    /// What is scored, and how.
    fn introduce(&self) {
        let windows = self.windows;
        let (n, scored) = (windows.len(), windows.scored_len());
        let stride = if windows.is_strided() { format!(", {} apart", windows.scored().len()) } else { String::new() };
        note(&format!(
            "{n} windows of {} tokens{stride}; {scored} of {} tokens are scored",
            windows.context(),
            windows.text_len()
        ));
        if windows.context() > self.model.config().context {
            let trained = self.model.config().context;
            note(&format!("the model was trained with {trained} tokens at most, and windows are longer (-c)"));
        }
        if self.model.config().prefix_lm {
            note(&match self.reading.prefix {
                0 => "this model was trained with prompts whose tokens see each other in both directions; with --prefix-len 0 every \
                      token sees only those before it"
                    .to_owned(),
                n => format!("the first {n} tokens of a window see each other in both directions, as this model was trained"),
            });
        }
    }

    /// Tokens that go through the model.
    fn tokens_run(&self) -> usize {
        self.windows.len() * self.windows.scored().end
    }

    /// Draws on stderr, and only if that is a terminal.
    fn bar(&self, steps: usize) -> ProgressBar {
        let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} windows, {msg}, {eta} left");
        ProgressBar::new(self.windows.len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_prefix(format!("{steps} steps"))
    }
}

/// Estimates so far.
fn running(tally: &Tally) -> String {
    let perplexity = format!("PPL = {}", plus_minus(tally.perplexity.perplexity(), 4));
    match tally.comparison.count() {
        0 => perplexity,
        _ => format!("{perplexity}, KL = {}", plus_minus(tally.comparison.kl(), 6)),
    }
}

/// A number with its error, which gets a digit more.
fn plus_minus(x: Estimate, digits: usize) -> String {
    match x.error.is_nan() {
        true => format!("{:.digits$}", x.value),
        false => format!("{:.digits$} +/- {:.*}", x.value, digits + 1, x.error),
    }
}

/// The same in per cent.
fn per_cent(x: Estimate) -> String {
    plus_minus(Estimate { value: 100.0 * x.value, error: 100.0 * x.error }, 2) + " %"
}

fn print_row(out: &mut impl Write, o: &Outcome, first: bool) -> io::Result<()> {
    let width = o.rule.len().max(4);
    if first {
        write!(out, "{:<width$}  {:>5}  {:>10}  {:>22}", "rule", "most", "mean steps", "perplexity")?;
        if o.comparison.is_some() {
            write!(out, "  {:>22}  {:>22}  {:>20}  {:>20}", "perplexity / base", "KL", "same top", "RMS change of p")?;
        }
        writeln!(out, "  {:>8}", "tokens/s")?;
    }
    let ppl = plus_minus(o.perplexity, 4);
    write!(out, "{:<width$}  {:>5}  {:>10.2}  {ppl:>22}", o.rule, o.max_steps, o.mean_steps)?;
    if let Some(c) = &o.comparison {
        let (ratio, kl) = (plus_minus(c.ratio, 5), plus_minus(c.kl, 6));
        let (top, rms) = (per_cent(c.same_top), per_cent(c.change_rms));
        write!(out, "  {ratio:>22}  {kl:>22}  {top:>20}  {rms:>20}")?;
    }
    writeln!(out, "  {:>8.0}", o.tokens_per_second)
}

/// What does not fit a row of the table.
fn print_details(out: &mut impl Write, o: &Outcome) -> io::Result<()> {
    let title = format!("{}, up to {} steps", o.rule, o.max_steps);
    if o.steps.len() > 1 {
        let all: u64 = o.steps.values().sum();
        let share = |(steps, n): (&usize, &u64)| format!("{steps}: {:.1} %", 100.0 * *n as f64 / all as f64);
        writeln!(out, "\n{title}: steps taken\n  {}", o.steps.iter().map(share).collect::<Vec<_>>().join(", "))?;
    }
    if let Some(c) = &o.comparison {
        writeln!(out, "\n{title}, against the base run")?;
        writeln!(out, "  base perplexity    {}", plus_minus(c.base_perplexity, 4))?;
        writeln!(out, "  PPL - base PPL     {}", plus_minus(c.difference, 6))?;
        writeln!(out, "  ln(PPL / base)     {}", plus_minus(c.log_ratio, 6))?;
        writeln!(out, "  correlation        {:.2} %", 100.0 * c.correlation)?;
        writeln!(out, "  mean change of p   {}", per_cent(c.change))?;
        let (kl, p) = (&c.kl_quantiles, &c.change_quantiles);
        writeln!(out, "  {:<10}{:>12}{:>16}", "", "KL", "change of p")?;
        let rows = [
            ("max", kl.max, p.max),
            ("99.9 %", kl.p99_9, p.p99_9),
            ("99 %", kl.p99, p.p99),
            ("95 %", kl.p95, p.p95),
            ("90 %", kl.p90, p.p90),
            ("median", kl.median, p.median),
            ("10 %", kl.p10, p.p10),
            ("5 %", kl.p5, p.p5),
            ("1 %", kl.p1, p.p1),
            ("min", kl.min, p.min),
        ];
        for (name, kl, p) in rows {
            writeln!(out, "  {name:<10}{kl:>12.6}{:>14.3} %", 100.0 * p)?;
        }
    }
    for c in o.latent_cosines.iter().flatten() {
        if (c.segment, c.step) == (0, 1) {
            writeln!(out, "\n{title}: cosine of the latent states after each step")?;
        }
        let name =
            if c.segment > 0 { format!("loop {} step {}", c.segment + 1, c.step) } else { format!("step {}", c.step) };
        writeln!(out, "  {name:<16} {}", plus_minus(c.cosine, 6))?;
    }
    Ok(())
}
