//! Panels of sixteen rows in 512-bit registers: AVX-512 with VNNI, and with AMX for many rows of activations.

use super::amx;
use super::formats::{Kind, Packed};
use super::wide::{Columns, GROUPS, Wide};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX-512 F, BW, VL and VNNI, and AMX for bytes where `AMX` says so.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Zmm<const AMX: bool>(());

/// The token for a table of kernels, which is handed out only where the CPU has the instructions.
pub(in crate::kernels) const AVX512_VNNI: Zmm<false> = Zmm(());
/// As [`AVX512_VNNI`], where it has AMX too and the system lets the process use it.
pub(in crate::kernels) const AMX_INT8: Zmm<true> = Zmm(());

/// What is taken off weights that count from zero.
const fn zero<P: Packed>() -> i8 {
    match P::KIND {
        Kind::Around(times) => 8 * times as i8,
        Kind::Halves => 32,
        Kind::Shifted | Kind::Signed | Kind::Wide => 0,
    }
}

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(a: *const i8, g: usize) -> __m512i {
    // SAFETY: the caller promises 32 bytes, and AVX-512.
    unsafe { _mm512_set1_epi32(a.cast::<i32>().add(g).read_unaligned()) }
}

/// Products of some groups from `first` on, added to `start`. Where few rows of activations are at work there are two chains:
/// an instruction waits for the one before it five cycles long.
#[inline(always)]
unsafe fn chains<const N: usize, const C: usize>(
    w: &[__m512i; GROUPS],
    a: *const i8,
    first: usize,
    start: __m512i,
) -> __m512i {
    // SAFETY: the caller promises VNNI and 32 bytes.
    unsafe {
        if C >= 4 {
            let mut sum = start;
            for g in first..first + N {
                sum = _mm512_dpbusd_epi32(sum, w[g], four(a, g));
            }
            return sum;
        }
        let mut sums = [start, _mm512_setzero_si512()];
        for g in first..first + N {
            sums[g % 2] = _mm512_dpbusd_epi32(sums[g % 2], w[g], four(a, g));
        }
        _mm512_add_epi32(sums[0], sums[1])
    }
}

impl<const AMX: bool> Wide for Zmm<AMX> {
    const ROWS: usize = 16;
    const COLUMNS: usize = 8;
    const MANY: usize = if AMX { amx::ROWS } else { 0 };
    type F = __m512;
    type Q = __m512i;

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch has no effect that a program could observe, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(self, v: __m512, p: *mut f32) {
        // SAFETY: the token proves AVX-512; the caller promises room.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> __m512 {
        // SAFETY: the token proves AVX-512; the caller promises the bytes.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn keep<P: Packed>(self, q: __m512i, p: *mut u8) {
        // SAFETY: the token proves AVX-512 BW; the caller promises room.
        unsafe {
            let q = if AMX { _mm512_sub_epi8(q, _mm512_set1_epi8(zero::<P>())) } else { q };
            _mm512_storeu_si512(p.cast(), q);
        }
    }
    #[inline(always)]
    fn begin_many<P: Packed>(self) {
        if AMX {
            // SAFETY: the token proves AMX.
            unsafe { amx::begin(P::KIND) };
        }
    }
    #[inline(always)]
    fn end_many(self) {
        if AMX {
            // SAFETY: the token proves AMX.
            unsafe { amx::end() };
        }
    }
    #[inline(always)]
    unsafe fn many<P: Packed>(self, quants: *const u8, scales: *const f32, subs: usize, a: Columns) -> [__m512; 16] {
        // SAFETY: as the caller promises; without AMX nobody calls this.
        unsafe { amx::sixteen(P::KIND, quants, scales, subs, a) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> __m512 {
        // SAFETY: the token proves AVX-512; the caller promises the bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> __m512 {
        // SAFETY: the token proves AVX-512; the caller promises the bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> __m512 {
        // SAFETY: the token proves AVX-512; the caller promises the bytes.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m512i {
        // SAFETY: the token proves AVX-512; the caller promises the bytes.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn low(self, q: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512.
        unsafe { _mm512_and_si512(q, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn high(self, q: __m512i) -> __m512i {
        // SAFETY: the token proves AVX-512 BW.
        unsafe { _mm512_and_si512(_mm512_srli_epi16(q, 4), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn raise(self, q: __m512i, bits: __m512i, from: u32, mask: u8) -> __m512i {
        // Bits of a neighbouring byte come along, and are masked.
        // SAFETY: the token proves AVX-512 BW.
        unsafe {
            let placed = if from < 4 {
                _mm512_sll_epi16(bits, _mm_cvtsi32_si128(4 - from as i32))
            } else {
                _mm512_srl_epi16(bits, _mm_cvtsi32_si128(from as i32 - 4))
            };
            let mask = _mm512_set1_epi8((mask << 4).cast_signed());
            // q | placed & mask.
            _mm512_ternarylogic_epi32::<0b1111_1000>(q, placed, mask)
        }
    }
    #[inline(always)]
    fn lookup(self, q: __m512i, table: &[i8; 16]) -> __m512i {
        // SAFETY: the token proves AVX-512 BW; the table is 16 bytes.
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), q) }
    }
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[__m512i; GROUPS], a: &Columns, start: [i32; C]) -> [__m512; C] {
        // SAFETY: as the caller promises.
        unsafe { self.dot_u5(w, a, start) }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[__m512i; GROUPS], a: &Columns, start: [i32; C]) -> [__m512; C] {
        // SAFETY: the token proves VNNI; the caller promises `C` blocks.
        unsafe {
            let mut out = [_mm512_setzero_ps(); C];
            for (j, out) in out.iter_mut().enumerate() {
                let sum = chains::<GROUPS, C>(w, a.q(j), 0, _mm512_set1_epi32(start[j]));
                *out = _mm512_cvtepi32_ps(sum);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[__m512i; GROUPS], a: &Columns) -> [[__m512; 2]; C] {
        // SAFETY: as above.
        unsafe {
            let mut out = [[_mm512_setzero_ps(); 2]; C];
            for (j, out) in out.iter_mut().enumerate() {
                for (h, out) in out.iter_mut().enumerate() {
                    let start = _mm512_set1_epi32(a.scale(j).minus_32[h]);
                    *out = _mm512_cvtepi32_ps(chains::<4, C>(w, a.q(j), 4 * h, start));
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[__m512i; GROUPS], a: &Columns) -> [__m512; C] {
        // SAFETY: as above.
        unsafe {
            // With 128 added the weights are unsigned.
            let mut u = *w;
            for u in &mut u {
                *u = _mm512_xor_si512(*u, _mm512_set1_epi8(-128));
            }
            let mut out = [_mm512_setzero_ps(); C];
            for (j, out) in out.iter_mut().enumerate() {
                let start = _mm512_set1_epi32(16 * a.scale(j).minus_8);
                *out = _mm512_cvtepi32_ps(chains::<GROUPS, C>(&u, a.q(j), 0, start));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[__m512i; GROUPS], a: &Columns) -> [__m512; C] {
        // 128 · Σ high·w + Σ low·w; with w + 128 for w the second begins at -128 times the sum of all.
        // SAFETY: as above.
        unsafe {
            let mut sums = [[_mm512_setzero_si512(); 2]; C];
            for (j, sums) in sums.iter_mut().enumerate() {
                sums[1] = _mm512_set1_epi32(a.wide_scale(j).minus_128);
            }
            for (g, &w) in w.iter().enumerate() {
                let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
                for (j, sums) in sums.iter_mut().enumerate() {
                    sums[0] = _mm512_dpbusd_epi32(sums[0], w, four(a.high(j), g));
                    sums[1] = _mm512_dpbusd_epi32(sums[1], w, four(a.low(j), g));
                }
            }
            let mut out = [_mm512_setzero_ps(); C];
            for (out, [high, low]) in out.iter_mut().zip(sums) {
                *out = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 7), low));
            }
            out
        }
    }
}
