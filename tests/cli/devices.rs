//! `--device`, on machines without a GPU and on machines with software that acts as one.

use std::path::Path;

use serde_json::Value as Json;

use crate::programs::{BENCH, CHAT, EVAL, INSPECT, PERPLEXITY, command, run};

fn model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops-q4_0.gguf");
    path.to_str().unwrap().to_owned()
}

/// A little work for each program that can run on a GPU, with these flags beside it.
fn each(more: &[&str], check: impl Fn(&'static str, &[&str])) {
    let model = model();
    let questions = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/huginn-hops/eval.jsonl");
    let questions = questions.to_str().unwrap();
    let all: [(&str, &[&str]); 4] = [
        (CHAT, &["-m", &model, "-p", "Hello!", "-n", "2"]),
        (EVAL, &["-m", &model, questions, "--limit", "2", "--depths", "2", "-n", "8"]),
        (
            PERPLEXITY,
            &["-m", &model, "-p", "The way leads from Red to Blue, and on to Green.", "-c", "6", "--steps", "2"],
        ),
        (BENCH, &["-m", &model, "-p", "4", "-n", "2", "-r", "1", "--bandwidth-size", "0", "--no-warmup"]),
    ];
    for (program, args) in all {
        check(program, &[args, more].concat());
    }
}

/// The GPUs of this machine, as rdt-inspect tells; `None` in a program without support for any.
fn gpus() -> Option<Vec<Json>> {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(INSPECT, dir.path(), &["--devices", "--json"]).ok("devices");
    let devices: Json = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(devices["cpu"]["isa"].is_string() && devices["cpu"]["threads"].as_u64().unwrap() > 0, "{devices}");
    assert_eq!(devices["gpus"].is_array(), cfg!(feature = "gpu"), "{devices}");
    devices["gpus"].as_array().cloned()
}

fn has_gpu() -> bool {
    gpus().is_some_and(|gpus| gpus.iter().any(|gpu| gpu["kind"] != "software"))
}

#[test]
fn devices_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let shown = run(INSPECT, dir.path(), &["--devices"]).ok("devices").stdout;
    assert!(shown.lines().last().unwrap().starts_with("CPU: "), "{shown}");
    for gpu in gpus().iter().flatten() {
        assert!(shown.contains(&format!("GPU: {}\n", gpu["name"].as_str().unwrap())), "{shown}");
        for key in ["backend", "kind", "driver"] {
            assert!(shown.contains(gpu[key].as_str().unwrap()), "{key}: {shown}");
        }
        assert!(gpu["max_binding_bytes"].as_u64().unwrap() > 0 && gpu["abilities"]["f16"].is_boolean(), "{gpu}");
    }
    let said = if cfg!(feature = "gpu") { "drivers: " } else { "built without GPU support" };
    assert_eq!(shown.contains(said), !has_gpu(), "{shown}");
    for args in [&["--devices", "m.gguf"][..], &["--devices", "--tensors"], &["--devices", "--steps", "2"], &["--json"]]
    {
        run(INSPECT, dir.path(), args).refused(2, &args.join(" "));
    }
}

#[test]
fn a_gpu_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    each(&["--device", "gpu:no such GPU"], |program, args| {
        let line = run(program, dir.path(), args).refused(1, "no such GPU");
        let reasons = ["no GPU here is called 'no such GPU'", "there is no GPU here", "without GPU support"];
        assert!(reasons.iter().any(|reason| line.contains(reason)), "{line}");
    });
    if !has_gpu() {
        each(&["--device", "gpu"], |program, args| {
            let line = run(program, dir.path(), args).refused(1, "no GPU");
            let what = if cfg!(feature = "gpu") { "there is no GPU here" } else { "without GPU support" };
            assert!(line.contains(what), "{line}");
        });
    }
}

#[test]
fn devices_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    for device in ["nonsense", "", "gpu:", "GPU", "cpu:1"] {
        each(&["--device", device], |program, args| {
            let line = run(program, dir.path(), args).refused(2, device);
            assert!(line.contains("--device"), "{line}");
        });
    }
    let model = model();
    for device in ["auto,cpu", "cpu,auto", "cpu,"] {
        run(BENCH, dir.path(), &["-m", &model, "--device", device]).refused(2, device);
    }
    let both = ["-m", &model, "--base-model", &model, "-p", "x", "--device", "gpu"];
    let line = run(PERPLEXITY, dir.path(), &both).refused(2, "latent states on a GPU");
    assert!(line.contains("latent states"), "{line}");
}

/// Where there is no GPU, nobody is told of any, and nothing is remembered.
#[test]
fn auto_is_the_cpu_where_there_is_no_gpu() {
    if has_gpu() {
        return;
    }
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let said = |program, args: &[&str]| {
        let mut command = command(program, dir.path());
        let output = command.args(args).env("RDT_CACHE_DIR", cache.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    each(&[], |program, args| {
        let (auto, cpu) = (said(program, args), said(program, &[args, &["--device", "cpu"]].concat()));
        assert_eq!(auto.lines().count(), cpu.lines().count(), "{auto}\n{cpu}");
        assert!(!auto.to_lowercase().contains("gpu"), "{auto}");
    });
    assert_eq!(crate::programs::names_in(cache.path()), [""; 0]);
}

/// Runs each program on a device, and checks that records and words name it.
fn is_named(device: &str, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    each(&["--device", device, "--json"], |program, args| {
        let outcome = run(program, dir.path(), args).ok(device);
        let json: Json = serde_json::from_str(&outcome.stdout).unwrap();
        match program {
            CHAT => assert_eq!((&json["device"], json["threads"].is_u64()), (&name.into(), true), "{json}"),
            EVAL => {
                assert_eq!((&json[0]["device"], &json[0]["asked"]), (&name.into(), &2.into()), "{json}");
                let words = if name == "cpu" { " thread".to_owned() } else { format!("rdt-eval: on {name}\n") };
                assert_eq!(outcome.stderr.matches(&words).count(), 1, "{}", outcome.stderr);
            }
            PERPLEXITY => assert_eq!(json["runs"][0]["device"], name, "{json}"),
            BENCH => {
                assert_eq!(json[0]["device"], name, "{json}");
                assert_eq!(json[0]["step_ns"].is_f64(), name == "cpu", "{json}");
            }
            _ => {}
        }
    });
}

/// What runs on a GPU says so: on software, where there is some, else on the GPU itself.
#[test]
fn records_name_a_gpu() {
    let gpus = gpus().unwrap_or_default();
    let Some(gpu) = gpus.iter().find(|gpu| gpu["kind"] == "software").or(gpus.first()) else {
        assert!(std::env::var_os("REQUIRE_GPU").is_none_or(|wanted| wanted != "1"), "there is no GPU");
        return;
    };
    let name = gpu["name"].as_str().unwrap();
    is_named(&format!("gpu:{name}"), name);
    let dir = tempfile::tempdir().unwrap();
    // The same one under two names is measured once.
    let list = format!("cpu,gpu:{name}, gpu:{}", name.to_uppercase());
    let args = ["-m", &model(), "-p", "4", "-n", "2", "-r", "1", "--bandwidth-size", "0", "--json", "--device", &list];
    let json: Json = serde_json::from_str(&run(BENCH, dir.path(), &args).ok(&list).stdout).unwrap();
    let devices: Vec<_> = json.as_array().unwrap().iter().map(|record| record["device"].as_str().unwrap()).collect();
    assert_eq!(devices, ["cpu", name, "cpu", name], "{json}");
}

/// Records say what they ran on.
#[test]
fn records_name_the_device() {
    let dir = tempfile::tempdir().unwrap();
    is_named("cpu", "cpu");
    let table = run(BENCH, dir.path(), &["-m", &model(), "-p", "0", "-n", "2", "-r", "1", "--bandwidth-size", "0"]);
    assert!(!table.ok("md").stdout.contains("| device"), "a column that would say one thing only");
}
