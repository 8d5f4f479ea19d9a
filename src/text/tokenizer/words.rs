//! The two kinds of model that turn words into tokens.

use std::collections::HashMap;

use tokenizers::Model;
use tokenizers::models::bpe::BPE;

use crate::text::spm::Spm;

/// A model with its vocabulary.
#[derive(Clone)]
pub(in crate::text) enum Words {
    /// Merges by rank, of the `tokenizers` crate.
    Bpe(Box<BPE>),
    /// Merges by score.
    Spm(Box<Spm>),
}

impl Words {
    /// Every token and its id.
    pub(super) fn vocabulary(&self) -> HashMap<String, u32> {
        match self {
            Self::Bpe(bpe) => bpe.get_vocab(),
            Self::Spm(spm) => spm.iter().map(|(text, id, _)| (text.to_owned(), id)).collect(),
        }
    }

    /// The id of a token.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        match self {
            Self::Bpe(bpe) => bpe.token_to_id(text),
            Self::Spm(spm) => spm.id_of(text),
        }
    }

    /// The text of a token.
    pub(super) fn text_of(&self, id: u32) -> Option<String> {
        match self {
            Self::Bpe(bpe) => bpe.id_to_token(id),
            Self::Spm(spm) => spm.text_of(id).map(str::to_owned),
        }
    }

    /// The token for what has no other.
    pub(super) fn unknown(&self) -> Option<u32> {
        match self {
            Self::Bpe(bpe) => bpe.token_to_id(bpe.unk_token.as_deref()?),
            Self::Spm(spm) => spm.unknown(),
        }
    }
}
