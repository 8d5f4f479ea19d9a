//! `rdt-calibrate`: what each loop step buys on a text, which exit rule buys it cheapest, and what it costs on this machine.

mod check;
mod sample;

use super::{InitFlags, Interrupted, ModelFlags, SessionFlags, Stop, TextFlags, bos, one_line, positive};
use crate::calibrate::sweep::{Kept, Plan, Progress, Sweep, Swept};
use crate::calibrate::{self, FORMAT, Findings, MachineId, ModelId, Profile, TextId, Windows, report};
use crate::exit::ExitRule;
use crate::files::{AtomicFile, Bytes};
use crate::gguf;
use crate::hash::Fnv;
use crate::kernels::KvType;
use crate::model::{self, InitialState, Model, Session};
use crate::text::Tokenizer;
use anyhow::{Context, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Tokens per window where nobody says.
const CONTEXT: usize = 256;
/// And of the sample that is built in.
const SAMPLE_CONTEXT: usize = 128;
/// The shortest windows that a short text is cut into.
const SHORTEST: usize = 16;

/// Measure what each loop step buys, and save the settings that are worth having
#[derive(Parser, Debug, Clone)]
#[command(
    name = "rdt-calibrate",
    version,
    after_help = "\
The text is cut into windows and scored as by rdt-perplexity, so the two print the same numbers at the
same setting. Fixed depths share one run; exit rules are tried over a grid of thresholds on its
trajectories, and those that look worth it are run again exactly: only these enter the profile.

Written are the profile (MODEL.calibration.json, which rdt-chat and the others find there) and a report
with plots (MODEL.calibration.html, one file, no network). --embed puts the profile into the GGUF
instead. A calibration that was interrupted goes on where it was when it is started again.

A setting's loss is the larger of two: its perplexity over that of the model's published number of steps,
and exp(KL) - 1, what it would lose on text written by full depth: the smallest from which on
cross-entropy stays within 0.1 % of the deepest's, and KL from it below 0.002.

Examples:
  rdt-calibrate -m model.gguf -f book.txt
  rdt-calibrate -m model.gguf                       # on a small built-in text: enough to try
  rdt-calibrate -m model.gguf -f book.txt --rules acceleration,kl,step-norm --steps 64 --embed
  rdt-calibrate -m model.gguf --check               # does the profile still hold here?
  rdt-chat -m model.gguf --max-loss 0.5%            # use it"
)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,
    #[command(flatten)]
    text: TextFlags,
    /// Deepest depth to measure (default: twice the published number of steps, as far as the model goes)
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "Measurement")]
    steps: Option<usize>,
    /// Kinds of exit rules to try (default: all that the model can follow)
    #[arg(long, value_name = "NAME,..", value_delimiter = ',', help_heading = "Measurement")]
    rules: Vec<String>,
    /// Settings of each kind of rule that are run exactly, at most (up to 8), besides the rule as it is without a threshold
    #[arg(long, value_name = "N", value_parser = positive, default_value_t = 5, help_heading = "Measurement")]
    points: usize,
    /// Initial states that some settings are run from, to see how much they matter
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Measurement")]
    seeds: u64,
    /// Do not measure time and energy
    #[arg(long, help_heading = "Measurement")]
    no_timing: bool,
    /// Forget what an interrupted calibration had measured
    #[arg(long, help_heading = "Measurement")]
    restart: bool,
    /// Where to write the profile (default: MODEL.calibration.json)
    #[arg(short, long, value_name = "FILE", conflicts_with = "embed", help_heading = "Results")]
    out: Option<PathBuf>,
    /// Write the profile into the model file
    #[arg(long, help_heading = "Results")]
    embed: bool,
    /// Where to write the report (default: MODEL.calibration.html)
    #[arg(long, value_name = "FILE", conflicts_with = "no_report", help_heading = "Results")]
    report: Option<PathBuf>,
    /// Write no report
    #[arg(long, help_heading = "Results")]
    no_report: bool,
    /// Write the report's charts into this folder too, as SVG files that follow light and dark
    #[arg(long, value_name = "FOLDER", help_heading = "Results")]
    charts: Option<PathBuf>,
    /// Compare a saved profile (default: the model's) with this model and this machine, and measure nothing else
    #[arg(long, value_name = "FILE", num_args = 0..=1, help_heading = "Results")]
    #[allow(clippy::option_option)]
    check: Option<Option<PathBuf>>,
    /// The profile on stdout instead of the table
    #[arg(long, help_heading = "Results")]
    json: bool,
    #[command(flatten)]
    init: InitFlags,
    #[command(flatten)]
    session: SessionFlags,
}

/// The program.
pub fn main() -> ExitCode {
    super::run("rdt-calibrate", work)
}

/// Words for the user, beside the data.
fn note(text: &str) {
    eprintln!("rdt-calibrate: {}", one_line(text));
}

fn work(flags: &Flags) -> anyhow::Result<()> {
    let model = flags.model.open()?;
    if let Some(path) = &flags.check {
        return check::check(flags, &model, path.as_deref());
    }
    let outputs = Outputs::of(flags)?;
    let tokenizer = super::tokenizer("rdt-calibrate", &model)?;
    let windows = windows(flags, &model, &tokenizer)?;
    let plan = plan(flags, &model, &windows)?;
    let stop = Stop::install()?;
    let mut session = session(flags, &model, &windows, plan.steps)?;
    stop.watch(&session)?;
    let text = text_id(flags, &windows, &session, plan.prefix);
    note(&format!(
        "{} windows of {} tokens, {} positions scored, from {}; {} kinds of rules, up to {} steps, {} threads, {}",
        windows.len(),
        windows.context(),
        windows.scored_len(),
        text.name,
        plan.kinds.len(),
        plan.steps,
        session.threads(),
        model.kernels().isa,
    ));
    let (swept, kept) = sweep(flags, &model, &mut session, &windows, &plan, &text, &outputs.partial)?;
    if swept.found > 0 {
        note(&format!("{} results were there from before", swept.found));
    }
    let findings = findings(&model, &session, &tokenizer, &windows, text, swept, plan.published);
    outputs.write(flags, &findings)?;
    kept.clear()?;
    let mut out = io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", findings.profile.to_json()?)?;
    } else {
        write!(out, "{}", report::table(&findings.profile))?;
        for sentence in report::recommendation(&findings.profile, Some(&findings.dynamics)) {
            writeln!(out, "{sentence}")?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Where everything goes.
struct Outputs {
    profile: Option<PathBuf>,
    report: Option<PathBuf>,
    /// Results until all are there.
    partial: PathBuf,
}

impl Outputs {
    /// Whatever can be refused is refused before anything is measured.
    fn of(flags: &Flags) -> anyhow::Result<Self> {
        let model = &flags.model.model;
        if flags.embed && model.is_dir() {
            bail!(
                "--embed writes into a GGUF file, and {} is a checkpoint's folder; convert it with rdt-quantize",
                model.display()
            );
        }
        if flags.embed && split(model)? {
            bail!(
                "--embed: {} is a part of a split GGUF; leave the profile beside it (without --embed)",
                model.display()
            );
        }
        let beside = |ending| Profile::beside(model, ending);
        let profile = (!flags.embed).then(|| flags.out.clone().unwrap_or_else(|| beside("json")));
        let report = (!flags.no_report).then(|| flags.report.clone().unwrap_or_else(|| beside("html")));
        for path in [&profile, &report].into_iter().flatten() {
            if path.exists() && path.canonicalize().ok() == model.canonicalize().ok() {
                bail!("{} is the model; choose another name for the output", path.display());
            }
        }
        let partial = profile.clone().unwrap_or_else(|| beside("json")).with_extension("partial");
        Ok(Self { profile, report, partial })
    }

    /// The profile first: what took long is then safe.
    fn write(&self, flags: &Flags, findings: &Findings) -> anyhow::Result<()> {
        match &self.profile {
            Some(path) => {
                findings.profile.write(path)?;
                note(&format!("wrote {}", path.display()));
            }
            None => {
                embed(&flags.model.model, &findings.profile)?;
                note(&format!("wrote the profile into {}", flags.model.model.display()));
            }
        }
        if let Some(path) = &self.report {
            let mut file = AtomicFile::create(path)?;
            file.write_all(report::html(findings).as_bytes())?;
            file.commit()?;
            note(&format!("wrote {}", path.display()));
        }
        if let Some(folder) = &flags.charts {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            let charts = report::charts(findings);
            for (name, svg) in &charts {
                let mut file = AtomicFile::create(&folder.join(name).with_extension("svg"))?;
                file.write_all(svg.as_bytes())?;
                file.commit()?;
            }
            note(&format!("wrote {} charts into {}", charts.len(), folder.display()));
        }
        Ok(())
    }
}

/// Is this one file of several?
fn split(model: &Path) -> anyhow::Result<bool> {
    let bytes = crate::arch::read(model, crate::arch::Load::Map)?;
    Ok(crate::arch::split_count(&gguf::Header::parse(&bytes)?)? > 1)
}

/// Puts a profile into a model file. Its tensors stay as they are.
fn embed(model: &Path, profile: &Profile) -> anyhow::Result<()> {
    let file: Bytes = crate::arch::read(model, crate::arch::Load::Map)?;
    let json = serde_json::to_string(profile)?;
    gguf::rewrite(&file, model, |metadata| {
        metadata.insert(gguf::CALIBRATION_KEY, json);
    })
    .with_context(|| format!("cannot write the profile into {}", model.display()))
}

/// The text, cut up.
fn windows(flags: &Flags, model: &Model, tokenizer: &Tokenizer) -> anyhow::Result<Windows> {
    let given = flags.text.read()?;
    let text = given.as_deref().unwrap_or(sample::TEXT);
    let tokens = flags.text.tokens(tokenizer, text)?;
    let usual = if given.is_some() { CONTEXT } else { SAMPLE_CONTEXT };
    let usual = usual.min(model.config().context);
    // A short text is cut shorter rather than refused, unless a length was asked for.
    let context = flags.session.ctx_size.unwrap_or_else(|| usual.min((tokens.len() / 4).max(SHORTEST)));
    let windows = Windows::new(tokens, context, bos(tokenizer))?;
    Ok(windows.first(flags.text.chunks.unwrap_or(usize::MAX)))
}

fn plan(flags: &Flags, model: &Model, windows: &Windows) -> anyhow::Result<Plan> {
    let config = model.config();
    let most = config.max_steps().unwrap_or(usize::MAX);
    let published = config.mean_steps();
    let steps = flags.steps.unwrap_or_else(|| published.saturating_mul(2)).min(most);
    if steps < published {
        bail!(
            "--steps {steps}: losses are counted from the published {published} steps, so that many must be measured"
        );
    }
    if flags.steps.is_some_and(|n| n > most) {
        note(&format!("this model was trained for {most} steps and breaks beyond; using {most}"));
    }
    let able = ExitRule::kinds(config);
    if able.is_empty() {
        note(
            "tokens of this model never leave its loop early: only fixed depths are measured, and the other programs run all of it",
        );
    }
    let kinds = match flags.rules.as_slice() {
        [] => able,
        names => names
            .iter()
            .map(|name| {
                let known = || able.iter().map(ExitRule::name).collect::<Vec<_>>().join(", ");
                let found = able.iter().copied().find(|rule| rule.name() == name);
                found.with_context(|| format!("--rules {name}: this model can follow {}", known()))
            })
            .collect::<anyhow::Result<_>>()?,
    };
    Ok(Plan {
        steps,
        published,
        kinds,
        points: flags.points,
        seeds: flags.seeds,
        prefix: flags.text.prefix(model, windows),
        timing: !flags.no_timing,
    })
}

fn session(flags: &Flags, model: &Arc<Model>, windows: &Windows, steps: usize) -> anyhow::Result<Session> {
    super::stay_on_fast_cores();
    let initial = flags.init.initial(model.config().state_width)?;
    let mut options = flags.session.options(steps, initial, KvType::F32);
    options.context = Some(windows.context());
    Ok(Session::new(Arc::clone(model), &options)?)
}

fn text_id(flags: &Flags, windows: &Windows, session: &Session, prefix: usize) -> TextId {
    let shape = session.kv_shape();
    let name = match (&flags.text.file, &flags.text.prompt) {
        (Some(path), _) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        (None, Some(_)) => "the command line".into(),
        (None, None) => sample::NAME.into(),
    };
    TextId {
        name,
        fingerprint: windows.fingerprint(),
        special: flags.text.special,
        context: windows.context(),
        windows: windows.len(),
        scored: windows.scored_len(),
        prefix,
        kv_type: shape.ty.to_string(),
        kv_steps: shape.slots,
        init: flags.init.init.clone(),
        seed: flags.init.seed,
    }
}

fn sweep(
    flags: &Flags,
    model: &Model,
    session: &mut Session,
    windows: &Windows,
    plan: &Plan,
    text: &TextId,
    partial: &Path,
) -> anyhow::Result<(Swept, Kept)> {
    // What results depend on, but for threads and instruction sets, which they do not. A file of initial states may change under its
    // name.
    let mut initial = Fnv::new();
    if let InitialState::Given(states) = session.initial() {
        states.iter().for_each(|x| initial.add(&x.to_le_bytes()));
    }
    let setup = serde_json::to_string(&(env!("CARGO_PKG_VERSION"), ModelId::of(model), text, initial.to_string()))?;
    let bar = ProgressBar::new(1000);
    let style = ProgressStyle::with_template("{msg:14} [{bar:30}] {percent:>3} %, {elapsed} gone, {eta} left")?;
    bar.set_style(style.progress_chars("=> "));
    let mut report = |progress: Progress| {
        bar.set_position((1000.0 * progress.done / progress.all).clamp(0.0, 1000.0) as u64);
        if bar.message() != progress.stage {
            bar.set_message(progress.stage);
        }
    };
    let sweep = Sweep::new(session, windows, plan, Some((partial, &setup)), flags.restart, &mut report)?;
    let result = sweep.run();
    bar.finish_and_clear();
    result.map_err(|e| match e {
        calibrate::Error::Model(model::Error::Cancelled) => Interrupted(format!(
            "stopped; what was measured is in {}, and the same command goes on from there",
            partial.display()
        ))
        .into(),
        _ => e.into(),
    })
}

fn findings(
    model: &Model,
    session: &Session,
    tokenizer: &Tokenizer,
    windows: &Windows,
    text: TextId,
    swept: Swept,
    published_steps: usize,
) -> Findings {
    let Swept { full_depth, depths, rules, cost, screened, mut dynamics, mut sample, .. } = swept;
    let window = windows.get(0);
    let word = |position: usize| match window.tokens.get(position) {
        Some(&token) => tokenizer.token_bytes(token).map(String::from_utf8_lossy).unwrap_or_default().into_owned(),
        None => String::new(),
    };
    let scored = windows.scored();
    // A position's steps went into the token behind it.
    for (i, token) in sample.tokens.iter_mut().enumerate() {
        token.text = word(scored.start + i + 1);
    }
    for path in &mut dynamics.paths.tokens {
        path.text = word(path.position);
    }
    let profile = Profile {
        format: FORMAT,
        program: env!("CARGO_PKG_VERSION").into(),
        model: ModelId::of(model),
        machine: MachineId::here(model, session.threads()),
        text,
        published_steps,
        full_depth,
        depths,
        rules,
        cost,
    };
    Findings { profile, screened, dynamics, sample }
}
