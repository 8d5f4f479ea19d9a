//! Races rdt's matrix kernels against ggml's: the same weights, the same activations, one thread, one process, taking turns.
//! Before anything is timed, both must give the right answer.

mod ffi;
mod ours;
mod task;
mod theirs;

use ours::Ours;
use rdt::gguf::TensorType;
use rdt::kernels::{Form, Kernels, WEIGHT_TYPES};
use serde_json::{Value, json};
use std::env;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};
use task::{COLUMNS, MOST, Racer, Result, Task};
use theirs::{Place, Theirs};

const USAGE: &str = "\
Races rdt's matrix kernels against ggml's, on one thread.

  --check     compare answers, time nothing
  --quick     shorter and fewer samples, for a first look; not for quoting
  --json      a JSON document with all samples instead of a table
  --type X    only weights of this type; may be repeated
  --mib N     size of the working set that is to come from memory [twice the last cache, 64 to 1024]

The environment variable RDT_ISA chooses the kernels of rdt, e.g. avx512-vnni.";

/// Weight rows and row length of a matrix that stays in a core's own cache; fewer rows if it would not.
const NEAR: [usize; 2] = [512, 2048];
/// Weight rows and row length where weights come from memory.
const FAR: [usize; 2] = [2048, 4096];

/// Root mean square errors that the roundings of activations explain, relative to normally distributed answers: to 8 bits with a
/// scale per 32 or 256 values, 0.5 to 0.7 %; to 16 bits with a scale per 32, 0.004 %; none, as f32 is added up.
const fn explained(form: Form) -> f64 {
    match form {
        Form::Bytes => 1e-2,
        Form::Wide => 1e-4,
        Form::Plain => 1e-6,
    }
}

struct Options {
    check: bool,
    quick: bool,
    json: bool,
    types: Vec<TensorType>,
    /// Bytes of a matrix that stays in a core's own cache, at most.
    near_bytes: usize,
    /// Bytes of matrices that come from memory, at least.
    far_bytes: usize,
}

impl Options {
    /// `None` if help was asked for.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let (mut check, mut quick, mut json, mut types) = (false, false, false, Vec::new());
        // Half of the second cache leaves room for activations.
        let near_bytes = cache_bytes(2).map_or(512 << 10, |bytes| (bytes / 2).clamp(256 << 10, 1 << 20));
        let last = (2..=4).filter_map(cache_bytes).max();
        let mut far_bytes = last.map_or(64 << 20, |bytes| (2 * bytes).clamp(64 << 20, 1 << 30));
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--check" => check = true,
                "--quick" => quick = true,
                "--json" => json = true,
                "--type" => {
                    let ty: TensorType = value()?.parse()?;
                    if !WEIGHT_TYPES.contains(&ty) {
                        let raced = WEIGHT_TYPES.map(TensorType::name).join(", ");
                        return Err(format!("type {ty} is not raced; those that are: {raced}").into());
                    }
                    types.push(ty);
                }
                "--mib" => far_bytes = value()?.parse::<usize>()?.checked_mul(1 << 20).ok_or("that is too large")?,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown argument '{arg}'\n\n{USAGE}").into()),
            }
        }
        if types.is_empty() {
            types = WEIGHT_TYPES.to_vec();
        }
        Ok(Some(Self { check, quick, json, types, near_bytes, far_bytes }))
    }
}

/// Bytes of the cache of a level, where the system says.
fn cache_bytes(level: usize) -> Option<usize> {
    // Number 0 and 1 are those for data and instructions of level 1.
    let size = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{level}/size")).ok()?;
    size.trim().strip_suffix('K')?.parse::<usize>().ok()?.checked_mul(1 << 10)
}

/// Seconds of a product: at least `time` of them, after a step that brings the caches into the state that they keep.
fn sample(racer: &mut dyn Racer, n: usize, per_step: usize, time: Duration) -> Result<f64> {
    on_a_thread(|| {
        racer.step(n)?;
        let (start, mut steps) = (Instant::now(), 0u32);
        loop {
            racer.step(n)?;
            steps += 1;
            let passed = start.elapsed();
            if passed >= time {
                return Ok(passed.as_secs_f64() / (f64::from(steps) * per_step as f64));
            }
        }
    })
}

/// Both sides configure the matrix unit of the thread they run on, where there is one, and take no heed of each other. So neither
/// runs on a thread that the other has used.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|s| s.spawn(work).join()).unwrap_or_else(|_| Err("a product panicked".into()))
}

/// One sample after the other of each in turn: of each, seconds of a product, ascending.
fn race(racers: &mut [&mut dyn Racer], n: usize, task: &Task<'_>, quick: bool) -> Result<Vec<Vec<f64>>> {
    let (samples, time) = if quick { (3, Duration::from_millis(5)) } else { (9, Duration::from_millis(20)) };
    let mut times = vec![Vec::new(); racers.len()];
    for _ in 0..samples {
        for (racer, times) in racers.iter_mut().zip(&mut times) {
            times.push(sample(*racer, n, task.per_step, time)?);
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    Ok(times)
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// The errors of products with `n` activation rows, of which none may be more than rounding explains, and rdt's no more than
/// ggml's.
fn compare(ours: &mut Ours<'_>, theirs: &mut [Theirs<'_>], n: usize, task: &Task<'_>) -> Result<(f64, Vec<f64>)> {
    fn error(racer: &mut dyn Racer, n: usize, task: &Task<'_>) -> Result<f64> {
        on_a_thread(|| racer.step(n))?;
        Ok(task.error(&racer.product(n)?))
    }
    // NaN is not.
    fn within(error: f64, bound: f64) -> bool {
        error <= bound
    }
    let our_error = error(ours, n, task)?;
    if !within(our_error, explained(Form::of(task.ty))) {
        return Err(format!("the error of rdt is {our_error:.1e}, which is not rounding").into());
    }
    let mut their_errors = Vec::new();
    for racer in theirs {
        let their_error = error(racer, n, task)?;
        let name = racer.name();
        if !within(their_error, explained(Form::Bytes)) {
            return Err(format!("the error of ggml ({name}) is {their_error:.1e}, which is not rounding").into());
        }
        if !within(our_error, f64::max(1.1 * their_error, explained(Form::Plain))) {
            let more = format!("the error of rdt, {our_error:.1e}, is more than ggml's ({name}), {their_error:.1e}");
            return Err(more.into());
        }
        their_errors.push(their_error);
    }
    Ok((our_error, their_errors))
}

/// Races one type in one working set. Gives a record for each number of activation rows, and prints lines of the table.
fn run(task: &Task<'_>, options: &Options, kernels: &'static Kernels, set: &str) -> Result<Vec<Value>> {
    let mut ours = Ours::new(task, kernels)?;
    let mut theirs = Vec::new();
    for place in Place::all()? {
        theirs.extend(Theirs::new(task, place)?);
    }
    if !options.check {
        // Once around: what was just written is still on its way to memory.
        let mut all: Vec<&mut dyn Racer> = vec![&mut ours];
        all.extend(theirs.iter_mut().map(|racer| racer as &mut dyn Racer));
        for racer in all {
            on_a_thread(|| (0..task.copies).try_for_each(|_| racer.step(1)))?;
        }
    }
    let mut records = Vec::new();
    for n in COLUMNS {
        let (our_error, their_errors) = compare(&mut ours, &mut theirs, n, task)
            .map_err(|e| format!("{} in {set} with {n} activation rows: {e}", task.ty))?;
        let mut record = json!({
            "type": task.ty.name(), "set": set, "set_bytes": task.copies * task.stored.len(),
            "weight_rows": task.rows, "k": task.k, "activation_rows": n,
            "rdt": {"way": ours.name(), "error": our_error},
            "ggml": theirs.iter().zip(&their_errors)
                .map(|(racer, error)| json!({"way": racer.name(), "error": error})).collect::<Vec<_>>(),
        });
        let head = format!("| {:6} | {set:6} | {n:4} |", task.ty.name());
        if options.check {
            if !options.json {
                let theirs = theirs.iter().zip(&their_errors);
                let theirs: Vec<_> = theirs.map(|(racer, error)| format!("{} {error:.1e}", racer.name())).collect();
                println!("{head} {our_error:.1e} | {} |", theirs.join(", "));
            }
            records.push(record);
            continue;
        }
        let mut racers: Vec<&mut dyn Racer> = vec![&mut ours];
        racers.extend(theirs.iter_mut().map(|racer| racer as &mut dyn Racer));
        let times = race(&mut racers, n, task, options.quick)?;
        let (our_time, their_times) = (&times[0], &times[1..]);
        let best = (0..their_times.len()).min_by(|&a, &b| median(&their_times[a]).total_cmp(&median(&their_times[b])));
        let best = best.ok_or("ggml has no kernel")?;
        let (us, them) = (median(our_time), median(&their_times[best]));
        let macs = (task.rows * task.k * n) as f64;
        let (gmacs, gb) = (|t: f64| macs / t / 1e9, |t: f64| task.stored.len() as f64 / t / 1e9);
        record["rdt"]["seconds"] = json!(our_time);
        for (i, times) in their_times.iter().enumerate() {
            record["ggml"][i]["seconds"] = json!(times);
        }
        record["ratio"] = json!(them / us);
        if !options.json {
            println!(
                "{head} {:6.1} | {:6.1} | {:5.1} | {:5.1} | {:5.2} | {:10} | {our_error:.1e} | {:.1e} |",
                gmacs(us),
                gmacs(them),
                gb(us),
                gb(them),
                them / us,
                theirs[best].name(),
                their_errors[best],
            );
        }
        records.push(record);
    }
    Ok(records)
}

fn all(options: &Options) -> Result<()> {
    let kernels = Kernels::detect()?;
    theirs::quieten();
    let ggml = theirs::describe()?;
    if !options.json {
        println!("rdt {}; ggml {ggml}; one thread each\n", kernels.isa);
        if options.check {
            println!("| type   | set    | rows | error: rdt | ggml |\n|---|---|---|---|---|");
        } else {
            println!(
                "| type   | set    | rows | GMAC/s: rdt | ggml | GB/s: rdt | ggml | rdt/ggml | ggml's weights | error: rdt | ggml |"
            );
            println!("|---|---|---|---|---|---|---|---|---|---|---|");
        }
    }
    let normal =
        |seed, n: usize| (0..n as u64).map(|i| rdt::random::standard_normal(seed, 0, i) as f32).collect::<Vec<_>>();
    let (weights, x) = (normal(1, FAR[0] * FAR[1]), normal(2, MOST * FAR[1]));
    let mut records = Vec::new();
    for &ty in &options.types {
        let [mut rows, k] = NEAR;
        let row_bytes = ty.row_bytes(k).ok_or("rows are not whole blocks")?;
        while rows * row_bytes > options.near_bytes {
            rows /= 2;
        }
        let near = Task::new(ty, [rows, k], 1, &weights, &x)?;
        records.extend(run(&near, options, kernels, "cache")?);
        drop(near);
        let bytes = FAR[0] * ty.row_bytes(FAR[1]).ok_or("rows are not whole blocks")?;
        // The answers do not depend on how many there are.
        let copies = if options.check { 2 } else { options.far_bytes.div_ceil(bytes).max(2) };
        let far = Task::new(ty, FAR, copies, &weights, &x)?;
        records.extend(run(&far, options, kernels, "memory")?);
    }
    if options.json {
        println!(
            "{:#}",
            json!({"rdt": kernels.isa.name(), "ggml": ggml, "threads": 1, "quick": options.quick, "races": records})
        );
    }
    Ok(())
}

fn main() -> ExitCode {
    let done = Options::parse(env::args().skip(1)).and_then(|options| match options {
        Some(options) => all(&options),
        None => {
            println!("{USAGE}");
            Ok(())
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("rdt-race: {e}");
            ExitCode::FAILURE
        }
    }
}
