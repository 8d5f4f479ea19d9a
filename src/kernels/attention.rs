//! One query head against the keys and values of one cache plane.
//!
//! Keys are taken in blocks of [`KEY_BLOCK`], aligned to absolute position: every block gives a partial result (largest
//! score, sum of weights, weighted values) by the same code whether the query is alone or one of a chunk, and the partials are
//! combined in index order. Keys that a row may not see are never touched.

use super::generic::{exp, quantize_block};
use super::simd::{LANES, Simd, load_tail, store_tail};
use super::{AttendScratch, Q8_BLOCK};
use crate::float16::{f16_to_f32, f32_to_f16};

/// Keys per block of the softmax.
pub(super) const KEY_BLOCK: usize = 256;

/// How keys and values are stored.
pub(super) trait Stored {
    /// Bytes of a row of `dim` values. `dim` is a multiple of what the format asks for.
    fn row_bytes(dim: usize) -> usize;
    /// Eight values from index `i` (a multiple of eight) of a row, zeros behind its end.
    fn load<S: Simd>(s: S, row: &[u8], i: usize) -> S::V;
    /// Writes a row.
    fn store<S: Simd>(s: S, x: &[f32], row: &mut [u8]);
}

/// f32 cache.
pub(super) struct KvF32;
/// Half-precision cache.
pub(super) struct KvF16;
/// Blocks of 32 signed bytes with a half scale, as ggml's q8_0.
pub(super) struct KvQ8;

impl Stored for KvF32 {
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        4 * dim
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[u8], i: usize) -> S::V {
        let mut t = [0.0; LANES];
        let row = row.as_chunks::<4>().0;
        for (t, p) in t.iter_mut().zip(&row[i..]) {
            *t = f32::from_le_bytes(*p);
        }
        s.load(&t)
    }
    #[inline(always)]
    fn store<S: Simd>(_: S, x: &[f32], row: &mut [u8]) {
        for (p, x) in row.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            *p = x.to_le_bytes();
        }
    }
}

impl Stored for KvF16 {
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        2 * dim
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[u8], i: usize) -> S::V {
        let rest = &row[2 * i..];
        match rest.first_chunk() {
            Some(p) => s.load_f16(p),
            None => {
                let mut t = [0; 2 * LANES];
                t[..rest.len()].copy_from_slice(rest);
                s.load_f16(&t)
            }
        }
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &[f32], row: &mut [u8]) {
        for i in (0..x.len()).step_by(LANES) {
            let mut t = [0; 2 * LANES];
            s.store_f16(load_tail(s, x, i), &mut t);
            let p = &mut row[2 * i..];
            let n = p.len().min(t.len());
            p[..n].copy_from_slice(&t[..n]);
        }
    }
}

/// Bytes of a block: the scale and 32 bytes.
const Q8_BYTES: usize = 2 + Q8_BLOCK;

impl Stored for KvQ8 {
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim / Q8_BLOCK * Q8_BYTES
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[u8], i: usize) -> S::V {
        let block = &row[i / Q8_BLOCK * Q8_BYTES..][..Q8_BYTES];
        let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
        match block[2 + i % Q8_BLOCK..].first_chunk() {
            Some(p) => s.mul(s.splat(d), s.load_i8(p)),
            None => unreachable!(),
        }
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, x: &[f32], row: &mut [u8]) {
        for (x, row) in x.chunks_exact(Q8_BLOCK).zip(row.chunks_exact_mut(Q8_BYTES)) {
            let mut q = [0; Q8_BLOCK];
            let d = quantize_block(s, x, &mut q);
            row[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
            for (p, q) in row[2..].iter_mut().zip(q) {
                *p = q.cast_unsigned();
            }
        }
    }
}

/// Writes one key or value row to the cache.
#[inline(always)]
pub(super) fn store<S: Simd, K: Stored>(s: S, x: &[f32], row: &mut [u8]) {
    assert_eq!(row.len(), K::row_bytes(x.len()));
    K::store(s, x, row);
}

/// `out = softmax(scale · q Kᵀ) V` over all the rows of `keys` and `values`, of which there is at least one.
#[inline(always)]
pub(super) fn attend<S: Simd, K: Stored>(
    s: S,
    q: &[f32],
    keys: &[u8],
    values: &[u8],
    scale: f32,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) {
    let dim = q.len();
    let row_bytes = K::row_bytes(dim);
    let n = keys.len() / row_bytes;
    assert!(n > 0 && keys.len() == n * row_bytes && values.len() == keys.len() && out.len() == dim);
    let AttendScratch { scores, partial } = scratch;
    assert!(scores.len() == KEY_BLOCK && partial.len() >= dim);
    let partial = &mut partial[..dim];

    let (mut largest, mut total) = (f32::NEG_INFINITY, 0.0f32);
    for start in (0..n).step_by(KEY_BLOCK) {
        let count = (n - start).min(KEY_BLOCK);
        let block = start * row_bytes..(start + count) * row_bytes;
        let (keys, values) = (&keys[block.clone()], &values[block]);

        // Scores: one chain of eight lanes per key, four keys at a time to hide its latency.
        let mut j = 0;
        while j < count {
            j += if count - j >= 4 {
                score::<S, K, 4>(s, q, keys, row_bytes, scale, j, scores)
            } else {
                score::<S, K, 1>(s, q, keys, row_bytes, scale, j, scores)
            };
        }
        scores[count..].fill(f32::NEG_INFINITY);
        let mut m = s.splat(f32::NEG_INFINITY);
        for i in (0..count).step_by(LANES) {
            m = s.max(m, load_tail(s, scores, i));
        }
        let m = s.largest(m);
        let mut sum = s.splat(0.0);
        for i in (0..count).step_by(LANES) {
            let p = exp(s, s.sub(load_tail(s, scores, i), s.splat(m)));
            sum = s.add(sum, p);
            store_tail(s, p, scores, i);
        }
        let sum = s.sum(sum);

        // Weighted values: one chain per output lane over the keys in order, 32 outputs at a time.
        let mut i = 0;
        while i < dim {
            i += if dim - i >= 4 * LANES {
                weigh::<S, K, 4>(s, &scores[..count], values, row_bytes, i, partial)
            } else {
                weigh::<S, K, 1>(s, &scores[..count], values, row_bytes, i, partial)
            };
        }

        if start == 0 {
            (largest, total) = (m, sum);
            out.copy_from_slice(partial);
        } else {
            let top = if largest > m { largest } else { m };
            let (old, new) = (exp_one(s, largest - top), exp_one(s, m - top));
            total = total * old + sum * new;
            for i in (0..dim).step_by(LANES) {
                let v = s.mul(load_tail(s, out, i), s.splat(old));
                store_tail(s, s.fma(load_tail(s, partial, i), s.splat(new), v), out, i);
            }
            largest = top;
        }
    }
    let inverse = s.splat(1.0 / total);
    for i in (0..dim).step_by(LANES) {
        let v = s.mul(load_tail(s, out, i), inverse);
        store_tail(s, v, out, i);
    }
}

#[inline(always)]
fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    let mut t = [0.0; LANES];
    s.store(exp(s, s.splat(x)), &mut t);
    t[0]
}

/// Scores of `N` keys from key `j` on. Gives `N`.
#[inline(always)]
fn score<S: Simd, K: Stored, const N: usize>(
    s: S,
    q: &[f32],
    keys: &[u8],
    row_bytes: usize,
    scale: f32,
    j: usize,
    scores: &mut [f32],
) -> usize {
    let mut acc = [s.splat(0.0); N];
    for i in (0..q.len()).step_by(LANES) {
        let x = load_tail(s, q, i);
        for (m, acc) in acc.iter_mut().enumerate() {
            *acc = s.fma(K::load(s, &keys[(j + m) * row_bytes..(j + m + 1) * row_bytes], i), x, *acc);
        }
    }
    for (m, acc) in acc.into_iter().enumerate() {
        scores[j + m] = s.sum(acc) * scale;
    }
    N
}

/// `N` times eight outputs from output `i` on. Gives how many.
#[inline(always)]
fn weigh<S: Simd, K: Stored, const N: usize>(
    s: S,
    weights: &[f32],
    values: &[u8],
    row_bytes: usize,
    i: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [s.splat(0.0); N];
    for (&p, row) in weights.iter().zip(values.chunks_exact(row_bytes)) {
        let p = s.splat(p);
        for (m, acc) in acc.iter_mut().enumerate() {
            *acc = s.fma(p, K::load(s, row, i + m * LANES), *acc);
        }
    }
    for (m, acc) in acc.into_iter().enumerate() {
        store_tail(s, acc, out, i + m * LANES);
    }
    N * LANES
}
