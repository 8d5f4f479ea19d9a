//! Types by name, importance matrices, and types by measurement: rdt-imatrix, and rdt-quantize with what it says.

use std::fs;
use std::path::Path;

use rdt::gguf::{Header, TensorType};
use rdt::quant::Imatrix;
use serde_json::Value as Json;

use crate::models::chat_checkpoint;
use crate::programs::{IMATRIX, Outcome, PERPLEXITY, QUANTIZE, names_in, run};

/// A folder with the small checkpoint in f32, and two texts that share no dialogue.
fn place() -> tempfile::TempDir {
    place_of(&chat_checkpoint())
}

fn place_of(model: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    run(QUANTIZE, dir.path(), &[model.to_str().unwrap(), "m.gguf", "--type", "f32"]).ok("f32");
    let text = fs::read_to_string(model.join("heldout.txt")).unwrap();
    let (a, b) = text.split_at(text.match_indices("<|begin_text|>").nth(60).unwrap().0);
    fs::write(dir.path().join("a.txt"), a).unwrap();
    fs::write(dir.path().join("b.txt"), &b[..20_000]).unwrap();
    dir
}

fn imatrix(dir: &Path, more: &[&str]) -> Outcome {
    let args = ["-m", "m.gguf", "-f", "a.txt", "--special", "-c", "64", "--chunks", "4", "--exit-rule", "fixed"];
    run(IMATRIX, dir, &[&args[..], more].concat())
}

fn types(file: &Path) -> Vec<(String, TensorType)> {
    let header = Header::parse(&fs::read(file).unwrap()).unwrap();
    header.tensors.iter().map(|t| (t.name.clone(), t.ty)).collect()
}

#[test]
fn importance_is_measured_added_and_used() {
    let dir = place();
    let said = imatrix(dir.path(), &["--json"]).ok("imatrix");
    assert!(said.stderr.contains("wrote m.imatrix.gguf, 31 matrices"), "{}", said.stderr);
    let report: Json = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!(
        (&report["windows"], &report["window_tokens"], &report["datasets"][0]),
        (&4.into(), &64.into(), &"a.txt".into())
    );
    let core = report["tensors"].as_array().unwrap().iter().find(|t| t["tensor"] == "blk.1.ffn_up.weight").unwrap();
    assert_eq!(core["rows"], (4 * 63 * 6) as f64, "63 tokens of each window, 6 steps");

    imatrix(dir.path(), &["-o", "again.gguf"]).ok("again");
    assert_eq!(fs::read(dir.path().join("again.gguf")).unwrap(), fs::read(dir.path().join("m.imatrix.gguf")).unwrap());
    run(IMATRIX, dir.path(), &["--in-file", "again.gguf", "--in-file", "m.imatrix.gguf", "-o", "both.gguf"]).ok("both");
    let read = |name: &str| Imatrix::parse(&fs::read(dir.path().join(name)).unwrap()).unwrap();
    let (one, both) = (read("again.gguf"), read("both.gguf"));
    for (name, entry) in one.entries() {
        let twice = both.get(name).unwrap();
        assert_eq!((twice.rows, twice.sums[0]), (2.0 * entry.rows, 2.0 * entry.sums[0]), "{name}");
    }
    let shown = run(IMATRIX, dir.path(), &["--show-statistics", "both.gguf"]).ok("statistics").stdout;
    assert!(shown.lines().count() == 32 && shown.contains("loop.adapter_state.weight"), "{shown}");

    run(QUANTIZE, dir.path(), &["m.gguf", "plain.gguf", "--type", "q4_0"]).ok("without");
    run(QUANTIZE, dir.path(), &["m.gguf", "w.gguf", "--type", "q4_0", "--imatrix", "m.imatrix.gguf"]).ok("with");
    let [plain, weighted] = ["plain.gguf", "w.gguf"].map(|name| fs::read(dir.path().join(name)).unwrap());
    let header = Header::parse(&weighted).unwrap();
    assert_eq!(header.metadata.str("quantize.imatrix.dataset").unwrap(), Some("a.txt"));
    let differs = |name: &str| {
        let of = |file: &[u8]| Header::parse(file).unwrap().tensor(name).unwrap().data(file).unwrap().to_vec();
        of(&plain) != of(&weighted)
    };
    assert!(differs("blk.1.ffn_up.weight") && !differs("token_embd.weight"), "q8_0 has no use for it");
}

#[test]
fn what_is_no_importance_is_refused() {
    let dir = place();
    fs::write(dir.path().join("old.dat"), [3, 0, 0, 0]).unwrap();
    let quantize = |file: &str| run(QUANTIZE, dir.path(), &["m.gguf", "out.gguf", "--imatrix", file]);
    assert!(quantize("old.dat").refused(1, "legacy").contains("--output-format gguf"));
    assert!(quantize("m.gguf").refused(1, "a model").contains("no importance matrix"));
    assert!(quantize("none.gguf").refused(1, "missing").contains("none.gguf"));
    let mut other = Imatrix::default();
    other.insert("other.weight", rdt::quant::imatrix::Entry { sums: vec![1.0], rows: 1.0 });
    other.save(&dir.path().join("other.gguf")).unwrap();
    assert!(quantize("other.gguf").refused(1, "another model").contains("knows none"));
    other.insert("blk.0.attn_q.weight", rdt::quant::imatrix::Entry { sums: vec![1.0; 3], rows: 1.0 });
    other.save(&dir.path().join("other.gguf")).unwrap();
    let line = quantize("other.gguf").refused(1, "another shape");
    assert!(line.contains("blk.0.attn_q.weight") && line.contains("128"), "{line}");
    assert!(imatrix(dir.path(), &["-o", "m.gguf"]).refused(1, "over the model").contains("is the model"));
    run(IMATRIX, dir.path(), &["--in-file", "other.gguf"]).refused(1, "no output");
    run(IMATRIX, dir.path(), &["-f", "a.txt"]).refused(2, "no model");
    assert!(!names_in(dir.path()).contains(&"out.gguf".to_owned()));
}

#[test]
fn types_are_given_by_name() {
    let dir = place();
    let args =
        ["m.gguf", "out.gguf", "--type", "q4_0", "--tensor-type", "attn_v=q8_0", "--tensor-type", r"blk\.3\..*=q5_k"];
    let outcome = run(QUANTIZE, dir.path(), &[&args[..], &["--tensor-type", "nothing=f16"]].concat()).ok("by name");
    assert!(outcome.stderr.contains("nothing=f16: no tensor has such a name"), "{}", outcome.stderr);
    for (name, ty) in types(&dir.path().join("out.gguf")) {
        match name.as_str() {
            "blk.3.ffn_down.weight" => assert_eq!(ty, TensorType::Q5_K, "rows of 512"),
            "blk.3.attn_v.weight" => {
                assert_eq!(ty, TensorType::Q5_0, "the last that matches, as far as rows of 128 allow")
            }
            "blk.2.attn_v.weight" => assert_eq!(ty, TensorType::Q8_0),
            "blk.2.ffn_up.weight" => assert_eq!(ty, TensorType::Q4_0),
            "blk.3.attn_norm.weight" => assert_eq!(ty, TensorType::F32, "no matrix"),
            _ => {}
        }
    }
    assert!(outcome.stdout.contains("more are q5_0: rows of 128 do not divide into q5_K"), "{}", outcome.stdout);
    for wrong in ["attn_v", "=q8_0", "(=q8_0", "attn_v=q2_k"] {
        run(QUANTIZE, dir.path(), &["m.gguf", "out.gguf", "--tensor-type", wrong]).refused(2, wrong);
    }
}

/// A recipe, the size of its file, and KL of that from f32.
type Cost = (&'static str, u64, f64);

/// What each recipe costs on a few windows.
fn costs(dir: &Path) -> Vec<Cost> {
    let mut costs = Vec::new();
    for recipe in ["q4_0", "iq4_nl", "q4_k_s", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "pure:q4_1", "pure:iq4_xs"] {
        let said = run(QUANTIZE, dir, &["m.gguf", "--type", recipe, "--json"]).ok(recipe).stdout;
        let report: Json = serde_json::from_str(&said).unwrap();
        assert_eq!(report["type"], recipe);
        let name = format!("m-{}.gguf", recipe.replace(':', "-"));
        assert_eq!(report["output"], name.as_str());
        let args =
            ["-m", &name, "-f", "b.txt", "--special", "-c", "64", "--chunks", "2", "--base-model", "m.gguf", "--json"];
        let report: Json = serde_json::from_str(&run(PERPLEXITY, dir, &args).ok(recipe).stdout).unwrap();
        let kl = report["runs"][0]["comparison"]["kl"]["value"].as_f64().unwrap();
        assert!(kl > 0.0 && kl < 0.05, "{recipe}: {kl}");
        costs.push((recipe, fs::metadata(dir.join(&name)).unwrap().len(), kl));
    }
    costs
}

#[test]
fn every_recipe_says_what_it_chose_and_runs() {
    let sizes = costs(place().path());
    let of = |name: &str| *sizes.iter().find(|(recipe, ..)| *recipe == name).unwrap();
    let order = ["q4_k_s", "q5_k_m", "q6_k", "q8_0"].map(of);
    assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1 && pair[0].2 > pair[1].2), "{order:?}");
    assert_eq!(of("iq4_nl").1, of("q4_0").1);
    let (_, default, _) = of("q4_k_m");
    assert!(default < of("q4_0").1 * 105 / 100, "what stands in for q4_K is no larger: {sizes:?}");
}

/// Where all rows divide into blocks of 256, the mixtures are what their names say.
#[test]
fn k_formats_on_a_model_that_fits_them() {
    let dir = place_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/huginn-nano"));
    let sizes = costs(dir.path());
    let of = |name: &str| *sizes.iter().find(|(recipe, ..)| *recipe == name).unwrap();
    let order = ["q4_k_m", "q5_k_m", "q6_k"].map(of);
    assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1 && pair[0].2 > pair[1].2), "{order:?}");
    assert!(of("q4_k_s").1 < of("q4_k_m").1 && of("q6_k").1 < of("q8_0").1, "{sizes:?}");
    for (name, ty) in types(&dir.path().join("m-q4_k_m.gguf")) {
        match name.as_str() {
            "token_embd.weight" | "blk.2.attn_v.weight" | "blk.2.ffn_down.weight" => {
                assert_eq!(ty, TensorType::Q6_K, "{name}")
            }
            "blk.1.ffn_up.weight" | "blk.0.attn_v.weight" => assert_eq!(ty, TensorType::Q4_K, "{name}"),
            "loop.adapter_state.weight" => assert_eq!(ty, TensorType::Q8_0),
            _ => assert!(!matches!(ty, TensorType::IQ4_NL | TensorType::Q5_1), "{name} is {ty}"),
        }
    }
}

/// Types by measurement keep to their limits and, at the size of a fixed recipe, lose less than it on text that they have not seen.
#[test]
fn measured_types_beat_fixed_ones_of_the_same_size() {
    let dir = place();
    let kl = |name: &str| {
        let args =
            ["-m", name, "-f", "b.txt", "--special", "-c", "64", "--base-model", "m.gguf", "--steps", "6", "--json"];
        let report: Json = serde_json::from_str(&run(PERPLEXITY, dir.path(), &args).ok(name).stdout).unwrap();
        report["runs"][0]["comparison"]["kl"]["value"].as_f64().unwrap()
    };
    let auto = ["m.gguf", "auto.gguf", "--auto", "-f", "a.txt", "--special", "-c", "64", "--chunks", "6", "--json"];
    imatrix(dir.path(), &[]).ok("imatrix");
    for recipe in ["q4_0", "q4_k_m", "q5_k_m"] {
        run(QUANTIZE, dir.path(), &["m.gguf", "fixed.gguf", "--type", recipe, "--imatrix", "m.imatrix.gguf"])
            .ok(recipe);
        let size = fs::metadata(dir.path().join("fixed.gguf")).unwrap().len();
        let said =
            run(QUANTIZE, dir.path(), &[&auto[..], &["--target-size", &size.to_string()]].concat()).ok(recipe).stdout;
        assert!(fs::metadata(dir.path().join("auto.gguf")).unwrap().len() <= size, "{recipe}");
        let (fixed, measured) = (kl("fixed.gguf"), kl("auto.gguf"));
        assert!(measured < 0.95 * fixed, "{recipe}: {measured} against {fixed}");
        let report: Json = serde_json::from_str(&said).unwrap();
        let expected = report["auto"]["expected_kl"].as_f64().unwrap();
        assert!(
            expected < 2.0 * measured && measured < 2.0 * expected,
            "{recipe}: expected {expected}, found {measured}"
        );
        assert_eq!(report["auto"]["tensors"].as_array().unwrap().len(), 31);
    }
    let said = run(QUANTIZE, dir.path(), &[&auto[..], &["--target-bpw", "5"]].concat()).ok("bits per weight").stdout;
    let report: Json = serde_json::from_str(&said).unwrap();
    assert!(report["bits_per_weight"].as_f64().unwrap() <= 5.0 && report["auto"]["moved_bpw"].as_f64().unwrap() <= 5.0);
    assert_eq!(types(&dir.path().join("auto.gguf")).len(), 56);
    let said = run(QUANTIZE, dir.path(), &auto).ok("no target").stdout;
    let report: Json = serde_json::from_str(&said).unwrap();
    let usual = report["auto"]["recipes"].as_array().unwrap().iter().find(|r| r["recipe"] == "q4_k_m").unwrap();
    let [found, usual] = [&report["bits_per_weight"], &usual["bits_per_weight"]].map(|bits| bits.as_f64().unwrap());
    assert!(found <= usual && found > 0.98 * usual, "{found} where q4_k_m has {usual}");
}

#[test]
fn measurement_asks_for_what_it_needs() {
    let dir = place();
    let quantize = |more: &[&str]| run(QUANTIZE, dir.path(), &[&["m.gguf", "out.gguf", "--auto"], more].concat());
    quantize(&[]).refused(2, "no text");
    quantize(&["-f", "a.txt", "--type", "q4_0"]).refused(2, "a type");
    run(QUANTIZE, dir.path(), &["m.gguf", "out.gguf", "-f", "a.txt"]).refused(2, "a text for nothing");
    quantize(&["-f", "a.txt", "--target-bpw", "0.5"]).refused(2, "too few bits");
    quantize(&["-f", "a.txt", "--target-bpw", "5", "--target-size", "1M"]).refused(2, "two targets");
    quantize(&["-f", "none.txt"]).refused(1, "no such text");
    quantize(&["-f", "a.txt", "-c", "100000"]).refused(1, "a text that is too short");
    let args = ["-f", "a.txt", "--special", "-c", "64", "--chunks", "1", "--target-size", "100k"];
    assert!(quantize(&args).refused(1, "too small").contains("the smallest file has 4."), "says what can be had");
    assert!(!names_in(dir.path()).iter().any(|name| name.starts_with("out")));
}
