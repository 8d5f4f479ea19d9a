//! Element-wise kernels and norms that only some families use: against f64, and against the scalar form bit for bit.

use super::{bits, close, scalar, values};
use crate::kernels::Kernels;

/// Runs a kernel in place on this tier and on the scalar one, asks for the same bits, and for closeness to `want`.
fn in_place(kernels: &Kernels, x: &[f32], run: &dyn Fn(&Kernels, &mut [f32]), want: &dyn Fn(usize) -> f64) {
    let (mut got, mut oracle) = (x.to_vec(), x.to_vec());
    run(kernels, &mut got);
    run(&scalar::KERNELS, &mut oracle);
    assert_eq!(bits(&got), bits(&oracle));
    close(&got, &(0..x.len()).map(want).collect::<Vec<_>>(), 1e-6);
}

pub(super) fn suite(kernels: &Kernels) {
    for n in [1, 5, 8, 16, 31, 96, 333] {
        let (x, y, z) = (values(1, n), values(2, n), values(3, n));
        let wide = |x: &[f32], i: usize| f64::from(x[i]);
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());

        let mean = (0..n).map(|i| wide(&x, i)).sum::<f64>() / n as f64;
        let variance = (0..n).map(|i| (wide(&x, i) - mean).powi(2)).sum::<f64>() / n as f64;
        let norm = |k: &Kernels, out: &mut [f32]| (k.layer_norm)(&x, &y, &z, 1e-5, out);
        in_place(kernels, &x, &norm, &|i| (wide(&x, i) - mean) / (variance + 1e-5).sqrt() * wide(&y, i) + wide(&z, i));

        let dot = (0..n).map(|i| wide(&x, i) * wide(&y, i)).sum::<f64>();
        let size = (0..n).map(|i| (wide(&x, i) * wide(&y, i)).abs()).sum::<f64>();
        let got = (kernels.dot)(&x, &y);
        assert_eq!(got.to_bits(), (scalar::KERNELS.dot)(&x, &y).to_bits());
        assert!((f64::from(got) - dot).abs() <= 1e-6 * size.max(1e-30), "{got} {dot}");

        in_place(kernels, &z, &|k, out| (k.sigmoid_mul)(&x, out), &|i| wide(&z, i) * sigmoid(wide(&x, i)));
        in_place(kernels, &z, &|k, out| (k.add_product)(&x, &y, out), &|i| wide(&z, i) + wide(&x, i) * wide(&y, i));
        in_place(kernels, &x, &|k, out| (k.half_relu_squared)(out), &|i| wide(&x, i).max(0.0).powi(2) / 2.0);
        in_place(kernels, &x, &|k, out| (k.gelu_tanh)(out), &|i| {
            let x = wide(&x, i);
            x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        });

        let head: Vec<f32> = x.iter().chain(&y).copied().collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = z.iter().map(|a| (a.cos(), a.sin())).unzip();
        in_place(kernels, &head, &|k, out| (k.rope_halves)(out, &cos, &sin), &|i| {
            let (a, b) = (wide(&x, i % n), wide(&y, i % n));
            let (c, s) = (wide(&cos, i % n), wide(&sin, i % n));
            if i < n { a * c - b * s } else { b * c + a * s }
        });
    }
    // What is not finite stays so: it must not pass for an activation of zero.
    for (name, kernel) in [("gelu", kernels.gelu_tanh), ("relu", kernels.half_relu_squared)] {
        let mut x = [1.0, f32::NAN, 2.0];
        kernel(&mut x);
        assert!(x[1].is_nan() && x[0].is_finite() && x[2].is_finite(), "{name}: {x:?}");
    }
}
