//! What rdt-quantize writes, says and refuses.

use std::fs;
use std::path::Path;

use rdt::gguf::{Header, Metadata, TensorDecl, TensorType, Value};
use serde_json::Value as Json;

use crate::models::{Parts, chat_checkpoint, checkpoint, gguf};
use crate::programs::{Outcome, QUANTIZE, TRACE, names_in, run};

fn quantize(folder: &Path, args: &[&str]) -> Outcome {
    run(QUANTIZE, folder, args)
}

#[test]
fn the_output_is_named_after_input_and_type() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint();
    let model = model.to_str().unwrap();
    let said = quantize(dir.path(), &[model]).ok("a folder").stdout;
    assert!(said.contains("wrote huginn-hops-q4_k_m.gguf"), "{said}");
    assert!(
        said.contains("blk.0.attn_q.weight and 21 more are iq4_nl: rows of 128 do not divide into q4_K blocks of 256"),
        "{said}"
    );
    quantize(dir.path(), &[&format!("{model}/."), "--type", "F16"]).ok("a folder with a dot");
    quantize(dir.path(), &["huginn-hops-f16.gguf", "--type", "q8_0"]).ok("a file");
    assert_eq!(names_in(dir.path()), ["huginn-hops-f16.gguf", "huginn-hops-q4_k_m.gguf", "huginn-hops-q8_0.gguf"]);
}

#[test]
fn a_gguf_on_the_way_changes_nothing() {
    for recipe in ["f32", "f16", "bf16", "q8_0", "q4_0"] {
        let dir = tempfile::tempdir().unwrap();
        let direct = gguf(recipe);
        fs::write(dir.path().join("f32.gguf"), gguf("f32")).unwrap();
        quantize(dir.path(), &["f32.gguf", "twice.gguf", "--type", recipe]).ok(recipe);
        assert_eq!(fs::read(dir.path().join("twice.gguf")).unwrap(), direct, "{recipe}");
        let said = quantize(dir.path(), &["twice.gguf", "same.gguf", "--type", recipe]).ok(recipe);
        assert_eq!(said.stderr, "", "{recipe}: nothing is rounded again");
        assert_eq!(fs::read(dir.path().join("same.gguf")).unwrap(), direct, "{recipe} of {recipe}");
        quantize(dir.path(), &["twice.gguf", "kept.gguf", "--type", "published"]).ok(recipe);
        let (kept, direct) = (fs::read(dir.path().join("kept.gguf")).unwrap(), Parts::of(&direct));
        assert_eq!(Parts::of(&kept).tensors, direct.tensors, "{recipe} as published");
    }
}

#[test]
fn the_file_type_is_llama_cpps() {
    let mixed = [("q4_k_m", 15), ("q5_k_m", 17), ("iq4_nl", 25), ("pure:q5_1", 9)];
    for (recipe, id) in
        [("f32", 0), ("f16", 1), ("q4_0", 2), ("q8_0", 7), ("bf16", 32), ("published", 0)].into_iter().chain(mixed)
    {
        let header = Header::parse(&gguf(recipe)).unwrap();
        assert_eq!(header.metadata.get("general.file_type"), Some(&Value::U32(id)), "{recipe}");
    }
}

#[test]
fn the_summary_adds_up() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint();
    let model = model.to_str().unwrap();
    let dry = quantize(dir.path(), &[model, "out.gguf", "--dry-run", "--json"]).ok("dry run");
    let plan = quantize(dir.path(), &[model, "out.gguf", "--dry-run"]).ok("dry run");
    assert!(plan.stdout.contains("blk.0.attn_q.weight") && plan.stdout.contains("would write"), "{}", plan.stdout);
    assert_eq!(names_in(dir.path()), [""; 0], "a dry run writes nothing");
    let wet = quantize(dir.path(), &[model, "out.gguf", "--json"]).ok("json");
    let [mut dry, mut wet]: [Json; 2] = [dry, wet].map(|o| serde_json::from_str(&o.stdout).unwrap());
    assert_eq!((&dry["written"], &wet["written"]), (&false.into(), &true.into()));
    for summary in [&mut dry, &mut wet] {
        let fields = summary.as_object_mut().unwrap();
        fields.remove("written");
        assert!(fields.remove("seconds").unwrap().as_f64().unwrap() >= 0.0);
    }
    assert_eq!(dry, wet);

    let file = fs::read(dir.path().join("out.gguf")).unwrap();
    let header = Header::parse(&file).unwrap();
    let bytes: usize = header.tensors.iter().map(|t| t.bytes).sum();
    let values: usize = header.tensors.iter().map(|t| t.dims.iter().product::<usize>()).sum();
    assert_eq!(wet["file_bytes"], file.len());
    assert_eq!(wet["bytes_after"], bytes);
    assert_eq!(wet["values"], values);
    assert_eq!(wet["bytes_before"], 4 * values, "the checkpoint is f32");
    assert_eq!(wet["tensor_count"], header.tensors.len());
    assert_eq!(wet["bits_per_weight"], 8.0 * bytes as f64 / values as f64);
    let sum = |field: &str| wet["types"].as_array().unwrap().iter().map(|t| t[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("bytes"), sum("tensors")), (bytes as u64, header.tensors.len() as u64));

    let table = quantize(dir.path(), &[model, "out.gguf"]).ok("table").stdout;
    let row = |name: &str| table.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert!(row("all").split_whitespace().any(|word| word == values.to_string()), "{table}");
    assert!(row("before").ends_with("32.00"), "{table}");
}

#[test]
fn a_fallback_is_told() {
    let mut parts = Parts::of(&gguf("f32"));
    parts.metadata.insert("general.architecture", "other");
    for (name, k) in [("blk.0.ffn_up.weight", 48), ("stranger", 48)] {
        parts.tensors.retain(|(d, _)| d.name != name);
        let decl = TensorDecl { name: name.into(), ty: TensorType::F32, dims: vec![k, 2] };
        parts.tensors.push((decl, vec![0; 8 * k]));
    }
    let integers = TensorDecl { name: "blk.0.attn_q.bias".into(), ty: TensorType::I32, dims: vec![4] };
    parts.tensors.retain(|(d, _)| d.name != integers.name);
    parts.tensors.push((integers, (0..16).collect()));
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    let outcome = quantize(dir.path(), &["m.gguf", "out.gguf"]).ok("an unknown architecture");
    assert!(outcome.stderr.contains("'other' is not known"), "{}", outcome.stderr);
    for line in ["blk.0.ffn_up.weight is f16: rows of 48", "stranger is f32: not known", "attn_q.bias is i32"] {
        assert!(outcome.stdout.contains(line), "{line}: {}", outcome.stdout);
    }
    let (before, after) = (parts, Parts::of(&fs::read(dir.path().join("out.gguf")).unwrap()));
    for name in ["stranger", "blk.0.attn_q.bias"] {
        let of = |p: &Parts| p.tensors.iter().find(|(d, _)| d.name == name).cloned();
        assert_eq!(of(&before), of(&after), "{name}");
    }
}

#[test]
fn formats_that_cannot_be_read_are_named() {
    let mut parts = Parts::of(&gguf("f32"));
    parts.metadata.insert("general.architecture", "other");
    parts.tensors = vec![(
        TensorDecl { name: "blk.0.ffn_up.weight".into(), ty: TensorType::IQ3_S, dims: vec![256, 2] },
        vec![0; 220],
    )];
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), parts.file()).unwrap();
    let outcome = quantize(dir.path(), &["m.gguf", "out.gguf", "--type", "f16"]);
    assert!(outcome.refused(1, "iq3_s").contains("iq3_s"));
    assert_eq!(names_in(dir.path()), ["m.gguf"]);
    quantize(dir.path(), &["m.gguf", "out.gguf", "--type", "published"]).ok("kept as it is");
    assert_eq!(Parts::of(&fs::read(dir.path().join("out.gguf")).unwrap()).tensors, parts.tensors);
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint();
    let model = model.to_str().unwrap();
    for recipe in ["q4_0", "published"] {
        let [one, more @ ..] = ["1", "2", "7"].map(|threads| {
            quantize(dir.path(), &[model, "out.gguf", "--type", recipe, "-t", threads]).ok(threads);
            fs::read(dir.path().join("out.gguf")).unwrap()
        });
        assert!(more.iter().all(|bytes| *bytes == one), "{recipe}");
    }
}

/// A GGUF with these values at the start of two tensors.
fn spoiled(dir: &Path, values: [f32; 2]) {
    let mut parts = Parts::of(&gguf("f32"));
    for (name, values) in [("blk.0.attn_k.weight", &values[..1]), ("blk.1.ffn_up.weight", &values[..])] {
        let tensor = parts.tensors.iter_mut().find(|(d, _)| d.name == name).unwrap();
        for (bytes, value) in tensor.1.as_chunks_mut().0.iter_mut().skip(3).zip(values) {
            *bytes = value.to_le_bytes();
        }
    }
    fs::write(dir.join("m.gguf"), parts.file()).unwrap();
}

#[test]
fn all_tensors_that_are_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    spoiled(dir.path(), [f32::NAN, f32::INFINITY]);
    let outcome = quantize(dir.path(), &["m.gguf", "out.gguf"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""), "{outcome:?}");
    let said: Vec<_> = outcome.stderr.lines().collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said[0].ends_with("'blk.0.attn_k.weight' has 1 value NaN or infinite, the first NaN at row 0, column 3"));
    assert!(said[1].ends_with("'blk.1.ffn_up.weight' has 2 values NaN or infinite, the first NaN at row 0, column 3"));
    assert!(said[2].contains("m.gguf: 2 tensors") && said[2].contains("--allow-non-finite"), "{said:?}");
    assert_eq!(names_in(dir.path()), ["m.gguf"]);

    for recipe in ["q4_0", "f16", "published"] {
        let args = ["m.gguf", "out.gguf", "--allow-non-finite", "--type", recipe];
        let outcome = quantize(dir.path(), &args).ok("as wished");
        let said: Vec<_> = outcome.stderr.lines().collect();
        assert!(said.len() == 2 && said[0].contains("attn_k") && said[1].contains("ffn_up"), "{said:?}");
        let parts = Parts::of(&fs::read(dir.path().join("out.gguf")).unwrap());
        let (decl, bytes) = parts.tensors.iter().find(|(d, _)| d.name == "blk.1.ffn_up.weight").unwrap();
        let mut values = vec![0.0; decl.dims.iter().product()];
        rdt::quant::dequantize_rows(decl.ty, bytes, decl.dims[0], &mut values).unwrap();
        if recipe != "q4_0" {
            assert!(values[3].is_nan() && values[4] == f32::INFINITY && values[5].is_finite());
        }
    }
}

#[test]
fn values_too_large_for_the_type_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    spoiled(dir.path(), [1.0, -1e6]);
    let args = ["m.gguf", "out.gguf", "--type", "f16"];
    for more in [&[][..], &["--allow-non-finite"]] {
        let line = quantize(dir.path(), &[&args[..], more].concat()).refused(1, "f16");
        assert!(line.contains("'blk.1.ffn_up.weight' has 1 value that f16 cannot hold"), "{line}");
        assert!(line.contains("the first -1000000 at row 0, column 4") && !line.contains("--allow"), "{line}");
    }
    quantize(dir.path(), &["m.gguf", "out.gguf", "--type", "bf16"]).ok("a type with a larger range");
}

/// The files that a GGUF was cut into.
fn cut(dir: &Path, file: &[u8], count: u16) {
    let whole = Parts::of(file);
    let tensors = whole.tensors.len();
    let mut rest = whole.tensors;
    for number in 0..count {
        let mut metadata = if number == 0 { whole.metadata.clone() } else { Metadata::new() };
        metadata.insert("split.no", number);
        metadata.insert("split.count", count);
        metadata.insert("split.tensors.count", tensors as i32);
        let here = if number + 1 == count { rest.len() } else { tensors / usize::from(count) };
        let part = Parts { metadata, tensors: rest.drain(..here).collect() };
        fs::write(dir.join(format!("m-f32-{:05}-of-{count:05}.gguf", number + 1)), part.file()).unwrap();
    }
}

#[test]
fn a_gguf_in_several_files_is_one_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    cut(dir.path(), &gguf("f32"), 3);
    for part in 1..=3 {
        quantize(dir.path(), &[&format!("m-f32-{part:05}-of-00003.gguf")]).ok("any of them");
        assert_eq!(fs::read(file("m-q4_k_m.gguf")).unwrap(), gguf("q4_k_m"), "{part}");
    }
    let [first, second, third] = [1, 2, 3].map(|part| format!("m-f32-{part:05}-of-00003.gguf"));
    assert!(quantize(dir.path(), &[&first, &third]).refused(1, "a part").contains("is the input"));
    let trace = run(TRACE, dir.path(), &["-m", &first, "--tokens", "1", "--out", "out"]);
    assert!(trace.refused(1, "run").contains("one of 3 files"));

    fs::write(file("renamed.gguf"), fs::read(file(&first)).unwrap()).unwrap();
    assert!(quantize(dir.path(), &["renamed.gguf", "out.gguf"]).refused(1, "a name").contains("NAME-00001-of-00003"));
    let good = fs::read(file(&second)).unwrap();
    fs::write(file(&second), fs::read(file(&third)).unwrap()).unwrap();
    let line = quantize(dir.path(), &[&first, "out.gguf"]).refused(1, "one twice");
    assert!(line.contains(&second) && line.contains("split.no is 2; expected 1"), "{line}");
    let mut part = Parts::of(&good);
    part.tensors.pop();
    fs::write(file(&second), part.file()).unwrap();
    assert!(quantize(dir.path(), &[&first, "out.gguf"]).refused(1, "one too few").contains("tensors; expected"));
    fs::remove_file(file(&second)).unwrap();
    let line = quantize(dir.path(), &[&first, "out.gguf"]).refused(1, "a missing file");
    assert!(line.contains(&second) && line.contains("all 3 files"), "{line}");
    assert!(!file("out.gguf").exists());
}

#[test]
fn rounding_twice_is_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), gguf("q8_0")).unwrap();
    let outcome = quantize(dir.path(), &["m.gguf", "out.gguf", "--type", "q4_0"]).ok("again");
    assert!(outcome.stderr.contains("already quantised (q8_0)"), "{}", outcome.stderr);
    let outcome = quantize(dir.path(), &["m.gguf", "out.gguf", "--type", "f32"]).ok("widening rounds nothing");
    assert_eq!(outcome.stderr, "");
}

#[test]
fn what_must_not_be_replaced_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let model = gguf("f16");
    fs::write(file("m.gguf"), &model).unwrap();
    fs::write(file("notes.txt"), "precious").unwrap();
    fs::write(file("empty"), "").unwrap();
    fs::create_dir(file("folder")).unwrap();
    for output in ["m.gguf", "./m.gguf", "folder/../m.gguf"] {
        assert!(quantize(dir.path(), &["m.gguf", output]).refused(1, output).contains("is the input"));
    }
    assert!(quantize(dir.path(), &["m.gguf", "notes.txt"]).refused(1, "a text").contains("is no GGUF"));
    quantize(dir.path(), &["m.gguf", "folder"]).refused(1, "a folder");
    quantize(dir.path(), &["m.gguf", "nowhere/out.gguf"]).refused(1, "no folder");
    assert_eq!(fs::read(file("m.gguf")).unwrap(), model);
    assert_eq!(fs::read(file("notes.txt")).unwrap(), b"precious");
    quantize(dir.path(), &["m.gguf", "empty"]).ok("an empty file");
    quantize(dir.path(), &["m.gguf", "empty"]).ok("an older GGUF");
    assert_eq!(names_in(dir.path()), ["empty", "folder", "m.gguf", "notes.txt"]);
}

#[test]
fn tokenizer_and_stop_tokens_come_along() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint();
    let outcome = quantize(dir.path(), &[model.to_str().unwrap(), "m.gguf"]).ok("with a tokenizer");
    assert_eq!(outcome.stderr, "", "nothing to note");
    let header = Header::parse(&fs::read(dir.path().join("m.gguf")).unwrap()).unwrap();
    let json = fs::read_to_string(model.join("tokenizer.json")).unwrap();
    assert_eq!(header.metadata.str("tokenizer.huggingface.json").unwrap(), Some(json.as_str()));
    let id = |name: &str| header.metadata.u32(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
    assert_eq!((id("bos"), id("eos"), id("eot"), id("padding")), (Some(0), Some(1), Some(4), Some(5)));
    assert_eq!(header.metadata.i64s("rdt.stop_token_ids").unwrap(), Some(vec![1, 4]));

    let outcome = quantize(dir.path(), &[checkpoint().to_str().unwrap(), "none.gguf"]).ok("without a tokenizer");
    assert!(outcome.stderr.contains("no tokenizer.json"), "{}", outcome.stderr);
}

#[test]
fn families_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let shown = run(QUANTIZE, dir.path(), &["--list-families"]).ok("list").stdout;
    let json: Json =
        serde_json::from_str(&run(QUANTIZE, dir.path(), &["--list-families", "--json"]).ok("JSON").stdout).unwrap();
    for (family, json) in rdt::arch::families().iter().zip(json.as_array().unwrap()) {
        assert!(shown.lines().any(|l| l == family.name), "{shown}");
        assert_eq!(json["name"], family.name);
        assert_eq!(json["checkpoints"], family.checkpoints);
    }
    assert!(shown.contains("huginn-0125") && shown.contains("ParcaeConfig"), "{shown}");
    run(QUANTIZE, dir.path(), &["in", "--list-families"]).refused(2, "an input that is not looked at");
    run(QUANTIZE, dir.path(), &["--json"]).refused(2, "no input");
}
