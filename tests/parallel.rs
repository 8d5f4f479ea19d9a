//! Texts side by side in one session are what each is alone: tokens, loop steps and logits, bit for bit.

use rdt::arch;
use rdt::exit::ExitRule;
use rdt::generate::engine::Error;
use rdt::generate::{Engine, Event, Failed, Lanes, Parallel, PromptStats, SamplerConfig};
use rdt::kernels::KvType;
use rdt::model::{self, InitialState, Model, SessionOptions};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops-q4_0.gguf");
const HRM_TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-cpp/hrm_text/split-f32.gguf");

fn model(path: &str) -> Arc<Model> {
    Arc::new(arch::open(Path::new(path), arch::Load::Map).expect("a model"))
}

/// Sampled, so that every logit counts.
fn sampler() -> SamplerConfig {
    SamplerConfig { seed: 5, repeat_penalty: 1.1, ..SamplerConfig::default() }
}

fn options(sequences: usize) -> SessionOptions {
    SessionOptions {
        sequences,
        threads: NonZeroUsize::new(1),
        context: Some(48),
        steps: Some(12),
        kv_type: KvType::F32,
        ..SessionOptions::default()
    }
}

/// Prompts of 1 to 48 tokens, of which the longest fill the context.
fn prompts(vocab: u32) -> Vec<Vec<u32>> {
    let lengths = [7, 1, 20, 2, 48, 9, 33, 1, 14, 40, 3, 26];
    lengths.iter().enumerate().map(|(i, &n)| (0..n).map(|p| (i as u32 * 37 + p * 11) % vocab).collect()).collect()
}

/// A text: its prompt's cost, and tokens with loop steps and the bits of the logits that they were drawn from.
type Text = (PromptStats, Vec<(u32, usize, Vec<u32>)>);

fn texts(parallel: &mut Parallel, prompts: &[Vec<u32>]) -> Vec<Text> {
    let mut texts = vec![Text::default(); prompts.len()];
    let mut ended = vec![0; prompts.len()];
    let done = parallel.run(prompts, |i, event| -> Result<bool, Error> {
        match event {
            Event::Prompt(stats) => texts[i] = (stats, Vec::new()),
            Event::Token { step, logits } => {
                let bits = logits.iter().map(|x| x.to_bits()).collect();
                texts[i].1.push((step.token, step.steps, bits));
            }
            Event::End { .. } => ended[i] += 1,
        }
        // Of different lengths, so that sequences change hands at different times.
        Ok(texts[i].1.len() < 3 + 5 * (i % 3))
    });
    done.expect("texts");
    assert!(ended.iter().all(|&n| n == 1), "{ended:?}");
    texts
}

fn rules() -> [ExitRule; 4] {
    ["fixed:6", "acceleration:0.05,max=12", "kl:0.01,hits=2,max=12", "entropy:0.05,every=2,max=12"]
        .map(|rule| rule.parse().expect("a rule"))
}

#[test]
fn texts_do_not_show_what_runs_beside_them() {
    let model = model(TINY);
    let vocab = model.config().vocab;
    let prompts = prompts(vocab as u32);
    for rule in rules() {
        let start = |options: &SessionOptions, most: usize| {
            let session = Lanes::session(&model, options).expect("a session");
            let parallel = Parallel::new(session, rule, Some(12), sampler(), vocab).expect("a rule for it");
            assert_eq!(parallel.at_a_time(), most);
            parallel
        };
        let alone = texts(&mut start(&options(1), 1), &prompts);
        if rule.name() != "fixed" {
            let mut depths: Vec<_> = alone.iter().flat_map(|text| text.1.iter().map(|token| token.1)).collect();
            depths.sort_unstable();
            depths.dedup();
            assert!(depths.len() > 2, "{rule}: exits do not vary: {depths:?}");
        }
        // The context ends some of them.
        assert_eq!(alone[4].1.len(), 1);
        for (sequences, chunk, threads) in [(2, 64, 1), (3, 64, 2), (5, 7, 1), (12, 64, 2)] {
            let options =
                SessionOptions { chunk_rows: Some(chunk), threads: NonZeroUsize::new(threads), ..options(sequences) };
            let mut several = start(&options, sequences);
            let what = format!("{rule}: {sequences} texts at a time, {chunk} rows, {threads} threads");
            assert!(texts(&mut several, &prompts) == alone, "{what}");
            assert!(texts(&mut several, &prompts) == alone, "{what}, again");
        }
    }
}

#[test]
fn one_is_an_engine() {
    let model = model(TINY);
    let rule = "kl:0.01,max=12".parse().expect("a rule");
    let session = Lanes::session(&model, &options(4)).expect("a session");
    let mut several = Parallel::new(session, rule, None, sampler(), 1000).expect("a rule for it");
    let found = texts(&mut several, &prompts(1000));
    let session = Lanes::session(&model, &options(1)).expect("a session");
    let mut engine = Engine::new(session, rule, None, sampler(), 1000).expect("a rule for it");
    for (prompt, (stats, tokens)) in prompts(1000).iter().zip(found) {
        engine.reset();
        assert_eq!(engine.prompt(prompt).expect("a prompt"), stats);
        for (token, steps, _) in tokens {
            let step = engine.next_token().expect("a pass").expect("room");
            assert_eq!((step.token, step.steps), (token, steps));
        }
    }
}

#[test]
fn there_are_as_many_as_change_nothing() {
    let tiny = model(TINY);
    let sequences = |options: &SessionOptions| {
        let session = Lanes::session(&tiny, options).expect("a session");
        (session.kv_shape().sequences, session.kv_shape().context, session.kv_shape().slots)
    };
    assert_eq!(sequences(&options(9)), (9, 48, 12));
    assert_eq!(sequences(&SessionOptions { chunk_rows: Some(4), ..options(9) }), (4, 48, 12));
    let bytes = Lanes::session(&tiny, &options(1)).expect("a session").kv_shape().bytes;
    assert_eq!(sequences(&SessionOptions { kv_budget: 3 * bytes + 1, ..options(9) }), (3, 48, 12));
    // Shared slots are not exact.
    assert_eq!(sequences(&SessionOptions { kv_slots: Some(4), ..options(9) }), (1, 48, 4));
    let prefix = Lanes::session(&model(HRM_TEXT), &SessionOptions { steps: None, ..options(9) }).expect("a session");
    assert_eq!(prefix.kv_shape().sequences, 1);
}

/// The first text that fails is the one that is told of, as when they are continued one by one.
#[test]
fn failures_are_those_of_the_first_text_that_has_any() {
    let model = model(TINY);
    let d = model.config().state_width;
    let mut states = vec![0.5; 48 * d];
    states[12 * d] = f32::NAN;
    let prompts = prompts(1000);
    for rule in rules() {
        let failure = |sequences: usize, initial: InitialState, prompts: &[Vec<u32>], wrong: usize| {
            let session = Lanes::session(&model, &SessionOptions { initial, ..options(sequences) }).expect("a session");
            let mut parallel = Parallel::new(session, rule, Some(12), sampler(), 1000).expect("a rule for it");
            let mut ended = vec![false; prompts.len()];
            let mut tokens = vec![0; prompts.len()];
            let done = parallel.run(prompts, |i, event| -> Result<bool, Error> {
                match event {
                    Event::Prompt(_) => tokens[i] = 0,
                    Event::Token { .. } if i == wrong => return Err(model::Error::Empty.into()),
                    Event::Token { .. } => tokens[i] += 1,
                    Event::End { .. } => ended[i] = true,
                }
                Ok(tokens[i] < 4)
            });
            let Failed { text, error } = done.expect_err("a failure");
            assert!(ended[..text].iter().all(|&ended| ended), "{ended:?}");
            (text, error.to_string())
        };
        for sequences in [1, 3, 8] {
            let noise = InitialState::Noise { seed: 0 };
            let (text, error) = failure(sequences, noise.clone(), &prompts, 6);
            assert_eq!((text, error), (6, model::Error::Empty.to_string()));
            let mut long = prompts.clone();
            long[3] = vec![1; 49];
            long[2] = vec![1; 30];
            let (text, error) = failure(sequences, noise.clone(), &long, 99);
            assert!(text == 3 && error.contains("48"), "{text} {error}");
            long[1] = vec![1, 2, 9999];
            let (text, error) = failure(sequences, noise, &long, 99);
            assert!(text == 1 && error.contains("9999"), "{text} {error}");
            // A state that is not finite, at a position that the third prompt is the first to reach.
            let (text, error) = failure(sequences, InitialState::Given(states.clone().into()), &prompts, 99);
            assert_eq!((text, error), (2, model::Error::NotFinite { position: 12, step: 1 }.to_string()));
        }
    }
}

#[test]
fn a_cancelled_run_ends_and_another_begins() {
    let model = model(TINY);
    let session = Lanes::session(&model, &options(4)).expect("a session");
    let cancel = session.cancel_flag();
    let mut parallel = Parallel::new(session, rules()[2], Some(12), sampler(), 1000).expect("a rule for it");
    let prompts = prompts(1000);
    let usual = texts(&mut parallel, &prompts);
    let mut count = 0;
    let done = parallel.run(&prompts, |_, event| -> Result<bool, Error> {
        count += usize::from(matches!(event, Event::Token { .. }));
        cancel.store(count >= 9, Ordering::Relaxed);
        Ok(true)
    });
    let Failed { error, .. } = done.expect_err("cancelled");
    assert!(matches!(error, Error::Model(model::Error::Cancelled)), "{error}");
    assert!(count < 20, "{count}");
    cancel.store(false, Ordering::Relaxed);
    assert!(texts(&mut parallel, &prompts) == usual);
}
