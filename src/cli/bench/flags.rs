//! What to measure.

use super::super::device::DEVICE_HELP;
use super::super::{DeviceChoice, ExitFlags, LoadFlags, kv_steps, positive, positive_count};
use super::decode::Acceptance;
use super::output::Format;
use crate::generate::Strategy;
use crate::kernels::KvType;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// Speed of looped models: prompts and generation at any depth, with what they cost in bytes, joules and heat
#[derive(Parser, Debug)]
#[command(
    name = "rdt-bench",
    version,
    after_help = "\
Lists are separated by commas, and every combination is measured. Tests are named as in llama-bench: pp512
reads a prompt of 512 tokens, tg128 generates 128, pp512+tg128 does one after the other, tg128@rows4 runs 4
positions of one sequence in each pass (what checking guessed tokens costs), tg128@d1024 starts behind 1024
tokens. Prompts are random tokens of a fixed seed; what is generated is the model's own, greedily. With an
exit rule, depth on random tokens says nothing about depth on text.

Weights and keys that a token reads are counted from the file and the plan, each once per pass and loop step,
and set against the bandwidth of memory, which is measured with as many threads. A model that fits a cache is
not held up by memory: compare it with the bandwidth over as many bytes as a loop step reads ('core').

Every repetition must give the same tokens and logits, at every number of threads too, or the program fails.
Other devices than the CPU have last bits of their own, are measured once and not per number of threads, and
their time in the loop and their memory's bandwidth are not known.
Field names in csv and json are llama-bench's where they mean the same; what cannot be read is null.

Examples:
  rdt-bench -m model.gguf
  rdt-bench -m model.gguf -t 1,2,4 --steps 4,8,16,32
  rdt-bench -m a.gguf -m b.gguf -p 0 -n 64 -d 0,1024,4096 --kv-type f16,q8_0
  rdt-bench -m model.gguf -p 0 --rows 1,2,4,8
  rdt-bench -m model.gguf --device cpu,gpu
  rdt-bench -m model.gguf -p 0 --sustained 600             (does it slow down as it gets hot?)
  rdt-bench -m model.gguf -n 256 --decode pipeline --decode speculative --prompts questions.txt
  rdt-bench -m model.gguf -o jsonl > before.jsonl
  rdt-bench -m model.gguf --compare before.jsonl
  rdt-bench --sensors"
)]
pub(super) struct Flags {
    /// Model file (GGUF), or the folder of a published checkpoint; may be given several times
    #[arg(short, long, value_name = "FILE", required_unless_present = "sensors")]
    pub(super) model: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) load: LoadFlags,
    /// Tokens of a prompt; 0: none
    #[arg(
        short = 'p',
        long,
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "512",
        help_heading = "Tests"
    )]
    pub(super) n_prompt: Vec<usize>,
    /// Tokens to generate; 0: none
    #[arg(
        short = 'n',
        long,
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "128",
        help_heading = "Tests"
    )]
    pub(super) n_gen: Vec<usize>,
    /// A prompt of P tokens and N generated behind it, as one test; may be given several times
    #[arg(long, value_name = "P,N", value_parser = pair, help_heading = "Tests")]
    pub(super) pg: Vec<(usize, usize)>,
    /// Tokens that the context holds beforehand
    #[arg(
        short = 'd',
        long = "depth",
        value_name = "N,..",
        value_delimiter = ',',
        default_value = "0",
        help_heading = "Tests"
    )]
    pub(super) n_depth: Vec<usize>,
    /// Positions that run together in each pass of a generation
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = positive,
        default_value = "1",
        help_heading = "Tests"
    )]
    pub(super) rows: Vec<usize>,
    /// Instead of these tests: generate one text in turn by plain decoding and by this strategy (pipeline, speculative or wavefront, with
    /// settings as in rdt-chat), on the CPU, and compare; may be given several times. -n and -d take one number then
    #[arg(long, value_name = "STRATEGY", conflicts_with_all = ["sustained", "compare", "n_prompt", "pg", "rows", "batch_size",
        "delay", "interval", "bandwidth_size"], help_heading = "Tests")]
    pub(super) decode: Vec<Strategy>,
    /// With --decode: answer every line of FILE, in the model's chat template, instead of continuing random tokens
    #[arg(long, value_name = "FILE", requires = "decode", help_heading = "Tests")]
    pub(super) prompts: Option<PathBuf>,
    /// With --decode: a random text, of which guesses are right at these rates, by the part of the loop that is behind them: for models
    /// with random weights, which have no text of their own
    #[arg(long, value_name = "PART:RATE,..", requires = "decode", conflicts_with = "prompts", help_heading = "Tests")]
    pub(super) acceptance: Option<Acceptance>,
    /// With --decode: draw speed against the distance of tokens, a line for each number of rows, of the strategies
    /// 'pipeline:every=N,rows=N', as an SVG file
    #[arg(long, value_name = "FILE", requires = "decode", help_heading = "Tests")]
    pub(super) plot: Option<PathBuf>,
    /// Repetitions of every test
    #[arg(short, long, value_name = "N", value_parser = positive, default_value_t = 5, help_heading = "Tests")]
    pub(super) repetitions: usize,
    /// Do not run a test once before it is measured
    #[arg(long, help_heading = "Tests")]
    pub(super) no_warmup: bool,
    /// Pause before every test, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0, help_heading = "Tests")]
    pub(super) delay: u64,
    /// Instead of repetitions: generate without pause for so long, and tell the speed of every interval
    #[arg(long, value_name = "SECONDS", value_parser = positive, help_heading = "Tests")]
    pub(super) sustained: Option<usize>,
    /// Length of these intervals
    #[arg(long, value_name = "SECONDS", value_parser = positive, default_value_t = 5, help_heading = "Tests")]
    pub(super) interval: usize,
    /// Worker threads (default: performance cores; fewer for a very small model)
    #[arg(
        short,
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = positive_count,
        help_heading = "Session"
    )]
    pub(super) threads: Vec<NonZeroUsize>,
    /// Tokens of a prompt that go through the model together (default: 64; all of a prompt for models that read prompts in
    /// both directions)
    #[arg(
        short,
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = positive,
        help_heading = "Session"
    )]
    pub(super) batch_size: Vec<usize>,
    /// KV cache storage: f32, f16 or q8_0
    #[arg(long, value_name = "TYPE,..", value_delimiter = ',', default_value = "f16", help_heading = "Session")]
    pub(super) kv_type: Vec<KvType>,
    /// Loop steps that keep their own keys and values (default: all, if they fit the memory budget); 'last' is 1
    #[arg(long, value_name = "N", value_parser = kv_steps, help_heading = "Session")]
    pub(super) kv_steps: Option<usize>,
    /// Memory that the KV cache may take, in MiB
    #[arg(long, value_name = "MiB", value_parser = positive, default_value_t = 2048, help_heading = "Session")]
    pub(super) kv_memory: usize,
    /// Loop steps at most (default: the exit rule's max, else the model's own)
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = positive, help_heading = "Depth")]
    pub(super) steps: Vec<usize>,
    #[command(flatten)]
    pub(super) exits: ExitFlags,
    #[arg(
        long,
        value_name = "auto|cpu|gpu[:NAME],..",
        default_value = "auto",
        help = format!("{DEVICE_HELP}. Several, without auto, are measured in turn"),
        help_heading = "Device"
    )]
    device: Vec<DeviceList>,
    /// Buffer that memory bandwidth is measured over, in MiB; 0: do not measure (default: 4 times the last cache)
    #[arg(long, value_name = "MiB", help_heading = "Results")]
    pub(super) bandwidth_size: Option<u64>,
    /// Measure nothing: list the sensors of this machine, what they show, and why some cannot be read
    #[arg(long, conflicts_with = "model", help_heading = "Results")]
    pub(super) sensors: bool,
    /// md, csv, json or jsonl
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        help_heading = "Results"
    )]
    output: Format,
    /// The same as '-o json'
    #[arg(long, conflicts_with = "output", help_heading = "Results")]
    json: bool,
    /// Compare with what an earlier run wrote with '-o jsonl'
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(super) compare: Option<PathBuf>,
}

/// A list of devices, separated by commas, which their names may contain, too.
#[derive(Debug, Clone)]
struct DeviceList(Vec<DeviceChoice>);

impl FromStr for DeviceList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let begins = |piece: &str| matches!(piece.trim(), "auto" | "cpu" | "gpu") || piece.trim().starts_with("gpu:");
        let mut all: Vec<String> = Vec::new();
        for piece in text.split(',') {
            match all.last_mut() {
                Some(name) if !begins(piece) => *name += &format!(",{piece}"),
                _ => all.push(piece.to_owned()),
            }
        }
        Ok(Self(all.iter().map(|device| device.trim().parse()).collect::<Result<_, _>>()?))
    }
}

/// What one test runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
    /// Positions per pass of the generation.
    pub(super) rows: usize,
    /// Tokens per pass of the prompt; `None` is the session's choice.
    pub(super) batch: Option<usize>,
}

impl Test {
    /// As `llama-bench` calls it.
    pub(super) fn name(&self) -> String {
        let Self { n_prompt, n_gen, n_depth, rows, .. } = *self;
        let mut name = match (n_prompt, n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        if rows > 1 && n_gen > 0 {
            name += &format!("@rows{rows}");
        }
        if n_depth > 0 {
            name += &format!("@d{n_depth}");
        }
        name
    }

    /// Positions that its context needs; `None` beyond all numbers.
    pub(super) fn context(&self) -> Option<usize> {
        self.n_depth.checked_add(self.n_prompt)?.checked_add(self.n_gen)
    }
}

impl Flags {
    /// What to measure on, each once.
    ///
    /// # Errors
    /// One of several is not said but found.
    pub(super) fn devices(&self) -> Result<Vec<&DeviceChoice>, clap::Error> {
        let mut devices: Vec<&DeviceChoice> = Vec::new();
        for device in self.device.iter().flat_map(|list| &list.0) {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        if devices.len() > 1 && devices.contains(&&DeviceChoice::Auto) {
            let message = "--device auto is one of the others, and is not measured beside them";
            return Err(Self::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(devices)
    }

    /// How results are written.
    pub(super) fn format(&self) -> Format {
        if self.json { Format::Json } else { self.output }
    }

    /// The tests, each once.
    pub(super) fn tests(&self) -> Vec<Test> {
        let mut tests: Vec<Test> = Vec::new();
        let batches: Vec<_> = match self.batch_size.as_slice() {
            [] => vec![None],
            sizes => sizes.iter().copied().map(Some).collect(),
        };
        let (first, all) = (&batches[..1], &batches[..]);
        let mut add = |n_prompt, n_gen, n_depth, rows: &[usize], batches: &[Option<usize>]| {
            if n_prompt == 0 && n_gen == 0 {
                return;
            }
            for &batch in batches {
                for &rows in rows {
                    let test = Test { n_prompt, n_gen, n_depth, rows, batch };
                    if !tests.contains(&test) {
                        tests.push(test);
                    }
                }
            }
        };
        // What makes no difference to a test is not varied: rows to a prompt, batches to a generation.
        for &depth in &self.n_depth {
            if self.sustained.is_none() {
                self.n_prompt.iter().for_each(|&p| add(p, 0, depth, &[1], all));
            }
            self.n_gen.iter().for_each(|&n| add(0, n, depth, &self.rows, first));
            if self.sustained.is_none() {
                self.pg.iter().for_each(|&(p, n)| match n {
                    0 => add(p, n, depth, &[1], all),
                    _ => add(p, n, depth, &self.rows, if p == 0 { first } else { all }),
                });
            }
        }
        tests
    }
}

/// `P,N`.
fn pair(s: &str) -> Result<(usize, usize), String> {
    let wrong = || "expected two whole numbers, P,N".to_owned();
    let (p, n) = s.split_once(',').ok_or_else(wrong)?;
    Ok((p.trim().parse().map_err(|_| wrong())?, n.trim().parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(args: &str) -> Vec<String> {
        let args = format!("rdt-bench -m m {args}");
        let flags = Flags::try_parse_from(args.split_whitespace()).unwrap();
        let batch = |t: &Test| t.batch.map_or(String::new(), |b| format!(" b{b}"));
        flags.tests().iter().map(|t| t.name() + &batch(t)).collect()
    }

    #[test]
    fn json_is_a_format() {
        let format =
            |args: &[&str]| Flags::try_parse_from([&["rdt-bench", "--sensors"], args].concat()).map(|f| f.format());
        assert_eq!(format(&["--json"]).unwrap(), Format::Json);
        assert_eq!(format(&["-o", "csv"]).unwrap(), Format::Csv);
        assert_eq!(format(&[]).unwrap(), Format::Md);
        assert!(format(&["--json", "-o", "csv"]).is_err());
    }

    #[test]
    fn devices_are_said_or_found() {
        let devices = |list: &str| {
            let flags = Flags::try_parse_from(["rdt-bench", "-m", "m", "--device", list])?;
            flags.devices().map(|all| all.iter().map(|d| d.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(devices("cpu,gpu,gpu:a,cpu,gpu").unwrap(), ["cpu", "gpu", "gpu:a"]);
        assert_eq!(devices("auto,auto").unwrap(), ["auto"]);
        let full = ["cpu", "gpu:llvmpipe (LLVM 15.0.6, 256 bits)"];
        assert_eq!(devices("cpu, gpu:llvmpipe (LLVM 15.0.6, 256 bits)").unwrap(), full);
        assert_eq!(devices("gpu:llvmpipe (LLVM 15.0.6, 256 bits) ,cpu").unwrap(), [full[1], full[0]]);
        assert!(devices("auto,cpu").is_err() && devices("cpu,").is_err() && devices("cpu,tpu").is_err());
    }

    #[test]
    fn tests_are_every_combination_that_differs() {
        assert_eq!(names(""), ["pp512", "tg128"]);
        assert_eq!(names("-p 0 -n 0"), [""; 0]);
        assert_eq!(names("-p 0 -n 8 --rows 1,4 -d 0,16"), ["tg8", "tg8@rows4", "tg8@d16", "tg8@rows4@d16"]);
        assert_eq!(names("-p 8,8 -n 0 -b 2,4"), ["pp8 b2", "pp8 b4"]);
        assert_eq!(names("-p 8 -n 4 -b 2,4"), ["pp8 b2", "pp8 b4", "tg4 b2"]);
        assert_eq!(names("-p 0 -n 0 --pg 8,4 --pg 0,4 --rows 1,2"), ["pp8+tg4", "pp8+tg4@rows2", "tg4", "tg4@rows2"]);
        assert_eq!(names("-p 8 -n 4 --pg 8,4 --sustained 1"), ["tg4"]);
    }
}
