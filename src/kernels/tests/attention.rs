//! Attention: one row against f64, and groups of rows against each row alone, bit for bit.

use super::{bits, close, values};
use crate::kernels::{ATTEND_ROWS, AttendScratch, Attention, Kernels, KvType, scalar};
use half::f16;

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

/// Keys or values of a plane, as stored.
fn stored(kernels: &Kernels, kv: KvType, dim: usize, n: usize, seed: u64) -> Vec<u8> {
    let row_bytes = kv.row_bytes(dim).unwrap();
    let mut stored = vec![0; n * row_bytes];
    for (x, row) in values(seed, n * dim).chunks(dim).zip(stored.chunks_mut(row_bytes)) {
        kernels.store_kv(kv)(x, row);
    }
    stored
}

/// What stored values stand for.
fn meant(kv: KvType, stored: &[u8]) -> Vec<f64> {
    let half = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]).to_f64();
    match kv {
        KvType::F32 => stored.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        KvType::F16 => stored.chunks(2).map(half).collect(),
        KvType::Q8_0 => {
            stored.chunks(34).flat_map(|b| b[2..].iter().map(move |&q| half(b) * f64::from(q.cast_signed()))).collect()
        }
    }
}

struct Plane {
    kv: KvType,
    dim: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Plane {
    fn new(kv: KvType, dim: usize, n: usize) -> Self {
        let part = |seed| stored(&scalar::KERNELS, kv, dim, n, seed);
        Plane { kv, dim, keys: part(5), values: part(6) }
    }

    fn attend(&self, kernels: &Kernels, q: &[f32], seen: &[usize]) -> Vec<f32> {
        let Plane { kv, dim, ref keys, ref values } = *self;
        let mut out = vec![f32::NAN; q.len()];
        let mut scratch = AttendScratch::new(dim);
        (kernels.attend)(Attention { kv, dim, scale: 0.25, q, seen, keys, values }, &mut scratch, &mut out);
        out
    }

    fn exact(&self, q: &[f32], seen: usize) -> Vec<f64> {
        let (dim, k, v) = (self.dim, meant(self.kv, &self.keys), meant(self.kv, &self.values));
        let dot = |j: usize| (0..dim).map(|i| f64::from(q[i]) * k[j * dim + i]).sum::<f64>() * 0.25;
        let top = (0..seen).map(dot).fold(f64::NEG_INFINITY, f64::max);
        let p: Vec<f64> = (0..seen).map(|j| (dot(j) - top).exp()).collect();
        let total: f64 = p.iter().sum();
        (0..dim).map(|i| (0..seen).map(|j| p[j] * v[j * dim + i]).sum::<f64>() / total).collect()
    }
}

/// Rows alone: against f64 over what is stored, and the scalar form.
pub(super) fn suite(kernels: &Kernels) {
    for kv in KV_TYPES {
        for dim in [1, 7, 16, 24, 31, 32, 40, 64, 80, 96, 97, 128, 160] {
            if kv.row_bytes(dim).is_none() {
                continue;
            }
            for seed in [5, 6] {
                assert_eq!(
                    stored(kernels, kv, dim, 20, seed),
                    stored(&scalar::KERNELS, kv, dim, 20, seed),
                    "{kv} {dim}"
                );
            }
            let plane = Plane::new(kv, dim, 700);
            let q = values(4, dim);
            for n in [1, 2, 5, 255, 256, 257, 700] {
                let got = plane.attend(kernels, &q, &[n]);
                assert_eq!(bits(&got), bits(&plane.attend(&scalar::KERNELS, &q, &[n])), "{kv} {dim} {n}");
                close(&got, &plane.exact(&q, n), 2e-5);
            }
        }
    }
}

/// The order of keys seen in a group: the prompt of a causal model, that of a prefix model, query heads that share a key head,
/// and no order at all.
fn ragged(n: usize, most: usize) -> Vec<Vec<usize>> {
    let causal = (0..n).map(|i| (most + i + 1).saturating_sub(n).max(1));
    let heads = (0..n).map(|i| (most + i / 4 + 1).saturating_sub(n.div_ceil(4)).max(1));
    let any = (0..n).map(|i| 1 + i * 7919 % most);
    vec![causal.collect(), vec![most; n], heads.collect(), any.collect()]
}

/// A row's bits never depend on its company, nor on the instruction set.
pub(super) fn groups(kernels: &Kernels) {
    let sizes = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 24, 25, 32, 33, 40, 47, 63, 64, ATTEND_ROWS + 1, 150];
    for kv in KV_TYPES {
        for dim in [24, 31, 32, 64, 80, 96, 97, 127, 128] {
            if kv.row_bytes(dim).is_none() {
                continue;
            }
            let plane = Plane::new(kv, dim, 700);
            let q = values(4, 150 * dim);
            for most in [1, 2, 47, 48, 49, 255, 256, 257, 300, 700] {
                // The whole product of these would take minutes: the larger sizes are for some.
                let sizes = sizes.iter().filter(|&&n| n < 10 || (n + most + dim) % 3 == 0);
                for (nth, &n) in sizes.enumerate() {
                    let seen = ragged(n, most).swap_remove((nth + most + dim) % 4);
                    let q = &q[..n * dim];
                    let got = plane.attend(kernels, q, &seen);
                    for ((q, got), &seen) in q.chunks(dim).zip(got.chunks(dim)).zip(&seen) {
                        let alone = plane.attend(kernels, q, &[seen]);
                        assert_eq!(bits(got), bits(&alone), "{kv} {dim}: a row that sees {seen} of {most} among {n}");
                    }
                }
            }
        }
    }
}
