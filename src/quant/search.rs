//! The searches for a block's scale (and minimum) that the formats share.
//!
//! Sums are written in ggml's order and with its roundings (no fused multiply-add), because a last-bit difference in
//! a sum can choose another scale and so change the bytes of a file.

/// A block whose largest magnitude is below this is stored as zeros.
pub(super) const SMALLEST_BLOCK: f32 = 1e-15;

/// `x` rounded to the nearest integer, ties to even, for `|x| < 2^22`. Larger values and NaN give some number.
///
/// Adding 1.5 * 2^23 leaves the integer in the low bits of the mantissa.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The sum of squares over their number.
pub(super) fn mean_square(x: &[f32]) -> f32 {
    let mut sum = 0.0f32;
    for x in x {
        sum += x * x;
    }
    sum / x.len() as f32
}

/// What an error in each value counts: `importance * sqrt(mean_square + x²)`.
pub(super) fn weights<const N: usize>(x: &[f32; N], importance: &[f32; N], mean_square: f32) -> [f32; N] {
    std::array::from_fn(|i| importance[i] * (mean_square + x[i] * x[i]).sqrt())
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

/// The stretches that [`affine`] tries: the values are spread over `levels + from + i * step` levels for i in 0..=last.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub(super) from: f32,
    pub(super) step: f32,
    pub(super) last: i32,
}

/// The stretches of all weighted quantisers.
pub(super) const WEIGHTED: Steps = Steps { from: -0.9, step: 0.05, last: 36 };

/// Finds `d` and `m >= 0` and integers `q` in `0..=last` such that `d * q - m` is near `x` in weighted least squares, writes
/// `q` to `levels` and gives `(d, m)`.
///
/// The levels are first spread from the smallest value (or zero, if that is less) to the largest. Then every stretch is
/// tried: for given integers the best `d` and `m` are the solution of two linear equations, and the best `m` so far is what
/// the next stretch starts from. This is ggml's `make_qkx2_quants` and `make_qkx3_quants` without absolute errors.
pub(super) fn affine<const N: usize>(
    last: u8,
    x: &[f32; N],
    weights: &[f32; N],
    levels: &mut [u8; N],
    steps: Steps,
) -> (f32, f32) {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
        sum_w += w;
        sum_x += w * v;
    }
    min = if min > 0.0 { 0.0 } else { min };
    if max <= min {
        levels.fill(0);
        return (0.0, -min);
    }
    let last = f32::from(last);
    // A best fit can bring the minimum near the maximum, and the quotient to infinity or NaN.
    let spread = |inverse: f32, min: f32| {
        x.map(|x| {
            let v = inverse * (x - min);
            if v > 0.0 { nearest(if v < last { v } else { last }) as u8 } else { 0 }
        })
    };
    let error = |levels: &[u8; N], d: f32, min: f32| {
        let mut error = 0.0f32;
        for ((&q, &x), &w) in levels.iter().zip(x).zip(weights) {
            let off = d * f32::from(q) + min - x;
            error += w * (off * off);
        }
        error
    };
    let inverse = last / (max - min);
    let mut scale = 1.0 / inverse;
    *levels = spread(inverse, min);
    let mut least = error(levels, scale, min);
    for step in 0..=steps.last {
        let tried = spread((steps.from + steps.step * step as f32 + last) / (max - min), min);
        let (mut sum_q, mut sum_qq, mut sum_xq) = (0.0f32, 0.0f32, 0.0f32);
        for ((&q, &x), &w) in tried.iter().zip(x).zip(weights) {
            let q = f32::from(q);
            sum_q += w * q;
            sum_qq += w * q * q;
            sum_xq += w * q * x;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant > 0.0 {
            let mut d = (sum_w * sum_xq - sum_x * sum_q) / determinant;
            let mut m = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
            if m > 0.0 {
                m = 0.0;
                d = sum_xq / sum_qq;
            }
            let error = error(&tried, d, m);
            if error < least {
                *levels = tried;
                (least, scale, min) = (error, d, m);
            }
        }
    }
    (scale, -min)
}

/// Finds a scale `d` and integers `q` in `0..=last` such that `d * q` is near `x`, which is not negative, in weighted least
/// squares, writes `q` to `levels` and gives `d`.
///
/// Eight stretches are compared, then single levels are moved as long as that helps, at most five times over. This is
/// ggml's `make_qp_quants`.
pub(super) fn positive<const N: usize>(last: u8, x: &[f32; N], weights: &[f32; N], levels: &mut [u8; N]) -> f32 {
    let max = x.iter().fold(0.0f32, |m, &v| if m > v { m } else { v });
    if max < SMALLEST_BLOCK {
        levels.fill(0);
        return 0.0;
    }
    let (most, limit) = (i32::from(last), f32::from(last));
    let error = |inverse: f32| {
        let scale = 1.0 / inverse;
        let mut error = 0.0f32;
        for (&x, &w) in x.iter().zip(weights) {
            let off = x - scale * nearest(inverse * x).min(most) as f32;
            error += w * off * off;
        }
        error
    };
    let mut chosen = limit / max;
    let mut least = error(chosen);
    for step in (-4..=4).filter(|&step| step != 0) {
        let inverse = (0.1 * step as f32 + limit) / max;
        let error = error(inverse);
        if error < least {
            (least, chosen) = (error, inverse);
        }
    }
    let (mut xq, mut qq) = (0.0f32, 0.0f32);
    for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
        *level = nearest(chosen * x).min(most) as u8;
        let q = f32::from(*level);
        xq += w * x * q;
        qq += w * q * q;
    }
    for _ in 0..5 {
        let mut moved = false;
        for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
            let q = f32::from(*level);
            // The sums without this level, and with another in its place.
            let (mut other_xq, mut other_qq) = (xq - w * x * q, qq - w * q * q);
            if other_xq > 0.0 && other_qq > 0.0 {
                let better = nearest(x * other_qq / other_xq).min(most);
                if better != i32::from(*level) {
                    other_xq += w * x * better as f32;
                    other_qq += w * better as f32 * better as f32;
                    if other_xq * other_xq * qq > xq * xq * other_qq {
                        *level = better as u8;
                        (xq, qq) = (other_xq, other_qq);
                        moved = true;
                    }
                }
            }
        }
        if !moved {
            break;
        }
    }
    if qq > 0.0 { xq / qq } else { 0.0 }
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
    fn values_on_a_shifted_grid_are_found_exactly() {
        let x: [f32; 32] = std::array::from_fn(|q| 0.25 * (q % 16) as f32 - 1.5);
        let mut levels = [0u8; 32];
        assert_eq!(affine(15, &x, &[1.0; 32], &mut levels, WEIGHTED), (0.25, 1.5));
        assert_eq!(levels, std::array::from_fn(|q| q as u8 % 16));
        // A minimum above zero is not used, and one value alone is only a minimum.
        assert!(affine(15, &x.map(|x| x + 2.0), &[1.0; 32], &mut levels, WEIGHTED).1 >= 0.0);
        assert_eq!(affine(15, &[-2.0; 32], &[1.0; 32], &mut levels, WEIGHTED), (0.0, 2.0));
        let x = [0.0, 0.5, 3.0, 31.5, 7.0, 1.0, 2.0, 4.0];
        let mut levels = [0u8; 8];
        assert_eq!(positive(63, &x, &[1.0; 8], &mut levels), 0.5);
        assert_eq!(levels.map(|q| f32::from(q) * 0.5), x);
    }

    #[test]
    fn zeros_and_zero_weights_give_scale_zero() {
        let mut levels = [9u8; 4];
        assert_eq!(symmetric(8, &[0.0, 1e-16, -1e-20, 0.0], &mut levels, None), 0.0);
        assert_eq!(levels, [0; 4]);
        assert_eq!(symmetric(8, &[1.0, 2.0, 3.0, 4.0], &mut levels, Some(&[0.0; 4])), 0.0);
        assert_eq!(positive(63, &[0.0; 4], &[1.0; 4], &mut levels), 0.0);
        assert_eq!(positive(63, &[1.0, 2.0, 3.0, 4.0], &[0.0; 4], &mut levels), 0.0);
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
