//! A model's way through its blocks, in words.

use super::anatomy::is_tied;
use crate::model::{Depth, Injection, Looped, Model, Segment, StackPass};
use std::ops::Range;

/// The way of a token through a model, on one line:
/// `embedding -> blocks 0-1 once -> [inject: linear -> blocks 2-5] x 32 -> norm -> blocks 6-7 once -> norm -> head (tied)`.
/// The number behind a loop is its default depth.
pub fn plan_in_words(model: &Model) -> String {
    let mut way = vec![if model.positions().is_some() { "embedding + positions" } else { "embedding" }.to_owned()];
    let mut depths = model.config().loops.iter();
    for segment in &model.plan().segments {
        match segment {
            Segment::Once(blocks) => way.push(format!("{} once", range(blocks))),
            Segment::Looped(l) => {
                way.extend(l.entry_norm.iter().map(|_| "norm".to_owned()));
                way.push(looped(l, depths.next()));
                way.extend(l.readout_norm.iter().map(|_| "norm".to_owned()));
                way.extend(l.readout.iter().map(|_| "projection".to_owned()));
            }
        }
    }
    way.extend(model.output_norm().iter().map(|_| "norm".to_owned()));
    way.push(if is_tied(model) { "head (tied)" } else { "head" }.to_owned());
    way.join(" -> ")
}

/// A step in brackets, and how often it is taken.
fn looped(l: &Looped, depth: Option<&Depth>) -> String {
    let injection = match &l.injection {
        Injection::None => None,
        Injection::Linear { .. } => Some("inject: linear"),
        Injection::Diagonal { .. } => Some("inject: diagonal"),
        Injection::Inner { .. } => Some("inject: inner state"),
    };
    let mut step: Vec<String> = injection.into_iter().map(str::to_owned).collect();
    for same in l.passes.chunk_by(|a, b| a.blocks == b.blocks) {
        step.push(passes(same, l.norm.is_some()));
    }
    step.extend(l.gate.iter().map(|_| "exit gate".to_owned()));
    let times = match depth {
        None => String::new(),
        Some(Depth { mean_steps, max_steps: None }) => format!(" x {mean_steps}"),
        Some(Depth { mean_steps, max_steps: Some(most) }) => format!(" x {mean_steps} (at most {most})"),
    };
    format!("[{}]{times}", step.join(" -> "))
}

/// Passes over the same blocks, one after the other.
fn passes(same: &[StackPass], norm: bool) -> String {
    let pass = range(&same[0].blocks);
    match (same.len(), norm) {
        (1, false) => pass,
        (1, true) => format!("{pass} -> norm"),
        (n, false) => format!("{pass} x {n}"),
        (n, true) => format!("({pass} -> norm) x {n}"),
    }
}

fn range(blocks: &Range<usize>) -> String {
    match blocks.len() {
        1 => format!("block {}", blocks.start),
        _ => format!("blocks {}-{}", blocks.start, blocks.end.saturating_sub(1)),
    }
}
