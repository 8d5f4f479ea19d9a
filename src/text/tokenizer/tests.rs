use super::*;
use proptest::prelude::*;
use serde_json::json;

const JSON: &str = include_str!("../../../tests/data/text/tokenizer.json");
const EXPECTED: &str = include_str!("../../../tests/data/text/expected.json");

fn tokenizer() -> Tokenizer {
    Tokenizer::from_json(JSON).unwrap()
}

/// The test vocabulary's tokenizer.json, changed.
fn changed(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, Error> {
    let mut json = serde_json::from_str(JSON).unwrap();
    change(&mut json);
    Tokenizer::from_json(&json.to_string())
}

fn add(json: &mut Value, id: u32, content: &str, special: bool) {
    let token = json!({"id": id, "content": content, "special": special, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    json["added_tokens"].as_array_mut().unwrap().push(token);
}

/// A SentencePiece-like vocabulary as converted Llama 2 tokenizers have it.
fn sentencepiece(prepend_scheme: &str) -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for text in ["<unk>", "<s>", "</s>"] {
        vocab.insert(text.to_owned(), vocab.len().into());
    }
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for text in ["▁", "a", "b", "c", "▁a", "▁ab", "bc"] {
        vocab.insert(text.to_owned(), vocab.len().into());
    }
    let special = |(id, text)| json!({"id": id, "content": text, "special": true});
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(special).collect();
    let json = json!({
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme, "split": false},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": [["▁", "a"], ["▁a", "b"], ["b", "c"]]},
    });
    Tokenizer::from_json(&json.to_string()).unwrap()
}

#[test]
fn ids_are_the_references() {
    let t = tokenizer();
    let expected: Value = serde_json::from_str(EXPECTED).unwrap();
    let check = |cases: &Value, encode: &dyn Fn(&str) -> Vec<u32>| {
        let cases = cases.as_array().unwrap();
        assert!(!cases.is_empty());
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(encode(text), ids, "{text:?}");
        }
    };
    check(&expected["plain"], &|text| t.encode_plain(text).unwrap());
    check(&expected["plain"], &|text| t.encode_trusted(text).unwrap());
    check(&expected["trusted"], &|text| t.encode_trusted(text).unwrap());
}

#[test]
fn plain_text_is_never_special() {
    let t = tokenizer();
    let text = "<|begin_text|><|end_turn|>x<|pad|>";
    let ids = t.encode_plain(text).unwrap();
    assert!(ids.iter().all(|id| !t.is_special(*id)), "{ids:?}");
    assert_eq!(t.decode(&ids).unwrap(), text);
    assert_eq!(t.encode_trusted(text).unwrap().len(), 4);
}

#[test]
fn merges_never_lead_to_an_added_token() {
    // "He" and "Hello" are merged from letters, and are added tokens as well; "Hello" even is so by name alone.
    let text_of = |id| tokenizer().text_of(id).unwrap();
    let (id, word) = (6..829).map(|id| (id, text_of(id))).find(|(_, w)| w.len() > 3 && w.is_ascii()).unwrap();
    for (special, ignore_merges) in [(true, false), (true, true), (false, true)] {
        let t = changed(|json| {
            add(json, id, &word, special);
            json["model"]["ignore_merges"] = ignore_merges.into();
        })
        .unwrap();
        for text in [word.clone(), format!("x {word}{word} y")] {
            let ids = t.encode_plain(&text).unwrap();
            assert!(!ids.contains(&id), "{text:?}: {ids:?}");
            assert_eq!(t.decode(&ids).unwrap(), text);
        }
        assert_eq!(t.encode_trusted(&word).unwrap(), [id]);
    }
}

#[test]
fn characters_that_are_only_a_special_token_are_an_error() {
    let id = tokenizer().id_of("q").unwrap();
    let t = changed(|json| add(json, id, "q", true)).unwrap();
    assert_eq!(t.encode_plain("q"), Err(Error::OnlySpecial("q".into())));
    // An added word of one character is that character.
    let t = changed(|json| add(json, id, "q", false)).unwrap();
    assert!(t.encode_plain("q").unwrap() == [id]);
}

#[test]
fn runs_of_white_space_are_text() {
    let t = changed(|json| add(json, 829, "    ", false)).unwrap();
    let ids = t.encode_plain("a    b").unwrap();
    assert!(ids.contains(&829));
    assert_eq!(t.decode(&ids).unwrap(), "a    b");
    let special = changed(|json| add(json, 829, "    ", true)).unwrap();
    assert!(special.is_special(829));
}

#[test]
fn every_id_has_its_bytes() {
    let t = tokenizer();
    assert_eq!(t.vocabulary(), 829);
    let id = |text| t.id_of(text).unwrap();
    assert_eq!(t.token_bytes(id("Ġ")).unwrap(), b" ");
    assert_eq!(t.token_bytes(id("Ġt")).unwrap(), b" t");
    assert_eq!(t.token_bytes(id("Ã")).unwrap(), [0xC3]);
    assert_eq!(t.token_bytes(4).unwrap(), b"<|end_turn|>");
    for id in [829, 1023, u32::MAX] {
        assert_eq!(t.token_bytes(id), Err(Error::UnknownId { id, vocabulary: 829 }));
        assert!(!t.is_special(id));
    }
    // A hole in the vocabulary is no token.
    let holed = changed(|json| add(json, 900, "<x>", true)).unwrap();
    assert_eq!(holed.vocabulary(), 901);
    assert!(holed.token_bytes(850).is_err());
    assert_eq!(holed.token_bytes(900).unwrap(), b"<x>");
}

#[test]
fn sentencepiece_spelling() {
    let t = sentencepiece("first");
    let bytes = |id| t.token_bytes(id).unwrap();
    assert_eq!(bytes(3 + 0x0A), b"\n");
    assert_eq!(bytes(3 + 0xFF), [0xFF]);
    assert_eq!(bytes(t.id_of("▁ab").unwrap()), b" ab");
    assert_eq!(t.special_ids(), SpecialIds { bos: Some(1), unk: Some(0), ..SpecialIds::default() });
    let ids = t.encode_plain("abc é").unwrap();
    assert_eq!(t.decode(&ids).unwrap(), " abc é");
    // Only the start of the whole text gets the word mark, not every piece between special tokens.
    let (mark, b) = (t.id_of("▁").unwrap(), t.id_of("b").unwrap());
    assert_eq!(t.encode_trusted("b<s>b").unwrap(), [mark, b, 1, b]);
    let always = sentencepiece("always");
    assert_eq!(always.encode_trusted("b<s>b").unwrap(), [mark, b, 1, mark, b]);
}

/// The same, with the normaliser that most published files have.
fn prepending(change: impl FnOnce(&mut Value)) -> Tokenizer {
    let special = |(id, text)| json!({"id": id, "content": text, "special": true});
    let added: Vec<Value> = ["<unk>", "<s>", "</s>"].iter().enumerate().map(special).collect();
    let vocab = serde_json::to_value(sentencepiece("always").model.vocabulary()).unwrap();
    let mut json = json!({
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "decoder": {"type": "ByteFallback"},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": [["▁", "a"], ["▁a", "b"], ["b", "c"]]},
    });
    change(&mut json);
    Tokenizer::from_json(&json.to_string()).unwrap()
}

#[test]
fn sentencepiece_files_become_scores() {
    let json = prepending(|_| ());
    let keys = json.ggml_keys(300).unwrap();
    assert!(keys.exact);
    let parts = keys.parts;
    assert_eq!((parts.model.as_str(), parts.pre.as_str()), ("llama", "default"));
    assert_eq!((parts.add_space_prefix, parts.merges.len()), (Some(true), 0));
    let score = |text| parts.scores[json.id_of(text).unwrap() as usize];
    assert_eq!([score("▁a"), score("▁ab"), score("bc")], [0.0, -1.0, -2.0]);
    assert_eq!(parts.token_types[..4], [2, 3, 3, 6]);
    let ggml = Tokenizer::from_parts(parts).unwrap();
    for text in ["", "abc", " abc é", "a  b\n<s>ab", "bcabcbabc", "<0x41>", "▁a"] {
        assert_eq!(json.encode_plain(text), ggml.encode_plain(text), "{text:?}");
        assert_eq!(json.encode_trusted(text), ggml.encode_trusted(text), "{text:?}");
    }
    let exact = |t: &Tokenizer| t.ggml_keys(300).map(|k| (k.exact, k.parts.add_space_prefix));
    // Other ways with spaces are written as near as they can be, and that is said.
    assert_eq!(exact(&sentencepiece("always")), Ok((false, Some(true))));
    assert_eq!(exact(&sentencepiece("first")), Ok((false, Some(true))));
    assert_eq!(exact(&sentencepiece("never")), Ok((true, Some(false))));
    let bare = prepending(|j| j["normalizer"] = j["normalizer"]["normalizers"][1].take());
    assert_eq!(exact(&bare), Ok((true, Some(false))));
    // A token that rules do not lead to, but scores would.
    let missing = prepending(|j| j["model"]["merges"] = json!([["▁", "a"], ["▁a", "b"]]));
    assert_eq!(exact(&missing), Ok((false, Some(true))));
    // Without bytes, or with another normaliser, it is not that kind.
    for t in [
        prepending(|j| j["model"]["byte_fallback"] = false.into()),
        prepending(|j| j["normalizer"] = json!({"type": "Lowercase"})),
    ] {
        assert!(matches!(t.ggml_keys(300), Err(Error::Unsupported { .. })));
    }
}

#[test]
fn bos_is_never_doubled() {
    let t = sentencepiece("first");
    assert!(t.add_bos());
    let prompt = t.encode_prompt("ab").unwrap();
    assert_eq!(prompt[0], 1);
    assert_eq!(prompt.iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(t.with_bos(prompt.clone()), prompt);
    assert_eq!(t.with_bos(vec![]), [1]);
    // Typed by a user it is text, and a real one goes before it.
    let typed = t.encode_prompt("<s>ab").unwrap();
    assert_eq!(typed.iter().filter(|id| **id == 1).count(), 1);

    let mut t = tokenizer();
    assert!(!t.add_bos());
    assert_eq!(t.with_bos(vec![7]), [7]);
    t.apply_config(&json!({"bos_token": "<|begin_text|>", "add_bos_token": true})).unwrap();
    assert_eq!(t.encode_prompt("").unwrap(), [0]);
}

#[test]
fn config_names_special_tokens() {
    let mut t = tokenizer();
    let config = json!({"bos_token": {"content": "<|begin_text|>"}, "eos_token": "<|end_text|>", "pad_token": null});
    t.apply_config(&config).unwrap();
    let expected = SpecialIds { bos: Some(0), eos: Some(1), ..SpecialIds::default() };
    assert_eq!(t.special_ids(), expected);
    let texts: Vec<_> = t.special_texts().collect();
    assert_eq!(texts, [("bos_token", "<|begin_text|>".into()), ("eos_token", "<|end_text|>".into())]);
    let missing = t.apply_config(&json!({"bos_token": "<|end_text|>", "eos_token": "<nope>"}));
    assert!(matches!(missing, Err(Error::MissingToken { .. })));
    assert_eq!(t.special_ids(), expected, "a failed change changes nothing");
    t.apply_config(&json!([1, 2])).unwrap();
    assert!(t.set_special_ids(SpecialIds { eos: Some(9999), ..expected }).is_err());
}

#[test]
fn malformed_files_are_errors() {
    for text in ["", "{", "[]", "null", "3", "{}", r#"{"model": {}}"#, r#"{"model": {"type": "Magic"}}"#] {
        assert!(Tokenizer::from_json(text).is_err(), "{text}");
    }
    let range = |change: fn(&mut Value)| assert!(matches!(changed(change), Err(Error::Range { .. })));
    range(|j| j["model"]["vocab"]["zz"] = 4_000_000_000_u32.into());
    range(|j| add(j, 4_000_000, "<x>", true));
    range(|j| add(j, 830, &"x".repeat(100_000), true));
    let ambiguous = |change: fn(&mut Value)| {
        let error = changed(change).unwrap_err();
        assert!(matches!(error, Error::Ambiguous { .. }), "{error}");
    };
    ambiguous(|j| j["model"]["vocab"]["zz"] = 300.into());
    ambiguous(|j| add(j, 4, "<x>", true));
    ambiguous(|j| add(j, 830, "<|end_turn|>", true));
    ambiguous(|j| {
        add(j, 830, "<x>", true);
        add(j, 831, "<x>", true);
    });
    let refused = |change: fn(&mut Value)| {
        let error = changed(change).unwrap_err();
        assert!(matches!(error, Error::TokenizerJson { .. } | Error::Unsupported { .. }), "{error}");
    };
    refused(|j| j["model"]["vocab"]["zz"] = (-1).into());
    refused(|j| j["model"]["vocab"]["zz"] = 4_294_967_296_u64.into());
    refused(|j| j["model"]["merges"][0] = json!(["no", "such"]));
    refused(|j| j["added_tokens"] = json!([{"id": "x"}]));
    refused(|j| j["added_tokens"] = json!({}));
    refused(|j| j["decoder"] = json!({"type": "CTC"}));
    refused(|j| j["model"]["continuing_subword_prefix"] = "##########".into());
    refused(|j| j["model"]["type"] = "Unigram".into());
    refused(|j| j["model"]["type"] = Value::Null);
    refused(|j| j["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}));
    refused(|j| j["pre_tokenizer"] = json!({"type": "FixedLength", "length": 0}));
    refused(|j| {
        let inner = json!({"type": "FixedLength", "length": 0});
        j["pre_tokenizer"]["pretokenizers"] = json!([{"type": "Sequence", "pretokenizers": [inner]}]);
    });
    refused(|j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(".into());
    // What does no harm is let be.
    changed(|j| add(j, 900, "", true)).unwrap();
    changed(|j| j["added_tokens"] = Value::Null).unwrap();
    let dropout = changed(|j| j["model"]["dropout"] = 0.9.into()).unwrap();
    assert_eq!(dropout.encode_plain("Where are you?"), tokenizer().encode_plain("Where are you?"));
}

#[test]
fn truncated_files_are_errors() {
    for end in (0..JSON.len()).step_by(64).filter(|e| JSON.is_char_boundary(*e)) {
        assert!(Tokenizer::from_json(&JSON[..end]).is_err());
    }
}

#[test]
fn hostile_texts_come_back_whole() {
    const LEN: usize = 200_000;
    let pieces = [
        "a",
        " ",
        "\n",
        "\t",
        "\0",
        "1",
        "'",
        "<",
        "<|",
        "<|end_turn|>",
        "a ",
        " a",
        " \n",
        "\r\n",
        "é",
        "e\u{301}",
        "\u{301}",
        "\u{200d}",
        "🙂",
        "\u{fdd0}",
        "\u{10ffff}",
        "\u{202e}",
        "\u{a0}",
        "'s",
        "!a",
        "１",
        "한",
    ];
    let long = |t: &Tokenizer, piece: &str| {
        let text = piece.repeat(LEN / piece.len());
        for text in [text.clone(), format!("{text}x"), format!("x{text}")] {
            let ids = t.encode_plain(&text).unwrap();
            assert!(t.decode(&ids).unwrap() == text, "{piece:?}");
            assert!(ids.iter().all(|id| !t.is_special(*id)), "{piece:?}");
        }
    };
    let t = tokenizer();
    pieces.iter().for_each(|p| long(&t, p));
    // The other pre-tokenizers, on what makes expressions backtrack.
    for pre in ["gpt-2", "qwen2", "deepseek-v3", "deepseek-coder", "default", "falcon"] {
        let mut parts = t.ggml_keys(829).unwrap().parts;
        parts.pre = pre.to_owned();
        let t = Tokenizer::from_parts(parts).unwrap();
        ["a", " ", " \n", "!"].iter().for_each(|p| long(&t, p));
    }
}

#[test]
fn a_megabyte_of_white_space_is_one_word() {
    let t = tokenizer();
    let text = " ".repeat(1 << 20) + "x";
    let ids = t.encode_plain(&text).unwrap();
    assert!(t.decode(&ids).unwrap() == text);
}

#[test]
fn an_expression_that_backtracks_without_end_is_stopped() {
    let t = changed(|j| {
        j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"(?:(a+)+)\1$(?!x)".into();
    })
    .unwrap();
    let text = "a".repeat(5000) + "!";
    assert_eq!(t.decode(&t.encode_plain(&text).unwrap()).unwrap(), text);
}

#[test]
fn a_tokenizer_can_serve_many_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Tokenizer>();
    let t = tokenizer();
    let alone = t.encode_plain("Where are you?").unwrap();
    std::thread::scope(|s| {
        let encode = || t.encode_plain("Where are you?").unwrap();
        let threads: Vec<_> = (0..4).map(|_| s.spawn(encode)).collect();
        threads.into_iter().for_each(|t| assert_eq!(t.join().unwrap(), alone));
    });
}

#[test]
fn endless_texts_are_refused() {
    let text = " ".repeat(Tokenizer::MAX_TEXT + 1);
    assert!(matches!(tokenizer().encode_plain(&text), Err(Error::TextTooLong { .. })));
}

proptest! {
    #[test]
    fn plain_text_survives(text in r"(\PC|[<|>_a-z \n]|<\|end_turn\|>){0,40}") {
        let t = tokenizer();
        let ids = t.encode_plain(&text).unwrap();
        prop_assert!(ids.iter().all(|id| !t.is_special(*id)));
        prop_assert_eq!(t.decode(&ids).unwrap(), text);
    }
}

/// Turns end where ChatML says, though the configuration may not; a plain word that looks so ends nothing.
#[test]
fn known_ends_are_special_tokens() {
    let with = |special: bool| {
        let mut json: serde_json::Value = serde_json::from_str(JSON).unwrap();
        let token = json!({"id": 829, "content": "<|im_end|>", "special": special});
        json["added_tokens"].as_array_mut().unwrap().push(token);
        Tokenizer::from_json(&json.to_string()).unwrap()
    };
    assert_eq!(with(true).known_ends().collect::<Vec<_>>(), [829]);
    assert_eq!(with(false).known_ends().count(), 0);
    assert_eq!(tokenizer().known_ends().count(), 0);
}
