//! What a token costs in generation.

use super::super::{Cost, Error, Point, Timing, Window};
use crate::exit::{ExitRule, RulePolicy, Signal};
use crate::model::{Batch, Logits, Session};
use crate::sensors::EnergyMeter;
use std::collections::BTreeMap;
use std::time::Instant;

/// Rounds over all settings; the median of them counts, so that what else the machine does hits all settings alike.
pub(super) const ROUNDS: usize = 5;
/// Seconds per setting and round, at least.
const LEAST: f64 = 0.1;
/// Tokens that are timed however long they take, and seconds after which there are no more than these.
const FEWEST: u32 = 4;
const LONGEST: f64 = 2.0;

/// One run of a setting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Milliseconds per token.
    pub(super) ms: f64,
    pub(super) steps: f64,
    pub(super) joules: Option<f64>,
}

/// Runs tokens of a window one by one behind its first half (of which `prefix` tokens see each other in both directions), as generation does, with the text's own tokens in place of drawn ones.
pub(super) fn run(
    session: &mut Session,
    rule: ExitRule,
    window: &Window,
    prefix: usize,
    meter: &EnergyMeter,
) -> Result<Run, Error> {
    let (context, drawn) = window.tokens.split_at(window.tokens.len() / 2);
    let mut policy = RulePolicy::new(rule, None, session.model().config(), session.chunk_rows())?;
    super::run_window(session, window, &(0..context.len()), prefix, &mut policy)?;
    let readout_exits = rule.signal() == Signal::Readout;
    let (mut count, mut steps) = (0u32, 0);
    let (energy, begin) = (meter.sample(), Instant::now());
    // A small model is through in a moment, and short times are uncertain: it goes again.
    'enough: while begin.elapsed().as_secs_f64() < LEAST {
        session.truncate(0, context.len());
        for token in drawn {
            let batch = Batch { sequence: 0, tokens: &[*token], logits: Logits::Last, readout_exits, both_ways: false };
            steps += session.run(batch, &mut policy)?.steps.iter().sum::<usize>();
            count += 1;
            if count >= FEWEST && begin.elapsed().as_secs_f64() > LONGEST {
                break 'enough;
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    let joules = energy.zip(meter.sample()).and_then(|(from, to)| meter.joules(&from, &to));
    let n = f64::from(count);
    Ok(Run { ms: seconds * 1000.0 / n, steps: steps as f64 / n, joules: joules.map(|j| j / n) })
}

/// The median of a setting's runs, of which there is one at least.
pub(super) fn timing(mut runs: Vec<Run>) -> Timing {
    runs.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let mut joules: Vec<f64> = runs.iter().filter_map(|r| r.joules).collect();
    joules.sort_by(f64::total_cmp);
    let middle = runs[runs.len() / 2];
    Timing {
        ms_per_token: middle.ms,
        mean_steps: middle.steps,
        joules_per_token: joules.get(joules.len() / 2).copied(),
    }
}

/// Base and step by least squares over the fixed depths that were timed, neither below 0; `None` with fewer than two of them.
pub(super) fn cost(depths: &[Point], threads: BTreeMap<usize, f64>) -> Option<Cost> {
    let points: Vec<_> = depths.iter().filter_map(|p| p.timing).map(|t| (t.mean_steps, t.ms_per_token)).collect();
    let n = points.len() as f64;
    let mean = |f: fn(&(f64, f64)) -> f64| points.iter().map(f).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x) * (p.0 - x)).sum();
    if points.len() < 2 || spread == 0.0 {
        return None;
    }
    let slope = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread;
    let slope = slope.clamp(0.0, y / x);
    Some(Cost { base_ms: (y - slope * x).max(0.0), step_ms: slope, threads })
}
