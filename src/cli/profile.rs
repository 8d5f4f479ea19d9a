//! Calibration profiles at work: which one a model has, and what it recommends.

use crate::calibrate::{BEARABLE, ModelId, Profile};
use crate::exit::ExitRule;
use crate::model::Model;
use anyhow::{Context, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What to do about a profile that is asked for and not there.
pub(super) const NO_PROFILE: &str =
    "this model has no calibration profile; make one with rdt-calibrate -m MODEL -f TEXT, or name one with --profile";

/// A value of `--exit-rule`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExitChoice {
    /// What the model's calibration recommends.
    Auto,
    /// This one.
    Rule(ExitRule),
}

impl FromStr for ExitChoice {
    type Err = crate::exit::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Rule) }
    }
}

/// What a calibration profile is asked for.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Depth")]
pub struct ProfileFlags {
    /// Calibration profile (default: MODEL.calibration.json beside the model, or the one inside its file)
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Take the cheapest setting of the profile that raises perplexity over the published depth's by no more than this
    /// [default: 1%]
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "quality")]
    pub max_loss: Option<f64>,
    /// Where on the profile's front of cost and quality to stand: 0 is the cheapest setting, 100 the best
    #[arg(long, value_name = "0..100", value_parser = percent)]
    pub quality: Option<f64>,
}

/// A share, as `1%` or `0.01`, that a [budget](crate::governor::Budget) can allow to be lost.
fn share(s: &str) -> Result<f64, String> {
    let (number, unit) = s.strip_suffix('%').map_or((s, 1.0), |number| (number, 0.01));
    match number.trim().parse::<f64>() {
        Ok(x) if crate::governor::is_loss(x * unit) => Ok(x * unit),
        _ => Err("expected a share such as 1% or 0.01".into()),
    }
}

fn percent(s: &str) -> Result<f64, String> {
    match s.trim_end_matches('%').parse::<f64>() {
        Ok(x) if (0.0..=100.0).contains(&x) => Ok(x),
        _ => Err("expected a number from 0 to 100".into()),
    }
}

impl ProfileFlags {
    /// The loss in perplexity that is allowed where nobody says, as a share.
    pub const MAX_LOSS: f64 = BEARABLE;

    /// Is anything asked for?
    pub fn is_given(&self) -> bool {
        self.profile.is_some() || self.max_loss.is_some() || self.quality.is_some()
    }

    /// The loss in perplexity that is allowed, as a share.
    pub fn max_loss(&self) -> f64 {
        self.max_loss.unwrap_or(Self::MAX_LOSS)
    }

    /// The quality floor of a governor: the loss that is allowed, or where `--quality` names a place on the front, what that place loses.
    pub fn floor(&self, profile: Option<&Profile>) -> f64 {
        let named = self.quality.and_then(|percent| profile.map(|p| p.quality(percent).map(|point| p.loss(point))));
        named.flatten().filter(|loss| loss.is_finite()).map_or(self.max_loss(), |loss| loss.max(0.0))
    }

    /// The profile of a model: the one that is named, the one beside it, or the one inside its file. One that lies there but was made for
    /// another model is passed over, and said to be.
    ///
    /// # Errors
    /// The one that is named cannot be read, or was made for another model.
    pub fn find(&self, model: &Model, path: Option<&Path>) -> anyhow::Result<Option<Profile>> {
        let id = ModelId::of(model);
        let fits = |profile: &Profile| profile.model.fingerprint == id.fingerprint;
        if let Some(named) = &self.profile {
            let profile = Profile::read(named)?;
            if !fits(&profile) {
                let (made, name) = (&profile.model.name, &id.name);
                bail!(
                    "{}: this profile was made for another model ({made}, not {name}, or other weights of it)",
                    named.display()
                );
            }
            return Ok(Some(profile));
        }
        // What lies beside the model may be newer than what is in it.
        let beside = path.map(|p| Profile::beside(p, "json")).filter(|p| p.is_file());
        let mut why = None;
        for found in [beside.map(|p| Profile::read(&p).map(Some)), Some(Profile::embedded(model.metadata()))]
            .into_iter()
            .flatten()
        {
            match found {
                Ok(Some(profile)) if fits(&profile) => return Ok(Some(profile)),
                Ok(Some(_)) => why = Some("it was made for other weights".to_owned()),
                Ok(None) => {}
                Err(e) => why = Some(e.to_string()),
            }
        }
        // A file that is merely there should not keep anybody from using the model.
        if let Some(why) = why {
            eprintln!("the model's calibration profile is not used: {}", super::one_line(&why));
        }
        Ok(None)
    }

    /// What a profile recommends.
    ///
    /// # Errors
    /// It has no setting at all.
    pub fn recommended(&self, profile: &Profile) -> anyhow::Result<ExitRule> {
        let point = match self.quality {
            Some(percent) => profile.quality(percent),
            None => profile.cheapest(self.max_loss()),
        };
        Ok(point.context("the calibration profile has no setting")?.rule)
    }
}

/// A line about the setting that a profile recommended; `None` where the rule in force is another.
pub(super) fn recommended_line(profile: &Profile, rule: ExitRule) -> Option<String> {
    let point = profile.points().find(|p| p.rule == rule)?;
    Some(format!(
        "[calibrated: {:.2} loop steps per token on average instead of {}, for a loss of {:.1} % (--max-loss, --quality, --exit-rule)]",
        point.mean_steps,
        profile.published_steps,
        100.0 * profile.loss(point).max(0.0)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cheapest place of a front may lose many times the perplexity.
    #[test]
    fn every_quality_is_a_floor_that_a_budget_takes() {
        let mut profile = crate::governor::simulate::profile(12.0, 6.5);
        for (i, point) in profile.depths.iter_mut().enumerate() {
            point.perplexity.value *= 1.0 + 1e4 / (i as f64 + 1.0);
            point.cross_entropy.value = libm::log(point.perplexity.value);
            point.kl.value += 1.0 / (i as f64 + 1.0);
        }
        for percent in [0.0, 50.0, 100.0] {
            let flags = ProfileFlags { quality: Some(percent), ..Default::default() };
            let budget = crate::governor::Budget { max_loss: flags.floor(Some(&profile)), ..Default::default() };
            assert!(budget.checked().is_ok(), "{percent}: {budget:?}");
            let ladder = crate::governor::Ladder::of_points(&profile, budget.max_loss).unwrap();
            assert_eq!(ladder.note(), None);
        }
    }

    #[test]
    fn shares_and_percents() {
        assert_eq!((share("1%"), share("0.05"), share("0")), (Ok(0.01), Ok(0.05), Ok(0.0)));
        for wrong in ["", "%", "-1%", "NaN", "inf", "1%%", "x"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert_eq!((percent("40"), percent("100%")), (Ok(40.0), Ok(100.0)));
        assert!(percent("101").is_err() && percent("-1").is_err() && percent("NaN").is_err());
        // Whatever the flag takes, a budget takes.
        for text in ["0", "0.01", "2000%", "1e6", "1e300"] {
            let budget = crate::governor::Budget { max_loss: share(text).unwrap(), ..Default::default() };
            assert!(budget.checked().is_ok(), "{text}");
        }
        assert_eq!("auto".parse(), Ok(ExitChoice::Auto));
        assert!("automatic".parse::<ExitChoice>().is_err());
    }
}
