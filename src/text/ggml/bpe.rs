//! Byte-level BPE.

use serde_json::{Map, Value, json};
use tokenizers::models::bpe::BPE;

use super::pre::{self, DEFAULT, Pre};
use super::{BPE_MODEL, GgmlKeys, TOKEN_CONTROL, TOKEN_USER_DEFINED, VocabParts, added_token};
use crate::text::{Error, Tokenizer};

/// The tokenizer of a file's keys.
pub(super) fn tokenizer(parts: &VocabParts) -> Result<Tokenizer, Error> {
    let default = || pre::by_name(DEFAULT).unwrap_or(&pre::PRES[0]);
    let (rules, warning) = match (parts.pre.as_str(), pre::by_name(&parts.pre)) {
        ("", _) => {
            (default(), Some("the file names no rules for cutting text into words (tokenizer.ggml.pre)".to_owned()))
        }
        (_, Some(rules)) => (rules, None),
        (name, None) => (default(), Some(format!("tokenizer.ggml.pre {name:?} is not known"))),
    };
    let mut tokenizer = Tokenizer::from_value(tokenizer_json(parts, rules)?)?;
    tokenizer.set_add_bos(rules.add_bos);
    if let Some(warning) = warning {
        tokenizer.warn(format!("{warning}; the default rules are used, and answers may be worse"));
    }
    Ok(tokenizer)
}

/// The keys of a tokenizer that cuts words by `regexes`.
pub(super) fn keys(tokenizer: &Tokenizer, model: &BPE, regexes: &[String], rows: usize) -> GgmlKeys {
    let exact = Pre::recognise(regexes, model.ignore_merges);
    let merges = merges(model).into_iter().map(|(a, b)| format!("{a} {b}")).collect();
    GgmlKeys {
        parts: VocabParts {
            model: BPE_MODEL.to_owned(),
            pre: exact.map_or(DEFAULT, |p| p.names[0]).to_owned(),
            merges,
            ..tokenizer.common_keys(model.get_vocab(), rows)
        },
        exact: exact.is_some(),
    }
}

/// The merge rules, the first applied first.
pub(super) fn merges(model: &BPE) -> Vec<(String, String)> {
    // Unlike a vocabulary in memory, one in JSON gives its merges away.
    let model = serde_json::to_value(model).unwrap_or_default();
    let rule = |rule: &Value| match rule.as_str() {
        Some(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        None => Some((rule[0].as_str()?.to_owned(), rule[1].as_str()?.to_owned())),
    };
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    merges.iter().filter_map(rule).collect()
}

/// The tokenizer.json that says what the keys say.
fn tokenizer_json(parts: &VocabParts, rules: &Pre) -> Result<Value, Error> {
    let mut vocabulary = Map::with_capacity(parts.tokens.len());
    let mut added = Vec::new();
    for (id, text, kind) in parts.used() {
        if matches!(kind, TOKEN_CONTROL | TOKEN_USER_DEFINED) {
            let token = added_token(id, text, kind == TOKEN_CONTROL);
            added.push(json!({"id": token.id, "content": token.content, "special": token.special}));
        }
        if let Some(first) = vocabulary.insert(text.to_owned(), json!(id)) {
            return Err(Error::Ambiguous {
                first: text.to_owned(),
                first_id: first.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(u32::MAX),
                second: text.to_owned(),
                second_id: id,
            });
        }
    }
    let mut merges = Vec::with_capacity(parts.merges.len());
    for (index, rule) in parts.merges.iter().enumerate() {
        // The alphabet has no space, so the one space is the border.
        let two = rule.split_once(' ').filter(|(a, b)| {
            let known = |t: &str| vocabulary.contains_key(t);
            known(a) && known(b) && known(&format!("{a}{b}"))
        });
        let Some((a, b)) = two else {
            let found = rule.clone();
            return Err(Error::Merge { index, found });
        };
        merges.push(json!([a, b]));
    }
    let mut steps: Vec<Value> = rules
        .regexes
        .iter()
        .map(|r| json!({"type": "Split", "pattern": {"Regex": r}, "behavior": "Isolated", "invert": false}))
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    steps.push(bytes.clone());
    Ok(json!({
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "ignore_merges": rules.ignore_merges,
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}
