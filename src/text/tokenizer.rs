//! Text to token ids and back, on the parts of the `tokenizers` crate.
//!
//! The crate's own `Tokenizer` cannot be told which part of a text may contain special tokens, so this one drives
//! its parts (normaliser, pre-tokenizer, model) and looks for added tokens itself. On text without added tokens,
//! and on text whose added tokens are all meant, the ids are the crate's own.
//!
//! **Cost.** Encoding is linear in the length of a text but for a logarithm (merges wait in a heap), whatever
//! the text: one letter a million times over, nothing but spaces, or code points that no rule expects. The regular
//! expressions of the known pre-tokenizers always match where they stand; one from an untrusted file that
//! backtracks without end is stopped by the expression engine's limit, and the rest of the text is then one
//! piece. Texts above [`Tokenizer::MAX_TEXT`] are refused.

use std::fmt;

use serde_json::Value;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

use super::added::{AddedToken, AddedTokens, Match, Which};
use super::spm::Spm;
use super::{Error, Rendered, alphabet};
use json::{MODELS, check_components, leading_token, malformed, part, spell, spelling, unsupported};
pub(super) use words::Words;

mod encode;
mod json;
mod words;

/// The highest id that is accepted, plus one: far above any real vocabulary, so that a corrupt id cannot make
/// a table of 2^32 entries.
pub(super) const MAX_VOCABULARY: usize = 1 << 22;

/// How the texts of the vocabulary stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet.
    ByteLevel,
    /// SentencePiece's: U+2581 is a space, `<0xNN>` is a byte.
    SentencePiece,
    /// As they are.
    Plain,
}

/// Ids with a meaning, as a model's configuration names them. Stop ids beyond `eos` are the generation's affair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Starts a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills up a batch.
    pub pad: Option<u32>,
    /// Stands for what the vocabulary cannot say.
    pub unk: Option<u32>,
}

impl SpecialIds {
    fn each(&self) -> [(&'static str, Option<u32>); 4] {
        [("bos_token", self.bos), ("eos_token", self.eos), ("pad_token", self.pad), ("unk_token", self.unk)]
    }
}

/// A tokenizer: immutable but for its special ids, and free of any file.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) model: Words,
    pub(super) spelling: Spelling,
    pub(super) added: AddedTokens,
    /// The bytes of each id; `None` where the vocabulary has a hole.
    bytes: Vec<Option<Box<[u8]>>>,
    kinds: Vec<Kind>,
    special: SpecialIds,
    add_bos: bool,
    add_eos: bool,
    warnings: Vec<String>,
}

/// What an id is to the prompt's safety.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of the model's own vocabulary, or a run of white space.
    Ordinary,
    /// An added token that is a word, not a control token.
    Word,
    /// A control token.
    Special,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.vocabulary())
            .field("spelling", &self.spelling)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// The longest text, in bytes, that is encoded at once. Encoding takes some hundred bytes of memory per byte.
    pub const MAX_TEXT: usize = 64 << 20;

    /// Reads the text of a tokenizer.json.
    ///
    /// # Errors
    /// [`Error::TokenizerJson`] for malformed parts, [`Error::Unsupported`] for a model that is not BPE and for
    /// components that no known model uses, [`Error::Ambiguous`] and [`Error::Range`] for ids that clash or make no sense.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        let value = serde_json::from_str(json).map_err(|e| malformed("file", e))?;
        Self::from_value(value)
    }

    /// As [`Tokenizer::from_json`], of parsed JSON.
    pub(super) fn from_value(mut json: Value) -> Result<Self, Error> {
        check_components(&json)?;
        let spelling = spelling(&json);
        let leading = leading_token(&json["post_processor"]);
        // Dropout makes training robust and prompts random.
        if let Some(dropout) = json.get_mut("model").and_then(|m| m.get_mut("dropout")) {
            *dropout = Value::Null;
        }
        let mut take = |part| json.get_mut(part).map_or(Value::Null, Value::take);
        let added: Option<Vec<AddedToken>> = part("added_tokens", take("added_tokens"))?;
        let ModelWrapper::BPE(model) = part("model", take("model"))? else {
            return Err(unsupported("model", "other than BPE", MODELS));
        };
        let mut this = Self::new(Words::Bpe(Box::new(model)), spelling, added.unwrap_or_default())?;
        this.normalizer = part("normalizer", take("normalizer"))?;
        this.pre_tokenizer = part("pre_tokenizer", take("pre_tokenizer"))?;
        if let Some(text) = leading {
            this.special.bos = this.id_of(&text);
            this.add_bos = this.special.bos.is_some();
        }
        Ok(this)
    }

    /// A tokenizer of a vocabulary with scores.
    pub(super) fn from_spm(spm: Spm, added: Vec<AddedToken>) -> Result<Self, Error> {
        Self::new(Words::Spm(Box::new(spm)), Spelling::SentencePiece, added)
    }

    fn new(model: Words, spelling: Spelling, added: Vec<AddedToken>) -> Result<Self, Error> {
        let special = SpecialIds { unk: model.unknown(), ..SpecialIds::default() };
        let mut this = Self {
            normalizer: None,
            pre_tokenizer: None,
            model,
            spelling,
            added: AddedTokens::new(added)?,
            bytes: Vec::new(),
            kinds: Vec::new(),
            special,
            add_bos: false,
            add_eos: false,
            warnings: Vec::new(),
        };
        this.index()?;
        Ok(this)
    }

    /// Fills the tables by id from the model's vocabulary and the added tokens.
    fn index(&mut self) -> Result<(), Error> {
        let mut texts: Vec<Option<String>> = Vec::new();
        let vocabulary = self.model.vocabulary();
        // A few holes are legal; a table mostly of holes would be memory asked for by one corrupt id.
        let count = vocabulary.len() + self.added.iter().count();
        let limit = MAX_VOCABULARY.min(8 * count + 65_536);
        let mut place = |text: String, id: u32| -> Result<usize, Error> {
            let at = id as usize;
            if at >= limit {
                return Err(Error::Range {
                    what: "a token id",
                    expected: format!("below {limit} in a vocabulary of {count} tokens"),
                    found: u64::from(id),
                });
            }
            if texts.len() <= at {
                texts.resize(at + 1, None);
            }
            match &texts[at] {
                Some(other) if *other != text => {
                    Err(Error::Ambiguous { first: other.clone(), first_id: id, second: text, second_id: id })
                }
                _ => {
                    texts[at] = Some(text);
                    Ok(at)
                }
            }
        };
        for token in self.added.iter() {
            match vocabulary.get(&token.content) {
                Some(&other) if other != token.id => {
                    return Err(Error::Ambiguous {
                        first: token.content.clone(),
                        first_id: token.id,
                        second: token.content.clone(),
                        second_id: other,
                    });
                }
                _ => place(token.content.clone(), token.id)?,
            };
        }
        for (text, id) in vocabulary {
            place(text, id)?;
        }
        self.kinds = vec![Kind::Ordinary; texts.len()];
        let spell = |text: &Option<String>| text.as_deref().map(|t| spell(self.spelling, t));
        self.bytes = texts.iter().map(spell).collect();
        for token in self.added.iter() {
            let at = token.id as usize;
            self.bytes[at] = Some(token.content.as_bytes().into());
            self.kinds[at] = match (token.special, token.is_text()) {
                (true, _) => Kind::Special,
                (false, false) => Kind::Word,
                (false, true) => Kind::Ordinary,
            };
        }
        Ok(())
    }

    /// Takes `bos_token`, `eos_token`, `pad_token`, `unk_token`, `add_bos_token` and `add_eos_token` from a
    /// tokenizer_config.json. What it does not say stays as it is.
    ///
    /// # Errors
    /// [`Error::MissingToken`] if it names a token that the vocabulary lacks.
    pub fn apply_config(&mut self, config: &Value) -> Result<(), Error> {
        let mut special = self.special;
        let slots = [
            ("bos_token", &mut special.bos),
            ("eos_token", &mut special.eos),
            ("pad_token", &mut special.pad),
            ("unk_token", &mut special.unk),
        ];
        for (name, slot) in slots {
            // Either the text itself, or an object that describes the token.
            let entry = &config[name];
            let Some(text) = entry.as_str().or_else(|| entry["content"].as_str()) else {
                continue;
            };
            let missing = || Error::MissingToken { name: name.to_owned(), text: text.to_owned() };
            *slot = Some(self.id_of(text).ok_or_else(missing)?);
        }
        if let Some(add) = config["add_bos_token"].as_bool() {
            self.add_bos = add;
        }
        if let Some(add) = config["add_eos_token"].as_bool() {
            self.add_eos = add;
        }
        self.special = special;
        Ok(())
    }

    /// Sets the special ids; used where they come as numbers.
    ///
    /// # Errors
    /// [`Error::UnknownId`] if one is not in the vocabulary.
    pub fn set_special_ids(&mut self, special: SpecialIds) -> Result<(), Error> {
        for (_, id) in special.each() {
            id.map_or(Ok(()), |id| self.token_bytes(id).map(drop))?;
        }
        self.special = special;
        Ok(())
    }

    /// Says whether [`Tokenizer::encode_prompt`] starts with BOS.
    pub fn set_add_bos(&mut self, add: bool) {
        self.add_bos = add;
    }

    /// Whether a plain prompt starts with BOS.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Says whether [`Tokenizer::encode_document`] ends with EOS.
    pub fn set_add_eos(&mut self, add: bool) {
        self.add_eos = add;
    }

    /// Whether a whole text ends with EOS. A prompt never does: the answer follows it.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// What the user should know: where this tokenizer may differ from the one that the model was trained with, one
    /// sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub(super) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// The ids with a meaning.
    pub fn special_ids(&self) -> SpecialIds {
        self.special
    }

    /// Special tokens that end a turn or a text by their well-known spelling, whatever a configuration says: published ones
    /// are sometimes wrong (Ouro's names 0 alone, and its turns end with 2).
    pub fn known_ends(&self) -> impl Iterator<Item = u32> {
        const SPELLINGS: [&str; 6] =
            ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>"];
        SPELLINGS.into_iter().filter_map(|text| self.id_of(text)).filter(|&id| self.is_special(id))
    }

    /// The text of each special token that is known, as chat templates see it (`bos_token` and so on).
    pub fn special_texts(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        let text = |(name, id): (_, Option<u32>)| Some((name, self.text_of(id?)?));
        self.special.each().into_iter().filter_map(text)
    }

    /// One above the highest id. A model's table may have more rows than this: they are padding.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// Whether `id` is a control token, which a reader of the answer never sees.
    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }

    /// The id of a token, added or the model's, by its text in the vocabulary.
    pub fn id_of(&self, text: &str) -> Option<u32> {
        let mut added = self.added.iter();
        let added = added.find(|t| t.content == text).map(|t| t.id);
        added.or_else(|| self.model.id_of(text))
    }

    /// The text of a token as the vocabulary spells it.
    pub fn text_of(&self, id: u32) -> Option<String> {
        let added = self.added.iter().find(|t| t.id == id);
        added.map(|t| t.content.clone()).or_else(|| self.model.text_of(id))
    }

    /// The bytes that a token stands for: the start, middle or end of characters as well as whole ones.
    ///
    /// SentencePiece's word mark is a space, at the start of a text too.
    ///
    /// # Errors
    /// [`Error::UnknownId`] if the vocabulary has no such id.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8], Error> {
        let bytes = self.bytes.get(id as usize).and_then(Option::as_deref);
        bytes.ok_or(Error::UnknownId { id, vocabulary: self.vocabulary() })
    }

    /// The text of `ids`, bytes that are no UTF-8 replaced by U+FFFD, special tokens left out.
    ///
    /// # Errors
    /// [`Error::UnknownId`] if the vocabulary lacks an id.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        let mut bytes = Vec::new();
        for &id in ids {
            let of_token = self.token_bytes(id)?;
            if !self.is_special(id) {
                bytes.extend_from_slice(of_token);
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Encodes text that a user wrote. No added token comes out, even where the text spells one; runs of white
    /// space that the vocabulary has as added tokens are no control tokens and do.
    ///
    /// # Errors
    /// [`Error::TextTooLong`], [`Error::Encode`], or [`Error::OnlySpecial`] where the vocabulary leaves no other way.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text, &self.added.find(text, Which::Text))
    }

    /// Encodes text in which added tokens are meant, such as a training text with its special tokens written out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text, &self.added.find(text, Which::All))
    }

    /// Encodes a plain prompt: as [`Tokenizer::encode_plain`], after BOS where the model wants one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, Error> {
        Ok(self.with_bos_if_wanted(self.encode_plain(text)?))
    }

    /// Encodes a whole text, such as one to be scored: as [`Tokenizer::encode_prompt`], and EOS behind it where the
    /// model wants one.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_document(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids = self.encode_prompt(text)?;
        ids.extend(self.special.eos.filter(|_| self.add_eos));
        Ok(ids)
    }

    /// Encodes what a chat template wrote: the special tokens of the template are special tokens, those that a
    /// message spells are not. BOS is the template's affair; see [`Tokenizer::with_bos`] for one that forgets it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, Error> {
        let (text, matches) = rendered.unmark(|marked| self.added.find(marked, Which::All));
        self.encode(&text, &matches)
    }

    /// As [`with_bos`](Self::with_bos), if prompts of this model start with BOS.
    pub(super) fn with_bos_if_wanted(&self, ids: Vec<u32>) -> Vec<u32> {
        if self.add_bos { self.with_bos(ids) } else { ids }
    }

    /// Puts BOS before `ids` unless there is none or they start with it.
    pub fn with_bos(&self, mut ids: Vec<u32>) -> Vec<u32> {
        match self.special.bos {
            Some(bos) if ids.first() != Some(&bos) => ids.insert(0, bos),
            _ => {}
        }
        ids
    }
}

#[cfg(test)]
mod tests;
