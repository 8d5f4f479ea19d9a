//! Thresholds: which there are, what they would do, and which of them are worth running.

use super::super::Screened;
use super::super::score::Moments;
use super::deep::DeepWindow;
use crate::exit::{ExitRule, Signal};

/// Thresholds that are tried of every rule.
const GRID: usize = 32;
/// Losses in perplexity at which the cheapest setting of a rule is run exactly, most wanted first.
const WANTED: [f64; 8] = [0.01, 0.002, 0.05, 0.005, 0.02, 0.1, 0.001, 0.03];

/// A rule of every kind that a model can follow, with its usual number of hits.
pub(super) fn settings(kind: ExitRule, deep: &[DeepWindow], number: usize, steps: usize) -> Vec<ExitRule> {
    let hits: &[usize] = match kind.name() {
        "argmax" => &[1, 2, 3, 4, 5, 6, 8],
        name if name.starts_with("acceleration") => &[1, 2],
        _ => &[1],
    };
    let kind = kind.with_max(steps);
    let each = |&hits: &usize| {
        let rule = kind.with_hits(hits);
        let thresholds = match rule.threshold() {
            None => return vec![rule],
            Some(_) => grid(deep.iter().flat_map(|w| w.statistics[number].iter().copied()), kind.signal()),
        };
        thresholds.into_iter().filter_map(|x| rule.with_threshold(x).ok()).collect()
    };
    hits.iter().flat_map(each).collect()
}

/// Thresholds between the extremes of a statistic: evenly spaced in logarithms, to two digits. A gate's are probabilities.
fn grid(values: impl Iterator<Item = f32>, signal: Signal) -> Vec<f32> {
    if signal == Signal::Gate {
        return (1..20).map(|i| i as f32 / 20.0).collect();
    }
    let mut values: Vec<f32> = values.filter(|x| x.is_finite() && *x > 0.0).collect();
    values.sort_by(f32::total_cmp);
    let at = |share: f64| values.get((share * values.len() as f64) as usize).or(values.last()).copied();
    let (Some(low), Some(high)) = (at(0.005), at(0.995)) else { return Vec::new() };
    let (low, high) = (libm::log(f64::from(low)), libm::log(f64::from(high)));
    let point = |i: usize| two_digits(libm::exp(low + (high - low) * i as f64 / (GRID - 1) as f64));
    let mut grid: Vec<f32> = (0..GRID).map(point).filter(|x| x.is_finite() && *x > 0.0).collect();
    grid.dedup();
    grid
}

fn two_digits(x: f64) -> f32 {
    format!("{x:.1e}").parse().unwrap_or(f32::NAN)
}

/// What a rule would do on trajectories of the deepest run.
pub(super) fn screen(rule: ExitRule, deep: &[DeepWindow], number: usize) -> Screened {
    let [mut nll, mut kl, mut depth] = [Moments::default(); 3];
    let mut memory = rule.memory(0);
    for window in deep {
        let steps = window.nll.len() / window.rows;
        for row in 0..window.rows {
            memory.reset();
            let values = window.statistics[number].iter().skip(row).step_by(window.rows);
            let leaves = (1..).zip(values).find(|&(step, &value)| rule.check_value(&mut memory, step, value));
            let step = leaves.map_or(steps, |(step, _)| step);
            nll.add(window.nll[(step - 1) * window.rows + row]);
            kl.add(window.kl[(step - 1) * window.rows + row]);
            depth.add(step as f64);
        }
    }
    Screened { rule, mean_steps: depth.mean().value, cross_entropy: nll.mean().value, kl: kl.mean().value }
}

/// Up to `most` settings that are worth running: of each kind of rule the cheapest that loses no more than this and that, in the sense of
/// [`Profile::loss`](super::super::Profile::loss), by the cross-entropy `reference` of the published depth.
pub(super) fn choose(screened: &[Screened], reference: f64, most: usize) -> Vec<ExitRule> {
    let mut chosen: Vec<ExitRule> = Vec::new();
    for loss in WANTED.iter().take(most) {
        let limit = reference + libm::log1p(*loss);
        let within = screened.iter().filter(|s| s.cross_entropy <= limit && libm::expm1(s.kl) <= *loss);
        let cheapest = within
            .min_by(|a, b| a.mean_steps.total_cmp(&b.mean_steps).then(a.cross_entropy.total_cmp(&b.cross_entropy)));
        if let Some(s) = cheapest
            && !chosen.contains(&s.rule)
        {
            chosen.push(s.rule);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two positions, three steps; the first settles at once.
    fn window() -> DeepWindow {
        DeepWindow {
            rows: 2,
            nll: vec![1.0, 4.0, 1.0, 3.0, 1.0, 2.0],
            kl: vec![0.0, 0.6, 0.0, 0.4, 0.0, 0.0],
            statistics: vec![vec![0.01, 0.9, 0.01, 0.5, 0.01, 0.2]],
        }
    }

    #[test]
    fn screening_reads_each_position_where_it_leaves() {
        let deep = [window()];
        let of = |text: &str| screen(text.parse().unwrap(), &deep, 0);
        let found = of("step-norm:0.1,max=3");
        assert_eq!((found.mean_steps, found.cross_entropy), (2.0, 1.5));
        let found = of("step-norm:0.6,max=3");
        assert_eq!((found.mean_steps, found.cross_entropy), (1.5, 2.0));
        let found = of("step-norm:1,max=3");
        assert_eq!((found.mean_steps, found.cross_entropy, found.kl), (1.0, 2.5, 0.3));
        let found = of("step-norm:0.1,hits=2,max=3");
        assert_eq!((found.mean_steps, found.cross_entropy), (2.5, 1.5));
    }

    #[test]
    fn grids_lie_between_the_extremes_in_two_digits() {
        let values = (0..1000).map(|i| 10f32.powf(-3.0 + i as f32 / 500.0));
        let found = grid(values.chain([f32::NAN, -1.0, 0.0, f32::INFINITY]), Signal::Latent);
        assert!(found.len() > 20 && found.is_sorted(), "{found:?}");
        assert!(found[0] >= 0.001 && *found.last().unwrap() <= 0.1);
        assert!(found.iter().all(|&x| two_digits(f64::from(x)) == x));
        assert!(grid([f32::NAN].into_iter(), Signal::Latent).is_empty());
        assert_eq!(grid([].into_iter(), Signal::Gate).len(), 19);
    }

    #[test]
    fn the_cheapest_within_each_loss_is_chosen() {
        let of = |threshold: &str, mean_steps, cross_entropy| Screened {
            rule: format!("step-norm:{threshold}").parse().unwrap(),
            mean_steps,
            cross_entropy,
            kl: if cross_entropy < 2.0 { 0.5 } else { 0.0 },
        };
        // The last has the lowest cross-entropy, and says something else than the deepest.
        let all = [
            of("0.1", 9.0, 2.0),
            of("0.2", 4.0, 2.009),
            of("0.3", 5.0, 2.008),
            of("0.4", 2.0, 2.04),
            of("0.5", 1.0, 3.0),
            of("0.6", 1.0, 1.9),
        ];
        let names = |most| choose(&all, 2.0, most).iter().map(|r| r.threshold().unwrap()).collect::<Vec<_>>();
        assert_eq!(names(1), [0.2], "the cheapest within 1 %");
        assert_eq!(names(3), [0.2, 0.1, 0.4]);
        assert_eq!(names(9), [0.2, 0.1, 0.4], "each once, and none that loses too much");
    }
}
