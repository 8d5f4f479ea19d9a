//! SentencePiece's own file, `tokenizer.model`: a protocol buffer, of which the few fields are read that matter.
//!
//! The file is untrusted. Lengths are checked against what is left, nothing is allocated by a length that the file
//! claims, and nothing recurses: messages are one deep.

use super::ggml::VocabParts;
use super::tokenizer::MAX_VOCABULARY;
use super::{Error, SpecialIds};

/// What a `tokenizer.model` holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct SentencePiece {
    /// As the keys of a GGUF file have it.
    pub(super) parts: VocabParts,
    /// What is done to text there and not here, in words for the user.
    pub(super) warnings: Vec<String>,
}

/// The field numbers of `sentencepiece_model.proto`, and the kinds of its enumerations.
mod field {
    pub(super) const PIECES: u64 = 1;
    pub(super) const TRAINER: u64 = 2;
    pub(super) const NORMALIZER: u64 = 3;

    pub(super) const PIECE_TEXT: u64 = 1;
    pub(super) const PIECE_SCORE: u64 = 2;
    pub(super) const PIECE_TYPE: u64 = 3;

    pub(super) const TRAINER_MODEL: u64 = 3;
    pub(super) const TRAINER_SUFFIX: u64 = 24;
    pub(super) const TRAINER_UNK: u64 = 40;
    pub(super) const TRAINER_BOS: u64 = 41;
    pub(super) const TRAINER_EOS: u64 = 42;
    pub(super) const TRAINER_PAD: u64 = 43;

    pub(super) const NORMALIZER_MAP: u64 = 2;
    pub(super) const NORMALIZER_PREFIX: u64 = 3;
    pub(super) const NORMALIZER_COLLAPSE: u64 = 4;
    pub(super) const NORMALIZER_ESCAPE: u64 = 5;

    pub(super) const BPE: u64 = 2;
}

/// One field's value.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message, in order.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, len: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(len).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next field's number and value; `None` if it is malformed.
    fn read(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => self.take(8).map(|_| Wire::Eight)?,
            2 => {
                let len = self.varint()?;
                Wire::Bytes(self.take(len)?)
            }
            5 => Wire::Four(self.take(4)?.try_into().ok()?),
            // Groups, which the format has not used for long, and what does not exist.
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// Reads a `tokenizer.model`.
///
/// # Errors
/// [`Error::SentencePiece`] for a malformed file, [`Error::Unsupported`] for a model that is not BPE,
/// [`Error::Range`] for one with more tokens than any real one.
pub(super) fn read(file: &[u8]) -> Result<SentencePiece, Error> {
    let mut this = SentencePiece::default();
    this.parts.model = "llama".to_owned();
    // The defaults of the format: Unigram, which is refused below, and an "unknown" token that the file names.
    let mut kind = 1;
    for field in Fields(file) {
        match field.ok_or(Error::SentencePiece("a field that cannot be read"))? {
            (field::PIECES, Wire::Bytes(bytes)) => this.piece(bytes)?,
            (field::TRAINER, Wire::Bytes(bytes)) => this.trainer(bytes, &mut kind)?,
            (field::NORMALIZER, Wire::Bytes(bytes)) => this.normalizer(bytes)?,
            _ => {}
        }
    }
    if kind != field::BPE {
        return Err(Error::Unsupported {
            what: "tokenizer.model of type",
            found: ["?", "Unigram", "BPE", "Word", "Char"].get(kind as usize).unwrap_or(&"?").to_string(),
            known: "BPE".to_owned(),
        });
    }
    if this.parts.tokens.is_empty() {
        return Err(Error::SentencePiece("no tokens"));
    }
    let count = this.parts.tokens.len();
    let known = |id: Option<u32>| id.filter(|id| (*id as usize) < count);
    let SpecialIds { bos, eos, pad, unk } = this.parts.special;
    this.parts.special = SpecialIds { bos: known(bos), eos: known(eos), pad: known(pad), unk: known(unk) };
    Ok(this)
}

impl SentencePiece {
    fn piece(&mut self, message: &[u8]) -> Result<(), Error> {
        let (mut text, mut score, mut kind) = ("", 0.0, super::TOKEN_NORMAL);
        for field in Fields(message) {
            match field.ok_or(Error::SentencePiece("a token that cannot be read"))? {
                (field::PIECE_TEXT, Wire::Bytes(bytes)) => {
                    text = std::str::from_utf8(bytes).map_err(|_| Error::SentencePiece("a token that is no UTF-8"))?;
                }
                (field::PIECE_SCORE, Wire::Four(bytes)) => score = f32::from_le_bytes(bytes),
                // The numbers are those of `tokenizer.ggml.token_type`.
                (field::PIECE_TYPE, Wire::Number(n)) => kind = i32::try_from(n).unwrap_or(i32::MAX),
                _ => {}
            }
        }
        if self.parts.tokens.len() >= MAX_VOCABULARY {
            return Err(Error::Range {
                what: "the number of tokens",
                expected: format!("at most {MAX_VOCABULARY}"),
                found: MAX_VOCABULARY as u64 + 1,
            });
        }
        self.parts.tokens.push(text.to_owned());
        self.parts.scores.push(score);
        self.parts.token_types.push(kind);
        Ok(())
    }

    fn trainer(&mut self, message: &[u8], kind: &mut u64) -> Result<(), Error> {
        // The format's defaults; -1, which is none, is no u32.
        let mut special = SpecialIds { unk: Some(0), bos: Some(1), eos: Some(2), pad: None };
        for field in Fields(message) {
            match field.ok_or(Error::SentencePiece("a trainer_spec that cannot be read"))? {
                (field::TRAINER_MODEL, Wire::Number(n)) => *kind = n,
                (field::TRAINER_SUFFIX, Wire::Number(n)) if n != 0 => {
                    self.warnings.push("tokenizer.model puts the space behind words; that is not done".to_owned());
                }
                (field::TRAINER_UNK, Wire::Number(n)) => special.unk = u32::try_from(n).ok(),
                (field::TRAINER_BOS, Wire::Number(n)) => special.bos = u32::try_from(n).ok(),
                (field::TRAINER_EOS, Wire::Number(n)) => special.eos = u32::try_from(n).ok(),
                (field::TRAINER_PAD, Wire::Number(n)) => special.pad = u32::try_from(n).ok(),
                _ => {}
            }
        }
        self.parts.special = special;
        Ok(())
    }

    fn normalizer(&mut self, message: &[u8]) -> Result<(), Error> {
        let (mut maps, mut collapse, mut escape, mut prefix) = (false, true, true, true);
        for field in Fields(message) {
            match field.ok_or(Error::SentencePiece("a normalizer_spec that cannot be read"))? {
                (field::NORMALIZER_MAP, Wire::Bytes(bytes)) => maps = !bytes.is_empty(),
                (field::NORMALIZER_PREFIX, Wire::Number(n)) => prefix = n != 0,
                (field::NORMALIZER_COLLAPSE, Wire::Number(n)) => collapse = n != 0,
                (field::NORMALIZER_ESCAPE, Wire::Number(n)) => escape = n != 0,
                _ => {}
            }
        }
        self.parts.add_space_prefix = Some(prefix);
        let not_done = [
            (maps, "replaces characters by others (precompiled_charsmap)"),
            (collapse, "makes one space of several (remove_extra_whitespaces)"),
            (!escape, "keeps spaces as they are (escape_whitespaces)"),
        ];
        let not_done = not_done.into_iter().filter(|(is, _)| *is);
        self.warnings.extend(not_done.map(|(_, what)| format!("tokenizer.model {what}; that is not done")));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
