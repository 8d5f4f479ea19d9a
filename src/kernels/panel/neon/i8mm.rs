//! Byte products of two weight rows with two activation rows: `smmla`.

use super::bytes::Bytes;
use super::dotprod::{self, Dotprod};
use core::arch::aarch64::*;
use core::arch::asm;

/// Products by `smmla`, and `sdot` for an activation row that has no partner.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct I8mm(Dotprod);

pub(super) const TOKEN: I8mm = I8mm(dotprod::TOKEN);

/// Adds to lanes 0 to 3 of `sum` the products of the halves of `w` and of `a`, eight bytes each: first and first, first and
/// second, second and first, second and second.
///
/// The compiler's own name for the instruction, `vmmlaq_s32`, is not stable.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes only the registers named, and the function has its feature.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {w:v}.16b, {a:v}.16b",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Eight weights of rows 0 and 1, and of rows 2 and 3, from two groups of four weights of four rows.
#[inline(always)]
fn zip_groups(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b));
        [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))]
    }
}

/// Activations 0 to 7 of two rows, and 8 to 15.
#[inline(always)]
fn zip_rows(a: int8x16_t, b: int8x16_t) -> [int8x16_t; 2] {
    // SAFETY: every caller is reached through a token, which proves NEON.
    unsafe {
        let (a, b) = (vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b));
        [vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b))]
    }
}

/// The registers of activation rows 2p and 2p + 1 hold the sums of both, the first with weight rows 0 and 1, the second with 2
/// and 3; that of a last row alone is as [`Dotprod`] has it.
impl Bytes for I8mm {
    #[inline(always)]
    fn start<const C: usize>(self, start: [i32; C]) -> [int32x4_t; C] {
        let mut sums = self.0.start(start);
        for pair in sums.as_chunks_mut::<2>().0 {
            // SAFETY: the token proves NEON.
            *pair = [unsafe { vzip1q_s32(pair[0], pair[1]) }; 2];
        }
        sums
    }
    #[inline(always)]
    fn add_sixteen<const C: usize>(self, sums: &mut [int32x4_t; C], w: [int8x16_t; 4], a: &[int8x16_t; C]) {
        let (pairs, single) = sums.as_chunks_mut::<2>();
        let (a_pairs, a_single) = a.as_chunks::<2>();
        let zipped = [zip_groups(w[0], w[1]), zip_groups(w[2], w[3])];
        for (pair, a) in pairs.iter_mut().zip(a_pairs) {
            let a = zip_rows(a[0], a[1]);
            for (w, a) in zipped.into_iter().zip(a) {
                // SAFETY: the token proves the matrix product.
                *pair = unsafe { [smmla(pair[0], w[0], a), smmla(pair[1], w[1], a)] };
            }
        }
        if let ([sum], &[a]) = (single, a_single) {
            let mut sums = [*sum];
            self.0.add_sixteen(&mut sums, w, &[a]);
            [*sum] = sums;
        }
    }
    #[inline(always)]
    fn rows<const C: usize>(self, mut sums: [int32x4_t; C]) -> [int32x4_t; C] {
        for pair in sums.as_chunks_mut::<2>().0 {
            // SAFETY: the token proves NEON.
            *pair = unsafe { [vuzp1q_s32(pair[0], pair[1]), vuzp2q_s32(pair[0], pair[1])] };
        }
        sums
    }
}
