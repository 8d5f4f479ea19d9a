//! SentencePiece's BPE: tokens with scores, of which the best pair is merged first; what has no token is written in
//! bytes.
//!
//! The rules are llama.cpp's for `tokenizer.ggml.model = llama`: spaces become U+2581, a text and whatever follows an
//! added token starts with one more of them, and nothing else is normalised.
//!
//! **Cost.** Pairs wait in a heap and each merge adds two, so a text of n characters takes n log n steps, whatever
//! it says. A pair longer than the longest token is not even looked up.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::added::Match;
use super::{Error, alphabet};

/// What stands for a space within tokens.
pub(super) const SPACE: char = '\u{2581}';

/// One token.
#[derive(Debug, Clone, Copy)]
struct Piece {
    id: u32,
    score: f32,
    /// Whether text may become this token.
    from_text: bool,
}

/// A vocabulary with scores.
#[derive(Debug, Clone, Default)]
pub(super) struct Spm {
    pieces: HashMap<Box<str>, Piece>,
    texts: HashMap<u32, Box<str>>,
    /// Which token stands for each byte.
    bytes: HashMap<u8, u32>,
    unknown: Option<u32>,
    /// Bytes of the longest token that text may become.
    longest: usize,
    /// Whether a text, and what follows an added token, starts with one more space.
    pub(super) space_prefix: bool,
}

/// The longest token that text may become, in bytes, so that a lookup cannot take long. Real ones have a few dozen.
const MAX_LEN: usize = 1024;

/// No symbol.
const NONE: u32 = u32::MAX;

/// A part of the text that is one token, or one character, so far. An empty one was merged into another.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32,
    prev: u32,
    next: u32,
}

/// Two neighbours that would make a token.
#[derive(Debug, Clone, Copy)]
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both; anything else means that one of them has changed since.
    len: u32,
}

impl Ord for Pair {
    /// The best score first, of equal ones the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left)).then(other.len.cmp(&self.len))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl Spm {
    /// Adds a token; `from_text` says whether text may become it. A score that is no number is the worst.
    ///
    /// # Errors
    /// [`Error::Ambiguous`] if there is a token of this text already.
    pub(super) fn insert(&mut self, id: u32, text: &str, score: f32, from_text: bool) -> Result<(), Error> {
        let from_text = from_text && text.len() <= MAX_LEN;
        // Adding zero makes both zeros the same.
        let score = if score.is_nan() { f32::NEG_INFINITY } else { score + 0.0 };
        if let Some(first) = self.pieces.insert(text.into(), Piece { id, score, from_text }) {
            let text = text.to_owned();
            return Err(Error::Ambiguous { first: text.clone(), first_id: first.id, second: text, second_id: id });
        }
        if let Some(byte) = alphabet::fallback_byte(text) {
            self.bytes.entry(byte).or_insert(id);
        }
        self.texts.insert(id, text.into());
        if from_text {
            self.longest = self.longest.max(text.len());
        }
        Ok(())
    }

    /// Sets the token for characters that have neither a token nor bytes.
    pub(super) fn set_unknown(&mut self, id: Option<u32>) {
        self.unknown = id;
    }

    /// The token for characters that have neither a token nor bytes.
    pub(super) fn unknown(&self) -> Option<u32> {
        self.unknown
    }

    /// The id of a token.
    pub(super) fn id_of(&self, text: &str) -> Option<u32> {
        self.pieces.get(text).map(|p| p.id)
    }

    /// The text of a token.
    pub(super) fn text_of(&self, id: u32) -> Option<&str> {
        self.texts.get(&id).map(|t| &**t)
    }

    /// All tokens: text, id and score, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32, f32)> {
        self.pieces.iter().map(|(text, p)| (&**text, p.id, p.score))
    }

    /// Encodes `text` with the ids of `matches` at their places, which are in order and do not overlap.
    ///
    /// # Errors
    /// [`Error::OnlySpecial`] for a character that has neither a token nor bytes, where there is no unknown token.
    pub(super) fn encode(&self, text: &str, matches: &[Match]) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::with_capacity(text.len() / 3 + matches.len());
        let mut free = 0;
        for found in matches {
            self.encode_piece(&text[free..found.range.start], &mut ids)?;
            ids.push(found.id);
            free = found.range.end;
        }
        self.encode_piece(&text[free..], &mut ids)?;
        Ok(ids)
    }

    /// Encodes one piece of text between added tokens.
    fn encode_piece(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        if text.is_empty() {
            return Ok(());
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 2 + 3);
        escaped.extend(self.space_prefix.then_some(SPACE));
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for word in self.merge(&escaped) {
            let text = &escaped[word.start as usize..][..word.len as usize];
            match self.piece(text) {
                Some(piece) => ids.push(piece.id),
                None => self.spell(text, ids)?,
            }
        }
        Ok(())
    }

    /// The parts of `text` that are left when nothing more can be merged.
    fn merge(&self, text: &str) -> impl Iterator<Item = Symbol> + use<> {
        // Texts are limited to far less than 2^32 bytes (`Tokenizer::MAX_TEXT`), so indices fit.
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (start, c) in text.char_indices() {
            let index = symbols.len() as u32;
            symbols.push(Symbol {
                start: start as u32,
                len: c.len_utf8() as u32,
                prev: index.checked_sub(1).unwrap_or(NONE),
                next: index + 1,
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            queue.extend(self.pair(text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            symbols[left as usize] = Symbol { len, next: r.next, ..l };
            symbols[right as usize].len = 0;
            if r.next != NONE {
                symbols[r.next as usize].prev = left;
                queue.extend(self.pair(text, &symbols, left, r.next));
            }
            if l.prev != NONE {
                queue.extend(self.pair(text, &symbols, l.prev, left));
            }
        }
        symbols.into_iter().filter(|s| s.len > 0)
    }

    /// The pair of two neighbours, if it is a token.
    fn pair(&self, text: &str, symbols: &[Symbol], left: u32, right: u32) -> Option<Pair> {
        let start = symbols[left as usize].start;
        let len = symbols[left as usize].len + symbols[right as usize].len;
        if len as usize > self.longest {
            return None;
        }
        let piece = self.piece(&text[start as usize..][..len as usize])?;
        Some(Pair { score: piece.score, left, right, len })
    }

    /// The token that text may become.
    fn piece(&self, text: &str) -> Option<&Piece> {
        self.pieces.get(text).filter(|p| p.from_text)
    }

    /// Writes a character that has no token in bytes.
    fn spell(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        let bytes: Option<Vec<u32>> = text.bytes().map(|b| self.bytes.get(&b).copied()).collect();
        match (bytes, self.unknown) {
            (Some(bytes), _) => ids.extend(bytes),
            (None, Some(unknown)) => ids.push(unknown),
            (None, None) => return Err(Error::OnlySpecial(text.to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
