//! Plain Rust, on every CPU. It is the oracle that the other instruction sets are tested against, bit for bit.

use super::simd::{LANES, Simd};
use half::{bf16, f16};

/// The instructions that every CPU has.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

macro_rules! lanes {
    ($i:ident => $e:expr) => {{
        let mut out = [0.0f32; LANES];
        for ($i, o) in out.iter_mut().enumerate() {
            *o = $e;
        }
        out
    }};
}

#[inline(always)]
fn half_at(p: &[u8; 16], i: usize) -> u16 {
    u16::from_le_bytes([p[2 * i], p[2 * i + 1]])
}

impl Simd for Scalar {
    type V = [f32; LANES];
    type W = [u32; LANES];
    type Block = [[i8; 32]; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, p: &[f32; LANES]) -> Self::V {
        *p
    }
    #[inline(always)]
    fn store(self, v: Self::V, p: &mut [f32; LANES]) {
        *p = v;
    }
    #[inline(always)]
    fn load_f16(self, p: &[u8; 16]) -> Self::V {
        lanes!(i => f16::from_bits(half_at(p, i)).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, p: &[u8; 16]) -> Self::V {
        lanes!(i => bf16::from_bits(half_at(p, i)).to_f32())
    }
    #[inline(always)]
    fn load_i8(self, p: &[u8; 8]) -> Self::V {
        lanes!(i => f32::from(p[i].cast_signed()))
    }
    #[inline(always)]
    fn store_f16(self, v: Self::V, p: &mut [u8; 16]) {
        for (o, x) in p.chunks_exact_mut(2).zip(v) {
            o.copy_from_slice(&f16::from_f32(x).to_bits().to_le_bytes());
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes!(i => a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn abs(self, a: Self::V) -> Self::V {
        lanes!(i => a[i].abs())
    }
    #[inline(always)]
    fn round(self, a: Self::V) -> Self::V {
        lanes!(i => a[i].round_ties_even())
    }
    #[inline(always)]
    fn pow2(self, n: Self::V) -> Self::V {
        lanes!(i => f32::from_bits(((n[i] as i32).wrapping_add(127) as u32) << 23))
    }
    #[inline(always)]
    fn zero_below(self, x: Self::V, limit: Self::V, v: Self::V) -> Self::V {
        lanes!(i => if x[i] < limit[i] { 0.0 } else { v[i] })
    }
    #[inline(always)]
    fn store_i8(self, v: Self::V, p: &mut [i8; LANES]) {
        for (o, x) in p.iter_mut().zip(v) {
            *o = x as i8;
        }
    }
    #[inline(always)]
    fn store_i16(self, v: Self::V, p: &mut [i16; LANES]) {
        for (o, x) in p.iter_mut().zip(v) {
            *o = x as i16;
        }
    }
    #[inline(always)]
    unsafe fn gather_f16(self, p: [*const u8; LANES]) -> Self::V {
        lanes!(i => {
            // SAFETY: the caller promises two readable bytes behind every pointer.
            let b = unsafe { p[i].cast::<[u8; 2]>().read() };
            f16::from_bits(u16::from_le_bytes(b)).to_f32()
        })
    }
    #[inline(always)]
    unsafe fn block_i8(self, p: [*const u8; LANES]) -> Self::Block {
        let mut out = [[0i8; 32]; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the caller promises 32 readable bytes behind every pointer; i8 has no alignment or invalid values.
            *o = unsafe { p.cast::<[i8; 32]>().read() };
        }
        out
    }
    #[inline(always)]
    unsafe fn block_u4(self, p: [*const u8; LANES]) -> Self::Block {
        let mut out = [[0i8; 32]; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the caller promises 16 readable bytes behind every pointer.
            let b = unsafe { p.cast::<[u8; 16]>().read() };
            for (i, b) in b.into_iter().enumerate() {
                o[i] = (b & 15).cast_signed();
                o[i + 16] = (b >> 4).cast_signed();
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn words(self, p: [*const u8; LANES]) -> [Self::W; 4] {
        let mut out = [[0; LANES]; 4];
        for (r, p) in p.into_iter().enumerate() {
            // SAFETY: the caller promises 16 readable bytes behind every pointer.
            let row = unsafe { p.cast::<[[u8; 4]; 4]>().read() };
            for (out, word) in out.iter_mut().zip(row) {
                out[r] = u32::from_le_bytes(word);
            }
        }
        out
    }
    #[inline(always)]
    fn field(self, w: Self::W, from: u32, bits: u32) -> Self::V {
        lanes!(i => (w[i] >> from & ((1 << bits) - 1)) as f32)
    }
    #[inline(always)]
    fn signed_byte(self, w: Self::W, i: u32) -> Self::V {
        lanes!(r => f32::from(w[r].to_le_bytes()[i as usize].cast_signed()))
    }
    #[inline(always)]
    fn half(self, w: Self::W, i: u32) -> Self::V {
        lanes!(r => f16::from_bits((w[r] >> (16 * i)) as u16).to_f32())
    }
    #[inline(always)]
    unsafe fn block_nibbles(self, p: [*const u8; LANES], shift: u32) -> Self::Block {
        // SAFETY: the caller promises 32 readable bytes behind every pointer.
        unsafe { self.block_i8(p) }.map(|row| row.map(|b| b >> shift & 15))
    }
    #[inline(always)]
    unsafe fn raise(self, mut w: Self::Block, p: [*const u8; LANES], shift: u32, mask: u8) -> Self::Block {
        // SAFETY: the caller promises 32 readable bytes behind every pointer.
        let high = unsafe { self.block_i8(p) };
        for (w, high) in w.iter_mut().flatten().zip(high.into_iter().flatten()) {
            *w |= (high >> shift & mask.cast_signed()) << 4;
        }
        w
    }
    #[inline(always)]
    unsafe fn raise_bits(self, mut w: Self::Block, p: [*const u8; LANES]) -> Self::Block {
        for (w, p) in w.iter_mut().zip(p) {
            // SAFETY: the caller promises four readable bytes behind every pointer.
            let bits = u32::from_le_bytes(unsafe { p.cast::<[u8; 4]>().read() });
            for (i, w) in w.iter_mut().enumerate() {
                *w |= ((bits >> i & 1) as i8) << 4;
            }
        }
        w
    }
    #[inline(always)]
    fn lookup(self, w: Self::Block, table: &[i8; 16]) -> Self::Block {
        w.map(|row| row.map(|q| table[(q & 15) as usize]))
    }
    #[inline(always)]
    fn dot_i8(self, w: &Self::Block, a: &[i16; 32]) -> Self::V {
        lanes!(i => w[i].iter().zip(a).map(|(w, a)| i32::from(*w) * i32::from(*a)).sum::<i32>() as f32)
    }
    #[inline(always)]
    fn dot_u5(self, w: &Self::Block, a: &[i8; 32]) -> Self::V {
        lanes!(i => products(&w[i], a, 0))
    }
    #[inline(always)]
    fn dot_s8(self, w: &Self::Block, a: &[i8; 32]) -> Self::V {
        lanes!(i => products(&w[i], a, 0))
    }
    #[inline(always)]
    fn dot_u6(self, w: &Self::Block, a: &[i8; 32]) -> [Self::V; 2] {
        [lanes!(i => products(&w[i][..16], &a[..16], 32)), lanes!(i => products(&w[i][16..], &a[16..], 32))]
    }
}

/// The sum of products of weights, less `zero`, and activations.
#[inline(always)]
fn products(w: &[i8], a: &[i8], zero: i32) -> f32 {
    w.iter().zip(a).map(|(w, a)| (i32::from(*w) - zero) * i32::from(*a)).sum::<i32>() as f32
}

const ISA: super::Isa = super::Isa::Scalar;
super::stamp::stamp!(Scalar, crate::kernels::scalar::Scalar, Scalar);
