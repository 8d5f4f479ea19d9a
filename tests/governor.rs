//! The governor on made-up devices, in virtual time: does it hold what it promises?

use rdt::calibrate::Profile;
use rdt::governor::simulate::{self, Device, Load, Spec, Trace, run, run_with};
use rdt::governor::{
    Budget, Cause, Controller, Decision, LONGEST_PAUSE, Ladder, Log, Mode, Observation, READING_RATE, Readings,
};

const LOSS: f64 = 0.01;

fn laptop() -> Profile {
    simulate::profile(12.0, 6.5)
}

fn phone() -> Profile {
    simulate::profile(20.0, 11.0)
}

fn governor(profile: &Profile, budget: Budget, cores: usize) -> Controller {
    let budget = budget.checked().unwrap();
    Controller::new(Ladder::of_points(profile, budget.max_loss).unwrap(), budget, cores, 0.0)
}

/// Full depth, ungoverned: every token takes the published number of steps, on all cores.
fn ungoverned(cores: usize) -> Controller {
    let ladder = Ladder::of_rule("fixed:32".parse().unwrap(), 32.0, "to compare with");
    Controller::new(ladder, Budget::of_mode(Mode::Off), cores, 0.0)
}

fn told(trace: &Trace) -> String {
    trace.decisions.iter().map(|d| format!("{:8.2} {:?}: {}\n", d.at, d.cause, d.reason)).collect()
}

/// Is the quality floor held by every token?
fn floor_holds(trace: &Trace, floor: f64) {
    assert!(!trace.tokens.is_empty() && trace.tokens.iter().all(|t| t.loss.is_finite()), "{}", told(trace));
    let worst = trace.tokens.iter().map(|t| t.loss).fold(f64::NEG_INFINITY, f64::max);
    assert!(worst <= floor, "{worst} lost: {}", told(trace));
}

#[test]
fn target_rates_are_held_within_five_per_cent() {
    let profile = laptop();
    for target in [1.0, 4.0, 4.9, 5.5, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0] {
        let budget = Budget { target_tps: Some(target), ..Budget::of_mode(Mode::Balanced) };
        let mut device = Device::new(Spec::laptop());
        let trace = run(&mut device, &mut governor(&profile, budget, 4), &profile, 300.0);
        floor_holds(&trace, LOSS);
        let steps =
            trace.between(20.0, 300.0).map(|t| t.steps as f64).sum::<f64>() / trace.between(20.0, 300.0).count() as f64;
        println!(
            "target {target}: {:.3} tokens/s, {steps:.1} steps, {} decisions, {} of them after 20 s",
            trace.rate(20.0, 300.0),
            trace.decisions.len(),
            trace.decided(20.0, 300.0)
        );
        for from in (20..300).step_by(20) {
            let rate = trace.rate(f64::from(from), f64::from(from + 20));
            assert!((rate / target - 1.0).abs() < 0.05, "{target} from {from}: {rate}\n{}", told(&trace));
        }
        assert!(trace.decided(20.0, 300.0) <= 4, "{target}\n{}", told(&trace));
    }
}

/// Tokens from `from` on until the next 32 come at `target`, give or take 5 %, and stay so for another 64.
fn tokens_to_settle(trace: &Trace, from: f64, target: f64) -> usize {
    let ends: Vec<f64> = trace.tokens.iter().map(|t| t.at).filter(|&at| at >= from).collect();
    let good = |i: usize| {
        let rate = 32.0 / (ends[i + 32] - ends[i]);
        (rate / target - 1.0).abs() < 0.05
    };
    (0..ends.len() - 96).find(|&i| (i..i + 64).all(good)).unwrap_or(usize::MAX)
}

#[test]
fn a_competing_load_is_answered_within_tokens_and_forgotten_within_seconds() {
    let profile = laptop();
    for (target, cores) in [(6.0, 2.0), (5.0, 3.0), (8.0, 1.0)] {
        let spec = Spec { loads: vec![Load { from: 60.0, until: 120.0, cores }], ..Spec::laptop() };
        let budget = Budget { target_tps: Some(target), ..Budget::of_mode(Mode::Balanced) };
        let trace = run(&mut Device::new(spec), &mut governor(&profile, budget, 4), &profile, 240.0);
        floor_holds(&trace, LOSS);
        let answer = trace.decisions.iter().find(|d| d.at >= 60.0).unwrap();
        let until_answer = trace.between(60.0, answer.at).count() + 1;
        let [settled, again] = [60.0, 120.0].map(|from| tokens_to_settle(&trace, from, target));
        let back = trace.decisions.iter().rfind(|d| d.cause == Cause::Room).unwrap();
        let depth = |from: f64, until: f64| {
            let steps: Vec<_> = trace.between(from, until).map(|t| t.steps as f64).collect();
            steps.iter().sum::<f64>() / steps.len() as f64
        };
        println!(
            "{target} tokens/s, {cores} cores taken: answered after {until_answer} tokens, settled after {settled}; {:.1} steps, \
             then {:.1}, then {:.1}, the last change {:.1} s after the load left; rates {:.3} {:.3} {:.3}; {} decisions",
            depth(30.0, 60.0),
            depth(80.0, 120.0),
            depth(180.0, 240.0),
            back.at - 120.0,
            trace.rate(30.0, 60.0),
            trace.rate(70.0, 120.0),
            trace.rate(130.0, 240.0),
            trace.decisions.len(),
        );
        assert!(until_answer <= 5, "{until_answer} tokens\n{}", told(&trace));
        assert!(settled <= 12 && again <= 12, "{settled} and {again} tokens\n{}", told(&trace));
        assert!(depth(80.0, 120.0) < depth(30.0, 60.0) - 1.0);
        assert!((depth(180.0, 240.0) / depth(30.0, 60.0) - 1.0).abs() < 0.06, "{}", told(&trace));
        assert!(back.at < 150.0, "{}", told(&trace));
        assert!(trace.decisions.len() <= 8, "{}", told(&trace));
        assert!(trace.decided(30.0, 60.0) + trace.decided(80.0, 120.0) + trace.decided(150.0, 240.0) <= 1);
    }
}

#[test]
fn what_cannot_be_held_is_said_once() {
    let profile = laptop();
    let budget = Budget { target_tps: Some(50.0), ..Budget::of_mode(Mode::Balanced) };
    let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &profile, 120.0);
    floor_holds(&trace, LOSS);
    assert_eq!(trace.decisions.iter().filter(|d| d.cause == Cause::Short).count(), 1, "{}", told(&trace));
    assert!(trace.decisions.len() <= 3);
    assert!(trace.tokens.iter().all(|t| t.pause == 0.0 && t.threads == 4));
    // With a looser floor more is possible.
    let loose = Budget { max_loss: 1.0, ..budget };
    let faster = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, loose, 4), &profile, 120.0);
    assert!(faster.rate(20.0, 120.0) > 1.5 * trace.rate(20.0, 120.0));
}

#[test]
fn a_time_per_token_is_a_bound_and_no_pace_in_quality_mode() {
    let profile = laptop();
    let bounds = [
        Budget { max_ms_per_token: Some(150.0), ..Budget::of_mode(Mode::Quality) },
        Budget { target_tps: Some(1e3 / 150.0), ..Budget::of_mode(Mode::Quality) },
        Budget { max_ms_per_token: Some(150.0), ..Budget::of_mode(Mode::Balanced) },
    ];
    for budget in bounds {
        let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &profile, 120.0);
        let mean =
            trace.between(20.0, 120.0).map(|t| t.seconds).sum::<f64>() / trace.between(20.0, 120.0).count() as f64;
        assert!(mean < 0.155 && mean > 0.120, "{mean}");
        assert!(trace.tokens.iter().all(|t| t.pause == 0.0));
    }
    let free = run(
        &mut Device::new(Spec::laptop()),
        &mut governor(&profile, Budget::of_mode(Mode::Quality), 4),
        &profile,
        60.0,
    );
    assert!(free.tokens.iter().all(|t| t.loss < 2e-4 && t.pause == 0.0 && t.threads == 4));
    let free = run(
        &mut Device::new(Spec::laptop()),
        &mut governor(&profile, Budget::of_mode(Mode::Balanced), 4),
        &profile,
        60.0,
    );
    assert!(free.mean_loss() < 0.005 && free.mean_loss() > 0.0, "half of the floor: {}", free.mean_loss());
}

/// A bound of `saver` is no reason to write faster than people read, unless it needs that.
#[test]
fn saver_keeps_its_reading_pace_beside_a_bound() {
    let profile = laptop();
    for (ms, rate) in [(400.0, READING_RATE), (100.0, 10.0)] {
        let budget = Budget { max_ms_per_token: Some(ms), ..Budget::of_mode(Mode::Saver) };
        let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &profile, 120.0);
        floor_holds(&trace, LOSS);
        let found = trace.rate(20.0, 120.0);
        assert!((found / rate - 1.0).abs() < 0.05, "{ms} ms: {found}\n{}", told(&trace));
    }
}

/// Nothing is known of an adaptive rule but how deep it goes at most, here 16 times what it takes: the first tokens tell.
#[test]
fn the_depth_of_an_unknown_rule_is_learnt() {
    let mut controller = Controller::new(
        Ladder::of_rule("acceleration:0.05,max=64".parse().unwrap(), 64.0, "alone"),
        Budget { target_tps: Some(10.0), ..Budget::of_mode(Mode::Balanced) },
        4,
        0.0,
    );
    let mut now = 0.0;
    for _ in 0..40 {
        now += 0.08;
        now += controller.token(now, Observation { seconds: 0.08, steps: 4, joules: None });
    }
    let decisions: Vec<_> = std::iter::from_fn(|| controller.take_decision()).collect();
    assert!(!decisions.iter().any(|d| d.cause == Cause::Short), "{decisions:?}");
    assert!((40.0 / now / 10.0 - 1.0).abs() < 0.05, "{now}");
    controller.read(now, &Readings::default());
    let rate = controller.summary().tokens_per_second.unwrap();
    assert!((rate / 10.0 - 1.0).abs() < 0.05, "{rate}");
}

/// A big model on a small, hot device: a token of ten seconds at the least duty is followed by four minutes of rest. A reading in
/// between that shows it cool ends them.
#[test]
fn the_debt_of_a_long_token_is_paid_and_forgiven_when_it_is_cool() {
    let mut controller = Controller::new(
        Ladder::of_rule("fixed:32".parse().unwrap(), 32.0, "alone"),
        Budget { max_temp: Some(60.0), ..Budget::of_mode(Mode::Quality) },
        1,
        0.0,
    );
    let of = |celsius| Readings { celsius: Some(celsius), ..Readings::default() };
    let mut now = 0.0;
    for _ in 0..60 {
        now += 1.0;
        controller.read(now, &of(80.0));
    }
    controller.start(now);
    now += 10.0;
    let pause = controller.token(now, Observation { seconds: 10.0, steps: 32, joules: None });
    assert!((pause - (10.0 / rdt::governor::LEAST_DUTY - 10.0)).abs() < 1.0, "{pause}");
    now += 60.0;
    let left = controller.wait(now);
    assert!((left - (pause - 60.0)).abs() < 1e-6, "{left} of {pause}");
    for _ in 0..60 {
        now += 1.0;
        controller.read(now, &of(30.0));
    }
    assert_eq!(controller.wait(now), 0.0);
    // What was slept counts, and not what was asked for.
    now += 10.0;
    controller.token(now, Observation { seconds: 10.0, steps: 32, joules: None });
    assert!((controller.summary().paused_seconds - 120.0).abs() < 1.0, "{}", controller.summary().paused_seconds);
}

/// A user, or a vendor, may have lowered the clock for good; that is no heat, with or without a thermometer.
#[test]
fn a_clock_that_was_always_low_is_no_sign_of_heat() {
    let (profile, budget) = (laptop(), Budget { max_temp: Some(90.0), ..Budget::of_mode(Mode::Quality) });
    let low = |_: f64, readings: Readings| Readings { celsius: None, clock_share: Some(0.6), ..readings };
    let mut device = Device::new(Spec::laptop());
    let trace = run_with(&mut device, &mut governor(&profile, budget, 4), &profile, 120.0, &mut { low });
    assert!(trace.tokens.iter().all(|t| t.pause == 0.0), "{}", told(&trace));
}

#[test]
fn what_a_bound_needs_and_nobody_tells_is_said_at_the_first_reading() {
    let profile = laptop();
    let budget = Budget { max_temp: Some(60.0), max_joules_per_token: Some(3.0), ..Budget::of_mode(Mode::Auto) };
    let said = |readings: &Readings, energy| {
        let mut controller = governor(&profile, budget, 4);
        controller.first(0.0, readings, energy);
        (0..10).for_each(|t| controller.read(f64::from(t), readings));
        let decisions = std::iter::from_fn(|| controller.take_decision()).filter(|d| d.cause == Cause::Limit);
        decisions.map(|d| d.reason).collect::<Vec<_>>()
    };
    let nothing = said(&Readings::default(), false);
    let expected = ["no temperature can be read", "neither battery nor mains can be read", "no energy can be read"];
    assert!(nothing.len() == 3 && nothing.iter().zip(expected).all(|(a, b)| a.contains(b)), "{nothing:?}");
    let all = Readings { celsius: Some(40.0), on_battery: Some(false), ..Readings::default() };
    assert_eq!(said(&all, true), [""; 0]);
}

/// The rate at which nobody could read any more is refused, not paused for.
#[test]
fn rates_below_a_token_in_twenty_seconds_are_refused() {
    let of = |rate| Budget { target_tps: Some(rate), ..Budget::of_mode(Mode::Balanced) }.checked();
    assert!(of(0.05).is_ok());
    for rate in [0.0499, 1e-9, 0.0, -1.0, f64::NAN, f64::INFINITY] {
        let error = of(rate).unwrap_err().to_string();
        assert!(error.contains("0.05 tokens per second"), "{error}");
    }
}

#[test]
fn a_temperature_cap_is_held_on_a_phone_that_throttles_without() {
    let profile = phone();
    let free = run(&mut Device::new(Spec::phone()), &mut ungoverned(4), &profile, 1200.0);
    let clock = free.tokens.iter().map(|t| t.clock).fold(1.0, f64::min);
    println!(
        "without: {:.1} °C, clock down to {clock}, {:.2} tokens/s at the end",
        free.hottest(),
        free.rate(900.0, 1200.0)
    );
    assert!(free.hottest() > 70.0 && clock <= 0.9);
    for mode in [Mode::Quality, Mode::Balanced, Mode::Saver] {
        for cap in [45.0, 50.0, 55.0, 60.0, 65.0] {
            for target in [None, Some(2.0), Some(4.0)] {
                let budget = Budget { max_temp: Some(cap), target_tps: target, ..Budget::of_mode(mode) };
                let mut device = Device::new(Spec::phone());
                let trace = run(&mut device, &mut governor(&profile, budget, 4), &profile, 1200.0);
                floor_holds(&trace, LOSS);
                let late: Vec<_> = trace.between(600.0, 1200.0).collect();
                let mean =
                    |f: &dyn Fn(&simulate::Sample) -> f64| late.iter().map(|t| f(t)).sum::<f64>() / late.len() as f64;
                println!(
                    "{mode}, {cap} °C, target {target:?}: {:.2} °C at most, {:.2} tokens/s at first, {:.2} at the end, {:.1} steps, {:.1} threads, mean {:.1} °C, {} decisions, {} in the second half",
                    trace.hottest(),
                    trace.rate(0.0, 30.0),
                    trace.rate(600.0, 1200.0),
                    mean(&|t| t.steps as f64),
                    mean(&|t| t.threads as f64),
                    mean(&|t| t.celsius),
                    trace.decisions.len(),
                    trace.decided(600.0, 1200.0),
                );
                assert!(trace.hottest() <= cap + 2.0, "{mode} {cap}: {}\n{}", trace.hottest(), told(&trace));
                assert!(trace.tokens.iter().all(|t| t.clock == 1.0));
                assert!(trace.decided(600.0, 1200.0) <= 10, "{}", told(&trace));
            }
        }
    }
}

/// Another program warms the phone besides.
#[test]
fn a_temperature_cap_is_held_beside_another_program() {
    let profile = phone();
    let loads = vec![Load { from: 200.0, until: 500.0, cores: 1.0 }, Load { from: 700.0, until: 760.0, cores: 0.5 }];
    let budget = Budget { max_temp: Some(60.0), ..Budget::of_mode(Mode::Balanced) };
    let mut device = Device::new(Spec { loads, ..Spec::phone() });
    let trace = run(&mut device, &mut governor(&profile, budget, 4), &profile, 1200.0);
    println!("{:.2} °C at most", trace.hottest());
    assert!(trace.hottest() <= 62.0, "{}", told(&trace));
}

#[test]
fn a_charge_lasts_at_least_half_as_long_again() {
    for (name, spec, profile) in [
        ("laptop", Spec { battery: Some(50.0 * 3600.0), ..Spec::laptop() }, laptop()),
        ("phone", Spec::phone(), phone()),
    ] {
        let full = run(&mut Device::new(spec.clone()), &mut ungoverned(4), &profile, 1e9);
        let hours = |t: &Trace| t.tokens.last().unwrap().at / 3600.0;
        println!("{name}, fixed full depth: {} tokens, {:.2} h", full.tokens.len(), hours(&full));
        for (mode, target, least) in [
            (Mode::Saver, None, 1.5),
            (Mode::Saver, Some(4.0), 1.5),
            (Mode::Auto, None, 1.5),
            (Mode::Balanced, None, 1.5),
        ] {
            let budget = Budget { target_tps: target, ..Budget::of_mode(mode) };
            let mut device = Device::new(spec.clone());
            let trace = run(&mut device, &mut governor(&profile, budget, 4), &profile, 1e9);
            floor_holds(&trace, LOSS);
            let gain = trace.tokens.len() as f64 / full.tokens.len() as f64;
            println!(
                "{name}, {mode}, target {target:?}: {} tokens, {gain:.2} times as many, {:.2} h, {:.2} tokens/s, mean loss {:.3} %",
                trace.tokens.len(),
                hours(&trace),
                trace.rate(60.0, 600.0),
                100.0 * trace.mean_loss()
            );
            assert!(gain >= least, "{gain}\n{}", told(&trace));
        }
    }
}

#[test]
fn auto_goes_by_mains_and_charge() {
    let profile = laptop();
    let budget = Budget::of_mode(Mode::Auto);
    let charge = |at: f64| match at {
        t if t < 30.0 => (false, 100.0),
        t if t < 60.0 => (true, 80.0),
        // Around the threshold it does not flicker.
        t if t < 120.0 => (true, if (t as u64).is_multiple_of(2) { 19.0 } else { 21.0 }),
        t if t < 150.0 => (true, 40.0),
        _ => (false, 40.0),
    };
    let mut device = Device::new(Spec::laptop());
    let trace = run_with(&mut device, &mut governor(&profile, budget, 4), &profile, 180.0, &mut |at, readings| {
        let (on_battery, percent) = charge(at);
        Readings { on_battery: Some(on_battery), battery_percent: Some(percent), ..readings }
    });
    let modes: Vec<_> = trace.decisions.iter().filter(|d| d.cause == Cause::Mode).map(|d| d.mode).collect();
    assert_eq!(modes, [Mode::Balanced, Mode::Saver, Mode::Balanced, Mode::Quality], "{}", told(&trace));
    assert!((trace.rate(70.0, 120.0) / READING_RATE - 1.0).abs() < 0.03);
}

#[test]
fn joules_per_token_are_held_where_they_can_be_read() {
    let profile = laptop();
    let spend = |spec: Spec, most: Option<f64>, mode: Mode| {
        let budget = Budget { max_joules_per_token: most, ..Budget::of_mode(mode) };
        let mut device = Device::new(spec);
        let trace = run(&mut device, &mut governor(&profile, budget, 4), &profile, 300.0);
        floor_holds(&trace, LOSS);
        (device.joules() / trace.tokens.len() as f64, trace)
    };
    let (free, _) = spend(Spec::laptop(), None, Mode::Quality);
    for most in [4.0, 3.0, 2.5] {
        let (joules, trace) = spend(Spec::laptop(), Some(most), Mode::Quality);
        println!("{most} J per token: {joules:.3} of {free:.3}, {} decisions", trace.decisions.len());
        assert!(joules <= 1.05 * most, "{joules}\n{}", told(&trace));
        assert!(trace.decided(60.0, 300.0) <= 2, "{}", told(&trace));
    }
    let blind = Spec { tells_energy: false, ..Spec::laptop() };
    let (_, trace) = spend(blind, Some(1.0), Mode::Quality);
    let limits: Vec<_> = trace.decisions.iter().filter(|d| d.cause == Cause::Limit).collect();
    assert_eq!(limits.len(), 1, "{}", told(&trace));
    assert!(limits[0].reason.contains("no energy can be read"));
}

/// HRM-Text, Nanbeige: one rung; the budget is held by threads and pace.
#[test]
fn families_without_exits_are_governed_by_threads_and_pace() {
    let profile = phone();
    let rule = "fixed:16".parse().unwrap();
    let ladder = || Ladder::of_rule(rule, 16.0, "hrm_text models always run their whole loop");
    for (budget, fewer) in [
        (Budget { target_tps: Some(2.0), ..Budget::of_mode(Mode::Balanced) }, false),
        (Budget { max_temp: Some(50.0), ..Budget::of_mode(Mode::Balanced) }, true),
        (Budget { target_tps: Some(2.0), ..Budget::of_mode(Mode::Saver) }, true),
    ] {
        let mut device = Device::new(Spec::phone());
        let trace = run(&mut device, &mut Controller::new(ladder(), budget, 4, 0.0), &profile, 900.0);
        assert!(trace.tokens.iter().all(|t| t.steps == 16));
        assert!(trace.decisions[0].reason.contains("whole loop"));
        let threads = trace.tokens.iter().map(|t| t.threads).min().unwrap();
        println!("{budget:?}: {:.2} tokens/s, {threads} threads, {:.1} °C", trace.rate(300.0, 900.0), trace.hottest());
        match budget.target_tps {
            Some(target) => assert!((trace.rate(20.0, 900.0) / target - 1.0).abs() < 0.05, "{}", told(&trace)),
            None => assert!(trace.hottest() <= 52.0 && trace.tokens.iter().any(|t| t.pause > 0.0), "{}", told(&trace)),
        }
        assert_eq!(threads < 4, fewer, "{}", told(&trace));
        assert!(trace.decided(300.0, 900.0) <= 8, "{}", told(&trace));
    }
}

/// A field of what is read, made to say something.
type Field = (&'static str, fn(&mut Readings, f64));

#[test]
fn missing_and_hostile_readings_change_nothing() {
    let profile = laptop();
    let budget = Budget { target_tps: Some(8.0), ..Budget::of_mode(Mode::Balanced) };
    let of = |sensors: &mut dyn FnMut(f64, Readings) -> Readings| {
        run_with(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &profile, 120.0, sensors).tokens
    };
    let usual = of(&mut |_, readings| readings);
    assert!(of(&mut |_, _| Readings::default()) == usual);

    // Where everything that is read counts, each field that says what cannot be says nothing.
    let fields: [Field; 5] = [
        ("charge", |r, x| r.battery_percent = Some(x)),
        ("watts", |r, x| r.watts = Some(x)),
        ("temperature", |r, x| r.celsius = Some(x)),
        ("clock", |r, x| r.clock_share = Some(x)),
        ("pressure", |r, x| r.cpu_pressure = Some(x)),
    ];
    let (profile, budget) = (phone(), Budget { max_temp: Some(60.0), ..Budget::of_mode(Mode::Auto) });
    let of = |sensors: &mut dyn FnMut(f64, Readings) -> Readings| {
        run_with(&mut Device::new(Spec::phone()), &mut governor(&profile, budget, 4), &profile, 300.0, sensors)
    };
    for (name, set) in fields {
        let without = of(&mut |_, mut readings| {
            set(&mut readings, f64::NAN);
            Readings { celsius: readings.celsius.filter(|c| !c.is_nan()), ..readings }
        });
        floor_holds(&without, LOSS);
        for hostile in [f64::INFINITY, f64::NEG_INFINITY, -1e300, 1e300, -274.0, 1e9] {
            let found = of(&mut |_, mut readings| {
                set(&mut readings, hostile);
                readings
            });
            assert!(found.tokens == without.tokens && found.decisions == without.decisions, "{name} {hostile}");
        }
    }
    // A count that turns over, and words without end, are no signs of heat either.
    let count = |at: f64| if at < 100.0 { u64::MAX } else { 0 };
    let words = || Some("\u{0}CPU_Speed_Limit = 99999999999999999999".repeat(1000));
    let usual = of(&mut |_, readings| readings);
    let found =
        of(&mut |at, readings| Readings { throttle_count: Some(count(at)), thermal_pressure: words(), ..readings });
    assert!(found.tokens == usual.tokens && found.decisions == usual.decisions);

    // A sensor that dies, or shows nonsense, while the phone is hot does not let it get hotter.
    let (profile, budget) = (phone(), Budget { max_temp: Some(55.0), ..Budget::of_mode(Mode::Balanced) });
    for dead in [None, Some(f64::NAN), Some(-1e9)] {
        let mut device = Device::new(Spec::phone());
        let trace = run_with(&mut device, &mut governor(&profile, budget, 4), &profile, 900.0, &mut |at, readings| {
            if at > 400.0 { Readings { celsius: dead, ..readings } } else { readings }
        });
        assert!(trace.hottest() < 58.0, "{}", trace.hottest());
    }
}

/// Without a temperature the clock that the system lowers is what heat is told by.
#[test]
fn throttling_is_a_sign_of_heat() {
    let (profile, budget) = (phone(), Budget { max_temp: Some(60.0), ..Budget::of_mode(Mode::Balanced) });
    let blind = |_: f64, readings: Readings| Readings { celsius: None, ..readings };
    let trace =
        run_with(&mut Device::new(Spec::phone()), &mut governor(&profile, budget, 4), &profile, 1200.0, &mut { blind });
    assert!(trace.decisions.iter().any(|d| d.reason.contains("no temperature can be read")), "{}", told(&trace));
    let free = run(&mut Device::new(Spec::phone()), &mut ungoverned(4), &profile, 1200.0);
    let throttled = |t: &Trace| {
        t.between(600.0, 1200.0).filter(|t| t.clock < 1.0).count() as f64 / t.between(600.0, 1200.0).count() as f64
    };
    println!("throttled for {:.2} of the tokens instead of {:.2}", throttled(&trace), throttled(&free));
    assert!(throttled(&trace) < 0.5 * throttled(&free), "{}", told(&trace));
}

#[test]
fn off_is_off() {
    let profile = laptop();
    let budget = Budget { target_tps: Some(2.0), max_temp: Some(20.0), ..Budget::default() };
    let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &profile, 30.0);
    assert!(trace.decisions.is_empty());
    assert!(trace.tokens.iter().all(|t| t.pause == 0.0 && t.threads == 4));
}

#[test]
fn logs_are_lines_of_json_that_say_why() {
    let profile = laptop();
    let budget = Budget { target_tps: Some(6.0), ..Budget::of_mode(Mode::Balanced) };
    let spec = Spec { loads: vec![Load { from: 10.0, until: 20.0, cores: 2.0 }], ..Spec::laptop() };
    let mut controller = governor(&profile, budget, 4);
    let trace = run(&mut Device::new(spec), &mut controller, &profile, 40.0);
    let mut log = Log::new(Vec::new());
    trace.decisions.iter().for_each(|d| log.write(d).unwrap());
    let text = String::from_utf8(log.into_inner()).unwrap();
    let read: Vec<Decision> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(read.len() >= 3 && read == trace.decisions, "{text}");
    assert!(read.iter().all(|d| d.reason.contains(&d.rule) && d.reason.contains("6 tokens/s")), "{text}");
    let summary = controller.summary();
    assert_eq!((summary.decisions as usize, summary.rule), (read.len(), controller.rule().to_string()));
    assert!(controller.summary().lines()[0].contains("of 6.00 wanted"), "{:?}", controller.summary().lines());
}

/// Hard text goes deeper under the same rule than the calibration saw: the rate holds.
#[test]
fn text_that_goes_deeper_than_the_profile_keeps_the_rate() {
    let profile = laptop();
    let mut hard = profile.clone();
    for point in &mut hard.rules {
        point.steps = point.steps.iter().map(|(&n, &count)| (n + n / 2, count)).collect();
    }
    let budget = Budget { target_tps: Some(7.0), ..Budget::of_mode(Mode::Balanced) };
    let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&profile, budget, 4), &hard, 240.0);
    println!("{:.3} tokens/s, {} decisions", trace.rate(40.0, 240.0), trace.decisions.len());
    assert!((trace.rate(40.0, 240.0) / 7.0 - 1.0).abs() < 0.05, "{}", told(&trace));
    assert!(trace.decided(60.0, 240.0) <= 2, "{}", told(&trace));
}

mod any {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = f64> {
        // NaN, infinities and subnormal numbers too.
        prop_oneof![proptest::num::f64::ANY, -100.0..200.0f64, 0.0..1.0f64]
    }

    fn readings() -> impl Strategy<Value = Readings> {
        let some = || proptest::option::of(number());
        let rest = (proptest::option::of(any::<bool>()), proptest::option::of(any::<u64>()));
        (some(), some(), some(), some(), some(), rest).prop_map(
            |(percent, watts, celsius, clock, pressure, (on, count))| Readings {
                on_battery: on,
                battery_percent: percent,
                watts,
                celsius,
                clock_share: clock,
                throttle_count: count,
                cpu_pressure: pressure,
                thermal_pressure: None,
            },
        )
    }

    fn budget() -> impl Strategy<Value = Budget> {
        let some = || proptest::option::of(0.001..1e5f64);
        (0..5usize, some(), some(), some(), proptest::option::of(20.0..120.0f64), 0.0..0.2f64).prop_map(
            |(mode, target_tps, max_ms_per_token, max_joules_per_token, max_temp, max_loss)| Budget {
                mode: Mode::ALL[mode],
                target_tps,
                max_ms_per_token,
                max_joules_per_token,
                max_temp,
                max_loss,
            },
        )
    }

    type Event = (f64, Option<Readings>, f64, usize, Option<f64>);

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = (
            // The caller's clock: mostly right, at times standing still or anything at all.
            prop_oneof![8 => 0.0..1.0f64, 1 => Just(0.0), 1 => number()],
            proptest::option::of(readings()),
            prop_oneof![number(), 0.001..1.0f64],
            prop_oneof![8 => 0..64usize, 1 => 0..1_000_000usize],
            proptest::option::of(number()),
        );
        proptest::collection::vec(event, 0..120)
    }

    proptest! {
        #[test]
        fn decisions_stay_in_bounds(budget in budget(), events in events(), threads in 0..17usize) {
            let profile = laptop();
            let ladder = Ladder::of_points(&profile, budget.max_loss).unwrap();
            let floor = ladder.rungs().iter().map(|r| r.loss).fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(floor <= budget.max_loss);
            let mut governor = Controller::new(ladder, budget, threads, 0.0);
            let mut now = 0.0;
            for (step, readings, seconds, steps, joules) in events {
                // The caller's clock goes wrong as well.
                now = if step.is_finite() { (now + step).clamp(-1e9, 1e9) } else { step };
                if let Some(readings) = readings {
                    governor.read(now, &readings);
                }
                let pause = governor.token(now, Observation { seconds, steps, joules });
                prop_assert!((0.0..=LONGEST_PAUSE).contains(&pause), "{pause}");
                let left = governor.wait(now + pause / 2.0);
                prop_assert!((0.0..=LONGEST_PAUSE).contains(&left), "{left}");
                prop_assert!((1..=threads.max(1)).contains(&governor.threads()));
                let rung = governor.ladder().rungs().iter().find(|r| r.rule == governor.rule());
                prop_assert!(rung.is_some_and(|r| r.loss <= budget.max_loss));
                while let Some(decision) = governor.take_decision() {
                    prop_assert!(!decision.reason.is_empty() && decision.mode != Mode::Auto);
                    prop_assert!(decision.rung < decision.rungs && budget.mode != Mode::Off);
                    serde_json::to_string(&decision).unwrap();
                }
                if budget.mode == Mode::Off {
                    prop_assert!(pause == 0.0 && governor.threads() == threads.max(1));
                }
            }
            prop_assert!(!governor.summary().lines().is_empty());
        }
    }
}
