//! What rdt-inspect shows.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rdt::gguf::{Header, Metadata, TensorDecl, TensorType, Value, Writer};
use serde_json::Value as Json;

use crate::models::{Parts, gguf};
use crate::programs::{INSPECT, command, run};

#[test]
fn json_is_the_header() {
    let dir = tempfile::tempdir().unwrap();
    let file = gguf("q4_0");
    fs::write(dir.path().join("m.gguf"), &file).unwrap();
    let json = |args: &[&str]| -> Json {
        let outcome = run(INSPECT, dir.path(), &[&["m.gguf", "--json"], args].concat()).ok("json");
        serde_json::from_str(&outcome.stdout).unwrap()
    };
    // By way of text, as floats have more digits in a `Value`.
    let header = serde_json::to_string(&Header::parse(&file).unwrap()).unwrap();
    let header: Json = serde_json::from_str(&header).unwrap();
    let mut whole = json(&[]);
    let model = whole.as_object_mut().unwrap().remove("model").unwrap();
    assert_eq!(whole, header);
    // Two blocks outside the loop and one inside it, two heads of 32 each, keys and values.
    let kv = |steps: u64| serde_json::json!({"kv_steps": steps, "f16": (2 + steps) * 256, "q8_0": (2 + steps) * 136});
    assert_eq!(model["kv_bytes_per_token"], Json::from([3, 2, 1].map(kv).to_vec()));
    assert_eq!(model["steps"], serde_json::json!([3]));
    let sum = |key: &str| model[key].as_u64().unwrap();
    let step = model["loops"][0]["bytes_per_step"].as_u64().unwrap();
    assert_eq!(sum("bytes_per_token"), sum("bytes_outside") + 3 * step);
    assert_eq!(json(&["--steps", "20"])["model"]["kv_bytes_per_token"][1]["kv_steps"], 16);
    assert_eq!(json(&["--tensors"]), header["tensors"]);
    assert_eq!(json(&["--metadata", "huginn.block_count"]), 3);
    assert_eq!(json(&["--metadata", "*"]), header["metadata"]);
    let some = json(&["--metadata", "huginn.loop.*"]);
    let some = some.as_object().unwrap();
    assert!(some.len() > 5 && some.keys().all(|key| key.starts_with("huginn.loop.")), "{some:?}");
}

#[test]
fn everything_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = gguf("q4_0");
    let header = Header::parse(&file).unwrap();
    fs::write(dir.path().join("m.gguf"), &file).unwrap();
    let shown = run(INSPECT, dir.path(), &["m.gguf"]).ok("all").stdout;
    for (key, _) in header.metadata.iter() {
        assert!(shown.lines().any(|l| l.starts_with(&format!("{key} = "))), "{key}: {shown}");
    }
    for t in &header.tensors {
        let line = shown.lines().find(|l| l.starts_with(&format!("{} ", t.name))).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert!(words.contains(&t.ty.name()) && words.contains(&t.bytes.to_string().as_str()), "{line}");
        assert_eq!(words.last(), Some(&t.offset.to_string().as_str()), "{line}");
    }
    for part in ["embedding", "prelude", "core", "coda", "head"] {
        assert!(shown.lines().any(|l| l.starts_with(part)), "{part}: {shown}");
    }
    assert!(shown.contains("per token at 3 steps"), "{shown}");
    let plan = "embedding -> block 0 once -> [inject: linear -> block 1] x 3 -> norm -> block 2 once -> norm -> head";
    assert!(shown.contains(&format!("plan: {plan}\n")), "{shown}");
    assert!(shown.contains("all steps (3)") && shown.contains("last step only (1)"), "{shown}");
    let shown = run(INSPECT, dir.path(), &["m.gguf", "--steps", "9"]).ok("steps").stdout;
    assert!(shown.contains("per token at 9 steps"), "{shown}");
    let missing = run(INSPECT, dir.path(), &["m.gguf", "--metadata", "no.such\x1b.key"]).refused(1, "a missing key");
    assert!(missing.contains("no.such"), "{missing}");
    run(INSPECT, dir.path(), &["m.gguf", "--metadata", "no.such*"]).refused(1, "no key starts so");
}

#[test]
fn models_of_others_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "llama");
    metadata.insert("nan", f32::NAN);
    metadata.insert("nested", Value::Array(rdt::gguf::Array::Array(vec![rdt::gguf::Array::U8(vec![1, 2])])));
    let tensors = [TensorDecl { name: "t".into(), ty: TensorType::IQ3_S, dims: vec![256, 1, 1, 1] }];
    for tensors in [&tensors[..], &[]] {
        let mut writer = Writer::new(Vec::new(), &metadata, tensors).unwrap();
        for tensor in tensors {
            writer.write_tensor(&tensor.name, &[0; 110]).unwrap();
        }
        fs::write(dir.path().join("m.gguf"), writer.finish().unwrap()).unwrap();
        let shown = run(INSPECT, dir.path(), &["m.gguf"]).ok("llama").stdout;
        assert!(shown.contains("nested = [[1, 2]]") && shown.contains("nan = NaN"), "{shown}");
        assert_eq!(shown.contains("iq3_s"), !tensors.is_empty(), "{shown}");
        assert!(shown.contains("'llama'"), "says why there is no plan: {shown}");
        let json: Json =
            serde_json::from_str(&run(INSPECT, dir.path(), &["m.gguf", "--json"]).ok("JSON").stdout).unwrap();
        assert!(json["model"].is_null() && json["metadata"]["general.architecture"] == "llama");
    }
}

/// A file of a known family that is no whole model is shown, with what is wrong.
#[test]
fn broken_models_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = Parts::of(&gguf("q4_0"));
    parts.tensors.retain(|(decl, _)| decl.name != "loop.adapter_state.weight");
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    let shown = run(INSPECT, dir.path(), &["m.gguf"]).ok("broken").stdout;
    assert!(shown.contains("huginn.block_count = 3") && shown.contains("'loop.adapter_state.weight'"), "{shown}");
}

/// Nothing that a terminal acts on comes out, whatever the file holds.
#[test]
fn hostile_text_is_escaped() {
    let hostile = "a\x1b[31m\x07\r\u{9b}2J\u{202e}\u{7f}b";
    let mut parts = Parts::of(&gguf("q4_0"));
    parts.metadata.insert("x.text", format!("{hostile}\nsecond \"line\"\\"));
    parts.metadata.insert("x.list", vec![hostile.to_owned(); 3]);
    parts.metadata.insert(format!("x.{hostile}"), 1u32);
    let decl = TensorDecl { name: hostile.into(), ty: TensorType::F32, dims: vec![1] };
    parts.tensors.push((decl, vec![0; 4]));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    for args in [
        &[][..],
        &["--full"],
        &["--json"],
        &["--tensors"],
        &["--tensors", "--json"],
        &["--metadata", "x.*"],
        &["--metadata", "x.text"],
        &["--metadata", "x.list"],
        &["--metadata", "x.text", "--json"],
    ] {
        let shown = run(INSPECT, dir.path(), &[&["m.gguf"], args].concat()).ok("hostile").stdout;
        let bad = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!shown.contains(bad), "{args:?}: {:?}", shown.chars().find(|&c| bad(c)));
        if args.contains(&"--json") {
            let json: Json = serde_json::from_str(&shown).unwrap();
            assert!(json.to_string().contains('\u{202e}'), "escaping in JSON loses nothing");
        }
    }
    let shown = run(INSPECT, dir.path(), &["m.gguf", "--metadata", "x.*"]).ok("in lines").stdout;
    assert!(shown.contains(r#"\nsecond \"line\"\\""#), "{shown}");
    assert_eq!(shown.lines().count(), 3, "{shown}");
}

#[test]
fn long_values_are_cut_unless_full() {
    let mut parts = Parts::of(&gguf("q4_0"));
    parts.metadata.insert("x.long", "é".repeat(10_000));
    parts.metadata.insert("x.many", vec![7u64; 10_000]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    let size = |args: &[&str]| run(INSPECT, dir.path(), &[&["m.gguf"], args].concat()).ok("long").stdout.len();
    assert!(size(&[]) < 10_000);
    assert!(size(&["--full"]) > 50_000);
    assert!(size(&["--metadata", "x.*"]) < 1000);
    assert_eq!(size(&["--metadata", "x.long"]), 20_001);
    assert_eq!(size(&["--metadata", "x.many"]), 30_001, "a key asked for by name is shown whole");
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    let mut parts = Parts::of(&gguf("q4_0"));
    parts.metadata.insert("x.many", vec![7u64; 1_000_000]);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    for args in [&["m.gguf", "--full"][..], &["m.gguf", "--json"]] {
        let mut command = command(INSPECT, dir.path());
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut reader = BufReader::with_capacity(16, child.stdout.take().unwrap());
        reader.fill_buf().unwrap();
        drop(reader);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{args:?}");
    }
}
