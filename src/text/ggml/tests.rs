use super::pre::PRES;
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
    assert_eq!((keys.parts.pre.as_str(), keys.exact), ("dbrx", true));
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
        assert_eq!(t.warnings(), [""; 0]);
        let keys = t.ggml_keys(829).unwrap();
        // Of two names for the same rules the first is written.
        let same = |p: &&pre::Pre| p.regexes == rules.regexes && p.ignore_merges == rules.ignore_merges;
        let first = PRES.iter().find(same).unwrap().names[0];
        assert_eq!((keys.parts.pre.as_str(), keys.exact), (first, true));
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
    assert_eq!(words("gpt-4o", "HTTPServer'S x"), ["HTTPServer'S", " x"]);
    assert_eq!(words("tekken", "fooBar 12"), ["foo", "Bar", " ", "1", "2"]);
    assert_eq!(words("deepseek-llm", "ab 12!\n"), ["ab", " ", "12", "!", "\n"]);
    assert_eq!(words("bloom", "ab, c"), ["ab", ",", " c"]);
    assert_eq!(words("deepseek-v3", "ab 1234!x"), ["ab", " ", "123", "4", "!x"]);
}

#[test]
fn unknown_rules_fall_back_and_say_so() {
    let json = JSON.replace("{1,3}", "{1,4}");
    assert_ne!(json, JSON);
    let keys = Tokenizer::from_json(&json).unwrap().ggml_keys(829).unwrap();
    assert_eq!((keys.parts.pre.as_str(), keys.exact), ("default", false));
}

#[test]
fn malformed_parts_are_errors_by_name() {
    let bad = |change: fn(&mut VocabParts)| {
        let mut parts = parts();
        change(&mut parts);
        Tokenizer::from_parts(parts).unwrap_err()
    };
    let unsupported = bad(|p| p.model = "bert".into());
    assert!(unsupported.to_string().contains("\"bert\""), "{unsupported}");
    assert!(matches!(bad(|p| p.token_types.truncate(7)), Error::Range { found: 7, .. }));
    assert!(matches!(bad(|p| p.tokens[700] = p.tokens[701].clone()), Error::Ambiguous { first_id: 700, .. }));
    for rule in ["", "t", "nonsense token", "a b c", " "] {
        let mut parts = parts();
        parts.merges[3] = rule.to_owned();
        assert!(matches!(Tokenizer::from_parts(parts), Err(Error::Merge { index: 3, .. })), "{rule:?}");
    }
    let few = tokenizer().ggml_keys(828).unwrap_err();
    assert!(matches!(few, Error::Range { found: 828, .. }));
    // An empty vocabulary is useless, not dangerous.
    let empty = Tokenizer::from_parts(VocabParts { model: "gpt2".into(), ..VocabParts::default() }).unwrap();
    assert_eq!(empty.vocabulary(), 0);
    assert_eq!(empty.encode_plain("abc"), Ok(vec![]));
}

#[test]
fn unknown_names_and_ids_are_warned_of() {
    let warned = |change: fn(&mut VocabParts)| {
        let mut parts = parts();
        change(&mut parts);
        let t = Tokenizer::from_parts(parts).unwrap();
        assert_eq!(t.warnings().len(), 1, "{:?}", t.warnings());
        (t.warnings()[0].clone(), t)
    };
    let (unknown, t) = warned(|p| p.pre = "qwen99".into());
    assert!(unknown.contains("\"qwen99\" is not known; the default rules"), "{unknown}");
    assert_eq!(t.ggml_keys(829).unwrap().parts.pre, "default");
    let (missing, _) = warned(|p| p.pre = String::new());
    assert!(missing.contains("tokenizer.ggml.pre"), "{missing}");
    let (eos, t) = warned(|p| p.special.eos = Some(829));
    assert!(eos.contains("eos_token_id 829"), "{eos}");
    assert_eq!(t.special_ids().eos, None);
    let (_, t) = warned(|p| (p.special.bos, p.add_bos) = (Some(u32::MAX), Some(true)));
    assert!(!t.add_bos(), "there is none to add");
}

#[test]
fn bos_and_eos_go_where_the_keys_say() {
    let with = |add_bos, add_eos| Tokenizer::from_parts(VocabParts { add_bos, add_eos, ..parts() }).unwrap();
    let body = with(None, None).encode_plain("a b").unwrap();
    let around = |t: &Tokenizer| (t.encode_prompt("a b").unwrap(), t.encode_document("a b").unwrap());
    assert_eq!(around(&with(None, None)), (body.clone(), body.clone()));
    let (prompt, document) = around(&with(Some(true), Some(true)));
    assert_eq!(prompt, [&[0][..], &body].concat(), "an answer follows a prompt, so it has no end");
    assert_eq!(document, [&[0][..], &body, &[1]].concat());
    // llama-bpe starts with BOS unless the file says otherwise.
    let llama = VocabParts { pre: "llama-bpe".into(), add_bos: None, ..parts() };
    assert!(Tokenizer::from_parts(llama.clone()).unwrap().add_bos());
    assert!(!Tokenizer::from_parts(VocabParts { add_bos: Some(false), ..llama }).unwrap().add_bos());
}

/// A vocabulary with scores; the first three tokens are special, then come the bytes.
fn scored(tokens: &[(&str, f32, i32)]) -> VocabParts {
    let special = [("<unk>", TOKEN_UNKNOWN), ("<s>", TOKEN_CONTROL), ("</s>", TOKEN_CONTROL)];
    let bytes = (0..256).map(|b| (format!("<0x{b:02X}>"), 0.0, TOKEN_BYTE));
    let all: Vec<(String, f32, i32)> = special
        .iter()
        .map(|(text, kind)| (text.to_string(), 0.0, *kind))
        .chain(bytes)
        .chain(tokens.iter().map(|(text, score, kind)| (text.to_string(), *score, *kind)))
        .collect();
    VocabParts {
        model: "llama".into(),
        tokens: all.iter().map(|t| t.0.clone()).collect(),
        scores: all.iter().map(|t| t.1).collect(),
        token_types: all.iter().map(|t| t.2).collect(),
        ..VocabParts::default()
    }
}

fn texts(t: &Tokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| t.text_of(*id).unwrap()).collect()
}

#[test]
fn scored_vocabularies_have_llama_cpps_defaults() {
    let n = TOKEN_NORMAL;
    let words = [("▁", -9.0, n), ("a", -9.0, n), ("b", -9.0, n), ("▁a", -2.0, n), ("ab", -1.0, n), ("▁ab", -3.0, n)];
    let t = Tokenizer::from_parts(scored(&words)).unwrap();
    let ids = SpecialIds { bos: Some(1), eos: Some(2), pad: None, unk: Some(0) };
    assert_eq!((t.special_ids(), t.add_bos(), t.add_eos()), (ids, true, false));
    // "ab" is merged first, then the space before it; after a special token there is one more.
    assert_eq!(texts(&t, &t.encode_plain("ab a").unwrap()), ["▁ab", "▁a"]);
    assert_eq!(texts(&t, &t.encode_trusted("b<s>b").unwrap()), ["▁", "b", "<s>", "▁", "b"]);
    assert_eq!(texts(&t, &t.encode_prompt("").unwrap()), ["<s>"]);
    let bare = VocabParts { add_space_prefix: Some(false), ..scored(&words) };
    let bare = Tokenizer::from_parts(bare).unwrap();
    assert_eq!(texts(&bare, &bare.encode_plain("ab a").unwrap()), ["ab", "▁a"]);
    // Without scores all are equal, and the leftmost pair wins.
    let equal = Tokenizer::from_parts(VocabParts { scores: vec![], ..scored(&words) }).unwrap();
    assert_eq!(texts(&equal, &equal.encode_plain("ab").unwrap()), ["▁ab"]);
    // What is read is written.
    let keys = t.ggml_keys(t.vocabulary()).unwrap();
    assert!(keys.exact);
    assert_eq!((keys.parts.scores, keys.parts.token_types), (scored(&words).scores, scored(&words).token_types));
}

#[test]
fn user_defined_tokens_are_text_only_where_they_are_no_control() {
    let (n, user) = (TOKEN_NORMAL, TOKEN_USER_DEFINED);
    let words = [("a", 0.0, n), ("  ", -1.0, user), ("é", -1.0, user), ("<think>", -1.0, user), ("[PAD]", 0.0, 5)];
    let t = Tokenizer::from_parts(VocabParts { add_space_prefix: Some(false), ..scored(&words) }).unwrap();
    assert_eq!(texts(&t, &t.encode_plain("a  é").unwrap()), ["a", "  ", "é"]);
    let typed = t.encode_plain("<think>").unwrap();
    assert_eq!((typed.len(), t.decode(&typed).unwrap().as_str()), (7, "<think>"));
    assert_eq!(texts(&t, &t.encode_trusted("<think>").unwrap()), ["<think>"]);
    assert!(t.token_bytes(t.vocabulary() as u32).is_err());
    assert_eq!(t.id_of("[PAD]"), None, "an unused row is no token");
}

#[test]
fn hostile_scored_vocabularies_do_no_harm() {
    let n = TOKEN_NORMAL;
    let long = "x".repeat(100_000);
    let words = [
        ("<0x-1>", f32::NAN, TOKEN_BYTE),
        ("<0x>", f32::INFINITY, TOKEN_BYTE),
        ("<0x1FF>", f32::NEG_INFINITY, TOKEN_BYTE),
        ("", -0.0, n),
        (&long, 1e38, n),
        ("x", 0.0, n),
        ("xx", f32::NAN, n),
        ("▁", 0.0, n),
    ];
    let t = Tokenizer::from_parts(scored(&words)).unwrap();
    assert_eq!(t.token_bytes(259).unwrap(), b"<0x-1>");
    assert_eq!(t.text_of(262).unwrap(), "[EMPTY_262]");
    for text in ["<0x-1>", "<0x00>", &long, "\0\u{10ffff}é"] {
        let ids = t.encode_plain(text).unwrap();
        assert_eq!(t.decode(&ids).unwrap(), format!(" {text}"));
    }
    let refused = |change: fn(&mut VocabParts)| {
        let mut parts = scored(&[]);
        change(&mut parts);
        Tokenizer::from_parts(parts).unwrap_err()
    };
    assert!(matches!(refused(|p| p.scores.truncate(5)), Error::Range { found: 5, .. }));
    assert!(matches!(refused(|p| p.token_types.truncate(5)), Error::Range { found: 5, .. }));
    assert!(matches!(refused(|p| p.tokens[9] = "<s>".into()), Error::Ambiguous { second_id: 9, .. }));
    // A lack of bytes is an error where there is no "unknown" either.
    let few = |special| VocabParts {
        model: "llama".into(),
        tokens: vec!["a".into(), "▁".into()],
        special,
        ..VocabParts::default()
    };
    let t = Tokenizer::from_parts(few(SpecialIds { unk: Some(99), ..SpecialIds::default() })).unwrap();
    assert_eq!(t.encode_plain("é"), Err(Error::OnlySpecial("é".into())));
    let t = Tokenizer::from_parts(few(SpecialIds { unk: Some(0), ..SpecialIds::default() })).unwrap();
    assert_eq!(t.encode_plain("é"), Ok(vec![1, 0]));
    let nothing = Tokenizer::from_parts(VocabParts { model: "llama".into(), ..VocabParts::default() }).unwrap();
    assert_eq!((nothing.vocabulary(), nothing.add_bos()), (0, false));
}
