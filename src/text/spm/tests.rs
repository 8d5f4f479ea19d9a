use super::*;
use proptest::prelude::*;

fn spm(tokens: &[(&str, f32)]) -> Spm {
    let mut spm = Spm::default();
    for (id, (text, score)) in tokens.iter().enumerate() {
        spm.insert(id as u32, text, *score, true).unwrap();
    }
    spm.set_unknown(Some(999));
    spm
}

fn encode(spm: &Spm, text: &str) -> Vec<u32> {
    spm.encode(text, &[]).unwrap()
}

/// The rule as it reads: as long as any two neighbours are a token, merge the best, of equals the leftmost.
fn naive(tokens: &[(&str, f32)], text: &str) -> Vec<u32> {
    let find = |t: &str| tokens.iter().position(|(text, _)| *text == t);
    let mut parts: Vec<String> = text.chars().map(|c| c.to_string()).collect();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for at in 1..parts.len() {
            if let Some(id) = find(&format!("{}{}", parts[at - 1], parts[at])) {
                let score = tokens[id].1;
                if best.is_none_or(|(s, _)| score > s) {
                    best = Some((score, at));
                }
            }
        }
        let Some((_, at)) = best else { break };
        let right = parts.remove(at);
        parts[at - 1] += &right;
    }
    parts.iter().map(|p| find(p).map_or(999, |id| id as u32)).collect()
}

#[test]
fn the_best_pair_goes_first_and_the_leftmost_of_equals() {
    let tokens = [("a", 0.0), ("b", 0.0), ("ab", -2.0), ("ba", -1.0), ("aa", -3.0)];
    let s = spm(&tokens);
    assert_eq!(encode(&s, "aba"), [0, 3]);
    assert_eq!(encode(&s, "aaa"), [4, 0]);
    assert_eq!(encode(&s, ""), [0; 0]);
    assert_eq!(encode(&s, "axb"), [0, 999, 1]);
}

#[test]
fn two_tokens_of_one_text_are_refused() {
    let mut s = spm(&[("a", 0.0)]);
    assert!(matches!(s.insert(7, "a", 0.0, true), Err(Error::Ambiguous { first_id: 0, second_id: 7, .. })));
}

proptest! {
    #[test]
    fn merges_are_the_naive_ones(
        tokens in prop::collection::hash_map("[abc]{2,4}", -3_i8..3, 0..12),
        text in "[abcé]{0,24}",
    ) {
        let singles = [("a", 0.0), ("b", 0.0), ("c", 0.0)];
        let more = tokens.iter().map(|(text, score)| (text.as_str(), f32::from(*score)));
        let tokens: Vec<(&str, f32)> = singles.into_iter().chain(more).collect();
        prop_assert_eq!(encode(&spm(&tokens), &text), naive(&tokens, &text));
    }
}
