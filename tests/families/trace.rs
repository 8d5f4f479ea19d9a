//! `rdt-trace` on models with a prefix mask and with several loops.

use crate::common::{Tensors, bits, data, relative_error};
use std::process::{Command, Output};

/// Runs the program on a checkpoint and tokens; gives what it wrote, if it did, and what it said.
fn trace(folder: &str, tokens: &str, args: &[&str]) -> (Option<Tensors>, Output) {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("trace.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-trace"));
    command.arg("-m").arg(data(folder)).args(["--tokens", tokens]).arg("--out").arg(&out).args(args);
    let output = command.output().unwrap();
    assert!(output.stdout.is_empty());
    (output.status.success().then(|| Tensors::read(&out)), output)
}

#[track_caller]
fn traced(folder: &str, tokens: &str, args: &[&str]) -> Tensors {
    let (tensors, output) = trace(folder, tokens, args);
    tensors.unwrap_or_else(|| panic!("{args:?}: {}", said(&output)))
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn golden(folder: &str) -> (Tensors, String) {
    let golden = Tensors::read(&data(folder).join("golden.safetensors"));
    let tokens = golden.i32("tokens").iter().map(i32::to_string).collect::<Vec<_>>().join(",");
    (golden, tokens)
}

/// The two masks of the reference; a causal run of such a model is not silent about it.
#[test]
fn a_prefix_is_read_both_ways() {
    let folder = "hrm_text-shapes/wide";
    let (golden, tokens) = golden(folder);
    for (prefix, mask) in [(0, ""), (golden.i32("prefix_len")[0], "_prefix_lm")] {
        let prefix = prefix.to_string();
        let found = traced(folder, &tokens, &["--prefix-len", &prefix, "--all-logits"]);
        let (_, t, v) = (2, 12, 320);
        assert_eq!(found.shapes["logits"].1, [2, t, v]);
        let error = relative_error(&found.f32("logits")[t * v..], golden.f32(&format!("logits{mask}")));
        assert!(error < 1e-4, "logits{mask}: {error:.1e}");
        let error = relative_error(found.f32("latents"), golden.f32(&format!("latents{mask}")));
        assert!(error < 1e-4, "latents{mask}: {error:.1e}");
        // Without the read-outs of every depth, the last one is the same.
        let last = traced(folder, &tokens, &["--prefix-len", &prefix, "-t", "3"]);
        assert_eq!(bits(last.f32("logits")), bits(&found.f32("logits")[t * v..]));
        let (_, output) = trace(folder, &tokens, &["--prefix-len", &prefix]);
        assert_eq!(said(&output).contains("without --prefix-len"), prefix == "0", "{}", said(&output));
    }
    // All of it a prefix, and what cannot be one.
    assert_eq!(traced(folder, &tokens, &["--prefix-len", "12"]).shapes["logits"].1, [12, 320]);
    for (args, words) in [
        (&["--prefix-len", "13"][..], "there are 12 tokens"),
        (&["--prefix-len", "7", "-b", "6"], "7"),
        (&["--prefix-len", "7", "-c", "11"], "context"),
    ] {
        let (found, output) = trace(folder, &tokens, args);
        let said = said(&output);
        assert!(found.is_none() && said.lines().count() == 1 && said.contains(words), "{args:?}: {said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

/// Everything that is counted in steps stands once for each loop.
#[test]
fn several_loops_have_tensors_each() {
    let (golden, tokens) = golden("looped-gpt2");
    let found = traced("looped-gpt2", &tokens, &["--all-logits"]);
    let mut names: Vec<&str> = found.shapes.keys().map(String::as_str).collect();
    names.sort_unstable();
    let each = |name: &str| (0..3).map(|i| format!("{name}_{i}")).collect::<Vec<_>>();
    let mut expected: Vec<String> = ["tokens", "init_state", "prelude", "logits"].map(str::to_owned).to_vec();
    for name in ["latents", "step_norm", "acceleration", "step_cosine", "state_norm", "angle", "curvature", "exit_step"]
    {
        expected.extend(each(name));
    }
    expected.sort_unstable();
    assert_eq!(names, expected);
    for (i, steps) in [4, 3, 5].into_iter().enumerate() {
        let name = format!("latents_{i}");
        assert_eq!(found.shapes[&name].1, [steps, 14, 36]);
        let error = relative_error(found.f32(&name), golden.f32(&name));
        assert!(error < 1e-4, "{name}: {error:.1e}");
        assert_eq!(found.i32(&format!("exit_step_{i}")), [steps as i32; 14]);
        // From the stream that enters on.
        let norms = found.f32(&format!("step_norm_{i}"));
        assert!(norms.len() == steps * 14 && norms.iter().all(|n| n.is_finite() && *n > 0.0));
        let second = found.f32(&format!("acceleration_{i}"));
        assert!(second[..14].iter().all(|x| x.is_nan()) && second[14..].iter().all(|x| x.is_finite()));
    }
    let error = relative_error(found.f32("logits"), golden.f32("logits_last"));
    assert!(error < 1e-4, "logits: {error:.1e}");
    // The stream is the initial state of the first.
    assert_eq!(bits(found.f32("prelude")), bits(found.f32("init_state")));

    // Paths each; blocks in one list; no noise, so no seeds.
    let more = traced("looped-gpt2", &tokens, &["--pca", "--blocks"]);
    for (i, steps) in [4, 3, 5].into_iter().enumerate() {
        assert_eq!(more.shapes[&format!("pca_{i}")].1, [steps + 1, 14, 2]);
        assert_eq!(more.shapes[&format!("pca_explained_{i}")].1, [2]);
    }
    assert!(more.f32("block_move_norm").iter().all(|x| *x > 0.0));
    let (none, output) = trace("looped-gpt2", &tokens, &["--seeds", "2"]);
    assert!(none.is_none() && said(&output).contains("--seeds"), "{}", said(&output));

    // Each loop has its own exit, and its last state is kept behind it.
    let rule = ["--exit-rule", "acceleration:0.0225,hits=2,max=9"];
    let left = traced("looped-gpt2", &tokens, &rule);
    let exits = [0, 1, 2].map(|i| left.i32(&format!("exit_step_{i}")).to_vec());
    assert!(exits[0].iter().any(|&n| n != exits[0][0]) && exits[0] != exits[2], "{exits:?}");
    for (i, exits) in exits.iter().enumerate() {
        let latents = left.f32(&format!("latents_{i}"));
        for (t, &exit) in exits.iter().enumerate() {
            let at = |k: usize| &latents[(k * 14 + t) * 36..(k * 14 + t + 1) * 36];
            assert!((exit as usize..9).all(|k| at(k) == at(exit as usize - 1)), "loop {i}, token {t}");
            assert!(at(exit as usize - 1) != at(exit as usize - 2), "loop {i}, token {t}");
        }
    }
    let (found, output) = trace("looped-gpt2", &tokens, &["--prefix-len", "2"]);
    assert!(found.is_none() && said(&output).contains("no prefix mask"), "{}", said(&output));
}
