//! The block formats as matrix kernels read them: eight rows side by side, 32 weights of each at a time.
//!
//! The layouts are written down beside the quantisers, in [`crate::quant`].

use super::simd::{LANES, Simd};
use super::{Acts, Q8_BLOCK};
use crate::gguf::TensorType;
use crate::quant::IQ4_VALUES;

/// A block format.
///
/// Blocks of 256 are eight sub-blocks of 32; blocks of 32 are one. A sub-block adds a fixed sequence of operations to the sum
/// of its row.
pub(super) trait Blocks {
    /// The type in a file.
    const TYPE: TensorType;
    /// Bytes of one block.
    const BYTES: usize = Self::TYPE.block_bytes();
    /// Sub-blocks in a block.
    const SUBS: usize = Self::TYPE.block_len() / Q8_BLOCK;
    /// Scales of whole blocks.
    type Head<S: Simd>: Copy;

    /// Reads the scales of the block behind each pointer.
    ///
    /// # Safety
    /// `BYTES` bytes behind every pointer must be readable.
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> Self::Head<S>;
    /// Unpacks sub-block `j` of the block behind each pointer.
    ///
    /// # Safety
    /// `BYTES` bytes behind every pointer must be readable, and `j` must be below `SUBS`.
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &Self::Head<S>, j: usize) -> Sub<S>;
    /// Adds the products with block `at` of 32 activations to `acc`.
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V;
}

/// Eight rows' weights of one sub-block.
#[derive(Clone, Copy)]
pub(super) struct Sub<S: Simd> {
    q: S::Block,
    scale: S::V,
    /// A format's second number per sub-block, if it has one.
    other: S::V,
}

#[inline(always)]
fn behind(p: [*const u8; LANES], bytes: usize) -> [*const u8; LANES] {
    let mut out = p;
    for p in &mut out {
        *p = p.wrapping_add(bytes);
    }
    out
}

/// Block `at` of quantised activations.
#[inline(always)]
fn block<T>(values: &[T], at: usize) -> &[T; Q8_BLOCK] {
    match values[at * Q8_BLOCK..].first_chunk() {
        Some(block) => block,
        None => unreachable!("`fits` was checked"),
    }
}

/// `acc + (scale · d) · isum`, the second product and the sum fused: for weights `scale · q`.
#[inline(always)]
fn add_scaled<S: Simd>(s: S, acc: S::V, scale: S::V, d: f32, isum: S::V) -> S::V {
    s.fma(s.mul(scale, s.splat(d)), isum, acc)
}

/// As [`add_scaled`], for weights `scale · (q - zero)` with `q` up to five bits.
#[inline(always)]
fn add_around<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V, zero: i32) -> S::V {
    let scale = &acts.scales[at];
    // Σ (q − zero)·a = Σ q·a − zero·Σ a; both terms are integers below 2^24, so the difference is exact.
    let products = s.dot_u5(&w.q, block(acts.q, at));
    add_scaled(s, acc, w.scale, scale.d, s.add(products, s.splat((zero / 8 * scale.minus_8) as f32)))
}

/// For weights `scale · q + other` with `q` up to five bits: two fused steps, the second with the sum of the activations.
#[inline(always)]
fn add_shifted<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
    let scale = &acts.scales[at];
    let acc = s.fma(s.mul(w.scale, s.splat(scale.d)), s.dot_u5(&w.q, block(acts.q, at)), acc);
    s.fma(w.other, s.splat(scale.d_sum), acc)
}

/// q8_0: half scale, 32 signed bytes. It multiplies 16-bit activations: with 8-bit ones their rounding would be as large an
/// error as the weights', fed back by the loop, and on AVX2 they would not be any faster.
pub(super) struct Q8_0;

impl Blocks for Q8_0 {
    const TYPE: TensorType = TensorType::Q8_0;
    type Head<S: Simd> = S::V;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> S::V {
        // SAFETY: the caller promises a block, which begins with its scale.
        unsafe { s.gather_f16(p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &S::V, _: usize) -> Sub<S> {
        // SAFETY: the caller promises 34 bytes, 32 of them behind the scale.
        Sub { q: unsafe { s.block_i8(behind(p, 2)) }, scale: *head, other: *head }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_scaled(s, acc, w.scale, acts.wide_scales[at].d, s.dot_i8(&w.q, block(acts.wide, at)))
    }
}

/// q4_0: half scale, 32 nibbles that stand for -8..=7.
pub(super) struct Q4_0;

impl Blocks for Q4_0 {
    const TYPE: TensorType = TensorType::Q4_0;
    type Head<S: Simd> = S::V;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> S::V {
        // SAFETY: the caller promises a block, which begins with its scale.
        unsafe { s.gather_f16(p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &S::V, _: usize) -> Sub<S> {
        // SAFETY: the caller promises 18 bytes, 16 of them behind the scale.
        Sub { q: unsafe { s.block_u4(behind(p, 2)) }, scale: *head, other: *head }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_around(s, w, acts, at, acc, 8)
    }
}

/// q5_0: half scale, 32 fifth bits, 32 nibbles; together they stand for -16..=15.
pub(super) struct Q5_0;

impl Blocks for Q5_0 {
    const TYPE: TensorType = TensorType::Q5_0;
    type Head<S: Simd> = S::V;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> S::V {
        // SAFETY: the caller promises a block, which begins with its scale.
        unsafe { s.gather_f16(p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &S::V, _: usize) -> Sub<S> {
        // SAFETY: the caller promises 22 bytes: 2 of scale, 4 of fifth bits, 16 of nibbles.
        let q = unsafe { s.raise_bits(s.block_u4(behind(p, 6)), behind(p, 2)) };
        Sub { q, scale: *head, other: *head }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_around(s, w, acts, at, acc, 16)
    }
}

/// q4_1: half scale, half minimum, 32 nibbles.
pub(super) struct Q4_1;

impl Blocks for Q4_1 {
    const TYPE: TensorType = TensorType::Q4_1;
    type Head<S: Simd> = ();
    #[inline(always)]
    unsafe fn head<S: Simd>(_: S, _: [*const u8; LANES]) {}
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], _: &(), _: usize) -> Sub<S> {
        // SAFETY: the caller promises 20 bytes: 2 of scale, 2 of minimum, 16 of nibbles.
        let (head, q) = unsafe { (s.words(p)[0], s.block_u4(behind(p, 4))) };
        Sub { q, scale: s.half(head, 0), other: s.half(head, 1) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_shifted(s, w, acts, at, acc)
    }
}

/// q5_1: half scale, half minimum, 32 fifth bits, 32 nibbles.
pub(super) struct Q5_1;

impl Blocks for Q5_1 {
    const TYPE: TensorType = TensorType::Q5_1;
    type Head<S: Simd> = ();
    #[inline(always)]
    unsafe fn head<S: Simd>(_: S, _: [*const u8; LANES]) {}
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], _: &(), _: usize) -> Sub<S> {
        // SAFETY: the caller promises 24 bytes: 2 of scale, 2 of minimum, 4 of fifth bits, 16 of nibbles.
        let (head, q) = unsafe { (s.words(p)[0], s.raise_bits(s.block_u4(behind(p, 8)), behind(p, 4))) };
        Sub { q, scale: s.half(head, 0), other: s.half(head, 1) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_shifted(s, w, acts, at, acc)
    }
}

/// The first 16 bytes of q4_K and q5_K: two halves, and six bits of scale and minimum for each of eight sub-blocks.
#[derive(Clone, Copy)]
pub(super) struct KHead<S: Simd> {
    packed: [S::W; 3],
    scale: S::V,
    minus_min: S::V,
}

impl<S: Simd> KHead<S> {
    /// # Safety
    /// 16 bytes behind every pointer must be readable.
    #[inline(always)]
    unsafe fn read(s: S, p: [*const u8; LANES]) -> Self {
        // SAFETY: as the caller promises.
        let [halves, a, b, c] = unsafe { s.words(p) };
        KHead { packed: [a, b, c], scale: s.half(halves, 0), minus_min: s.sub(s.splat(0.0), s.half(halves, 1)) }
    }

    /// The scale of sub-block `j` and what is added to its weights.
    #[inline(always)]
    fn sub(&self, s: S, j: usize) -> (S::V, S::V) {
        let [a, b, c] = self.packed;
        let at = 8 * (j % 4) as u32;
        // The last four sub-blocks have their lower four bits in `c`, their upper two above the first four's six.
        let (scale, min) = if j < 4 {
            (s.field(a, at, 6), s.field(b, at, 6))
        } else {
            let up = s.splat(16.0);
            (
                s.fma(up, s.field(a, at + 6, 2), s.field(c, at, 4)),
                s.fma(up, s.field(b, at + 6, 2), s.field(c, at + 4, 4)),
            )
        };
        (s.mul(self.scale, scale), s.mul(self.minus_min, min))
    }
}

/// q4_K: [`KHead`], then nibbles, 32 bytes to two sub-blocks.
pub(super) struct Q4K;

impl Blocks for Q4K {
    const TYPE: TensorType = TensorType::Q4_K;
    type Head<S: Simd> = KHead<S>;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> KHead<S> {
        // SAFETY: the caller promises a block.
        unsafe { KHead::read(s, p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &KHead<S>, j: usize) -> Sub<S> {
        let (scale, other) = head.sub(s, j);
        // SAFETY: the caller promises 144 bytes, of which the last 128 are the nibbles.
        let q = unsafe { s.block_nibbles(behind(p, 16 + j / 2 * 32), j as u32 % 2 * 4) };
        Sub { q, scale, other }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_shifted(s, w, acts, at, acc)
    }
}

/// q5_K: [`KHead`], then 32 bytes with a fifth bit for each sub-block, then nibbles as in q4_K.
pub(super) struct Q5K;

impl Blocks for Q5K {
    const TYPE: TensorType = TensorType::Q5_K;
    type Head<S: Simd> = KHead<S>;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> KHead<S> {
        // SAFETY: the caller promises a block.
        unsafe { KHead::read(s, p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &KHead<S>, j: usize) -> Sub<S> {
        let (scale, other) = head.sub(s, j);
        // SAFETY: the caller promises 176 bytes: behind the first 16 are 32 of fifth bits and 128 of nibbles.
        let q = unsafe {
            let low = s.block_nibbles(behind(p, 48 + j / 2 * 32), j as u32 % 2 * 4);
            s.raise(low, behind(p, 16), j as u32, 1)
        };
        Sub { q, scale, other }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_shifted(s, w, acts, at, acc)
    }
}

/// q6_K: 128 bytes of nibbles, 64 with two more bits, a signed byte of scale for sixteen weights each, half scale.
///
/// It multiplies 8-bit activations. Measured on the rows of `tests/data/quant`, the root mean square error of a product grows
/// by them, over 16-bit ones, by 5% for normal and 7% for Laplace activations, and by 20% where one activation in a hundred
/// is twenty times as large; for q8_0 the same numbers are 41%, 60% and 140%. Sixteen bits would double the multiplications.
pub(super) struct Q6K;

/// Scales of q6_K: sixteen bytes, and the half.
#[derive(Clone, Copy)]
pub(super) struct Q6Head<S: Simd> {
    bytes: [S::W; 4],
    scale: S::V,
}

impl Blocks for Q6K {
    const TYPE: TensorType = TensorType::Q6_K;
    type Head<S: Simd> = Q6Head<S>;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> Q6Head<S> {
        // SAFETY: the caller promises 210 bytes, of which the last 18 are the scales.
        unsafe { Q6Head { bytes: s.words(behind(p, 192)), scale: s.gather_f16(behind(p, 208)) } }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &Q6Head<S>, j: usize) -> Sub<S> {
        let (part, run) = (j / 4, j % 4);
        // SAFETY: the caller promises 210 bytes: 128 of nibbles, then 64 with the other bits.
        let q = unsafe {
            let low = s.block_nibbles(behind(p, 64 * part + run % 2 * 32), run as u32 / 2 * 4);
            s.raise(low, behind(p, 128 + 32 * part), 2 * run as u32, 3)
        };
        let (bytes, at) = (head.bytes[j / 2], j as u32 % 2 * 2);
        let (first, second) = (s.signed_byte(bytes, at), s.signed_byte(bytes, at + 1));
        Sub { q, scale: s.mul(head.scale, first), other: s.mul(head.scale, second) }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        let d = s.splat(acts.scales[at].d);
        let [first, second] = s.dot_u6(&w.q, block(acts.q, at));
        s.fma(s.mul(w.other, d), second, s.fma(s.mul(w.scale, d), first, acc))
    }
}

/// iq4_nl: half scale, 32 nibbles that stand for [`IQ4_VALUES`].
pub(super) struct Iq4Nl;

impl Blocks for Iq4Nl {
    const TYPE: TensorType = TensorType::IQ4_NL;
    type Head<S: Simd> = S::V;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> S::V {
        // SAFETY: the caller promises a block, which begins with its scale.
        unsafe { s.gather_f16(p) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &S::V, _: usize) -> Sub<S> {
        // SAFETY: the caller promises 18 bytes, 16 of them behind the scale.
        let q = s.lookup(unsafe { s.block_u4(behind(p, 2)) }, &IQ4_VALUES);
        Sub { q, scale: *head, other: *head }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_scaled(s, acc, w.scale, acts.scales[at].d, s.dot_s8(&w.q, block(acts.q, at)))
    }
}

/// iq4_xs: half scale, six bits of scale for each of eight sub-blocks, then their nibbles as in iq4_nl.
pub(super) struct Iq4Xs;

/// Scales of iq4_xs: the half and the upper bits, the lower bits, and the half once more.
#[derive(Clone, Copy)]
pub(super) struct Iq4Head<S: Simd> {
    high: S::W,
    low: S::W,
    scale: S::V,
}

impl Blocks for Iq4Xs {
    const TYPE: TensorType = TensorType::IQ4_XS;
    type Head<S: Simd> = Iq4Head<S>;
    #[inline(always)]
    unsafe fn head<S: Simd>(s: S, p: [*const u8; LANES]) -> Iq4Head<S> {
        // SAFETY: the caller promises 136 bytes.
        let [high, low, ..] = unsafe { s.words(p) };
        Iq4Head { high, low, scale: s.half(high, 0) }
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(s: S, p: [*const u8; LANES], head: &Iq4Head<S>, j: usize) -> Sub<S> {
        // SAFETY: the caller promises 136 bytes, of which the last 128 are the nibbles, sixteen to a sub-block.
        let q = s.lookup(unsafe { s.block_u4(behind(p, 8 + 16 * j)) }, &IQ4_VALUES);
        let (high, low) = (s.field(head.high, 16 + 2 * j as u32, 2), s.field(head.low, 4 * j as u32, 4));
        let scale = s.mul(head.scale, s.fma(s.splat(16.0), high, s.sub(low, s.splat(32.0))));
        Sub { q, scale, other: scale }
    }
    #[inline(always)]
    fn add<S: Simd>(s: S, w: &Sub<S>, acts: &Acts<'_>, at: usize, acc: S::V) -> S::V {
        add_scaled(s, acc, w.scale, acts.scales[at].d, s.dot_s8(&w.q, block(acts.q, at)))
    }
}
