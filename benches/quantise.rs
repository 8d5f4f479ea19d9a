//! Quantisers, forwards with and without importance and backwards, on one thread. Every case checks its answer before it is
//! timed: many rows at once are the same bytes as each row alone, and what comes back is near what went in.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rdt::kernels::WEIGHT_TYPES;
use rdt::quant;
use std::hint::black_box;

/// Enough for several pieces of work, few enough to stay in a core's own caches.
const ROWS: usize = 32;
const K: usize = 2048;

fn values(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| rdt::random::standard_normal(seed, 0, i) as f32).collect()
}

fn quantise(c: &mut Criterion) {
    let x = values(1, ROWS * K);
    let squares: Vec<f32> = values(2, K).iter().map(|x| x * x).collect();
    // This thread is the only one, so no work is handed over.
    rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().expect("the first pool");
    for ty in WEIGHT_TYPES {
        let row_bytes = ty.row_bytes(K).expect("whole blocks");
        let (mut bytes, mut back) = (vec![0; ROWS * row_bytes], vec![0.0; ROWS * K]);
        let mut group = c.benchmark_group(format!("quantise/{ty}"));
        // Criterion's elements per second are values per second.
        group.throughput(Throughput::Elements((ROWS * K) as u64));
        for (name, importance) in [("plain", None), ("importance", Some(squares.as_slice()))] {
            let to = |x: &[f32], bytes: &mut [u8]| {
                quant::quantize_rows(ty, x, K, bytes, importance).expect("finite values");
            };
            to(&x, &mut bytes);
            for (x, row) in x.chunks(K).zip(bytes.chunks(row_bytes)).step_by(7) {
                let mut alone = vec![0; row_bytes];
                to(x, &mut alone);
                assert_eq!(alone, row, "{ty} {name}");
            }
            quant::dequantize_rows(ty, &bytes, K, &mut back).expect("whole rows");
            let error: f32 = x.iter().zip(&back).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(error < 0.02 * x.len() as f32, "{ty} {name}: mean square error of {}", error / x.len() as f32);
            group.bench_function(BenchmarkId::new("to", name), |b| b.iter(|| to(black_box(&x), &mut bytes)));
        }
        group.bench_function("from", |b| {
            b.iter(|| quant::dequantize_rows(ty, black_box(&bytes), K, &mut back).expect("whole rows"));
        });
    }
}

criterion_group!(benches, quantise);
criterion_main!(benches);
