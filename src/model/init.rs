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
    /// States by position, `[positions][S]`; positions behind the end start from zeros.
    Given(Arc<[f32]>),
}

impl InitialState {
    /// Writes the state of a row, `[S]`.
    pub(crate) fn fill(&self, config: &Config, row: &Row, out: &mut [f32]) {
        let d = config.state_width;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Depth;

    fn config(width: usize, state_std: f32) -> Config {
        Config {
            architecture: String::new(),
            name: String::new(),
            width: 2 * width,
            state_width: width,
            vocab: 1,
            context: 1,
            head_dim: 2,
            embedding_scale: 1.0,
            loops: vec![Depth { mean_steps: 1, max_steps: None }],
            state_std,
            prefix_lm: false,
            exit_gate: false,
        }
    }

    fn state(initial: &InitialState, config: &Config, row: Row) -> Vec<f32> {
        let mut out = vec![f32::NAN; config.state_width];
        initial.fill(config, &row, &mut out);
        out
    }

    fn at(position: usize) -> Row {
        Row { sequence: 0, position, token: 0 }
    }

    #[test]
    fn noise_depends_on_seed_and_position_alone() {
        let config = config(33, 0.5);
        let noise = |seed| InitialState::Noise { seed };
        let one = state(&noise(7), &config, at(5));
        assert_eq!(one, state(&noise(7), &config, Row { sequence: 3, position: 5, token: 99 }));
        let others = [(8, 5), (7, 6), (7, 4), (0, 0), (u64::MAX, 5), (7, usize::MAX / 40)];
        for (seed, position) in others {
            let other = state(&noise(seed), &config, at(position));
            assert!(one.iter().zip(&other).filter(|(a, b)| a == b).count() < 2, "seed {seed}, position {position}");
        }
    }

    #[test]
    fn noise_is_a_normal_distribution_cut_at_three() {
        let config = config(1000, 0.25);
        let all: Vec<f64> = (0..100)
            .flat_map(|p| state(&InitialState::Noise { seed: 1 }, &config, at(p)))
            .map(|x| f64::from(x) / 0.25)
            .collect();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let std = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        let most = all.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // Cut at three, the standard deviation is 0.9866; the bounds are five standard errors of 100,000 draws.
        assert!(mean.abs() < 0.016 && (std - 0.9866).abs() < 0.011, "{mean} {std}");
        assert!(most <= 3.0 && most > 2.9, "{most}");
        let within = |z: f64| all.iter().filter(|x| x.abs() < z).count() as f64 / n;
        assert!((within(1.0) - 0.6845).abs() < 0.008 && (within(2.0) - 0.9571).abs() < 0.004);
        assert!(
            state(&InitialState::Noise { seed: 1 }, &super::tests::config(9, 0.0), at(0)).iter().all(|&x| x == 0.0)
        );
    }

    #[test]
    fn given_states_are_taken_by_position() {
        let config = config(2, 1.0);
        let given = InitialState::Given([1.0, 2.0, 3.0, 4.0, 5.0].into());
        assert_eq!(state(&given, &config, at(0)), [1.0, 2.0]);
        assert_eq!(state(&given, &config, at(1)), [3.0, 4.0]);
        // Half a state is none.
        for position in [2, 3, 1 << 40] {
            assert_eq!(state(&given, &config, at(position)), [0.0, 0.0]);
        }
        assert_eq!(state(&InitialState::Zeros, &config, at(0)), [0.0, 0.0]);
    }
}
