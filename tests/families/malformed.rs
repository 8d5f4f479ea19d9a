//! Files of a family with something wrong in them: each gives one line, and the line says what.

use crate::common::{data, gguf};
use rdt::arch;
use rdt::checkpoint::Checkpoint;
use rdt::files::Bytes;
use rdt::gguf::{Header, Value as Key};
use rdt::quant::Recipe;
use serde_json::{Value, json};
use std::fs;

/// What is said of a checkpoint whose configuration is changed.
fn refused_config(folder: &str, change: impl Fn(&mut Value)) -> String {
    let copy = tempfile::tempdir().unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(data(folder).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    for weights in ["model.safetensors", "pytorch_model.bin"].map(|name| data(folder).join(name)) {
        if let (true, Some(name)) = (weights.exists(), weights.file_name()) {
            fs::copy(&weights, copy.path().join(name)).unwrap();
        }
    }
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    arch::conversion(&checkpoint).map(|_| ()).unwrap_err().to_string()
}

/// Every change of one key of config.json is refused, by a line with all of these words.
pub(crate) fn configs(folder: &str, cases: &[(&str, Value, &[&str])]) {
    for (key, value, words) in cases {
        let line = refused_config(folder, |c| c[key] = value.clone());
        assert!(!line.contains('\n') && words.iter().all(|w| line.contains(w)), "{key} = {value}: {line}");
        assert!(line.len() < 300, "{line}");
    }
}

/// Every change of one key of the model file (`None`: without it) is refused, by a line with all of these words.
pub(crate) fn keys(folder: &str, cases: &[(&str, Option<Key>, &[&str])]) {
    let checkpoint = Checkpoint::open(data(folder)).unwrap();
    let plan = arch::conversion(&checkpoint).unwrap();
    for (key, value, words) in cases {
        let mut plan = plan.clone();
        match value {
            Some(value) => drop(plan.metadata.insert(*key, value.clone())),
            None => assert!(plan.metadata.remove(key).is_some(), "{key} is not there"),
        }
        let input = arch::Input::Checkpoint(&checkpoint);
        let (bytes, _) = plan.write(&input, Recipe::F16, Vec::new(), &mut |_| true).unwrap();
        let line = match arch::from_bytes(Bytes::from(bytes)) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{key} = {value:?} is accepted"),
        };
        assert!(!line.contains('\n') && words.iter().all(|w| line.contains(w)), "{key} = {value:?}: {line}");
    }
}

/// Counts and numbers of one of our own formats as nothing sensible, and names of what is not implemented.
pub(crate) fn counts(folder: &str, architecture: &str) {
    let sizes = [
        "block_count",
        "embedding_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "feed_forward_length",
        "context_length",
        "loop.core_count",
        "loop.mean_steps",
        "loop.state_length",
    ];
    let numbers = ["attention.layer_norm_rms_epsilon", "rope.freq_base", "embedding_scale", "loop.state_std"];
    let names = ["loop.injection", "loop.state_init", "loop.block_kind", "loop.activation", "loop.rope_style"];
    let of = |names: &[&'static str], values: &[Key]| -> Vec<(&'static str, Key)> {
        names.iter().flat_map(|&name| values.iter().map(move |value| (name, value.clone()))).collect()
    };
    let huge = [Key::from(1u64 << 31), Key::from(1u64 << 63), Key::from(u64::MAX), Key::from(-1i32)];
    let mut cases = of(&sizes, &[&[Key::from(0u32)][..], &huge].concat());
    cases.extend(of(&["loop.prelude_count", "loop.coda_count", "loop.max_steps"], &huge));
    cases.extend(of(&numbers, &[f32::NAN, f32::INFINITY, -1.0].map(Key::from)));
    cases.extend(of(&names, &["other"].map(Key::from)));
    for (name, value) in cases {
        keys(folder, &[(&format!("{architecture}.{name}"), Some(value), &[name])]);
    }
}

/// A model file without any one of its architecture's keys is refused, and the line names the key. `optional` ones may be
/// missing, or make it another model than its tensors are.
pub(crate) fn missing_keys(folder: &str, optional: &[&str]) {
    let plan = arch::conversion(&Checkpoint::open(data(folder)).unwrap()).unwrap();
    let prefix = format!("{}.", plan.metadata.require_str("general.architecture").unwrap());
    let mut missed = 0;
    for name in plan.metadata.iter().filter_map(|(key, _)| key.strip_prefix(&prefix)) {
        if !optional.contains(&name) {
            keys(folder, &[(&format!("{prefix}{name}"), None, &[name])]);
            missed += 1;
        }
    }
    assert!(missed > 15, "{missed}");
}

/// A model file without any one of its tensors is refused, and the line names the tensor. `optional` ones may be missing.
pub(crate) fn missing_tensors(folder: &str, optional: &[&str]) {
    let bytes = Bytes::from(gguf(folder, Recipe::F16));
    let header = Header::parse(&bytes).unwrap();
    let whole = arch::Conversion::of_gguf(&header);
    let mut refused = 0;
    for tensor in whole.tensors.iter().map(|t| t.name.as_str()) {
        let mut plan = whole.clone();
        plan.tensors.retain(|t| t.name != tensor);
        let input = arch::Input::Gguf(&bytes, &header);
        let (written, _) = plan.write(&input, Recipe::F16, Vec::new(), &mut |_| true).unwrap();
        match arch::from_bytes(Bytes::from(written)) {
            Ok(_) => assert!(optional.contains(&tensor), "{tensor}"),
            Err(e) => {
                assert_eq!(e.to_string().lines().count(), 1);
                assert!(e.to_string().contains(&format!("'{tensor}'")), "{e}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, whole.tensors.len() - optional.len());
}

/// What is not this family's configuration is not taken for it.
#[test]
fn no_family_takes_what_it_does_not_know() {
    for folder in ["hrm_text-shapes/split", "looped-gpt2"] {
        let line = refused_config(folder, |c| c["model_type"] = json!("hrm_text_2\n\u{1b}[31m".repeat(40)));
        assert!(line.contains("cannot be converted") && line.len() < 400, "{line}");
    }
}
