//! Rounding and conversion to bytes, in operations that vectorise on every CPU.
//!
//! A cast from float to integer saturates, which compilers do one value at a time; an addition does as well.

/// 1.5 * 2^23: added to a number, it leaves the nearest integer in the low bits of the mantissa.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even, for magnitudes up to 2^22. Whatever is larger, infinite or NaN gives some number.
///
/// The sum has no room for a fraction; the difference is exact.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    x + MAGIC - MAGIC
}

/// The same within those magnitudes. Of all else the low bits of the mantissa are taken for a number, as ggml does.
#[inline(always)]
pub(super) fn nearest_wrapping(x: f32) -> f32 {
    // The exponent is that of all sums in range.
    f32::from_bits((x + MAGIC).to_bits() & 0x007f_ffff | MAGIC.to_bits() & 0xff80_0000) - MAGIC
}

/// The nearest integer, ties away from zero, for magnitudes up to 2^22.
#[inline(always)]
pub(super) fn nearest_away(x: f32) -> f32 {
    let even = nearest(x.abs());
    let away = if x.abs() - even == 0.5 { even + 1.0 } else { even };
    away.copysign(x)
}

/// The integer not above `x`, for magnitudes up to 2^22.
#[inline(always)]
pub(super) fn floor(x: f32) -> f32 {
    let near = nearest(x);
    if near > x { near - 1.0 } else { near }
}

/// `x`, but `last` where it is greater or NaN: one instruction, which [`f32::min`] is not.
#[inline(always)]
pub(super) fn at_most(x: f32, last: f32) -> f32 {
    if x < last { x } else { last }
}

/// An integer of a magnitude up to 2^22 in two's complement, of which only the lower 22 bits are right.
#[inline(always)]
pub(super) fn low_bits(x: f32) -> u32 {
    (x + MAGIC).to_bits()
}

/// The low byte of such an integer.
#[inline(always)]
pub(super) fn low_byte(x: f32) -> u8 {
    low_bits(x) as u8
}

/// As [`low_byte`] for each.
#[inline(always)]
pub(super) fn low_bytes<const N: usize>(x: &[f32; N]) -> [u8; N] {
    let mut bytes = [0; N];
    for (byte, &x) in bytes.iter_mut().zip(x) {
        *byte = low_byte(x);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_and_their_neighbours_are_rounded_as_said() {
        for tie in (-4100..4100).map(|n| n as f32 * 0.5).chain([4_194_302.5, -4_194_302.5]) {
            for x in [tie.next_down(), tie, tie.next_up(), tie - 0.25, tie + 0.25] {
                assert_eq!(nearest(x), x.round_ties_even(), "{x}");
                assert_eq!(nearest_wrapping(x), x.round_ties_even(), "{x}");
                assert_eq!(nearest_away(x), x.round(), "{x}");
                assert_eq!(floor(x), x.floor(), "{x}");
                assert_eq!(low_byte(x.round()), x.round() as i32 as u8, "{x}");
            }
        }
    }

    #[test]
    fn what_is_out_of_range_gives_what_ggml_gives() {
        let ggml = |x: f32| ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000;
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e9, 1e7, 5e6, -5e6, 2e10, 12_582_913.0] {
            assert_eq!(nearest_wrapping(x), ggml(x) as f32, "{x}");
        }
        let _ = (nearest(f32::NAN), nearest_wrapping(f32::NAN), floor(f32::NAN), low_byte(f32::NAN));
    }
}
