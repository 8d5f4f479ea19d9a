//! ggml's bytes for many matrices, by their hashes: `tests/reference/ggml_quants.py` makes the same matrices and wrote
//! `tests/data/quant/held_out.txt`, a line for each type, row length, number of rows and kind of importance, with a hash for
//! each kind of matrix.

use super::tests::quantize;
use crate::gguf::TensorType;

/// The finaliser of splitmix64.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Four uniform 16-bit numbers, summed: between -2 and 2, much like a normal distribution.
fn normal(h: u64) -> f32 {
    let sum: u64 = [0, 16, 32, 48].map(|shift| h >> shift & 0xffff).iter().sum();
    (sum as f32 - 131_070.0) / 65536.0
}

/// The kinds of matrix; each operation is exact, or rounded once.
fn value(kind: u64, h: u64, column: usize) -> f32 {
    let (n, other) = (normal(h), mix(h));
    match kind {
        0 => n,
        // Heavy tails.
        1 => n * n * n,
        // Nearly constant.
        2 => 1.0 + n * 2f32.powi(-10),
        // Tiny: scales that are subnormal as half floats.
        3 => n * 2f32.powi(-22),
        4 => n * 16384.0,
        // Ties.
        5 => ((other % 17) as f32 - 8.0) / 4.0,
        6 => [0.0, -0.0, n, n][(other % 4) as usize],
        // Sparse outliers.
        7 if other.is_multiple_of(40) => n * 64.0,
        7 => n,
        // Subnormal: times 2^-140.
        8 => n * f32::from_bits(1 << 9),
        // Blocks of their own: nothing, one value, all positive, all negative.
        _ => [0.0, if column % 32 == 7 { n } else { 0.0 }, 2.0 + n, n - 3.0][column / 32 % 4],
    }
}

fn importance(kind: u64, h: u64) -> f32 {
    match kind {
        // As mean squares of activations are.
        1 => normal(h) * normal(h),
        // Zeros and a huge range.
        _ if h.is_multiple_of(4) => 0.0,
        _ => (h >> 40) as f32 / 16_777_216.0 * 2f32.powi((mix(h) % 40) as i32 - 20),
    }
}

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn many_matrices_become_the_bytes_of_ggml() {
    const KINDS: u64 = 10;
    let at = |first: u64, k: usize, i: usize| mix(first << 56 | (k as u64) << 32 | i as u64);
    let mut checked = 0;
    for line in include_str!("../../tests/data/quant/held_out.txt").lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ty: TensorType = words[0].parse().unwrap();
        let [k, rows, weighting] = [1, 2, 3].map(|i| words[i].parse::<usize>().unwrap());
        let weighting = weighting as u64;
        let weights: Vec<f32> = (0..k).map(|i| importance(weighting, at(KINDS + weighting, k, i))).collect();
        for (kind, expected) in words[4..].iter().enumerate() {
            let kind = kind as u64;
            let x: Vec<f32> = (0..rows * k).map(|i| value(kind, at(kind, k, i), i % k)).collect();
            let bytes = quantize(ty, &x, k, (weighting > 0).then_some(&weights)).unwrap();
            assert_eq!(format!("{:016x}", hash(&bytes)), *expected, "{line}: kind {kind}");
            checked += rows;
        }
    }
    // Of 12 types.
    assert!(checked > 12 * 1500, "{checked} rows");
}
