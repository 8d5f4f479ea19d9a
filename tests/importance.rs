//! What matrices are multiplied with, against the same numbers by hand; and what is decided from such measurements.

mod common;

use common::{HUGINN, data, model};
use rdt::arch::{self, Load};
use rdt::calibrate::{self, Comparison, Reading, Windows};
use rdt::gguf::{Header, TensorType};
use rdt::kernels::KvType;
use rdt::model::{
    Batch, DepthPolicy, FixedDepth, InitialState, LatentStats, Logits, Row, Session, SessionOptions, Verdict,
};
use rdt::quant::{self, Imatrix, Recipe};
use rdt::text::Tokenizer;
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

/// What llama-imatrix (of the llama.cpp in llama-cpp-python 0.3.36) wrote for a model of `tests/data/llama-cpp`, in this folder:
/// `llama-imatrix -m MODEL.gguf -f LICENSE-MIT -c 32 -b 32 -ub 32 --process-output -ctk f32 -ctv f32 -fa off -t 1 -o MODEL.imatrix`
fn of_llama_cpp(path: &str) -> Vec<u8> {
    std::fs::read(data("llama-cpp").join(format!("{path}.imatrix"))).unwrap()
}

/// The same tokens give the same sums: every pass through a block counts in both programs.
#[test]
fn llama_cpp_collects_the_same() {
    const WINDOW: usize = 32;
    let license = std::fs::read_to_string(data("../../LICENSE-MIT")).unwrap();
    for (path, passes) in [("hrm_text/split-f32", 3), ("nanbeige/every-pass-f32", 2)] {
        let file = of_llama_cpp(path);
        let theirs = Imatrix::parse(&file).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let again = scratch.path().join("again.gguf");
        theirs.save(&again).unwrap();
        assert!(std::fs::read(again).unwrap() == file, "{path}: read and saved again, it is the same file");

        let model = arch::open(&data("llama-cpp").join(format!("{path}.gguf")), Load::Read).unwrap();
        let model = std::sync::Arc::new(model);
        let tokenizer = Tokenizer::from_gguf(model.metadata()).unwrap();
        let bos = tokenizer.special_ids().bos.filter(|_| tokenizer.add_bos());
        let text = tokenizer.encode_trusted(license.strip_suffix('\n').unwrap()).unwrap();
        let windows = Windows::new(bos.into_iter().chain(text).collect(), WINDOW, bos).unwrap();
        let depth = FixedDepth(model.config().mean_steps());
        let options = SessionOptions { kv_type: KvType::F32, context: Some(WINDOW), steps: None, ..options(1, WINDOW) };
        let mut session = Session::new(model, &options).unwrap();

        // Every token and the logits of all of them, which is what llama-imatrix asks for.
        session.record_inputs();
        for window in windows.iter() {
            session.truncate(0, 0);
            let batch = Batch { logits: Logits::All, ..Batch::next(&window.tokens) };
            session.run(batch, &mut { depth }).unwrap();
        }
        let mut inputs = session.take_inputs().unwrap();
        let mut matrices = 0;
        for (name, sums, rows) in inputs.entries() {
            let entry = theirs.get(name).unwrap_or_else(|| panic!("{path}: {name}"));
            let times = if name == "output.weight" { 1 } else { passes };
            assert_eq!((rows, rows as f32), ((windows.len() * WINDOW * times) as u64, entry.rows), "{path}: {name}");
            assert_eq!(sums.len(), entry.sums.len(), "{path}: {name}");
            for (column, (found, &expected)) in sums.iter().zip(&entry.sums).enumerate() {
                let error = (found - f64::from(expected)).abs();
                assert!(error < 1e-4 * f64::from(expected), "{path}: {name}, {column}: {found}, llama.cpp {expected}");
            }
            matrices += 1;
        }
        assert_eq!(matrices, theirs.entries().len(), "{path}");

        // A window's last token predicts nothing here, and is not run; the head runs where something is scored.
        let ours = calibrate::importance(&mut session, depth, &windows, Reading::default(), &mut |_| Ok(())).unwrap();
        for (name, entry) in ours.entries() {
            let per_window = if name == "output.weight" { WINDOW / 2 - 1 } else { passes * (WINDOW - 1) };
            assert_eq!(entry.rows as usize, windows.len() * per_window, "{path}: {name}");
            let total = |x: Vec<f32>| x.iter().sum::<f32>();
            let [a, b] = [entry, theirs.get(name).unwrap()].map(|e| total(e.importance().unwrap()));
            assert!((a / b - 1.0).abs() < 0.02, "{path}: {name}: {a} {b}");
        }
    }
}

/// What its llama-quantize makes of two matrices with those weights, by the hash (FNV-1a) of the tensors in `OUT.gguf`:
/// `llama-quantize --allow-requantize --pure --imatrix k-q4_k_m.imatrix k-q4_k_m.gguf OUT.gguf TYPE`, with `Q4_K_S` for q4_K and
/// `Q5_K_S` for q5_K, from ggml's sources without contraction to fused multiply-add. It copies a tensor that has the type already.
#[test]
fn llama_cpp_weighs_the_same() {
    let imatrix = Imatrix::parse(&of_llama_cpp("hrm_text/k-q4_k_m")).unwrap();
    let file = std::fs::read(data("llama-cpp/hrm_text/k-q4_k_m.gguf")).unwrap();
    let header = Header::parse(&file).unwrap();
    let (values, up) = ("blk.1.attn_v.weight", "blk.1.ffn_up.weight");
    for (name, ty, expected) in [
        (up, TensorType::Q4_0, 0x8e56_dfdf_51c1_54e1_u64),
        (up, TensorType::Q5_1, 0xeee7_2eb5_d3b5_fec6),
        (up, TensorType::IQ4_NL, 0xede4_3152_59d4_abed),
        (up, TensorType::Q5_K, 0x2d6c_0ae3_c549_6fd7),
        (up, TensorType::Q6_K, 0xdcaf_e141_50aa_1200),
        (values, TensorType::Q4_0, 0x6dfe_a759_9c7f_89d4),
        (values, TensorType::Q5_1, 0x592f_7010_d76d_d332),
        (values, TensorType::IQ4_NL, 0x04e5_0543_1c6b_e45c),
        (values, TensorType::Q4_K, 0xe87b_6036_1c49_ce1c),
        (values, TensorType::Q5_K, 0xd0b8_6974_7457_601f),
    ] {
        let tensor = header.tensor(name).unwrap();
        let &[k, rows] = &tensor.dims[..] else { panic!("{name}") };
        let mut weights = vec![0.0; k * rows];
        quant::dequantize_rows(tensor.ty, tensor.data(&file).unwrap(), k, &mut weights).unwrap();
        let importance = imatrix.get(name).unwrap().importance().unwrap();
        let bytes = |importance: Option<&[f32]>| {
            let mut bytes = vec![0; rows * ty.row_bytes(k).unwrap()];
            quant::quantize_rows(ty, &weights, k, &mut bytes, importance).unwrap();
            bytes
        };
        let found = bytes(Some(&importance));
        let hash = found
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(format!("{hash:016x}"), format!("{expected:016x}"), "{name} in {ty}");
        assert!(found != bytes(None), "{name} in {ty}: the weights count");
    }
}
