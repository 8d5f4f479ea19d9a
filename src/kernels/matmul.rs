//! Weight rows times activation rows.
//!
//! **The fixed order that makes bits independent of everything.** For block formats a product is, 32 weights after 32 along the
//! row, `acc += (d_w * d_a) * isum` or as little more as a format needs ([`Blocks::add`]): one chain of operations per
//! (weight row, activation row), with `isum` exact. A lane holds a weight row, so the chain is the same whether one row or
//! eight are computed, for one activation row or for many. For f32, f16 and bf16 a product is two chains of eight fused lanes
//! and one fixed tree at the end.

use super::formats::Blocks;
use super::simd::{LANES, Simd, load_tail};
use super::{Acts, Form, Q8_BLOCK};

/// Bytes that a prefetch brings; a smaller real line costs speed only.
const CACHE_LINE: usize = 64;

/// Asks for `bytes` bytes from `p` on.
#[inline(always)]
fn prefetch<S: Simd>(s: S, p: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(CACHE_LINE) {
        s.prefetch(p.wrapping_add(line * CACHE_LINE));
    }
}

/// `out[c * rows + r]` = weight row `r` · activation row `c`, for `rows` rows of `row_bytes` bytes in `w` and all rows of `acts`.
#[inline(always)]
pub(super) fn blocks<S: Simd, F: Blocks>(s: S, w: &[u8], rows: usize, acts: Acts<'_>, out: &mut [f32]) {
    let n_blocks = acts.k / (F::SUBS * Q8_BLOCK);
    let row_bytes = n_blocks * F::BYTES;
    assert!(acts.k.is_multiple_of(F::SUBS * Q8_BLOCK) && w.len() == rows * row_bytes);
    assert!(out.len() == rows * acts.rows);
    acts.check(Form::of(F::TYPE));
    for r in (0..rows).step_by(LANES) {
        // Lanes behind the last row repeat it and are thrown away.
        let mut base = [w.as_ptr(); LANES];
        for (i, p) in base.iter_mut().enumerate() {
            *p = w[(r + i).min(rows - 1) * row_bytes..].as_ptr();
        }
        let mut c = 0;
        while c < acts.rows {
            // SAFETY: every base pointer has a whole row, `n_blocks` blocks, behind it; the activation slices were checked above.
            unsafe {
                c += match acts.rows - c {
                    1 => columns::<S, F, 1>(s, base, n_blocks, acts, c, r, rows, out),
                    2 | 3 => columns::<S, F, 2>(s, base, n_blocks, acts, c, r, rows, out),
                    _ => columns::<S, F, 4>(s, base, n_blocks, acts, c, r, rows, out),
                };
            }
        }
    }
}

/// Eight weight rows times `C` activation rows: the weights are unpacked once for all of them. Gives `C`.
///
/// # Safety
/// `n_blocks` blocks must be readable behind every pointer in `base`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "an inlined part of `blocks`, which has the narrow interface")]
unsafe fn columns<S: Simd, F: Blocks, const C: usize>(
    s: S,
    base: [*const u8; LANES],
    n_blocks: usize,
    acts: Acts<'_>,
    c: usize,
    r: usize,
    rows: usize,
    out: &mut [f32],
) -> usize {
    let mut acc = [s.splat(0.0); C];
    for b in 0..n_blocks {
        let mut p = base;
        for p in &mut p {
            *p = p.wrapping_add(b * F::BYTES);
        }
        if c == 0 {
            // Eight rows are read side by side, a pattern that hardware does not foresee. The next eight lie right behind
            // them, so a share of those is asked for with every block.
            prefetch(s, base[0].wrapping_add(LANES * (n_blocks + b) * F::BYTES), LANES * F::BYTES);
        }
        // SAFETY: block `b` of every row is inside the row.
        let head = unsafe { F::head(s, p) };
        for i in 0..F::SUBS {
            // SAFETY: as above.
            let w = unsafe { F::unpack(s, p, &head, i) };
            for (j, acc) in acc.iter_mut().enumerate() {
                *acc = F::add(s, &w, &acts, ((c + j) * n_blocks + b) * F::SUBS + i, *acc);
            }
        }
    }
    let n = (rows - r).min(LANES);
    for (j, acc) in acc.into_iter().enumerate() {
        let mut t = [0.0; LANES];
        s.store(acc, &mut t);
        let at = (c + j) * rows + r;
        out[at..at + n].copy_from_slice(&t[..n]);
    }
    C
}

/// A weight format without blocks: it multiplies f32 activations.
pub(super) trait Dense {
    /// Bytes of one weight.
    const BYTES: usize;
    /// Eight weights from `8 * BYTES` bytes.
    fn load<S: Simd>(s: S, p: &[u8]) -> S::V;
}

/// Little-endian f32.
pub(super) struct F32;
/// Little-endian IEEE half floats.
pub(super) struct F16;
/// Little-endian bfloat16.
pub(super) struct Bf16;

impl Dense for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(s: S, p: &[u8]) -> S::V {
        let mut t = [0.0; LANES];
        for (t, p) in t.iter_mut().zip(p.as_chunks::<4>().0) {
            *t = f32::from_le_bytes(*p);
        }
        s.load(&t)
    }
}

impl Dense for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, p: &[u8]) -> S::V {
        match p.first_chunk() {
            Some(p) => s.load_f16(p),
            None => unreachable!(),
        }
    }
}

impl Dense for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, p: &[u8]) -> S::V {
        match p.first_chunk() {
            Some(p) => s.load_bf16(p),
            None => unreachable!(),
        }
    }
}

/// Eight weights at element `i` of a row, zeros behind its end.
#[inline(always)]
fn weights_at<S: Simd, D: Dense>(s: S, row: &[u8], i: usize) -> S::V {
    let at = i * D::BYTES;
    match row.get(at..at + LANES * D::BYTES) {
        Some(p) => D::load(s, p),
        None => {
            let mut t = [0u8; LANES * 4];
            if let Some(rest) = row.get(at..) {
                t[..rest.len()].copy_from_slice(rest);
            }
            D::load(s, &t[..LANES * D::BYTES])
        }
    }
}

/// As [`blocks`], for formats without blocks.
#[inline(always)]
pub(super) fn dense<S: Simd, D: Dense>(s: S, w: &[u8], rows: usize, acts: Acts<'_>, out: &mut [f32]) {
    assert!(w.len() == rows * acts.k * D::BYTES && out.len() == rows * acts.rows);
    assert!(acts.f.len() >= acts.rows * acts.k);
    let mut c = 0;
    while c < acts.rows {
        let two = acts.rows - c >= 2;
        let mut r = 0;
        while r < rows {
            r += match (two, rows - r >= 4) {
                (false, true) => dense_tile::<S, D, 4, 1>(s, w, rows, acts, r, c, out),
                (false, false) => dense_tile::<S, D, 1, 1>(s, w, rows, acts, r, c, out),
                (true, true) => dense_tile::<S, D, 2, 2>(s, w, rows, acts, r, c, out),
                (true, false) => dense_tile::<S, D, 1, 2>(s, w, rows, acts, r, c, out),
            };
        }
        c += if two { 2 } else { 1 };
    }
}

/// `R` weight rows times `C` activation rows. Gives `R`.
#[inline(always)]
fn dense_tile<S: Simd, D: Dense, const R: usize, const C: usize>(
    s: S,
    w: &[u8],
    rows: usize,
    acts: Acts<'_>,
    r: usize,
    c: usize,
    out: &mut [f32],
) -> usize {
    let row_bytes = acts.k * D::BYTES;
    let mut acc = [[[s.splat(0.0); 2]; C]; R];
    let mut i = 0;
    while i < acts.k {
        if c == 0 {
            // As in `columns`: a share of the next rows with every step along these.
            let next = w.as_ptr().wrapping_add((r + R) * row_bytes + R * i * D::BYTES);
            prefetch(s, next, 2 * LANES * R * D::BYTES);
        }
        for half in 0..2 {
            let at = i + half * LANES;
            let mut a = [s.splat(0.0); C];
            for (j, a) in a.iter_mut().enumerate() {
                *a = load_tail(s, &acts.f[(c + j) * acts.k..(c + j + 1) * acts.k], at);
            }
            for (m, acc) in acc.iter_mut().enumerate() {
                let v = weights_at::<S, D>(s, &w[(r + m) * row_bytes..(r + m + 1) * row_bytes], at);
                for (acc, &a) in acc.iter_mut().zip(&a) {
                    acc[half] = s.fma(v, a, acc[half]);
                }
            }
        }
        i += 2 * LANES;
    }
    for (m, acc) in acc.into_iter().enumerate() {
        for (j, [a, b]) in acc.into_iter().enumerate() {
            out[(c + j) * rows + r + m] = s.sum(s.add(a, b));
        }
    }
    R
}
