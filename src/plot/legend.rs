//! Names of series, laid out in rows below a chart.

use super::{Marks, Series};

/// Height of a row in CSS pixels.
pub(super) const ROW: i32 = 20;
/// Room for the drawing before a name.
pub(super) const SWATCH: i32 = 26;
const GAP: i32 = 16;

/// One name, with the series that carry it.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: String,
    pub(super) series: Vec<&'a Series>,
    /// Left edge and row.
    pub(super) x: i32,
    pub(super) row: i32,
}

/// Entries in rows of `width` CSS pixels.
pub(super) fn layout(series: &[Series], width: i32, size: f64) -> Vec<Entry<'_>> {
    let mut entries: Vec<(&str, Vec<&Series>)> = Vec::new();
    for s in series.iter().filter(|s| !s.name.trim().is_empty()) {
        if matches!(s.marks, Marks::Vertical(_)) || is_empty(&s.marks) {
            continue;
        }
        match entries.iter_mut().find(|e| e.0 == s.name) {
            Some(entry) => entry.1.push(s),
            None => entries.push((&s.name, vec![s])),
        }
    }
    let (mut x, mut row) = (0, 0);
    let place = |(name, series): (&str, Vec<_>)| {
        let name = shorten(name, width - SWATCH, size);
        let needs = SWATCH + self::width(&name, size);
        if x > 0 && x + needs > width {
            (x, row) = (0, row + 1);
        }
        let entry = Entry { name, series, x, row };
        x += needs + GAP;
        entry
    };
    entries.into_iter().map(place).collect()
}

/// Whether there is nothing that could be drawn.
fn is_empty(marks: &Marks) -> bool {
    match marks {
        Marks::Line(p) | Marks::Thin(p) | Marks::Points(p) | Marks::LinePoints(p) | Marks::Bars(p) => {
            !p.iter().any(|p| p.0.is_finite() && p.1.is_finite())
        }
        Marks::Band(p) | Marks::Errors(p) => !p.iter().any(|p| p.0.is_finite() && p.1.is_finite() && p.2.is_finite()),
        Marks::Vertical(at) | Marks::Horizontal(at) => !at.is_finite(),
    }
}

/// About as wide as a text is in most fonts, in CSS pixels.
pub(super) fn width(text: &str, size: f64) -> i32 {
    let ems: f64 = text
        .chars()
        .map(|c| match c {
            'i' | 'j' | 'l' | 't' | 'f' | ' ' | '.' | ',' | ':' | '|' | '(' | ')' => 0.35,
            'm' | 'w' | 'M' | 'W' => 0.9,
            'A'..='Z' => 0.7,
            c if c.is_ascii() => 0.58,
            '−' | '·' | '⁰'..='⁹' | '¹' | '²' | '³' | '⁻' => 0.5,
            _ => 1.0,
        })
        .sum();
    (ems * size).ceil() as i32
}

/// A text that fits, with an ellipsis if it was cut.
pub(super) fn shorten(text: &str, room: i32, size: f64) -> String {
    let text: String = text.chars().map(super::style::printable).collect();
    if width(&text, size) <= room {
        return text;
    }
    let mut kept = String::new();
    for c in text.chars() {
        if width(&kept, size) + width(&c.to_string(), size) + size as i32 > room {
            break;
        }
        kept.push(c);
    }
    kept + "…"
}
