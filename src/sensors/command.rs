//! Facts that macOS tells through its own programs.

/// What a program prints; `None` if it is not there, fails, or the system is another one.
pub(super) fn output(program: &str, args: &[&str]) -> Option<String> {
    if cfg!(not(target_os = "macos")) {
        return None;
    }
    let output = std::process::Command::new(program).args(args).stdin(std::process::Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// A `sysctl` value.
pub(super) fn sysctl(name: &str) -> Option<String> {
    output("/usr/sbin/sysctl", &["-n", name])
}
