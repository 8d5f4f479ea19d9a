//! What the governor does on a made-up laptop and a made-up phone, drawn: `cargo run --release --example governor [FOLDER]` writes
//! `governor-*.svg` into FOLDER (docs/plots if none is named), and prints the numbers of docs/governor.md. It takes some seconds; the
//! devices run in virtual time.

use rdt::calibrate::Profile;
use rdt::governor::simulate::{self, Device, Load, Sample, Spec, Trace, run};
use rdt::governor::{Budget, Controller, Ladder, Mode};
use rdt::plot::{Axis, Chart, Marks, Series, standalone};
use std::path::PathBuf;

fn governor(profile: &Profile, budget: Budget, cores: usize) -> Result<Controller, &'static str> {
    let ladder = Ladder::of_points(profile, budget.max_loss).ok_or("the profile has no points")?;
    Ok(Controller::new(ladder, budget, cores, 0.0))
}

/// Full depth on all cores, ungoverned.
fn ungoverned(cores: usize) -> Result<Controller, rdt::exit::Error> {
    let ladder = Ladder::of_rule("fixed:32".parse()?, 32.0, "to compare with");
    Ok(Controller::new(ladder, Budget::of_mode(Mode::Off), cores, 0.0))
}

/// The mean of something over spans of so many seconds, against their middles.
fn means(trace: &Trace, span: f64, scale: f64, of: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let end = trace.tokens.last().map_or(0.0, |t| t.at);
    let spans = (0..(end / span) as usize).map(|i| i as f64 * span);
    let mean = |from: f64| {
        let values: Vec<f64> = trace.between(from, from + span).map(&of).collect();
        ((from + span / 2.0) / scale, values.iter().sum::<f64>() / values.len() as f64)
    };
    spans.map(mean).collect()
}

fn rates(trace: &Trace, span: f64, scale: f64) -> Vec<(f64, f64)> {
    let end = trace.tokens.last().map_or(0.0, |t| t.at);
    let spans = (0..(end / span) as usize).map(|i| i as f64 * span);
    spans.map(|from| ((from + span / 2.0) / scale, trace.rate(from, from + span))).collect()
}

fn line(name: &str, style: usize, points: Vec<(f64, f64)>) -> Series {
    Series::new(name, style, Marks::Line(points))
}

fn chart(title: &str, x: &str, y: &str, series: Vec<Series>) -> Chart {
    Chart { title: title.into(), x: Axis::linear(x), y: Axis::linear(y), series, size: (640, 300) }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("docs/plots"), PathBuf::from);
    std::fs::create_dir_all(&folder)?;
    let save =
        |name: &str, chart: &Chart| std::fs::write(folder.join(format!("governor-{name}.svg")), standalone(chart));

    // A target rate, and another program that takes two of four cores for a minute.
    let (laptop, spec) = (simulate::profile(12.0, 6.5), Spec::laptop());
    let busy = Spec { loads: vec![Load { from: 60.0, until: 120.0, cores: 2.0 }], ..spec.clone() };
    let budget = Budget { target_tps: Some(6.0), ..Budget::of_mode(Mode::Balanced) };
    let held = run(&mut Device::new(busy.clone()), &mut governor(&laptop, budget, 4)?, &laptop, 180.0);
    let best = Budget::of_mode(Mode::Quality);
    let free = run(&mut Device::new(busy), &mut governor(&laptop, best, 4)?, &laptop, 180.0);
    let series = vec![
        line("without a target", 2, rates(&free, 4.0, 1.0)),
        line("target 6", 1, rates(&held, 4.0, 1.0)),
        Series::new("load comes", 0, Marks::Vertical(60.0)),
        Series::new("leaves", 0, Marks::Vertical(120.0)),
    ];
    let mut rate = chart("Laptop: tokens per second", "seconds", "tokens/s", series);
    rate.y = rate.y.with_range(0.0, 8.0);
    save("rate", &rate)?;
    let steps = |t: &Sample| t.steps as f64;
    let series = vec![
        line("without a target", 2, means(&free, 5.0, 1.0, steps)),
        line("target 6", 1, means(&held, 5.0, 1.0, steps)),
        Series::new("load comes", 0, Marks::Vertical(60.0)),
        Series::new("leaves", 0, Marks::Vertical(120.0)),
    ];
    let mean = |trace: &Trace, from: f64, until: f64, of: fn(&Sample) -> f64| {
        let (sum, n) = trace.between(from, until).fold((0.0, 0.0), |(sum, n), t| (sum + of(t), n + 1.0));
        sum / n
    };
    let answer = held.decisions.iter().find(|d| d.at >= 60.0).map_or(f64::NAN, |d| d.at);
    let back = held.decisions.iter().find(|d| d.at >= 120.0).map_or(f64::NAN, |d| d.at - 120.0);
    let tokens = held.between(60.0, answer).count() + 1;
    println!("laptop, 6 tokens/s: the load is answered behind token {tokens}, its end after {back:.1} s");
    for target in [1.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 50.0] {
        let budget = Budget { target_tps: Some(target), ..Budget::of_mode(Mode::Balanced) };
        let trace = run(&mut Device::new(Spec::laptop()), &mut governor(&laptop, budget, 4)?, &laptop, 300.0);
        let parts = (20..300).step_by(20).map(|from| trace.rate(f64::from(from), f64::from(from + 20)));
        let worst = parts.map(|rate| (rate / target - 1.0).abs()).fold(0.0, f64::max);
        println!(
            "laptop, target {target}: {:.2} tokens/s, off by {:.1} % in the worst 20 s, {:.1} steps",
            trace.rate(20.0, 300.0),
            100.0 * worst,
            mean(&trace, 20.0, 300.0, |t| t.steps as f64)
        );
    }
    save("depth", &chart("Laptop: loop steps per token, mean of 5 s", "seconds", "loop steps", series))?;

    // A cap of 60 degrees.
    let (phone, spec) = (simulate::profile(20.0, 11.0), Spec::phone());
    let budget = Budget { max_temp: Some(60.0), ..Budget::of_mode(Mode::Balanced) };
    let cool = run(&mut Device::new(spec.clone()), &mut governor(&phone, budget, 4)?, &phone, 900.0);
    let hot = run(&mut Device::new(spec.clone()), &mut ungoverned(4)?, &phone, 900.0);
    let series = vec![
        line("full depth, no governor", 2, means(&hot, 5.0, 60.0, |t| t.celsius)),
        line("cap 60 °C", 1, means(&cool, 5.0, 60.0, |t| t.celsius)),
        Series::new("", 0, Marks::Horizontal(60.0)),
    ];
    save("heat", &chart("Phone: temperature", "minutes", "°C", series))?;
    let series = vec![
        line("full depth, no governor", 2, rates(&hot, 15.0, 60.0)),
        line("cap 60 °C", 1, rates(&cool, 15.0, 60.0)),
    ];
    let mut rate = chart("Phone: tokens per second", "minutes", "tokens/s", series);
    rate.y = rate.y.with_range(0.0, 8.0);
    save("heat-rate", &rate)?;

    println!(
        "phone, full depth: {:.1} °C at most, {:.1} tokens/s at the end; cap 60 °C: {:.1} °C, {:.1} tokens/s",
        hot.hottest(),
        hot.rate(600.0, 900.0),
        mean(&cool, 600.0, 900.0, |t| t.celsius),
        cool.rate(600.0, 900.0)
    );
    let mut worst = f64::NEG_INFINITY;
    for mode in [Mode::Quality, Mode::Balanced, Mode::Saver] {
        for (cap, target) in
            [45.0, 50.0, 55.0, 60.0, 65.0].map(|cap| [None, Some(2.0), Some(4.0)].map(|t| (cap, t))).concat()
        {
            let budget = Budget { max_temp: Some(cap), target_tps: target, ..Budget::of_mode(mode) };
            let trace = run(&mut Device::new(spec.clone()), &mut governor(&phone, budget, 4)?, &phone, 1200.0);
            worst = f64::max(worst, trace.hottest() - cap);
        }
    }
    println!("phone, caps from 45 to 65 °C, three modes and three targets: exceeded by {worst:.1} °C at most");

    // A charge.
    let mut series = Vec::new();
    for (name, mode, style) in
        [("full depth, no governor", Mode::Off, 2), ("saver", Mode::Saver, 1), ("balanced", Mode::Balanced, 3)]
    {
        let mut controller = match mode {
            Mode::Off => ungoverned(4)?,
            mode => governor(&phone, Budget::of_mode(mode), 4)?,
        };
        let trace = run(&mut Device::new(spec.clone()), &mut controller, &phone, 1e9);
        let every = trace.tokens.len() / 200 + 1;
        let points = trace.tokens.iter().enumerate().step_by(every);
        series.push(line(name, style, points.map(|(i, t)| (i as f64 / 1e3, 100.0 * t.charge)).collect()));
        let last = trace.tokens.last().map_or(0.0, |t| t.at);
        let loss = 100.0 * trace.mean_loss();
        println!("phone, {name}: {} tokens in {:.2} h, mean loss {loss:.2} %", trace.tokens.len(), last / 3600.0);
    }
    let laptop_spec = Spec { battery: Some(50.0 * 3600.0), ..Spec::laptop() };
    for (spec, profile) in [(laptop_spec, &laptop), (spec, &phone)] {
        let full = run(&mut Device::new(spec.clone()), &mut ungoverned(4)?, profile, 1e9);
        let budgets = [(Mode::Saver, None), (Mode::Saver, Some(4.0)), (Mode::Balanced, None)];
        let mut traces = vec![("full depth".to_owned(), full)];
        for (mode, target_tps) in budgets {
            let budget = Budget { target_tps, ..Budget::of_mode(mode) };
            let trace = run(&mut Device::new(spec.clone()), &mut governor(profile, budget, 4)?, profile, 1e9);
            traces.push((format!("{mode}, target {target_tps:?}"), trace));
        }
        for (name, trace) in &traces {
            let (n, last) = (trace.tokens.len(), trace.tokens.last().map_or(0.0, |t| t.at));
            println!(
                "{}, {name}: {n} tokens per charge ({:.1} times), {:.2} h, {:.1} tokens/s, loss {:.2} %",
                spec.name,
                n as f64 / traces[0].1.tokens.len() as f64,
                last / 3600.0,
                n as f64 / last,
                100.0 * trace.mean_loss()
            );
        }
    }
    save("battery", &chart("Phone: charge against tokens generated", "thousand tokens", "% of the charge", series))?;
    Ok(())
}
