//! Drawing a chart with plotters.

use super::axis::Scale;
use super::clip::clip;
use super::legend::{self, Entry, ROW, SWATCH};
use super::style::{FONT, Ink, classes, escape, wrap};
use super::{Chart, Marks, Series};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::fmt::Write;

/// Points of the canvas in a CSS pixel: plotters knows whole points only.
pub(super) const FINE: i32 = 4;

const TITLE: f64 = 15.0;
const WORDS: f64 = 13.0;
const SMALL: f64 = 12.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;
type Failure<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// Width and height in CSS pixels.
pub(super) fn size(chart: &Chart) -> (u32, u32) {
    (chart.size.0.clamp(160, 4000), chart.size.1.clamp(120, 4000))
}

/// What stands between `<svg>` and `</svg>`.
pub(super) fn body(chart: &Chart) -> String {
    let (width, height) = size(chart);
    let fine = FINE.unsigned_abs();
    let (mut svg, mut tips) = (String::new(), String::new());
    {
        let root = SVGBackend::with_string(&mut svg, (width * fine, height * fine)).into_drawing_area();
        // Into a string nothing can fail, and a chart that lacks a part is better than none.
        let _ = draw(chart, &root, &mut tips);
        let _ = root.present();
    }
    let inner = svg.find('>').map_or("", |end| &svg[end + 1..]);
    let inner = inner.trim().strip_suffix("</svg>").unwrap_or(inner);
    classes(inner) + &tips
}

fn draw<'a>(chart: &Chart, root: &Area<'a>, tips: &mut String) -> Result<(), Failure<'a>> {
    let (width, height) = size(chart);
    let (width, height) = (width.cast_signed(), height.cast_signed());
    let (x, y) = scales(chart, width, height);
    let markers = markers(chart, &x, width);
    let ticks = y.labels().map(|l| legend::width(&l, SMALL)).max().unwrap_or(0);
    let left = 10 + ticks + if chart.y.label.is_empty() { 0 } else { 20 };
    let right = 14;
    let entries = legend::layout(&chart.series, width - 24, WORDS);
    let rows = entries.last().map_or(0, |e| e.row + 1);
    let titled = if chart.title.is_empty() { 8 } else { 30 };
    let top = titled + 16 * markers.iter().map(|m| m.2 + 1).max().unwrap_or(0);
    let bottom = 8 + rows * ROW + if rows > 0 { 4 } else { 0 } + if chart.x.label.is_empty() { 0 } else { 20 };

    if !chart.title.is_empty() {
        let title = legend::shorten(&chart.title, width - 24, TITLE);
        text(root, &title, (12, 9), TITLE, Ink::Text, (HPos::Left, VPos::Top), true)?;
    }
    let frame = root.margin(top * FINE, bottom * FINE, left * FINE, right * FINE);
    let (empty_x, empty_y) = (x.clone(), y.clone());
    let mut plane = ChartBuilder::on(&frame).x_label_area_size(22 * FINE).build_cartesian_2d(x, y)?;
    let (to_right, to_bottom) = (width - right, height - bottom - 22);
    grid(root, &plane, (&empty_x, &empty_y), (left, to_right, top, to_bottom))?;

    let words = |s: &str, room: i32| legend::shorten(s, room, WORDS);
    let middle = ((left + to_right) / 2, (top + to_bottom) / 2);
    let below = to_bottom + 24;
    let label = words(&chart.x.label, width - 24);
    text(root, &label, (middle.0, below), WORDS, Ink::Soft, (HPos::Center, VPos::Top), false)?;
    let label = words(&chart.y.label, height - 8);
    let turned = style(WORDS, Ink::Soft, (HPos::Center, VPos::Top), false).transform(FontTransform::Rotate270);
    root.draw(&Text::new(label, (6 * FINE, middle.1 * FINE), turned))?;

    let mut drawn = false;
    for series in &chart.series {
        drawn |= draw_series(&mut plane, series, (&empty_x, &empty_y))?;
        tip(&plane, series, (&empty_x, &empty_y), tips);
    }
    for (series, at, row) in &markers {
        let y = top - 10 - 16 * row;
        let name = words(&series.name, width - 24);
        text(root, &name, (*at, y), SMALL, Ink::Series(series.style), (HPos::Center, VPos::Center), false)?;
    }
    if !drawn {
        text(root, "no data", middle, WORDS, Ink::Soft, (HPos::Center, VPos::Center), false)?;
    }
    let first = height - 6 - rows * ROW;
    entries.iter().try_for_each(|entry| draw_entry(root, entry, (12 + entry.x, first + entry.row * ROW)))
}

/// Both axes, over everything that is drawn.
fn scales(chart: &Chart, width: i32, height: i32) -> (Scale, Scale) {
    let (mut xs, mut ys, mut bars) = (Vec::new(), Vec::new(), false);
    for series in &chart.series {
        match &series.marks {
            Marks::Line(p) | Marks::Thin(p) | Marks::Points(p) | Marks::LinePoints(p) => {
                let whole = p.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
                whole.for_each(|p| (xs.push(p.0), ys.push(p.1)).0);
            }
            Marks::Bars(p) => {
                let half = thickness(p) / 2.0;
                p.iter().for_each(|p| (xs.extend([p.0 - half, p.0 + half]), ys.push(p.1)).0);
                ys.push(0.0);
                bars = true;
            }
            Marks::Band(p) | Marks::Errors(p) => {
                let whole = p.iter().filter(|p| p.0.is_finite() && p.1.is_finite() && p.2.is_finite());
                whole.for_each(|p| (xs.push(p.0), ys.extend([p.1, p.2])).0);
            }
            Marks::Vertical(x) => xs.push(*x),
            Marks::Horizontal(y) => ys.push(*y),
        }
    }
    let marks = |pixels: i32, each: i32| usize::try_from(pixels / each).unwrap_or(0);
    let x = Scale::new(&chart.x, xs.into_iter(), 0.03, marks(width - 80, 48).min(10));
    let mut y = Scale::new(&chart.y, ys.into_iter(), 0.05, marks(height - 110, 40).min(8));
    if bars {
        y.start_at_zero();
    }
    (x, y)
}

/// Vertical marker lines with names: where the name goes, and in which row above the chart.
fn markers<'a>(chart: &'a Chart, x: &Scale, width: i32) -> Vec<(&'a Series, i32, i32)> {
    let mut placed: Vec<(&Series, i32, i32)> = Vec::new();
    for series in chart.series.iter().filter(|s| !s.name.is_empty()) {
        let Marks::Vertical(value) = series.marks else { continue };
        if !x.has(value) {
            continue;
        }
        // Near enough: the left edge is not known before the labels of the other axis are.
        let half = legend::width(&series.name, SMALL) / 2 + 4;
        let at = x.map(&value, (64, width - 14)).clamp(half.min(width / 2), (width - half).max(width / 2));
        let taken = |row: i32| {
            let meets = |other: &&(&Series, i32, i32)| {
                (other.1 - at).abs() < half + legend::width(&other.0.name, SMALL) / 2 + 4
            };
            placed.iter().filter(|p| p.2 == row).any(|p| meets(&p))
        };
        let row = (0..6).find(|&row| !taken(row)).unwrap_or(6);
        placed.push((series, at, row));
    }
    placed
}

fn grid<'a>(
    root: &Area<'a>,
    plane: &Plane<'_, 'a>,
    (x, y): (&Scale, &Scale),
    edges: (i32, i32, i32, i32),
) -> Result<(), Failure<'a>> {
    let (left, right, top, bottom) = edges;
    let (low, high) = (x.range(), y.range());
    let line = |from: (i32, i32), to: (i32, i32), ink: Ink, width: u32| {
        root.draw(&PathElement::new(vec![from, to], ink.colour().stroke_width(width)))
    };
    let edge = |(x, y): (i32, i32)| (x * FINE, y * FINE);
    for (values, width) in [(y.minor(), 2), (y.major(), 4)] {
        for &value in values {
            let at = plane.backend_coord(&(low.start, value)).1;
            line((left * FINE, at), (right * FINE, at), Ink::Grid, width)?;
        }
    }
    for (values, width) in [(x.minor(), 2), (x.major(), 4)] {
        for &value in values {
            let at = plane.backend_coord(&(value, high.start)).0;
            line((at, top * FINE), (at, bottom * FINE), Ink::Grid, width)?;
        }
    }
    line(edge((left, bottom)), edge((right, bottom)), Ink::Soft, 4)?;
    line(edge((left, top)), edge((left, bottom)), Ink::Soft, 4)?;
    for &value in y.major() {
        let at = plane.backend_coord(&(low.start, value)).1;
        fine_text(root, &y.label(value), ((left - 6) * FINE, at), (HPos::Right, VPos::Center))?;
    }
    // Labels that would touch are left out.
    let mut free = i32::MIN;
    for &value in x.major() {
        let at = plane.backend_coord(&(value, high.start)).0;
        let label = x.label(value);
        let half = legend::width(&label, SMALL) * FINE / 2;
        if at - half >= free {
            fine_text(root, &label, (at, (bottom + 7) * FINE), (HPos::Center, VPos::Top))?;
            free = at + half + 6 * FINE;
        }
    }
    Ok(())
}

/// Draws a series; whether there was anything to draw.
fn draw_series<'b>(plane: &mut Plane<'_, 'b>, series: &Series, (x, y): (&Scale, &Scale)) -> Result<bool, Failure<'b>> {
    let line = |width: i32| Ink::Dashed(series.style).colour().stroke_width((width * FINE / 4).unsigned_abs());
    let solid = Ink::Series(series.style).colour();
    let on = |p: &(f64, f64)| x.has(p.0) && y.has(p.1);
    let mut drawn = false;
    match &series.marks {
        Marks::Line(points) | Marks::Thin(points) | Marks::LinePoints(points) => {
            let style = match series.marks {
                Marks::Thin(_) => Ink::Dashed(series.style).colour().mix(0.6).stroke_width(5),
                _ => line(8),
            };
            for part in clip(points, x, y) {
                drawn = true;
                plane.plotting_area().draw(&PathElement::new(part, style))?;
            }
            if matches!(series.marks, Marks::LinePoints(_)) {
                points.iter().filter(|p| on(p)).try_for_each(|p| marker(plane.plotting_area(), *p, series.style))?;
            }
        }
        Marks::Points(points) => {
            for &p in points.iter().filter(|p| on(p)) {
                drawn = true;
                marker(plane.plotting_area(), p, series.style)?;
            }
        }
        Marks::Bars(points) => {
            let half = thickness(points) * 0.42;
            let base = y.nearest(0.0).unwrap_or(0.0);
            for (at, top) in points.iter().filter(|p| on(p)) {
                drawn = true;
                let edges = (x.nearest(at - half).unwrap_or(*at), x.nearest(at + half).unwrap_or(*at));
                plane
                    .plotting_area()
                    .draw(&Rectangle::new([(edges.0, *top), (edges.1, base)], solid.mix(0.85).filled()))?;
            }
        }
        Marks::Band(points) => {
            let edges: Vec<_> = points
                .iter()
                .map(|&(at, low, high)| x.has(at).then(|| Some((at, y.nearest(low)?, y.nearest(high)?))).flatten())
                .collect();
            for part in edges.split(Option::is_none) {
                let outline: Vec<_> = (part.iter().flatten().map(|p| (p.0, p.2)))
                    .chain(part.iter().rev().flatten().map(|p| (p.0, p.1)))
                    .collect();
                // A band of a single point would have no width.
                if outline.len() > 2 {
                    drawn = true;
                    plane.plotting_area().draw(&Polygon::new(outline, solid.mix(0.16)))?;
                }
            }
        }
        Marks::Errors(points) => {
            for &(at, low, high) in points.iter().filter(|p| x.has(p.0)) {
                let (Some(low), Some(high)) = (y.nearest(low), y.nearest(high)) else { continue };
                drawn = true;
                let style = solid.stroke_width(5);
                let (low, high) = (plane.backend_coord(&(at, low)), plane.backend_coord(&(at, high)));
                let area = plane.plotting_area().strip_coord_spec();
                let origin = area.get_base_pixel();
                let at = |p: (i32, i32), dx: i32| (p.0 - origin.0 + dx * FINE, p.1 - origin.1);
                for path in [[at(low, 0), at(high, 0)], [at(low, -3), at(low, 3)], [at(high, -3), at(high, 3)]] {
                    area.draw(&PathElement::new(path.to_vec(), style))?;
                }
            }
        }
        &Marks::Vertical(at) => {
            if x.has(at) {
                let range = y.range();
                plane.plotting_area().draw(&PathElement::new(vec![(at, range.start), (at, range.end)], line(5)))?;
            }
        }
        &Marks::Horizontal(at) => {
            if y.has(at) {
                let range = x.range();
                plane.plotting_area().draw(&PathElement::new(vec![(range.start, at), (range.end, at)], line(5)))?;
            }
        }
    }
    Ok(drawn)
}

/// Invisible circles over points, which a browser answers with their tips.
fn tip(plane: &Plane<'_, '_>, series: &Series, (x, y): (&Scale, &Scale), out: &mut String) {
    let (Marks::Points(points) | Marks::LinePoints(points) | Marks::Bars(points)) = &series.marks else { return };
    for (point, tip) in points.iter().zip(&series.tips).filter(|(p, _)| x.has(p.0) && y.has(p.1)) {
        let (cx, cy) = plane.backend_coord(point);
        let tip = escape(tip);
        let r = 8 * FINE;
        let _ = writeln!(
            out,
            "<circle class=\"tip\" cx=\"{cx}\" cy=\"{cy}\" r=\"{r}\" fill-opacity=\"0\"><title>{tip}</title></circle>"
        );
    }
}

/// A marker in the shape of its style.
fn marker<'b, CT: CoordTranslate<From = P>, P: Clone>(
    area: &DrawingArea<SVGBackend<'b>, CT>,
    at: P,
    style: usize,
) -> Result<(), Failure<'b>> {
    let fill = Ink::Series(style).colour().filled();
    let edge = Ink::Paper.colour().stroke_width(4);
    let r = 4 * FINE + 2;
    let polygon = |points: &[(i32, i32)]| {
        let points: Vec<_> = points.iter().map(|p| (p.0 * r / 100, p.1 * r / 100)).collect();
        let closed = points.iter().chain(points.first()).copied().collect::<Vec<_>>();
        EmptyElement::at(at.clone()) + Polygon::new(points, fill) + PathElement::new(closed, edge)
    };
    match wrap(style) {
        0 | 1 => area.draw(&(EmptyElement::at(at) + Circle::new((0, 0), r, fill) + Circle::new((0, 0), r, edge))),
        2 => area.draw(&polygon(&[(0, -120), (110, 80), (-110, 80)])),
        3 => area.draw(&polygon(&[(-90, -90), (90, -90), (90, 90), (-90, 90)])),
        4 => area.draw(&polygon(&[(0, -130), (110, 0), (0, 130), (-110, 0)])),
        5 => area.draw(&polygon(&[(0, 120), (110, -80), (-110, -80)])),
        _ => area.draw(&polygon(&[
            (-40, -120),
            (40, -120),
            (40, -40),
            (120, -40),
            (120, 40),
            (40, 40),
            (40, 120),
            (-40, 120),
            (-40, 40),
            (-120, 40),
            (-120, -40),
            (-40, -40),
        ])),
    }
}

fn draw_entry<'b>(root: &Area<'b>, entry: &Entry<'_>, (x, y): (i32, i32)) -> Result<(), Failure<'b>> {
    let (x, middle) = (x * FINE, (y + ROW / 2) * FINE);
    let end = x + (SWATCH - 6) * FINE;
    for series in &entry.series {
        let solid = Ink::Series(series.style).colour();
        let line = |width| {
            PathElement::new(vec![(x, middle), (end, middle)], Ink::Dashed(series.style).colour().stroke_width(width))
        };
        let center = (i32::midpoint(x, end), middle);
        match series.marks {
            Marks::Line(_) => root.draw(&line(8))?,
            Marks::Thin(_) | Marks::Horizontal(_) => root.draw(&line(5))?,
            Marks::Points(_) => marker(root, center, series.style)?,
            Marks::LinePoints(_) => {
                root.draw(&line(8))?;
                marker(root, center, series.style)?;
            }
            Marks::Band(_) | Marks::Bars(_) => {
                let share = if matches!(series.marks, Marks::Band(_)) { 0.25 } else { 0.85 };
                let (top, bottom) = (middle - 6 * FINE, middle + 6 * FINE);
                root.draw(&Rectangle::new([(x, top), (end, bottom)], solid.mix(share).filled()))?;
            }
            Marks::Errors(_) => {
                let path = vec![(center.0, middle - 7 * FINE), (center.0, middle + 7 * FINE)];
                root.draw(&PathElement::new(path, solid.stroke_width(5)))?;
            }
            Marks::Vertical(_) => {}
        }
    }
    let at = (x / FINE + SWATCH, middle / FINE);
    text(root, &entry.name, at, WORDS, Ink::Text, (HPos::Left, VPos::Center), false)
}

/// The least distance between two bars; 1 if there is but one.
fn thickness(points: &[(f64, f64)]) -> f64 {
    let mut xs: Vec<_> = points.iter().map(|p| p.0).filter(|x| x.is_finite()).collect();
    xs.sort_by(f64::total_cmp);
    let least = xs.windows(2).map(|w| w[1] - w[0]).filter(|d| *d > 0.0).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 1.0 }
}

fn style<'a>(size: f64, ink: Ink, (h, v): (HPos, VPos), bold: bool) -> TextStyle<'a> {
    let weight = if bold { FontStyle::Bold } else { FontStyle::Normal };
    // plotters writes a size that is smaller by this factor.
    let font = FontDesc::new(FontFamily::Name(FONT), size * 1.24 * f64::from(FINE), weight);
    font.color(&ink.colour()).pos(Pos::new(h, v))
}

fn text<'b>(
    area: &Area<'b>,
    words: &str,
    at: (i32, i32),
    size: f64,
    ink: Ink,
    pos: (HPos, VPos),
    bold: bool,
) -> Result<(), Failure<'b>> {
    let at = (at.0 * FINE, at.1 * FINE);
    if words.is_empty() { Ok(()) } else { area.draw(&Text::new(words.to_owned(), at, style(size, ink, pos, bold))) }
}

fn fine_text<'b>(area: &Area<'b>, words: &str, at: (i32, i32), pos: (HPos, VPos)) -> Result<(), Failure<'b>> {
    area.draw(&Text::new(words.to_owned(), at, style(SMALL, Ink::Soft, pos, false)))
}
