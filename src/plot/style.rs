//! Colours, and how numbers that plotters takes for colours become classes.

use super::PALETTE;
use plotters::style::RGBColor;
use std::fmt::Write;

/// Colour of a chart's background on a light page.
pub(super) const PAPER: &str = "#ffffff";

/// Style sheet of all charts: light, and dark where the reader prefers that.
///
/// The palette is that of Okabe and Ito ("Color Universal Design", 2008), with the colours that are too pale for thin lines darkened
/// on the light page and all lightened on the dark one.
pub const STYLE: &str = "
.plot{--paper:#ffffff;--ink:#1f2328;--soft:#57606a;--grid:#d8dee4;--s1:#0072b2;--s2:#d55e00;--s3:#008a64;--s4:#b3548a;--s5:#a87400;--s6:#5b5bd6;\
color-scheme:light dark;height:auto;font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}
@media (prefers-color-scheme:dark){.plot{--paper:#161b22;--ink:#e6edf3;--soft:#a5adb8;--grid:#343b45;--s1:#56b4e9;--s2:#ff8a4c;--s3:#2cc79a;\
--s4:#e89bc8;--s5:#f0b93a;--s6:#a9a9ff}}
@media print{.plot{--paper:#ffffff;--ink:#1f2328;--soft:#57606a;--grid:#d8dee4;--s1:#0072b2;--s2:#d55e00;--s3:#008a64;--s4:#b3548a;--s5:#a87400;\
--s6:#5b5bd6}}
.plot .paper{fill:var(--paper)}.plot .f0{fill:var(--soft)}.plot .k0{stroke:var(--soft)}.plot .f1{fill:var(--s1)}.plot .k1{stroke:var(--s1)}
.plot .f2{fill:var(--s2)}.plot .k2{stroke:var(--s2)}.plot .f3{fill:var(--s3)}.plot .k3{stroke:var(--s3)}.plot .f4{fill:var(--s4)}
.plot .k4{stroke:var(--s4)}.plot .f5{fill:var(--s5)}.plot .k5{stroke:var(--s5)}.plot .f6{fill:var(--s6)}.plot .k6{stroke:var(--s6)}
.plot .fi{fill:var(--ink)}.plot .ki{stroke:var(--ink)}.plot .fg{fill:var(--grid)}.plot .kg{stroke:var(--grid)}
.plot .fp{fill:var(--paper)}.plot .kp{stroke:var(--paper)}.plot .tip{fill:transparent;stroke:none}
.plot .tip:hover{stroke:var(--ink);stroke-width:6}
.plot text{paint-order:stroke;stroke:var(--paper);stroke-width:12;stroke-linejoin:round}
";

/// Families of which every system has one; without quotes, which an attribute would escape.
pub(super) const FONT: &str = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif";

/// What a colour stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// A series.
    Series(usize),
    /// A series' lines, in its dash.
    Dashed(usize),
    /// Titles.
    Text,
    /// Words that stay in the background; also style 0.
    Soft,
    Grid,
    Paper,
}

/// Colours of the light page, by class.
const LIGHT: [(&str, &str); 10] = [
    ("0", "#57606a"),
    ("1", "#0072b2"),
    ("2", "#d55e00"),
    ("3", "#008a64"),
    ("4", "#b3548a"),
    ("5", "#a87400"),
    ("6", "#5b5bd6"),
    ("i", "#1f2328"),
    ("g", "#d8dee4"),
    ("p", PAPER),
];

/// Dashes by style, in CSS pixels.
const DASHES: [&[u32]; PALETTE + 1] = [&[4, 4], &[], &[8, 4], &[2, 3], &[9, 3, 2, 3], &[14, 4], &[5, 2]];

/// The series that a style number means, in 0 ..= [`PALETTE`].
pub(super) fn wrap(style: usize) -> usize {
    if style == 0 { 0 } else { (style - 1) % PALETTE + 1 }
}

impl Ink {
    /// The number that plotters is given as a colour: a mark, whether it is dashed, and the place in [`LIGHT`].
    pub(super) fn colour(self) -> RGBColor {
        let (dashed, place) = match self {
            Self::Series(style) => (0, wrap(style)),
            Self::Dashed(style) => (1, wrap(style)),
            Self::Soft => (0, 0),
            Self::Text => (0, 7),
            Self::Grid => (0, 8),
            Self::Paper => (0, 9),
        };
        RGBColor(MARK, dashed, place as u8)
    }
}

const MARK: u8 = 0x0A;

/// Makes the numbers that plotters wrote as colours into classes, with the colours of the light page beside them. Text cannot look like
/// one, since its quotes are escaped.
pub(super) fn classes(svg: &str) -> String {
    let mut out = String::with_capacity(svg.len() * 3 / 2);
    let mut rest = svg;
    while let Some((attribute, at)) = next(rest) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let code = attribute.len() + 2;
        let hex = |at: usize| found.get(at..at + 2).and_then(|h| usize::from_str_radix(h, 16).ok());
        let (dashed, place) = (hex(code + 3), hex(code + 5));
        match (dashed, place.and_then(|place| LIGHT.get(place))) {
            (Some(dashed), Some((class, colour))) => {
                let kind = if attribute == "fill" { 'f' } else { 'k' };
                let _ = write!(out, "class=\"{kind}{class}\" {attribute}=\"{colour}\"");
                let dash = DASHES.get(place.unwrap_or(0)).copied().unwrap_or_default();
                if dashed == 1 && !dash.is_empty() {
                    let fine = super::draw::FINE.unsigned_abs();
                    let lengths: Vec<_> = dash.iter().map(|d| (d * fine).to_string()).collect();
                    let _ = write!(out, " stroke-dasharray=\"{}\"", lengths.join(" "));
                }
            }
            _ => out.push_str(&found[..code + 8]),
        }
        rest = &found[code + 8..];
    }
    // Opaque is what everything is anyway.
    (out + rest).replace(" opacity=\"1\"", "")
}

/// The next attribute with a marked colour, and where it starts.
fn next(svg: &str) -> Option<(&'static str, usize)> {
    let found = |attribute: &'static str| Some((attribute, svg.find(&format!("{attribute}=\"#{MARK:02X}"))?));
    [found("fill"), found("stroke")].into_iter().flatten().min_by_key(|&(_, at)| at)
}

/// Text for HTML and XML, content or attribute: escaped, and characters that neither may have replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            c => out.push(printable(c)),
        }
    }
    out
}

/// A character that may stand in a document: not control characters, noncharacters, or what turns the direction of the text around it.
pub(super) fn printable(c: char) -> char {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let none = matches!(c, '\u{fdd0}'..='\u{fdef}') || u32::from(c) & 0xfffe == 0xfffe;
    if c.is_control() || turns || none { '\u{fffd}' } else { c }
}
