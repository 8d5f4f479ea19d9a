//! rdt-perplexity against the same numbers computed from a session's logits by hand, and against llama.cpp.

use rdt::kernels::KvType;
use rdt::model::{Batch, FixedDepth, Logits, Model, Session, SessionOptions};
use rdt::{arch, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops-q4_0.gguf");
const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops");
/// A model whose prompts start with BOS.
const NANBEIGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-cpp/nanbeige/every-pass-f32.gguf");
const ROPE_FREQS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-cpp/nanbeige/last-norm-rope-freqs-f32.gguf");
const HRM_TEXT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-cpp/hrm_text/split-f32.gguf");

/// A folder with `text.txt`: some dialogues that the model was not trained on, special tokens written out.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("text.txt"), sample()).unwrap();
    folder
}

fn sample() -> String {
    let all = fs::read_to_string(Path::new(CHECKPOINT).join("heldout.txt")).unwrap();
    all.lines().take(40).map(|line| format!("{line}\n")).collect()
}

fn command(folder: &Path, model: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-perplexity"));
    command.current_dir(folder).args(["-m", model]).args(args).stdin(Stdio::null());
    // What the user's own programs remember is left alone.
    command.env("RDT_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

fn run(folder: &Path, model: &str, args: &[&str]) -> Output {
    command(folder, model, args).output().unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn out(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The report of a run on `text.txt` in windows of 32.
fn report(folder: &Path, model: &str, args: &[&str]) -> Value {
    let all = [&["-f", "text.txt", "--special", "-c", "32", "--json"], args].concat();
    serde_json::from_str(out(&run(folder, model, &all))).unwrap()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value:#}"))
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", err(output));
    assert!(output.stdout.is_empty());
    let line = err(output).strip_suffix('\n').unwrap();
    assert!(line.starts_with("rdt-perplexity: ") && !line.contains(['\n', '\u{1b}']), "{line:?}");
    line.to_owned()
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1e-3), "{what}: {found}, expected {expected}");
}

/// Everything by hand.
struct ByHand {
    model: Arc<Model>,
    tokens: Vec<u32>,
    bos: Option<u32>,
}

impl ByHand {
    fn new(path: &str) -> Self {
        let model = Arc::new(arch::open(Path::new(path), arch::Load::Map).unwrap());
        let tokenizer = text::Tokenizer::from_gguf(model.metadata()).unwrap();
        let bos = tokenizer.special_ids().bos.filter(|_| tokenizer.add_bos());
        let tokens = tokenizer.encode_trusted(sample().strip_suffix('\n').unwrap()).unwrap();
        let tokens = bos.into_iter().chain(tokens).collect();
        Self { model, tokens, bos }
    }

    /// Log-probabilities `[window][V]` of a window, in f64 and straight from their definition, its first token as given.
    fn log_probs(&self, window: &[u32], steps: usize) -> Vec<Vec<f64>> {
        let options =
            SessionOptions { kv_type: KvType::F32, context: Some(64), steps: Some(steps), ..SessionOptions::default() };
        let mut session = Session::new(Arc::clone(&self.model), &options).unwrap();
        let batch = Batch { logits: Logits::All, ..Batch::next(window) };
        let logits = session.run(batch, &mut FixedDepth(steps)).unwrap().logits.to_vec();
        let of_row = |row: &[f32]| {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row.iter().map(|&x| f64::from(x) - sum.ln()).collect()
        };
        logits.chunks_exact(self.model.config().vocab).map(of_row).collect()
    }

    /// (log-probabilities, next token) of every scored position: the second halves of windows of 32, which start with BOS if
    /// prompts do.
    fn halves(&self, steps: usize) -> Vec<(Vec<f64>, usize)> {
        let mut scored = Vec::new();
        for window in self.tokens.chunks_exact(32) {
            let mut window = window.to_vec();
            window[0] = self.bos.unwrap_or(window[0]);
            let rows = self.log_probs(&window, steps);
            scored.extend((16..31).map(|i| (rows[i].clone(), window[i + 1] as usize)));
        }
        scored
    }
}

/// Mean, and sqrt(Σ(x − mean)² / n / (n − 1)).
fn mean(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let squares: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
    (mean, (squares / n / (n - 1.0)).sqrt())
}

fn likelihoods(scored: &[(Vec<f64>, usize)]) -> Vec<f64> {
    scored.iter().map(|(row, next)| -row[*next]).collect()
}

#[test]
fn perplexity_is_what_its_definition_says() {
    let folder = folder();
    for (path, depths, has_bos) in [(TINY, [4, 1], false), (NANBEIGE, [2, 1], true)] {
        let by_hand = ByHand::new(path);
        assert_eq!(by_hand.bos.is_some(), has_bos);
        let found = report(folder.path(), path, &["--steps", &depths.map(|n| n.to_string()).join(",")]);
        assert_eq!((&found["context"], &found["stride"], &found["prefix"]), (&32.into(), &Value::Null, &0.into()));
        assert_eq!(number(&found, "/text_tokens"), by_hand.tokens.len() as f64);
        assert_eq!(number(&found, "/windows"), (by_hand.tokens.len() / 32) as f64);
        for (i, steps) in depths.into_iter().enumerate() {
            let scored = by_hand.halves(steps);
            assert_eq!(number(&found, "/scored"), scored.len() as f64);
            let (nll, error) = mean(&likelihoods(&scored));
            let run = &found["runs"][i];
            assert_near(number(run, "/cross_entropy/value"), nll, "mean");
            assert_near(number(run, "/cross_entropy/error"), error, "error of the mean");
            assert_near(number(run, "/perplexity/value"), nll.exp(), "perplexity");
            assert_near(number(run, "/perplexity/error"), nll.exp() * error, "error of the perplexity");
            assert_eq!(number(run, "/mean_steps"), steps as f64);
            assert_eq!(number(run, &format!("/steps/{steps}")), scored.len() as f64);
            assert!(number(run, "/tokens_per_second") > 0.0 && number(run, "/seconds") > 0.0);
            assert_eq!((number(run, "/max_steps"), number(run, "/kv_steps")), (steps as f64, steps as f64));
            let names = (&run["kv_type"], &run["rule"], &run["comparison"]);
            assert_eq!(names, (&"f32".into(), &"fixed".into(), &Value::Null));
        }
    }
    // The same for people, cut to two windows.
    let args = ["-f", "text.txt", "--special", "-c", "32", "--steps", "4", "--chunks", "2"];
    let output = run(folder.path(), TINY, &args);
    let (nll, error) = mean(&likelihoods(&ByHand::new(TINY).halves(4)[..30]));
    let line = format!("{:.4} +/- {:.5}", nll.exp(), nll.exp() * error);
    assert!(out(&output).contains(&line), "{}, expected {line}", out(&output));
    assert!(err(&output).contains("2 windows of 32 tokens; 30 of"), "{}", err(&output));
}

/// What llama.cpp (the one in llama-cpp-python 0.3.36) prints for the same files and this repository's LICENSE-MIT:
/// `llama-perplexity -m MODEL -f LICENSE-MIT -c 32 -b 32 -t 1 -ctk f32 -ctv f32 -fa off`, and with
/// `-c 248 -b 248 --ppl-stride 16`, which it makes windows of 256. It reads hrm_text causally.
#[test]
fn llama_cpp_prints_the_same_digits() {
    let folder = folder();
    let license = concat!(env!("CARGO_MANIFEST_DIR"), "/LICENSE-MIT");
    let of = |model: &str, args: &[&str]| run(folder.path(), model, &[&["-f", license, "-c", "32"], args].concat());
    let says = |output: &Output, line: &str| assert!(out(output).contains(line), "{}, expected {line}", out(output));
    says(&of(HRM_TEXT, &["--prefix-len", "0"]), "510.8468 +/- 24.30108");
    says(&of(NANBEIGE, &[]), "519.4058 +/- 25.95182");
    let output = run(folder.path(), NANBEIGE, &["-f", license, "-c", "256", "--ppl-stride", "16"]);
    says(&output, "449.516");

    // Its base run of two windows (`--chunks 2 --kl-divergence-base`), and another model against it (`--kl-divergence`).
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/llama-cpp/nanbeige/every-pass-f32.base");
    let against: Value = serde_json::from_str(out(&of(ROPE_FREQS, &["--base", base, "--json"]))).unwrap();
    for (path, printed, digits) in [
        ("perplexity/value", 1383.5142, 4),
        ("perplexity/error", 479.0103, 4),
        ("log_ratio/value", 0.97287, 5),
        ("log_ratio/error", 0.40410, 5),
        ("kl/value", 2.09803, 5),
        ("kl/error", 0.03287, 5),
        ("change_rms/value", 0.00709, 5),
        ("change_rms/error", 0.00187, 5),
        ("same_top/value", 0.0, 5),
    ] {
        let found = number(&against, &format!("/runs/0/comparison/{path}"));
        // Half of what is not printed; llama.cpp rounds each likelihood to f32 here.
        let limit = 0.51 * 10f64.powi(-digits) + 3e-7 * printed;
        assert!((found - printed).abs() <= limit, "{path}: {found}, llama.cpp {printed}");
    }
    // Ours of the same differs from it by one code here and there: exp is not the same to the last bit.
    of(NANBEIGE, &["--chunks", "2", "--save-base", "ours"]);
    let (ours, theirs) = (stored(&folder.path().join("ours")), stored(Path::new(base)));
    assert_eq!(ours.0, theirs.0);
    assert_eq!(ours.1.len(), 30);
    for (a, b) in ours.1.iter().flatten().zip(theirs.1.iter().flatten()) {
        assert!((a - b).abs() < 2.0 * 16.0 / 65535.0, "{a} {b}");
    }
}

#[test]
fn strides_are_what_their_definition_says() {
    let folder = folder();
    // Its prompts start with BOS, but strided windows do not: the text does.
    let by_hand = ByHand::new(NANBEIGE);
    assert_eq!(by_hand.bos, Some(by_hand.tokens[0]));
    let mut nll = Vec::new();
    for window in by_hand.tokens.windows(32).step_by(5).take((by_hand.tokens.len() - 32).div_ceil(5)) {
        let rows = by_hand.log_probs(window, 2);
        nll.extend((26..31).map(|i| -rows[i][window[i + 1] as usize]));
    }
    let found = report(folder.path(), NANBEIGE, &["--ppl-stride", "5"]);
    assert_eq!((number(&found, "/stride"), number(&found, "/scored")), (5.0, nll.len() as f64));
    assert_near(number(&found, "/runs/0/perplexity/value"), mean(&nll).0.exp(), "perplexity");
}

#[test]
fn neither_chunks_nor_threads_change_a_digit() {
    let folder = folder();
    for rule in [&["--steps", "5"][..], &["--exit-rule", "acceleration:0.05,max=8"]] {
        let of = |args: &[&str]| {
            let mut found = report(folder.path(), TINY, &[rule, args].concat())["runs"][0].take();
            for key in ["seconds", "tokens_per_second", "threads"] {
                found.as_object_mut().unwrap().remove(key);
            }
            found
        };
        let usual = of(&[]);
        for args in [["-b", "1"], ["-b", "7"], ["-t", "3"]] {
            assert_eq!(of(&args), usual, "{args:?}");
        }
    }
}

/// Rules on the read-out read windows token by token, and several at a time.
#[test]
fn windows_do_not_show_what_is_read_beside_them() {
    let folder = folder();
    for windows in [&["--chunks", "11"][..], &["--chunks", "10", "--ppl-stride", "9"]] {
        let of = |args: &[&str]| {
            let rule = ["--exit-rule", "kl:0.001,hits=2,max=12"];
            let mut found = report(folder.path(), TINY, &[&rule, windows, args].concat())["runs"][0].take();
            let fields = found.as_object_mut().unwrap();
            ["seconds", "tokens_per_second", "threads"].iter().for_each(|key| assert!(fields.remove(*key).is_some()));
            (count(&fields.remove("parallel").unwrap()), found)
        };
        let (one, alone) = of(&["-np", "1"]);
        assert_eq!(one, 1);
        assert!(alone["steps"].as_object().unwrap().len() > 2, "{alone:#}");
        for (args, most) in [(["-np", "3", "-t", "1"], 3), (["-np", "8", "-t", "2"], 8), (["-np", "8", "-b", "5"], 5)] {
            assert_eq!(of(&args), (most, alone.clone()), "{args:?}");
        }
    }
    // What is stored, too; and where nothing is to be gained there is one at a time.
    let stored = |rule: &str, parallel: &str, name: &str| {
        let args = ["--exit-rule", rule, "--chunks", "9", "-np", parallel, "--save-base", name];
        let found = report(folder.path(), TINY, &args);
        (count(&found["runs"][0]["parallel"]), fs::read(folder.path().join(name)).unwrap())
    };
    for (rule, most) in [("kl:0.01,max=12", 4), ("acceleration,max=8", 1)] {
        let ((one, a), (several, b)) = (stored(rule, "1", "a"), stored(rule, "4", "b"));
        assert_eq!((one, several), (1, most), "{rule}");
        assert!(a == b, "{rule}");
    }
    let args = ["--exit-rule", "kl:0.01", "--steps", "4", "--chunks", "3", "--base-model", TINY];
    assert_eq!(report(folder.path(), TINY, &args)["runs"][0]["parallel"], 1);
}

#[test]
fn exit_rules_say_how_deep_tokens_went() {
    let folder = folder();
    for rule in ["acceleration:0.05,hits=2,max=12", "kl:0.001,hits=1,max=12"] {
        let found = report(folder.path(), TINY, &["--exit-rule", rule]);
        let run = &found["runs"][0];
        let counts = run["steps"].as_object().unwrap();
        let (mut tokens, mut steps) = (0.0, 0.0);
        for (depth, n) in counts {
            tokens += n.as_f64().unwrap();
            steps += depth.parse::<f64>().unwrap() * n.as_f64().unwrap();
        }
        assert_eq!((&run["rule"], tokens), (&rule.into(), number(&found, "/scored")));
        assert_near(number(run, "/mean_steps"), steps / tokens, rule);
        assert!(counts.len() > 2 && number(run, "/mean_steps") < 12.0, "{run:#}");
    }
    let args = ["-f", "text.txt", "-c", "32", "--exit-rule", "acceleration", "--steps", "8"];
    assert!(out(&run(folder.path(), TINY, &args)).contains("steps taken"));
}

/// Scored positions of a stored base run of 32-token windows, read by the layout's description.
fn stored(path: &Path) -> (Vec<i32>, Vec<Vec<f64>>) {
    let bytes = fs::read(path).unwrap();
    let int = |at: usize| i32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let float = |at: usize| f64::from(f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()));
    assert_eq!((&bytes[..8], int(8)), (&b"_logits_"[..], 32));
    let (vocab, windows) = (int(12) as usize, int(16) as usize);
    let tokens = (0..32 * windows).map(|i| int(20 + 4 * i)).collect();
    let rows = bytes[20 + 128 * windows..].chunks_exact(8 + 2 * vocab).enumerate().map(|(i, row)| {
        let at = 20 + 128 * windows + i * (8 + 2 * vocab);
        let code = |b: &[u8]| f64::from(u16::from_le_bytes(b.try_into().unwrap()));
        row[8..].chunks_exact(2).map(|b| float(at) * code(b) + float(at + 4)).collect()
    });
    (tokens, rows.collect())
}

#[test]
fn a_stored_base_run_is_what_was_run_and_compares_as_by_hand() {
    let folder = folder();
    let path = folder.path().join("base");
    let by_hand = ByHand::new(TINY);
    let saved = report(folder.path(), TINY, &["--steps", "4", "--save-base", "base"]);
    let (tokens, rows) = stored(&path);
    let text: Vec<i32> = by_hand.tokens.iter().map(|&t| t as i32).collect();
    assert_eq!(tokens, text[..tokens.len()]);
    let exact = by_hand.halves(4);
    assert_eq!(rows.len(), exact.len());
    for (row, (exact, _)) in rows.iter().zip(&exact) {
        let best = exact.iter().copied().fold(f64::MIN, f64::max);
        for (&found, &x) in row.iter().zip(exact) {
            assert!((found - x.max(best - 16.0)).abs() < 0.51 * 16.0 / 65535.0, "{found} {x}");
        }
    }

    // Against itself: what 16 bits cost. The text comes from the file.
    let args = ["--steps", "4", "--base", "base", "--json"];
    let own: Value = serde_json::from_str(out(&run(folder.path(), TINY, &args))).unwrap();
    let of = |report: &Value, path: &str| number(report, &format!("/runs/0/comparison/{path}"));
    assert!(of(&own, "kl/value").abs() < 1e-5 && of(&own, "kl_quantiles/max") < 1e-4, "{own:#}");
    assert!(of(&own, "same_top/value") > 0.99 && of(&own, "change_rms/value") < 1e-3, "{own:#}");
    assert_eq!(own["runs"][0]["perplexity"], saved["runs"][0]["perplexity"]);

    // Against another depth.
    let shallow = by_hand.halves(1);
    let compared = report(folder.path(), TINY, &["--steps", "1", "--base", "base"]);
    let kl: Vec<f64> = rows
        .iter()
        .zip(&shallow)
        .map(|(base, (row, _))| base.iter().zip(row).filter(|(b, _)| **b > -16.0).map(|(b, x)| b.exp() * (b - x)).sum())
        .collect();
    let near = |path: &str, expected: f64| {
        // The base is f32 in the program and f64 here.
        let found = of(&compared, path);
        assert!((found - expected).abs() < 1e-5 * expected.abs().max(0.1), "{path}: {found}, expected {expected}");
    };
    near("kl/value", mean(&kl).0);
    near("kl/error", mean(&kl).1);
    near("kl_quantiles/max", kl.iter().copied().fold(f64::MIN, f64::max));
    let best = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
    let same = rows.iter().zip(&shallow).filter(|(base, (row, _))| best(base) == best(row)).count();
    let share = same as f64 / rows.len() as f64;
    near("same_top/value", share);
    near("same_top/error", (share * (1.0 - share) / (rows.len() - 1) as f64).sqrt());
    let change: Vec<f64> =
        rows.iter().zip(&shallow).map(|(base, (row, next))| row[*next].exp() - base[*next].exp()).collect();
    near("change/value", mean(&change).0);
    near("change/error", mean(&change).1);
    let squares: Vec<f64> = change.iter().map(|x| x * x).collect();
    near("change_rms/value", mean(&squares).0.sqrt());
    near("change_rms/error", 0.5 / mean(&squares).0.sqrt() * mean(&squares).1);
    let ratio: Vec<f64> = rows.iter().zip(&shallow).map(|(base, (row, next))| base[*next] - row[*next]).collect();
    near("log_ratio/value", mean(&ratio).0);
    near("log_ratio/error", mean(&ratio).1);
    near("ratio/value", mean(&ratio).0.exp());
    let base_nll: Vec<f64> = rows.iter().zip(&shallow).map(|(base, (_, next))| -base[*next]).collect();
    near("base_perplexity/value", mean(&base_nll).0.exp());

    // Fewer windows of it.
    let args = ["--steps", "1", "--base", "base", "--chunks", "3", "--json"];
    let part: Value = serde_json::from_str(out(&run(folder.path(), TINY, &args))).unwrap();
    assert!((of(&part, "kl/value") - mean(&kl[..45]).0).abs() < 1e-6);
}

#[test]
fn a_base_model_is_compared_exactly() {
    let folder = folder();
    let own = report(folder.path(), TINY, &["--steps", "3,2", "--base-model", TINY]);
    for (i, steps) in [3, 2].into_iter().enumerate() {
        let run = &own["runs"][i];
        assert_eq!(number(run, "/comparison/kl/value"), 0.0);
        assert_eq!(number(run, "/comparison/same_top/value"), 1.0);
        let cosines = run["latent_cosines"].as_array().unwrap();
        assert_eq!(cosines.len(), steps);
        assert!(cosines.iter().all(|c| (number(c, "/cosine/value") - 1.0).abs() < 1e-12), "{run:#}");
    }

    let found = report(folder.path(), TINY, &["--steps", "3", "--base-model", CHECKPOINT]);
    let run = &found["runs"][0];
    let kl = number(run, "/comparison/kl/value");
    assert!((1e-5..0.1).contains(&kl), "{kl}");
    for (i, c) in run["latent_cosines"].as_array().unwrap().iter().enumerate() {
        let cosine = number(c, "/cosine/value");
        assert!((0.99..1.0).contains(&cosine) && c["step"] == i + 1 && c["positions"] == found["scored"], "{c}");
    }
    // The other way round it is the other file's perplexity.
    let other = report(folder.path(), CHECKPOINT, &["--steps", "3"]);
    assert_eq!(run["comparison"]["base_perplexity"], other["runs"][0]["perplexity"]);
}

#[test]
fn a_prefix_model_reads_what_is_not_scored_both_ways() {
    let folder = folder();
    fs::write(
        folder.path().join("plain.txt"),
        "The loop is run again and again, and the state comes to rest. ".repeat(8),
    )
    .unwrap();
    let of = |args: &[&str]| {
        let all = [&["-f", "plain.txt", "-c", "32", "--json"], args].concat();
        let output = run(folder.path(), HRM_TEXT, &all);
        let report: Value = serde_json::from_str(out(&output)).unwrap();
        (number(&report, "/prefix"), number(&report, "/runs/0/perplexity/value"), err(&output).to_owned())
    };
    let (prefix, usual, words) = of(&[]);
    assert_eq!(prefix, 16.0);
    assert!(words.contains("first 16 tokens"), "{words}");
    assert_eq!(of(&["--prefix-len", "16"]).1, usual);
    let (prefix, causal, words) = of(&["--prefix-len", "0"]);
    assert_eq!(prefix, 0.0);
    assert!(words.contains("sees only those before it") && causal != usual, "{words}");
    let line = refused(&run(folder.path(), HRM_TEXT, &["-f", "plain.txt", "-c", "32", "--prefix-len", "17"]), 1);
    assert!(line.contains("room for 16"), "{line}");
    let line = refused(&run(folder.path(), HRM_TEXT, &["-f", "plain.txt", "-c", "32", "-b", "8"]), 1);
    assert!(line.contains("-b"), "{line}");
    let line = refused(&run(folder.path(), TINY, &["-f", "text.txt", "-c", "32", "--prefix-len", "1"]), 1);
    assert!(line.contains("no prefix mask"), "{line}");
}

#[test]
fn special_tokens_are_plain_text_unless_asked_for() {
    let folder = folder();
    let args = ["-f", "text.txt", "-c", "32", "--json"];
    let plain: Value = serde_json::from_str(out(&run(folder.path(), TINY, &args))).unwrap();
    assert!(number(&plain, "/text_tokens") > number(&report(folder.path(), TINY, &[]), "/text_tokens"));
}

#[test]
fn wrong_usage_is_one_line() {
    let folder = folder();
    let usage = |args: &[&str]| refused(&run(folder.path(), TINY, args), 2);
    for args in [
        &[][..],
        &["-f", "text.txt", "-p", "x"],
        &["-f", "text.txt", "--steps", "0"],
        &["-f", "text.txt", "--steps", "1,"],
        &["-f", "text.txt", "--chunks", "0"],
        &["-f", "text.txt", "--ppl-stride", "0"],
        &["-f", "text.txt", "--ppl-stride", "8", "--save-base", "x"],
        &["-f", "text.txt", "--save-base", "x", "--base", "y"],
        &["-f", "text.txt", "--base-model", "x", "--base", "y"],
        &["-f", "text.txt", "--save-base", "x", "--steps", "1,2"],
        &["-f", "text.txt", "--prefix-len", "-1"],
        &["--special"],
    ] {
        usage(args);
    }
    let failure = |args: &[&str]| refused(&run(folder.path(), TINY, args), 1);
    let line = failure(&["-p", "Red leads to Blue."]);
    assert!(line.contains("takes at least 1024; take a longer text"), "{line}");
    let line = failure(&["-f", "text.txt", "-c", "4096"]);
    assert!(line.contains("or -c "), "{line}");
    assert!(failure(&["-p", ""]).contains("has 0 tokens"));
    assert!(failure(&["-f", "text.txt", "-c", "2"]).contains("at least 3"));
    assert!(failure(&["-f", "text.txt", "-c", "32", "--ppl-stride", "32"]).contains("from 1 to 31"));
    assert!(failure(&["-f", "nowhere"]).contains("nowhere"));
    assert!(failure(&["-f", "text.txt", "-c", "32", "--save-base", "no/such/x"]).contains("no/such/x"));
    assert!(failure(&["-f", "text.txt", "-c", "32", "--exit-rule", "gate:0.5"]).contains("gate"));
    assert!(failure(&["-f", "text.txt", "-c", "32", "--base-model", HRM_TEXT]).contains("vocabulary"));
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["text.txt"], "nothing is left behind");
}

#[test]
fn hostile_base_files_are_one_line() {
    let folder = folder();
    report(folder.path(), TINY, &["--steps", "1", "--chunks", "2", "--save-base", "good"]);
    let good = fs::read(folder.path().join("good")).unwrap();
    let line = |bytes: &[u8], args: &[&str]| {
        fs::write(folder.path().join("bad"), bytes).unwrap();
        refused(&run(folder.path(), TINY, &[&["--base", "bad", "--steps", "1"], args].concat()), 1)
    };
    for n in [0, 7, 8, 19, 20, 100, good.len() - 1] {
        assert!(line(&good[..n], &[]).contains("bad: "), "{n} bytes");
    }
    for at in [8, 12, 16] {
        for n in [0, -1, i32::MAX] {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&n.to_le_bytes());
            line(&bytes, &[]);
        }
    }
    let said = line(b"\x1b[31m_logits_", &[]);
    assert!(said.contains("no stored base run"), "{said}");
    assert!(line(&good, &["-c", "16"]).contains("context of 32, and this run 16"));
    let other = line(&good, &["-c", "32", "-p", &"nothing of the kind ".repeat(40)]);
    assert!(other.contains("another text"), "{other}");
    for path in [".", "nowhere"] {
        refused(&run(folder.path(), TINY, &["--base", path]), 1);
    }
}

#[cfg(unix)]
#[test]
fn a_stopped_run_leaves_no_base_and_says_how_far_it_came() {
    stopped(&[]);
}

/// The same with several windows at a time.
#[cfg(unix)]
#[test]
fn windows_side_by_side_are_stopped_together() {
    stopped(&["--exit-rule", "kl:1e-30,every=16"]);
}

#[cfg(unix)]
fn stopped(rule: &[&str]) {
    let folder = folder();
    let names = || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<PathBuf>>();
    let heldout = format!("{CHECKPOINT}/heldout.txt");
    let args = ["-f", heldout.as_str(), "--special", "-c", "64", "--steps", "64", "-t", "1", "--save-base", "base"];
    let mut command = command(folder.path(), TINY, &[&args, rule].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The temporary file appears when all flags have been found good; its first megabyte when windows have been read.
    let begun = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.len() > 1 << 20) && !path.ends_with("text.txt");
    while !names().iter().any(begun) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", err(&output));
    let last = err(&output).lines().last().unwrap();
    assert!(last.starts_with("rdt-perplexity: stopped after ") && last.contains("so far PPL = "), "{last}");
    assert_eq!(names(), [folder.path().join("text.txt")]);
}

#[test]
fn help_and_version() {
    let folder = folder();
    let help = Command::new(env!("CARGO_BIN_EXE_rdt-perplexity")).arg("--help").output().unwrap();
    assert!(out(&help).contains("Examples:") && out(&help).contains("Tokens per window"), "{}", out(&help));
    assert!(out(&run(folder.path(), TINY, &["--version"])).contains(env!("CARGO_PKG_VERSION")));
}
