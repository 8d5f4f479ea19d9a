//! The shipped checkpoint's own questions, through the program that the README names: the published implementation's answers
//! come out, and an exit rule saves loop steps without losing answers.

use std::process::Command;

fn eval(rules: &[&str]) -> Vec<serde_json::Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/huginn-hops");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-eval"));
    command.args(["-m", folder, &format!("{folder}/eval.jsonl"), "--init", "zeros", "--json"]);
    for rule in rules {
        command.args(["--rule", rule]);
    }
    let output = command.output().expect("rdt-eval runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON on stdout")
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

    let accuracy = |o: &serde_json::Value| 100.0 * o["right"].as_f64().expect("a number") / 240.0;
    assert_eq!(twelve["mean_steps"], 12.0);
    assert!((accuracy(exits) - accuracy(twelve)).abs() <= 1.0, "{} {}", exits["right"], twelve["right"]);
    let mean = exits["mean_steps"].as_f64().expect("a number");
    assert!((3.0..=7.0).contains(&mean), "{mean} mean steps");
}
