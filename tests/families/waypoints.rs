//! Where the stream is between blocks, against what the references say of it, in every family; and that looking changes nothing.

use crate::common::{self, Recorder, Run, Setup, Tensors, bits, data, model, relative_error};
use rdt::calibrate::{Dynamics, DynamicsOptions, DynamicsRecorder, Evaluation, Reading, Windows};
use rdt::kernels::KvType;
use rdt::model::{
    Batch, DepthPolicy, FixedDepth, InitialState, Injection, LatentStats, Logits, Model, Norm, Row, Segment, Verdict,
    Visited, WaypointOptions,
};
use rdt::quant::Recipe;
use std::sync::Arc;

const FOLDERS: [&str; 18] = [
    "huginn",
    "huginn-shapes/deep",
    "huginn-shapes/untied",
    "huginn-shapes/tied-twice",
    "huginn-shapes/wide-head",
    "ouro-shapes/gqa",
    "ouro-shapes/tied",
    "hrm_text-shapes/split",
    "hrm_text-shapes/fused",
    "hrm_text-shapes/wide",
    "looped-gpt2",
    "nanbeige/every-pass",
    "nanbeige/last-norm",
    "parcae",
    "parcae-shapes/narrow-loop",
    "parcae-shapes/wide-loop",
    "retrofit",
    "retrofit-shapes/llama3",
];

/// Lets a token leave each loop after as many steps as its position says, or not before the last.
struct Staggered {
    recorder: Recorder,
    on: bool,
}

impl DepthPolicy for Staggered {
    fn max_steps(&self, segment: usize) -> usize {
        self.recorder.max_steps(segment)
    }
    fn begin(&mut self, index: usize, row: &Row, segment: usize, input: &[f32], initial: &[f32]) {
        self.recorder.begin(index, row, segment, input, initial);
    }
    fn after_step(&mut self, index: usize, row: &Row, stats: &LatentStats, latent: &[f32]) -> Verdict {
        let verdict = self.recorder.after_step(index, row, stats, latent);
        if self.on && stats.step > row.position * 7 % 4 { Verdict::Leave } else { verdict }
    }
}

struct Case {
    model: Arc<Model>,
    tokens: Vec<u32>,
    golden: Tensors,
    setup: Setup,
}

impl Case {
    fn new(folder: &str, recipe: Recipe) -> Self {
        let golden = Tensors::read(&data(folder).join("golden.safetensors"));
        let tokens = golden.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect();
        let initial = match golden.has("init_state") {
            true => InitialState::Given(golden.f32("init_state").into()),
            false => InitialState::Zeros,
        };
        let model = model(folder, recipe);
        let steps = model.config().mean_steps();
        let setup = Setup { context: 40, ..Setup::fixed(steps, &initial) };
        Self { model, tokens, golden, setup }
    }

    fn run(&self, setup: &Setup, staggered: bool, look: Option<WaypointOptions>) -> (Run, Vec<Visited>) {
        let mut session = setup.session(&self.model);
        if let Some(options) = look {
            session.record_waypoints(options);
        }
        let policy = rdt::exit::RulePolicy::new(setup.rule, None, self.model.config(), setup.chunk).unwrap();
        let mut policy = Staggered { recorder: Recorder::new(policy), on: staggered };
        let batch = Batch { logits: Logits::All, ..Batch::next(&self.tokens) };
        let output = session.run(batch, &mut policy).unwrap();
        let (steps, logits) = (output.steps.to_vec(), output.logits.to_vec());
        let rows = policy.recorder.rows(0, 0, &steps);
        let points = session.take_waypoints();
        assert!(session.take_waypoints().is_none());
        let visited = points.map_or(Vec::new(), |mut points| points.visited().to_vec());
        (Run { steps, logits, rows }, visited)
    }
}

fn all() -> Option<WaypointOptions> {
    Some(WaypointOptions { streams: true, ..WaypointOptions::default() })
}

/// A norm by its definition.
fn norm(norm: Option<&Norm>, x: &[f32]) -> Vec<f32> {
    let Some(norm) = norm else { return x.to_vec() };
    let n = x.len() as f64;
    let mean = norm.bias.as_ref().map_or(0.0, |_| x.iter().map(|&x| f64::from(x)).sum::<f64>() / n);
    let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + f64::from(norm.eps)).sqrt();
    let bias = |i: usize| norm.bias.as_ref().map_or(0.0, |b| f64::from(b[i]));
    x.iter()
        .enumerate()
        .map(|(i, &x)| ((f64::from(x) - mean) * scale * f64::from(norm.weight[i]) + bias(i)) as f32)
        .collect()
}

/// Segment, step and pass.
type Place = (usize, usize, usize);

/// A token's way by the plan: (segment, step, pass, block).
fn way(model: &Model, depths: &[usize]) -> Vec<(usize, usize, usize, usize)> {
    let (mut way, mut depths) = (Vec::new(), depths.iter());
    for (s, segment) in model.plan().segments.iter().enumerate() {
        match segment {
            Segment::Once(blocks) => way.extend(blocks.clone().map(|b| (s, 0, 0, b))),
            Segment::Looped(l) => {
                for step in 1..=*depths.next().unwrap() {
                    for (p, pass) in l.passes.iter().enumerate() {
                        way.extend(pass.blocks.clone().map(|b| (s, step, p, b)));
                    }
                }
            }
        }
    }
    way
}

/// Rows pass the blocks of the plan in order; what is said of a passage is what its streams say; and the streams at the ends of
/// segments and steps are the prelude, the latents and the initial states.
#[test]
fn waypoints_are_the_streams_of_the_plan() {
    for folder in FOLDERS {
        let case = Case::new(folder, Recipe::F32);
        for staggered in [false, true] {
            let (run, visited) = case.run(&case.setup, staggered, all());
            assert_eq!(visited.len(), case.tokens.len());
            for (t, (seen, visited)) in run.rows.iter().zip(&visited).enumerate() {
                let what = format!("{folder}, token {t}");
                assert_eq!((visited.row.position, visited.row.token), (t, case.tokens[t]));
                let loops = case.model.config().loops.len();
                let depths: Vec<usize> =
                    (0..loops).map(|i| seen.stats.iter().filter(|s| s.segment == i).count()).collect();
                let passages = visited.passages();
                let found: Vec<_> = passages.iter().map(|p| (p.segment, p.step, p.pass, p.block)).collect();
                assert_eq!(found, way(&case.model, &depths), "{what}");
                numbers_are_those_of_the_streams(visited, &what);
                streams_are_those_of_the_run(&case.model, &depths, seen, visited, &what);
            }
            if !staggered {
                golden_latents(&case, &visited, folder);
            }
        }
    }
}

fn numbers_are_those_of_the_streams(visited: &Visited, what: &str) {
    let mut before: Option<(Place, Vec<f64>, Vec<f32>)> = None;
    for (i, p) in visited.passages().iter().enumerate() {
        let (from, to) = visited.streams(i).unwrap();
        let moved: Vec<f64> = from.iter().zip(to).map(|(&a, &b)| f64::from(b) - f64::from(a)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let close = |found: f64, expected: f64| (found - expected).abs() <= 1e-12 * expected.abs().max(1.0);
        let square: f64 = from.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!(close(p.in_norm, square.sqrt()) && close(p.move_norm, dot(&moved, &moved).sqrt()), "{what}: {p:?}");
        let place = (p.segment, p.step, p.pass);
        match &before {
            Some((same, previous, left)) if *same == place => {
                assert_eq!(bits(left), bits(from), "{what}: a block takes in what the one before left");
                let cosine = dot(&moved, previous) / (dot(&moved, &moved) * dot(previous, previous)).sqrt();
                assert!(close(p.cosine, cosine), "{what}: {p:?}, {cosine}");
            }
            _ => assert!(p.cosine.is_nan()),
        }
        before = Some((place, moved, to.to_vec()));
    }
    assert!(visited.streams(visited.passages().len()).is_none());
}

fn streams_are_those_of_the_run(model: &Model, depths: &[usize], seen: &common::Seen, visited: &Visited, what: &str) {
    let passages = visited.passages();
    let (mut number, mut k) = (0, 0);
    for (s, segment) in model.plan().segments.iter().enumerate() {
        let Segment::Looped(l) = segment else { continue };
        let entered = (s > 0).then(|| passages.iter().rposition(|p| p.segment == s - 1).unwrap());
        if let (0, Some(i)) = (number, entered) {
            let e = norm(l.entry_norm.as_ref(), visited.streams(i).unwrap().1);
            assert!(relative_error(&seen.prelude, &e) < 1e-5, "{what}: prelude");
        }
        let mut state = (number == 0).then(|| seen.initial.clone());
        for step in 1..=depths[number] {
            let of_step = |p: &rdt::model::Passage| (p.segment, p.step) == (s, step);
            let first = passages.iter().position(of_step).unwrap();
            let last = passages.iter().rposition(of_step).unwrap();
            if let (Injection::None, Some(state)) = (&l.injection, &state) {
                assert_eq!(bits(visited.streams(first).unwrap().0), bits(state), "{what}: enters step {step}");
            }
            let (latent, left) = (&seen.latents[k], visited.streams(last).unwrap().1);
            assert_eq!(left.len(), model.config().state_width);
            match &l.norm {
                None => assert_eq!(bits(left), bits(latent), "{what}: step {step}"),
                Some(_) => {
                    let error = relative_error(&norm(l.norm.as_ref(), left), latent);
                    assert!(error < 1e-5, "{what}: step {step}: {error:.1e}");
                }
            }
            // The moves of a step's last pass lead from where it began to where it ended.
            let pass: Vec<usize> = (first..=last).filter(|&i| passages[i].pass == passages[last].pass).collect();
            let mut sum: Vec<f64> = visited.streams(pass[0]).unwrap().0.iter().map(|&x| f64::from(x)).collect();
            for i in pass {
                let (from, to) = visited.streams(i).unwrap();
                sum.iter_mut().zip(from.iter().zip(to)).for_each(|(s, (a, b))| *s += f64::from(*b) - f64::from(*a));
            }
            let sum: Vec<f32> = sum.iter().map(|&x| x as f32).collect();
            assert!(relative_error(&sum, left) < 1e-6, "{what}: moves of step {step}");
            state = Some(latent.clone());
            k += 1;
        }
        // What follows the loop takes its state in.
        let next = passages.iter().position(|p| p.segment == s + 1);
        if let (Some(next), None, Some(state)) = (next, &l.readout, state) {
            let stream = norm(l.readout_norm.as_ref(), &state);
            assert!(relative_error(visited.streams(next).unwrap().0, &stream) < 1e-5, "{what}: leaves the loop");
        }
        number += 1;
    }
}

/// The streams that leave a step's last block, normed where the loop ends with a norm, are the reference's latents.
fn golden_latents(case: &Case, visited: &[Visited], folder: &str) {
    let mut number = 0;
    for (s, segment) in case.model.plan().segments.iter().enumerate() {
        let Segment::Looped(l) = segment else { continue };
        let name = if case.golden.has("latents") { "latents".to_owned() } else { format!("latents_{number}") };
        let size = case.tokens.len() * case.model.config().state_width;
        let steps = case.model.config().loops[number].mean_steps;
        for (k, expected) in case.golden.f32(&name).chunks(size).enumerate().take(steps) {
            let mut found = Vec::new();
            for v in visited {
                let last = v.passages().iter().rposition(|p| (p.segment, p.step) == (s, k + 1)).unwrap();
                found.extend(norm(l.norm.as_ref(), v.streams(last).unwrap().1));
            }
            let error = relative_error(&found, expected);
            assert!(error < 1e-4, "{folder}: {name}, step {}: {error:.1e}", k + 1);
        }
        number += 1;
    }
}

/// Everything that was noted, as bits.
fn noted(visited: &[Visited]) -> Vec<Vec<u64>> {
    let of = |v: &Visited| {
        let mut all = vec![v.row.position as u64];
        for (i, p) in v.passages().iter().enumerate() {
            all.extend([p.segment as u64, p.step as u64, p.pass as u64, p.block as u64]);
            all.extend([p.in_norm, p.move_norm, p.cosine].map(f64::to_bits));
            if let Some((from, to)) = v.streams(i) {
                all.extend(from.iter().chain(to).map(|x| u64::from(x.to_bits())));
            }
        }
        all
    };
    visited.iter().map(of).collect()
}

/// Looking changes no bit, and what is seen depends on neither threads nor chunks, with rows that leave at different steps.
#[test]
fn looking_changes_nothing() {
    for folder in FOLDERS {
        for (recipe, kv_type) in [(Recipe::F32, KvType::F32), (Recipe::Q4_0, KvType::F16)] {
            let case = Case::new(folder, recipe);
            let setup = |chunk, threads| Setup { chunk, threads, kv_type, ..case.setup.clone() };
            let (plain, none) = case.run(&setup(1, 1), true, None);
            assert!(none.is_empty());
            let steps = &plain.steps;
            assert!(steps.iter().any(|n| *n != steps[0]), "{folder}: {steps:?}");
            let mut first = None;
            for (chunk, threads) in [(1, 1), (1, 2), (3, 7), (5, 2), (64, 1), (64, 7)] {
                let what = format!("{folder} as {recipe}, {threads} threads, chunks of {chunk}");
                let (run, visited) = case.run(&setup(chunk, threads), true, all());
                run.assert_same(&plain, &what);
                let noted = noted(&visited);
                assert!(*first.get_or_insert_with(|| noted.clone()) == noted, "{what}");
            }
            // Some rows, without their streams: the same numbers.
            let options = WaypointOptions { positions: 2..10, every: 3, most: 2, ..WaypointOptions::default() };
            let (run, some) = case.run(&setup(4, 2), true, Some(options));
            run.assert_same(&plain, folder);
            let (_, every) = case.run(&setup(4, 2), true, Some(WaypointOptions::default()));
            assert_eq!(noted(&some), [noted(&every)[2].clone(), noted(&every)[5].clone()], "{folder}");
            assert!(every[0].streams(0).is_none());
        }
    }
}

/// A rule that reads out inside the loop runs the coda again and again; the position's way has it once, behind the loop.
#[test]
fn read_outs_inside_the_loop_are_not_on_the_way() {
    let case = Case::new("huginn", Recipe::F32);
    let setup = Setup::rule("kl:0.2,max=9", 9, &case.setup.initial);
    let policy = || setup.recorder(case.model.config());
    let batch = Batch { logits: Logits::All, readout_exits: true, ..Batch::next(&case.tokens) };
    let (mut plain, mut policy_1) = (setup.session(&case.model), policy());
    let expected = common::run_batch(&mut plain, &mut policy_1, batch);
    let (mut session, mut policy_2) = (setup.session(&case.model), policy());
    session.record_waypoints(all().unwrap());
    common::run_batch(&mut session, &mut policy_2, batch).assert_same(&expected, "looked at");
    // Reading out later is no way either.
    session.read_out(0, 0, &expected.latents(1), rdt::model::Logits::All).unwrap();
    let mut points = session.take_waypoints().unwrap();
    assert!(expected.steps.iter().any(|n| *n != 9), "{:?}", expected.steps);
    for (v, &steps) in points.visited().iter().zip(&expected.steps) {
        let found: Vec<_> = v.passages().iter().map(|p| (p.segment, p.step, p.pass, p.block)).collect();
        assert_eq!(found, way(&case.model, &[steps]));
        numbers_are_those_of_the_streams(v, "kl");
    }
    assert_eq!(points.visited().len(), case.tokens.len());
}

/// A position that is run again, as in the next text, is another one.
#[test]
fn texts_through_one_sequence_add_up() {
    let case = Case::new("huginn", Recipe::F32);
    let mut session = case.setup.session(&case.model);
    session.record_waypoints(WaypointOptions { most: 5, ..WaypointOptions::default() });
    for tokens in [&case.tokens[..3], &case.tokens[3..9]] {
        session.truncate(0, 0);
        let mut policy = case.setup.recorder(case.model.config());
        common::run(&mut session, &mut policy, 0, tokens);
    }
    let mut points = session.take_waypoints().unwrap();
    let found: Vec<_> = points.visited().iter().map(|v| (v.row.position, v.row.token)).collect();
    let token = |i: usize| case.tokens[i];
    assert_eq!(found, [(0, token(0)), (1, token(1)), (2, token(2)), (0, token(3)), (1, token(4))]);
}

/// What a calibration collects of a model in one run over windows: every step of every loop, every block in order, paths; the same
/// whatever the threads and chunks, and after a round through JSON.
#[test]
fn dynamics_of_windows() {
    for folder in ["huginn", "looped-gpt2", "hrm_text-shapes/split", "parcae"] {
        let case = Case::new(folder, Recipe::F32);
        let windows = Windows::new(case.tokens.clone(), case.tokens.len() / 2, None).unwrap();
        assert_eq!(windows.len(), 2);
        let collect = |chunk: usize, threads: usize| {
            let mut session = Setup { chunk, threads, ..case.setup.clone() }.session(&case.model);
            session.record_waypoints(WaypointOptions::default());
            let options = DynamicsOptions { positions: windows.scored(), most: 6, paths: vec![1, 3] };
            let policy = FixedDepth(case.setup.steps);
            let recorder = DynamicsRecorder::new(policy, case.model.config(), options);
            let mut run = Evaluation::new(&mut session, recorder, &windows, Reading::default()).unwrap();
            while run.advance().unwrap() {}
            let recorder = run.policy().clone();
            assert_eq!(recorder.positions() as usize, 2 * windows.scored().len());
            let mut points = session.take_waypoints();
            recorder.finish(&case.model, points.as_mut(), |token| token.to_string())
        };
        let found = collect(64, 1);
        let json = serde_json::to_string(&found).unwrap();
        for (chunk, threads) in [(1, 1), (2, 7), (3, 2)] {
            assert_eq!(serde_json::to_string(&collect(chunk, threads)).unwrap(), json, "{folder}");
        }
        let back: Dynamics = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), json);

        let config = case.model.config();
        let depths: Vec<usize> = config.loops.iter().map(|l| case.setup.steps.min(l.max_steps.unwrap_or(99))).collect();
        for (l, &steps) in found.loops.iter().zip(&depths) {
            for bands in [&l.state_norm, &l.step_norm, &l.angle, &l.acceleration, &l.curvature] {
                assert_eq!(bands.len(), steps);
            }
            assert!(l.angle[0].median.is_nan() && l.step_norm[0].median > 0.0);
            assert!(l.angle[1..].iter().all(|b| (0.0..=180.0).contains(&b.p10) && b.p10 <= b.p90));
        }
        // Every block of the way, once per step.
        let mut expected: Vec<_> = way(&case.model, &depths).iter().map(|&(_, step, _, block)| (step, block)).collect();
        let mut seen = std::collections::HashSet::new();
        let plan = &case.model.plan().segments;
        let parts = plan.iter().map(|s| matches!(s, Segment::Looped(_))).collect::<Vec<_>>();
        // Blocks are physical: no block is in two segments of these plans, so a step and a block say which run it is.
        expected.retain(|run| seen.insert(*run));
        let runs: Vec<_> = found.drift.iter().map(|d| (d.step.unwrap_or(0), d.block)).collect();
        assert_eq!(runs, expected, "{folder}");
        for d in &found.drift {
            assert!(
                d.moved.median > 0.0 && d.cosine.median.is_nan() | (d.cosine.median.abs() <= 1.0),
                "{folder}: {d:?}"
            );
            assert_eq!(d.step.is_some(), d.part == "core");
        }
        assert_eq!(found.drift[0].part == "core", parts[0]);

        assert!(found.paths.explained[0] >= found.paths.explained[1] && found.paths.explained[0] <= 1.0);
        let paths: Vec<_> = found.paths.tokens.iter().map(|p| (p.position, p.text.clone(), p.points.len())).collect();
        let last = depths.last().unwrap() + 1;
        assert_eq!(paths, [1, 3].map(|p| (p, case.tokens[p].to_string(), last)), "{folder}: of the first window");
    }
}
