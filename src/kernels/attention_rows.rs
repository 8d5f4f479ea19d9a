//! Attention of many rows at once, a row to a lane.
//!
//! Queries are transposed once, so that a vector holds one element of many rows; keys and values are converted a sub-block at a
//! time, small enough for the nearest cache, and their elements are broadcast. Nothing is ever added across lanes, vectors may
//! have any number of them, and what a score or an output of a row is made of is the same as where the row is alone.
//!
//! The rows of a call are cut into bands of one or two vectors. A band computes scores for all the keys that any of its rows
//! sees; those of others are put away before they count, and where values are weighed, a row that does not see a key keeps
//! what it has.

use super::attention::{KEY_BLOCK, KvF16, KvF32, KvQ8, Stored, UNIT};
use super::generic::exp;
use super::simd::{LANES, Simd, Vector, load_tail, store_tail};
use super::{ATTEND_ROWS, AttendScratch, Attention, KvType};
use std::ops::Range;

/// Keys per tile at most, and outputs.
const TILE_MAX: usize = 8;
/// Keys that are converted together: eight tiles.
const SUB_MAX: usize = 8 * TILE_MAX;
/// Rows of scores: a block, and what a last tile computes beyond it.
const SCORES: usize = KEY_BLOCK + TILE_MAX;
/// Vectors begin on cache lines; a line is this many values.
const LINE: usize = 16;

/// Vectors of [`Parts::state`].
const STATE: usize = 5;

/// Elements of a head, with room for whole tiles.
fn padded(dim: usize) -> usize {
    dim.next_multiple_of(LANES) + TILE_MAX
}

/// Values of scratch for heads of up to `dim` values.
pub(super) fn scratch_len(dim: usize) -> usize {
    LINE + ATTEND_ROWS * (3 * padded(dim) + SCORES + STATE) + SUB_MAX * padded(dim)
}

/// How the rows of a band are computed.
#[derive(Clone, Copy, Default)]
enum Vectors {
    /// As two of the widest vectors.
    #[default]
    Two,
    /// As one of them.
    One,
    /// As eight lanes.
    Eight,
}

/// What is done with a band at a step.
type Phase = fn(&Band, Step, &mut Parts<'_>);

/// The functions of this module that do most of the work, for one kind of band: [`score`], [`soften`], [`weigh`], [`combine`]
/// and [`finish`]. They are compiled on their own, which keeps their sums in registers: as part of one large function the
/// compiler loses sight of what is hot.
pub(super) struct Phases {
    pub score: Phase,
    pub soften: Phase,
    pub weigh: Phase,
    pub combine: Phase,
    pub finish: Phase,
}

/// The phases of an instruction set.
pub(super) struct Ways {
    /// Lanes of its widest vectors.
    pub lanes: usize,
    pub two: Phases,
    pub one: Phases,
    pub eight: Phases,
}

impl Ways {
    #[inline(always)]
    fn of(&self, band: &Band) -> &Phases {
        match band.vectors {
            Vectors::Two => &self.two,
            Vectors::One => &self.one,
            Vectors::Eight => &self.eight,
        }
    }
}

/// Keys and outputs per tile that suit vectors: with two vectors of rows, six tiles fill sixteen registers, and eight make good
/// use of more.
pub(super) const fn tile_of<W: Vector>(_: W) -> usize {
    if W::COUNT > LANES { TILE_MAX } else { 6 }
}

/// Number of lanes.
pub(super) const fn lanes_of<W: Vector>(_: W) -> usize {
    W::COUNT
}

/// Up to two vectors of rows.
#[derive(Clone, Copy, Default)]
pub(super) struct Band {
    vectors: Vectors,
    /// Lanes in all, and in the bands before this one; a lane is a row, and the last lanes may be none.
    width: usize,
    at: usize,
    /// Keys that all of its rows see, and that any of them does.
    least: usize,
    most: usize,
}

impl Band {
    /// Keys of the block at `start` that all of its rows see, and that any of them does.
    fn keys(&self, start: usize) -> (usize, usize) {
        (self.least.saturating_sub(start).min(KEY_BLOCK), self.most.saturating_sub(start).min(KEY_BLOCK))
    }

    /// This band's part of something that has `n` values per lane.
    fn of(&self, n: usize) -> Range<usize> {
        n * self.at..n * (self.at + self.width)
    }
}

/// Cuts rows into bands; gives how many.
#[inline(always)]
fn cut(widest: usize, seen: &[usize], bands: &mut [Band; ATTEND_ROWS / LANES]) -> usize {
    let (mut at, mut n) = (0, 0);
    while at < seen.len() {
        let left = seen.len() - at;
        let (vectors, width) = if left > widest {
            (Vectors::Two, 2 * widest)
        } else if left > LANES {
            (Vectors::One, widest)
        } else {
            (Vectors::Eight, LANES)
        };
        let (mut least, mut most) = (usize::MAX, 0);
        for &seen in seen[at..].iter().take(width) {
            (least, most) = (least.min(seen), most.max(seen));
        }
        bands[n] = Band { vectors, width, at, least, most };
        (at, n) = (at + width, n + 1);
    }
    n
}

/// The scratch of a call. All but the last part are cut by band.
pub(super) struct Parts<'a> {
    /// `[8][dim / 8][width]`: element `8i + l` of the queries is `[l][i]`, in the order in which a score takes them.
    q: &'a mut [f32],
    /// `[SCORES][width]`: scores, then weights.
    p: &'a mut [f32],
    /// `[stride][width]`: the outputs of the blocks so far, and of the block at work.
    out: &'a mut [f32],
    partial: &'a mut [f32],
    /// `[STATE][width]`: largest score and total weight of the blocks so far, the same of the block at work, and how many of
    /// its keys the row sees.
    state: &'a mut [f32],
    /// Keys as `[tile][dim / 8][key of the tile][8]`, or values as `[key][stride]`.
    block: &'a mut [f32],
}

impl<'a> Parts<'a> {
    #[inline(always)]
    fn new(memory: &'a mut [f32], lanes: usize, even: usize, stride: usize, sub: usize) -> Self {
        let first = memory.as_ptr().align_offset(4 * LINE).min(LINE);
        let mut memory = &mut memory[first..];
        Parts {
            q: take(&mut memory, lanes * even),
            p: take(&mut memory, lanes * SCORES),
            out: take(&mut memory, lanes * stride),
            partial: take(&mut memory, lanes * stride),
            state: take(&mut memory, lanes * STATE),
            block: take(&mut memory, sub * stride),
        }
    }
}

/// Takes `n` values off the front.
#[inline(always)]
fn take<'a>(memory: &mut &'a mut [f32], n: usize) -> &'a mut [f32] {
    let (part, rest) = std::mem::take(memory).split_at_mut(n.next_multiple_of(LINE));
    *memory = rest;
    part
}

/// Where the computation stands.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// First key of the block.
    start: usize,
    /// First key of the sub-block, counted in the block, and the first behind it.
    from: usize,
    to: usize,
    /// Eighths of a head, rounded up.
    chunks: usize,
    /// From one row of values to the next.
    stride: usize,
    scale: f32,
}

impl Step {
    /// Keys of the sub-block that stand before key `end`.
    fn left(&self, end: usize) -> usize {
        end.saturating_sub(self.start + self.from).min(self.to - self.from)
    }
}

/// Any number of rows, in tiles of `T` keys or outputs.
#[inline(always)]
pub(super) fn grouped<S: Simd, const T: usize>(
    s: S,
    ways: &Ways,
    a: &Attention<'_>,
    scratch: &mut AttendScratch,
    out: &mut [f32],
) {
    let n = ATTEND_ROWS * a.dim;
    for ((q, seen), out) in a.q.chunks(n).zip(a.seen.chunks(ATTEND_ROWS)).zip(out.chunks_mut(n)) {
        group::<S, T>(s, ways, &Attention { q, seen, ..*a }, scratch, out);
    }
}

/// Up to [`ATTEND_ROWS`] rows.
#[inline(always)]
fn group<S: Simd, const T: usize>(s: S, ways: &Ways, a: &Attention<'_>, scratch: &mut AttendScratch, out: &mut [f32]) {
    let &Attention { kv, dim, scale, q, seen, keys, values } = a;
    let mut bands = [Band::default(); ATTEND_ROWS / LANES];
    let n = cut(ways.lanes, seen, &mut bands);
    let bands = &bands[..n];
    let lanes = bands.iter().map(|band| band.width).sum();
    let most = bands.iter().map(|band| band.most).max().unwrap_or(0);

    let even = dim.next_multiple_of(LANES);
    let (stride, sub) = (even.next_multiple_of(T), 8 * T);
    let mut parts = Parts::new(&mut scratch.memory, lanes, even, stride, sub);
    for band in bands {
        spread(s, band, dim, q, &mut parts);
    }
    let mut step = Step { start: 0, from: 0, to: 0, chunks: even / LANES, stride, scale };
    for start in (0..most).step_by(KEY_BLOCK) {
        let count = (most - start).min(KEY_BLOCK);
        step = Step { start, from: 0, to: 0, ..step };
        while step.to < count {
            (step.from, step.to) = (step.to, (step.to + sub).min(count));
            match kv {
                KvType::F32 => keys_of::<S, KvF32, T>(s, dim, keys, step, parts.block),
                KvType::F16 => keys_of::<S, KvF16, T>(s, dim, keys, step, parts.block),
                KvType::Q8_0 => keys_of::<S, KvQ8, T>(s, dim, keys, step, parts.block),
            }
            for band in bands {
                (ways.of(band).score)(band, step, &mut parts);
            }
        }
        for band in bands {
            let counts = &mut parts.state[band.of(STATE)][4 * band.width..];
            counts.fill(0.0);
            for (count, &seen) in counts.iter_mut().zip(&seen[band.at..]) {
                *count = seen.saturating_sub(start).min(KEY_BLOCK) as f32;
            }
            (ways.of(band).soften)(band, step, &mut parts);
        }
        step.to = 0;
        while step.to < count {
            (step.from, step.to) = (step.to, (step.to + sub).min(count));
            match kv {
                KvType::F32 => values_of::<S, KvF32>(s, dim, values, step, parts.block),
                KvType::F16 => values_of::<S, KvF16>(s, dim, values, step, parts.block),
                KvType::Q8_0 => values_of::<S, KvQ8>(s, dim, values, step, parts.block),
            }
            for band in bands {
                (ways.of(band).weigh)(band, step, &mut parts);
            }
        }
        for band in bands {
            (ways.of(band).combine)(band, step, &mut parts);
        }
    }
    for band in bands {
        (ways.of(band).finish)(band, step, &mut parts);
        gather(s, band, dim, stride, &parts, out);
    }
}

/// The queries of a band, transposed. Lanes without a row are zero.
#[inline(always)]
fn spread<S: Simd>(s: S, band: &Band, dim: usize, q: &[f32], parts: &mut Parts<'_>) {
    let chunks = dim.div_ceil(LANES);
    let to = &mut parts.q[band.of(chunks * LANES)];
    for first in (0..band.width).step_by(LANES) {
        for i in 0..chunks {
            let mut v = [s.splat(0.0); LANES];
            for (v, q) in v.iter_mut().zip(q.chunks_exact(dim).skip(band.at + first)) {
                *v = load_tail(s, q, i * LANES);
            }
            for (l, v) in s.transpose(v).into_iter().enumerate() {
                store_tail(s, v, to, (l * chunks + i) * band.width + first);
            }
        }
    }
}

/// The outputs of a band, transposed back.
#[inline(always)]
fn gather<S: Simd>(s: S, band: &Band, dim: usize, stride: usize, parts: &Parts<'_>, out: &mut [f32]) {
    let from = &parts.out[band.of(stride)];
    for first in (0..band.width).step_by(LANES) {
        for i in (0..dim).step_by(LANES) {
            let mut v = [s.splat(0.0); LANES];
            for (l, v) in v.iter_mut().enumerate() {
                *v = load_tail(s, from, (i + l) * band.width + first);
            }
            for (out, v) in out.chunks_exact_mut(dim).skip(band.at + first).zip(s.transpose(v)) {
                store_tail(s, v, out, i);
            }
        }
    }
}

/// Converts a sub-block of keys for [`score`].
#[inline(always)]
fn keys_of<S: Simd, K: Stored, const T: usize>(s: S, dim: usize, keys: &[u8], step: Step, block: &mut [f32]) {
    let row_bytes = K::row_bytes(dim);
    let keys = &keys[(step.start + step.from) * row_bytes..(step.start + step.to) * row_bytes];
    let tiles = block.as_chunks_mut::<LANES>().0.as_chunks_mut::<T>().0.chunks_exact_mut(step.chunks);
    for (keys, tile) in keys.chunks(T * row_bytes).zip(tiles) {
        for (t, key) in keys.chunks_exact(row_bytes).take(T).enumerate() {
            let units = K::units(key);
            let (whole, rest) = tile.split_at_mut(4 * units.len());
            for (unit, to) in units.iter().zip(whole.as_chunks_mut::<4>().0) {
                for (v, to) in K::unit(s, unit).into_iter().zip(to) {
                    s.store(v, &mut to[t]);
                }
            }
            for (i, to) in (UNIT * units.len()..dim).step_by(LANES).zip(rest) {
                s.store(K::load(s, key, i), &mut to[t]);
            }
        }
    }
}

/// Converts a sub-block of values for [`weigh`].
#[inline(always)]
fn values_of<S: Simd, K: Stored>(s: S, dim: usize, values: &[u8], step: Step, block: &mut [f32]) {
    let row_bytes = K::row_bytes(dim);
    let values = &values[(step.start + step.from) * row_bytes..(step.start + step.to) * row_bytes];
    for (value, to) in values.chunks_exact(row_bytes).zip(block.chunks_exact_mut(step.stride)) {
        let units = K::units(value);
        let (whole, rest) = to.as_chunks_mut::<LANES>().0.split_at_mut(4 * units.len());
        for (unit, to) in units.iter().zip(whole.as_chunks_mut::<4>().0) {
            for (v, to) in K::unit(s, unit).into_iter().zip(to) {
                s.store(v, to);
            }
        }
        for (i, to) in (UNIT * units.len()..dim).step_by(LANES).zip(rest) {
            s.store(K::load(s, value, i), to);
        }
    }
}

/// Scores of a sub-block.
#[inline(always)]
pub(super) fn score<W: Vector, const R: usize, const T: usize>(w: W, band: &Band, step: Step, parts: &mut Parts<'_>) {
    let chunks = step.chunks;
    let tiles = step.left(band.most).div_ceil(T);
    let q = W::arrays(&parts.q[band.of(chunks * LANES)]).as_chunks::<R>().0;
    let k = parts.block.as_chunks::<LANES>().0.as_chunks::<T>().0;
    let p = &mut parts.p[band.of(SCORES)][step.from * band.width..];
    let p = W::arrays_mut(p).as_chunks_mut::<R>().0.as_chunks_mut::<T>().0;
    let mut t = 0;
    // A single vector of rows takes two tiles at a time, to have enough chains.
    while R == 1 && t + 2 <= tiles {
        let k = [&k[t * chunks..(t + 1) * chunks], &k[(t + 1) * chunks..(t + 2) * chunks]];
        score_tiles(w, q, k, step.scale, &mut p[t..t + 2]);
        t += 2;
    }
    while t < tiles {
        score_tiles(w, q, [&k[t * chunks..(t + 1) * chunks]], step.scale, &mut p[t..t + 1]);
        t += 1;
    }
}

/// `R` vectors of rows against `M` tiles of `T` keys.
#[inline(always)]
fn score_tiles<W: Vector, const R: usize, const T: usize, const M: usize>(
    w: W,
    q: &[[W::Array; R]],
    k: [&[[[f32; LANES]; T]]; M],
    scale: f32,
    p: &mut [[[W::Array; R]; T]],
) {
    let chunks = k[0].len();
    // In the order of `Simd::sum`: chain l and chain l + 4, then l + 2, then l + 1. The even chains wait in `p`.
    for odd in 0..2 {
        let mut sum = chain_pair::<W, R, T, M>(w, q, k, chunks, odd);
        let second = chain_pair::<W, R, T, M>(w, q, k, chunks, odd + 2);
        add_all(w, &mut sum, &second);
        for (sum, p) in
            sum.as_flattened_mut().as_flattened_mut().iter_mut().zip(p.as_flattened_mut().as_flattened_mut())
        {
            if odd == 1 {
                *sum = w.mul(w.add(w.load(p), *sum), w.splat(scale));
            }
            w.store(*sum, p);
        }
    }
}

#[inline(always)]
fn add_all<W: Vector, const R: usize, const T: usize, const M: usize>(
    w: W,
    a: &mut [[[W::V; R]; T]; M],
    b: &[[[W::V; R]; T]; M],
) {
    for (a, b) in a.as_flattened_mut().as_flattened_mut().iter_mut().zip(b.as_flattened().as_flattened()) {
        *a = w.add(*a, *b);
    }
}

/// Chains `l` and `l + 4` of scores, added.
#[inline(always)]
fn chain_pair<W: Vector, const R: usize, const T: usize, const M: usize>(
    w: W,
    q: &[[W::Array; R]],
    k: [&[[[f32; LANES]; T]]; M],
    chunks: usize,
    l: usize,
) -> [[[W::V; R]; T]; M] {
    let mut sum = chain::<W, R, T, M>(w, &q[l * chunks..(l + 1) * chunks], k, l);
    let l = l + 4;
    let second = chain::<W, R, T, M>(w, &q[l * chunks..(l + 1) * chunks], k, l);
    add_all(w, &mut sum, &second);
    sum
}

/// Chain `l` of scores.
#[inline(always)]
fn chain<W: Vector, const R: usize, const T: usize, const M: usize>(
    w: W,
    q: &[[W::Array; R]],
    k: [&[[[f32; LANES]; T]]; M],
    l: usize,
) -> [[[W::V; R]; T]; M] {
    let mut acc = [[[w.splat(0.0); R]; T]; M];
    for (i, q) in q.iter().enumerate() {
        let mut x = [w.splat(0.0); R];
        for (x, q) in x.iter_mut().zip(q) {
            *x = w.load(q);
        }
        for (acc, k) in acc.iter_mut().zip(k) {
            for (acc, k) in acc.iter_mut().zip(&k[i]) {
                let k = w.splat(k[l % LANES]);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = w.fma(k, x, *acc);
                }
            }
        }
    }
    acc
}

/// Scores to weights, relative to each row's largest score of the block; those of unseen keys to zero.
#[inline(always)]
pub(super) fn soften<W: Vector, const R: usize>(w: W, band: &Band, step: Step, parts: &mut Parts<'_>) {
    let (full, count) = band.keys(step.start);
    let p = &mut W::arrays_mut(&mut parts.p[band.of(SCORES)]).as_chunks_mut::<R>().0[..count];
    let Some([_, _, largest, sum, counts]) = state::<W, R>(band, parts.state) else { return };
    let none = w.splat(f32::NEG_INFINITY);
    for r in 0..R {
        let seen = w.load(&counts[r]);
        for (j, p) in p.iter_mut().enumerate().skip(full) {
            let x = w.pick(w.splat(j as f32), seen, w.load(&p[r]), none);
            w.store(x, &mut p[r]);
        }
        // The largest is the largest in any order, so there are enough chains to hide their latency.
        let (eights, rest) = p.as_chunks_mut::<LANES>();
        let mut m = [none; LANES];
        for p in eights.iter() {
            for (m, p) in m.iter_mut().zip(p) {
                *m = w.max(*m, w.load(&p[r]));
            }
        }
        for (m, p) in m.iter_mut().zip(rest.iter()) {
            *m = w.max(*m, w.load(&p[r]));
        }
        let [a, b, c, d, e, f, g, h] = m;
        let m = w.max(w.max(w.max(a, b), w.max(c, d)), w.max(w.max(e, f), w.max(g, h)));
        let mut sums = [w.splat(0.0); LANES];
        for p in eights {
            for (sum, p) in sums.iter_mut().zip(p) {
                let x = exp(w, w.sub(w.load(&p[r]), m));
                *sum = w.add(*sum, x);
                w.store(x, &mut p[r]);
            }
        }
        for (sum, p) in sums.iter_mut().zip(rest) {
            let x = exp(w, w.sub(w.load(&p[r]), m));
            *sum = w.add(*sum, x);
            w.store(x, &mut p[r]);
        }
        let [a, b, c, d, e, f, g, h] = sums;
        let even = w.add(w.add(a, e), w.add(c, g));
        w.store(w.add(even, w.add(w.add(b, f), w.add(d, h))), &mut sum[r]);
        w.store(m, &mut largest[r]);
    }
}

/// The vectors of [`Parts::state`].
#[inline(always)]
fn state<'a, W: Vector, const R: usize>(band: &Band, state: &'a mut [f32]) -> Option<&'a mut [[W::Array; R]; STATE]> {
    W::arrays_mut(&mut state[band.of(STATE)]).as_chunks_mut::<R>().0.first_chunk_mut()
}

/// Adds a sub-block of weighted values to the block's outputs.
#[inline(always)]
pub(super) fn weigh<W: Vector, const R: usize, const T: usize>(w: W, band: &Band, step: Step, parts: &mut Parts<'_>) {
    let mut d = 0;
    while d < step.chunks * LANES {
        // A single vector of rows takes more outputs at a time, to have enough chains.
        d += if R == 1 {
            weigh_tile::<W, R, LANES>(w, band, step, d, parts)
        } else {
            weigh_tile::<W, R, T>(w, band, step, d, parts)
        };
    }
}

/// The outputs from `d` to `d + D`, which it gives back.
#[inline(always)]
fn weigh_tile<W: Vector, const R: usize, const D: usize>(
    w: W,
    band: &Band,
    step: Step,
    d: usize,
    parts: &mut Parts<'_>,
) -> usize {
    let left = step.left(band.most);
    let full = step.left(band.least);
    let Some([.., counts]) = state::<W, R>(band, parts.state) else { return D };
    let mut seen = [w.splat(0.0); R];
    for (seen, counts) in seen.iter_mut().zip(counts) {
        *seen = w.load(counts);
    }
    let p = &W::arrays(&parts.p[band.of(SCORES)]).as_chunks::<R>().0[step.from..step.from + left];
    let out = &mut W::arrays_mut(&mut parts.partial[band.of(step.stride)]).as_chunks_mut::<R>().0[d..d + D];
    let mut acc = [[w.splat(0.0); R]; D];
    if step.from > 0 {
        for (acc, out) in acc.as_flattened_mut().iter_mut().zip(out.as_flattened()) {
            *acc = w.load(out);
        }
    }
    let mut values = parts.block.chunks_exact(step.stride);
    for (p, v) in p[..full].iter().zip(&mut values) {
        let mut weights = [w.splat(0.0); R];
        for (weight, p) in weights.iter_mut().zip(p) {
            *weight = w.load(p);
        }
        for (acc, v) in acc.iter_mut().zip(&v[d..d + D]) {
            let v = w.splat(*v);
            for (acc, weight) in acc.iter_mut().zip(weights) {
                *acc = w.fma(weight, v, *acc);
            }
        }
    }
    for (j, (p, v)) in p[full..].iter().zip(values).enumerate() {
        let j = w.splat((step.from + full + j) as f32);
        for (acc, v) in acc.iter_mut().zip(&v[d..d + D]) {
            let v = w.splat(*v);
            for ((acc, p), seen) in acc.iter_mut().zip(p).zip(seen) {
                *acc = w.pick(j, seen, w.fma(w.load(p), v, *acc), *acc);
            }
        }
    }
    for (acc, out) in acc.as_flattened().iter().zip(out.as_flattened_mut()) {
        w.store(*acc, out);
    }
    D
}

/// Adds the block to the blocks before it, for the rows that see any of it.
#[inline(always)]
pub(super) fn combine<W: Vector, const R: usize>(w: W, band: &Band, step: Step, parts: &mut Parts<'_>) {
    if band.most <= step.start {
        return;
    }
    let Some([largest, total, m, sum, counts]) = state::<W, R>(band, parts.state) else { return };
    let (out, partial) = (&mut parts.out[band.of(step.stride)], &parts.partial[band.of(step.stride)]);
    if step.start == 0 {
        (*largest, *total) = (*m, *sum);
        out.copy_from_slice(partial);
        return;
    }
    let zero = w.splat(0.0);
    for r in 0..R {
        let (before, m) = (w.load(&largest[r]), w.load(&m[r]));
        let seen = w.load(&counts[r]);
        let top = w.max(before, m);
        let (old, new) = (exp(w, w.sub(before, top)), exp(w, w.sub(m, top)));
        let weight = w.load(&total[r]);
        let sum = w.add(w.mul(weight, old), w.mul(w.load(&sum[r]), new));
        w.store(w.pick(zero, seen, sum, weight), &mut total[r]);
        w.store(w.pick(zero, seen, top, before), &mut largest[r]);
        let (out, partial) = (W::arrays_mut(out).as_chunks_mut::<R>().0, W::arrays(partial).as_chunks::<R>().0);
        for (out, partial) in out.iter_mut().zip(partial) {
            let before = w.load(&out[r]);
            let v = w.fma(w.load(&partial[r]), new, w.mul(before, old));
            w.store(w.pick(zero, seen, v, before), &mut out[r]);
        }
    }
}

/// Divides by the total weight.
#[inline(always)]
pub(super) fn finish<W: Vector, const R: usize>(w: W, band: &Band, step: Step, parts: &mut Parts<'_>) {
    let Some([_, total, ..]) = state::<W, R>(band, parts.state) else { return };
    let out = W::arrays_mut(&mut parts.out[band.of(step.stride)]).as_chunks_mut::<R>().0;
    for r in 0..R {
        let inverse = w.div(w.splat(1.0), w.load(&total[r]));
        for out in &mut *out {
            w.store(w.mul(w.load(&out[r]), inverse), &mut out[r]);
        }
    }
}
