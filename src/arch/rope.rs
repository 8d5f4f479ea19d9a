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
            0.6636013,
            0.44036663,
            0.29222783,
            0.19392276,
            0.12868738,
            0.0853971,
            0.05666962,
            0.03760603,
            0.024955409,
            0.01656044,
            0.010989529,
            0.007292665,
            0.0048394212,
            0.003211446,
            0.001290548,
            4.295567e-4,
            9.708286e-5,
            1.9461639e-5,
            1.29147675e-5,
            8.570256e-6,
            5.6872323e-6,
            3.7740544e-6,
            2.5044671e-6,
            1.6619674e-6,
            1.1028836e-6,
            7.3187493e-7,
            4.856731e-7,
            3.222933e-7,
            2.1387423e-7,
            1.419272e-7,
            9.4183065e-8,
        ];
        for (i, (found, expected)) in rope.frequencies.iter().zip(expected).enumerate() {
            assert!((found / expected - 1.0).abs() < 3e-7, "frequency {i} is {found}, expected {expected}");
        }
        let plain = Rope::new(RopeStyle::Halves, 500_000.0, 64);
        assert_eq!(Scaling::None.apply(plain.clone()).frequencies, plain.frequencies);
    }
}
