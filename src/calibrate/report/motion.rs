//! How latent states move: step by step, block by block, and as paths.

use super::page::{Section, figure, section};
use super::words::{percent, short, steps};
use crate::calibrate::{Band, Drift, Findings, LoopDynamics, Paths};
use crate::plot::{Axis, Chart, Marks, PALETTE, Series};

fn known(b: &Band) -> bool {
    b.median.is_finite()
}

/// A band over steps as three series.
fn bands(values: &[Band], style: usize) -> Vec<Series> {
    let at = |i: usize| (i + 1) as f64;
    let wide = values.iter().enumerate().map(|(i, b)| (at(i), b.p10, b.p90)).collect();
    let narrow = values.iter().enumerate().map(|(i, b)| (at(i), b.p25, b.p75)).collect();
    let line: Vec<_> = values.iter().enumerate().map(|(i, b)| (at(i), b.median)).collect();
    let tips = values.iter().enumerate().map(|(i, b)| {
        format!("step {}: median {}, 10–90 %: {} to {}", i + 1, short(b.median), short(b.p10), short(b.p90))
    });
    let tips = tips.collect();
    vec![
        Series::new("10–90 % of tokens", style, Marks::Band(wide)),
        Series::new("25–75 %", style, Marks::Band(narrow)),
        Series::new("median", style, Marks::LinePoints(line)).with_tips(tips),
    ]
}

/// Whether a logarithmic axis shows more: everything positive, and over a decade apart.
fn wants_log(values: &[Band]) -> bool {
    let known: Vec<_> = values.iter().filter(|b| known(b)).collect();
    let (least, most) = known.iter().fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v.median), b.max(v.median)));
    known.iter().all(|b| b.p10 > 0.0) && most > 8.0 * least
}

/// Step by step, for every loop.
pub(super) fn steps_of_loops(findings: &Findings) -> Section {
    let loops = &findings.dynamics.loops;
    let mut drawn = String::new();
    for (i, l) in loops.iter().enumerate() {
        let charts = loop_charts(l);
        if charts.is_empty() {
            continue;
        }
        if loops.len() > 1 {
            drawn += &format!("<h3>Loop {} of {}</h3>", i + 1, loops.len());
        }
        drawn += &format!("<div class=\"charts\">{charts}</div>");
    }
    if drawn.is_empty() {
        drawn = "<p>Trajectories were not looked at.</p>".into();
    }
    section(
        "motion",
        "How the latent state moves",
        "Every loop step changes a token's latent state s by Δ. A model that can leave early shows steps and accelerations that \
         shrink; curves that stay level mean that there is no moment at which the state has settled. Bands hold the tokens in the \
         middle: a wide band means that tokens differ, which is what an exit rule lives on.",
        &drawn,
    )
}

fn loop_charts(l: &LoopDynamics) -> String {
    let kinds: [(&str, &str, &[Band], usize, &str); 5] = [
        (
            "Length of a step",
            "‖Δ‖ / ‖s‖",
            &l.step_norm,
            2,
            "How far a step goes, as a share of the state. The rule step-norm watches this.",
        ),
        (
            "Acceleration",
            "‖Δ − previous Δ‖ / ‖s‖",
            &l.acceleration,
            1,
            "How much a step differs from the one before it. The rule acceleration watches this.",
        ),
        ("Angle between steps", "degrees", &l.angle, 3, "0 is straight on, 90 orthogonal (a spiral), 180 to and fro."),
        (
            "Curvature",
            "without a scale",
            &l.curvature,
            4,
            "How sharply the path bends, relative to the size of the state.",
        ),
        ("Size of the state", "‖s‖", &l.state_norm, 6, "A state that grows without end makes its steps look small."),
    ];
    let mut drawn = String::new();
    for (title, label, values, style, note) in kinds {
        if !values.iter().any(known) {
            continue;
        }
        let log = wants_log(values) && label != "degrees";
        let mut y = Axis { log, ..Axis::linear(if log { format!("{label} (logarithmic)") } else { label.into() }) };
        let mut series = bands(values, style);
        if label == "degrees" {
            y = y.with_range(0.0, 180.0);
            series.push(Series::new("orthogonal", 0, Marks::Horizontal(90.0)));
        }
        let chart = Chart { title: title.into(), x: Axis::steps("loop step"), y, series, size: (600, 360) };
        drawn += &figure(&chart, note);
    }
    drawn
}

/// At most five of the steps that were looked at: the first, the last, and between them closer at the start.
fn looked_at(drift: &[Drift]) -> Vec<usize> {
    let mut all: Vec<_> = drift.iter().filter_map(|d| d.step).collect();
    all.sort_unstable();
    all.dedup();
    if all.len() <= 5 {
        return all;
    }
    let last = all.len() - 1;
    let pick = |share: f64| all[(libm::pow(last as f64 + 1.0, share) - 1.0).round() as usize];
    let mut few: Vec<_> = [0.0, 0.25, 0.5, 0.75, 1.0].map(pick).to_vec();
    few.dedup();
    few
}

/// The two scales: drift from block to block, refinement inside the loop.
pub(super) fn scales(findings: &Findings) -> Option<Section> {
    let (drift, loops) = (&findings.dynamics.drift, &findings.dynamics.loops);
    let moved = drift.iter().filter(|d| known(&d.moved)).count();
    if moved == 0 {
        return None;
    }
    let refined = loops.iter().flat_map(|l| &l.step_norm);
    let all: Vec<_> = drift.iter().map(|d| &d.moved).chain(refined).filter(|b| known(b)).collect();
    let positive = |v: f64| v.is_finite() && v > 0.0;
    let least = all.iter().map(|b| b.p10).filter(|v| positive(*v)).fold(f64::INFINITY, f64::min);
    let most = all.iter().map(|b| b.p90).filter(|v| positive(*v)).fold(0.0, f64::max);
    // Both charts have the same height, so that they can be compared by eye.
    let y = || Axis::log("share of the state").with_range(least / 1.2, most * 1.2);
    let mut drawn = figure(
        &Chart {
            title: "Drift: how far each block moves the state".into(),
            x: Axis::steps("block"),
            y: y(),
            series: by_part(drift, |d| d.moved),
            size: (600, 400),
        },
        "Bars hold the tokens from 10 to 90 %.",
    );
    let mut series = Vec::new();
    for (i, l) in loops.iter().enumerate() {
        let name = if loops.len() > 1 { format!("loop {}", i + 1) } else { "median".into() };
        let band = l.step_norm.iter().enumerate().map(|(k, b)| ((k + 1) as f64, b.p10, b.p90)).collect();
        let line = l.step_norm.iter().enumerate().map(|(k, b)| ((k + 1) as f64, b.median)).collect();
        series.push(Series::new(
            if loops.len() > 1 { name.clone() } else { "10–90 %".into() },
            i + 1,
            Marks::Band(band),
        ));
        series.push(Series::new(name, i + 1, Marks::LinePoints(line)));
    }
    let refinement = Chart {
        title: "Refinement: how far each loop step moves it".into(),
        x: Axis::steps("loop step"),
        y: y(),
        series,
        size: (600, 400),
    };
    drawn += &figure(&refinement, "The same scale as for the drift.");
    if drift.iter().any(|d| known(&d.cosine)) {
        let y = Axis::linear("cosine").with_range(-1.0, 1.0);
        let mut series = by_part(drift, |d| d.cosine);
        series.push(Series::new("orthogonal", 0, Marks::Horizontal(0.0)));
        let chart = Chart {
            title: "Direction: a block's push and that of the block before".into(),
            x: Axis::steps("block"),
            y,
            series,
            size: (600, 400),
        };
        drawn += &figure(&chart, "1 is the same direction, 0 orthogonal, −1 back.");
    }
    Some(section(
        "scales",
        "Two scales of motion",
        "Blocks push the state far; a whole pass through the loop, late in the loop, moves it little, since \
         the pushes of its blocks nearly cancel. Where the second is far below the first, loop steps refine a state that blocks have placed, and an exit \
         loses little (Two-Scale Latent Dynamics for Recurrent-Depth Transformers, arXiv:2509.23314).",
        &format!("{}<div class=\"charts\">{drawn}</div>", ratio(drift, loops)),
    ))
}

/// The two scales as one number.
fn ratio(drift: &[Drift], loops: &[LoopDynamics]) -> String {
    let mut core: Vec<_> =
        drift.iter().filter(|d| d.step.is_some() && known(&d.moved)).map(|d| d.moved.median).collect();
    core.sort_by(f64::total_cmp);
    let last = loops.last().and_then(|l| l.step_norm.iter().enumerate().rev().find(|(_, b)| known(b)));
    let (Some(&block), Some((k, step))) = (core.get(core.len() / 2), last) else { return String::new() };
    let times = block / step.median;
    let times = if times.is_finite() { format!(", {} times as far", short(times)) } else { String::new() };
    format!(
        "<p>The median block of the loop moves the state by {}{times} as the whole of step {} does ({}).</p>",
        percent(block),
        k + 1,
        percent(step.median)
    )
}

/// A number of every block: prelude, coda, and the core at a few of its steps.
fn by_part(drift: &[Drift], of: impl Fn(&Drift) -> Band) -> Vec<Series> {
    let mut series = Vec::new();
    let mut add = |name: String, style: usize, aside: f64, blocks: Vec<&Drift>| {
        let at = |d: &Drift| d.block as f64 + aside;
        let points: Vec<_> = blocks.iter().map(|d| (at(d), of(d).median)).collect();
        if points.is_empty() {
            return;
        }
        let errors = blocks.iter().map(|d| (at(d), of(d).p10, of(d).p90)).collect();
        let tips = blocks.iter().map(|d| format!("block {}, {name}: median {}", d.block, short(of(d).median)));
        let tips = tips.collect();
        series.push(Series::new(&name, style, Marks::Errors(errors)));
        series.push(Series::new(name, style, Marks::LinePoints(points)).with_tips(tips));
    };
    let outside = |part: &str| drift.iter().filter(|d| d.step.is_none() && d.part == part).collect::<Vec<_>>();
    add("prelude".into(), 0, 0.0, outside("prelude"));
    let looked_at = looked_at(drift);
    // Side by side, so that one step's bars do not hide another's.
    let aside = |i: usize| 0.11 * (i as f64 - (looked_at.len() - 1) as f64 / 2.0);
    for (i, &step) in looked_at.iter().enumerate() {
        add(format!("core, step {step}"), i + 1, aside(i), drift.iter().filter(|d| d.step == Some(step)).collect());
    }
    add("coda".into(), 6, 0.0, outside("coda"));
    add(
        "other blocks".into(),
        0,
        0.0,
        drift.iter().filter(|d| d.step.is_none() && d.part != "prelude" && d.part != "coda").collect(),
    );
    series
}

/// Paths of a few tokens.
pub(super) fn paths(paths: &Paths) -> Option<Section> {
    let finite = |p: &&[f64; 2]| p.iter().all(|v| v.is_finite());
    let tokens: Vec<_> = paths.tokens.iter().filter(|t| t.points.iter().any(|p| finite(&p))).collect();
    if tokens.is_empty() {
        return None;
    }
    let share = |i: usize| match paths.explained[i].is_finite() {
        true => format!(" ({} of the variance)", percent(paths.explained[i])),
        false => String::new(),
    };
    let mut series = Vec::new();
    let mut starts = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let points: Vec<_> = token.points.iter().map(|p| (p[0], p[1])).collect();
        starts.extend(token.points.iter().find(finite).map(|p| (p[0], p[1])));
        let name = format!("{} at {}", super::heat::visible(&token.text), token.position);
        let tips = (0..points.len()).map(|k| format!("{name}: after {}", steps(k as f64))).collect();
        // Those past the palette stay in the background.
        let marks = if i < PALETTE { Marks::LinePoints(points) } else { Marks::Thin(points) };
        series.push(Series::new(name, i + 1, marks).with_tips(tips));
    }
    series.push(Series::new("start", 0, Marks::Points(starts)));
    let chart = Chart {
        title: "Paths of a few tokens through the loop".into(),
        x: Axis::linear(format!("first direction{}", share(0))),
        y: Axis::linear(format!("second direction{}", share(1))),
        series,
        size: (900, 560),
    };
    let both: f64 = paths.explained.iter().sum();
    let seen = match both.is_finite() {
        true => format!(
            "The picture shows {} of all variance; what happens in the other directions is not to be seen.",
            percent(both)
        ),
        false => String::new(),
    };
    Some(section(
        "paths",
        "Paths in the plane",
        "Latent states of a few tokens, projected onto the two directions in which they spread most (principal components), one marker \
         for each loop step. A path that curls into a point settles there; one that goes round, or between two places, never does.",
        &format!("<div class=\"charts wide\">{}</div>", figure(&chart, &seen)),
    ))
}
