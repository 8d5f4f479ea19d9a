//! Every family against its public reference implementation.

#[path = "../common/mod.rs"]
mod common;

mod nanbeige;
mod ouro;

use common::{Golden, Setup, data, model, relative_error};
use rdt::arch::{self, Input};
use rdt::checkpoint::Checkpoint;
use rdt::files::Bytes;
use rdt::gguf::{Header, Metadata, TensorDecl, Writer};
use rdt::kernels::KvType;
use rdt::model::Model;
use rdt::quant::Recipe;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::sync::Arc;

/// f32 weights and KV: every latent, every depth's logits and, where there is one, the gate, within 1e-4 of the tensor's standard
/// deviation.
fn f32_is_the_reference(folder: &str) {
    let golden = Golden::read(folder);
    let model = model(folder, Recipe::F32);
    let (t, s, v) = (golden.tokens.len(), model.config().state_width, model.config().vocab);
    let close = |found: &[f32], expected: &[f32], what: &str| {
        let error = relative_error(found, expected);
        assert!(error < 1e-4, "{folder}: {what} is {error:.1e} off");
    };
    for k in 1..=golden.steps {
        let run = Setup::fixed(k, &golden.initial).run(&model, &golden.tokens);
        assert_eq!(run.steps, vec![k; t]);
        let of = |name: &str, width: usize| &golden.tensors.f32(name)[(k - 1) * t * width..k * t * width];
        close(&run.latents(k), of("latents", s), &format!("latent {k}"));
        close(&run.logits, of("logits", v), &format!("the logits of depth {k}"));
        if golden.tensors.has("gate") {
            let gate: Vec<f32> = run.rows.iter().map(|r| r.stats[k - 1].gate).collect();
            close(&gate, of("gate", 1), &format!("the gate of step {k}"));
        } else {
            assert!(run.rows.iter().all(|r| r.stats[k - 1].gate.is_nan()));
        }
    }
}

/// Weight formats, KV types, chunkings and threads: the same bits, also where rows leave at different steps.
fn company_does_not_show(folder: &str, rule: &str) {
    let golden = Golden::read(folder);
    for (recipe, kv_type) in [
        (Recipe::F32, KvType::F32),
        (Recipe::F16, KvType::F16),
        (Recipe::BF16, KvType::Q8_0),
        (Recipe::Q8_0, KvType::F16),
        (Recipe::Q4_0, KvType::Q8_0),
    ] {
        let model = model(folder, recipe);
        // Heads that are no whole blocks cannot be stored in 8 bits.
        let whole = model.config().head_dim.is_multiple_of(32);
        let kv_type = if whole { kv_type } else { KvType::F16 };
        let setup = Setup { kv_type, ..Setup::rule(rule, golden.steps, &golden.initial) };
        let alone = Setup { chunk: 1, ..setup.clone() }.run(&model, &golden.tokens);
        if rule != "fixed" {
            assert!(alone.steps.iter().collect::<HashSet<_>>().len() > 1, "exits do not vary: {:?}", alone.steps);
        }
        for (chunk, threads) in [(1, 7), (3, 2), (8, 1), (64, 1), (64, 7)] {
            let found = Setup { chunk, threads, ..setup.clone() }.run(&model, &golden.tokens);
            let what = format!("{folder}, {recipe}, KV {kv_type}, {threads} threads, chunks of {chunk}");
            found.assert_same(&alone, &what);
        }
    }
}

/// A GGUF after a change to its keys, without the tensors of these names.
fn changed(file: &[u8], keys: impl FnOnce(&mut Metadata), without: &[&str]) -> Vec<u8> {
    let header = Header::parse(file).unwrap();
    let mut metadata = header.metadata.clone();
    keys(&mut metadata);
    let tensors: Vec<_> = header.tensors.iter().filter(|t| !without.contains(&t.name.as_str())).collect();
    let decls: Vec<_> =
        tensors.iter().map(|t| TensorDecl { name: t.name.clone(), ty: t.ty, dims: t.dims.clone() }).collect();
    let mut writer = Writer::new(Vec::new(), &metadata, &decls).unwrap();
    for tensor in tensors {
        writer.write_tensor(&tensor.name, tensor.data(file).unwrap()).unwrap();
    }
    writer.finish().unwrap()
}

/// A model from the bytes of a GGUF, or the one line that says why not.
fn open(file: Vec<u8>) -> Result<Arc<Model>, String> {
    arch::from_bytes(Bytes::from(file)).map(Arc::new).map_err(|e| {
        let line = e.to_string();
        assert!(!line.contains('\n') && line.len() < 300, "{line}");
        line
    })
}

/// What becomes of a checkpoint with a changed config.json: a GGUF, or the one line that says why not.
fn converted(folder: &str, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Vec<u8>, String> {
    let copy = tempfile::tempdir().unwrap();
    let mut config: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(data(folder).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(copy.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    std::fs::copy(data(folder).join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let line = |e: &dyn std::fmt::Display| {
        let line = e.to_string();
        assert!(!line.contains('\n') && line.len() < 400, "{line}");
        line
    };
    let checkpoint = Checkpoint::open(copy.path()).map_err(|e| line(&e))?;
    let plan = arch::conversion(&checkpoint).map_err(|e| line(&e))?;
    let written = plan.write(&Input::Checkpoint(&checkpoint), Recipe::F32, Vec::new(), &mut |_| true);
    Ok(written.map_err(|e| line(&e))?.0)
}
