//! Lines that leave the chart, cut off at its edge.

use super::axis::Scale;

/// The parts of a line through `points` that lie on the chart. Broken where a point cannot be shown at all.
pub(super) fn clip(points: &[(f64, f64)], x: &Scale, y: &Scale) -> Vec<Vec<(f64, f64)>> {
    let mut parts: Vec<Vec<(f64, f64)>> = Vec::new();
    let known = |p: &(f64, f64)| x.shows(p.0) && y.shows(p.1);
    for run in points.split(|p| !known(p)) {
        if let [alone] = run
            && x.has(alone.0)
            && y.has(alone.1)
        {
            parts.push(vec![*alone]);
        }
        let mut open = false;
        for (a, b) in run.windows(2).map(|w| (w[0], w[1])) {
            let Some((from, to)) = inside(a, b, x, y) else {
                open = false;
                continue;
            };
            match parts.last_mut().filter(|_| open) {
                Some(part) => part.push(to),
                None => parts.push(vec![from, to]),
            }
            open = to == b;
        }
    }
    parts
}

/// The part of a stretch that lies on the chart (Liang and Barsky, ACM TOG 3, 1984), in the coordinates of the paper, where it is
/// straight; ends that lie on the chart stay what they are to the bit.
fn inside(a: (f64, f64), b: (f64, f64), x: &Scale, y: &Scale) -> Option<((f64, f64), (f64, f64))> {
    let (mut from, mut to) = (0.0f64, 1.0f64);
    let ends = [(x, a.0, b.0), (y, a.1, b.1)].map(|(scale, a, b)| (scale, scale.place(a), scale.place(b)));
    for (scale, a, b) in ends {
        let (low, high) = scale.edges();
        if a == b {
            if !(low..=high).contains(&a) {
                return None;
            }
            continue;
        }
        let cuts = ((low - a) / (b - a), (high - a) / (b - a));
        from = from.max(cuts.0.min(cuts.1));
        to = to.min(cuts.0.max(cuts.1));
    }
    if from > to {
        return None;
    }
    let at = |share: f64| {
        let along = |(scale, a, b): (&Scale, f64, f64)| scale.value(a + (b - a) * share);
        (along(ends[0]), along(ends[1]))
    };
    Some((if from == 0.0 { a } else { at(from) }, if to == 1.0 { b } else { at(to) }))
}
