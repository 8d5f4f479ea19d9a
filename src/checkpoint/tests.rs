use super::*;
use safetensors::tensor::{TensorView as Stored, serialize};
use tempfile::TempDir;

mod malformed;
mod torch_files;

const CONFIG: &str = r#"{"model_type": "test", "n_embd": 4}"#;

/// A folder with a valid `config.json` and these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), CONFIG).unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn open(files: &[(&str, &[u8])]) -> Result<Checkpoint, Error> {
    Checkpoint::open(folder(files))
}

/// A weights file with this header and data.
fn weights(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn open_weights_file(header: &str, data: &[u8]) -> Result<Checkpoint, Error> {
    open(&[("model.safetensors", &weights(header, data))])
}

/// A weights file as the safetensors crate writes it.
fn published(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views =
        tensors.iter().map(|&(name, dtype, shape, data)| (name, Stored::new(dtype, shape.to_vec(), data).unwrap()));
    serialize(views, None).unwrap()
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The error's message, checked to be one line that a terminal shows as it is.
#[track_caller]
fn message(result: Result<Checkpoint, Error>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 1000, "{} bytes", text.len());
    text
}

#[test]
fn a_single_file_is_read() {
    let floats = le(&[1.0, -2.5, f32::INFINITY, f32::NAN, 5.0, 6.0]);
    let halves: Vec<u8> = [0x3c00u16, 0x0001, 0xfc00].iter().flat_map(|h| h.to_le_bytes()).collect();
    let brains: Vec<u8> = [0x3f80u16, 0xc000, 0x7f80, 0x0001].iter().flat_map(|h| h.to_le_bytes()).collect();
    let file = published(&[
        ("b.weight", Dtype::F32, &[3, 2], &floats),
        ("a.half", Dtype::F16, &[3], &halves),
        ("c.brain", Dtype::BF16, &[2, 1, 2], &brains),
        ("d.int", Dtype::I64, &[1], &[0; 8]),
        ("e.scalar", Dtype::F32, &[], &floats[..4]),
        ("f.empty", Dtype::F32, &[0, 7], &[]),
    ]);
    let checkpoint = open(&[("model.safetensors", &file)]).unwrap();
    assert_eq!(
        checkpoint.names().collect::<Vec<_>>(),
        ["a.half", "b.weight", "c.brain", "d.int", "e.scalar", "f.empty"]
    );

    let b = checkpoint.tensor("b.weight").unwrap();
    assert_eq!((b.name, b.dtype, b.shape.as_slice()), ("b.weight", Dtype::F32, [3, 2].as_slice()));
    assert_eq!((b.rows(), b.row_len(), b.tensor_type()), (3, 2, Some(crate::gguf::TensorType::F32)));
    assert_eq!(le(&b.to_f32().unwrap()), floats, "NaN and infinity are kept");
    let mut rows = [0.0; 4];
    b.rows_f32(1..3, &mut rows).unwrap();
    assert_eq!(le(&rows), floats[8..]);
    b.rows_f32(3..3, &mut []).unwrap();

    let a = checkpoint.tensor("a.half").unwrap();
    assert_eq!(a.to_f32().unwrap(), [1.0, 2f32.powi(-24), f32::NEG_INFINITY]);
    assert_eq!((a.rows(), a.row_len()), (1, 3));
    let c = checkpoint.tensor("c.brain").unwrap();
    assert_eq!(c.to_f32().unwrap(), [1.0, -2.0, f32::INFINITY, f32::from_bits(1 << 16)]);
    assert_eq!((c.rows(), c.row_len()), (2, 2));
    assert_eq!(checkpoint.tensor("e.scalar").unwrap().to_f32().unwrap(), [1.0]);
    assert_eq!(checkpoint.tensor("f.empty").unwrap().to_f32().unwrap(), [0.0; 0]);
}

#[test]
fn what_a_tensor_cannot_give_is_an_error_that_names_it() {
    let file = published(&[
        ("ids", Dtype::I64, &[1], &[0; 8]),
        ("w", Dtype::F32, &[2, 2], &[0; 16]),
        ("x", Dtype::F8_E4M3, &[2], &[0; 2]),
    ]);
    let checkpoint = open(&[("model.safetensors", &file)]).unwrap();
    for (name, expected) in [("ids", Dtype::I64), ("x", Dtype::F8_E4M3)] {
        match checkpoint.tensor(name).unwrap().to_f32() {
            Err(Error::Dtype { tensor, dtype }) => {
                assert_eq!((tensor.as_str(), dtype), (name, expected))
            }
            other => panic!("{other:?}"),
        }
    }
    let w = checkpoint.tensor("w").unwrap();
    for rows in [0..3, 2..3, usize::MAX - 1..usize::MAX] {
        assert!(matches!(w.rows_f32(rows, &mut [0.0; 2]), Err(Error::Rows { rows: 2, .. })));
    }
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = w.rows_f32(1..0, &mut []);
    assert!(matches!(reversed, Err(Error::Rows { .. })));
    assert!(matches!(w.rows_f32(0..1, &mut [0.0; 3]), Err(Error::Buffer { expected: 2, found: 3, .. })));
    assert!(matches!(checkpoint.tensor("nothing"), Err(Error::NoTensor { .. })));
    assert!(!checkpoint.contains("nothing") && checkpoint.contains("w"));
}

/// The header may have any length, so the values may lie at any address.
#[test]
fn values_need_no_alignment() {
    for spaces in 0..8 {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}{}"#, " ".repeat(spaces));
        let checkpoint = open_weights_file(&header, &le(&[1.5, -2.0])).unwrap();
        assert_eq!(checkpoint.tensor("w").unwrap().to_f32().unwrap(), [1.5, -2.0]);
    }
}

#[test]
fn shards_are_joined_by_their_index() {
    let one = published(&[("a", Dtype::F32, &[1], &le(&[1.0])), ("tied", Dtype::F32, &[1], &le(&[7.0]))]);
    let two = published(&[
        ("b", Dtype::F32, &[1], &le(&[2.0])),
        ("tied", Dtype::F32, &[1], &le(&[8.0])),
        ("unnamed", Dtype::F32, &[1], &le(&[9.0])),
    ]);
    let index = br#"{"metadata": {"total_size": 8},
        "weight_map": {"b": "two.safetensors", "a": "one.safetensors", "tied": "one.safetensors"}}"#;
    let checkpoint =
        open(&[("one.safetensors", &one), ("two.safetensors", &two), ("model.safetensors.index.json", index)]).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "tied", "unnamed"]);
    let value = |name| checkpoint.tensor(name).unwrap().to_f32().unwrap()[0];
    assert_eq!(["a", "b", "tied", "unnamed"].map(value), [1.0, 2.0, 7.0, 9.0]);
}

#[test]
fn a_tensor_in_two_shards_needs_an_index_entry() {
    let one = published(&[("a", Dtype::F32, &[1], &[0; 4]), ("both", Dtype::F32, &[1], &[0; 4])]);
    let two = published(&[("b", Dtype::F32, &[1], &[0; 4]), ("both", Dtype::F32, &[1], &[0; 4])]);
    let index = br#"{"weight_map": {"a": "one", "b": "two"}}"#;
    let result = open(&[("one", &one), ("two", &two), ("model.safetensors.index.json", index)]);
    assert!(matches!(result, Err(Error::DuplicateTensor { tensor, .. }) if tensor == "both"));
}

#[test]
fn an_index_cannot_point_outside_its_folder() {
    let file = published(&[("a", Dtype::F32, &[1], &[0; 4])]);
    for name in [
        "../model.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "./one",
        "one/",
        "sub/one",
        "sub\\\\one",
        "C:one",
        "one\\u0000",
        "\\u001b[2Jone",
        &"../".repeat(5000),
    ] {
        let index = format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#);
        let result = open(&[("one", &file), ("model.safetensors.index.json", index.as_bytes())]);
        assert!(matches!(result, Err(Error::ShardName { .. })), "{name}: {result:?}");
        message(result);
    }
}

#[test]
fn a_wrong_index_is_refused() {
    let file = published(&[("a", Dtype::F32, &[1], &[0; 4])]);
    let with_index = |index: &str| open(&[("one", &file), ("model.safetensors.index.json", index.as_bytes())]);
    let result = with_index(r#"{"weight_map": {"a": "gone.safetensors"}}"#);
    assert!(matches!(&result, Err(Error::MissingShard { shard, .. }) if shard.ends_with("gone.safetensors")));
    let result = with_index(r#"{"weight_map": {"a": "one", "b": "one"}}"#);
    assert!(matches!(&result, Err(Error::NotInShard { tensor, .. }) if tensor == "b"));
    for (index, expected) in [
        (r#"{"weight_map": {"a": "one", "a": "one"}}"#, "\"a\" is there twice"),
        (r#"{"weight_map": {}, "weight_map": {}}"#, "duplicate field"),
        (r#"{"weight_map": {"a": 3}}"#, "expected a string"),
        (r#"{"weight_map": ["a"]}"#, "expected an object"),
        ("{}", "missing field `weight_map`"),
        ("[3]", "expected"),
        ("", "EOF"),
    ] {
        let text = message(with_index(index));
        assert!(text.contains(expected) && text.contains("index.json: "), "{index}: {text}");
    }
}

#[test]
fn missing_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let text = message(Checkpoint::open(empty.path()));
    assert!(text.contains("holds no config.json; a published checkpoint has"), "{text}");
    assert!(matches!(open(&[]), Err(Error::NoWeights { .. })));
    for name in ["lit_model.pth", "pytorch_model-00001-of-00002.bin"] {
        let result = open(&[(name, b"\x80\x02"), ("README.md", b"")]);
        assert!(matches!(&result, Err(Error::UnknownName { path }) if path.ends_with(name)), "{result:?}");
        message(result);
    }
    for name in ["pytorch_model.bin", "model.pt", "model.pth", "model.bin"] {
        let result = open(&[(name, b"\x80\x02"), ("README.md", b"")]);
        let text = message(result);
        assert!(text.contains(&format!("{name}: no PyTorch file: it does not begin like a zip archive")), "{text}");
    }
    let file = empty.path().join("model.safetensors");
    assert!(matches!(Checkpoint::open(&file), Err(Error::Io { .. })));
    fs::write(&file, b"").unwrap();
    assert!(matches!(Checkpoint::open(&file), Err(Error::NotAFolder { .. })));
    let folder = folder(&[]);
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(matches!(Checkpoint::open(folder), Err(Error::NotAFile { .. })));
}

#[test]
fn optional_files_are_read() {
    let file = published(&[]);
    let plain = open(&[("model.safetensors", &file)]).unwrap();
    assert_eq!(plain.config().require_usize("n_embd").unwrap(), 4);
    assert!(plain.generation_config().is_none() && plain.tokenizer_config().is_none());
    assert!(plain.tokenizer_json().is_none() && plain.chat_template().is_none());

    let full = open(&[
        ("model.safetensors", &file),
        ("generation_config.json", br#"{"eos_token_id": [1, 4]}"#),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", br#"{"chat_template": "{{ messages }}"}"#),
    ])
    .unwrap();
    assert!(full.generation_config().unwrap().get("eos_token_id").unwrap().is_array());
    assert_eq!(full.tokenizer_json(), Some("{}"));
    assert_eq!(full.chat_template(), Some("{{ messages }}"));
}

#[test]
fn chat_templates_come_in_several_forms() {
    let file = published(&[]);
    let template = |config: &str, jinja: Option<&str>| {
        let mut files: Vec<(&str, &[u8])> =
            vec![("model.safetensors", &file), ("tokenizer_config.json", config.as_bytes())];
        files.extend(jinja.map(|text| ("chat_template.jinja", text.as_bytes())));
        open(&files).map(|checkpoint| checkpoint.chat_template().map(str::to_owned))
    };
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    assert_eq!(template(list, None).unwrap().as_deref(), Some("D"));
    assert_eq!(template(list, Some("J")).unwrap().as_deref(), Some("J"));
    let other = r#"{"chat_template": [{"name": "tool_use", "template": "T"}]}"#;
    assert_eq!(template(other, None).unwrap(), None);
    assert_eq!(template(r#"{"chat_template": null}"#, None).unwrap(), None);
    for wrong in ["3", "{}", "[3]", r#"[{"name": "default"}]"#, r#"[{"name": 1, "template": "T"}]"#] {
        let result = template(&format!(r#"{{"chat_template": {wrong}}}"#), None);
        assert!(matches!(result, Err(Error::KeyType { .. })), "{wrong}: {result:?}");
    }
}
