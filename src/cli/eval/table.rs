//! Results as tables for people.

use super::super::{acceptance_words, decode_words, one_line};
use super::score::{Outcome, Tally, steps_words};
use std::io::{self, Write};

/// Columns of text that a table takes at most; a wider one goes on below itself.
const WIDTH: usize = 120;
/// Characters of a heading that come from the file.
const HEADING: usize = 20;

/// A mean over questions.
type Mean = fn(&Tally) -> f64;

/// Tables of all outcomes, which are of the same questions.
pub(super) fn write(out: &mut impl Write, outcomes: &[Outcome]) -> io::Result<()> {
    let Some(one) = outcomes.first() else { return Ok(()) };
    let (classes, kinds) = (one.steps_needed(), one.kinds());
    let count = |right: usize, asked: usize| format!("{right}/{asked}");

    let mut table = Table::of(outcomes.iter());
    table.column("most", |o| o.max_steps.to_string());
    table.column("mean steps", |o| format!("{:.2}", o.total().mean_steps()));
    for &class in &classes {
        table.column(&steps_words(class), |o| count(o.of_steps(class).right, o.of_steps(class).asked));
    }
    table.column("right", |o| count(o.total().right, o.total().asked));
    table.column("accuracy", |o| format!("{:.2}%", 100.0 * o.total().accuracy()));
    table.column("tokens/s", |o| format!("{:.0}", o.total().tokens as f64 / o.seconds));
    table.write(out, if classes.is_empty() { "right answers" } else { "right answers by reasoning steps needed" })?;

    if kinds.iter().any(|kind| !kind.is_empty()) {
        let mut table = Table::of(outcomes.iter());
        for kind in &kinds {
            let named = if kind.is_empty() { "none" } else { kind };
            table.column(&shortened(named), |o| count(o.of_kind(kind).right, o.of_kind(kind).asked));
        }
        writeln!(out)?;
        table.write(out, "right answers by kind")?;
    }

    // Where all tokens take the same steps there is nothing to see.
    if outcomes.iter().any(Outcome::exits) {
        let means: [(_, Mean); 2] = [
            ("mean loop steps of the answers' first tokens", Tally::mean_steps_first),
            ("mean loop steps of all tokens of the answers", Tally::mean_steps_answer),
        ];
        for (title, mean) in means {
            let mut table = Table::of(outcomes.iter().filter(|o| o.exits()));
            for &class in &classes {
                table.column(&steps_words(class), |o| format!("{:.2}", mean(&o.of_steps(class))));
            }
            table.column("all", |o| format!("{:.2}", mean(&o.total())));
            writeln!(out)?;
            let by = if classes.is_empty() { "" } else { " by reasoning steps needed" };
            table.write(out, &format!("{title}{by}"))?;
        }
    }
    for o in outcomes {
        if let Some((json, stats)) = &o.decode
            && let Some(words) = decode_words(stats)
        {
            let strategy = json["strategy"].as_str().unwrap_or_default();
            writeln!(out, "\n{}, {strategy}: {words}", o.rule)?;
            if !stats.guesses.is_empty() {
                writeln!(out, "guesses that came true: {}", acceptance_words(stats))?;
            }
        }
    }
    recorded(out, outcomes)
}

/// Every question of an outcome with its answer.
pub(super) fn answers(out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
    writeln!(out, "{}", outcome.rule)?;
    for given in &outcome.answers {
        let mark = if given.right { "right" } else { "WRONG" };
        let (question, answer) = (one_line(&given.question), one_line(&given.answer));
        write!(out, "  {mark} {:>5.2} steps  {question}  ->  {answer}", given.mean_steps_answer)?;
        match given.right_answers.first() {
            Some(expected) if !given.right => write!(out, "  (right: {}", one_line(expected))?,
            _ => {}
        }
        let more = given.right_answers.len().saturating_sub(1);
        writeln!(
            out,
            "{}",
            match (given.right, more) {
                (true, _) => String::new(),
                (false, 0) => ")".into(),
                (false, n) => format!(", and {n} more)"),
            }
        )?;
    }
    writeln!(out)
}

/// How answers compare with those that the file records.
fn recorded(out: &mut impl Write, outcomes: &[Outcome]) -> io::Result<()> {
    for o in outcomes {
        let Some((same, compared)) = o.recorded else { continue };
        writeln!(out, "\n{}: {same} of {compared} answers are those recorded in the file", o.rule)?;
        for d in &o.differences {
            let (question, answer, recorded) = (&d.question, &d.answer, &d.recorded);
            writeln!(out, "  {question:?}: {answer:?}, recorded {recorded:?}; best two logits {:.4} apart", d.gap)?;
        }
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    let text = one_line(text);
    match text.char_indices().nth(HEADING) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

/// A row per outcome; its rule comes first.
struct Table<'a> {
    rows: Vec<&'a Outcome>,
    columns: Vec<Column>,
}

struct Column {
    heading: String,
    cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        self.cells.iter().chain([&self.heading]).map(|text| text.chars().count()).max().unwrap_or(0)
    }
}

impl<'a> Table<'a> {
    fn of(rows: impl Iterator<Item = &'a Outcome>) -> Self {
        Self { rows: rows.collect(), columns: Vec::new() }
    }

    fn column(&mut self, heading: &str, cell: impl Fn(&Outcome) -> String) {
        let cells = self.rows.iter().map(|o| cell(o)).collect();
        self.columns.push(Column { heading: heading.to_owned(), cells });
    }

    /// Writes the table; columns that have no room beside the others come below, with the rules again.
    fn write(&self, out: &mut impl Write, title: &str) -> io::Result<()> {
        writeln!(out, "{title}")?;
        let rules = Column { heading: "rule".into(), cells: self.rows.iter().map(|o| o.rule.to_string()).collect() };
        let mut left = self.columns.as_slice();
        while !left.is_empty() {
            let mut room = WIDTH.saturating_sub(rules.width());
            let fits = left.iter().take_while(|column| {
                let needs = column.width() + 2;
                let fits = needs <= room;
                room = room.saturating_sub(needs);
                fits
            });
            // One column at least, or it would never end.
            let (now, later) = left.split_at(fits.count().max(1));
            if left.len() < self.columns.len() {
                writeln!(out)?;
            }
            for row in std::iter::once(None).chain((0..self.rows.len()).map(Some)) {
                let text = |column: &'_ Column| row.map_or(&column.heading, |row| &column.cells[row]).clone();
                write!(out, "{:<width$}", text(&rules), width = rules.width())?;
                for column in now {
                    write!(out, "  {:>width$}", text(column), width = column.width())?;
                }
                writeln!(out)?;
            }
            left = later;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::score::tests::outcome;
    use super::super::score::{Difference, Given};
    use super::*;

    fn text(outcomes: &[Outcome]) -> String {
        let mut out = Vec::new();
        write(&mut out, outcomes).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn all_tables() {
        let cells = [("path", Some(1), 3, 4), ("path", Some(2), 1, 4), ("sum", Some(1), 4, 4)];
        let expected = "\
right answers by reasoning steps needed
rule                      most  mean steps  1 step  2 steps  right  accuracy  tokens/s
fixed:1                      1        1.00     7/8      1/4   8/12    66.67%        60
acceleration:0.05,hits=2     8        3.33     7/8      1/4   8/12    66.67%        60

right answers by kind
rule                      path  sum
fixed:1                    4/8  4/4
acceleration:0.05,hits=2   4/8  4/4

mean loop steps of the answers' first tokens by reasoning steps needed
rule                      1 step  2 steps   all
acceleration:0.05,hits=2    4.00     5.00  4.33

mean loop steps of all tokens of the answers by reasoning steps needed
rule                      1 step  2 steps   all
acceleration:0.05,hits=2    3.00     4.00  3.33
";
        assert_eq!(text(&[outcome("fixed:1", &cells), outcome("acceleration", &cells)]), expected);
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        assert_eq!(
            text(&[outcome("fixed:2", &[("", None, 1, 2)])]),
            "right answers\nrule     most  mean steps  right  accuracy  tokens/s\nfixed:2     2        2.00    1/2    50.00%        10\n"
        );
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn wide_tables_go_on_below() {
        let names: Vec<_> = (0..30).map(|i| format!("kind-\u{1b}{i}")).collect();
        let cells: Vec<_> = names.iter().enumerate().map(|(i, name)| (name.as_str(), Some(i), 1, 10)).collect();
        let text = text(&[outcome("acceleration:0.03,hits=2,min=4,max=32", &cells)]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains('\u{1b}') && text.contains("29 steps") && text.contains("kind-\\x1b29"), "{text}");
    }

    #[test]
    fn answers_and_differences() {
        let mut outcome = outcome("fixed:2", &[("talk", Some(0), 1, 3)]);
        let given = |answer: &str, right, fits: &[&str]| Given {
            question: "Hello\n".into(),
            kind: "talk".into(),
            steps_needed: Some(0),
            answer: answer.into(),
            right,
            right_answers: fits.iter().map(|a| (*a).to_owned()).collect(),
            mean_steps_answer: 2.5,
        };
        outcome.answers =
            vec![given("Hi!", true, &["Hi!"]), given("?", false, &["Hi!"]), given("", false, &["a", "b"])];
        let mut out = Vec::new();
        answers(&mut out, &outcome).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "fixed:2\n  right  2.50 steps  Hello\\n  ->  Hi!\n  WRONG  2.50 steps  Hello\\n  ->  ?  (right: Hi!)\n  \
             WRONG  2.50 steps  Hello\\n  ->    (right: a, and 1 more)\n\n"
        );
        outcome.recorded = Some((2, 3));
        let difference = Difference { question: "q".into(), recorded: "r".into(), answer: "a".into(), gap: 0.5 };
        outcome.differences.push(difference);
        assert!(text(&[outcome]).ends_with(
            "\nfixed:2: 2 of 3 answers are those recorded in the file\n  \"q\": \"a\", recorded \"r\"; best two logits 0.5000 apart\n"
        ));
    }
}
