use super::*;
use proptest::prelude::*;

/// Everything off: a plain draw from the softmax.
fn plain() -> SamplerConfig {
    SamplerConfig { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..SamplerConfig::default() }
}

fn counts(config: SamplerConfig, logits: &[f32], n: u32) -> Vec<u32> {
    let mut sampler = Sampler::new(config).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits).unwrap() as usize] += 1;
    }
    counts
}

fn logits_of(p: &[f32]) -> Vec<f32> {
    p.iter().map(|p| p.ln()).collect()
}

/// Pearson's statistic of `counts` against the probabilities `p`; a zero probability must never be drawn.
fn chi2(counts: &[u32], p: &[f64]) -> f64 {
    let n: u32 = counts.iter().sum();
    counts.iter().zip(p).fold(0.0, |sum, (&c, &p)| match p > 0.0 {
        true => sum + (f64::from(c) - p * f64::from(n)).powi(2) / (p * f64::from(n)),
        false => {
            assert_eq!(c, 0);
            sum
        }
    })
}

#[test]
fn validate_rejects_every_bad_setting() {
    type Set = fn(&mut SamplerConfig, f32);
    let cases: [(&str, Set, &[f32]); 4] = [
        ("temperature", |c, x| c.temperature = x, &[-0.1]),
        ("top_p", |c, x| c.top_p = x, &[-0.1, 1.1]),
        ("min_p", |c, x| c.min_p = x, &[-0.1, 1.1]),
        ("repeat_penalty", |c, x| c.repeat_penalty = x, &[0.0, -1.0]),
    ];
    for (expected, set, bad) in cases {
        for &x in bad.iter().chain(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            let mut config = SamplerConfig::default();
            set(&mut config, x);
            match Sampler::new(config) {
                Err(Error::Setting { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected} = {x}: {other:?}"),
            }
        }
    }
    SamplerConfig::default().validate().unwrap();
    SamplerConfig::greedy().validate().unwrap();
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut s = Sampler::new(SamplerConfig::greedy()).unwrap();
    assert_eq!(s.sample(&[1.0, 3.0, 3.0, 2.0]), Ok(1));
    assert_eq!(s.sample(&[0.0, -0.0]), Ok(0));
    assert_eq!(s.sample(&[-0.0, 0.0]), Ok(0));
    assert_eq!(s.sample(&[f32::NEG_INFINITY, -5.0]), Ok(1));
}

#[test]
fn bad_logits_are_errors() {
    for config in [SamplerConfig::greedy(), SamplerConfig::default(), plain()] {
        let mut s = Sampler::new(config).unwrap();
        let bad = s.sample(&[0.0, f32::NAN]).unwrap_err();
        assert!(matches!(bad, Error::Logit { token: 1, .. }));
        let bad = s.sample(&[f32::INFINITY, 0.0]).unwrap_err();
        assert!(matches!(bad, Error::Logit { token: 0, .. }));
        let none = s.sample(&[f32::NEG_INFINITY; 3]);
        assert_eq!(none, Err(Error::NothingToChoose(3)));
        assert_eq!(s.sample(&[]), Err(Error::NothingToChoose(0)));
        // An error is no draw.
        assert_eq!(s.position(), 0);
        s.suppress([0, 1]);
        assert_eq!(s.sample(&[1.0, 1.0]), Err(Error::NothingToChoose(2)));
    }
}

#[test]
fn suppressed_ids_are_never_chosen() {
    let mut s = Sampler::new(SamplerConfig::greedy()).unwrap();
    s.suppress([3, 1, 3]);
    assert_eq!(s.sample(&[0.0, 9.0, 1.0, 8.0]), Ok(2));
    s.limit_vocabulary(2);
    assert_eq!(s.sample(&[0.0, 9.0, 1.0, 8.0]), Ok(0));
    // NaN in a padded row is still a broken forward pass.
    assert!(s.sample(&[0.0, 9.0, f32::NAN, 8.0]).is_err());
}

#[test]
fn draws_follow_the_softmax() {
    let p = [0.5_f32, 0.25, 0.125, 0.0625, 0.0625];
    let p64 = p.map(f64::from);
    // 4 degrees of freedom: 18.5 is the 0.1 % point.
    assert!(chi2(&counts(plain(), &logits_of(&p), 20_000), &p64) < 18.5);
    // Temperature 0.5 squares the probabilities.
    let cold = SamplerConfig { temperature: 0.5, ..plain() };
    let sum: f64 = p64.iter().map(|p| p * p).sum();
    let squared = p64.map(|p| p * p / sum);
    assert!(chi2(&counts(cold, &logits_of(&p), 20_000), &squared) < 18.5);
}

#[test]
fn filters_cut_where_llama_cpp_cuts() {
    let logits = logits_of(&[0.1, 0.4, 0.05, 0.3, 0.15]);
    let kept = |config| {
        let counts = counts(config, &logits, 4000);
        let kept = counts.iter().enumerate().filter(|(_, c)| **c > 0);
        kept.map(|(id, _)| id).collect::<Vec<_>>()
    };
    let top_k = |top_k| SamplerConfig { top_k, ..plain() };
    let top_p = |top_p| SamplerConfig { top_p, ..plain() };
    let min_p = |min_p| SamplerConfig { min_p, ..plain() };
    assert_eq!(kept(plain()), [0, 1, 2, 3, 4]);
    assert_eq!(kept(top_k(2)), [1, 3]);
    assert_eq!(kept(top_k(1)), [1]);
    assert_eq!(kept(top_k(99)), [0, 1, 2, 3, 4]);
    assert_eq!(kept(top_p(0.0)), [1]);
    assert_eq!(kept(top_p(0.69)), [1, 3]);
    assert_eq!(kept(top_p(0.71)), [1, 3, 4]);
    assert_eq!(kept(min_p(0.3)), [1, 3, 4]);
    assert_eq!(kept(min_p(1.0)), [1]);
    // top-p looks at the distribution before the temperature: hot draws do not widen it.
    let hot = SamplerConfig { temperature: 100.0, ..top_p(0.69) };
    assert_eq!(kept(hot), [1, 3]);
    // ... and after top-k: 0.4 of 0.7 reaches 0.55, where 0.4 of 1 would not.
    let both = SamplerConfig { top_k: 2, ..top_p(0.55) };
    assert_eq!(kept(both), [1]);
}

#[test]
fn equals_at_the_cut_go_to_the_lowest_ids() {
    let config = SamplerConfig { top_k: 3, ..plain() };
    let counts = counts(config, &[1.0; 10], 1000);
    assert!(counts[..3].iter().all(|&c| c > 0));
    assert!(counts[3..].iter().all(|&c| c == 0));
}

#[test]
fn penalty_is_applied_once_and_forgotten_in_time() {
    let config = SamplerConfig { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplerConfig::greedy() };
    let mut s = Sampler::new(config).unwrap();
    let logits = [3.0, 2.0, -1.0];
    assert_eq!(s.sample(&logits), Ok(0));
    s.accept(0);
    assert_eq!(s.sample(&logits), Ok(1)); // 3 / 2 < 2
    s.accept(0);
    // Twice in the window, still divided once: 1.5 against 1.4.
    assert_eq!(s.sample(&[3.0, 1.4, -1.0]), Ok(0));
    s.accept(1);
    s.accept(1);
    assert_eq!(s.sample(&logits), Ok(0)); // 0 has left the window
    // A negative logit is multiplied, so it falls too.
    assert_eq!(s.sample(&[-5.0, -1.5, -2.0]), Ok(2));
    // An id outside the vocabulary is nobody's business.
    s.accept(u32::MAX);
    assert_eq!(s.sample(&logits), Ok(0));
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
    let run = |seed| {
        let config = SamplerConfig { seed, ..plain() };
        let mut s = Sampler::new(config).unwrap();
        let ids: Vec<u32> = (0..20).map(|_| s.sample(&logits).unwrap()).collect();
        (s, ids)
    };
    let (mut sampler, ids) = run(1);
    assert_eq!(ids, run(1).1);
    assert_ne!(ids, run(2).1);
    sampler.set_position(7);
    assert_eq!(sampler.sample(&logits), Ok(ids[7]));
    sampler.reset();
    assert_eq!(sampler.sample(&logits), Ok(ids[0]));
}

#[test]
fn extreme_settings_still_choose() {
    let logits = [f32::MAX, f32::MIN, 0.0];
    for temperature in [f32::MIN_POSITIVE, 1e-40, f32::MAX] {
        for repeat_penalty in [f32::MIN_POSITIVE, f32::MAX] {
            let config =
                SamplerConfig { temperature, repeat_penalty, repeat_last_n: usize::MAX, ..SamplerConfig::default() };
            let mut s = Sampler::new(config).unwrap();
            (0..3).for_each(|id| s.accept(id));
            assert!(s.sample(&logits).unwrap() < 3);
        }
    }
}

proptest! {
    #[test]
    fn what_is_drawn_could_be_drawn(
        logits in prop::collection::vec(prop_oneof![-20.0_f32..20.0, Just(f32::NEG_INFINITY)], 1..60),
        top_k in 0_usize..10, top_p in 0.0_f32..=1.0, min_p in 0.0_f32..=1.0,
        temperature in 0.0_f32..3.0, seed: u64,
    ) {
        let config = SamplerConfig { temperature, top_k, top_p, min_p, seed, ..SamplerConfig::default() };
        let mut s = Sampler::new(config).unwrap();
        match s.sample(&logits) {
            Ok(id) => {
                let drawn = logits[id as usize];
                prop_assert!(drawn > f32::NEG_INFINITY);
                let better = logits.iter().filter(|l| **l > drawn).count();
                prop_assert!(top_k == 0 || better < top_k);
            }
            Err(e) => {
                prop_assert_eq!(e, Error::NothingToChoose(logits.len()));
                prop_assert!(logits.iter().all(|l| *l == f32::NEG_INFINITY));
            }
        }
    }
}
