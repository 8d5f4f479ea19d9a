//! Lists of changes that make a good file a bad one, each with the words that must be said of it.

use crate::edited::{File, conversion_refusal};
use rdt::gguf::Value as Key;
use serde_json::{Value, json};

/// One line of no more than a few hundred letters, with all of these words.
#[track_caller]
fn says(line: Option<String>, words: &[&str], what: &str) {
    let line = line.unwrap_or_else(|| panic!("{what} is accepted"));
    assert!(!line.contains('\n') && line.len() < 400 && words.iter().all(|w| line.contains(w)), "{what}: {line}");
}

/// Every change of one key of config.json is refused.
pub(crate) fn configs(folder: &str, cases: &[(&str, Value, &[&str])]) {
    for (key, value, words) in cases {
        says(conversion_refusal(folder, &[(key, value.clone())]), words, &format!("{key} = {value}"));
    }
}

/// Every change of one key of the model file (`None`: without it) is refused.
pub(crate) fn keys(folder: &str, cases: &[(&str, Option<Key>, &[&str])]) {
    let mut file = File::of(folder);
    let good = file.metadata.clone();
    for (key, value, words) in cases {
        file.metadata = good.clone();
        match value {
            Some(value) => drop(file.metadata.insert(*key, value.clone())),
            None => assert!(file.metadata.remove(key).is_some(), "{key} is not there"),
        }
        says(file.refusal(), words, &format!("{key} = {value:?}"));
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
    let metadata = File::of(folder).metadata;
    let prefix = format!("{}.", metadata.require_str("general.architecture").unwrap());
    let mut missed = 0;
    for name in metadata.iter().filter_map(|(key, _)| key.strip_prefix(&prefix)) {
        if !optional.contains(&name) {
            keys(folder, &[(&format!("{prefix}{name}"), None, &[name])]);
            missed += 1;
        }
    }
    assert!(missed > 15, "{missed}");
}

/// A model file without any one of its tensors is refused by the tensor's name. `optional` ones may be missing.
pub(crate) fn missing_tensors(folder: &str, optional: &[&str]) {
    let mut file = File::of(folder);
    for _ in 0..file.tensors.len() {
        let tensor = file.tensors.remove(0);
        match optional.contains(&tensor.0.name.as_str()) {
            true => assert_eq!(file.refusal(), None),
            false => says(file.refusal(), &[&format!("'{}'", tensor.0.name)], &tensor.0.name),
        }
        file.tensors.push(tensor);
    }
}

/// What is not a family's configuration is not taken for it.
#[test]
fn no_family_takes_what_it_does_not_know() {
    for folder in ["hrm_text-shapes/split", "looped-gpt2"] {
        configs(folder, &[("model_type", json!("hrm_text_2".repeat(40)), &["cannot be converted"])]);
    }
}
