//! From text to ids: the vocabulary's own way, without added tokens where none may be.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizer::Range;
use tokenizers::{
    Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, Token,
};

use super::{Error, Kind, Match, Tokenizer, Words};

impl Tokenizer {
    /// Encodes `text` with the ids of `matches` at their places, which are in order and do not overlap.
    pub(super) fn encode(&self, text: &str, matches: &[Match]) -> Result<Vec<u32>, Error> {
        if text.len() > Self::MAX_TEXT {
            return Err(Error::TextTooLong { found: text.len(), limit: Self::MAX_TEXT });
        }
        let bpe = match &self.model {
            Words::Spm(spm) => return spm.encode(text, matches),
            Words::Bpe(bpe) => bpe,
        };
        // One string for the whole text, not one per piece: some pre-tokenizers treat its start differently.
        let mut string = PreTokenizedString::from(text);
        string.split(|_, whole| Ok(split(&whole, matches))).map_err(encode_error)?;
        if let Some(normalizer) = &self.normalizer {
            string.normalize(|s| normalizer.normalize(s)).map_err(encode_error)?;
        }
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut string).map_err(encode_error)?;
        }
        string.tokenize(|s| self.tokenize_word(bpe, s.get())).map_err(encode_error)?;
        let pieces = string.get_splits(OffsetReferential::Original, OffsetType::None);
        let tokens = pieces.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten();
        Ok(tokens.map(|t| t.id).collect())
    }

    /// The model's tokens for one word of the pre-tokenizer, none of them an added token.
    ///
    /// Merges can lead to an added token's text where that is in the model's vocabulary too. Such a token is cut
    /// after its first character and both parts are encoded on their own.
    fn tokenize_word(&self, bpe: &BPE, word: &str) -> tokenizers::Result<Vec<Token>> {
        let tokens = bpe.tokenize(word)?;
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
                    safe.extend(self.tokenize_word(bpe, &token.value[..at])?);
                    safe.extend(self.tokenize_word(bpe, &token.value[at..])?);
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

fn encode_error(error: tokenizers::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(own) => *own,
        Err(other) => Error::Encode(other.to_string()),
    }
}
