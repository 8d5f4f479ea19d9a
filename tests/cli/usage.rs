//! Wrong usage: exit code 2 and one line where the flags are wrong, 1 where they do not fit the model.

use std::fs;

use crate::models::{chat_checkpoint, gguf};
use crate::programs::{BENCH, INSPECT, QUANTIZE, TRACE, names_in, run};

#[test]
fn flags_that_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let trace = |args: &[&str]| {
        let all = [&["-m", "m.gguf", "--out", "out"], args].concat();
        run(TRACE, dir.path(), &all).refused(2, &args.join(" "))
    };
    let tokens = |args: &[&str]| trace(&[&["--tokens", "1"], args].concat());
    for rule in [
        "acceleration:NaN",
        "acceleration:inf",
        "acceleration:-1",
        "acceleration:0",
        "acceleration:",
        "acceleration:0.1,hits=0",
        "acceleration:0.1,max=0",
        "acceleration:0.1,min=8,max=8",
        "kl:nan",
        "fixed:0",
        "fixed:18446744073709551616",
        "nothing",
        "",
    ] {
        let line = tokens(&["--exit-rule", rule]);
        assert!(line.contains("--exit-rule"), "{line}");
    }
    for flag in ["--steps", "-b", "-t", "-c", "--kv-steps", "--kv-memory"] {
        for value in ["0", "-1", "x", "", "1e3", "18446744073709551616"] {
            tokens(&[flag, value]);
        }
    }
    assert!(tokens(&["--kv-type", "q3"]).contains("q3"));
    assert!(trace(&["--tokens", ""]).contains("--tokens"));
    for ids in ["1,", "-1", "4294967296", "1;2", "one"] {
        trace(&["--tokens", ids]);
    }
    assert!(trace(&[]).contains("--tokens"), "neither tokens nor a prompt");
    assert!(trace(&["--tokens", "1", "-p", "x"]).contains("--prompt"));
    tokens(&["--nonsense"]);
    run(TRACE, dir.path(), &[""; 0]).refused(2, "no flags");

    for args in [&[][..], &["in", "out", "--type", "q5"], &["in", "-t", "0"], &["a", "b", "c"], &["in", "--type"]] {
        run(QUANTIZE, dir.path(), args).refused(2, &args.join(" "));
    }
    for args in [&[][..], &["a", "b"], &["a", "--steps", "0"], &["a", "--tensors", "--metadata", "x"]] {
        run(INSPECT, dir.path(), args).refused(2, &args.join(" "));
    }
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn flags_that_do_not_fit_the_model() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("m.gguf"), gguf("q4_0")).unwrap();
    fs::write(dir.path().join("text"), "no safetensors").unwrap();
    let trace = |args: &[&str]| {
        let all = [&["-m", "m.gguf", "--out", "out", "-t", "1", "--steps", "2"], args].concat();
        run(TRACE, dir.path(), &all).refused(1, &args.join(" "))
    };
    let line = trace(&["--tokens", "1,1,1,1,1", "-c", "4"]);
    assert!(line.contains("5 tokens") && line.contains("room for 4"), "{line}");
    let line = trace(&["--tokens", "1,4294967295"]);
    assert!(line.contains("4294967295") && line.contains("vocabulary"), "{line}");
    assert!(trace(&["-p", ""]).contains("empty"));
    assert!(trace(&["-p", "Hello"]).contains("tokenizer"), "the model has none");
    assert!(trace(&["--tokens", "1", "--prefix-len", "1"]).contains("prefix"));
    for init in ["nowhere", "text", "", "."] {
        trace(&["--tokens", "1", "--init", init]);
    }
    assert!(trace(&["--tokens", "1", "-c", "9999999999"]).contains("-c"));
    trace(&["--tokens", "1", "-c", "18446744073709551615"]);
    let args = ["-m", "m.gguf", "--tokens", "1", "--out", "no/such/folder/x"];
    run(TRACE, dir.path(), &args).refused(1, "an output that cannot be written");
    let args = ["-m", "m.gguf", "--tokens", "1", "--out", "."];
    run(TRACE, dir.path(), &args).refused(1, "an output that is a folder");
    assert_eq!(names_in(dir.path()), ["m.gguf", "text"]);
}

#[test]
fn an_empty_prompt_is_none_even_where_the_model_has_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_checkpoint();
    let model = model.to_str().unwrap();
    let line = run(TRACE, dir.path(), &["-m", model, "-p", "", "--out", "out"]).refused(1, "empty");
    assert!(line.contains("empty"), "{line}");
    run(TRACE, dir.path(), &["-m", model, "-p", "Hi", "--out", "out"]).ok("a prompt");
    assert_eq!(names_in(dir.path()), ["out"]);
}

#[test]
fn help_and_version() {
    let dir = tempfile::tempdir().unwrap();
    for program in [BENCH, TRACE, QUANTIZE, INSPECT] {
        let help = run(program, dir.path(), &["--help"]).ok("help");
        assert!(help.stdout.contains("Examples:") && help.stderr.is_empty(), "{help:?}");
        let version = run(program, dir.path(), &["--version"]).ok("version");
        assert!(version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    }
}
