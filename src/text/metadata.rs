//! The tokenizer's keys in a GGUF file: written for other programs too, read back whole.

use super::{Error, SpecialIds, Tokenizer, VocabParts};
use crate::checkpoint::Checkpoint;
use crate::gguf::{self, Metadata, Value};

/// The whole tokenizer.json, a key of the GGUF specification.
const HUGGINGFACE: &str = "tokenizer.huggingface.json";
/// The chat template's source.
const TEMPLATE: &str = "tokenizer.chat_template";
/// All ids that end an answer; GGUF's own keys have room for a few with fixed meanings only.
const STOPS: &str = "rdt.stop_token_ids";

/// What the keys of a file could not give.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// A key has the wrong type.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// What the keys hold is no tokenizer.
    #[error(transparent)]
    Text(#[from] Error),
    /// The checkpoint's files could not be read.
    #[error(transparent)]
    Checkpoint(#[from] crate::checkpoint::Error),
    /// There is no tokenizer in the file.
    #[error("the model file has no tokenizer; convert it from a checkpoint that has a tokenizer.json")]
    None,
}

/// Adds the tokenizer, the chat template and the stop tokens of a checkpoint to the keys of a GGUF whose embedding table
/// has `rows` rows. Gives notes for the user about what is missing or only approximately expressible for other programs.
///
/// # Errors
/// A tokenizer that cannot be read, or has more tokens than the table has rows.
pub fn write(checkpoint: &Checkpoint, rows: usize, metadata: &mut Metadata) -> Result<Vec<String>, MetadataError> {
    let mut notes = Vec::new();
    let (mut stops, unknown): (Vec<u32>, Vec<u32>) =
        stop_ids(checkpoint)?.into_iter().partition(|&id| (id as usize) < rows);
    if !unknown.is_empty() {
        notes.push(format!("stop tokens {unknown:?} are left out: the table has {rows} rows"));
    }
    if let Some(template) = checkpoint.chat_template() {
        metadata.insert(TEMPLATE, template);
    } else {
        notes.push("no chat template: rdt-chat will continue the user's text".to_owned());
    }
    let Some(json) = checkpoint.tokenizer_json() else {
        notes.push("no tokenizer.json: the model will take token ids only".to_owned());
        write_stops(&stops, metadata);
        return Ok(notes);
    };
    let mut tokenizer = Tokenizer::from_json(json)?;
    if let Some(config) = checkpoint.tokenizer_config() {
        tokenizer.apply_config(config.value())?;
    }
    stops.extend(tokenizer.known_ends().filter(|&id| (id as usize) < rows));
    stops.sort_unstable();
    stops.dedup();
    let mut special = tokenizer.special_ids();
    // A row that only pads the table is no token, and cannot be read back as one.
    stops.retain(|&id| tokenizer.token_bytes(id).is_ok());
    write_stops(&stops, metadata);
    // The generation config knows what really ends an answer; the tokenizer's own end may be another token. Some list the
    // token that starts a text too, as Huginn's does: a model that writes it has finished, but it is not the end of a text.
    let ends = || stops.iter().copied().filter(|&id| Some(id) != special.bos);
    let eos = special.eos.filter(|eos| stops.contains(eos)).or_else(|| ends().next()).or(special.eos);
    // The token that ends a turn, where it is not the one that ends the text.
    let turn = ends().find(|&id| Some(id) != eos);
    special.eos = eos;
    match tokenizer.ggml_keys(rows) {
        Ok(keys) => {
            let VocabParts { model, pre, tokens, token_types, merges, add_bos, .. } = keys.parts;
            metadata.insert("tokenizer.ggml.model", model);
            metadata.insert("tokenizer.ggml.pre", pre);
            metadata.insert("tokenizer.ggml.tokens", tokens);
            metadata.insert("tokenizer.ggml.token_type", token_types);
            metadata.insert("tokenizer.ggml.merges", merges);
            metadata.insert("tokenizer.ggml.add_bos_token", add_bos.unwrap_or(false));
            if !keys.pre_is_exact {
                notes.push(
                    "other programs may cut some text into other tokens: no name for this tokenizer's rules".into(),
                );
            }
        }
        Err(e @ Error::Unsupported { .. }) => notes.push(format!("other programs cannot use the tokenizer: {e}")),
        Err(e) => return Err(e.into()),
    }
    for (name, id) in [("bos", special.bos), ("eos", special.eos), ("padding", special.pad), ("unknown", special.unk)] {
        if let Some(id) = id {
            metadata.insert(format!("tokenizer.ggml.{name}_token_id"), id);
        }
    }
    if let Some(turn) = turn {
        metadata.insert("tokenizer.ggml.eot_token_id", turn);
    }
    metadata.insert(HUGGINGFACE, json);
    Ok(notes)
}

fn write_stops(stops: &[u32], metadata: &mut Metadata) {
    if !stops.is_empty() {
        metadata.insert(STOPS, stops.to_vec());
    }
}

/// `eos_token_id` of the generation config (or the config): one id or several.
fn stop_ids(checkpoint: &Checkpoint) -> Result<Vec<u32>, MetadataError> {
    let configs = [checkpoint.generation_config(), Some(checkpoint.config())];
    for config in configs.into_iter().flatten() {
        let Some(value) = config.get("eos_token_id") else { continue };
        let id = |v: &serde_json::Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match value {
            serde_json::Value::Array(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            one => id(one).map(|id| vec![id]),
        };
        return ids.ok_or_else(|| config.wrong_type("eos_token_id", value, "a token id or a list of them").into());
    }
    Ok(Vec::new())
}

impl Tokenizer {
    /// The tokenizer of a GGUF file: the whole tokenizer.json if it has one, else what the `tokenizer.ggml.*` keys say.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self, MetadataError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let special = SpecialIds {
            bos: metadata.u32(&key("bos_token_id"))?,
            eos: metadata.u32(&key("eos_token_id"))?,
            pad: metadata.u32(&key("padding_token_id"))?,
            unk: metadata.u32(&key("unknown_token_id"))?,
        };
        let add_bos = metadata.bool(&key("add_bos_token"))?;
        if let Some(json) = metadata.str(HUGGINGFACE)? {
            let mut tokenizer = Tokenizer::from_json(json)?;
            tokenizer.set_special_ids(special)?;
            if let Some(add) = add_bos {
                tokenizer.set_add_bos(add);
            }
            return Ok(tokenizer);
        }
        let Some(model) = metadata.str(&key("model"))? else { return Err(MetadataError::None) };
        let strings = |name: &str| Ok::<_, gguf::Error>(metadata.strings(&key(name))?.unwrap_or_default().to_vec());
        let types = metadata.i64s(&key("token_type"))?.unwrap_or_default();
        Ok(Tokenizer::from_parts(VocabParts {
            model: model.to_owned(),
            pre: metadata.str(&key("pre"))?.unwrap_or_default().to_owned(),
            tokens: strings("tokens")?,
            // A type outside the known few is refused by `from_parts`, whatever its value.
            token_types: types.into_iter().map(|t| i32::try_from(t).unwrap_or(i32::MAX)).collect(),
            merges: strings("merges")?,
            special,
            add_bos,
        })?)
    }
}

/// Source of the chat template in a GGUF file, if it has one.
///
/// # Errors
/// The key has the wrong type.
pub fn template_source(metadata: &Metadata) -> Result<Option<&str>, gguf::Error> {
    metadata.str(TEMPLATE)
}

/// Every token id that ends an answer: [`write()`]'s list, the ids of GGUF's own keys, and [`Tokenizer::known_ends`].
///
/// # Errors
/// A key has the wrong type.
pub fn stop_tokens(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Vec<u32>, gguf::Error> {
    let mut ids: Vec<u32> = tokenizer.known_ends().collect();
    if metadata.get(STOPS).is_some_and(|v| matches!(v, Value::Array(_))) {
        let listed = metadata.i64s(STOPS)?.unwrap_or_default();
        ids.extend(listed.into_iter().filter_map(|id| u32::try_from(id).ok()));
    }
    for name in ["eos", "eot", "eom"] {
        ids.extend(metadata.u32(&format!("tokenizer.ggml.{name}_token_id"))?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
