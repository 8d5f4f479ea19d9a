//! One answer: its tokens, their depths, and what it took.

use crate::generate::{DecodeStats, PromptStats};
use std::time::Duration;

/// A token of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Loop steps of the forward pass that it was drawn from.
    pub steps: usize,
    /// The text that became certain with it; the texts of all tokens together are the answer.
    pub text: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model was done.
    Stop,
    /// It has as many tokens as were asked for.
    Length,
    /// The context is full.
    Context,
    /// The user stopped it.
    Cancelled,
}

impl End {
    /// One word for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Context => "context",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An answer and what it took.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What the model said.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub end: End,
    /// Exchanges at the start of the conversation that were left out to make room.
    pub dropped: usize,
    /// What running the prompt took.
    pub prompt: PromptStats,
    /// How long that was.
    pub prompt_time: Duration,
    /// How long the tokens took.
    pub time: Duration,
    /// What several tokens in flight did.
    pub decode: DecodeStats,
}

impl Answer {
    /// The depths of its tokens.
    pub fn depths(&self) -> Depths {
        let mut depths = Depths::default();
        self.tokens.iter().for_each(|t| depths.add(t.steps));
        depths
    }
}

/// A summary of how deep tokens went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Depths {
    /// Number of tokens.
    pub tokens: u64,
    /// Loop steps of all of them.
    pub steps: u64,
    /// The shallowest; 0 if there is no token.
    pub min: usize,
    /// The deepest; 0 if there is no token.
    pub max: usize,
}

impl Depths {
    /// Counts one more token.
    pub fn add(&mut self, steps: usize) {
        self.min = if self.tokens == 0 { steps } else { self.min.min(steps) };
        self.max = self.max.max(steps);
        self.tokens += 1;
        self.steps += steps as u64;
    }

    /// Counts the tokens of another summary too.
    pub fn merge(&mut self, other: &Depths) {
        if other.tokens > 0 {
            self.min = if self.tokens == 0 { other.min } else { self.min.min(other.min) };
            self.max = self.max.max(other.max);
            self.tokens += other.tokens;
            self.steps += other.steps;
        }
    }

    /// Loop steps per token; 0 if there is no token.
    pub fn mean(&self) -> f64 {
        if self.tokens == 0 { 0.0 } else { self.steps as f64 / self.tokens as f64 }
    }
}

/// What all answers since the start (or the last reset) took.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Answers.
    pub answers: usize,
    /// Prompt tokens that were run.
    pub prompt: u64,
    /// Prompt tokens that were held from before.
    pub reused: u64,
    /// Time for prompts.
    pub prompt_time: Duration,
    /// The tokens of the answers.
    pub depths: Depths,
    /// Time for them.
    pub time: Duration,
    /// What several tokens in flight did.
    pub decode: DecodeStats,
}

impl Totals {
    /// Counts another answer.
    pub fn add(&mut self, answer: &Answer) {
        self.answers += 1;
        self.prompt += answer.prompt.run as u64;
        self.reused += answer.prompt.reused as u64;
        self.prompt_time += answer.prompt_time;
        self.depths.merge(&answer.depths());
        self.time += answer.time;
        self.decode.merge(&answer.decode);
    }
}

/// Things per second; 0 where no time has passed.
pub fn per_second(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}
