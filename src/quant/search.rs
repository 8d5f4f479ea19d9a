//! The search for a block's scale that the formats with a weighted quantiser share.
//!
//! Sums are written in ggml's order and with its roundings (no fused multiply-add), because a last-bit difference in
//! a sum can choose another scale and so change the bytes of a file.

/// A block whose largest magnitude is below this is stored as zeros.
const SMALLEST_BLOCK: f32 = 1e-15;

/// `x` rounded to the nearest integer, ties to even, for `|x| < 2^22`. Larger values and NaN give some number.
///
/// Adding 1.5 * 2^23 leaves the integer in the low bits of the mantissa.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// Finds a scale `d` and integers `q` in `-nmax..nmax` such that `d * q` is near `x` in weighted least squares, writes
/// `q + nmax` to `levels` and returns `d` (of either sign). `weights` are x² when not given. `nmax` is at most 128.
///
/// The value of largest magnitude is first laid on `-nmax`, then 18 steps of 0.1 either way are tried; for given
/// integers the best scale is Σwxq / Σwq². This is ggml's `make_qx_quants` with `rmse_type` 1.
pub(super) fn symmetric(nmax: i32, x: &[f32], levels: &mut [u8], weights: Option<&[f32]>) -> f32 {
    let (mut amax, mut max) = (0.0f32, 0.0f32);
    for &v in x {
        if v.abs() > amax {
            amax = v.abs();
            max = v;
        }
    }
    if amax < SMALLEST_BLOCK {
        // Level 0 stands for -nmax, but the scale is 0.
        levels.fill(0);
        return 0.0;
    }
    let limit = nmax as f32;
    let quantum = |inverse: f32, v: f32| nearest(inverse * v).clamp(-nmax, nmax - 1);
    let sums = |inverse: f32| {
        let (mut xq, mut qq) = (0.0f32, 0.0f32);
        for (i, &v) in x.iter().enumerate() {
            let q = quantum(inverse, v) as f32;
            let w = weights.map_or(v * v, |weights| weights[i]);
            xq += w * v * q;
            qq += w * q * q;
        }
        (xq, qq)
    };
    let mut chosen = -limit / max;
    let (xq, qq) = sums(chosen);
    let mut scale = if qq != 0.0 { xq / qq } else { 0.0 };
    let mut best = scale * xq;
    for step in -9..=9 {
        if step == 0 {
            continue;
        }
        let inverse = -(limit + 0.1 * step as f32) / max;
        let (xq, qq) = sums(inverse);
        if qq > 0.0 && xq * xq > best * qq {
            chosen = inverse;
            scale = xq / qq;
            best = scale * xq;
        }
    }
    for (level, &v) in levels.iter_mut().zip(x) {
        *level = (quantum(chosen, v) + nmax) as u8;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nearest_rounds_ties_to_even() {
        for (x, n) in [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (4_194_303.0, 4_194_303), (-7.9, -8)] {
            assert_eq!(nearest(x), n, "{x}");
        }
        let _ = (nearest(f32::NAN), nearest(f32::INFINITY), nearest(-f32::MAX));
    }

    #[test]
    fn values_on_a_grid_are_found_exactly() {
        let x: Vec<f32> = (-8..8).map(|q| 0.25 * q as f32).collect();
        let mut levels = [0u8; 16];
        assert_eq!(symmetric(8, &x, &mut levels, None), 0.25);
        assert_eq!(levels, std::array::from_fn(|i| i as u8));
    }

    #[test]
    fn zeros_and_zero_weights_give_scale_zero() {
        let mut levels = [9u8; 4];
        assert_eq!(symmetric(8, &[0.0, 1e-16, -1e-20, 0.0], &mut levels, None), 0.0);
        assert_eq!(levels, [0; 4]);
        assert_eq!(symmetric(8, &[1.0, 2.0, 3.0, 4.0], &mut levels, Some(&[0.0; 4])), 0.0);
    }

    proptest! {
        /// The chosen scale is no worse than laying the largest value on -nmax.
        #[test]
        fn never_worse_than_the_first_guess(x in prop::collection::vec(-10.0f32..10.0, 32)) {
            let max = x.iter().copied().fold(0.0f32, |m, v| if v.abs() > m.abs() { v } else { m });
            let error = |scale: f32, q: &dyn Fn(usize) -> f32| -> f64 {
                x.iter().enumerate().map(|(i, &v)| f64::from(v * v) * f64::from(v - scale * q(i)).powi(2)).sum()
            };
            let mut levels = [0u8; 32];
            let scale = symmetric(8, &x, &mut levels, None);
            let first = -max / 8.0;
            let guess = |i: usize| if first == 0.0 { 0.0 } else { (x[i] / first).round().clamp(-8.0, 7.0) };
            let found = error(scale, &|i| f32::from(levels[i]) - 8.0);
            prop_assert!(found <= error(first, &guess) * 1.000_1 + 1e-6);
        }
    }
}
