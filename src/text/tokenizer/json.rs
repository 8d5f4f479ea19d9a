//! What a tokenizer.json says about itself, and which of its components are accepted.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use super::{Error, Spelling, alphabet};

pub(super) fn malformed(part: &'static str, error: impl fmt::Display) -> Error {
    let detail = error.to_string();
    Error::TokenizerJson { part, detail }
}

pub(super) fn part<T: for<'a> Deserialize<'a>>(name: &'static str, value: Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|e| malformed(name, e))
}

/// All objects named `type` within a component and its sequences, outermost first.
pub(super) fn components(component: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    // serde_json bounds the nesting of what it parses, so this recursion is bounded.
    if let Value::Object(fields) = component {
        found.push(component);
        let lists = ["pretokenizers", "decoders", "normalizers", "processors"];
        let lists = lists.iter().filter_map(|l| fields.get(*l));
        let inner = lists.filter_map(Value::as_array).flatten();
        found.extend(inner.flat_map(components));
    }
    found
}

// The components that are accepted. The library knows more; those are left out that published looped models do
// not use and that fail without a clean error on a corrupt file (a charsmap is indexed unchecked, a length of 0
// divides, a prefix slices a shorter token).
pub(super) const MODELS: &[&str] = &["BPE"];
pub(super) const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "StripAccents", "Strip"];
pub(super) const PRE_TOKENIZERS: &[&str] =
    &["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation"];
pub(super) const DECODERS: &[&str] =
    &["Sequence", "ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"];

pub(super) fn unsupported(what: &'static str, found: &str, known: &[&str]) -> Error {
    Error::Unsupported { what, found: found.to_owned(), known: known.join(", ") }
}

pub(super) fn check_components(json: &Value) -> Result<(), Error> {
    let parts =
        [("model", MODELS), ("normalizer", NORMALIZERS), ("pre_tokenizer", PRE_TOKENIZERS), ("decoder", DECODERS)];
    for (part, known) in parts {
        for component in components(&json[part]) {
            let found = component["type"].as_str().unwrap_or_default();
            if !known.contains(&found) {
                return Err(unsupported(part, found, known));
            }
        }
    }
    for affix in ["continuing_subword_prefix", "end_of_word_suffix"] {
        let affix = json["model"][affix].as_str().unwrap_or_default();
        if !affix.is_empty() {
            return Err(unsupported("model with prefix or suffix", affix, &["none"]));
        }
    }
    Ok(())
}

/// How the vocabulary is spelled, judged by the decoder and, where there is none, by the pre-tokenizer.
pub(super) fn spelling(json: &Value) -> Spelling {
    let decoders = components(&json["decoder"]);
    let is = |components: &[&Value], name| components.iter().any(|c| c["type"] == name);
    let spaces = decoders.iter().any(|d| d["type"] == "Replace" && d["content"] == " ");
    if is(&decoders, "ByteLevel") {
        Spelling::ByteLevel
    } else if spaces || is(&decoders, "Metaspace") || is(&decoders, "ByteFallback") {
        Spelling::SentencePiece
    } else if decoders.is_empty() && is(&components(&json["pre_tokenizer"]), "ByteLevel") {
        Spelling::ByteLevel
    } else {
        Spelling::Plain
    }
}

pub(super) fn spell(spelling: Spelling, token: &str) -> Box<[u8]> {
    match spelling {
        Spelling::ByteLevel => alphabet::decode(token),
        Spelling::SentencePiece => match alphabet::fallback_byte(token) {
            Some(byte) => Box::new([byte]),
            None => token.replace('\u{2581}', " ").into_bytes().into(),
        },
        Spelling::Plain => token.as_bytes().into(),
    }
}

/// The special token that the post-processor puts before a single text, which is BOS.
pub(super) fn leading_token(post_processor: &Value) -> Option<String> {
    let template = components(post_processor).into_iter().find(|p| p["type"] == "TemplateProcessing")?;
    let id = template["single"][0]["SpecialToken"]["id"].as_str()?;
    Some(id.to_owned())
}
