//! The latent state before the first loop step.

use super::Config;
use super::session::Row;
use crate::random;
use std::sync::Arc;

/// The generator stream that initial states draw from; see [`random::bits`].
const STREAM: u64 = 0x7374_6174_6530; // "state0"

/// Cut of the truncated normal distribution, in standard deviations, as published.
const BOUND: f64 = 3.0;

/// How s_0 is made.
#[derive(Debug, Clone)]
pub enum InitialState {
    /// All zeros.
    Zeros,
    /// Truncated normal (±3 standard deviations of [`Config::state_std`]) that depends on the seed, the position and the index
    /// in the state alone, so that a token has the same state however the prompt is cut into chunks.
    Noise {
        /// Any number.
        seed: u64,
    },
    /// States by position, `[positions][D]`; positions behind the end start from zeros.
    Given(Arc<[f32]>),
}

impl InitialState {
    /// Writes the state of a row, `[D]`.
    pub(super) fn fill(&self, config: &Config, row: &Row, out: &mut [f32]) {
        let d = config.width;
        match self {
            InitialState::Zeros => out.fill(0.0),
            InitialState::Noise { seed } => {
                for (i, x) in out.iter_mut().enumerate() {
                    let counter = row.position as u64 * d as u64 + i as u64;
                    let z = random::truncated_normal(*seed, STREAM, counter, BOUND);
                    *x = (z * f64::from(config.state_std)) as f32;
                }
            }
            InitialState::Given(states) => match states.get(row.position * d..(row.position + 1) * d) {
                Some(state) => out.copy_from_slice(state),
                None => out.fill(0.0),
            },
        }
    }
}
