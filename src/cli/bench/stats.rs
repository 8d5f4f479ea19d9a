//! What a few repetitions say.

use serde::Serialize;

/// Middle and spread of some numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) mean: f64,
    /// Standard deviation, with n − 1; `None` for a single number.
    pub(super) sd: Option<f64>,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// Of at least one number; `None` for none.
    pub(super) fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let n = sorted.len();
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|x| (x - mean) * (x - mean)).sum();
        Some(Self {
            median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
            mean,
            sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()),
            min,
            max,
        })
    }
}

/// The median alone.
pub(super) fn median(numbers: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(numbers).map(|s| s.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_and_spread() {
        let s = Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap();
        assert_eq!((s.median, s.mean, s.min, s.max), (3.0, 4.0, 1.0, 9.0));
        assert!((s.sd.unwrap() - (38.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(median([5.0, 1.0, 2.0]), Some(2.0));
    }

    #[test]
    fn one_number_has_no_spread_and_none_has_nothing() {
        let s = Spread::of([7.0]).unwrap();
        assert_eq!((s.median, s.sd), (7.0, None));
        assert_eq!(Spread::of([]), None);
    }
}
