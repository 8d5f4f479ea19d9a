//! Scaling of rotary frequencies for long contexts, as published configurations name it.

use super::bounds::MOST_CONTEXT;
use super::convert::Error;
use super::keys::Keys;
use super::settings::{KeyWriter, Settings};
use crate::model::{self, Rope};
use std::f32::consts::PI;

/// How the plain frequencies of a [`Rope`] are changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scaling {
    /// Not at all.
    None,
    /// Llama 3: long waves are stretched, short ones stay, those between are blended.
    Llama3 {
        /// How far long waves are stretched.
        factor: f32,
        /// Waves longer than `original_context / low` are long.
        low: f32,
        /// Waves shorter than `original_context / high` are short.
        high: f32,
        /// Positions before the stretching.
        original_context: usize,
    },
}

/// Key of the type under `rope.scaling.` in a GGUF, and its value here.
const LLAMA3: &str = "llama3";

impl Scaling {
    /// What a configuration says under `key`, an object such as `rope_scaling`; a missing one says nothing.
    ///
    /// # Errors
    /// A type that is not supported, by name; numbers that make no sense.
    pub(super) fn published(settings: &Settings<'_>, key: &str) -> Result<Self, Error> {
        let config = settings.0;
        if config.get(key).is_none() {
            return Ok(Self::None);
        }
        let name = |part: &str| format!("{key}.{part}");
        // Older files call it "type".
        let kind = match config.str(&name("rope_type"))? {
            Some(kind) => kind,
            None => config.str(&name("type"))?.unwrap_or("default"),
        };
        match kind {
            "default" => Ok(Self::None),
            LLAMA3 => {
                let number = |part: &str| settings.number(&name(part));
                let factor = number("factor")?;
                let original_context = settings.size(&name("original_max_position_embeddings"), MOST_CONTEXT)?;
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                if high <= low {
                    let supported = format!("a number above low_freq_factor, {low}");
                    return Err(settings.unsupported(&name("high_freq_factor"), &high, supported));
                }
                Ok(Self::Llama3 { factor, low, high, original_context })
            }
            _ => {
                let found = format!("'{}'", kind.chars().take(80).collect::<String>());
                Err(settings.unsupported(&name("rope_type"), &found, "'default', 'llama3'"))
            }
        }
    }

    /// Writes the keys that [`stored`](Self::stored) reads.
    pub(super) fn write(self, keys: &mut KeyWriter) {
        if let Self::Llama3 { factor, low, high, original_context } = self {
            keys.set("rope.scaling.type", LLAMA3);
            keys.set("rope.scaling.factor", factor);
            keys.set("rope.scaling.low_freq_factor", low);
            keys.set("rope.scaling.high_freq_factor", high);
            keys.size("rope.scaling.original_context_length", original_context);
        }
    }

    /// What a GGUF says.
    ///
    /// # Errors
    /// A type that is not supported; numbers that make no sense.
    pub(super) fn stored(keys: &Keys<'_>) -> Result<Self, model::Error> {
        match keys.metadata.str(&keys.key("rope.scaling.type"))? {
            None | Some("none") => return Ok(Self::None),
            Some(_) => keys.only("rope.scaling.type", LLAMA3)?,
        }
        let (low, high) =
            (keys.positive("rope.scaling.low_freq_factor")?, keys.positive("rope.scaling.high_freq_factor")?);
        if high <= low {
            return Err(keys.wrong("rope.scaling.high_freq_factor", high, format!("a number above {low}")));
        }
        let original_context = keys.size("rope.scaling.original_context_length", MOST_CONTEXT)?;
        Ok(Self::Llama3 { factor: keys.positive("rope.scaling.factor")?, low, high, original_context })
    }

    /// The scaled frequencies. Every operation is one of f32, in the order in which transformers has them.
    pub(super) fn apply(self, mut rope: Rope) -> Rope {
        if let Self::Llama3 { factor, low, high, original_context } = self {
            let original_context = original_context as f32;
            let (longest, shortest) = (original_context / low, original_context / high);
            for frequency in &mut rope.frequencies {
                let wave = 2.0 * PI / *frequency;
                if wave > longest {
                    *frequency /= factor;
                } else if wave >= shortest {
                    let smooth = (original_context / wave - low) / (high - low);
                    *frequency = (1.0 - smooth) * *frequency / factor + smooth * *frequency;
                }
            }
        }
        rope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RopeStyle;

    /// The frequencies of Llama 3.2 (base 500000, head size 64), as transformers computes them in f32.
    #[test]
    fn llama3_frequencies_are_those_of_transformers() {
        let scaling = Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original_context: 8192 };
        let rope = scaling.apply(Rope::new(RopeStyle::Halves, 500_000.0, 64));
        let expected: [f32; 32] = [
            1.0,
            0.663601279,
            0.440366626,
            0.292227834,
            0.193922758,
            0.128687382,
            0.0853971019,
            0.0566696189,
            0.0376060307,
            0.0249554086,
            0.0165604409,
            0.0109895291,
            0.00729266508,
            0.00483942125,
            0.00321144611,
            0.00129054801,
            0.000429556705,
            9.70828623e-05,
            1.94616387e-05,
            1.29147675e-05,
            8.57025589e-06,
            5.68723226e-06,
            3.77405445e-06,
            2.50446715e-06,
            1.66196742e-06,
            1.10288363e-06,
            7.31874934e-07,
            4.85673127e-07,
            3.22293289e-07,
            2.1387423e-07,
            1.41927202e-07,
            9.41830649e-08,
        ];
        for (i, (found, expected)) in rope.frequencies.iter().zip(expected).enumerate() {
            assert!((found / expected - 1.0).abs() < 3e-7, "frequency {i} is {found}, expected {expected}");
        }
        let plain = Rope::new(RopeStyle::Halves, 500_000.0, 64);
        assert_eq!(Scaling::None.apply(plain.clone()).frequencies, plain.frequencies);
    }
}
