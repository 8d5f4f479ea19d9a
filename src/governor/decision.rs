//! What was decided and why, for logs and for people.

use super::Mode;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{self, Write};

/// What made a decision necessary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The beginning.
    Start,
    /// The mode, or what `auto` makes of mains and battery.
    Mode,
    /// A rate or a time per token.
    Rate,
    /// Joules per token.
    Energy,
    /// The temperature.
    Heat,
    /// Room for more.
    Room,
    /// The budget cannot be held, or can again.
    Short,
    /// Something that cannot be read or done.
    Limit,
}

/// A decision: what is in force from `at` on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Seconds on the caller's clock.
    pub at: f64,
    /// What made it necessary.
    pub cause: Cause,
    /// The mode in force; never `auto`, which chooses among the others.
    pub mode: Mode,
    /// The exit rule.
    pub rule: String,
    /// Its place on the ladder, from 0, the cheapest.
    pub rung: usize,
    /// Rungs of the ladder.
    pub rungs: usize,
    /// What the rule loses of the published depth's quality, as a share of perplexity; `None` where unknown.
    pub loss: Option<f64>,
    /// Worker threads; `None` where they mean nothing.
    pub threads: Option<usize>,
    /// Tokens per second to which the text is paced; `None`: it is not.
    pub pace: Option<f64>,
    /// Milliseconds of compute that a token is predicted to take; `None` where unknown.
    pub predicted_ms: Option<f64>,
    /// Share of full power that the temperature allows, where a cap is held.
    pub duty: Option<f64>,
    /// Why, in words and numbers.
    pub reason: String,
}

/// Writes decisions as lines of JSON.
#[derive(Debug)]
pub struct Log<W: Write>(W);

impl<W: Write> Log<W> {
    /// A log in `out`.
    pub fn new(out: W) -> Self {
        Self(out)
    }

    /// One line, and out with it: a log is read while the program runs, or after it was killed.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&mut self, decision: &Decision) -> io::Result<()> {
        let mut line = serde_json::to_vec(decision)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        self.0.flush()
    }

    /// What it wrote to.
    pub fn into_inner(self) -> W {
        self.0
    }
}

/// Decisions that are remembered.
const KEPT: usize = 8;

/// The latest decisions, and those that nobody has taken yet.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    latest: VecDeque<Decision>,
    fresh: VecDeque<Decision>,
    count: u64,
}

impl History {
    pub(super) fn add(&mut self, decision: Decision) {
        for list in [&mut self.latest, &mut self.fresh] {
            // Somebody who never takes them loses the oldest.
            if list.len() >= 4 * KEPT {
                list.pop_front();
            }
            list.push_back(decision.clone());
        }
        self.count += 1;
    }

    pub(super) fn take(&mut self) -> Option<Decision> {
        self.fresh.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn latest(&self) -> Vec<Decision> {
        self.latest.iter().rev().take(KEPT).rev().cloned().collect()
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

/// Where a governor stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The mode that was asked for.
    pub asked: Mode,
    /// The mode in force.
    pub mode: Mode,
    /// The exit rule in force.
    pub rule: String,
    /// Its place on the ladder, from 0.
    pub rung: usize,
    /// Rungs of the ladder.
    pub rungs: usize,
    /// What the rule loses, as a share of perplexity; `None` where unknown.
    pub loss: Option<f64>,
    /// Threads in use; `None` where they mean nothing.
    pub threads: Option<usize>,
    /// Threads that there are.
    pub of_threads: Option<usize>,
    /// Tokens per second that are wanted.
    pub target_tps: Option<f64>,
    /// Tokens per second of the latest tokens, pauses included.
    pub tokens_per_second: Option<f64>,
    /// Seconds that were paused, all in all.
    pub paused_seconds: f64,
    /// Share of full power that the temperature allows, where a cap is held.
    pub duty: Option<f64>,
    /// Watts while computing, as far as energy can be read.
    pub watts: Option<f64>,
    /// Decisions since the start.
    pub decisions: u64,
    /// The latest of them.
    pub latest: Vec<Decision>,
}

impl Summary {
    /// The same in lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut mode = self.mode.to_string();
        if self.asked != self.mode {
            mode = format!("{} ({mode} now)", self.asked);
        }
        let loss = self.loss.map_or(String::new(), |l| format!(", loses {:.2} %", 100.0 * l));
        let place = match self.rungs {
            1 => String::new(),
            n => format!(", setting {} of {n}{loss}", self.rung + 1),
        };
        // One thread is no choice.
        let threads = match self.threads.zip(self.of_threads) {
            None | Some((_, 1)) => String::new(),
            Some((threads, n)) => format!("; {threads} of {n} threads"),
        };
        let mut first = format!("governor: {mode}; {}{place}{threads}", self.rule);
        let mut add = |text: Option<String>| text.into_iter().for_each(|t| first += &format!("; {t}"));
        add(self.tokens_per_second.map(|r| match self.target_tps {
            Some(target) => format!("{r:.2} tokens/s of {target:.2} wanted"),
            None => format!("{r:.2} tokens/s"),
        }));
        add((self.paused_seconds > 0.05).then(|| format!("paused {:.1} s", self.paused_seconds)));
        add(self.duty.map(|d| format!("{:.0} % of full power allowed", 100.0 * d)));
        add(self.watts.map(|w| format!("{w:.1} W while computing")));
        let decisions = self.latest.iter().map(|d| format!("  at {:.1} s: {}", d.at, d.reason));
        std::iter::once(first).chain(decisions).collect()
    }
}
