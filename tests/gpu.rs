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
use rdt::gpu::{self, Abilities, Gpu, Within};
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

/// Fails the process that runs these tests for whatever the driver, or Khronos' validation layer where it is loaded, complains of: such
/// messages reach a program through its log alone.
struct Complaints;

impl log::Log for Complaints {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("wgpu_hal")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = record.args().to_string();
            // A device that is taken away is what one of the tests is about.
            let expected = text.contains("DEVICE_LOST");
            eprintln!("{}: {text}", record.level());
            if record.level() == log::Level::Error && !expected {
                std::process::abort();
            }
        }
    }

    fn flush(&self) {}
}

/// The device that tests run on: a real one if there is one. `None`: there is none, and none is required.
fn device(within: Within) -> Option<Arc<Gpu>> {
    if log::set_logger(&Complaints).is_ok() {
        let level = std::env::var("GPU_LOG").ok().and_then(|l| l.parse().ok());
        log::set_max_level(level.unwrap_or(log::LevelFilter::Error));
    }
    let name = gpu::devices().first().map(|d| d.name.clone());
    match name {
        Some(name) => Some(Gpu::open_within(Some(&name), &within).unwrap()),
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
            context: Some(40),
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
        let worst = worst_cosine(&a.1, &b.1, vocab);
        assert_eq!(a.0.len(), b.0.len());
        (worst, a.0.iter().zip(&b.0).map(|(a, b)| a.abs_diff(*b)).collect())
    }
}

/// The smallest cosine of a token's logits.
fn worst_cosine(a: &[f32], b: &[f32], vocab: usize) -> f64 {
    let cosines = a.chunks(vocab).zip(b.chunks(vocab)).map(|(a, b)| cosine(a, b));
    // A NaN comes through.
    cosines.fold(1.0, |least, c| if c >= least { least } else { c })
}

/// f32 weights and KV: the same logits, to a cosine of 0.9999 at the least.
#[test]
fn every_family_in_f32() {
    let Some(gpu) = device(Within::default()) else { return };
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

/// Every weight type, in its own kernels for few rows and for many: what the CPU makes of the same file, to a cosine of 0.999.
#[test]
fn every_weight_type() {
    let Some(gpu) = device(Within::default()) else { return };
    let types = rdt::kernels::WEIGHT_TYPES.map(|ty| (ty, Recipe::Pure(ty)));
    for (ty, recipe) in types {
        // Rows of 128 divide into blocks of 32 only; the shipped model's of 256 into the others.
        let folder = if ty.block_len() > 32 { "../../models/huginn-nano" } else { "huginn" };
        let (here, there) = (cpu(folder, recipe), on(&gpu, folder, recipe));
        let tokens = tokens(&here, 24);
        let (worst, _) = How::fixed(4).compare(&here, &there, &tokens);
        eprintln!("{ty}: 1 - {:.1e}", 1.0 - worst);
        assert!(worst > 0.999, "{ty}: {worst}");
    }
}

/// Every family in every type that its rows divide into, with keys and values stored in every way.
///
/// Activations are rounded to signed bytes. Two sums of the same numbers in another order may lie on either side of a boundary, and
/// then a value differs by a hundredth of the largest beside it: with the random weights of these checkpoints, which amplify it, a token
/// in a few has logits of a cosine near 0.999, while all others agree to twelve digits.
#[test]
fn every_family_quantised() {
    let Some(gpu) = device(Within::default()) else { return };
    let mut all = Vec::new();
    for folder in ALL {
        let types = rdt::kernels::WEIGHT_TYPES.into_iter().filter(|ty| ty.block_len() == 32);
        for (ty, kv_type) in types.zip([KvType::F16, KvType::F32, KvType::Q8_0].into_iter().cycle()) {
            let recipe = Recipe::Pure(ty);
            let (here, there) = (cpu(folder, recipe), on(&gpu, folder, recipe));
            // Keys of heads that do not divide into 32 cannot be stored in 8 bits.
            let kv_type = if here.config().head_dim.is_multiple_of(32) { kv_type } else { KvType::F16 };
            let how = How { kv_type, ..How::fixed(here.config().mean_steps().min(8)) };
            let tokens = tokens(&here, 30);
            let (a, b) = (how.run(&here, &tokens).1, how.run(&there, &tokens).1);
            let (whole, worst) = (cosine(&a, &b), worst_cosine(&a, &b, here.config().vocab));
            eprintln!("{folder} as {ty}, {kv_type}: 1 - {:.1e}, at worst 1 - {:.1e}", 1.0 - whole, 1.0 - worst);
            assert!(whole > 0.997 && worst > 0.98, "{folder} as {ty}: {whole}, {worst}");
            all.push(whole);
        }
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!(mean > 0.999, "{mean}");
}

/// Rows leave as on the CPU, under every rule; later rows then see what they see there.
#[test]
fn exits_are_those_of_the_cpu() {
    let Some(gpu) = device(Within::default()) else { return };
    let rules = [
        "acceleration:0.1,hits=2,max=24",
        "acceleration-raw:1,max=24",
        "acceleration-step:0.97,hits=1,min=2,max=24",
        "step-norm:0.1,every=2,max=24",
        "cosine:0.01,hits=3,max=24",
        "fixed:7",
        // Beyond the steps that are recorded without a look at what is left, and with nothing left.
        "fixed:70",
        "acceleration:0.1,hits=2,max=150",
    ];
    let (here, there) = (cpu("huginn-hops", Recipe::Q8_0), on(&gpu, "huginn-hops", Recipe::Q8_0));
    let tokens = tokens(&here, 38);
    let (mut all, mut differ) = (0, 0);
    for rule in rules {
        for (kv_slots, chunk) in [(None, 64), (Some(3), 9), (None, 3)] {
            if kv_slots.is_none() && rule == "fixed:70" {
                continue;
            }
            let how = How { kv_slots, chunk, ..How::rule(rule) };
            let (worst, apart) = how.compare(&here, &there, &tokens);
            let spread = how.run(&here, &tokens).0;
            let (least, most) = (spread.iter().min().unwrap(), spread.iter().max().unwrap());
            eprintln!("{rule}, {kv_slots:?}, {chunk}: 1 - {:.1e}, depths {least} to {most}, {apart:?}", 1.0 - worst);
            // The trained model's steps turn by about as much wherever it is.
            let even = rule.starts_with("fixed") || rule.starts_with("acceleration-step");
            assert!(even || least < most, "{rule}: every row goes equally deep");
            assert!(apart.iter().all(|&d| d <= 1), "{rule}: {apart:?}");
            all += apart.len();
            differ += apart.iter().filter(|&&d| d > 0).count();
            assert!(worst > 0.999 || apart.iter().any(|&d| d > 0), "{rule}: {worst}");
        }
    }
    assert!(differ * 100 <= all, "{differ} of {all} exits differ");
}

/// Rules on the read-out act on rows that run alone, and the learned gate on all.
#[test]
fn read_outs_and_gates_decide_as_on_the_cpu() {
    let Some(gpu) = device(Within::default()) else { return };
    let (here, there) = (cpu("huginn-hops", Recipe::Q8_0), on(&gpu, "huginn-hops", Recipe::Q8_0));
    let tokens = tokens(&here, 24);
    let (mut all, mut differ) = (0, 0);
    for rule in
        ["kl:0.001,max=24", "min-p-kl:0.0001,max=24,min=1", "entropy:0.01,max=20,every=2", "argmax,hits=3,max=24"]
    {
        let how = How { readout_exits: true, ..How::rule(rule) };
        let (worst, apart) = how.compare(&here, &there, &tokens);
        let spread = how.run(&here, &tokens).0;
        eprintln!("{rule}: 1 - {:.1e}, {spread:?}, {apart:?}", 1.0 - worst);
        assert!(spread.iter().min() < spread.iter().max(), "{rule}: every row goes equally deep");
        assert!(worst > 0.999 || apart.iter().any(|&d| d > 0), "{rule}: {worst}");
        all += apart.len();
        differ += apart.iter().filter(|&&d| d > 0).count();
        // Without leave to act they go to the end.
        let how = How { readout_exits: false, ..how };
        assert!(how.run(&there, &tokens).0.iter().all(|&n| n == 24 || n == 20), "{rule}");
    }
    let (here, there) = (cpu("ouro", Recipe::F16), on(&gpu, "ouro", Recipe::F16));
    let tokens = self::tokens(&here, 38);
    for rule in ["gate:0.6", "gate:0.9,min=1", "gate:1"] {
        let (worst, apart) = How::rule(rule).compare(&here, &there, &tokens);
        eprintln!("{rule}: 1 - {:.1e}, {apart:?}", 1.0 - worst);
        assert!(worst > 0.9999 || apart.iter().any(|&d| d > 0), "{rule}: {worst}");
        all += apart.len();
        differ += apart.iter().filter(|&&d| d > 0).count();
    }
    assert!(differ * 100 <= all, "{differ} of {all} exits differ");
}

/// A prefix whose tokens see each other in both directions, with what comes behind it.
#[test]
fn prefixes_are_read_both_ways() {
    let Some(gpu) = device(Within::default()) else { return };
    let (here, there) = (cpu("hrm_text", Recipe::F32), on(&gpu, "hrm_text", Recipe::F32));
    let (prefix, rest) = (tokens(&here, 20), tokens(&here, 33));
    let how = How { both_ways: true, ..How::fixed(2) };
    let run = |model: &Arc<Model>| {
        let mut session = how.session(model);
        let first = how.continue_with(&mut session, &prefix).1;
        let causal = How { both_ways: false, ..how.clone() };
        [first, causal.continue_with(&mut session, &rest[20..]).1].concat()
    };
    let vocab = here.config().vocab;
    let (a, b) = (run(&here), run(&there));
    for (a, b) in a.chunks(vocab).zip(b.chunks(vocab)) {
        assert!(cosine(a, b) > 0.9999);
    }
    // It matters that they do.
    let (causal, _) = (How { both_ways: false, ..how.clone() }).compare(&here, &there, &prefix);
    assert!(causal > 0.9999);
    assert!(cosine(&a[..vocab], &(How { both_ways: false, ..how }).run(&here, &prefix).1[..vocab]) < 0.999);
}

/// The kernels that an adapter with less, or with narrower limits, would be given.
#[test]
fn adapters_that_can_do_less() {
    let narrow = Some(128 << 10);
    let with = |subgroups, f16, packed_dot| Some(Abilities { subgroups, f16, packed_dot });
    for (abilities, max_binding_bytes) in [
        (with(false, false, false), None),
        (with(true, false, true), None),
        (with(false, true, true), narrow),
        (with(true, true, false), narrow),
    ] {
        let Some(gpu) = device(Within { abilities, max_binding_bytes, work: None }) else { return };
        for (folder, recipe) in
            [("huginn-hops", Recipe::Q8_0), ("huginn-hops", Recipe::Q4_0), ("huginn-hops", Recipe::F16)]
        {
            let (here, there) = (cpu(folder, recipe), on(&gpu, folder, recipe));
            let tokens = tokens(&here, 30);
            let (worst, _) = How::fixed(6).compare(&here, &there, &tokens);
            eprintln!("{recipe} with {abilities:?} within {max_binding_bytes:?}: 1 - {:.1e}", 1.0 - worst);
            assert!(worst > 0.999, "{recipe} with {abilities:?} within {max_binding_bytes:?}: {worst}");
        }
    }
}

/// Work that is submitted in parts is the same work.
#[test]
fn parts_are_the_whole() {
    let Some(gpu) = device(Within::default()) else { return };
    let Some(slow) = device(Within { work: Some(1_000_000), ..Within::default() }) else { return };
    let [whole, parts] = [&gpu, &slow].map(|gpu| on(gpu, "huginn-hops", Recipe::Q8_0));
    assert!(whole.step_bytes() > 1_000_000 / 30, "every step of many rows is a part");
    let tokens = tokens(&whole, 38);
    for rule in ["acceleration:0.1,hits=2,max=24", "fixed:3"] {
        let [a, b] = [&whole, &parts].map(|model| How::rule(rule).run(model, &tokens));
        assert!(a.0 == b.0 && common::bits(&a.1) == common::bits(&b.1), "{rule}");
    }
}

/// One device gives the same bits every time.
#[test]
fn runs_are_identical() {
    let Some(gpu) = device(Within::default()) else { return };
    let model = on(&gpu, "huginn-hops", Recipe::Q4_0);
    let tokens = tokens(&model, 38);
    let how = How::rule("acceleration:0.1,hits=2,max=24");
    let bits =
        |(steps, logits): (Vec<usize>, Vec<f32>)| (steps, logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    let first = bits(how.run(&model, &tokens));
    for _ in 0..3 {
        assert!(bits(how.run(&model, &tokens)) == first);
    }
    // So does another session on weights that were sent again.
    assert!(bits(how.run(&on(&gpu, "huginn-hops", Recipe::Q4_0), &tokens)) == first);
}

/// A device that is lost in the middle of a text: the session says so once, and goes on as if it had been on the CPU all along, but
/// for the depths that rows already had.
#[test]
fn a_lost_device_loses_nothing() {
    let Some(gpu) = device(Within::default()) else { return };
    let (here, there) = (cpu("huginn-hops", Recipe::Q8_0), on(&gpu, "huginn-hops", Recipe::Q8_0));
    let tokens = tokens(&here, 38);
    let how = How::rule("acceleration:0.1,hits=2,max=24");
    let (mut a, mut b) = (how.session(&here), how.session(&there));
    let depths = how.continue_with(&mut a, &tokens[..20]).0;
    assert_eq!(how.continue_with(&mut b, &tokens[..20]).0, depths);
    // Positions that were forgotten are not run again.
    assert_eq!(a.truncate(0, 15), b.truncate(0, 15));
    gpu.lose();
    assert!(b.device().is_some() && b.take_notice().is_none());
    let (steps, logits) = how.continue_with(&mut b, &tokens[20..]);
    let notice = b.take_notice().unwrap();
    assert!(notice.contains("lost") && notice.contains("CPU") && b.take_notice().is_none(), "{notice}");
    assert_eq!((b.device(), b.len(0)), (None, 33));
    let expected = how.continue_with(&mut a, &tokens[20..]);
    assert_eq!(
        (steps, logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>()),
        (expected.0, expected.1.iter().map(|x| x.to_bits()).collect())
    );
    // And a session that begins on it says so at once.
    let mut c = how.session(&there);
    assert!(c.device().is_none() && c.take_notice().is_some());
    assert_eq!(how.continue_with(&mut c, &tokens).0.len(), 38);
}

/// What a device cannot do is said, and nothing is changed by it.
#[test]
fn what_needs_the_cpu_is_refused() {
    let Some(gpu) = device(Within::default()) else { return };
    let model = on(&gpu, "huginn", Recipe::F32);
    let how = How::fixed(2);
    let mut session = how.session(&model);
    let tokens = tokens(&model, 5);
    session.record_inputs();
    let mut policy = rdt::model::FixedDepth(2);
    let refused = session.run(Batch::next(&tokens), &mut policy).unwrap_err().to_string();
    assert!(refused.contains("--device cpu"), "{refused}");
    assert_eq!((session.len(0), session.take_notice()), (0, None));
    session.take_inputs();
    assert!(session.read_out(0, 0, &[0.0], Logits::All).is_err());
    assert_eq!(session.run(Batch::next(&tokens), &mut policy).unwrap().steps, [2; 5]);
}

/// Weights that are no numbers are found on the device too, with the position and the step.
#[test]
fn damaged_weights_are_noticed() {
    let Some(gpu) = device(Within::default()) else { return };
    let error = |place: bool| {
        let bytes = gguf("huginn", Recipe::F32);
        let header = rdt::gguf::Header::parse(&bytes).unwrap();
        let tensor = header.tensors.iter().find(|t| t.name == "blk.2.ffn_down.weight").unwrap();
        let mut bytes = bytes.clone();
        bytes[tensor.offset..tensor.offset + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let mut model = arch::from_bytes(Bytes::from(bytes)).unwrap();
        if place {
            model.place_on(gpu::load(&gpu, &model, &mut |_, _| {}).unwrap());
        }
        let how = How::fixed(4);
        let mut session = how.session(&Arc::new(model));
        let tokens = tokens(session.model(), 5);
        let error = session.run(Batch::next(&tokens), &mut rdt::model::FixedDepth(4)).unwrap_err().to_string();
        assert_eq!((session.len(0), session.take_notice(), session.device().is_some()), (0, None, place));
        error
    };
    assert!(error(false).contains("not finite"));
    assert_eq!(error(true), error(false));
}
