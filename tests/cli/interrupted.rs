//! A conversion that is killed or stopped, or cannot go on, leaves nothing under the final name.

#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::models::checkpoint;
use crate::programs::{QUANTIZE, command, names_in, run};

/// Rows of the embedding and of the head: enough that converting them takes a while.
const ROWS: u64 = 1 << 20;
/// Row length.
const WIDTH: u64 = 64;

/// The tensors with a row per token.
const TABLES: [&str; 2] = ["transformer.wte.weight", "lm_head.weight"];

/// A checkpoint with a huge vocabulary, whose tables are all zeros. They take no room on the disk: a file may have holes.
fn large_checkpoint(folder: &Path) {
    let from = checkpoint();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config["padded_vocab_size"] = json!(ROWS);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();

    let weights = fs::read(from.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let (header, data) = weights[8..].split_at(length);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let tensors = header.as_object_mut().unwrap();
    let place = |tensor: &Value| [0, 1].map(|i| tensor["data_offsets"][i].as_u64().unwrap());
    // safetensors allows no gaps: the small tables are cut out of the data, and what follows moves up.
    let mut small = TABLES.map(|name| place(&tensors[name]));
    small.sort_unstable();
    let mut data = data.to_vec();
    for &[start, end] in small.iter().rev() {
        data.drain(start as usize..end as usize);
    }
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let [start, end] = place(tensor);
        let cut: u64 = small.iter().filter(|table| table[0] < start).map(|table| table[1] - table[0]).sum();
        tensor["data_offsets"] = json!([start - cut, end - cut]);
    }
    let mut end = data.len() as u64;
    for name in TABLES {
        let start = end;
        end += 2 * ROWS * WIDTH;
        tensors[name] = json!({"dtype": "BF16", "shape": [ROWS, WIDTH], "data_offsets": [start, end]});
    }
    let mut header = header.to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.write_all(&data).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

/// Starts a conversion, and waits for its temporary file.
fn start(from: &Path, to: &Path) -> Child {
    let mut command = command(QUANTIZE, to);
    command.arg(from).args(["model.gguf", "--type", "f32", "-t", "1"]);
    let before = names_in(to).len();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while names_in(to).len() == before && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(1));
    }
    child
}

/// How it ended, and what it said.
fn end(child: Child) -> (ExitStatus, String) {
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "no summary of what was not finished");
    (output.status, String::from_utf8(output.stderr).unwrap())
}

/// Starts a conversion, and sends it a signal as soon as its temporary file is there.
fn convert_and_signal(signal: &str, from: &Path, to: &Path) -> (ExitStatus, String) {
    let child = start(from, to);
    assert!(Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap().success());
    end(child)
}

#[test]
fn a_killed_conversion_leaves_no_file_under_the_final_name() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large_checkpoint(from.path());
    let (status, _) = convert_and_signal("KILL", from.path(), to.path());
    assert_eq!(status.signal(), Some(9), "it was killed, and had not ended before: {status}");
    let left = names_in(to.path());
    assert!(left.iter().all(|name| name.starts_with(".model.gguf.") && name.ends_with(".tmp")), "{left:?}");

    // What is left is in nobody's way.
    let args = [from.path().as_os_str(), "model.gguf".as_ref(), "--type".as_ref(), "q4_0".as_ref()];
    run(QUANTIZE, to.path(), &args).ok("once more");
    let names = names_in(to.path());
    assert_eq!(names.iter().filter(|name| !left.contains(name)).collect::<Vec<_>>(), ["model.gguf"]);
    let file = fs::read(to.path().join("model.gguf")).unwrap();
    assert_eq!(rdt::gguf::Header::parse(&file).unwrap().tensor("output.weight").unwrap().dims[1] as u64, ROWS);

    // An older file stays whole too.
    let (status, _) = convert_and_signal("KILL", from.path(), to.path());
    assert_eq!(status.signal(), Some(9), "{status}");
    assert!(fs::read(to.path().join("model.gguf")).unwrap() == file);
}

/// What a conversion replaces, if it comes to its end.
fn older_file(to: &Path) {
    fs::write(to.join("model.gguf"), b"GGUF, an older one").unwrap();
}

/// The older file is as it was, and there is no other.
fn assert_untouched(to: &Path) {
    assert_eq!(names_in(to), ["model.gguf"]);
    assert_eq!(fs::read(to.join("model.gguf")).unwrap(), b"GGUF, an older one");
}

#[test]
fn a_stopped_conversion_leaves_nothing() {
    let from = tempfile::tempdir().unwrap();
    large_checkpoint(from.path());
    for signal in ["INT", "TERM"] {
        let to = tempfile::tempdir().unwrap();
        older_file(to.path());
        let (status, stderr) = convert_and_signal(signal, from.path(), to.path());
        assert_eq!(status.code(), Some(130), "{signal}: {status}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{signal}: {stderr}");
        assert!(stderr.contains("stopped"), "{signal}: {stderr}");
        assert_untouched(to.path());
    }
}

#[test]
fn a_full_disk_leaves_nothing() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large_checkpoint(from.path());
    older_file(to.path());
    // A limit on the size of files stands for the disk; ignoring the signal turns it into an error of write().
    let script = r#"trap '' XFSZ; ulimit -f 20000; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.current_dir(to.path()).args(["-c", script, QUANTIZE]).arg(from.path()).args(["model.gguf", "-t", "2"]);
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("cannot write") && stderr.contains("model.gguf: File too large"), "{stderr}");
    assert_untouched(to.path());
}

#[test]
fn input_that_is_cut_short_meanwhile_is_an_error() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large_checkpoint(from.path());
    older_file(to.path());
    let child = start(from.path(), to.path());
    let weights = from.path().join("model.safetensors");
    File::options().write(true).open(&weights).unwrap().set_len(8 << 20).unwrap();
    let (status, stderr) = end(child);
    assert_eq!(status.code(), Some(1), "{status}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in ["tensor '", "model.safetensors changed while it was read"] {
        assert!(stderr.contains(word), "{stderr}");
    }
    assert_untouched(to.path());
}

/// The largest part of a process's memory that was resident so far, in KiB.
#[cfg(target_os = "linux")]
fn peak_memory(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(target_os = "linux")]
#[test]
fn memory_does_not_grow_with_the_model() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    large_checkpoint(from.path());
    assert!(fs::metadata(from.path().join("model.safetensors")).unwrap().len() > 256 << 20);
    let mut child = start(from.path(), to.path());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(peak_memory(child.id()).unwrap_or(0));
        thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    assert!((1..64 << 10).contains(&peak), "{peak} KiB");
}
