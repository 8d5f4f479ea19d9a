//! Files as llama.cpp's converter writes them, and llama.cpp's logits: `tests/data/llama-cpp`.

use super::common::{Run, Setup, Tensors, data, gguf, relative_error};
use rdt::arch;
use rdt::files::Bytes;
use rdt::gguf::{Header, Metadata};
use rdt::model::InitialState;
use rdt::quant::Recipe;
use rdt::text::Tokenizer;
use std::sync::Arc;

fn file(family: &str, name: &str) -> Vec<u8> {
    std::fs::read(data("llama-cpp").join(family).join(format!("{name}.gguf"))).unwrap()
}

/// Tokens and logits of a family's files.
pub(crate) fn golden(family: &str) -> Tensors {
    Tensors::read(&data("llama-cpp").join(family).join("golden.safetensors"))
}

/// A file at its own depth, on the golden's tokens.
pub(crate) fn run(family: &str, name: &str) -> Run {
    let tokens: Vec<u32> = golden(family).i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect();
    let model = Arc::new(arch::from_bytes(Bytes::from(file(family, name))).unwrap());
    Setup::fixed(model.config().mean_steps(), &InitialState::Zeros).run(&model, &tokens)
}

/// Files that other programs wrote, unchanged: with f32 weights llama.cpp's logits within 2e-3 of their standard deviation; with
/// quantised ones the same best token wherever llama.cpp's two best are more than 0.05 apart.
pub(crate) fn logits_are_the_same(family: &str, names: &[&str]) {
    let golden = golden(family);
    for name in names {
        let run = run(family, name);
        let vocab = run.logits.len() / run.steps.len();
        let expected = golden.f32(&format!("logits.{name}"));
        if name.ends_with("f32") {
            let error = relative_error(&run.logits, expected);
            assert!(error < 2e-3, "{name}: {error:.1e}");
            continue;
        }
        let mut decided = 0;
        for (row, (found, expected)) in run.logits.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
            let best = |x: &[f32]| (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap();
            let first = best(expected);
            let others = expected.iter().enumerate().filter(|(i, _)| *i != first);
            let second = others.map(|(_, &x)| x).fold(f32::MIN, f32::max);
            if expected[first] - second > 0.05 {
                assert_eq!(best(found), first, "{name}, position {row}");
                decided += 1;
            }
        }
        assert!(decided * 2 > run.steps.len(), "{name}: {decided}");
    }
}

/// What becomes of a checkpoint is that format, byte for byte: names, shapes, the reordered rows, the architecture's keys.
pub(crate) fn files_are_the_same(folder: &str, family: &str, name: &str) {
    let (ours, theirs) = (gguf(folder, Recipe::F32), file(family, name));
    let (mine, other) = (Header::parse(&ours).unwrap(), Header::parse(&theirs).unwrap());
    assert_eq!(mine.tensors.len(), other.tensors.len());
    for tensor in &other.tensors {
        let found = mine.tensor(&tensor.name).unwrap_or_else(|| panic!("{} is missing", tensor.name));
        assert_eq!((found.ty, &found.dims), (tensor.ty, &tensor.dims), "{}", tensor.name);
        assert!(found.data(&ours) == tensor.data(&theirs), "{}", tensor.name);
    }
    let prefix = format!("{family}.");
    let keys: Vec<_> = other.metadata.iter().filter(|(key, _)| key.starts_with(&prefix)).collect();
    assert!(keys.len() > 10);
    for (key, value) in keys {
        assert_eq!(mine.metadata.get(key), Some(value), "{key}");
    }
}

/// Texts become llama.cpp's tokens, by the file's own vocabulary.
pub(crate) fn tokens_are_the_same(family: &str, metadata: &Metadata) {
    let tokenizer = Tokenizer::from_gguf(metadata).unwrap();
    assert_eq!(tokenizer.warnings(), [""; 0]);
    let recorded = std::fs::read(data("llama-cpp").join(family).join("tokens.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_slice(&recorded).unwrap();
    let ids =
        |v: &serde_json::Value| -> Vec<u64> { v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect() };
    let mut compared = 0;
    for case in recorded.as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        // Where llama.cpp finds special tokens in plain text, a user's text stays text here.
        if text.contains('<') {
            continue;
        }
        let found: Vec<u64> = tokenizer.encode_plain(text).unwrap().into_iter().map(u64::from).collect();
        assert_eq!(found, ids(&case["plain"]), "{family}: {text:?}");
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
}

/// The keys of one of llama.cpp's files.
pub(crate) fn metadata(family: &str, name: &str) -> Metadata {
    Header::parse(&file(family, name)).unwrap().metadata
}
