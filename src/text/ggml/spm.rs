//! SentencePiece's BPE, and tokenizer.json files that were made from it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tokenizers::models::bpe::BPE;

use super::pre::DEFAULT;
use super::{
    GgmlKeys, SPM_MODEL, TOKEN_BYTE, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNKNOWN, TOKEN_USER_DEFINED, VocabParts,
    added_token, bpe,
};
use crate::text::spm::{SPACE, Spm};
use crate::text::{Error, SpecialIds, Tokenizer, alphabet};

/// llama.cpp's ids for BOS, EOS and "unknown" where the file names none.
const DEFAULT_IDS: SpecialIds = SpecialIds { bos: Some(1), eos: Some(2), pad: None, unk: Some(0) };

/// The tokenizer of a file's keys.
pub(super) fn tokenizer(parts: &VocabParts) -> Result<Tokenizer, Error> {
    let mut spm = Spm::default();
    let mut added = Vec::new();
    for (id, text, kind) in parts.used() {
        let token = added_token(id, text, matches!(kind, TOKEN_CONTROL | TOKEN_UNKNOWN));
        let is_added = token.special || kind == TOKEN_USER_DEFINED;
        // A byte's name that a user typed is no byte.
        let is_byte = kind == TOKEN_BYTE || alphabet::fallback_byte(text).is_some();
        let from_text = !is_byte && (!is_added || (!token.special && token.is_text()));
        let score = parts.scores.get(id as usize).copied().unwrap_or_default();
        spm.insert(id, text, score, from_text)?;
        if is_added {
            added.push(token);
        }
    }
    let known = |id: Option<u32>| id.filter(|id| spm.text_of(*id).is_some());
    let mut ids = SpecialIds {
        bos: known(DEFAULT_IDS.bos),
        eos: known(DEFAULT_IDS.eos),
        pad: None,
        unk: known(parts.special.unk.or(DEFAULT_IDS.unk)),
    };
    // An ordinary token at one of the usual places is no special one.
    let special = |id: Option<u32>| id.filter(|id| added.iter().any(|t| t.id == *id));
    (ids.bos, ids.eos) = (special(ids.bos), special(ids.eos));
    spm.set_unknown(ids.unk);
    spm.space_prefix = parts.add_space_prefix.unwrap_or(true);
    let mut tokenizer = Tokenizer::from_spm(spm, added)?;
    tokenizer.set_special_ids(ids)?;
    tokenizer.set_add_bos(true);
    Ok(tokenizer)
}

/// The keys of a tokenizer that has scores.
pub(super) fn keys(tokenizer: &Tokenizer, spm: &Spm, rows: usize) -> GgmlKeys {
    let mut scores = vec![0.0; rows];
    for (_, id, score) in spm.iter() {
        scores[id as usize] = score;
    }
    let vocabulary = spm.iter().map(|(text, id, _)| (text.to_owned(), id));
    let parts = spm_parts(tokenizer, vocabulary, rows, scores, spm.space_prefix);
    GgmlKeys { parts, exact: true }
}

fn spm_parts(
    tokenizer: &Tokenizer,
    vocabulary: impl IntoIterator<Item = (String, u32)>,
    rows: usize,
    scores: Vec<f32>,
    space_prefix: bool,
) -> VocabParts {
    let mut parts = tokenizer.common_keys(vocabulary, rows);
    for (id, (kind, text)) in parts.token_types.iter_mut().zip(&parts.tokens).enumerate() {
        match *kind {
            TOKEN_NORMAL if alphabet::fallback_byte(text).is_some() => *kind = TOKEN_BYTE,
            TOKEN_NORMAL | TOKEN_CONTROL if parts.special.unk == u32::try_from(id).ok() => *kind = TOKEN_UNKNOWN,
            _ => {}
        }
    }
    VocabParts {
        model: SPM_MODEL.to_owned(),
        pre: DEFAULT.to_owned(),
        scores,
        add_space_prefix: Some(space_prefix),
        ..parts
    }
}

/// The keys of a tokenizer.json that was made from a SentencePiece model: merges by rank become scores, as they were
/// there. `None` if it is not of that kind.
pub(super) fn keys_of_bpe(tokenizer: &Tokenizer, model: &BPE, rows: usize) -> Option<GgmlKeys> {
    let vocabulary = model.get_vocab();
    let bytes = (0..=255).all(|b: u8| vocabulary.contains_key(&format!("<0x{b:02X}>")));
    if !(model.byte_fallback && bytes) {
        return None;
    }
    let (space_prefix, mut exact) = space_rule(tokenizer)?;
    let merges = bpe::merges(model);
    // A token's score is the place of its first rule among all tokens that have one.
    let mut order: HashMap<String, usize> = HashMap::new();
    let mut last = String::new();
    for (a, b) in &merges {
        let merged = format!("{a}{b}");
        if merged != last {
            let next = order.len();
            // Rules for one token that stand apart have two ranks; a score is one.
            exact &= order.insert(merged.clone(), next).is_none();
            last = merged;
        }
    }
    exact &= merges_are_complete(tokenizer, &vocabulary, &merges);
    let mut scores = vec![0.0; rows];
    for (text, id) in &vocabulary {
        let ordinary = text.chars().nth(1).is_some() && alphabet::fallback_byte(text).is_none();
        let place = order.get(text).copied().unwrap_or(if ordinary { order.len() } else { 0 });
        scores[*id as usize] = -(place as f32);
    }
    Some(GgmlKeys { parts: spm_parts(tokenizer, vocabulary, rows, scores, space_prefix), exact })
}

/// Whether there is a rule for every two tokens that together are a token: scores know no missing rules.
fn merges_are_complete(tokenizer: &Tokenizer, vocabulary: &HashMap<String, u32>, merges: &[(String, String)]) -> bool {
    let rules: HashSet<(&str, &str)> = merges.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let added: HashSet<&str> = tokenizer.added.iter().map(|t| t.content.as_str()).collect();
    let ordinary = |t: &str| vocabulary.contains_key(t) && !added.contains(t) && alphabet::fallback_byte(t).is_none();
    vocabulary.keys().filter(|text| ordinary(text)).all(|text| {
        // Hostile tokens of any length are not worth the squares.
        text.len() <= 1024
            && text.char_indices().skip(1).all(|(at, _)| {
                let (a, b) = text.split_at(at);
                !(ordinary(a) && ordinary(b)) || rules.contains(&(a, b))
            })
    })
}

/// Whether the tokenizer puts a space before the text, and whether it treats spaces exactly as llama.cpp does. `None` if
/// it does anything else to the text.
fn space_rule(tokenizer: &Tokenizer) -> Option<(bool, bool)> {
    let to_value = |v: Result<Value, serde_json::Error>| v.ok();
    let normalizer = match &tokenizer.normalizer {
        None => Value::Null,
        Some(n) => to_value(serde_json::to_value(n))?,
    };
    let pre_tokenizer = match &tokenizer.pre_tokenizer {
        None => Value::Null,
        Some(p) => to_value(serde_json::to_value(p))?,
    };
    let space = SPACE.to_string();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
    let prepend = json!({"type": "Prepend", "prepend": space});
    let steps = match normalizer["normalizers"].as_array() {
        Some(steps) => steps.clone(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    };
    if pre_tokenizer.is_null() {
        return match steps.as_slice() {
            [a, b] if *a == prepend && *b == replace => Some((true, true)),
            [a] if *a == replace => Some((false, true)),
            _ => None,
        };
    }
    let metaspace = pre_tokenizer["type"] == "Metaspace"
        && pre_tokenizer["replacement"] == space.as_str()
        && pre_tokenizer["split"] == false;
    if !(metaspace && steps.is_empty()) {
        return None;
    }
    match pre_tokenizer["prepend_scheme"].as_str()? {
        "never" => Some((false, true)),
        // No second space before a text that starts with one, or none after an added token.
        "first" | "always" => Some((true, false)),
        _ => None,
    }
}
