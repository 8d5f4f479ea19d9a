//! The searches for a block's scale (and minimum) that the formats share, each over `L` blocks at once (see
//! [`lanes`](super::lanes)).
//!
//! Sums are written in ggml's order and with its roundings (no fused multiply-add), because a last-bit difference in
//! a sum can choose another scale and so change the bytes of a file.

use super::batch::Weighting;
use super::lanes::{Columns, Lanes};

/// A block whose largest magnitude is below this is stored as zeros.
pub(super) const SMALLEST_BLOCK: f32 = 1e-15;

/// The blocks of super-blocks, and their levels.
#[inline(always)]
pub(super) fn subs<'a, const SUB: usize, const L: usize>(
    x: &'a [Lanes<L>],
    levels: &'a mut [Lanes<L>],
) -> impl Iterator<Item = (&'a [Lanes<L>; SUB], &'a mut [Lanes<L>; SUB])> {
    x.as_chunks().0.iter().zip(levels.as_chunks_mut().0)
}

/// Adds the squares of `x` to `sum`, one by one.
#[inline(always)]
pub(super) fn add_squares<const L: usize>(sum: &mut Lanes<L>, x: &[Lanes<L>]) {
    for &x in x {
        *sum += x * x;
    }
}

/// The sum of squares over their number.
#[inline(always)]
pub(super) fn mean_square<const L: usize>(x: &[Lanes<L>]) -> Lanes<L> {
    let mut sum = Lanes::splat(0.0);
    add_squares(&mut sum, x);
    sum / Lanes::splat(x.len() as f32)
}

/// What an error in each value counts: as [`weights_about`] the mean square of the row, or else the value's square.
#[inline(always)]
pub(super) fn weights<const N: usize, const L: usize>(
    x: &[Lanes<L>; N],
    weighting: Option<&Weighting<N, L>>,
) -> Columns<N, L> {
    match weighting {
        Some(weighting) => weights_about(x, &weighting.importance.0, weighting.row_mean_square),
        None => squares(x),
    }
}

/// The squares of values.
#[inline(always)]
pub(super) fn squares<const N: usize, const L: usize>(x: &[Lanes<L>; N]) -> Columns<N, L> {
    let mut squares = Columns::ZERO;
    for (square, &x) in squares.0.iter_mut().zip(x) {
        *square = x * x;
    }
    squares
}

/// `importance * sqrt(mean_square + x²)` for each value.
#[inline(always)]
pub(super) fn weights_about<const N: usize, const L: usize>(
    x: &[Lanes<L>; N],
    importance: &[Lanes<L>; N],
    mean_square: Lanes<L>,
) -> Columns<N, L> {
    let mut weights = Columns::ZERO;
    for ((w, &x), &importance) in weights.0.iter_mut().zip(x).zip(importance) {
        *w = importance * (mean_square + x * x).sqrt();
    }
    weights
}

/// The value of largest magnitude, the first of equals, and its magnitude.
#[inline(always)]
pub(super) fn extreme<const L: usize>(x: &[Lanes<L>]) -> (Lanes<L>, Lanes<L>) {
    let (mut extreme, mut largest) = (Lanes::splat(0.0), Lanes::splat(0.0));
    for &x in x {
        let more = x.abs().gt(largest);
        largest = more.select(x.abs(), largest);
        extreme = more.select(x, extreme);
    }
    (extreme, largest)
}

/// Finds a scale `d` and integers `q` in `-nmax..nmax` such that `d * q` is near `x` in weighted least squares, writes
/// `q + nmax` to `levels` and returns `d` (of either sign). `nmax` is at most 128.
///
/// The value of largest magnitude is first laid on `-nmax`, then 18 steps of 0.1 either way are tried; for given
/// integers the best scale is Σwxq / Σwq². This is ggml's `make_qx_quants` with `rmse_type` 1.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const L: usize>(
    nmax: i32,
    x: &[Lanes<L>; N],
    weights: &Columns<N, L>,
    levels: &mut [Lanes<L>; N],
) -> Lanes<L> {
    let (zero, limit) = (Lanes::splat(0.0), Lanes::splat(nmax as f32));
    let (max, amax) = extreme(x);
    let quantum = |inverse: Lanes<L>, x| (inverse * x).nearest().max(-limit).min(limit - Lanes::splat(1.0));
    let mut weighted = Columns::<N, L>::ZERO;
    for ((wx, &w), &x) in weighted.0.iter_mut().zip(&weights.0).zip(x) {
        *wx = w * x;
    }
    let sums = |inverse: Lanes<L>| {
        let (mut xq, mut qq) = (zero, zero);
        for ((&x, &w), &wx) in x.iter().zip(&weights.0).zip(&weighted.0) {
            let q = quantum(inverse, x);
            xq += wx * q;
            qq += w * q * q;
        }
        (xq, qq)
    };
    let mut chosen = -limit / max;
    let (xq, qq) = sums(chosen);
    let mut scale = qq.ne(zero).select(xq / qq, zero);
    let mut best = scale * xq;
    for step in (-9..=9).filter(|&step| step != 0) {
        let inverse = Lanes::splat(-(nmax as f32 + 0.1 * step as f32)) / max;
        let (xq, qq) = sums(inverse);
        let better = qq.gt(zero) & (xq * xq).gt(best * qq);
        chosen = better.select(inverse, chosen);
        scale = better.select(xq / qq, scale);
        best = better.select(scale * xq, best);
    }
    // Level 0 stands for -nmax, but the scale of a block of nothing is 0.
    let nothing = Lanes::splat(SMALLEST_BLOCK).gt(amax);
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = nothing.select(zero, quantum(chosen, x) + limit);
    }
    nothing.select(zero, scale)
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
#[inline(always)]
pub(super) fn affine<const N: usize, const L: usize>(
    last: u8,
    x: &[Lanes<L>; N],
    weights: &Columns<N, L>,
    levels: &mut [Lanes<L>; N],
    steps: Steps,
) -> (Lanes<L>, Lanes<L>) {
    let (zero, most) = (Lanes::splat(0.0), Lanes::splat(f32::from(last)));
    let weights = &weights.0;
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (&v, &w) in x.iter().zip(weights).skip(1) {
        min = v.min(min);
        max = v.max(max);
        sum_w += w;
        sum_x += w * v;
    }
    min = min.gt(zero).select(zero, min);
    // Nothing to spread: the minimum is all there is.
    let flat = min.ge(max);
    let lowest = min;
    // A best fit can bring the minimum near the maximum, and the product past all bounds.
    let spread =
        |inverse: Lanes<L>, min: Lanes<L>, x: Lanes<L>| (inverse * (x - min)).nearest_wrapping().max(zero).min(most);
    let off = |q: Lanes<L>, d: Lanes<L>, min: Lanes<L>, x: Lanes<L>| {
        let off = d * q + min - x;
        off * off
    };
    let inverse = most / (max - min);
    // The levels follow from the stretch and the minimum it started from.
    let mut chosen = (inverse, min);
    let mut scale = Lanes::splat(1.0) / inverse;
    let mut least = zero;
    for (&x, &w) in x.iter().zip(weights) {
        least += w * off(spread(inverse, min, x), scale, min, x);
    }
    let mut tried = Columns::<N, L>::ZERO;
    for step in 0..=steps.last {
        let inverse = Lanes::splat(steps.from + steps.step * step as f32 + f32::from(last)) / (max - min);
        let (mut sum_q, mut sum_qq, mut sum_xq) = (zero, zero, zero);
        for ((q, &x), &w) in tried.0.iter_mut().zip(x).zip(weights) {
            *q = spread(inverse, min, x);
            let wq = w * *q;
            sum_q += wq;
            sum_qq += wq * *q;
            sum_xq += wq * x;
        }
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        let d = (sum_w * sum_xq - sum_x * sum_q) / determinant;
        let m = (sum_qq * sum_x - sum_q * sum_xq) / determinant;
        let above = m.gt(zero);
        let (d, m) = (above.select(sum_xq / sum_qq, d), above.select(zero, m));
        let mut error = zero;
        for ((&q, &x), &w) in tried.0.iter().zip(x).zip(weights) {
            error += w * off(q, d, m, x);
        }
        let better = determinant.gt(zero) & least.gt(error);
        chosen = (better.select(inverse, chosen.0), better.select(min, chosen.1));
        least = better.select(error, least);
        scale = better.select(d, scale);
        min = better.select(m, min);
    }
    for (level, &x) in levels.iter_mut().zip(x) {
        *level = flat.select(zero, spread(chosen.0, chosen.1, x));
    }
    (flat.select(zero, scale), flat.select(-lowest, -min))
}

/// Finds a scale `d` and integers `q` in `0..=last` such that `d * q` is near `x`, which is not negative, in weighted least
/// squares, writes `q` to `levels` and gives `d`.
///
/// Eight stretches are compared, then single levels are moved as long as that helps, at most five times over. This is
/// ggml's `make_qp_quants`.
#[inline(always)]
pub(super) fn positive<const N: usize, const L: usize>(
    last: u8,
    x: &[Lanes<L>; N],
    weights: &[Lanes<L>; N],
    levels: &mut [Lanes<L>; N],
) -> Lanes<L> {
    let (zero, most) = (Lanes::splat(0.0), Lanes::splat(f32::from(last)));
    let max = x.iter().fold(zero, |max, &x| max.max(x));
    let quantum = |inverse: Lanes<L>, x: Lanes<L>| (inverse * x).nearest_wrapping().min(most);
    let error = |inverse: Lanes<L>, quantum: &dyn Fn(Lanes<L>, Lanes<L>) -> Lanes<L>| {
        let scale = Lanes::splat(1.0) / inverse;
        let mut error = zero;
        for (&x, &w) in x.iter().zip(weights) {
            let off = x - scale * quantum(inverse, x);
            error += w * off * off;
        }
        error
    };
    let mut chosen = most / max;
    // The first guess is a byte already. It differs where a number is negative after all, by a fit gone astray.
    let mut least = error(chosen, &|inverse, x| (inverse * x).nearest_wrapping().wrapping_byte());
    for step in (-4..=4).filter(|&step| step != 0) {
        let inverse = Lanes::splat(0.1 * step as f32 + f32::from(last)) / max;
        let error = error(inverse, &quantum);
        let better = least.gt(error);
        least = better.select(error, least);
        chosen = better.select(inverse, chosen);
    }
    let (mut xq, mut qq) = (zero, zero);
    for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
        let q = quantum(chosen, x);
        *level = q.wrapping_byte();
        xq += w * x * q;
        qq += w * q * q;
    }
    for _ in 0..5 {
        // A block in which nothing moved comes to the same end when it is gone through again.
        let mut moved = false;
        for ((level, &x), &w) in levels.iter_mut().zip(x).zip(weights) {
            let (q, wx) = (*level, w * x);
            // The sums without this level, and with another in its place.
            let (other_xq, other_qq) = (xq - wx * q, qq - w * q * q);
            let possible = other_xq.gt(zero) & other_qq.gt(zero);
            let better = (x * other_qq / other_xq).nearest_wrapping().min(most);
            let other_xq = other_xq + wx * better;
            let other_qq = other_qq + w * better * better;
            let move_it = possible & better.ne(q) & (other_xq * other_xq * qq).gt(xq * xq * other_qq);
            *level = move_it.select(better.wrapping_byte(), q);
            xq = move_it.select(other_xq, xq);
            qq = move_it.select(other_qq, qq);
            moved |= move_it.any();
        }
        if !moved {
            break;
        }
    }
    let nothing = Lanes::splat(SMALLEST_BLOCK).gt(max);
    for level in levels {
        *level = nothing.select(zero, *level);
    }
    (!nothing & qq.gt(zero)).select(xq / qq, zero)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lanes<const N: usize>(x: [f32; N]) -> [Lanes<1>; N] {
        x.map(|x| Lanes([x]))
    }

    fn ones<const N: usize>() -> Columns<N, 1> {
        Columns(lanes([1.0; N]))
    }

    #[test]
    fn values_on_a_grid_are_found_exactly() {
        let x = lanes(std::array::from_fn::<_, 16, _>(|q| 0.25 * (q as f32 - 8.0)));
        let mut levels = lanes([0.0; 16]);
        assert_eq!(symmetric(8, &x, &squares(&x), &mut levels).0, [0.25]);
        assert_eq!(levels, lanes(std::array::from_fn(|q| q as f32)));
    }

    #[test]
    fn values_on_a_shifted_grid_are_found_exactly() {
        let x: [f32; 32] = std::array::from_fn(|q| 0.25 * (q % 16) as f32 - 1.5);
        let mut levels = lanes([0.0; 32]);
        assert_eq!(affine(15, &lanes(x), &ones(), &mut levels, WEIGHTED), (Lanes([0.25]), Lanes([1.5])));
        assert_eq!(levels, lanes(std::array::from_fn(|q| (q % 16) as f32)));
        // A minimum above zero is not used, and one value alone is only a minimum.
        assert!(affine(15, &lanes(x.map(|x| x + 2.0)), &ones(), &mut levels, WEIGHTED).1.0[0] >= 0.0);
        assert_eq!(affine(15, &lanes([-2.0; 32]), &ones(), &mut levels, WEIGHTED), (Lanes([0.0]), Lanes([2.0])));
        let x = [0.0, 0.5, 3.0, 31.5, 7.0, 1.0, 2.0, 4.0];
        let mut levels = lanes([0.0; 8]);
        assert_eq!(positive(63, &lanes(x), &ones().0, &mut levels).0, [0.5]);
        assert_eq!(levels, lanes(x.map(|x| x / 0.5)));
    }

    #[test]
    fn zeros_and_zero_weights_give_scale_zero() {
        let (none, some) = (Columns(lanes([0.0; 4])), lanes([1.0, 2.0, 3.0, 4.0]));
        let mut levels = lanes([9.0; 4]);
        let tiny = lanes([0.0, 1e-16, -1e-20, 0.0]);
        assert_eq!(symmetric(8, &tiny, &squares(&tiny), &mut levels).0, [0.0]);
        assert_eq!(levels, none.0);
        assert_eq!(symmetric(8, &some, &none, &mut levels).0, [0.0]);
        assert_eq!(positive(63, &none.0, &ones().0, &mut levels).0, [0.0]);
        assert_eq!(positive(63, &some, &none.0, &mut levels).0, [0.0]);
    }

    proptest! {
        /// The chosen scale is no worse than laying the largest value on -nmax.
        #[test]
        fn never_worse_than_the_first_guess(x in prop::array::uniform32(-10.0f32..10.0)) {
            let max = x.iter().copied().fold(0.0f32, |m, v| if v.abs() > m.abs() { v } else { m });
            let error = |scale: f32, q: &dyn Fn(usize) -> f32| -> f64 {
                x.iter().enumerate().map(|(i, &v)| f64::from(v * v) * f64::from(v - scale * q(i)).powi(2)).sum()
            };
            let mut levels = lanes([0.0; 32]);
            let scale = symmetric(8, &lanes(x), &squares(&lanes(x)), &mut levels).0[0];
            let first = -max / 8.0;
            let guess = |i: usize| if first == 0.0 { 0.0 } else { (x[i] / first).round().clamp(-8.0, 7.0) };
            let found = error(scale, &|i| levels[i].0[0] - 8.0);
            prop_assert!(found <= error(first, &guess) * 1.000_1 + 1e-6);
        }

        /// What one lane finds does not depend on how many there are.
        #[test]
        fn lanes_are_alone(x in prop::array::uniform8(prop::array::uniform32(-10.0f32..10.0))) {
            let eight = Columns::of(x.each_ref());
            let mut levels = Columns::<32, 8>::ZERO;
            let (d, m) = affine(15, &eight.0, &squares(&eight.0), &mut levels.0, WEIGHTED);
            for (l, x) in x.into_iter().enumerate() {
                let one = lanes(x);
                let mut expected = lanes([0.0; 32]);
                let found = affine(15, &one, &squares(&one), &mut expected, WEIGHTED);
                prop_assert_eq!(found, (Lanes([d.0[l]]), Lanes([m.0[l]])));
                prop_assert_eq!(levels.0.map(|q| [q.0[l]]), expected.map(|q| q.0));
            }
        }
    }
}
