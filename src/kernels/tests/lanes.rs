//! Every lane method against the scalar form: bit for bit, a NaN equal to any NaN.
//!
//! The suites one level up see only what kernels make of ordinary values; here are the ends of the ranges.

use super::super::simd::{LANES, Simd};
use super::super::{Isa, Kernels, WIDE_MAX, scalar::Scalar};
use super::{required, values};

type Lanes = [f32; LANES];

/// Zeros, denormals, ties, both sides of every range end of f16 and of the integers, infinities and NaN, of both signs.
fn ends() -> Vec<f32> {
    let mut x =
        vec![0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 0.5, 1.5, 2.5, 126.5, 127.5, 8388608.5, 16777216.0, 87.33654];
    // f16: smallest denormal and half of it, smallest normal, ties in both, the largest and where infinity begins.
    x.extend([5.960_464_5e-8, 2.980_232_2e-8, 2.980_232_6e-8, 8.940_697e-8, 6.103_515_6e-5, 6.100_535_4e-5]);
    x.extend([1.000_488_3, 1.001_464_8, 65504.0, 65519.996, 65520.0, 65536.0, f32::MAX, f32::INFINITY, f32::NAN]);
    x.extend(values(21, 45));
    let negative: Vec<f32> = x.iter().map(|x| -x).collect();
    x.extend(negative);
    x.resize(x.len().next_multiple_of(LANES), -0.0);
    x
}

fn same(what: &str, of: &[Lanes], got: Lanes, want: Lanes) {
    for i in 0..LANES {
        let (g, w) = (got[i], want[i]);
        assert!(
            g.to_bits() == w.to_bits() || g.is_nan() && w.is_nan(),
            "{what} of {:?}: {g:?} ({:x}), not {w:?} ({:x})",
            of.iter().map(|x| x[i]).collect::<Vec<_>>(),
            g.to_bits(),
            w.to_bits()
        );
    }
}

fn out<S: Simd>(s: S, v: S::V) -> Lanes {
    let mut p = [0.0; LANES];
    s.store(v, &mut p);
    p
}

fn arithmetic<S: Simd>(s: S) {
    let x = ends();
    let scalar = Scalar;
    let chunks = x.as_chunks::<LANES>().0;
    // Every value meets every value: the second operand turns by one place at a time.
    for turn in 0..x.len() {
        let mut y = x.clone();
        y.rotate_left(turn);
        let mut z = x.clone();
        z.rotate_left(turn * 7 % x.len());
        for ((a, b), c) in chunks.iter().zip(y.as_chunks().0).zip(z.as_chunks().0) {
            let (va, vb, vc) = (s.load(a), s.load(b), s.load(c));
            same("add", &[*a, *b], out(s, s.add(va, vb)), scalar.add(*a, *b));
            same("sub", &[*a, *b], out(s, s.sub(va, vb)), scalar.sub(*a, *b));
            same("mul", &[*a, *b], out(s, s.mul(va, vb)), scalar.mul(*a, *b));
            same("div", &[*a, *b], out(s, s.div(va, vb)), scalar.div(*a, *b));
            same("max", &[*a, *b], out(s, s.max(va, vb)), scalar.max(*a, *b));
            same("min", &[*a, *b], out(s, s.min(va, vb)), scalar.min(*a, *b));
            same("fma", &[*a, *b, *c], out(s, s.fma(va, vb, vc)), scalar.fma(*a, *b, *c));
            same("pick", &[*a, *b, *c], out(s, s.pick(va, vb, vc, va)), scalar.pick(*a, *b, *c, *a));
            same("zero_below", &[*a, *b, *c], out(s, s.zero_below(va, vb, vc)), scalar.zero_below(*a, *b, *c));
        }
    }
    for a in chunks {
        let v = s.load(a);
        same("load", &[*a], out(s, v), *a);
        same("abs", &[*a], out(s, s.abs(v)), scalar.abs(*a));
        same("round", &[*a], out(s, s.round(v)), scalar.round(*a));
        same("splat", &[*a], out(s, s.splat(a[0])), [a[0]; LANES]);
        same("sum", &[*a], [s.sum(v); LANES], [scalar.sum(*a); LANES]);
        same("largest", &[*a], [s.largest(v); LANES], [scalar.largest(*a); LANES]);
    }
    for n in -126..=127 {
        same("pow2", &[], out(s, s.pow2(s.splat(n as f32))), Scalar.pow2([n as f32; LANES]));
    }
}

/// What mixes the lanes of eight vectors.
fn mixtures<S: Simd>(s: S) {
    let x = values(8, LANES * LANES);
    let mut v = [s.splat(0.0); LANES];
    for (v, x) in v.iter_mut().zip(x.as_chunks().0) {
        *v = s.load(x);
    }
    let sums = out(s, s.sum8(v));
    for (i, v) in s.transpose(v).into_iter().enumerate() {
        same("transpose", &[], out(s, v), std::array::from_fn(|j| x[j * LANES + i]));
    }
    same("sum8", &[], sums, std::array::from_fn(|i| Scalar.sum(std::array::from_fn(|j| x[i * LANES + j]))));
}

fn conversions<S: Simd>(s: S) {
    for first in (0..=u16::MAX).step_by(LANES) {
        let mut p = [0u8; 16];
        for (i, p) in p.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *p = (first + i as u16).to_le_bytes();
        }
        same("load_f16", &[], out(s, s.load_f16(&p)), Scalar.load_f16(&p));
        same("load_bf16", &[], out(s, s.load_bf16(&p)), Scalar.load_bf16(&p));
        let mut behind = [p.as_ptr(); LANES];
        for (i, behind) in behind.iter_mut().enumerate() {
            *behind = behind.wrapping_add(2 * i);
        }
        // SAFETY: every pointer is to two of the sixteen bytes.
        same("gather_f16", &[], out(s, unsafe { s.gather_f16(behind) }), Scalar.load_f16(&p));

        same("splat_f16", &[], out(s, s.splat_f16(first.to_le_bytes())), [Scalar.load_f16(&p)[0]; LANES]);

        // Back, and around every tie between two halves.
        let exact = Scalar.load_f16(&p);
        for nudge in [-1i32, 0, 1, 0x0fff, 0x1000, 0x1001] {
            let x = exact.map(|x| f32::from_bits(x.to_bits().wrapping_add_signed(nudge)));
            let (mut got, mut want) = ([0; 16], [0; 16]);
            s.store_f16(s.load(&x), &mut got);
            Scalar.store_f16(x, &mut want);
            same("store_f16", &[x], Scalar.load_f16(&got), Scalar.load_f16(&want));
        }
    }
    for (a, p) in ends().as_chunks::<LANES>().0.iter().map(|a| (a, [0; 16])) {
        let (mut got, mut want) = (p, p);
        s.store_f16(s.load(a), &mut got);
        Scalar.store_f16(*a, &mut want);
        same("store_f16", &[*a], Scalar.load_f16(&got), Scalar.load_f16(&want));
    }
    for first in (i16::MIN..=i16::MAX).step_by(LANES) {
        let want: [i16; LANES] = std::array::from_fn(|i| first + i as i16);
        let v = s.load(&want.map(f32::from));
        let mut got = [0; LANES];
        s.store_i16(v, &mut got);
        assert_eq!(got, want);
        if (-128..128).contains(&first) {
            let want = want.map(|x| x as i8);
            let mut got = [0; LANES];
            s.store_i8(v, &mut got);
            assert_eq!(got, want);
            same("load_i8", &[], out(s, s.load_i8(&want.map(i8::cast_unsigned))), want.map(f32::from));
        }
    }
}

fn dots<S: Simd>(s: S) {
    // The extremes first, where sums are largest, then anything.
    let extremes: [[u8; 32]; 4] = [[0x80; 32], [0x7f; 32], [0xff; 32], [0; 32]];
    for seed in 0..200 {
        let noise: Vec<u8> = values(seed as u64 + 1, 48 * LANES).iter().map(|x| (x.to_bits() >> 8) as u8).collect();
        let weights: [[u8; 32]; LANES] = std::array::from_fn(|r| match (seed + r) % 3 {
            0 => extremes[(seed + r) / 3 % 4],
            _ => std::array::from_fn(|i| noise[32 * r + i]),
        });
        let p = weights.each_ref().map(|w| w.as_ptr());
        let a: [i8; 32] = std::array::from_fn(|i| match seed {
            0 => 127,
            1 => -127,
            _ => noise[32 * LANES + i].cast_signed().max(-127),
        });
        let wide: [i16; 32] = std::array::from_fn(|i| match seed {
            0 => WIDE_MAX,
            1 => -WIDE_MAX,
            _ => i16::from_le_bytes([noise[36 * LANES + i], noise[40 * LANES + i]]).clamp(-WIDE_MAX, WIDE_MAX),
        });
        // SAFETY: every pointer is to 32 bytes.
        let (block, oracle) = unsafe { (s.block_i8(p), Scalar.block_i8(p)) };
        same("dot_i8", &[], out(s, s.dot_i8(&block, &wide)), Scalar.dot_i8(&oracle, &wide));
        // Weights of five and six bits, all ones among them, and signed bytes but -128.
        let masked = |mask: u8| weights.map(|w| w.map(|w| w & mask));
        let (five, six) = (masked(31), masked(63));
        let signed = weights.map(|w| w.map(|w| w.cast_signed().max(-127).cast_unsigned()));
        let [five, six, signed] = [&five, &six, &signed].map(|w| w.each_ref().map(|w| w.as_ptr()));
        // SAFETY: as above.
        unsafe {
            same("dot_u5", &[], out(s, s.dot_u5(&s.block_i8(five), &a)), Scalar.dot_u5(&Scalar.block_i8(five), &a));
            same("dot_s8", &[], out(s, s.dot_s8(&s.block_i8(signed), &a)), Scalar.dot_s8(&Scalar.block_i8(signed), &a));
            let (got, want) = (s.dot_u6(&s.block_i8(six), &a), Scalar.dot_u6(&Scalar.block_i8(six), &a));
            same("dot_u6", &[], out(s, got[0]), want[0]);
            same("dot_u6", &[], out(s, got[1]), want[1]);
        }
    }
}

/// The elements of blocks, one after the other.
fn elements<S: Simd>(s: S, w: S::Block) -> [Lanes; 32] {
    std::array::from_fn(|i| out(s, s.dot_s8(&w, &std::array::from_fn(|j| i8::from(i == j)))))
}

fn blocks<S: Simd>(s: S) {
    let table = std::array::from_fn(|i| (i as i8 - 7) * 15);
    for seed in 0..20 {
        let noise: Vec<u8> = values(seed + 1, 64 * LANES).iter().map(|x| (x.to_bits() >> 8) as u8).collect();
        let at = |offset: usize| std::array::from_fn(|r| noise[64 * r + offset..].as_ptr());
        let (p, high) = (at(seed as usize), at(32));
        let compare = |what: &str, got: S::Block, want: [[i8; 32]; LANES]| {
            for (got, want) in elements(s, got).into_iter().zip(elements(Scalar, want)) {
                same(what, &[], got, want);
            }
        };
        // SAFETY: behind every pointer are at least 32 bytes of `noise`.
        unsafe {
            compare("block_u4", s.block_u4(p), Scalar.block_u4(p));
            compare("lookup", s.lookup(s.block_u4(p), &table), Scalar.lookup(Scalar.block_u4(p), &table));
            compare("raise_bits", s.raise_bits(s.block_u4(p), high), Scalar.raise_bits(Scalar.block_u4(p), high));
            for shift in [0, 4] {
                let (low, want) = (s.block_nibbles(p, shift), Scalar.block_nibbles(p, shift));
                compare("block_nibbles", low, want);
                for shift in 0..8 {
                    compare("raise", s.raise(low, high, shift, 1), Scalar.raise(want, high, shift, 1));
                    compare("raise", s.raise(low, high, shift & 6, 3), Scalar.raise(want, high, shift & 6, 3));
                }
            }
            for (w, oracle) in s.words(p).into_iter().zip(Scalar.words(p)) {
                for i in 0..4 {
                    same("signed_byte", &[], out(s, s.signed_byte(w, i)), Scalar.signed_byte(oracle, i));
                    same("half", &[], out(s, s.half(w, i / 2)), Scalar.half(oracle, i / 2));
                }
                for (from, bits) in [(0, 6), (24, 6), (30, 2), (28, 4), (0, 23), (9, 1)] {
                    same("field", &[], out(s, s.field(w, from, bits)), Scalar.field(oracle, from, bits));
                }
            }
        }
    }
}

fn all<S: Simd>(token: Option<S>) {
    let s = token.expect("`Kernels::of` found the instruction set");
    arithmetic(s);
    mixtures(s);
    conversions(s);
    dots(s);
    blocks(s);
}

#[test]
fn every_tier_has_the_scalar_lanes() {
    for isa in Isa::ALL {
        if let Err(e) = Kernels::of(isa) {
            assert!(!required(isa), "RDT_REQUIRE_ISA: {e}");
            eprintln!("not run: {e}");
            continue;
        }
        match isa {
            Isa::Scalar => all(Some(Scalar)),
            #[cfg(target_arch = "x86_64")]
            // The tiers above it use its lanes.
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512Vnni | Isa::AmxInt8 => all(super::super::avx2::Avx2::detect()),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => all(super::super::neon::Neon::<super::super::neon_plain::Plain>::detect()),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => all(super::super::neon::Neon::<super::super::neon_dotprod::Dotprod>::detect()),
            isa => unreachable!("{isa} has kernels but no test"),
        }
    }
}
