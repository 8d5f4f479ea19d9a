//! Tokenizers that are not a tokenizer.json.

use std::fs;

use rdt::gguf::{Header, Value};

use crate::models::{Parts, chat_checkpoint, checkpoint, copy_checkpoint};
use crate::programs::{QUANTIZE, TRACE, run};

/// A field of a protocol buffer that holds bytes. Lengths here are below 128.
fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// A SentencePiece model of `tokens`: text, score and type.
fn sentencepiece(tokens: &[(&str, f32, u8)]) -> Vec<u8> {
    let piece = |(text, score, kind): &(&str, f32, u8)| {
        bytes(
            1,
            &[bytes(1, text.as_bytes()), vec![2 << 3 | 5], score.to_le_bytes().to_vec(), vec![3 << 3, *kind]].concat(),
        )
    };
    // BPE, no special treatment of spaces but one before the text.
    [tokens.iter().flat_map(piece).collect(), bytes(2, &[3 << 3, 2]), bytes(3, &[4 << 3, 0])].concat()
}

#[test]
fn a_sentencepiece_model_alone_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    copy_checkpoint(&checkpoint(), &folder);
    let tokens = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("<0x0A>", 0.0, 6),
        ("▁a", 0.0, 1),
        ("b", -2.0, 1),
        ("▁", -3.0, 1),
        ("a", -4.0, 1),
        ("ab", -1.0, 1),
    ];
    fs::write(folder.join("tokenizer.model"), sentencepiece(&tokens)).unwrap();
    fs::write(folder.join("added_tokens.json"), r#"{"<think>": 10, "<s>": 1}"#).unwrap();
    let config = r#"{"eos_token": "<|end|>", "add_bos_token": true, "add_eos_token": true, "added_tokens_decoder": {
        "2": {"content": "</s>", "special": true}, "11": {"content": "<|end|>", "special": true}}}"#;
    fs::write(folder.join("tokenizer_config.json"), config).unwrap();
    let outcome = run(QUANTIZE, dir.path(), &["model", "m.gguf", "--type", "f32"]).ok("tokenizer.model");
    assert!(!outcome.stderr.contains("tokenizer"), "{}", outcome.stderr);

    let metadata = Header::parse(&fs::read(dir.path().join("m.gguf")).unwrap()).unwrap().metadata;
    let key = |name: &str| metadata.get(&format!("tokenizer.ggml.{name}"));
    assert_eq!(key("model"), Some(&Value::from("llama")));
    assert_eq!(key("eos_token_id"), Some(&Value::from(11_u32)));
    assert_eq!(key("add_eos_token"), Some(&Value::from(true)));
    assert_eq!(key("add_space_prefix"), Some(&Value::from(true)));
    let types = metadata.i64s("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types[..13], [2, 3, 3, 6, 1, 1, 1, 1, 1, 5, 4, 3, 5]);
    assert_eq!(
        metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap()[..12],
        [0.0, 0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -4.0, -1.0, 0.0, -1000.0, -1000.0]
    );
    let trace = run(TRACE, dir.path(), &["-m", "m.gguf", "-p", "ab <think>", "--out", "out"]).ok("text");
    // BOS, "▁a", "b", "▁", and the seven characters of "<think>", which the user typed: no token but the unknown one.
    assert!(trace.stderr.starts_with("rdt-trace: 11 tokens"), "{}", trace.stderr);

    // A file that is none is an error in one line.
    fs::write(folder.join("tokenizer.model"), b"\x0a\xff").unwrap();
    let line = run(QUANTIZE, dir.path(), &["model", "bad.gguf"]).refused(1, "no model");
    assert!(line.contains("tokenizer.model"), "{line}");
    // An added token outside the table, which has 128 rows.
    fs::write(folder.join("tokenizer.model"), sentencepiece(&tokens)).unwrap();
    fs::write(folder.join("added_tokens.json"), r#"{"<far>": 4000000000}"#).unwrap();
    let line = run(QUANTIZE, dir.path(), &["model", "bad.gguf"]).refused(1, "a far token");
    assert!(line.contains("4000000000"), "{line}");
}

#[test]
fn keys_alone_are_enough_and_unknown_rules_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint();
    run(QUANTIZE, dir.path(), &[model.to_str().unwrap(), "whole.gguf"]).ok("whole");
    let mut parts = Parts::of(&fs::read(dir.path().join("whole.gguf")).unwrap());
    parts.metadata.remove("tokenizer.huggingface.json").unwrap();
    fs::write(dir.path().join("keys.gguf"), parts.file()).unwrap();
    parts.metadata.insert("tokenizer.ggml.pre", "nobody's");
    fs::write(dir.path().join("unknown.gguf"), parts.file()).unwrap();
    parts.metadata.insert("tokenizer.ggml.model", "none");
    fs::write(dir.path().join("none.gguf"), parts.file()).unwrap();
    let trace = |name: &str| {
        let args = ["-m", name, "-p", "Red leads to Blue.", "--steps", "2", "--out", name.trim_end_matches(".gguf")];
        run(TRACE, dir.path(), &args)
    };
    let read = |name: &str| fs::read(dir.path().join(name)).unwrap();
    assert!(!trace("whole.gguf").ok("whole").stderr.contains("warning"));
    assert!(!trace("keys.gguf").ok("keys").stderr.contains("warning"));
    assert!(read("whole") == read("keys"), "the same tokens, so the same trace");
    let outcome = trace("unknown.gguf").ok("unknown");
    assert!(outcome.stderr.starts_with("rdt-trace: warning: tokenizer.ggml.pre \"nobody's\""), "{}", outcome.stderr);
    let line = trace("none.gguf").refused(1, "none");
    assert!(line.contains("no tokenizer") && line.contains("token ids"), "{line}");
}
