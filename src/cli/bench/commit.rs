//! Which sources the program was built from.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// What the program is made of, besides the libraries that `Cargo.lock` names.
const SOURCES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "src", "tools", "models"];

/// The commit, if it is known: what the builder said (the environment variable `RDT_COMMIT` at build time), else that of the checkout
/// which the program was built in, provided that no source there is younger than the program. `-dirty` behind it: the checkout has
/// changes that are not committed.
pub(super) fn commit() -> Option<String> {
    if let Some(said) = option_env!("RDT_COMMIT").filter(|s| !s.is_empty()) {
        return Some(said.to_owned());
    }
    let built = std::env::current_exe().and_then(std::fs::metadata).and_then(|m| m.modified()).ok()?;
    of_checkout(Path::new(env!("CARGO_MANIFEST_DIR")), built)
}

/// The commit of a checkout, unless its sources have changed after `built`.
fn of_checkout(folder: &Path, built: SystemTime) -> Option<String> {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(folder).args(args).stdin(Stdio::null()).stderr(Stdio::null());
        let output = command.output().ok().filter(|o| o.status.success())?;
        String::from_utf8(output.stdout).ok().map(|s| s.trim().to_owned())
    };
    // A package that was unpacked inside somebody else's repository is not of that repository.
    if std::fs::canonicalize(git(&["rev-parse", "--show-toplevel"])?).ok()? != std::fs::canonicalize(folder).ok()? {
        return None;
    }
    let listed = git(&[&["ls-files", "-z", "--"][..], &SOURCES].concat())?;
    let mut files = listed.split('\0').filter(|name| !name.is_empty()).map(|name| folder.join(name)).peekable();
    files.peek()?;
    // A folder is as young as the last file that came, or went, or was renamed.
    let old = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).is_ok_and(|time| time <= built);
    if !files.all(|file| old(&file) && file.parent().is_none_or(|dir| dir == folder || old(dir))) {
        return None;
    }
    let head = git(&["rev-parse", "--short=10", "HEAD"])?;
    let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(if dirty { head + "-dirty" } else { head })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_checkout_tells_its_commit_while_its_sources_are_old() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let git = |args: &[&str]| {
            let quiet = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false"];
            Command::new("git").arg("-C").arg(at).args(quiet).args(args).output().is_ok_and(|o| o.status.success())
        };
        if !git(&["init", "-q"]) {
            return; // no git here: nothing to tell
        }
        assert_eq!(of_checkout(at, SystemTime::now()), None, "no sources");
        std::fs::create_dir(at.join("src")).unwrap();
        std::fs::write(at.join("src/a"), "1").unwrap();
        assert!(git(&["add", "src"]) && git(&["commit", "-q", "-m", "a"]));
        let later = SystemTime::now() + Duration::from_secs(60);
        let clean = of_checkout(at, later).unwrap();
        assert!(clean.len() >= 10 && clean.chars().all(|c| c.is_ascii_hexdigit()), "{clean}");
        std::fs::write(at.join("src/a"), "2").unwrap();
        assert_eq!(of_checkout(at, later), Some(clean + "-dirty"));
        assert_eq!(
            of_checkout(at, SystemTime::now() - Duration::from_secs(60)),
            None,
            "its sources are younger than the program"
        );
        std::fs::create_dir(at.join("inside")).unwrap();
        assert_eq!(of_checkout(&at.join("inside"), later), None, "a folder in a repository of others");
    }
}
