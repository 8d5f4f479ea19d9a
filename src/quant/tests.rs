use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::path::Path;

/// What ggml wrote; see tests/data/quant/README.md.
struct Golden(Vec<u8>);

impl Golden {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/quant/ggml.safetensors");
        Self(std::fs::read(path).unwrap())
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}

/// Columns of the golden rows.
const K: usize = 512;

pub(super) fn quantize(ty: TensorType, src: &[f32], k: usize, importance: Option<&[f32]>) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0xaa; src.len() / k * ty.row_bytes(k).unwrap()];
    quantize_rows(ty, src, k, &mut bytes, importance)?;
    Ok(bytes)
}

fn dequantize(ty: TensorType, src: &[u8], k: usize) -> Vec<f32> {
    let mut values = vec![f32::NAN; src.len() / ty.row_bytes(k).unwrap() * k];
    dequantize_rows(ty, src, k, &mut values).unwrap();
    values
}

#[track_caller]
fn assert_same_rows(ty: TensorType, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len());
    let row = ty.row_bytes(K).unwrap();
    for (i, (f, e)) in found.chunks(row).zip(expected.chunks(row)).enumerate() {
        assert_eq!(f, e, "{ty} row {i}");
    }
}

/// Every format but those that hold f32 and bf16, of which ggml's bytes are beyond doubt.
fn golden_types() -> impl Iterator<Item = TensorType> {
    FORMATS
        .map(|format| format.tensor_type())
        .into_iter()
        .filter(|ty| !matches!(ty, TensorType::F32 | TensorType::BF16))
}

#[test]
fn bytes_are_those_of_ggml() {
    let golden = Golden::load();
    let input = golden.floats("input");
    for ty in golden_types() {
        let name = ty.name().to_lowercase();
        assert_same_rows(ty, &quantize(ty, &input, K, None).unwrap(), &golden.bytes(&name));
    }
}

#[test]
fn bytes_with_importance_are_those_of_ggml() {
    let golden = Golden::load();
    let (input, importance) = (golden.floats("input"), golden.floats("imatrix"));
    for ty in golden_types() {
        // Formats without a search take no notice of it.
        let weighted = if matches!(ty, TensorType::Q8_0 | TensorType::F16) { "" } else { "_imatrix" };
        let name = format!("{}{weighted}", ty.name().to_lowercase());
        assert_same_rows(ty, &quantize(ty, &input, K, Some(&importance)).unwrap(), &golden.bytes(&name));
    }
}

#[test]
fn bytes_do_not_depend_on_threads() {
    let golden = Golden::load();
    let (input, importance) = (golden.floats("input"), golden.floats("imatrix"));
    // Enough rows for several tasks.
    let input: Vec<f32> = input.iter().copied().cycle().take(200 * K).collect();
    for format in FORMATS {
        let ty = format.tensor_type();
        let [one, seven] = [1, 7].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| quantize(ty, &input, K, Some(&importance)).unwrap())
        });
        assert_eq!(one, seven, "{ty}");
        let [one, seven] = [1, 7].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| dequantize(ty, &seven, K))
        });
        assert_eq!(one, seven, "{ty}");
    }
}

/// Each instruction set of this machine against the oracle, with batches that are not full.
#[test]
fn tiers_agree() {
    let golden = Golden::load();
    let (input, importance) = (golden.floats("input"), golden.floats("imatrix"));
    assert!(Tier::available().any(|tier| tier == Tier::best()));
    for format in FORMATS {
        let ty = format.tensor_type();
        for rows in [24, 11, 1] {
            let input = &input[..rows * K];
            for importance in [None, Some(importance.as_slice())] {
                let run = |tier| {
                    let mut bytes = vec![0xaa; rows * ty.row_bytes(K).unwrap()];
                    format.quantize_on(tier, input, &mut bytes, importance);
                    let mut back = vec![f32::NAN; input.len()];
                    format.dequantize_on(tier, &bytes, &mut back);
                    (bytes, back.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                };
                let expected = run(Tier::Scalar);
                for tier in Tier::available() {
                    assert!(run(tier) == expected, "{ty} on {tier:?}, {rows} rows, {}", importance.is_some());
                }
            }
        }
    }
}

#[test]
fn every_format_is_found_under_its_type() {
    for found in FORMATS {
        let ty = found.tensor_type();
        assert_eq!(format(ty).map(|f| f.tensor_type()), Some(ty));
    }
    assert!(format(TensorType::Q2_K).is_none());
}

#[test]
fn f32_is_copied() {
    let x = [0.0, -0.0, 1.5, f32::MIN_POSITIVE / 4.0, f32::MAX, -f32::MAX];
    let back = dequantize(TensorType::F32, &quantize(TensorType::F32, &x, 3, None).unwrap(), 3);
    assert_eq!(x.map(f32::to_bits), *back.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
}

#[test]
fn blocks_read_as_written_down() {
    // d = 2; q4_0: low halves are values 0..16, high halves 16..32, less 8.
    let mut bytes = vec![0x00, 0x40];
    bytes.extend((0..16u8).map(|i| i | (15 - i) << 4));
    let values = dequantize(TensorType::Q4_0, &bytes, 32);
    assert_eq!(values[..3], [-16.0, -14.0, -12.0]);
    assert_eq!(values[16..19], [14.0, 12.0, 10.0]);

    let mut bytes = vec![0x00, 0xc0]; // d = -2
    bytes.extend((0..32i8).map(|i| (i - 16) as u8));
    let values = dequantize(TensorType::Q8_0, &bytes, 32);
    assert_eq!((values[0], values[16], values[31]), (32.0, 0.0, -30.0));
}

/// A block of `ty` with these bytes at these places and zeros elsewhere.
fn block(ty: TensorType, bytes: &[(usize, u8)]) -> Vec<f32> {
    let mut block = vec![0; ty.block_bytes()];
    for &(at, byte) in bytes {
        block[at] = byte;
    }
    dequantize(ty, &block, ty.block_len())
}

/// High bytes of half floats.
const ONE: u8 = 0x3c;
const TWO: u8 = 0x40;

#[test]
fn blocks_with_a_minimum_or_a_fifth_bit_read_as_written_down() {
    // d = 2, m = 1: 2 * 3 + 1 and 2 * 4 + 1.
    let x = block(TensorType::Q4_1, &[(1, TWO), (3, ONE), (4, 0x43)]);
    assert_eq!((x[0], x[16], x[1]), (7.0, 9.0, 1.0));
    // The fifth bits of values 0, 9 and 31.
    let x = block(TensorType::Q5_0, &[(1, TWO), (2, 1), (3, 2), (5, 0x80), (6, 0x43)]);
    assert_eq!((x[0], x[9], x[16], x[31], x[1]), (6.0, 0.0, -24.0, 0.0, -32.0));
    let x = block(TensorType::Q5_1, &[(1, TWO), (3, ONE), (4, 1), (5, 2), (7, 0x80), (8, 0x43)]);
    assert_eq!((x[0], x[9], x[16], x[31], x[1]), (39.0, 33.0, 9.0, 33.0, 1.0));
    let x = block(TensorType::IQ4_NL, &[(1, TWO), (2, 0xf8)]);
    assert_eq!((x[0], x[16], x[1]), (2.0, 226.0, -254.0));
}

#[test]
fn super_blocks_read_as_written_down() {
    // d = 1, n = 2. Block 2: s = 5, m = 3. Block 5: s = 2 | 1 << 4, m = 1 | 2 << 4.
    let head = [(1, ONE), (3, TWO), (6, 5), (10, 3), (13, 0x12), (5, 1 << 6), (9, 2 << 6)];
    // The second and third 32 bytes of levels are blocks 2 and 3, 4 and 5.
    let low = |at: usize| [(at + 32, 0x07), (at + 64 + 1, 0x90)];
    let x = block(TensorType::Q4_K, &[&head[..], &low(16)].concat());
    assert_eq!((x[64], x[65], x[160], x[161]), (35.0 - 6.0, -6.0, -66.0, 18.0 * 9.0 - 66.0));
    let x = block(TensorType::Q5_K, &[&head[..], &[(16, 1 << 2), (17, 1 << 5)], &low(48)].concat());
    assert_eq!((x[64], x[65], x[160], x[161]), (5.0 * 23.0 - 6.0, -6.0, -66.0, 18.0 * 25.0 - 66.0));

    // d = 2; scales -1 and 3 for the first and last sixteen. Value 1: low 5, high 2; value 255: low 9, high 3.
    let x = block(TensorType::Q6_K, &[(209, TWO), (192, 0xff), (207, 3), (1, 5), (129, 2), (127, 0x90), (191, 0xc0)]);
    assert_eq!((x[0], x[1], x[16]), (64.0, -2.0 * (5.0 + 32.0 - 32.0), 0.0));
    assert_eq!((x[255], x[254]), (6.0 * (9.0 + 48.0 - 32.0), 6.0 * -32.0));

    // d = 2. Block 3: s = 2 | 3 << 4; the others have s = 0, which is -32.
    let x = block(TensorType::IQ4_XS, &[(1, TWO), (2, 3 << 6), (5, 0x20), (8 + 48, 0xf8)]);
    assert_eq!((x[96], x[112], x[97]), (36.0, 36.0 * 113.0, 36.0 * -127.0));
    assert_eq!(x[0], -64.0 * -127.0);
}

/// A row length that every format divides into blocks.
const ANY: usize = 256;

#[test]
fn constants_survive() {
    for value in [0.0, -0.0, 1.0, -3.5, 65504.0, 6.1e-5] {
        for format in FORMATS {
            let ty = format.tensor_type();
            // Super-blocks store down to 1 / (128 * 32) of the value in half precision, which ends at 2^-25.
            let coarse = if ty.block_len() == ANY { 128.0 * 32.0 * 2f32.powi(-25) } else { 0.0 };
            for importance in [None, Some([1.0; ANY].as_slice())] {
                let back = dequantize(ty, &quantize(ty, &[value; ANY], ANY, importance).unwrap(), ANY);
                for found in back {
                    assert!((found - value).abs() <= value.abs() / 63.0 + coarse, "{ty}: {value} became {found}");
                }
            }
        }
    }
}

/// The largest accepted magnitude beside the smallest ones: nothing overflows, nothing becomes NaN.
#[test]
fn extremes_stay_finite() {
    for format in FORMATS {
        let ty = format.tensor_type();
        for large in [format.limit(), -format.limit(), 1e-15, 1e-38, 1e-40, f32::from_bits(1)] {
            let mut few = [0.0; ANY];
            few[..5].copy_from_slice(&[large, -large, large / 3.0, f32::from_bits(1), -0.0]);
            let one_sign = std::array::from_fn(|i| large * if i % 7 == 3 { 0.999 } else { 1.0 });
            let falling = std::array::from_fn(|i| if i % 2 == 0 { large } else { -large } / (1.0 + i as f32));
            for x in [few, [large; ANY], one_sign, falling] {
                let one = std::array::from_fn(|i| if i % 32 == 0 { 1.0 } else { 0.0 });
                let weights = [[1.0; ANY], [f32::MAX; ANY], [0.0; ANY], [1e-44; ANY], one];
                for importance in weights.iter().map(|w| Some(w.as_slice())).chain([None]) {
                    let back = dequantize(ty, &quantize(ty, &x, ANY, importance).unwrap(), ANY);
                    assert!(back.iter().all(|x| x.is_finite()), "{ty} {large}: {back:?}");
                }
            }
        }
    }
}

#[test]
fn formats_take_any_float_and_any_bytes() {
    let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::from_bits(1), 0.0];
    for format in FORMATS {
        let ty = format.tensor_type();
        for &a in &odd {
            for &b in &odd {
                let mut x = [1.0; ANY];
                (x[3], x[20]) = (a, b);
                let mut bytes = vec![0; ty.row_bytes(ANY).unwrap()];
                format.quantize(&x, &mut bytes, None);
                format.quantize(&x, &mut bytes, Some(&[1.0; ANY]));
                format.quantize(&[1.0; ANY], &mut bytes, Some(&x));
            }
        }
        for byte in 0..=u8::MAX {
            dequantize(ty, &vec![byte; ty.row_bytes(ANY).unwrap()], ANY);
        }
    }
}

#[test]
fn values_that_do_not_fit_are_named() {
    for format in FORMATS {
        let (ty, limit) = (format.tensor_type(), format.limit());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, limit.next_up(), -limit.next_up()] {
            let mut x = vec![0.5; ANY * 4];
            x[2 * ANY + 7] = value;
            x[3 * ANY + 1] = f32::NAN;
            let Err(Error::Value { row, column, value: found, .. }) = quantize(ty, &x, ANY, None) else {
                panic!("{ty} took {value}");
            };
            assert_eq!((row, column, found.to_bits()), (2, 7, value.to_bits()));
        }
    }
}

#[test]
fn lengths_are_checked() {
    let (ty, x) = (TensorType::Q8_0, [1.0; 64]);
    let mut out = [0; 68];
    let quantize = |src: &[f32], k, dst: &mut [u8], w: Option<&[f32]>| quantize_rows(ty, src, k, dst, w).unwrap_err();
    assert_eq!(quantize(&x, 48, &mut out, None), Error::RowLength { ty, k: 48 });
    assert_eq!(quantize(&x, 0, &mut out, None), Error::RowLength { ty, k: 0 });
    assert_eq!(quantize(&x, usize::MAX - 31, &mut out, None), Error::RowLength { ty, k: usize::MAX - 31 });
    assert_eq!(quantize(&x[1..], 32, &mut out, None), Error::PartialRow { unit: "values", row: 32, found: 63 });
    assert_eq!(quantize(&x, 32, &mut out[1..], None), Error::Length { what: "output", expected: 68, found: 67 });
    let expected = Error::Length { what: "importance", expected: 32, found: 64 };
    assert_eq!(quantize(&x, 32, &mut out, Some(&x)), expected);
    for value in [-1.0, f32::INFINITY] {
        assert_eq!(quantize(&x, 32, &mut out, Some(&[value; 32])), Error::Importance { column: 0, value });
    }
    assert_eq!(
        quantize_rows(TensorType::Q2_K, &x, 32, &mut out, None),
        Err(Error::Unsupported { ty: TensorType::Q2_K })
    );
    let mut values = [0.0; 64];
    let expected = Error::PartialRow { unit: "bytes", row: 34, found: 67 };
    assert_eq!(dequantize_rows(ty, &out[1..], 32, &mut values), Err(expected));
    let expected = Error::Length { what: "output", expected: 64, found: 63 };
    assert_eq!(dequantize_rows(ty, &out, 32, &mut values[1..]), Err(expected));
    quantize_rows(ty, &[], 32, &mut [], None).unwrap();
    dequantize_rows(ty, &[], 32, &mut []).unwrap();
}

/// Finite values over many orders of magnitude, with zeros among them.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        1 => Just(0.0f32),
        6 => (-1.0f32..1.0, -12i32..12).prop_map(|(m, e)| m * 2f32.powi(e)),
    ];
    prop::collection::vec(value, 32)
}

/// Root mean square error of a round trip.
fn rms_error(ty: TensorType, x: &[f32], importance: Option<&[f32]>) -> f64 {
    let back = dequantize(ty, &quantize(ty, x, x.len(), importance).unwrap(), x.len());
    let sum: f64 = x.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (sum / x.len() as f64).sqrt()
}

proptest! {
    // Each case is thousands of values in many formats, and under emulation too.
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// More bits make a smaller error, on the same values and by a margin; and levels that fit the values beat even ones.
    #[test]
    fn more_bits_make_a_smaller_error(seed: u64, exponent in -9i32..9) {
        use TensorType as T;
        let x: Vec<f32> =
            (0..4096).map(|i| crate::random::standard_normal(seed, 0, i) as f32 * 2f32.powi(exponent)).collect();
        for chain in [
            &[T::F32, T::F16, T::Q8_0, T::Q6_K, T::Q5_K, T::Q4_K][..],
            &[T::F32, T::BF16, T::Q8_0, T::Q5_1, T::Q4_1],
            &[T::Q8_0, T::Q5_0, T::Q4_0],
            &[T::Q5_K, T::IQ4_XS, T::Q4_0],
            &[T::Q5_0, T::IQ4_NL, T::Q4_0],
        ] {
            for pair in chain.windows(2) {
                let [less, more] = [pair[0], pair[1]].map(|ty| rms_error(ty, &x, None));
                prop_assert!(less < more, "{}: {less}, {}: {more}", pair[0], pair[1]);
            }
        }
    }

    /// An error spread evenly over a step of `range / (levels - 1)` has a root mean square of that over the root of 12. Searches
    /// find shorter ranges; six and eight bits for the scales of blocks cost up to 1/63 of the largest scale more.
    #[test]
    fn searched_formats_stay_within_an_even_spread(seed: u64, exponent in -9i32..9) {
        use TensorType as T;
        let x: Vec<f32> = (0..1024)
            .map(|i| crate::random::standard_normal(seed, 0, i).clamp(-4.0, 4.0) as f32 * 2f32.powi(exponent))
            .collect();
        let range = 2.0 * x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        for (ty, levels) in [(T::Q4_K, 16), (T::Q5_K, 32), (T::Q6_K, 64), (T::IQ4_NL, 16), (T::IQ4_XS, 16)] {
            for importance in [None, Some([1.0; 1024].as_slice())] {
                let (error, step) = (rms_error(ty, &x, importance), f64::from(range) / f64::from(levels - 1));
                prop_assert!(error <= step / 12f64.sqrt(), "{ty}: {error} with a step of {step}");
            }
        }
    }
}

proptest! {
    #[test]
    fn round_trips_are_within_their_bounds(x in values(), w in prop::collection::vec(0.0f32..9.0, 32)) {
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        // Half of the last place of an f16 of this magnitude, subnormals included.
        let f16_error = |v: f32| v.abs() * 2f32.powi(-11) + 2f32.powi(-25);
        let check = |ty, bound: &dyn Fn(f32) -> f32, importance: Option<&[f32]>| {
            let back = dequantize(ty, &quantize(ty, &x, 32, importance).unwrap(), 32);
            for (&from, &to) in x.iter().zip(&back) {
                let (error, bound) = ((from - to).abs(), bound(from) * 1.000_01);
                // Written so that NaN fails.
                prop_assert!(error <= bound, "{}: {} became {}, bound {}", ty, from, to, bound);
            }
            Ok(())
        };
        check(TensorType::F32, &|_| 0.0, None)?;
        check(TensorType::F16, &f16_error, None)?;
        check(TensorType::BF16, &|v| v.abs() * 2f32.powi(-8), None)?;
        let d = largest / 127.0;
        check(TensorType::Q8_0, &|_| d / 2.0 + 127.0 * f16_error(d), None)?;
        // The side with one level less may be a whole step off, which the rounding of d makes longer.
        let d = largest / 16.0;
        check(TensorType::Q5_0, &|_| d + 16.0 * f16_error(d), None)?;
        let d = largest / 8.0;
        check(TensorType::Q4_0, &|_| d + 8.0 * f16_error(d), None)?;
        // Half a step, and the roundings of d, of the minimum, and of their sum.
        let least = x.iter().copied().fold(f32::MAX, f32::min);
        let range = x.iter().copied().fold(f32::MIN, f32::max) - least;
        for (ty, last) in [(TensorType::Q4_1, 15.0), (TensorType::Q5_1, 31.0)] {
            let d = range / last;
            let rounding = 2.0 * largest * f32::EPSILON;
            check(ty, &|_| d / 2.0 + last * f16_error(d) + f16_error(least) + rounding, None)?;
        }
        let d = largest / 8.0;
        // The weighted search may give up unimportant values, but it never leaves the block's range by much.
        check(TensorType::Q4_0, &|_| 2.0 * largest + 8.0 * f16_error(d), Some(&w))?;
    }

    /// The search exists to lower the weighted error; it must not raise it, up to the rounding of d.
    #[test]
    fn importance_lowers_the_weighted_error(
        x in prop::collection::vec(-1.0f32..1.0, 32),
        w in prop::collection::vec(0.01f32..9.0, 32),
    ) {
        let mean_square = x.iter().map(|x| x * x).sum::<f32>() / 32.0;
        let error = |importance| -> f64 {
            let back = dequantize(TensorType::Q4_0, &quantize(TensorType::Q4_0, &x, 32, importance).unwrap(), 32);
            let weight = |i: usize| f64::from(w[i] * (mean_square + x[i] * x[i]).sqrt());
            x.iter().zip(&back).enumerate().map(|(i, (a, b))| weight(i) * f64::from(a - b).powi(2)).sum()
        };
        let (plain, weighted) = (error(None), error(Some(w.as_slice())));
        prop_assert!(weighted <= plain * 1.01 + 1e-6, "{} > {}", weighted, plain);
    }
}
