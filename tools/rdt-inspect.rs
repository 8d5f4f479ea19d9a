//! Shows what is in a GGUF file: keys, tensors, and where the bytes of a looped model lie. Reads the header only.

use anyhow::{Context, bail};
use clap::Parser;
use rdt::arch::{self, Anatomy, Load};
use rdt::cli::{self, human_bytes, one_line};
use rdt::gguf::{Array, Header, Metadata, TensorInfo, TensorType, Value};
use rdt::text::escape_controls;
use serde::Serialize;
use serde_json::ser::Formatter;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Show the metadata and tensors of a GGUF file
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Without --tensors and --metadata everything is shown. Any GGUF can be shown, of a model that rdt runs or not.

Examples:
  rdt-inspect model.gguf
  rdt-inspect model.gguf --tensors
  rdt-inspect model.gguf --metadata 'huginn.*'
  rdt-inspect model.gguf --metadata tokenizer.chat_template
  rdt-inspect model.gguf --json | jq '.tensors | length'"
)]
struct Flags {
    /// GGUF file
    file: PathBuf,
    /// Only the tensor table
    #[arg(long, conflicts_with = "metadata")]
    tensors: bool,
    /// Only one key's whole value; or, with a * at the end, all keys that start so
    #[arg(long, value_name = "KEY")]
    metadata: Option<String>,
    /// Long strings and arrays whole
    #[arg(long)]
    full: bool,
    /// Loop steps for the bytes that a token reads (default: the model's mean)
    #[arg(long, value_name = "N", value_parser = cli::positive)]
    steps: Option<usize>,
    /// As JSON: the header, or the part that is asked for
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    cli::run("rdt-inspect", run)
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let path = &flags.file;
    let bytes = arch::read(path, Load::Map)?;
    let header = Header::parse(&bytes).with_context(|| path.display().to_string())?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    match &flags.metadata {
        Some(key) => metadata(&mut out, flags, &header, key)?,
        None if flags.tensors && flags.json => print_json(&mut out, &header.tensors)?,
        None if flags.tensors => tensors(&mut out, &header)?,
        None if flags.json => print_json(&mut out, &header)?,
        None => everything(&mut out, flags, &header, bytes.len())?,
    }
    out.flush()?;
    Ok(())
}

fn everything(out: &mut impl Write, flags: &Flags, header: &Header, size: usize) -> io::Result<()> {
    let Header { version, alignment, .. } = header;
    let (keys, count) = (header.metadata.len(), header.tensors.len());
    writeln!(out, "{}", one_line(&flags.file.display().to_string()))?;
    let size = human_bytes(size as u64);
    writeln!(out, "GGUF {version}, {size}, {keys} keys, {count} tensors aligned to {alignment}\n")?;
    for (key, value) in header.metadata.iter() {
        writeln!(out, "{} = {}", one_line(key), shown(value, flags.full))?;
    }
    writeln!(out)?;
    tensors(out, header)?;
    writeln!(out)?;
    totals(out, flags, header)
}

/// One key's value as it is, or all keys with a beginning.
fn metadata(out: &mut impl Write, flags: &Flags, header: &Header, key: &str) -> anyhow::Result<()> {
    let Some(start) = key.strip_suffix('*') else {
        let Some(value) = header.metadata.get(key) else {
            bail!("{}: there is no key '{key}'", flags.file.display());
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
        bail!("{}: no key starts with '{start}'", flags.file.display());
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

/// Sums by type, and by part if the model is looped.
fn totals(out: &mut impl Write, flags: &Flags, header: &Header) -> io::Result<()> {
    let values = |t: &TensorInfo| t.dims.iter().product::<usize>() as u64;
    let heading = |out: &mut dyn Write, by: &str| {
        writeln!(out, "{by:<10} {:>7} {:>14} {:>11} {:>11}", "tensors", "values", "size", "bits/weight")
    };
    let row = |out: &mut dyn Write, name: &str, tensors: usize, values: u64, bytes: u64| {
        let (size, bits) = (human_bytes(bytes), bytes as f64 * 8.0 / values.max(1) as f64);
        writeln!(out, "{name:<10} {tensors:>7} {values:>14} {size:>11} {bits:>11.2}")
    };
    heading(out, "type")?;
    for ty in TensorType::ALL {
        let of_type: Vec<_> = header.tensors.iter().filter(|t| t.ty == *ty).collect();
        if !of_type.is_empty() {
            let bytes = of_type.iter().map(|t| t.bytes as u64).sum();
            row(out, ty.name(), of_type.len(), of_type.iter().map(|t| values(t)).sum(), bytes)?;
        }
    }
    let bytes = header.tensors.iter().map(|t| t.bytes as u64).sum();
    row(out, "all", header.tensors.len(), header.tensors.iter().map(values).sum(), bytes)?;

    let Some(anatomy) = Anatomy::of(header) else { return Ok(()) };
    writeln!(out)?;
    heading(out, "part")?;
    for share in &anatomy.parts {
        row(out, share.part.name(), share.tensors, share.values, share.bytes)?;
    }
    let steps = flags.steps.unwrap_or(anatomy.mean_steps);
    writeln!(
        out,
        "\nweights read: {} per loop step, {} per token at {steps} steps",
        human_bytes(anatomy.bytes_per_step),
        human_bytes(anatomy.bytes_per_token(steps))
    )
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
