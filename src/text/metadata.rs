//! The tokenizer's keys in a GGUF file: written for other programs too, read back whole.

use super::sentencepiece::{self, SentencePiece};
use super::{Error, SpecialIds, TOKEN_CONTROL, TOKEN_NORMAL, TOKEN_UNUSED, TOKEN_USER_DEFINED, Tokenizer, VocabParts};
use crate::checkpoint::Checkpoint;
use crate::gguf::{self, Array, Metadata, Value};

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
    #[error(
        "the model has no tokenizer, so it takes token ids only; \
         for text, convert it from a checkpoint that has a tokenizer.json or tokenizer.model"
    )]
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
        notes.push(
            "no chat template: rdt-chat will ask in the family's own format, or continue the user's text".to_owned(),
        );
    }
    let json = checkpoint.tokenizer_json();
    let mut tokenizer = match (json, checkpoint.sentencepiece()) {
        (Some(json), _) => Tokenizer::from_json(json)?,
        (None, Some(file)) => from_sentencepiece(checkpoint, file, rows, &mut notes)?,
        (None, None) => {
            notes.push("no tokenizer.json or tokenizer.model: the model will take token ids only".to_owned());
            write_stops(&stops, metadata);
            return Ok(notes);
        }
    };
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
            write_parts(keys.parts, metadata);
            if !keys.exact {
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
    if let Some(json) = json {
        metadata.insert(HUGGINGFACE, json);
    }
    Ok(notes)
}

/// Writes what other programs go by, but for the special ids. What is the default everywhere is left out.
fn write_parts(parts: VocabParts, metadata: &mut Metadata) {
    let VocabParts { model, pre, tokens, token_types, scores, merges, add_bos, add_eos, add_space_prefix, .. } = parts;
    metadata.insert("tokenizer.ggml.model", model);
    metadata.insert("tokenizer.ggml.pre", pre);
    metadata.insert("tokenizer.ggml.tokens", tokens);
    if !scores.is_empty() {
        metadata.insert("tokenizer.ggml.scores", scores);
    }
    metadata.insert("tokenizer.ggml.token_type", token_types);
    if !merges.is_empty() {
        metadata.insert("tokenizer.ggml.merges", merges);
    }
    metadata.insert("tokenizer.ggml.add_bos_token", add_bos.unwrap_or(false));
    if add_eos == Some(true) {
        metadata.insert("tokenizer.ggml.add_eos_token", true);
    }
    if let Some(add) = add_space_prefix {
        metadata.insert("tokenizer.ggml.add_space_prefix", add);
    }
}

/// The tokenizer of a checkpoint that has a tokenizer.model only, with the tokens that its other files add.
fn from_sentencepiece(
    checkpoint: &Checkpoint,
    file: &[u8],
    rows: usize,
    notes: &mut Vec<String>,
) -> Result<Tokenizer, MetadataError> {
    let SentencePiece { mut parts, warnings } = sentencepiece::read(file)?;
    notes.extend(warnings);
    let originals = parts.tokens.clone();
    let types = parts.token_types.clone();
    let mut add = |id: u64, text: &str, special: bool| {
        let place = usize::try_from(id).ok().filter(|place| *place < rows).ok_or_else(|| Error::Range {
            what: "the id of an added token",
            expected: format!("below {rows}, the rows of the embedding table"),
            found: id,
        })?;
        while parts.tokens.len() <= place {
            parts.tokens.push(format!("[PAD{}]", parts.tokens.len()));
            parts.token_types.push(TOKEN_UNUSED);
            parts.scores.push(0.0);
        }
        parts.tokens[place] = text.to_owned();
        // What llama.cpp's converter gives to tokens that no merge should make.
        parts.scores[place] = -1000.0;
        parts.token_types[place] = if special { TOKEN_CONTROL } else { TOKEN_USER_DEFINED };
        Ok::<_, Error>(())
    };
    let config = checkpoint.tokenizer_config().map(|c| c.value());
    if let Some(list) = checkpoint.added_tokens().and_then(|c| c.value().as_object()) {
        for (text, id) in list.iter().filter(|(text, _)| !originals.contains(text)) {
            let Some(id) = id.as_u64() else { continue };
            add(id, text, false)?;
        }
    }
    if let Some(list) = config.and_then(|c| c["added_tokens_decoder"].as_object()) {
        for (id, token) in list {
            let (Ok(id), Some(text)) = (id.parse(), token["content"].as_str()) else { continue };
            // What the file has as a control token or a byte already stays so.
            let same = |at: &usize| originals.get(*at).is_some_and(|original| original == text);
            let kind = usize::try_from(id).ok().filter(same).map(|at| types[at]);
            if matches!(kind, None | Some(TOKEN_NORMAL | TOKEN_USER_DEFINED)) {
                add(id, text, token["special"] == true)?;
            }
        }
    }
    if let Some(prefix) = config.and_then(|c| c["add_prefix_space"].as_bool()) {
        parts.add_space_prefix = Some(prefix);
    }
    let tokenizer = Tokenizer::from_parts(parts)?;
    notes.extend(tokenizer.warnings().iter().cloned());
    Ok(tokenizer)
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
        let add_eos = metadata.bool(&key("add_eos_token"))?;
        if let Some(json) = metadata.str(HUGGINGFACE)? {
            let mut tokenizer = Tokenizer::from_json(json)?;
            tokenizer.set_special_ids(special)?;
            if let Some(add) = add_bos {
                tokenizer.set_add_bos(add);
            }
            if let Some(add) = add_eos {
                tokenizer.set_add_eos(add);
            }
            return Ok(tokenizer);
        }
        // Files for token ids only name a model that is none.
        let model = metadata.str(&key("model"))?.filter(|model| !matches!(*model, "none" | "no_vocab"));
        let model = model.ok_or(MetadataError::None)?.to_owned();
        let strings = |name: &str| Ok::<_, gguf::Error>(metadata.strings(&key(name))?.unwrap_or_default().to_vec());
        let types = metadata.i64s(&key("token_type"))?.unwrap_or_default();
        Ok(Tokenizer::from_parts(VocabParts {
            model,
            pre: metadata.str(&key("pre"))?.unwrap_or_default().to_owned(),
            tokens: strings("tokens")?,
            // A type outside the known few is an ordinary token's.
            token_types: types.into_iter().map(|t| i32::try_from(t).unwrap_or(i32::MAX)).collect(),
            scores: match metadata.get(&key("scores")) {
                // Some files have whole numbers.
                Some(Value::Array(Array::I32(scores))) => scores.iter().map(|&s| s as f32).collect(),
                _ => metadata.f32s(&key("scores"))?.unwrap_or_default().to_vec(),
            },
            merges: strings("merges")?,
            special,
            add_bos,
            add_eos,
            add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
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
