//! What matrices are multiplied with, against the same numbers by hand; and what is decided from such measurements.

mod common;

use common::{HUGINN, model};
use rdt::calibrate::{self, Comparison, Reading, Windows};
use rdt::model::{DepthPolicy, FixedDepth, InitialState, LatentStats, Row, Session, SessionOptions, Verdict};
use rdt::quant::{self, Imatrix, Recipe};
use std::num::NonZeroUsize;

const STEPS: usize = 3;
const CONTEXT: usize = 24;

fn windows() -> Windows {
    Windows::new((0..2 * CONTEXT as u32).map(|i| i * 7 % 800).collect(), CONTEXT, None).unwrap()
}

fn options(threads: usize, chunk: usize) -> SessionOptions {
    SessionOptions {
        threads: NonZeroUsize::new(threads),
        chunk_rows: Some(chunk),
        context: Some(CONTEXT),
        steps: Some(STEPS),
        initial: InitialState::Noise { seed: 3 },
        ..SessionOptions::default()
    }
}

/// Sums the squares of what goes into the two halves of the adapter.
#[derive(Default)]
struct Watch {
    state: Vec<f64>,
    input: Vec<f64>,
    /// Per chunk row: the state that the next step starts from.
    next: Vec<Vec<f32>>,
}

fn add(sums: &mut Vec<f64>, x: &[f32]) {
    sums.resize(x.len(), 0.0);
    sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
}

impl DepthPolicy for &mut Watch {
    fn max_steps(&self, _: usize) -> usize {
        STEPS
    }

    fn begin(&mut self, index: usize, _: &Row, _: usize, input: &[f32], initial: &[f32]) {
        add(&mut self.input, input);
        self.next.resize(self.next.len().max(index + 1), Vec::new());
        self.next[index] = initial.to_vec();
    }

    fn after_step(&mut self, index: usize, _: &Row, _: &LatentStats, latent: &[f32]) -> Verdict {
        let before = std::mem::replace(&mut self.next[index], latent.to_vec());
        add(&mut self.state, &before);
        Verdict::Stay
    }
}

fn close(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(f) - e).abs() <= 1e-5 * e.max(1e-6), "{what}, column {i}: {f}, by hand {e}");
    }
}

#[test]
fn every_row_of_every_step_counts() {
    let model = model(HUGINN, Recipe::F32);
    let mut watch = Watch::default();
    let mut session = Session::new(model.clone(), &options(2, 5)).unwrap();
    let found =
        calibrate::importance(&mut session, &mut watch, &windows(), Reading::default(), &mut |_| Ok(())).unwrap();
    let entry = |name: &str| found.get(name).unwrap_or_else(|| panic!("{name}"));
    close(&entry("loop.adapter_state.weight").sums, &watch.state, "the latent state");
    close(&entry("loop.adapter_input.weight").sums, &watch.input, "the prelude's output");

    // What the first block sees: the norm of the embedding.
    let (config, mut by_hand) = (model.config(), Vec::new());
    let table = model.header().tensor("token_embd.weight").unwrap();
    let gguf = common::gguf(HUGINN, Recipe::F32);
    let norm = |name: &str| {
        let mut x = vec![0.0; config.width];
        let tensor = model.header().tensor(name).unwrap();
        quant::dequantize_rows(tensor.ty, tensor.data(&gguf).unwrap(), config.width, &mut x).unwrap();
        x
    };
    let (weight, mut row) = (norm("blk.0.attn_norm.weight"), vec![0.0f32; config.width]);
    let read = CONTEXT - 1; // the last token of a window predicts nothing, and is not run
    for window in windows().iter() {
        for &token in &window.tokens[..read] {
            let bytes = &table.data(&gguf).unwrap()[token as usize * config.width * 4..][..config.width * 4];
            quant::dequantize_rows(table.ty, bytes, config.width, &mut row).unwrap();
            row.iter_mut().for_each(|x| *x *= config.embedding_scale);
            let mean = row.iter().map(|x| f64::from(x * x)).sum::<f64>() / row.len() as f64;
            let eps = f64::from(model.blocks()[0].attn_norm.eps);
            let scale = 1.0 / (mean + eps).sqrt();
            let normed: Vec<f32> = row.iter().zip(&weight).map(|(x, w)| (f64::from(x * w) * scale) as f32).collect();
            add(&mut by_hand, &normed);
        }
    }
    for name in ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"] {
        close(&entry(name).sums, &by_hand, name);
    }

    let rows = |name: &str| entry(name).rows as usize;
    let tokens = 2 * read;
    assert_eq!(rows("blk.0.ffn_down.weight"), tokens, "the prelude runs once");
    assert_eq!(rows("loop.adapter_state.weight"), tokens * STEPS);
    let core = model.plan().loops().next().unwrap().blocks().next().unwrap();
    assert_eq!(rows(&format!("blk.{core}.ffn_up.weight")), tokens * STEPS);
    assert_eq!(rows("token_embd.weight") as u64, windows().scored_len(), "the tied head runs where logits are wanted");
    assert_eq!((found.chunk_count, found.chunk_size), (2, CONTEXT as u32));
}

/// Everything in an importance matrix but the last bits of sums.
fn rounded(imatrix: &Imatrix) -> Vec<(String, f32, Vec<i64>)> {
    let digits = |sums: &[f32]| sums.iter().map(|&s| (f64::from(s).max(1e-9).ln() * 1e5).round() as i64).collect();
    imatrix.entries().map(|(name, e)| (name.to_owned(), e.rows, digits(&e.sums))).collect()
}

#[test]
fn threads_and_chunks_change_nothing() {
    for folder in
        [HUGINN, "huginn-shapes/untied", "ouro-shapes/gqa", "parcae-shapes/wide-loop", "hrm_text-shapes/split"]
    {
        let model = model(folder, Recipe::F32);
        let vocab = model.config().vocab as u32;
        let tokens = (0..2 * CONTEXT as u32).map(|i| i * 7 % vocab).collect();
        let windows = Windows::new(tokens, CONTEXT, None).unwrap();
        let of = |threads, chunk| {
            let mut session = Session::new(model.clone(), &options(threads, chunk)).unwrap();
            let policy = FixedDepth(STEPS);
            calibrate::importance(&mut session, policy, &windows, Reading::default(), &mut |_| Ok(())).unwrap()
        };
        let one = of(1, 64);
        assert!(one.entries().len() >= model.matrices().count() - 1, "{folder}");
        assert_eq!(of(2, 64), one, "{folder}: threads");
        assert_eq!(of(7, 64), one, "{folder}: threads");
        assert_eq!(rounded(&of(1, 1)), rounded(&one), "{folder}: one row at a time");
        assert_eq!(rounded(&of(2, 3)), rounded(&one), "{folder}: three rows at a time");
    }
}

#[test]
fn recording_changes_no_logit() {
    let model = model(HUGINN, Recipe::Q4_0);
    let logits = |record: bool| {
        let mut session = Session::new(model.clone(), &options(2, 8)).unwrap();
        if record {
            session.record_inputs();
        }
        let mut all = Vec::new();
        calibrate::evaluate(&mut session, FixedDepth(STEPS), &windows(), Reading::default(), &mut |row| {
            all.extend(row.logits.iter().map(|x| x.to_bits()));
            Ok(())
        })
        .unwrap();
        assert_eq!(session.take_inputs().is_some(), record);
        all
    };
    assert_eq!(logits(true), logits(false));
}

/// A matrix that stands in for the file's is as good as a file that has it.
#[test]
fn replaced_matrices_are_those_of_a_conversion() {
    let (whole, coarse) = (common::gguf(HUGINN, Recipe::F32), common::gguf(HUGINN, Recipe::Q4_0));
    let header = rdt::gguf::Header::parse(&coarse).unwrap();
    let replaced = header
        .tensors
        .iter()
        .filter(|t| t.dims.len() == 2)
        .map(|t| (t.name.clone(), (t.ty, rdt::files::Bytes::from(t.data(&coarse).unwrap().to_vec()))))
        .collect();
    let logits = |model: rdt::model::Model| {
        let mut session = Session::new(std::sync::Arc::new(model), &options(1, 8)).unwrap();
        let mut all = Vec::new();
        calibrate::evaluate(&mut session, FixedDepth(STEPS), &windows(), Reading::default(), &mut |row| {
            all.push(row.logits.to_vec());
            Ok(())
        })
        .unwrap();
        all
    };
    let standing_in = logits(rdt::arch::with_replaced(whole.clone().into(), &replaced).unwrap());
    let file = logits(rdt::arch::from_bytes(coarse.into()).unwrap());
    assert_eq!(standing_in, file);
    let mut comparison = Comparison::new();
    for (a, b) in logits(rdt::arch::from_bytes(whole.clone().into()).unwrap()).iter().zip(&file) {
        comparison.add_logits(a, b, 0);
    }
    assert!(comparison.kl().value > 1e-6, "four bits are not nothing");

    let wrong =
        [("loop.adapter_state.weight".to_owned(), (rdt::gguf::TensorType::Q4_0, rdt::files::Bytes::from(vec![0; 18])))];
    let error = rdt::arch::with_replaced(whole.into(), &wrong.into_iter().collect()).unwrap_err();
    assert!(error.to_string().contains("18 bytes cannot stand in for 'loop.adapter_state.weight'"), "{error}");
}
