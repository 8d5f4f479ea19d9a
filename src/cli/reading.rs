//! The text that something is measured on, and Ctrl-C while that goes on.

use super::{positive, tokenizer};
use crate::calibrate::Windows;
use crate::model::{Model, Session};
use crate::text::Tokenizer;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Tokens per window where nobody says, as in llama.cpp.
pub const CONTEXT: usize = 512;

/// A text and what of it is used.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Text")]
pub struct TextFlags {
    /// File with the text
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// The text itself
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Special tokens that are written out in the text are special tokens, not plain text
    #[arg(long)]
    pub special: bool,
    /// Use the first N windows only
    #[arg(long, value_name = "N", value_parser = positive)]
    pub chunks: Option<usize>,
    /// Tokens at the start of every window that see each other in both directions (default: those before the scored
    /// ones, for models that were trained so)
    #[arg(long, value_name = "P")]
    pub prefix_len: Option<usize>,
}

impl TextFlags {
    /// The text, if one was given.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn read(&self) -> anyhow::Result<Option<String>> {
        match (&self.file, &self.prompt) {
            (Some(path), _) => read(path).map(Some),
            (None, prompt) => Ok(prompt.clone()),
        }
    }

    /// A text's tokens, with BOS where the model wants it.
    ///
    /// # Errors
    /// It cannot be tokenised.
    pub fn tokens(&self, tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
        Ok(match self.special {
            false => tokenizer.encode_prompt(text)?,
            true if tokenizer.add_bos() => tokenizer.with_bos(tokenizer.encode_trusted(text)?),
            true => tokenizer.encode_trusted(text)?,
        })
    }

    /// The text cut into windows of `context` tokens side by side.
    ///
    /// # Errors
    /// There is no text, or it cannot be read or tokenised, or is too short.
    pub fn windows(&self, program: &str, model: &Model, context: usize) -> anyhow::Result<Windows> {
        let text = self.read()?.context("no text to measure on; name a file with -f")?;
        let tokenizer = tokenizer(program, model)?;
        let windows = Windows::new(self.tokens(&tokenizer, &text)?, context, bos(&tokenizer))?;
        Ok(windows.first(self.chunks.unwrap_or(usize::MAX)))
    }

    /// Tokens of a window that are read in both directions.
    pub fn prefix(&self, model: &Model, windows: &Windows) -> usize {
        let usual = if model.config().prefix_lm { windows.scored().start } else { 0 };
        self.prefix_len.unwrap_or(usual)
    }
}

/// The token that every prompt of a model starts with, if there is one.
pub fn bos(tokenizer: &Tokenizer) -> Option<u32> {
    tokenizer.special_ids().bos.filter(|_| tokenizer.add_bos())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let mut text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    // As llama.cpp reads a prompt file: the newline at its end is the editor's.
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Ctrl-C, or SIGTERM: ends the pass in progress of every session that was told of it.
pub struct Stop {
    asked: Arc<AtomicBool>,
    sessions: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
}

impl Stop {
    /// Listens from now on.
    ///
    /// # Errors
    /// Something listens already.
    pub fn install() -> anyhow::Result<Self> {
        let stop = Self { asked: Arc::default(), sessions: Arc::default() };
        let (asked, sessions) = (Arc::clone(&stop.asked), Arc::clone(&stop.sessions));
        let handler = move || {
            asked.store(true, Ordering::Relaxed);
            let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.iter().for_each(|flag| flag.store(true, Ordering::Relaxed));
        };
        ctrlc::set_handler(handler).context("cannot listen for Ctrl-C")?;
        stop.raise_when_terminated(&stop.asked)?;
        Ok(stop)
    }

    /// That nobody can press.
    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self { asked: Arc::default(), sessions: Arc::default() }
    }

    /// SIGTERM raises the flag, too.
    fn raise_when_terminated(&self, flag: &Arc<AtomicBool>) -> anyhow::Result<()> {
        #[cfg(unix)]
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(flag))
            .context("cannot listen for SIGTERM")?;
        let _ = flag;
        Ok(())
    }

    /// Has it been pressed?
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends this session's pass, too.
    ///
    /// # Errors
    /// The system refuses to listen for one more.
    pub fn watch(&self, session: &Session) -> anyhow::Result<()> {
        let flag = session.cancel_flag();
        flag.store(self.asked(), Ordering::Relaxed);
        self.raise_when_terminated(&flag)?;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(flag);
        Ok(())
    }
}
