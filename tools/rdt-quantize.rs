//! Makes a GGUF of a published checkpoint, or gives the tensors of a GGUF other formats.

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rdt::arch::{self, Conversion, Input, Load, NonFinite, Report, Split, Summary, Unfit, Written};
use rdt::checkpoint::Checkpoint;
use rdt::cli::{self, human_bytes, one_line};
use rdt::files::{AtomicFile, Bytes};
use rdt::gguf::{Header, TensorType};
use rdt::quant::Recipe;
use rdt::text;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Convert a published checkpoint, or a GGUF, to a GGUF of 4 to 32 bits per weight
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Types: f32, f16, bf16, q8_0, q4_0, or published (each tensor as it is in the input). Norms,
biases and other small tensors are always f32; q4_0 keeps the embedding, the head and the
loop's adapter at q8_0; q8_0 keeps the adapter and the value projections at f16.

The output appears under its name when it is complete and not before; an older GGUF of that
name is replaced then.

Examples:
  rdt-quantize huginn-0125                    (writes huginn-0125-q4_0.gguf)
  rdt-quantize huginn-0125 huginn-f16.gguf --type f16
  rdt-quantize huginn-f16.gguf --type q8_0    (writes huginn-q8_0.gguf)
  rdt-quantize huginn-0125 --dry-run
  rdt-quantize --list-families"
)]
struct Flags {
    /// Folder of a checkpoint (config.json, model.safetensors or model.pt, tokenizer.json), or a GGUF file (of several that
    /// are one model, any)
    #[arg(required_unless_present = "list_families")]
    input: Option<PathBuf>,
    /// File to write (default: NAME-TYPE.gguf in the current folder)
    output: Option<PathBuf>,
    /// What most of the weights become
    #[arg(long = "type", value_name = "TYPE", default_value_t = Recipe::Q4_0)]
    recipe: Recipe,
    /// Threads (default: all)
    #[arg(short, long, value_name = "N", value_parser = cli::positive_count)]
    threads: Option<NonZeroUsize>,
    /// Convert tensors with NaN or infinite values too. f32, f16 and bf16 keep such values; in the other types they make
    /// their block of 32 values meaningless
    #[arg(long)]
    allow_non_finite: bool,
    /// Write nothing, and say what would become of each tensor
    #[arg(long)]
    dry_run: bool,
    /// Say which model families can be converted and run, and do nothing else
    #[arg(long, conflicts_with_all = ["input", "output", "dry_run"])]
    list_families: bool,
    /// The summary as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::run("rdt-quantize", run)
}

/// Words for the user, beside the data.
fn note(text: &str) {
    eprintln!("rdt-quantize: note: {}", one_line(text));
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let start = Instant::now();
    let Some(input) = &flags.input else { return list_families(flags.json) };
    let output = match &flags.output {
        Some(path) => path.clone(),
        None => default_output(input, flags.recipe)?,
    };
    check_output(input, &output)?;
    if let Some(n) = flags.threads {
        rayon::ThreadPoolBuilder::new().num_threads(n.get()).build_global().context("cannot start the threads")?;
    }
    let source = Source::open(input)?;
    if let Source::Split(split) = &source {
        split.files().try_for_each(|file| check_output(file, &output))?;
    }
    let conversion = source.conversion()?;
    let again = requantised(&conversion, flags.recipe);
    if !again.is_empty() {
        // Said first: the user may want to stop.
        note(&format!(
            "{} is already quantised ({}); another rounding costs quality, so start from the published weights where you can",
            input.display(),
            again.join(", ")
        ));
    }
    let (summary, non_finite) = if flags.dry_run {
        (conversion.summary(flags.recipe)?, Vec::new())
    } else {
        write(&conversion, &source.input(), flags, &output).map_err(|e| explain(e, input))?
    };
    conversion.notes.iter().for_each(|words| note(words));
    non_finite.iter().for_each(|tensor| note(&format!("{tensor}; stored as they are")));
    let mut out = io::stdout().lock();
    if flags.json {
        let summary = json_summary(flags, input, &output, &conversion, &summary, start.elapsed());
        serde_json::to_writer_pretty(&mut out, &summary).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, flags, &output, &summary, start.elapsed())?;
    }
    out.flush()?;
    Ok(())
}

/// Adds to an error what the library cannot know.
fn explain(error: anyhow::Error, input: &Path) -> anyhow::Error {
    let file = input.display().to_string();
    match error.downcast_ref() {
        Some(arch::Error::Quant { .. }) => error.context(file),
        Some(arch::Error::Unfit(tensors)) => {
            if tensors.len() > 1 {
                tensors.iter().for_each(|tensor| note(&tensor.to_string()));
            }
            let all_can = tensors.iter().all(|tensor| tensor.too_large.is_none());
            let hint = if all_can { " (--allow-non-finite converts them all the same)" } else { "" };
            anyhow!("{file}: {error}{hint}")
        }
        _ => error,
    }
}

/// What is converted.
enum Source {
    Checkpoint(Box<Checkpoint>),
    Gguf(Bytes, Box<Header>),
    Split(Box<Split>),
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Self::Checkpoint(Box::new(Checkpoint::open(path)?)));
        }
        let bytes = arch::read(path, Load::Map)?;
        let in_file = || path.display().to_string();
        let header = Header::parse(&bytes).with_context(in_file)?;
        let count = arch::split_count(&header).with_context(in_file)?;
        if count > 1 {
            return Ok(Self::Split(Box::new(Split::open(path, count)?)));
        }
        if is_known(&header) {
            // A file that is no whole model would become another that is none.
            arch::open(path, Load::Map)?;
        }
        Ok(Self::Gguf(bytes, Box::new(header)))
    }

    /// The conversion, with notes for the user.
    fn conversion(&self) -> anyhow::Result<Conversion> {
        match self {
            Self::Gguf(_, header) => Ok(with_notes(Conversion::of_gguf(header), header)),
            Self::Split(split) => Ok(with_notes(split.conversion(), split.header())),
            Self::Checkpoint(checkpoint) => {
                let folder = || checkpoint.folder().display().to_string();
                let mut conversion = arch::conversion(checkpoint).with_context(folder)?;
                let rows = conversion.vocabulary();
                let notes = text::write_metadata(checkpoint, rows, &mut conversion.metadata).with_context(folder)?;
                conversion.notes.extend(notes);
                Ok(conversion)
            }
        }
    }

    fn input(&self) -> Input<'_> {
        match self {
            Self::Checkpoint(checkpoint) => Input::Checkpoint(checkpoint),
            Self::Gguf(bytes, header) => Input::Gguf(bytes, header),
            Self::Split(split) => Input::Split(split),
        }
    }
}

/// The conversion of a GGUF with this header, with notes for the user.
fn with_notes(mut conversion: Conversion, header: &Header) -> Conversion {
    if !is_known(header) {
        let name = architecture(header);
        conversion.notes.push(format!("architecture '{name}' is not known here; tensors went by their names alone"));
    }
    conversion
}

fn architecture(header: &Header) -> &str {
    header.metadata.str("general.architecture").ok().flatten().unwrap_or("unknown")
}

/// Is this a file of a family that is known here?
fn is_known(header: &Header) -> bool {
    arch::families().iter().any(|f| f.name == architecture(header))
}

/// Says what can be converted and run.
fn list_families(json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let list: Vec<_> = arch::families()
            .iter()
            .map(|f| json!({"name": f.name, "checkpoints": f.checkpoints, "notes": f.notes}))
            .collect();
        serde_json::to_writer_pretty(&mut out, &list).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        for f in arch::families() {
            writeln!(out, "{}\n  checkpoints: {}\n  GGUF files: {}", f.name, f.checkpoints, f.notes)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Formats of the input that are rounded already and would be rounded once more.
fn requantised(conversion: &Conversion, recipe: Recipe) -> Vec<&'static str> {
    let mut names: Vec<_> = conversion
        .choose(recipe)
        .iter()
        .filter(|r| r.published.block_len() > 1 && r.ty != r.published && r.ty.block_len() > 1)
        .map(|r| r.published.name())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// `NAME-TYPE.gguf` in the current folder. A type at the end of the input's own name gives way to the new one, and the number
/// of a file that is one of several is no part of the name.
fn default_output(input: &Path, recipe: Recipe) -> anyhow::Result<PathBuf> {
    let whole = fs::canonicalize(input).with_context(|| format!("cannot open {}", input.display()))?;
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    let name = name.and_then(|n| n.to_str()).context("the input's name is no name for a file; name the output")?;
    let name = arch::split_stem(name).map_or(name, |(stem, _)| stem);
    let stem = Recipe::ALL.iter().find_map(|r| {
        let (stem, end) = name.split_at_checked(name.len().checked_sub(r.name().len() + 1)?)?;
        let is_type = end.strip_prefix(['-', '.', '_']).is_some_and(|end| end.eq_ignore_ascii_case(r.name()));
        (is_type && !stem.is_empty()).then_some(stem)
    });
    Ok(PathBuf::from(format!("{}-{recipe}.gguf", stem.unwrap_or(name))))
}

/// Refuses to replace the input, and anything that is not a GGUF.
fn check_output(input: &Path, output: &Path) -> anyhow::Result<()> {
    let Ok(existing) = fs::canonicalize(output) else { return Ok(()) };
    if fs::canonicalize(input).is_ok_and(|input| input == existing) {
        bail!("{} is the input; choose another name for the output", output.display());
    }
    if !existing.is_file() {
        return Ok(()); // refused when it is created, with the reason
    }
    let mut magic = Vec::new();
    let read = File::open(&existing).and_then(|f| f.take(4).read_to_end(&mut magic));
    read.with_context(|| format!("cannot open {}", output.display()))?;
    if !magic.is_empty() && magic != b"GGUF" {
        bail!("{} exists and is no GGUF; remove it first, or choose another name", output.display());
    }
    Ok(())
}

/// Converts, with a progress bar, until done or interrupted. Gives the tensors with values that are not finite, too.
fn write(
    conversion: &Conversion,
    input: &Input<'_>,
    flags: &Flags,
    output: &Path,
) -> anyhow::Result<(Summary, Vec<Unfit>)> {
    let stop = cli::stop_flag()?;
    let go_on = || !stop.load(Ordering::Relaxed);
    // Draws on stderr, and only if that is a terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_msg} {bar:30} {percent:>3}% {eta:>4}")?);
    let file = AtomicFile::create(output)?;
    let non_finite = if flags.allow_non_finite { NonFinite::Store } else { NonFinite::Refuse };
    let mut tensor = String::new();
    let written = conversion.write_with(input, flags.recipe, non_finite, file, &mut |p| {
        if tensor != p.tensor {
            p.tensor.clone_into(&mut tensor);
            bar.set_length(p.total);
            bar.set_message(one_line(&tensor));
        }
        bar.set_position(p.done);
        go_on()
    });
    bar.finish_and_clear();
    let Written { out: mut file, summary, non_finite } = written?;

    let waiting = ProgressBar::new_spinner();
    waiting.set_style(ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}")?);
    waiting.set_message("all is converted; waiting for the disk to have it");
    waiting.enable_steady_tick(Duration::from_millis(200));
    let synced = file.sync();
    waiting.finish_and_clear();
    synced?;
    if !go_on() {
        return Err(arch::Error::Stopped.into());
    }
    file.commit()?;
    Ok((summary, non_finite))
}

/// Tensors of one type.
struct OfType {
    ty: TensorType,
    tensors: usize,
    values: u64,
    bytes: u64,
}

fn by_type(summary: &Summary) -> Vec<OfType> {
    let mut types: Vec<OfType> = Vec::new();
    for r in &summary.tensors {
        let at = types.iter().position(|t| t.ty == r.ty).unwrap_or_else(|| {
            types.push(OfType { ty: r.ty, tensors: 0, values: 0, bytes: 0 });
            types.len() - 1
        });
        types[at].tensors += 1;
        types[at].values += r.values();
        types[at].bytes += r.bytes_after();
    }
    types.sort_by_key(|t| std::cmp::Reverse(t.bytes));
    types
}

fn bits(bytes: u64, values: u64) -> f64 {
    bytes as f64 * 8.0 / values as f64
}

fn print(out: &mut impl Write, flags: &Flags, output: &Path, summary: &Summary, time: Duration) -> io::Result<()> {
    if flags.dry_run {
        let width = summary.tensors.iter().map(|r| one_line(&r.name).chars().count()).max().unwrap_or(0).min(60);
        for Report { name, dims, published, ty, .. } in &summary.tensors {
            let shape = dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
            writeln!(out, "{:<width$}  {shape:>14}  {published:>5} -> {ty}", one_line(name))?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{:<10} {:>7} {:>14} {:>11} {:>11}", "type", "tensors", "values", "size", "bits/weight")?;
    let row = |out: &mut dyn Write, name: &str, tensors: usize, values: u64, bytes: u64| {
        let (size, bits) = (human_bytes(bytes), bits(bytes, values));
        writeln!(out, "{name:<10} {tensors:>7} {values:>14} {size:>11} {bits:>11.2}")
    };
    for t in by_type(summary) {
        row(out, t.ty.name(), t.tensors, t.values, t.bytes)?;
    }
    let tensors = summary.tensors.len();
    row(out, "all", tensors, summary.values, summary.bytes_after)?;
    row(out, "before", tensors, summary.values, summary.bytes_before)?;
    for r in &summary.tensors {
        if let Some(why) = &r.why {
            writeln!(out, "{} is {}: {}", one_line(&r.name), r.ty, one_line(why))?;
        }
    }
    let (path, size) = (one_line(&output.display().to_string()), human_bytes(summary.file_bytes));
    if flags.dry_run {
        writeln!(out, "would write {path}, {size}")
    } else {
        writeln!(out, "wrote {path}, {size}, in {:.2} s", time.as_secs_f64())
    }
}

fn json_summary(
    flags: &Flags,
    input: &Path,
    output: &Path,
    conversion: &Conversion,
    summary: &Summary,
    time: Duration,
) -> serde_json::Value {
    let types = by_type(summary);
    json!({
        "input": input.display().to_string(),
        "output": output.display().to_string(),
        "type": flags.recipe.name(),
        "written": !flags.dry_run,
        "tensor_count": summary.tensors.len(),
        "values": summary.values,
        "bytes_before": summary.bytes_before,
        "bytes_after": summary.bytes_after,
        "file_bytes": summary.file_bytes,
        "bits_per_weight": summary.bits_per_weight(),
        "seconds": time.as_secs_f64(),
        "notes": conversion.notes,
        "types": types.iter().map(|t| json!({
            "type": t.ty.name(),
            "tensors": t.tensors,
            "values": t.values,
            "bytes": t.bytes,
            "bits_per_weight": bits(t.bytes, t.values),
        })).collect::<Vec<_>>(),
        "tensors": summary.tensors.iter().map(|r| json!({
            "name": r.name,
            "dims": r.dims,
            "from": r.published.name(),
            "to": r.ty.name(),
            "why": r.why,
        })).collect::<Vec<_>>(),
    })
}
