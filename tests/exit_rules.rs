//! Exit rules on trajectories that the public reference recorded (`tests/reference/huginn.py`).

use rdt::exit::ExitRule;
use serde_json::Value;

/// Every recorded row leaves the loop after the step at which the reference left it. The statistics are the
/// reference's own; that the engine computes the same ones is tested with the model.
#[test]
fn recorded_statistics_lead_to_the_recorded_exits() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn/exits.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut rows = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let text = case["rule"].as_str().unwrap();
        let rule: ExitRule = text.parse().unwrap();
        assert_eq!(rule.to_string(), text, "recorded in the printed form");
        let mut memory = rule.memory(0);
        let exits = case["exit_step"].as_array().unwrap();
        for (values, exit) in case["statistic"].as_array().unwrap().iter().zip(exits) {
            memory.reset();
            let statistics = values.as_array().unwrap().iter().map(|x| match x.as_f64() {
                None => f32::NAN,
                // The reference counts how often the token has stayed.
                Some(count) if rule.name() == "argmax" => f32::from(u8::from(count == 0.0)),
                Some(x) => x as f32,
            });
            let found = (1..).zip(statistics).find(|&(step, x)| rule.check_value(&mut memory, step, x));
            assert_eq!(found.map(|(step, _)| step as u64), exit.as_u64(), "{text}: {values}");
            rows += 1;
        }
    }
    assert_eq!(rows, 360);
}
