//! Element-wise algorithms and reductions over rows, written once over [`Simd`].

use super::simd::{LANES, Simd, Vector, load_tail, store_tail};
use super::{ByteScale, LatentSums, Q8_BLOCK, WIDE_MAX, WideScale};

/// `out = x / sqrt(mean(x²) + eps) * weight`.
///
/// The sum of squares runs in two chains of eight lanes (a chain is four cycles long on every current CPU), which are added
/// before the lanes are.
#[inline(always)]
pub(super) fn rms_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len());
    let (mut a, mut b) = (s.splat(0.0), s.splat(0.0));
    let mut i = 0;
    while i < x.len() {
        let v = load_tail(s, x, i);
        a = s.fma(v, v, a);
        let v = load_tail(s, x, i + LANES);
        b = s.fma(v, v, b);
        i += 2 * LANES;
    }
    let mean = s.sum(s.add(a, b)) / x.len() as f32;
    let scale = s.splat(1.0 / (mean + eps).sqrt());
    for i in (0..x.len()).step_by(LANES) {
        let v = s.mul(s.mul(load_tail(s, x, i), scale), load_tail(s, weight, i));
        store_tail(s, v, out, i);
    }
}

/// `out = (x − mean(x)) / sqrt(mean((x − mean(x))²) + eps) · weight + bias`.
#[inline(always)]
pub(super) fn layer_norm<S: Simd>(s: S, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == bias.len() && x.len() == out.len());
    let n = x.len() as f32;
    let mut sum = s.splat(0.0);
    for i in (0..x.len()).step_by(LANES) {
        sum = s.add(sum, load_tail(s, x, i));
    }
    let mean = s.splat(s.sum(sum) / n);
    for i in (0..x.len()).step_by(LANES) {
        store_tail(s, s.sub(load_tail(s, x, i), mean), out, i);
    }
    // The centred values are in `out` now: its tail loads zeros, which `x − mean` would not be.
    let scale = s.splat(1.0 / (dot(s, &*out, &*out) / n + eps).sqrt());
    for i in (0..x.len()).step_by(LANES) {
        let v = s.mul(s.mul(load_tail(s, out, i), scale), load_tail(s, weight, i));
        store_tail(s, s.add(v, load_tail(s, bias, i)), out, i);
    }
}

/// Sum of products, in two chains of eight fused lanes.
#[inline(always)]
pub(super) fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let (mut a, mut b) = (s.splat(0.0), s.splat(0.0));
    let mut i = 0;
    while i < x.len() {
        a = s.fma(load_tail(s, x, i), load_tail(s, y, i), a);
        b = s.fma(load_tail(s, x, i + LANES), load_tail(s, y, i + LANES), b);
        i += 2 * LANES;
    }
    s.sum(s.add(a, b))
}

/// e^x to about one unit in the last place; 0 below -87.3, the largest finite power above 88.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2, and a degree-6 polynomial for e^r (the coefficients of Cephes' `expf`).
#[inline(always)]
pub(super) fn exp<W: Vector>(s: W, x: W::V) -> W::V {
    let limit = s.splat(-87.336_54);
    let clamped = s.max(limit, s.min(s.splat(88.0), x));
    let n = s.round(s.mul(clamped, s.splat(core::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), clamped);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    p = s.fma(p, r, s.splat(1.398_2e-3));
    p = s.fma(p, r, s.splat(8.333_452e-3));
    p = s.fma(p, r, s.splat(4.166_579_6e-2));
    p = s.fma(p, r, s.splat(1.666_666_6e-1));
    p = s.fma(p, r, s.splat(0.5));
    p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    s.zero_below(x, limit, s.mul(p, s.pow2(n)))
}

/// `out = silu(gate) * up`, `silu(x) = x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu_mul<S: Simd>(s: S, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == out.len());
    let one = s.splat(1.0);
    for i in (0..gate.len()).step_by(LANES) {
        let g = load_tail(s, gate, i);
        let e = exp(s, s.sub(s.splat(0.0), g));
        let v = s.mul(s.div(g, s.add(one, e)), load_tail(s, up, i));
        store_tail(s, v, out, i);
    }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `out *= sigmoid(gate)`.
#[inline(always)]
pub(super) fn sigmoid_mul<S: Simd>(s: S, gate: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), out.len());
    for i in (0..gate.len()).step_by(LANES) {
        let v = s.mul(load_tail(s, out, i), sigmoid(s, load_tail(s, gate, i)));
        store_tail(s, v, out, i);
    }
}

/// GELU by its tanh approximation, `x/2 · (1 + tanh(√(2/π)·(x + 0.044715·x³)))`; as `(1 + tanh u) / 2 = sigmoid(2u)`, one
/// exponential does.
#[inline(always)]
pub(super) fn gelu_tanh<S: Simd>(s: S, x: &mut [f32]) {
    // 2·√(2/π)
    const FACTOR: f32 = 1.595_769;
    for i in (0..x.len()).step_by(LANES) {
        let v = load_tail(s, x, i);
        let cube = s.mul(s.mul(v, v), v);
        let u = s.mul(s.fma(cube, s.splat(0.044_715), v), s.splat(FACTOR));
        store_tail(s, s.mul(v, sigmoid(s, u)), x, i);
    }
}

/// `x = max(x, 0)² / 2`.
#[inline(always)]
pub(super) fn half_relu_squared<S: Simd>(s: S, x: &mut [f32]) {
    for i in (0..x.len()).step_by(LANES) {
        // A NaN in the second place comes through.
        let v = s.max(s.splat(0.0), load_tail(s, x, i));
        store_tail(s, s.mul(s.mul(v, v), s.splat(0.5)), x, i);
    }
}

/// `out += x · y`, fused.
#[inline(always)]
pub(super) fn add_product<S: Simd>(s: S, x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == y.len() && x.len() == out.len());
    for i in (0..x.len()).step_by(LANES) {
        let v = s.fma(load_tail(s, x, i), load_tail(s, y, i), load_tail(s, out, i));
        store_tail(s, v, out, i);
    }
}

/// `out += x`.
#[inline(always)]
pub(super) fn add<S: Simd>(s: S, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for i in (0..x.len()).step_by(LANES) {
        let v = s.add(load_tail(s, out, i), load_tail(s, x, i));
        store_tail(s, v, out, i);
    }
}

/// Rotates interleaved pairs: `(x[2i], x[2i+1])` by the angle whose cosine and sine are `cos[i]`, `sin[i]`.
///
/// Products and sums are rounded separately, as in the published implementations.
#[inline(always)]
pub(super) fn rope_interleaved<S: Simd>(_: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(x.len() == 2 * cos.len() && cos.len() == sin.len());
    for ((p, &c), &s) in x.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (p[0], p[1]);
        p[0] = a * c - b * s;
        p[1] = b * c + a * s;
    }
}

/// As [`rope_interleaved`], for the pairs `(x[i], x[i + n])` of a head of 2n values.
#[inline(always)]
pub(super) fn rope_halves<S: Simd>(s: S, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    assert!(x.len() == 2 * cos.len() && cos.len() == sin.len());
    let (low, high) = x.split_at_mut(cos.len());
    for i in (0..cos.len()).step_by(LANES) {
        let (c, d) = (load_tail(s, cos, i), load_tail(s, sin, i));
        let (a, b) = (load_tail(s, low, i), load_tail(s, high, i));
        store_tail(s, s.sub(s.mul(a, c), s.mul(b, d)), low, i);
        store_tail(s, s.add(s.mul(b, c), s.mul(a, d)), high, i);
    }
}

/// Largest magnitude of a block of 32, and NaN if anything in it is not finite.
#[inline(always)]
fn largest_magnitude<S: Simd>(s: S, v: [S::V; 4]) -> f32 {
    let m = s.max(s.max(s.abs(v[0]), s.abs(v[1])), s.max(s.abs(v[2]), s.abs(v[3])));
    // `max` may lose a NaN, and a lost NaN would be garbage text later; times zero, it stays one in any sum.
    let mut poison = s.splat(0.0);
    for v in v {
        poison = s.fma(v, s.splat(0.0), poison);
    }
    s.largest(m) + s.sum(poison)
}

/// Quantises activations to signed bytes, 32 values to a scale: `d = max|x| / 127`, `q = round(x / d)`, ties to even.
#[inline(always)]
pub(super) fn quantize_row<S: Simd>(s: S, x: &[f32], q: &mut [i8], scales: &mut [ByteScale]) {
    assert!(x.len().is_multiple_of(Q8_BLOCK) && q.len() == x.len() && scales.len() == x.len() / Q8_BLOCK);
    for ((x, q), scale) in x.chunks_exact(Q8_BLOCK).zip(q.chunks_exact_mut(Q8_BLOCK)).zip(scales) {
        let d = quantize_block(s, x, q);
        *scale = ByteScale::new(d, q);
    }
}

/// As [`quantize_row`], to 16-bit numbers up to ±[`WIDE_MAX`], whole and in two bytes.
#[inline(always)]
pub(super) fn quantize_row_wide<S: Simd>(
    s: S,
    x: &[f32],
    wide: &mut [i16],
    high: &mut [i8],
    low: &mut [i8],
    scales: &mut [WideScale],
) {
    assert!(x.len().is_multiple_of(Q8_BLOCK) && scales.len() == x.len() / Q8_BLOCK);
    assert!(wide.len() == x.len() && high.len() == x.len() && low.len() == x.len());
    for (b, (x, wide)) in x.chunks_exact(Q8_BLOCK).zip(wide.chunks_exact_mut(Q8_BLOCK)).enumerate() {
        let (d, rounded) = scale_block(s, x, f32::from(WIDE_MAX));
        let mut t = [0i16; LANES];
        for (v, wide) in rounded.into_iter().zip(wide.chunks_exact_mut(LANES)) {
            s.store_i16(v, &mut t);
            wide.copy_from_slice(&t);
        }
        let of = b * Q8_BLOCK..(b + 1) * Q8_BLOCK;
        let mut sum = 0;
        for ((&wide, high), low) in wide.iter().zip(&mut high[of.clone()]).zip(&mut low[of]) {
            // The largest is 127 · 128 + 63, so neither addition nor the high byte can overflow.
            let h = (wide + 64) >> 7;
            *high = h as i8;
            *low = (wide - 128 * h) as i8;
            sum += i32::from(wide);
        }
        scales[b] = WideScale { d, minus_128: -128 * sum };
    }
}

/// One block of 32 values to bytes; gives the scale.
#[inline(always)]
pub(super) fn quantize_block<S: Simd>(s: S, x: &[f32], q: &mut [i8]) -> f32 {
    let (scale, rounded) = scale_block(s, x, 127.0);
    let mut t = [0i8; LANES];
    for (v, q) in rounded.into_iter().zip(q.chunks_exact_mut(LANES)) {
        s.store_i8(v, &mut t);
        q.copy_from_slice(&t);
    }
    scale
}

/// The scale that maps the largest magnitude of a block to `limit`, and the block's values divided by it, rounded.
#[inline(always)]
fn scale_block<S: Simd>(s: S, x: &[f32], limit: f32) -> (f32, [S::V; 4]) {
    let mut v = [s.splat(0.0); 4];
    for (i, v) in v.iter_mut().enumerate() {
        *v = load_tail(s, x, i * LANES);
    }
    let d = largest_magnitude(s, v) / limit;
    // Below the smallest normal number the inverse would be infinite: such a block is zero.
    let inverse = s.splat(if d >= f32::MIN_POSITIVE { 1.0 / d } else { 0.0 });
    let (least, most) = (s.splat(-limit), s.splat(limit));
    for v in &mut v {
        // The product can exceed the limit by a rounding error.
        *v = s.max(least, s.min(most, s.round(s.mul(*v, inverse))));
    }
    (d, v)
}

/// One chain of sums per statistic of a new latent state, eight lanes each; updates `delta` and `state` in place.
///
/// `state` holds s_{k-1} and becomes s_k = `new`; `delta` holds Δ_{k-1} and becomes Δ_k = s_k − s_{k-1}.
#[inline(always)]
pub(super) fn latent_sums<S: Simd>(s: S, new: &[f32], state: &mut [f32], delta: &mut [f32]) -> LatentSums {
    assert!(new.len() == state.len() && new.len() == delta.len());
    let mut acc = [s.splat(0.0); 7];
    for i in (0..new.len()).step_by(LANES) {
        let (n, o, d) = (load_tail(s, new, i), load_tail(s, state, i), load_tail(s, delta, i));
        let step = s.sub(n, o);
        let change = s.sub(step, d);
        acc[0] = s.fma(n, n, acc[0]);
        acc[1] = s.fma(step, step, acc[1]);
        acc[2] = s.fma(change, change, acc[2]);
        acc[3] = s.fma(step, d, acc[3]);
        acc[4] = s.fma(d, d, acc[4]);
        acc[5] = s.fma(n, o, acc[5]);
        acc[6] = s.fma(o, o, acc[6]);
        store_tail(s, n, state, i);
        store_tail(s, step, delta, i);
    }
    let [state, step, change, steps, old_step, states, old_state] = acc;
    LatentSums {
        state: s.sum(state),
        step: s.sum(step),
        change: s.sum(change),
        step_dot: s.sum(steps),
        previous_step: s.sum(old_step),
        state_dot: s.sum(states),
        previous_state: s.sum(old_state),
    }
}
