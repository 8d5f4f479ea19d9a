//! Ranges and marks of an axis.

use super::Axis;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use std::ops::Range;

/// The largest number that is drawn, and over it the smallest on logarithmic axes: differences and powers of such are finite.
const LARGEST: f64 = 1e100;

/// An axis that knows its range.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    log: bool,
    whole: bool,
    /// In logarithms to base 10 on logarithmic axes.
    from: f64,
    to: f64,
    major: Vec<f64>,
    minor: Vec<f64>,
    /// Decimals of labels.
    decimals: usize,
}

impl Scale {
    /// An axis over `data`, or over the range that it asks for, with about `marks` marks.
    pub(super) fn new(axis: &Axis, data: impl Iterator<Item = f64>, margin: f64, marks: usize) -> Self {
        let mut scale = Self {
            log: axis.log,
            whole: axis.whole,
            from: 0.0,
            to: 1.0,
            major: Vec::new(),
            minor: Vec::new(),
            decimals: 0,
        };
        let asked = axis.range.filter(|r| scale.shows(r.0) && scale.shows(r.1) && r.0 != r.1);
        if let Some((from, to)) = asked {
            (scale.from, scale.to) = (scale.place(from.min(to)), scale.place(from.max(to)));
        } else {
            let (from, to) = data
                .filter(|&v| scale.shows(v))
                .map(|v| scale.place(v))
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), v| (from.min(v), to.max(v)));
            if from <= to {
                // A single value is put in the middle; a spread that is all rounding is none.
                let least = if scale.log { 0.05 } else { from.abs().max(to.abs()) * 1e-6 };
                let pad = match to - from > least.max(1e-90) {
                    true => (to - from) * margin,
                    false => match scale.log {
                        true => 0.5,
                        false => (from.abs().max(to.abs()) * 0.05).max(if scale.whole { 1.0 } else { 1e-3 }),
                    },
                };
                (scale.from, scale.to) = (from - pad, to + pad);
            }
        }
        scale.mark(marks.max(2));
        scale
    }

    /// Whether the axis can show a number at all.
    pub(super) fn shows(&self, value: f64) -> bool {
        value.abs() <= LARGEST && (!self.log || value >= 1.0 / LARGEST)
    }

    /// Whether a number lies on the axis.
    pub(super) fn has(&self, value: f64) -> bool {
        let slack = (self.to - self.from) * 1e-9;
        self.shows(value) && (self.from - slack..=self.to + slack).contains(&self.place(value))
    }

    /// The nearest number on the axis; `None` for what no axis shows. What is not positive lies at the bottom of a logarithmic axis.
    pub(super) fn nearest(&self, value: f64) -> Option<f64> {
        if value.is_nan() {
            return None;
        }
        let place = if self.log && value <= 0.0 { self.from } else { self.place(value).clamp(self.from, self.to) };
        Some(self.value(place))
    }

    /// Where a number lies on paper, without a unit.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log { libm::log10(value) } else { value }
    }

    /// The number at a place on paper.
    pub(super) fn value(&self, place: f64) -> f64 {
        if self.log { libm::pow(10.0, place) } else { place }
    }

    /// Both ends of the axis, as places on paper.
    pub(super) fn edges(&self) -> (f64, f64) {
        (self.from, self.to)
    }

    fn mark(&mut self, marks: usize) {
        if self.log {
            return self.mark_log();
        }
        let step = nice((self.to - self.from) / marks as f64);
        let step = if !self.whole {
            step
        } else if (step - 2.5).abs() < 1e-9 {
            5.0
        } else {
            step.max(1.0).round()
        };
        self.decimals = (0..12).find(|&d| is_whole(step * libm::pow(10.0, f64::from(d)))).unwrap_or(12) as usize;
        let first = libm::ceil(self.from / step - 1e-9);
        // More than wanted can only come of rounding.
        let places = (0..4 * marks).map(|i| (first + i as f64) * step);
        self.major = places.take_while(|&v| v <= self.to + step * 1e-9).map(|v| v + 0.0).collect();
    }

    fn mark_log(&mut self) {
        let inside = |v: &f64| self.has(*v);
        let decades = libm::floor(self.from) as i32..=libm::ceil(self.to) as i32;
        let times = |factors: &'static [f64]| {
            let each =
                decades.clone().flat_map(move |d| factors.iter().map(move |f| f * libm::pow(10.0, f64::from(d))));
            each.filter(inside).collect::<Vec<_>>()
        };
        if self.whole {
            let first = self.from.max(0.0);
            let powers = (0..63).map(|p| libm::pow(2.0, f64::from(p))).filter(|v| libm::log10(*v) >= first - 1e-9);
            self.major = powers.filter(inside).collect();
            return;
        }
        let (span, minor) = (self.to - self.from, times(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]));
        self.major = match span {
            s if s < 0.7 => times(&[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
            s if s < 2.0 => times(&[1.0, 2.0, 5.0]),
            s => {
                // Every so many decades, so that labels have room.
                let every = libm::ceil(s / 8.0).max(1.0) as i32;
                decades
                    .clone()
                    .filter(|d| d % every == 0)
                    .map(|d| libm::pow(10.0, f64::from(d)))
                    .filter(inside)
                    .collect()
            }
        };
        self.minor = if span < 8.0 { minor } else { Vec::new() };
    }

    /// A mark's label.
    pub(super) fn label(&self, value: f64) -> String {
        let size = value.abs();
        if self.log && !self.whole && !(1e-3..1e5).contains(&size) {
            return power(value);
        }
        if !self.log && size != 0.0 && (size >= 1e6 || self.decimals > 5) {
            return power(value);
        }
        let decimals = if self.log {
            (0..5).find(|&d| is_whole(value * libm::pow(10.0, f64::from(d)))).unwrap_or(5)
        } else {
            self.decimals as i32
        };
        format!("{value:.*}", decimals as usize).replace('-', "−")
    }

    /// Labelled marks.
    pub(super) fn major(&self) -> &[f64] {
        &self.major
    }

    /// Marks between them.
    pub(super) fn minor(&self) -> &[f64] {
        &self.minor
    }

    /// The axis without the margin below or above 0.
    pub(super) fn start_at_zero(&mut self) {
        if !self.log && self.from < 0.0 && self.major.iter().all(|&v| v >= 0.0) {
            self.from = 0.0;
        }
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = String> + '_ {
        self.major.iter().map(|&v| self.label(v))
    }
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = ((self.place(*value) - self.from) / (self.to - self.from)).clamp(0.0, 1.0);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let mut points = self.major.clone();
        if hint.weight().allow_light_points() {
            points.extend(&self.minor);
        }
        points
    }

    fn range(&self) -> Range<f64> {
        match self.log {
            true => libm::pow(10.0, self.from)..libm::pow(10.0, self.to),
            false => self.from..self.to,
        }
    }
}

fn is_whole(value: f64) -> bool {
    (value - value.round()).abs() < 1e-6
}

/// The next of 1, 2, 2.5, 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let ten = libm::pow(10.0, libm::floor(libm::log10(step.max(1e-90))));
    let factor = [1.0, 2.0, 2.5, 5.0].into_iter().find(|f| f * ten >= step * (1.0 - 1e-9)).unwrap_or(10.0);
    factor * ten
}

/// As 3·10⁻⁵.
fn power(value: f64) -> String {
    let text = format!("{value:.2e}");
    let (factor, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let factor = factor.trim_end_matches('0').trim_end_matches('.').replace('-', "−");
    let raised = |c| match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        c => char::from_u32(u32::from('⁰') + (u32::from(c) - u32::from('0'))).unwrap_or(c),
    };
    let exponent: String = exponent.chars().map(raised).collect();
    if factor == "1" { format!("10{exponent}") } else { format!("{factor}·10{exponent}") }
}
