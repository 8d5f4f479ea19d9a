//! Malformed checkpoints: refused in one line, or converted to a model that runs.

use std::fs;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::models::{chat_checkpoint, checkpoint, copy_checkpoint};
use crate::programs::{QUANTIZE, TRACE, names_in, run};

/// Converts the checkpoint in `folder`; if that works, the result must run. Gives the line of a refusal.
fn convert(folder: &Path, what: &str) -> Option<String> {
    let out = tempfile::tempdir().unwrap();
    let path = folder.as_os_str();
    let args = [path, "m.gguf".as_ref(), "--type".as_ref(), "f32".as_ref(), "-t".as_ref(), "1".as_ref()];
    let converted = run(QUANTIZE, out.path(), &args);
    if converted.code != Some(0) {
        assert_eq!(names_in(out.path()), [""; 0]);
        return Some(converted.refused(1, what));
    }
    let args = ["-m", "m.gguf", "--tokens", "1", "--steps", "1", "-t", "1", "--kv-memory", "64", "--out", "out"];
    run(TRACE, out.path(), &args).ok(what);
    None
}

/// Every number and name of config.json replaced by something else.
#[test]
fn configurations() {
    let source = checkpoint();
    let text = fs::read_to_string(source.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let used = [
        "model_type",
        "injection_type",
        "state_init",
        "nonlin_name",
        "mlp_class_name",
        "norm_class_name",
        "block_class_name",
        "n_embd",
        "n_heads",
        "num_key_value_heads",
        "intermediate_size",
        "padded_vocab_size",
        "block_size",
        "n_layers_in_prelude",
        "n_layers_in_recurrent_block",
        "n_layers_in_coda",
        "mean_recurrence",
        "norm_eps",
        "rope_base",
        "qk_bias",
        "tie_word_embeddings",
        "init_values",
        "eos_token_id",
    ];
    let others = [
        json!(null),
        json!(0),
        json!(1),
        json!(7),
        json!(-1),
        json!(1u64 << 31),
        json!(1u64 << 63),
        json!(1e300),
        json!(1e-300),
        json!(true),
        json!("\u{1b}[31m\n"),
        json!([1]),
        json!({"embed_scale": -1.0, "std": 0.1}),
        json!({"embed_scale": 1e30, "std": 1e30}),
    ];
    let cases: Vec<_> = used.iter().flat_map(|key| others.iter().map(move |other| (*key, other))).collect();
    let refused: Vec<_> = cases
        .par_iter()
        .filter(|(key, other)| {
            let dir = tempfile::tempdir().unwrap();
            copy_checkpoint(&source, dir.path());
            let mut config = config.clone();
            config[*key] = (*other).clone();
            fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            convert(dir.path(), &format!("{key}: {other}")).is_some()
        })
        .collect();
    // Most of these are nonsense; a default, or a value that means the same, is not.
    assert!(refused.len() > cases.len() * 3 / 4, "{} of {}", refused.len(), cases.len());
}

#[test]
fn files() {
    let config = "config.json";
    let whole = |folder: &Path| convert(folder, "whole");
    let spoil = |from: &Path, name: &str, bytes: &[u8]| {
        let dir = tempfile::tempdir().unwrap();
        copy_checkpoint(from, dir.path());
        fs::write(dir.path().join(name), bytes).unwrap();
        convert(dir.path(), &format!("{name} has {} other bytes", bytes.len()))
    };
    assert_eq!(whole(&checkpoint()), None);
    assert_eq!(whole(&chat_checkpoint()), None);
    let from = &checkpoint();
    for text in ["", "{", "[]", "null", "{\"model_type\": \"llama\"}", "{}", "{\"a\": 1, \"a\": 2}", "\u{feff}{}"] {
        assert!(spoil(from, config, text.as_bytes()).is_some(), "{text}");
    }
    assert!(spoil(from, config, b"{\"model_type\": \"\xff\"}").is_some());
    let line = spoil(from, config, br#"{"model_type": "\u001b[31mllama\n"}"#).unwrap();
    assert!(line.contains("supported: huginn, "), "says what would be accepted: {line}");

    let from = &chat_checkpoint();
    let tokenizer = fs::read(from.join("tokenizer.json")).unwrap();
    for bytes in [&b""[..], b"{}", b"[1, 2]", b"\xff", &tokenizer[..tokenizer.len() / 2]] {
        assert!(spoil(from, "tokenizer.json", bytes).is_some(), "{bytes:?}");
    }
    assert!(spoil(from, "tokenizer_config.json", br#"{"bos_token": "not there"}"#).is_some());
    assert!(spoil(from, "tokenizer_config.json", br#"{"chat_template": 3}"#).is_some());
    assert!(spoil(from, "generation_config.json", br#"{"eos_token_id": "x"}"#).is_some());
    assert_eq!(spoil(from, "generation_config.json", br#"{"eos_token_id": [1, 4, 4000000000]}"#), None);
}

#[test]
fn weights_cut_short() {
    let source = checkpoint();
    let weights = fs::read(source.join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let lengths: Vec<_> = (0..header + 64).step_by(64).chain((header..weights.len()).step_by(50_000)).collect();
    lengths.par_iter().for_each(|&length| {
        let dir = tempfile::tempdir().unwrap();
        copy_checkpoint(&source, dir.path());
        fs::write(dir.path().join("model.safetensors"), &weights[..length]).unwrap();
        assert!(convert(dir.path(), &format!("cut to {length} bytes")).is_some());
    });
}

#[test]
fn weights_damaged() {
    let source = checkpoint();
    let weights = fs::read(source.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut header = header.clone();
        change(&mut header);
        let header = header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &weights[8 + length..]].concat()
    };
    let wte = "transformer.wte.weight";
    let rename = |to: &'static str| {
        move |h: &mut Value| {
            let tensor = h.as_object_mut().unwrap().remove("transformer.ln_f.weight").unwrap();
            h[to] = tensor;
        }
    };
    let cases = [
        ("a header of 2^63 bytes", [&(1u64 << 63).to_le_bytes(), &weights[8..]].concat()),
        ("a tensor under a hostile name", with(&rename("\u{1b}[2J\n"))),
        ("a tensor of an unknown name", with(&rename("transformer.ln_g.weight"))),
        ("a shape of 2^63", with(&|h| h[wte]["shape"][0] = json!(1u64 << 63))),
        ("a shape of 0", with(&|h| h[wte]["shape"][0] = json!(0))),
        ("another shape of the same size", with(&|h| h[wte]["shape"].as_array_mut().unwrap().reverse())),
        ("offsets of 2^63", with(&|h| h[wte]["data_offsets"] = json!([0, 1u64 << 63]))),
        ("offsets that overlap", with(&|h| h[wte]["data_offsets"] = h["lm_head.weight"]["data_offsets"].clone())),
        ("offsets the wrong way round", with(&|h| h[wte]["data_offsets"].as_array_mut().unwrap().reverse())),
        ("an unknown type", with(&|h| h[wte]["dtype"] = json!("F77"))),
        ("whole numbers", with(&|h| h[wte]["dtype"] = json!("I32"))),
        ("a type of another size", with(&|h| h[wte]["dtype"] = json!("BF16"))),
    ];
    for (what, bytes) in cases {
        let dir = tempfile::tempdir().unwrap();
        copy_checkpoint(&source, dir.path());
        fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
        assert!(convert(dir.path(), what).is_some(), "{what}");
    }
}
