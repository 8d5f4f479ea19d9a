//! A session run over windows.

use super::ahead::Ahead;
use super::{Error, Windows};
use crate::model::{self, Batch, DepthPolicy, Logits, Session};
use std::ops::Range;

/// Scored positions whose logits are held at a time. More would take memory (a vocabulary's worth each) and gain nothing.
const PIECE: usize = 64;

/// How windows are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Tokens at the start of every window that see each other in both directions, for models that were trained so
    /// ([`crate::model::Config::prefix_lm`]); at most as many as come before the first scored position.
    pub prefix: usize,
    /// Run token by token and let the policy read out logits inside the loop ([`Batch::readout_exits`]).
    pub readout_exits: bool,
}

/// A scored position.
#[derive(Debug, Clone, Copy)]
pub struct Scored<'a> {
    /// Its window, from 0.
    pub window: usize,
    /// Its place in the window.
    pub position: usize,
    /// The token that follows in the text.
    pub target: u32,
    /// What the model says of it, `[V]`.
    pub logits: &'a [f32],
    /// Loop steps that the position took; in a model with several loops their sum.
    pub steps: usize,
}

/// A session on its way through windows, some scored positions at a time. [`evaluate`] is the loop around it; two of them in
/// turn compare two models without storing either's logits.
///
/// Where windows are read token by token, as many at a time go through a session as it has
/// [sequences that suit](crate::generate::Lanes::suit), as long as their logits take no more than 256 MiB; the policy then sees their positions
/// among each other. Results are the same bits, and come in the same order. Elsewhere one window at a time is read: the rows of a chunk share each
/// reading of the weights as it is.
pub struct Evaluation<'a, P> {
    session: &'a mut Session,
    policy: P,
    windows: &'a Windows,
    reading: Reading,
    window: usize,
    /// Of the window.
    tokens: Vec<u32>,
    /// The positions at hand, in the window.
    piece: Range<usize>,
    /// `[piece][V]`, `[piece]`.
    logits: Vec<f32>,
    steps: Vec<usize>,
    ahead: Ahead,
}

impl<'a, P: DepthPolicy> Evaluation<'a, P> {
    /// An evaluation that has read nothing yet. The sequences of the session are used, and forgotten between windows.
    ///
    /// # Errors
    /// [`Error::Prefix`], [`Error::NoPrefix`], [`Error::Room`]; [`model::Error::PrefixTooLong`].
    pub fn new(session: &'a mut Session, policy: P, windows: &'a Windows, reading: Reading) -> Result<Self, Error> {
        check(session, windows, reading.prefix)?;
        let scored = windows.scored();
        let ahead = Ahead::new(session, windows, reading.readout_exits && reading.prefix == 0);
        Ok(Self {
            ahead,
            session,
            policy,
            windows,
            reading,
            window: 0,
            tokens: Vec::new(),
            piece: scored.end..scored.end,
            logits: Vec::new(),
            steps: Vec::new(),
        })
    }

    /// Windows that are read at a time.
    pub fn at_a_time(&self) -> usize {
        self.ahead.at_a_time()
    }

    /// Where the next [`advance`](Self::advance) will stand: window and positions in it; `None` at the end.
    pub fn upcoming(&self) -> Option<(usize, Range<usize>)> {
        let scored = self.windows.scored();
        let (window, start) = match self.piece.end < scored.end {
            true => (self.window, self.piece.end),
            false if self.tokens.is_empty() => (0, scored.start),
            false => (self.window + 1, scored.start),
        };
        (window < self.windows.len()).then(|| (window, start..scored.end.min(start + PIECE)))
    }

    /// Runs the model on to the next scored positions. False: there are none.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn advance(&mut self) -> Result<bool, Error> {
        let Some((window, piece)) = self.upcoming() else { return Ok(false) };
        let at = (window, &piece);
        if let Some((logits, steps)) = self.ahead.rows(self.session, &mut self.policy, self.windows, at)? {
            self.logits.clear();
            self.logits.extend_from_slice(logits);
            self.steps.clear();
            self.steps.extend_from_slice(steps);
            if window != self.window || self.tokens.is_empty() {
                self.tokens = self.windows.get(window).tokens;
            }
            (self.window, self.piece) = (window, piece);
            return Ok(true);
        }
        let mut read = self.piece.end;
        if window != self.window || self.tokens.is_empty() {
            self.tokens = self.windows.get(window).tokens;
            self.session.truncate(0, 0);
            read = 0;
        }
        self.window = window;
        let prefix = self.reading.prefix;
        for (part, both_ways) in [(read..prefix, true), (read.max(prefix)..piece.start, false)] {
            if !part.is_empty() {
                self.run(part, both_ways, Logits::None)?;
            }
        }
        self.run(piece.clone(), false, Logits::All)?;
        self.piece = piece;
        Ok(true)
    }

    fn run(&mut self, part: Range<usize>, both_ways: bool, logits: Logits) -> Result<(), Error> {
        let readout_exits = self.reading.readout_exits && !both_ways;
        let batch = Batch { sequence: 0, tokens: &self.tokens[part], logits, readout_exits, both_ways };
        let output = self.session.run(batch, &mut self.policy)?;
        self.logits.clear();
        self.logits.extend_from_slice(output.logits);
        self.steps.clear();
        self.steps.extend_from_slice(output.steps);
        Ok(())
    }

    /// The scored positions at hand, in order.
    pub fn scored(&self) -> impl Iterator<Item = Scored<'_>> {
        let vocab = self.session.model().config().vocab;
        let rows = self.logits.chunks_exact(vocab).zip(&self.steps);
        self.piece.clone().zip(rows).map(|(position, (logits, &steps))| Scored {
            window: self.window,
            position,
            target: self.tokens[position + 1],
            logits,
            steps,
        })
    }

    /// Why the session left its device, if it has since this was last asked; see [`Session::take_notice`].
    pub fn take_notice(&mut self) -> Option<String> {
        self.session.take_notice()
    }

    /// What decides how deep tokens go.
    pub fn policy(&self) -> &P {
        &self.policy
    }

    /// The same, to be changed.
    pub fn policy_mut(&mut self) -> &mut P {
        &mut self.policy
    }
}

impl<P: std::fmt::Debug> std::fmt::Debug for Evaluation<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluation")
            .field("policy", &self.policy)
            .field("reading", &self.reading)
            .field("window", &self.window)
            .field("piece", &self.piece)
            .finish_non_exhaustive()
    }
}

/// Can a session read these windows, with a prefix of this length?
pub(super) fn check(session: &Session, windows: &Windows, prefix: usize) -> Result<(), Error> {
    let (scored, context, config) = (windows.scored(), windows.context(), session.model().config());
    if prefix > 0 && !config.prefix_lm {
        return Err(Error::NoPrefix { prefix, architecture: config.architecture.clone() });
    }
    if prefix > scored.start {
        return Err(Error::Prefix { prefix, context, most: scored.start });
    }
    if prefix > session.chunk_rows() {
        return Err(model::Error::PrefixTooLong { asked: prefix, most: session.chunk_rows() }.into());
    }
    let room = session.kv_shape().context;
    if scored.end > room {
        return Err(Error::Room { context, room });
    }
    Ok(())
}

/// Runs a session over all windows and hands out every scored position, in the order of the text.
///
/// Windows are sequences of their own. Results do not depend on threads or chunks as long as all loop steps have KV slots.
///
/// # Errors
/// As [`Evaluation::new`] and [`Session::run`]; what `each` returns.
pub fn evaluate<P: DepthPolicy>(
    session: &mut Session,
    policy: P,
    windows: &Windows,
    reading: Reading,
    each: &mut dyn FnMut(Scored<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut evaluation = Evaluation::new(session, policy, windows, reading)?;
    while evaluation.advance()? {
        evaluation.scored().try_for_each(&mut *each)?;
    }
    Ok(())
}
