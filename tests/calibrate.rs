//! rdt-calibrate as a user runs it: its numbers are those of rdt-perplexity, an interrupted run goes on, and the other programs follow
//! the profile.

use rdt::calibrate::{Point, Profile};
use rdt::gguf::Header;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops-q4_0.gguf");
const CHECKPOINT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops");
const FEW: [&str; 10] = ["-m", "hops.gguf", "-f", "text.txt", "--special", "-c", "32", "--chunks", "6", "--no-timing"];

/// A folder with `hops.gguf` and `text.txt`: some dialogues that the model was not trained on.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let all = fs::read_to_string(Path::new(CHECKPOINT).join("heldout.txt")).unwrap();
    let text: String = all.lines().take(40).map(|line| format!("{line}\n")).collect();
    fs::write(folder.path().join("text.txt"), text).unwrap();
    fs::copy(MODEL, folder.path().join("hops.gguf")).unwrap();
    folder
}

fn command(folder: &Path, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).args(args).stdin(Stdio::null());
    // What the user's own programs remember is left alone.
    command.env("RDT_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

fn calibrate(folder: &Path, args: &[&str]) -> Output {
    command(folder, env!("CARGO_BIN_EXE_rdt-calibrate"), args).output().unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn out(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// One line of complaint, and exit code 1 or 2.
fn refused(output: &Output) -> String {
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {}", output.status, err(output));
    let lines: Vec<_> = err(output).lines().collect();
    lines.last().unwrap().to_string()
}

fn perplexity(folder: &Path, rule: &str) -> Value {
    let args =
        ["-m", "hops.gguf", "-f", "text.txt", "--special", "-c", "32", "--chunks", "6", "--json", "--exit-rule", rule];
    let output = command(folder, env!("CARGO_BIN_EXE_rdt-perplexity"), &args).output().unwrap();
    serde_json::from_str(out(&output)).unwrap()
}

/// Every point of a profile is what rdt-perplexity prints at that setting, to the last bit: fixed depths, which shared one run, and
/// rules of every kind.
#[test]
fn points_are_what_perplexity_prints() {
    let folder = folder();
    let args = [&FEW[..], &["--steps", "9", "--points", "2", "--seeds", "2", "--json"]].concat();
    let profile = Profile::parse(out(&calibrate(folder.path(), &args))).unwrap();
    assert_eq!(profile, Profile::read(&folder.path().join("hops.calibration.json")).unwrap());
    assert!(!folder.path().join("hops.calibration.partial").exists(), "nothing is left over");
    let html = fs::read_to_string(folder.path().join("hops.calibration.html")).unwrap();
    assert!(html.starts_with("<!doctype html>") || html.starts_with("<!DOCTYPE html>"), "{}", &html[..60]);

    assert_eq!((profile.published_steps, profile.depths.len()), (6, 9));
    let kinds: std::collections::BTreeSet<_> = profile.rules.iter().map(|p| p.rule.name()).collect();
    let all = [
        "acceleration",
        "acceleration-raw",
        "acceleration-step",
        "argmax",
        "cosine",
        "entropy",
        "kl",
        "min-p-kl",
        "step-norm",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), all);
    let mut seen = std::collections::BTreeSet::new();
    // Each depth, and the first setting of each kind.
    let points = profile.depths.iter().chain(profile.rules.iter().filter(|p| seen.insert(p.rule.name())));
    for point in points {
        let report = perplexity(folder.path(), &point.rule.to_string());
        let run = &report["runs"][0];
        let number = |path: &str| run.pointer(path).and_then(Value::as_f64).unwrap();
        assert_eq!(number("/cross_entropy/value").to_bits(), point.cross_entropy.value.to_bits(), "{}", point.rule);
        assert_eq!(number("/cross_entropy/error").to_bits(), point.cross_entropy.error.to_bits(), "{}", point.rule);
        assert_eq!(number("/perplexity/value").to_bits(), point.perplexity.value.to_bits(), "{}", point.rule);
        assert_eq!(number("/mean_steps"), point.mean_steps, "{}", point.rule);
        let steps: std::collections::BTreeMap<usize, u64> = serde_json::from_value(run["steps"].clone()).unwrap();
        assert_eq!(steps, point.steps, "{}", point.rule);
    }
    // Against itself, full depth is the same.
    let full = &profile.depths[profile.full_depth - 1];
    assert_eq!((full.kl.value, full.same_top.value), (0.0, 1.0));
    let spread = |p: &Point| p.seed_variance.map(|v| v.value);
    assert!(spread(full).unwrap() > 0.0);
    for kind in all {
        assert!(profile.rules.iter().any(|p| p.rule.name() == kind && spread(p).is_some()), "{kind}");
    }
}

/// Threads and chunks do not show in a profile, but for the machine's line.
#[test]
fn threads_and_chunks_do_not_show() {
    let folder = folder();
    let of = |more: &[&str]| {
        let rules =
            ["--rules", "acceleration,kl", "--points", "1", "--seeds", "1", "--steps", "8", "--json", "--no-report"];
        let args = [&FEW[..], &rules, more].concat();
        Profile::parse(out(&calibrate(folder.path(), &args))).unwrap()
    };
    let (one, other) = (of(&["-t", "1", "-b", "64"]), of(&["-t", "3", "-b", "5"]));
    assert_eq!(one.depths, other.depths);
    assert_eq!(one.rules, other.rules);
}

/// A run that is killed goes on where it was, and ends with the same numbers.
#[cfg(unix)]
#[test]
fn an_interrupted_calibration_goes_on() {
    let folder = folder();
    let whole = [&FEW[..], &["--points", "2", "--seeds", "2", "--json"]].concat();
    let expected = Profile::parse(out(&calibrate(folder.path(), &whole))).unwrap();
    fs::remove_file(folder.path().join("hops.calibration.json")).unwrap();

    let partial = folder.path().join("hops.calibration.partial");
    let results = || fs::read_dir(&partial).map_or(0, |files| files.count());
    for kept in [3, 20] {
        let mut child = command(folder.path(), env!("CARGO_BIN_EXE_rdt-calibrate"), &whole)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while results() < kept && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.path().join("hops.calibration.json").exists());
        assert!(results() >= kept);
    }
    // What is left belongs to that calibration alone.
    let other = [&FEW[..], &["--points", "3", "--seeds", "2"]].concat();
    let message = refused(&calibrate(folder.path(), &other));
    assert!(message.contains("--restart"), "{message}");
    // A result that was damaged meanwhile is made anew.
    fs::write(partial.join("deep-0.bin"), b"damaged").unwrap();

    let output = calibrate(folder.path(), &whole);
    assert_eq!(Profile::parse(out(&output)).unwrap(), expected);
    assert!(err(&output).contains("results were there from before"), "{}", err(&output));
    assert!(!partial.exists());
}

/// The profile inside the model file: found, kept by others, checked, and no change to the weights.
#[test]
fn profiles_can_be_embedded() {
    let folder = folder();
    let before = fs::read(folder.path().join("hops.gguf")).unwrap();
    let args =
        [&FEW[..], &["--rules", "acceleration", "--points", "2", "--seeds", "1", "--embed", "--no-report"]].concat();
    let output = calibrate(folder.path(), &args);
    assert!(out(&output).contains("acceleration"), "the table");
    assert!(!folder.path().join("hops.calibration.json").exists());
    let after = fs::read(folder.path().join("hops.gguf")).unwrap();
    let (old, new) = (Header::parse(&before).unwrap(), Header::parse(&after).unwrap());
    assert_eq!(new.metadata.len(), old.metadata.len() + 1);
    assert!(Profile::embedded(&new.metadata).unwrap().is_some());
    for (a, b) in old.tensors.iter().zip(&new.tensors) {
        assert!(a.name == b.name && a.data(&before) == b.data(&after), "{}", a.name);
    }

    let checked = calibrate(folder.path(), &[&FEW[..9], &["--check"]].concat());
    let text = out(&checked);
    assert!(text.contains("quality  same") && text.contains("machine  same"), "{text}");
    let unknown = calibrate(folder.path(), &["-m", "hops.gguf", "--check", "--json"]);
    let report: Value = serde_json::from_str(out(&unknown)).unwrap();
    assert_eq!((&report["text"], &report["holds"]), (&Value::Bool(false), &Value::Bool(true)));

    // A profile whose numbers cannot be repeated.
    let mut profile = Profile::embedded(&new.metadata).unwrap().unwrap();
    profile.depths.iter_mut().for_each(|p| p.perplexity.value *= 1.01);
    profile.write(&folder.path().join("wrong.json")).unwrap();
    let message = refused(&calibrate(folder.path(), &[&FEW[..9], &["--check", "wrong.json"]].concat()));
    assert!(message.contains("cannot be repeated"), "{message}");
}

/// The chat takes what a profile recommends, and less or more where that is asked for.
#[test]
fn profiles_are_followed() {
    let folder = folder();
    let args = [&FEW[..], &["--rules", "acceleration,step-norm", "--seeds", "1", "--no-report"]].concat();
    out(&calibrate(folder.path(), &args));
    let profile = Profile::read(&folder.path().join("hops.calibration.json")).unwrap();
    let rule = |more: &[&str]| {
        let args = [&["-m", "hops.gguf", "-p", "What is 4 + 5?", "-n", "2", "--json"], more].concat();
        let output = command(folder.path(), env!("CARGO_BIN_EXE_rdt-chat"), &args).output().unwrap();
        let report: Value = serde_json::from_str(out(&output)).unwrap();
        report["settings"]["exit_rule"].as_str().unwrap().to_owned()
    };
    let cheapest = |loss| profile.cheapest(loss).unwrap().rule.to_string();
    assert_eq!(rule(&[]), cheapest(0.01));
    assert_eq!(rule(&["--exit", "auto"]), cheapest(0.01));
    assert_eq!(rule(&["--max-loss", "10%"]), cheapest(0.1));
    assert_ne!(cheapest(0.01), cheapest(1.0), "the flags can be told apart");
    assert_eq!(rule(&["--quality", "0"]), profile.front().first().unwrap().rule.to_string());
    assert_eq!(rule(&["--quality", "100"]), profile.front().last().unwrap().rule.to_string());
    assert_eq!(rule(&["--exit-rule", "fixed:3"]), "fixed:3");

    // A profile of other weights is passed over; one that is named is an error.
    let mut other = profile.clone();
    other.model.fingerprint = "0".repeat(16);
    other.write(&folder.path().join("hops.calibration.json")).unwrap();
    assert_eq!(rule(&[]), "acceleration:0.05,hits=2");
    let named = ["-m", "hops.gguf", "-p", "x", "--profile", "hops.calibration.json"];
    let output = command(folder.path(), env!("CARGO_BIN_EXE_rdt-chat"), &named).output().unwrap();
    assert!(refused(&output).contains("another model"), "{}", err(&output));
    fs::write(folder.path().join("hops.calibration.json"), "{").unwrap();
    assert_eq!(rule(&[]), "acceleration:0.05,hits=2", "a damaged one is passed over, too");
    fs::remove_file(folder.path().join("hops.calibration.json")).unwrap();
    let none = ["-m", "hops.gguf", "-p", "x", "--exit", "auto"];
    let output = command(folder.path(), env!("CARGO_BIN_EXE_rdt-chat"), &none).output().unwrap();
    assert!(refused(&output).contains("rdt-calibrate"), "{}", err(&output));
}

/// What cannot be done is said in one line.
#[test]
fn what_cannot_be_done_is_said() {
    let folder = folder();
    let cases: [(&[&str], &str); 7] = [
        (&["-m", "none.gguf"], "none.gguf"),
        (&["-m", "hops.gguf", "-f", "none.txt"], "none.txt"),
        (&["-m", "hops.gguf", "--rules", "speed"], "this model can follow acceleration"),
        (&["-m", "hops.gguf", "--rules", "gate"], "this model can follow"),
        (&["-m", "hops.gguf", "-f", "text.txt", "-o", "hops.gguf"], "is the model"),
        (&["-m", "hops.gguf", "-f", "text.txt", "--kv-steps", "2"], "--kv-steps"),
        (&["-m", CHECKPOINT, "--embed"], "rdt-quantize"),
    ];
    for (args, words) in cases {
        let message = refused(&calibrate(folder.path(), args));
        assert!(message.contains(words), "{args:?}: {message}");
    }
    // A model with several loops.
    let gpt2 = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/looped-gpt2");
    if Path::new(gpt2).join("model.safetensors").exists() {
        let message = refused(&calibrate(folder.path(), &["-m", gpt2, "-f", "text.txt"]));
        assert!(message.contains("loop") || message.contains("tokenizer"), "{message}");
    }
}
