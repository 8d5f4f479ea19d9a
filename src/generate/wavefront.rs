//! Decoding along a wavefront: tokens are guessed while those before them are still being computed, and settle together.
//!
//! This is the diffusion-forcing sampler of "Efficient Parallel Samplers for Recurrent-Depth Models and Their Connection to
//! Diffusion Language Models" (arXiv 2510.14961), as its authors published it. Several adjoining positions are in flight at once. In every
//! *diffusion step* all of them take a few loop steps and are read out; each row's logits give a new guess of the token behind it, and
//! one more row joins the front with the last guess. Latent states stay from step to step, so that rows whose guesses do not change
//! converge, and where they have ([`Freeze`]) their tokens are final. A pass over the core so does work for as many tokens as the front has
//! rows; what the weights cost to read is shared among them.
//!
//! # One diffusion step
//! Position c is that of the youngest token that is final, and the first row of the front, which has n rows.
//! 1. Embedding and prelude of every row's token as it is guessed now; the constant input is
//!    e = (1 − [`ema`](WavefrontConfig::ema))·new + ema·e′, where e′ is the one of the step before. A row that has just joined
//!    has none: its e is (1 − ema)·new.
//! 2. Noise: s ← (1 − a)·s + a·(a fresh initial state), where a is [`noise`](WavefrontConfig::noise)/(1 + loop steps that the position has
//!    had).
//! 3. [`inner_steps`](WavefrontConfig::inner_steps) loop steps of all rows together, then coda and head.
//! 4. A guess of the token behind every row. One row joins the front, unless it has [`most_rows`](WavefrontConfig::most_rows).
//! 5. The last row that the criterion takes for settled freezes, and all before it. The tokens that they have now (the guesses of 4)
//!    are final. That row stays as the first of the front, those before it leave their keys and values as they are.
//!
//! # The KV cache
//! Every diffusion step counts its loop steps from 0, and with them the KV slots. The published setting
//! (`latest-m4-compress-s4`, where 4 is the number of core layers) keeps the keys of one loop step, the latest: that is a session with one
//! slot ([`SessionOptions::kv_slots`](crate::model::SessionOptions)), and what this should be used with. More slots, up to
//! `inner_steps`, are its `compress-s8` and so on. With more than that, the front sees what the prompt's tokens were in their first loop
//! steps, and never what they became.
//!
//! Results are approximate either way: a row that freezes leaves the keys of the token that it was run with, which may be another than the
//! guess that has just become final, and what stands behind it has seen earlier states. They can be repeated: noise and draws are functions
//! of seed, position and step, not of the time.
//!
//! # What differs from the published code
//! - It draws its noise from a generator whose state depends on all that was drawn before.
//! - It ends the generation when the front meets the end of the context; here the front gets shorter.
//! - It tells stop tokens only after 32 diffusion steps; here that is the caller's affair.
//! - The guess behind the last position of the context is not given out, so that a text ends one token before plain decoding's.
//! - It goes on without end where nothing freezes (a front of one row never would); here a token is final after
//!   [`patience`](WavefrontConfig::patience) steps at the latest.

mod config;
mod freeze;

pub use config::{Error, WavefrontConfig};
pub use freeze::{Compare, Freeze};

use super::sampler::Sampler;
use crate::model::{self, FixedDepth, InitialState, Injection, Looped, Model, Read, Row, Session, Start};
use crate::random;
use config::LEAST_ROWS;
use freeze::Memory;

/// Keeps the noise apart from the initial states, which have the same seed.
const STREAM: u64 = u64::from_be_bytes(*b"wavenois");

/// What decoding has taken so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WavefrontStats {
    /// Diffusion steps.
    pub diffusion_steps: u64,
    /// Passes over the core, each for all rows of the front.
    pub core_passes: u64,
    /// Loop steps of all rows.
    pub row_steps: u64,
    /// Diffusion steps in which the front was as long as it may be.
    pub standing: u64,
    /// Tokens that are final.
    pub frozen: u64,
    /// Those of them that no criterion took for settled ([`WavefrontConfig::patience`]).
    pub forced: u64,
}

/// Decodes a sequence of a session along a wavefront.
///
/// The session holds all tokens before the youngest that is final; that one and the guesses behind it are its rows
/// [in flight](Session::in_flight).
#[derive(Debug, Clone)]
pub struct Wavefront {
    config: WavefrontConfig,
    sequence: usize,
    /// Tokens of the front's rows; the first is final. Empty before [`begin`](Self::begin).
    tokens: Vec<u32>,
    /// Loop steps that the rows' positions have had.
    counts: Vec<usize>,
    guesses: Vec<u32>,
    frozen: Vec<u32>,
    /// Loop steps of the rows that these were read from.
    frozen_steps: Vec<usize>,
    memory: Memory,
    /// States that noise is made of, `[S]`.
    fresh: Vec<f32>,
    /// States after a step, `[rows][S]`.
    states: Vec<f32>,
    /// Steps since a token froze.
    waited: usize,
    stats: WavefrontStats,
}

impl Wavefront {
    /// Nothing in flight yet.
    ///
    /// # Errors
    /// As [`WavefrontConfig::validate`].
    pub fn new(config: WavefrontConfig) -> Result<Self, Error> {
        config.validate()?;
        Ok(Self {
            config,
            sequence: 0,
            tokens: Vec::new(),
            counts: Vec::new(),
            guesses: Vec::new(),
            frozen: Vec::new(),
            frozen_steps: Vec::new(),
            memory: Memory::default(),
            fresh: Vec::new(),
            states: Vec::new(),
            waited: 0,
            stats: WavefrontStats::default(),
        })
    }

    /// The settings in force.
    pub fn config(&self) -> &WavefrontConfig {
        &self.config
    }

    /// What was taken since [`begin`](Self::begin).
    pub fn stats(&self) -> &WavefrontStats {
        &self.stats
    }

    /// The tokens that the latest step made final.
    pub fn frozen(&self) -> &[u32] {
        &self.frozen
    }

    /// Loop steps that the positions had had from which the latest step's tokens were read.
    pub fn frozen_steps(&self) -> &[usize] {
        &self.frozen_steps
    }

    /// The youngest token that is final, which the session does not hold yet; `None` before [`begin`](Self::begin).
    pub fn pending(&self) -> Option<u32> {
        self.tokens.first().copied()
    }

    /// The guesses that are in flight behind it.
    pub fn guessed(&self) -> &[u32] {
        self.tokens.get(1..).unwrap_or_default()
    }

    /// Starts a front behind what a sequence of the session holds. Its first row is `token`, drawn from the logits behind that;
    /// `steps` are the loop steps that these took, which the published code counts for this row.
    ///
    /// # Errors
    /// [`Error::NoInjection`], [`Error::Chunk`]; as [`Session::can_fly`] otherwise.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn begin(&mut self, session: &mut Session, sequence: usize, token: u32, steps: usize) -> Result<(), Error> {
        Self::suits(session)?;
        session.discard(sequence, 0);
        self.sequence = sequence;
        self.stats = WavefrontStats::default();
        self.tokens.clear();
        self.counts.clear();
        self.tokens.push(token);
        self.counts.push(steps);
        self.waited = 0;
        self.memory.clear();
        Ok(())
    }

    /// Can sequences of this session be decoded so?
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn suits(session: &Session) -> Result<(), Error> {
        session.can_fly()?;
        Self::suits_model(session.model())?;
        if session.chunk_rows() < LEAST_ROWS {
            return Err(Error::Chunk(session.chunk_rows()));
        }
        Ok(())
    }

    /// Does the loop of this model read its input in every step?
    ///
    /// # Errors
    /// [`Error::NoInjection`].
    pub fn suits_model(model: &Model) -> Result<(), Error> {
        let read_anew = |l: &Looped| matches!(l.injection, Injection::Linear { .. } | Injection::Diagonal { .. });
        let suits = model.plan().loops().all(|l| read_anew(l) && l.start == Start::Initial);
        if suits { Ok(()) } else { Err(Error::NoInjection) }
    }

    /// One diffusion step: gives the tokens that it made final, none in many. `None` when the context has no room for another, and
    /// before [`begin`](Self::begin).
    ///
    /// The sampler is told of these tokens, as if they had been drawn one by one; its guesses are the draws that it would make.
    ///
    /// # Errors
    /// As [`Session::advance`], [`Session::read`] and [`Sampler::guess`]. All rows are dropped then. The tokens given so far stay final, and
    /// the next call starts a new front behind them.
    pub fn advance(&mut self, session: &mut Session, sampler: &mut Sampler) -> Result<Option<&[u32]>, Error> {
        self.frozen.clear();
        self.frozen_steps.clear();
        let first = session.len(self.sequence);
        if session.in_flight(self.sequence).is_empty() {
            self.tokens.truncate(1);
            self.counts.truncate(1);
            self.memory.clear();
        }
        let context = session.kv_shape().context;
        if first >= context || self.tokens.is_empty() || (self.tokens.len() == 1 && first + 1 >= context) {
            return Ok(None);
        }
        let step = self.step(session, sampler, first);
        if step.is_err() {
            session.discard(self.sequence, first);
        }
        step.map(|()| Some(&*self.frozen))
    }

    /// A step of the front whose first row is at position `first`.
    fn step(&mut self, session: &mut Session, sampler: &mut Sampler, first: usize) -> Result<(), Error> {
        self.renew(session, first)?;
        self.mix(session, first);
        self.run(session)?;
        let count = self.guess(session, sampler, first)?;
        self.stats.diffusion_steps += 1;

        let most = self.config.most_rows.min(session.chunk_rows());
        let known = self.guesses.len() == count;
        let grows = known && count < most && first + count < session.kv_shape().context;
        self.stats.standing += u64::from(count >= most);

        let (sequence, width) = (self.sequence, session.model().config().state_width);
        self.states.clear();
        for row in 0..count {
            self.states.extend_from_slice(session.latent_mut(sequence, row));
        }
        let settled = self.memory.settled(self.config.freeze, &self.states, width);
        let mut frozen = settled.unwrap_or(0);
        self.waited += 1;
        if frozen == 0 && self.waited >= self.config.patience && count >= LEAST_ROWS {
            frozen = 1;
            self.stats.forced += 1;
        }
        // A front begins with one row. If it comes to no more, the row behind never lasts, and this one would never freeze.
        if count < LEAST_ROWS && self.waited > self.config.patience + 1 {
            return Err(model::Error::NotFinite { position: first + 1, step: self.config.inner_steps }.into());
        }
        if frozen > 0 {
            self.waited = 0;
        }
        for &token in &self.guesses[..frozen] {
            session.freeze(sequence);
            sampler.accept(token);
            self.frozen.push(token);
        }
        sampler.set_position(sampler.position().wrapping_add(frozen as u64));
        self.stats.frozen += frozen as u64;

        // The token of row i > 0 is the guess of row i - 1.
        self.tokens.truncate(1);
        self.tokens.extend_from_slice(&self.guesses);
        self.tokens.truncate(count + usize::from(grows));
        self.tokens.drain(..frozen);
        self.frozen_steps.extend_from_slice(&self.counts[..frozen]);
        self.counts.truncate(count);
        self.counts.resize(count + usize::from(grows), 0);
        self.counts.drain(..frozen);
        Ok(())
    }

    /// Rows in flight take the tokens that are guessed now, and the last one joins them.
    fn renew(&mut self, session: &mut Session, first: usize) -> Result<(), Error> {
        let (sequence, ema) = (self.sequence, self.config.ema);
        let flying = session.in_flight(sequence).len().min(self.tokens.len());
        let mut policy = self.policy();
        session.reenter(sequence, first, &self.tokens[..flying], ema, &mut policy)?;
        // The first row of all is a token like any other: its input is whole, as if it had been the same in a step before.
        let blend = if flying == 0 { 0.0 } else { ema };
        if flying < self.tokens.len() {
            session.enter_blended(sequence, &self.tokens[flying..], blend, &mut policy)?;
        }
        self.memory.begin(first, self.config.compare);
        for row in 0..self.tokens.len() {
            self.memory.before(session.latent_mut(sequence, row));
        }
        Ok(())
    }

    /// Mixes noise into all states.
    fn mix(&mut self, session: &mut Session, first: usize) {
        if self.config.noise == 0.0 {
            return;
        }
        let initial = match session.initial() {
            InitialState::Noise { seed } => {
                InitialState::Noise { seed: random::bits(*seed, STREAM, self.stats.diffusion_steps) }
            }
            fixed => fixed.clone(),
        };
        self.fresh.resize(session.model().config().state_width, 0.0);
        for (i, (&token, &count)) in self.tokens.iter().zip(&self.counts).enumerate() {
            let row = Row { sequence: self.sequence, position: first + i, token };
            initial.fill(session.model().config(), &row, &mut self.fresh);
            let share = self.config.noise / (1 + count) as f32;
            let state = session.latent_mut(self.sequence, i);
            state.iter_mut().zip(&self.fresh).for_each(|(s, f)| *s = *s * (1.0 - share) + share * f);
        }
    }

    /// The inner steps. Guesses whose states are not finite any more are dropped, with all that is behind them.
    fn run(&mut self, session: &mut Session) -> Result<(), Error> {
        let mut left = self.config.inner_steps;
        while left > 0 {
            let rows = session.in_flight(self.sequence).len();
            let sequence = self.sequence;
            let done = session.advance(|s, _| s == sequence, left, &mut self.policy())?;
            if done == 0 {
                break;
            }
            left = left.saturating_sub(done);
            self.stats.core_passes += done as u64;
            self.stats.row_steps += (done * rows) as u64;
            self.counts.iter_mut().for_each(|count| *count += done);
            let failed = session.in_flight(sequence).iter().find(|row| row.failed).map(|row| row.position);
            if let Some(position) = failed {
                session.discard(sequence, position);
            }
        }
        Ok(())
    }

    /// Guesses the token behind every row, and gives the number of rows that there are then: those behind a row without logits are
    /// dropped.
    fn guess(&mut self, session: &mut Session, sampler: &mut Sampler, first: usize) -> Result<usize, Error> {
        let sequence = self.sequence;
        session.read(|s, _| if s == sequence { Read::Logits } else { Read::No })?;
        self.guesses.clear();
        let count = session.in_flight(sequence).len();
        for row in 0..count {
            match session.logits_of(sequence, row) {
                Some(logits) => self.guesses.push(sampler.guess(logits, &self.guesses)?),
                None if row == 0 => return Err(model::Error::LogitsNotFinite { position: first }.into()),
                None => {
                    session.discard(sequence, first + row + 1);
                    return Ok(row + 1);
                }
            }
        }
        Ok(count)
    }

    /// Rows stay in the loop for as long as there are diffusion steps.
    fn policy(&self) -> FixedDepth {
        FixedDepth(self.config.inner_steps.saturating_add(1))
    }
}
