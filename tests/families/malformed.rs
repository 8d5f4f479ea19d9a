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
