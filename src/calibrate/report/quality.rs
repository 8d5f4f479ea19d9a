//! Quality against what it costs: depths, rules, and where tokens leave.

use super::advice::published;
use super::family::{Family, families};
use super::page::{Section, figure, section};
use super::words::{change, estimate, fixed, percent, short};
use crate::calibrate::{BEARABLE, Findings, Point, Profile};
use crate::plot::{Axis, Chart, Marks, Series};

/// Loss above which a chart of losses ends, in per cent: what is worse is of no use.
const LOSS: f64 = 20.0;
/// Height of a close-up in nats, about 10 % of perplexity.
const CLOSE: f64 = 0.1;

fn point_tip(profile: &Profile, point: &Point) -> String {
    let mut tip = format!(
        "{}\n{} steps, cross-entropy {}, perplexity {} ({})",
        point.rule,
        fixed(point.mean_steps, 2),
        estimate(point.cross_entropy),
        short(point.perplexity.value),
        change(profile.loss(point))
    );
    if let Some(t) = point.timing {
        tip += &format!(", {} ms", short(t.ms_per_token));
    }
    tip
}

/// Cross-entropy and perplexity against depth.
pub(super) fn depths(findings: &Findings) -> Section {
    let profile = &findings.profile;
    let at = |p: &Point| p.mean_steps;
    let tips: Vec<_> = profile.depths.iter().map(|p| point_tip(profile, p)).collect();
    let markers = |series: &mut Vec<Series>| {
        let published = profile.published_steps as f64;
        let full = profile.full_depth as f64;
        if published == full {
            series.push(Series::new(format!("published and full depth: {full}"), 0, Marks::Vertical(full)));
        } else {
            series.push(Series::new(format!("published: {published}"), 0, Marks::Vertical(published)));
            series.push(Series::new(format!("full depth: {full}"), 0, Marks::Vertical(full)));
        }
    };
    let spread = profile.depths.iter().map(|p| {
        let ce = p.cross_entropy;
        (at(p), ce.value - ce.error, ce.value + ce.error)
    });
    let line = profile.depths.iter().map(|p| (at(p), p.cross_entropy.value)).collect();
    let mut series = vec![
        Series::new("± one standard error", 1, Marks::Errors(spread.collect())),
        Series::new("cross-entropy", 1, Marks::LinePoints(line)).with_tips(tips.clone()),
    ];
    markers(&mut series);
    let steps = || Axis::steps("loop steps of every token");
    let entropy = Chart {
        title: "Cross-entropy against depth".into(),
        x: steps(),
        y: Axis::linear("nats per token"),
        series,
        ..Chart::default()
    };
    let mut drawn = figure(&entropy, "");
    let mut lacks = "";
    if published(profile).is_some() {
        drawn += &losses(profile, markers, tips, steps());
    } else {
        lacks = "<p>The published depth was not measured, so that no losses can be counted from it.</p>";
    }
    section(
        "depth",
        "Quality against depth",
        "Every token takes the same number of loop steps here; lower is better, and where the curve is flat more steps buy nothing. \
         Error bars are those of the text, which all depths share: differences between depths are surer than the bars look.",
        &format!("<div class=\"charts\">{drawn}</div>{lacks}"),
    )
}

fn losses(profile: &Profile, markers: impl Fn(&mut Vec<Series>), tips: Vec<String>, x: Axis) -> String {
    let lost: Vec<_> = profile.depths.iter().map(|p| (p.mean_steps, 100.0 * profile.text_loss(p))).collect();
    let apart: Vec<_> = profile.depths.iter().map(|p| (p.mean_steps, 100.0 * libm::expm1(p.kl.value))).collect();
    let finite = || lost.iter().chain(&apart).map(|p| p.1).filter(|l| l.is_finite());
    let (least, most) = (finite().fold(0.0, f64::min), finite().fold(0.0, f64::max));
    let mut y = Axis::linear("loss (%)");
    let mut note = String::new();
    if most > 2.0 * LOSS {
        y = y.with_range(least - 2.0, LOSS);
        let hidden = lost.iter().zip(&apart).filter(|(a, b)| a.1.max(b.1) > LOSS).count();
        note = format!("Depths that lose more than {LOSS} % are not in the picture: {hidden} of {}.", lost.len());
    }
    let mut series = vec![
        Series::new("perplexity over the published depth's", 2, Marks::LinePoints(lost)).with_tips(tips),
        Series::new("by KL from full depth", 3, Marks::LinePoints(apart)),
        Series::new("1 %", 0, Marks::Horizontal(1.0)),
    ];
    markers(&mut series);
    figure(&Chart { title: "What fewer steps lose".into(), x, y, series, ..Chart::default() }, &note)
}

/// All rules against each other, in steps and in time, and where tokens leave.
pub(super) fn rules(findings: &Findings) -> Section {
    let profile = &findings.profile;
    let families = families(findings);
    let (mut drawn, mut lacks) = (String::new(), "");
    let in_steps = pareto(profile, &families, "mean loop steps per token", &|p| Some(p.mean_steps), true);
    drawn += &with_close_up(in_steps, "Cross-entropy against steps");
    if profile.points().any(|p| p.timing.is_some()) {
        let time = |p: &Point| p.timing.map(|t| t.ms_per_token);
        drawn += &with_close_up(pareto(profile, &families, "ms per token", &time, false), "Cross-entropy against time");
    } else {
        lacks = "<p>Times per token were not measured.</p>";
    }
    section(
        "rules",
        "Rules against each other",
        "An exit rule lets easy tokens leave early; a rule is better than another where its points lie further to the left at the same \
         height, and worth having where they lie left of the fixed depths. Markers are exact runs; thin lines are estimates from \
         the deepest run, and tell only where to look.",
        &format!("<div class=\"charts\">{drawn}</div>{lacks}{}", leaving(profile, &families)),
    )
}

fn pareto(
    profile: &Profile,
    families: &[Family],
    label: &str,
    cost: &dyn Fn(&Point) -> Option<f64>,
    screened: bool,
) -> Chart {
    let of = |points: &mut dyn Iterator<Item = &Point>| -> (Vec<(f64, f64)>, Vec<String>) {
        points.filter_map(|p| Some(((cost(p)?, p.cross_entropy.value), point_tip(profile, p)))).unzip()
    };
    let (fixed, tips) = of(&mut profile.depths.iter());
    let mut series = vec![Series::new("fixed depth", 0, Marks::LinePoints(fixed)).with_tips(tips)];
    for family in families {
        if screened && !family.screened.is_empty() {
            let mut curve: Vec<_> = family.screened.iter().map(|s| (s.mean_steps, s.cross_entropy)).collect();
            curve.sort_by(|a, b| a.0.total_cmp(&b.0));
            series.push(Series::new(&family.name, family.style, Marks::Thin(curve)));
        }
        let (exact, tips) = of(&mut family.exact.iter().copied());
        if !exact.is_empty() {
            series.push(Series::new(&family.name, family.style, Marks::Points(exact)).with_tips(tips));
        }
    }
    Chart { x: Axis::linear(label), y: Axis::linear("nats per token"), series, size: (600, 440), ..Chart::default() }
}

/// The chart, and its lower end once more where that is too small to see.
fn with_close_up(chart: Chart, title: &str) -> String {
    let points: Vec<_> = chart.series.iter().filter_map(|s| points(&s.marks)).flatten().copied().collect();
    let points: Vec<_> = points.into_iter().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    let least = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let whole = Chart { title: title.into(), ..chart.clone() };
    if most - least <= 3.0 * CLOSE {
        return figure(&whole, "");
    }
    let near = || points.iter().filter(|p| p.1 <= least + CLOSE).map(|p| p.0);
    let (from, to) = (near().fold(f64::INFINITY, f64::min), near().fold(f64::NEG_INFINITY, f64::max));
    let pad = ((to - from) * 0.04).max(0.05);
    let close = Chart {
        title: format!("{title}: the best {CLOSE} nats"),
        x: chart.x.with_range(from - pad, to + pad),
        y: chart.y.with_range(least - CLOSE * 0.06, least + CLOSE),
        ..chart
    };
    figure(&whole, "") + &figure(&close, "")
}

fn points(marks: &Marks) -> Option<&Vec<(f64, f64)>> {
    match marks {
        Marks::Points(p) | Marks::LinePoints(p) => Some(p),
        _ => None,
    }
}

/// How many tokens take how many steps, for one exact point of each rule.
fn leaving(profile: &Profile, families: &[Family]) -> String {
    let typical: Vec<_> = families.iter().filter_map(|f| Some((f.style, typical(profile, f)?))).collect();
    if typical.is_empty() {
        return String::new();
    }
    let deepest =
        typical.iter().filter_map(|(_, p)| p.steps.iter().rfind(|s| *s.1 > 0)).map(|s| *s.0).max().unwrap_or(1);
    let chart = |&(style, point): &(usize, &Point)| {
        let all: u64 = point.steps.values().sum();
        let share = |n: u64| n as f64 / all as f64;
        let bars: Vec<_> = point.steps.iter().map(|(&k, &n)| (k as f64, 100.0 * share(n))).collect();
        let tips = point.steps.iter().map(|(k, &n)| format!("{k} steps: {} of tokens", percent(share(n)))).collect();
        let chart = Chart {
            title: point.rule.to_string(),
            x: Axis::steps("loop steps").with_range(0.4, deepest as f64 + 0.6),
            y: Axis::linear("share of tokens (%)"),
            series: vec![
                Series::new("", style, Marks::Bars(bars)).with_tips(tips),
                Series::new(format!("mean {}", fixed(point.mean_steps, 1)), 0, Marks::Vertical(point.mean_steps)),
            ],
            size: (380, 240),
        };
        let capped = match point.capped {
            c if c > 0.0 => format!("{} of tokens ran to the cap.", percent(c)),
            _ => String::new(),
        };
        figure(&chart, &capped)
    };
    let drawn: String = typical.iter().map(chart).collect();
    format!(
        "<h3>Where tokens leave</h3><p class=\"how\">One setting of each rule: the cheapest that loses at most 1 %, or else its best. \
         A single tall bar means that the rule does what a fixed depth does; a wide spread, that it tells easy tokens from hard \
         ones.</p><div class=\"charts small\">{drawn}</div>"
    )
}

/// The point of a rule that stands for it.
fn typical<'a>(profile: &Profile, family: &Family<'a>) -> Option<&'a Point> {
    let counted = || family.exact.iter().copied().filter(|p| p.steps.values().any(|&n| n > 0));
    let bearable = counted().filter(|p| profile.loss(p) <= BEARABLE);
    let cheapest = bearable.min_by(|a, b| profile.price(a).total_cmp(&profile.price(b)));
    cheapest.or_else(|| counted().min_by(|a, b| a.perplexity.value.total_cmp(&b.perplexity.value)))
}
