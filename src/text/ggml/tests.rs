use super::*;

const JSON: &str = include_str!("../../../tests/data/text/tokenizer.json");

fn tokenizer() -> Tokenizer {
    let config = include_str!("../../../tests/data/text/tokenizer_config.json");
    let mut tokenizer = Tokenizer::from_json(JSON).unwrap();
    tokenizer.apply_config(&serde_json::from_str(config).unwrap()).unwrap();
    tokenizer
}

fn parts() -> VocabParts {
    tokenizer().ggml_keys(1024).unwrap().parts
}

#[test]
fn keys_say_what_the_tokenizer_does() {
    let keys = tokenizer().ggml_keys(1024).unwrap();
    // The expression is llama-bpe's, but this vocabulary does not ignore its merges.
    assert_eq!((keys.parts.pre.as_str(), keys.pre_is_exact), ("dbrx", true));
    assert_eq!(keys.parts.tokens.len(), 1024);
    assert_eq!(keys.parts.tokens[4], "<|end_turn|>");
    assert_eq!(keys.parts.tokens[1000], "[PAD1000]");
    assert_eq!(keys.parts.merges.len(), 567);
    assert_eq!(keys.parts.merges[0], "Ġ t");
    let types = |t| keys.parts.token_types.iter().filter(|x| **x == t).count();
    assert_eq!([types(TOKEN_CONTROL), types(TOKEN_NORMAL), types(TOKEN_UNUSED)], [6, 823, 195]);
    assert_eq!(keys.parts.special, SpecialIds { bos: Some(0), eos: Some(1), pad: Some(5), unk: None });
}

#[test]
fn keys_alone_are_enough() {
    let (json, ggml) = (tokenizer(), Tokenizer::from_parts(parts()).unwrap());
    let texts = ["", "Hello, world! It's 12345\n\n  x", "naïve café 北京 🙂\u{200d}", "<|end_turn|> a\r\n", "\0\t  "];
    for text in texts {
        assert_eq!(json.encode_plain(text), ggml.encode_plain(text), "{text:?}");
        assert_eq!(json.encode_trusted(text), ggml.encode_trusted(text), "{text:?}");
    }
    assert_eq!(ggml.vocabulary(), 829);
    assert_eq!(ggml.special_ids(), json.special_ids());
    assert_eq!(ggml.ggml_keys(1024).unwrap(), json.ggml_keys(1024).unwrap());
    assert!((0..829).all(|id| ggml.is_special(id) == (id < 6)));
}

#[test]
fn every_pre_tokenizer_runs_and_is_recognised() {
    let mut seen = std::collections::HashSet::new();
    for rules in PRES {
        for name in rules.names {
            assert!(seen.insert(name), "{name} is listed twice");
        }
        let pre = rules.names[0].to_owned();
        let t = Tokenizer::from_parts(VocabParts { pre: pre.clone(), ..parts() }).unwrap();
        let text = "It's 1234 naïve <x>\n\n  北京!";
        assert_eq!(t.decode(&t.encode_plain(text).unwrap()).unwrap(), text, "{pre}");
        let keys = t.ggml_keys(829).unwrap();
        assert_eq!((keys.parts.pre, keys.pre_is_exact), (pre, true));
    }
}

#[test]
fn pre_tokenizers_cut_where_they_should() {
    let words = |pre: &str, text: &str| {
        use tokenizers::{OffsetReferential::Original, OffsetType::Byte, PreTokenizedString, PreTokenizer};
        let t = Tokenizer::from_parts(VocabParts { pre: pre.to_owned(), ..parts() }).unwrap();
        let mut s = PreTokenizedString::from(text);
        t.pre_tokenizer.as_ref().unwrap().pre_tokenize(&mut s).unwrap();
        let pieces = s.get_splits(Original, Byte).into_iter();
        pieces.map(|(_, (a, b), _)| text[a..b].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(words("gpt-2", "I'LL 1234  x"), ["I", "'", "LL", " 1234", " ", " x"]);
    assert_eq!(words("llama-bpe", "I'LL 1234  x"), ["I", "'LL", " ", "123", "4", " ", " x"]);
    assert_eq!(words("qwen2", "a 12\n b"), ["a", " ", "1", "2", "\n", " b"]);
    assert_eq!(words("smollm", "a 12 b"), ["a", " ", "1", "2", " b"]);
    assert_eq!(words("default", "ab 12345!"), ["ab", " ", "123", "45", "!"]);
    assert_eq!(words("deepseek-v3", "ab 1234!x"), ["ab", " ", "123", "4", "!x"]);
}

#[test]
fn unknown_rules_fall_back_and_say_so() {
    let json = JSON.replace("{1,3}", "{1,4}");
    assert_ne!(json, JSON);
    let keys = Tokenizer::from_json(&json).unwrap().ggml_keys(829).unwrap();
    assert_eq!((keys.parts.pre.as_str(), keys.pre_is_exact), ("default", false));
}

#[test]
fn malformed_parts_are_errors_by_name() {
    let bad = |change: fn(&mut VocabParts)| {
        let mut parts = parts();
        change(&mut parts);
        Tokenizer::from_parts(parts).unwrap_err()
    };
    let unsupported = bad(|p| p.model = "llama".into());
    assert!(unsupported.to_string().contains("\"llama\""), "{unsupported}");
    let unsupported = bad(|p| p.pre = "qwen99".into());
    assert!(matches!(unsupported, Error::Unsupported { what: "tokenizer.ggml.pre", .. }));
    assert!(matches!(bad(|p| p.token_types.truncate(7)), Error::Range { found: 7, .. }));
    assert!(matches!(bad(|p| p.tokens[700] = p.tokens[701].clone()), Error::Ambiguous { first_id: 700, .. }));
    for rule in ["", "t", "nonsense token", "a b c", " "] {
        let mut parts = parts();
        parts.merges[3] = rule.to_owned();
        assert!(matches!(Tokenizer::from_parts(parts), Err(Error::Merge { index: 3, .. })), "{rule:?}");
    }
    assert!(matches!(bad(|p| p.special.eos = Some(829)), Error::UnknownId { id: 829, .. }));
    assert!(matches!(bad(|p| p.special.bos = Some(u32::MAX)), Error::UnknownId { .. }));
    let few = tokenizer().ggml_keys(828).unwrap_err();
    assert!(matches!(few, Error::Range { found: 828, .. }));
    // An empty vocabulary is useless, not dangerous.
    let empty = Tokenizer::from_parts(VocabParts { model: "gpt2".into(), ..VocabParts::default() }).unwrap();
    assert_eq!(empty.vocabulary(), 0);
    assert_eq!(empty.encode_plain("abc"), Ok(vec![]));
}
