//! Shows what is in a GGUF file: keys, tensors, and where the bytes of a looped model lie. Reads the header only. And what models
//! can run on here.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::arch::{self, Anatomy, Load};
use rdt::cli::{self, Cpu, human_bytes, one_line};
use rdt::files::Bytes;
use rdt::gguf::{Array, Header, Metadata, TensorInfo, TensorType, Value};
use rdt::kernels::KvType;
use rdt::model;
use rdt::text::escape_controls;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Show the metadata and tensors of a GGUF file, or what models can run on here
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Without --tensors and --metadata everything is shown: keys, tensors, and of a looped model its plan, where its bytes
lie, what a token reads, and what its keys and values take per token, by the number of loop steps that keep their own
(--kv-steps of the other programs). Any GGUF can be shown, of a model that rdt runs or not.

Examples:
  rdt-inspect model.gguf
  rdt-inspect model.gguf --tensors
  rdt-inspect model.gguf --metadata 'huginn.*'
  rdt-inspect model.gguf --metadata tokenizer.chat_template
  rdt-inspect model.gguf --json | jq '.tensors | length'
  rdt-inspect --devices"
)]
struct Flags {
    /// GGUF file
    #[arg(required_unless_present = "devices")]
    file: Option<PathBuf>,
    /// No file: the GPUs that --device of the other programs can name, with what they can do, and the CPU
    #[arg(long, visible_alias = "list-devices", conflicts_with_all = ["file", "tensors", "metadata", "full", "steps"])]
    devices: bool,
    /// Only the tensor table
    #[arg(long, conflicts_with = "metadata")]
    tensors: bool,
    /// Only one key's whole value; or, with a * at the end, all keys that start so
    #[arg(long, value_name = "KEY")]
    metadata: Option<String>,
    /// Long strings and arrays whole
    #[arg(long)]
    full: bool,
    /// Loop steps for the bytes that a token reads and keeps (default: the model's own)
    #[arg(long, value_name = "N", value_parser = cli::positive)]
    steps: Option<usize>,
    /// As JSON: the header and what the model makes of it, or the part that is asked for
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::run("rdt-inspect", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let Some(path) = &flags.file else {
        devices(&mut out, flags.json)?;
        return Ok(out.flush()?);
    };
    let bytes = arch::read(path, Load::Map)?;
    let header = Header::parse(&bytes).with_context(|| path.display().to_string())?;
    let name = path.display().to_string();
    match &flags.metadata {
        Some(key) => metadata(&mut out, flags, &name, &header, key)?,
        None if flags.tensors && flags.json => print_json(&mut out, &header.tensors)?,
        None if flags.tensors => tensors(&mut out, &header)?,
        None => {
            let loops = Loops::of(bytes.clone(), flags.steps);
            if flags.json {
                print_json(&mut out, &Whole { header: &header, model: loops.as_ref().ok() })?;
            } else {
                everything(&mut out, flags, &name, &header, bytes.len(), &loops)?;
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// The JSON of `--devices`.
#[derive(Serialize)]
struct Devices<'a, G> {
    /// The likely fastest first; `null`: this program knows of none.
    gpus: Option<&'a [G]>,
    cpu: Cpu,
}

/// What models can run on here.
#[cfg(feature = "gpu")]
fn devices(out: &mut impl Write, json: bool) -> anyhow::Result<()> {
    use rdt::gpu::{self, Kind};
    let (gpus, cpu) = (gpu::devices(), Cpu::here()?);
    if json {
        return Ok(print_json(out, &Devices { gpus: Some(&gpus), cpu })?);
    }
    for gpu in &gpus {
        let (abilities, most) = (gpu.abilities, human_bytes(gpu.max_binding_bytes));
        let named =
            [(abilities.subgroups, "subgroups"), (abilities.f16, "f16"), (abilities.packed_dot, "packed dot products")];
        let can = named.map(|(has, name)| if has { name.to_owned() } else { format!("no {name}") }).join(", ");
        writeln!(out, "GPU: {}", one_line(&gpu.name))?;
        writeln!(out, "  {}, {}; driver: {}", one_line(&gpu.backend), gpu.kind, one_line(&gpu.driver))?;
        writeln!(out, "  largest binding {most}; {can}")?;
    }
    if gpus.iter().all(|gpu| gpu.kind == Kind::Software) {
        match gpus.is_empty() {
            true => writeln!(out, "no GPU that a driver shows")?,
            false => writeln!(
                out,
                "no GPU but software that acts as one: --device auto and gpu pass it over, gpu:NAME takes it"
            )?,
        }
        writeln!(out, "{DRIVERS}")?;
    }
    Ok(cpu_line(out, &cpu)?)
}

/// What models can run on here, as far as this program can tell.
#[cfg(not(feature = "gpu"))]
fn devices(out: &mut impl Write, json: bool) -> anyhow::Result<()> {
    let cpu = Cpu::here()?;
    if json {
        return Ok(print_json(out, &Devices::<()> { gpus: None, cpu })?);
    }
    writeln!(out, "GPUs: this program was built without GPU support (cargo's feature 'gpu')")?;
    Ok(cpu_line(out, &cpu)?)
}

/// Where GPUs come from.
#[cfg(feature = "gpu")]
const DRIVERS: &str = "drivers: on Linux install Vulkan's for your card (mesa-vulkan-drivers, or NVIDIA's own; \
                       'vulkaninfo --summary' shows what it finds); on Windows the maker's; macOS has Metal";

fn cpu_line(out: &mut impl Write, cpu: &Cpu) -> io::Result<()> {
    let plural = if cpu.threads.get() == 1 { "" } else { "s" };
    writeln!(out, "CPU: {}, {} thread{plural}", cpu.isa, cpu.threads)
}

/// The JSON of everything.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    header: &'a Header,
    /// `null` for what is no model that rdt runs.
    model: Option<&'a Loops>,
}

/// What a looped model makes of the file.
#[derive(Serialize)]
struct Loops {
    /// The way of a token, in words.
    plan: String,
    #[serde(flatten)]
    anatomy: Anatomy,
    /// Steps of every loop that the next numbers are for; a loop that supports fewer takes fewer.
    steps: Vec<usize>,
    bytes_per_token: u64,
    kv_bytes_per_token: Vec<KvBytes>,
}

/// Bytes of keys and values per token.
#[derive(Serialize)]
struct KvBytes {
    /// Loop steps that keep their own.
    kv_steps: usize,
    f16: Option<u64>,
    /// `None`: heads that do not divide into blocks.
    q8_0: Option<u64>,
}

impl Loops {
    fn of(bytes: Bytes, steps: Option<usize>) -> Result<Self, model::Error> {
        let model = arch::from_bytes(bytes)?;
        let anatomy = Anatomy::of(&model);
        let depths: Vec<usize> = anatomy.loops.iter().map(|l| l.steps(steps)).collect();
        let deepest = depths.iter().copied().max().unwrap_or(1);
        let fewer = [16, 8, 4, 2, 1].into_iter().filter(|&n| n < deepest);
        let kv = |n: usize| {
            let of = |ty| model.kv_layout().bytes_per_position(ty, n);
            KvBytes { kv_steps: n, f16: of(KvType::F16), q8_0: of(KvType::Q8_0) }
        };
        Ok(Self {
            plan: arch::plan_in_words(&model),
            bytes_per_token: anatomy.bytes_per_token(steps),
            anatomy,
            steps: depths,
            kv_bytes_per_token: std::iter::once(deepest).chain(fewer).map(kv).collect(),
        })
    }
}

fn everything(
    out: &mut impl Write,
    flags: &Flags,
    name: &str,
    header: &Header,
    size: usize,
    loops: &Result<Loops, model::Error>,
) -> io::Result<()> {
    let Header { version, alignment, .. } = header;
    let (keys, count) = (header.metadata.len(), header.tensors.len());
    writeln!(out, "{}", one_line(name))?;
    let size = human_bytes(size as u64);
    writeln!(out, "GGUF {version}, {size}, {keys} keys, {count} tensors aligned to {alignment}\n")?;
    for (key, value) in header.metadata.iter() {
        writeln!(out, "{} = {}", one_line(key), shown(value, flags.full))?;
    }
    writeln!(out)?;
    tensors(out, header)?;
    writeln!(out)?;
    totals(out, header)?;
    match loops {
        Ok(loops) => looped(out, loops),
        // The file is shown all the same.
        Err(error) => writeln!(out, "\nno model that rdt runs: {}", one_line(&error.to_string())),
    }
}

/// One key's value as it is, or all keys with a beginning.
fn metadata(out: &mut impl Write, flags: &Flags, name: &str, header: &Header, key: &str) -> anyhow::Result<()> {
    let Some(start) = key.strip_suffix('*') else {
        let Some(value) = header.metadata.get(key) else {
            bail!("{name}: there is no key '{key}'");
        };
        match value {
            _ if flags.json => print_json(out, value)?,
            // A text for people, such as a template, keeps its lines.
            Value::String(text) => writeln!(out, "{}", escape_controls(text))?,
            other => writeln!(out, "{}", shown(other, true))?,
        }
        return Ok(());
    };
    let found: Vec<_> = header.metadata.iter().filter(|(key, _)| key.starts_with(start)).collect();
    if found.is_empty() {
        bail!("{name}: no key starts with '{start}'");
    }
    if flags.json {
        print_json(out, &found.into_iter().map(|(key, value)| (key, value.clone())).collect::<Metadata>())?;
    } else {
        for (key, value) in found {
            writeln!(out, "{} = {}", one_line(key), shown(value, flags.full))?;
        }
    }
    Ok(())
}

fn tensors(out: &mut impl Write, header: &Header) -> io::Result<()> {
    let shape = |t: &TensorInfo| t.dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    let widest = |f: &dyn Fn(&TensorInfo) -> usize, most| header.tensors.iter().map(f).max().unwrap_or(0).min(most);
    let names = widest(&|t| one_line(&t.name).chars().count(), 60).max(6);
    let shapes = widest(&|t| shape(t).len(), 40).max(5);
    writeln!(out, "{:<names$}  {:<7} {:>shapes$} {:>12} {:>12}", "tensor", "type", "shape", "bytes", "offset")?;
    for t in &header.tensors {
        let (name, ty, shape) = (one_line(&t.name), t.ty, shape(t));
        writeln!(out, "{name:<names$}  {ty:<7} {shape:>shapes$} {:>12} {:>12}", t.bytes, t.offset)?;
    }
    Ok(())
}

fn heading(out: &mut impl Write, by: &str) -> io::Result<()> {
    writeln!(out, "{by:<10} {:>7} {:>14} {:>11} {:>11}", "tensors", "values", "size", "bits/weight")
}

fn row(out: &mut impl Write, name: &str, tensors: usize, values: u64, bytes: u64) -> io::Result<()> {
    let (size, bits) = (human_bytes(bytes), bytes as f64 * 8.0 / values.max(1) as f64);
    writeln!(out, "{name:<10} {tensors:>7} {values:>14} {size:>11} {bits:>11.2}")
}

/// Sums by type.
fn totals(out: &mut impl Write, header: &Header) -> io::Result<()> {
    let values = |t: &TensorInfo| t.dims.iter().product::<usize>() as u64;
    heading(out, "type")?;
    for ty in TensorType::ALL {
        let of_type: Vec<_> = header.tensors.iter().filter(|t| t.ty == *ty).collect();
        if !of_type.is_empty() {
            let bytes = of_type.iter().map(|t| t.bytes as u64).sum();
            row(out, ty.name(), of_type.len(), of_type.iter().map(|t| values(t)).sum(), bytes)?;
        }
    }
    let bytes = header.tensors.iter().map(|t| t.bytes as u64).sum();
    row(out, "all", header.tensors.len(), header.tensors.iter().map(values).sum(), bytes)
}

/// Sums by part, the plan, and what a token costs.
fn looped(out: &mut impl Write, loops: &Loops) -> io::Result<()> {
    writeln!(out)?;
    heading(out, "part")?;
    for share in &loops.anatomy.parts {
        row(out, share.part.name(), share.tensors, share.values, share.bytes)?;
    }
    writeln!(out, "\nplan: {}", loops.plan)?;
    let joined = |list: Vec<String>| list.join(" + ");
    let per_step = joined(loops.anatomy.loops.iter().map(|l| human_bytes(l.bytes_per_step)).collect());
    let steps = joined(loops.steps.iter().map(usize::to_string).collect());
    let per_token = human_bytes(loops.bytes_per_token);
    writeln!(out, "weights read: {per_step} per loop step, {per_token} per token at {steps} steps")?;
    writeln!(out, "\n{:<25} {:>11} {:>11}", "keys and values per token", "f16", "q8_0")?;
    for (i, kv) in loops.kv_bytes_per_token.iter().enumerate() {
        let name = match kv.kv_steps {
            n if i == 0 => format!("all steps ({n})"),
            1 => "last step only (1)".to_owned(),
            n => format!("last {n} steps"),
        };
        let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), human_bytes);
        writeln!(out, "{name:<25} {:>11} {:>11}", size(kv.f16), size(kv.q8_0))?;
    }
    Ok(())
}

/// A value in a line, whole or cut.
fn shown(value: &Value, full: bool) -> String {
    const CHARS: usize = 80;
    const ITEMS: usize = 8;
    let text = |s: &str| match s.char_indices().nth(CHARS) {
        Some((end, _)) if !full => format!("\"{}...\" ({} bytes)", escaped(&s[..end]), s.len()),
        _ => format!("\"{}\"", escaped(s)),
    };
    /// The first entries, and how many there are.
    fn list<T>(items: &[T], full: bool, show: impl Fn(&T) -> String) -> String {
        let most = if full { items.len() } else { ITEMS.min(items.len()) };
        let first = items[..most].iter().map(show).collect::<Vec<_>>().join(", ");
        if most < items.len() { format!("[{first}, ...] ({} entries)", items.len()) } else { format!("[{first}]") }
    }
    fn nested(array: &Array, full: bool, text: &dyn Fn(&str) -> String) -> String {
        match array {
            Array::U8(v) => list(v, full, u8::to_string),
            Array::I8(v) => list(v, full, i8::to_string),
            Array::U16(v) => list(v, full, u16::to_string),
            Array::I16(v) => list(v, full, i16::to_string),
            Array::U32(v) => list(v, full, u32::to_string),
            Array::I32(v) => list(v, full, i32::to_string),
            Array::F32(v) => list(v, full, f32::to_string),
            Array::Bool(v) => list(v, full, bool::to_string),
            Array::String(v) => list(v, full, |s| text(s)),
            Array::U64(v) => list(v, full, u64::to_string),
            Array::I64(v) => list(v, full, i64::to_string),
            Array::F64(v) => list(v, full, f64::to_string),
            Array::Array(v) => list(v, full, |a| nested(a, full, text)),
        }
    }
    match value {
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::String(v) => text(v),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Array(v) => nested(v, full, &text),
    }
}

/// Text between quotes, in one line.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('"', r#"\""#);
    escape_controls(&text).replace('\n', r"\n").replace('\t', r"\t")
}

/// JSON in which what a terminal would act on is escaped.
fn print_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, Plain);
    value.serialize(&mut serializer)?;
    writeln!(out)
}

/// serde_json escapes the control characters that JSON forbids; DEL, C1 and marks of text direction are allowed.
struct Plain;

impl Formatter for Plain {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut free = 0;
        for (at, c) in fragment.char_indices() {
            if escape_controls(c.encode_utf8(&mut [0; 4])).starts_with(c) {
                continue;
            }
            writer.write_all(&fragment.as_bytes()[free..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            free = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[free..])
    }
}
