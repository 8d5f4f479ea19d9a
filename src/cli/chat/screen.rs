//! What goes to stdout and stderr, and in which colours.

use super::answer::Token;
use crate::text::escape_controls;
use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

/// Colours of a 256-colour terminal from shallow to deep: blue, green, yellow, red.
const RAMP: [u8; 12] = [33, 39, 44, 49, 84, 119, 155, 191, 221, 215, 209, 203];

/// How the depth of a token is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DepthStyle {
    /// Not at all.
    Hidden,
    /// By the colour of its text.
    Tint,
    /// By a number in brackets behind it: `word⟨3⟩`.
    Numbers,
}

impl DepthStyle {
    /// Writes a token as it is shown if the loop has `limit` steps at most.
    pub fn write(self, out: &mut String, text: &str, steps: usize, limit: usize) {
        match self {
            Self::Hidden => out.push_str(text),
            // Colours end before a line does, so that nothing else is ever tinted.
            Self::Tint => {
                let colour = colour(steps, limit);
                for line in text.split_inclusive('\n') {
                    let (words, end) = line.strip_suffix('\n').map_or((line, ""), |w| (w, "\n"));
                    if !words.is_empty() {
                        out.push_str(&format!("\x1b[38;5;{colour}m{words}\x1b[0m"));
                    }
                    out.push_str(end);
                }
            }
            // A bracket of the model's own is doubled, so that the numbers can be told from the text.
            Self::Numbers => {
                out.push_str(&text.replace('⟨', "⟨⟨"));
                out.push_str(&format!("⟨{steps}⟩"));
            }
        }
    }
}

/// The colour of a depth: the first for one step, the last for the deepest.
fn colour(steps: usize, limit: usize) -> u8 {
    let last = RAMP.len() - 1;
    let at = steps.saturating_sub(1).min(limit.saturating_sub(1)) * last / limit.saturating_sub(1).max(1);
    RAMP[at.min(last)]
}

/// The two streams, and what is known about them.
#[derive(Debug)]
pub struct Screen {
    out_is_terminal: bool,
    colour_out: bool,
    colour_err: bool,
    show_steps: bool,
    /// Whether the last thing on stdout was the end of a line.
    at_line_start: bool,
}

impl Screen {
    /// Looks at the streams and at NO_COLOR.
    pub fn new(show_steps: bool) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let colour = !set("NO_COLOR") && !dumb;
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            out_is_terminal: out,
            colour_out: out && colour,
            colour_err: err && colour,
            show_steps,
            at_line_start: true,
        }
    }

    /// Whether depths are shown.
    pub fn shows_steps(&self) -> bool {
        self.show_steps
    }

    /// Shows depths, or does not.
    pub fn set_show_steps(&mut self, show: bool) {
        self.show_steps = show;
    }

    fn style(&self) -> DepthStyle {
        match (self.show_steps, self.colour_out) {
            (false, _) => DepthStyle::Hidden,
            (true, true) => DepthStyle::Tint,
            (true, false) => DepthStyle::Numbers,
        }
    }

    /// A legend of the colours, if colours are what depths are shown by.
    pub fn legend(&self, limit: usize) -> Option<String> {
        let mut text = String::new();
        if self.style() == DepthStyle::Tint && self.colour_err {
            for steps in 1..=limit.min(2 * RAMP.len()) {
                let steps =
                    if limit > 2 * RAMP.len() { 1 + (steps - 1) * (limit - 1) / (2 * RAMP.len() - 1) } else { steps };
                DepthStyle::Tint.write(&mut text, &format!("{steps} "), steps, limit);
            }
        }
        (!text.is_empty()).then(|| format!("loop steps: {}", text.trim_end()))
    }

    /// Writes a token of an answer to stdout.
    ///
    /// # Errors
    /// The reader is gone, or the disk full.
    pub fn token(&mut self, token: &Token, limit: usize) -> io::Result<()> {
        let mut shown = String::new();
        self.style().write(&mut shown, &self.safe(&token.text), token.steps, limit);
        self.write(&shown)
    }

    /// Writes text that belongs to no token in particular to stdout.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        let shown = match self.style() {
            DepthStyle::Numbers => self.safe(text).replace('⟨', "⟨⟨"),
            _ => self.safe(text).into_owned(),
        };
        self.write(&shown)
    }

    /// Ends the line on stdout, if one has been begun.
    ///
    /// # Errors
    /// As [`token`](Self::token).
    pub fn end_line(&mut self) -> io::Result<()> {
        if self.at_line_start { Ok(()) } else { self.write("\n") }
    }

    /// Control characters are harmless in a file, and part of the answer.
    fn safe<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.out_is_terminal { escape_controls(text) } else { text.into() }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.at_line_start = text.ends_with('\n');
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// A line for people, on stderr. What becomes of it is of no account.
    pub fn note(&self, text: &str) {
        self.raw_note(&escape_controls(text));
    }

    /// As [`note`](Self::note), of text of our own that may have colours.
    pub fn raw_note(&self, text: &str) {
        let line = if self.colour_err && !text.contains('\x1b') {
            format!("\x1b[2m{text}\x1b[0m\n")
        } else {
            format!("{text}\n")
        };
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }

    /// An error that does not end the program: a line on stderr.
    pub fn error(&self, error: &dyn std::fmt::Display) {
        let line = format!("{}\n", escape_controls(&error.to_string()));
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(style: DepthStyle, text: &str, steps: usize) -> String {
        let mut out = String::new();
        style.write(&mut out, text, steps, 12);
        out
    }

    #[test]
    fn depths_are_colours_or_numbers() {
        assert_eq!(shown(DepthStyle::Hidden, "a ⟨b", 3), "a ⟨b");
        assert_eq!(shown(DepthStyle::Numbers, " Red", 3), " Red⟨3⟩");
        assert_eq!(shown(DepthStyle::Numbers, "", 12), "⟨12⟩");
        assert_eq!(shown(DepthStyle::Numbers, "x⟨1⟩", 2), "x⟨⟨1⟩⟨2⟩");
        assert_eq!(shown(DepthStyle::Tint, "a\nb", 1), "\x1b[38;5;33ma\x1b[0m\n\x1b[38;5;33mb\x1b[0m");
        assert_eq!(shown(DepthStyle::Tint, "", 1), "");
    }

    #[test]
    fn colours_cover_the_range() {
        for limit in [1, 2, 3, 12, 32, 4096] {
            assert_eq!(colour(1, limit), RAMP[0]);
            if limit > 1 {
                assert_eq!(colour(limit, limit), RAMP[11], "{limit}");
            }
            let places: Vec<_> =
                (0..=limit + 1).map(|n| RAMP.iter().position(|&c| c == colour(n, limit)).unwrap()).collect();
            assert!(places.is_sorted(), "{limit}");
        }
    }
}
