//! Runs a program and holds what it said.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) const BENCH: &str = env!("CARGO_BIN_EXE_rdt-bench");
pub(crate) const CHAT: &str = env!("CARGO_BIN_EXE_rdt-chat");
pub(crate) const EVAL: &str = env!("CARGO_BIN_EXE_rdt-eval");
pub(crate) const IMATRIX: &str = env!("CARGO_BIN_EXE_rdt-imatrix");
pub(crate) const INSPECT: &str = env!("CARGO_BIN_EXE_rdt-inspect");
pub(crate) const PERPLEXITY: &str = env!("CARGO_BIN_EXE_rdt-perplexity");
pub(crate) const QUANTIZE: &str = env!("CARGO_BIN_EXE_rdt-quantize");
pub(crate) const TRACE: &str = env!("CARGO_BIN_EXE_rdt-trace");

/// What a program did.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) program: &'static str,
    /// `None` if a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Where programs keep what they remember, so that tests leave the user's folder alone.
const CACHE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/cache");

pub(crate) fn command(program: &'static str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    // Where there is none, layers of Vulkan say so on stderr.
    command.current_dir(folder).stdin(Stdio::null()).env("XDG_RUNTIME_DIR", folder).env("RDT_CACHE_DIR", CACHE);
    command
}

/// Runs a program in `folder` to its end.
pub(crate) fn run<S: AsRef<OsStr>>(program: &'static str, folder: &Path, args: &[S]) -> Outcome {
    let output = command(program, folder).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).expect("programs print UTF-8");
    let program = Path::new(program).file_name().and_then(OsStr::to_str).unwrap();
    Outcome { program, code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

impl Outcome {
    /// Success, and nothing alarming on stderr.
    pub(crate) fn ok(self, what: &str) -> Self {
        assert_eq!(self.code, Some(0), "{what}: {self:?}");
        self
    }

    /// One line on stderr that begins with the program's name, nothing on stdout, and this exit code. Gives the line.
    pub(crate) fn refused(self, code: i32, what: &str) -> String {
        assert_eq!(self.code, Some(code), "{what}: {self:?}");
        assert_eq!(self.stdout, "", "{what}");
        let line = self.stderr.strip_suffix('\n').unwrap_or_else(|| panic!("{what}: {self:?}"));
        let name = self.program.trim_end_matches(".exe");
        assert!(line.starts_with(&format!("{name}: ")), "{what}: {line}");
        assert!(!line.chars().any(char::is_control), "{what}: {line:?}");
        assert!(line.len() < 5000 && !line.contains("panicked"), "{what}: {line}");
        line.to_owned()
    }
}

/// The names in a folder, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
