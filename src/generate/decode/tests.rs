//! Whatever is guessed, and however it ends: text, keys and values are those of plain decoding.

use super::{Oracle, Strategy};
use crate::arch;
use crate::checkpoint::Checkpoint;
use crate::exit::{ExitRule, RulePolicy};
use crate::files::Bytes;
use crate::generate::{Engine, SamplerConfig, engine};
use crate::model::{self, Model, Session, SessionOptions};
use crate::quant::Recipe;
use proptest::prelude::{Just, ProptestConfig, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

const RULE: &str = "acceleration:1.5,hits=2,max=9";
const CONTEXT: usize = 24;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let plan = arch::conversion(&checkpoint).unwrap();
    let input = arch::Input::Checkpoint(&checkpoint);
    let bytes = plan.write(&input, Recipe::Q8_0, Vec::new(), &mut |_| true).unwrap().0;
    Arc::new(arch::from_bytes(Bytes::from(bytes)).unwrap())
});

fn engine(strategy: Strategy, rule: &str, temperature: f32, slots: Option<usize>) -> Engine {
    let rule: ExitRule = rule.parse().unwrap();
    let options = SessionOptions {
        threads: NonZeroUsize::new(1),
        context: Some(CONTEXT),
        steps: Some(RulePolicy::depth_limit(&rule, None, MODEL.config())),
        kv_slots: slots,
        ..SessionOptions::default()
    };
    let session = Session::new(Arc::clone(&MODEL), &options).unwrap();
    let sampler = SamplerConfig { temperature, repeat_penalty: 1.2, seed: 5, ..SamplerConfig::default() };
    let mut engine = Engine::new(session, rule, None, sampler, MODEL.config().vocab).unwrap();
    engine.set_strategy(strategy);
    engine
}

/// Guesses are what the plain text says, but for those that `wrong` counts: (position, steps) from it, one in so many.
#[derive(Default)]
struct Tells {
    text: Vec<u32>,
    wrong: u64,
    salt: u64,
    /// The text is this, whatever the model says.
    forced: bool,
}

impl Oracle for Tells {
    fn guess(&self, position: usize, steps: usize, chosen: u32) -> u32 {
        let bits = crate::random::bits(self.salt, 1, (position * 64 + steps) as u64);
        match self.text.get(position + 1) {
            Some(&token) if bits % 100 >= self.wrong => token,
            _ if self.wrong == 0 || bits.is_multiple_of(3) => chosen,
            _ => (bits % MODEL.config().vocab as u64) as u32,
        }
    }

    fn draw(&self, position: usize, chosen: u32) -> u32 {
        self.text.get(position + 1).copied().filter(|_| self.forced).unwrap_or(chosen)
    }
}

type Found = (Vec<(u32, usize)>, Vec<u32>, Vec<u8>);

/// Up to `n` tokens, the bits of the last logits, and all keys and values.
fn generate(engine: &mut Engine, prompt: &[u32], n: usize) -> Found {
    engine.sampler_mut().set_position(0);
    engine.prompt(prompt).unwrap();
    go_on(engine, n)
}

fn go_on(engine: &mut Engine, n: usize) -> Found {
    let tokens = (0..n).map_while(|_| engine.next_token().unwrap().map(|s| (s.token, s.steps))).collect();
    (tokens, engine.logits().iter().map(|x| x.to_bits()).collect(), engine.session_mut().kv_bytes(0))
}

fn strategies() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![
        (proptest::option::of(1usize..6), 2usize..9).prop_map(|(every, rows)| Strategy::Pipeline { every, rows }),
        (2usize..6, proptest::option::of(1usize..8))
            .prop_map(|(tokens, steps)| Strategy::Speculative { tokens, steps }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Guesses that are right, wrong, and wrong at some depths only; a text that runs into the end of the context; exits or none.
    #[test]
    fn whatever_is_guessed(
        strategy in strategies(),
        exits in any::<bool>(),
        temperature in prop_oneof![Just(0.0f32), Just(0.9)],
        prompt in proptest::collection::vec(0u32..1024, 1..8),
        n in 1usize..CONTEXT + 2,
        wrong in prop_oneof![Just(0u64), Just(100), 0u64..100],
        salt in any::<u64>(),
        cancel_at in proptest::option::of(1usize..60),
    ) {
        let rule = if exits { RULE } else { "fixed:7" };
        let expected = generate(&mut engine(Strategy::Plain, rule, temperature, None), &prompt, n);
        let mut found = engine(strategy, rule, temperature, None);
        let text = prompt.iter().copied().chain(expected.0.iter().map(|t| t.0)).collect();
        found.drive_mut().ask(Box::new(Tells { text, wrong, salt, forced: false }));
        found.sampler_mut().set_position(0);
        found.prompt(&prompt).unwrap();
        let mut tokens = Vec::new();
        if let Some(after) = cancel_at {
            // Cancelled after some looks at the flag: what was drawn by then stands, and it can go on.
            let flag = found.cancel_flag();
            found.drive_mut().ask(Box::new(Cancels { left: AtomicUsize::new(after), flag }));
            while tokens.len() < n {
                match found.next_token() {
                    Ok(Some(step)) => tokens.push((step.token, step.steps)),
                    Ok(None) => break,
                    Err(engine::Error::Model(model::Error::Cancelled)) => {
                        prop_assert_eq!(found.session().flying(), 0);
                        found.cancel_flag().store(false, Ordering::Relaxed);
                    }
                    Err(other) => panic!("{other}"),
                }
            }
        }
        let (rest, logits, kv) = go_on(&mut found, n - tokens.len());
        tokens.extend(rest);
        prop_assert_eq!(&tokens, &expected.0);
        prop_assert_eq!(&logits, &expected.1);
        prop_assert!(kv == expected.2, "keys and values differ");
    }
}

/// Sets the cancel flag when it has been asked a number of times; guesses as the model does.
struct Cancels {
    left: AtomicUsize,
    flag: Arc<std::sync::atomic::AtomicBool>,
}

impl Oracle for Cancels {
    fn guess(&self, _: usize, _: usize, chosen: u32) -> u32 {
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) == Ok(1) {
            self.flag.store(true, Ordering::Relaxed);
        }
        chosen
    }
}

/// A prompt, a new rule, other settings and a rollback in the middle of flight leave no trace.
#[test]
fn changes_in_mid_flight_leave_no_trace() {
    let run = |strategy| {
        let mut engine = engine(strategy, RULE, 0.9, None);
        let mut all = vec![generate(&mut engine, &[1, 2, 3], 4)];
        engine.set_rule("fixed:3".parse().unwrap(), None).unwrap();
        all.push(go_on(&mut engine, 3));
        engine.set_rule(RULE.parse().unwrap(), None).unwrap();
        let config = SamplerConfig { temperature: 2.0, top_k: 0, ..SamplerConfig::default() };
        engine.set_sampler(config, MODEL.config().vocab).unwrap();
        engine.sampler_mut().suppress([7, 8, 9]);
        all.push(go_on(&mut engine, 3));
        all.push(generate(&mut engine, &[1, 2, 4, 4], 5));
        all.push(generate(&mut engine, &[1, 2, 4, 4, 9, 9], 100));
        all
    };
    let plain = run(Strategy::Plain);
    for strategy in [Strategy::PIPELINE, Strategy::SPECULATIVE, "pipeline:every=1".parse().unwrap()] {
        assert!(run(strategy) == plain, "{strategy}");
    }
}

/// Behind a token that ends a text nothing is guessed; the text is the same.
#[test]
fn nothing_is_guessed_behind_the_end() {
    let run = |strategy: &str, stops: Vec<u32>| {
        let mut engine = engine(strategy.parse().unwrap(), "fixed:6", 0.0, None);
        engine.set_stops(stops);
        engine.drive_mut().ask(Box::new(Tells { text: (100..120).collect(), forced: true, ..Tells::default() }));
        let found = generate(&mut engine, &[100, 101], 4);
        (found, engine.take_decode_stats().guessed)
    };
    let ((expected, _), pipeline) = (run("plain", Vec::new()), "pipeline:every=1,rows=6");
    assert_eq!(expected.0.iter().map(|t| t.0).collect::<Vec<_>>(), [102, 103, 104, 105]);
    let (found, guessed) = run(pipeline, Vec::new());
    assert!(found == expected && guessed > 4, "{guessed}");
    // Only 103 and 104 enter on a guess.
    assert_eq!(run(pipeline, vec![105]), (expected, 2));
}

/// Every guess right: as many passes as one token takes, and then one token each `every` passes.
#[test]
fn right_guesses_cost_nothing() {
    for (strategy, passes) in
        [("pipeline:every=1,rows=8", 6 + 15), ("pipeline:every=2,rows=8", 6 + 15 * 2), ("plain", 96)]
    {
        let expected = generate(&mut engine(Strategy::Plain, "fixed:6", 0.0, None), &[5], 17);
        let text = [5].into_iter().chain(expected.0.iter().map(|t| t.0)).collect();
        let mut engine = engine(strategy.parse().unwrap(), "fixed:6", 0.0, None);
        engine.drive_mut().ask(Box::new(Tells { text, ..Tells::default() }));
        assert_eq!(generate(&mut engine, &[5], 17), expected);
        let stats = engine.take_decode_stats();
        if strategy == "plain" {
            assert_eq!(stats, super::DecodeStats::default(), "it has no drive");
            continue;
        }
        assert_eq!((stats.tokens, stats.passes, stats.dropped), (16, passes, 0), "{strategy}");
        assert!(stats.guesses.iter().all(|g| g.made == g.right && g.made > 10));
    }
}

/// Where steps share KV slots it says that it is not exact; read-out rules decode plainly, and say so.
#[test]
fn what_is_not_exact_is_said() {
    let pipeline = Strategy::PIPELINE;
    assert!(engine(pipeline, "fixed:6", 0.0, None).is_exact());
    let shared = engine(pipeline, "fixed:6", 0.0, Some(2));
    assert!(!shared.is_exact() && shared.plain_because().is_none());
    assert!(engine(Strategy::Plain, "fixed:6", 0.0, Some(2)).is_exact());
    let mut readout = engine(pipeline, "kl:0.01,max=6", 0.0, None);
    assert!(readout.plain_because().unwrap().starts_with("exit rule 'kl'"));
    assert_eq!(
        generate(&mut readout, &[1, 2], 6),
        generate(&mut engine(Strategy::Plain, "kl:0.01,max=6", 0.0, None), &[1, 2], 6)
    );
    assert!(engine(pipeline, "fixed:1", 0.0, None).plain_because().is_some());
}

/// A guess whose embedding is not finite is dropped where it is wrong, in every strategy; where it is right, it is plain decoding's error.
#[test]
fn guesses_that_are_not_finite_do_not_show() {
    const BAD: u32 = 77;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let plan = arch::conversion(&checkpoint).unwrap();
    let input = arch::Input::Checkpoint(&checkpoint);
    let mut file = plan.write(&input, Recipe::F32, Vec::new(), &mut |_| true).unwrap().0;
    let info = crate::gguf::Header::parse(&file).unwrap().tensor("token_embd.weight").unwrap().clone();
    let at = info.offset + BAD as usize * info.dims[0] * 4;
    file[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let model = Arc::new(arch::from_bytes(Bytes::from(file)).unwrap());
    /// Guesses the bad token at some places; the text is given.
    struct Bad(Vec<u32>, usize);
    impl Oracle for Bad {
        fn guess(&self, position: usize, _: usize, _: u32) -> u32 {
            if position % self.1 == 1 { BAD } else { self.draw(position, 0) }
        }
        fn draw(&self, position: usize, _: u32) -> u32 {
            self.0[(position + 1) % self.0.len()]
        }
    }
    let run = |strategy: &str, text: &[u32], every: usize| {
        let rule: ExitRule = "fixed:6".parse().unwrap();
        let options = SessionOptions { context: Some(CONTEXT), steps: Some(6), ..SessionOptions::default() };
        let session = Session::new(Arc::clone(&model), &options).unwrap();
        // The head is tied to the embedding, so that the bad token's logit is not to be looked at.
        let sampler = SamplerConfig::greedy();
        let mut engine = Engine::new(session, rule, None, sampler, BAD as usize).unwrap();
        engine.set_strategy(strategy.parse().unwrap());
        engine.drive_mut().ask(Box::new(Bad(text.to_vec(), every)));
        engine.prompt(&[1, 2]).map_err(|e| e.to_string())?;
        let mut tokens = Vec::new();
        while tokens.len() < 12 {
            match engine.next_token() {
                Ok(Some(step)) => tokens.push(step.token),
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(tokens)
    };
    let good: Vec<u32> = (10..34).collect();
    let plain = run("plain", &good, 2);
    for strategy in
        ["pipeline:every=1,rows=6", "pipeline:every=2,rows=3", "speculative:tokens=4,steps=2", "speculative"]
    {
        for every in [2, 3, 5] {
            assert_eq!(run(strategy, &good, every), plain, "{strategy}, one in {every}");
        }
    }
}
