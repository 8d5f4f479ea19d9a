//! Nanbeige: parity, llama.cpp's files and its logits, settings that are refused.

use super::common::{Golden, Setup, model, relative_error};
use super::edited::{File, conversion_refusal, conversion_refuses};
use super::{bits_under, is_the_reference, llama_cpp};
use rdt::exit::{ExitRule, RulePolicy};
use rdt::quant::Recipe;
use serde_json::json;

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

#[test]
fn llama_cpps_files_give_its_logits() {
    let files = ["every-pass-f32", "last-norm-rope-freqs-f32", "every-pass-q8_0", "every-pass-q4_0", "wide-q4_k_m"];
    llama_cpp::logits_are_the_same("nanbeige", &files);
}

#[test]
fn our_files_are_llama_cpps() {
    llama_cpp::files_are_the_same(EVERY, "nanbeige", "every-pass-f32");
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

/// Both the vocabulary of llama.cpp's file and the `tokenizer.model` of the checkpoint, as it is converted here.
#[test]
fn texts_become_llama_cpps_tokens() {
    llama_cpp::tokens_are_the_same("nanbeige", &llama_cpp::metadata("nanbeige", "every-pass-f32"));
    let checkpoint = rdt::checkpoint::Checkpoint::open(crate::common::data(EVERY)).unwrap();
    let mut conversion = rdt::arch::conversion(&checkpoint).unwrap();
    rdt::text::write_metadata(&checkpoint, conversion.vocabulary(), &mut conversion.metadata).unwrap();
    llama_cpp::tokens_are_the_same("nanbeige", &conversion.metadata);
}
