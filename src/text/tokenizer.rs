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

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizer::Range;
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Token,
};

use super::added::{AddedToken, AddedTokens, Match, Which};
use super::{Error, Rendered, alphabet};

/// The highest id that is accepted, plus one: far above any real vocabulary, so that a corrupt id cannot make
/// a table of 2^32 entries.
pub(super) const MAX_VOCABULARY: usize = 1 << 22;

/// How the texts of the vocabulary stand for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
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
    pub(super) model: BPE,
    spelling: Spelling,
    pub(super) added: AddedTokens,
    /// The bytes of each id; `None` where the vocabulary has a hole.
    bytes: Vec<Option<Box<[u8]>>>,
    kinds: Vec<Kind>,
    special: SpecialIds,
    add_bos: bool,
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
        let mut this = Self {
            normalizer: part("normalizer", take("normalizer"))?,
            pre_tokenizer: part("pre_tokenizer", take("pre_tokenizer"))?,
            spelling,
            added: AddedTokens::new(added.unwrap_or_default())?,
            bytes: Vec::new(),
            kinds: Vec::new(),
            special: SpecialIds::default(),
            add_bos: false,
            model,
        };
        this.index()?;
        this.special.unk = this.model_unknown();
        if let Some(text) = leading {
            this.special.bos = this.id_of(&text);
            this.add_bos = this.special.bos.is_some();
        }
        Ok(this)
    }

    /// Fills the tables by id from the model's vocabulary and the added tokens.
    fn index(&mut self) -> Result<(), Error> {
        let mut texts: Vec<Option<String>> = Vec::new();
        let vocabulary = self.model.get_vocab();
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
            self.kinds[at] = match (token.special, token.is_white_space()) {
                (true, _) => Kind::Special,
                (false, false) => Kind::Word,
                (false, true) => Kind::Ordinary,
            };
        }
        Ok(())
    }

    fn model_unknown(&self) -> Option<u32> {
        let text = self.model.unk_token.as_deref()?;
        self.model.token_to_id(text)
    }

    /// Takes `bos_token`, `eos_token`, `pad_token`, `unk_token` and `add_bos_token` from a tokenizer_config.json. What it
    /// does not say stays as it is.
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
        added.or_else(|| self.model.token_to_id(text))
    }

    /// The text of a token as the vocabulary spells it.
    pub fn text_of(&self, id: u32) -> Option<String> {
        let added = self.added.iter().find(|t| t.id == id);
        added.map(|t| t.content.clone()).or_else(|| self.model.id_to_token(id))
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
        self.encode(text, &self.added.find(text, Which::WhiteSpace))
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

    /// Encodes `text` with the ids of `matches` at their places, which are in order and do not overlap.
    fn encode(&self, text: &str, matches: &[Match]) -> Result<Vec<u32>, Error> {
        if text.len() > Self::MAX_TEXT {
            return Err(Error::TextTooLong { found: text.len(), limit: Self::MAX_TEXT });
        }
        // One string for the whole text, not one per piece: some pre-tokenizers treat its start differently.
        let mut string = PreTokenizedString::from(text);
        string.split(|_, whole| Ok(split(&whole, matches))).map_err(encode_error)?;
        if let Some(normalizer) = &self.normalizer {
            string.normalize(|s| normalizer.normalize(s)).map_err(encode_error)?;
        }
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut string).map_err(encode_error)?;
        }
        string.tokenize(|s| self.tokenize_word(s.get())).map_err(encode_error)?;
        let pieces = string.get_splits(OffsetReferential::Original, OffsetType::None);
        let tokens = pieces.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten();
        Ok(tokens.map(|t| t.id).collect())
    }

    /// The model's tokens for one word of the pre-tokenizer, none of them an added token.
    ///
    /// Merges can lead to an added token's text where that is in the model's vocabulary too. Such a token is cut
    /// after its first character and both parts are encoded on their own.
    fn tokenize_word(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = self.model.tokenize(word)?;
        if !tokens.iter().any(|t| self.is_forbidden(t.id)) {
            return Ok(tokens);
        }
        let mut safe = Vec::with_capacity(tokens.len() + 1);
        for token in tokens {
            if !self.is_forbidden(token.id) {
                safe.push(token);
                continue;
            }
            let second = token.value.char_indices().nth(1);
            match second {
                // The parts are shorter than the token, so this ends.
                Some((at, _)) => {
                    safe.extend(self.tokenize_word(&token.value[..at])?);
                    safe.extend(self.tokenize_word(&token.value[at..])?);
                }
                // A single character that was also added as a word is that word.
                None if !self.is_special(token.id) => safe.push(token),
                None => return Err(Box::new(Error::OnlySpecial(token.value))),
            }
        }
        Ok(safe)
    }

    fn is_forbidden(&self, id: u32) -> bool {
        // The model says "unknown" of its own accord; no text spells that.
        let kind = self.kinds.get(id as usize);
        self.special.unk != Some(id) && matches!(kind, Some(Kind::Special | Kind::Word))
    }
}

/// Cuts `whole` at the matches, and gives those their token.
fn split(whole: &NormalizedString, matches: &[Match]) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    let mut pieces = Vec::with_capacity(2 * matches.len() + 1);
    let mut free = 0;
    // The string is not normalised yet, so offsets in it and in the original are the same; slicing by the
    // former costs the slice, by the latter the whole string.
    let slice = |range| whole.slice(Range::Normalized(range));
    for Match { range, id } in matches {
        if free < range.start {
            pieces.extend(slice(free..range.start).map(|s| (s, None)));
        }
        let token = Token::new(*id, String::new(), (0, range.len()));
        pieces.extend(slice(range.clone()).map(|s| (s, Some(vec![token]))));
        free = range.end;
    }
    if free < whole.len() {
        pieces.extend(slice(free..whole.len()).map(|s| (s, None)));
    }
    pieces
}

fn malformed(part: &'static str, error: impl fmt::Display) -> Error {
    let detail = error.to_string();
    Error::TokenizerJson { part, detail }
}

fn part<T: for<'a> Deserialize<'a>>(name: &'static str, value: Value) -> Result<T, Error> {
    T::deserialize(value).map_err(|e| malformed(name, e))
}

fn encode_error(error: tokenizers::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::Encode(other.to_string()),
    }
}

/// All objects named `type` within a component and its sequences, outermost first.
fn components(component: &Value) -> Vec<&Value> {
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
const MODELS: &[&str] = &["BPE"];
const NORMALIZERS: &[&str] =
    &["Sequence", "NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "StripAccents", "Strip"];
const PRE_TOKENIZERS: &[&str] =
    &["Sequence", "ByteLevel", "Split", "Digits", "Metaspace", "Whitespace", "WhitespaceSplit", "Punctuation"];
const DECODERS: &[&str] = &["Sequence", "ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"];

fn unsupported(what: &'static str, found: &str, known: &[&str]) -> Error {
    Error::Unsupported { what, found: found.to_owned(), known: known.join(", ") }
}

fn check_components(json: &Value) -> Result<(), Error> {
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
fn spelling(json: &Value) -> Spelling {
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

fn spell(spelling: Spelling, token: &str) -> Box<[u8]> {
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
fn leading_token(post_processor: &Value) -> Option<String> {
    let template = components(post_processor).into_iter().find(|p| p["type"] == "TemplateProcessing")?;
    let id = template["single"][0]["SpecialToken"]["id"].as_str()?;
    Some(id.to_owned())
}

#[cfg(test)]
mod tests;
