//! `kl`: the read-out has stopped changing.
//!
//! The statistic is KL(p ‖ q) = Σ p_i (ln p_i − ln q_i) with p the previous read-out's distribution and q
//! this one's, in nats: `F.kl_div(log q, log p, log_target=True)` of Huginn's public reference
//! implementation, whose threshold of 1e-3 is the default. The read-out before the first is the uniform
//! distribution. "Previous" is the last one that was *checked*: after `min` steps without a check the first
//! comparison is with the uniform distribution too, as there.

use super::readout::{Previous, divergence, log_sum_exp};
use super::{Rule, Statistic, Threshold};
use crate::model::DeviceStatistic;

pub(super) static RULE: Rule = Rule {
    name: "kl",
    statistic: Statistic::Readout { measure: change, whole: true },
    threshold: Threshold::Usual(1e-3),
    hits: 1,
    device: DeviceStatistic::Kl,
};

/// KL(previous ‖ `logits`), and makes `logits` the previous read-out; only the sum is rounded to f32.
fn change(previous: &mut Previous, logits: &[f32]) -> f32 {
    assert_eq!(logits.len(), previous.logits.len(), "the rule's memory is for another vocabulary");
    let log_sum = log_sum_exp(logits);
    let sum = divergence((&previous.logits, previous.log_sum), (logits, log_sum), f64::NEG_INFINITY);
    previous.replace(logits, log_sum);
    sum as f32
}

#[cfg(test)]
mod tests {
    use super::super::tests::rule;

    #[test]
    #[should_panic(expected = "another vocabulary")]
    fn a_readout_of_another_size_is_a_mistake() {
        let kl = rule("kl");
        kl.check_readout(&mut kl.memory(4), 1, &[0.0; 5]);
    }

    /// KL(p ‖ q) of two read-outs straight from its definition, in f64.
    fn plain_kl(p: &[f64], q: &[f64]) -> f64 {
        let softmax = |logits: &[f64]| {
            let exps: Vec<f64> = logits.iter().map(|x| x.exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.into_iter().map(|x| x / sum).collect::<Vec<_>>()
        };
        softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum()
    }

    fn widened(logits: &[f32]) -> Vec<f64> {
        logits.iter().map(|&x| f64::from(x)).collect()
    }

    /// Which side of `value` the divergence of the second read-out from the first lies on.
    fn divergence_is_below(value: f32, first: &[f32], second: &[f32]) -> bool {
        let kl = rule(&format!("kl:{value:e}"));
        let mut memory = kl.memory(first.len());
        kl.check_readout(&mut memory, 1, first);
        kl.check_readout(&mut memory, 2, second)
    }

    fn assert_divergence(first: &[f32], second: &[f32], expected: f64) {
        let (below, above) = ((expected * (1.0 - 1e-6)) as f32, (expected * (1.0 + 1e-6)) as f32);
        assert!(divergence_is_below(above, first, second), "{expected} is less than was found");
        assert!(!divergence_is_below(below, first, second), "{expected} is more than was found");
    }

    proptest::proptest! {
        #[test]
        fn kl_is_its_definition(
            pairs in proptest::collection::vec((-20f32..20.0, -20f32..20.0), 2..300),
            closeness in 0f32..1.0,
            offset in -1e3f32..1e3,
        ) {
            let first: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
            let second: Vec<f32> = pairs.iter().map(|pair| pair.0 + closeness * pair.1).collect();
            // A softmax does not see an offset, with which the definition alone would overflow.
            let shifted: Vec<f32> = second.iter().map(|x| x + offset).collect();
            let unshifted: Vec<f64> = shifted.iter().map(|&x| f64::from(x) - f64::from(offset)).collect();
            for (second, plain) in [(&second, widened(&second)), (&shifted, unshifted)] {
                let expected = plain_kl(&widened(&first), &plain);
                // Below this the definition itself is a difference of equals.
                proptest::prop_assume!(expected > 1e-7);
                assert_divergence(&first, second, expected);
            }
        }
    }

    #[test]
    fn kl_of_large_logits_does_not_overflow() {
        // p is certain of the first entry; q gives it 1/(1 + e^-2).
        assert_divergence(&[3e38, 0.0], &[1000.0, 998.0], (1.0 + (-2.0f64).exp()).ln());
        assert_divergence(&[-3e38, 0.0], &[998.0, 1000.0], (1.0 + (-2.0f64).exp()).ln());
        // Exactly equal read-outs are 0 apart, however large.
        assert!(divergence_is_below(1e-30, &[3e38, -3e38, 7.0], &[3e38, -3e38, 7.0]));
    }

    #[test]
    fn kl_begins_with_the_uniform_distribution() {
        let logits = [0.3f32, -1.0, 2.0, 0.25, 0.0];
        let expected = plain_kl(&[0.0; 5], &widened(&logits)) as f32;
        let first = |threshold: f32| {
            let kl = rule(&format!("kl:{threshold:e}"));
            kl.check_readout(&mut kl.memory(5), 1, &logits)
        };
        assert!(first(expected * 1.00001) && !first(expected * 0.99999));
    }

    /// Nothing that is not a number lets a row leave, and impossible tokens are no reason to stay.
    #[test]
    fn kl_of_odd_readouts() {
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let settled = |first: &[f32], second: &[f32]| divergence_is_below(3e38, first, second);
        // A NaN in either read-out, and a NaN that has gone again.
        assert!(!settled(&[1.0, 2.0, 3.0], &[1.0, nan, 3.0]));
        assert!(!settled(&[1.0, nan, 3.0], &[1.0, 2.0, 3.0]));
        assert!(!settled(&[nan; 3], &[nan; 3]));
        let kl = rule("kl");
        let mut memory = kl.memory(2);
        for (step, logits, leaves) in
            [(1, [nan, 1.0], false), (2, [0.0, 1.0], false), (3, [0.0, 1.0], true), (4, [nan, 1.0], false)]
        {
            assert_eq!(kl.check_readout(&mut memory, step, &logits), leaves, "step {step}");
        }
        // Infinities that leave no distribution.
        assert!(!settled(&[1.0, 2.0], &[inf, 2.0]));
        assert!(!settled(&[1.0, 2.0], &[-inf, -inf]));
        // A masked entry counts for nothing; one that was possible and is masked now is infinitely far.
        assert_divergence(&[1.0, -inf, 2.0], &[1.5, -inf, 2.0], plain_kl(&[1.0, 2.0], &[1.5, 2.0]));
        assert!(divergence_is_below(1e-30, &[1.0, -inf], &[1.0, -inf]));
        assert!(!settled(&[1.0, 0.0], &[1.0, -inf]));
        // A vocabulary of one is always settled.
        assert!(divergence_is_below(1e-30, &[4.0], &[-4.0]));
    }
}
