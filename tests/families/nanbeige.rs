//! Nanbeige: parity, llama.cpp's files and its logits, settings that are refused.

use super::common::{Golden, Setup, Tensors, data, gguf, model, relative_error};
use super::{changed, company_does_not_show, converted, f32_is_the_reference, open};
use rdt::exit::{ExitRule, RulePolicy};
use rdt::gguf::{Header, Metadata};
use rdt::model::InitialState;
use rdt::quant::Recipe;
use serde_json::json;

const EVERY: &str = "nanbeige/every-pass";
const LAST: &str = "nanbeige/last-norm";

#[test]
fn goldens() {
    f32_is_the_reference(EVERY);
    f32_is_the_reference(LAST);
}

#[test]
fn bits_do_not_depend_on_company() {
    company_does_not_show(EVERY, "step-norm:1");
    company_does_not_show(LAST, "step-norm:1");
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
        let model = open(llama_cpp(name)).unwrap();
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
    let silent = |m: &mut Metadata| {
        m.remove("nanbeige.num_loops");
        m.remove("nanbeige.skip_loop_final_norm");
    };
    let model = open(changed(&gguf(EVERY, Recipe::F32), silent, &[])).unwrap();
    let run = Setup::fixed(model.config().mean_steps(), &golden.initial).run(&model, &golden.tokens);
    let expected = golden.tensors.f32("logits");
    assert!(relative_error(&run.logits, &expected[..expected.len() / golden.steps]) < 1e-4);
}

#[test]
fn malformed_files_are_refused() {
    let file = gguf(EVERY, Recipe::F32);
    for loops in [0, 1 << 31, u32::MAX] {
        let error = open(changed(&file, |m| drop(m.insert("nanbeige.num_loops", loops)), &[])).unwrap_err();
        assert!(error.contains("num_loops"), "{error}");
    }
    let wrong = |m: &mut Metadata| drop(m.insert("nanbeige.skip_loop_final_norm", 1u32));
    assert!(open(changed(&file, wrong, &[])).unwrap_err().contains("skip_loop_final_norm"));
    for missing in ["blk.1.attn_k.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
        assert!(open(changed(&file, |_| (), &[missing])).unwrap_err().contains(missing));
    }
    // Loops and scaling that are merely unusual.
    let linear = |m: &mut Metadata| drop(m.insert("nanbeige.rope.scaling.factor", 2.0f32));
    open(changed(&file, linear, &[])).unwrap();
    for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let wrong = |m: &mut Metadata| drop(m.insert("nanbeige.rope.scaling.factor", factor));
        assert!(open(changed(&file, wrong, &[])).unwrap_err().contains("rope.scaling.factor"));
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
        let error = converted(EVERY, |c| drop(c.insert(key.into(), value.clone()))).unwrap_err();
        assert!(error.contains(key), "{key} = {value}: {error}");
    }
    for (key, value) in [
        ("loop_share_kv", json!(false)),
        ("insert_ngram_layer_idx", json!([])),
        ("emb_neighbor_num", json!(null)),
        ("loop_middle_layers", json!(0)),
        ("loop_loss_weights", json!([0.5])),
        ("kv_channels", json!(32)),
    ] {
        converted(EVERY, |c| drop(c.insert(key.into(), value.clone()))).unwrap();
    }
}
