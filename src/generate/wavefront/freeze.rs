//! When a token in flight is settled: what the latent states of its row, from one diffusion step to the next, say about it.

use std::fmt;
use std::str::FromStr;

/// The criterion by which rows freeze. A row does when its value falls below the threshold, and all rows before it do with it.
///
/// s is a row's state after a diffusion step, s′ and s″ are those one and two steps ago (its initial state, where it was not yet there).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Freeze {
    /// `latent-diff`: ‖s − s′‖ / ‖s‖ below the threshold. The published default is 0.03.
    LatentDiff(f32),
    /// `latent-acceleration-1`: ‖(s − s′) − (s′ − s″)‖ / ‖s‖, with the difference before as it was computed then.
    Acceleration1(f32),
    /// `latent-acceleration-2`: the same value from the three states (and 1e-6 added to ‖s‖). It parts from the first where rows are
    /// [compared as published](Compare::AsPublished) and some have frozen.
    Acceleration2(f32),
}

/// The published threshold.
const PUBLISHED: f32 = 0.03;

impl Default for Freeze {
    fn default() -> Self {
        Self::LatentDiff(PUBLISHED)
    }
}

impl Freeze {
    /// The criterion's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LatentDiff(_) => "latent-diff",
            Self::Acceleration1(_) => "latent-acceleration-1",
            Self::Acceleration2(_) => "latent-acceleration-2",
        }
    }

    /// The threshold.
    pub fn below(&self) -> f32 {
        let (Self::LatentDiff(below) | Self::Acceleration1(below) | Self::Acceleration2(below)) = *self;
        below
    }
}

/// As it is parsed: `latent-diff:0.03`.
impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name(), self.below())
    }
}

/// A name and, after a colon, a threshold; 0.03 without.
impl FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, below) = text.split_once(':').unwrap_or((text, ""));
        let below = match below {
            "" if !text.contains(':') => PUBLISHED,
            _ => match below.parse::<f32>() {
                Ok(x) if x.is_finite() && x > 0.0 => x,
                _ => return Err(format!("the threshold of `{name}` must be a positive, finite number, not `{below}`")),
            },
        };
        [Self::LatentDiff(below), Self::Acceleration1(below), Self::Acceleration2(below)]
            .into_iter()
            .find(|freeze| freeze.name() == name)
            .ok_or_else(|| {
                format!(
                    "`{name}` is no criterion by which tokens freeze; there are latent-diff, latent-acceleration-1 and \
                     latent-acceleration-2"
                )
            })
    }
}

/// Whose earlier state a row is compared with, in the step (for accelerations: the two steps) behind one in which rows have frozen.
/// Everywhere else it is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compare {
    /// As the published code does it: where m rows have frozen, with the state of the row m places behind it. Such states are
    /// seldom near, so that a freeze is followed by a step or two without one.
    #[default]
    AsPublished,
    /// Its own: rows can freeze in every step.
    Own,
}

/// Values of rows at adjoining positions, `[rows][S]`.
#[derive(Debug, Clone, Default)]
struct Rows {
    /// The position that the first is taken for.
    first: usize,
    values: Vec<f32>,
}

impl Rows {
    fn at(&self, position: usize, width: usize) -> Option<&[f32]> {
        let from = position.checked_sub(self.first)?.checked_mul(width)?;
        self.values.get(from..from.checked_add(width)?)
    }
}

/// What the criteria remember of the steps before.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// States before the present step, those of new rows included.
    previous: Rows,
    /// States before the step before.
    earlier: Rows,
    /// What the latest step changed.
    delta: Rows,
    new_delta: Vec<f32>,
    /// Where the front began in the step before; 0 before the first.
    begun: usize,
}

impl Memory {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.begun = 0;
        for rows in [&mut self.previous, &mut self.earlier, &mut self.delta] {
            rows.first = 0;
            rows.values.clear();
        }
    }

    /// A step begins, of the rows from position `first` on, which [`before`](Self::before) is told of one by one.
    pub(super) fn begin(&mut self, first: usize, compare: Compare) {
        std::mem::swap(&mut self.previous, &mut self.earlier);
        self.previous.values.clear();
        // The published code cuts the states of frozen rows off, and then takes what is left for rows that begin where the front
        // began before.
        let published = compare == Compare::AsPublished;
        self.previous.first = if published { self.begun } else { first };
        // It counts differences from the first row on, whatever row that is.
        if published {
            self.delta.first = first;
        }
        self.begun = first;
    }

    /// The state of the next row before the step.
    pub(super) fn before(&mut self, state: &[f32]) {
        self.previous.values.extend_from_slice(state);
    }

    /// After the step, with the `states` `[rows][S]` that there are then: the last row (counted from the front's first) that the criterion
    /// takes for settled.
    pub(super) fn settled(&mut self, freeze: Freeze, states: &[f32], width: usize) -> Option<usize> {
        self.new_delta.clear();
        let mut settled = None;
        for (row, state) in states.chunks_exact(width).enumerate() {
            let position = self.begun + row;
            let Some(previous) = self.previous.at(position, width) else { break };
            let value = match freeze {
                Freeze::LatentDiff(_) => Some(norm(state.iter().zip(previous).map(|(s, p)| s - p)) / length(state)),
                Freeze::Acceleration1(_) => {
                    let from = self.new_delta.len();
                    self.new_delta.extend(state.iter().zip(previous).map(|(s, p)| s - p));
                    let changes = self.delta.at(position, width);
                    let change = |before: &[f32]| norm(self.new_delta[from..].iter().zip(before).map(|(d, b)| d - b));
                    changes.map(|before| change(before) / length(state))
                }
                Freeze::Acceleration2(_) => self.earlier.at(position, width).map(|earlier| {
                    let change = state.iter().zip(previous).zip(earlier).map(|((s, p), e)| (s - p) - (p - e));
                    norm(change) / (length(state) + 1e-6)
                }),
            };
            if value.is_some_and(|value| value < f64::from(freeze.below())) {
                settled = Some(row);
            }
        }
        std::mem::swap(&mut self.delta.values, &mut self.new_delta);
        self.delta.first = self.begun;
        settled
    }
}

/// The Euclidean norm.
fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn length(state: &[f32]) -> f64 {
    norm(state.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criteria_are_written_as_they_are_read() {
        for text in ["latent-diff:0.03", "latent-acceleration-1:0.5", "latent-acceleration-2:0.125"] {
            assert_eq!(text.parse::<Freeze>().unwrap().to_string(), text);
        }
        assert_eq!("latent-diff".parse(), Ok(Freeze::default()));
        for wrong in ["latent", "latent-diff:", "latent-diff:0", "latent-diff:-1", "latent-diff:inf", "fixed:0.1", ""] {
            assert!(wrong.parse::<Freeze>().is_err(), "{wrong}");
        }
    }

    /// A step of a front of rows of width 1 that begins at position `first`: what the states move by.
    fn step(
        memory: &mut Memory,
        freeze: Freeze,
        compare: Compare,
        first: usize,
        states: &mut [f32],
        moves: &[f32],
    ) -> Option<usize> {
        memory.begin(first, compare);
        for state in states.iter() {
            memory.before(&[*state]);
        }
        states.iter_mut().zip(moves).for_each(|(s, m)| *s += m);
        memory.settled(freeze, states, 1)
    }

    #[test]
    fn a_small_difference_settles_all_rows_before_it() {
        let (mut memory, freeze) = (Memory::default(), Freeze::LatentDiff(0.1));
        let mut states = [10.0, 10.0, 10.0];
        // What is before the first step is not compared with, as published: the front did not begin there.
        assert_eq!(step(&mut memory, freeze, Compare::AsPublished, 5, &mut states, &[0.1, 0.1, 0.1]), None);
        assert_eq!(step(&mut memory, freeze, Compare::AsPublished, 5, &mut states, &[9.0, 0.1, 9.0]), Some(1));
    }

    /// Behind a freeze of one row, a row is compared with the row behind it, or with itself.
    #[test]
    fn behind_a_freeze_rows_are_compared_as_published_or_with_themselves() {
        let freeze = Freeze::LatentDiff(0.01);
        for (compare, expected) in [(Compare::AsPublished, Some(0)), (Compare::Own, Some(1))] {
            let (mut memory, mut states) = (Memory::default(), [1.0, 10.0, 20.0]);
            step(&mut memory, freeze, compare, 5, &mut states, &[5.0; 3]);
            // One row is gone: 15 and 25 are left. The first becomes 25, which is what the second was; the second stays.
            assert_eq!(step(&mut memory, freeze, compare, 6, &mut states[1..], &[10.0, 0.0]), expected);
        }
    }

    /// A steady movement has no acceleration, and it takes two steps to see that.
    #[test]
    fn accelerations_take_two_steps() {
        for freeze in [Freeze::Acceleration1(0.01), Freeze::Acceleration2(0.01)] {
            for compare in [Compare::AsPublished, Compare::Own] {
                let (mut memory, mut states) = (Memory::default(), [10.0, 20.0]);
                let mut next = |moves: [f32; 2]| step(&mut memory, freeze, compare, 5, &mut states, &moves);
                assert_eq!(next([1.0, 1.0]), None, "{freeze}");
                let second = next([1.0, 1.0]);
                assert_eq!(second.is_some(), compare == Compare::Own, "{freeze}");
                assert_eq!(next([1.0, 1.0]), Some(1), "{freeze}");
                assert_eq!(next([1.0, 9.0]), Some(0), "{freeze}");
                assert_eq!(next([5.0, 1.0]), None, "{freeze}");
            }
        }
    }
}
