//! The GPT-2-style model with three looped segments, each of which every token leaves on its own.

use super::malformed;
use crate::common::{Run, Setup, Tensors, bits, data, model, relative_error, run};
use rdt::gguf::Value as Key;
use rdt::kernels::KvType;
use rdt::model::{Error, InitialState, SessionOptions};
use rdt::quant::Recipe;
use serde_json::json;
use std::collections::HashSet;
use std::sync::Arc;

const FOLDER: &str = "looped-gpt2";
/// Of the three segments.
const STEPS: [usize; 3] = [4, 3, 5];

fn golden() -> (Vec<u32>, Tensors) {
    let tensors = Tensors::read(&data(FOLDER).join("golden.safetensors"));
    (tensors.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect(), tensors)
}

/// Steps of every row in every segment.
fn depths(run: &Run) -> Vec<[usize; 3]> {
    let of = |segment| move |s: &&rdt::model::LatentStats| s.segment == segment;
    run.rows.iter().map(|r| [0, 1, 2].map(|i| r.stats.iter().filter(of(i)).count())).collect()
}

/// A setup that leaves the depth of each segment to the model.
fn own() -> Setup {
    Setup { context: 40, ..Setup::fixed(5, &InitialState::Zeros) }
}

fn run_own(setup: &Setup, model: &Arc<rdt::model::Model>, tokens: &[u32]) -> Run {
    use rdt::exit::RulePolicy;
    let policy = RulePolicy::new(setup.rule, None, model.config(), setup.chunk).unwrap();
    let mut recorder = crate::common::Recorder::new(policy);
    run(&mut setup.session(model), &mut recorder, 0, tokens)
}

/// Every latent of every segment, the logits, and the read-out of each step of the last segment.
#[test]
fn f32_is_the_reference() {
    let (tokens, golden) = golden();
    let model = model(FOLDER, Recipe::F32);
    let steps: Vec<_> = model.config().loops.iter().map(|d| d.mean_steps).collect();
    assert_eq!(steps, STEPS);
    let found = run_own(&own(), &model, &tokens);
    assert!(depths(&found).iter().all(|d| *d == STEPS));
    assert_eq!(found.steps, [12; 14]);
    let mut k = 0;
    for (segment, steps) in STEPS.into_iter().enumerate() {
        let expected = golden.f32(&format!("latents_{segment}"));
        for expected in expected.chunks(expected.len() / steps) {
            k += 1;
            let error = relative_error(&found.latents(k), expected);
            assert!(error < 1e-4, "segment {segment}, step {k} in all: {error:.1e}");
        }
    }
    let error = relative_error(&found.logits, golden.f32("logits"));
    assert!(error < 1e-4, "logits: {error:.1e}");
    let policy = rdt::exit::RulePolicy::new(own().rule, None, model.config(), 64).unwrap();
    let mut session = own().session(&model);
    run(&mut session, &mut crate::common::Recorder::new(policy), 0, &tokens);
    for (k, expected) in golden.f32("logits_last").chunks(14 * 100).enumerate() {
        let error = relative_error(
            session.read_out(0, 0, &found.latents(4 + 3 + k + 1), rdt::model::Logits::All).unwrap(),
            expected,
        );
        assert!(error < 1e-4, "read out after step {}: {error:.1e}", k + 1);
    }
}

/// Every segment has its own exit: rules start anew in each, and rows leave at different steps in different segments. None of
/// it depends on chunks or threads.
#[test]
fn segments_are_left_one_by_one() {
    let (tokens, _) = golden();
    for (recipe, kv_type) in [(Recipe::F32, KvType::F32), (Recipe::F16, KvType::F16), (Recipe::Q8_0, KvType::F16)] {
        let model = model(FOLDER, recipe);
        let rule = "acceleration:0.0225,hits=2,max=9";
        let setup = Setup { kv_type, context: 40, ..Setup::rule(rule, 9, &InitialState::Zeros) };
        let alone = Setup { chunk: 1, ..setup.clone() }.run(&model, &tokens);
        let depths = depths(&alone);
        // Two hits need three steps, in each segment anew.
        assert!(depths.iter().flatten().all(|n| (3..=9).contains(n)), "{depths:?}");
        let differ = |i: usize| depths.iter().map(|d| d[i]).collect::<HashSet<_>>().len() > 1;
        assert!((0..3).any(differ) && depths.iter().any(|d| d[0] != d[2]), "{recipe}: {depths:?}");
        for (chunk, threads) in [(1, 7), (3, 2), (14, 1), (14, 2), (5, 7)] {
            let what = format!("{recipe}, {threads} threads, chunks of {chunk}");
            Setup { chunk, threads, ..setup.clone() }.run(&model, &tokens).assert_same(&alone, &what);
        }
        // Token by token and in one go, on top of what is held.
        let (mut session, mut recorder) = (setup.session(&model), setup.recorder(model.config()));
        let first = run(&mut session, &mut recorder, 0, &tokens[..9]);
        first.then(run(&mut session, &mut recorder, 0, &tokens[9..])).assert_same(&alone, "in two calls");
    }
}

/// A read-out rule acts in the last segment; the others run to the end.
#[test]
fn readout_rules_act_in_the_last_segment() {
    let (tokens, _) = golden();
    let model = model(FOLDER, Recipe::F32);
    let setup = Setup { context: 40, ..Setup::rule("kl:0.05,max=6", 6, &InitialState::Zeros) };
    let (mut session, mut recorder) = (setup.session(&model), setup.recorder(model.config()));
    let batch = rdt::model::Batch { readout_exits: true, ..rdt::model::Batch::next(&tokens) };
    let run = crate::common::run_batch(&mut session, &mut recorder, batch);
    let depths = depths(&run);
    assert!(depths.iter().all(|d| d[..2] == [6, 6]), "{depths:?}");
    assert!(depths.iter().any(|d| d[2] < 6), "{depths:?}");
}

/// Learned positions end; a context beyond them is refused, and the default is theirs.
#[test]
fn the_context_is_as_long_as_the_table_of_positions() {
    let model = model(FOLDER, Recipe::F32);
    let session = |context| {
        rdt::model::Session::new(Arc::clone(&model), &SessionOptions { context, ..SessionOptions::default() })
    };
    assert_eq!(session(None).unwrap().kv_shape().context, 40);
    assert!(session(Some(40)).is_ok());
    let error = session(Some(41)).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Option(words) if words.contains("40")), "{error}");
    // The last position is as good as any: the token there is not the one before it.
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 100).collect();
    let run = Setup { context: 40, ..own() }.run(&model, &tokens);
    assert!(bits(&run.rows[39].prelude) != bits(&run.rows[38].prelude));
}

#[test]
fn malformed_files_are_refused() {
    let list = |numbers: &[u32]| Some(Key::from(numbers.to_vec()));
    let segments = "looped_gpt2.loop.segments";
    malformed::keys(
        FOLDER,
        &[
            (segments, list(&[]), &["loop.segments"]),
            (segments, None, &["loop.segments"]),
            (segments, list(&[4, 5, 5]), &["loop.segments", "pairs"]),
            (segments, list(&[4, 4, 5, 7, 7, 8]), &["loop.segments", "in order"]),
            (segments, list(&[4, 6, 5, 7, 7, 8]), &["loop.segments", "in order"]),
            (segments, list(&[7, 8, 5, 7, 4, 5]), &["loop.segments", "in order"]),
            (segments, list(&[4, 5, 5, 7, 7, 10]), &["loop.segments", "within 0 to 9"]),
            (segments, list(&[4, 5, 5, 7, 7, u32::MAX]), &["loop.segments"]),
            (segments, Some(Key::from("4,5")), &["loop.segments"]),
            ("looped_gpt2.loop.steps", list(&[4, 3]), &["steps"]),
            ("looped_gpt2.loop.steps", list(&[4, 0, 5]), &["steps"]),
            ("looped_gpt2.loop.steps", list(&[4, 1 << 31, 5]), &["steps"]),
            ("looped_gpt2.loop.steps", None, &["loop.steps"]),
            ("looped_gpt2.block_count", Some(Key::from(0u32)), &["block_count"]),
            ("looped_gpt2.block_count", Some(Key::from(8u32)), &["blk.8."]),
            ("looped_gpt2.context_length", Some(Key::from(41u32)), &["position_embd.weight"]),
            ("looped_gpt2.attention.layer_norm_epsilon", Some(Key::from(0.0f32)), &["layer_norm_epsilon"]),
        ],
    );
    malformed::missing_tensors(FOLDER, &[]);
    malformed::configs(
        FOLDER,
        &[
            ("loop_segments", json!([[4, 5], [5, 7], [7, 99]]), &["loop_segments", "99"]),
            ("loop_segments", json!([[4, 5], [5, 7, 8]]), &["loop_segments", "pairs"]),
            ("loop_segments", json!([[4, -5]]), &["loop_segments", "pairs"]),
            ("loop_segments", json!(null), &["loop_segments", "missing"]),
            ("loop_segments", json!("x".repeat(1000)), &["loop_segments"]),
            ("loop_steps", json!([1, 2]), &["steps"]),
            ("loop_steps", json!([1, 2, 1e9]), &["loop_steps"]),
            ("n_head", json!(0), &["n_head"]),
            ("n_head", json!(5), &["n_head", "36"]),
            ("n_layer", json!(8), &["tensors", "h.8."]),
            ("n_layer", json!(10), &["h.9."]),
            ("bias", json!(false), &["bias"]),
            ("activation_function", json!("gelu"), &["activation_function"]),
            ("tie_word_embeddings", json!(false), &["lm_head.weight"]),
            ("n_positions", json!(41), &["wpe"]),
        ],
    );
}
