//! Results of an earlier run, as `-o jsonl` wrote them, beside those of this one.

use super::record::Record;
use crate::cli::device::CPU;
use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// Bytes of a file that are read; a record has some thousand.
const LONGEST: u64 = 64 << 20;

/// A test of an earlier run.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Old {
    test: String,
    median_ts: f64,
    model_filename: String,
    model_size: u64,
    model_n_params: u64,
    n_threads: usize,
    n_batch: usize,
    n_prompt: usize,
    type_kv: String,
    kv_steps: usize,
    steps: usize,
    exit_rule: String,
    init: String,
    sustained: Option<usize>,
    cpu_info: Option<String>,
    isa: String,
    /// Records from before there was a choice have none.
    #[serde(default = "cpu")]
    device: String,
    answer: String,
}

fn cpu() -> String {
    CPU.into()
}

/// How a test compares with an earlier run of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Compared {
    pub(super) old_median_ts: f64,
    /// New by old: above 1 is faster.
    pub(super) ratio: f64,
    /// Did it generate the same?
    pub(super) same_answer: bool,
    /// What besides the program was different, in words.
    pub(super) differs: Vec<String>,
}

/// Reads the records of an earlier run.
///
/// # Errors
/// The file cannot be read, or is something else.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Old>> {
    let shown = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {shown}"))?;
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > LONGEST {
        bail!("{shown}: longer than {} MiB, which no benchmark writes", LONGEST >> 20);
    }
    let Ok(text) = String::from_utf8(bytes) else { bail!("{shown} is no text; --compare reads what '-o jsonl' wrote") };
    let mut records = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let what = || format!("{shown}:{}: no record of rdt-bench, as '-o jsonl' writes them", i + 1);
        let old: Old = serde_json::from_str(line).with_context(what)?;
        if !(old.median_ts.is_finite() && old.median_ts > 0.0) {
            bail!("{shown}:{}: {} tokens per second", i + 1, old.median_ts);
        }
        records.push(old);
    }
    if records.is_empty() {
        bail!("{shown} holds no records");
    }
    Ok(records)
}

impl Old {
    /// The same test in the same setting, on whatever machine?
    fn is(&self, new: &Record) -> bool {
        (&self.test, &self.type_kv[..], self.steps, &self.exit_rule) == (&new.test, new.type_kv, new.steps, &new.exit_rule)
            // How a prompt is cut says nothing of a generation, nor how long a run without pause is.
            && (self.n_prompt == 0 || self.n_batch == new.n_batch)
            && self.sustained.is_some() == new.sustained.is_some()
    }

    fn same_model(&self, new: &Record) -> bool {
        (&self.model_filename, self.model_size, self.model_n_params)
            == (&new.model_filename, new.model_size, new.model_n_params)
    }

    /// What is not as it was.
    fn differences(&self, new: &Record) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |what: &str, old: &str, new: &str| {
            if old != new {
                found.push(format!("{what} was '{old}', is '{new}'"));
            }
        };
        let cpu = |name: &Option<String>| name.clone().unwrap_or_else(|| "unknown".into());
        check("the processor", &cpu(&self.cpu_info), &cpu(&new.cpu_info));
        check("the instruction set", &self.isa, new.isa);
        check("the device", &self.device, &new.device);
        check("the model", &self.model_filename, &new.model_filename);
        check("the model's size", &self.model_size.to_string(), &new.model_size.to_string());
        // Of no account to a GPU.
        if self.device != new.device || new.device == CPU {
            check("the number of threads", &self.n_threads.to_string(), &new.n_threads.to_string());
        }
        // Of account to a device's last bits, whatever ran together.
        if self.device != CPU || new.device != CPU {
            check("the number of rows per pass", &self.n_batch.to_string(), &new.n_batch.to_string());
        }
        check("the number of KV slots", &self.kv_steps.to_string(), &new.kv_steps.to_string());
        check("the initial state", &self.init, &new.init);
        found
    }
}

/// What an earlier run says of a test: of several, the one with the same model, device and threads, and the latest.
pub(super) fn find(old: &[Old], new: &Record) -> Option<Compared> {
    let alike = |o: &&Old| (o.same_model(new), o.device == new.device, o.n_threads == new.n_threads);
    let old = old.iter().filter(|o| o.is(new)).max_by_key(alike)?;
    Some(Compared {
        old_median_ts: old.median_ts,
        ratio: new.median_ts / old.median_ts,
        same_answer: old.answer == new.answer,
        differs: old.differences(new),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::bench::record::tests::record;

    fn old(edit: impl Fn(&mut Record)) -> Old {
        let mut record = record();
        edit(&mut record);
        serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap()
    }

    #[test]
    fn a_run_is_compared_with_its_own_kind() {
        let new = record();
        let same = find(&[old(|r| r.median_ts = 20.0)], &new).unwrap();
        assert_eq!(same, Compared { old_median_ts: 20.0, ratio: 0.5, same_answer: true, differs: vec![] });
        let others: [fn(&mut Record); 5] = [
            |r| r.test = "tg9".into(),
            |r| r.steps = 7,
            |r| r.type_kv = "f32",
            |r| r.exit_rule = "other".into(),
            |r| r.sustained = Some(60),
        ];
        for edit in others {
            assert_eq!(find(&[old(edit)], &new), None);
        }
        let batch = |r: &mut Record| r.n_batch = 7;
        assert!(find(&[old(batch)], &new).is_some(), "of no account to a generation");
        let with_prompt = |r: &mut Record| (r.n_batch, r.n_prompt) = (7, 3);
        assert_eq!(find(&[old(with_prompt)], &new), None);
    }

    #[test]
    fn the_likest_is_taken_and_differences_are_said() {
        let new = record();
        let threads = |n: usize| {
            move |r: &mut Record| {
                r.n_threads = n;
                r.median_ts = n as f64;
            }
        };
        let all = [old(threads(1)), old(threads(new.n_threads)), old(threads(4))];
        let best = find(&all, &new).unwrap();
        assert_eq!((best.old_median_ts, best.differs.len()), (new.n_threads as f64, 0));
        let latest = find(&[old(threads(1)), old(threads(4))], &new).unwrap();
        assert_eq!(latest.old_median_ts, 4.0);
        assert_eq!(latest.differs, ["the number of threads was '4', is '2'"]);
        let mut everywhere = vec![old(|r| r.device = "a GPU".into()), old(threads(1))];
        assert_eq!(find(&everywhere, &new).unwrap().differs, ["the number of threads was '1', is '2'"]);
        let on_device = |n| {
            move |r: &mut Record| {
                r.device = "a GPU".into();
                r.n_batch = n;
            }
        };
        let mut here = record();
        on_device(8)(&mut here);
        assert_eq!(find(&[old(on_device(7))], &here).unwrap().differs, ["the number of rows per pass was '7', is '8'"]);
        everywhere.truncate(1);
        assert_eq!(find(&everywhere, &new).unwrap().differs, ["the device was 'a GPU', is 'cpu'"]);
        let elsewhere = find(
            &[old(|r| {
                r.cpu_info = Some("another".into());
                r.model_size += 1;
                r.answer = "0".into();
            })],
            &new,
        );
        let elsewhere = elsewhere.unwrap();
        assert!(!elsewhere.same_answer && elsewhere.differs.len() == 2, "{elsewhere:?}");
        assert!(elsewhere.differs[0].contains("'another', is 'unknown'"), "{elsewhere:?}");
    }

    #[test]
    fn foreign_files_are_refused_in_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let good = serde_json::to_string(&record()).unwrap();
        let older = good.replace("\"device\":\"cpu\",", "");
        assert!(older.len() < good.len());
        std::fs::write(&path, format!("\n{good}\n\n{older}")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
        let files: [&[u8]; 9] = [
            b"",
            b"\n \n",
            b"\xff\xfe",
            b"{}",
            b"[1, 2]",
            b"{\"test\": \"pp512\"}",
            &[b'['; 100_000],
            &good.as_bytes()[..good.len() - 1],
            &good.replace("\"median_ts\":10.0", "\"median_ts\":0.0").into_bytes(),
        ];
        for file in files {
            std::fs::write(&path, file).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains('f') && error.len() < 1000, "{error}");
        }
        assert!(read(&dir.path().join("none")).is_err());
        assert!(read(dir.path()).is_err());
    }
}
