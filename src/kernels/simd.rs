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

use crate::float16::f16_to_f32;

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
    /// `a` in the lanes where `x < limit`, `b` in the others.
    #[inline(always)]
    fn pick(self, x: Self::V, limit: Self::V, a: Self::V, b: Self::V) -> Self::V {
        let (x, limit, a, mut out) = (lanes(self, x), lanes(self, limit), lanes(self, a), lanes(self, b));
        for (((x, limit), a), out) in x.iter().zip(limit).zip(a).zip(&mut out) {
            *out = if *x < limit { a } else { *out };
        }
        self.load(&out)
    }
    /// Lane `j` of vector `i` becomes lane `i` of vector `j`.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            self.store(v, row);
        }
        let mut out = v;
        for (j, out) in out.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (x, row) in column.iter_mut().zip(&rows) {
                *x = row[j];
            }
            *out = self.load(&column);
        }
        out
    }
    /// A little-endian half float in every lane.
    #[inline(always)]
    fn splat_f16(self, p: [u8; 2]) -> Self::V {
        self.splat(f16_to_f32(u16::from_le_bytes(p)))
    }
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

    /// Lane `i` is the [`sum`](Self::sum) of vector `i`, in the same order.
    #[inline(always)]
    fn sum8(self, v: [Self::V; LANES]) -> Self::V {
        let t = self.transpose(v);
        let even = self.add(self.add(t[0], t[4]), self.add(t[2], t[6]));
        self.add(even, self.add(self.add(t[1], t[5]), self.add(t[3], t[7])))
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

#[inline(always)]
fn lanes<S: Simd>(s: S, v: S::V) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    s.store(v, &mut out);
    out
}

/// Some number of f32 lanes that have nothing to do with each other.
///
/// Where every lane is a row, or a position, of its own, their number cannot show in a result. So an instruction set may
/// use all the lanes that it has. The methods are those of [`Simd`]; every [`Simd`] is a vector of eight lanes. A value of an
/// implementing type is again a proof that the running CPU has the instructions.
pub(super) trait Vector: Copy {
    /// The lanes.
    type V: Copy;
    /// The lanes in memory.
    type Array: Copy;
    /// Number of lanes, a multiple of [`LANES`].
    const COUNT: usize;

    /// Memory as vectors, without what remains at its end.
    fn arrays(x: &[f32]) -> &[Self::Array];
    fn arrays_mut(x: &mut [f32]) -> &mut [Self::Array];
    fn splat(self, x: f32) -> Self::V;
    fn load(self, p: &Self::Array) -> Self::V;
    fn store(self, v: Self::V, p: &mut Self::Array);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    fn round(self, a: Self::V) -> Self::V;
    fn pow2(self, n: Self::V) -> Self::V;
    fn zero_below(self, x: Self::V, limit: Self::V, v: Self::V) -> Self::V;
    fn pick(self, x: Self::V, limit: Self::V, a: Self::V, b: Self::V) -> Self::V;
}

macro_rules! forward {
    ($($name:ident($($arg:ident),+);)*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: Self::V),+) -> Self::V {
            Simd::$name(self, $($arg),+)
        }
    )* };
}

impl<S: Simd> Vector for S {
    type V = S::V;
    type Array = [f32; LANES];
    const COUNT: usize = LANES;

    #[inline(always)]
    fn arrays(x: &[f32]) -> &[Self::Array] {
        x.as_chunks().0
    }
    #[inline(always)]
    fn arrays_mut(x: &mut [f32]) -> &mut [Self::Array] {
        x.as_chunks_mut().0
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        Simd::splat(self, x)
    }
    #[inline(always)]
    fn load(self, p: &Self::Array) -> Self::V {
        Simd::load(self, p)
    }
    #[inline(always)]
    fn store(self, v: Self::V, p: &mut Self::Array) {
        Simd::store(self, v, p);
    }
    forward! {
        add(a, b);
        sub(a, b);
        mul(a, b);
        div(a, b);
        fma(a, b, c);
        max(a, b);
        min(a, b);
        round(a);
        pow2(n);
        zero_below(x, limit, v);
        pick(x, limit, a, b);
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
