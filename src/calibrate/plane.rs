//! The plane in which points spread most: principal component analysis in two dimensions.

use crate::random;

/// Directions that are iterated together. More than the two that are wanted: what is left of a wrong direction after an iteration is
/// its eigenvalue over the second, for those beyond the block at most λ_9 / λ_2.
const BLOCK: usize = 8;
/// Iterations at most. A few dozen do; where eigenvalues two to nine are all but equal, so are the planes.
const MOST: usize = 300;
/// What a direction's residual ‖C·v − λ·v‖ may be, of λ, and of the largest eigenvalue, below which rounding hides it.
const ENOUGH: (f64, f64) = (1e-10, 4e-15);

/// Points projected onto the two directions in which they spread most.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plane {
    /// `[n]`: where every point is, from the mean of all, along the first and the second direction.
    pub points: Vec<[f64; 2]>,
    /// Share of the variance along either direction; 0 where points do not spread.
    pub explained: [f64; 2],
}

/// The principal plane of `points` `[n][width]`, by orthogonal iteration with a Rayleigh-Ritz step on their covariance, which is
/// never formed: memory is O((n + width) · 8) beside the points, and time 32 · n · width operations per iteration.
///
/// All of it is f64, in one order and on one thread. A direction's sign is that which makes its largest component (the first of
/// several) positive. Points on a line have a second coordinate of 0 but for rounding.
///
/// # Panics
/// If the points are not whole rows of this width.
pub fn principal_plane(points: &[f32], width: usize) -> Plane {
    assert!(width > 0 && points.len().is_multiple_of(width), "points of another width");
    let n = points.len() / width;
    if n == 0 {
        return Plane::default();
    }
    let rows = || points.chunks_exact(width);
    let mut mean = vec![0.0; width];
    rows().for_each(|row| mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x)));
    mean.iter_mut().for_each(|m| *m /= n as f64);
    let from_mean = |row: &[f32], i: usize| f64::from(row[i]) - mean[i];
    let total: f64 = rows().map(|row| (0..width).map(|i| from_mean(row, i).powi(2)).sum::<f64>()).sum();
    if total.is_nan() || total <= 0.0 {
        return Plane { points: vec![[0.0; 2]; n], explained: [0.0; 2] };
    }

    // v: [width][BLOCK], y: [n][BLOCK], as every row of points meets all directions at once.
    let block = BLOCK.min(width);
    let mut v: Vec<[f64; BLOCK]> = (0..width)
        .map(|i| std::array::from_fn(|j| if j < block { random::uniform(0, j as u64, i as u64) - 0.5 } else { 0.0 }))
        .collect();
    orthonormalise(&mut v);
    let mut y = vec![[0.0; BLOCK]; n];
    let mut values = [0.0; BLOCK];
    for _ in 0..MOST {
        for (y, row) in y.iter_mut().zip(rows()) {
            *y = [0.0; BLOCK];
            for (i, v) in v.iter().enumerate() {
                let x = from_mean(row, i);
                y.iter_mut().zip(v).for_each(|(y, v)| *y += x * v);
            }
        }
        let mut small = [[0.0; BLOCK]; BLOCK];
        for y in &y {
            for (a, row) in y.iter().zip(&mut small) {
                row.iter_mut().zip(y).for_each(|(s, b)| *s += a * b);
            }
        }
        let rotation = eigen(small, &mut values);
        rotate(&mut v, &rotation);
        rotate(&mut y, &rotation);
        let mut next = vec![[0.0; BLOCK]; width];
        for (y, row) in y.iter().zip(rows()) {
            for (i, next) in next.iter_mut().enumerate() {
                let x = from_mean(row, i);
                next.iter_mut().zip(y).for_each(|(next, y)| *next += x * y);
            }
        }
        let residual = |j: usize| {
            libm::sqrt(next.iter().zip(&v).map(|(next, v)| (next[j] - values[j] * v[j]).powi(2)).sum::<f64>())
        };
        if (0..2).all(|j| residual(j) <= ENOUGH.0 * values[j] + ENOUGH.1 * values[0]) {
            break;
        }
        v = next;
        orthonormalise(&mut v);
    }
    // What is left in `y` and `v` belongs together only if the loop ended early: project once more.
    let direction = |j: usize| {
        let largest = v.iter().map(|v| v[j]).fold(0.0f64, |most, x| if x.abs() > most.abs() { x } else { most });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        v.iter().map(|v| sign * v[j]).collect::<Vec<f64>>()
    };
    let directions = [direction(0), direction(1)];
    let along = |row: &[f32], d: &[f64]| d.iter().enumerate().map(|(i, d)| from_mean(row, i) * d).sum::<f64>();
    let projected: Vec<[f64; 2]> = rows().map(|row| [0, 1].map(|j| along(row, &directions[j]))).collect();
    let share = |j: usize| projected.iter().map(|p| p[j] * p[j]).sum::<f64>() / total;
    Plane { explained: [share(0), share(1)], points: projected }
}

/// Makes the columns of `v` orthonormal by Gram and Schmidt's method, twice over, which leaves rounding errors alone; those that
/// depend on earlier ones become zero.
fn orthonormalise(v: &mut [[f64; BLOCK]]) {
    for j in 0..BLOCK {
        let norm = |v: &[[f64; BLOCK]]| libm::sqrt(v.iter().map(|v| v[j] * v[j]).sum::<f64>());
        let before = norm(v);
        for _ in 0..2 {
            for k in 0..j {
                let dot: f64 = v.iter().map(|v| v[j] * v[k]).sum();
                v.iter_mut().for_each(|v| v[j] -= dot * v[k]);
            }
        }
        let after = norm(v);
        // Less than this is rounding: no direction of its own.
        let scale = if after > 1e-12 * before { 1.0 / after } else { 0.0 };
        v.iter_mut().for_each(|v| v[j] *= scale);
    }
}

fn rotate(rows: &mut [[f64; BLOCK]], rotation: &[[f64; BLOCK]; BLOCK]) {
    for row in rows {
        *row = std::array::from_fn(|j| row.iter().zip(rotation).map(|(x, r)| x * r[j]).sum());
    }
}

/// Eigenvalues of a symmetric matrix, descending, and its eigenvectors as columns, by Jacobi's rotations.
fn eigen(mut a: [[f64; BLOCK]; BLOCK], values: &mut [f64; BLOCK]) -> [[f64; BLOCK]; BLOCK] {
    let mut vectors: [[f64; BLOCK]; BLOCK] = std::array::from_fn(|i| std::array::from_fn(|j| f64::from(i == j)));
    // It converges quadratically: 8 × 8 take some six sweeps.
    for _ in 0..30 {
        let mut rotated = false;
        for p in 0..BLOCK {
            for q in p + 1..BLOCK {
                if a[p][q].abs() <= f64::EPSILON * libm::sqrt((a[p][p] * a[q][q]).abs()) {
                    continue;
                }
                rotated = true;
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + libm::sqrt(theta * theta + 1.0));
                let c = 1.0 / libm::sqrt(t * t + 1.0);
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (rp, rq) = (a[p], a[q]);
                for k in 0..BLOCK {
                    (a[p][k], a[q][k]) = (c * rp[k] - s * rq[k], s * rp[k] + c * rq[k]);
                }
                for row in &mut vectors {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: [usize; BLOCK] = std::array::from_fn(|i| i);
    order.sort_by(|&i, &j| a[j][j].total_cmp(&a[i][i]));
    *values = order.map(|i| a[i][i].max(0.0));
    std::array::from_fn(|i| order.map(|j| vectors[i][j]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(stream: u64, counter: usize) -> f64 {
        random::uniform(7, stream, counter as u64) - 0.5
    }

    /// All eigenvalues and eigenvectors (as rows) of a symmetric matrix by Jacobi's first method: always the largest entry.
    fn by_largest_entry(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
        let n = a.len();
        let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(i == j)).collect()).collect();
        for _ in 0..40 * n * n {
            let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
            let (p, q) = pairs.max_by(|x, y| a[x.0][x.1].abs().total_cmp(&a[y.0][y.1].abs())).unwrap();
            if a[p][q].abs() < 1e-15 {
                break;
            }
            let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
            let (s, c) = angle.sin_cos();
            for row in &mut a {
                (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
            }
            let (rp, rq) = (a[p].clone(), a[q].clone());
            a[p] = rp.iter().zip(&rq).map(|(x, y)| c * x - s * y).collect();
            a[q] = rp.iter().zip(&rq).map(|(x, y)| s * x + c * y).collect();
            let (vp, vq) = (vectors[p].clone(), vectors[q].clone());
            vectors[p] = vp.iter().zip(&vq).map(|(x, y)| c * x - s * y).collect();
            vectors[q] = vp.iter().zip(&vq).map(|(x, y)| s * x + c * y).collect();
        }
        let mut found: Vec<_> = (0..n).map(|i| (a[i][i], vectors[i].clone())).collect();
        found.sort_by(|x, y| y.0.total_cmp(&x.0));
        found
    }

    fn covariance(points: &[f32], width: usize) -> (Vec<f64>, Vec<Vec<f64>>) {
        let n = (points.len() / width) as f64;
        let column = |i: usize| points.iter().skip(i).step_by(width).map(|&x| f64::from(x));
        let mean: Vec<f64> = (0..width).map(|i| column(i).sum::<f64>() / n).collect();
        let entry = |i: usize, j: usize| column(i).zip(column(j)).map(|(x, y)| (x - mean[i]) * (y - mean[j])).sum();
        let all = (0..width).map(|i| (0..width).map(|j| entry(i, j)).collect()).collect();
        (mean, all)
    }

    /// Points of a plane in many dimensions are found again, but for their mean.
    #[test]
    fn a_plane_in_many_dimensions() {
        const WIDTH: usize = 300;
        // Two orthogonal directions with their largest component positive.
        let (mut a, mut b) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
        (a[3], a[7], b[3], b[7], b[200]) = (0.6, 0.8, -0.48, 0.36, 0.8);
        let flat: Vec<[f64; 2]> = (0..40).map(|k| [10.0 * uniform(1, k), 3.0 * uniform(2, k)]).collect();
        let center = |j: usize| flat.iter().map(|p| p[j]).sum::<f64>() / flat.len() as f64;
        let points: Vec<f32> = flat
            .iter()
            .flat_map(|p| (0..WIDTH).map(|i| (p[0] * a[i] + p[1] * b[i] + uniform(3, i)) as f32).collect::<Vec<_>>())
            .collect();
        let found = principal_plane(&points, WIDTH);
        assert!((found.explained[0] + found.explained[1] - 1.0).abs() < 1e-9, "{:?}", found.explained);
        assert!(found.explained[0] > found.explained[1]);
        // The principal axes are turned a little within the plane: distances are what must be the same.
        for i in 0..flat.len() {
            let from_mean = ((flat[i][0] - center(0)).powi(2) + (flat[i][1] - center(1)).powi(2)).sqrt();
            let there = (found.points[i][0].powi(2) + found.points[i][1].powi(2)).sqrt();
            assert!((from_mean - there).abs() < 1e-5, "{from_mean}, {there}");
            let apart = |p: &[[f64; 2]]| ((p[i][0] - p[0][0]).powi(2) + (p[i][1] - p[0][1]).powi(2)).sqrt();
            assert!((apart(&flat) - apart(&found.points)).abs() < 1e-5);
        }
        let mixed: f64 = found.points.iter().map(|p| p[0] * p[1]).sum();
        assert!(mixed.abs() < 1e-6, "uncorrelated: {mixed}");
    }

    /// Against all eigenvectors of the covariance, with more points than dimensions and fewer.
    #[test]
    fn the_same_as_a_full_decomposition() {
        for (n, width) in [(60, 12), (7, 20), (3, 30), (50, 2), (200, 33)] {
            let points: Vec<f32> =
                (0..n * width).map(|k| (uniform(4, k) * 4.0 / (1.0 + (k % width) as f64)) as f32).collect();
            let found = principal_plane(&points, width);
            let (mean, matrix) = covariance(&points, width);
            let total: f64 = (0..width).map(|i| matrix[i][i]).sum();
            let expected = by_largest_entry(matrix);
            for j in 0..2 {
                let (value, vector) = &expected[j];
                assert!((found.explained[j] - value / total).abs() < 1e-9, "{n} × {width}: {:?}", found.explained);
                let largest = vector.iter().copied().max_by(|x, y| x.abs().total_cmp(&y.abs())).unwrap();
                for (point, row) in found.points.iter().zip(points.chunks(width)) {
                    let along: f64 = (0..width).map(|i| (f64::from(row[i]) - mean[i]) * vector[i]).sum();
                    let along = along * largest.signum();
                    assert!((point[j] - along).abs() < 1e-7, "{n} × {width}, {j}: {}, {along}", point[j]);
                }
            }
        }
    }

    #[test]
    fn less_than_a_plane() {
        assert_eq!(principal_plane(&[], 5), Plane::default());
        assert_eq!(principal_plane(&[1.0, 2.0, 1.0, 2.0], 2), Plane { points: vec![[0.0; 2]; 2], explained: [0.0; 2] });
        // A line in one dimension and in three.
        let line = principal_plane(&[1.0, 2.0, 6.0], 1);
        assert_eq!(line.points, [[-2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]);
        assert_eq!(line.explained, [1.0, 0.0]);
        let line = principal_plane(&[0.0, 0.0, 0.0, 1.0, 2.0, -3.0, -1.0, -2.0, 3.0, 2.0, 4.0, -6.0], 3);
        for (point, along) in line.points.iter().zip([0.5, -0.5, 1.5, -1.5]) {
            // The largest component of (1, 2, -3) is the last, which is to be positive; the mean is 0.5 along it.
            assert!((point[0] - 14f64.sqrt() * along).abs() < 1e-9 && point[1].abs() < 1e-9, "{point:?}");
        }
        assert!((line.explained[0] - 1.0).abs() < 1e-12 && line.explained[1] < 1e-12);
    }
}
