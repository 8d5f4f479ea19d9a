//! Text as it comes out of the engine, token by token, on its way to a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::{Error, Tokenizer};

/// Turns token ids into text piece by piece. A token may end in the middle of a character; its bytes are held back
/// until the rest has come, so that every piece is whole characters.
///
/// All pieces together, with [`StreamDecoder::flush`]'s, are the lossy decoding of all the bytes together.
#[derive(Debug, Clone, Default)]
pub struct StreamDecoder {
    /// The start of a character: at most three bytes between calls.
    pending: Vec<u8>,
    show_special: bool,
}

impl StreamDecoder {
    /// A decoder at the start of a text, which leaves out special tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes special tokens out as the vocabulary spells them, to look at a prompt.
    pub fn show_special(mut self) -> Self {
        self.show_special = true;
        self
    }

    /// The text that is certain once `id` has come; often empty, sometimes with characters of tokens before.
    ///
    /// # Errors
    /// [`Error::UnknownId`] if the vocabulary lacks the id.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String, Error> {
        let bytes = tokenizer.token_bytes(id)?;
        Ok(match self.show_special || !tokenizer.is_special(id) {
            true => self.push_bytes(bytes),
            false => String::new(),
        })
    }

    /// As [`StreamDecoder::push`], of bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let last = done + invalid.len() == self.pending.len();
            if last && could_go_on(invalid) {
                break;
            }
            if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
        text
    }

    /// What is still held back, at the end of the text: U+FFFD for half a character, otherwise nothing.
    pub fn flush(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// Whether `bytes` are the start of a character whose end may still come.
fn could_go_on(bytes: &[u8]) -> bool {
    match std::str::from_utf8(bytes) {
        Ok(_) => false,
        Err(e) => e.valid_up_to() == 0 && e.error_len().is_none(),
    }
}

/// What [`StopStrings::push`] lets through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopped {
    /// Text that belongs to no stop string.
    pub text: String,
    /// The index of the stop string that was found; the text ends before it.
    pub stop: Option<usize>,
}

/// Watches a stream of text for strings that end it. Text that may be the start of a stop string is held back, so
/// that no part of one is ever shown, however the tokens cut it.
///
/// The first stop string to be complete counts; of several that end at the same place the longest.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The longest end of the text so far that starts a stop string.
    held: String,
    stopped: Option<usize>,
}

impl StopStrings {
    /// Watches for `stops`; with none, everything passes.
    ///
    /// # Errors
    /// [`Error::EmptyStop`] for an empty string, which would stop at once.
    pub fn new(stops: Vec<String>) -> Result<Self, Error> {
        match stops.iter().position(String::is_empty) {
            Some(at) => Err(Error::EmptyStop(at)),
            None => Ok(Self { stops, ..Self::default() }),
        }
    }

    /// Adds a piece of text and returns what may be shown. After a stop, nothing more passes.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.stopped.is_some() {
            return Stopped { text: String::new(), stop: self.stopped };
        }
        self.held.push_str(piece);
        let ends = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, index))
        });
        let shown = match ends.min() {
            Some((_, start, index)) => {
                self.stopped = Some(index);
                start
            }
            None => self.held.len() - self.undecided(),
        };
        let rest = self.held.split_off(shown);
        let text = std::mem::replace(&mut self.held, rest);
        if self.stopped.is_some() {
            self.held.clear();
        }
        Stopped { text, stop: self.stopped }
    }

    /// The length of the longest end of `held` that is the start of a stop string, but not all of one.
    fn undecided(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let mut starts = (from..self.held.len()).filter(|&at| self.held.is_char_boundary(at));
        let undecided = |at: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*at..]));
        starts.find(undecided).map_or(0, |at| self.held.len() - at)
    }

    /// What is still held back, at the end of the text.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Makes a model's output safe for a terminal: control characters (but for line break and tab) become `\x1b`, characters
/// that change the direction of text become `<U+202E>`. Otherwise a model could move the cursor, set the window's
/// title, or show a command other than the one that is copied.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| is_control(c) || is_bidi(c)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // Writing to a String cannot fail.
        let _ = match c {
            c if is_control(c) => write!(safe, "\\x{:02x}", u32::from(c)),
            c if is_bidi(c) => write!(safe, "<U+{:04X}>", u32::from(c)),
            c => safe.write_char(c),
        };
    }
    Cow::Owned(safe)
}

fn is_control(c: char) -> bool {
    // C0, DEL and C1.
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// Embeddings, overrides, isolates and marks of the bidirectional algorithm (Unicode's UAX 9).
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_json(include_str!("../../tests/data/text/tokenizer.json")).unwrap()
    }

    #[test]
    fn characters_come_whole() {
        let mut d = StreamDecoder::new();
        assert_eq!(d.push_bytes(b"a\xF0\x9F"), "a");
        assert_eq!(d.push_bytes(b"\x99"), "");
        assert_eq!(d.push_bytes(b"\x82b\xC3"), "🙂b");
        assert_eq!(d.push_bytes(b"\xC3"), "\u{FFFD}");
        assert_eq!(d.push_bytes(b"\xA9\xFF\x80z"), "é\u{FFFD}\u{FFFD}z");
        assert_eq!(d.push_bytes(b"\xE2\x82"), "");
        assert_eq!(d.flush(), "\u{FFFD}");
        assert_eq!(d.flush(), "");
    }

    #[test]
    fn tokens_of_a_text_stream_back_to_it() {
        let t = tokenizer();
        let text = "Naïve café, 北京 🙂\u{200d}🙂 ok";
        let ids = t.encode_plain(text).unwrap();
        let mut d = StreamDecoder::new();
        let mut out = String::new();
        let mut held_back = false;
        for &id in &ids {
            let piece = d.push(&t, id).unwrap();
            held_back |= piece.is_empty();
            out.push_str(&piece);
        }
        assert!(held_back);
        assert_eq!(out + &d.flush(), text);
    }

    #[test]
    fn special_tokens_are_left_out_unless_wanted() {
        let t = tokenizer();
        assert_eq!(StreamDecoder::new().push(&t, 4).unwrap(), "");
        assert_eq!(StreamDecoder::new().show_special().push(&t, 4).unwrap(), "<|end_turn|>");
        let unknown = StreamDecoder::new().push(&t, 829).unwrap_err();
        assert_eq!(unknown, Error::UnknownId { id: 829, vocabulary: 829 });
    }

    fn stops(stops: &[&str]) -> StopStrings {
        StopStrings::new(stops.iter().map(|s| s.to_string()).collect()).unwrap()
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let mut s = stops(&["</end>", "STOP"]);
        assert_eq!(s.push("hello <"), Stopped { text: "hello ".into(), stop: None });
        assert_eq!(s.push("/e"), Stopped { text: "".into(), stop: None });
        assert_eq!(s.push("x ST"), Stopped { text: "</ex ".into(), stop: None });
        assert_eq!(s.push("STOPper"), Stopped { text: "ST".into(), stop: Some(1) });
        assert_eq!(s.push("more"), Stopped { text: "".into(), stop: Some(1) });
        assert_eq!(s.flush(), "");
    }

    #[test]
    fn what_was_held_back_comes_out_at_the_end() {
        let mut s = stops(&["\nUser:"]);
        assert_eq!(s.push("a\nUse").text, "a");
        assert_eq!(s.flush(), "\nUse");
        assert_eq!(stops(&[]).push("all").text, "all");
    }

    #[test]
    fn first_complete_then_longest_counts() {
        assert_eq!(stops(&["abc", "b"]).push("xabc"), Stopped { text: "xa".into(), stop: Some(1) });
        assert_eq!(stops(&["c", "bc"]).push("abc"), Stopped { text: "a".into(), stop: Some(1) });
        assert_eq!(stops(&["aab"]).push("aaab"), Stopped { text: "a".into(), stop: Some(0) });
    }

    #[test]
    fn empty_stop_strings_are_refused() {
        let refused = StopStrings::new(vec!["x".into(), String::new()]);
        assert_eq!(refused.unwrap_err(), Error::EmptyStop(1));
    }

    #[test]
    fn controls_are_shown_not_obeyed() {
        let evil = "\x1b]0;title\x07 \r\u{9b}31m\u{7f}\0 a\u{202e}b\u{2066}";
        assert_eq!(escape_controls(evil), "\\x1b]0;title\\x07 \\x0d\\x9b31m\\x7f\\x00 a<U+202E>b<U+2066>");
        let fine = "plain\n\tnaïve 北京 🙂\u{200d}🙂 שלום";
        assert!(matches!(escape_controls(fine), Cow::Borrowed(s) if s == fine));
    }

    /// Bytes that are mostly UTF-8, broken here and there.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<u8>().prop_map(|b| vec![b]),
            any::<char>().prop_map(|c| c.to_string().into_bytes()[..1].to_vec()),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|p| p.concat())
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_lossy_whole(bytes in bytes(), cuts in prop::collection::vec(1_usize..5, 0..80)) {
            let mut d = StreamDecoder::new();
            let mut out = String::new();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                out += &d.push_bytes(now);
                prop_assert!(d.pending.len() < 4);
                rest = later;
            }
            out += &d.push_bytes(rest);
            out += &d.flush();
            prop_assert_eq!(out, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn stops_do_not_depend_on_the_cuts(
            list in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé]{0,3}", 0..12),
        ) {
            let whole: String = pieces.concat();
            let mut at_once = StopStrings::new(list.clone()).unwrap();
            let first = at_once.push(&whole);
            let expected = first.text + &at_once.flush();
            let mut s = StopStrings::new(list.clone()).unwrap();
            let (mut out, mut stop) = (String::new(), None);
            for piece in &pieces {
                let passed = s.push(piece);
                out += &passed.text;
                stop = passed.stop;
                // Nothing shown may be taken back.
                prop_assert!(expected.starts_with(&out));
            }
            out += &s.flush();
            prop_assert_eq!(stop, first.stop);
            prop_assert_eq!(&out, &expected);
            prop_assert!(list.iter().all(|l| !out.contains(l)));
        }

        #[test]
        fn escaped_text_has_nothing_to_escape(text: String) {
            let safe = escape_controls(&text).into_owned();
            prop_assert!(escape_controls(&safe) == safe.as_str());
        }
    }
}
