//! Calls that fail or are cancelled: what is said, and that the session is as if they had never been.

mod common;

use common::{Golden, HUGINN, RULE, Recorder, Run, Setup, gguf, model, run};
use rdt::arch;
use rdt::files::Bytes;
use rdt::generate::{Engine, SamplerConfig};
use rdt::gguf::{Header, TensorType};
use rdt::kernels::KvType;
use rdt::model::{
    Batch, DepthPolicy, Error, FixedDepth, InitialState, LatentStats, Logits, Model, Row, Session, SessionOptions,
    Verdict,
};
use rdt::quant::Recipe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sets the session's cancel flag when a position has done a step.
struct CancelAt {
    inner: Recorder,
    flag: Arc<AtomicBool>,
    position: usize,
    step: usize,
}

impl DepthPolicy for CancelAt {
    fn max_steps(&self, segment: usize) -> usize {
        self.inner.max_steps(segment)
    }
    fn begin(&mut self, index: usize, row: &Row, segment: usize, prelude: &[f32], initial: &[f32]) {
        self.inner.begin(index, row, segment, prelude, initial);
    }
    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        if (row.position, stats.step) == (self.position, self.step) {
            self.flag.store(true, Ordering::Relaxed);
        }
        self.inner.after_step(index, row, stats, latent)
    }
}

/// A cancelled call keeps the chunks that were complete; going on from there is as if nothing had happened.
#[test]
fn a_cancelled_run_can_be_continued() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q4_0);
    for (threads, step) in [(1, 1), (2, 2), (7, 3)] {
        let setup = Setup { chunk: 6, threads, ..Setup::rule(RULE, 16, &golden.initial) };
        let expected = setup.run(&model, &golden.tokens);
        let mut session = setup.session(&model);
        let flag = session.cancel_flag();
        for position in [0, 5, 6, 13, 19] {
            session.truncate(0, 0);
            let inner = setup.recorder(model.config());
            let mut policy = CancelAt { inner, flag: Arc::clone(&flag), position, step };
            let batch = Batch {
                sequence: 0,
                tokens: &golden.tokens,
                logits: Logits::All,
                readout_exits: false,
                both_ways: false,
            };
            let error = session.run(batch, &mut policy).unwrap_err();
            assert!(matches!(error, Error::Cancelled), "{error}");
            let held = position / 6 * 6;
            assert_eq!(session.len(0), held);
            // The flag is the caller's to clear.
            assert!(matches!(session.run(batch, &mut policy).unwrap_err(), Error::Cancelled));
            assert_eq!(session.len(0), held);
            flag.store(false, Ordering::Relaxed);
            run(&mut session, &mut setup.recorder(model.config()), 0, &golden.tokens[held..])
                .assert_same(&expected.behind(held), &format!("cancelled at {position}, step {step}"));
        }
    }
}

/// Cancelling the engine loses nothing but time.
#[test]
fn a_cancelled_prompt_can_be_asked_again() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q8_0);
    let setup = Setup { chunk: 6, ..Setup::rule(RULE, 16, &golden.initial) };
    let engine =
        || Engine::new(setup.session(&model), setup.rule, Some(16), SamplerConfig::greedy(), usize::MAX).unwrap();
    let mut fresh = engine();
    fresh.prompt(&golden.tokens).unwrap();
    let expected: Vec<_> = (0..5).map(|_| fresh.next_token().unwrap().unwrap()).collect();

    let mut engine = engine();
    let flag = engine.cancel_flag();
    flag.store(true, Ordering::Relaxed);
    assert!(engine.prompt(&golden.tokens).is_err());
    assert!(engine.held().is_empty() && engine.session().is_empty());
    flag.store(false, Ordering::Relaxed);
    engine.prompt(&golden.tokens).unwrap();
    let mut found = Vec::new();
    while found.len() < 5 {
        // A cancelled draw can be repeated; the first needs no pass and so is not cancelled.
        flag.store(!found.is_empty(), Ordering::Relaxed);
        if !found.is_empty() {
            let before = engine.held().len();
            assert!(engine.next_token().is_err());
            assert_eq!((engine.held().len(), engine.session().len(0)), (before, before));
            flag.store(false, Ordering::Relaxed);
        }
        found.push(engine.next_token().unwrap().unwrap());
    }
    assert_eq!(found, expected);
}

/// A model with its first `bytes.len()` bytes of a tensor's row replaced.
fn damaged(recipe: Recipe, tensor: &str, row: usize, bytes: &[u8]) -> Arc<Model> {
    let mut file = gguf(HUGINN, recipe);
    let header = Header::parse(&file).unwrap();
    let info = header.tensor(tensor).unwrap();
    let at = info.offset + row * info.ty.row_bytes(info.dims[0]).unwrap();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    Arc::new(arch::from_bytes(Bytes::from(file)).unwrap())
}

/// The bytes of a NaN at the start of a row.
fn nan(ty: TensorType) -> &'static [u8] {
    match ty {
        TensorType::F32 => &[0, 0, 0xC0, 0x7F],
        TensorType::BF16 => &[0xC0, 0x7F],
        // Of the block formats it is the scale.
        TensorType::F16 | TensorType::Q8_0 | TensorType::Q4_0 => &[0, 0x7E],
        other => panic!("{other}"),
    }
}

/// NaN in the weights is an error that names position and step, in every format and chunking, and the session lives on.
#[test]
fn damaged_weights_are_named() {
    let golden = Golden::read(HUGINN);
    let place = 11;
    let bad = golden.tokens[place];
    let good: Vec<u32> = golden.tokens.iter().map(|&t| if t == bad { (t + 1) % 1024 } else { t }).collect();
    assert!(!golden.tokens[..place].contains(&bad));
    for recipe in [Recipe::F32, Recipe::F16, Recipe::BF16, Recipe::Q8_0, Recipe::Q4_0] {
        let sound = model(HUGINN, recipe);
        let ty = |name: &str| sound.header().tensor(name).unwrap().ty;
        // The embedding of one token.
        let broken = damaged(recipe, "token_embd.weight", bad as usize, nan(ty("token_embd.weight")));
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8_0] {
            for (chunk, threads) in [(1, 1), (4, 2), (64, 3)] {
                let setup = Setup { kv_type, chunk, threads, ..Setup::rule(RULE, 16, &golden.initial) };
                let what = format!("{recipe}, KV {kv_type}, chunks of {chunk}");
                let mut session = setup.session(&broken);
                let mut recorder = setup.recorder(broken.config());
                let batch = Batch {
                    sequence: 0,
                    tokens: &golden.tokens,
                    logits: Logits::None,
                    readout_exits: false,
                    both_ways: false,
                };
                match session.run(batch, &mut recorder).unwrap_err() {
                    Error::NotFinite { position, step } => assert_eq!((position, step), (place, 1), "{what}"),
                    other => panic!("{what}: {other}"),
                }
                assert_eq!(session.len(0), place / chunk * chunk, "{what}");
                // The head is tied, so only latents can be compared.
                session.truncate(0, 0);
                let batch = Batch { tokens: &good, ..batch };
                let steps = session.run(batch, &mut recorder).unwrap().steps.to_vec();
                let found = Run { logits: Vec::new(), rows: recorder.rows(0, 0, &steps), steps };
                let expected = Run { logits: Vec::new(), ..setup.run(&sound, &good) };
                found.assert_same(&expected, &what);
            }
        }
        // A weight that every token meets.
        let setup = Setup::fixed(4, &golden.initial);
        let batch =
            Batch { sequence: 0, tokens: &golden.tokens, logits: Logits::Last, readout_exits: false, both_ways: false };
        let in_loop = [
            "blk.0.attn_q.weight",
            "blk.0.attn_v.weight",
            "blk.0.ffn_norm.weight",
            "loop.adapter_input.weight",
            "loop.adapter_state.weight",
            "blk.1.attn_norm.weight",
            "blk.1.attn_q.weight",
            "blk.1.attn_k.weight",
            "blk.1.attn_k.bias",
            "blk.1.attn_v.weight",
            "blk.1.attn_output.weight",
            "blk.2.post_attention_norm.weight",
            "blk.2.ffn_gate.weight",
            "blk.2.ffn_up.weight",
            "blk.2.ffn_down.weight",
            "blk.2.post_ffw_norm.weight",
        ];
        for name in in_loop {
            let broken = damaged(recipe, name, 0, nan(ty(name)));
            let error = setup.session(&broken).run(batch, &mut FixedDepth(4)).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::NotFinite { position: 0, step: 1 }), "{recipe}, {name}: {error}");
        }
        for name in ["blk.3.attn_k.weight", "blk.3.ffn_down.weight", "blk.3.post_ffw_norm.weight"] {
            let broken = damaged(recipe, name, 0, nan(ty(name)));
            let error = setup.session(&broken).run(batch, &mut FixedDepth(4)).map(|_| ()).unwrap_err();
            assert!(matches!(error, Error::LogitsNotFinite { position: 19 }), "{recipe}, {name}: {error}");
        }
    }
}

/// An initial state that is not finite is the row's own: rows before it are not blamed.
#[test]
fn a_bad_initial_state_is_named() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q4_0);
    let InitialState::Given(states) = &golden.initial else { unreachable!() };
    for (bad, chunk) in [(f32::NAN, 1), (f32::NAN, 64), (f32::INFINITY, 4), (f32::MAX, 64)] {
        let mut states = states.to_vec();
        states[7 * 128 + 100] = bad;
        let setup = Setup { chunk, ..Setup::fixed(3, &InitialState::Given(states.into())) };
        let batch =
            Batch { sequence: 0, tokens: &golden.tokens, logits: Logits::None, readout_exits: false, both_ways: false };
        match setup.session(&model).run(batch, &mut FixedDepth(3)).map(|_| ()) {
            Err(Error::NotFinite { position: 7, step: 1 }) => {}
            // The largest number is one: a norm makes it small.
            Ok(()) if bad == f32::MAX => {}
            other => panic!("{bad}: {other:?}"),
        }
    }
}

/// Bad calls are refused before anything runs.
#[test]
fn bad_calls_are_refused() {
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::Q8_0);
    let setup = Setup { context: 8, ..Setup::fixed(2, &golden.initial) };
    let mut session = setup.session(&model);
    let mut refuse = |tokens: &[u32]| {
        let batch = Batch { sequence: 0, tokens, logits: Logits::Last, readout_exits: false, both_ways: false };
        let error = session.run(batch, &mut FixedDepth(2)).map(|_| ()).unwrap_err();
        assert_eq!(session.len(0), 0);
        error
    };
    assert!(matches!(refuse(&[]), Error::Empty));
    assert!(matches!(refuse(&[1, 1024]), Error::Token { token: 1024, vocab: 1024 }));
    assert!(matches!(refuse(&[u32::MAX]), Error::Token { token: u32::MAX, vocab: 1024 }));
    assert!(matches!(refuse(&[0; 9]), Error::ContextFull { used: 0, context: 8, asked: 9 }));

    let options = |change: &dyn Fn(&mut SessionOptions)| {
        let mut options = SessionOptions::default();
        change(&mut options);
        Session::new(Arc::clone(&model), &options).map(|_| ()).unwrap_err()
    };
    assert!(matches!(options(&|o| o.context = Some(0)), Error::Option(_)));
    assert!(matches!(options(&|o| o.steps = Some(0)), Error::Option(_)));
    assert!(matches!(options(&|o| o.kv_slots = Some(0)), Error::Option(_)));
    assert!(matches!(options(&|o| o.sequences = 0), Error::Option(_)));
    assert!(matches!(options(&|o| o.chunk_rows = Some(0)), Error::Option(_)));
    assert!(matches!(options(&|o| o.kv_budget = 0), Error::KvMemory { .. }));
    assert!(matches!(options(&|o| o.context = Some(usize::MAX)), Error::KvMemory { .. }));
    assert!(matches!(options(&|o| o.sequences = usize::MAX), Error::KvMemory { .. }));
}

/// A model without room in the format is refused with a way out.
#[test]
fn kv_types_that_do_not_fit_the_head_are_refused() {
    let model = model("huginn-shapes/tied-twice", Recipe::F32);
    let options = SessionOptions { kv_type: KvType::Q8_0, ..Default::default() };
    let error = Session::new(model, &options).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("multiple of 32") && error.contains("f16"), "{error}");
}
