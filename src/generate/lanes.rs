//! Several sequences of a session at a time: what waits to be run in each, and the passes that their rows share.

use crate::model::{DepthPolicy, Error, InFlight, Model, Read, Session, SessionOptions};
use std::collections::VecDeque;
use std::sync::Arc;

/// A token that waits to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The token.
    pub token: u32,
    /// It enters the loop when all before it are held, nothing enters behind it before it is, and a policy may decide by its logits
    /// ([`crate::model::Verdict::ReadOut`]). Other tokens enter together, as many as there is room for.
    pub alone: bool,
    /// Are its logits wanted?
    pub logits: bool,
}

/// What waits and what is in flight in each sequence of a session.
///
/// A sequence that is done may take up another text at once, while the others go on: rows of one pass stand at different steps. What
/// is computed is, to the last bit, what [`Session::run`] would have computed for each sequence by itself, as long as rows
/// [fly exactly](Session::flies_exactly).
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
    /// Sequences in the order in which they take up room.
    order: Vec<usize>,
    /// Tokens on their way to the session.
    tokens: Vec<u32>,
}

/// One sequence.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Due>,
    flying: VecDeque<Due>,
}

impl Lanes {
    /// Nothing waits in any of so many sequences.
    pub fn new(sequences: usize) -> Self {
        Self {
            lanes: std::iter::repeat_with(Lane::default).take(sequences).collect(),
            order: (0..sequences).collect(),
            tokens: Vec::new(),
        }
    }

    /// A session with as many sequences as `options` ask for, if they can go on at the same time and nothing changes for any of them:
    /// fewer where the cache has no room for so many with the context and the KV slots that one alone has, or a pass no room for a row of
    /// each; and one where rows cannot be kept in flight, or not exactly, or prompts are read in both directions.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(model: &Arc<Model>, options: &SessionOptions) -> Result<Session, Error> {
        let of = |options: SessionOptions| Session::new(Arc::clone(model), &options);
        let one = of(SessionOptions { sequences: 1, ..options.clone() })?;
        let shape = *one.kv_shape();
        let fit = usize::try_from(options.kv_budget / shape.bytes.max(1)).unwrap_or(usize::MAX);
        let sequences = options.sequences.min(one.chunk_rows()).min(fit);
        if sequences < 2 || !Self::suit(&one) {
            return Ok(one);
        }
        drop(one);
        let (context, kv_slots) = (Some(shape.context), Some(shape.slots));
        of(SessionOptions { sequences, context, kv_slots, ..options.clone() })
    }

    /// Can the sequences of a session go on at the same time, with the results that each has alone?
    pub fn suit(session: &Session) -> bool {
        let causal = !session.model().config().prefix_lm;
        causal && session.can_fly().is_ok() && session.flies_exactly(session.steps())
    }

    /// Adds tokens behind those that wait in a sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn push(&mut self, sequence: usize, due: impl IntoIterator<Item = Due>) {
        self.lanes[sequence].waiting.extend(due);
    }

    /// Forgets all sequences, with what waits and what the session holds of them.
    pub fn clear(&mut self, session: &mut Session) {
        (0..self.lanes.len()).for_each(|s| self.clear_sequence(session, s));
    }

    /// Forgets a sequence, with what waits and what the session holds of it.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn clear_sequence(&mut self, session: &mut Session, sequence: usize) {
        self.lanes[sequence] = Lane::default();
        session.truncate(sequence, 0);
    }

    /// Takes rows on until those of a sequence have all left the loop; what has come so far is to be [taken](Self::land) before the
    /// next pass. False: nothing waits, and nothing is in flight.
    ///
    /// # Errors
    /// As [`Session::enter`], [`Session::advance`] and [`Session::read`]. It is not known whose row it was, and what is in flight is of no
    /// use: the sequences are to be [forgotten](Self::clear).
    pub fn pass(&mut self, session: &mut Session, policy: &mut dyn DepthPolicy) -> Result<bool, Error> {
        loop {
            self.enter(session, policy)?;
            if session.flying() == 0 {
                return Ok(false);
            }
            session.advance(|_, _| true, usize::MAX, policy)?;
            let rows = |s: usize| session.in_flight(s);
            // A session waits with rows that may be wrong guesses. There are none here, and the row would be waited for in vain.
            if let Some(row) = (0..self.lanes.len()).flat_map(rows).find(|row| row.failed) {
                return Err(Error::NotFinite { position: row.position, step: row.steps });
            }
            let landed = |s: usize| !rows(s).is_empty() && rows(s).iter().all(|row| row.left);
            let landed: Vec<bool> = (0..self.lanes.len()).map(landed).collect();
            if landed.contains(&true) {
                self.read(session, &landed)?;
                return Ok(true);
            }
        }
    }

    /// Lets in what there is room for. Sequences of which little waits go first, so that drawn tokens do not wait for long prompts.
    fn enter(&mut self, session: &mut Session, policy: &mut dyn DepthPolicy) -> Result<(), Error> {
        self.order.sort_by_key(|&s| self.lanes[s].waiting.len());
        for &s in &self.order {
            let room = session.chunk_rows() - session.flying();
            let lane = &mut self.lanes[s];
            let Some(&Due { alone, .. }) = lane.waiting.front() else { continue };
            let n = match alone {
                _ if lane.flying.back().is_some_and(|due| due.alone) => 0,
                true => room.min(usize::from(lane.flying.is_empty())),
                false => lane.waiting.iter().take(room).take_while(|due| !due.alone).count(),
            };
            if n > 0 {
                self.tokens.clear();
                self.tokens.extend(lane.waiting.iter().take(n).map(|due| due.token));
                session.enter(s, &self.tokens, alone, policy)?;
                lane.flying.extend(lane.waiting.drain(..n));
            }
        }
        Ok(())
    }

    /// Reads out the rows of sequences that have all left, where that has not been done.
    fn read(&self, session: &mut Session, landed: &[bool]) -> Result<(), Error> {
        let first: Vec<_> = (0..landed.len()).map(|s| session.in_flight(s).first().map(|row| row.position)).collect();
        session.read(|s, row| {
            let due = first[s].and_then(|first| self.lanes[s].flying.get(row.position - first));
            match due {
                Some(due) if landed[s] && !row.is_final() => {
                    if due.logits {
                        Read::Logits
                    } else {
                        Read::Keys
                    }
                }
                _ => Read::No,
            }
        })?;
        for s in (0..landed.len()).filter(|&s| landed[s]) {
            let flying = self.lanes[s].flying.iter().enumerate();
            let mut wanted = flying.filter(|(_, due)| due.logits).map(|(i, _)| i);
            // Of rows that may be wrong guesses a session keeps this to itself.
            if let Some(i) = wanted.find(|&i| session.logits_of(s, i).is_none()) {
                return Err(Error::LogitsNotFinite { position: session.in_flight(s)[i].position });
            }
        }
        Ok(())
    }

    /// What has come through in a sequence becomes tokens that it holds: `each` is given the rows, oldest first, with their logits `[V]`,
    /// which are empty where they were not wanted.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn land(&mut self, session: &mut Session, sequence: usize, mut each: impl FnMut(&InFlight, &[f32])) {
        let flying = &mut self.lanes[sequence].flying;
        while let (Some(due), Some(row)) = (flying.front(), session.in_flight(sequence).first()) {
            if !row.is_final() {
                break;
            }
            let logits = session.logits_of(sequence, 0).filter(|_| due.logits);
            each(row, logits.unwrap_or_default());
            session.commit(sequence);
            flying.pop_front();
        }
    }
}
