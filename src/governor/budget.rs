//! What a user asks of the governor.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is spent where no number says: see the table in the [module](super).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is governed.
    #[default]
    Off,
    /// As good as the ladder goes.
    Quality,
    /// As good as the budget allows; without one, half of the quality floor is spent.
    Balanced,
    /// As long as the battery lasts.
    Saver,
    /// Quality on mains, balanced on battery, saver on one that is nearly empty.
    Auto,
}

impl Mode {
    /// All of them, as users write them.
    pub const ALL: [Self; 5] = [Self::Off, Self::Quality, Self::Balanced, Self::Saver, Self::Auto];

    /// As users write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Quality => "quality",
            Self::Balanced => "balanced",
            Self::Saver => "saver",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|m| m.name() == s).ok_or_else(|| Error::Mode(s.to_owned()))
    }
}

/// Why a budget is none.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A mode that does not exist.
    #[error("there is no governor mode {0:?}; there are off, quality, balanced, saver and auto")]
    Mode(String),
    /// A number that makes no sense.
    #[error("{what} {value}: expected {expected}")]
    Number {
        /// Which.
        what: &'static str,
        /// The number.
        value: f64,
        /// What it may be.
        expected: &'static str,
    },
}

/// What a user is willing to spend. Every bound may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// What is spent where no number says.
    pub mode: Mode,
    /// Tokens per second to hold, at least [`LEAST_RATE`]: not less, and in every mode but [`Mode::Quality`] not more.
    pub target_tps: Option<f64>,
    /// Milliseconds per token at most, above 0, as a mean over the latest tokens.
    pub max_ms_per_token: Option<f64>,
    /// Joules per token at most, above 0, as a mean over the latest seconds.
    pub max_joules_per_token: Option<f64>,
    /// Degrees Celsius that the processor is kept to, from 20 to 120. On the devices of [`simulate`](super::simulate) no
    /// more than 2 degrees above it are reached.
    pub max_temp: Option<f64>,
    /// What may be lost of the quality at the published depth, at least 0: 0.01 is one per cent of perplexity.
    pub max_loss: f64,
}

/// The lowest rate that can be asked for, in tokens per second: slower is no text any more, and pauses would take minutes.
pub const LEAST_RATE: f64 = 0.05;

/// What may be lost if nobody says.
pub const MAX_LOSS: f64 = crate::calibrate::BEARABLE;

/// Is this a loss that can be allowed? Any number from 0 on: at very little depth models lose many times their perplexity.
pub fn is_loss(share: f64) -> bool {
    share >= 0.0 && share.is_finite()
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            mode: Mode::Off,
            target_tps: None,
            max_ms_per_token: None,
            max_joules_per_token: None,
            max_temp: None,
            max_loss: MAX_LOSS,
        }
    }
}

impl Budget {
    /// A budget without numbers.
    pub fn of_mode(mode: Mode) -> Self {
        Self { mode, ..Self::default() }
    }

    /// Is there any bound besides the mode and the quality floor?
    pub fn has_bounds(&self) -> bool {
        let bounds = [self.target_tps, self.max_ms_per_token, self.max_joules_per_token, self.max_temp];
        bounds.iter().any(Option::is_some)
    }

    /// Gives it back if all its numbers make sense.
    ///
    /// # Errors
    /// [`Error::Number`].
    pub fn checked(self) -> Result<Self, Error> {
        if let Some(value) = self.target_tps.filter(|r| !(LEAST_RATE..=1e6).contains(r)) {
            let expected = "0.05 tokens per second (one in 20 seconds) or more, up to a million";
            return Err(Error::Number { what: "the target rate", value, expected });
        }
        let positive =
            [("the time per token", self.max_ms_per_token), ("the energy per token", self.max_joules_per_token)];
        for (what, value) in positive {
            if let Some(value) = value.filter(|&x| !(x > 0.0 && x <= 1e6)) {
                return Err(Error::Number { what, value, expected: "a number above 0, up to a million" });
            }
        }
        if let Some(value) = self.max_temp.filter(|t| !(20.0..=120.0).contains(t)) {
            return Err(Error::Number { what: "the temperature", value, expected: "20 to 120 degrees Celsius" });
        }
        if !is_loss(self.max_loss) {
            return Err(Error::Number { what: "the loss", value: self.max_loss, expected: "0 or more; 0.01 is 1 %" });
        }
        Ok(self)
    }
}
