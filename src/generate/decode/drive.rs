//! Rows in flight, driven by a strategy: who enters, who steps, who is read out, and what is drawn.

use super::choice::{Choice, Plan};
use super::{DecodeStats, Strategy};
use crate::exit::{RulePolicy, Signal};
use crate::generate::engine::{Error, Step};
use crate::generate::sampler::Sampler;
use crate::generate::wavefront::{Wavefront, WavefrontStats};
use crate::model::{self, DepthPolicy, Read, Session};
use std::time::Instant;

/// Decodes sequence 0 of a session with several tokens in flight.
pub struct Drive {
    strategy: Strategy,
    choice: Choice,
    stats: DecodeStats,
    /// What each row in flight guessed its successor to be, and after how many steps: oldest row first.
    guesses: Vec<Vec<(usize, u32)>>,
    /// Scratch: the tokens ahead of a guess.
    ahead: Vec<u32>,
    /// Tokens that end a text: nothing is worth guessing behind them.
    stops: Vec<u32>,
    oracle: Option<Box<dyn Oracle>>,
}

/// Says what the text is and how good guesses are, instead of the model: for measuring models whose own text means nothing, and for
/// tests.
pub trait Oracle: Send + Sync {
    /// What the token behind `position` is guessed to be after `steps` loop steps; `chosen` is what the sampler says.
    fn guess(&self, position: usize, steps: usize, chosen: u32) -> u32;

    /// What it is; `chosen` is what the sampler says.
    fn draw(&self, position: usize, chosen: u32) -> u32 {
        let _ = position;
        chosen
    }
}

/// What a drive works with.
pub(crate) struct Parts<'a> {
    pub session: &'a mut Session,
    pub policy: &'a mut RulePolicy,
    pub sampler: &'a mut Sampler,
}

impl std::fmt::Debug for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drive").field("strategy", &self.strategy).field("stats", &self.stats).finish_non_exhaustive()
    }
}

impl Drive {
    /// A strategy, without experience.
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            choice: Choice::new(),
            stats: DecodeStats::default(),
            guesses: Vec::new(),
            ahead: Vec::new(),
            stops: Vec::new(),
            oracle: None,
        }
    }

    /// The strategy.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Gives the counts since the start, or since they were taken last.
    pub fn take_stats(&mut self) -> DecodeStats {
        std::mem::take(&mut self.stats)
    }

    /// Lets somebody else say what the text is, and how good guesses are.
    pub fn ask(&mut self, oracle: Box<dyn Oracle>) {
        self.oracle = Some(oracle);
    }

    /// The token behind `position`, drawn: what the one who was asked says, if somebody was.
    pub(crate) fn overrule(&self, position: usize, drawn: u32) -> u32 {
        self.oracle.as_ref().map_or(drawn, |oracle| oracle.draw(position, drawn))
    }

    /// Seconds that a token is expected to take with nothing in flight but itself, from what passes, read-outs and entries of one row took when
    /// there were some (an estimate from passes of more rows, if not); `None` before any.
    pub fn plain_seconds(&self) -> Option<f64> {
        Some(self.choice.plain()).filter(|&seconds| seconds > 0.0)
    }

    /// Counts what a wavefront did between these two.
    pub(crate) fn note_wave(&mut self, before: &WavefrontStats, after: &WavefrontStats) {
        let passes = after.core_passes - before.core_passes;
        let row_steps = after.row_steps - before.row_steps;
        self.stats.tokens += after.frozen - before.frozen;
        self.stats.passes += passes;
        self.stats.row_steps += row_steps;
        self.stats.reads += after.diffusion_steps - before.diffusion_steps;
        self.stats.read_rows += row_steps / passes.max(1);
    }

    /// Tokens that end a text. Nothing is guessed behind them.
    pub fn set_stops(&mut self, stops: Vec<u32>) {
        self.stops = stops;
    }

    pub(crate) fn take_stops(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.stops)
    }

    /// Why decoding is plain under these circumstances, in words; `None`: it is not.
    pub fn plain_because(strategy: Strategy, session: &Session, policy: &RulePolicy) -> Option<String> {
        if strategy == Strategy::Plain {
            return None;
        }
        if let Strategy::Wavefront(_) = strategy
            && let Err(error) = Wavefront::suits(session)
        {
            return Some(error.to_string());
        }
        if policy.rule().signal() == Signal::Readout && !matches!(strategy, Strategy::Wavefront(_)) {
            return Some(format!(
                "exit rule '{}' decides by logits that need all earlier tokens to be done",
                policy.rule().to_string().split([':', ',']).next().unwrap_or_default()
            ));
        }
        if let Err(error) = session.can_fly() {
            return Some(match error {
                model::Error::NeedsCpu => "a GPU runs a token as a whole".to_owned(),
                other => other.to_string(),
            });
        }
        if session.chunk_rows() < 2 {
            return Some("the session has room for one row at a time".to_owned());
        }
        let shallow = policy.max_steps(0) < 2 && !matches!(strategy, Strategy::Wavefront(_));
        shallow.then(|| "tokens take a single step".to_owned())
    }

    /// Runs the token `pending` behind those that are held and draws its successor, from the same logits that it would be drawn from if
    /// nothing else were in flight; copies these to `logits`. Afterwards the session holds `pending`.
    ///
    /// # Errors
    /// As [`Session::run`]; then `pending` is not held. As [`Sampler::sample`]; then it is. Nothing is in flight afterwards.
    pub(crate) fn next(&mut self, parts: Parts<'_>, pending: u32, logits: &mut Vec<f32>) -> Result<Step, Error> {
        let Parts { session, policy, sampler } = parts;
        let done = self.until_drawn(session, policy, sampler, pending, logits);
        if done.is_err() {
            session.discard(0, 0);
        }
        done
    }

    fn until_drawn(
        &mut self,
        session: &mut Session,
        policy: &mut RulePolicy,
        sampler: &mut Sampler,
        pending: u32,
        logits: &mut Vec<f32>,
    ) -> Result<Step, Error> {
        if session.in_flight(0).first().is_none_or(|row| row.token != pending) {
            session.discard(0, 0);
            // What was in flight behind a text that has ended, or was changed.
            self.stats.dropped += self.guesses.len().saturating_sub(1) as u64;
            self.guesses.clear();
            self.enter(session, policy, pending)?;
        }
        let most = policy.max_steps(0);
        let rows = self.strategy.most_rows().min(session.chunk_rows());
        while !session.in_flight(0)[0].is_final() {
            match self.strategy {
                Strategy::Speculative { tokens, steps } => {
                    match steps.or_else(|| self.choice.plan(most, tokens).map(|plan| plan.every)) {
                        Some(steps) => self.block(session, policy, sampler, (tokens.min(rows), steps))?,
                        None => self.stagger(session, policy, sampler, (rows, None))?,
                    }
                }
                Strategy::Pipeline { every, .. } => {
                    let plan = match every {
                        Some(every) => Some(self.choice.at(every)),
                        None => self.choice.plan(most, rows),
                    };
                    self.stagger(session, policy, sampler, (rows, plan))?;
                }
                Strategy::Plain | Strategy::Wavefront(_) => self.stagger(session, policy, sampler, (1, None))?,
            }
        }
        self.draw(session, policy, sampler, logits)
    }

    /// The oldest row is done: its successor is drawn, and the row is held.
    fn draw(
        &mut self,
        session: &mut Session,
        policy: &RulePolicy,
        sampler: &mut Sampler,
        logits: &mut Vec<f32>,
    ) -> Result<Step, Error> {
        let position = session.in_flight(0)[0].position;
        // What is final has finite logits, or reading it was an error.
        let last = session.logits_of(0, 0).ok_or(model::Error::LogitsNotFinite { position })?;
        logits.clear();
        logits.extend_from_slice(last);
        let Some(row) = session.commit(0) else { return Err(model::Error::LogitsNotFinite { position }.into()) };
        let token = sampler.sample(logits)?;
        let token = self.overrule(position, token);
        for (steps, guess) in self.guesses.remove(0) {
            self.stats.note(steps, guess == token);
            self.choice.guessed(steps, guess == token);
        }
        self.stats.tokens += 1;
        self.choice.drawn(row.steps, policy.max_steps(0), self.strategy.most_rows());
        if session.in_flight(0).first().is_some_and(|next| next.token != token) {
            self.drop_from(session, 0);
        }
        Ok(Step { token, steps: row.steps })
    }

    /// One round of a pipeline: passes up to the next read-out, and what it tells.
    fn stagger(
        &mut self,
        session: &mut Session,
        policy: &mut RulePolicy,
        sampler: &mut Sampler,
        (most_rows, plan): (usize, Option<Plan>),
    ) -> Result<(), Error> {
        let most = policy.max_steps(0);
        let flying = session.in_flight(0);
        let youngest = &flying[flying.len() - 1];
        let looks = plan.is_none() && most_rows > 1 && flying.len() == 1 && self.choice.looks();
        // To where the youngest is read out next; without guesses, to the end.
        let plan = plan.or_else(|| looks.then(|| Plan { every: most.div_ceil(most_rows).max(1), refine: true }));
        let every = plan.map(|plan| plan.every);
        let next = every.map_or(most, |every| (youngest.steps / every + 1) * every).min(most);
        // Passes end by themselves once a row leaves.
        let ends = youngest.left || youngest.steps >= next;
        let passes = if ends { most } else { next - youngest.steps };
        self.pass(session, policy, passes, |_| true)?;
        let flying = session.in_flight(0);
        let (last, first) = (flying.len() - 1, &flying[0]);
        let due = every.is_some_and(|every| {
            let youngest = &flying[last];
            !ends && (youngest.left || youngest.steps.is_multiple_of(every))
        });
        if !due && !first.left {
            return Ok(());
        }
        // What is done from the oldest on: the rows behind it need nothing but its keys.
        let end = first.position + flying.iter().take_while(|row| row.left).count();
        let (last, refine) = (flying[last].position, plan.is_some_and(|plan| plan.refine));
        self.read(session, |row| {
            let guesses = due && (refine || row.position == last);
            if row.position < end || guesses { Read::Logits } else { Read::No }
        })?;
        self.guess(session, sampler, 0)?;
        let room = if looks { 1 } else { most_rows };
        self.follow(session, policy, room, |row| row.read_at() == Some(row.steps))
    }

    /// One round of a block: drafts the next token, or, with all of them there, goes on to the end.
    fn block(
        &mut self,
        session: &mut Session,
        policy: &mut RulePolicy,
        sampler: &mut Sampler,
        (tokens, steps): (usize, usize),
    ) -> Result<(), Error> {
        let flying = session.in_flight(0);
        let (n, youngest) = (flying.len(), &flying[flying.len() - 1]);
        let position = youngest.position;
        let drafted = youngest.left || youngest.steps >= steps;
        if !drafted {
            let passes = steps - youngest.steps;
            self.pass(session, policy, passes, |row| row.position == position)?;
        }
        // It is gone if its state is not finite any more.
        let there = session.in_flight(0).len() == n;
        if there && n < tokens && !self.guesses[n - 1].iter().any(|&(at, _)| at >= steps) {
            self.read(session, |row| if row.position == position { Read::Logits } else { Read::No })?;
            if session.in_flight(0)[0].is_final() {
                return Ok(());
            }
            self.guess(session, sampler, n - 1)?;
            self.follow(session, policy, tokens, |_| true)?;
            if session.in_flight(0).len() > n {
                return Ok(());
            }
        }
        while session.in_flight(0).iter().any(|row| !row.left) {
            self.pass(session, policy, policy.max_steps(0), |_| true)?;
        }
        self.read(session, |_| Read::Logits)
    }

    /// Core steps of the rows that `pick` takes.
    fn pass(
        &mut self,
        session: &mut Session,
        policy: &mut RulePolicy,
        passes: usize,
        pick: impl Fn(&model::InFlight) -> bool,
    ) -> Result<(), Error> {
        let rows = session.in_flight(0).iter().filter(|row| !row.left && pick(row)).count();
        let start = Instant::now();
        let done = session.advance(|_, row| pick(row), passes, policy)?;
        self.choice.passed(done, rows, start.elapsed());
        self.stats.passes += done as u64;
        self.stats.row_steps += (done * rows) as u64;
        // What a wrong guess ran into is not worth an error; if the guess was right, it will run into it again as the oldest row.
        if let Some(failed) = session.in_flight(0).iter().find(|row| row.failed) {
            let position = failed.position;
            self.drop_from(session, position);
        }
        Ok(())
    }

    fn read(&mut self, session: &mut Session, mut pick: impl FnMut(&model::InFlight) -> Read) -> Result<(), Error> {
        let mut rows = 0;
        let start = Instant::now();
        session.read(|_, row| {
            let read = pick(row);
            rows += usize::from(read != Read::No);
            read
        })?;
        self.choice.read(rows, start.elapsed());
        self.stats.reads += 1;
        self.stats.read_rows += rows as u64;
        Ok(())
    }

    /// Guesses the successors of the rows, from row `from` on, that have just been read out. A row whose token is not what its predecessor
    /// now guesses is dropped, with all behind it.
    fn guess(&mut self, session: &mut Session, sampler: &mut Sampler, from: usize) -> Result<(), Error> {
        for i in from..session.in_flight(0).len() {
            let flying = session.in_flight(0);
            let row = &flying[i];
            // Its own logits are the draw's.
            if row.is_final() && i == 0 {
                continue;
            }
            let Some(logits) = session.logits_of(0, i) else { continue };
            self.ahead.clear();
            self.ahead.extend(flying[1..=i].iter().map(|row| row.token));
            // Logits without a choice make no guess; if they are final, the draw will say what is wrong.
            let Ok(token) = sampler.guess(logits, &self.ahead) else { continue };
            let (position, steps) = (row.position, row.steps);
            let token = self.oracle.as_ref().map_or(token, |oracle| oracle.guess(position, steps, token));
            if self.guesses[i].last().is_none_or(|&(at, _)| at < steps) {
                self.guesses[i].push((steps, token));
            }
            if flying.get(i + 1).is_some_and(|next| next.token != token) {
                self.drop_from(session, position + 1);
                break;
            }
        }
        Ok(())
    }

    /// Lets the successor of the youngest row enter, if it is guessed and there is room.
    fn follow(
        &mut self,
        session: &mut Session,
        policy: &mut RulePolicy,
        room: usize,
        ready: impl Fn(&model::InFlight) -> bool,
    ) -> Result<(), Error> {
        let flying = session.in_flight(0);
        let (n, youngest) = (flying.len(), &flying[flying.len() - 1]);
        // What the oldest, done, is followed by is drawn, not guessed.
        if n >= room || (n == 1 && youngest.is_final()) || !ready(youngest) {
            return Ok(());
        }
        let Some(&(_, token)) = self.guesses[n - 1].last() else { return Ok(()) };
        let full = youngest.position + 1 >= session.kv_shape().context;
        if full || self.stops.contains(&token) || token as usize >= session.model().config().vocab {
            return Ok(());
        }
        self.enter(session, policy, token)?;
        self.stats.guessed += 1;
        Ok(())
    }

    fn enter(&mut self, session: &mut Session, policy: &mut RulePolicy, token: u32) -> Result<(), Error> {
        let start = Instant::now();
        session.enter(0, &[token], false, policy)?;
        self.choice.entered(start.elapsed());
        self.guesses.push(Vec::new());
        Ok(())
    }

    fn drop_from(&mut self, session: &mut Session, position: usize) {
        session.discard(0, position);
        let left = session.in_flight(0).len();
        self.stats.dropped += (self.guesses.len() - left) as u64;
        self.guesses.truncate(left);
    }
}
