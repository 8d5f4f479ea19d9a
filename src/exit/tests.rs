//! The rules on trajectories whose exits are known, and the grammar.

use super::*;

fn rule(text: &str) -> ExitRule {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> Error {
    text.parse::<ExitRule>().expect_err(text)
}

/// What an engine computes, from a whole trajectory: the statistics of every step after the first state.
fn stats<const D: usize>(states: &[[f32; D]]) -> Vec<LatentStats> {
    let norm = |v: [f32; D]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let minus = |a: [f32; D], b: [f32; D]| std::array::from_fn::<f32, D, _>(|i| a[i] - b[i]);
    let cosine = |a: [f32; D], b: [f32; D]| {
        a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>() / norm(a) / norm(b)
    };
    (1..states.len())
        .map(|k| {
            let step = minus(states[k], states[k - 1]);
            let previous = (k > 1).then(|| minus(states[k - 1], states[k - 2]));
            LatentStats {
                step: k,
                state_norm: norm(states[k]),
                step_norm: norm(step),
                acceleration: previous.map_or(f32::NAN, |p| norm(minus(step, p))),
                step_cosine: previous.map_or(f32::NAN, |p| cosine(step, p)),
                state_cosine: cosine(states[k], states[k - 1]),
            }
        })
        .collect()
}

/// The step after which a row leaves, running the loop as an engine does; `None` if it never does.
fn latent_exit(rule: &ExitRule, stats: &[LatentStats]) -> Option<usize> {
    let mut memory = rule.memory(0);
    stats
        .iter()
        .find(|stats| rule.check_latent(&mut memory, stats))
        .map(|stats| stats.step)
}

/// As [`latent_exit`], with given accelerations and step norms (the same) at a state of norm 1.
fn exit_of(text: &str, statistics: &[f32]) -> Option<usize> {
    let stats: Vec<_> = (1..)
        .zip(statistics)
        .map(|(step, &x)| LatentStats {
            step,
            state_norm: 1.0,
            step_norm: x,
            acceleration: x,
            step_cosine: f32::NAN,
            state_cosine: f32::NAN,
        })
        .collect();
    latent_exit(&rule(text), &stats)
}

fn readout_exit(rule: &ExitRule, readouts: &[Vec<f32>]) -> Option<usize> {
    let mut memory = rule.memory(readouts[0].len());
    (1..)
        .zip(readouts)
        .find(|(k, logits)| rule.check_readout(&mut memory, *k, logits))
        .map(|(k, _)| k)
}

#[test]
fn rules_are_printed_in_one_form_that_reads_back_the_same() {
    let table = [
        ("acceleration", "acceleration:0.03,hits=2"),
        (
            "acceleration:0.03,hits=2,min=4,max=32",
            "acceleration:0.03,hits=2,min=4,max=32",
        ),
        (
            "acceleration:3e-2,max=32,min=4,hits=2",
            "acceleration:0.03,hits=2,min=4,max=32",
        ),
        ("acceleration,hits=1,min=0", "acceleration:0.03,hits=1"),
        ("acceleration,max=1", "acceleration:0.03,hits=2,max=1"),
        ("acceleration:1", "acceleration:1,hits=2"),
        ("acceleration:1000000", "acceleration:1000000,hits=2"),
        ("acceleration-raw:0.5", "acceleration-raw:0.5,hits=2"),
        (
            "acceleration-raw:1e-30,hits=3",
            "acceleration-raw:1e-30,hits=3",
        ),
        ("acceleration-raw:3.4e38", "acceleration-raw:3.4e38,hits=2"),
        ("step-norm", "step-norm:0.03,hits=1"),
        ("step-norm:.1,hits=002", "step-norm:0.1,hits=2"),
        ("kl", "kl:0.001,hits=1"),
        ("kl:0.0005,min=2", "kl:0.0005,hits=1,min=2"),
        ("fixed", "fixed"),
        ("fixed:1", "fixed:1"),
        ("fixed:64", "fixed:64"),
    ];
    for (written, printed) in table {
        let parsed = rule(written);
        assert_eq!(parsed.to_string(), printed);
        assert_eq!(rule(printed), parsed, "{printed}");
    }
}

#[test]
fn every_threshold_reads_back_the_same() {
    // Each exponent, with mantissas at both ends and in the middle; 0 and infinity are no thresholds.
    for exponent in 0..255u32 {
        for mantissa in [0, 1, 0x2a_aaab, 0x40_0000, 0x7f_ffff] {
            let threshold = f32::from_bits(exponent << 23 | mantissa);
            if threshold == 0.0 {
                continue;
            }
            let written = ExitRule {
                threshold,
                ..rule("step-norm")
            };
            let text = written.to_string();
            assert!(text.len() < 40, "{text}");
            assert_eq!(rule(&text), written, "{text}");
        }
    }
}

#[test]
fn settings_are_what_was_written() {
    let written = rule("acceleration:0.5,hits=3,min=4,max=9");
    assert_eq!(
        (written.name(), written.signal()),
        ("acceleration", Signal::Latent)
    );
    assert_eq!((written.threshold(), written.hits()), (Some(0.5), 3));
    assert_eq!((written.min_steps(), written.max_steps()), (4, Some(9)));
    assert_eq!(rule("acceleration-raw:1").signal(), Signal::Latent);
    assert_eq!(rule("step-norm").signal(), Signal::Latent);
    assert_eq!(rule("kl").signal(), Signal::Readout);
    assert_eq!(
        (rule("fixed").signal(), rule("fixed").threshold()),
        (Signal::None, None)
    );
    assert_eq!(
        (rule("fixed").max_steps(), rule("fixed:7").max_steps()),
        (None, Some(7))
    );
    assert_eq!(ExitRule::default(), rule("fixed"));
    assert_ne!(rule("acceleration"), rule("acceleration-raw:0.03"));
}

#[test]
fn what_is_no_rule_is_refused() {
    let bad_threshold = |rule, found: &str| Error::BadThreshold {
        rule,
        found: found.to_owned(),
    };
    for found in [
        "", "x", "NaN", "nan", "-nan", "inf", "-inf", "infinity", "1e39", "0", "-0", "1e-60",
        "-0.03",
    ] {
        assert_eq!(
            error(&format!("acceleration:{found}")),
            bad_threshold("acceleration", found)
        );
        assert_eq!(
            error(&format!("kl:{found},hits=2")),
            bad_threshold("kl", found)
        );
    }
    assert_eq!(error("kl:0.03:1"), bad_threshold("kl", "0.03:1"));
    assert_eq!(error("kl: 0.03"), bad_threshold("kl", " 0.03"));
    assert_eq!(
        error("acceleration-raw"),
        Error::NoThreshold {
            rule: "acceleration-raw"
        }
    );
    assert_eq!(
        error("acceleration-raw,hits=1"),
        Error::NoThreshold {
            rule: "acceleration-raw"
        }
    );

    for name in ["", "Acceleration", " kl", "speed", "acceleration raw"] {
        assert_eq!(
            error(name),
            Error::UnknownRule {
                name: name.to_owned()
            }
        );
    }
    for found in ["", "hits", "hits:2", " "] {
        assert_eq!(
            error(&format!("kl,{found}")),
            Error::NotASetting {
                found: found.to_owned()
            }
        );
    }
    assert_eq!(
        error("kl,hits=1,"),
        Error::NotASetting {
            found: String::new()
        }
    );
    for key in ["", "Hits", " hits", "steps"] {
        assert_eq!(
            error(&format!("kl,{key}=1")),
            Error::UnknownKey {
                key: key.to_owned()
            }
        );
    }
    assert_eq!(
        error("kl,hits=1,min=1,hits=1"),
        Error::RepeatedKey { key: "hits" }
    );
    assert_eq!(error("kl,max=5,max=6"), Error::RepeatedKey { key: "max" });
    for (key, least) in [("hits", 1), ("min", 0), ("max", 1)] {
        for found in [
            "",
            "x",
            "-1",
            "+1",
            "1.5",
            "99999999999999999999999",
            "1=1",
            "٣",
        ] {
            let expected = Error::BadCount {
                key,
                least,
                found: found.to_owned(),
            };
            assert_eq!(error(&format!("step-norm,{key}={found}")), expected);
        }
    }
    assert_eq!(
        error("kl,hits=0"),
        Error::BadCount {
            key: "hits",
            least: 1,
            found: "0".to_owned()
        }
    );
    assert_eq!(
        error("kl,max=0"),
        Error::BadCount {
            key: "max",
            least: 1,
            found: "0".to_owned()
        }
    );
    assert_eq!(
        error("kl,min=4,max=4"),
        Error::MinNotBelowMax { min: 4, max: 4 }
    );
    assert_eq!(
        error("kl,max=3,min=4"),
        Error::MinNotBelowMax { min: 4, max: 3 }
    );

    for found in ["", "0", "-1", "1.5", "+3", "18446744073709551616"] {
        assert_eq!(
            error(&format!("fixed:{found}")),
            Error::BadSteps {
                found: found.to_owned()
            }
        );
    }
    for key in ["hits", "min", "max"] {
        assert_eq!(
            error(&format!("fixed:4,{key}=2")),
            Error::NoSettings { rule: "fixed", key }
        );
    }
}

#[test]
fn messages_say_what_would_have_been_right() {
    let table = [
        (
            "speed",
            "unknown exit rule `speed`; known rules: acceleration, acceleration-raw, step-norm, kl, fixed",
        ),
        (
            "kl,hit=1",
            "unknown key `hit` in an exit rule; known keys: hits, min, max",
        ),
        (
            "acceleration:NaN",
            "the threshold of `acceleration` must be a positive, finite number, not `NaN`",
        ),
        (
            "acceleration-raw",
            "`acceleration-raw` has no default threshold; write one, as in `acceleration-raw:0.5`",
        ),
        (
            "kl,min=4,max=2",
            "min=4 leaves no step to check below max=2: the first check comes after step min + 1, so min must be less than max",
        ),
        ("kl,hits=0", "`hits` must be a whole number from 1, not `0`"),
        (
            "fixed:0",
            "`fixed` takes a whole number of steps from 1, as in `fixed:8`, not `0`",
        ),
        (
            "fixed,max=3",
            "`fixed` takes no `max`; it is written `fixed` or `fixed:STEPS`",
        ),
    ];
    for (text, message) in table {
        assert_eq!(error(text).to_string(), message);
    }
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
        (
            "acceleration:0.5",
            &[nan, hit, miss, hit, miss, hit, hit],
            Some(7),
        ),
        ("acceleration:0.5,hits=1", &[nan, hit], Some(2)),
        (
            "acceleration:0.5,hits=4",
            &[nan, hit, hit, hit, miss, hit, hit, hit, hit],
            Some(9),
        ),
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
        (
            "acceleration:0.5,min=4",
            &[nan, hit, hit, hit, hit, hit],
            Some(6),
        ),
        // `max` is the last step, whatever the statistic, even before the rule could have fired.
        ("step-norm:0.5,max=2", &[miss, miss, miss], Some(2)),
        ("step-norm:0.5,max=2", &[nan, nan], Some(2)),
        ("acceleration:0.5,max=1", &[nan, hit], Some(1)),
        (
            "acceleration:0.5,hits=9,max=3",
            &[nan, hit, hit, hit],
            Some(3),
        ),
        (
            "acceleration:0.5,min=2,max=3",
            &[nan, hit, miss, hit],
            Some(3),
        ),
        ("acceleration:0.5,max=9", &[nan, hit, hit], Some(3)),
        // No statistic: the count alone.
        ("fixed", &[hit; 40], None),
        ("fixed:3", &[hit; 40], Some(3)),
        // A rule that waits for a read-out has nothing to say about latents, save at its cap.
        ("kl:0.5", &[hit; 40], None),
        ("kl:0.5,max=5", &[hit; 40], Some(5)),
    ];
    for (text, statistics, expected) in table {
        assert_eq!(
            exit_of(text, statistics),
            *expected,
            "{text} on {statistics:?}"
        );
    }
}

#[test]
fn memory_can_be_used_for_the_next_row() {
    let two = rule("step-norm:0.5,hits=2");
    let mut memory = two.memory(0);
    let at = |step| LatentStats {
        step,
        state_norm: 1.0,
        step_norm: 0.1,
        acceleration: 0.1,
        step_cosine: 1.0,
        state_cosine: 1.0,
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
    assert_eq!(
        latent_exit(&rule("acceleration-raw:1e-6,min=6"), &stats),
        Some(8)
    );
    assert_eq!(latent_exit(&rule("step-norm:1e-2"), &stats), None);
    // And one that jumps to and fro is never settled.
    let cycle: Vec<[f32; 2]> = (0..50).map(|k| [1.0, (k % 2) as f32]).collect();
    for text in ["acceleration", "acceleration-raw:0.5", "step-norm"] {
        assert_eq!(
            latent_exit(&rule(text), &self::stats(&cycle)),
            None,
            "{text}"
        );
    }
}

/// Only the normalised rules are blind to the scale of the latent.
#[test]
fn normalised_rules_do_not_see_the_scale() {
    let scaled = |scale: f32| {
        stats(
            &(0..30)
                .map(|k| [scale * (1.0 - 0.5f32.powi(k)), scale])
                .collect::<Vec<_>>(),
        )
    };
    for text in ["acceleration:0.01", "step-norm:0.01"] {
        let exits: Vec<_> = [1.0, 1024.0, 1.0 / 1024.0]
            .map(|s| latent_exit(&rule(text), &scaled(s)))
            .into();
        assert_eq!(exits, vec![exits[0]; 3], "{text}");
        assert!(exits[0].is_some());
    }
    let raw = rule("acceleration-raw:0.01");
    assert_ne!(
        latent_exit(&raw, &scaled(1.0)),
        latent_exit(&raw, &scaled(1024.0))
    );
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
    let checked = |text: &str| {
        (1..9)
            .filter(|&step| rule(text).is_checked(step))
            .collect::<Vec<_>>()
    };
    assert_eq!(checked("kl,min=2,max=6"), [3, 4, 5]);
    assert_eq!(checked("acceleration,max=3"), [1, 2]);
    assert_eq!(checked("kl,min=7"), [8]);
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
    assert_eq!(
        readout_exit(&rule("acceleration"), &vec![peaked.clone(); 5]),
        None
    );
    assert_eq!(
        readout_exit(&rule("acceleration,max=4"), &vec![peaked; 5]),
        Some(4)
    );
}

#[test]
#[should_panic(expected = "another vocabulary")]
fn a_readout_of_another_size_is_a_mistake() {
    let kl = rule("kl");
    kl.check_readout(&mut kl.memory(4), 1, &[0.0; 5]);
}
