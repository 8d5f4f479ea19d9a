//! Charts that are awkward must be drawn all the same, and as documents whose tags are balanced.

use super::*;

const HOSTILE: &str = "</svg><script>alert(1)</script>\"' onload=\"x\" fill=\"#0A0001\" & \u{0}\u{202e}";

fn full() -> Chart {
    let curve = |f: f64| (1..=16).map(|k| (f64::from(k), f + 3.0 / f64::from(k))).collect::<Vec<_>>();
    let band = curve(2.0).iter().map(|p| (p.0, p.1 - 0.2, p.1 + 0.2)).collect::<Vec<_>>();
    Chart {
        title: "Cross-entropy against depth".into(),
        x: Axis::steps("loop steps"),
        y: Axis::linear("cross-entropy (nats per token)"),
        series: vec![
            Series::new("fixed depth", 1, Marks::Band(band.clone())),
            Series::new("fixed depth", 1, Marks::LinePoints(curve(2.0))),
            Series::new("acceleration", 2, Marks::LinePoints(curve(2.3))).with_tips(vec![HOSTILE.into()]),
            Series::new("step-norm", 3, Marks::Points(curve(2.6))),
            Series::new("kl", 4, Marks::LinePoints(curve(2.9))),
            Series::new("gate", 5, Marks::LinePoints(curve(3.2))),
            Series::new("another", 6, Marks::LinePoints(curve(3.5))),
            Series::new("another", 6, Marks::Errors(band)),
            Series::new("screened", 2, Marks::Thin(curve(2.35))),
            Series::new("published: 8", 0, Marks::Vertical(8.0)),
            Series::new("full depth: 9", 0, Marks::Vertical(9.0)),
            Series::new("1 % worse", 0, Marks::Horizontal(3.0)),
        ],
        ..Chart::default()
    }
}

/// Every tag that opens closes, in order.
fn balanced(document: &str) {
    let mut open = Vec::new();
    for tag in document.split('<').skip(1) {
        let inside = tag.split('>').next().unwrap();
        let name = inside.split([' ', '\n', '/']).find(|n| !n.is_empty()).unwrap().to_owned();
        match (inside.starts_with('/'), inside.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "{tag}"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

fn sound(chart: &Chart) -> String {
    let (fragment, file) = (svg(chart), standalone(chart));
    for document in [&fragment, &file] {
        balanced(document);
        assert!(!document.contains("NaN") && !document.contains("inf"), "{document}");
        assert!(!document.contains("=\"#0A"), "{document}");
    }
    file
}

#[test]
fn everything_at_once() {
    let file = sound(&full());
    for word in [
        "fixed depth",
        "acceleration",
        "published: 8",
        "1 % worse",
        "prefers-color-scheme:dark",
        "stroke-dasharray",
        "<title>",
    ] {
        assert!(file.contains(word), "{word}");
    }
    // Series of one name share an entry.
    assert_eq!(file.matches("fixed depth\n</text>").count(), 1);
}

#[test]
fn text_is_text() {
    let mut chart = full();
    chart.title = HOSTILE.into();
    chart.x.label = HOSTILE.into();
    chart.series.iter_mut().for_each(|s| s.name = HOSTILE.into());
    let file = sound(&Chart { size: (1600, 400), ..chart });
    assert!(!file.contains("<script") && !file.contains('\u{202e}') && !file.contains('\u{0}'));
    assert_eq!(file.matches("onload=\"").count(), 0);
}

#[test]
fn nothing_to_draw() {
    let empty = Chart::default();
    assert!(sound(&empty).contains("no data"));
    let nan = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let points: Vec<_> = nan.iter().flat_map(|&x| [(x, 1.0), (1.0, x), (x, x)]).collect();
    let bands: Vec<_> = points.iter().flat_map(|p| [(p.0, p.1, 1.0), (p.0, 1.0, p.1)]).collect();
    let all = |p: Vec<(f64, f64)>, b: Vec<(f64, f64, f64)>| {
        vec![
            Series::new("a", 1, Marks::Line(p.clone())),
            Series::new("b", 2, Marks::Thin(p.clone())),
            Series::new("c", 3, Marks::Points(p.clone())),
            Series::new("d", 4, Marks::LinePoints(p.clone())),
            Series::new("e", 5, Marks::Band(b.clone())),
            Series::new("f", 6, Marks::Errors(b)),
            Series::new("g", 7, Marks::Bars(p)),
            Series::new("h", 8, Marks::Vertical(f64::NAN)),
            Series::new("i", 9, Marks::Horizontal(f64::INFINITY)),
        ]
    };
    assert!(sound(&Chart { series: all(points, vec![]), ..empty.clone() }).contains("no data"));
    sound(&Chart { series: all(vec![], bands), ..empty.clone() });
    sound(&Chart { series: all(vec![], vec![]), size: (0, 0), ..empty });
}

#[test]
fn extreme_numbers() {
    let sets: [&[f64]; 8] = [
        &[0.0],
        &[-5.0, -5.0],
        &[1e308, -1e308],
        &[1e99, -1e99],
        &[1e-300, 1e-90],
        &[1e15, 1e15 + 0.25],
        &[-1.0, 0.0, 1e-12],
        &[1e-12, 1e12],
    ];
    for values in sets {
        for log in [false, true] {
            for whole in [false, true] {
                let axis = Axis { log, whole, ..Axis::linear("x") };
                let points: Vec<_> = values.iter().flat_map(|&a| values.iter().map(move |&b| (a, b))).collect();
                let bands = points.iter().map(|p| (p.0, p.1, p.0)).collect();
                let series = vec![
                    Series::new("a", 1, Marks::LinePoints(points.clone())),
                    Series::new("a", 1, Marks::Bars(points)),
                    Series::new("b", 2, Marks::Band(bands)),
                ];
                sound(&Chart { x: axis.clone(), y: axis, series, ..Chart::default() });
            }
        }
    }
}

#[test]
fn given_ranges_hold() {
    let mut chart = full();
    chart.series.truncate(4);
    chart.y.range = Some((2.0, 2.5));
    sound(&chart);
    for range in [(f64::NAN, 1.0), (1.0, 1.0), (5.0, 1.0), (0.0, f64::INFINITY)] {
        chart.y.range = Some(range);
        sound(&chart);
    }
}

#[test]
fn lines_end_at_the_edge() {
    let chart = Chart {
        x: Axis::linear("x").with_range(0.0, 10.0),
        y: Axis::linear("y").with_range(0.0, 1.0),
        series: vec![Series::new(
            "",
            1,
            Marks::Line(vec![(-5.0, 0.5), (5.0, 0.5), (6.0, 10.0), (7.0, 0.25), (7.5, -3.0)]),
        )],
        ..Chart::default()
    };
    // In from the left and out at the top, in again and out at the bottom; nothing in between.
    assert_eq!(sound(&chart).matches("class=\"k1\"").count(), 2);
    let outside = vec![Series::new("", 1, Marks::Line(vec![(-5.0, 2.0), (-1.0, 3.0), (20.0, 4.0)]))];
    assert!(sound(&Chart { series: outside, ..chart }).contains("no data"));
}
