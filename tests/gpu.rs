//! The looped forward pass on a GPU against the same on the CPU: every family, every weight type, every kernel that an adapter
//! might choose.
//!
//! Any Vulkan, Metal or Direct3D 12 device will do, software included (Mesa's lavapipe). Without one these tests pass without
//! having looked at anything, unless `REQUIRE_GPU=1` is set.

#![cfg(feature = "gpu")]

mod common;

use common::{cosine, gguf};
use rdt::arch;
use rdt::exit::{ExitRule, RulePolicy};
use rdt::files::Bytes;
use rdt::gguf::TensorType;
use rdt::gpu::{self, Abilities, Gpu};
use rdt::kernels::KvType;
use rdt::model::{Batch, InitialState, Logits, Model, Session, SessionOptions};
use rdt::quant::Recipe;
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Every checkpoint of `tests/data`, one of each shape at least.
const ALL: [&str; 19] = [
    "huginn",
    "huginn-shapes/deep",
    "huginn-shapes/untied",
    "huginn-shapes/tied-twice",
    "huginn-shapes/wide-head",
    "hrm_text",
    "hrm_text-shapes/fused",
    "hrm_text-shapes/split",
    "hrm_text-shapes/wide",
    "ouro",
    "ouro-shapes/gqa",
    "ouro-shapes/tied",
    "parcae",
    "parcae-shapes/narrow-loop",
    "parcae-shapes/wide-loop",
    "retrofit",
    "retrofit-shapes/llama3",
    "nanbeige/every-pass",
    "looped-gpt2",
];

/// The device that tests run on: a real one if there is one. `None`: there is none, and none is required.
fn device(abilities: Option<Abilities>, most_bound: Option<u64>) -> Option<Arc<Gpu>> {
    let name = gpu::devices().first().map(|d| d.name.clone());
    match name {
        Some(name) => Some(Gpu::open_within(Some(&name), abilities, most_bound).unwrap()),
        None if std::env::var_os("REQUIRE_GPU").is_some() => panic!("REQUIRE_GPU is set, and there is no GPU"),
        None => None,
    }
}

fn cpu(folder: &str, recipe: Recipe) -> Arc<Model> {
    Arc::new(arch::from_bytes(Bytes::from(gguf(folder, recipe))).unwrap())
}

fn on(gpu: &Arc<Gpu>, folder: &str, recipe: Recipe) -> Arc<Model> {
    let mut model = arch::from_bytes(Bytes::from(gguf(folder, recipe))).unwrap();
    model.place_on(gpu::load(gpu, &model, &mut |_, _| {}).unwrap());
    Arc::new(model)
}

/// A text of `n` tokens.
fn tokens(model: &Model, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 7 + i * 3 + 1) % model.config().vocab) as u32).collect()
}

#[derive(Clone)]
struct How {
    rule: &'static str,
    steps: Option<usize>,
    kv_type: KvType,
    kv_slots: Option<usize>,
    chunk: usize,
    readout_exits: bool,
    both_ways: bool,
}

impl How {
    fn fixed(steps: usize) -> Self {
        Self {
            rule: "fixed",
            steps: Some(steps),
            kv_type: KvType::F16,
            kv_slots: None,
            chunk: 64,
            readout_exits: false,
            both_ways: false,
        }
    }

    fn rule(rule: &'static str) -> Self {
        Self { rule, steps: None, ..Self::fixed(1) }
    }

    fn session(&self, model: &Arc<Model>) -> Session {
        let rule: ExitRule = self.rule.parse().unwrap();
        let options = SessionOptions {
            threads: NonZeroUsize::new(1),
            context: Some(96),
            kv_type: self.kv_type,
            kv_slots: self.kv_slots,
            steps: Some(RulePolicy::depth_limit(&rule, self.steps, model.config())),
            chunk_rows: Some(self.chunk),
            initial: InitialState::Noise { seed: 3 },
            ..SessionOptions::default()
        };
        Session::new(Arc::clone(model), &options).unwrap()
    }

    fn continue_with(&self, session: &mut Session, tokens: &[u32]) -> (Vec<usize>, Vec<f32>) {
        let rule: ExitRule = self.rule.parse().unwrap();
        let mut policy = RulePolicy::new(rule, self.steps, session.model().config(), self.chunk).unwrap();
        let batch = Batch {
            logits: Logits::All,
            readout_exits: self.readout_exits,
            both_ways: self.both_ways,
            ..Batch::next(tokens)
        };
        let output = session.run(batch, &mut policy).unwrap();
        (output.steps.to_vec(), output.logits.to_vec())
    }

    /// Steps and logits of all tokens: the first three together, then one, then the others.
    fn run(&self, model: &Arc<Model>, tokens: &[u32]) -> (Vec<usize>, Vec<f32>) {
        let mut session = self.session(model);
        assert_eq!(session.device().is_some(), model.device().is_some());
        let (mut steps, mut logits) = (Vec::new(), Vec::new());
        let parts: &[&[u32]] = if self.both_ways { &[tokens] } else { &[&tokens[..3], &tokens[3..4], &tokens[4..]] };
        for part in parts {
            let (s, l) = self.continue_with(&mut session, part);
            steps.extend(s);
            logits.extend(l);
        }
        assert_eq!(session.take_notice(), None);
        (steps, logits)
    }

    /// Runs both; the smallest cosine of a token's logits, and by how many steps exits differ, per token.
    fn compare(&self, here: &Arc<Model>, there: &Arc<Model>, tokens: &[u32]) -> (f64, Vec<usize>) {
        let (a, b) = (self.run(here, tokens), self.run(there, tokens));
        let vocab = here.config().vocab;
        let cosines = a.1.chunks(vocab).zip(b.1.chunks(vocab)).map(|(a, b)| cosine(a, b));
        // A NaN comes through.
        let worst = cosines.fold(1.0, |least, c| if c >= least { least } else { c });
        assert_eq!(a.0.len(), b.0.len());
        (worst, a.0.iter().zip(&b.0).map(|(a, b)| a.abs_diff(*b)).collect())
    }
}

/// f32 weights and KV: the same logits, to a cosine of 0.9999 at the least.
#[test]
fn every_family_in_f32() {
    let Some(gpu) = device(None, None) else { return };
    for folder in ALL {
        let (here, there) = (cpu(folder, Recipe::F32), on(&gpu, folder, Recipe::F32));
        let tokens = tokens(&here, 30);
        let steps = here.config().mean_steps();
        let how = How { kv_type: KvType::F32, ..How::fixed(steps) };
        let (worst, _) = how.compare(&here, &there, &tokens);
        eprintln!("{folder}: 1 - {:.1e}", 1.0 - worst);
        assert!(worst > 0.9999, "{folder}: {worst}");
    }
}
