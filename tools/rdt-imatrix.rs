//! Measures on text how much an error in each column of each matrix counts.

use anyhow::{Context, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rdt::arch::{self, Load};
use rdt::calibrate::{self, Perplexity, Reading};
use rdt::cli::{self, DepthFlags, Interrupted, LoadFlags, SessionFlags, Stop, TextFlags};
use rdt::exit::{ExitRule, RulePolicy, Signal};
use rdt::kernels::KvType;
use rdt::model::{self, Session};
use rdt::quant::Imatrix;
use rdt::quant::imatrix::Entry;
use serde_json::json;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Importance matrix for rdt-quantize: the mean square of what each column of each matrix meets, through the loop
#[derive(Parser)]
#[command(
    version,
    mut_arg("ctx_size", |a| a.help("Tokens per window (default: 512)")),
    after_help = "\
Every loop step counts: a matrix of the core is weighed by all activations that it meets at all depths.
The file is llama.cpp's (GGUF), and llama-imatrix's files are read. Use text of the kind the model will
see, some ten thousand tokens of it, and a model file of 16 bits or more.

Examples:
  rdt-imatrix -m huginn-f16.gguf -f text.txt                  (writes huginn-f16.imatrix.gguf)
  rdt-imatrix -m huginn-f16.gguf -f text.txt --steps 32 --chunks 40 -o huginn.imatrix.gguf
  rdt-imatrix --in-file a.imatrix.gguf --in-file b.imatrix.gguf -o both.imatrix.gguf
  rdt-imatrix --show-statistics huginn.imatrix.gguf
  rdt-quantize huginn-f16.gguf --imatrix huginn.imatrix.gguf"
)]
struct Flags {
    /// Model file (GGUF), or the folder of a published checkpoint
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["show_statistics", "in_file"])]
    model: Option<PathBuf>,
    #[command(flatten)]
    load: LoadFlags,
    #[command(flatten)]
    text: TextFlags,
    /// File to write (default: NAME.imatrix.gguf in the current folder)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Add what was measured before, of the same model; may be given several times
    #[arg(long, value_name = "FILE")]
    in_file: Vec<PathBuf>,
    /// Say what is in an importance matrix, and do nothing else
    #[arg(long, value_name = "FILE", conflicts_with_all = ["output", "in_file"])]
    show_statistics: Option<PathBuf>,
    #[command(flatten)]
    depth: DepthFlags,
    #[command(flatten)]
    session: SessionFlags,
    /// Machine-readable statistics on stdout
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::run("rdt-imatrix", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    if let Some(path) = &flags.show_statistics {
        return print(&read(path)?, flags.json);
    }
    let mut sum = Imatrix::default();
    for path in &flags.in_file {
        sum.add(&read(path)?).with_context(|| path.display().to_string())?;
    }
    let output = flags.output()?;
    if let Some(model) = &flags.model {
        sum.add(&measure(flags, model)?)?;
    }
    sum.save(&output)?;
    eprintln!("rdt-imatrix: wrote {}, {} matrices", output.display(), sum.entries().len());
    print(&sum, flags.json)
}

impl Flags {
    fn output(&self) -> anyhow::Result<PathBuf> {
        let output = match (&self.output, &self.model) {
            (Some(path), _) => path.clone(),
            (None, Some(model)) => {
                let stem = model.file_stem().and_then(|n| n.to_str()).context("name the output with -o")?;
                PathBuf::from(format!("{stem}.imatrix.gguf"))
            }
            (None, None) => bail!("name the output with -o"),
        };
        if let Some(model) = &self.model
            && model.canonicalize().ok() == Some(output.canonicalize().unwrap_or_default())
        {
            bail!("{} is the model; choose another name for the output", output.display());
        }
        Ok(output)
    }
}

fn read(path: &Path) -> anyhow::Result<Imatrix> {
    let bytes = arch::read(path, Load::Read)?;
    Imatrix::parse(&bytes).with_context(|| path.display().to_string())
}

/// Runs the model over the text.
fn measure(flags: &Flags, path: &Path) -> anyhow::Result<Imatrix> {
    let model = flags.load.open(path)?;
    let windows = flags.text.windows("rdt-imatrix", &model, flags.session.ctx_size.unwrap_or(cli::CONTEXT))?;
    let rule = flags.depth.rule(&model, Some(path), ExitRule::for_model(model.config()))?;
    if let Some(words) = cli::too_deep("--", &rule, flags.depth.steps, model.config()) {
        eprintln!("rdt-imatrix: {words}");
    }
    let steps = RulePolicy::depth_limit(&rule, flags.depth.steps, model.config());
    let initial = flags.depth.initial(model.config().state_width)?;
    let mut options = flags.session.options(steps, initial, KvType::F32);
    options.context = Some(windows.context());
    let mut session = Session::new(Arc::clone(&model), &options)?;
    let policy = RulePolicy::new(rule, flags.depth.steps, model.config(), session.chunk_rows())?;
    let stop = Stop::install()?;
    stop.watch(&session)?;
    let reading =
        Reading { prefix: flags.text.prefix(&model, &windows), readout_exits: rule.signal() == Signal::Readout };
    eprintln!(
        "rdt-imatrix: {} windows of {} tokens, {rule} to at most {steps} steps",
        windows.len(),
        windows.context()
    );
    // Draws on stderr, and only if that is a terminal.
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} windows, {msg}, {eta} left")?;
    let bar = ProgressBar::new(windows.len() as u64).with_style(style);
    let mut perplexity = Perplexity::new();
    let measured = calibrate::importance(&mut session, policy, &windows, reading, &mut |row| {
        perplexity.add(row.logits, row.target);
        if bar.position() != row.window as u64 {
            bar.set_position(row.window as u64);
            bar.set_message(format!("PPL = {:.4}", perplexity.perplexity().value));
        }
        Ok(())
    });
    bar.finish_and_clear();
    let mut measured = measured.map_err(|e| match e {
        calibrate::Error::Model(model::Error::Cancelled) => Interrupted("stopped; nothing was written".into()).into(),
        e => anyhow::Error::from(e),
    })?;
    let dataset = flags.text.file.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    measured.datasets = vec![dataset.unwrap_or_else(|| "text given with --prompt".to_owned())];
    let p = perplexity.perplexity();
    eprintln!("rdt-imatrix: the model's perplexity on this text is {:.4} +/- {:.5}", p.value, p.error);
    Ok(measured)
}

/// What tells of a matrix how uneven its columns are.
struct Statistics {
    /// Mean of the columns' mean squares.
    mean: f64,
    /// The largest over the mean.
    peak: f64,
    /// Share of the hundredth part of the columns that weighs most.
    top: f64,
    /// Columns that never met anything but zero.
    silent: usize,
}

impl Statistics {
    fn of(entry: &Entry) -> Self {
        let mut squares: Vec<f64> = entry.sums.iter().map(|&s| f64::from(s) / f64::from(entry.rows.max(1.0))).collect();
        squares.sort_by(|a, b| b.total_cmp(a));
        let (n, sum) = (squares.len().max(1), squares.iter().sum::<f64>());
        let share = |part: f64| if sum > 0.0 { part / sum } else { 0.0 };
        Self {
            mean: sum / n as f64,
            peak: share(squares.first().map_or(0.0, |s| s * n as f64)),
            top: share(squares[..n.div_ceil(100).min(squares.len())].iter().sum()),
            silent: squares.iter().filter(|&&s| s == 0.0).count(),
        }
    }
}

fn print(imatrix: &Imatrix, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    let rows = imatrix.entries().map(|(name, entry)| (name, entry, Statistics::of(entry)));
    if json {
        let tensors: Vec<_> = rows
            .map(|(name, e, s)| {
                json!({
                    "tensor": name, "columns": e.sums.len(), "rows": e.rows, "mean_square": s.mean,
                    "peak_over_mean": s.peak, "top_percent_share": s.top, "silent_columns": s.silent,
                })
            })
            .collect();
        let report = json!({
            "datasets": imatrix.datasets, "windows": imatrix.chunk_count, "window_tokens": imatrix.chunk_size,
            "tensors": tensors,
        });
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        let width = imatrix.entries().map(|(name, _)| name.chars().count()).max().unwrap_or(0).clamp(6, 60);
        writeln!(
            out,
            "{:<width$}  {:>7}  {:>9}  {:>11}  {:>9}  {:>7}  {:>6}",
            "tensor", "columns", "rows", "mean square", "peak/mean", "top 1 %", "silent"
        )?;
        for (name, e, s) in rows {
            let (name, top) = (cli::one_line(name), format!("{:.1} %", 100.0 * s.top));
            let (columns, rows) = (e.sums.len(), e.rows);
            writeln!(
                out,
                "{name:<width$}  {columns:>7}  {rows:>9}  {:>11.4e}  {:>9.1}  {top:>7}  {:>6}",
                s.mean, s.peak, s.silent
            )?;
        }
    }
    out.flush()?;
    Ok(())
}
