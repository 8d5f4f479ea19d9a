//! Rules as text, both ways. The grammar is in the documentation of the [parent module](super).

use std::fmt;
use std::str::FromStr;

use super::{ExitRule, RULES, Rule, Statistic};

/// The settings that a rule with a statistic takes.
const KEYS: [&str; 3] = ["hits", "min", "max"];

/// Why a text is not an exit rule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no rule of this name.
    #[error("unknown exit rule `{name}`; known rules: {}", names())]
    UnknownRule {
        /// The name as written.
        name: String,
    },
    /// The rule has no default threshold and none was written.
    #[error("`{rule}` has no default threshold; write one, as in `{rule}:0.5`")]
    NoThreshold {
        /// The rule's name.
        rule: &'static str,
    },
    /// The threshold is not a positive, finite number.
    #[error("the threshold of `{rule}` must be a positive, finite number, not `{found}`")]
    BadThreshold {
        /// The rule's name.
        rule: &'static str,
        /// The threshold as written.
        found: String,
    },
    /// The argument of `fixed` is not a number of steps.
    #[error("`fixed` takes a whole number of steps from 1, as in `fixed:8`, not `{found}`")]
    BadSteps {
        /// The argument as written.
        found: String,
    },
    /// Something after a comma is not of the form key=value.
    #[error("expected key=value after a comma in an exit rule, found `{found}`; known keys: {}", KEYS.join(", "))]
    NotASetting {
        /// The part as written.
        found: String,
    },
    /// There is no setting of this name.
    #[error("unknown key `{key}` in an exit rule; known keys: {}", KEYS.join(", "))]
    UnknownKey {
        /// The key as written.
        key: String,
    },
    /// The rule takes no settings.
    #[error("`{rule}` takes no `{key}`; it is written `{rule}` or `{rule}:STEPS`")]
    NoSettings {
        /// The rule's name.
        rule: &'static str,
        /// The key as written.
        key: &'static str,
    },
    /// A setting is given twice.
    #[error("`{key}` is given twice in an exit rule")]
    RepeatedKey {
        /// The key.
        key: &'static str,
    },
    /// The value of a setting is not a whole number in its range.
    #[error("`{key}` must be a whole number from {least}, not `{found}`")]
    BadCount {
        /// The key.
        key: &'static str,
        /// The least value that it may have.
        least: usize,
        /// The value as written.
        found: String,
    },
    /// The cap comes before the first check, so the rule would never be asked.
    #[error(
        "min={min} leaves no step to check below max={max}: the first check comes after step min + 1, so min must be less than max"
    )]
    MinNotBelowMax {
        /// The steps that are not checked.
        min: usize,
        /// The cap.
        max: usize,
    },
}

fn names() -> String {
    RULES.map(|rule| rule.name).join(", ")
}

impl FromStr for ExitRule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (head, settings) = split(text, ',');
        let (name, argument) = split(head, ':');
        let rule: &'static Rule = RULES
            .into_iter()
            .find(|rule| rule.name == name)
            .ok_or_else(|| Error::UnknownRule {
                name: name.to_owned(),
            })?;
        let settings = Settings::parse(settings)?;
        match rule.statistic {
            Statistic::Nothing => fixed(rule, argument, &settings),
            Statistic::Latent(_) | Statistic::Readout(_) => adaptive(rule, argument, &settings),
        }
    }
}

/// A rule without a statistic: the argument is a number of steps, and there is nothing to set.
fn fixed(
    rule: &'static Rule,
    argument: Option<&str>,
    settings: &Settings,
) -> Result<ExitRule, Error> {
    if let Some(key) = settings.first() {
        return Err(Error::NoSettings {
            rule: rule.name,
            key,
        });
    }
    let max = argument
        .map(|found| {
            count(found, 1).ok_or_else(|| Error::BadSteps {
                found: found.to_owned(),
            })
        })
        .transpose()?;
    Ok(ExitRule {
        rule,
        threshold: 0.0,
        hits: rule.hits,
        min: 0,
        max,
    })
}

/// A rule with a statistic: the argument is its threshold.
fn adaptive(
    rule: &'static Rule,
    argument: Option<&str>,
    settings: &Settings,
) -> Result<ExitRule, Error> {
    let threshold = match argument {
        Some(found) => threshold(found).ok_or_else(|| Error::BadThreshold {
            rule: rule.name,
            found: found.to_owned(),
        })?,
        None => rule
            .threshold
            .ok_or(Error::NoThreshold { rule: rule.name })?,
    };
    let hits = settings.hits.unwrap_or(rule.hits);
    let min = settings.min.unwrap_or(0);
    if let Some(max) = settings.max.filter(|&max| min >= max) {
        return Err(Error::MinNotBelowMax { min, max });
    }
    Ok(ExitRule {
        rule,
        threshold,
        hits,
        min,
        max: settings.max,
    })
}

/// What follows the commas, each as written if it was.
#[derive(Default)]
struct Settings {
    hits: Option<usize>,
    min: Option<usize>,
    max: Option<usize>,
}

impl Settings {
    fn parse(text: Option<&str>) -> Result<Self, Error> {
        let mut settings = Self::default();
        for part in text.into_iter().flat_map(|text| text.split(',')) {
            let (key, value) = part.split_once('=').ok_or_else(|| Error::NotASetting {
                found: part.to_owned(),
            })?;
            let (key, least, place) = match key {
                "hits" => ("hits", 1, &mut settings.hits),
                "min" => ("min", 0, &mut settings.min),
                "max" => ("max", 1, &mut settings.max),
                _ => {
                    return Err(Error::UnknownKey {
                        key: key.to_owned(),
                    });
                }
            };
            if place.is_some() {
                return Err(Error::RepeatedKey { key });
            }
            let value = count(value, least).ok_or_else(|| Error::BadCount {
                key,
                least,
                found: value.to_owned(),
            })?;
            *place = Some(value);
        }
        Ok(settings)
    }

    /// The name of a setting that was written, if any was.
    fn first(&self) -> Option<&'static str> {
        let written = [self.hits, self.min, self.max];
        KEYS.into_iter()
            .zip(written)
            .find_map(|(key, value)| value.map(|_| key))
    }
}

/// What stands before and, if the separator is there, after it.
fn split(text: &str, separator: char) -> (&str, Option<&str>) {
    match text.split_once(separator) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

/// A whole number of at least `least`, in digits alone.
fn count(text: &str, least: usize) -> Option<usize> {
    // Without this, Rust would take a leading plus sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&value| digits && value >= least)
}

/// A threshold that a statistic in f32 can be below.
fn threshold(text: &str) -> Option<f32> {
    text.parse()
        .ok()
        .filter(|value: &f32| value.is_finite() && *value > 0.0)
}

impl fmt::Display for ExitRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rule.name)?;
        if matches!(self.rule.statistic, Statistic::Nothing) {
            return match self.max {
                Some(steps) => write!(f, ":{steps}"),
                None => Ok(()),
            };
        }
        // Both forms are the shortest that reads back as the same f32; this keeps 1e-30 short too.
        if (1e-6..1e9).contains(&self.threshold) {
            write!(f, ":{}", self.threshold)?;
        } else {
            write!(f, ":{:e}", self.threshold)?;
        }
        write!(f, ",hits={}", self.hits)?;
        if self.min > 0 {
            write!(f, ",min={}", self.min)?;
        }
        if let Some(max) = self.max {
            write!(f, ",max={max}")?;
        }
        Ok(())
    }
}
