//! Conversions between f32 and the two 16 bit float formats, as branch-free arithmetic on one value.
//!
//! They give ggml's bits on every machine, and a loop around any of them vectorises, which is why they are
//! written out here: the hardware instructions differ in the NaN they return, and have to be looked for at run time.

/// The IEEE half precision value with these bits, exactly. Infinities and the payload of NaN are kept.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    // Smallest normal half (2^-14) as f32: a subnormal half is m * 2^-24, which is this number with m in its
    // mantissa, less the number itself.
    const MIN_NORMAL: u32 = 113 << 23;
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let exponent = magnitude & 0x0f80_0000;
    // The exponent bias goes from 15 to 127; the all-ones exponent has to stay all ones.
    let normal = magnitude + ((127 - 15) << 23);
    let special = magnitude + ((255 - 31) << 23);
    let subnormal = (f32::from_bits(magnitude + MIN_NORMAL) - f32::from_bits(MIN_NORMAL)).to_bits();
    let finite = if exponent == 0 { subnormal } else { normal };
    let value = if exponent == 0x0f80_0000 { special } else { finite };
    f32::from_bits(sign | value)
}

/// `x` rounded to IEEE half precision, to nearest with ties to even, subnormals included. A magnitude of 65520 or
/// more becomes infinity, any NaN the quiet NaN 0x7e00 with its sign.
///
/// The float multiplications place the mantissa so that one float addition rounds it; the method is that of
/// Marat Dukhan's FP16 library, which ggml uses too.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    const TO_INFINITY: f32 = f32::from_bits((127 + 112) << 23);
    const TO_ZERO: f32 = f32::from_bits((127 - 110) << 23);
    let bits = x.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let without_sign = bits << 1;
    let bias = (without_sign & 0xff00_0000).max(0x7100_0000);
    let scaled = (x.abs() * TO_INFINITY) * TO_ZERO;
    let rounded = (f32::from_bits((bias >> 1) + 0x0780_0000) + scaled).to_bits();
    let value = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
    let value = if without_sign > 0xff00_0000 { 0x7e00 } else { value };
    (sign | value) as u16
}

/// The bfloat16 value with these bits, exactly.
#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// `x` rounded to bfloat16, to nearest with ties to even; subnormals are kept. A NaN is made quiet, so that cutting
/// its payload cannot turn it into an infinity.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let quiet = (bits >> 16) | 0x40;
    // Cannot carry out of 32 bits for anything but a NaN, for which the result is not used.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_half_matches_the_half_crate_and_comes_back() {
        for bits in 0..=u16::MAX {
            let reference = half::f16::from_bits(bits);
            let value = f16_to_f32(bits);
            if reference.is_nan() {
                assert!(value.is_nan());
                assert_eq!(value.is_sign_negative(), reference.is_sign_negative());
                assert_eq!(f32_to_f16(value), 0x7e00 | (bits & 0x8000));
            } else {
                assert_eq!(value.to_bits(), reference.to_f32_const().to_bits(), "{bits:#06x}");
                assert_eq!(f32_to_f16(value), bits);
            }
        }
    }

    #[test]
    fn every_bfloat16_comes_back() {
        for bits in 0..=u16::MAX {
            let value = bf16_to_f32(bits);
            if value.is_nan() {
                assert_eq!(f32_to_bf16(value), bits | 0x40);
            } else {
                assert_eq!(f32_to_bf16(value), bits);
            }
        }
    }

    /// Between each two neighbouring halves: just below the middle, the middle, and just above it.
    #[test]
    fn halves_round_to_nearest_even() {
        for bits in 0..0x7bffu16 {
            let middle = (f16_to_f32(bits) + f16_to_f32(bits + 1)) / 2.0;
            let even = if bits % 2 == 0 { bits } else { bits + 1 };
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() - 1)), bits);
            assert_eq!(f32_to_f16(middle), even);
            assert_eq!(f32_to_f16(f32::from_bits(middle.to_bits() + 1)), bits + 1);
        }
        assert_eq!(f32_to_f16(65519.996), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(f32::MAX), 0x7c00);
    }

    #[test]
    fn bfloat16_rounds_to_nearest_even() {
        for (from, to) in [
            (0x3f80_8000, 0x3f80), // a tie, down to even
            (0x3f81_8000, 0x3f82), // a tie, up to even
            (0x3f80_8001, 0x3f81),
            (0x3f80_7fff, 0x3f80),
            (0x0000_8001, 0x0001), // subnormals are not flushed
            (0x8000_0001, 0x8000),
            (0x7f7f_7fff, 0x7f7f),
            (0x7f7f_8000, 0x7f80), // past the largest finite value
            (0xff80_0000, 0xff80),
            (0x7f80_0001, 0x7fc0), // a signalling NaN whose payload is in the lost half
            (0xffff_ffff, 0xffff),
        ] {
            assert_eq!(f32_to_bf16(f32::from_bits(from)), to, "{from:#010x}");
        }
    }

    proptest! {
        #[test]
        fn any_float_rounds_as_in_the_half_crate(bits: u32) {
            let x = f32::from_bits(bits);
            prop_assume!(!x.is_nan());
            prop_assert_eq!(f32_to_f16(x), half::f16::from_f32_const(x).to_bits());
            prop_assert_eq!(f32_to_bf16(x), half::bf16::from_f32_const(x).to_bits());
        }
    }
}
