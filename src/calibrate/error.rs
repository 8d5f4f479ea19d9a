//! What can go wrong when quality is measured.

use crate::exit::NoGate;
use crate::{files, model, quant};
use std::io;
use std::path::PathBuf;

/// An error of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model or its session.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A file that cannot be opened or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// What is wrong with a file, with its path.
    #[error("{}: {source}", .path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: Box<Error>,
    },
    /// A window in which nothing could be scored.
    #[error("a context of {context} leaves no token to score; it takes at least {least} (-c)")]
    Context {
        /// Tokens per window.
        context: usize,
        /// The fewest there can be.
        least: usize,
    },
    /// A stride that leaves nothing to read before the first scored token, or none at all.
    #[error("a stride of {stride} does not fit windows of {context} tokens; it must be from 1 to {}", context.saturating_sub(1))]
    Stride {
        /// Tokens scored per window.
        stride: usize,
        /// Tokens per window.
        context: usize,
    },
    /// A text that is too short for two windows.
    #[error(
        "the text has {tokens} tokens, and perplexity with a context of {context} takes at least {}; {}",
        2 * context,
        shorter(*tokens)
    )]
    TooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens per window.
        context: usize,
    },
    /// A prefix that reaches into the scored part of a window: scored tokens would have been seen.
    #[error(
        "a prefix of {prefix} tokens reaches into what is scored; windows of {context} tokens leave room for {most}"
    )]
    Prefix {
        /// Tokens that see each other in both directions.
        prefix: usize,
        /// Tokens per window.
        context: usize,
        /// The longest there can be.
        most: usize,
    },
    /// A prefix for a model that was not trained with one.
    #[error("a prefix of {prefix} tokens: {architecture} models have no prefix mask")]
    NoPrefix {
        /// Tokens that were to see each other in both directions.
        prefix: usize,
        /// The model's family.
        architecture: String,
    },
    /// A session whose KV cache is shorter than the windows.
    #[error("windows of {context} tokens do not fit a session with room for {room} positions")]
    Room {
        /// Tokens per window.
        context: usize,
        /// Positions in the KV cache.
        room: usize,
    },
    /// A file that does not start as a stored base run does.
    #[error("this is no stored base run: it starts with {found:?}, not with \"_logits_\"")]
    Magic {
        /// Its first bytes, as text.
        found: String,
    },
    /// A number in the head of a stored base run that makes no sense.
    #[error("the stored base run says {what} is {found}; expected {expected}")]
    Header {
        /// What the number counts.
        what: &'static str,
        /// The number.
        found: i64,
        /// What would be accepted.
        expected: String,
    },
    /// A stored base run that is cut off, or longer than its head says.
    #[error(
        "the stored base run has {found} bytes, and its head ({context} tokens per window, {windows} windows, {vocab} vocabulary \
         entries) asks for {expected}; was the run that made it cut short?"
    )]
    Length {
        /// Bytes of the file.
        found: u64,
        /// Bytes that it should have.
        expected: u64,
        /// Tokens per window.
        context: usize,
        /// Number of windows.
        windows: usize,
        /// Log-probabilities per position.
        vocab: usize,
    },
    /// A row of a stored base run that holds no probabilities.
    #[error("the stored base run is damaged: scored position {row} has scale {scale} and minimum {minimum}")]
    Row {
        /// The row, from 0.
        row: u64,
        /// Its scale.
        scale: f32,
        /// Its smallest log-probability.
        minimum: f32,
    },
    /// A base run that was made with something else.
    #[error("the base run has {what} {base}, and this run {run}; a comparison needs the same")]
    Mismatch {
        /// What differs.
        what: &'static str,
        /// The base run's.
        base: u64,
        /// This run's.
        run: u64,
    },
    /// A base run of another text.
    #[error(
        "the base run is of another text, or of another tokenizer: its token {position} is {base}, and this run's is {run}"
    )]
    Text {
        /// The first place where the tokens differ, from 0.
        position: usize,
        /// The base run's token.
        base: u32,
        /// This run's.
        run: u32,
    },
    /// More or fewer positions than a stored base run has.
    #[error("a stored base run of {expected} scored positions was given {found}")]
    Rows {
        /// Positions that its head promises.
        expected: u64,
        /// Positions that came.
        found: u64,
    },
    /// An exit rule that the model cannot follow.
    #[error(transparent)]
    Gate(#[from] NoGate),
    /// A tensor that cannot be stored in a type it was tried in.
    #[error("tensor '{tensor}': {source}")]
    Quant {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: quant::Error,
    },
    /// What an interrupted calibration left belongs to another setting.
    #[error(
        "{} holds something else, such as what a calibration with other settings, text or model had measured when it was \
         interrupted; repeat that one to finish it, or start anew with --restart", .path.display()
    )]
    Unfinished {
        /// The folder.
        path: PathBuf,
    },
    /// A plan that asks for what there is not.
    #[error(
        "a calibration of {windows} windows to {steps} steps, losses counted from {published}: it takes a window at least, and from 1 \
         to {most} steps, the published ones among them"
    )]
    Plan {
        /// Windows of the text.
        windows: usize,
        /// Deepest depth.
        steps: usize,
        /// The published depth.
        published: usize,
        /// The deepest that model and session support.
        most: usize,
    },
    /// A model, or a KV cache, with which depths cannot share a run.
    #[error(
        "calibration runs all depths at once, which takes one looped segment and a KV slot for each of {steps} steps; this \
         model has {loops}, and the session {slots} slots (--kv-steps, --kv-memory, or a shorter -c)"
    )]
    Shared {
        /// Looped segments of the model.
        loops: usize,
        /// KV slots of the session.
        slots: usize,
        /// Steps that are asked for.
        steps: usize,
    },
    /// A calibration profile that is none, or cannot be used.
    #[error("this is no calibration profile: {0}")]
    Profile(String),
    /// The caller stopped a measurement.
    #[error("stopped; nothing was written under the final name")]
    Stopped,
    /// Reading or writing a file.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What to do about a text that is too short.
fn shorter(tokens: usize) -> String {
    match tokens / 2 {
        0..super::windows::LEAST => "take a longer text".to_owned(),
        most => format!("take a longer text, or -c {most} or less"),
    }
}
