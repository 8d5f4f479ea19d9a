//! rdt-chat as its users meet it: flags, pipes, exit codes, files.
#![cfg(feature = "cli")]

use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SUM: &str = "What is 4 + 5?";

fn chat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rdt-chat"));
    command.args(["-t", "1"]).args(args).stdin(Stdio::null());
    // What the user's own programs remember is left alone.
    command.env("RDT_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command
}

fn run(args: &[&str]) -> Output {
    chat(args).output().unwrap()
}

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut child = chat(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that refuses its flags does not read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> &str {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(out(output)).unwrap()
}

/// Failed with one line on stderr, and nothing on stdout.
fn one_line(output: &Output, code: i32) -> String {
    let text = err(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(output.stdout.is_empty());
    assert!(!text.contains("panicked"), "{text}");
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("rdt-chat: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

#[test]
fn one_question_is_answered_on_stdout() {
    let output = run(&["-p", SUM]);
    assert_eq!(out(&output), "9.\n");
    assert!(err(&output).contains("huginn-nano (built in)"));
    assert!(err(&output).contains("acceleration:0.05,hits=2 up to 16 steps; 1 thread,"));
    assert!(err(&output).contains("[2 tokens, "));
    assert!(!err(&output).contains('\x1b'));
}

#[test]
fn the_question_may_come_from_a_pipe_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("question");
    fs::write(&file, format!("{SUM}\r\n")).unwrap();
    assert_eq!(out(&piped(&[], format!("{SUM}\n").as_bytes())), "9.\n");
    assert_eq!(out(&piped(&["-p", "-"], SUM.as_bytes())), "9.\n");
    assert_eq!(out(&piped(&["-p", SUM], b"ignored")), "9.\n");
    assert_eq!(out(&run(&["-f", path(&file)])), "9.\n");
}

#[test]
fn depths_are_numbers_behind_tokens() {
    let plain = json(&run(&["-p", "Hello!", "--json"]));
    let output = run(&["-p", "Hello!", "--show-steps"]);
    let expected: String = plain["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| format!("{}⟨{}⟩", t["text"].as_str().unwrap(), t["steps"]))
        .collect();
    assert!(expected.matches('⟨').count() > 3);
    assert_eq!(out(&output), format!("{expected}\n"));
}

#[test]
fn json_says_everything() {
    let j = json(&run(&["-p", SUM, "--json", "--exit-rule", "fixed:3", "--kv-type", "q8_0", "-c", "200", "-s", "5"]));
    assert_eq!(j["answer"], "9.");
    assert_eq!(j["end"], "stop");
    let tokens = j["tokens"].as_array().unwrap();
    assert_eq!(tokens.iter().map(|t| t["text"].as_str().unwrap()).collect::<String>(), "9.");
    assert!(tokens.iter().all(|t| t["steps"] == 3 && t["id"].is_u64()));
    assert_eq!((&j["mean_steps"], &j["min_steps"], &j["max_steps"]), (&3.0.into(), &3.into(), &3.into()));
    assert_eq!(j["settings"]["exit_rule"], "fixed:3");
    assert_eq!(j["settings"]["seed"], 5);
    assert_eq!(j["settings"]["init"], "noise");
    assert_eq!(j["settings"]["top_p"], 0.95);
    assert_eq!((&j["kv"]["type"], &j["kv"]["context"], &j["kv"]["slots"]), (&"q8_0".into(), &200.into(), &3.into()));
    assert_eq!(j["prompt"]["mean_steps"], 3.0);
    assert!(j["prompt"]["tokens"].as_u64().unwrap() > 10);
    assert!(j["template"]["fingerprint"].as_str().unwrap().len() == 16);
}

#[test]
fn sampling_follows_the_seed_and_length_is_kept() {
    let answer = |seed: &str| {
        let args =
            ["-p", "Tell me a story.", "--json", "--temp", "1.5", "-n", "20", "--ignore-eos", "-s", seed, "--init"];
        let j = json(&run(&[&args[..], &["zeros"]].concat()));
        assert_eq!((j["end"].as_str().unwrap(), j["tokens"].as_array().unwrap().len()), ("length", 20));
        j["answer"].as_str().unwrap().to_owned()
    };
    assert_eq!(answer("7"), answer("7"));
    assert_ne!(answer("7"), answer("8"));
}

#[test]
fn wrong_usage_is_told_from_failure() {
    for args in [
        &["--frobnicate"][..],
        &["-p", "x", "-f", "y"],
        &["-p", "x", "-i"],
        &["-p", "x", "--steps", "0"],
        &["-p", "x", "-n", "0"],
        &["-p", "x", "-n", "-2"],
        &["-p", "x", "--exit-rule", "acceleration:NaN"],
        &["-p", "x", "--kv-type", "q3"],
        &["-p", "x", "--json", "--show-steps"],
        &["-i", "--json"],
        &["-p", "x", "--temp", "warm"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(
            output.stdout.is_empty() && err(&output).starts_with("rdt-chat: ") && err(&output).lines().count() == 1,
            "{args:?}: {}",
            err(&output)
        );
    }
    for (args, words) in [
        (&["-p", "x", "-m", "/nowhere.gguf"][..], "/nowhere.gguf"),
        (&["-p", "x", "-m", concat!(env!("CARGO_MANIFEST_DIR"), "/src")], "config.json"),
        (&["-p", "x", "-m", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], "Cargo.toml"),
        (&["-f", "/nowhere.txt"], "/nowhere.txt"),
        (&["-p", " \n\t "], "empty"),
        (&[], "empty"),
        (&["-p", "x", "--temp", "NaN"], "temperature"),
        (&["-p", "x", "--top-p", "2"], "top_p"),
        (&["-p", "x", "--load", "/nowhere.json"], "/nowhere.json"),
        (&["-p", "x", "--steps", "5000", "--exit-rule", "fixed:5000"], "5000"),
        (&["-p", "one two three four five six seven eight nine ten", "-c", "12"], "needs"),
        (&["-p", "x", "--save", "/nowhere/talk.json"], "/nowhere"),
    ] {
        let output = run(args);
        let text = err(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("rdt-chat: ") && last.contains(words), "{args:?}: {text}");
    }
    assert!(one_line(&piped(&[], b"ab\xFF"), 1).contains("not UTF-8"));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn lines_of_a_pipe_can_be_turns() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let lines = format!(
        "{SUM}\n\n   \n/stats\n/frob\n/steps 20\nHello!\n/save {0}\n/reset\n/load {0}\n/temp NaN\n/load /nowhere\n/regen\n\
         /exit-rule fixed:2\n/show-steps\nHello!\n/quit\nnever read\n",
        file.display()
    );
    let output = piped(&["-i"], lines.as_bytes());
    let shown = out(&output);
    let answers: Vec<&str> = shown.lines().collect();
    assert_eq!(answers.len(), 4, "{shown}");
    assert_eq!(answers[0], "9.");
    assert_eq!(answers[1], answers[2], "/regen after /load gives the same answer");
    assert!(answers[3].matches("⟨2⟩").count() >= 2, "{shown}");
    let told = err(&output);
    for words in [
        "there is no command /frob",
        "up to 20 steps",
        "20 loop slots",
        "tokens were run again",
        "[a new conversation]",
        "[loaded 4 messages, ",
        "temperature must be a finite number",
        "cannot read /nowhere",
        "[showing loop steps]",
        "prompts: ",
    ] {
        assert!(told.contains(words), "{words}\n{told}");
    }
    assert!(!told.contains("panicked"));
}

#[test]
fn a_reader_who_leaves_is_no_error() {
    for args in [
        &["-p", "Tell me a story.", "--ignore-eos", "-n", "300"][..],
        &["-p", "Tell me a story.", "--json"],
        &["-p", "Tell me a story.", "--show-steps", "--ignore-eos", "-n", "300"],
    ] {
        let mut child = chat(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0];
        if !args.contains(&"--json") {
            child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        }
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        assert!(!err(&output).contains("panicked"), "{}", err(&output));
    }
    // Nobody listens on stderr either.
    let mut child = chat(&["-p", SUM]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(out(&child.wait_with_output().unwrap()), "9.\n");
}

#[test]
fn saved_conversations_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.json"), dir.path().join("2.json"));
    let sampled = ["--temp", "1", "-s", "3", "--json", "--system", "Be kind."];
    run(&[&["-p", "Hello!", "--save", path(&first)], &sampled[..]].concat());
    // In one go, and in two.
    let lines = format!("Hello!\nTell me a story.\n/save {}\n", second.display());
    out(&piped(&["-i", "--temp", "1", "-s", "3", "--system", "Be kind."], lines.as_bytes()));
    let went_on = json(&run(&["--load", path(&first), "-p", "Tell me a story.", "--json", "--save", path(&first)]));
    assert!(went_on["prompt"]["reused"].as_u64().unwrap() > 10);
    assert_eq!(went_on["settings"]["temp"], 1.0);
    assert_eq!(fs::read_to_string(&first).unwrap(), fs::read_to_string(&second).unwrap());
    let saved: Value = serde_json::from_slice(&fs::read(&first).unwrap()).unwrap();
    assert_eq!(saved["messages"][3]["content"], went_on["answer"]);
    assert_eq!(saved["system"], "Be kind.");
}

#[test]
fn damaged_conversations_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = (dir.path().join("whole.json"), dir.path().join("part.json"));
    out(&run(&["-p", SUM, "--save", path(&whole)]));
    let bytes = fs::read(&whole).unwrap();
    assert!(bytes.len() > 1000);
    let mut script = format!("{SUM}\n");
    let mut count = 0;
    for end in (0..bytes.len() - 1).step_by(64) {
        let part = dir.path().join(format!("{end}.json"));
        fs::write(&part, &bytes[..end]).unwrap();
        script.push_str(&format!("/load {}\n", part.display()));
        count += 1;
    }
    // All of them in one conversation, which stays intact.
    let output = piped(&["-i"], format!("{script}/stats\n").as_bytes());
    assert_eq!(out(&output), "9.\n");
    let refusals = err(&output).lines().filter(|l| l.contains("not a saved conversation, or a damaged one")).count();
    assert_eq!(refusals, count);
    assert!(err(&output).contains(" 2 messages"));

    fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    assert!(one_line(&run(&["-p", "x", "--load", path(&part)]), 1).contains("part.json: not a saved conversation"));
    let text = String::from_utf8(bytes).unwrap();
    fs::write(&part, text.replace("rdt-chat 1", "rdt-chat 9")).unwrap();
    assert!(one_line(&run(&["-p", "x", "--load", path(&part)]), 1).contains("\"rdt-chat 9\""));
    fs::write(&part, [0xFF, 0xFE, 0]).unwrap();
    one_line(&run(&["-p", "x", "--load", path(&part)]), 1);
}

#[test]
fn a_full_context_is_told_and_survived() {
    let mut lines = String::new();
    for i in 0..6 {
        lines.push_str(&format!("What is {i} + 1?\n"));
    }
    let output = piped(&["-i", "-c", "80"], lines.as_bytes());
    assert_eq!(out(&output).lines().count(), 6);
    assert!(err(&output).contains("dropped to make room"), "{}", err(&output));
    let output = piped(&["-i", "-c", "40", "--ignore-eos"], b"Tell me a story.\nHello!\n");
    assert_eq!(err(&output).matches("the context of 40 tokens is full").count(), 2, "{}", err(&output));
    let long = "word ".repeat(100);
    let output = piped(&["-i", "-c", "40"], format!("{long}\nHello!\n").as_bytes());
    assert!(err(&output).contains("the context has room for 39"), "{}", err(&output));
    assert_eq!(out(&output).lines().count(), 1);
}

/// A checkpoint without a chat template is a base model: the text goes on, which is said; and a depth beyond the trained one is not
/// taken, which is said too. Its default is the trained depth.
#[test]
fn base_models_continue_the_text() {
    let ouro = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ouro");
    let ask =
        |more: &[&str]| run(&[&["-m", ouro, "-p", "Once", "-n", "3", "--init", "zeros", "--json"], more].concat());
    let deep = "--steps 8: this model was trained for 4 steps and breaks beyond; using 4";
    let output = ask(&["--steps", "8"]);
    let value = json(&output);
    assert_eq!(value["prompt"]["tokens"], 1);
    assert_eq!((&value["depth_limit"], &value["settings"]["exit_rule"]), (&4.into(), &"fixed".into()));
    assert!(err(&output).contains("continues your text"), "{}", err(&output));
    assert_eq!(err(&output).matches(deep).count(), 1, "{}", err(&output));
    let quiet = ask(&["--reasoning", "on"]);
    assert_eq!(json(&quiet)["tokens"], value["tokens"]);
    assert!(!err(&quiet).contains("trained for"), "{}", err(&quiet));
    let rule = ask(&["--exit-rule", "gate:0.9,max=7"]);
    assert!(
        err(&rule).contains("--exit-rule gate:0.9,hits=1,max=7: this model was trained for 4 steps"),
        "{}",
        err(&rule)
    );
    assert!(one_line(&ask(&["--exit-rule", "gate"]), 2).contains("threshold"));
    // Another template on request.
    let chatml = ask(&["--chat-template", "chatml"]);
    assert!(err(&chatml).contains("built-in ChatML"));
    assert!(json(&chatml)["prompt"]["tokens"].as_u64().unwrap() > 10);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.jinja");
    fs::write(&file, "{{ messages[0].content }}{{ ' more' if enable_thinking }}").unwrap();
    let own = |more: &[&str]| {
        json(&ask(&[&["--chat-template-file", path(&file)], more].concat()))["prompt"]["tokens"].clone()
    };
    assert_eq!(own(&[]), 1);
    assert_eq!(own(&["--reasoning", "on"]), 2);
    assert_eq!(own(&["--reasoning", "off"]), 1);
}

/// A calibration beside the model is what the governor goes by; what it does is in the answer, in its log and in /stats.
#[test]
fn a_governor_holds_a_rate_and_says_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let [model, log] = ["model.gguf", "log.jsonl"].map(|name| dir.path().join(name));
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/huginn-hops-q4_0.gguf"), &model).unwrap();
    let mut profile = rdt::governor::simulate::profile(0.5, 0.2);
    profile.model = rdt::calibrate::ModelId::of(&rdt::arch::open(&model, rdt::arch::Load::Map).unwrap());
    let args = |more: &[&str]| -> Vec<String> {
        let first = ["-m", path(&model), "-p", "Tell me a story.", "-n", "10", "--ignore-eos", "--json"];
        first.iter().chain(more).map(|s| (*s).to_owned()).collect()
    };
    let ask = |more: &[&str]| {
        let args = args(more);
        let output = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        (json(&output), err(&output).to_owned())
    };

    let (answer, words) = ask(&["--target-tps", "5"]);
    assert!(words.contains("governor: balanced, 5 tokens/s; the model has no calibration profile"), "{words}");
    assert_eq!((&answer["governor"]["mode"], &answer["governor"]["rungs"]), (&"balanced".into(), &1.into()));

    profile.write(&rdt::calibrate::Profile::beside(&model, "json")).unwrap();
    let (answer, words) = ask(&["--target-tps", "5", "--governor-log", path(&log)]);
    assert!(words.contains("settings that lose 1 % at most"), "{words}");
    let governor = &answer["governor"];
    assert!(governor["rungs"].as_u64().unwrap() > 2 && governor["sensors"].as_array().unwrap().len() > 10);
    // Pauses make up for what the computer is too fast.
    assert!(answer["tokens_per_second"].as_f64().unwrap() < 6.5, "{answer}");
    assert!(governor["paused_seconds"].as_f64().unwrap() > 0.0);
    let lines: Vec<Value> =
        fs::read_to_string(&log).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(!lines.is_empty() && lines.iter().all(|l| !l["reason"].as_str().unwrap().is_empty()));

    let (_, words) = ask(&["--target-tps", "5", "--exit-rule", "fixed:2"]);
    assert!(words.contains("the exit rule that was asked for is kept"), "{words}");
    let (answer, _) = ask(&[]);
    assert!(answer["governor"].is_null());

    let talk = piped(&["-i", "-m", path(&model), "--governor", "auto", "-n", "8"], b"Hello!\n/stats\n");
    let words = err(&talk);
    assert!(words.contains("governor: auto") && words.contains("sensors: temperature: "), "{words}");
}

#[test]
fn wrong_budgets_are_wrong_usage() {
    for (args, said) in [
        (&["--governor", "off", "--target-tps", "8"][..], "--governor off"),
        (&["--governor", "turbo"], "turbo"),
        (&["--target-tps=-3"], "target"),
        (&["--max-temp", "500"], "20 to 120"),
        (&["--governor-log", "x.jsonl"], "--governor-log"),
    ] {
        let line = one_line(&run(&[&["-p", "Hi"], args].concat()), 2);
        assert!(line.contains(said), "{line}");
    }
}

/// Several tokens in flight: the same answers, with what it took; a saved conversation goes on the same way, too.
#[test]
fn decoding_strategies_give_the_same_answers() {
    const STORY: &[&str] = &["-p", "Tell me a story.", "--temp", "0.8", "-s", "2", "--json"];
    let ask = |more: &[&str]| json(&run(&[STORY, more].concat()));
    let plain = ask(&[]);
    assert_eq!(plain["decode"]["strategy"], "plain");
    let tokens = |answer: &Value| answer["tokens"].clone();
    assert!(plain["tokens"].as_array().unwrap().len() > 8);
    for strategy in ["pipeline", "speculative", "pipeline:every=2,rows=4", "speculative:tokens=3,steps=2"] {
        let found = ask(&["--decode", strategy]);
        assert_eq!(tokens(&found), tokens(&plain), "{strategy}");
        let decode = &found["decode"];
        assert_eq!((&decode["exact"], &decode["plain_because"]), (&Value::Bool(true), &Value::Null));
        // What is not given is chosen by the time that passes take here, and may be nothing.
        if !strategy.contains(':') {
            continue;
        }
        assert!(decode["rows_per_pass"].as_f64().unwrap() > 1.2, "{strategy}: {decode}");
        assert!(decode["passes_per_token"].as_f64().unwrap() < plain["mean_steps"].as_f64().unwrap(), "{decode}");
        let guesses = decode["guesses"].as_array().unwrap();
        assert!(guesses.iter().all(|g| g["made"].as_u64() >= g["right"].as_u64()) && !guesses.is_empty());
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let talk = |strategy: &str| {
        let path = file(strategy);
        let lines = format!("Hello!\nTell me a story.\n/save {}\n", path.display());
        out(&piped(&["-i", "--decode", strategy], lines.as_bytes()));
        fs::read_to_string(path).unwrap()
    };
    assert_eq!(talk("pipeline"), talk("plain"));
}

/// What does not do what its name promises is said: exit rules by the read-out, shared KV slots, a wavefront.
#[test]
fn decoding_that_is_another_is_told() {
    let said = |args: &[&str]| {
        let output = run(&[&["-p", "Hello!"], args].concat());
        (out(&output).to_owned(), err(&output).to_owned())
    };
    let plain = said(&["--exit-rule", "kl"]);
    let (text, words) = said(&["--exit-rule", "kl", "--decode", "pipeline"]);
    assert!(text == plain.0 && words.contains("decoding is plain instead of pipeline: exit rule 'kl'"), "{words}");
    let (_, words) = said(&["--kv-steps", "2", "--decode", "pipeline"]);
    assert!(words.contains("pipeline is approximate here: 2 of"), "{words}");
    let (text, words) = said(&["--decode", "wavefront"]);
    assert!(!text.trim().is_empty() && words.contains("a wavefront is approximate"), "{words}");
    assert!(words.contains("1 of 16 loop slots"), "{words}");
    // Where it cannot run, nothing is given up for it.
    let (_, words) = said(&["--decode", "wavefront", "-b", "1"]);
    assert!(words.contains("plain instead of wavefront") && words.contains("all 16 loop slots"), "{words}");
    let line = one_line(&run(&["-p", "Hello!", "--decode", "fast"]), 2);
    assert!(line.contains("there is no decoding strategy 'fast'"), "{line}");
}

/// In the middle of a conversation: slots follow the strategy, and what was decoded along a wavefront is known as such.
#[test]
fn strategies_change_in_mid_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let (wave, exact) = (dir.path().join("wave.json"), dir.path().join("exact.json"));
    let lines = format!(
        "/decode pipeline\nTell me a story.\n/stats\n/save {}\n/decode wavefront\nTell me a story.\n/stats\n/save {}\n/decode plain\n/decode\n",
        exact.display(),
        wave.display()
    );
    let output = piped(&["-i"], lines.as_bytes());
    let words = err(&output);
    for expected in [
        "[decoding: pipeline:rows=8, for tokens from here on]",
        "guesses that came true:",
        "one token after the other would make some",
        "anew with 1 loop slots",
        "decoding: wavefront:inner=4",
        "anew with 16 loop slots",
        "/decode: expected STRATEGY",
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    let approximate = |path: &Path| {
        let saved: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        saved["approximate"].clone()
    };
    assert_eq!((approximate(&exact), approximate(&wave)), (Value::Null, Value::Bool(true)));
    let told = |path_: &Path| err(&run(&["--load", path(path_), "-p", "Hello!"])).contains("decoded approximately");
    assert!(told(&wave) && !told(&exact));
}
