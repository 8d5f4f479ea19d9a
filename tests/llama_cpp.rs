//! GGUF files that other tools wrote, against llama.cpp's own logits for them (`tests/data/llama-cpp`).

mod common;

use common::{Setup, Tensors, cosine, data, relative_error};
use rdt::arch::{self, Load};
use rdt::exit::{ExitRule, RulePolicy};
use rdt::model::{Batch, InitialState, Logits, Model};
use std::sync::Arc;

/// A file and what llama.cpp computed from it.
struct Case {
    name: String,
    model: Arc<Model>,
    tokens: Vec<u32>,
    expected: Vec<f32>,
}

fn cases(family: &str) -> Vec<Case> {
    let folder = data("llama-cpp").join(family);
    let golden = Tensors::read(&folder.join("golden.safetensors"));
    let tokens: Vec<u32> = golden.i32("tokens").iter().map(|&t| u32::try_from(t).unwrap()).collect();
    let mut names: Vec<_> = golden.shapes.keys().filter_map(|k| k.strip_prefix("logits.")).collect();
    names.sort_unstable();
    let case = |name: &str| Case {
        name: format!("{family}/{name}"),
        model: Arc::new(arch::open(&folder.join(format!("{name}.gguf")), Load::Map).unwrap()),
        tokens: tokens.clone(),
        expected: golden.f32(&format!("logits.{name}")).to_vec(),
    };
    names.into_iter().map(case).collect()
}

/// All logits at the model's own depth, causally (llama.cpp does not implement prefixes), with keys and values in f32.
fn logits(case: &Case) -> Vec<f32> {
    let config = case.model.config();
    let mut session = Setup::fixed(config.mean_steps(), &InitialState::Zeros).session(&case.model);
    let mut policy = RulePolicy::new(ExitRule::default(), None, config, session.chunk_rows()).unwrap();
    let batch = Batch { logits: Logits::All, ..Batch::next(&case.tokens) };
    session.run(batch, &mut policy).unwrap().logits.to_vec()
}

/// The most likely token and by how much it leads.
fn best(logits: &[f32]) -> (usize, f32) {
    let first = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
    let second = logits.iter().enumerate().filter(|&(i, _)| i != first).map(|(_, &x)| x).fold(f32::MIN, f32::max);
    (first, logits[first] - second)
}

fn compare(family: &str) {
    let mut formats = [0; 2];
    for case in cases(family) {
        let found = logits(&case);
        let exact = case.name.ends_with("f32");
        formats[usize::from(exact)] += 1;
        if exact {
            let error = relative_error(&found, &case.expected);
            assert!(error < 2e-3, "{}: {error:.1e}", case.name);
        }
        let vocab = case.model.config().vocab;
        let mut clear = 0;
        for (t, (ours, theirs)) in found.chunks(vocab).zip(case.expected.chunks(vocab)).enumerate() {
            let (token, lead) = best(theirs);
            if lead > 0.05 {
                clear += 1;
                assert_eq!(best(ours).0, token, "{}, position {t}: llama.cpp leads by {lead}", case.name);
            }
            // Both quantise activations, each in its own way.
            assert!(cosine(ours, theirs) > 0.995, "{}, position {t}: {}", case.name, cosine(ours, theirs));
        }
        assert!(clear * 2 > case.tokens.len(), "{}: only {clear} positions are clear", case.name);
    }
    assert!(formats[0] >= 3 && formats[1] >= 1, "{formats:?}");
}

#[test]
fn hrm_text() {
    compare("hrm_text");
}

#[test]
fn nanbeige() {
    compare("nanbeige");
}
