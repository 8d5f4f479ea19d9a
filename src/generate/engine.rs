//! A session that generates: prompts in, tokens out, however they are decoded.

use super::decode::{DecodeStats, Drive, Parts, Strategy};
use super::sampler::{self, Sampler, SamplerConfig};
use super::wavefront::{self, Wavefront, WavefrontConfig};
use crate::exit::{ExitRule, NoGate, RulePolicy, Signal};
use crate::model::{self, Batch, DepthPolicy, Logits, Session};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What can go wrong while generating.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The forward pass.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The sampler.
    #[error(transparent)]
    Sampler(#[from] sampler::Error),
    /// The exit rule does not suit the model.
    #[error(transparent)]
    NoGate(#[from] NoGate),
    /// The wavefront.
    #[error(transparent)]
    Wavefront(wavefront::Error),
    /// The exit rule may go deeper than the session was set up for.
    #[error("exit rule '{rule}' may take {steps} loop steps, but the session was set up for {most}")]
    TooDeep {
        /// The rule.
        rule: String,
        /// Steps it may take.
        steps: usize,
        /// Steps that have KV slots.
        most: usize,
    },
}

impl From<wavefront::Error> for Error {
    fn from(error: wavefront::Error) -> Self {
        match error {
            wavefront::Error::Model(error) => Self::Model(error),
            wavefront::Error::Sampler(error) => Self::Sampler(error),
            other => Self::Wavefront(other),
        }
    }
}

/// One generated token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The token.
    pub token: u32,
    /// Loop steps of the forward pass that it was drawn from.
    pub steps: usize,
}

/// What running a prompt took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptStats {
    /// Tokens that were run.
    pub run: usize,
    /// Tokens at the start that were held from before.
    pub reused: usize,
    /// Loop steps of all tokens that were run.
    pub steps: u64,
    /// Did the last token run alone, as drawn ones do ([`Way::Drawn`])? It does under rules on the read-out.
    pub alone: bool,
}

/// How tokens are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As part of a prompt: each sees those before it.
    Prompt,
    /// As part of a prompt whose tokens all see each other, and everything before them.
    BothWays,
    /// As drawn by the sampler, or as the token from which the first is drawn: where read-out rules act.
    Drawn,
}

/// A session that generates: it holds a text as token ids, and continues it.
///
/// The text and the KV cache are kept in step: a new prompt runs only what differs from what is held. Models that were trained
/// with prefixes ([`Config::prefix_lm`](model::Config::prefix_lm)) read prompts in both directions; what they hold of a prompt is
/// kept whole or not at all.
pub struct Engine {
    session: Session,
    policy: RulePolicy,
    depth: Option<usize>,
    sampler: Sampler,
    /// Tokens in the KV cache.
    held: Vec<u32>,
    /// Ranges of them whose tokens see each other in both directions, in order.
    both_ways: Vec<Range<usize>>,
    /// Drawn, but not run yet.
    pending: Option<u32>,
    /// Logits behind the last token that was run, and its loop steps.
    logits: Vec<f32>,
    steps: usize,
    drive: Drive,
    wave: Option<Wavefront>,
    /// Tokens that are final in the wave and were not given yet, with their loop steps.
    ahead: VecDeque<Step>,
}

impl Engine {
    /// Puts a session, an exit rule and a sampler together. `steps` caps the depth ([`RulePolicy::depth_limit`]); tokens from
    /// `vocabulary` on (padding rows of the head) are never drawn.
    ///
    /// # Errors
    /// A rule that the model cannot follow, or that goes deeper than the session's KV slots were chosen for; sampler settings
    /// out of range.
    pub fn new(
        session: Session,
        rule: ExitRule,
        steps: Option<usize>,
        sampler: SamplerConfig,
        vocabulary: usize,
    ) -> Result<Self, Error> {
        let policy = RulePolicy::new(rule, steps, session.model().config(), session.chunk_rows())?;
        let mut sampler = Sampler::new(sampler)?;
        sampler.limit_vocabulary(vocabulary);
        let mut engine = Self {
            session,
            policy,
            depth: steps,
            sampler,
            held: Vec::new(),
            both_ways: Vec::new(),
            pending: None,
            logits: Vec::new(),
            steps: 0,
            drive: Drive::new(Strategy::Plain),
            wave: None,
            ahead: VecDeque::new(),
        };
        engine.set_rule(rule, steps)?;
        Ok(engine)
    }

    /// Changes the exit rule and the depth for what is run from now on. What is held stays as it is.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn set_rule(&mut self, rule: ExitRule, steps: Option<usize>) -> Result<(), Error> {
        let config = self.session.model().config();
        let most = RulePolicy::depth_limit(&rule, steps, config);
        if most > self.session.steps() {
            return Err(Error::TooDeep { rule: rule.to_string(), steps: most, most: self.session.steps() });
        }
        self.policy = RulePolicy::new(rule, steps, config, self.session.chunk_rows())?;
        self.depth = steps;
        // What is in flight began under the old rule.
        self.land();
        Ok(())
    }

    /// Changes how tokens are decoded from now on. The text does not depend on it, where [`is_exact`](Self::is_exact).
    pub fn set_strategy(&mut self, strategy: Strategy) {
        self.land();
        let stops = self.drive.take_stops();
        self.drive = Drive::new(strategy);
        self.drive.set_stops(stops);
    }

    /// Drops what is in flight, and what was final behind the tokens that were given.
    fn land(&mut self) {
        self.session.truncate(0, self.held.len());
        self.drop_wave();
    }

    /// Drops the wave. What was final in it and was not given counts as not drawn.
    fn drop_wave(&mut self) {
        self.wave = None;
        let draws = self.sampler.position().wrapping_sub(self.ahead.len() as u64);
        self.sampler.set_position(draws);
        if !self.ahead.is_empty() {
            self.sampler.forget_recent();
            self.held.iter().chain(&self.pending).for_each(|&token| self.sampler.accept(token));
        }
        self.ahead.clear();
    }

    /// How tokens are decoded.
    pub fn strategy(&self) -> Strategy {
        self.drive.strategy()
    }

    /// Why tokens are decoded one after the other although another strategy is set, in words; `None`: they are not, or none is.
    pub fn plain_because(&self) -> Option<String> {
        Drive::plain_because(self.strategy(), &self.session, &self.policy)
    }

    /// Does the strategy give what plain decoding gives, to the last bit? It does unless loop steps share KV slots
    /// ([`Session::flies_exactly`]).
    pub fn is_exact(&self) -> bool {
        let plain = self.strategy() == Strategy::Plain || self.plain_because().is_some();
        let wave = matches!(self.strategy(), Strategy::Wavefront(_));
        plain || !wave && self.session.flies_exactly(self.policy.max_steps(0))
    }

    /// Tokens that end a text: nothing is guessed behind them.
    pub fn set_stops(&mut self, stops: Vec<u32>) {
        self.drive.set_stops(stops);
    }

    /// Tokens per second that decoding one after the other is expected to make here, from what was measured on the way.
    pub fn plain_tokens_per_second(&self) -> Option<f64> {
        self.drive.plain_seconds().map(f64::recip)
    }

    /// The drive of the strategy, to look at or to ask someone else for guesses.
    pub fn drive_mut(&mut self) -> &mut Drive {
        &mut self.drive
    }

    /// What decoding with several tokens in flight did, since it began or this was last asked.
    pub fn take_decode_stats(&mut self) -> DecodeStats {
        self.drive.take_stats()
    }

    /// The exit rule in force.
    pub fn rule(&self) -> &ExitRule {
        self.policy.rule()
    }

    /// The cap on the depth that was asked for besides the rule's own.
    pub fn depth(&self) -> Option<usize> {
        self.depth
    }

    /// Changes the sampler's settings. Its random numbers go on where they were.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn set_sampler(&mut self, config: SamplerConfig, vocabulary: usize) -> Result<(), Error> {
        let position = self.sampler.position();
        self.sampler = Sampler::new(config)?;
        self.sampler.limit_vocabulary(vocabulary);
        self.sampler.set_position(position);
        Ok(())
    }

    /// The sampler.
    pub fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// The sampler, to suppress tokens or to move to another draw.
    pub fn sampler_mut(&mut self) -> &mut Sampler {
        &mut self.sampler
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    #[cfg(test)]
    pub(crate) fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// Lets later passes use fewer threads, or all again; see [`Session::set_threads`].
    pub fn set_threads(&mut self, most: usize) -> usize {
        self.session.set_threads(most)
    }

    /// Why the session left its device, if it has since this was last asked; see [`Session::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.session.take_notice()
    }

    /// A flag that, once set, ends the call in progress; see [`Session::cancel_flag`].
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.session.cancel_flag()
    }

    /// Tokens of the text so far, without the one drawn last.
    pub fn held(&self) -> &[u32] {
        &self.held
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.forget_from(0);
        self.sampler.reset();
    }

    /// Ranges of [`held`](Self::held) whose tokens see each other in both directions, in order.
    pub fn both_ways(&self) -> &[Range<usize>] {
        &self.both_ways
    }

    /// Forgets the text from token `n` on, or from an earlier one ([`Session::truncate`]).
    fn forget_from(&mut self, n: usize) {
        let n = self.session.truncate(0, n);
        self.held.truncate(n);
        self.both_ways.retain(|r| r.end <= n);
        self.pending = None;
        self.drop_wave();
        self.logits.clear();
    }

    /// How many of `tokens`, from the first on, [`Engine::prompt_with`] would not run again.
    pub fn reusable(&self, tokens: &[u32], both_ways: &[Range<usize>]) -> usize {
        let common = self.held.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let common = common.min(tokens.len().saturating_sub(1));
        // A token that is read in both directions depends on all of its range: the cut is before the first range that is not the
        // same in both texts.
        let same = self.both_ways.iter().zip(both_ways).take_while(|(a, b)| a == b && a.end <= common).count();
        let next = [&self.both_ways[..], both_ways].map(|ranges| ranges.get(same).map_or(common, |r| r.start));
        next.into_iter().fold(common, usize::min)
    }

    /// Makes `tokens` the text, running what is not held already (at least the last token). A model that was trained with
    /// prefixes reads all of it in both directions; [`Engine::prompt_with`] is for prompts that have answers in them.
    ///
    /// Read-out rules act on the last token of a prompt only ([`crate::model::Verdict::ReadOut`]), unless it is read in both directions;
    /// latent rules act on all.
    ///
    /// # Errors
    /// As [`Session::run`]. What was run before the error is held; what the old text had beyond the common start is not.
    pub fn prompt(&mut self, tokens: &[u32]) -> Result<PromptStats, Error> {
        let whole = 0..tokens.len();
        let prefix = self.session.model().config().prefix_lm && !tokens.is_empty();
        self.prompt_with(tokens, if prefix { std::slice::from_ref(&whole) } else { &[] })
    }

    /// As [`Engine::prompt`], where the tokens of each range in `both_ways` see each other in both directions, and everything
    /// before them; all others see what is before them. Only models that were trained so give sense to it.
    ///
    /// # Errors
    /// As [`Engine::prompt`].
    ///
    /// # Panics
    /// If the ranges are not in order, overlap, are empty, or end beyond the tokens.
    pub fn prompt_with(&mut self, tokens: &[u32], both_ways: &[Range<usize>]) -> Result<PromptStats, Error> {
        let reused = self.reusable(tokens, both_ways);
        self.forget_from(reused);
        self.sampler.forget_recent();
        for &token in tokens {
            self.sampler.accept(token);
        }
        let mut stats = PromptStats { run: tokens.len() - reused, reused, steps: 0, alone: false };
        for range in both_ways.iter().filter(|r| r.start >= reused) {
            let before = self.held.len();
            assert!(range.start >= before && !range.is_empty() && range.end <= tokens.len(), "ranges in order");
            for (part, way) in [(before..range.start, Way::Prompt), (range.clone(), Way::BothWays)] {
                if !part.is_empty() {
                    let logits = if part.end == tokens.len() { Logits::Last } else { Logits::None };
                    stats.steps += self.run(&tokens[part], way, logits)?;
                }
            }
        }
        let mut rest = &tokens[self.held.len()..];
        // The first token of the answer is drawn from the last one of the prompt, so that a rule on the read-out decides its depth too:
        // it runs alone. (A prompt that does not fit is refused as a whole.)
        let fits = tokens.len() <= self.session.kv_shape().context;
        if let Some((before, [_])) = rest.split_last_chunk::<1>()
            && fits
            && self.policy.rule().signal() == Signal::Readout
        {
            if !before.is_empty() {
                stats.steps += self.run(before, Way::Prompt, Logits::None)?;
            }
            rest = &rest[before.len()..];
            stats.alone = true;
            stats.steps += self.run(rest, Way::Drawn, Logits::Last)?;
        } else if !rest.is_empty() || tokens.is_empty() {
            // Without any token at all the session says what is wrong.
            stats.steps += self.run(rest, Way::Prompt, Logits::Last)?;
        }
        Ok(stats)
    }

    /// Runs tokens behind those that are held, in the way that they were run before. With the same rules, ways and calls, what is
    /// held becomes the same bits again.
    ///
    /// # Errors
    /// As [`Session::run`]; what was run before the error is held.
    pub fn extend(&mut self, tokens: &[u32], way: Way) -> Result<(), Error> {
        self.pending = None;
        self.run(tokens, way, Logits::Last)?;
        Ok(())
    }

    /// Runs tokens and keeps text, cache and logits in step, also when it fails half way. Gives the loop steps of all of them.
    fn run(&mut self, tokens: &[u32], way: Way, logits: Logits) -> Result<u64, Error> {
        self.land();
        let before = self.session.len(0);
        let both_ways = way == Way::BothWays;
        let readout_exits = way == Way::Drawn && self.policy.rule().signal() == Signal::Readout;
        let batch = Batch { sequence: 0, tokens, logits, readout_exits, both_ways };
        let result = self.session.run(batch, &mut self.policy).map(|output| {
            self.logits.clear();
            self.logits.extend_from_slice(output.last());
            self.steps = output.steps.last().copied().unwrap_or(0);
            output.steps.iter().map(|&n| n as u64).sum()
        });
        let done = self.session.len(0) - before;
        self.held.extend_from_slice(&tokens[..done]);
        if both_ways && done > 0 {
            self.both_ways.push(before..before + done);
        }
        Ok(result?)
    }

    /// Draws the next token. `None` when the context has no room for more.
    ///
    /// The token is run when the one after it is asked for, so a stop token costs no pass.
    ///
    /// # Errors
    /// As [`Session::run`] and [`Sampler::sample`].
    ///
    /// # Panics
    /// Without a [`prompt`](Self::prompt).
    pub fn next_token(&mut self) -> Result<Option<Step>, Error> {
        if let Some(token) = self.pending {
            if self.session.len(0) >= self.session.kv_shape().context {
                return Ok(None);
            }
            if self.strategy() != Strategy::Plain && self.plain_because().is_none() {
                return match self.strategy() {
                    Strategy::Wavefront(config) => self.next_of_wave(config, token),
                    _ => self.next_in_flight(token).map(Some),
                };
            }
            self.run(&[token], Way::Drawn, Logits::Last)?;
            self.pending = None;
        }
        assert!(!self.logits.is_empty(), "a prompt comes first");
        let token = self.sampler.sample(&self.logits)?;
        let token = self.drive.overrule(self.held.len().saturating_sub(1), token);
        self.sampler.accept(token);
        self.pending = Some(token);
        Ok(Some(Step { token, steps: self.steps }))
    }

    /// As [`next_token`](Self::next_token), with the strategy's drive.
    fn next_in_flight(&mut self, pending: u32) -> Result<Step, Error> {
        let before = self.session.len(0);
        let parts = Parts { session: &mut self.session, policy: &mut self.policy, sampler: &mut self.sampler };
        let result = self.drive.next(parts, pending, &mut self.logits);
        if self.session.len(0) > before {
            self.held.push(pending);
            self.pending = None;
        }
        let step = result?;
        self.steps = step.steps;
        self.sampler.accept(step.token);
        self.pending = Some(step.token);
        Ok(step)
    }

    /// What it is made of, for those who draw several texts at a time.
    pub(super) fn into_parts(self) -> (Session, RulePolicy, Sampler) {
        (self.session, self.policy, self.sampler)
    }

    /// As [`next_token`](Self::next_token), along a wavefront. What the session holds may be ahead of what was given.
    fn next_of_wave(&mut self, config: WavefrontConfig, pending: u32) -> Result<Option<Step>, Error> {
        let mut wave = match self.wave.take() {
            Some(wave) => wave,
            None => {
                let mut wave = Wavefront::new(config)?;
                wave.begin(&mut self.session, 0, pending, self.steps)?;
                wave
            }
        };
        while self.ahead.is_empty() {
            let before = *wave.stats();
            // After an error the next call begins anew, behind what was given.
            let step = wave.advance(&mut self.session, &mut self.sampler);
            let step = step.map(|frozen| frozen.map(<[u32]>::len));
            self.drive.note_wave(&before, wave.stats());
            if step?.is_none() {
                break;
            }
            let steps = wave.frozen_steps().iter();
            self.ahead.extend(wave.frozen().iter().zip(steps).map(|(&token, &steps)| Step { token, steps }));
        }
        self.wave = Some(wave);
        let Some(step) = self.ahead.pop_front() else { return Ok(None) };
        self.held.push(pending);
        self.pending = Some(step.token);
        self.steps = step.steps;
        Ok(Some(step))
    }

    /// The logits behind the last token that was run (along a wavefront, of the prompt), `[V]`: those that the latest
    /// token was drawn from, or after a prompt those that the first
    /// will be. Empty before a prompt.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }
}
