//! The `tokenizer.ggml.*` keys of GGUF: a tokenizer from them alone, and them from a tokenizer.
//!
//! Two models are known: byte-level BPE (`gpt2`), whose rules for cutting text into words are not in the file but
//! named by `tokenizer.ggml.pre`, and SentencePiece's BPE (`llama`), whose tokens have scores.

mod bpe;
mod pre;
mod spm;

use super::added::AddedToken;
use super::tokenizer::Words;
use super::{Error, SpecialIds, Tokenizer};

/// Token type of an ordinary token.
pub const TOKEN_NORMAL: i32 = 1;
/// Token type of the token that stands for what the vocabulary cannot say.
pub const TOKEN_UNKNOWN: i32 = 2;
/// Token type of a control token.
pub const TOKEN_CONTROL: i32 = 3;
/// Token type of an added word.
pub const TOKEN_USER_DEFINED: i32 = 4;
/// Token type of a row that no text uses.
pub const TOKEN_UNUSED: i32 = 5;

/// Token type of a byte that is spelled `<0xNN>`.
pub const TOKEN_BYTE: i32 = 6;

/// The model name of byte-level BPE.
const BPE_MODEL: &str = "gpt2";
/// The model name of SentencePiece's BPE.
const SPM_MODEL: &str = "llama";

/// The vocabulary of a GGUF file, as its keys have it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VocabParts {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: String,
    /// `tokenizer.ggml.pre`, for `gpt2`; empty if the file has none, which means the default.
    pub pre: String,
    /// `tokenizer.ggml.tokens`, in order of their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, one per token; empty if the file has none.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.scores`, for `llama`: one per token, the highest merged first; empty if the file has none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.merges`, for `gpt2`: each two tokens with a space between, the first applied first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id` and its like.
    pub special: SpecialIds,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`, for `llama`: whether a text starts with one more space.
    pub add_space_prefix: Option<bool>,
}

/// What to write into a GGUF file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgmlKeys {
    /// The keys' values. `add_bos` is always given.
    pub parts: VocabParts,
    /// Whether the keys say exactly what the tokenizer does. Otherwise (its rules for cutting words have no name, or its
    /// merges no order by scores) another program that goes by them may cut some text into other tokens.
    pub exact: bool,
}

impl Tokenizer {
    /// Builds a tokenizer from the `tokenizer.ggml.*` keys of a GGUF file. What may make it differ from the model's own
    /// is in its [`Tokenizer::warnings`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an unknown model, [`Error::Range`] for lists that do not fit together,
    /// [`Error::Merge`] and [`Error::Ambiguous`] for bad entries.
    pub fn from_parts(mut parts: VocabParts) -> Result<Self, Error> {
        parts.check_lengths()?;
        for (id, text) in parts.tokens.iter_mut().enumerate() {
            // llama.cpp's name for a token without one.
            if text.is_empty() {
                *text = format!("[EMPTY_{id}]");
            }
        }
        let (special, add_bos, add_eos) = (parts.special, parts.add_bos, parts.add_eos);
        let mut tokenizer = match parts.model.as_str() {
            BPE_MODEL => bpe::tokenizer(&parts)?,
            SPM_MODEL => spm::tokenizer(&parts)?,
            _ => {
                return Err(Error::Unsupported {
                    what: "tokenizer.ggml.model",
                    found: parts.model,
                    known: format!("{BPE_MODEL}, {SPM_MODEL}"),
                });
            }
        };
        tokenizer.take_special_ids(special);
        let has_bos = tokenizer.special_ids().bos.is_some();
        tokenizer.set_add_bos(add_bos.unwrap_or(tokenizer.add_bos()) && has_bos);
        tokenizer.set_add_eos(add_eos.unwrap_or(false));
        Ok(tokenizer)
    }

    /// Takes the ids that the vocabulary has, and warns of others; what is not given stays.
    fn take_special_ids(&mut self, given: SpecialIds) {
        let mut ids = self.special_ids();
        let slots = [
            ("bos", given.bos, &mut ids.bos),
            ("eos", given.eos, &mut ids.eos),
            ("padding", given.pad, &mut ids.pad),
            ("unknown", given.unk, &mut ids.unk),
        ];
        let mut warnings = Vec::new();
        for (name, id, slot) in slots {
            match id {
                Some(id) if self.token_bytes(id).is_ok() => *slot = Some(id),
                Some(id) => warnings.push(format!("tokenizer.ggml.{name}_token_id {id} is no token and is left out")),
                None => {}
            }
        }
        warnings.into_iter().for_each(|w| self.warn(w));
        // All of them are tokens.
        let _ = self.set_special_ids(ids);
    }

    /// The `tokenizer.ggml.*` keys that say what this tokenizer does, for a table of `rows` rows. Rows that are no
    /// token's are named `[PAD{row}]` and marked unused.
    ///
    /// # Errors
    /// [`Error::Unsupported`] unless the tokenizer is BPE, either byte-level or of SentencePiece's kind;
    /// [`Error::Range`] if it has more tokens than the table has rows.
    pub fn ggml_keys(&self, rows: usize) -> Result<GgmlKeys, Error> {
        if rows < self.vocabulary() {
            return Err(Error::Range {
                what: "the number of rows of the embedding table",
                expected: format!("at least the vocabulary's {}", self.vocabulary()),
                found: rows as u64,
            });
        }
        match &self.model {
            Words::Spm(spm) => Ok(spm::keys(self, spm, rows)),
            Words::Bpe(model) => match self.byte_level_regexes() {
                Some(regexes) => Ok(bpe::keys(self, model, &regexes, rows)),
                None => spm::keys_of_bpe(self, model, rows).ok_or_else(|| Error::Unsupported {
                    what: "for GGUF, the tokenizer's model",
                    found: "BPE that is neither byte-level nor SentencePiece's".to_owned(),
                    known: "byte-level BPE, SentencePiece BPE with a token for each byte".to_owned(),
                }),
            },
        }
    }

    /// What both models' keys have in common: tokens and their types, special ids.
    fn common_keys(&self, vocabulary: impl IntoIterator<Item = (String, u32)>, rows: usize) -> VocabParts {
        let mut tokens: Vec<Option<String>> = vec![None; rows];
        let mut token_types = vec![TOKEN_UNUSED; rows];
        for (text, id) in vocabulary {
            tokens[id as usize] = Some(text);
            token_types[id as usize] = TOKEN_NORMAL;
        }
        for token in self.added.iter() {
            tokens[token.id as usize] = Some(token.content.clone());
            token_types[token.id as usize] = match token.special {
                true => TOKEN_CONTROL,
                false => TOKEN_USER_DEFINED,
            };
        }
        let pad = |(row, text): (usize, Option<String>)| text.unwrap_or_else(|| format!("[PAD{row}]"));
        VocabParts {
            tokens: tokens.into_iter().enumerate().map(pad).collect(),
            token_types,
            special: self.special_ids(),
            add_bos: Some(self.add_bos()),
            add_eos: Some(self.add_eos()),
            ..VocabParts::default()
        }
    }
}

impl VocabParts {
    fn check_lengths(&self) -> Result<(), Error> {
        let count = self.tokens.len();
        let lists = [
            ("the length of tokenizer.ggml.token_type", self.token_types.len()),
            ("the length of tokenizer.ggml.scores", self.scores.len()),
        ];
        match lists.into_iter().find(|(_, len)| *len != 0 && *len < count) {
            Some((what, found)) => {
                Err(Error::Range { what, expected: format!("{count}, one per token"), found: found as u64 })
            }
            None => Ok(()),
        }
    }

    /// Ids, texts and types of the tokens that text or a model may use.
    fn used(&self) -> impl Iterator<Item = (u32, &str, i32)> {
        let kind = |id: usize| self.token_types.get(id).copied().unwrap_or(TOKEN_NORMAL);
        let tokens = self.tokens.iter().enumerate();
        tokens
            .filter_map(move |(id, text)| Some((u32::try_from(id).ok()?, text.as_str(), kind(id))))
            .filter(|(_, _, kind)| *kind != TOKEN_UNUSED)
    }
}

/// A token that is looked for in the text before anything else.
fn added_token(id: u32, content: &str, special: bool) -> AddedToken {
    AddedToken { id, content: content.to_owned(), special, single_word: false, lstrip: false, rstrip: false }
}

#[cfg(test)]
mod tests;
