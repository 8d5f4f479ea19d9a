//! Rules as text, both ways. The grammar is in the documentation of the [parent module](super).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use super::{ExitRule, RULES, Rule, Statistic, Threshold};

/// The settings that a rule with a statistic takes.
const KEYS: [&str; 4] = ["hits", "min", "every", "max"];

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
    /// The rule has no threshold, and one was written.
    #[error("`{rule}` takes no threshold; it is written `{rule}` or `{rule},hits=3`")]
    NoThresholdTaken {
        /// The rule's name.
        rule: &'static str,
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
            .ok_or_else(|| Error::UnknownRule { name: name.to_owned() })?;
        let settings = Settings::parse(settings)?;
        match rule.statistic {
            Statistic::Nothing => fixed(rule, argument, &settings),
            Statistic::Latent(_) | Statistic::Readout { .. } | Statistic::Gate(_) => {
                adaptive(rule, argument, &settings)
            }
        }
    }
}

/// A rule without a statistic: the argument is a number of steps, and there is nothing to set.
fn fixed(rule: &'static Rule, argument: Option<&str>, settings: &Settings) -> Result<ExitRule, Error> {
    if let Some(key) = settings.first() {
        return Err(Error::NoSettings { rule: rule.name, key });
    }
    let max =
        argument.map(|found| count(found, 1).ok_or_else(|| Error::BadSteps { found: found.to_owned() })).transpose()?;
    Ok(ExitRule { rule, threshold: 0.0, hits: rule.hits, min: 0, every: 1, max })
}

/// A rule with a statistic: the argument is its threshold.
fn adaptive(rule: &'static Rule, argument: Option<&str>, settings: &Settings) -> Result<ExitRule, Error> {
    let threshold = match (argument, rule.threshold) {
        (Some(_), Threshold::None(_)) => return Err(Error::NoThresholdTaken { rule: rule.name }),
        (Some(found), _) => {
            threshold(found).ok_or_else(|| Error::BadThreshold { rule: rule.name, found: found.to_owned() })?
        }
        (None, Threshold::Usual(x) | Threshold::None(x)) => x,
        (None, Threshold::Needed) => return Err(Error::NoThreshold { rule: rule.name }),
    };
    let hits = settings.hits.unwrap_or(rule.hits);
    let min = settings.min.unwrap_or(0);
    if let Some(max) = settings.max.filter(|&max| min >= max) {
        return Err(Error::MinNotBelowMax { min, max });
    }
    Ok(ExitRule { rule, threshold, hits, min, every: settings.every.unwrap_or(1), max: settings.max })
}

/// What follows the commas, each as written if it was.
#[derive(Default)]
struct Settings {
    hits: Option<usize>,
    min: Option<usize>,
    every: Option<usize>,
    max: Option<usize>,
}

impl Settings {
    fn parse(text: Option<&str>) -> Result<Self, Error> {
        let mut settings = Self::default();
        for part in text.into_iter().flat_map(|text| text.split(',')) {
            let (key, value) = part.split_once('=').ok_or_else(|| Error::NotASetting { found: part.to_owned() })?;
            let (key, least, place) = match key {
                "hits" => ("hits", 1, &mut settings.hits),
                "min" => ("min", 0, &mut settings.min),
                "every" => ("every", 1, &mut settings.every),
                "max" => ("max", 1, &mut settings.max),
                _ => {
                    return Err(Error::UnknownKey { key: key.to_owned() });
                }
            };
            if place.is_some() {
                return Err(Error::RepeatedKey { key });
            }
            let value = count(value, least).ok_or_else(|| Error::BadCount { key, least, found: value.to_owned() })?;
            *place = Some(value);
        }
        Ok(settings)
    }

    /// The name of a setting that was written, if any was.
    fn first(&self) -> Option<&'static str> {
        let written = [self.hits, self.min, self.every, self.max];
        KEYS.into_iter().zip(written).find_map(|(key, value)| value.map(|_| key))
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
    text.parse().ok().filter(|value: &f32| value.is_finite() && *value > 0.0)
}

/// As text, in the form in which it is printed.
impl Serialize for ExitRule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExitRule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
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
        match self.threshold() {
            None => {}
            Some(x) if (1e-6..1e9).contains(&x) => write!(f, ":{x}")?,
            Some(x) => write!(f, ":{x:e}")?,
        }
        write!(f, ",hits={}", self.hits)?;
        if self.min > 0 {
            write!(f, ",min={}", self.min)?;
        }
        if self.every > 1 {
            write!(f, ",every={}", self.every)?;
        }
        if let Some(max) = self.max {
            write!(f, ",max={max}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Signal;
    use super::super::tests::rule;
    use super::*;

    fn error(text: &str) -> Error {
        text.parse::<ExitRule>().expect_err(text)
    }

    #[test]
    fn rules_are_printed_in_one_form_that_reads_back_the_same() {
        let table = [
            ("acceleration", "acceleration:0.05,hits=2"),
            ("acceleration:0.03,hits=2,min=4,max=32", "acceleration:0.03,hits=2,min=4,max=32"),
            ("acceleration:3e-2,max=32,min=4,hits=2", "acceleration:0.03,hits=2,min=4,max=32"),
            ("acceleration,hits=1,min=0", "acceleration:0.05,hits=1"),
            ("acceleration,max=1", "acceleration:0.05,hits=2,max=1"),
            ("acceleration:1", "acceleration:1,hits=2"),
            ("acceleration:1000000", "acceleration:1000000,hits=2"),
            ("acceleration-raw:0.5", "acceleration-raw:0.5,hits=2"),
            ("acceleration-raw:1e-30,hits=3", "acceleration-raw:1e-30,hits=3"),
            ("acceleration-raw:3.4e38", "acceleration-raw:3.4e38,hits=2"),
            ("step-norm", "step-norm:0.03,hits=1"),
            ("step-norm:.1,hits=002", "step-norm:0.1,hits=2"),
            ("kl", "kl:0.001,hits=1"),
            ("kl:0.0005,min=2", "kl:0.0005,hits=1,min=2"),
            ("min-p-kl", "min-p-kl:0.00001,hits=1"),
            ("entropy:0.5,every=2", "entropy:0.5,hits=1,every=2"),
            ("cosine,every=1", "cosine:0.001,hits=1"),
            ("argmax", "argmax,hits=5"),
            ("argmax,hits=2,max=9,every=3,min=1", "argmax,hits=2,min=1,every=3,max=9"),
            ("acceleration-step:0.25", "acceleration-step:0.25,hits=2"),
            ("fixed", "fixed"),
            ("fixed:1", "fixed:1"),
            ("fixed:64", "fixed:64"),
        ];
        for (written, printed) in table {
            let parsed = rule(written);
            assert_eq!(parsed.to_string(), printed);
            assert_eq!(rule(printed), parsed, "{printed}");
        }
    }

    #[test]
    fn every_threshold_reads_back_the_same() {
        // Each exponent, with mantissas at both ends and in the middle; 0 and infinity are no thresholds.
        for exponent in 0..255u32 {
            for mantissa in [0, 1, 0x2a_aaab, 0x40_0000, 0x7f_ffff] {
                let threshold = f32::from_bits(exponent << 23 | mantissa);
                if threshold == 0.0 {
                    continue;
                }
                let written = ExitRule { threshold, ..rule("step-norm") };
                let text = written.to_string();
                assert!(text.len() < 40, "{text}");
                assert_eq!(rule(&text), written, "{text}");
            }
        }
    }

    #[test]
    fn settings_are_what_was_written() {
        let written = rule("acceleration:0.5,hits=3,min=4,max=9");
        assert_eq!((written.name(), written.signal()), ("acceleration", Signal::Latent));
        assert_eq!((written.threshold(), written.hits()), (Some(0.5), 3));
        assert_eq!((written.min_steps(), written.max_steps()), (4, Some(9)));
        assert_eq!(rule("acceleration-raw:1").signal(), Signal::Latent);
        assert_eq!(rule("step-norm").signal(), Signal::Latent);
        assert_eq!(rule("kl").signal(), Signal::Readout);
        assert_eq!((rule("gate:0.6").signal(), rule("gate:0.6").threshold()), (Signal::Gate, Some(0.6)));
        assert_eq!((rule("fixed").signal(), rule("fixed").threshold()), (Signal::None, None));
        assert_eq!((rule("fixed").max_steps(), rule("fixed:7").max_steps()), (None, Some(7)));
        assert_eq!(ExitRule::default(), rule("fixed"));
        assert_ne!(rule("acceleration"), rule("acceleration-raw:0.03"));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let bad_threshold = |rule, found: &str| Error::BadThreshold { rule, found: found.to_owned() };
        for found in ["", "x", "NaN", "nan", "-nan", "inf", "-inf", "infinity", "1e39", "0", "-0", "1e-60", "-0.03"] {
            assert_eq!(error(&format!("acceleration:{found}")), bad_threshold("acceleration", found));
            assert_eq!(error(&format!("kl:{found},hits=2")), bad_threshold("kl", found));
        }
        assert_eq!(error("kl:0.03:1"), bad_threshold("kl", "0.03:1"));
        assert_eq!(error("kl: 0.03"), bad_threshold("kl", " 0.03"));
        assert_eq!(error("acceleration-raw"), Error::NoThreshold { rule: "acceleration-raw" });
        assert_eq!(error("acceleration-raw,hits=1"), Error::NoThreshold { rule: "acceleration-raw" });
        assert_eq!(error("gate"), Error::NoThreshold { rule: "gate" });

        for name in ["", "Acceleration", " kl", "speed", "acceleration raw"] {
            assert_eq!(error(name), Error::UnknownRule { name: name.to_owned() });
        }
        for found in ["", "hits", "hits:2", " "] {
            assert_eq!(error(&format!("kl,{found}")), Error::NotASetting { found: found.to_owned() });
        }
        assert_eq!(error("kl,hits=1,"), Error::NotASetting { found: String::new() });
        for key in ["", "Hits", " hits", "steps"] {
            assert_eq!(error(&format!("kl,{key}=1")), Error::UnknownKey { key: key.to_owned() });
        }
        assert_eq!(error("kl,hits=1,min=1,hits=1"), Error::RepeatedKey { key: "hits" });
        assert_eq!(error("kl,max=5,max=6"), Error::RepeatedKey { key: "max" });
        for (key, least) in [("hits", 1), ("min", 0), ("every", 1), ("max", 1)] {
            for found in ["", "x", "-1", "+1", "1.5", "99999999999999999999999", "1=1", "٣"] {
                let expected = Error::BadCount { key, least, found: found.to_owned() };
                assert_eq!(error(&format!("step-norm,{key}={found}")), expected);
            }
        }
        assert_eq!(error("kl,hits=0"), Error::BadCount { key: "hits", least: 1, found: "0".to_owned() });
        assert_eq!(error("kl,max=0"), Error::BadCount { key: "max", least: 1, found: "0".to_owned() });
        assert_eq!(error("kl,min=4,max=4"), Error::MinNotBelowMax { min: 4, max: 4 });
        assert_eq!(error("kl,max=3,min=4"), Error::MinNotBelowMax { min: 4, max: 3 });

        for found in ["", "0", "-1", "1.5", "+3", "18446744073709551616"] {
            assert_eq!(error(&format!("fixed:{found}")), Error::BadSteps { found: found.to_owned() });
        }
        for key in KEYS {
            assert_eq!(error(&format!("fixed:4,{key}=2")), Error::NoSettings { rule: "fixed", key });
        }
    }

    #[test]
    fn messages_say_what_would_have_been_right() {
        let table = [
            (
                "speed",
                "unknown exit rule `speed`; known rules: acceleration, acceleration-step, \
                 acceleration-raw, step-norm, cosine, kl, min-p-kl, entropy, argmax, gate, fixed",
            ),
            ("argmax:5", "`argmax` takes no threshold; it is written `argmax` or `argmax,hits=3`"),
            ("kl,hit=1", "unknown key `hit` in an exit rule; known keys: hits, min, every, max"),
            ("acceleration:NaN", "the threshold of `acceleration` must be a positive, finite number, not `NaN`"),
            (
                "acceleration-raw",
                "`acceleration-raw` has no default threshold; write one, as in `acceleration-raw:0.5`",
            ),
            (
                "kl,min=4,max=2",
                "min=4 leaves no step to check below max=2: the first check comes after step min + 1, so min must be less than max",
            ),
            ("kl,hits=0", "`hits` must be a whole number from 1, not `0`"),
            ("fixed:0", "`fixed` takes a whole number of steps from 1, as in `fixed:8`, not `0`"),
            ("fixed,max=3", "`fixed` takes no `max`; it is written `fixed` or `fixed:STEPS`"),
        ];
        for (text, message) in table {
            assert_eq!(error(text).to_string(), message);
        }
    }
}
