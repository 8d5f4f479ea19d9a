//! Results as JSON.

use super::score::{Difference, Given, Outcome, Tally};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// What came of all questions under one rule: an element of the list that `--json` writes.
#[derive(Debug, Serialize)]
pub(super) struct Record<'a> {
    /// The exit rule, as `--rule` takes it.
    rule: String,
    /// Loop steps that a token takes at most.
    max_steps: usize,
    /// What it ran on, one after the other: a GPU's name, or `cpu`.
    device: &'a str,
    /// Questions that were answered at a time, at most.
    parallel: usize,
    /// Do all tokens take the same number of loop steps?
    fixed: bool,
    /// By kind: right answers, and questions.
    kinds: BTreeMap<&'a str, (usize, usize)>,
    /// By reasoning steps needed, fewest first, those not known last; empty if the file tells of none.
    by_steps_needed: Vec<Class>,
    /// By kind and reasoning steps needed. Every question is in one of them.
    cells: Vec<Cell<'a>>,
    /// Of all questions.
    #[serde(flatten)]
    total: Counts,
    /// Time that it took.
    seconds: f64,
    /// What decoding with several tokens in flight did; left out where it was plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<Value>,
    /// Answers equal to those that the file records of the published implementation at this depth, of how many; null if
    /// there are none.
    recorded: Option<(usize, usize)>,
    /// Answers that are not the recorded ones.
    differences: &'a [Difference],
    /// Every question with its answer, with `--show` only.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    answers: &'a [Given],
}

/// Questions that need the same number of reasoning steps.
#[derive(Debug, Serialize)]
struct Class {
    /// The number, or null where the file does not tell.
    steps_needed: Option<usize>,
    #[serde(flatten)]
    counts: Counts,
}

/// Questions of one kind that need the same number of reasoning steps.
#[derive(Debug, Serialize)]
struct Cell<'a> {
    /// The kind; empty where the file does not tell.
    kind: &'a str,
    /// The number of reasoning steps, or null where the file does not tell.
    steps_needed: Option<usize>,
    #[serde(flatten)]
    counts: Counts,
}

/// How many were right, and what they took.
#[derive(Debug, Serialize)]
struct Counts {
    /// Right answers.
    right: usize,
    /// Questions.
    asked: usize,
    /// Tokens that were run: prompts, and answers but for the token that ends them.
    tokens: u64,
    /// Tokens of the answers, with the one that ends them.
    answer_tokens: u64,
    /// Mean loop steps of all tokens that were run.
    mean_steps: f64,
    /// Mean loop steps of the passes that the answers' tokens were drawn from. The first is that of the prompt's last
    /// position.
    mean_steps_answer: f64,
    /// Mean loop steps of the passes that the answers' first tokens were drawn from: those of the prompts' last positions.
    mean_steps_first: f64,
}

impl From<Tally> for Counts {
    fn from(tally: Tally) -> Self {
        Self {
            right: tally.right,
            asked: tally.asked,
            tokens: tally.tokens,
            answer_tokens: tally.answer_tokens,
            mean_steps: tally.mean_steps(),
            mean_steps_answer: tally.mean_steps_answer(),
            mean_steps_first: tally.mean_steps_first(),
        }
    }
}

impl<'a> From<&'a Outcome> for Record<'a> {
    fn from(outcome: &'a Outcome) -> Self {
        let of_kind = |kind| {
            let tally = outcome.of_kind(kind);
            (kind, (tally.right, tally.asked))
        };
        let class = |steps_needed| Class { steps_needed, counts: outcome.of_steps(steps_needed).into() };
        let cells = outcome.cells.iter();
        Self {
            rule: outcome.rule.to_string(),
            max_steps: outcome.max_steps,
            device: &outcome.device,
            parallel: outcome.parallel,
            fixed: !outcome.exits(),
            kinds: outcome.kinds().into_iter().map(of_kind).collect(),
            by_steps_needed: outcome.steps_needed().into_iter().map(class).collect(),
            cells: cells
                .map(|((kind, steps), tally)| Cell { kind, steps_needed: *steps, counts: (*tally).into() })
                .collect(),
            total: outcome.total().into(),
            seconds: outcome.seconds,
            decode: outcome.decode.as_ref().map(|(json, _)| json.clone()),
            recorded: outcome.recorded,
            differences: &outcome.differences,
            answers: &outcome.answers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::score::tests::outcome;
    use super::*;

    #[test]
    fn names_and_numbers() {
        let outcome = outcome("fixed:3", &[("sum", Some(1), 3, 4), ("sum", Some(2), 1, 4), ("talk", None, 1, 1)]);
        let json = serde_json::to_value(Record::from(&outcome)).unwrap();
        let fields = [
            "rule",
            "max_steps",
            "device",
            "parallel",
            "fixed",
            "kinds",
            "by_steps_needed",
            "cells",
            "right",
            "asked",
            "tokens",
            "answer_tokens",
            "mean_steps",
            "mean_steps_answer",
            "mean_steps_first",
            "seconds",
            "recorded",
            "differences",
        ];
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), fields);
        assert_eq!(json["kinds"]["sum"], serde_json::json!([4, 8]));
        assert_eq!(json["cells"][1]["right"], 1);
        assert_eq!(json["by_steps_needed"][2]["steps_needed"], serde_json::Value::Null);
        assert_eq!((&json["right"], &json["asked"], &json["mean_steps"]), (&5.into(), &9.into(), &3.0.into()));
    }
}
