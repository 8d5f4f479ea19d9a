//! The rules on trajectories whose exits are known; text and divergence are tested in their own files.

use super::*;
use crate::model::Depth;

pub(super) fn rule(text: &str) -> ExitRule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What an engine computes, from a whole trajectory: the statistics of every step after the first state.
fn stats<const D: usize>(states: &[[f32; D]]) -> Vec<LatentStats> {
    let norm = |v: [f32; D]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let minus = |a: [f32; D], b: [f32; D]| std::array::from_fn::<f32, D, _>(|i| a[i] - b[i]);
    let cosine = |a: [f32; D], b: [f32; D]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() / norm(a) / norm(b);
    (1..states.len())
        .map(|k| {
            let step = minus(states[k], states[k - 1]);
            let previous = (k > 1).then(|| minus(states[k - 1], states[k - 2]));
            LatentStats {
                segment: 0,
                step: k,
                state_norm: norm(states[k]),
                step_norm: norm(step),
                previous_step_norm: previous.map_or(f32::NAN, norm),
                acceleration: previous.map_or(f32::NAN, |p| norm(minus(step, p))),
                step_cosine: previous.map_or(f32::NAN, |p| cosine(step, p)),
                state_cosine: cosine(states[k], states[k - 1]),
                gate: f32::NAN,
            }
        })
        .collect()
}

/// The step after which a row leaves, running the loop as an engine does; `None` if it never does.
fn latent_exit(rule: &ExitRule, stats: &[LatentStats]) -> Option<usize> {
    let mut memory = rule.memory(0);
    stats.iter().find(|stats| rule.check_latent(&mut memory, stats)).map(|stats| stats.step)
}

/// As [`latent_exit`], with given accelerations and step norms (the same) at a state of norm 1.
fn exit_of(text: &str, statistics: &[f32]) -> Option<usize> {
    let stats: Vec<_> = (1..)
        .zip(statistics)
        .map(|(step, &x)| LatentStats {
            segment: 0,
            step,
            state_norm: 1.0,
            step_norm: x,
            previous_step_norm: f32::NAN,
            acceleration: x,
            step_cosine: f32::NAN,
            state_cosine: f32::NAN,
            gate: f32::NAN,
        })
        .collect();
    latent_exit(&rule(text), &stats)
}

fn readout_exit(rule: &ExitRule, readouts: &[Vec<f32>]) -> Option<usize> {
    let mut memory = rule.memory(readouts[0].len());
    (1..).zip(readouts).find(|(k, logits)| rule.check_readout(&mut memory, *k, logits)).map(|(k, _)| k)
}

#[test]
fn hits_are_consecutive_checked_steps_strictly_below_the_threshold() {
    let (hit, miss, nan) = (0.1, 0.9, f32::NAN);
    let table: &[(&str, &[f32], Option<usize>)] = &[
        // One hit.
        ("step-norm:0.5", &[hit], Some(1)),
        ("step-norm:0.5", &[miss, miss, hit], Some(3)),
        ("step-norm:0.5", &[miss, miss], None),
        ("step-norm:0.5", &[0.5, 0.499_999_97], Some(2)),
        ("step-norm:0.5", &[0.0], Some(1)),
        // Two: a miss in between starts anew. Accelerations begin with NaN, so step 3 is the earliest.
        ("acceleration:0.5", &[nan, hit, hit, hit], Some(3)),
        ("acceleration:0.5", &[nan, hit, miss, hit, miss, hit, hit], Some(7)),
        ("acceleration:0.5,hits=1", &[nan, hit], Some(2)),
        ("acceleration:0.5,hits=4", &[nan, hit, hit, hit, miss, hit, hit, hit, hit], Some(9)),
        ("acceleration-raw:0.5", &[nan, miss, hit, hit], Some(4)),
        // NaN is never a hit, and no part of a run.
        ("acceleration:0.5", &[nan, hit, nan, hit, hit], Some(5)),
        ("step-norm:0.5", &[nan, nan, nan], None),
        ("step-norm:0.5", &[f32::INFINITY, hit], Some(2)),
        // Steps up to `min` are not checked, and their hits do not count.
        ("step-norm:0.5,min=2", &[hit, hit, hit], Some(3)),
        ("step-norm:0.5,min=2", &[hit, hit, miss, hit], Some(4)),
        ("step-norm:0.5,hits=2,min=2", &[hit, hit, hit, hit], Some(4)),
        ("acceleration:0.5,min=1", &[nan, hit, hit], Some(3)),
        ("acceleration:0.5,min=4", &[nan, hit, hit, hit, hit, hit], Some(6)),
        // With an interval, the steps between count for nothing.
        ("step-norm:0.5,every=2", &[miss, hit, hit], Some(3)),
        ("step-norm:0.5,every=3", &[miss, hit, hit, hit], Some(4)),
        ("step-norm:0.5,hits=2,every=2", &[hit, miss, hit], Some(3)),
        ("step-norm:0.5,min=1,every=2", &[hit, miss, hit, hit], Some(4)),
        ("step-norm:0.5,every=9,max=5", &[miss, hit, hit, hit, hit], Some(5)),
        // `max` is the last step, whatever the statistic, even before the rule could have fired.
        ("step-norm:0.5,max=2", &[miss, miss, miss], Some(2)),
        ("step-norm:0.5,max=2", &[nan, nan], Some(2)),
        ("acceleration:0.5,max=1", &[nan, hit], Some(1)),
        ("acceleration:0.5,hits=9,max=3", &[nan, hit, hit, hit], Some(3)),
        ("acceleration:0.5,min=2,max=3", &[nan, hit, miss, hit], Some(3)),
        ("acceleration:0.5,max=9", &[nan, hit, hit], Some(3)),
        // No statistic: the count alone.
        ("fixed", &[hit; 40], None),
        ("fixed:3", &[hit; 40], Some(3)),
        // A rule that waits for a read-out has nothing to say about latents, save at its cap.
        ("kl:0.5", &[hit; 40], None),
        ("kl:0.5,max=5", &[hit; 40], Some(5)),
    ];
    for (text, statistics, expected) in table {
        assert_eq!(exit_of(text, statistics), *expected, "{text} on {statistics:?}");
    }
}

#[test]
fn memory_can_be_used_for_the_next_row() {
    let two = rule("step-norm:0.5,hits=2");
    let mut memory = two.memory(0);
    let at = |step| LatentStats {
        segment: 0,
        step,
        state_norm: 1.0,
        step_norm: 0.1,
        previous_step_norm: 0.1,
        acceleration: 0.1,
        step_cosine: 1.0,
        state_cosine: 1.0,
        gate: f32::NAN,
    };
    assert!(!two.check_latent(&mut memory, &at(1)));
    memory.reset();
    assert!(!two.check_latent(&mut memory, &at(1)));
    assert!(two.check_latent(&mut memory, &at(2)));

    // The first read-out of the next row is compared with the uniform distribution again.
    let kl = rule("kl");
    let mut memory = kl.memory(3);
    let peaked = [5.0, 0.0, -5.0];
    assert!(!kl.check_readout(&mut memory, 1, &peaked));
    assert!(kl.check_readout(&mut memory, 2, &peaked));
    memory.reset();
    assert!(!kl.check_readout(&mut memory, 1, &peaked));
    memory.reset();
    assert!(kl.check_readout(&mut memory, 1, &[2.0, 2.0, 2.0]));
}

/// On s_k = 1 − r^k the statistics are known: Δ_k = r^(k−1)·(1 − r), and Δ_k − Δ_{k−1} = −Δ_{k−1}·(1 − r).
#[test]
fn a_geometric_approach_leaves_where_algebra_says() {
    let states: Vec<[f32; 1]> = (0..40).map(|k| [1.0 - 0.5f32.powi(k)]).collect();
    let stats = stats(&states);
    // ‖Δ_k‖ = 2^-k and ‖Δ_k − Δ_{k−1}‖ = 2^-k alike, so thresholds between the powers name the step.
    for k in 2..20 {
        let between = 1.5 * 0.5f32.powi(k);
        let step = usize::try_from(k).unwrap();
        let raw = |hits| rule(&format!("acceleration-raw:{between:e},hits={hits}"));
        assert_eq!(latent_exit(&raw(1), &stats), Some(step));
        assert_eq!(latent_exit(&raw(2), &stats), Some(step + 1));
        // ‖s_k‖ = 1 − 2^-k lifts the relative statistics to 1/(2^k − 1), which never passes 1.5/2^k for k >= 2.
        for name in ["acceleration", "step-norm"] {
            let relative = rule(&format!("{name}:{between:e},hits=1"));
            assert_eq!(latent_exit(&relative, &stats), Some(step), "{name}");
        }
    }
}

/// A state that moves on by the same step for ever: the second order sees it settled, the first never does.
#[test]
fn a_constant_drift_is_settled_to_second_order_only() {
    let states: Vec<[f32; 2]> = (0..50).map(|k| [1.0 + 0.25 * k as f32, 2.0]).collect();
    let stats = stats(&states);
    assert_eq!(latent_exit(&rule("acceleration:1e-6"), &stats), Some(3));
    assert_eq!(latent_exit(&rule("acceleration-raw:1e-6"), &stats), Some(3));
    assert_eq!(latent_exit(&rule("acceleration-raw:1e-6,min=6"), &stats), Some(8));
    assert_eq!(latent_exit(&rule("step-norm:1e-2"), &stats), None);
    // And one that jumps to and fro is never settled.
    let cycle: Vec<[f32; 2]> = (0..50).map(|k| [1.0, (k % 2) as f32]).collect();
    for text in ["acceleration", "acceleration-raw:0.5", "step-norm"] {
        assert_eq!(latent_exit(&rule(text), &self::stats(&cycle)), None, "{text}");
    }
}

/// Only the normalised rules are blind to the scale of the latent.
#[test]
fn normalised_rules_do_not_see_the_scale() {
    let scaled = |scale: f32| stats(&(0..30).map(|k| [scale * (1.0 - 0.5f32.powi(k)), scale]).collect::<Vec<_>>());
    for text in ["acceleration:0.01", "step-norm:0.01"] {
        let exits: Vec<_> = [1.0, 1024.0, 1.0 / 1024.0].map(|s| latent_exit(&rule(text), &scaled(s))).into();
        assert_eq!(exits, vec![exits[0]; 3], "{text}");
        assert!(exits[0].is_some());
    }
    let raw = rule("acceleration-raw:0.01");
    assert_ne!(latent_exit(&raw, &scaled(1.0)), latent_exit(&raw, &scaled(1024.0)));
}

/// A state of zeros has no scale: 0/0 is NaN, and the row goes on.
#[test]
fn a_zero_state_goes_on() {
    let stats = stats(&[[0.0f32; 3]; 8]);
    assert_eq!(latent_exit(&rule("acceleration"), &stats), None);
    assert_eq!(latent_exit(&rule("step-norm"), &stats), None);
    assert_eq!(latent_exit(&rule("acceleration-raw:1e-9"), &stats), Some(3));
}

#[test]
fn checks_stand_between_min_and_the_cap() {
    let checked = |text: &str| (1..9).filter(|&step| rule(text).is_checked(step)).collect::<Vec<_>>();
    assert_eq!(checked("kl,min=2,max=6"), [3, 4, 5]);
    assert_eq!(checked("acceleration,max=3"), [1, 2]);
    assert_eq!(checked("kl,min=7"), [8]);
    assert_eq!(checked("entropy,every=3"), [1, 4, 7]);
    assert_eq!(checked("argmax,min=1,every=2,max=7"), [2, 4, 6]);
    assert!(checked("fixed").is_empty());
    assert!(checked("fixed:4").is_empty());
}

#[test]
fn steps_that_are_not_checked_need_no_readout() {
    let kl = rule("kl:0.5,min=2,max=6");
    let peaked = vec![9.0, 0.0, 0.0, 0.0];
    let mut memory = kl.memory(4);
    // Up to `min` nothing is looked at, whatever is passed; so step 3 compares with the uniform distribution.
    assert!(!kl.check_readout(&mut memory, 1, &[]));
    assert!(!kl.check_readout(&mut memory, 2, &peaked));
    assert!(!kl.check_readout(&mut memory, 3, &peaked));
    assert!(kl.check_readout(&mut memory, 4, &peaked));
    assert!(kl.check_readout(&mut memory, 6, &[]));
    // A rule on latents leaves only at its cap when shown a read-out.
    assert_eq!(readout_exit(&rule("acceleration"), &vec![peaked.clone(); 5]), None);
    assert_eq!(readout_exit(&rule("acceleration,max=4"), &vec![peaked; 5]), Some(4));
}

/// What the exit evaluators of the public reference print for these numbers
/// (`tests/reference/huginn.py CHECKOUT statistics`).
#[test]
fn statistics_are_those_of_the_reference() {
    let rows = [
        [0.5, -1.25, 2.0, 0.75, -0.5, 1.0],
        [1.5, -0.75, 2.5, -0.25, -1.0, 3.0],
        [1.25, -1.0, 2.25, 0.5, -1.5, 2.75],
        [1.375, -1.125, 2.0, 0.25, -1.25, 3.125],
        [1.375, -1.0625, 2.0, 0.25, -1.25, 3.0],
    ];
    let close = |found: f32, expected: f32| {
        assert!(
            (found - expected).abs() <= 2e-6 * expected.abs() || found.is_nan() && expected.is_nan(),
            "{found} is not {expected}"
        );
    };
    let nan = f32::NAN;
    let table: [(&str, [f32; 4]); 4] = [
        ("acceleration-step:1", [nan, 0.906_136_8, 0.890_884_2, 0.945_264_94]),
        ("acceleration", [nan, 0.781_861_54, 0.337_241_9, 0.166_352_73]),
        ("acceleration-raw:1", [nan, 3.288_236_6, 1.452_368_7, 0.698_771_24]),
        ("step-norm", [0.594_088_5, 0.245_093_2, 0.139_199_8, 0.033_270_55]),
    ];
    for (text, expected) in table {
        let Statistic::Latent(statistic) = rule(text).rule.statistic else { unreachable!() };
        for (stats, expected) in stats(&rows).iter().zip(expected) {
            close(statistic(stats), expected);
        }
    }
    // The reference works in f32: what is left of a difference is good to some 1e-7 of its terms.
    let near = |found: f32, expected: f32, terms: f32| {
        assert!((found - expected).abs() < 5e-7 * terms.max(1.0), "{found} is not {expected}");
    };
    let cosine = rule("cosine");
    let expected = [0.171_906_53, 0.028_121_114, 0.009_639_442, 0.000_228_881_84];
    for (stats, expected) in stats(&rows).iter().zip(expected) {
        near(cosine.measure_latent(&mut cosine.memory(0), stats), expected, 1.0);
    }
    let table: [(&str, [f32; 5]); 4] = [
        ("kl", [0.483_907_52, 0.379_077_32, 0.014_330_62, 0.039_702_02, 0.001_900_012]),
        ("min-p-kl", [0.133_311_45, 0.142_446_88, 0.047_532_775, 0.062_054_44, 0.001_153_497_6]),
        ("entropy", [98.611_13, 0.257_172_82, 0.066_789_985, 0.141_116_62, 0.048_401_95]),
        // The reference counts how often the token has stayed: 0, 0, 1, 2, 3.
        ("argmax", [1.0, 1.0, 0.0, 0.0, 0.0]),
    ];
    for (text, expected) in table {
        let rule = rule(text);
        let mut memory = rule.memory(6);
        for (logits, expected) in rows.iter().zip(expected) {
            near(rule.measure_readout(&mut memory, logits), expected, expected);
        }
    }
}

/// Read-outs that tell the rules on them apart: the same token throughout, surer and surer.
#[test]
fn readout_rules_see_different_things() {
    let surer: Vec<Vec<f32>> = (0..12).map(|k| vec![k as f32, 0.0, 0.0]).collect();
    // Equal logits have their first as the most likely one, so it never changes.
    assert_eq!(readout_exit(&rule("argmax"), &surer), Some(6));
    assert_eq!(readout_exit(&rule("argmax,hits=1"), &surer), Some(2));
    assert_eq!(readout_exit(&rule("argmax,hits=2,min=3,every=2"), &surer), Some(8), "checked after 4, 6 and 8");
    let entropy = readout_exit(&rule("entropy:0.01"), &surer).unwrap();
    assert!(entropy > 6, "{entropy}");
    // Two tokens that change places keep the entropy.
    let swap: Vec<Vec<f32>> = (0..4).map(|k| if k % 2 == 0 { vec![2.0, 1.0] } else { vec![1.0, 2.0] }).collect();
    assert_eq!(readout_exit(&rule("entropy:1e-6"), &swap), Some(2));
    assert_eq!(readout_exit(&rule("argmax,hits=1"), &swap), None);
    assert_eq!(readout_exit(&rule("min-p-kl"), &swap), None);
    // What happens in the tail is nothing to min-p-kl.
    let tail: Vec<Vec<f32>> = (0..3).map(|k| vec![9.0, k as f32, 2.0 - k as f32]).collect();
    assert_eq!(readout_exit(&rule("min-p-kl:1e-6"), &tail), Some(2));
    assert_eq!(readout_exit(&rule("kl:1e-6"), &tail), None);
    // Nothing that is not a number lets a row leave.
    let nan = vec![vec![f32::NAN, 1.0]; 8];
    for text in ["kl:9", "min-p-kl:9", "entropy:9", "argmax,hits=1"] {
        assert_eq!(readout_exit(&rule(text), &nan), None, "{text}");
    }
}

/// The state turns by the same angle each step, at any length.
#[test]
fn cosine_sees_directions_only() {
    let turning: Vec<[f32; 2]> = (0..9)
        .map(|k| {
            let (angle, length) = (1.0 / (1 << k) as f32, (k + 1) as f32);
            [length * angle.cos(), length * angle.sin()]
        })
        .collect();
    // 1 − cos(2^-k) is near 2^(-2k − 1).
    assert_eq!(latent_exit(&rule("cosine:0.03"), &stats(&turning)), Some(3));
    assert_eq!(latent_exit(&rule("step-norm:0.03"), &stats(&turning)), None, "its length still grows");
}

/// The step after which `gate` leaves on these gates (logits).
fn gate_exit(text: &str, gates: &[f32]) -> Option<usize> {
    let none = f32::NAN;
    let stats = |(step, &gate): (usize, &f32)| LatentStats {
        segment: 0,
        step,
        state_norm: none,
        step_norm: none,
        previous_step_norm: none,
        acceleration: none,
        step_cosine: none,
        state_cosine: none,
        gate,
    };
    latent_exit(&rule(text), &(1..).zip(gates).map(stats).collect::<Vec<_>>())
}

/// At a gate of 0 half of what is left leaves: 0.5, 0.75, 0.875, ...
#[test]
fn the_gates_sum_has_to_reach_the_threshold() {
    let (half, nan) = ([0.0; 6], f32::NAN);
    let table: &[(&str, &[f32], Option<usize>)] = &[
        ("gate:0.5", &half, Some(1)),
        ("gate:0.500001", &half, Some(2)),
        ("gate:0.75", &half, Some(2)),
        ("gate:0.9", &half, Some(4)),
        ("gate:0.999", &half, None),
        ("gate:0.5", &[-9.0, -9.0, 9.0], Some(3)),
        // Further hits are further steps; unchecked steps count in the sum.
        ("gate:0.5,hits=3", &half, Some(3)),
        ("gate:0.75,min=1", &half, Some(2)),
        ("gate:0.5,min=3", &half, Some(4)),
        ("gate:0.5,hits=2,min=1", &half, Some(3)),
        ("gate:0.999,max=3", &half, Some(3)),
        // Certainty is no exit: 1 and more are off, though the sum rounds to 1.
        ("gate:0.999", &[80.0], Some(1)),
        ("gate:1", &[80.0; 6], None),
        ("gate:7,max=6", &[f32::INFINITY; 6], Some(6)),
        ("gate:0.5", &[f32::INFINITY], Some(1)),
        ("gate:0.5", &[f32::NEG_INFINITY, 0.0], Some(2)),
        // A gate that is not a number decides nothing, then and later.
        ("gate:0.5", &[nan, 9.0, 9.0], None),
        ("gate:0.5,max=3", &[-9.0, nan, 9.0], Some(3)),
    ];
    for (text, gates, expected) in table {
        assert_eq!(gate_exit(text, gates), *expected, "{text} on {gates:?}");
    }
    // Without a gate there is nothing to go by.
    assert_eq!(exit_of("gate:0.5", &[0.1; 9]), None);
}

#[test]
fn the_gates_sum_is_forgotten_with_the_row() {
    let rule = rule("gate:0.7");
    let mut memory = rule.memory(0);
    let at = |step| LatentStats {
        segment: 0,
        step,
        state_norm: 1.0,
        step_norm: 1.0,
        previous_step_norm: 1.0,
        acceleration: 1.0,
        step_cosine: 1.0,
        state_cosine: 1.0,
        gate: 0.0,
    };
    assert!(!rule.check_latent(&mut memory, &at(1)));
    memory.reset();
    assert!(!rule.check_latent(&mut memory, &at(1)));
    assert!(rule.check_latent(&mut memory, &at(2)));
}

/// Models that were trained at one depth have no use for a rule that waits for rest.
#[test]
fn the_default_depends_on_how_the_model_was_trained() {
    let config = |loops: &[(usize, Option<usize>)]| Config {
        architecture: String::new(),
        name: String::new(),
        width: 2,
        state_width: 2,
        vocab: 1,
        context: 1,
        head_dim: 2,
        embedding_scale: 1.0,
        loops: loops.iter().map(|&(mean_steps, max_steps)| Depth { mean_steps, max_steps }).collect(),
        state_std: 0.0,
        prefix_lm: false,
        exit_gate: false,
    };
    let named = |loops| ExitRule::for_model(&config(loops)).to_string();
    assert_eq!(named(&[(32, None)]), rule("acceleration").to_string());
    assert_eq!(named(&[(8, Some(32))]), rule("acceleration").to_string());
    assert_eq!(named(&[(4, Some(4))]), "fixed");
    assert_eq!(named(&[(4, Some(4)), (3, None)]), rule("acceleration").to_string());
}
