//! Decoding along a wavefront: the published sampler's tokens and counts (`tests/reference/wavefront.py`), and what holds besides.

mod common;

use common::{Setup, data, model};
use rdt::generate::wavefront::{Compare, Error, Freeze, Wavefront, WavefrontConfig};
use rdt::generate::{Sampler, SamplerConfig};
use rdt::model::{self, Batch, FixedDepth, InitialState, Model, Session};
use rdt::quant::Recipe;
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const FOLDER: &str = "huginn-hops";

/// A prompt that the model answers with a sentence and goes on behind.
fn prompt() -> Vec<u32> {
    numbers(&recorded()["cases"][0]["prompt"]).iter().map(|&t| t as u32).collect()
}

fn recorded() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data(FOLDER).join("wavefront.json")).unwrap()).unwrap()
}

fn numbers(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect()
}

/// A session with one KV slot that has run a prompt to eight steps, and the token behind that.
fn prompted(model: &Arc<Model>, setup: &Setup, prompt: &[u32], sampler: &mut Sampler) -> (Session, u32) {
    let mut session = setup.session(model);
    let output = session.run(Batch::next(prompt), &mut FixedDepth(setup.steps)).unwrap();
    let token = sampler.sample(output.last()).unwrap();
    sampler.accept(token);
    (session, token)
}

fn setup(initial: &InitialState) -> Setup {
    Setup { kv_slots: Some(1), context: 128, ..Setup::fixed(8, initial) }
}

fn greedy() -> Sampler {
    Sampler::new(SamplerConfig::greedy()).unwrap()
}

/// Everything that was recorded of the published sampler, under every setting, with the same initial states and noise.
#[test]
fn tokens_steps_and_rows_are_the_reference_s() {
    let (model, recorded) = (model(FOLDER, Recipe::F32), recorded());
    let cases = recorded["cases"].as_array().unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let count = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let number = |key: &str| case[key].as_f64().unwrap() as f32;
        let what = format!("{} {} {} {}", case["freeze"], case["threshold"], case["seed"], case["most_rows"]);
        let initial = case["seed"].as_u64().map_or(InitialState::Zeros, |seed| InitialState::Noise { seed });
        let setup = Setup { kv_slots: Some(count("slots")), steps: count("prompt_steps"), ..setup(&initial) };
        let prompt: Vec<u32> = numbers(&case["prompt"]).iter().map(|&t| t as u32).collect();
        let mut sampler = greedy();
        let (mut session, token) = prompted(&model, &setup, &prompt, &mut sampler);
        let freeze = format!("{}:{}", case["freeze"].as_str().unwrap(), case["threshold"]);
        let mut front = Wavefront::new(WavefrontConfig {
            inner_steps: count("inner_steps"),
            ema: number("ema"),
            noise: number("noise"),
            freeze: freeze.parse().unwrap(),
            most_rows: count("most_rows"),
            ..WavefrontConfig::default()
        })
        .unwrap();
        front.begin(&mut session, 0, token, setup.steps).unwrap();
        let (mut tokens, mut rows, mut frozen) = (vec![u64::from(token)], Vec::new(), Vec::new());
        while tokens.len() < count("most_tokens") {
            rows.push(1 + front.guessed().len() as u64);
            let settled = front.advance(&mut session, &mut sampler).unwrap().unwrap();
            tokens.extend(settled.iter().map(|&t| u64::from(t)));
            frozen.push(tokens.len() as u64);
            assert_eq!(session.len(0) + 1, prompt.len() + tokens.len(), "{what}: all but the youngest are held");
        }
        assert_eq!(rows, numbers(&case["rows"]), "{what}: rows per step");
        assert_eq!(frozen, numbers(&case["frozen"]), "{what}: tokens final after each step");
        assert_eq!(tokens, numbers(&case["tokens"]), "{what}");
        let stats = front.stats();
        let found = [stats.diffusion_steps, stats.core_passes, stats.row_steps, stats.standing, stats.forced];
        let expected = ["diffusion_steps", "core_passes", "row_steps", "standing"].map(|key| count(key) as u64);
        assert_eq!(found, [expected[0], expected[1], expected[2], expected[3], 0], "{what}");
        assert_eq!(stats.frozen + 1, tokens.len() as u64);
        assert_eq!(sampler.position(), tokens.len() as u64, "{what}: one draw per token");
    }
}

/// What is drawn one after the other, without a front.
fn plain(model: &Arc<Model>, setup: &Setup, prompt: &[u32], mut sampler: Sampler, count: usize) -> Vec<u32> {
    let (mut session, token) = prompted(model, setup, prompt, &mut sampler);
    let mut tokens = vec![token];
    while tokens.len() < count {
        let output = session.run(Batch::next(&tokens[tokens.len() - 1..]), &mut FixedDepth(setup.steps)).unwrap();
        let token = sampler.sample(output.last()).unwrap();
        sampler.accept(token);
        tokens.push(token);
    }
    tokens
}

/// What a front makes of the same.
fn along(
    model: &Arc<Model>,
    setup: &Setup,
    prompt: &[u32],
    mut sampler: Sampler,
    config: WavefrontConfig,
    count: usize,
) -> (Vec<u32>, Wavefront) {
    let (mut session, token) = prompted(model, setup, prompt, &mut sampler);
    let mut front = Wavefront::new(config).unwrap();
    front.begin(&mut session, 0, token, setup.steps).unwrap();
    let mut tokens = vec![token];
    while tokens.len() < count {
        let Some(settled) = front.advance(&mut session, &mut sampler).unwrap() else { break };
        tokens.extend_from_slice(settled);
    }
    tokens.truncate(count);
    (tokens, front)
}

/// The shortest front, with inner steps enough for a state to come to rest, no noise and a strict criterion, is plain decoding:
/// greedily, and with draws, whose numbers are the same.
#[test]
fn a_patient_front_is_plain_decoding() {
    let (model, prompt) = (model(FOLDER, Recipe::F32), prompt());
    let setup = setup(&InitialState::Noise { seed: 3 });
    for sampler in [SamplerConfig::greedy(), SamplerConfig { repeat_penalty: 1.1, seed: 5, ..SamplerConfig::default() }]
    {
        let sampler = Sampler::new(sampler).unwrap();
        let deep = Setup { steps: 24, ..setup.clone() };
        let expected = plain(&model, &deep, &prompt, sampler.clone(), 24);
        for most_rows in [2, 6] {
            let config = WavefrontConfig {
                inner_steps: 24,
                ema: 0.0,
                noise: 0.0,
                freeze: Freeze::LatentDiff(1e-3),
                most_rows,
                ..WavefrontConfig::default()
            };
            let (tokens, front) = along(&model, &deep, &prompt, sampler.clone(), config, 24);
            assert_eq!(tokens, expected, "a front of {most_rows}");
            assert_eq!(front.stats().forced, 0);
        }
    }
}

/// Compared with their own states, rows freeze in more steps, and so fewer are in flight; the model is sure enough to say the same. Either
/// way one row joins in a step, and one token per step is the most that there can be.
#[test]
fn own_states_settle_sooner() {
    let (model, prompt) = (model(FOLDER, Recipe::F32), prompt());
    let setup = setup(&InitialState::Zeros);
    let run = |compare| {
        let config = WavefrontConfig { compare, ..WavefrontConfig::default() };
        let (tokens, front) = along(&model, &setup, &prompt, greedy(), config, 24);
        (tokens, *front.stats())
    };
    let ((published, of_published), (own, of_own)) = (run(Compare::AsPublished), run(Compare::Own));
    assert_eq!(published, own);
    assert!(of_own.row_steps < of_published.row_steps, "{of_own:?} and {of_published:?}");
    assert!(of_own.diffusion_steps <= of_published.diffusion_steps && of_own.diffusion_steps >= of_own.frozen);
}

/// A run can be repeated, to the last count, with draws and noise; threads do not matter.
#[test]
fn runs_repeat() {
    let (model, prompt) = (model(FOLDER, Recipe::Q8_0), prompt());
    let sampler = Sampler::new(SamplerConfig { seed: 9, ..SamplerConfig::default() }).unwrap();
    let runs = [1, 2].map(|threads| {
        let setup = Setup { threads, ..setup(&InitialState::Noise { seed: 1 }) };
        let (tokens, front) = along(&model, &setup, &prompt, sampler.clone(), WavefrontConfig::default(), 30);
        (tokens, *front.stats(), front.guessed().to_vec())
    });
    assert_eq!(runs[0], runs[1]);
}

/// Cancelled, a front loses its guesses and none of its tokens: another call goes on.
#[test]
fn a_cancelled_front_begins_anew() {
    let (model, prompt) = (model(FOLDER, Recipe::F32), prompt());
    let setup = setup(&InitialState::Zeros);
    let mut sampler = greedy();
    let (mut session, token) = prompted(&model, &setup, &prompt, &mut sampler);
    let mut front = Wavefront::new(WavefrontConfig::default()).unwrap();
    front.begin(&mut session, 0, token, 8).unwrap();
    let mut tokens = vec![token];
    while tokens.len() < 6 {
        tokens.extend_from_slice(front.advance(&mut session, &mut sampler).unwrap().unwrap());
    }
    assert!(!front.guessed().is_empty());
    let (held, position) = (session.len(0), sampler.position());
    session.cancel_flag().store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let cancelled = front.advance(&mut session, &mut sampler);
        assert!(matches!(cancelled, Err(Error::Model(model::Error::Cancelled))), "{cancelled:?}");
        assert_eq!((session.len(0), sampler.position(), front.pending()), (held, position, tokens.last().copied()));
        assert!(session.in_flight(0).is_empty());
    }
    session.cancel_flag().store(false, Ordering::Relaxed);
    while tokens.len() < 24 {
        tokens.extend_from_slice(front.advance(&mut session, &mut sampler).unwrap().unwrap());
    }
    assert_eq!(tokens[..24], along(&model, &setup, &prompt, greedy(), WavefrontConfig::default(), 24).0);
}

/// At the end of the context the front gets shorter, and every position has its token in the end.
#[test]
fn the_context_is_used_to_its_end() {
    let (model, prompt) = (model(FOLDER, Recipe::F32), prompt());
    let long = setup(&InitialState::Zeros);
    let (expected, _) = along(&model, &long, &prompt, greedy(), WavefrontConfig::default(), 16);
    for room in [1, 2, 3, 9] {
        let short = Setup { context: prompt.len() + room, ..long.clone() };
        let mut sampler = greedy();
        let (mut session, token) = prompted(&model, &short, &prompt, &mut sampler);
        let mut front = Wavefront::new(WavefrontConfig::default()).unwrap();
        front.begin(&mut session, 0, token, 8).unwrap();
        let mut tokens = vec![token];
        while let Some(settled) = front.advance(&mut session, &mut sampler).unwrap() {
            tokens.extend_from_slice(settled);
        }
        assert_eq!(tokens, expected[..room], "{room} positions");
        assert!(front.advance(&mut session, &mut sampler).unwrap().is_none());
    }
    // No place for the first token either.
    let full = Setup { context: prompt.len(), ..long };
    let mut sampler = greedy();
    let (mut session, token) = prompted(&model, &full, &prompt, &mut sampler);
    let mut front = Wavefront::new(WavefrontConfig::default()).unwrap();
    assert!(front.advance(&mut session, &mut sampler).unwrap().is_none(), "not begun");
    front.begin(&mut session, 0, token, 8).unwrap();
    assert!(front.advance(&mut session, &mut sampler).unwrap().is_none());
}

/// States that never come to rest: tokens are final all the same.
#[test]
fn patience_ends() {
    let (model, prompt) = (model(FOLDER, Recipe::F32), prompt());
    let config = WavefrontConfig { freeze: Freeze::LatentDiff(1e-30), patience: 3, ..WavefrontConfig::default() };
    let (tokens, front) = along(&model, &setup(&InitialState::Noise { seed: 2 }), &prompt, greedy(), config, 6);
    assert_eq!(tokens.len(), 6);
    let stats = front.stats();
    assert_eq!((stats.forced, stats.frozen, stats.diffusion_steps), (5, 5, 15));
}

#[test]
fn settings_out_of_range_are_refused() {
    let good = WavefrontConfig::default();
    let bad = [
        WavefrontConfig { inner_steps: 0, ..good },
        WavefrontConfig { ema: 1.0, ..good },
        WavefrontConfig { ema: f32::NAN, ..good },
        WavefrontConfig { noise: -0.1, ..good },
        WavefrontConfig { noise: 1.5, ..good },
        WavefrontConfig { freeze: Freeze::LatentDiff(0.0), ..good },
        WavefrontConfig { freeze: Freeze::Acceleration1(f32::INFINITY), ..good },
        WavefrontConfig { most_rows: 1, ..good },
        WavefrontConfig { patience: 0, ..good },
    ];
    assert!(good.validate().is_ok());
    for config in bad {
        assert!(matches!(Wavefront::new(config), Err(Error::Setting { .. })), "{config:?}");
    }
    let model = model(FOLDER, Recipe::F32);
    let narrow = Setup { chunk: 1, ..setup(&InitialState::Zeros) };
    let refused = Wavefront::new(good).unwrap().begin(&mut narrow.session(&model), 0, 1, 8);
    assert!(matches!(refused, Err(Error::Chunk(1))), "{refused:?}");
    // A loop that only starts from its tokens cannot be told of others.
    let stream = common::model("ouro-shapes/gqa", Recipe::F32);
    let mut session = setup(&InitialState::Zeros).session(&stream);
    let refused = Wavefront::new(WavefrontConfig::default()).unwrap().begin(&mut session, 0, 1, 8);
    assert!(matches!(refused, Err(Error::NoInjection)), "{refused:?}");
}
