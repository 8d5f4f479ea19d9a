//! Query rows against the keys and values of one cache plane.
//!
//! Keys are taken in blocks of [`KEY_BLOCK`], aligned to absolute position: every block gives a row a partial result (largest
//! score, sum of weights, weighted values), and the partials are combined in index order. Keys that a row may not see have
//! no part in its sums.
//!
//! There are two ways through a block, one for a few rows ([`alone`]) and one for many ([`grouped`]), which give the same
//! bits, as every sum has one order:
//! - a score is eight chains of fused products, chain `l` over the elements `8i + l` of the head, added as [`Simd::sum`] adds
//!   lanes, times the scale;
//! - the sum of a block's weights is eight chains, chain `l` over the keys `8i + l`, added the same way;
//! - an output is one chain of fused products over the keys.
//!
//! The first way reads keys and values as they are stored, with the chains of a score in the lanes of a vector: nothing is
//! prepared, and a single row costs little more than the memory it reads. The second converts each key and value once, and
//! has a row in every lane.

use super::attention_rows::{Ways, grouped};
use super::generic::{exp, quantize_block};
use super::simd::{LANES, Simd, load_tail, store_tail};
use super::{AttendScratch, Attention, KvType, Q8_BLOCK};
use crate::float16::f32_to_f16;

/// Keys per block of the softmax.
pub(super) const KEY_BLOCK: usize = 256;

/// Up to [`few`] rows are computed one by one, never more than this.
const FEW: usize = 6;

/// Rows for which preparing keys and values costs more than it saves. It saves most where they are slow to convert.
fn few(kv: KvType) -> usize {
    match kv {
        KvType::F32 | KvType::F16 => FEW,
        KvType::Q8_0 => 3,
    }
}

/// Values per [`Stored::Unit`].
pub(super) const UNIT: usize = 4 * LANES;

/// How keys and values are stored.
pub(super) trait Stored {
    /// [`UNIT`] values.
    type Unit;
    /// Bytes of a row of `dim` values. `dim` is a multiple of what the format asks for.
    fn row_bytes(dim: usize) -> usize;
    /// The whole units of a row.
    fn units(row: &[u8]) -> &[Self::Unit];
    /// The values of a unit.
    fn unit<S: Simd>(s: S, unit: &Self::Unit) -> [S::V; 4];
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
    type Unit = [[[u8; 4]; LANES]; 4];
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        4 * dim
    }
    #[inline(always)]
    fn units(row: &[u8]) -> &[Self::Unit] {
        row.as_chunks().0.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn unit<S: Simd>(s: S, unit: &Self::Unit) -> [S::V; 4] {
        let mut out = [s.splat(0.0); 4];
        for (v, p) in out.iter_mut().zip(unit) {
            let mut t = [0.0; LANES];
            for (t, p) in t.iter_mut().zip(p) {
                *t = f32::from_le_bytes(*p);
            }
            *v = s.load(&t);
        }
        out
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
    type Unit = [[u8; 2 * LANES]; 4];
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        2 * dim
    }
    #[inline(always)]
    fn units(row: &[u8]) -> &[Self::Unit] {
        row.as_chunks().0.as_chunks().0
    }
    #[inline(always)]
    fn unit<S: Simd>(s: S, unit: &Self::Unit) -> [S::V; 4] {
        let mut out = [s.splat(0.0); 4];
        for (v, p) in out.iter_mut().zip(unit) {
            *v = s.load_f16(p);
        }
        out
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

/// Bytes of a block, which is a unit: the scale and 32 bytes.
const Q8_BYTES: usize = 2 + Q8_BLOCK;

impl Stored for KvQ8 {
    type Unit = [u8; Q8_BYTES];
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim / Q8_BLOCK * Q8_BYTES
    }
    #[inline(always)]
    fn units(row: &[u8]) -> &[Self::Unit] {
        row.as_chunks().0
    }
    #[inline(always)]
    fn unit<S: Simd>(s: S, &[low, high, ref q @ ..]: &Self::Unit) -> [S::V; 4] {
        let d = s.splat_f16([low, high]);
        let mut out = [d; 4];
        for (v, q) in out.iter_mut().zip(q.as_chunks().0) {
            *v = s.mul(d, s.load_i8(q));
        }
        out
    }
    #[inline(always)]
    fn load<S: Simd>(s: S, row: &[u8], i: usize) -> S::V {
        Self::unit(s, &Self::units(row)[i / UNIT])[i % UNIT / LANES]
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

/// Row `i` of `out` = `softmax(scale · q_i Kᵀ) V` over the keys and values that row `i` sees.
#[inline(always)]
pub(super) fn attend<S: Simd, const T: usize>(
    (s, ways): (S, &Ways),
    a: Attention<'_>,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) {
    let n = a.seen.len();
    assert!(a.q.len() == n * a.dim && out.len() == a.q.len() && scratch.dim >= a.dim);
    let bytes = a.kv.row_bytes(a.dim).filter(|&bytes| bytes > 0).map(|bytes| a.keys.len() / bytes);
    assert!(a.keys.len() == a.values.len() && bytes.is_some());
    assert!(a.seen.iter().all(|&seen| seen > 0 && bytes >= Some(seen)));
    if n > few(a.kv) {
        return grouped::<S, T>(s, ways, &a, scratch, out);
    }
    match a.kv {
        KvType::F32 => alone::<S, KvF32>(s, &a, scratch, out),
        KvType::F16 => alone::<S, KvF16>(s, &a, scratch, out),
        KvType::Q8_0 => alone::<S, KvQ8>(s, &a, scratch, out),
    }
}

/// Up to [`FEW`] rows, one after the other in every block, which is in the core's cache from the second one on.
#[inline(always)]
fn alone<S: Simd, K: Stored>(s: S, a: &Attention<'_>, scratch: &mut AttendScratch, out: &mut [f32]) {
    let &Attention { dim, scale, q, seen, keys, values, .. } = a;
    let row_bytes = K::row_bytes(dim);
    let (scores, partial) = scratch.memory.split_at_mut(KEY_BLOCK);
    let partial = &mut partial[..dim];
    let (mut largest, mut total) = ([f32::NEG_INFINITY; FEW], [0.0f32; FEW]);
    let most = seen.iter().fold(0, |most, &seen| most.max(seen));
    for start in (0..most).step_by(KEY_BLOCK) {
        for (i, &seen) in seen.iter().enumerate() {
            if seen <= start {
                continue;
            }
            let count = (seen - start).min(KEY_BLOCK);
            let block = start * row_bytes..(start + count) * row_bytes;
            let (q, out) = (&q[i * dim..(i + 1) * dim], &mut out[i * dim..(i + 1) * dim]);
            score::<S, K>(s, q, &keys[block.clone()], row_bytes, scale, count, scores);
            let (m, sum) = soften(s, scores, count);
            weigh::<S, K>(s, &scores[..count], &values[block], row_bytes, partial);
            if start == 0 {
                (largest[i], total[i]) = (m, sum);
                out.copy_from_slice(partial);
            } else {
                let top = if largest[i] > m { largest[i] } else { m };
                let (old, new) = (exp_one(s, largest[i] - top), exp_one(s, m - top));
                total[i] = total[i] * old + sum * new;
                for i in (0..dim).step_by(LANES) {
                    let v = s.mul(load_tail(s, out, i), s.splat(old));
                    store_tail(s, s.fma(load_tail(s, partial, i), s.splat(new), v), out, i);
                }
                largest[i] = top;
            }
        }
    }
    for (out, total) in out.chunks_exact_mut(dim).zip(total) {
        let inverse = s.splat(1.0 / total);
        for i in (0..dim).step_by(LANES) {
            let v = s.mul(load_tail(s, out, i), inverse);
            store_tail(s, v, out, i);
        }
    }
}

#[inline(always)]
fn exp_one<S: Simd>(s: S, x: f32) -> f32 {
    let mut t = [0.0; LANES];
    s.store(exp(s, s.splat(x)), &mut t);
    t[0]
}

/// Scores of the first `count` keys, and minus infinity for the rest of the block.
#[inline(always)]
fn score<S: Simd, K: Stored>(
    s: S,
    q: &[f32],
    keys: &[u8],
    row_bytes: usize,
    scale: f32,
    count: usize,
    scores: &mut [f32],
) {
    let units = q.as_chunks::<UNIT>().0;
    let scale = s.splat(scale);
    for j in (0..count).step_by(LANES) {
        // One chain per key, eight keys at a time: that hides its latency, and the sums of lanes come together. Behind the
        // last key it stands again.
        let mut rows = [keys; LANES];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = &keys[(j + m).min(count - 1) * row_bytes..][..row_bytes];
        }
        let mut of = [K::units(rows[0]); LANES];
        for (of, row) in of.iter_mut().zip(rows) {
            *of = &K::units(row)[..units.len()];
        }
        let mut acc = [s.splat(0.0); LANES];
        for (u, q) in units.iter().enumerate() {
            let mut x = [s.splat(0.0); 4];
            for (x, q) in x.iter_mut().zip(q.as_chunks().0) {
                *x = s.load(q);
            }
            for (acc, of) in acc.iter_mut().zip(of) {
                for (k, x) in K::unit(s, &of[u]).into_iter().zip(x) {
                    *acc = s.fma(k, x, *acc);
                }
            }
        }
        for i in (units.len() * UNIT..q.len()).step_by(LANES) {
            let x = load_tail(s, q, i);
            for (acc, row) in acc.iter_mut().zip(rows) {
                *acc = s.fma(K::load(s, row, i), x, *acc);
            }
        }
        store_tail(s, s.mul(s.sum8(acc), scale), scores, j);
    }
    scores[count..].fill(f32::NEG_INFINITY);
}

/// Scores to weights, relative to the largest score, which it gives with their sum.
#[inline(always)]
fn soften<S: Simd>(s: S, scores: &mut [f32], count: usize) -> (f32, f32) {
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
    (m, s.sum(sum))
}

/// Weighted values, as many outputs at a time as there are registers for their chains.
#[inline(always)]
fn weigh<S: Simd, K: Stored>(s: S, weights: &[f32], values: &[u8], row_bytes: usize, out: &mut [f32]) {
    let units = out.len() / UNIT;
    let mut u = 0;
    while u < units {
        u += match units - u {
            1 => weigh_units::<S, K, 1>(s, weights, values, row_bytes, u, out),
            3 => weigh_units::<S, K, 3>(s, weights, values, row_bytes, u, out),
            _ => weigh_units::<S, K, 2>(s, weights, values, row_bytes, u, out),
        };
    }
    for i in (units * UNIT..out.len()).step_by(LANES) {
        let mut acc = s.splat(0.0);
        for (&p, row) in weights.iter().zip(values.chunks_exact(row_bytes)) {
            acc = s.fma(s.splat(p), K::load(s, row, i), acc);
        }
        store_tail(s, acc, out, i);
    }
}

/// The outputs of `N` units from unit `u` on. Gives `N`.
#[inline(always)]
fn weigh_units<S: Simd, K: Stored, const N: usize>(
    s: S,
    weights: &[f32],
    values: &[u8],
    row_bytes: usize,
    u: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [[s.splat(0.0); 4]; N];
    for (&p, row) in weights.iter().zip(values.chunks_exact(row_bytes)) {
        let p = s.splat(p);
        for (acc, unit) in acc.iter_mut().zip(&K::units(row)[u..u + N]) {
            for (acc, v) in acc.iter_mut().zip(K::unit(s, unit)) {
                *acc = s.fma(p, v, *acc);
            }
        }
    }
    for (m, acc) in acc.as_flattened().iter().enumerate() {
        store_tail(s, *acc, out, u * UNIT + m * LANES);
    }
    N
}
