//! Charts as SVG that read well on light and on dark pages, in colour and without.
//!
//! A [`Chart`] says what is to be seen; [`svg`] makes a fragment for a page that has [`STYLE`] in its style sheet, [`standalone`] a
//! file that brings its own. Both need no script and load nothing.
//!
//! Drawing is plotters', with three things done around it. It knows colours and no classes, so that it is given numbers as
//! colours, which are made into classes with a colour for the light page beside each (a renderer that knows no style sheets draws
//! that one). It places points on whole pixels, so that it draws on a canvas several times as fine as the chart. And it puts a legend
//! on top of data, so that legends are laid out here, below.
//!
//! What cannot be drawn is left out: NaN, infinite numbers, and on logarithmic axes what is not positive.
//!
//! ```
//! use rdt::plot::{Axis, Chart, Marks, Series, standalone};
//!
//! let chart = Chart {
//!     title: "Loss against depth".into(),
//!     x: Axis::steps("loop steps"),
//!     y: Axis::linear("nats per token"),
//!     series: vec![
//!         Series::new("fixed depth", 1, Marks::LinePoints(vec![(1.0, 3.1), (2.0, 2.4), (4.0, 2.2)])),
//!         Series::new("published", 0, Marks::Vertical(4.0)),
//!     ],
//!     ..Chart::default()
//! };
//! assert!(standalone(&chart).starts_with("<svg"));
//! ```

mod axis;
mod clip;
mod draw;
mod legend;
mod style;

pub use style::{STYLE, escape};

/// A chart of two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Above the chart; none if empty.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn, the first at the bottom.
    pub series: Vec<Series>,
    /// Width and height in CSS pixels, legend and title included; at least 160 × 120.
    pub size: (u32, u32),
}

impl Default for Chart {
    fn default() -> Self {
        Self { title: String::new(), x: Axis::default(), y: Axis::default(), series: Vec::new(), size: (600, 400) }
    }
}

/// An axis. Its range is that of the data, with a margin, unless it is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Axis {
    /// What it measures, and in what unit.
    pub label: String,
    /// Whether it is logarithmic.
    pub log: bool,
    /// Whether only whole numbers are marked (on a logarithmic axis: powers of two).
    pub whole: bool,
    /// From and to. What lies outside is not drawn.
    pub range: Option<(f64, f64)>,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), ..Self::default() }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Self {
        Self { log: true, ..Self::linear(label) }
    }

    /// A linear axis of whole numbers.
    pub fn steps(label: impl Into<String>) -> Self {
        Self { whole: true, ..Self::linear(label) }
    }

    /// The axis with a fixed range.
    #[must_use]
    pub fn with_range(self, from: f64, to: f64) -> Self {
        Self { range: Some((from, to)), ..self }
    }
}

/// Something to draw.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend, which shows series of the same name as one; none if empty. Vertical marker lines carry it above them
    /// instead.
    pub name: String,
    /// 0 is the colour of text, 1 and on are the palette's, each with a dash and a shape of its own; they come again after
    /// [`PALETTE`].
    pub style: usize,
    /// What it looks like, and the numbers.
    pub marks: Marks,
    /// What is shown when the pointer rests on a point, for the points of [`Marks::Points`] and [`Marks::LinePoints`] and for bars in
    /// order; may be shorter.
    pub tips: Vec<String>,
}

/// Styles of series that can be told apart, besides 0.
pub const PALETTE: usize = 6;

/// How a series is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Marks {
    /// A line through (x, y), broken where a number is missing.
    Line(Vec<(f64, f64)>),
    /// A line that stays in the background.
    Thin(Vec<(f64, f64)>),
    /// Markers at (x, y).
    Points(Vec<(f64, f64)>),
    /// Markers at (x, y) and a line through them.
    LinePoints(Vec<(f64, f64)>),
    /// The area between two lines: (x, lower, upper).
    Band(Vec<(f64, f64, f64)>),
    /// Bars of uncertainty: (x, lower, upper).
    Errors(Vec<(f64, f64, f64)>),
    /// Upright bars from 0: (x, y), each as wide as the least distance between two.
    Bars(Vec<(f64, f64)>),
    /// A marker line across the chart at x.
    Vertical(f64),
    /// A marker line across the chart at y.
    Horizontal(f64),
}

impl Series {
    /// A series without tips.
    pub fn new(name: impl Into<String>, style: usize, marks: Marks) -> Self {
        Self { name: name.into(), style, marks, tips: Vec::new() }
    }

    /// The series with tips for its points.
    #[must_use]
    pub fn with_tips(self, tips: Vec<String>) -> Self {
        Self { tips, ..self }
    }
}

/// The chart as a fragment of HTML, for a page whose style sheet has [`STYLE`]. It is as wide as there is room, up to its own width.
pub fn svg(chart: &Chart) -> String {
    let (width, height) = draw::size(chart);
    format!(
        "<svg class=\"plot\" {} style=\"max-width:{width}px\">\n{}</svg>\n",
        head(chart, width, height),
        draw::body(chart)
    )
}

/// The chart as an SVG file, for images in documents.
pub fn standalone(chart: &Chart) -> String {
    alone(&svg(chart))
}

/// What [`svg`] made as a file of its own.
pub(crate) fn alone(fragment: &str) -> String {
    let paper = format!(
        "\n<style>{STYLE}</style>\n<rect class=\"paper\" width=\"100%\" height=\"100%\" rx=\"{}\" fill=\"{}\"/>",
        6 * draw::FINE,
        style::PAPER
    );
    // Inside a page the chart shrinks with it; a file has a size.
    let (head, body) = fragment.split_once('>').unwrap_or((fragment, ""));
    let head = head.replacen("<svg", "<svg xmlns=\"http://www.w3.org/2000/svg\"", 1);
    let head = head.replacen("style=\"max-width:", "width=\"", 1).replacen("px\"", "\"", 1);
    format!("{head}>{paper}{body}\n")
}

fn head(chart: &Chart, width: u32, height: u32) -> String {
    let fine = |pixels: u32| i64::from(pixels) * i64::from(draw::FINE);
    let title = if chart.title.is_empty() {
        format!("{} against {}", chart.y.label, chart.x.label)
    } else {
        chart.title.clone()
    };
    format!("viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\"", fine(width), fine(height), escape(&title))
}

#[cfg(test)]
mod tests;
