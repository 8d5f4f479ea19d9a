//! The program `rdt-trace`: what it writes, and what must not change a byte of it.
#![cfg(feature = "cli")]

mod common;

use common::{Golden, HUGINN, RULE, Tensors, bits, gguf, model};
use rdt::calibrate::principal_plane;
use rdt::model::InitialState;
use rdt::quant::Recipe;
use safetensors::Dtype;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A model file in a folder of its own, and a place for outputs.
struct Place {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Place {
    fn new(recipe: Recipe) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model.gguf");
        std::fs::write(&model, gguf(HUGINN, recipe)).unwrap();
        Self { folder, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, out: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-trace"));
        command.arg("-m").arg(&self.model).arg("--out").arg(out).args(args).env_remove("RDT_ISA");
        command
    }

    /// Runs the program, which must succeed and print nothing to stdout; gives the file's bytes.
    #[track_caller]
    fn bytes(&self, args: &[&str]) -> Vec<u8> {
        let out = self.path("out.safetensors");
        let result = self.command(&out, args).output().unwrap();
        assert!(result.status.success(), "{args:?}: {}", said(&result));
        assert!(result.stdout.is_empty());
        let bytes = std::fs::read(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        bytes
    }

    #[track_caller]
    fn trace(&self, args: &[&str]) -> Tensors {
        let path = self.path("read.safetensors");
        std::fs::write(&path, self.bytes(args)).unwrap();
        Tensors::read(&path)
    }

    /// Runs the program, which must fail with this code, and gives the last line that it said. Nothing is written.
    #[track_caller]
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let out = self.path("never.safetensors");
        let result = self.command(&out, args).output().unwrap();
        let said = said(&result);
        assert_eq!(result.status.code(), Some(code), "{args:?}: {said}");
        assert!(!out.exists() && result.stdout.is_empty() && !said.contains("panicked"), "{args:?}: {said}");
        said.lines().last().unwrap().to_owned()
    }

    /// As [`Self::fails`] with code 1: one line that begins with the program's name and has these words.
    #[track_caller]
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let line = self.fails(1, args);
        assert!(line.starts_with("rdt-trace: ") && words.iter().all(|w| line.contains(w)), "{args:?}: {line}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The golden's tokens as a flag's value.
fn tokens(golden: &Golden) -> String {
    golden.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn golden_file() -> String {
    common::data(HUGINN).join("golden.safetensors").to_str().unwrap().to_owned()
}

/// The program gives what the reference computed: a golden file serves as `--init`, and the trace has its tensors.
#[test]
fn a_trace_has_the_tensors_of_the_golden() {
    let (place, golden) = (Place::new(Recipe::F32), Golden::read(HUGINN));
    let (tokens, init) = (tokens(&golden), golden_file());
    let flags = ["--tokens", &tokens, "--init", &init, "--steps", "5", "--kv-type", "f32"];
    let trace = place.trace(&flags);
    let (t, r, d, v) = (20, 5, 128, 1024);
    let expected = [
        ("tokens", Dtype::I32, vec![t]),
        ("prelude", Dtype::F32, vec![t, d]),
        ("init_state", Dtype::F32, vec![t, d]),
        ("latents", Dtype::F32, vec![r, t, d]),
        ("logits", Dtype::F32, vec![t, v]),
        ("step_norm", Dtype::F32, vec![r, t]),
        ("acceleration", Dtype::F32, vec![r, t]),
        ("step_cosine", Dtype::F32, vec![r, t]),
        ("state_norm", Dtype::F32, vec![r, t]),
        ("angle", Dtype::F32, vec![r, t]),
        ("curvature", Dtype::F32, vec![r, t]),
        ("exit_step", Dtype::I32, vec![t]),
    ];
    assert_eq!(trace.shapes.len(), expected.len());
    for (name, dtype, shape) in expected {
        assert_eq!(trace.shapes[name], (dtype, shape), "{name}");
    }
    assert_eq!(trace.i32("tokens"), golden.tensors.i32("tokens"));
    assert_eq!(bits(trace.f32("init_state")), bits(golden.tensors.f32("init_state")));
    assert_eq!(trace.i32("exit_step"), [5; 20]);
    for name in ["prelude", "latents"] {
        let error = common::relative_error(trace.f32(name), golden.tensors.f32(name));
        assert!(error < 1e-4, "{name}: {error:.1e}");
    }
    let all = place.trace(&[&flags[..], &["--all-logits"]].concat());
    assert_eq!(all.shapes["logits"], (Dtype::F32, vec![r, t, v]));
    let error = common::relative_error(all.f32("logits"), golden.tensors.f32("logits"));
    assert!(error < 1e-4, "logits: {error:.1e}");
    assert!(bits(&all.f32("logits")[(r - 1) * t * v..]) == bits(trace.f32("logits")));
    for name in ["latents", "step_norm", "acceleration", "step_cosine"] {
        assert!(bits(all.f32(name)) == bits(trace.f32(name)), "{name} depends on --all-logits");
    }

    // The statistics are those of the latents beside them.
    let state = |k: usize, t: usize| match k {
        0 => &trace.f32("init_state")[t * d..(t + 1) * d],
        k => &trace.f32("latents")[((k - 1) * 20 + t) * d..][..d],
    };
    let delta = |k: usize, t: usize| -> Vec<f64> {
        state(k, t).iter().zip(state(k - 1, t)).map(|(&a, &b)| f64::from(a) - f64::from(b)).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for k in 1..=r {
        for i in 0..t {
            let at = (k - 1) * t + i;
            let close = |name: &str, expected: f64| {
                let found = f64::from(trace.f32(name)[at]);
                assert!(
                    (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
                    "{name}, step {k}: {found}, {expected}"
                );
            };
            let now = delta(k, i);
            close("step_norm", dot(&now, &now).sqrt());
            let norm = state(k, i).iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            close("state_norm", norm);
            if k == 1 {
                for name in ["acceleration", "step_cosine", "angle", "curvature"] {
                    assert!(trace.f32(name)[at].is_nan(), "{name}");
                }
                continue;
            }
            let before = delta(k - 1, i);
            let change: Vec<f64> = now.iter().zip(&before).map(|(a, b)| a - b).collect();
            close("acceleration", dot(&change, &change).sqrt());
            let lengths = [dot(&now, &now).sqrt(), dot(&before, &before).sqrt()];
            let cosine = dot(&now, &before) / (lengths[0] * lengths[1]);
            close("step_cosine", cosine);
            close("angle", cosine.acos().to_degrees());
            close("curvature", cosine.acos() / (0.5 * (lengths[0] + lengths[1])) * norm);
        }
    }
}

/// Chunks and threads do not change a byte of the file; nor does reading the model instead of mapping it.
#[test]
fn chunks_and_threads_do_not_change_the_file() {
    let golden = Golden::read(HUGINN);
    let (tokens, init) = (tokens(&golden), golden_file());
    for recipe in [Recipe::F32, Recipe::Q8_0, Recipe::Q4_0] {
        let place = Place::new(recipe);
        for kv in ["f32", "f16", "q8_0"] {
            let flags = ["--tokens", &tokens, "--init", &init, "--exit-rule", RULE, "--kv-type", kv, "--all-logits"];
            let flags = [&flags[..], &["--blocks", "--pca"]].concat();
            let with = |more: &[&str]| place.bytes(&[&flags[..], more].concat());
            let one = with(&["-t", "1"]);
            for more in [&["-b", "1", "-t", "1"][..], &["-b", "3", "-t", "7"], &["-b", "20", "-t", "2", "--no-mmap"]] {
                assert!(with(more) == one, "{recipe}, KV {kv}, {more:?}");
            }
        }
    }
}

/// Whole-model results are the same bytes on every instruction set.
#[test]
fn instruction_sets_do_not_change_the_file() {
    #[cfg(target_arch = "x86_64")]
    let fast = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    let fast = false;
    if !fast {
        eprintln!("SKIPPED: this machine has no AVX2, so there is nothing to compare the scalar kernels with");
        return;
    }
    let golden = Golden::read(HUGINN);
    let (tokens, init) = (tokens(&golden), golden_file());
    for recipe in [Recipe::F32, Recipe::F16, Recipe::BF16, Recipe::Q8_0, Recipe::Q4_0] {
        let place = Place::new(recipe);
        for kv in ["f32", "f16", "q8_0"] {
            let on = |isa: &str| {
                let out = place.path(isa);
                let flags = ["--tokens", &tokens, "--init", &init, "--exit-rule", RULE, "--kv-type", kv];
                let result = place.command(&out, &flags).env("RDT_ISA", isa).output().unwrap();
                assert!(result.status.success() && said(&result).contains(isa), "{}", said(&result));
                std::fs::read(out).unwrap()
            };
            assert!(on("scalar") == on("avx2"), "{recipe}, KV {kv}");
        }
    }
}

/// `--all-logits` gives after every step what a run of that depth gives, with an exit rule as without.
#[test]
fn all_logits_are_those_of_shallower_runs() {
    let golden = Golden::read(HUGINN);
    let (tokens, init) = (tokens(&golden), golden_file());
    let place = Place::new(Recipe::Q4_0);
    for rule in ["fixed", "acceleration:1.5,hits=2"] {
        let flags = ["--tokens", &tokens, "--init", &init, "--exit-rule", rule, "-b", "6"];
        let with = |steps: &str, more: &[&str]| place.trace(&[&flags[..], &["--steps", steps], more].concat());
        let all = with("9", &["--all-logits"]);
        for k in 1..=9usize {
            let one = with(&k.to_string(), &[]);
            let size = one.f32("logits").len();
            assert!(bits(&all.f32("logits")[(k - 1) * size..k * size]) == bits(one.f32("logits")), "{rule}, depth {k}");
            let shallow: Vec<i32> = all.i32("exit_step").iter().map(|&n| n.min(k as i32)).collect();
            assert_eq!(one.i32("exit_step"), shallow);
        }
    }
}

/// `--blocks`, `--pca` and `--seeds` add what they say, and change nothing else. Moves start and end where prelude and latents are;
/// paths are distances between states, flattened; spread is that of runs with these seeds.
#[test]
fn more_is_traced_when_asked() {
    let (place, golden) = (Place::new(Recipe::F32), Golden::read(HUGINN));
    let tokens = tokens(&golden);
    let flags = ["--tokens", &tokens, "--exit-rule", RULE, "--steps", "12", "-s", "5"];
    let plain = place.trace(&flags);
    let bytes = place.bytes(&[&flags[..], &["--blocks", "--pca", "--seeds", "3"]].concat());
    let path = place.path("more.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let more = Tensors::read(&path);
    for (name, shape) in &plain.shapes {
        assert_eq!(more.shapes[name], *shape, "{name}");
        match shape.0 {
            Dtype::I32 => assert_eq!(more.i32(name), plain.i32(name), "{name}"),
            _ => assert!(bits(more.f32(name)) == bits(plain.f32(name)), "{name}"),
        }
    }
    let (t, r, d) = (20, 12, 128);
    let exits = more.i32("exit_step").to_vec();
    assert!(exits.iter().any(|&n| n != exits[0]));

    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let list: serde_json::Value = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["blocks"]).unwrap();
    let list = list.as_array().unwrap();
    assert_eq!(more.shapes["block_move_norm"].1, [list.len(), t]);
    let anatomy = model(HUGINN, Recipe::F32);
    let [before, core, after] = [0, 1, 2].map(|i| match &anatomy.plan().segments[i] {
        rdt::model::Segment::Once(blocks) => blocks.len(),
        rdt::model::Segment::Looped(l) => l.blocks().count(),
    });
    assert_eq!(list.len(), before + r * core + after);
    for (i, row) in list.iter().enumerate() {
        let (step, part) = (row["step"].as_u64().unwrap() as i32, row["part"].as_str().unwrap());
        let expected = match i {
            i if i < before => ("prelude", i),
            i if i < before + r * core => ("core", before + (i - before) % core),
            i => ("coda", i - (r - 1) * core),
        };
        assert_eq!((part, row["block"].as_u64().unwrap() as usize), expected);
        assert_eq!(step > 0, part == "core");
        for (token, &exit) in exits.iter().enumerate() {
            let at = |name: &str| more.f32(name)[i * t + token];
            assert_eq!(at("block_move_norm").is_nan(), step > exit, "row {i}, token {token}");
            assert_eq!(at("block_in_norm").is_nan(), step > exit);
            let first =
                [0, before, before + r * core].contains(&i) || part == "core" && (i - before).is_multiple_of(core);
            assert_eq!(at("block_move_cosine").is_nan(), first || step > exit, "row {i}, token {token}");
            assert!(at("block_move_cosine").is_nan() || at("block_move_cosine").abs() <= 1.0);
        }
    }

    assert_eq!(more.shapes["pca"].1, [r + 1, t, 2]);
    let explained = more.f32("pca_explained");
    assert!(explained[0] >= explained[1] && explained[1] > 0.0 && explained[0] + explained[1] <= 1.0 + 1e-6);
    let point = |k: usize, t: usize| &more.f32("pca")[(k * 20 + t) * 2..][..2];
    for (token, &exit) in exits.iter().enumerate() {
        assert!((exit as usize..=r).all(|k| point(k, token) == point(exit as usize, token)));
        for k in 1..=exit as usize {
            // A projection does not lengthen a step.
            let moved =
                point(k, token).iter().zip(point(k - 1, token)).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
            assert!(moved <= 1.001 * more.f32("step_norm")[(k - 1) * t + token]);
        }
    }
    let same = principal_plane(&states(&more, &exits, t, d), d);
    let first: Vec<f64> = (0..=exits[0] as usize).flat_map(|k| point(k, 0).iter().map(|&x| f64::from(x))).collect();
    for (found, expected) in first.iter().zip(same.points.as_flattened()) {
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found}, {expected}");
    }

    // The three runs one by one.
    let v = 1024;
    let log_probs: Vec<Vec<f64>> = (5..8)
        .map(|seed| {
            let seed = seed.to_string();
            let trace = place.trace(&[&flags[..6], &["-s", &seed]].concat());
            let rows = trace.f32("logits").chunks(v).flat_map(|row| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                row.iter().map(move |&x| f64::from(x) - sum.ln()).collect::<Vec<_>>()
            });
            rows.collect()
        })
        .collect();
    let variance = |i: usize| {
        let mean = log_probs.iter().map(|x| x[i]).sum::<f64>() / 3.0;
        log_probs.iter().map(|x| (x[i] - mean).powi(2)).sum::<f64>() / 2.0
    };
    let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-4 * expected;
    assert_eq!((more.f32("seed_logit_variance").len(), more.f32("seed_nll_variance").len()), (t, t - 1));
    for i in 0..t {
        let mean = (0..v).map(|j| variance(i * v + j)).sum::<f64>() / v as f64;
        assert!(mean > 0.0 && close(more.f32("seed_logit_variance")[i], mean), "token {i}");
        if i + 1 < t {
            let next = variance(i * v + golden.tokens[i + 1] as usize);
            assert!(close(more.f32("seed_nll_variance")[i], next), "token {i}");
        }
    }
    // One token has none that follows.
    let one = place.trace(&["--tokens", "3", "--seeds", "2", "--pca", "--blocks", "--all-logits"]);
    assert_eq!(one.shapes["seed_nll_variance"].1, [0]);

    // And it is said.
    let result = place.command(&path, &[&flags[..], &["--blocks", "--seeds", "2"]].concat()).output().unwrap();
    for words in ["step: |step|/|state|, angle", "°", "(prelude)", "(core)", "over 2 seeds", "rdt-trace: wrote"] {
        assert!(said(&result).contains(words), "{words}: {}", said(&result));
    }
}

/// Initial states and latents of each token in turn, up to where it left.
fn states(trace: &Tensors, exits: &[i32], t: usize, d: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for (token, &exit) in exits.iter().enumerate() {
        all.extend_from_slice(&trace.f32("init_state")[token * d..(token + 1) * d]);
        for k in 0..exit as usize {
            all.extend_from_slice(&trace.f32("latents")[(k * t + token) * d..][..d]);
        }
    }
    all
}

/// Rules: `exit_step` is the reference's, a row that has left keeps its latent, and its statistics are NaN from there on.
#[test]
fn exit_rules_are_traced() {
    let golden = Golden::read(HUGINN);
    let (tokens, init) = (tokens(&golden), golden_file());
    let place = Place::new(Recipe::F32);
    let text = std::fs::read_to_string(common::data(HUGINN).join("exits.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in recorded["cases"].as_array().unwrap() {
        let rule = case["rule"].as_str().unwrap();
        let trace = place.trace(&["--tokens", &tokens, "--init", &init, "--exit-rule", rule]);
        let expected: Vec<i32> =
            case["exit_step"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as i32).collect();
        assert_eq!(trace.i32("exit_step"), expected, "{rule}");
        assert_eq!(trace.shapes["latents"].1, [16, 20, 128], "as deep as the rule may go");
        for (t, &exit) in expected.iter().enumerate() {
            let latent = |k: usize| bits(&trace.f32("latents")[((k - 1) * 20 + t) * 128..][..128]);
            for k in 1..=16 {
                let at = (k - 1) * 20 + t;
                let left = k > exit as usize;
                assert_eq!(trace.f32("step_norm")[at].is_nan(), left, "{rule}");
                assert_eq!(trace.f32("acceleration")[at].is_nan(), left || k == 1, "{rule}");
                assert_eq!(trace.f32("step_cosine")[at].is_nan(), left || k == 1, "{rule}");
                assert_eq!(trace.f32("state_norm")[at].is_nan(), left, "{rule}");
                assert_eq!(trace.f32("angle")[at].is_nan(), left || k == 1, "{rule}");
                assert_eq!(trace.f32("curvature")[at].is_nan(), left || k == 1, "{rule}");
                if k > 1 {
                    assert_eq!(latent(k) == latent(k - 1), left, "{rule}, token {t}, step {k}");
                }
            }
        }
    }
}

/// `--init` and `--seed`: zeros are zeros; noise is a function of seed and position, cut at three standard deviations.
/// Where the model has an exit gate, its logits are written; elsewhere there is no such tensor.
#[test]
fn exit_gates_are_traced() {
    let ouro = Golden::read("ouro");
    let place = Place::new(Recipe::F32);
    let args = ["--tokens", &tokens(&ouro), "--init", "zeros"];
    assert!(!place.trace(&args[..]).has("gate"));
    std::fs::write(&place.model, gguf("ouro", Recipe::F32)).unwrap();
    let (found, expected) = (place.trace(&args), ouro.tensors.f32("gate"));
    assert_eq!(found.shapes["gate"], (Dtype::F32, vec![4, ouro.tokens.len()]));
    assert!(common::relative_error(found.f32("gate"), expected) < 1e-4);
    assert!(common::relative_error(found.f32("latents"), ouro.tensors.f32("latents")) < 1e-4);
    // A token that has left keeps its last gate.
    let early = place.trace(&[&args[..], &["--exit-rule", "gate:0.9"]].concat());
    let (exits, t) = (early.i32("exit_step"), ouro.tokens.len());
    let gates = early.f32("gate");
    for (at, gate) in gates.iter().enumerate() {
        let last = (at / t + 1).min(exits[at % t] as usize);
        assert_eq!(*gate, gates[(last - 1) * t + at % t], "step {}, token {}", at / t + 1, at % t);
    }
}

#[test]
fn initial_states_are_as_asked() {
    let place = Place::new(Recipe::Q8_0);
    let std = model(HUGINN, Recipe::Q8_0).config().state_std;
    let with = |more: &[&str]| place.bytes(&[&["--tokens", "1,2,3,4,5,6", "--steps", "3"], more].concat());
    let zeros = with(&["--init", "zeros"]);
    assert!(zeros == with(&["--init", "zeros", "--seed", "9"]), "zeros have no seed");
    let noise = with(&[]);
    assert!(noise == with(&["--init", "noise", "--seed", "0"]), "the default is noise of seed 0");
    assert!(noise == with(&["-b", "1", "-t", "2"]));
    let seven = with(&["--seed", "7"]);
    assert!(seven != noise && seven == with(&["-s", "7"]));
    assert!(with(&["--seed", "18446744073709551615"]) != seven);

    let trace = place.trace(&["--tokens", "1,2,3", "--steps", "1", "--init", "zeros"]);
    assert!(trace.f32("init_state").iter().all(|&x| x.to_bits() == 0));
    let trace = |tokens: &str| place.trace(&["--tokens", tokens, "--steps", "1", "--seed", "7"]);
    let (a, b) = (trace("1,2,3"), trace("900,1,1,5"));
    let (a, b) = (a.f32("init_state"), b.f32("init_state"));
    assert_eq!(bits(a), bits(&b[..a.len()]), "noise does not depend on tokens");
    assert!(b.iter().all(|x| x.abs() <= 3.0 * std && *x != 0.0));
    assert_ne!(bits(&b[..128]), bits(&b[128..256]), "nor is it the same at every position");

    // Positions behind the end of a given state start from zeros.
    let short = place.path("init.safetensors");
    let state: Vec<u8> = (0..256).flat_map(|i| (i as f32 / 100.0).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(Dtype::F32, vec![2, 128], &state).unwrap();
    std::fs::write(&short, safetensors::serialize([("init_state", view)], None).unwrap()).unwrap();
    let trace = place.trace(&["--tokens", "1,2,3", "--steps", "1", "--init", short.to_str().unwrap()]);
    let found = trace.f32("init_state");
    assert!(found[..256].iter().enumerate().all(|(i, &x)| x == i as f32 / 100.0) && found[256..] == [0.0; 128]);
    let InitialState::Given(golden) = Golden::read(HUGINN).initial else { unreachable!() };
    assert_eq!(golden.len(), 20 * 128);
}

/// `--kv-steps` beyond the steps taken changes nothing, fewer do, and what is in force is said.
#[test]
fn kv_flags_are_honoured() {
    let golden = Golden::read(HUGINN);
    let (tokens, init) = (tokens(&golden), golden_file());
    let place = Place::new(Recipe::Q8_0);
    let with = |more: &[&str]| place.bytes(&[&["--tokens", &tokens, "--init", &init, "--steps", "6"], more].concat());
    let all = with(&[]);
    assert!(all == with(&["--kv-steps", "6"]) && all == with(&["--kv-steps", "99", "-c", "20"]));
    assert!(all != with(&["--kv-type", "q8_0"]));
    // In one chunk of a fixed depth every row is at the same step, and finds it in its slot; token by token it does not.
    assert!(all == with(&["--kv-steps", "5"]) && all != with(&["--kv-steps", "5", "-b", "1"]));
    let flags = ["--tokens", "1,2", "--steps", "6", "--kv-steps", "4", "--kv-type", "f16", "-t", "3"];
    let result = place.command(&place.path("said"), &flags).output().unwrap();
    assert!(said(&result).contains("KV f16 with 4 of 6 slots, 3 threads"), "{}", said(&result));
}

/// Bad input: one clear line, and the exit code that says whose fault it is. Nothing is written.
#[test]
fn bad_input_is_refused_in_one_line() {
    let place = Place::new(Recipe::Q8_0);
    let ok = ["--tokens", "1,2,3"];
    let usage: &[&[&str]] = &[
        &[],
        &["--tokens", ""],
        &["--tokens", "1,-2"],
        &["--tokens", "1,two"],
        &["--tokens", "4294967296"],
        &["--tokens", "1", "-p", "text"],
        &["--tokens", "1", "--steps", "0"],
        &["--tokens", "1", "--steps", "-1"],
        &["--tokens", "1", "-b", "0"],
        &["--tokens", "1", "-t", "0"],
        &["--tokens", "1", "-c", "0"],
        &["--tokens", "1", "--kv-steps", "0"],
        &["--tokens", "1", "--kv-type", "q4_0"],
        &["--tokens", "1", "--kv-memory", "0"],
        &["--tokens", "1", "--seed", "x"],
        &["--tokens", "1", "--seeds", "1"],
        &["--tokens", "1", "--seeds", "-3"],
        &["--tokens", "1", "--exit-rule", "acceleration:nan"],
        &["--tokens", "1", "--exit-rule", "acceleration:-1"],
        &["--tokens", "1", "--exit-rule", "acceleration:0.1,max=0"],
        &["--tokens", "1", "--exit-rule", "fixed:0"],
        &["--tokens", "1", "--exit-rule", "gut-feeling"],
        &["--tokens", "1", "--nonsense"],
    ];
    for args in usage {
        place.fails(2, args);
    }
    let with = |more: &[&'static str]| [&ok[..], more].concat();
    place.refuses(&["--tokens", "1,1024"], &["1024", "vocabulary"]);
    place.refuses(&["--tokens", "4294967295"], &["4294967295", "vocabulary"]);
    place.refuses(&with(&["-c", "2"]), &["context", "2", "3"]);
    place.refuses(&with(&["--prefix-len", "1"]), &["--prefix-len", "huginn"]);
    place.refuses(&with(&["--seeds", "2", "--init", "zeros"]), &["--seeds", "noise"]);
    place.refuses(&with(&["--init", "/does/not/exist"]), &["--init", "/does/not/exist"]);
    place.refuses(&with(&["--kv-memory", "1", "-c", "100000"]), &["budget", "-c"]);
    place.refuses(&["-p", "some text"], &["tokenizer"]);
    // A model is no initial state, and an initial state no model.
    let own = place.model.to_str().unwrap().to_owned();
    place.refuses(&["--tokens", "1", "--init", &own], &["--init", "init_state"]);
    let state = |dtype, shape: &[usize], bytes: &[u8]| {
        let path = place.path("bad.safetensors");
        let view = safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        std::fs::write(&path, safetensors::serialize([("init_state", view)], None).unwrap()).unwrap();
        place.refuses(&["--tokens", "1", "--init", path.to_str().unwrap()], &["--init", "init_state"]);
    };
    state(Dtype::F32, &[1, 127], &[0; 508]);
    state(Dtype::F32, &[128], &[0; 512]);
    state(Dtype::F16, &[2, 128], &[0; 512]);
    state(Dtype::F32, &[1, 128], &f32::NAN.to_le_bytes().repeat(128));
    // The output's folder does not exist, or is a file's name.
    for out in ["no/such/folder/out", "model.gguf/out"] {
        let out = place.path(out);
        let result = place.command(&out, &ok).output().unwrap();
        assert_eq!(result.status.code(), Some(1), "{}", said(&result));
        assert!(!said(&result).contains("panicked"));
    }
    // A model that is not one.
    for bytes in [&b""[..], b"GGUF", b"not a model at all, but long enough to be one"] {
        let path = place.path("bad.gguf");
        std::fs::write(&path, bytes).unwrap();
        let result = Command::new(env!("CARGO_BIN_EXE_rdt-trace"))
            .args(["-m", path.to_str().unwrap(), "--tokens", "1", "--out"])
            .arg(place.path("never"))
            .output()
            .unwrap();
        assert_eq!(result.status.code(), Some(1));
        assert_eq!(said(&result).lines().count(), 1, "{}", said(&result));
        assert!(said(&result).contains("bad.gguf"), "{}", said(&result));
    }
}

/// Absurd sizes are refused or honoured, never a crash.
#[test]
fn absurd_sizes_do_not_crash() {
    let place = Place::new(Recipe::Q8_0);
    for args in [
        &["--steps", "18446744073709551615"][..],
        &["--steps", "1000000000000000"],
        &["--steps", "1000000000000", "--kv-steps", "1"],
        &["--exit-rule", "acceleration:0.1,max=18446744073709551615"],
        &["-c", "18446744073709551615"],
        &["-c", "1000000000000", "--kv-memory", "18446744073709551615", "--steps", "2"],
        &["-c", "9000000000000000", "--kv-memory", "17592186044415", "--steps", "2"],
    ] {
        place.refuses(&[&["--tokens", "1,2"], args].concat(), &[]);
    }
    let small = ["--tokens", "1,2", "--steps", "2"];
    let expected = place.bytes(&small);
    for args in [
        &["-b", "18446744073709551615"][..],
        &["-b", "1000000000000"],
        &["--kv-steps", "18446744073709551615"],
        &["--kv-memory", "18446744073709551615"],
        &["--kv-memory", "17592186044416"],
    ] {
        assert!(place.bytes(&[&small, args].concat()) == expected, "{args:?}");
    }
}
