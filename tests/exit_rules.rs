//! Exit rules on trajectories that the public reference recorded (`tests/reference/huginn.py`).

use rdt::exit::{ExitRule, Signal};
use rdt::model::LatentStats;
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
        if rule.signal() != Signal::Latent {
            continue;
        }
        let mut memory = rule.memory(0);
        let exits = case["exit_step"].as_array().unwrap();
        for (values, exit) in case["statistic"].as_array().unwrap().iter().zip(exits) {
            memory.reset();
            let statistics = values.as_array().unwrap().iter().map(|x| x.as_f64().unwrap_or(f64::NAN) as f32);
            let found = (1..).zip(statistics).find(|&(step, statistic)| {
                let stats = LatentStats {
                    segment: 0,
                    gate: f32::NAN,
                    step,
                    state_norm: 1.0,
                    step_norm: statistic,
                    previous_step_norm: f32::NAN,
                    acceleration: statistic,
                    step_cosine: f32::NAN,
                    state_cosine: f32::NAN,
                };
                rule.check_latent(&mut memory, &stats)
            });
            assert_eq!(found.map(|(step, _)| step as u64), exit.as_u64(), "{text}: {values}");
            rows += 1;
        }
    }
    assert_eq!(rows, 120);
}
