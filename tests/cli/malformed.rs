//! Malformed model files: each gives one line and exit code 1, whichever program opens it, and no output.

use std::fs;

use rayon::prelude::*;
use rdt::gguf::{Array, TensorDecl, TensorType, Value};

use crate::models::{Parts, gguf};
use crate::programs::{INSPECT, Outcome, QUANTIZE, TRACE, names_in, run};

const PROGRAMS: [&str; 3] = [TRACE, QUANTIZE, INSPECT];
/// The programs that want a whole model, not only a well-formed file.
const RUNNERS: [&str; 2] = [TRACE, QUANTIZE];

/// Opens a file with a program, and makes sure that a failure leaves nothing behind.
fn open(program: &'static str, file: &[u8]) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), file).unwrap();
    let args: &[&str] = match program {
        TRACE => &["-m", "m.gguf", "--tokens", "1", "--steps", "1", "-t", "1", "--out", "out"],
        QUANTIZE => &["m.gguf", "out", "--type", "q8_0", "-t", "1"],
        _ => &["m.gguf"],
    };
    let outcome = run(program, dir.path(), args);
    if outcome.code != Some(0) {
        assert_eq!(names_in(dir.path()), ["m.gguf"]);
    }
    outcome
}

/// Every one of `programs` refuses every file.
fn refuse(programs: &[&'static str], files: &[(String, Vec<u8>)]) {
    files.par_iter().for_each(|(what, file)| {
        for program in programs {
            let line = open(program, file).refused(1, what);
            assert!(line.contains("m.gguf"), "{what}: names the file: {line}");
        }
    });
}

#[test]
fn the_good_file_is_accepted() {
    for recipe in ["f32", "q4_0"] {
        for program in PROGRAMS {
            open(program, &gguf(recipe)).ok(recipe);
        }
    }
}

#[test]
fn files_cut_short() {
    let file = gguf("q4_0");
    let lengths = (0..file.len()).step_by(64).chain([1, 3, 4, 5, 8, 24, file.len() - 1]);
    let files: Vec<_> = lengths.map(|n| (format!("cut to {n} bytes"), file[..n].to_vec())).collect();
    refuse(&PROGRAMS, &files);
}

/// Where `text` stands in the file with its length before it; the place after it.
fn after(file: &[u8], text: &str) -> usize {
    let pattern = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let at = file.windows(pattern.len()).position(|w| w == pattern).unwrap();
    at + pattern.len()
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

#[test]
fn damaged_headers() {
    let mut parts = Parts::of(&gguf("q4_0"));
    parts.metadata.insert("x.numbers", vec![1u32, 2, 3]);
    parts.metadata.insert("x.strings", vec!["a".to_owned(), "b".to_owned()]);
    parts.metadata.insert("x.text", "hello");
    parts.metadata.insert("x.bool", true);
    parts.metadata.insert("general.alignment", 32u32);
    let good = parts.file();
    for program in PROGRAMS {
        open(program, &good).ok("keys of others do no harm");
    }

    const TENSOR: &str = "blk.0.attn_q.weight";
    let first = &parts.tensors[0].0.name;
    let (key, tensor) = (|k: &str| after(&good, k), after(&good, TENSOR));
    let huge = (1u64 << 63).to_le_bytes();
    let mut files = vec![];
    let mut case = |what: &str, at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        put(&mut file, at, bytes);
        files.push((what.to_owned(), file));
    };
    case("no magic", 0, b"GGML");
    case("version 99", 4, &99u32.to_le_bytes());
    case("big-endian", 4, &3u32.to_be_bytes());
    case("2^63 tensors", 8, &huge);
    case("2^64 - 1 tensors", 8, &u64::MAX.to_le_bytes());
    case("one tensor too few", 8, &(parts.tensors.len() as u64 + 1).to_le_bytes());
    case("2^63 keys", 16, &huge);
    case("a key of 2^63 bytes", 24, &huge);
    case("a key of no bytes", 24, &[0; 8]);
    case("a key that is not UTF-8", key("x.text") - 1, &[0xff]);
    case("a value of an unknown type", key("x.text"), &77u32.to_le_bytes());
    case("a string of 2^63 bytes", key("x.text") + 4, &huge);
    case("a string that is not UTF-8", key("x.text") + 12, &[0xc3, 0x28]);
    case("a string as a number", key("x.text"), &4u32.to_le_bytes());
    case("an array of an unknown type", key("x.numbers") + 4, &77u32.to_le_bytes());
    case("an array of 2^63 numbers", key("x.numbers") + 8, &huge);
    case("an array of 2^62 numbers", key("x.numbers") + 8, &(1u64 << 62).to_le_bytes());
    case("an array of 2^63 strings", key("x.strings") + 8, &huge);
    case("a string in an array of 2^63 bytes", key("x.strings") + 16, &huge);
    case("a bool of 2", key("x.bool") + 4, &[2]);
    case("an alignment of 0", key("general.alignment") + 4, &0u32.to_le_bytes());
    case("an alignment of 3", key("general.alignment") + 4, &3u32.to_le_bytes());
    case("an alignment of 2^31", key("general.alignment") + 4, &(1u32 << 31).to_le_bytes());
    case("a key that stands twice", key("x.bool") - 6, b"x.text");
    case("a tensor name of 2^63 bytes", tensor - TENSOR.len() - 8, &huge);
    case("a tensor name that is not UTF-8", tensor - 1, &[0xff]);
    case("a tensor name that stands twice", tensor - TENSOR.len(), b"blk.0.attn_k.weight");
    case("no dimensions", tensor, &0u32.to_le_bytes());
    case("2^31 dimensions", tensor, &(1u32 << 31).to_le_bytes());
    case("rows of 0", tensor + 4, &[0; 8]);
    case("0 rows", tensor + 12, &[0; 8]);
    case("rows of 2^63", tensor + 4, &huge);
    case("2^63 rows", tensor + 12, &huge);
    case("a shape whose product wraps round", tensor + 4, &(1u64 << 32).to_le_bytes().repeat(2));
    case("rows that are no whole blocks", tensor + 4, &33u64.to_le_bytes());
    case("an unknown tensor type", tensor + 20, &4u32.to_le_bytes());
    case("a larger tensor type", tensor + 20, &0u32.to_le_bytes());
    case("an offset of 2^63", tensor + 24, &huge);
    case("an offset that is not aligned", tensor + 24, &[1]);
    case("the offset of the first tensor", tensor + 24, &[0; 8]);
    case("an offset into the first tensor", after(&good, &parts.tensors[1].0.name) + 24, &32u64.to_le_bytes());
    case("an offset past the end", after(&good, first) + 24, &(1u64 << 40).to_le_bytes());
    files.push(("text".into(), b"{\"model_type\": \"huginn_raven\"}".to_vec()));
    files.push(("zeros".into(), vec![0; 4096]));
    refuse(&PROGRAMS, &files);
}

/// Keys that a model can do without: their values follow from others.
const OPTIONAL: [&str; 5] = [
    "huginn.attention.head_count_kv",
    "huginn.attention.key_length",
    "huginn.attention.value_length",
    "huginn.rope.dimension_count",
    "huginn.loop.state_length",
];

#[test]
fn missing_keys() {
    let parts = Parts::of(&gguf("q4_0"));
    let keys: Vec<_> = parts.metadata.iter().map(|(key, _)| key.to_owned()).collect();
    let required = keys.iter().filter(|key| key.starts_with("huginn.") && !OPTIONAL.contains(&key.as_str()));
    let without = |key: &String| {
        let mut parts = parts.clone();
        parts.metadata.remove(key);
        (format!("without {key}"), parts.file())
    };
    let files: Vec<_> = required.map(without).collect();
    assert!(files.len() > 20);
    refuse(&RUNNERS, &files);
    refuse(&[TRACE], &[without(&"general.architecture".to_owned())]);
    for (what, file) in &files {
        open(INSPECT, file).ok(what);
    }
}

#[test]
fn keys_of_the_wrong_type() {
    let parts = Parts::of(&gguf("q4_0"));
    let mut files = vec![];
    for (key, value) in parts.metadata.iter().filter(|(key, _)| key.starts_with("huginn.")) {
        let others: [Value; 6] = [
            "8".into(),
            8u32.into(),
            8.0f32.into(),
            true.into(),
            (-1i32).into(),
            Value::Array(Array::String(vec!["8".into(); 3])),
        ];
        for other in others {
            let number = matches!(value, Value::U32(_)) && matches!(other, Value::U32(_));
            if std::mem::discriminant(value) != std::mem::discriminant(&other) && !number {
                let mut parts = parts.clone();
                let what = format!("{key} is {other:?}");
                parts.metadata.insert(key, other);
                files.push((what, parts.file()));
            }
        }
    }
    refuse(&RUNNERS, &files);
}

#[test]
fn absurd_sizes() {
    let parts = Parts::of(&gguf("q4_0"));
    let mut files = vec![];
    for (key, value) in parts.metadata.iter().filter(|(key, _)| key.starts_with("huginn.")) {
        let &Value::U32(value) = value else { continue };
        for size in [0, 1, 7, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 63, u64::MAX] {
            let mut parts = parts.clone();
            parts.metadata.insert(key, size);
            // A model may be made for any context, and for any mean depth.
            let free = ["huginn.context_length", "huginn.loop.mean_steps"].contains(&key) && (1..8).contains(&size);
            if free || size == u64::from(value) {
                open(TRACE, &parts.file()).ok(&format!("{key} is {size}"));
            } else {
                files.push((format!("{key} is {size}"), parts.file()));
            }
        }
    }
    assert!(files.len() > 90);
    refuse(&RUNNERS, &files);
}

#[test]
fn absurd_numbers_and_names() {
    let parts = Parts::of(&gguf("q4_0"));
    let mut files = vec![];
    for (key, value) in parts.metadata.iter().filter(|(key, _)| key.starts_with("huginn.")) {
        let values: Vec<Value> = match value {
            Value::F32(_) => [f32::NAN, f32::INFINITY, -1.0].map(Value::F32).into(),
            Value::String(_) => vec!["".into(), "\x1b[31mred\n".into(), "x".repeat(100_000).into()],
            _ => continue,
        };
        for value in values {
            let mut parts = parts.clone();
            let what = format!("{key} is {value:.80?}");
            parts.metadata.insert(key, value);
            files.push((what, parts.file()));
        }
    }
    assert!(files.len() > 20);
    refuse(&RUNNERS, &files);
    let mut stranger = parts.clone();
    stranger.metadata.insert("general.architecture", "\x1b]0;gotcha\x07\nllama");
    let line = open(TRACE, &stranger.file()).refused(1, "an unknown architecture");
    assert!(line.contains("llama") && line.contains("huginn"), "{line}");
}

#[test]
fn tensors_that_do_not_fit() {
    let good = Parts::of(&gguf("q4_0"));
    let mut files = vec![];
    let mut case = |what: String, change: &dyn Fn(&mut Parts)| {
        let mut parts = good.clone();
        change(&mut parts);
        files.push((what, parts.file()));
    };
    for (i, (decl, data)) in good.tensors.iter().enumerate() {
        let name = &decl.name;
        // Without a head of its own a model is tied; biases are optional.
        if name != "output.weight" && !name.ends_with(".bias") {
            case(format!("without {name}"), &|p| drop(p.tensors.remove(i)));
        }
        case(format!("one row more in {name}"), &|p| {
            let row = decl.ty.row_bytes(decl.dims[0]).unwrap();
            let (dims, bytes) = if decl.dims.len() == 1 { (0, 4) } else { (1, row) };
            p.tensors[i].0.dims[dims] += 1;
            p.tensors[i].1.extend(vec![0; bytes]);
        });
        case(format!("another dimension in {name}"), &|p| {
            p.tensors[i].0.dims.push(2);
            p.tensors[i].1.extend(data);
        });
        case(format!("{name} as i8"), &|p| {
            p.tensors[i].0.ty = TensorType::I8;
            p.tensors[i].1 = vec![0; decl.dims.iter().product()];
        });
        case(format!("{name} under another name"), &|p| p.tensors[i].0.name = format!("{name}\x1b[2J\n"));
    }
    let extra = TensorDecl { name: "blk.9.attn_q.weight".into(), ty: TensorType::F32, dims: vec![4] };
    case("a tensor too many".into(), &|p| p.tensors.push((extra.clone(), vec![0; 16])));
    let long = TensorDecl { name: "x".repeat(65_535), ..extra.clone() };
    case("a tensor too many with a long name".into(), &|p| p.tensors.push((long.clone(), vec![0; 16])));
    // A missing bias under another name is a tensor too many, and the head under another name too.
    refuse(&RUNNERS, &files);
}

#[test]
fn weights_that_are_not_finite() {
    let mut parts = Parts::of(&gguf("f32"));
    let i = parts.tensors.iter().position(|(d, _)| d.name == "blk.1.ffn_up.weight").unwrap();
    parts.tensors[i].1[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    let file = parts.file();
    let line = open(QUANTIZE, &file).refused(1, "a NaN among the weights");
    assert!(
        line.contains("m.gguf: ") && line.contains("blk.1.ffn_up.weight") && line.contains("row 0, column 1"),
        "{line}"
    );
    // It shows only when the loop runs, after the line that says how.
    let outcome = open(TRACE, &file);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let lines: Vec<_> = outcome.stderr.lines().collect();
    assert!(lines.len() == 2 && lines[1].contains("not finite after loop step 1"), "{outcome:?}");
}

#[test]
fn what_is_no_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let mut paths = vec!["missing.gguf", "folder", "", "folder/.."];
    if cfg!(unix) {
        paths.push("/dev/null");
    }
    for path in paths {
        for (program, args) in [
            (TRACE, vec!["-m", path, "--tokens", "1", "--out", "out"]),
            (QUANTIZE, vec![path, "out"]),
            (INSPECT, vec![path]),
        ] {
            // An empty value is wrong usage.
            let code = if path.is_empty() { 2 } else { 1 };
            run(program, dir.path(), &args).refused(code, path);
        }
    }
    assert_eq!(names_in(dir.path()), ["folder"]);
}
