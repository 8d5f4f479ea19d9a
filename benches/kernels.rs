//! One step of a loop; matrix kernels, attention and the activation quantiser, per instruction set. Every case checks its answer against the
//! scalar form before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rdt::arch::{self, Load};
use rdt::kernels::{
    ATTEND_ROWS, ActRows, AttendScratch, Attention, ByteScale, Isa, Kernels, KvType, Q8_BLOCK, WEIGHT_TYPES, WideScale,
};
use rdt::model::{Batch, FixedDepth, Logits, Repack, Session, SessionOptions};
use rdt::quant;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

/// Weight rows and row length: 4096 · 2048 weights are 4.5 MiB at 4.5 bits, more than a core's own caches.
const ROWS: usize = 4096;
const K: usize = 2048;

fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| rdt::random::standard_normal(seed, 0, i) as f32).collect()
}

/// One element is one multiply-add: elements per second are MAC per second, and bytes those of the weights.
fn work(rows: usize, bytes: usize) -> Throughput {
    Throughput::ElementsAndBytes { elements: (ROWS * K * rows) as u64, bytes: bytes as u64 }
}

/// Every tier of this machine but the oracle.
fn tiers() -> Vec<&'static Kernels> {
    let fast: Vec<_> = Isa::ALL.into_iter().filter(|&i| i != Isa::Scalar).filter_map(|i| Kernels::of(i).ok()).collect();
    if fast.is_empty() { Kernels::of(Isa::Scalar).into_iter().collect() } else { fast }
}

fn matmul(c: &mut Criterion) {
    let Ok(oracle) = Kernels::of(Isa::Scalar) else { return };
    let weights = values(2, ROWS * K);
    for ty in WEIGHT_TYPES {
        let row_bytes = ty.row_bytes(K).expect("whole blocks");
        let mut stored = vec![0; ROWS * row_bytes];
        quant::quantize_rows(ty, &weights, K, &mut stored, None).expect("finite weights");
        for kernels in tiers() {
            let mut group = c.benchmark_group(format!("matmul/{}/{ty}", kernels.isa));
            for n in [1, 4, 8] {
                let x = ActRows::new(kernels, values(1, n * K), K);
                let run = |kernels: &Kernels, stored: &[u8], out: &mut [f32]| {
                    kernels.matmul(ty).expect("a kernel")(stored, stored.len() / row_bytes, x.acts(0..n), out);
                };
                let (mut got, mut want) = (vec![0.0; 64 * n], vec![0.0; 64 * n]);
                run(kernels, &stored[..64 * row_bytes], &mut got);
                run(oracle, &stored[..64 * row_bytes], &mut want);
                assert_eq!(got, want, "{ty} on {}", kernels.isa);

                let mut out = vec![0.0; ROWS * n];
                group.throughput(work(n, stored.len()));
                group.bench_function(BenchmarkId::new("rows", n), |b| {
                    b.iter(|| run(kernels, black_box(&stored), &mut out));
                });
            }
        }
    }
}

fn panels(c: &mut Criterion) {
    let weights = values(2, ROWS * K);
    for ty in WEIGHT_TYPES {
        let row_bytes = ty.row_bytes(K).expect("whole blocks");
        let mut stored = vec![0; ROWS * row_bytes];
        quant::quantize_rows(ty, &weights, K, &mut stored, None).expect("finite weights");
        for kernels in tiers() {
            let Some((layout, multiply)) = kernels.panel(ty, K) else { continue };
            let mut panels = vec![0; layout.bytes(ROWS).expect("a small one")];
            for (stored, panel) in
                stored.chunks(layout.panel_rows * row_bytes).zip(panels.chunks_exact_mut(layout.panel_bytes()))
            {
                layout.pack(stored, panel);
            }
            let mut group = c.benchmark_group(format!("panels/{}/{ty}", kernels.isa));
            for n in [1, 2, 4, 8] {
                let x = ActRows::new(kernels, values(1, n * K), K);
                let (mut out, mut want) = (vec![0.0; ROWS * n], vec![0.0; ROWS * n]);
                multiply(&panels, 0, ROWS, x.acts(0..n), &mut out);
                kernels.matmul(ty).expect("a kernel")(&stored, ROWS, x.acts(0..n), &mut want);
                assert_eq!(out, want, "{ty} on {}", kernels.isa);
                group.throughput(work(n, stored.len()));
                group.bench_function(BenchmarkId::new("rows", n), |b| {
                    b.iter(|| multiply(black_box(&panels), 0, ROWS, x.acts(0..n), &mut out));
                });
            }
        }
    }
}

fn attention(c: &mut Criterion) {
    let Ok(oracle) = Kernels::of(Isa::Scalar) else { return };
    let (dim, n, scale) = (96, 2048, 0.1);
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let row = kv.row_bytes(dim).expect("a multiple of 32");
        let mut keys = vec![0; n * row];
        for (x, row) in values(4, n * dim).chunks(dim).zip(keys.chunks_mut(row)) {
            oracle.store_kv(kv)(x, row);
        }
        // Not the same memory twice: a cache holds keys and values.
        let values_of = keys.clone();
        for kernels in tiers() {
            let mut group = c.benchmark_group(format!("attention/{}/{kv}", kernels.isa));
            for rows in [1, 4, 16, ATTEND_ROWS] {
                let q = values(3, rows * dim);
                // The last rows of a causal prompt.
                let seen: Vec<usize> = (n - rows + 1..=n).collect();
                let mut scratch = AttendScratch::new(dim);
                let (mut got, mut want) = (vec![0.0; rows * dim], vec![0.0; rows * dim]);
                let (keys, values) = (&keys[..], &values_of[..]);
                let all = Attention { kv, dim, scale, q: &q, seen: &seen, keys, values };
                (kernels.attend)(all, &mut scratch, &mut got);
                for (i, want) in want.chunks_mut(dim).enumerate() {
                    let one = Attention { q: &q[i * dim..(i + 1) * dim], seen: &seen[i..=i], ..all };
                    (oracle.attend)(one, &mut scratch, want);
                }
                assert_eq!(got, want, "{kv} on {}", kernels.isa);
                // One element is one multiply-add, as above.
                group.throughput(Throughput::Elements(2 * (dim * seen.iter().sum::<usize>()) as u64));
                group.bench_function(BenchmarkId::new("rows", rows), |b| {
                    b.iter(|| (kernels.attend)(black_box(all), &mut scratch, &mut got));
                });
            }
        }
    }
}

fn activations(c: &mut Criterion) {
    for kernels in tiers() {
        let x = values(1, K);
        let (mut q, mut scales) = (vec![0; K], vec![ByteScale::default(); K / Q8_BLOCK]);
        let (mut wide, mut high, mut low) = (vec![0; K], vec![0; K], vec![0; K]);
        let mut wide_scales = vec![WideScale::default(); K / Q8_BLOCK];
        let mut group = c.benchmark_group(format!("activations/{}", kernels.isa));
        group.throughput(Throughput::Elements(K as u64));
        group.bench_function("bytes", |b| b.iter(|| (kernels.quantize_row)(black_box(&x), &mut q, &mut scales)));
        group.bench_function("wide", |b| {
            b.iter(|| (kernels.quantize_row_wide)(black_box(&x), &mut wide, &mut high, &mut low, &mut wide_scales));
        });
    }
}

/// One step of a model's loop, with weights as they are in the file and interleaved: passes of one token, of as many steps as
/// criterion asks for, so that what comes before and behind the loop is next to nothing.
fn core_step(c: &mut Criterion) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
    let mut group = c.benchmark_group("core step");
    let mut answers: Vec<Vec<f32>> = Vec::new();
    for (name, how) in [("as stored", Repack::Off), ("interleaved", Repack::Auto)] {
        let mut model = arch::open(&path, Load::Map).expect("the model that ships");
        model.repack(&how).expect("memory");
        let model = Arc::new(model);
        let options = SessionOptions {
            threads: NonZeroUsize::new(1),
            kv_slots: Some(1),
            steps: Some(1),
            ..SessionOptions::default()
        };
        let mut session = Session::new(Arc::clone(&model), &options).expect("a small session");
        let mut run = |steps: usize| {
            session.truncate(0, 0);
            let batch = Batch { logits: Logits::Last, ..Batch::next(&[1]) };
            session.run(batch, &mut FixedDepth(steps)).expect("a finite answer").logits.to_vec()
        };
        answers.push(run(16));
        assert_eq!(answers[0], answers[answers.len() - 1], "interleaved weights change the answer");
        group.throughput(Throughput::Bytes(model.step_bytes()));
        group.bench_function(name, |b| {
            b.iter_custom(|steps| {
                let begin = Instant::now();
                black_box(run(steps as usize));
                begin.elapsed()
            });
        });
    }
}

criterion_group!(benches, core_step, matmul, panels, attention, activations);
criterion_main!(benches);
