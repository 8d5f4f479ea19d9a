//! Decoding strategies: how tokens come out of the loop.
//!
//! - [`Strategy::Plain`]: one token after another. Every loop step reads all core weights for a single row.
//! - [`Strategy::Pipeline`]: a token that is guessed from a shallow read-out enters the loop at once, some steps behind its
//!   predecessor, and both share the passes that follow. When the predecessor's last logits choose the token that was guessed, all
//!   that it has computed stands ([`crate::model::Session::enter`] says why); when not, it is dropped. What comes out is what plain
//!   decoding gives, to the last bit, for greedy and for sampled text alike.
//! - [`Strategy::Speculative`]: the same in blocks: some tokens are drafted at a shallow depth one after the other, then continue
//!   together to the end.
//! - [`Strategy::Wavefront`]: the published diffusion-forcing sampler, [`crate::generate::wavefront`]. It does not give plain decoding's
//!   text.
//!
//! Read-out rules decide a token's depth by logits that need the final keys of all tokens before it; under them decoding is plain, as it is in
//! models with several loops. A wavefront knows no exit rules: its rows stay until they freeze.
//!
//! # How a strategy is written
//! `plain`, `pipeline[:every=N][,rows=N]`, `speculative[:tokens=N][,steps=N]`, and
//! `wavefront[:inner=N][,rows=N][,ema=X][,noise=X][,freeze=CRITERION]`. Of the first two, what is not written is chosen while it runs, from
//! measured times and from how often guesses came true; of a wavefront it is as published.

mod choice;
mod drive;
mod stats;

pub(crate) use drive::Parts;
pub use drive::{Drive, Oracle};
pub use stats::{DecodeStats, Guesses};

use super::wavefront::{Wavefront, WavefrontConfig};
use crate::model::{Model, SessionOptions};
use std::fmt;
use std::str::FromStr;

/// Rows in flight at most, if nobody says: beyond it the kernels that multiply several rows at once gain nothing more.
const MOST_ROWS: usize = 8;

/// How tokens come out of the loop. The default is plain.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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
    /// Along a front of tokens that settle together; approximate.
    Wavefront(WavefrontConfig),
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
            Self::Wavefront(config) => config.most_rows,
        }
    }

    /// Its name, without settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Pipeline { .. } => "pipeline",
            Self::Speculative { .. } => "speculative",
            Self::Wavefront(_) => "wavefront",
        }
    }

    /// KV slots that sessions of a model want for it, set up with these options, if not all of them.
    pub fn wants_slots(self, model: &Model, options: &SessionOptions) -> Option<usize> {
        let runs = Wavefront::suits_model(model).is_ok()
            && options.chunk_rows != Some(1)
            && !(options.on_device && model.device().is_some());
        // As published: a front that sees the latest keys, whatever step they are of.
        (matches!(self, Self::Wavefront(_)) && runs).then_some(1)
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |key: &str, n: usize| Some(format!("{key}={n}"));
        let settings = match *self {
            Self::Plain => Vec::new(),
            Self::Pipeline { every, rows } => vec![every.and_then(|n| number("every", n)), number("rows", rows)],
            Self::Speculative { tokens, steps } => {
                vec![number("tokens", tokens), steps.and_then(|n| number("steps", n))]
            }
            Self::Wavefront(WavefrontConfig { inner_steps, ema, noise, freeze, most_rows, .. }) => vec![
                number("inner", inner_steps),
                number("rows", most_rows),
                Some(format!("ema={ema},noise={noise},freeze={freeze}")),
            ],
        };
        let settings: Vec<String> = settings.into_iter().flatten().collect();
        let sign = if settings.is_empty() { "" } else { ":" };
        write!(f, "{}{sign}{}", self.name(), settings.join(","))
    }
}

/// What is wrong with a strategy as written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No strategy has this name.
    #[error("there is no decoding strategy '{0}'; there are plain, pipeline, speculative and wavefront")]
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
    /// A setting of a wavefront is malformed or out of range.
    #[error("wavefront: {0}")]
    Wavefront(String),
}

/// Most tokens in flight that can be asked for, and most steps between two.
const MOST: usize = 128;

impl FromStr for Strategy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, settings) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let (mut strategy, takes, keys) = match name {
            "plain" => (Self::Plain, "none", &[][..]),
            "pipeline" => (Self::PIPELINE, "every=N and rows=N", &["every", "rows"][..]),
            "speculative" => (Self::SPECULATIVE, "tokens=N and steps=N", &["tokens", "steps"][..]),
            "wavefront" => (
                Self::Wavefront(WavefrontConfig::default()),
                "inner=N, rows=N, ema=X, noise=X and freeze=CRITERION",
                &["inner", "rows", "ema", "noise", "freeze"][..],
            ),
            other => return Err(ParseError::Name(other.to_owned())),
        };
        let mut seen = [false; 5];
        for setting in settings.into_iter().flat_map(|s| s.split(',')) {
            let wrong = || ParseError::Setting { setting: setting.to_owned(), name: strategy.name(), takes };
            let (key, found) = setting.split_once('=').ok_or_else(wrong)?;
            let which = keys.iter().position(|k| *k == key).ok_or_else(wrong)?;
            if std::mem::replace(&mut seen[which], true) {
                return Err(wrong());
            }
            let key = keys[which];
            if let Self::Wavefront(config) = &mut strategy
                && matches!(key, "ema" | "noise" | "freeze")
            {
                let number = || found.parse().map_err(|_| ParseError::Wavefront(format!("'{found}' is no number")));
                match key {
                    "ema" => config.ema = number()?,
                    "noise" => config.noise = number()?,
                    _ => config.freeze = found.parse().map_err(ParseError::Wavefront)?,
                }
                continue;
            }
            let least = if matches!(key, "rows" | "tokens") { 2 } else { 1 };
            let number = found.parse().ok().filter(|n| (least..=MOST).contains(n));
            let number =
                number.ok_or_else(|| ParseError::Number { key, least, most: MOST, found: found.to_owned() })?;
            match &mut strategy {
                Self::Pipeline { every, .. } if key == "every" => *every = Some(number),
                Self::Pipeline { rows, .. } => *rows = number,
                Self::Speculative { steps, .. } if key == "steps" => *steps = Some(number),
                Self::Speculative { tokens, .. } => *tokens = number,
                Self::Wavefront(config) if key == "inner" => config.inner_steps = number,
                Self::Wavefront(config) => config.most_rows = number,
                Self::Plain => {}
            }
        }
        if let Self::Wavefront(config) = &strategy {
            config.validate().map_err(|error| ParseError::Wavefront(error.to_string()))?;
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
            ("wavefront", "wavefront:inner=4,rows=128,ema=0.1,noise=0.5,freeze=latent-diff:0.03"),
            (
                "wavefront:freeze=latent-acceleration-1:0.5,noise=0,inner=2,rows=9",
                "wavefront:inner=2,rows=9,ema=0.1,noise=0,freeze=latent-acceleration-1:0.5",
            ),
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
            ("pipeline:every=0", "every must be a number from 1 to 128, found '0'"),
            ("pipeline:rows=1", "rows must be a number from 2 to 128"),
            ("wavefront:noise=2", "noise must be between 0 and 1"),
            ("wavefront:ema=some", "wavefront: 'some' is no number"),
            ("wavefront:freeze=soon", "no criterion"),
            ("wavefront:every=2", "it takes inner=N, rows=N"),
            ("speculative:tokens=many", "found 'many'"),
            ("speculative:steps=99999999999999999999999", "steps must be"),
        ] {
            let error = text.parse::<Strategy>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
