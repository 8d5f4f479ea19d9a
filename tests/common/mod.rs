//! What the tests of the looped forward pass share: models made from the checkpoints in `tests/data`, what the reference
//! computed from them, and a policy that writes everything down.

#![allow(dead_code, reason = "every test program uses its part")]

use rdt::arch;
use rdt::checkpoint::Checkpoint;
use rdt::exit::{ExitRule, RulePolicy};
use rdt::files::Bytes;
use rdt::kernels::KvType;
use rdt::model::{
    Batch, Config, DepthPolicy, InitialState, LatentStats, Logits, Model, Output, Row, Session, SessionOptions, Verdict,
};
use rdt::quant::Recipe;
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The checkpoint that most tests use.
pub(crate) const HUGINN: &str = "huginn";
/// Every checkpoint that has a golden.
pub(crate) const ALL: [&str; 5] =
    [HUGINN, "huginn-shapes/deep", "huginn-shapes/untied", "huginn-shapes/tied-twice", "huginn-shapes/wide-head"];

/// A rule that the random weights of `huginn` pass after 4 to 9 of 16 steps, depending on the token.
pub(crate) const RULE: &str = "acceleration:1.5,hits=2,max=16";

/// A folder of `tests/data`.
pub(crate) fn data(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder)
}

/// A checkpoint as the bytes of a GGUF, without a tokenizer.
pub(crate) fn gguf(folder: &str, recipe: Recipe) -> Vec<u8> {
    let checkpoint = Checkpoint::open(data(folder)).unwrap();
    let plan = arch::conversion(&checkpoint).unwrap();
    plan.write(&arch::Input::Checkpoint(&checkpoint), recipe, Vec::new(), &mut |_| true).unwrap().0
}

/// A checkpoint as a model.
pub(crate) fn model(folder: &str, recipe: Recipe) -> Arc<Model> {
    Arc::new(arch::from_bytes(Bytes::from(gguf(folder, recipe))).unwrap())
}

/// Tensors of a safetensors file: f32 ones as numbers, with shapes and types of all.
pub(crate) struct Tensors {
    pub(crate) shapes: HashMap<String, (safetensors::Dtype, Vec<usize>)>,
    f32s: HashMap<String, Vec<f32>>,
    i32s: HashMap<String, Vec<i32>>,
}

impl Tensors {
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let (mut shapes, mut f32s, mut i32s) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (name, view) in file.tensors() {
            let words = view.data().as_chunks::<4>().0.iter();
            match view.dtype() {
                safetensors::Dtype::F32 => {
                    f32s.insert(name.clone(), words.map(|b| f32::from_le_bytes(*b)).collect());
                }
                safetensors::Dtype::I32 => {
                    i32s.insert(name.clone(), words.map(|b| i32::from_le_bytes(*b)).collect());
                }
                other => panic!("{name} is {other:?}"),
            }
            shapes.insert(name, (view.dtype(), view.shape().to_vec()));
        }
        Self { shapes, f32s, i32s }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.shapes.contains_key(name)
    }

    pub(crate) fn f32(&self, name: &str) -> &[f32] {
        &self.f32s[name]
    }

    pub(crate) fn i32(&self, name: &str) -> &[i32] {
        &self.i32s[name]
    }
}

/// What the reference computed.
pub(crate) struct Golden {
    pub(crate) tokens: Vec<u32>,
    pub(crate) initial: InitialState,
    /// Steps that were recorded.
    pub(crate) steps: usize,
    pub(crate) tensors: Tensors,
}

impl Golden {
    pub(crate) fn read(folder: &str) -> Self {
        let tensors = Tensors::read(&data(folder).join("golden.safetensors"));
        let tokens = tensors.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect();
        // A loop that starts from the stream has none.
        let initial = match tensors.has("init_state") {
            true => InitialState::Given(tensors.f32("init_state").into()),
            false => InitialState::Zeros,
        };
        Self { tokens, initial, steps: tensors.shapes["latents"].1[0], tensors }
    }
}

/// Largest absolute difference over the standard deviation of `expected`.
pub(crate) fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f64;
    let mean = expected.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let variance = expected.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    // A NaN is not lost: it makes the sum, and so the result, one.
    let poison = found.iter().map(|&x| f64::from(x) * 0.0).sum::<f64>();
    let worst = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).fold(0.0, f64::max);
    worst / variance.sqrt() + poison
}

/// Cosine of two vectors.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// How a model is run.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) rule: ExitRule,
    /// Deepest loop.
    pub(crate) steps: usize,
    pub(crate) kv_type: KvType,
    /// `None`: all.
    pub(crate) kv_slots: Option<usize>,
    pub(crate) chunk: usize,
    pub(crate) threads: usize,
    pub(crate) context: usize,
    pub(crate) sequences: usize,
    pub(crate) initial: InitialState,
}

impl Setup {
    /// `steps` steps of every row, exact KV cache, one thread.
    pub(crate) fn fixed(steps: usize, initial: &InitialState) -> Self {
        Self {
            rule: ExitRule::default(),
            steps,
            kv_type: KvType::F32,
            kv_slots: None,
            chunk: 64,
            threads: 1,
            context: 64,
            sequences: 1,
            initial: initial.clone(),
        }
    }

    /// As [`Setup::fixed`], with an exit rule.
    pub(crate) fn rule(rule: &str, steps: usize, initial: &InitialState) -> Self {
        Self { rule: rule.parse().unwrap(), ..Self::fixed(steps, initial) }
    }

    pub(crate) fn session(&self, model: &Arc<Model>) -> Session {
        let options = SessionOptions {
            threads: NonZeroUsize::new(self.threads),
            context: Some(self.context),
            kv_type: self.kv_type,
            kv_slots: self.kv_slots,
            steps: Some(self.steps),
            sequences: self.sequences,
            chunk_rows: Some(self.chunk),
            initial: self.initial.clone(),
            ..SessionOptions::default()
        };
        Session::new(Arc::clone(model), &options).unwrap()
    }

    pub(crate) fn recorder(&self, config: &Config) -> Recorder {
        Recorder::new(RulePolicy::new(self.rule, Some(self.steps), config, self.chunk).unwrap())
    }

    /// Runs tokens from position 0 of a session of its own.
    pub(crate) fn run(&self, model: &Arc<Model>, tokens: &[u32]) -> Run {
        run(&mut self.session(model), &mut self.recorder(model.config()), 0, tokens)
    }
}

/// Continues a sequence; all logits, read-out rules allowed if they are what `recorder` has.
pub(crate) fn run(session: &mut Session, recorder: &mut Recorder, sequence: usize, tokens: &[u32]) -> Run {
    run_batch(session, recorder, Batch { sequence, logits: Logits::All, ..Batch::next(tokens) })
}

/// Runs a batch that wants all logits.
pub(crate) fn run_batch(session: &mut Session, recorder: &mut Recorder, batch: Batch<'_>) -> Run {
    let (sequence, first) = (batch.sequence, session.len(batch.sequence));
    let Output { steps, logits, .. } = session.run(batch, recorder).unwrap();
    let (steps, logits) = (steps.to_vec(), logits.to_vec());
    let rows = recorder.rows(sequence, first, &steps);
    Run { steps, logits, rows }
}

/// Everything that a run gave, for comparing.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) steps: Vec<usize>,
    /// `[T][V]`.
    pub(crate) logits: Vec<f32>,
    pub(crate) rows: Vec<Seen>,
}

/// What a policy saw of a row.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) prelude: Vec<f32>,
    pub(crate) initial: Vec<f32>,
    /// `[steps][S]`, those of all looped segments one after the other.
    pub(crate) latents: Vec<Vec<f32>>,
    pub(crate) stats: Vec<LatentStats>,
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

impl Run {
    /// Fails, saying where, unless every number of the two is the same, bit for bit.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Run, what: &str) {
        assert_eq!(self.steps, other.steps, "{what}: exit steps");
        assert_eq!(self.rows.len(), other.rows.len(), "{what}: rows");
        for (t, (a, b)) in self.rows.iter().zip(&other.rows).enumerate() {
            assert_eq!(bits(&a.initial), bits(&b.initial), "{what}: initial state of row {t}");
            assert_eq!(bits(&a.prelude), bits(&b.prelude), "{what}: prelude of row {t}");
            assert_eq!(a.latents.len(), b.latents.len(), "{what}: latents of row {t}");
            for (k, (x, y)) in a.latents.iter().zip(&b.latents).enumerate() {
                assert_eq!(bits(x), bits(y), "{what}: latent of row {t} after step {}", k + 1);
            }
            let stats = |s: &Seen| -> Vec<u32> {
                let six = |s: &LatentStats| {
                    [s.state_norm, s.step_norm, s.previous_step_norm, s.acceleration, s.step_cosine, s.state_cosine]
                        .map(f32::to_bits)
                };
                s.stats.iter().flat_map(six).collect()
            };
            assert_eq!(stats(a), stats(b), "{what}: statistics of row {t}");
        }
        assert!(bits(&self.logits) == bits(&other.logits), "{what}: logits");
    }

    /// The latents after step `k` (from 1), `[T][D]`; of rows that had left, their last.
    pub(crate) fn latents(&self, k: usize) -> Vec<f32> {
        self.rows.iter().flat_map(|r| r.latents[k.min(r.latents.len()) - 1].clone()).collect()
    }

    /// These rows followed by those of `next`.
    pub(crate) fn then(mut self, next: Run) -> Run {
        self.steps.extend(next.steps);
        self.logits.extend(next.logits);
        self.rows.extend(next.rows);
        self
    }

    /// Rows `from` on.
    pub(crate) fn behind(&self, from: usize) -> Run {
        let vocab = self.logits.len() / self.steps.len();
        Run {
            steps: self.steps[from..].to_vec(),
            logits: self.logits[from * vocab..].to_vec(),
            rows: self.rows[from..].to_vec(),
        }
    }
}

/// An exit rule that writes down what it sees.
pub(crate) struct Recorder {
    pub(crate) policy: RulePolicy,
    seen: HashMap<(usize, usize), Seen>,
}

impl Recorder {
    pub(crate) fn new(policy: RulePolicy) -> Self {
        Self { policy, seen: HashMap::new() }
    }

    pub(crate) fn rows(&mut self, sequence: usize, first: usize, steps: &[usize]) -> Vec<Seen> {
        let rows: Vec<Seen> = (first..first + steps.len()).map(|p| self.seen.remove(&(sequence, p)).unwrap()).collect();
        for (row, &steps) in rows.iter().zip(steps) {
            assert_eq!(row.latents.len(), steps);
            // From 1 on in every looped segment, one after the other.
            for (before, now) in row.stats.iter().zip(row.stats.iter().skip(1)) {
                let next = (before.segment, before.step + 1);
                assert!([next, (before.segment + 1, 1)].contains(&(now.segment, now.step)));
            }
            assert_eq!(row.stats.first().map(|s| (s.segment, s.step)), Some((0, 1)));
        }
        rows
    }
}

impl DepthPolicy for Recorder {
    fn max_steps(&self, segment: usize) -> usize {
        self.policy.max_steps(segment)
    }

    fn begin(&mut self, index: usize, row: &Row, segment: usize, prelude: &[f32], initial: &[f32]) {
        if segment == 0 {
            let seen = Seen { prelude: prelude.to_vec(), initial: initial.to_vec(), ..Seen::default() };
            self.seen.insert((row.sequence, row.position), seen);
        }
        self.policy.begin(index, row, segment, prelude, initial);
    }

    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let seen = self.seen.get_mut(&(row.sequence, row.position)).unwrap();
        seen.latents.push(latent.to_vec());
        seen.stats.push(*stats);
        self.policy.after_step(index, row, stats, latent)
    }

    fn after_readout(&mut self, index: usize, row: &Row, stats: &LatentStats, logits: &[f32]) -> bool {
        self.policy.after_readout(index, row, stats, logits)
    }
}

/// The same, with its weights interleaved.
#[allow(dead_code, reason = "not every test that shares this file needs it")]
pub(crate) fn repacked(folder: &str, recipe: Recipe, how: &rdt::model::Repack) -> (Arc<Model>, rdt::model::Repacked) {
    let mut model = arch::from_bytes(Bytes::from(gguf(folder, recipe))).unwrap();
    let done = model.repack(how).unwrap();
    (Arc::new(model), done)
}
