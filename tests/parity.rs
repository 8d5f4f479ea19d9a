//! The looped forward pass against the public reference implementation: what `golden.safetensors` of every checkpoint in
//! `tests/data` holds, and the run under exit rules of `exits.json`.

mod common;

use common::{ALL, Golden, HUGINN, Setup, Tensors, cosine, gguf, model, relative_error};
use rdt::arch::{Conversion, Input};
use rdt::exit::Signal;
use rdt::files::Bytes;
use rdt::gguf::Header;
use rdt::model::{Batch, Logits, Model};
use rdt::quant::Recipe;
use serde_json::Value;
use std::sync::Arc;

/// f32 weights and KV: prelude, every latent and every depth's logits within 1e-4 of the tensor's standard deviation.
#[test]
fn f32_is_the_reference() {
    for folder in ALL {
        let golden = Golden::read(folder);
        let model = model(folder, Recipe::F32);
        let (t, d, v) = (golden.tokens.len(), model.config().width, model.config().vocab);
        let close = |found: &[f32], expected: &[f32], what: &str| {
            let error = relative_error(found, expected);
            assert!(error < 1e-4, "{folder}: {what} is {error:.1e} off");
        };
        for k in 1..=golden.steps {
            let run = Setup::fixed(k, &golden.initial).run(&model, &golden.tokens);
            assert_eq!(run.steps, vec![k; t]);
            let of = |name: &str, width: usize| golden.tensors.f32(name)[(k - 1) * t * width..k * t * width].to_vec();
            let prelude: Vec<f32> = run.rows.iter().flat_map(|r| r.prelude.clone()).collect();
            close(&prelude, golden.tensors.f32("prelude"), "the prelude");
            close(&run.latents(k), &of("latents", d), &format!("latent {k}"));
            // The deepest run sees every latent on its way.
            for j in 1..=k {
                let at = (j - 1) * t * d..j * t * d;
                close(&run.latents(j), &golden.tensors.f32("latents")[at], &format!("latent {j} of {k}"));
            }
            close(&run.logits, &of("logits", v), &format!("the logits of depth {k}"));
        }
    }
}

/// Smallest cosine of any position's logits with `expected`, `[T][V]`, at the golden's last step.
fn worst_cosine(model: &Arc<Model>, golden: &Golden, expected: &[f32]) -> f64 {
    let vocab = model.config().vocab;
    let run = Setup::fixed(golden.steps, &golden.initial).run(model, &golden.tokens);
    assert_eq!(run.logits.len(), expected.len());
    let cosines = run.logits.chunks(vocab).zip(expected.chunks(vocab)).map(|(a, b)| cosine(a, b));
    // A NaN comes through.
    cosines.fold(1.0, |least, c| if c >= least { least } else { c })
}

/// The logits of coarser weights point where the reference's do. The weights are random, which nothing quantises well: the
/// bounds are from measurements, with about twice the measured distance allowed.
#[test]
fn coarser_weights_stay_close() {
    for folder in ALL {
        let golden = Golden::read(folder);
        let logits = golden.tensors.f32("logits");
        let expected = &logits[logits.len() / golden.steps * (golden.steps - 1)..];
        let bounds = [(Recipe::F16, 0.99999), (Recipe::BF16, 0.998), (Recipe::Q8_0, 0.993), (Recipe::Q4_0, 0.4)];
        for (recipe, least) in bounds {
            let worst = worst_cosine(&model(folder, recipe), &golden, expected);
            let least = if folder == HUGINN && recipe == Recipe::Q8_0 { 0.999 } else { least };
            assert!(worst > least, "{folder} as {recipe}: {worst}");
        }
    }
}

/// A quantised model computes what its own weights, written out in f32, compute: only the activations are rounded too.
#[test]
fn quantised_weights_mean_what_their_bytes_say() {
    for folder in ALL {
        let golden = Golden::read(folder);
        for (recipe, least) in
            [(Recipe::F16, 0.999_999_9), (Recipe::BF16, 0.999_999_9), (Recipe::Q8_0, 0.999_999), (Recipe::Q4_0, 0.99)]
        {
            let bytes = Bytes::from(gguf(folder, recipe));
            let header = Header::parse(&bytes).unwrap();
            let plan = Conversion::of_gguf(&header);
            let written = plan.write(&Input::Gguf(&bytes, &header), Recipe::F32, Vec::new(), &mut |_| true).unwrap().0;
            let open = |bytes| Arc::new(rdt::arch::from_bytes(bytes).unwrap());
            let plain = Setup::fixed(golden.steps, &golden.initial).run(&open(Bytes::from(written)), &golden.tokens);
            let worst = worst_cosine(&open(bytes), &golden, &plain.logits);
            assert!(worst > least, "{folder} as {recipe}: {worst}");
        }
    }
}

/// The reference's token-by-token run under exit rules: the same exits and logits, which also proves that later tokens see
/// the keys and values of earlier, shallower ones as they do there. Latent rules give the same in any chunking.
#[test]
fn exits_are_those_of_the_reference() {
    let text = std::fs::read_to_string(common::data(HUGINN).join("exits.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let numbers =
        |v: &Value| -> Vec<usize> { v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect() };
    let probes = numbers(&recorded["probes"]);
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::F32);
    let vocab = model.config().vocab;
    let mut runs = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let rule = case["rule"].as_str().unwrap();
        let expected: Vec<f32> = case["logits"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|row| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32))
            .collect();
        for chunk in [1, 3, 64] {
            let setup = Setup { chunk, ..Setup::rule(rule, 16, &golden.initial) };
            // Read-out rules run token by token whatever the chunk.
            let readout_exits = setup.rule.signal() == Signal::Readout;
            let mut session = setup.session(&model);
            let batch =
                Batch { sequence: 0, tokens: &golden.tokens, logits: Logits::All, readout_exits, both_ways: false };
            let output = session.run(batch, &mut setup.recorder(model.config())).unwrap();
            assert_eq!(output.steps, numbers(&case["exit_step"]), "{rule}, chunks of {chunk}");
            let found: Vec<f32> = output.logits.chunks(vocab).flat_map(|row| probes.iter().map(|&p| row[p])).collect();
            let error = relative_error(&found, &expected);
            assert!(error < 1e-3, "{rule}, chunks of {chunk}: logits are {error:.1e} off");
            runs += 1;
        }
    }
    assert_eq!(runs, 54);
}

/// The statistics that rules see are those that the reference computed at the same steps.
#[test]
fn statistics_are_those_of_the_reference() {
    let text = std::fs::read_to_string(common::data(HUGINN).join("exits.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let golden = Golden::read(HUGINN);
    let model = model(HUGINN, Recipe::F32);
    let mut compared = 0;
    for case in recorded["cases"].as_array().unwrap() {
        let setup = Setup::rule(case["rule"].as_str().unwrap(), 16, &golden.initial);
        if setup.rule.signal() != Signal::Latent {
            continue;
        }
        let run = setup.run(&model, &golden.tokens);
        for (row, values) in run.rows.iter().zip(case["statistic"].as_array().unwrap()) {
            for (stats, value) in row.stats.iter().zip(values.as_array().unwrap()) {
                let Some(expected) = value.as_f64() else { continue };
                let found = match setup.rule.name() {
                    "step-norm" => stats.step_norm / stats.state_norm,
                    "acceleration" => stats.acceleration / stats.state_norm,
                    "acceleration-raw" => stats.acceleration,
                    "acceleration-step" => stats.acceleration / (stats.step_norm + stats.previous_step_norm),
                    "cosine" => 1.0 - stats.state_cosine,
                    other => panic!("{other}"),
                };
                // Written with six digits.
                let error = (f64::from(found) / expected - 1.0).abs();
                assert!(error < 1e-4, "{}, step {}: {found} instead of {expected}", setup.rule, stats.step);
                compared += 1;
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

/// The files that the tests above read are complete.
#[test]
fn goldens_have_the_shapes_of_their_models() {
    for folder in ALL {
        let golden = Golden::read(folder);
        let config = model(folder, Recipe::F32).config().clone();
        let (t, d, v, r) = (golden.tokens.len(), config.width, config.vocab, golden.steps);
        let Tensors { shapes, .. } = &golden.tensors;
        assert!(t >= 8 && r >= 3);
        assert_eq!(shapes["prelude"].1, [t, d]);
        assert_eq!(shapes["latents"].1, [r, t, d]);
        assert_eq!(shapes["logits"].1, [r, t, v]);
    }
}
