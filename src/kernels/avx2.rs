//! AVX2 with FMA and F16C: every x86-64 laptop since 2013 (Intel) and 2015 (AMD).

use super::simd::{LANES, Simd};
use core::arch::x86_64::*;

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) ());

impl Avx2 {
    /// The proof, if the running CPU (and the operating system) has the features.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
            .then_some(Avx2(()))
    }
}

/// Sums of four i32 lanes pairs each: lane `i` of the result is the sum of all lanes of `v[i]`.
///
/// Three levels of horizontal adds instead of eight separate reductions; integer sums do not care about order.
#[inline(always)]
fn transpose_sum(_: Avx2, v: [__m256i; 8]) -> __m256i {
    // SAFETY: the token proves AVX2.
    unsafe {
        let lo = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        let hi = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
        _mm256_add_epi32(_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31))
    }
}

impl Simd for Avx2 {
    type V = __m256;
    type W = __m256i;
    type Block = [__m256i; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, p: &[f32; LANES]) -> __m256 {
        // SAFETY: the token proves AVX; the reference covers 32 bytes, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(p.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, v: __m256, p: &mut [f32; LANES]) {
        // SAFETY: the token proves AVX; the reference covers 32 bytes, and the store asks for no alignment.
        unsafe { _mm256_storeu_ps(p.as_mut_ptr(), v) }
    }
    #[inline(always)]
    fn load_f16(self, p: &[u8; 16]) -> __m256 {
        // SAFETY: the token proves F16C; the reference covers 16 bytes, and the load asks for no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, p: &[u8; 16]) -> __m256 {
        // SAFETY: the token proves AVX2; the reference covers 16 bytes, and the load asks for no alignment.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
        }
    }
    #[inline(always)]
    fn load_i8(self, p: &[u8; 8]) -> __m256 {
        // SAFETY: the token proves AVX2; the reference covers the 8 bytes that the load reads.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_f16(self, v: __m256, p: &mut [u8; 16]) {
        // SAFETY: the token proves F16C; the reference covers 16 bytes, and the store asks for no alignment.
        unsafe { _mm_storeu_si128(p.as_mut_ptr().cast(), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) }
    }
    #[inline(always)]
    fn pow2(self, n: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe {
            let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32(e, 23))
        }
    }
    #[inline(always)]
    fn zero_below(self, x: __m256, limit: __m256, v: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_andnot_ps(_mm256_cmp_ps(x, limit, _CMP_LT_OQ), v) }
    }
    #[inline(always)]
    fn pick(self, x: __m256, limit: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX.
        unsafe { _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ)) }
    }
    #[inline(always)]
    fn transpose(self, v: [__m256; LANES]) -> [__m256; LANES] {
        // SAFETY: the token proves AVX.
        unsafe {
            // Vectors i and i + 4 first share a register, so that what is left is two times four by four.
            let mut h = [_mm256_setzero_ps(); LANES];
            for i in 0..4 {
                h[i] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x20);
                h[i + 4] = _mm256_permute2f128_ps(v[i], v[i + 4], 0x31);
            }
            let mut out = h;
            for (h, out) in h.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                let (a, b) = (_mm256_unpacklo_ps(h[0], h[1]), _mm256_unpackhi_ps(h[0], h[1]));
                let (c, d) = (_mm256_unpacklo_ps(h[2], h[3]), _mm256_unpackhi_ps(h[2], h[3]));
                *out = [
                    _mm256_shuffle_ps(a, c, 0b01_00_01_00),
                    _mm256_shuffle_ps(a, c, 0b11_10_11_10),
                    _mm256_shuffle_ps(b, d, 0b01_00_01_00),
                    _mm256_shuffle_ps(b, d, 0b11_10_11_10),
                ];
            }
            out
        }
    }
    #[inline(always)]
    fn splat_f16(self, p: [u8; 2]) -> __m256 {
        // SAFETY: the token proves F16C.
        unsafe { _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(p))) }
    }
    #[inline(always)]
    fn store_i8(self, v: __m256, p: &mut [i8; LANES]) {
        // SAFETY: the token proves AVX2; the reference covers the 8 bytes that are stored.
        unsafe {
            let w = _mm256_cvtps_epi32(v);
            let h = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
            _mm_storel_epi64(p.as_mut_ptr().cast(), _mm_packs_epi16(h, h));
        }
    }
    #[inline(always)]
    fn store_i16(self, v: __m256, p: &mut [i16; LANES]) {
        // SAFETY: the token proves AVX2; the reference covers the 16 bytes that are stored.
        unsafe {
            let w = _mm256_cvtps_epi32(v);
            let h = _mm_packs_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
            _mm_storeu_si128(p.as_mut_ptr().cast(), h);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch has no effect that a program could observe, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn gather_f16(self, p: [*const u8; LANES]) -> __m256 {
        let mut h = [0u16; LANES];
        for (h, p) in h.iter_mut().zip(p) {
            // SAFETY: the caller promises two readable bytes behind every pointer.
            *h = unsafe { p.cast::<u16>().read_unaligned() };
        }
        // SAFETY: the token proves F16C; `h` is 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(h.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn block_i8(self, p: [*const u8; LANES]) -> Self::Block {
        // SAFETY: the token proves AVX; the caller promises 32 readable bytes behind every pointer.
        p.map(
            #[inline(always)]
            |p| unsafe { _mm256_loadu_si256(p.cast()) },
        )
    }
    #[inline(always)]
    unsafe fn block_u4(self, p: [*const u8; LANES]) -> Self::Block {
        // SAFETY: the token proves AVX2.
        let mut out = [unsafe { _mm256_setzero_si256() }; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the token proves AVX2; the caller promises 16 readable bytes behind every pointer.
            *o = unsafe {
                let b = _mm_loadu_si128(p.cast());
                let both = _mm256_inserti128_si256(_mm256_castsi128_si256(b), _mm_srli_epi16(b, 4), 1);
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            };
        }
        out
    }
    #[inline(always)]
    fn dot_i8(self, w: &Self::Block, a: &[i16; 32]) -> __m256 {
        // Both sides as 16-bit numbers: `madd` makes exact 32-bit sums of pairs, and costs no more than the sign tricks that
        // unsigned-by-signed 8-bit products would need.
        // SAFETY: the token proves AVX2; `a` is 64 bytes.
        unsafe {
            let (lo, hi) = (_mm256_loadu_si256(a.as_ptr().cast()), _mm256_loadu_si256(a.as_ptr().add(16).cast()));
            let mut v = [_mm256_setzero_si256(); LANES];
            for (v, &w) in v.iter_mut().zip(w) {
                let w_lo = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(w));
                let w_hi = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(w, 1));
                *v = _mm256_add_epi32(_mm256_madd_epi16(w_lo, lo), _mm256_madd_epi16(w_hi, hi));
            }
            _mm256_cvtepi32_ps(transpose_sum(self, v))
        }
    }
    #[inline(always)]
    unsafe fn words(self, p: [*const u8; LANES]) -> [__m256i; 4] {
        // SAFETY: the token proves AVX2; the caller promises 16 readable bytes behind every pointer.
        unsafe {
            // Rows r and r + 4 share a register, so four rows are transposed twice at once.
            let mut v = [_mm256_setzero_si256(); 4];
            for (r, v) in v.iter_mut().enumerate() {
                let low = _mm256_castsi128_si256(_mm_loadu_si128(p[r].cast()));
                *v = _mm256_inserti128_si256(low, _mm_loadu_si128(p[r + 4].cast()), 1);
            }
            let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
            let (c, d) = (_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        }
    }
    #[inline(always)]
    fn field(self, w: __m256i, from: u32, bits: u32) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe {
            let down = _mm256_srl_epi32(w, _mm_cvtsi32_si128(from as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(down, _mm256_set1_epi32((1 << bits) - 1)))
        }
    }
    #[inline(always)]
    fn signed_byte(self, w: __m256i, i: u32) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe {
            let up = _mm256_sll_epi32(w, _mm_cvtsi32_si128(24 - 8 * i as i32));
            _mm256_cvtepi32_ps(_mm256_srai_epi32(up, 24))
        }
    }
    #[inline(always)]
    fn half(self, w: __m256i, i: u32) -> __m256 {
        // SAFETY: the token proves AVX2 and F16C.
        unsafe {
            let down = _mm256_srl_epi32(w, _mm_cvtsi32_si128(16 * i as i32));
            let h = _mm256_and_si256(down, _mm256_set1_epi32(0xffff));
            let h = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0b1000);
            _mm256_cvtph_ps(_mm256_castsi256_si128(h))
        }
    }
    #[inline(always)]
    unsafe fn block_nibbles(self, p: [*const u8; LANES], shift: u32) -> Self::Block {
        // SAFETY: the token proves AVX2.
        let mut out = [unsafe { _mm256_setzero_si256() }; LANES];
        for (o, p) in out.iter_mut().zip(p) {
            // SAFETY: the token proves AVX2; the caller promises 32 readable bytes behind every pointer.
            *o = unsafe {
                let down = _mm256_srl_epi16(_mm256_loadu_si256(p.cast()), _mm_cvtsi32_si128(shift as i32));
                _mm256_and_si256(down, _mm256_set1_epi8(15))
            };
        }
        out
    }
    #[inline(always)]
    unsafe fn raise(self, mut w: Self::Block, p: [*const u8; LANES], shift: u32, mask: u8) -> Self::Block {
        // Straight from where the bits are to where they belong. Other bits cross into the next byte, and are masked.
        // SAFETY: the token proves AVX2.
        let (mask, left, right) = unsafe {
            (
                _mm256_set1_epi8((mask << 4).cast_signed()),
                _mm_cvtsi32_si128(4u32.saturating_sub(shift) as i32),
                _mm_cvtsi32_si128(shift.saturating_sub(4) as i32),
            )
        };
        if shift < 4 {
            for (w, p) in w.iter_mut().zip(p) {
                // SAFETY: the token proves AVX2; the caller promises 32 readable bytes behind every pointer.
                *w = unsafe {
                    let high = _mm256_sll_epi16(_mm256_loadu_si256(p.cast()), left);
                    _mm256_or_si256(*w, _mm256_and_si256(high, mask))
                };
            }
        } else {
            for (w, p) in w.iter_mut().zip(p) {
                // SAFETY: as above.
                *w = unsafe {
                    let high = _mm256_srl_epi16(_mm256_loadu_si256(p.cast()), right);
                    _mm256_or_si256(*w, _mm256_and_si256(high, mask))
                };
            }
        }
        w
    }
    #[inline(always)]
    unsafe fn raise_bits(self, mut w: Self::Block, p: [*const u8; LANES]) -> Self::Block {
        // Every byte of bits goes to eight elements, of which each keeps its own bit.
        // SAFETY: the token proves AVX2.
        let (spread, own) = unsafe {
            (
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303),
                _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed()),
            )
        };
        for (w, p) in w.iter_mut().zip(p) {
            // SAFETY: the token proves AVX2; the caller promises four readable bytes behind every pointer.
            *w = unsafe {
                let bits = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
                let bits = _mm256_and_si256(_mm256_shuffle_epi8(bits, spread), own);
                let set = _mm256_and_si256(_mm256_cmpeq_epi8(bits, own), _mm256_set1_epi8(16));
                _mm256_or_si256(*w, set)
            };
        }
        w
    }
    #[inline(always)]
    fn lookup(self, mut w: Self::Block, table: &[i8; 16]) -> Self::Block {
        // SAFETY: the token proves AVX2; the table is 16 bytes, and the load asks for no alignment.
        let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
        for w in &mut w {
            // SAFETY: the token proves AVX2.
            *w = unsafe { _mm256_shuffle_epi8(table, *w) };
        }
        w
    }
    #[inline(always)]
    fn dot_u5(self, w: &Self::Block, a: &[i8; 32]) -> __m256 {
        // A pair is at most 2 * 31 * 127 = 7874, so two levels of sums still fit 16 bits, where they cost half.
        // SAFETY: the token proves AVX2; `a` is 32 bytes.
        unsafe {
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let mut v = [_mm256_setzero_si256(); LANES];
            for (v, &w) in v.iter_mut().zip(w) {
                *v = _mm256_maddubs_epi16(w, a);
            }
            let lo = _mm256_hadd_epi16(_mm256_hadd_epi16(v[0], v[1]), _mm256_hadd_epi16(v[2], v[3]));
            let hi = _mm256_hadd_epi16(_mm256_hadd_epi16(v[4], v[5]), _mm256_hadd_epi16(v[6], v[7]));
            let one = _mm256_set1_epi16(1);
            let (lo, hi) = (_mm256_madd_epi16(lo, one), _mm256_madd_epi16(hi, one));
            let sum =
                _mm256_add_epi32(_mm256_permute2x128_si256(lo, hi, 0x20), _mm256_permute2x128_si256(lo, hi, 0x31));
            _mm256_cvtepi32_ps(sum)
        }
    }
    #[inline(always)]
    fn dot_s8(self, w: &Self::Block, a: &[i8; 32]) -> __m256 {
        // The instruction wants one side unsigned, so the weights' signs go to the activations. A pair is at most
        // 2 * 127 * 127 = 32258.
        // SAFETY: the token proves AVX2; `a` is 32 bytes.
        unsafe {
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let one = _mm256_set1_epi16(1);
            let mut v = [_mm256_setzero_si256(); LANES];
            for (v, &w) in v.iter_mut().zip(w) {
                *v = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), one);
            }
            _mm256_cvtepi32_ps(transpose_sum(self, v))
        }
    }
    #[inline(always)]
    fn dot_u6(self, w: &Self::Block, a: &[i8; 32]) -> [__m256; 2] {
        // A pair is at most 2 * 63 * 127 = 16002, so one level of sums still fits 16 bits. All of it happens within the
        // halves of a register, which are the halves of the block. 32 times the sum of a half's activations is taken off
        // at the end.
        // SAFETY: the token proves AVX2; `a` is 32 bytes.
        unsafe {
            let a = _mm256_loadu_si256(a.as_ptr().cast());
            let one = _mm256_set1_epi16(1);
            let mut v = [_mm256_setzero_si256(); LANES];
            for (v, &w) in v.iter_mut().zip(w) {
                *v = _mm256_maddubs_epi16(w, a);
            }
            let mut v4 = [_mm256_setzero_si256(); 4];
            for (o, v) in v4.iter_mut().zip(v.as_chunks::<2>().0) {
                *o = _mm256_madd_epi16(_mm256_hadd_epi16(v[0], v[1]), one);
            }
            let all = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(32), a), one);
            let all = _mm256_hadd_epi32(all, all);
            let all = _mm256_hadd_epi32(all, all);
            let lo = _mm256_sub_epi32(_mm256_hadd_epi32(v4[0], v4[1]), all);
            let hi = _mm256_sub_epi32(_mm256_hadd_epi32(v4[2], v4[3]), all);
            [
                _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x20)),
                _mm256_cvtepi32_ps(_mm256_permute2x128_si256(lo, hi, 0x31)),
            ]
        }
    }
}

const ISA: super::Isa = super::Isa::Avx2;
super::stamp::stamp!(Avx2(()), crate::kernels::panel::ymm::AVX2, Avx2(()), "avx2,fma,f16c");
