//! What is written down of a test.

use super::compare::Compared;
use super::count::Counts;
use super::flags::Test;
use super::run::{Interval, Sample, Setting};
use super::stats::{Spread, median};
use super::traffic::Traffic;
use crate::cli::device_name;
use crate::gguf::TensorType;
use crate::model::{Looped, Model, Session};
use crate::sensors::{EnergySource, Facts, State};
use serde::Serialize;

/// A test and its results. Names are those of `llama-bench`'s records where they mean the same.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Record {
    pub(super) build_version: &'static str,
    pub(super) build_commit: Option<String>,
    pub(super) test_time: String,
    pub(super) system: String,
    pub(super) kernel: Option<String>,
    pub(super) board: Option<String>,
    pub(super) cpu_info: Option<String>,
    /// Hardware threads that the process may use.
    pub(super) cpus: Option<usize>,
    /// Instruction set of the kernels.
    pub(super) isa: &'static str,
    /// What the model ran on: a GPU's name, or `cpu`.
    pub(super) device: String,
    pub(super) model_filename: String,
    /// Family, and the type of most of its weights.
    pub(super) model_type: String,
    pub(super) model_size: u64,
    pub(super) model_n_params: u64,
    pub(super) bits_per_weight: f64,
    pub(super) n_threads: usize,
    pub(super) n_batch: usize,
    pub(super) type_kv: &'static str,
    /// Loop steps that keep keys and values of their own.
    pub(super) kv_steps: usize,
    /// Steps that a loop takes at most.
    pub(super) steps: usize,
    pub(super) exit_rule: String,
    pub(super) init: String,
    /// Do the tokens of a prompt see each other in both directions?
    pub(super) both_ways: bool,
    pub(super) test: String,
    pub(super) n_prompt: usize,
    pub(super) n_gen: usize,
    pub(super) n_depth: usize,
    pub(super) rows: usize,
    pub(super) warmup: bool,
    /// Seconds without pause; null: repetitions.
    pub(super) sustained: Option<usize>,

    /// Loop steps that a token took, of all looped segments together.
    pub(super) loops_per_token: f64,
    /// Blocks that a token went through.
    pub(super) blocks_per_token: f64,
    pub(super) avg_ns: f64,
    pub(super) stddev_ns: Option<f64>,
    pub(super) median_ns: f64,
    pub(super) min_ns: f64,
    pub(super) max_ns: f64,
    pub(super) avg_ts: f64,
    pub(super) stddev_ts: Option<f64>,
    pub(super) median_ts: f64,
    pub(super) min_ts: f64,
    pub(super) max_ts: f64,
    pub(super) samples_ns: Vec<u64>,
    pub(super) samples_ts: Vec<f64>,
    /// Time to the first token: of a prompt, all of it; of a generation, its first pass.
    pub(super) first_token_ns: f64,
    pub(super) samples_first_token_ns: Vec<u64>,
    /// Time of one loop step of a pass, and of what a pass does outside the loop; a GPU does not tell.
    pub(super) step_ns: Option<f64>,
    pub(super) outside_loop_ns: Option<f64>,

    /// Bytes that a token reads: weights once per pass and step, keys and values once per pass and step.
    pub(super) bytes_per_token: f64,
    pub(super) weight_bytes_per_token: f64,
    pub(super) kv_bytes_per_token: f64,
    /// The same per second, at the median.
    pub(super) bytes_per_second: f64,
    /// Measured with as many threads, over a buffer of this size.
    pub(super) memory_bytes_per_second: Option<f64>,
    pub(super) memory_buffer: Option<u64>,
    /// The last level of caches, all together, which it should exceed.
    pub(super) last_cache: Option<u64>,
    pub(super) memory_share: Option<f64>,
    /// Weights of a loop step, and the bandwidth over a buffer of their size.
    pub(super) step_bytes: u64,
    pub(super) core_bytes_per_second: Option<f64>,
    /// Of that bandwidth, what loop steps used.
    pub(super) core_share: Option<f64>,

    pub(super) joules: Option<f64>,
    pub(super) joules_per_token: Option<f64>,
    pub(super) energy_source: Option<EnergySource>,
    pub(super) temperature_before: Option<f64>,
    pub(super) temperature_after: Option<f64>,
    pub(super) state_before: State,
    pub(super) state_after: State,
    /// Hash of what was generated and of the last logits.
    pub(super) answer: String,
    pub(super) intervals: Option<Vec<Interval>>,
    /// Speed of the last interval by that of the first.
    pub(super) last_by_first: Option<f64>,
    pub(super) compared: Option<Compared>,
}

/// What is known of a model whatever is run on it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) filename: String,
    pub(super) kind: String,
    pub(super) size: u64,
    pub(super) n_params: u64,
}

impl Subject {
    pub(super) fn of(filename: String, model: &Model) -> Self {
        let tensors = &model.header().tensors;
        let bytes = |ty: TensorType| tensors.iter().filter(|t| t.ty == ty).map(|t| t.bytes).sum::<usize>();
        let most = tensors.iter().map(|t| t.ty).max_by_key(|&ty| bytes(ty));
        let architecture = &model.config().architecture;
        Self {
            filename,
            kind: most.map_or(architecture.clone(), |ty| format!("{architecture} {ty}")),
            size: model.tensor_bytes(),
            n_params: tensors.iter().map(|t| t.dims.iter().product::<usize>() as u64).sum(),
        }
    }

    pub(super) fn bits_per_weight(&self) -> f64 {
        self.size as f64 * 8.0 / self.n_params.max(1) as f64
    }
}

/// Bandwidths that were measured, in bytes per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    pub(super) memory: f64,
    pub(super) buffer: u64,
    pub(super) cache: Option<u64>,
    pub(super) core: f64,
}

/// All that a record is made of.
pub(super) struct Found<'a> {
    pub(super) facts: &'a Facts,
    pub(super) commit: Option<&'a str>,
    pub(super) time: String,
    pub(super) subject: &'a Subject,
    pub(super) session: &'a Session,
    pub(super) setting: Setting,
    pub(super) test: Test,
    pub(super) init: &'a str,
    pub(super) both_ways: bool,
    pub(super) warmup: bool,
    pub(super) sustained: Option<usize>,
    /// At least one.
    pub(super) samples: &'a [Sample],
    pub(super) intervals: Option<Vec<Interval>>,
    pub(super) bandwidth: Option<Measured>,
    pub(super) energy_source: Option<EnergySource>,
    pub(super) before: State,
    pub(super) after: State,
}

impl Record {
    /// `None` without samples.
    pub(super) fn new(f: Found<'_>) -> Option<Self> {
        let model = f.session.model();
        let counts = &f.samples.last()?.counts;
        let tokens = counts.tokens as f64;
        let (samples_ns, samples_ts): (Vec<u64>, Vec<f64>) = match &f.intervals {
            Some(all) => all.iter().map(|i| ((i.seconds * 1e9) as u64, i.tokens_per_second)).unzip(),
            None => f.samples.iter().map(|s| (nanoseconds(s.time), tokens / s.time.as_secs_f64())).unzip(),
        };
        let ns = Spread::of(samples_ns.iter().map(|&n| n as f64))?;
        let ts = Spread::of(samples_ts.iter().copied())?;
        let in_loop = |s: &Sample| s.counts.in_loop.as_nanos() as f64;
        let per_step = |s: &Sample| in_loop(s) / s.counts.steps().max(1) as f64;
        let outside = |s: &Sample| (s.time.as_nanos() as f64 - in_loop(s)) / s.counts.passes.max(1) as f64;
        let on_cpu = f.session.device().is_none();
        let step_ns = median(f.samples.iter().map(per_step)).filter(|_| on_cpu);
        let first: Vec<u64> = f.samples.iter().map(|s| nanoseconds(s.first_token)).collect();

        let shape = f.session.kv_shape();
        let traffic = Traffic::of(model, shape.ty);
        let moved = traffic.moved(counts);
        let bytes_per_token = moved.all() as f64 / tokens;
        let bytes_per_second = bytes_per_token * ts.median;
        // The mean over the loops, which may differ in size.
        let step_bytes_read: f64 = traffic.loop_bytes(counts) as f64 / counts.steps().max(1) as f64;
        let joules: Option<f64> = f.samples.iter().map(|s| s.joules).sum();
        Some(Self {
            build_version: env!("CARGO_PKG_VERSION"),
            build_commit: f.commit.map(str::to_owned),
            test_time: f.time,
            system: f.facts.system.clone(),
            kernel: f.facts.kernel.clone(),
            board: f.facts.board.clone(),
            cpu_info: f.facts.cpu.clone(),
            cpus: f.facts.cpus,
            isa: model.kernels().isa.name(),
            device: device_name(f.session).to_owned(),
            model_filename: f.subject.filename.clone(),
            model_type: f.subject.kind.clone(),
            model_size: f.subject.size,
            model_n_params: f.subject.n_params,
            bits_per_weight: f.subject.bits_per_weight(),
            n_threads: f.session.threads(),
            n_batch: f.session.chunk_rows(),
            type_kv: shape.ty.name(),
            kv_steps: shape.slots,
            steps: f.session.steps(),
            exit_rule: f.setting.rule.to_string(),
            init: f.init.to_owned(),
            both_ways: f.both_ways,
            test: f.test.name(),
            n_prompt: f.test.n_prompt,
            n_gen: f.test.n_gen,
            n_depth: f.test.n_depth,
            rows: f.test.rows,
            warmup: f.warmup,
            sustained: f.sustained,
            loops_per_token: counts.row_steps() as f64 / tokens,
            blocks_per_token: blocks_per_token(model, counts),
            avg_ns: ns.mean,
            stddev_ns: ns.sd,
            median_ns: ns.median,
            min_ns: ns.min,
            max_ns: ns.max,
            avg_ts: ts.mean,
            stddev_ts: ts.sd,
            median_ts: ts.median,
            min_ts: ts.min,
            max_ts: ts.max,
            samples_ns,
            samples_ts,
            first_token_ns: median(first.iter().map(|&n| n as f64))?,
            samples_first_token_ns: first,
            step_ns,
            outside_loop_ns: median(f.samples.iter().map(outside)).filter(|_| on_cpu),
            bytes_per_token,
            weight_bytes_per_token: moved.weights as f64 / tokens,
            kv_bytes_per_token: moved.kv as f64 / tokens,
            bytes_per_second,
            memory_bytes_per_second: f.bandwidth.map(|b| b.memory),
            memory_buffer: f.bandwidth.map(|b| b.buffer),
            last_cache: f.bandwidth.and_then(|b| b.cache),
            memory_share: f.bandwidth.map(|b| bytes_per_second / b.memory),
            step_bytes: traffic.step_bytes(),
            core_bytes_per_second: f.bandwidth.map(|b| b.core),
            core_share: f.bandwidth.zip(step_ns).map(|(b, ns)| step_bytes_read / (ns / 1e9) / b.core),
            joules,
            joules_per_token: joules.map(|j| j / f.samples.iter().map(|s| s.counts.tokens).sum::<u64>() as f64),
            energy_source: joules.and(f.energy_source),
            temperature_before: f.before.hottest().map(|t| t.celsius),
            temperature_after: f.after.hottest().map(|t| t.celsius),
            state_before: f.before,
            state_after: f.after,
            answer: format!("{:016x}", f.samples.last()?.answer),
            last_by_first: f.intervals.as_deref().and_then(last_by_first),
            intervals: f.intervals,
            compared: None,
        })
    }

    /// How a run without pause ended, in words.
    pub(super) fn in_the_end(&self) -> Option<String> {
        let (first, last) = (self.samples_ts.first()?, self.samples_ts.last()?);
        let (test, share) = (&self.test, 100.0 * self.last_by_first?);
        Some(format!("{test}: {first:.2} t/s in the first interval, {last:.2} in the last: {share:.1} %"))
    }
}

/// Block executions per token.
fn blocks_per_token(model: &Model, counts: &Counts) -> f64 {
    let in_step = |l: &Looped| l.passes.iter().map(|pass| pass.blocks.len()).sum::<usize>() as u64;
    let looped: u64 = model.plan().loops().zip(&counts.loops).map(|(l, count)| in_step(l) * count.row_steps).sum();
    model.plan().effective_depth(0) as f64 + looped as f64 / counts.tokens as f64
}

fn last_by_first(intervals: &[Interval]) -> Option<f64> {
    Some(intervals.last()?.tokens_per_second / intervals.first()?.tokens_per_second)
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::arch::{self, Load};
    use crate::exit::ExitRule;
    use crate::kernels::KvType;
    use crate::model::SessionOptions;
    use std::num::NonZeroUsize;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    /// A record of made-up times on a small model: 10 tokens in 0.5, 1 and 2 seconds.
    pub(in super::super) fn record() -> Record {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
        let model = Arc::new(arch::open(&path, Load::Map).unwrap());
        let options = SessionOptions { threads: NonZeroUsize::new(2), context: Some(16), ..SessionOptions::default() };
        let session = Session::new(Arc::clone(&model), &options).unwrap();
        let rule: ExitRule = "fixed:6".parse().unwrap();
        let loops = vec![super::super::count::LoopCounts { steps: 60, seen: 6 * 55, row_steps: 60 }];
        let in_loop = Duration::from_millis(240);
        let counts = Counts { tokens: 10, passes: 10, heads: 10, loops, seen: 55, in_loop, ..Counts::default() };
        let sample = |ms| Sample {
            time: Duration::from_millis(ms),
            first_token: Duration::from_millis(ms / 10),
            counts: counts.clone(),
            answer: 1,
            joules: Some(3.0),
        };
        Record::new(Found {
            facts: &Facts::default(),
            commit: None,
            time: "now".into(),
            subject: &Subject::of("m.gguf".into(), &model),
            session: &session,
            setting: Setting { threads: None, kv_type: KvType::F16, steps: None, rule },
            test: Test { n_prompt: 0, n_gen: 10, n_depth: 0, rows: 1, batch: None },
            init: "noise",
            both_ways: false,
            warmup: true,
            sustained: None,
            samples: &[sample(500), sample(2000), sample(1000)],
            intervals: None,
            bandwidth: Some(Measured { memory: 1e9, buffer: 1 << 28, cache: None, core: 2e9 }),
            energy_source: Some(EnergySource::Rapl),
            before: State::default(),
            after: State::default(),
        })
        .unwrap()
    }

    #[test]
    fn numbers_follow_from_samples() {
        let r = record();
        assert_eq!((r.test.as_str(), r.median_ts, r.min_ts, r.max_ts), ("tg10", 10.0, 5.0, 20.0));
        assert_eq!((r.median_ns, r.first_token_ns), (1e9, 1e8));
        assert_eq!((r.samples_ns.len(), r.samples_ts[0]), (3, 20.0));
        // One block before and one behind a loop of two.
        assert_eq!((r.loops_per_token, r.blocks_per_token), (6.0, 14.0));
        assert_eq!((r.step_ns, r.outside_loop_ns), (Some(4e6), Some((1000.0 - 240.0) / 10.0 * 1e6)));
        assert_eq!(r.device, "cpu");
        assert_eq!(r.bytes_per_token, r.weight_bytes_per_token + r.kv_bytes_per_token);
        assert_eq!(r.memory_share, Some(r.bytes_per_token * 10.0 / 1e9));
        assert_eq!(r.core_share, Some(r.step_bytes as f64 / 0.004 / 2e9));
        assert_eq!((r.joules, r.joules_per_token), (Some(9.0), Some(0.3)));
        assert_eq!((r.model_type.as_str(), r.model_n_params), ("huginn q4_0", 1_215_616));
        assert!((5.0..5.3).contains(&r.bits_per_weight), "{}", r.bits_per_weight);
        assert_eq!(r.temperature_before, None);
    }
}
