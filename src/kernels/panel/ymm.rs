//! Panels of eight rows in 256-bit registers: AVX2, and AVX-VNNI, which adds four byte products to a lane in one instruction.

use super::formats::Packed;
use super::wide::{Columns, GROUPS, Wide};
use core::arch::x86_64::*;

/// How bytes are multiplied.
pub(in crate::kernels) trait Dot: Copy {
    /// [`Wide::EVERY`].
    const EVERY: bool = false;

    unsafe fn dot_u4<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C];
    unsafe fn dot_u5<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C];
    unsafe fn dot_u6<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [[__m256i; 2]; C];
    unsafe fn dot_s8<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C];
    unsafe fn dot_wide<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C];
}

/// Proof that the CPU has AVX2, FMA, F16C and what `D` needs.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Ymm<D>(D);

/// Products by `maddubs` and `madd`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Maddubs(());

/// Products by `dpbusd`.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Vnni(());

/// The token for a table of kernels, which is handed out only where the CPU has AVX2, FMA and F16C.
pub(in crate::kernels) const AVX2: Ymm<Maddubs> = Ymm(Maddubs(()));
/// As [`AVX2`], where it has AVX-VNNI too.
pub(in crate::kernels) const AVX_VNNI: Ymm<Vnni> = Ymm(Vnni(()));

/// Four activations in every lane.
#[inline(always)]
unsafe fn four(a: *const i8, g: usize) -> __m256i {
    // SAFETY: the caller promises 32 bytes, and AVX2.
    unsafe { _mm256_set1_epi32(a.cast::<i32>().add(g).read_unaligned()) }
}

/// A sum as it is, which the compiler takes for one that it does not know.
///
/// Products of several rows of activations fit the registers only if every group of weights meets all rows before the next
/// group comes. Written in that order, but with nothing to hold it, they are put in another one, in which sums and weights are
/// kept in memory. Such places are passed in order.
#[inline]
#[target_feature(enable = "avx2")]
fn pinned(mut sum: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(ymm_reg) sum, options(nomem, nostack, preserves_flags)) };
    sum
}

/// Pairs of neighbours of sixteen bits, added.
#[inline(always)]
unsafe fn pairs(sum: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX2.
    unsafe { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
}

/// Products of two groups, `g` and `h`, of a row: in a lane of 16 bits at most 2 · 2 · 127 times the largest weight.
#[inline(always)]
unsafe fn two(w: &[__m256i; GROUPS], a: *const i8, [g, h]: [usize; 2]) -> __m256i {
    // SAFETY: the caller promises AVX2, and 32 bytes.
    unsafe { _mm256_add_epi16(_mm256_maddubs_epi16(w[g], four(a, g)), _mm256_maddubs_epi16(w[h], four(a, h))) }
}

/// Calls for each of some numbers that a function takes last, one after the other. In a loop the calls are not always unrolled.
macro_rules! each {
    ($f:ident($w:expr, $a:expr, $sums:expr) for $($n:expr),*) => { $( $f($w, $a, $sums, $n); )* };
}

/// Groups `g` and `g + 4`, whose nibbles are in the same bytes, times `C` rows.
#[inline(always)]
unsafe fn step_u4<const C: usize>(w: &[__m256i; GROUPS], a: &Columns, sums: &mut [__m256i; C], g: usize) {
    for (j, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller promises AVX2 and `C` blocks.
        *sum = unsafe { pinned(_mm256_add_epi16(*sum, two(w, a.q(j), [g, g + GROUPS / 2]))) };
    }
}

/// Groups `g`, `g + 1`, `g + 4` and `g + 5`.
#[inline(always)]
unsafe fn step_u5<const C: usize>(w: &[__m256i; GROUPS], a: &Columns, sums: &mut [__m256i; C], g: usize) {
    for (j, sum) in sums.iter_mut().enumerate() {
        // SAFETY: the caller promises AVX2 and `C` blocks.
        unsafe {
            // At most 4 · 2 · 31 · 127 = 31496.
            let four = _mm256_add_epi16(two(w, a.q(j), [g, g + 4]), two(w, a.q(j), [g + 1, g + 5]));
            *sum = pinned(_mm256_add_epi32(*sum, pairs(four)));
        }
    }
}

/// Groups `g` and `g + 1`.
#[inline(always)]
unsafe fn step_u6<const C: usize>(w: &[__m256i; GROUPS], a: &Columns, sums: &mut [[__m256i; 2]; C], g: usize) {
    for (j, sums) in sums.iter_mut().enumerate() {
        let sum = &mut sums[g / 4];
        // SAFETY: the caller promises AVX2 and `C` blocks.
        unsafe {
            // At most 2 · 2 · 63 · 127 = 32004.
            *sum = _mm256_add_epi32(*sum, pairs(two(w, a.q(j), [g, g + 1])));
            if C > 1 {
                *sum = pinned(*sum);
            }
        }
    }
}

/// Group `g` of signed weights.
#[inline(always)]
unsafe fn step_s8<const C: usize>(w: &[__m256i; GROUPS], a: &Columns, sums: &mut [__m256i; C], g: usize) {
    // SAFETY: the caller promises AVX2 and `C` blocks.
    unsafe {
        let size = _mm256_abs_epi8(w[g]);
        for (j, sum) in sums.iter_mut().enumerate() {
            // One side must be unsigned, so the weights' signs go to the activations. At most 2 · 127 · 127 = 32258.
            let products = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four(a.q(j), g), w[g]));
            *sum = _mm256_add_epi32(*sum, pairs(products));
            if C > 1 {
                *sum = pinned(*sum);
            }
        }
    }
}

/// Group `g` of signed weights, as 16-bit numbers. A group of a row fills two lanes of 32 bits, so rows 0 to 3 and 4 to 7 are in
/// a register each.
#[inline(always)]
unsafe fn step_wide<const C: usize>(w: &[__m256i; GROUPS], a: &Columns, sums: &mut [[__m256i; 2]; C], g: usize) {
    // SAFETY: the caller promises AVX2 and `C` blocks.
    unsafe {
        let low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(w[g]));
        let high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(w[g], 1));
        for (j, sums) in sums.iter_mut().enumerate() {
            let a = _mm256_set1_epi64x(a.wide(j).cast::<i64>().add(g).read_unaligned());
            sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(low, a));
            sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(high, a));
            // (Two rows have the registers that they need in any order, and are faster as the compiler likes it.)
            if C > 2 {
                *sums = [pinned(sums[0]), pinned(sums[1])];
            }
        }
    }
}

impl Dot for Maddubs {
    const EVERY: bool = true;

    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C] {
        // A lane of 16 bits takes two products per group: at most 8 · 2 · 15 · 127 = 30480.
        // SAFETY: the token proves AVX2; the caller promises `C` blocks.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); C];
            if C == 1 {
                for (g, &w) in w.iter().enumerate() {
                    sums[0] = _mm256_add_epi16(sums[0], _mm256_maddubs_epi16(w, four(a.q(0), g)));
                }
            } else {
                each!(step_u4(w, a, &mut sums) for 0, 1, 2, 3);
            }
            for (sum, start) in sums.iter_mut().zip(start) {
                *sum = _mm256_add_epi32(pairs(*sum), _mm256_set1_epi32(start));
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C] {
        // SAFETY: as above.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); C];
            for (sum, start) in sums.iter_mut().zip(start) {
                *sum = _mm256_set1_epi32(start);
            }
            if C == 1 {
                for (h, w) in w.as_chunks::<4>().0.iter().enumerate() {
                    // At most 4 · 2 · 31 · 127 = 31496.
                    let mut sum = _mm256_maddubs_epi16(w[0], four(a.q(0), 4 * h));
                    for (g, &w) in w.iter().enumerate().skip(1) {
                        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, four(a.q(0), 4 * h + g)));
                    }
                    sums[0] = _mm256_add_epi32(sums[0], pairs(sum));
                }
            } else {
                each!(step_u5(w, a, &mut sums) for 0, 2);
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [[__m256i; 2]; C] {
        // SAFETY: as above.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 2]; C];
            for (j, sums) in sums.iter_mut().enumerate() {
                let minus_32 = a.scale(j).minus_32;
                *sums = [_mm256_set1_epi32(minus_32[0]), _mm256_set1_epi32(minus_32[1])];
            }
            each!(step_u6(w, a, &mut sums) for 0, 2, 4, 6);
            sums
        }
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C] {
        // SAFETY: as above.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); C];
            each!(step_s8(w, a, &mut sums) for 0, 1, 2, 3, 4, 5, 6, 7);
            sums
        }
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C] {
        // SAFETY: as above.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 2]; C];
            each!(step_wide(w, a, &mut sums) for 0, 1, 2, 3, 4, 5, 6, 7);
            let mut out = [_mm256_setzero_si256(); C];
            for (out, sums) in out.iter_mut().zip(sums) {
                *out = _mm256_permute4x64_epi64(_mm256_hadd_epi32(sums[0], sums[1]), 0b11_01_10_00);
            }
            out
        }
    }
}

/// Adds to every lane the products of its four unsigned bytes of `w` and signed bytes of `a`.
#[inline(always)]
unsafe fn dpbusd(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX-VNNI.
    unsafe { _mm256_dpbusd_avx_epi32(sum, w, a) }
}

/// Signed bytes with 128 added.
#[inline(always)]
unsafe fn unsigned(w: &[__m256i; GROUPS]) -> [__m256i; GROUPS] {
    let mut out = *w;
    for w in &mut out {
        // SAFETY: the caller promises AVX2.
        *w = unsafe { _mm256_xor_si256(*w, _mm256_set1_epi8(-128)) };
    }
    out
}

/// Products of some groups from `first` on, added to `start`, in two chains: an instruction waits for the one before it five
/// cycles long.
#[inline(always)]
unsafe fn chains<const N: usize>(w: &[__m256i; GROUPS], a: *const i8, first: usize, start: __m256i) -> __m256i {
    // SAFETY: the caller promises AVX-VNNI and 32 bytes.
    unsafe {
        let mut sums = [start, _mm256_setzero_si256()];
        for g in first..first + N {
            sums[g % 2] = dpbusd(sums[g % 2], w[g], four(a, g));
        }
        _mm256_add_epi32(sums[0], sums[1])
    }
}

impl Dot for Vnni {
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C] {
        // SAFETY: as the caller promises.
        unsafe { self.dot_u5(w, a, start) }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256i; C] {
        // SAFETY: the token proves AVX-VNNI; the caller promises `C` blocks.
        unsafe {
            let mut out = [_mm256_setzero_si256(); C];
            for (j, out) in out.iter_mut().enumerate() {
                *out = chains::<GROUPS>(w, a.q(j), 0, _mm256_set1_epi32(start[j]));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [[__m256i; 2]; C] {
        // SAFETY: as above.
        unsafe {
            let mut out = [[_mm256_setzero_si256(); 2]; C];
            for (j, out) in out.iter_mut().enumerate() {
                for (h, out) in out.iter_mut().enumerate() {
                    *out = chains::<4>(w, a.q(j), 4 * h, _mm256_set1_epi32(a.scale(j).minus_32[h]));
                }
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C] {
        // SAFETY: as above.
        unsafe {
            let w = unsigned(w);
            let mut out = [_mm256_setzero_si256(); C];
            for (j, out) in out.iter_mut().enumerate() {
                *out = chains::<GROUPS>(&w, a.q(j), 0, _mm256_set1_epi32(16 * a.scale(j).minus_8));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256i; C] {
        // 128 · Σ high·w + Σ low·w; with w + 128 for w the second begins at -128 times the sum of all.
        // SAFETY: as above.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); 2]; C];
            for (j, sums) in sums.iter_mut().enumerate() {
                sums[1] = _mm256_set1_epi32(a.wide_scale(j).minus_128);
            }
            for (g, &w) in w.iter().enumerate() {
                let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                for (j, sums) in sums.iter_mut().enumerate() {
                    sums[0] = dpbusd(sums[0], w, four(a.high(j), g));
                    sums[1] = dpbusd(sums[1], w, four(a.low(j), g));
                }
            }
            let mut out = [_mm256_setzero_si256(); C];
            for (out, [high, low]) in out.iter_mut().zip(sums) {
                *out = _mm256_add_epi32(_mm256_slli_epi32(high, 7), low);
            }
            out
        }
    }
}

/// Exact sums, rounded once.
#[inline(always)]
unsafe fn rounded<const C: usize>(sums: [__m256i; C]) -> [__m256; C] {
    // SAFETY: the caller promises AVX2.
    unsafe {
        let mut out = [_mm256_setzero_ps(); C];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = _mm256_cvtepi32_ps(sum);
        }
        out
    }
}

impl<D: Dot> Wide for Ymm<D> {
    const ROWS: usize = 8;
    const COLUMNS: usize = 4;
    const EVERY: bool = D::EVERY;
    type F = __m256;
    type Q = __m256i;

    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch has no effect that a program could observe, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(self, v: __m256, p: *mut f32) {
        // SAFETY: the token proves AVX; the caller promises room.
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn floats(self, p: *const f32) -> __m256 {
        // SAFETY: the token proves AVX; the caller promises the bytes.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn keep<P: Packed>(self, q: __m256i, p: *mut u8) {
        // SAFETY: the token proves AVX; the caller promises room.
        unsafe { _mm256_storeu_si256(p.cast(), q) }
    }
    #[inline(always)]
    unsafe fn halves(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves F16C; the caller promises the bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn unsigned(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves AVX2; the caller promises the bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn signed(self, p: *const u8) -> __m256 {
        // SAFETY: the token proves AVX2; the caller promises the bytes.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const u8) -> __m256i {
        // SAFETY: the token proves AVX; the caller promises the bytes.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    fn low(self, q: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_and_si256(q, _mm256_set1_epi8(15)) }
    }
    #[inline(always)]
    fn high(self, q: __m256i) -> __m256i {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_and_si256(_mm256_srli_epi16(q, 4), _mm256_set1_epi8(15)) }
    }
    #[inline(always)]
    fn raise(self, q: __m256i, bits: __m256i, from: u32, mask: u8) -> __m256i {
        // Bits of a neighbouring byte come along, and are masked.
        // SAFETY: the token proves AVX2.
        unsafe {
            let placed = if from < 4 {
                _mm256_sll_epi16(bits, _mm_cvtsi32_si128(4 - from as i32))
            } else {
                _mm256_srl_epi16(bits, _mm_cvtsi32_si128(from as i32 - 4))
            };
            _mm256_or_si256(q, _mm256_and_si256(placed, _mm256_set1_epi8((mask << 4).cast_signed())))
        }
    }
    #[inline(always)]
    fn lookup(self, q: __m256i, table: &[i8; 16]) -> __m256i {
        // SAFETY: the token proves AVX2; the table is 16 bytes.
        unsafe { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), q) }
    }
    #[inline(always)]
    unsafe fn dot_u4<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256; C] {
        // SAFETY: as the caller promises.
        unsafe { rounded(self.0.dot_u4(w, a, start)) }
    }
    #[inline(always)]
    unsafe fn dot_u5<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns, start: [i32; C]) -> [__m256; C] {
        // SAFETY: as the caller promises.
        unsafe { rounded(self.0.dot_u5(w, a, start)) }
    }
    #[inline(always)]
    unsafe fn dot_u6<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [[__m256; 2]; C] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut out = [[_mm256_setzero_ps(); 2]; C];
            for (out, sums) in out.iter_mut().zip(self.0.dot_u6::<C>(w, a)) {
                *out = rounded(sums);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn dot_s8<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256; C] {
        // SAFETY: as the caller promises.
        unsafe { rounded(self.0.dot_s8(w, a)) }
    }
    #[inline(always)]
    unsafe fn dot_wide<const C: usize>(self, w: &[__m256i; GROUPS], a: &Columns) -> [__m256; C] {
        // SAFETY: as the caller promises.
        unsafe { rounded(self.0.dot_wide(w, a)) }
    }
}
