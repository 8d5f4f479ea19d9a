//! What questions are counted into: cells of one kind and one number of reasoning steps.

use crate::exit::{ExitRule, Signal};
use crate::generate::DecodeStats;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Questions of one cell, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) right: usize,
    pub(super) asked: usize,
    /// Tokens that were run, and their loop steps.
    pub(super) tokens: u64,
    pub(super) steps: u64,
    /// Tokens of the answers, their ends included, and the loop steps of the passes that they were drawn from. The first is drawn
    /// from the prompt's last position.
    pub(super) answer_tokens: u64,
    pub(super) answer_steps: u64,
    /// Loop steps of the passes that the first tokens of the answers were drawn from.
    pub(super) first_steps: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.right += other.right;
        self.asked += other.asked;
        self.tokens += other.tokens;
        self.steps += other.steps;
        self.answer_tokens += other.answer_tokens;
        self.answer_steps += other.answer_steps;
        self.first_steps += other.first_steps;
    }

    /// Share of right answers; NaN if nothing was asked.
    pub(super) fn accuracy(&self) -> f64 {
        self.right as f64 / self.asked as f64
    }

    /// Mean loop steps of all tokens that were run.
    pub(super) fn mean_steps(&self) -> f64 {
        self.steps as f64 / self.tokens.max(1) as f64
    }

    /// Mean loop steps of the answers' tokens.
    pub(super) fn mean_steps_answer(&self) -> f64 {
        self.answer_steps as f64 / self.answer_tokens.max(1) as f64
    }

    /// Mean loop steps of the answers' first tokens, where most of what there is to think is thought.
    pub(super) fn mean_steps_first(&self) -> f64 {
        self.first_steps as f64 / self.asked.max(1) as f64
    }
}

/// Kind, and reasoning steps where they are known.
pub(super) type Cell = (String, Option<usize>);

/// What came of all questions under one rule.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) rule: ExitRule,
    /// Loop steps that a token takes at most.
    pub(super) max_steps: usize,
    /// What it ran on, as records have it.
    pub(super) device: String,
    /// Questions that were answered at a time, at most.
    pub(super) parallel: usize,
    pub(super) cells: BTreeMap<Cell, Tally>,
    pub(super) seconds: f64,
    /// How tokens were decoded, and what came of it, unless it was plainly.
    pub(super) decode: Option<(Value, DecodeStats)>,
    /// Answers equal to the recorded ones, of how many.
    pub(super) recorded: Option<(usize, usize)>,
    pub(super) differences: Vec<Difference>,
    pub(super) answers: Vec<Given>,
}

/// An answer that is not the recorded one.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Difference {
    pub(super) question: String,
    /// What the published implementation answered.
    pub(super) recorded: String,
    pub(super) answer: String,
    /// Difference of the two largest logits where the answers part.
    pub(super) gap: f32,
}

/// An answer to a question.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Given {
    pub(super) question: String,
    pub(super) kind: String,
    /// Reasoning steps to the answer, or null where the file does not tell.
    pub(super) steps_needed: Option<usize>,
    pub(super) answer: String,
    pub(super) right: bool,
    /// All answers that would have been right.
    pub(super) right_answers: Vec<String>,
    /// Mean loop steps of the answer's tokens.
    pub(super) mean_steps_answer: f64,
}

impl Outcome {
    /// Can tokens take different numbers of loop steps?
    pub(super) fn exits(&self) -> bool {
        self.rule.signal() != Signal::None
    }

    fn sum<'a>(cells: impl Iterator<Item = &'a Tally>) -> Tally {
        let mut sum = Tally::default();
        cells.for_each(|cell| sum.add(cell));
        sum
    }

    /// Everything together.
    pub(super) fn total(&self) -> Tally {
        Self::sum(self.cells.values())
    }

    /// All questions of one kind.
    pub(super) fn of_kind(&self, kind: &str) -> Tally {
        Self::sum(self.cells.iter().filter(|(cell, _)| cell.0 == kind).map(|(_, tally)| tally))
    }

    /// All questions that need so many reasoning steps, or of which that is not known.
    pub(super) fn of_steps(&self, steps: Option<usize>) -> Tally {
        Self::sum(self.cells.iter().filter(|(cell, _)| cell.1 == steps).map(|(_, tally)| tally))
    }

    /// The kinds there are, in order.
    pub(super) fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.cells.keys().map(|cell| cell.0.as_str()).collect();
        kinds.dedup();
        kinds
    }

    /// The numbers of reasoning steps there are, in order, and last those questions of which it is not known. Empty if it is known
    /// of none.
    pub(super) fn steps_needed(&self) -> Vec<Option<usize>> {
        let mut steps: Vec<_> = self.cells.keys().map(|cell| cell.1).collect();
        steps.sort_by_key(|steps| steps.unwrap_or(usize::MAX));
        steps.dedup();
        if steps == [None] { Vec::new() } else { steps }
    }
}

/// A number of reasoning steps in words.
pub(super) fn steps_words(steps: Option<usize>) -> String {
    match steps {
        Some(1) => "1 step".into(),
        Some(n) => format!("{n} steps"),
        None => "unknown".into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Results of `rule` where a question takes more loop steps the more reasoning it needs.
    pub(in super::super) fn outcome(rule: &str, cells: &[(&str, Option<usize>, usize, usize)]) -> Outcome {
        let rule: ExitRule = rule.parse().unwrap();
        let tally = |&(kind, steps, right, asked): &(&str, Option<usize>, usize, usize)| {
            let (n, depth) = (asked as u64, rule.max_steps().unwrap_or(4) as u64);
            let deep = if rule.signal() == Signal::None { depth } else { 2 + steps.unwrap_or(0) as u64 };
            let (tokens, answer_tokens) = (10 * n, 2 * n);
            // More than the others, so that the two cannot be taken for each other.
            let first_steps = n * (deep + 1);
            let tally = Tally {
                right,
                asked,
                tokens,
                steps: tokens * deep,
                answer_tokens,
                answer_steps: 2 * n * deep,
                first_steps,
            };
            ((kind.to_owned(), steps), tally)
        };
        Outcome {
            rule,
            max_steps: rule.max_steps().unwrap_or(8),
            device: "cpu".into(),
            parallel: 1,
            cells: cells.iter().map(tally).collect(),
            seconds: 2.0,
            decode: None,
            recorded: None,
            differences: Vec::new(),
            answers: Vec::new(),
        }
    }

    #[test]
    fn cells_add_up() {
        let cells = [("sum", Some(2), 3, 5), ("sum", Some(1), 4, 4), ("path", Some(1), 1, 2), ("talk", None, 0, 1)];
        let outcome = outcome("acceleration", &cells);
        assert_eq!(outcome.kinds(), ["path", "sum", "talk"]);
        assert_eq!(outcome.steps_needed(), [Some(1), Some(2), None]);
        let total = outcome.total();
        assert_eq!((total.right, total.asked, total.tokens), (8, 12, 120));
        let mut kinds = Tally::default();
        outcome.kinds().iter().for_each(|kind| kinds.add(&outcome.of_kind(kind)));
        let mut steps = Tally::default();
        outcome.steps_needed().iter().for_each(|&n| steps.add(&outcome.of_steps(n)));
        assert_eq!((kinds, steps), (total, total));
        assert_eq!((outcome.of_kind("sum").right, outcome.of_steps(Some(1)).asked), (7, 6));
        assert_eq!(outcome.of_steps(Some(2)).mean_steps_answer(), 4.0);
        assert_eq!((outcome.of_steps(Some(9)).mean_steps(), Tally::default().mean_steps_answer()), (0.0, 0.0));
    }

    #[test]
    fn nothing_is_told_of_steps_that_are_not_known() {
        assert!(outcome("fixed:2", &[("a", None, 1, 2), ("b", None, 2, 2)]).steps_needed().is_empty());
        assert_eq!([Some(0), Some(1), None].map(steps_words), ["0 steps", "1 step", "unknown"]);
    }
}
