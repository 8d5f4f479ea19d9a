//! Added tokens: the texts that a tokenizer treats as one token before anything else looks at them, such as
//! `<|end_turn|>`.

use std::ops::Range;

use serde::Deserialize;

use super::Error;

/// The longest text of an added token, in bytes. Bounds the work of a search at `text length x this`.
const MAX_LEN: usize = 1024;

/// One added token, as tokenizer.json has it. Its `normalized` is ignored: all are looked for in the text as it was
/// written, which is the same thing wherever the normaliser leaves the token's text alone.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct AddedToken {
    pub(super) id: u32,
    pub(super) content: String,
    /// A control token, as against a frequent word that was added to the vocabulary.
    #[serde(default)]
    pub(super) special: bool,
    /// Matches only where no letter or digit touches it.
    #[serde(default)]
    pub(super) single_word: bool,
    /// White space to the left belongs to the token.
    #[serde(default)]
    pub(super) lstrip: bool,
    /// White space to the right belongs to the token.
    #[serde(default)]
    pub(super) rstrip: bool,
}

impl AddedToken {
    /// Some vocabularies add runs of spaces, tabs or line breaks as tokens, or single characters. They are
    /// compression, not control: ordinary text is meant to be encoded with them.
    pub(super) fn is_text(&self) -> bool {
        let mut chars = self.content.chars();
        let one = chars.next().is_some() && chars.next().is_none();
        (one && !self.special) || self.content.chars().all(char::is_whitespace)
    }
}

/// Which added tokens a search looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All of them: the text is trusted.
    All,
    /// Runs of white space and single characters only: the text is a user's.
    Text,
    /// What must not come out of a text that a user wrote: all but those.
    Control,
    /// What must not come out of a text that the model wrote: special tokens. A model's own `<think>`, where that is
    /// a plain added token, is told back to it as the token it was.
    Special,
}

/// A place where an added token stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    pub(super) range: Range<usize>,
    pub(super) id: u32,
}

/// All added tokens, searchable.
#[derive(Debug, Clone, Default)]
pub(super) struct AddedTokens {
    /// In the order of their bytes.
    tokens: Vec<AddedToken>,
    /// Which bytes start any token.
    first: Vec<bool>,
}

impl AddedTokens {
    pub(super) fn new(mut tokens: Vec<AddedToken>) -> Result<Self, Error> {
        tokens.retain(|t| !t.content.is_empty());
        if let Some(long) = tokens.iter().find(|t| t.content.len() > MAX_LEN) {
            return Err(Error::Range {
                what: "the length of an added token",
                expected: format!("at most {MAX_LEN} bytes"),
                found: long.content.len() as u64,
            });
        }
        tokens.sort_by(|a, b| a.content.cmp(&b.content));
        if let Some([a, b]) = tokens.array_windows().find(|[a, b]| a.content == b.content) {
            return Err(Error::Ambiguous {
                first: a.content.clone(),
                first_id: a.id,
                second: b.content.clone(),
                second_id: b.id,
            });
        }
        let mut first = vec![false; 256];
        for token in &tokens {
            first[usize::from(token.content.as_bytes()[0])] = true;
        }
        Ok(Self { tokens, first })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &AddedToken> {
        self.tokens.iter()
    }

    /// The longest wanted token that `bytes` starts with.
    fn longest_at(&self, bytes: &[u8], which: Which) -> Option<&AddedToken> {
        let mut longest = None;
        // `range` holds the tokens that agree with the first `depth` bytes; they are neighbours, being sorted.
        let mut range = 0..self.tokens.len();
        for (depth, &byte) in bytes.iter().enumerate() {
            let candidates = &self.tokens[range.clone()];
            let at = |t: &AddedToken| t.content.as_bytes().get(depth).copied();
            let from = range.start + candidates.partition_point(|t| at(t) < Some(byte));
            let to = range.start + candidates.partition_point(|t| at(t) <= Some(byte));
            range = from..to;
            let Some(shortest) = self.tokens.get(from).filter(|_| from < to) else {
                break;
            };
            if shortest.content.len() == depth + 1 && wanted(shortest, which) {
                longest = Some(shortest);
            }
        }
        longest
    }

    /// The places of added tokens in `text`, leftmost first and longest among equals, as the `tokenizers` library
    /// finds them.
    pub(super) fn find(&self, text: &str, which: Which) -> Vec<Match> {
        let bytes = text.as_bytes();
        let mut found: Vec<Match> = Vec::new();
        let mut at = 0;
        // Where the match before ended, with the white space it took.
        let mut free = 0;
        while let Some(&byte) = bytes.get(at) {
            // A token is whole UTF-8, so a match can only start at the start of a character.
            let token = match self.first.get(usize::from(byte)) {
                Some(true) => self.longest_at(&bytes[at..], which),
                _ => None,
            };
            let Some(token) = token else {
                at += 1;
                continue;
            };
            let (mut start, mut end) = (at, at + token.content.len());
            at = end;
            let alone = !text[..start].ends_with(is_word) && !text[end..].starts_with(is_word);
            if start < free || (token.single_word && !alone) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(free);
            }
            if token.rstrip {
                end += text.len() - end - text[end..].trim_start().len();
            }
            found.push(Match { range: start..end, id: token.id });
            free = end;
        }
        found
    }
}

impl AddedTokens {
    /// Writes `text` so that no wanted token can be found in it, nor in what comes of setting it between other texts:
    /// `marker`, which no token contains, goes behind the first character of each token spelled in `text`, and
    /// to either end where a token might continue beyond it. White space at the ends stays outside the
    /// markers, where a template can trim it.
    ///
    /// A token of one character cannot be broken; it is followed by two markers instead.
    pub(super) fn break_up(&self, text: &str, marker: char, which: Which) -> String {
        let core = text.trim();
        if core.is_empty() {
            return text.to_owned();
        }
        let start = text.len() - text.trim_start().len();
        let (before, after) = (&text[..start], &text[start + core.len()..]);
        let (open_start, open_end) = self.open_ends(core, which);

        let mut out = String::with_capacity(text.len() + 16);
        out.push_str(before);
        out.extend(open_start.then_some(marker));
        for (at, c) in core.char_indices() {
            out.push(c);
            let rest = &core.as_bytes()[at..];
            let starts = self.first.get(usize::from(rest[0])) == Some(&true);
            if starts && self.longest_at(rest, which).is_some() {
                out.push(marker);
                let alone = &core[at..at + c.len_utf8()];
                if self.iter().any(|t| t.content == alone && wanted(t, which)) {
                    out.push(marker);
                }
            }
        }
        out.extend(open_end.then_some(marker));
        out.push_str(after);
        out
    }

    /// Whether a wanted token could begin before `core` and end in or after it, and whether one could begin in or
    /// before it and end after.
    fn open_ends(&self, core: &str, which: Which) -> (bool, bool) {
        let (mut start, mut end) = (false, false);
        for token in self.iter().filter(|t| wanted(t, which)) {
            let token = token.content.as_str();
            for (at, _) in token.char_indices().skip(1) {
                let (head, tail) = token.split_at(at);
                start |= core.starts_with(tail) || tail.starts_with(core);
                end |= core.ends_with(head) || head.ends_with(core);
            }
        }
        (start, end)
    }
}

fn wanted(token: &AddedToken, which: Which) -> bool {
    match which {
        Which::All => true,
        Which::Text => token.is_text(),
        Which::Control => !token.is_text(),
        Which::Special => token.special && !token.is_text(),
    }
}

/// A regular expression's `\w`, near enough.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(texts: &[&str]) -> AddedTokens {
        let token = |(id, text): (usize, &&str)| AddedToken {
            id: id as u32,
            content: text.to_string(),
            special: text.starts_with('<'),
            single_word: text.starts_with("word"),
            lstrip: text.contains("left"),
            rstrip: text.contains("right"),
        };
        AddedTokens::new(texts.iter().enumerate().map(token).collect()).unwrap()
    }

    fn found(added: &AddedTokens, text: &str, which: Which) -> Vec<(u32, String)> {
        let matches = added.find(text, which).into_iter();
        matches.map(|m| (m.id, text[m.range].to_owned())).collect()
    }

    #[test]
    fn longest_of_the_leftmost_wins() {
        let t = tokens(&["<a", "<a>", "<a><b>", "b"]);
        let all = |text| found(&t, text, Which::All).into_iter().map(|m| m.0).collect::<Vec<_>>();
        assert_eq!(all("<a><b>"), [2]);
        assert_eq!(all("<a><b"), [1, 3]);
        assert_eq!(all("<a <a>"), [0, 1]);
        assert!(all("x<é>").is_empty());
        assert!(all("").is_empty());
        // "b" is not special.
        assert_eq!(found(&t, "<ab", Which::Special), [(0, "<a".to_owned())]);
    }

    #[test]
    fn kinds_are_told_apart() {
        let t = tokens(&["<s>", "think", "  "]);
        let ids = |which| found(&t, "<s>  think", which).into_iter().map(|m| m.0).collect::<Vec<_>>();
        assert_eq!(ids(Which::All), [0, 2, 1]);
        assert_eq!(ids(Which::Text), [2]);
        assert_eq!(ids(Which::Control), [0, 1]);
        assert_eq!(ids(Which::Special), [0]);
    }

    #[test]
    fn strips_and_words() {
        let t = tokens(&["<left>", "<right>", "word", " x"]);
        let all = |text| found(&t, text, Which::All).into_iter().map(|m| m.1).collect::<Vec<_>>();
        assert_eq!(all("a \n<left> b"), [" \n<left>"]);
        // The space after <right> is its own, so " x" does not start there.
        assert_eq!(all("a <right> x"), ["<right> "]);
        assert_eq!(all("<right> \t<left>"), ["<right> \t", "<left>"]);
        assert_eq!(all("a word, words, word"), ["word", "word"]);
    }

    #[test]
    fn endless_tokens_are_refused() {
        let long = AddedToken {
            id: 0,
            content: "x".repeat(MAX_LEN + 1),
            special: false,
            single_word: false,
            lstrip: false,
            rstrip: false,
        };
        assert!(matches!(AddedTokens::new(vec![long]), Err(Error::Range { .. })));
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            texts in prop::collection::hash_set("[ab<>é]{1,4}", 0..8),
            text in "[ab<>é]{0,40}",
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let added = tokens(&texts);
            let mut naive = Vec::new();
            let mut rest = 0;
            while rest < text.len() {
                let here = texts.iter().filter(|t| text.as_bytes()[rest..].starts_with(t.as_bytes()));
                match here.max_by_key(|t| t.len()) {
                    Some(t) => { naive.push(t.to_string()); rest += t.len(); }
                    None => rest += 1,
                }
            }
            let found: Vec<String> = found(&added, &text, Which::All).into_iter().map(|m| m.1).collect();
            prop_assert_eq!(found, naive);
        }
    }
}
