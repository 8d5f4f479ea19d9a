//! Model families against their public reference implementations, each in a file of its own.

#[path = "../common/mod.rs"]
mod common;

mod edited;
mod hrm_text;
mod llama_cpp;
mod looped_gpt2;
mod malformed;
mod nanbeige;
mod ouro;
mod parcae;
mod plans;
mod retrofit;
#[cfg(feature = "cli")]
mod trace;
mod waypoints;

use common::{Golden, Run, Seen, Setup, model, relative_error};
use rdt::kernels::KvType;
use rdt::quant::Recipe;

/// f32 weights and KV: every latent, every depth's logits and what the exit gate says, where there is one, within 1e-4 of the
/// tensor's standard deviation.
fn is_the_reference(folder: &str) {
    let golden = Golden::read(folder);
    let model = model(folder, Recipe::F32);
    let (t, s, v) = (golden.tokens.len(), model.config().state_width, model.config().vocab);
    let close = |found: &[f32], name: &str, k: usize, width: usize| {
        let error = relative_error(found, &golden.tensors.f32(name)[(k - 1) * t * width..k * t * width]);
        assert!(error < 1e-4, "{folder}: {name} of step {k} are {error:.1e} off");
    };
    // One run of full depth, read out at every depth: as a run of that depth, in the coda too.
    let setup = Setup::fixed(golden.steps, &golden.initial);
    let mut session = setup.session(&model);
    let deepest = common::run(&mut session, &mut setup.recorder(model.config()), 0, &golden.tokens);
    for k in 1..=golden.steps {
        close(session.read_out(0, 0, &deepest.latents(k), rdt::model::Logits::All).unwrap(), "logits", k, v);
    }
    for k in 1..=golden.steps {
        let run = Setup::fixed(k, &golden.initial).run(&model, &golden.tokens);
        assert_eq!(run.steps, vec![k; t]);
        close(&run.logits, "logits", k, v);
        for j in 1..=k {
            close(&run.latents(j), "latents", j, s);
            let gates: Vec<f32> = run.rows.iter().map(|r| r.stats[j - 1].gate).collect();
            match golden.tensors.has("gate") {
                true => close(&gates, "gate", j, 1),
                false => assert!(gates.iter().all(|g| g.is_nan()), "{folder}"),
            }
        }
    }
}

/// Chunks, threads and rows that leave at other steps do not show, in any weight and KV format.
fn bits_are_independent_of_company(folder: &str) {
    bits_under(folder, None);
}

/// As [`bits_are_independent_of_company`], under a rule that makes tokens leave at different steps; `None` finds one.
fn bits_under(folder: &str, rule: Option<&str>) {
    const STEPS: usize = 12;
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
        let rule = rule.map_or_else(
            || {
                // A threshold that half of the tokens have passed after four steps.
                let full = Setup::fixed(STEPS, &golden.initial).run(&model, &golden.tokens);
                let four = |r: &Seen| r.stats[3].step_norm / r.stats[3].state_norm;
                let mut moved: Vec<f32> = full.rows.iter().map(four).collect();
                moved.sort_by(f32::total_cmp);
                format!("step-norm:{},hits=1,max={STEPS}", moved[moved.len() / 2])
            },
            str::to_owned,
        );
        let run = |chunk: usize, threads: usize| -> Run {
            let setup = Setup { kv_type, chunk, threads, ..Setup::rule(&rule, STEPS, &golden.initial) };
            setup.run(&model, &golden.tokens)
        };
        let alone = run(1, 1);
        assert!(alone.steps.iter().any(|&n| n != alone.steps[0]), "{folder} as {recipe}: {rule}: {:?}", alone.steps);
        for (chunk, threads) in [(1, 2), (3, 7), (5, 1), (64, 1), (64, 7)] {
            let what = format!("{folder} as {recipe}, KV {kv_type}, {threads} threads, chunks of {chunk}");
            run(chunk, threads).assert_same(&alone, &what);
        }
    }
}
