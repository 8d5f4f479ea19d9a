//! Panels in plain Rust: the oracle.

use super::formats::Packed;
use super::wide::{Columns, GROUPS, Wide};
use crate::kernels::scalar::Scalar;
use half::f16;

const ROWS: usize = 8;

type Lanes = [f32; ROWS];
type Bytes = [[u8; 4]; ROWS];

#[inline(always)]
fn map(q: Bytes, f: impl Fn(u8) -> u8) -> Bytes {
    q.map(|q| q.map(&f))
}

/// Exact products of the groups of each lane with the activations at `a`.
#[inline(always)]
unsafe fn products(w: &[Bytes], a: *const i8, weight: impl Fn(u8) -> i32) -> [i32; ROWS] {
    let mut sums = [0; ROWS];
    for (g, q) in w.iter().enumerate() {
        for (sum, q) in sums.iter_mut().zip(q) {
            for (i, &q) in q.iter().enumerate() {
                // SAFETY: the caller promises four activations per group.
                *sum += weight(q) * i32::from(unsafe { *a.add(4 * g + i) });
            }
        }
    }
    sums
}

impl Wide for Scalar {
    const ROWS: usize = ROWS;
    const COLUMNS: usize = 4;
    type F = Lanes;
    type Q = Bytes;

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; ROWS]
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn store(self, v: Lanes, p: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Lanes>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> Lanes {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Lanes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn keep<P: Packed>(self, q: Bytes, p: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Bytes>().write_unaligned(q) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> Lanes {
        // SAFETY: as the caller promises.
        let bytes = unsafe { p.cast::<[[u8; 2]; ROWS]>().read_unaligned() };
        bytes.map(|b| f16::from_le_bytes(b).to_f32())
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> Lanes {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<[u8; ROWS]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> Lanes {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<[i8; ROWS]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> Bytes {
        // SAFETY: as the caller promises.
        unsafe { p.cast::<Bytes>().read_unaligned() }
    }
    #[inline(always)]
    fn low(self, q: Bytes) -> Bytes {
        map(q, |q| q & 15)
    }
    #[inline(always)]
    fn high(self, q: Bytes) -> Bytes {
        map(q, |q| q >> 4)
    }
    #[inline(always)]
    fn raise(self, mut q: Bytes, bits: Bytes, from: u32, mask: u8) -> Bytes {
        for (q, bits) in q.as_flattened_mut().iter_mut().zip(bits.as_flattened()) {
            *q |= (bits >> from & mask) << 4;
        }
        q
    }
    #[inline(always)]
    fn lookup(self, q: Bytes, table: &[i8; 16]) -> Bytes {
        map(q, |q| table[usize::from(q)].cast_unsigned())
    }
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[Bytes; GROUPS], a: &Columns, start: [i32; C]) -> [Lanes; C] {
        // SAFETY: as the caller promises.
        unsafe { self.dot_u5(w, a, start) }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[Bytes; GROUPS], a: &Columns, start: [i32; C]) -> [Lanes; C] {
        std::array::from_fn(|j| {
            // SAFETY: as the caller promises.
            unsafe { products(w, a.q(j), i32::from) }.map(|sum| (sum + start[j]) as f32)
        })
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[Bytes; GROUPS], a: &Columns) -> [[Lanes; 2]; C] {
        std::array::from_fn(|j| {
            std::array::from_fn(|half| {
                // SAFETY: as the caller promises.
                unsafe { products(&w[4 * half..4 * half + 4], a.q(j).add(16 * half), |q| i32::from(q) - 32) }
                    .map(|sum| sum as f32)
            })
        })
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[Bytes; GROUPS], a: &Columns) -> [Lanes; C] {
        std::array::from_fn(|j| {
            // SAFETY: as the caller promises.
            unsafe { products(w, a.q(j), |q| i32::from(q.cast_signed())) }.map(|sum| sum as f32)
        })
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[Bytes; GROUPS], a: &Columns) -> [Lanes; C] {
        std::array::from_fn(|j| {
            let mut sums = [0i32; ROWS];
            for (g, q) in w.iter().enumerate() {
                for (sum, q) in sums.iter_mut().zip(q) {
                    for (i, q) in q.iter().enumerate() {
                        // SAFETY: as the caller promises.
                        *sum += i32::from(q.cast_signed()) * i32::from(unsafe { *a.wide(j).add(4 * g + i) });
                    }
                }
            }
            sums.map(|sum| sum as f32)
        })
    }
}
