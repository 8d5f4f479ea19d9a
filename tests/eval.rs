//! A checkpoint's own questions, through the program that the README names: the published implementation's answers
//! come out, an exit rule saves loop steps without losing answers, and everything that is shown adds up.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops");

fn run(args: &[&str]) -> Output {
    // One thread each, unless two are asked for: tests run side by side. What the user's own programs remember is left alone.
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-eval"));
    let threads = if args.contains(&"-t") { &[][..] } else { &["-t", "1"] };
    command.args(threads).args(args).env("RDT_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.output().expect("rdt-eval runs")
}

fn out(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).expect("UTF-8 on stdout")
}

fn json(args: &[&str]) -> Vec<Value> {
    let output = run(&[args, &["--json"]].concat());
    serde_json::from_str(out(&output)).expect("JSON on stdout")
}

fn eval(rules: &[&str]) -> Vec<Value> {
    let questions = format!("{FOLDER}/eval.jsonl");
    let mut args = vec!["-m", FOLDER, &questions, "--init", "zeros"];
    rules.iter().for_each(|rule| args.extend(["--rule", rule]));
    json(&args)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// Failed with one line on stderr, which is given, and nothing on stdout.
fn refused(args: &[&str], code: i32) -> String {
    let output = run(args);
    let text = String::from_utf8(output.stderr).expect("UTF-8 on stderr");
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty());
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().strip_prefix("rdt-eval: ").unwrap_or_else(|| panic!("{text}")).to_owned()
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a file in a temporary folder");
    path
}

#[test]
fn answers_are_the_published_ones_and_exits_save_steps() {
    let outcomes = eval(&["fixed:6", "fixed:12", "acceleration,max=12"]);
    let [six, twelve, exits] = outcomes.as_slice() else { panic!("three rules, {} outcomes", outcomes.len()) };

    // 240 of 240 where this was written; another order of additions may turn a near tie.
    assert_eq!(six["recorded"][1], 240);
    assert!(six["recorded"][0].as_u64() >= Some(238), "{}", six["differences"]);
    for difference in six["differences"].as_array().expect("a list") {
        assert!(difference["gap"].as_f64() < Some(0.01), "not a near tie: {difference}");
    }

    let accuracy = |o: &Value| 100.0 * o["right"].as_f64().expect("a number") / 240.0;
    assert_eq!(twelve["mean_steps"], 12.0);
    assert_eq!(twelve["mean_steps_answer"], 12.0);
    assert!((accuracy(exits) - accuracy(twelve)).abs() <= 1.0, "{} {}", exits["right"], twelve["right"]);
    let mean = exits["mean_steps"].as_f64().expect("a number");
    assert!((3.0..=7.0).contains(&mean), "{mean} mean steps");
}

#[test]
fn cells_add_up_to_the_totals() {
    let outcomes = json(&["-m", FOLDER, "--depths", "1,3", "--rule", "acceleration,max=8", "--limit", "30"]);
    assert_eq!(outcomes.iter().map(|o| o["fixed"] == true).collect::<Vec<_>>(), [true, true, false]);
    for o in &outcomes {
        let cells = o["cells"].as_array().expect("a list");
        let classes = o["by_steps_needed"].as_array().expect("a list");
        for name in ["right", "asked", "tokens", "answer_tokens"] {
            for parts in [cells, classes] {
                assert_eq!(parts.iter().map(|c| count(&c[name])).sum::<u64>(), count(&o[name]), "{name}");
            }
        }
        assert_eq!(count(&o["asked"]), 30);
        let steps = |c: &Value| c["mean_steps"].as_f64().expect("a number") * count(&c["tokens"]) as f64;
        assert!((cells.iter().map(steps).sum::<f64>() - steps(o)).abs() < 1e-6);
        let mut kinds: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for cell in cells {
            let kind = kinds.entry(cell["kind"].as_str().expect("a text")).or_default();
            kind.0 += count(&cell["right"]);
            kind.1 += count(&cell["asked"]);
        }
        assert_eq!(o["kinds"], serde_json::to_value(kinds).expect("JSON"));
        assert!(o.get("answers").is_none());
    }
}

#[test]
fn the_chart_has_a_line_for_each_class() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("chart.svg");
    let plot = path.to_str().expect("UTF-8");
    let args = ["-m", FOLDER, "--limit", "12", "--depths", "1,2,4", "--rule", "acceleration", "--plot", plot, "--json"];
    let outcomes: Vec<Value> = serde_json::from_str(out(&run(&args))).expect("JSON on stdout");
    let svg = std::fs::read_to_string(&path).expect("a chart");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing else is left");
    let classes = outcomes[0]["by_steps_needed"].as_array().expect("a list");
    assert!(classes.len() > 1);
    for (i, class) in classes.iter().enumerate() {
        let n = count(&class["steps_needed"]);
        assert!(svg.contains(&format!("{n} reasoning step")), "{n}");
        // A line among the data, and one in the legend.
        let lines =
            svg.split('<').filter(|tag| tag.starts_with("polyline") && tag.contains(&format!("\"k{}\"", i + 1)));
        assert_eq!(lines.count(), 2, "{n}");
    }
    balanced(&svg);
}

/// Every tag that opens closes, in order.
fn balanced(document: &str) {
    let mut open = Vec::new();
    for tag in document.split('<').skip(1) {
        let inside = tag.split('>').next().expect("a first part");
        let name = inside.split([' ', '\n', '/']).find(|n| !n.is_empty()).expect("a name").to_owned();
        match (inside.starts_with('/'), inside.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "{tag}"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_built_in_model_answers_its_own_questions() {
    let outcomes = json(&["-m", "built-in", "--limit", "4", "-n", "8"]);
    let fixed = outcomes.iter().filter(|o| o["fixed"] == true).map(|o| count(&o["max_steps"]));
    let fixed: Vec<_> = fixed.collect();
    assert!(fixed.starts_with(&[1, 2, 4]) && fixed.is_sorted(), "{fixed:?}");
    assert_eq!(outcomes.last().expect("some")["fixed"], false);
    assert!(outcomes.iter().all(|o| count(&o["asked"]) == 4));
}

#[test]
fn any_of_several_answers_is_right_and_shown() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sum = "\"question\": \"What is 4 + 5, keeping only the last digit?\"";
    let lines = format!(
        "{{{sum}, \"answers\": [\"Nine.\", \" 9. \"]}}\n{{{sum}, \"answer\": \"8.\", \"other\": [1]}}\n{{{sum}, \"answer\": \"8.\", \"answers\": [\"9.\"]}}\n"
    );
    let path = file(folder.path(), "q.jsonl", &lines);
    let args = ["-m", FOLDER, path.to_str().expect("UTF-8"), "--depths", "6", "--init", "zeros", "-v"];
    let shown = run(&args);
    let text = out(&shown);
    assert!(text.contains("  right  6.00 steps  What is 4 + 5") && text.contains("->  9.  (right: 8.)"), "{text}");
    assert!(text.contains("\nright answers\n") && !text.contains("by kind"), "{text}");
    let outcome = &json(&args)[0];
    assert_eq!((&outcome["right"], &outcome["kinds"][""][1]), (&2.into(), &3.into()));
    assert_eq!(outcome["by_steps_needed"], serde_json::json!([]));
    let given = &outcome["answers"][1];
    assert_eq!(
        (&given["answer"], &given["right"], &given["right_answers"]),
        (&"9.".into(), &false.into(), &serde_json::json!(["8."]))
    );
}

#[test]
fn the_openings_are_questions() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/models/openings.jsonl");
    let outcome = &json(&["-m", "built-in", path, "--depths", "8", "--show"])[0];
    assert_eq!((&outcome["asked"], &outcome["cells"][0]["steps_needed"]), (&10.into(), &0.into()));
    assert_eq!(outcome["cells"][0]["kind"], "opening");
    assert_eq!(outcome["right"], 10, "{}", outcome["answers"]);
}

/// However many questions are answered at a time, the answers and what they took are the same to the last digit.
#[test]
fn company_does_not_show() {
    let questions = format!("{FOLDER}/eval.jsonl");
    let of = |parallel: &str, more: &[&str]| {
        let args = ["-m", FOLDER, &questions, "--init", "zeros", "--limit", "12", "-v", "-np", parallel];
        let rules = ["--rule", "fixed:6", "--rule", "acceleration,max=12", "--rule", "kl:0.003,hits=1,max=12"];
        let mut outcomes = json(&[&args, &rules[..], more].concat());
        let at_a_time = outcomes.iter().map(|o| count(&o["parallel"])).collect::<Vec<_>>();
        for outcome in &mut outcomes {
            let fields = outcome.as_object_mut().expect("an object");
            ["seconds", "parallel"].iter().for_each(|name| assert!(fields.remove(*name).is_some(), "{name}"));
        }
        (at_a_time, serde_json::to_string(&outcomes).expect("JSON"))
    };
    // Whole, and with a context that cuts some answers off.
    for context in ["256", "48"] {
        let (one, alone) = of("1", &["-c", context]);
        assert_eq!(one, [1; 3]);
        for (parallel, more, most) in [("3", &[][..], 3), ("8", &["-b", "10"], 8), ("8", &["-b", "2"], 2)] {
            let (at_a_time, found) = of(parallel, &[&["-c", context], more].concat());
            assert!(found == alone, "{parallel} at a time, {more:?}, context {context}");
            assert_eq!(at_a_time, [most; 3], "{more:?}");
        }
    }
    assert!(of("8", &["-t", "2"]).1 == of("1", &[]).1, "two threads");
}

#[test]
fn a_question_that_does_not_fit_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let question =
        |words: usize| format!("{{\"question\": \"{}\", \"answer\": \"b\"}}\n", "Red leads to Blue. ".repeat(words));
    let lines: String = [1, 1, 40, 1, 80].map(question).concat();
    let path = file(folder.path(), "q.jsonl", &lines);
    let said = |parallel: &str| {
        let args = ["-m", FOLDER, path.to_str().expect("UTF-8"), "--depths", "2", "-c", "64", "--parallel", parallel];
        let output = run(&args);
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).expect("UTF-8 on stderr");
        text.lines().last().expect("a line").to_owned()
    };
    let alone = said("1");
    assert!(alone.contains("the question on line 3: ") && alone.contains("64"), "{alone}");
    ["2", "8"].iter().for_each(|parallel| assert_eq!(said(parallel), alone));
}

#[test]
fn what_is_wrong_is_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let written = |name: &str, text: &str| {
        let path = file(folder.path(), name, text);
        path.to_str().expect("UTF-8").to_owned()
    };
    let good = "{\"question\": \"a\", \"answer\": \"b\", \"kind\": \"k\"}\n";
    let (empty, wrong) =
        (written("empty.jsonl", "\n\n"), written("wrong.jsonl", &format!("{good}\n{{\"question\": 1}}")));
    let good = written("good.jsonl", good);
    assert_eq!(refused(&[&empty], 1), format!("{empty} holds no questions"));
    assert!(refused(&[&wrong], 1).starts_with(&format!("{wrong}:3: invalid type")));
    assert!(refused(&["no-such-file"], 1).starts_with("cannot read no-such-file: "));
    assert!(refused(&[FOLDER], 1).ends_with("is a folder; name a file with questions"));
    assert!(refused(&[&good, "--kind", "x"], 1).ends_with("of these kinds: k"));
    assert!(refused(&[&good, "--plot", "no-such-folder/a.svg"], 1).contains("no-such-folder"));
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops-q4_0.gguf");
    assert!(refused(&["-m", model], 2).starts_with("QUESTIONS is missing"));
    assert!(refused(&["--depths", "1,0"], 2).contains("must be at least 1"));
    assert!(refused(&["--rule", "sometimes"], 2).contains("sometimes"));
    assert!(
        refused(&["-m", model, "--depths", "2", "--exit-rule", "auto", &good], 1).contains("no calibration profile")
    );
}

/// What the model that is built in is for: easy questions take few loop steps, harder ones more, and the rule that chat follows loses
/// nothing.
#[test]
fn depth_pays_on_the_model_that_is_built_in() {
    let outcomes =
        json(&["-m", "built-in", "--depths", "1,2,8", "--rule", "acceleration,max=16", "--rule", "kl,max=8"]);
    let [one, two, full, acceleration, kl] = outcomes.as_slice() else { panic!("{} outcomes", outcomes.len()) };
    let right = |o: &Value, steps: usize| {
        let class = &o["by_steps_needed"][steps - 1];
        assert_eq!((&class["steps_needed"], &class["asked"]), (&steps.into(), &60.into()));
        count(&class["right"]) as f64 / 60.0
    };
    for steps in 1..=6 {
        let (one, two, full) = (right(one, steps), right(two, steps), right(full, steps));
        assert!(one <= two + 0.02 && two <= full + 0.02, "{steps}: {one} {two} {full}");
    }
    assert!(right(full, 1) >= 0.9 && right(full, 2) >= 0.9 && right(full, 4) >= 0.6);
    // The more reasoning steps, the more the first loop step misses.
    assert!(right(one, 1) > right(one, 2) && right(one, 2) > right(one, 4) && right(one, 4) > right(one, 6));

    for exits in [acceleration, kl] {
        let lost = count(&full["right"]) as f64 - count(&exits["right"]) as f64;
        assert!(lost <= 3.6, "within a point of full depth: {lost} of 360");
        let mean = |range: std::ops::RangeInclusive<usize>| {
            let of = |n: usize| exits["by_steps_needed"][n - 1]["mean_steps_first"].as_f64().expect("a number");
            range.clone().map(of).sum::<f64>() / range.count() as f64
        };
        let (easy, middle, hard) = (mean(1..=2), mean(3..=4), mean(5..=6));
        assert!(easy < middle && middle < hard, "{} {easy} {middle} {hard}", exits["rule"]);
    }
}

/// Several tokens in flight answer as one after the other; along a wavefront the trained model loses no more than a point.
#[test]
fn strategies_answer_alike() {
    let ask = |more: &[&str]| {
        let args = ["-m", "built-in", "--rule", "fixed:8", "--rule", "acceleration,max=16", "--limit", "72", "--show"];
        json(&[&args, more].concat())
    };
    let plain = ask(&[]);
    let pipeline = ask(&["--decode", "pipeline:every=1,rows=6"]);
    for (a, b) in plain.iter().zip(&pipeline) {
        for key in ["rule", "answers", "right", "mean_steps", "answer_tokens", "tokens"] {
            assert_eq!(a[key], b[key], "{key}");
        }
        assert!(a.get("decode").is_none());
        assert!(b["decode"]["rows_per_pass"].as_f64().unwrap() > 1.1 && b["parallel"] == 1, "{}", b["decode"]);
    }
    let wave = ask(&["--decode", "wavefront"]);
    assert_eq!((&wave[0]["decode"]["exact"], count(&wave[0]["decode"]["guessed"])), (&Value::Bool(false), 0));
    assert!(count(&wave[0]["right"]).abs_diff(count(&plain[0]["right"])) <= 1, "{}, {}", wave[0], plain[0]);
}
