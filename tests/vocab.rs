//! Tokenizers from the `tokenizer.ggml.*` keys alone, against llama.cpp's own vocabulary test files.
//!
//! `ggml-vocab-NAME.gguf` holds a vocabulary; its `.inp` texts with a separator between; its `.out` the ids of each,
//! without BOS and with special tokens in the text taken as text. Two of them are here; more are read from the folder
//! that RDT_VOCAB_DIR names, such as `models` of llama.cpp's sources.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use rdt::gguf::Header;
use rdt::text::{StreamDecoder, Tokenizer};

const HERE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/text/vocab");
/// Other models than BPE: WordPiece, Unigram, and BPE that is neither byte-level nor scored.
const OTHER_MODELS: [&str; 3] = ["bert", "t5", "gemma4"];

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The vocabularies of a folder that have texts.
fn vocabularies(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<_> =
        entries.map(|e| e.unwrap().path()).filter(|p| p.to_string_lossy().ends_with(".gguf")).collect();
    found.retain(|p| beside(p, "inp").exists());
    found.sort();
    found
}

fn beside(path: &Path, what: &str) -> PathBuf {
    path.with_extension(format!("gguf.{what}"))
}

fn load(name: &str) -> Tokenizer {
    let file = read(&Path::new(HERE).join(format!("ggml-vocab-{name}.gguf")));
    Tokenizer::from_gguf(&Header::parse(&file).unwrap().metadata).unwrap()
}

/// Checks one vocabulary; the number of texts, or `None` for a model that is refused by name.
fn check(path: &Path) -> Option<usize> {
    let file = read(path);
    let header = Header::parse(&file).unwrap();
    let model = header.metadata.str("tokenizer.ggml.model").unwrap().unwrap();
    let tokenizer = Tokenizer::from_gguf(&header.metadata);
    if OTHER_MODELS.contains(&model) {
        let error = tokenizer.unwrap_err().to_string();
        assert!(error.contains(model), "{error}");
        return None;
    }
    let tokenizer = tokenizer.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let texts = String::from_utf8(read(&beside(path, "inp"))).unwrap();
    let ids = String::from_utf8(read(&beside(path, "out"))).unwrap();
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let ids: Vec<Vec<u32>> =
        ids.lines().map(|line| line.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    // The last separator has no text behind it.
    assert_eq!(texts.len(), ids.len() + 1, "{}", path.display());
    assert!(ids.len() > 40);
    for (text, expected) in texts.iter().zip(&ids) {
        let found = tokenizer.encode_plain(text).unwrap();
        assert_eq!(&found, expected, "{}: {text:?}", path.display());
        let prefix = if tokenizer.decode(&found).unwrap().starts_with(&format!(" {text}")) { " " } else { "" };
        assert_eq!(tokenizer.decode(&found).unwrap(), format!("{prefix}{text}"));
    }
    Some(ids.len())
}

#[test]
fn ids_are_those_of_llama_cpp() {
    let here = vocabularies(Path::new(HERE));
    assert_eq!(here.len(), 2);
    for path in here {
        assert!(check(&path).is_some());
    }
    let Some(folder) = std::env::var_os("RDT_VOCAB_DIR") else { return };
    let more = vocabularies(Path::new(&folder));
    assert!(!more.is_empty(), "RDT_VOCAB_DIR has no ggml-vocab-*.gguf with texts");
    for path in more {
        match check(&path) {
            Some(texts) => println!("{}: {texts} texts", path.display()),
            None => println!("{}: another model, refused by name", path.display()),
        }
    }
}

#[test]
fn keys_are_what_they_were_read_from() {
    for name in ["gpt-2", "llama-spm"] {
        let file = read(&Path::new(HERE).join(format!("ggml-vocab-{name}.gguf")));
        let metadata = Header::parse(&file).unwrap().metadata;
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        assert_eq!(tokenizer.warnings(), [""; 0]);
        let keys = tokenizer.ggml_keys(tokenizer.vocabulary()).unwrap();
        assert!(keys.exact);
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        assert_eq!(keys.parts.tokens, metadata.strings(&key("tokens")).unwrap().unwrap());
        let types: Vec<i64> = keys.parts.token_types.iter().map(|&t| t.into()).collect();
        assert_eq!(types, metadata.i64s(&key("token_type")).unwrap().unwrap());
        assert_eq!(Some(keys.parts.pre.as_str()), metadata.str(&key("pre")).unwrap());
        if name == "llama-spm" {
            assert_eq!(keys.parts.scores, metadata.f32s(&key("scores")).unwrap().unwrap());
            assert_eq!((keys.parts.add_bos, keys.parts.add_space_prefix), (Some(true), Some(true)));
        } else {
            assert_eq!(keys.parts.merges, metadata.strings(&key("merges")).unwrap().unwrap());
        }
    }
}

#[test]
fn a_megabyte_is_no_matter() {
    // Ordinary text, and what makes a naive merge quadratic: one word without end.
    let prose = String::from_utf8(read(&Path::new(HERE).join("ggml-vocab-gpt-2.gguf.inp"))).unwrap();
    let texts = [prose.repeat((1 << 20) / prose.len()), "a".repeat(1 << 20), "ab".repeat(1 << 19), " ".repeat(1 << 20)];
    for name in ["gpt-2", "llama-spm"] {
        let tokenizer = load(name);
        for text in &texts {
            let ids = tokenizer.encode_plain(text).unwrap();
            let decoded = tokenizer.decode(&ids).unwrap();
            assert!(decoded.ends_with(text.as_str()) && decoded.len() <= text.len() + 1, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn texts_come_back(texts in prop::collection::vec(r"(\PC|[<|>/_a-z0-9x \n\t]|<s>|<0x41>|</s>| the){0,60}", 16)) {
        static BOTH: LazyLock<[(bool, Tokenizer); 2]> =
            LazyLock::new(|| [(false, load("gpt-2")), (true, load("llama-spm"))]);
        for (spm, tokenizer) in BOTH.iter() {
            for text in &texts {
                let ids = tokenizer.encode_plain(text).unwrap();
                prop_assert!(ids.iter().all(|id| !tokenizer.is_special(*id)));
                let mut stream = StreamDecoder::new();
                let mut streamed = String::new();
                for &id in &ids {
                    streamed += &stream.push(tokenizer, id).unwrap();
                }
                streamed += &stream.flush();
                let expected = match spm {
                    // A space before the text, and the mark that stands for spaces cannot be told from one.
                    true if !text.is_empty() => format!(" {}", text.replace('\u{2581}', " ")),
                    _ => text.clone(),
                };
                prop_assert_eq!(&streamed, &expected);
                prop_assert_eq!(tokenizer.decode(&ids).unwrap(), streamed);
            }
        }
    }
}

/// Names under which GPT-4o's rules go.
const GPT_4O: [&str; 6] = ["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "tekken"];

/// llama.cpp's ids for a few texts under every name of rules that it knows, with a vocabulary whose merges show where a text is
/// split (`tests/reference/llama_tokens.py`). Names that are not known here are warned of, never taken in silence.
#[test]
fn names_of_rules_mean_what_they_mean_to_llama_cpp() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama-cpp/tokenizers");
    let recorded: serde_json::Value = serde_json::from_slice(&read(&folder.join("tokens.json"))).unwrap();
    let texts: Vec<&str> = recorded["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    let (mut known, mut unknown, mut differ) = (0, Vec::new(), Vec::new());
    let mut compare = |file: &str, key: &str, value: rdt::gguf::Value, ids: &serde_json::Value| {
        let mut metadata = Header::parse(&read(&folder.join(file))).unwrap().metadata;
        let name = if let rdt::gguf::Value::String(name) = &value { name.clone() } else { format!("{value:?}") };
        metadata.insert(key, value);
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        if !tokenizer.warnings().is_empty() {
            unknown.push(name);
            return;
        }
        known += 1;
        // Special tokens in a user's text stay text here.
        for (text, ids) in texts.iter().zip(ids.as_array().unwrap()).filter(|(text, _)| !text.contains("<|im")) {
            let expected: Vec<u32> = ids.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
            // llama.cpp approximates the rules of GPT-4o, where letters have cases and marks; here they are the original ones.
            let approximated = GPT_4O.contains(&name.as_str()) && text.contains('\u{301}');
            if !approximated && tokenizer.encode_plain(text).unwrap() != expected {
                differ.push(format!("{name}: {text:?}"));
            }
        }
    };
    for group in recorded["bpe"].as_array().unwrap() {
        for pre in group["pre"].as_array().unwrap() {
            compare("bpe.gguf", "tokenizer.ggml.pre", pre.as_str().unwrap().into(), &group["ids"]);
        }
    }
    for group in recorded["spm"].as_array().unwrap() {
        let prefix = group["add_space_prefix"].as_bool().unwrap();
        compare("spm.gguf", "tokenizer.ggml.add_space_prefix", prefix.into(), &group["ids"]);
    }
    assert!(differ.is_empty(), "{known} known, {} unknown: {unknown:?}\n{}", unknown.len(), differ.join("\n"));
    assert!(known > 50, "{known} known, unknown: {unknown:?}");
}
