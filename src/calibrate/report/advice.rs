//! What the numbers mean, in sentences.

use super::words::{change, estimate, fixed, percent, short, steps};
use crate::calibrate::{BEARABLE, Dynamics, Point, Profile};

/// Perplexities that differ by less are the same for all that the reader needs to know.
const SAME: f64 = 0.005;
/// Costs that differ by less are the same: thresholds are not spaced more finely.
const EQUAL_COST: f64 = 0.03;
/// States whose last step is shorter than this share of them have settled: the default threshold of `acceleration`.
const SETTLED: f64 = 0.05;

/// What to do with a model, as sentences that stand by themselves, made from the numbers: the cheapest setting that loses at most
/// 1 % of perplexity, what depth buys, whether the acceleration rule is worth it, and whether latent states settle (if `dynamics` are
/// given). For people: in plain text, not escaped.
pub fn recommendation(profile: &Profile, dynamics: Option<&Dynamics>) -> Vec<String> {
    let mut said = vec![choice(profile)];
    said.extend(depth(profile));
    said.extend(acceleration(profile));
    said.extend(dynamics.map(settling).unwrap_or_default());
    said
}

/// The point at the published number of steps.
pub(super) fn published(profile: &Profile) -> Option<&Point> {
    profile.depths.iter().find(|p| p.rule.max_steps() == Some(profile.published_steps))
}

/// The setting to use: the cheapest that loses at most 1 %.
pub(super) fn chosen(profile: &Profile) -> Option<&Point> {
    profile.cheapest(BEARABLE).filter(|_| profile.reference().is_finite())
}

fn choice(profile: &Profile) -> String {
    let n = profile.published_steps;
    let (Some(point), Some(reference)) = (chosen(profile), published(profile)) else {
        return format!(
            "The published depth of {} was not measured, so that there is nothing to count losses from and nothing to recommend.",
            steps(n as f64)
        );
    };
    let loss = profile.text_loss(point);
    if point.rule == reference.rule {
        return format!(
            "Use the published depth, `--exit-rule {}`: nothing cheaper stays within a loss of 1 % (perplexity {}).",
            point.rule,
            estimate(point.perplexity)
        );
    }
    let mut text = format!("Use `--exit-rule {}`: {} per token", point.rule, steps(round(point.mean_steps)));
    if !point.steps.is_empty() && point.steps.len() > 1 {
        text += " on average";
    }
    text += &format!(" instead of the published {n}{}", saved(point.mean_steps, n as f64, "fewer"));
    if let (Some(a), Some(b)) = (point.timing, reference.timing) {
        text += &format!(
            ", {} ms instead of {}{}",
            short(a.ms_per_token),
            short(b.ms_per_token),
            saved(a.ms_per_token, b.ms_per_token, "less")
        );
        if let (Some(a), Some(b)) = (joules(a.joules_per_token), joules(b.joules_per_token)) {
            text += &format!(", {} J instead of {}", short(a), short(b));
        }
    } else if let (Some(_), cost) = (&profile.cost, profile.price(point)) {
        text +=
            &format!(", about {} ms instead of {} by the cost of a step", short(cost), short(profile.price(reference)));
    }
    let quality = match loss {
        l if l.abs() < 5e-5 => "the same perplexity".into(),
        l if l > 0.0 => format!("a perplexity {} higher", percent(l)),
        l => format!("a perplexity {} lower", percent(l)),
    };
    let (a, b) = (short(point.perplexity.value), short(reference.perplexity.value));
    text += &if a == b { format!(", for {quality} ({a})") } else { format!(", for {quality} ({a} against {b})") };
    text += ".";
    if point.same_top.value.is_finite() {
        let full = steps(profile.full_depth as f64);
        let does = if profile.full_depth == 1 { "does" } else { "do" };
        text += &format!(
            " At {} of positions it finds the same token most likely as {full} {does}, and text that full depth had written would lose {}.",
            percent(point.same_top.value),
            percent(libm::expm1(point.kl.value))
        );
    }
    if point.capped > 0.05 {
        text += &format!(" {} of tokens reach the rule's cap.", percent(point.capped));
    }
    text
}

fn joules(j: Option<f64>) -> Option<f64> {
    j.filter(|j| j.is_finite())
}

fn round(n: f64) -> f64 {
    (n * 100.0).round() / 100.0
}

/// ` (61 % fewer)`; nothing where as good as nothing is saved.
fn saved(now: f64, before: f64, word: &str) -> String {
    let share = 1.0 - now / before;
    match share.is_finite() {
        true if share >= 0.005 => format!(" ({} {word})", percent(share)),
        true if share <= -0.005 => format!(" ({} more)", percent(share)),
        _ => String::new(),
    }
}

/// What depth buys, up to the published steps and past them.
fn depth(profile: &Profile) -> Vec<String> {
    let depths: Vec<&Point> = profile.depths.iter().filter(|p| p.perplexity.value.is_finite()).collect();
    let (Some(first), Some(last)) = (depths.first(), depths.last()) else { return Vec::new() };
    let Some(best) = depths.iter().min_by(|a, b| a.perplexity.value.total_cmp(&b.perplexity.value)) else {
        return Vec::new();
    };
    if depths.len() < 2 {
        return vec!["Only one depth was measured, so that nothing is known of what depth buys.".into()];
    }
    let ppl = |p: &Point| short(p.perplexity.value);
    let ratio = |a: &Point, b: &Point| a.perplexity.value / b.perplexity.value - 1.0;
    if ratio(first, best) < SAME {
        let apart = |p: &Point| libm::expm1(p.kl.value);
        let near = depths.iter().find(|p| apart(p) <= BEARABLE);
        return vec![match near {
            Some(near) if apart(first) > BEARABLE => format!(
                "Perplexity hardly depends on depth on this text ({} at {}, {} at best), but what the model says does: text \
                 that full depth had written would lose {} at {}, and no more than 1 % from {} on.",
                ppl(first),
                steps(first.mean_steps),
                ppl(best),
                percent(apart(first)),
                steps(first.mean_steps),
                steps(near.mean_steps),
            ),
            _ => format!(
                "Depth buys nothing on this text: {} reach{} a perplexity of {}, the best of all depths up to {} is {}. More steps only cost time.",
                steps(first.mean_steps),
                if first.mean_steps == 1.0 { "es" } else { "" },
                ppl(first),
                last.mean_steps,
                ppl(best),
            ),
        }];
    }
    let full = profile.full_depth as f64;
    let at_full = depths.iter().find(|p| p.mean_steps == full).copied().unwrap_or(last);
    let mut said = vec![format!(
        "Depth matters up to {}: perplexity falls from {} at {} to {}; deeper runs, up to {}, change the cross-entropy by less than 0.1 %.",
        steps(full),
        ppl(first),
        steps(first.mean_steps),
        ppl(at_full),
        last.mean_steps,
    )];
    if at_full.mean_steps == last.mean_steps {
        said[0] = format!(
            "Depth matters to the end: perplexity goes from {} at {} to {} at {}, the deepest that was measured.",
            ppl(first),
            steps(first.mean_steps),
            ppl(last),
            last.mean_steps
        );
    }
    if ratio(last, best) > SAME {
        said[0] = format!(
            "Perplexity falls from {} at {} to {} at {} and rises again after that, to {} at {}: do not run this model deeper.",
            ppl(first),
            steps(first.mean_steps),
            ppl(best),
            best.mean_steps,
            ppl(last),
            last.mean_steps
        );
    }
    let Some(reference) = published(profile).filter(|r| r.mean_steps < last.mean_steps) else { return said };
    let gain = -ratio(best, reference);
    said.push(match gain > SAME && best.mean_steps > reference.mean_steps {
        true => format!(
            "More than the published {} help: {} lower the perplexity by {} more.",
            steps(reference.mean_steps),
            steps(best.mean_steps),
            percent(gain)
        ),
        false => format!(
            "More than the published {} buy nothing: at {} the perplexity differs by {}.",
            steps(reference.mean_steps),
            last.mean_steps,
            change(ratio(last, reference))
        ),
    });
    said
}

/// A rule's exact points, as (cost, cross-entropy), those that a cheaper one beats left out; ascending in cost.
fn front(points: &[&Point], cost: fn(&Point) -> f64, value: fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let mut all: Vec<_> =
        points.iter().map(|p| (cost(p), value(p))).filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut best = f64::INFINITY;
    all.retain(|p| {
        let better = p.1 < best;
        best = best.min(p.1);
        better
    });
    all
}

/// Cost at a value along a front, straight between points; `None` where the front does not reach.
fn cost_at(front: &[(f64, f64)], value: f64) -> Option<f64> {
    if let Some(p) = front.iter().find(|p| p.1 == value) {
        return Some(p.0);
    }
    let (a, b) = front.windows(2).map(|w| (w[0], w[1])).find(|(a, b)| a.1 >= value && value >= b.1)?;
    Some(a.0 + (b.0 - a.0) * (a.1 - value) / (a.1 - b.1))
}

/// What one front costs less than another at equal value, as a share, mean over the points of both that both reach.
fn advantage(ours: &[(f64, f64)], theirs: &[(f64, f64)]) -> Option<f64> {
    let shares: Vec<_> = (ours.iter().chain(theirs))
        .filter_map(|p| Some(1.0 - cost_at(ours, p.1)? / cost_at(theirs, p.1)?))
        .filter(|s| s.is_finite())
        .collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// Whether the acceleration rule wins against the others, in steps and, where all were timed, in time.
fn acceleration(profile: &Profile) -> Vec<String> {
    const OURS: &str = "acceleration";
    let points = |name: &str| -> Vec<&Point> {
        let rules = profile.rules.iter().filter(|p| p.rule.name() == name);
        if name == "fixed" { profile.depths.iter().collect() } else { rules.collect() }
    };
    let ours = points(OURS);
    if ours.is_empty() {
        let any = profile.rules.is_empty();
        return if any { vec!["No exit rule was measured.".into()] } else { Vec::new() };
    }
    let others: Vec<(String, Vec<&Point>)> = ["kl", "step-norm", "fixed"]
        .into_iter()
        .map(|name| (if name == "fixed" { "fixed depths".into() } else { format!("`{name}`") }, points(name)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let entropy = Against::of(&ours, &others, |p| p.cross_entropy.value);
    // Where the shallowest depth has as low a cross-entropy as any, only KL can tell settings apart.
    let kl = Against::of(&ours, &others, |p| p.kl.value);
    let first = if entropy.parts.is_empty() { &kl } else { &entropy };
    let verdict = match (first.wins, first.losses, first.ties) {
        (0, 0, 0) => return vec![format!("The `{OURS}` rule cannot be compared with others here.")],
        (_, 0, 0) => "wins here",
        (0, _, _) if first.losses > 0 => "does not win here",
        (0, ..) => "neither wins nor loses here",
        _ if first.losses > 0 => "wins against some and not against others",
        _ => "wins here, though not against everything",
    };
    let said = |against: &Against, what: &str| match against.parts.as_slice() {
        [] => String::new(),
        parts => format!(" At equal {what} it takes {}.", list(parts)),
    };
    let (entropy, kl) = (said(&entropy, "cross-entropy"), said(&kl, "KL from full depth"));
    vec![format!("The `{OURS}` rule {verdict}.{entropy}{kl}")]
}

/// How a rule stands against others at equal values of something.
#[derive(Default)]
struct Against {
    wins: usize,
    losses: usize,
    ties: usize,
    /// What it takes, in words; others that reach no value in common are left out.
    parts: Vec<String>,
}

impl Against {
    fn of(ours: &[&Point], others: &[(String, Vec<&Point>)], value: fn(&Point) -> f64) -> Self {
        let mut against = Self::default();
        for (label, theirs) in others {
            let by = |cost: fn(&Point) -> f64| advantage(&front(ours, cost, value), &front(theirs, cost, value));
            let Some(in_steps) = by(|p| p.mean_steps) else { continue };
            // Time decides where it is known: some rules pay for what they look at.
            let timed = ours.iter().chain(theirs).all(|p| p.timing.is_some());
            let in_time = timed.then(|| by(|p| p.timing.map_or(f64::NAN, |t| t.ms_per_token))).flatten();
            match in_time.unwrap_or(in_steps) {
                share if share > EQUAL_COST => against.wins += 1,
                share if share < -EQUAL_COST => against.losses += 1,
                _ => against.ties += 1,
            }
            let mut part = match in_steps.abs() <= EQUAL_COST {
                true => "about as many steps".into(),
                false => compared(in_steps, "steps", "fewer"),
            };
            if let Some(time) = in_time {
                part += &match time.abs() <= EQUAL_COST {
                    true => " (and about as much time)".into(),
                    false => format!(" ({})", compared(time, "time", "less")),
                };
            }
            part += if in_steps.abs() <= EQUAL_COST { " as " } else { " than " };
            part += label;
            against.parts.push(part);
        }
        against
    }
}

fn compared(share: f64, what: &str, less: &str) -> String {
    format!("{} {} {what}", percent(share), if share > 0.0 { less } else { "more" })
}

fn list(parts: &[String]) -> String {
    match parts {
        [] => "nothing to compare with".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{}, and {last}", first.join(", ")),
    }
}

/// Whether latent states come to rest, loop by loop.
fn settling(dynamics: &Dynamics) -> Vec<String> {
    let many = dynamics.loops.len() > 1;
    let say = |(i, l): (usize, &crate::calibrate::LoopDynamics)| {
        let (last, band) =
            l.step_norm.iter().enumerate().rev().find(|(_, b)| b.median.is_finite() && b.p90.is_finite())?;
        let place = if many { format!("Loop {}: after", i + 1) } else { "After".into() };
        let moved = format!(
            "{place} {} the median token's last step is {} of its state, and nine tokens in ten stay below {}",
            steps((last + 1) as f64),
            percent(band.median),
            percent(band.p90)
        );
        let verdict = match (band.median < SETTLED, band.p90 < SETTLED) {
            (true, true) => "latent states settle.".into(),
            (true, false) => format!(
                "most latent states settle, but not all. Those that do not never fall below {} and run to a rule's cap.",
                fixed(SETTLED, 2)
            ),
            _ => "latent states do not settle, so that rules that watch them fire late or not at all.".into(),
        };
        let turning = l.angle.get(last).map_or(f64::NAN, |a| a.median);
        let swing = if turning > 135.0 {
            " Steps go to and fro, which an acceleration sees and a step's length does not."
        } else {
            ""
        };
        Some(format!("{moved}: {verdict}{swing}"))
    };
    dynamics.loops.iter().enumerate().filter_map(say).collect()
}
