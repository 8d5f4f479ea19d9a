//! Where the user's lines come from: a line editor with history, or a pipe.

use super::command::COMMANDS;
use crate::text::Tokenizer;
use anyhow::{Context, bail};
use rustyline::completion::{Completer, Pair};
use rustyline::config::Behavior;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};

/// What comes from the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line, or several joined by backslashes.
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// There will be no more.
    End,
}

/// Gives one line after the other.
pub enum Lines {
    /// From a terminal.
    Editor {
        /// The line editor.
        editor: Box<Editor<Words, DefaultHistory>>,
        /// Where it keeps what was typed, if anywhere.
        history: Option<PathBuf>,
    },
    /// From anything else.
    Plain(io::StdinLock<'static>),
}

impl Lines {
    /// From stdin, with an editor if that is a terminal. Gives a note for the user, if history cannot be kept.
    ///
    /// # Errors
    /// The terminal cannot be used.
    pub fn open() -> anyhow::Result<(Self, Option<String>)> {
        if !io::stdin().is_terminal() {
            return Ok((Self::Plain(io::stdin().lock()), None));
        }
        // Prompt and echo must not get into a file that stdout goes to.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder()
            .behavior(behavior)
            .auto_add_history(true)
            .history_ignore_space(true)
            .history_ignore_dups(true)?
            .max_history_size(1000)?
            .build();
        let mut editor = Editor::with_config(config).context("cannot use the terminal")?;
        editor.set_helper(Some(Words));
        let (history, note) = match history_file() {
            None => (None, None),
            Some(path) => match keep_history(&mut editor, &path) {
                Ok(()) => (Some(path), None),
                Err(e) => (None, Some(format!("no history is kept: {}: {e}", path.display()))),
            },
        };
        Ok((Self::Editor { editor: Box::new(editor), history }, note))
    }

    /// Whether a person is at the other end.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor { .. })
    }

    /// The next line. Waits.
    ///
    /// # Errors
    /// The terminal or the pipe fails; a line that is not UTF-8 or too long.
    pub fn next(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self {
            Self::Editor { editor, history } => match editor.readline(prompt) {
                Ok(line) => {
                    if let Some(path) = history {
                        // It was writable a moment ago; a message at every line would be worse than a lost one.
                        let _ = editor.append_history(path);
                    }
                    Ok(Line::Text(line.replace("\\\n", "\n")))
                }
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(e) => Err(e).context("cannot read from the terminal"),
            },
            Self::Plain(stdin) => {
                let mut bytes = Vec::new();
                let most = Tokenizer::MAX_TEXT as u64;
                let n = stdin.by_ref().take(most).read_until(b'\n', &mut bytes).context("cannot read stdin")?;
                if n as u64 == most {
                    bail!("a line of stdin is longer than {most} bytes");
                }
                if n == 0 {
                    return Ok(Line::End);
                }
                Ok(Line::Text(without_line_end(text(bytes, "stdin")?)))
            }
        }
    }
}

/// All of a file or of stdin, as a prompt.
///
/// # Errors
/// It cannot be read, is too long, or is not UTF-8.
pub fn read_all(source: impl Read, name: &str) -> anyhow::Result<String> {
    let most = Tokenizer::MAX_TEXT as u64;
    let mut bytes = Vec::new();
    let n = source.take(most + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if n as u64 > most {
        bail!("{name} is longer than {most} bytes");
    }
    Ok(without_line_end(text(bytes, name)?))
}

fn text(bytes: Vec<u8>, name: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{name} is not UTF-8 text (byte {at} is the first that is wrong)")
    })
}

fn without_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

/// Where the XDG base directory specification wants a program's history.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let local =
        || if cfg!(windows) { absolute("LOCALAPPDATA") } else { absolute("HOME").map(|h| h.join(".local/state")) };
    Some(absolute("XDG_STATE_HOME").or_else(local)?.join("rdt/chat_history"))
}

/// Reads the history, and makes sure that it can be added to.
fn keep_history(editor: &mut Editor<Words, DefaultHistory>, path: &Path) -> rustyline::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if path.exists() {
        editor.load_history(path)?;
        std::fs::OpenOptions::new().append(true).open(path)?;
        return Ok(());
    }
    editor.save_history(path)
}

/// What the line editor knows about our lines: commands, and backslashes at their ends.
#[derive(Debug, Clone, Copy)]
pub struct Words;

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &rustyline::Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = line.get(..pos).unwrap_or(line);
        let fits = |c: &str| typed.starts_with('/') && c.starts_with(typed);
        let pair = |c: &str| Pair { display: c.to_owned(), replacement: format!("{c} ") };
        Ok((0, COMMANDS.iter().filter(|(c, _, _)| fits(c)).map(|(c, _, _)| pair(c)).collect()))
    }
}

impl Validator for Words {
    fn validate(&self, ctx: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let more = ctx.input().ends_with('\\');
        Ok(if more { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Words {
    type Hint = String;
}
impl Highlighter for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_read_whole() {
        assert_eq!(read_all(&b"a\nb\r\n"[..], "it").unwrap(), "a\nb");
        assert_eq!(read_all(&b""[..], "it").unwrap(), "");
        let error = read_all(&b"ab\xFFc"[..], "it").unwrap_err().to_string();
        assert_eq!(error, "it is not UTF-8 text (byte 2 is the first that is wrong)");
        assert!(read_all(io::repeat(b'a'), "it").is_err());
    }
}
