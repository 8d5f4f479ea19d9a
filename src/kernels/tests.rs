//! One suite, stamped on every instruction set: against an f64 oracle where rounding is free, and against the scalar form
//! bit for bit.

mod attention;
mod lanes;
pub(super) mod panels;
mod rows;

use super::*;
use half::{bf16, f16};

/// Reproducible values with a heavy tail, some exact zeros and both signs.
fn values(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|i| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let u = (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
            if i % 17 == 3 { 0.0 } else { u * if i % 11 == 0 { 20.0 } else { 1.0 } }
        })
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let scale = want.iter().fold(1e-30f64, |m, w| m.max(w.abs()));
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(g) - w).abs() <= tolerance * scale, "at {i}: {g} against {w} (scale {scale})");
    }
}

/// Where blocks have half floats, which must not be just anything.
fn half_floats(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
        _ => &[0],
    }
}

/// Weights as stored, and what they stand for.
fn weights(ty: TensorType, seed: u64, n: usize) -> (Vec<u8>, Vec<f32>) {
    let x = values(seed, n);
    let mut bytes = Vec::new();
    let mut meant = Vec::new();
    match ty {
        TensorType::F32 => {
            bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
            meant = x;
        }
        TensorType::F16 => {
            for x in x {
                let h = f16::from_f32(x);
                bytes.extend(h.to_le_bytes());
                meant.push(h.to_f32());
            }
        }
        TensorType::BF16 => {
            for x in x {
                let h = bf16::from_f32(x);
                bytes.extend(h.to_le_bytes());
                meant.push(h.to_f32());
            }
        }
        // Any bytes are a valid block, extremes included: levels all low, all high, and the most negative.
        _ => {
            for (b, x) in x.chunks_exact(ty.block_len()).enumerate() {
                let raw = |i: usize| match b % 5 {
                    2 => [0xff, 0x80][b / 5 % 2],
                    4 => (x[i % x.len()] * 997.0) as i32 as u8 ^ 0x80,
                    _ => (x[i % x.len()] * 997.0) as i32 as u8,
                };
                let mut block: Vec<u8> = (0..ty.block_bytes()).map(raw).collect();
                for (i, &at) in half_floats(ty).iter().enumerate() {
                    let half = f16::from_f32(x[i] / 8.0);
                    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
                }
                bytes.extend(block);
            }
            meant.resize(n, 0.0);
            crate::quant::format(ty).expect("a format").dequantize(&bytes, &mut meant);
        }
    }
    (bytes, meant)
}

fn matmul_suite(kernels: &Kernels) {
    for ty in WEIGHT_TYPES {
        let ks: &[usize] = match ty.block_len() {
            1 => &[1, 7, 8, 16, 31, 96, 200],
            32 => &[32, 96, 320],
            _ => &[256, 768, 1536],
        };
        for &k in ks {
            for rows in [1, 2, 3, 5, 8, 9, 13, 32] {
                let (w, meant) = weights(ty, 3 + k as u64, rows * k);
                let x = ActRows::new(&scalar::KERNELS, values(77 + rows as u64, 8 * k), k);
                let meant_x = x.meant(Form::of(ty));
                let mut all = vec![0.0; 8 * rows];
                kernels.matmul(ty).expect("a kernel")(&w, rows, x.acts(0..8), &mut all);
                let want: Vec<f64> = (0..8 * rows)
                    .map(|i| {
                        let (c, r) = (i / rows, i % rows);
                        (0..k).map(|j| f64::from(meant[r * k + j]) * meant_x[c * k + j]).sum()
                    })
                    .collect();
                close(&all, &want, 2e-5);

                let mut oracle = vec![0.0; 8 * rows];
                scalar::KERNELS.matmul(ty).expect("a kernel")(&w, rows, x.acts(0..8), &mut oracle);
                assert_eq!(bits(&all), bits(&oracle), "{ty} {k} {rows}: not the scalar bits");

                // A row's bits never depend on its company: any group of columns, any group of weight rows.
                for n in 1..8 {
                    for c in (0..8).step_by(n) {
                        let n = n.min(8 - c);
                        let mut some = vec![0.0; n * rows];
                        kernels.matmul(ty).expect("a kernel")(&w, rows, x.acts(c..c + n), &mut some);
                        assert_eq!(bits(&some), bits(&all[c * rows..(c + n) * rows]), "{ty} {k} {rows}: rows {c}+{n}");
                    }
                }
                let row_bytes = w.len() / rows;
                for r in 0..rows {
                    let mut one = vec![0.0; 8];
                    kernels.matmul(ty).expect("a kernel")(
                        &w[r * row_bytes..(r + 1) * row_bytes],
                        1,
                        x.acts(0..8),
                        &mut one,
                    );
                    for c in 0..8 {
                        assert_eq!(one[c].to_bits(), all[c * rows + r].to_bits());
                    }
                }
            }
        }
    }
}

fn quantize_suite(kernels: &Kernels) {
    let k = 256;
    let mut x = values(9, k);
    x[32..64].fill(0.0);
    x[64] = 1e30;
    x[96..128].fill(1e-40);
    x[128..160].iter_mut().enumerate().for_each(|(i, x)| *x = i as f32 - 16.5);
    let (got, want) = (ActRows::new(kernels, x.clone(), k), ActRows::new(&scalar::KERNELS, x.clone(), k));
    let (got, want) = (got.acts(0..1), want.acts(0..1));
    assert_eq!((got.q, got.wide, got.high, got.low), (want.q, want.wide, want.high, want.low));
    let scale_bits = |acts: &Acts<'_>| -> Vec<_> {
        acts.scales.iter().map(|s| (s.d.to_bits(), s.d_sum.to_bits(), s.minus_8, s.minus_32)).collect()
    };
    assert_eq!(scale_bits(&got), scale_bits(&want));
    let wide_bits =
        |acts: &Acts<'_>| -> Vec<_> { acts.wide_scales.iter().map(|s| (s.d.to_bits(), s.minus_128)).collect() };
    assert_eq!(wide_bits(&got), wide_bits(&want));
    for (i, (&x, &q)) in x.iter().zip(got.wide).enumerate() {
        let d = got.wide_scales[i / Q8_BLOCK].d;
        assert!(q.abs() <= WIDE_MAX);
        assert!(x.abs() < 1e-30 || (x - f32::from(q) * d).abs() <= 0.501 * d, "{x} {q} {d}");
        assert!(got.high[i] >= -127 && (-64..64).contains(&got.low[i]));
        assert_eq!(128 * i16::from(got.high[i]) + i16::from(got.low[i]), q);
    }
    for (b, (x, q)) in x.chunks(32).zip(got.q.chunks(32)).enumerate() {
        let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
        let scale = got.scales[b];
        assert_eq!((scale.minus_8, scale.minus_32), (-8 * sum(q), [-32 * sum(&q[..16]), -32 * sum(&q[16..])]));
        assert_eq!(scale.d_sum, scale.d * sum(q) as f32);
        let wide: i32 = got.wide[32 * b..][..32].iter().map(|&q| i32::from(q)).sum();
        assert_eq!(got.wide_scales[b].minus_128, -128 * wide);
        for (x, &q) in x.iter().zip(q) {
            assert!(q >= -127);
            // A block of denormals is zero.
            if x.abs() > 1e-30 {
                assert!((x - f32::from(q) * scale.d).abs() <= 0.5001 * scale.d, "{x} {q} {}", scale.d);
            }
        }
    }
}

/// One value that is not finite must poison its block's scale, wherever it stands.
fn poison_suite(kernels: &Kernels) {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..32 {
            let mut x = values(3, 64);
            x[32 + at] = bad;
            let rows = ActRows::new(kernels, x, 64);
            let Acts { scales, wide_scales, .. } = rows.acts(0..1);
            assert!(scales[0].d.is_finite() && scales[1].d.is_nan(), "{bad} at {at}");
            assert!(wide_scales[0].d.is_finite() && wide_scales[1].d.is_nan(), "{bad} at {at}");
        }
    }
}

fn rows_suite(kernels: &Kernels) {
    for n in [1, 5, 8, 16, 31, 96, 333] {
        let (x, w) = (values(1, n), values(2, n));
        let mut got = vec![0.0; n];
        let mut oracle = vec![0.0; n];
        (kernels.rms_norm)(&x, &w, 1e-6, &mut got);
        (scalar::KERNELS.rms_norm)(&x, &w, 1e-6, &mut oracle);
        assert_eq!(bits(&got), bits(&oracle));
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        let want: Vec<f64> =
            x.iter().zip(&w).map(|(&x, &w)| f64::from(x) / (mean + 1e-6).sqrt() * f64::from(w)).collect();
        close(&got, &want, 1e-6);

        (kernels.silu_mul)(&x, &w, &mut got);
        (scalar::KERNELS.silu_mul)(&x, &w, &mut oracle);
        assert_eq!(bits(&got), bits(&oracle));
        let want: Vec<f64> =
            x.iter().zip(&w).map(|(&x, &w)| f64::from(x) / (1.0 + (-f64::from(x)).exp()) * f64::from(w)).collect();
        close(&got, &want, 1e-6);

        let mut sum = x.clone();
        (kernels.add)(&w, &mut sum);
        assert!(sum.iter().zip(x.iter().zip(&w)).all(|(s, (x, w))| *s == x + w));

        let (old, delta) = (values(5, n), values(6, n));
        let (mut s1, mut d1, mut s2, mut d2) = (old.clone(), delta.clone(), old.clone(), delta.clone());
        let a = (kernels.latent_sums)(&x, &mut s1, &mut d1);
        let b = (scalar::KERNELS.latent_sums)(&x, &mut s2, &mut d2);
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
        assert_eq!((bits(&s1), bits(&d1)), (bits(&s2), bits(&d2)));
        assert_eq!(bits(&s1), bits(&x));
        let f = |i: usize| (f64::from(x[i]), f64::from(old[i]), f64::from(delta[i]));
        let total = |g: &dyn Fn(f64, f64, f64) -> f64| {
            (0..n)
                .map(|i| {
                    let (x, o, d) = f(i);
                    g(x, o, d)
                })
                .sum::<f64>()
        };
        let scale = total(&|x, o, d| x * x + o * o + d * d);
        for (got, want) in [
            (a.state, total(&|x, _, _| x * x)),
            (a.step, total(&|x, o, _| (x - o) * (x - o))),
            (a.change, total(&|x, o, d| (x - o - d) * (x - o - d))),
            (a.step_dot, total(&|x, o, d| (x - o) * d)),
            (a.previous_step, total(&|_, _, d| d * d)),
            (a.state_dot, total(&|x, o, _| x * o)),
            (a.previous_state, total(&|_, o, _| o * o)),
        ] {
            assert!((f64::from(got) - want).abs() <= 1e-6 * scale, "{got} {want}");
        }
    }
    // A NaN or an infinity in the state must be visible in its norm: the engine's check rests on it.
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = values(1, 40);
        x[39] = bad;
        let sums = (kernels.latent_sums)(&x, &mut [0.0; 40], &mut [0.0; 40]);
        assert!(!sums.state.is_finite());
    }
}

fn exp_suite(kernels: &Kernels) {
    // silu(x) · (1/x) = 1 / (1 + e^-x): reaches exp over its whole range.
    let x: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.0621 + 0.001).collect();
    let inverse: Vec<f32> = x.iter().map(|x| 1.0 / x).collect();
    let mut got = vec![0.0; x.len()];
    (kernels.silu_mul)(&x, &inverse, &mut got);
    for (x, got) in x.iter().zip(got) {
        let want = 1.0 / (1.0 + (-f64::from(*x)).exp());
        let error = (f64::from(got) - want).abs();
        assert!(error <= 4e-7 * want || error < 1e-36, "sigmoid({x}) = {got}, not {want}");
    }
}

fn rope_suite(kernels: &Kernels) {
    let mut x = values(8, 10);
    let before = x.clone();
    let angles: Vec<f32> = (0..5).map(|i| i as f32 * 0.7).collect();
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    (kernels.rope_interleaved)(&mut x, &cos, &sin);
    for i in 0..5 {
        let (a, b) = (before[2 * i], before[2 * i + 1]);
        assert_eq!(x[2 * i], a * cos[i] - b * sin[i]);
        assert_eq!(x[2 * i + 1], b * cos[i] + a * sin[i]);
    }
}

/// Is the tier named in the comma-separated list `RDT_REQUIRE_ISA`? A run that must prove a tier sets it.
fn required(isa: Isa) -> bool {
    let list = std::env::var("RDT_REQUIRE_ISA").unwrap_or_default();
    list.split(',').filter(|n| !n.is_empty()).any(|n| n.parse::<Isa>().expect("RDT_REQUIRE_ISA") == isa)
}

macro_rules! suite {
    ($($module:ident, $isa:expr;)*) => { $(
        mod $module {
            use super::*;
            /// A tier that this machine lacks is said, not passed in silence; it fails where the caller requires it.
            fn on(suite: fn(&Kernels)) {
                match Kernels::of($isa) {
                    Ok(k) => suite(k),
                    Err(e) if required($isa) => panic!("RDT_REQUIRE_ISA: {e}"),
                    Err(e) => eprintln!("not run: {e}"),
                }
            }
            #[test]
            fn matmul() { on(matmul_suite) }
            #[test]
            fn panels() { on(panels::suite) }
            #[test]
            fn panels_of_extremes() { on(panels::extremes) }
            #[test]
            fn quantize() { on(quantize_suite) }
            #[test]
            fn poison() { on(poison_suite) }
            #[test]
            fn rows() { on(rows_suite) }
            #[test]
            fn rows_of_some_families() { on(rows::suite) }
            #[test]
            fn exp() { on(exp_suite) }
            #[test]
            fn attention() { on(attention::suite) }
            #[test]
            fn attention_of_groups() { on(attention::groups) }
            #[test]
            fn rope() { on(rope_suite) }
        }
    )* };
}

suite! {
    scalar_suite, Isa::Scalar;
    avx2_suite, Isa::Avx2;
    avx_vnni_suite, Isa::AvxVnni;
    avx512_vnni_suite, Isa::Avx512Vnni;
    amx_int8_suite, Isa::AmxInt8;
    neon_suite, Isa::Neon;
    neon_dotprod_suite, Isa::NeonDotprod;
}

#[test]
fn every_name_is_its_own() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse::<Isa>(), Ok(isa));
    }
    let unknown = "mmx".parse::<Isa>().expect_err("not ours");
    assert_eq!(unknown, Error::UnknownIsa("mmx".into()));
    assert!(Isa::ALL.iter().all(|isa| unknown.to_string().contains(isa.name())), "{unknown}");
}
