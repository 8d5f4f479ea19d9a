//! Makes a GGUF of a published checkpoint, or gives the tensors of a GGUF other formats.

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use rdt::arch::{self, Conversion, Input, Load, NonFinite, Report, Split, Summary, Target};
use rdt::checkpoint::Checkpoint;
use rdt::cli::{self, AutoFlags, Decided, Stop, human_bytes, one_line};
use rdt::files::{AtomicFile, Bytes};
use rdt::gguf::{Header, TensorType};
use rdt::quant::{Imatrix, Override, Recipe};
use rdt::text;
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Convert a published checkpoint, or a GGUF, to a GGUF of 4 to 32 bits per weight
#[derive(Parser)]
#[command(
    version,
    mut_args(|a| if ["file", "prompt", "special", "chunks", "prefix_len"].contains(&a.get_id().as_str()) { a.requires("auto") } else { a }),
    after_help = "\
Types:
  q4_k_m     4.8 bits or so; the default. Where rows do not divide into blocks of
             256 values (most of Huginn's do not), iq4_nl of the same size stands
             in, and the summary says where
  q4_k_s     a little smaller         q5_k_m, q6_k  5.7 and 6.6 bits
  q4_0       the fastest 4 bits       iq4_nl        as large, more exact
  q8_0       all but as good as f16   f16, bf16, f32
  published  each tensor as it is in the input
  pure:TYPE  every matrix in TYPE, one of q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl iq4_xs
             q4_k q5_k q6_k f16 bf16 f32
Norms, biases and other small tensors are always f32. In the mixed types of 4 to 6
bits the embedding and the head have 6 bits or more and the loop's adapter 8; q8_0
keeps the adapter and the value projections at f16. An importance matrix (see
rdt-imatrix) costs no bits and mostly makes types below 8 bits more exact.

The output appears under its name when it is complete and not before; an older GGUF of that
name is replaced then.

Examples:
  rdt-quantize huginn-0125                    (writes huginn-0125-q4_k_m.gguf)
  rdt-quantize huginn-0125 huginn-f16.gguf --type f16
  rdt-quantize huginn-f16.gguf --type q8_0    (writes huginn-q8_0.gguf)
  rdt-quantize huginn-f16.gguf --imatrix huginn.imatrix.gguf --tensor-type 'attn_v=q6_k'
  rdt-quantize huginn-f16.gguf --auto -f text.txt --target-size 1.9G
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
    #[arg(long = "type", value_name = "TYPE", default_value_t = Recipe::Q4_K_M)]
    recipe: Recipe,
    /// A type for the tensors in whose name a regular expression is found, such as 'attn_v=q6_k'; may be given several
    /// times, and of several that match the last holds
    #[arg(long, value_name = "PATTERN=TYPE")]
    tensor_type: Vec<Override>,
    /// How much an error in each column counts: an importance matrix of rdt-imatrix or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Threads (default: all)
    #[arg(short, long, value_name = "N", value_parser = cli::positive_count)]
    threads: Option<NonZeroUsize>,
    /// Convert tensors with NaN or infinite values too. f32, f16 and bf16 keep such values; in the other types they make
    /// their block of 32 or 256 values meaningless
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
    #[command(flatten)]
    auto: AutoFlags,
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
        None if flags.auto.auto => default_output(input, "auto")?,
        None => default_output(input, &flags.recipe.name())?,
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
    let stop = Stop::install()?;
    let (target, decided) = flags.target(&conversion, &source.input(), &output, &stop)?;
    let again = requantised(&conversion, &target);
    if !again.is_empty() {
        // Said first: the user may want to stop.
        note(&format!(
            "{} is already quantised ({}); another rounding costs quality, so start from the published weights where you can",
            input.display(),
            again.join(", ")
        ));
    }
    let summary = if flags.dry_run {
        conversion.summary(&target)?
    } else {
        write(&conversion, &source.input(), &target, &output, &stop).map_err(|e| explain(e, input))?
    };
    conversion.notes.iter().for_each(|words| note(words));
    summary.non_finite.iter().for_each(|tensor| note(&format!("{tensor}; stored as they are")));
    let mut out = io::stdout().lock();
    if flags.json {
        let summary = json_summary(flags, input, &output, &conversion, &summary, decided.as_ref(), start.elapsed());
        serde_json::to_writer_pretty(&mut out, &summary).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        if let Some(decided) = &decided {
            print_decided(&mut out, decided)?;
        }
        print(&mut out, flags, &output, &summary, start.elapsed())?;
    }
    out.flush()?;
    Ok(())
}

impl Flags {
    /// What is to be made of the tensors of `conversion`.
    fn target(
        &self,
        conversion: &Conversion,
        input: &Input<'_>,
        output: &Path,
        stop: &Stop,
    ) -> anyhow::Result<(Target, Option<Decided>)> {
        for o in &self.tensor_type {
            if !conversion.tensors.iter().any(|t| o.matches(&t.name)) {
                note(&format!("--tensor-type {o}: no tensor has such a name"));
            }
        }
        let importance = self.imatrix.as_deref().map(|path| importance(path, conversion)).transpose()?;
        let (mut target, decided) = match self.auto.auto {
            false => (Target { importance, ..self.recipe.into() }, None),
            true => {
                let (target, decided) = self.auto.decide(conversion, input, importance, self.threads, stop, output)?;
                (target, Some(decided))
            }
        };
        target.overrides.extend_from_slice(&self.tensor_type);
        if self.allow_non_finite {
            target.non_finite = NonFinite::Store;
        }
        Ok((target, decided))
    }
}

/// Reads an importance matrix, which must know something of this model.
fn importance(path: &Path, conversion: &Conversion) -> anyhow::Result<Arc<Imatrix>> {
    let bytes = arch::read(path, Load::Read)?;
    let importance = Imatrix::parse(&bytes).with_context(|| path.display().to_string())?;
    if !conversion.tensors.iter().any(|t| importance.get(&t.name).is_some()) {
        bail!("{} knows none of the tensors of this model", path.display());
    }
    Ok(Arc::new(importance))
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
fn requantised(conversion: &Conversion, target: &Target) -> Vec<&'static str> {
    let mut names: Vec<_> = conversion
        .choose(target)
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
fn default_output(input: &Path, recipe: &str) -> anyhow::Result<PathBuf> {
    let whole = fs::canonicalize(input).with_context(|| format!("cannot open {}", input.display()))?;
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    let name = name.and_then(|n| n.to_str()).context("the input's name is no name for a file; name the output")?;
    let name = arch::split_stem(name).map_or(name, |(stem, _)| stem);
    let known = Recipe::NAMED.map(|(name, _)| name);
    let stem = known.iter().find_map(|r| {
        let (stem, end) = name.split_at_checked(name.len().checked_sub(r.len() + 1)?)?;
        let is_type = end.strip_prefix(['-', '.', '_']).is_some_and(|end| end.eq_ignore_ascii_case(r));
        (is_type && !stem.is_empty()).then_some(stem)
    });
    let recipe = recipe.replace(':', "-");
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

/// Converts, with a progress bar, until done or interrupted.
fn write(
    conversion: &Conversion,
    input: &Input<'_>,
    target: &Target,
    output: &Path,
    stop: &Stop,
) -> anyhow::Result<Summary> {
    // Draws on stderr, and only if that is a terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_msg} {bar:30} {percent:>3}% {eta:>4}")?);
    let file = AtomicFile::create(output)?;
    let mut tensor = String::new();
    let written = conversion.write(input, target.clone(), file, &mut |p| {
        if tensor != p.tensor {
            p.tensor.clone_into(&mut tensor);
            bar.set_length(p.total);
            bar.set_message(one_line(&tensor));
        }
        bar.set_position(p.done);
        !stop.asked()
    });
    bar.finish_and_clear();
    let (mut file, summary) = written?;

    let waiting = ProgressBar::new_spinner();
    waiting.set_style(ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:>4}")?);
    waiting.set_message("all is converted; waiting for the disk to have it");
    waiting.enable_steady_tick(Duration::from_millis(200));
    let synced = file.sync();
    waiting.finish_and_clear();
    synced?;
    if stop.asked() {
        return Err(arch::Error::Stopped.into());
    }
    file.commit()?;
    Ok(summary)
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

/// Tensors that are not what the recipe meant for them, those of one type and reason together.
fn by_reason(summary: &Summary) -> Vec<(Vec<&str>, TensorType, &str)> {
    let mut reasons: Vec<(Vec<&str>, TensorType, &str)> = Vec::new();
    for Report { name, ty, why, .. } in &summary.tensors {
        let Some(why) = why else { continue };
        match reasons.iter_mut().find(|(_, t, w)| t == ty && w == why) {
            Some((tensors, ..)) => tensors.push(name),
            None => reasons.push((vec![name], *ty, why)),
        }
    }
    reasons
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
    for (tensors, ty, why) in by_reason(summary) {
        let (first, why) = (one_line(tensors[0]), one_line(why));
        match tensors.len() - 1 {
            0 => writeln!(out, "{first} is {ty}: {why}")?,
            n => writeln!(out, "{first} and {n} more are {ty}: {why}")?,
        }
    }
    let (path, size) = (one_line(&output.display().to_string()), human_bytes(summary.file_bytes));
    if flags.dry_run {
        writeln!(out, "would write {path}, {size}")
    } else {
        writeln!(out, "wrote {path}, {size}, in {:.2} s", time.as_secs_f64())
    }
}

/// What `--auto` found, and what it and the named recipes are expected to lose.
fn print_decided(out: &mut impl Write, decided: &Decided) -> io::Result<()> {
    let width = decided.tensors.iter().map(|t| t.tensor.chars().count()).max().unwrap_or(0).clamp(6, 60);
    writeln!(
        out,
        "{:<width$}  {:>7}  {:>7}  {:>10}  {:>8}  {:>7}  {:>10}",
        "tensor", "reads", "tried", "KL", "drift", "gets", "exp. KL"
    )?;
    for t in &decided.tensors {
        writeln!(
            out,
            "{:<width$}  {:>7.2}  {:>7}  {:>10.2e}  {:>8.5}  {:>7}  {:>10.2e}",
            one_line(&t.tensor),
            t.reads,
            t.probe,
            t.probe_kl,
            t.probe_drift,
            t.ty,
            t.expected_kl
        )?;
    }
    writeln!(out, "\n{:<10} {:>11} {:>11} {:>12}", "", "bits/weight", "moved/token", "expected KL")?;
    for r in &decided.recipes {
        let kl = r.kl.map_or("?".to_owned(), |kl| format!("{kl:.6}"));
        writeln!(out, "{:<10} {:>11.2} {:>11.2} {kl:>12}", r.recipe, r.bits_per_weight, r.moved_bpw)?;
    }
    writeln!(out, "{:<10} {:>11} {:>11.2} {:>12.6}\n", "auto", "see below", decided.moved_bpw, decided.expected_kl)
}

fn json_summary(
    flags: &Flags,
    input: &Path,
    output: &Path,
    conversion: &Conversion,
    summary: &Summary,
    decided: Option<&Decided>,
    time: Duration,
) -> serde_json::Value {
    let types = by_type(summary);
    json!({
        "input": input.display().to_string(),
        "output": output.display().to_string(),
        "type": if decided.is_some() { "auto".to_owned() } else { flags.recipe.name() },
        "auto": decided,
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
