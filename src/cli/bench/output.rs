//! Tables and records on stdout.

use super::super::{human_bytes, one_line};
use super::record::Record;
use super::run::Interval;
use crate::cli::device::CPU;
use clap::ValueEnum;
use serde_json::Value;
use std::io::{self, Write};

/// How results are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A table for people.
    #[default]
    Md,
    /// A line of names, then a line per test; lists and objects as JSON.
    Csv,
    /// A list of all records.
    Json,
    /// A record per line.
    Jsonl,
}

/// What a table can show, known before its first line.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shown {
    pub(super) bandwidth: bool,
    pub(super) temperature: bool,
    pub(super) energy: bool,
    pub(super) compared: bool,
    /// Width of the longest model's name.
    pub(super) model: usize,
    /// Width of the longest device's name; 0: all is on the CPU.
    pub(super) device: usize,
}

/// Writes records as they come.
pub(super) struct Output<W: Write> {
    out: W,
    format: Format,
    shown: Shown,
    records: usize,
}

/// A column of the table: its heading, its width, and what it shows.
type Column = (&'static str, usize, fn(&Record) -> String);

impl<W: Write> Output<W> {
    pub(super) fn new(out: W, format: Format, shown: Shown) -> Self {
        Self { out, format, shown, records: 0 }
    }

    /// One test.
    pub(super) fn record(&mut self, record: &Record) -> io::Result<()> {
        let first = self.records == 0;
        self.records += 1;
        match self.format {
            Format::Md => self.row(record, first)?,
            Format::Csv => self.line(record, first)?,
            Format::Json => {
                write!(self.out, "{}", if first { "[\n" } else { ",\n" })?;
                serde_json::to_writer_pretty(&mut self.out, record)?;
            }
            Format::Jsonl => {
                serde_json::to_writer(&mut self.out, record)?;
                writeln!(self.out)?;
            }
        }
        self.out.flush()
    }

    /// One interval of a run without pause; only the table shows them one by one.
    pub(super) fn interval(&mut self, i: &Interval, first: bool) -> io::Result<()> {
        if self.format != Format::Md {
            return Ok(());
        }
        if first {
            self.out.write_all(b"| seconds |        t/s |  \xc2\xb0C |   MHz | limit |     W |\n")?;
            self.out.write_all(b"| ------: | ---------: | --: | ----: | ----: | ----: |\n")?;
        }
        let shown = |x: Option<f64>, digits: usize| x.map_or("-".to_owned(), |x| format!("{x:.digits$}"));
        let (celsius, mhz, limit) = (shown(i.celsius, 0), shown(i.mhz, 0), shown(i.limit_mhz, 0));
        let (seconds, rate, watts) = (format!("{:.1}", i.at), significant(i.tokens_per_second), shown(i.watts, 2));
        writeln!(self.out, "| {seconds:>7} | {rate:>10} | {celsius:>3} | {mhz:>5} | {limit:>5} | {watts:>5} |")?;
        self.out.flush()
    }

    /// The end, with what the table says below itself.
    pub(super) fn finish(&mut self, words: &[String]) -> io::Result<()> {
        match self.format {
            Format::Json if self.records == 0 => writeln!(self.out, "[]")?,
            Format::Json => writeln!(self.out, "\n]")?,
            Format::Md if self.records > 0 => {
                writeln!(self.out)?;
                words.iter().try_for_each(|w| writeln!(self.out, "{}", one_line(w)))?;
            }
            _ => {}
        }
        self.out.flush()
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns: Vec<Column> = vec![
            ("model", self.shown.model, |r| cell(&r.model_filename)),
            ("threads", 7, |r| if r.device == CPU { r.n_threads.to_string() } else { "-".into() }),
            ("kv", 4, |r| r.type_kv.to_owned()),
            ("steps", 5, |r| r.steps.to_string()),
            ("test", 12, |r| r.test.clone()),
            ("t/s", 9, |r| significant(r.median_ts)),
            ("mean ± sd", 16, |r| {
                let mean = significant(r.avg_ts);
                r.stddev_ts.map_or(mean.clone(), |sd| format!("{mean} ± {}", significant(sd)))
            }),
            ("min .. max", 16, |r| format!("{} .. {}", significant(r.min_ts), significant(r.max_ts))),
            ("loops/token", 11, |r| format!("{:.2}", r.loops_per_token)),
            ("ms/loop", 8, |r| r.step_ns.map_or("-".to_owned(), |ns| significant(ns / 1e6))),
            ("TTFT ms", 8, |r| significant(r.first_token_ns / 1e6)),
            ("read/token", 10, |r| human_bytes(r.bytes_per_token.round() as u64)),
        ];
        if self.shown.device > 0 {
            columns.insert(1, ("device", self.shown.device, |r| cell(&r.device)));
        }
        if self.shown.bandwidth {
            columns.push(("memory", 7, |r| per_cent(r.memory_share)));
            columns.push(("core", 7, |r| per_cent(r.core_share)));
        }
        if self.shown.temperature {
            columns.push(("°C", 9, |r| {
                let shown = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.0}"));
                format!("{} to {}", shown(r.temperature_before), shown(r.temperature_after))
            }));
        }
        if self.shown.energy {
            columns.push(("J/token", 8, |r| r.joules_per_token.map_or("-".to_owned(), significant)));
        }
        if self.shown.compared {
            columns
                .push(("old t/s", 9, |r| r.compared.as_ref().map_or("-".to_owned(), |c| significant(c.old_median_ts))));
            columns.push(("new/old", 7, |r| r.compared.as_ref().map_or("-".to_owned(), |c| format!("{:.3}", c.ratio))));
        }
        columns
    }

    fn row(&mut self, record: &Record, first: bool) -> io::Result<()> {
        let columns = self.columns();
        // Columns are padded for those who read the text as it is; the first holds words, the others numbers.
        let padded = |i: usize, text: &str, width: usize| match i {
            0 => format!(" {text:<width$} "),
            _ => format!(" {text:>width$} "),
        };
        let line = |cells: Vec<String>| format!("|{}|", cells.join("|"));
        if first {
            let names = columns.iter().enumerate().map(|(i, (name, width, _))| padded(i, name, *width));
            writeln!(self.out, "{}", line(names.collect()))?;
            let rules = columns.iter().enumerate().map(|(i, (name, width, _))| {
                let width = (*width).max(name.chars().count());
                if i == 0 { format!(" {} ", "-".repeat(width)) } else { format!(" {}: ", "-".repeat(width - 1)) }
            });
            writeln!(self.out, "{}", line(rules.collect()))?;
        }
        let cells = columns
            .iter()
            .enumerate()
            .map(|(i, (name, width, show))| padded(i, &show(record), (*width).max(name.chars().count())));
        writeln!(self.out, "{}", line(cells.collect()))
    }

    fn line(&mut self, record: &Record, first: bool) -> io::Result<()> {
        let Value::Object(fields) = serde_json::to_value(record)? else { return Ok(()) };
        if first {
            writeln!(self.out, "{}", fields.keys().cloned().collect::<Vec<_>>().join(","))?;
        }
        let cells: Vec<_> = fields.values().map(csv_cell).collect();
        writeln!(self.out, "{}", cells.join(","))
    }
}

/// A value as RFC 4180 has it; null is empty.
fn csv_cell(value: &Value) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    match value {
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(_) | Value::Object(_) => quoted(&value.to_string()),
    }
}

/// Text in a table, which a bar would end.
fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

fn per_cent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |x| format!("{:.1} %", 100.0 * x))
}

/// Three digits and more, without powers of ten.
fn significant(x: f64) -> String {
    let digits = match x.abs() {
        n if n >= 100.0 => 1,
        n if n >= 1.0 => 2,
        n if n >= 0.1 => 3,
        _ => 5,
    };
    format!("{x:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::record::tests::record;

    fn written(format: Format, shown: Shown, records: usize) -> String {
        let mut output = Output::new(Vec::new(), format, shown);
        for _ in 0..records {
            output.record(&record()).unwrap();
        }
        output.finish(&["a machine\nof hers".to_owned()]).unwrap();
        String::from_utf8(output.out).unwrap()
    }

    #[test]
    fn tables_have_a_cell_for_every_heading() {
        for shown in [
            Shown { model: 6, ..Shown::default() },
            Shown { bandwidth: true, temperature: true, energy: true, compared: true, model: 10, device: 6 },
        ] {
            let text = written(Format::Md, shown, 2);
            let lines: Vec<_> = text.lines().collect();
            assert_eq!(lines.len(), 6, "{text}");
            let cells = |line: &str| line.matches('|').count();
            assert!(lines[1..4].iter().all(|l| cells(l) == cells(lines[0])), "{text}");
            let widths = lines[..4].iter().map(|l| l.chars().count()).collect::<Vec<_>>();
            assert!(widths.iter().all(|w| *w == widths[0]), "{text}");
            assert_eq!((text.contains("J/token"), text.contains("0.300")), (shown.energy, shown.energy), "{text}");
            assert!(lines[2].contains(" 10.00 |"), "{text}");
            assert_eq!(lines[2].contains("    cpu |"), shown.device > 0, "{text}");
            assert_eq!(lines[5], "a machine\\nof hers");
        }
    }

    #[test]
    fn json_is_a_list_however_many() {
        for n in 0..3 {
            let list: Vec<Value> = serde_json::from_str(&written(Format::Json, Shown::default(), n)).unwrap();
            assert_eq!(list.len(), n);
            let text = written(Format::Jsonl, Shown::default(), n);
            assert_eq!(text.lines().filter(|l| serde_json::from_str::<Value>(l).is_ok()).count(), n);
        }
    }

    #[test]
    fn csv_cells_are_quoted() {
        let text = written(Format::Csv, Shown::default(), 2);
        assert_eq!(text.lines().count(), 3);
        assert_eq!(csv_cell(&serde_json::json!("a,\"b\"")), "\"a,\"\"b\"\"\"");
        assert_eq!(csv_cell(&serde_json::json!([1, "x"])), "\"[1,\"\"x\"\"]\"");
        assert_eq!((csv_cell(&Value::Null), csv_cell(&serde_json::json!(1.5))), (String::new(), "1.5".to_owned()));
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [1234.56, 12.345, 0.1234, 0.001_234, 0.0].map(significant),
            ["1234.6", "12.35", "0.123", "0.00123", "0.00000"]
        );
        assert_eq!(cell("a|b\n"), "a\\|b\\n");
    }
}
