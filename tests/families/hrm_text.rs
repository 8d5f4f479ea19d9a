//! HRM-Text: against the reference in both masks, and against llama.cpp in both directions.

use super::malformed;
use crate::common::{Run, Setup, Tensors, bits, data, gguf, model, relative_error, run, run_batch};
use rdt::exit::ExitRule;
use rdt::generate::{Engine, SamplerConfig};
use rdt::gguf::{Header, Value as Key};
use rdt::kernels::KvType;
use rdt::model::{Batch, Error, InitialState, Logits, Model};
use rdt::quant::Recipe;
use serde_json::json;
use std::sync::Arc;

const FOLDERS: [&str; 4] = ["hrm_text", "hrm_text-shapes/split", "hrm_text-shapes/fused", "hrm_text-shapes/wide"];
const SPLIT: &str = FOLDERS[1];

fn golden(path: &str) -> (Vec<u32>, Tensors) {
    let tensors = Tensors::read(&data(path).join("golden.safetensors"));
    (tensors.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect(), tensors)
}

/// The model's own cycles.
fn setup(model: &Model) -> Setup {
    Setup::fixed(model.config().mean_steps(), &InitialState::Zeros)
}

/// The first `prefix` tokens see each other both ways, the others what is before them.
fn with_prefix(setup: &Setup, model: &Arc<Model>, tokens: &[u32], prefix: usize) -> Run {
    let (mut session, mut recorder) = (setup.session(model), setup.recorder(model.config()));
    let first = Batch { logits: Logits::All, both_ways: true, ..Batch::next(&tokens[..prefix]) };
    run_batch(&mut session, &mut recorder, first).then(run(&mut session, &mut recorder, 0, &tokens[prefix..]))
}

/// f32 weights and KV: the slow state after every H cycle, and the logits, causal and with a prefix.
#[test]
fn f32_is_the_reference() {
    for folder in FOLDERS {
        let (tokens, golden) = golden(folder);
        let model = model(folder, Recipe::F32);
        let prefix = golden.i32("prefix_len")[0] as usize;
        let runs = [
            ("", setup(&model).run(&model, &tokens)),
            ("_prefix_lm", with_prefix(&setup(&model), &model, &tokens, prefix)),
        ];
        for (mask, run) in runs {
            let close = |found: &[f32], name: &str, expected: &[f32]| {
                let error = relative_error(found, expected);
                assert!(error < 1e-4, "{folder}: {name}{mask} is {error:.1e} off");
            };
            close(&run.logits, "logits", golden.f32(&format!("logits{mask}")));
            let name = format!("latents{mask}");
            // The golden of `hrm_text` has logits alone.
            assert_eq!(golden.has(&name), folder != "hrm_text");
            if golden.has(&name) {
                let n = tokens.len() * model.config().width;
                for (k, expected) in golden.f32(&name).chunks(n).enumerate() {
                    close(&run.latents(k + 1), "latents", expected);
                }
            }
        }
    }
}

/// The layouts of a checkpoint are two ways to write one model.
#[test]
fn split_and_fused_checkpoints_give_the_same_tensors() {
    let [split, fused] = [SPLIT, "hrm_text-shapes/fused"].map(|folder| {
        let bytes = gguf(folder, Recipe::F32);
        let header = Header::parse(&bytes).unwrap();
        let tensors = header.tensors.iter().map(|t| (t.name.clone(), t.dims.clone(), t.data(&bytes).unwrap().to_vec()));
        tensors.collect::<Vec<_>>()
    });
    assert_eq!(split.len(), 3 + 4 * 8);
    assert!(split == fused);
}

/// What is written here is what llama.cpp's converter writes: the same tensors under the same names, the same keys.
#[test]
fn what_is_written_is_llama_cpps() {
    let theirs = std::fs::read(data("llama-cpp/hrm_text/split-f32.gguf")).unwrap();
    let ours = gguf(SPLIT, Recipe::F32);
    let (a, b) = (Header::parse(&theirs).unwrap(), Header::parse(&ours).unwrap());
    assert_eq!(a.tensors.len(), b.tensors.len());
    for t in &a.tensors {
        let found = b.tensor(&t.name).unwrap_or_else(|| panic!("{}", t.name));
        assert_eq!((t.ty, &t.dims), (found.ty, &found.dims), "{}", t.name);
        assert!(t.data(&theirs) == found.data(&ours), "{}", t.name);
    }
    let mut compared = 0;
    for (key, value) in a.metadata.iter().filter(|(k, _)| k.starts_with("hrm_text.")) {
        assert_eq!(b.metadata.get(key), Some(value), "{key}");
        compared += 1;
    }
    assert!(compared >= 16, "{compared}");
}

/// The bits of a prefix and of what follows depend on neither threads nor the cut of what follows.
#[test]
fn threads_and_chunks_do_not_show() {
    let (tokens, golden) = golden(SPLIT);
    let prefix = golden.i32("prefix_len")[0] as usize;
    for (recipe, kv_type) in [
        (Recipe::F32, KvType::F32),
        (Recipe::F16, KvType::F16),
        (Recipe::Q8_0, KvType::Q8_0),
        (Recipe::Q4_0, KvType::F16),
    ] {
        let model = model(FOLDERS[0], recipe);
        let rule: ExitRule = "step-norm:0.9,max=2".parse().unwrap();
        let setup = Setup { kv_type, chunk: prefix, rule, ..setup(&model) };
        let alone = with_prefix(&setup, &model, &tokens, prefix);
        let causal = setup.run(&model, &tokens);
        assert!(bits(&alone.logits) != bits(&causal.logits));
        for (chunk, threads) in [(prefix, 2), (prefix, 7), (prefix + 3, 1), (64, 2)] {
            let setup = Setup { chunk, threads, ..setup.clone() };
            let what = format!("{recipe}, {threads} threads, chunks of {chunk}");
            with_prefix(&setup, &model, &tokens, prefix).assert_same(&alone, &what);
            setup.run(&model, &tokens).assert_same(&causal, &what);
        }
        Setup { chunk: 1, threads: 2, ..setup.clone() }.run(&model, &tokens).assert_same(&causal, "token by token");
    }
}

/// A second prompt behind an answer is read both ways over itself only; what was held before does not change.
#[test]
fn a_later_prompt_sees_itself_and_what_was_before() {
    let (tokens, _) = golden(SPLIT);
    let model = model(SPLIT, Recipe::F32);
    let setup = setup(&model);
    let (mut session, mut recorder) = (setup.session(&model), setup.recorder(model.config()));
    let both = |tokens| Batch { logits: Logits::All, both_ways: true, ..Batch::next(tokens) };
    run_batch(&mut session, &mut recorder, both(&tokens[..4]));
    let answer = run(&mut session, &mut recorder, 0, &tokens[4..7]);
    let later = run_batch(&mut session, &mut recorder, both(&tokens[7..]));
    with_prefix(&setup, &model, &tokens, 4).behind(4).rows[0]
        .latents
        .iter()
        .zip(&answer.rows[0].latents)
        .for_each(|(a, b)| assert_eq!(bits(a), bits(b)));
    // Its first token knows its last, and the answer knows nothing of it.
    let mut other = tokens.clone();
    *other.last_mut().unwrap() ^= 1;
    session.truncate(0, 7);
    let changed = run_batch(&mut session, &mut recorder, both(&other[7..]));
    assert!(bits(&changed.rows[0].latents[2]) != bits(&later.rows[0].latents[2]));
    // A cut inside a prefix forgets it whole.
    assert_eq!(session.truncate(0, 9), 7);
    run_batch(&mut session, &mut recorder, both(&tokens[7..])).assert_same(&later, "run again");
    assert_eq!(session.truncate(0, 6), 6);
    assert_eq!(session.truncate(0, 3), 0);
}

/// The engine reads a prompt both ways, keeps it whole or not at all, and cuts answers anywhere.
#[test]
fn the_engine_reads_prompts_both_ways() {
    let (tokens, golden) = golden(SPLIT);
    let model = model(SPLIT, Recipe::F32);
    let prefix = golden.i32("prefix_len")[0] as usize;
    let setup = setup(&model);
    let engine = || {
        let session = setup.session(&model);
        Engine::new(session, setup.rule, Some(setup.steps), SamplerConfig::greedy(), usize::MAX).unwrap()
    };
    let mut talk = engine();
    let vocab = model.config().vocab;
    talk.prompt(&tokens[..prefix]).unwrap();
    let expected = golden.f32("logits_prefix_lm");
    assert!(relative_error(talk.logits(), &expected[(prefix - 1) * vocab..prefix * vocab]) < 1e-4);
    let mut text = tokens[..prefix].to_vec();
    for _ in 0..5 {
        text.push(talk.next_token().unwrap().unwrap().token);
    }
    assert_eq!(talk.held(), &text[..prefix + 4]);
    // A second prompt behind the answer: only it is run, as if all had been given at once.
    let second = text.len()..text.len() + 5;
    text.extend(&tokens[..5]);
    let ranges = [0..prefix, second.clone()];
    let stats = talk.prompt_with(&text, &ranges).unwrap();
    assert_eq!((stats.reused, stats.run), (prefix + 4, 6));
    assert_eq!(talk.both_ways(), &ranges);
    let mut fresh = engine();
    assert_eq!(fresh.prompt_with(&text, &ranges).unwrap().reused, 0);
    assert_eq!(bits(talk.logits()), bits(fresh.logits()));
    // Reuse ends before a prefix that is not the same, and before one that is read in another way.
    let mut other = text.clone();
    other[second.end - 2] ^= 1;
    assert_eq!(talk.reusable(&other, &ranges), second.start);
    assert_eq!(talk.reusable(&text, &ranges), second.start, "its last token must be run");
    assert_eq!(talk.reusable(&text, &ranges[..1]), second.start);
    assert_eq!(talk.reusable(&text, &[]), 0);
    other[2] ^= 1;
    assert_eq!(talk.reusable(&other, &ranges), 0);
    let mut longer = text.clone();
    longer.push(3);
    assert_eq!(talk.reusable(&longer, &ranges), text.len());
    longer[prefix + 1] ^= 1;
    assert_eq!(talk.reusable(&longer, &ranges), prefix + 1);
    // Another text from there on is as if it had always been there.
    talk.prompt_with(&longer, &ranges).unwrap();
    fresh.reset();
    fresh.prompt_with(&longer, &ranges).unwrap();
    assert_eq!(bits(talk.logits()), bits(fresh.logits()));
}

/// A prefix is one chunk; one that is too long is refused before anything has run.
#[test]
fn a_prefix_that_does_not_fit_is_refused() {
    let (tokens, _) = golden(SPLIT);
    let model = model(SPLIT, Recipe::F32);
    let setup = Setup { chunk: 6, ..setup(&model) };
    let mut session = setup.session(&model);
    let batch = Batch { both_ways: true, ..Batch::next(&tokens[..7]) };
    let error = session.run(batch, &mut setup.recorder(model.config())).unwrap_err();
    assert!(matches!(error, Error::PrefixTooLong { asked: 7, most: 6 }), "{error}");
    assert_eq!(error.to_string().lines().count(), 1);
    assert_eq!(session.len(0), 0);
    session.run(Batch { tokens: &tokens[..6], ..batch }, &mut setup.recorder(model.config())).unwrap();
}

#[test]
fn malformed_files_are_refused() {
    let n = |n: u32| Some(Key::from(n));
    malformed::keys(
        SPLIT,
        &[
            ("hrm_text.block_count", n(0), &["hrm_text.block_count", "0"]),
            ("hrm_text.block_count", n(11), &["hrm_text.block_count", "11", "2 blocks"]),
            ("hrm_text.block_count", n(u32::MAX), &["hrm_text.block_count"]),
            ("hrm_text.hrm.layers_per_stack", n(0), &["layers_per_stack"]),
            ("hrm_text.hrm.layers_per_stack", n(1 << 31), &["layers_per_stack"]),
            ("hrm_text.hrm.layers_per_stack", None, &["layers_per_stack"]),
            ("hrm_text.hrm.h_cycles", n(0), &["h_cycles"]),
            ("hrm_text.hrm.h_cycles", n(1 << 31), &["h_cycles"]),
            ("hrm_text.hrm.h_cycles", n(4096), &["block_count"]),
            ("hrm_text.hrm.l_cycles", n(0), &["l_cycles"]),
            ("hrm_text.hrm.l_cycles", n(u32::MAX), &["l_cycles"]),
            ("hrm_text.hrm.prefix_lm", n(1), &["prefix_lm"]),
            ("hrm_text.embedding_scale", Some(Key::from(f32::NAN)), &["embedding_scale"]),
            ("hrm_text.embedding_scale", Some(Key::from(-1.0f32)), &["embedding_scale"]),
            ("hrm_text.attention.head_count", n(0), &["head_count"]),
            ("hrm_text.attention.head_count", Some(Key::from(vec![2u32; 11])), &["head_count"]),
            ("hrm_text.attention.head_count", Some(Key::from([vec![2u32; 11], vec![1]].concat())), &["head_count"]),
            ("hrm_text.attention.key_length", n(15), &["value_length", "15"]),
            ("hrm_text.rope.scaling.type", Some(Key::from("yarn")), &["scaling", "yarn"]),
            ("hrm_text.vocab_size", n(319), &["token_embd.weight"]),
        ],
    );
    malformed::missing_tensors("hrm_text-shapes/split", &["output.weight"]);
    malformed::configs(
        SPLIT,
        &[
            ("num_layers_per_stack", json!(3), &["num_layers_per_stack", "3", "2"]),
            ("num_layers_per_stack", json!(1), &["num_layers_per_stack", "1", "2"]),
            ("H_cycles", json!(0), &["H_cycles"]),
            ("H_cycles", json!(4096), &["H_cycles"]),
            ("L_cycles", json!(1u64 << 40), &["L_cycles"]),
            ("num_key_value_heads", json!(1), &["num_key_value_heads"]),
            ("head_dim", json!(17), &["gate_proj"]),
            ("hidden_act", json!("gelu"), &["hidden_act", "gelu"]),
            ("attention_bias", json!(true), &["attention_bias"]),
            ("mlp_bias", json!(true), &["mlp_bias"]),
            ("embedding_scale", json!(0), &["embedding_scale"]),
            ("rope_parameters", json!({"rope_theta": 1e4, "rope_type": "yarn"}), &["rope_type", "yarn"]),
            ("rope_parameters", json!({"rope_type": "default"}), &["rope_theta"]),
        ],
    );
    malformed::configs(
        "hrm_text-shapes/fused",
        &[
            ("num_hidden_layers", json!(3), &["num_hidden_layers", "3", "2"]),
            ("num_hidden_layers", json!(0), &["num_hidden_layers"]),
            ("intermediate_size", json!(47), &["gate_up_proj"]),
        ],
    );
}

#[test]
fn texts_become_llama_cpps_tokens() {
    crate::llama_cpp::tokens_are_the_same("hrm_text", &crate::llama_cpp::metadata("hrm_text", "split-f32"));
}
