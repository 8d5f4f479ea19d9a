//! Model families against their public reference implementations, each in a file of its own.

#[path = "../common/mod.rs"]
mod common;

mod edited;
mod hrm_text;
mod looped_gpt2;
mod malformed;
mod parcae;
mod retrofit;
#[cfg(feature = "cli")]
mod trace;

use common::{Golden, Run, Setup, model, relative_error};
use rdt::kernels::KvType;
use rdt::quant::Recipe;

/// f32 weights and KV: every latent and every depth's logits within 1e-4 of the tensor's standard deviation.
fn is_the_reference(folder: &str) {
    let golden = Golden::read(folder);
    let model = model(folder, Recipe::F32);
    let (t, s, v) = (golden.tokens.len(), model.config().state_width, model.config().vocab);
    let close = |found: &[f32], name: &str, k: usize, width: usize| {
        let error = relative_error(found, &golden.tensors.f32(name)[(k - 1) * t * width..k * t * width]);
        assert!(error < 1e-4, "{folder}: {name} of step {k} are {error:.1e} off");
    };
    for k in 1..=golden.steps {
        let run = Setup::fixed(k, &golden.initial).run(&model, &golden.tokens);
        assert_eq!(run.steps, vec![k; t]);
        close(&run.logits, "logits", k, v);
        for j in 1..=k {
            close(&run.latents(j), "latents", j, s);
        }
    }
}

/// Chunks, threads and rows that leave at other steps do not show, in any weight and KV format. `rule`: one under which the
/// golden's tokens leave at different steps of 12.
fn bits_are_independent_of_company(folder: &str, rule: &str) {
    let golden = Golden::read(folder);
    let head_dim = model(folder, Recipe::F32).config().head_dim;
    for (recipe, kv_type) in [
        (Recipe::F32, KvType::F32),
        (Recipe::F32, KvType::Q8_0),
        (Recipe::F16, KvType::F16),
        (Recipe::Q8_0, KvType::Q8_0),
        (Recipe::Q4_0, KvType::F16),
        (Recipe::Q4_0, KvType::Q8_0),
    ] {
        if kv_type.row_bytes(head_dim).is_none() {
            continue;
        }
        let model = model(folder, recipe);
        let run = |chunk: usize, threads: usize| -> Run {
            let setup = Setup { kv_type, chunk, threads, ..Setup::rule(rule, 12, &golden.initial) };
            setup.run(&model, &golden.tokens)
        };
        let alone = run(1, 1);
        assert!(alone.steps.iter().any(|&n| n != alone.steps[0]), "{folder} as {recipe}: exits do not vary: {alone:?}");
        for (chunk, threads) in [(1, 2), (3, 1), (3, 7), (5, 2), (64, 1), (64, 2), (64, 7)] {
            let what = format!("{folder} as {recipe}, KV {kv_type}, {threads} threads, chunks of {chunk}");
            run(chunk, threads).assert_same(&alone, &what);
        }
    }
}
