//! Random numbers that are a function of where they are used.
//!
//! There is no generator state to carry around: a number is computed from `(seed, stream, counter)`. So the
//! initial latent of position 7, or the sampler's draw for the 100th token, is the same whether the positions
//! before it were computed in this run, in another chunking, on another thread, or not at all. All arithmetic is
//! integer or goes through `libm`, so the numbers are the same on every platform.
//!
//! The generator is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014),
//! entered at output number `counter` of the sequence whose start is a hash of `(seed, stream)`.

/// SplitMix64's increment: 2^64 divided by the golden ratio, made odd.
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// How often [`truncated_normal`] draws again before it clamps. With a bound of three standard deviations one
/// draw in 370 is rejected, so the clamp is never reached in practice; with a tiny bound it ends the loop.
const TRUNCATION_TRIES: u64 = 64;

/// SplitMix64's output function (David Stafford's "Mix13"): a bijection on 64 bits.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// 64 random bits for `(seed, stream, counter)`.
///
/// `stream` keeps uses apart that share a seed (a layer, a sequence, the sampler); `counter` is the position
/// within the stream.
pub fn bits(seed: u64, stream: u64, counter: u64) -> u64 {
    // Hash seed and stream one after the other, so that (1, 2) and (2, 1) are different sequences.
    let start = mix(mix(seed.wrapping_add(GAMMA)) ^ stream.wrapping_add(GAMMA));
    mix(start.wrapping_add(counter.wrapping_add(1).wrapping_mul(GAMMA)))
}

/// A number in `[0, 1)` with 53 random bits.
pub fn uniform(seed: u64, stream: u64, counter: u64) -> f64 {
    // 2^-53: every f64 of this spacing in [0, 1) is equally likely.
    (bits(seed, stream, counter) >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// A draw from the normal distribution with mean 0 and standard deviation 1.
///
/// Box and Muller's transform of two uniform numbers, of which only the cosine half is used: a pair would tie
/// neighbouring counters together. The magnitude is at most 8.6.
pub fn standard_normal(seed: u64, stream: u64, counter: u64) -> f64 {
    let first = counter.wrapping_mul(2);
    // 1 - u lies in (0, 1], so the logarithm is finite.
    let radius = libm::sqrt(-2.0 * libm::log(1.0 - uniform(seed, stream, first)));
    let angle = 2.0 * std::f64::consts::PI * uniform(seed, stream, first.wrapping_add(1));
    radius * libm::cos(angle)
}

/// A draw from the standard normal distribution cut off at `-bound` and `bound` (in standard deviations).
///
/// A draw outside is drawn again from a sequence of its own, so no other counter's number changes; after
/// a fixed number of tries the last one is clamped. A `bound` that is not above zero gives 0.
pub fn truncated_normal(seed: u64, stream: u64, counter: u64, bound: f64) -> f64 {
    if bound.is_nan() || bound <= 0.0 {
        return 0.0;
    }
    let key = bits(seed, stream, counter);
    let mut draw = 0.0;
    for attempt in 0..TRUNCATION_TRIES {
        draw = standard_normal(key, stream, attempt);
        if draw.abs() <= bound {
            return draw;
        }
    }
    draw.clamp(-bound, bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: u64 = 100_000;

    fn moments(f: impl Fn(u64) -> f64) -> (f64, f64) {
        let mean = (0..N).map(&f).sum::<f64>() / N as f64;
        let var = (0..N).map(|i| (f(i) - mean).powi(2)).sum::<f64>() / N as f64;
        (mean, var.sqrt())
    }

    #[test]
    fn mix_is_splitmix64() {
        // The first outputs of the published generator started at 1234567.
        let mut state = 1_234_567_u64;
        let published = [
            6_457_827_717_110_365_317_u64,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        for want in published {
            state = state.wrapping_add(GAMMA);
            assert_eq!(mix(state), want);
        }
    }

    #[test]
    fn seed_stream_and_counter_all_matter() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..20 {
            for stream in 0..20 {
                for counter in 0..20 {
                    assert!(seen.insert(bits(seed, stream, counter)));
                }
            }
        }
        assert_eq!(bits(1, 2, 3), bits(1, 2, 3));
    }

    #[test]
    fn numbers_are_pinned() {
        // A saved session or a published answer depends on these never changing.
        // The expected values come from an independent implementation of the same formulas.
        assert_eq!(bits(0, 0, 0), 2_077_113_891_230_206_638);
        assert_eq!(standard_normal(42, 7, 9), -0.8963403220491198);
    }

    #[test]
    fn uniform_is_uniform() {
        let mut buckets = [0_u32; 16];
        for i in 0..N {
            let u = uniform(3, 1, i);
            assert!((0.0..1.0).contains(&u));
            buckets[(u * 16.0) as usize] += 1;
        }
        let expected = N as f64 / 16.0;
        let chi2: f64 = buckets.iter().map(|&b| (f64::from(b) - expected).powi(2) / expected).sum();
        // 15 degrees of freedom: 37.7 is the 0.1 % point.
        assert!(chi2 < 37.7, "{chi2}");
    }

    #[test]
    fn normal_has_mean_0_and_deviation_1() {
        let (mean, std) = moments(|i| standard_normal(11, 0, i));
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((std - 1.0).abs() < 0.01, "{std}");
        let neighbours: f64 =
            (0..N).map(|i| standard_normal(11, 0, i) * standard_normal(11, 0, i + 1)).sum::<f64>() / N as f64;
        assert!(neighbours.abs() < 0.01, "{neighbours}");
    }

    #[test]
    fn truncated_normal_keeps_its_bounds() {
        for bound in [3.0, 1.0, 0.25] {
            for i in 0..10_000 {
                assert!(truncated_normal(5, 2, i, bound).abs() <= bound);
            }
        }
        let (mean, std) = moments(|i| truncated_normal(5, 2, i, 3.0));
        assert!(mean.abs() < 0.01, "{mean}");
        // The standard deviation of a normal cut at 3 is 0.98658.
        assert!((std - 0.986_58).abs() < 0.01, "{std}");
        // No draw falls within 1e-30 of zero: the clamp has to end it.
        assert!(truncated_normal(5, 2, 0, 1e-30).abs() <= 1e-30);
        for bad in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
            assert_eq!(truncated_normal(5, 2, 0, bad), 0.0);
        }
        assert!(truncated_normal(5, 2, 0, f64::INFINITY).is_finite());
    }
}
