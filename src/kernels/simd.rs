//! The eight lanes every kernel is written in.
//!
//! An instruction set is a token type that implements [`Simd`]; the algorithms in [`super::generic`],
//! [`super::matmul`] and [`super::attention`] are written once over it. Every method is one IEEE operation per lane
//! (or an exact integer sum), so an algorithm gives the same bits on every instruction set by construction: there is
//! nothing left that an implementation could round differently.
//!
//! All methods must be inlined into an entry function that has the instruction set's features enabled, hence
//! `#[inline(always)]` everywhere, and no closures in the algorithms (a closure is a function of its own and does not
//! inherit the features).

/// Number of f32 lanes.
pub(super) const LANES: usize = 8;

/// Eight f32 lanes, and exact products of quantised blocks.
///
/// A value of an implementing type is a proof that the running CPU has the instructions, so the methods are safe.
pub(super) trait Simd: Copy {
    /// Eight f32 lanes.
    type V: Copy;
    /// Eight lanes of 32 bits.
    type W: Copy;
    /// One block of 32 weights from each of eight rows, unpacked to bytes.
    type Block: Copy;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, p: &[f32; LANES]) -> Self::V;
    fn store(self, v: Self::V, p: &mut [f32; LANES]);
    /// Eight little-endian IEEE half floats.
    fn load_f16(self, p: &[u8; 16]) -> Self::V;
    /// Eight little-endian bfloat16 values.
    fn load_bf16(self, p: &[u8; 16]) -> Self::V;
    /// Eight signed bytes, converted exactly.
    fn load_i8(self, p: &[u8; 8]) -> Self::V;
    /// Rounds to half precision, ties to even.
    fn store_f16(self, v: Self::V, p: &mut [u8; 16]);

    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `if a > b { a } else { b }`: a NaN in `b` comes through, one in `a` does not.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `if a < b { a } else { b }`: a NaN in `b` comes through, one in `a` does not.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn abs(self, a: Self::V) -> Self::V;
    /// Rounds to an integral value, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// 2 to the power of integral lanes in -126..=127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// `v`, with zero in the lanes where `x < limit`.
    fn zero_below(self, x: Self::V, limit: Self::V, v: Self::V) -> Self::V;
    /// Stores integral lanes in -128..=127 as bytes. Anything else stores an unspecified byte.
    fn store_i8(self, v: Self::V, p: &mut [i8; LANES]);
    /// Stores integral lanes in -32768..=32767. Anything else stores an unspecified number.
    fn store_i16(self, v: Self::V, p: &mut [i16; LANES]);

    /// Asks for the cache line at an address, which may be anywhere: a hint, never a fault.
    #[inline(always)]
    fn prefetch(self, _: *const u8) {}

    /// Eight half floats, one behind each pointer.
    ///
    /// # Safety
    /// Two bytes behind every pointer must be readable.
    unsafe fn gather_f16(self, p: [*const u8; LANES]) -> Self::V;
    /// The 16 bytes behind each pointer as four little-endian words: lane `r` of word `i` is the `i`-th of pointer `r`.
    ///
    /// # Safety
    /// 16 bytes behind every pointer must be readable.
    unsafe fn words(self, p: [*const u8; LANES]) -> [Self::W; 4];
    /// `bits` (1 to 23) bits of every lane, from bit `from` on, as a number.
    fn field(self, w: Self::W, from: u32, bits: u32) -> Self::V;
    /// Byte `i` of every lane as a signed number.
    fn signed_byte(self, w: Self::W, i: u32) -> Self::V;
    /// Half float `i` (0 or 1) of every lane.
    fn half(self, w: Self::W, i: u32) -> Self::V;

    /// Eight blocks of 32 signed bytes.
    ///
    /// # Safety
    /// 32 bytes behind every pointer must be readable.
    unsafe fn block_i8(self, p: [*const u8; LANES]) -> Self::Block;
    /// Eight blocks of 32 unsigned nibbles: byte `i` holds element `i` low and element `i + 16` high.
    ///
    /// # Safety
    /// 16 bytes behind every pointer must be readable.
    unsafe fn block_u4(self, p: [*const u8; LANES]) -> Self::Block;
    /// Eight blocks of 32 unsigned nibbles: element `i` is in byte `i`, `shift` (0 or 4) bits up.
    ///
    /// # Safety
    /// 32 bytes behind every pointer must be readable.
    unsafe fn block_nibbles(self, p: [*const u8; LANES], shift: u32) -> Self::Block;
    /// Sets bits 4 and up of nibbles: element `i` gets those of `mask` (1 or 3) that stand in byte `i`, `shift` (at most 7)
    /// bits up.
    ///
    /// # Safety
    /// 32 bytes behind every pointer must be readable.
    unsafe fn raise(self, w: Self::Block, p: [*const u8; LANES], shift: u32, mask: u8) -> Self::Block;
    /// Sets bit 4 of nibbles: element `i` gets bit `i` of four little-endian bytes.
    ///
    /// # Safety
    /// Four bytes behind every pointer must be readable.
    unsafe fn raise_bits(self, w: Self::Block, p: [*const u8; LANES]) -> Self::Block;
    /// What nibbles stand for in a table.
    fn lookup(self, w: Self::Block, table: &[i8; 16]) -> Self::Block;

    /// Per row, the exact sum of products of signed weights and activations in ±[`WIDE_MAX`](super::WIDE_MAX), rounded once
    /// to f32.
    fn dot_i8(self, w: &Self::Block, a: &[i16; 32]) -> Self::V;
    /// Per row, the exact sum of products of weights in 0..=31 and activations in -127..=127.
    fn dot_u5(self, w: &Self::Block, a: &[i8; 32]) -> Self::V;
    /// Per row, the exact sum of products of weights in -127..=127 and activations in -127..=127.
    fn dot_s8(self, w: &Self::Block, a: &[i8; 32]) -> Self::V;
    /// Per row, the exact sums of products of weights in 0..=63, less 32, and activations in -127..=127: that of the first
    /// sixteen and that of the others.
    fn dot_u6(self, w: &Self::Block, a: &[i8; 32]) -> [Self::V; 2];

    /// Sum of the lanes: `i` with `i + 4`, then `i + 2`, then `i + 1`.
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut l = [0.0; LANES];
        self.store(v, &mut l);
        let m = [l[0] + l[4], l[1] + l[5], l[2] + l[6], l[3] + l[7]];
        (m[0] + m[2]) + (m[1] + m[3])
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        let mut l = [0.0; LANES];
        self.store(v, &mut l);
        let mut m = l[0];
        for &x in &l[1..] {
            m = if m > x { m } else { x };
        }
        m
    }
}

/// The eight values at `x[i..]`, with zeros behind the end of `x`.
#[inline(always)]
pub(super) fn load_tail<S: Simd>(s: S, x: &[f32], i: usize) -> S::V {
    match x.get(i..i + LANES).and_then(|p| p.try_into().ok()) {
        Some(p) => s.load(p),
        None => {
            let mut t = [0.0; LANES];
            if let Some(rest) = x.get(i..) {
                t[..rest.len()].copy_from_slice(rest);
            }
            s.load(&t)
        }
    }
}

/// Stores lanes to `x[i..]`, dropping those behind the end of `x`.
#[inline(always)]
pub(super) fn store_tail<S: Simd>(s: S, v: S::V, x: &mut [f32], i: usize) {
    let end = (i + LANES).min(x.len());
    if end == i + LANES {
        if let Ok(p) = (&mut x[i..end]).try_into() {
            s.store(v, p);
        }
    } else {
        let mut t = [0.0; LANES];
        s.store(v, &mut t);
        x[i..end].copy_from_slice(&t[..end - i]);
    }
}
