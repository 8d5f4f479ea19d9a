//! Values that should not be stored, or cannot be: how many, and where the first is.

use crate::gguf::TensorType;
use crate::quant::{self, BlockFormat};
use std::fmt;

/// Values of one kind in a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Places {
    /// How many there are.
    pub count: u64,
    /// Row of the first, in the tensor that is written.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// The first.
    pub value: f32,
}

/// A tensor with values that should not be stored, or cannot be.
#[derive(Debug, Clone, PartialEq)]
pub struct Unfit {
    /// Name in the GGUF.
    pub tensor: String,
    /// NaN and infinities.
    pub non_finite: Option<Places>,
    /// Finite values that would become infinite, with the type that is too small and its largest magnitude.
    pub too_large: Option<(Places, TensorType, f32)>,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor '{}' has ", self.tensor)?;
        if let Some(places) = &self.non_finite {
            write!(f, "{} NaN or infinite, {places}", values(places.count))?;
        }
        if let Some((places, ty, limit)) = &self.too_large {
            let and = if self.non_finite.is_some() { "; and " } else { "" };
            let count = values(places.count);
            write!(f, "{and}{count} that {ty} cannot hold (its largest magnitude is {limit}), {places}")?;
        }
        Ok(())
    }
}

fn values(count: u64) -> String {
    if count == 1 { "1 value".to_owned() } else { format!("{count} values") }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { row, column, value, .. } = self;
        write!(f, "the first {value} at row {row}, column {column}")
    }
}

/// Values of one kind in the part of a tensor that was looked at: how many, and the first with its place in the tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    count: u64,
    first: Option<(usize, f32)>,
}

impl Seen {
    fn note(&mut self, place: usize, value: f32) {
        self.count += 1;
        self.first.get_or_insert((place, value));
    }

    /// Adds what comes behind.
    fn add(&mut self, next: Self) {
        self.count += next.count;
        self.first = self.first.or(next.first);
    }

    fn places(self, k: usize) -> Option<Places> {
        let (place, value) = self.first?;
        Some(Places { count: self.count, row: place / k, column: place % k, value })
    }
}

/// What was seen in part of a tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Found {
    non_finite: Seen,
    too_large: Seen,
}

impl Found {
    /// Looks at values, the first of which stands at `place` in the tensor.
    pub(super) fn look(&mut self, values: &[f32], place: usize, limit: f32) {
        if quant::first_outside(values, limit).is_none() {
            return;
        }
        for (i, &value) in values.iter().enumerate() {
            if !value.is_finite() {
                self.non_finite.note(place + i, value);
            } else if value.abs() > limit {
                self.too_large.note(place + i, value);
            }
        }
    }

    /// Adds what was found in the part behind.
    pub(super) fn add(&mut self, next: Self) {
        self.non_finite.add(next.non_finite);
        self.too_large.add(next.too_large);
    }

    /// Whether the tensor must not be written.
    pub(super) fn is_unfit(&self, store_non_finite: bool) -> bool {
        self.too_large.count > 0 || (self.non_finite.count > 0 && !store_non_finite)
    }
}

impl Unfit {
    /// What was found in a tensor with rows of `k`, if it was anything.
    pub(super) fn of(tensor: &str, found: &Found, k: usize, format: Option<&dyn BlockFormat>) -> Option<Self> {
        let non_finite = found.non_finite.places(k);
        let too_large = found.too_large.places(k).zip(format).map(|(p, f)| (p, f.tensor_type(), f.limit()));
        let any = non_finite.is_some() || too_large.is_some();
        any.then(|| Self { tensor: tensor.to_owned(), non_finite, too_large })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_first_places_add_up() {
        let mut found = Found::default();
        found.look(&[1.0, -3.0], 0, 2.5);
        found.look(&[0.0, f32::NAN, 4.0, f32::NEG_INFINITY], 2, 2.5);
        let mut behind = Found::default();
        behind.look(&[f32::INFINITY], 6, 2.5);
        found.add(behind);
        assert!(found.is_unfit(true) && found.is_unfit(false) && behind.is_unfit(false) && !behind.is_unfit(true));
        let unfit = Unfit::of("t", &found, 2, quant::format(TensorType::F16)).unwrap();
        assert!(matches!(unfit.non_finite, Some(Places { count: 3, row: 1, column: 1, value }) if value.is_nan()));
        assert_eq!(
            unfit.to_string(),
            "tensor 't' has 3 values NaN or infinite, the first NaN at row 1, column 1; and 2 values that f16 cannot \
             hold (its largest magnitude is 65519.996), the first -3 at row 0, column 1"
        );
        assert_eq!(Unfit::of("t", &Found::default(), 2, None), None);
    }
}
