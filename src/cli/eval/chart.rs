//! Accuracy against loop steps, as a chart.

use super::score::{Outcome, Tally, steps_words};
use crate::plot::{Axis, Chart, Marks, Series};

/// A class of questions that has a line of its own.
struct Class<'a> {
    name: String,
    of: Box<dyn Fn(&Outcome) -> Tally + 'a>,
}

/// By reasoning steps needed where the file tells them, else by kind.
fn classes(outcome: &Outcome) -> Vec<Class<'_>> {
    let by_steps = outcome.steps_needed().into_iter().map(|steps| Class {
        name: steps
            .map_or_else(|| steps_words(None), |n| format!("{n} reasoning step{}", if n == 1 { "" } else { "s" })),
        of: Box::new(move |o: &Outcome| o.of_steps(steps)),
    });
    let by_steps: Vec<_> = by_steps.collect();
    if !by_steps.is_empty() {
        return by_steps;
    }
    let by_kind = outcome.kinds().into_iter().map(|kind| Class {
        name: if kind.is_empty() { "all questions".into() } else { kind.to_owned() },
        of: Box::new(move |o: &Outcome| o.of_kind(kind)),
    });
    by_kind.collect()
}

/// Fixed depths are lines, one for each class of questions; exit rules are markers at the mean loop steps of all tokens of the
/// class, around a line that tells the rule.
pub(super) fn chart(name: &str, outcomes: &[Outcome]) -> Chart {
    let classes = outcomes.first().map(classes).unwrap_or_default();
    let (exits, mut fixed): (Vec<_>, Vec<_>) = outcomes.iter().partition(|o| o.exits());
    fixed.sort_by_key(|o| o.max_steps);
    let place = |tally: &Tally| (tally.mean_steps(), 100.0 * tally.accuracy());
    let tip = |o: &Outcome, class: &Class<'_>, tally: &Tally| {
        format!(
            "{}\n{}: {} of {} right\n{:.2} loop steps per token, {:.2} of the answers' tokens",
            o.rule,
            class.name,
            tally.right,
            tally.asked,
            tally.mean_steps(),
            tally.mean_steps_answer()
        )
    };
    let drawn = |of: &[&Outcome], class: &Class<'_>| -> (Vec<(f64, f64)>, Vec<String>) {
        of.iter().map(|o| ((class.of)(o), o)).map(|(t, o)| (place(&t), tip(o, class, &t))).unzip()
    };
    // Rules first, so that what was measured lies on top.
    let mut series: Vec<_> =
        exits.iter().map(|o| Series::new(o.rule.to_string(), 0, Marks::Vertical(o.total().mean_steps()))).collect();
    for (i, class) in classes.iter().enumerate() {
        let (points, tips) = drawn(&fixed, class);
        // Markers are the rules', unless there is no line to be seen without them.
        let marks = if exits.is_empty() || points.len() < 2 { Marks::LinePoints(points) } else { Marks::Line(points) };
        series.push(Series::new(&class.name, i + 1, marks).with_tips(tips));
    }
    for (i, class) in classes.iter().enumerate().filter(|_| !exits.is_empty()) {
        let (points, tips) = drawn(&exits, class);
        series.push(Series::new(&class.name, i + 1, Marks::Points(points)).with_tips(tips));
    }
    let shares = outcomes.iter().flat_map(|o| classes.iter().map(|class| 100.0 * (class.of)(o).accuracy()));
    let least = shares.filter(|share| share.is_finite()).fold(80.0, f64::min);
    // A multiple of a fifth; the margin keeps lines along the edges whole.
    let bottom = 20.0 * libm::floor(least / 20.0);
    let rules = if exits.is_empty() { "" } else { " (markers: exit rules)" };
    Chart {
        title: format!("{name}: right answers{rules}"),
        x: Axis { whole: true, ..Axis::log("mean loop steps per token, prompts included") },
        y: Axis::linear("right answers (%)").with_range(bottom - 1.5, 101.5),
        series,
        size: (640, 420),
    }
}

#[cfg(test)]
mod tests {
    use super::super::score::tests::outcome;
    use super::*;
    use crate::plot::{STYLE, standalone};

    const CELLS: [(&str, Option<usize>, usize, usize); 4] =
        [("path", Some(1), 9, 10), ("path", Some(2), 3, 10), ("sum", Some(1), 10, 10), ("sum", Some(3), 5, 10)];

    /// Lines of a style, without those of the legend.
    fn lines(chart: &Chart, style: usize) -> usize {
        chart.series.iter().filter(|s| s.style == style && matches!(s.marks, Marks::Line(_))).count()
    }

    #[test]
    fn a_line_for_each_class_and_markers_for_rules() {
        let outcomes = ["fixed:4", "fixed:1", "acceleration", "fixed:2"].map(|rule| outcome(rule, &CELLS));
        let chart = chart("m", &outcomes);
        assert_eq!([1, 2, 3, 4].map(|style| lines(&chart, style)), [1, 1, 1, 0]);
        let Marks::Line(points) = &chart.series[1].marks else { panic!("{:?}", chart.series[1]) };
        assert_eq!(*points, [(1.0, 95.0), (2.0, 95.0), (4.0, 95.0)]);
        assert_eq!(chart.series[0].marks, Marks::Vertical(outcomes[2].total().mean_steps()));
        assert_eq!(chart.series[5].marks, Marks::Points(vec![(4.0, 30.0)]));
        assert_eq!(chart.y.range, Some((18.5, 101.5)));
        let file = standalone(&chart).replace(STYLE, "");
        assert!(file.contains("1 reasoning step\n") && file.contains("acceleration:0.05,hits=2"), "{file}");
    }

    #[test]
    fn without_rules_without_depths_without_classes() {
        let fixed = ["fixed:1", "fixed:2"].map(|rule| outcome(rule, &CELLS));
        assert!(chart("m", &fixed).series.iter().all(|s| matches!(s.marks, Marks::LinePoints(_))));
        let exits = [outcome("kl", &[("a", None, 1, 2), ("b", None, 0, 2)])];
        let drawn = chart("m", &exits);
        assert_eq!(drawn.series.iter().map(|s| s.name.as_str()).filter(|n| *n == "a").count(), 2);
        standalone(&drawn);
        assert!(standalone(&chart("m", &[])).contains("no data"));
        assert_eq!(chart("m", &[outcome("fixed:2", &[("", None, 1, 2)])]).series[0].name, "all questions");
    }
}
