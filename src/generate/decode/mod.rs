//! Decoding strategies: how tokens come out of the loop.
//!
//! - [`Strategy::Plain`]: one token after another. Every loop step reads all core weights for a single row.
//! - [`Strategy::Pipeline`]: a token that is guessed from a shallow read-out enters the loop at once, some steps behind its
//!   predecessor, and both share the passes that follow. When the predecessor's last logits choose the token that was guessed, all
//!   that it has computed stands ([`crate::model::Session::enter`] says why); when not, it is dropped. What comes out is what plain
//!   decoding gives, to the last bit, for greedy and for sampled text alike.
//! - [`Strategy::Speculative`]: the same in blocks: some tokens are drafted at a shallow depth one after the other, then continue
//!   together to the end.
//!
//! Read-out rules decide a token's depth by logits that need the final keys of all tokens before it; under them, and in models with
//! several loops, decoding is plain.
//!
//! # How a strategy is written
//! `plain`, `pipeline[:every=N][,rows=N]`, `speculative[:tokens=N][,steps=N]`. What is not written is chosen while it runs, from
//! measured times and from how often guesses came true.

mod choice;
mod drive;
mod stats;

pub(crate) use drive::Parts;
pub use drive::{Drive, Oracle};
pub use stats::{DecodeStats, Guesses};

use std::fmt;
use std::str::FromStr;

/// Rows in flight at most, if nobody says: beyond it the kernels that multiply several rows at once gain nothing more.
const MOST_ROWS: usize = 8;

/// How tokens come out of the loop. The default is plain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// One after another.
    #[default]
    Plain,
    /// Each some steps behind its predecessor.
    Pipeline {
        /// Loop steps between a token's entry and its successor's, and between two read-outs; `None`: as measured.
        every: Option<usize>,
        /// Tokens in flight at most, from 2.
        rows: usize,
    },
    /// In blocks.
    Speculative {
        /// Tokens per block, from 2.
        tokens: usize,
        /// Loop steps at which they are drafted; `None`: as measured.
        steps: Option<usize>,
    },
}

impl Strategy {
    /// `pipeline` with everything chosen while it runs.
    pub const PIPELINE: Self = Self::Pipeline { every: None, rows: MOST_ROWS };
    /// `speculative` with blocks of four.
    pub const SPECULATIVE: Self = Self::Speculative { tokens: 4, steps: None };

    /// Tokens in flight at most.
    pub fn most_rows(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Pipeline { rows, .. } => rows,
            Self::Speculative { tokens, .. } => tokens,
        }
    }

    /// Its name, without settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Pipeline { .. } => "pipeline",
            Self::Speculative { .. } => "speculative",
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings: &[(&str, Option<usize>)] = match *self {
            Self::Plain => &[],
            Self::Pipeline { every, rows } => &[("every", every), ("rows", Some(rows))],
            Self::Speculative { tokens, steps } => &[("tokens", Some(tokens)), ("steps", steps)],
        };
        write!(f, "{}", self.name())?;
        let mut sign = ':';
        for (key, value) in settings {
            if let Some(value) = value {
                write!(f, "{sign}{key}={value}")?;
                sign = ',';
            }
        }
        Ok(())
    }
}

/// What is wrong with a strategy as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No strategy has this name.
    #[error("there is no decoding strategy '{0}'; there are plain, pipeline and speculative")]
    Name(String),
    /// The strategy has no such setting, or it stands there twice.
    #[error("'{setting}' is no setting of {name}, or stands there twice; it takes {takes}")]
    Setting {
        /// What was written.
        setting: String,
        /// The strategy.
        name: &'static str,
        /// What could have been written.
        takes: &'static str,
    },
    /// A number is missing or out of range.
    #[error("{key} must be a number from {least} to {most}, found '{found}'")]
    Number {
        /// The setting.
        key: &'static str,
        /// The smallest.
        least: usize,
        /// The largest.
        most: usize,
        /// What was written.
        found: String,
    },
}

/// Most tokens in flight that can be asked for, and most steps between two.
const MOST: usize = 64;

impl FromStr for Strategy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, settings) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let (mut strategy, takes, keys) = match name {
            "plain" => (Self::Plain, "none", ["", ""]),
            "pipeline" => (Self::PIPELINE, "every=N and rows=N", ["every", "rows"]),
            "speculative" => (Self::SPECULATIVE, "tokens=N and steps=N", ["tokens", "steps"]),
            other => return Err(ParseError::Name(other.to_owned())),
        };
        let mut seen = [false; 2];
        for setting in settings.into_iter().flat_map(|s| s.split(',')) {
            let wrong = || ParseError::Setting { setting: setting.to_owned(), name: strategy.name(), takes };
            let (key, found) = setting.split_once('=').ok_or_else(wrong)?;
            let which = keys.iter().position(|k| *k == key && !k.is_empty()).ok_or_else(wrong)?;
            if std::mem::replace(&mut seen[which], true) {
                return Err(wrong());
            }
            let key = keys[which];
            let least = if matches!(key, "rows" | "tokens") { 2 } else { 1 };
            let number = found.parse().ok().filter(|n| (least..=MOST).contains(n));
            let number =
                number.ok_or_else(|| ParseError::Number { key, least, most: MOST, found: found.to_owned() })?;
            match &mut strategy {
                Self::Pipeline { every, .. } if key == "every" => *every = Some(number),
                Self::Pipeline { rows, .. } => *rows = number,
                Self::Speculative { steps, .. } if key == "steps" => *steps = Some(number),
                Self::Speculative { tokens, .. } => *tokens = number,
                Self::Plain => {}
            }
        }
        Ok(strategy)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod in_flight;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        let all = [
            ("plain", "plain"),
            ("pipeline", "pipeline:rows=8"),
            ("pipeline:every=2", "pipeline:every=2,rows=8"),
            ("pipeline:rows=4,every=1", "pipeline:every=1,rows=4"),
            ("speculative", "speculative:tokens=4"),
            ("speculative:steps=3,tokens=2", "speculative:tokens=2,steps=3"),
        ];
        for (text, printed) in all {
            let strategy: Strategy = text.parse().unwrap();
            assert_eq!(strategy.to_string(), printed);
            assert_eq!(printed.parse(), Ok(strategy));
        }
        assert_eq!(Strategy::default(), Strategy::Plain);
        assert_eq!(
            ["plain", "pipeline:rows=3", "speculative"].map(|s| s.parse::<Strategy>().unwrap().most_rows()),
            [1, 3, 4]
        );
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("fast", "there is no decoding strategy 'fast'"),
            ("", "there is no decoding strategy ''"),
            ("plain:rows=2", "'rows=2' is no setting of plain"),
            ("pipeline:", "'' is no setting of pipeline"),
            ("pipeline:steps=2", "it takes every=N and rows=N"),
            ("pipeline:every=2,every=3", "twice"),
            ("pipeline:every=0", "every must be a number from 1 to 64, found '0'"),
            ("pipeline:rows=1", "rows must be a number from 2 to 64"),
            ("speculative:tokens=many", "found 'many'"),
            ("speculative:steps=99999999999999999999999", "steps must be"),
        ] {
            let error = text.parse::<Strategy>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
