//! How a program begins and ends: flags in, one line per error out.

use super::parallel::arguments;
use crate::arch;
use crate::text::escape_controls;
use clap::Parser;
use clap::error::ErrorKind;
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// Characters of an error that are shown. Names in a file may be 64 KiB long.
const SHOWN: usize = 1000;

/// A whole program: reads its flags, does its work, and gives what `main` returns (see [`parse`] and [`exit`]).
pub fn run<T: Parser>(program: &str, work: impl FnOnce(&T) -> anyhow::Result<()>) -> ExitCode {
    match parse(program) {
        Ok(flags) => exit(program, work(&flags)),
        Err(code) => code,
    }
}

/// Reads a program's flags; answers `--help` and `--version`.
///
/// # Errors
/// What `main` returns at once: success after an answer, exit code 2 after a mistake, which was said in one line.
pub fn parse<T: Parser>(program: &str) -> Result<T, ExitCode> {
    T::try_parse_from(arguments::<T>(std::env::args_os())).map_err(|e| match e.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader who has gone away (`| head`) is no error.
            let _ = e.print();
            ExitCode::SUCCESS
        }
        _ => {
            say(program, &usage_error(&e.to_string()));
            ExitCode::from(2)
        }
    })
}

/// One line on stderr. A stderr that is gone is no reason to panic.
fn say(program: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{program}: {}", one_line(text));
}

/// What clap says in paragraphs, in a line: what is wrong and its tips, without the usage text.
fn usage_error(text: &str) -> String {
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let paragraphs = text.split("\n\n").take_while(|p| !p.starts_with("Usage:") && !p.starts_with("For more"));
    let words = |p: &str| p.split_whitespace().collect::<Vec<_>>().join(" ");
    let said: Vec<_> = paragraphs.map(words).collect();
    format!("{} (see --help)", said.join("; "))
}

/// Exit code of a program that the user interrupted, as shells give it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// The user stopped the program: what was done until then, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(
    /// The words.
    pub String,
);

/// Ends a program: an error becomes one line on stderr and exit code 1 (2 if flags do not go together, 130 if the user stopped it); a reader who has gone
/// away (`| head`) is no error.
pub fn exit(program: &str, result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let io_kinds = error.chain().filter_map(|c| c.downcast_ref::<io::Error>()).map(io::Error::kind);
    if io_kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        say(program, &usage_error(&usage.to_string()));
        return ExitCode::from(2);
    }
    say(program, &whole_message(error.as_ref()));
    match matches!(error.downcast_ref(), Some(arch::Error::Stopped)) || error.is::<Interrupted>() {
        true => ExitCode::from(INTERRUPTED),
        false => ExitCode::FAILURE,
    }
}

/// An error and its causes, each said once: most of our errors already say their cause.
fn whole_message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if said.starts_with(&text) {
            text = said; // a path that was added for errors that lack it
        } else if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

/// `text` as one line that is safe to print on a terminal: control characters escaped, not longer than some lines.
pub fn one_line(text: &str) -> String {
    let (text, more) = match text.char_indices().nth(SHOWN) {
        None => (text, ""),
        Some((end, _)) => (&text[..end], "..."),
    };
    escape_controls(text).replace('\n', "\\n").replace('\t', "\\t") + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_errors_become_one_line() {
        #[derive(Parser, Debug)]
        struct Flags {
            #[arg(long, value_parser = super::super::positive)]
            steps: usize,
            #[arg(long)]
            model: String,
        }
        let said = |args: &[&str]| {
            let args = std::iter::once(&"program").chain(args);
            usage_error(&Flags::try_parse_from(args).unwrap_err().to_string())
        };
        assert_eq!(
            said(&["--steps", "0", "--model", "m"]),
            "invalid value '0' for '--steps <STEPS>': must be at least 1 (see --help)"
        );
        assert_eq!(
            said(&["--steps", "1"]),
            "the following required arguments were not provided: --model <MODEL> (see --help)"
        );
        let tip = said(&["--step", "1"]);
        assert!(tip.starts_with("unexpected argument '--step' found; tip: "), "{tip}");
    }

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x: {source}")]
        struct Says {
            source: io::Error,
        }
        #[derive(Debug, thiserror::Error)]
        #[error("while converting")]
        struct Silent(#[source] Says);
        let error = Silent(Says { source: io::Error::other("no luck") });
        assert_eq!(whole_message(&error), "while converting: cannot open x: no luck");
        let named = anyhow::anyhow!("m.gguf: no magic").context("m.gguf");
        assert_eq!(whole_message(named.as_ref()), "m.gguf: no magic");
    }

    #[test]
    fn hostile_text_stays_on_its_line() {
        assert_eq!(one_line("a\nb\tc\x1b[31m\u{202e}"), "a\\nb\\tc\\x1b[31m<U+202E>");
        let long = one_line(&"é".repeat(70_000));
        assert_eq!(long.chars().count(), SHOWN + 3);
    }
}
