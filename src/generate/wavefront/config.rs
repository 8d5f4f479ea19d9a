//! The settings of a wavefront, and what can go wrong.

use super::{Compare, Freeze};
use crate::generate::sampler;
use crate::model;

/// Rows without which nothing moves: one whose token is final, and one with a guess.
pub(super) const LEAST_ROWS: usize = 2;

/// What can go wrong while decoding along a wavefront.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is not a number in its range.
    #[error("{name} must be {expected}, found {found}")]
    Setting {
        /// The setting's name as in [`WavefrontConfig`].
        name: &'static str,
        /// The range in words.
        expected: &'static str,
        /// What was given.
        found: f64,
    },
    /// The session has no room for a front: its chunks have one row.
    #[error("a wavefront needs chunks of at least {LEAST_ROWS} rows, and this session's have {0}")]
    Chunk(usize),
    /// What the loop of this model makes of its tokens it has from their first step alone, so that guesses cannot change on the way.
    #[error("this model's loop does not read its input in every step, which decoding along a wavefront needs")]
    NoInjection,
    /// The forward pass.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The sampler.
    #[error(transparent)]
    Sampler(#[from] sampler::Error),
}

/// The settings of a [`Wavefront`](super::Wavefront). The defaults are the published ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WavefrontConfig {
    /// Loop steps of every row in a diffusion step. At least 1; default 4.
    pub inner_steps: usize,
    /// How much of its earlier constant input a row keeps when its token is embedded anew. At least 0 and below 1; default 0.1.
    pub ema: f32,
    /// How much of a state is replaced by noise before its first loop step; afterwards less. In `[0, 1]`; default 0.5. The noise
    /// is what [initial states](crate::model::Session::initial) are made of: a session that begins at zeros shrinks its states instead.
    pub noise: f32,
    /// When tokens are final. A positive, finite threshold; default `latent-diff:0.03`.
    pub freeze: Freeze,
    /// Whose states the criterion compares; default as published.
    pub compare: Compare,
    /// Longest front, its first row, whose token is final, included; at least 2, default 128. It is no longer than the session's chunks
    /// ([`Session::chunk_rows`](crate::model::Session::chunk_rows)) either.
    pub most_rows: usize,
    /// Diffusion steps without a freeze after which one more token is final, settled or not. At least 1; default 64.
    pub patience: usize,
}

impl Default for WavefrontConfig {
    fn default() -> Self {
        Self {
            inner_steps: 4,
            ema: 0.1,
            noise: 0.5,
            freeze: Freeze::default(),
            compare: Compare::default(),
            most_rows: 128,
            patience: 64,
        }
    }
}

impl WavefrontConfig {
    /// Checks every setting's range.
    ///
    /// # Errors
    /// [`Error::Setting`] with the first setting that is outside its range.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |name, expected, found: f64, ok: bool| match ok && found.is_finite() {
            true => Ok(()),
            false => Err(Error::Setting { name, expected, found }),
        };
        let below = self.freeze.below();
        check("inner_steps", "at least 1", self.inner_steps as f64, self.inner_steps >= 1)?;
        check("ema", "at least 0 and below 1", self.ema.into(), (0.0..1.0).contains(&self.ema))?;
        check("noise", "between 0 and 1", self.noise.into(), (0.0..=1.0).contains(&self.noise))?;
        check("freeze", "a positive, finite threshold", below.into(), below > 0.0)?;
        check("most_rows", "at least 2", self.most_rows as f64, self.most_rows >= LEAST_ROWS)?;
        check("patience", "at least 1", self.patience as f64, self.patience >= 1)
    }
}
