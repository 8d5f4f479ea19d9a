//! Questions with the answers that are right, as JSON lines.

use super::score::Cell;
use anyhow::{Context, bail};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::BufRead;

/// A line of a questions file.
#[derive(Debug, Clone, Deserialize)]
#[serde(expecting = "an object with the fields of a question")]
pub(super) struct Question {
    pub(super) question: String,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    answers: Vec<String>,
    /// What kind of question this is; empty where the line does not tell.
    #[serde(default)]
    pub(super) kind: String,
    /// Reasoning steps to the answer, where the line tells.
    #[serde(default)]
    pub(super) steps_needed: Option<usize>,
    /// The line in the file, from 1.
    #[serde(skip)]
    pub(super) line: usize,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

impl Question {
    /// What the published implementation answered at a depth, if the line tells.
    pub(super) fn recorded(&self, steps: usize) -> Option<&str> {
        self.other.get(&format!("model_answer_at_{steps}_steps"))?.as_str()
    }

    /// All answers that are right.
    pub(super) fn right_answers(&self) -> impl Iterator<Item = &str> {
        self.answer.iter().chain(&self.answers).map(|a| a.trim())
    }

    /// Is this an answer that is right?
    pub(super) fn is_right(&self, text: &str) -> bool {
        self.right_answers().any(|answer| answer == text.trim())
    }

    /// What questions are counted by: their kind, and the reasoning steps that they need.
    pub(super) fn cell(&self) -> Cell {
        (self.kind.clone(), self.steps_needed)
    }
}

/// Reads questions; `name` is their file's, for errors.
///
/// # Errors
/// A line is no question, or there are none.
pub(super) fn read(name: &str, lines: impl BufRead) -> anyhow::Result<Vec<Question>> {
    let mut questions = Vec::new();
    for (i, line) in lines.lines().enumerate() {
        let place = || format!("{name}:{}", i + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed = serde_json::from_str(&line);
        let mut question: Question =
            parsed.map_err(|e| anyhow::anyhow!("{}: {}", place(), without_line(&e.to_string())))?;
        if question.right_answers().next().is_none() {
            bail!("{}: a question needs 'answer' or 'answers'", place());
        }
        question.line = i + 1;
        questions.push(question);
    }
    if questions.is_empty() {
        bail!("{name} holds no questions");
    }
    Ok(questions)
}

/// An error of the parser, which counts lines of its own where there is but one, and columns only where it knows them.
fn without_line(error: &str) -> String {
    error.replace(" at line 1 column 0", "").replace(" at line 1 column", " at column")
}

/// Those of the given kinds; all, if none is given.
///
/// # Errors
/// There are no questions of a kind.
pub(super) fn of_kinds(mut questions: Vec<Question>, kinds: &[String]) -> anyhow::Result<Vec<Question>> {
    for kind in kinds {
        if !questions.iter().any(|q| q.kind == *kind) {
            let mut there: Vec<_> = questions.iter().map(|q| q.kind.as_str()).collect();
            there.sort_unstable();
            there.dedup();
            bail!("--kind {kind}: there are questions of these kinds: {}", there.join(", "));
        }
    }
    if !kinds.is_empty() {
        questions.retain(|q| kinds.contains(&q.kind));
    }
    Ok(questions)
}

/// `most` questions, as evenly over the cells as it can be: the first of every cell, then the second, and so on. They stay in
/// the order of the file.
pub(super) fn first(questions: Vec<Question>, most: usize) -> Vec<Question> {
    let mut seen: BTreeMap<Cell, usize> = BTreeMap::new();
    let rank = |q: &Question| {
        let count = seen.entry(q.cell()).or_default();
        *count += 1;
        *count
    };
    let ranks: Vec<usize> = questions.iter().map(rank).collect();
    let mut order: Vec<usize> = (0..questions.len()).collect();
    order.sort_by_key(|&i| ranks[i]);
    let mut taken = vec![false; questions.len()];
    order.iter().take(most).for_each(|&i| taken[i] = true);
    questions.into_iter().zip(taken).filter_map(|(q, taken)| taken.then_some(q)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<Vec<Question>> {
        read("q.jsonl", text.as_bytes())
    }

    #[test]
    fn one_answer_several_or_both() {
        let text = "{\"question\": \"a\", \"answer\": \" x\"}\n\n\
                    {\"question\": \"b\", \"answers\": [\"x\", \"y \"], \"kind\": \"k\", \"steps_needed\": 0}\n\
                    {\"question\": \"c\", \"answer\": \"x\", \"answers\": [\"y\"], \"model_answer_at_4_steps\": \"z\", \"new\": {}}";
        let q = parsed(text).unwrap();
        assert!(q[0].is_right("x\n") && !q[0].is_right("y") && !q[0].is_right(""));
        assert!(q[1].is_right("x") && q[1].is_right("y"));
        assert!(q[2].is_right("x") && q[2].is_right("y") && !q[2].is_right("z"));
        assert_eq!((q[0].cell(), q[1].cell()), ((String::new(), None), ("k".to_owned(), Some(0))));
        assert_eq!((q[2].recorded(4), q[2].recorded(5), q[2].line), (Some("z"), None, 4));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let wrong = |text: &str| parsed(text).unwrap_err().to_string();
        let good = "{\"question\": \"a\", \"answer\": \"x\"}\n";
        assert_eq!(wrong("\n \n"), "q.jsonl holds no questions");
        assert_eq!(
            wrong(&format!("{good}{{\"question\": \"b\"}}")),
            "q.jsonl:2: a question needs 'answer' or 'answers'"
        );
        assert_eq!(
            wrong("{\"question\": \"b\", \"answers\": []}"),
            "q.jsonl:1: a question needs 'answer' or 'answers'"
        );
        assert_eq!(
            wrong(&format!("{good}\n[1")),
            "q.jsonl:3: invalid type: sequence, expected an object with the fields of a question"
        );
        assert!(wrong("{\"answer\": \"x\"}").starts_with("q.jsonl:1: missing field `question`"));
        assert!(wrong("{\"question\": \"a\", \"answer\": \"x\", \"steps_needed\": -1}").starts_with("q.jsonl:1: "));
        assert!(read("q.jsonl", &b"\xff\n"[..]).unwrap_err().to_string().starts_with("q.jsonl:1"));
    }

    #[test]
    fn a_few_questions_are_some_of_each() {
        let line = |i: usize, kind: &str, steps: usize| {
            format!("{{\"question\": \"{i}\", \"answer\": \"x\", \"kind\": \"{kind}\", \"steps_needed\": {steps}}}\n")
        };
        let text: String = (0..12).map(|i| line(i, if i < 8 { "a" } else { "b" }, i / 2 % 2)).collect();
        let ask = |most| first(parsed(&text).unwrap(), most).iter().map(|q| q.question.clone()).collect::<Vec<_>>();
        assert_eq!(ask(4), ["0", "2", "8", "10"]);
        assert_eq!(ask(6), ["0", "1", "2", "3", "8", "10"]);
        assert_eq!(ask(99).len(), 12);
        let kinds = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|n| (*n).to_owned()).collect();
            of_kinds(parsed(&text).unwrap(), &names)
        };
        assert_eq!((kinds(&[]).unwrap().len(), kinds(&["b"]).unwrap().len()), (12, 4));
        assert_eq!(kinds(&["c"]).unwrap_err().to_string(), "--kind c: there are questions of these kinds: a, b");
    }
}
