//! `rdt-bench --sensors`: what can be read of this machine, and why something cannot.

use super::output::Format;
use crate::sensors::{Machine, Sensor};
use serde_json::json;
use std::io::{self, Write};

/// Writes the list of this machine's sensors.
pub(super) fn write(mut out: impl Write, format: Format) -> io::Result<()> {
    let sensors = Machine::here().availability();
    match format {
        Format::Md => table(&mut out, &sensors)?,
        Format::Csv => {
            writeln!(out, "name,source,shows,why")?;
            let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
            for s in &sensors {
                let shows = s.shows.as_deref().map(quoted).unwrap_or_default();
                let why = s.why.map(|w| quoted(&w.to_string())).unwrap_or_default();
                writeln!(out, "{},{},{shows},{why}", quoted(s.name), quoted(s.source))?;
            }
        }
        Format::Json => {
            serde_json::to_writer_pretty(&mut out, &sensors)?;
            writeln!(out)?;
        }
        Format::Jsonl => sensors.iter().try_for_each(|s| writeln!(out, "{}", json!(s)))?,
    }
    out.flush()
}

fn table(out: &mut impl Write, sensors: &[Sensor]) -> io::Result<()> {
    let cells = |s: &Sensor| {
        let shows = s.shows.clone().unwrap_or_else(|| "-".into()).replace('|', "\\|");
        [s.name.to_owned(), shows, s.why.map_or("available".into(), |w| w.to_string()), s.source.to_owned()]
    };
    let heads = ["sensor", "shows", "available", "source"].map(str::to_owned);
    let rows: Vec<[String; 4]> = std::iter::once(heads).chain(sensors.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    for (i, row) in rows.iter().enumerate() {
        let padded = row.iter().zip(widths).map(|(text, width)| format!(" {text:<width$} "));
        writeln!(out, "|{}|", padded.collect::<Vec<_>>().join("|"))?;
        if i == 0 {
            let rules = widths.map(|width| format!(" {} ", "-".repeat(width)));
            writeln!(out, "|{}|", rules.join("|"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_every_sensor() {
        let n = Machine::here().availability().len();
        let text = |format| {
            let mut out = Vec::new();
            write(&mut out, format).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(Format::Md).lines().count(), n + 2);
        assert_eq!(text(Format::Csv).lines().count(), n + 1);
        assert_eq!(text(Format::Jsonl).lines().count(), n);
        let list: Vec<serde_json::Value> = serde_json::from_str(&text(Format::Json)).unwrap();
        assert!(list.len() == n && list.iter().all(|s| s["shows"].is_string() != s["why"].is_string()));
    }
}
