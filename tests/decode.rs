//! Several tokens in flight give the text of one after the other, to the last bit.

mod common;

use common::model;
use rdt::arch;
use rdt::exit::{ExitRule, RulePolicy};
use rdt::files::Bytes;
use rdt::generate::{DecodeStats, Engine, SamplerConfig, Strategy};
use rdt::kernels::KvType;
use rdt::model::{Model, Session, SessionOptions};
use rdt::quant::Recipe;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// Checkpoints with random weights, one of every family whose loop may take four steps (and one of two), and a rule under which
/// their tokens leave at different depths.
const RANDOM: [(&str, &str); 5] = [
    ("huginn", "acceleration:1.5,hits=2"),
    ("ouro", "gate:0.6"),
    ("parcae", "step-norm:0.35"),
    ("retrofit", "acceleration:0.9,hits=1"),
    ("hrm_text", "acceleration:0.7,hits=1"),
];

/// And with how many of the prompts each is tried.
const STRATEGIES: [(&str, usize); 4] = [
    ("pipeline:every=1,rows=4", 200),
    // It may find that guesses do not pay, and make none.
    ("pipeline", 60),
    ("pipeline:every=3,rows=8", 40),
    ("speculative:tokens=3,steps=2", 60),
];

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }

    fn prompt(&mut self, vocab: usize) -> Vec<u32> {
        (0..1 + self.below(6)).map(|_| u32::try_from(self.below(vocab)).unwrap()).collect()
    }
}

fn engine(
    model: &Arc<Model>,
    rule: ExitRule,
    steps: usize,
    sampler: &SamplerConfig,
    threads: usize,
    strategy: &str,
) -> Engine {
    let options = SessionOptions {
        threads: NonZeroUsize::new(threads),
        context: Some(64),
        kv_type: KvType::F16,
        steps: Some(RulePolicy::depth_limit(&rule, Some(steps), model.config())),
        ..SessionOptions::default()
    };
    let session = Session::new(Arc::clone(model), &options).unwrap();
    let mut engine = Engine::new(session, rule, Some(steps), sampler.clone(), model.config().vocab).unwrap();
    engine.set_strategy(strategy.parse::<Strategy>().unwrap());
    assert!(engine.is_exact());
    engine
}

/// Tokens, their depths, and the bits of the logits that the last was drawn from.
type Text = (Vec<(u32, usize)>, Vec<u32>);

fn generate(engine: &mut Engine, prompt: &[u32], n: usize) -> Text {
    engine.sampler_mut().set_position(0);
    engine.prompt(prompt).unwrap();
    let tokens = (0..n).map_while(|_| engine.next_token().unwrap().map(|step| (step.token, step.steps))).collect();
    (tokens, engine.logits().iter().map(|x| x.to_bits()).collect())
}

/// 200 prompts for every combination of what could show.
fn compare(name: &str, model: &Arc<Model>, rules: &[ExitRule], steps: usize, n: usize) {
    let mut stats = DecodeStats::default();
    for &rule in rules {
        for temperature in [0.0, 0.8] {
            let sampler = SamplerConfig { temperature, repeat_penalty: 1.1, seed: 7, ..SamplerConfig::default() };
            let mut plain = engine(model, rule, steps, &sampler, 1, "plain");
            assert_eq!(plain.plain_because(), None);
            let mut others: Vec<(usize, (&str, usize), Engine)> = Vec::new();
            for threads in [1, 2] {
                for strategy in STRATEGIES {
                    let engine = engine(model, rule, steps, &sampler, threads, strategy.0);
                    assert_eq!(engine.plain_because(), None, "{name}, {rule}, {}", strategy.0);
                    others.push((threads, strategy, engine));
                }
            }
            let mut numbers = Numbers(3);
            for p in 0..200 {
                let prompt = numbers.prompt(model.config().vocab);
                let expected = generate(&mut plain, &prompt, n);
                for (threads, (strategy, _), engine) in others.iter_mut().filter(|other| p < other.1.1) {
                    let found = generate(engine, &prompt, n);
                    let same = found == expected && engine.held() == plain.held();
                    assert!(
                        same,
                        "{name}, {rule}, temperature {temperature}, {strategy}, {threads} threads, prompt {p}"
                    );
                }
            }
            // Keys and values are what they would have been: another prompt behind all of it sees them.
            let mut more = plain.held().to_vec();
            more.extend([1, 2, 3]);
            let expected = generate(&mut plain, &more, 3);
            for (threads, (strategy, prompts), engine) in &mut others {
                // Those that had fewer prompts run all of it now.
                assert_eq!(generate(engine, &more, 3), expected, "{name}, {strategy}, {threads} threads");
                let of_one = engine.take_decode_stats();
                let guesses = of_one.guessed > 200 && of_one.dropped > 20;
                assert!(guesses || *prompts < 200, "{name}, {strategy}, {threads} threads: {of_one:?}");
                stats.merge(&of_one);
            }
        }
    }
    let wrong = stats.guesses.iter().map(|g| g.made - g.right).sum::<u64>();
    assert!(stats.guessed > 1000 && stats.dropped > 100 && wrong > 100, "{name}: {stats:?}");
}

#[test]
fn random_models_give_the_same_text() {
    for (folder, rule) in RANDOM {
        let model = model(folder, Recipe::Q8_0);
        // A published limit stays in force.
        let steps = model.config().max_steps().unwrap_or(6).min(6);
        assert!(folder == "hrm_text" || steps >= 4, "{folder}: {steps} steps");
        compare(folder, &model, &["fixed", rule].map(|r| r.parse().unwrap()), steps, 5);
    }
}

fn trained() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/huginn-nano-q4_k_m.gguf");
    Arc::new(arch::from_bytes(Bytes::from(std::fs::read(path).unwrap())).unwrap())
}

#[test]
fn a_trained_model_gives_the_same_text() {
    let rules = ["fixed", "acceleration"].map(|r| r.parse().unwrap());
    compare("huginn-nano", &trained(), &rules, 8, 10);
}
