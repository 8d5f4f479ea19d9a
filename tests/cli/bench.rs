//! What rdt-bench measures and writes. Nothing here depends on how fast it is.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use crate::programs::{BENCH, INSPECT, Outcome, run};

fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
    path.to_str().unwrap().to_owned()
}

/// Runs on the CPU with one thread, two repetitions and a small buffer, unless `more` says otherwise.
fn bench(dir: &Path, more: &str) -> Outcome {
    let model = model();
    let mut args = vec!["-m", &model, "--device", "cpu"];
    for (flag, usual) in [("-t", "1"), ("-r", "2"), ("--bandwidth-size", "1"), ("-p", "0"), ("-n", "0")] {
        if !more.split_whitespace().any(|word| word == flag) {
            args.extend([flag, usual]);
        }
    }
    args.extend(more.split_whitespace());
    run(BENCH, dir, &args)
}

/// The records of a run.
fn records(dir: &Path, more: &str) -> Vec<Json> {
    let lines = bench(dir, &format!("{more} -o jsonl")).ok(more).stdout;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn number(record: &Json, key: &str) -> f64 {
    record[key].as_f64().unwrap_or_else(|| panic!("{key}: {record}"))
}

fn texts<'r>(records: &'r [Json], key: &str) -> Vec<&'r str> {
    records.iter().map(|r| r[key].as_str().unwrap()).collect()
}

/// Every combination is measured, and every format has all of it.
#[test]
fn four_formats_of_the_same_tests() {
    let dir = tempfile::tempdir().unwrap();
    let what = "-p 6 -n 4 --pg 6,4 --rows 1,2 -d 0,3 --steps 2,3 --kv-type f16,f32";
    let names = ["pp6", "tg4", "tg4@rows2", "pp6+tg4", "pp6+tg4@rows2"];
    let deep = names.map(|name| format!("{name}@d3"));
    let of_setting: Vec<&str> = names.into_iter().chain(deep.iter().map(String::as_str)).collect();

    let list: Vec<Json> =
        serde_json::from_str(&bench(dir.path(), &format!("{what} -o json")).ok("json").stdout).unwrap();
    assert_eq!(texts(&list, "test"), of_setting.repeat(4));
    let settings: Vec<_> = list.chunks(10).map(|c| (number(&c[0], "steps"), texts(c, "type_kv")[9])).collect();
    assert_eq!(settings, [(2.0, "f16"), (2.0, "f32"), (3.0, "f16"), (3.0, "f32")]);
    for r in &list {
        for key in ["samples_ns", "samples_ts", "samples_first_token_ns"] {
            let samples = r[key].as_array().unwrap();
            assert!(samples.len() == 2 && samples.iter().all(|x| x.as_f64().unwrap() > 0.0), "{key}: {r}");
        }
        let (tokens, times) = (number(r, "n_prompt") + number(r, "n_gen"), r["samples_ns"].as_array().unwrap());
        let rate = tokens / times[1].as_f64().unwrap() * 1e9;
        assert!((r["samples_ts"][1].as_f64().unwrap() / rate - 1.0).abs() < 1e-3, "{r}");
        let order = ["min_ts", "median_ts", "max_ts"].map(|key| number(r, key));
        assert!(order.is_sorted() && (number(r, "avg_ts") - number(r, "median_ts")).abs() < 1e-6 * rate, "{r}");
        assert!(number(r, "first_token_ns") <= number(r, "median_ns"), "{r}");
        assert_eq!((number(r, "loops_per_token"), &r["isa"].is_string()), (number(r, "steps"), &true));
        // One block before and one behind a loop of two.
        assert_eq!(number(r, "blocks_per_token"), 2.0 + 2.0 * number(r, "steps"));
        for key in ["memory_bytes_per_second", "memory_share", "core_share", "step_ns", "outside_loop_ns"] {
            assert!(number(r, key) > 0.0, "{key}: {r}");
        }
        assert_eq!((number(r, "memory_buffer"), r["n_threads"].as_u64()), (1048576.0, Some(1)));
        assert_eq!(
            (r["model_filename"].as_str(), r["model_type"].as_str()),
            (Some("huginn-hops-q4_0.gguf"), Some("huginn q4_0"))
        );
        let time = r["test_time"].as_str().unwrap();
        assert!(time.len() == 20 && time.ends_with('Z'), "{time}");
        for key in ["build_commit", "cpu_info", "joules_per_token", "temperature_before", "state_before", "state_after"]
        {
            assert!(r.get(key).is_some(), "null where it cannot be read, but there: {key}");
        }
    }

    let again = records(dir.path(), what);
    let keys = |r: &Json| r.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert!(again.iter().all(|r| keys(r) == keys(&list[0])));
    assert_eq!(texts(&again, "answer"), texts(&list, "answer"), "the same in another process");

    let csv = bench(dir.path(), &format!("{what} -o csv")).ok("csv").stdout;
    let lines: Vec<_> = csv.lines().collect();
    assert_eq!((lines.len(), lines[0]), (41, keys(&list[0]).join(",").as_str()));
    let index = keys(&list[0]).iter().position(|key| key == "test").unwrap();
    for (line, name) in lines[1..].iter().zip(of_setting.repeat(4)) {
        let cells = csv_cells(line);
        assert_eq!((cells.len(), cells[index].as_str()), (keys(&list[0]).len(), name), "{line}");
    }

    let table = bench(dir.path(), what).ok("md").stdout;
    let rows: Vec<_> = table.lines().filter(|l| l.starts_with('|')).collect();
    assert_eq!(rows.len(), 42, "{table}");
    for (row, name) in rows[2..].iter().zip(of_setting.repeat(4)) {
        assert!(row.split('|').any(|cell| cell.trim() == name), "{row}");
    }
    assert!(table.contains("5.11 bits") && table.contains("GB/s with 1 thread"), "{table}");
}

/// A line of CSV taken apart as RFC 4180 has it.
fn csv_cells(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    assert!(!quoted, "{line}");
    cells.push(cell);
    cells
}

/// Bytes per token are those that rdt-inspect counts, and the keys and values of what a token sees.
#[test]
fn bytes_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let inspected: Json =
        serde_json::from_str(&run(INSPECT, dir.path(), &[&model(), "--json", "--steps", "3"]).ok("inspect").stdout)
            .unwrap();
    let alone = number(&inspected["model"], "bytes_per_token");
    let kv = number(&inspected["model"]["kv_bytes_per_token"][0], "f16");
    let all = records(dir.path(), "-n 4 --rows 1,4 -d 0,10 --steps 3");
    let [one, four, one_deep, four_deep] = &all[..] else { panic!("{all:?}") };
    // Tokens that see 1, 2, 3 and 4 positions; run together, 4 once.
    assert_eq!((number(one, "weight_bytes_per_token"), number(one, "kv_bytes_per_token")), (alone, 2.5 * kv));
    assert_eq!(number(one_deep, "weight_bytes_per_token"), alone);
    assert_eq!(number(one_deep, "kv_bytes_per_token"), 12.5 * kv);
    assert_eq!((number(four, "kv_bytes_per_token"), number(four_deep, "kv_bytes_per_token")), (kv, 3.5 * kv));
    let rows = number(four, "weight_bytes_per_token");
    assert!(rows > alone / 4.0 && rows < alone / 3.9, "all but a row of the embedding is shared: {rows}, {alone}");
    let bytes = number(&inspected["model"]["loops"][0], "bytes_per_step");
    assert_eq!(number(one, "step_bytes"), bytes);

    // A prompt in two passes reads the head once.
    let prompts = records(dir.path(), "-p 8 -b 4,8 --steps 3");
    let read = |r: &Json| 8.0 * number(r, "weight_bytes_per_token");
    let pass = read(&prompts[0]) - read(&prompts[1]);
    assert!(pass > 3.0 * bytes && pass < alone, "{pass}");
    let unmeasured = &records(dir.path(), "-n 1 --bandwidth-size 0")[0];
    assert!(unmeasured["memory_share"].is_null() && unmeasured["core_bytes_per_second"].is_null());
}

/// Threads, cuts and instruction sets change no answer; depth, storage and context do.
#[test]
fn answers_are_the_same_however_they_are_run() {
    let dir = tempfile::tempdir().unwrap();
    let same = records(dir.path(), "-p 9 -t 1,2,3 -b 2,5,64 --no-warmup");
    assert_eq!(same.len(), 9);
    assert!(same.iter().all(|r| r["answer"] == same[0]["answer"] && r["warmup"] == false));
    let generated = records(dir.path(), "-n 6 -t 1,2");
    assert_eq!(generated[0]["answer"], generated[1]["answer"]);
    let mut scalar = crate::programs::command(BENCH, dir.path());
    scalar.args([
        "-m",
        &model(),
        "--device",
        "cpu",
        "-p",
        "0",
        "-n",
        "6",
        "-r",
        "1",
        "--bandwidth-size",
        "0",
        "-o",
        "jsonl",
    ]);
    let scalar = scalar.env("RDT_ISA", "scalar").output().unwrap();
    let scalar: Json = serde_json::from_slice(&scalar.stdout).unwrap();
    assert_eq!((&scalar["answer"], scalar["isa"].as_str()), (&generated[0]["answer"], Some("scalar")));
    let different = records(dir.path(), "-n 6 --steps 1,2 --kv-type f16,f32 -d 0,2");
    let mut answers = texts(&different, "answer");
    answers.sort();
    answers.dedup();
    assert_eq!(answers.len(), 8, "{answers:?}");
}

#[test]
fn exit_rules_leave_early() {
    let dir = tempfile::tempdir().unwrap();
    let of = |rule: &str| {
        let all = records(dir.path(), &format!("-n 5 --pg 3,2 --exit-rule {rule}"));
        all.iter().map(|r| (number(r, "steps"), number(r, "loops_per_token"))).collect::<Vec<_>>()
    };
    assert_eq!(of("fixed:4"), [(4.0, 4.0); 2]);
    // Anything is below a thousand, as soon as there is an acceleration: twice in a row at step 3.
    assert_eq!(of("acceleration:1000,hits=2,max=8"), [(8.0, 3.0); 2]);
    // Read-out rules act on generated tokens only: a prompt of 3 takes all 8 steps, 2 more tokens take 1.
    assert_eq!(of("kl:1000,max=8"), [(8.0, 1.0), (8.0, (3.0 * 8.0 + 2.0) / 5.0)]);
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let old = bench(dir.path(), "-p 5 -n 3 -o jsonl").ok("old").stdout;
    fs::write(dir.path().join("old.jsonl"), &old).unwrap();
    let outcome = bench(dir.path(), "-p 5 -n 3 -o jsonl --bandwidth-size 0 --compare old.jsonl").ok("same");
    assert_eq!(outcome.stderr, "", "nothing differs");
    let records: Vec<Json> = outcome.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (new, old) in records.iter().zip(old.lines()) {
        let (old, compared): (Json, _) = (serde_json::from_str(old).unwrap(), &new["compared"]);
        assert_eq!(compared["old_median_ts"], old["median_ts"]);
        assert!((number(compared, "ratio") / number(new, "median_ts") * number(&old, "median_ts") - 1.0).abs() < 1e-9);
        assert_eq!((&compared["same_answer"], &compared["differs"]), (&true.into(), &Json::from(Vec::<String>::new())));
    }
    let outcome = bench(dir.path(), "-p 5 -n 3,4 -t 2 --compare old.jsonl").ok("others");
    assert!(outcome.stderr.contains("pp5: the number of threads was '1', is '2'"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("tg4: the old file has no such test"), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("new/old"), "{}", outcome.stdout);

    let spoilt = old.replace("\"median_ts\":", "\"median_ts\":-");
    let hostile = old.replace("avx2", "\\u001b[31m").replace("neon", "\\u001b[31m");
    fs::write(dir.path().join("hostile.jsonl"), hostile).unwrap();
    bench(dir.path(), "-p 5 --compare hostile.jsonl").ok("hostile text");
    let foreign: [(&str, &[u8]); 6] = [
        ("empty", b""),
        ("binary", &[0xff, 0xfe, 0, 1]),
        ("json", b"{\"test\": \"pp512\", \"avg_ts\": 1.0}"),
        ("llama", b"| model | size | t/s |\n"),
        ("deep", &[b'['; 10_000]),
        ("negative", spoilt.as_bytes()),
    ];
    for (name, bytes) in foreign {
        fs::write(dir.path().join(name), bytes).unwrap();
        let line = bench(dir.path(), &format!("-p 5 --compare {name}")).refused(1, name);
        assert!(line.contains(name), "{line}");
    }
    bench(dir.path(), "-p 5 --compare missing").refused(1, "no such file");
}

#[test]
fn a_run_without_pause_tells_of_its_intervals() {
    let dir = tempfile::tempdir().unwrap();
    let all = records(dir.path(), "-p 7 -n 5 --rows 1,2 --sustained 1 --interval 1");
    assert_eq!(texts(&all, "test"), ["tg5", "tg5@rows2"]);
    for r in &all {
        let intervals = r["intervals"].as_array().unwrap();
        assert!(!intervals.is_empty() && r["samples_ts"].as_array().unwrap().len() == intervals.len(), "{r}");
        assert_eq!(r["sustained"], 1);
        let last = intervals.last().unwrap();
        assert!(number(last, "at") >= 1.0, "{r}");
        let seconds: f64 = intervals.iter().map(|i| number(i, "seconds")).sum();
        assert!(seconds > 0.5 * number(last, "at"), "the intervals are the time: {r}");
        assert!(intervals.iter().all(|i| number(i, "tokens") > 0.0 && i.get("celsius").is_some()), "{r}");
        let ratio = number(last, "tokens_per_second") / number(&intervals[0], "tokens_per_second");
        assert_eq!(number(r, "last_by_first"), ratio);
    }
    let table = bench(dir.path(), "-n 5 --sustained 1").ok("md").stdout;
    assert!(table.contains("| seconds |") && table.contains("tg5: ") && table.contains("100.0 %"), "{table}");
}

/// What was measured is not lost to Ctrl-C.
#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_in_order() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};
    let dir = tempfile::tempdir().unwrap();
    let mut command = crate::programs::command(BENCH, dir.path());
    command.args([
        "-m",
        &model(),
        "--device",
        "cpu",
        "-t",
        "1",
        "-p",
        "0",
        "-n",
        "3",
        "-d",
        "0,1",
        "-r",
        "1",
        "--delay",
        "1",
    ]);
    command.args(["--bandwidth-size", "0", "-o", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    // The first record is written; the second test waits its second.
    while !text.contains("\"compared\"") {
        assert!(stdout.read_line(&mut text).unwrap() > 0, "{text}");
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    stdout.read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "rdt-bench: stopped after 1 tests\n");
    let records: Vec<Json> = serde_json::from_str(&text).unwrap();
    assert_eq!(texts(&records, "test"), ["tg3"]);
}

#[test]
fn wrong_usage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for wrong in [
        "-p x",
        "-n -1",
        "-p 1,",
        "--rows 0",
        "-t 0",
        "-b 0",
        "-r 0",
        "--pg 5",
        "--pg 5,x",
        "-o xml",
        "--kv-type q3",
        "--steps 0",
        "--exit-rule no",
        "--sustained 0",
        "--interval 0",
        "--delay x",
        "--kv-steps 0",
        "-n 0",
        "-p 5 --sustained 1",
    ] {
        bench(dir.path(), wrong).refused(2, wrong);
    }
    run(BENCH, dir.path(), &["-n", "1"]).refused(2, "no model");
    for wrong in ["-n 1 -d 18446744073709551615", "-n 99999999999", "-p 1 --exit-rule gate:0.5", "-n 1 --init nowhere"]
    {
        bench(dir.path(), wrong).refused(1, wrong);
    }
    run(BENCH, dir.path(), &["-m", "none.gguf"]).refused(1, "no such model");
}

/// Strategies on one text: each once, plain decoding first, with counts that fit; forced guesses come true as asked.
#[test]
fn strategies_are_compared_on_one_text() {
    let dir = tempfile::tempdir().unwrap();
    let run = |more: &str| -> Vec<Json> {
        let args = format!("-m {} -t 1 -r 2 -n 30 {more}", model());
        let args: Vec<&str> = args.split_whitespace().collect();
        serde_json::from_str(&run(BENCH, dir.path(), &[&args[..], &["-o", "json"]].concat()).ok(more).stdout).unwrap()
    };
    let all = "--decode pipeline:every=1,rows=4 --decode speculative --decode pipeline:every=1,rows=4 --plot p.svg";
    let records = run(&format!("{all} --acceptance 0.1:1"));
    assert_eq!(texts(&records, "strategy"), ["plain", "pipeline:every=1,rows=4", "speculative:tokens=4"]);
    for r in &records {
        assert!(number(r, "median_ts") > 0.0 && number(r, "tokens") == 30.0 && r["acceptance_forced"] == true, "{r}");
    }
    assert_eq!(number(&records[0], "times_plain"), 1.0);
    let pipeline = &records[1]["decode"];
    // Six steps with four rows: a token each one and a half passes, once all are there.
    assert!(number(pipeline, "passes_per_token") < 2.2 && number(pipeline, "rows_per_pass") > 3.0, "{pipeline}");
    assert!(pipeline["guesses"].as_array().unwrap().iter().all(|g| g["made"] == g["right"]), "{pipeline}");
    assert!(fs::read_to_string(dir.path().join("p.svg")).unwrap().contains("up to 4 rows"));
    // The model's own text, and answers to questions; slots that are shared change nothing about comparing.
    fs::write(dir.path().join("q.txt"), "What is 2 - 1?\n\nBlue leads to Red. Start at Blue. Where are you?\n")
        .unwrap();
    let answers = run("--decode pipeline --prompts q.txt");
    assert_eq!((number(&answers[0], "prompts"), texts(&answers, "strategy").len()), (2.0, 2));
    assert_eq!(run("--decode pipeline --decode wavefront --kv-steps 2").len(), 3);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
    for (more, code, words) in [
        ("--decode fast", 2, "there is no decoding strategy 'fast'"),
        ("--decode pipeline -n 4,8", 2, "takes one -n"),
        ("--decode pipeline -n 0", 2, "takes one -n"),
        ("--decode pipeline -d 99999999999", 2, "too many tokens"),
        ("--decode pipeline -o csv", 2, "md, json or jsonl"),
        ("--decode pipeline --device gpu", 2, "on the CPU"),
        ("--decode pipeline --rows 2", 2, "cannot be used with"),
        ("--decode wavefront --acceptance 0.5:0.5", 2, "no guesses that could be forced"),
        ("--decode pipeline --acceptance 2:0.5", 2, "expected PART:RATE"),
        ("--decode pipeline --plot p.svg", 2, "there is none"),
        ("--prompts q.txt", 2, "--decode"),
        ("--decode pipeline --prompts none.txt", 1, "cannot read none.txt"),
        ("--decode pipeline --prompts empty.txt", 1, "has no line to answer"),
    ] {
        let args = format!("-m {} {more}", model());
        let line = run(BENCH, dir.path(), &args.split_whitespace().collect::<Vec<_>>()).refused(code, more);
        assert!(line.contains(words), "{more}: {line}");
    }
    assert!(!dir.path().join("p.svg").exists());
}
