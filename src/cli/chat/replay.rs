//! An engine that remembers how it came to what it holds.
//!
//! Keys and values of a token depend on how it was run: under which exit rule, how deep at most, and whether it was part of a
//! prompt, of one that is read in both directions, or drawn. With that written down, the same tokens can be run again: on the CPU to the
//! same bits, as long as all loop steps keep KV slots of their own. On a device the last bits depend on how many rows ran together,
//! too, and tokens that were drawn one by one are run again in batches. Tokens that came [along a wavefront](crate::generate::wavefront), or with
//! several in flight where steps share slots, do not come to the same bits either ([`Recorder::is_approximate`]).

use crate::cli::device::CPU;
use crate::exit::ExitRule;
use crate::generate::engine::{Engine, Error, PromptStats, Step, Way};
use std::ops::Range;

/// What to say of tokens that ran on `then` and were run again on `now`: only the CPU comes to the same bits.
pub(super) fn doubt(then: &str, now: &str) -> Option<&'static str> {
    (then != CPU || now != CPU).then_some("numbers may differ in the last bits")
}

/// Tokens in a row that were run in the same way; a prompt that is read in both directions is a run of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// How many.
    pub len: usize,
    /// As what.
    pub way: Way,
    /// The exit rule.
    pub rule: ExitRule,
    /// Loop steps at most.
    pub steps: usize,
}

/// An engine, and how each token it holds was run.
pub struct Recorder {
    engine: Engine,
    runs: Vec<Run>,
    /// Tokens from here to the end are not all what running them again would make of them.
    approximate_from: Option<usize>,
}

impl Recorder {
    /// Starts with what an engine without tokens holds: nothing.
    pub fn new(mut engine: Engine) -> Self {
        engine.reset();
        Self { engine, runs: Vec::new(), approximate_from: None }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Access to settings of the engine that leave its tokens alone.
    pub(super) fn settings_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// How the tokens of [`Engine::held`] were run, in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Do some of the tokens that are held have keys and values that running them again does not come to?
    pub fn is_approximate(&self) -> bool {
        self.approximate_from.is_some_and(|from| from < self.engine.held().len())
    }

    /// As [`Engine::prompt_with`].
    ///
    /// # Errors
    /// As [`Engine::prompt_with`].
    pub fn prompt(&mut self, tokens: &[u32], both_ways: &[Range<usize>]) -> Result<PromptStats, Error> {
        let reused = self.engine.reusable(tokens, both_ways);
        let result = self.engine.prompt_with(tokens, both_ways);
        self.forget_from(reused);
        let (mut from, held) = (reused, self.engine.held().len());
        let ranges = self.engine.both_ways().iter().filter(|r| r.start >= reused).cloned().collect::<Vec<_>>();
        for range in ranges {
            self.note(from..range.start, Way::Prompt);
            from = range.end;
            self.note(range, Way::BothWays);
        }
        // The last token may have run as drawn ones do.
        let alone = result.as_ref().map_or(0, |stats| usize::from(stats.alone));
        self.note(from..held - alone, Way::Prompt);
        self.note(held - alone..held, Way::Drawn);
        result
    }

    /// As [`Engine::next_token`].
    ///
    /// # Errors
    /// As [`Engine::next_token`].
    pub fn next_token(&mut self) -> Result<Option<Step>, Error> {
        let before = self.engine.held().len();
        if !self.engine.is_exact() && !self.is_approximate() {
            self.approximate_from = Some(before);
        }
        let result = self.engine.next_token();
        self.note(before..self.engine.held().len(), Way::Drawn);
        result
    }

    /// Forgets all tokens.
    pub fn reset(&mut self) {
        self.engine.reset();
        self.runs.clear();
        self.approximate_from = None;
    }

    /// Runs `tokens` behind those that are held, in the way that `runs` says (their lengths add up to that of `tokens`) but for how
    /// they were cut, and then goes back to the rule and depth in force.
    ///
    /// # Errors
    /// As [`Engine::extend`] and [`Engine::set_rule`].
    pub fn replay(&mut self, mut tokens: &[u32], runs: &[Run]) -> Result<(), Error> {
        let (rule, steps) = (*self.engine.rule(), self.engine.depth());
        let mut replay = || {
            for run in runs {
                let (now, later) = tokens.split_at(run.len.min(tokens.len()));
                tokens = later;
                let before = self.engine.held().len();
                self.engine.set_rule(run.rule, Some(run.steps))?;
                let result = self.engine.extend(now, run.way);
                self.note(before..self.engine.held().len(), run.way);
                result?;
            }
            Ok(())
        };
        let result = replay();
        self.engine.set_rule(rule, steps)?;
        result
    }

    fn forget_from(&mut self, mut n: usize) {
        self.approximate_from = self.approximate_from.filter(|&from| from < n);
        self.runs.retain_mut(|run| {
            run.len = run.len.min(n);
            n -= run.len;
            run.len > 0
        });
    }

    /// Writes down how some tokens were run.
    fn note(&mut self, tokens: Range<usize>, way: Way) {
        let len = tokens.len();
        let (rule, steps) = (*self.engine.rule(), self.engine.depth().unwrap_or(self.engine.session().steps()));
        if len == 0 {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if way != Way::BothWays && (run.way, run.rule, run.steps) == (way, rule, steps) => run.len += len,
            _ => self.runs.push(Run { len, way, rule, steps }),
        }
    }
}
