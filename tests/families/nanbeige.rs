//! Nanbeige: parity, llama.cpp's files and its logits, settings that are refused.

use super::common::{Golden, Setup, Tensors, data, gguf, model, relative_error};
use super::edited::{File, conversion_refusal, conversion_refuses};
use super::{bits_under, is_the_reference};
use rdt::arch;
use rdt::exit::{ExitRule, RulePolicy};
use rdt::files::Bytes;
use rdt::gguf::Header;
use rdt::model::InitialState;
use rdt::quant::Recipe;
use serde_json::json;
use std::sync::Arc;

const EVERY: &str = "nanbeige/every-pass";
const LAST: &str = "nanbeige/last-norm";

#[test]
fn goldens() {
    is_the_reference(EVERY);
    is_the_reference(LAST);
}

#[test]
fn bits_do_not_depend_on_company() {
    bits_under(EVERY, Some("step-norm:1"));
    bits_under(LAST, Some("step-norm:1"));
}

/// A file of llama.cpp's, from `tests/data/llama-cpp`.
fn llama_cpp(name: &str) -> Vec<u8> {
    std::fs::read(data("llama-cpp/nanbeige").join(format!("{name}.gguf"))).unwrap()
}

/// Files that other programs wrote, unchanged: with f32 weights llama.cpp's logits within 2e-3 of their standard deviation; with
/// quantised ones the same best token wherever llama.cpp's two best are more than 0.05 apart.
#[test]
fn llama_cpps_files_give_its_logits() {
    let golden = Tensors::read(&data("llama-cpp/nanbeige/golden.safetensors"));
    let tokens: Vec<u32> = golden.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect();
    let mut decided = 0;
    for name in ["every-pass-f32", "last-norm-rope-freqs-f32", "every-pass-q8_0", "every-pass-q4_0"] {
        let model = Arc::new(arch::from_bytes(Bytes::from(llama_cpp(name))).unwrap());
        let steps = model.config().mean_steps();
        let run = Setup::fixed(steps, &InitialState::Zeros).run(&model, &tokens);
        let expected = golden.f32(&format!("logits.{name}"));
        let error = relative_error(&run.logits, expected);
        if name.ends_with("f32") {
            assert!(error < 2e-3, "{name}: {error:.1e}");
            continue;
        }
        for (row, (found, expected)) in
            run.logits.chunks(model.config().vocab).zip(expected.chunks(model.config().vocab)).enumerate()
        {
            let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
            let first = best(expected);
            let second =
                expected.iter().enumerate().filter(|(i, _)| *i != first).map(|(_, &x)| x).fold(f32::MIN, f32::max);
            if expected[first] - second > 0.05 {
                assert_eq!(best(found), first, "{name}, position {row}");
                decided += 1;
            }
        }
    }
    assert!(decided > 40, "{decided}");
}

/// What becomes of a checkpoint is what llama.cpp's format asks for, byte for byte: the reordered rows too.
#[test]
fn our_files_are_llama_cpps() {
    let (ours, theirs) = (gguf(EVERY, Recipe::F32), llama_cpp("every-pass-f32"));
    let (mine, other) = (Header::parse(&ours).unwrap(), Header::parse(&theirs).unwrap());
    assert_eq!(mine.tensors.len(), other.tensors.len());
    for tensor in &other.tensors {
        let found = mine.tensor(&tensor.name).unwrap_or_else(|| panic!("{} is missing", tensor.name));
        assert_eq!((found.ty, &found.dims), (tensor.ty, &tensor.dims), "{}", tensor.name);
        assert!(found.data(&ours) == tensor.data(&theirs), "{}", tensor.name);
    }
    for (key, value) in other.metadata.iter().filter(|(key, _)| key.starts_with("nanbeige.")) {
        assert_eq!(mine.metadata.get(key), Some(value), "{key}");
    }
}

#[test]
fn depth_is_the_trained_one() {
    let model = model(LAST, Recipe::F32);
    let config = model.config();
    assert_eq!(ExitRule::for_model(config), ExitRule::default());
    assert_eq!(RulePolicy::depth_limit(&ExitRule::default(), Some(9), config), 3);
    assert!(!config.exit_gate);
}

/// Without keys for loops a file is a Llama that runs once, as llama.cpp has it.
#[test]
fn silent_files_run_once() {
    let golden = Golden::read(EVERY);
    let silent = File::of(EVERY).with::<u32>("num_loops", None).with::<bool>("skip_loop_final_norm", None);
    let model = silent.open().unwrap();
    let run = Setup::fixed(model.config().mean_steps(), &golden.initial).run(&model, &golden.tokens);
    let expected = golden.tensors.f32("logits");
    assert!(relative_error(&run.logits, &expected[..expected.len() / golden.steps]) < 1e-4);
}

#[test]
fn malformed_files_are_refused() {
    let file = File::of(EVERY);
    for loops in [0, 1 << 31, u32::MAX] {
        file.refuses("num_loops", loops);
    }
    file.refuses("skip_loop_final_norm", 1u32);
    for missing in ["blk.1.attn_k.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        assert!(File::of(EVERY).without(&[missing]).refusal().unwrap().contains(missing));
    }
    assert_eq!(File::of(EVERY).with("rope.scaling.factor", Some(2.0f32)).refusal(), None);
    for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        file.refuses("rope.scaling.factor", factor);
    }
}

/// Every switch of the published configuration for other arithmetic is refused by name when set, and accepted when not.
#[test]
fn unsupported_checkpoints_are_refused() {
    for (key, value) in [
        ("loop_share_kv", json!(true)),
        ("enable_double_loop_split", json!(true)),
        ("loop_middle_layers", json!(3)),
        ("enable_hyper_connection", json!(true)),
        ("enable_mhc", json!(true)),
        ("enable_h_res_identity", json!(true)),
        ("mhc_diff_for_loop", json!(true)),
        ("mhc_identity_nohresparam", json!(true)),
        ("mhc_double_stream_position_for_loop", json!("x")),
        ("enable_depth_attention", json!(true)),
        ("qk_layernorm", json!(true)),
        ("emb_neighbor_num", json!(2)),
        ("emb_split_num", json!(4)),
        ("ngram_vocab_size_ratio", json!(0.5)),
        ("ngram_embedding_hidden_size", json!(64)),
        ("insert_ngram_layer_idx", json!([1])),
        ("ngram_insert_all_layers", json!(true)),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("loop_loss_weights", json!([0.5, 0.5])),
        ("kv_channels", json!(16)),
        ("rope_scaling", json!({"type": "dynamic", "factor": 2.0})),
        ("hidden_act", json!("relu")),
        ("num_loops", json!(0)),
        ("num_loops", json!(1u64 << 31)),
    ] {
        conversion_refuses(EVERY, key, value);
    }
    for (key, value) in [
        ("loop_share_kv", json!(false)),
        ("insert_ngram_layer_idx", json!([])),
        ("emb_neighbor_num", json!(null)),
        ("loop_middle_layers", json!(0)),
        ("loop_loss_weights", json!([0.5])),
        ("kv_channels", json!(32)),
    ] {
        assert_eq!(conversion_refusal(EVERY, &[(key, value)]), None, "{key}");
    }
}
