//! Rows in flight: tokens that have entered the loop and are not held yet.
//!
//! [`Session::run`] takes tokens from embedding to logits in one go. Here the parts of that way are calls of their own, and between
//! them the rows stay where they are, each at its own loop step: [`enter`](Session::enter) (embedding, prelude, initial state),
//! [`advance`](Session::advance) (core steps), [`read`](Session::read) (coda and head), [`commit`](Session::commit) (the oldest row
//! becomes a held token) and [`discard`](Session::discard). Rows of one pass share one reading of the core's weights, whatever
//! their sequence, position and step.
//!
//! # What makes it exact
//! Step j of a position needs the keys of step j of the positions before it, and nothing of their later steps. So a row may enter
//! while its predecessor is still in the loop, as long as it stays behind it or beside it; what it computes are the bits that it would
//! have computed after it. Two things tie it to its predecessor's end:
//! - its token, which is a guess until the predecessor's last logits are known. A wrong guess is discarded with all that
//!   follow it; keys and values that it has written lie behind the end of the sequence, where nobody looks before they are
//!   written anew.
//! - coda keys. What is read out behind rows that are still in the loop sees the keys of their present states, and so is a guess. A row's
//!   read-out is [final](InFlight::is_final) once it and all rows before it have left the loop.
//!
//! This needs a KV slot for every step ([`super::KvShape::slots`]): where steps share slots, the slot of an earlier position holds
//! another step's keys while that position is in flight than it does afterwards. Nothing is refused then; results are approximate.

use super::forward::{Entry, Task};
use super::session::{Places, Row};
use super::{DepthPolicy, Error, LatentStats, Segment, Session};
use crate::team::Buffer;

/// A row in flight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// Its position in its sequence.
    pub position: usize,
    /// Its token.
    pub token: u32,
    /// Loop steps done.
    pub steps: usize,
    /// Has it left the loop?
    pub left: bool,
    /// Its state is not finite any more: it stays where it is.
    pub failed: bool,
    /// Where it is in the session's buffers.
    place: usize,
    /// Steps at which its coda keys were written last.
    read_at: Option<usize>,
    /// Are there logits of its latest read-out?
    has_logits: bool,
    /// May a policy decide by its logits, once it is the oldest?
    readable: bool,
    is_final: bool,
}

impl InFlight {
    fn new(position: usize, token: u32, place: usize, readable: bool) -> Self {
        let (left, failed, has_logits, is_final) = (false, false, false, false);
        Self { position, token, steps: 0, left, failed, place, read_at: None, has_logits, readable, is_final }
    }

    /// Has it been read out after it, and all rows before it, had left the loop?
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// Steps at which it was read out last.
    pub fn read_at(&self) -> Option<usize> {
        self.read_at
    }
}

/// What [`Session::read`] does with a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// Nothing.
    No,
    /// Writes its coda keys and values, for the rows behind it.
    Keys,
    /// That, and its logits.
    Logits,
}

/// All rows in flight.
pub(super) struct Flight {
    /// Per sequence, oldest first.
    rows: Vec<Vec<InFlight>>,
    /// Places that are free, highest first.
    free: Vec<usize>,
    places: Places,
    /// `[places][V]`, as far as it was needed.
    logits: Vec<f32>,
    room: usize,
}

impl Flight {
    pub(super) fn new(sequences: usize, room: usize, loops: usize) -> Self {
        let mut places = Places::new(room, loops);
        places.rows.resize(room, Row { sequence: 0, position: 0, token: 0 });
        places.sees.resize(room, 0);
        Self { rows: vec![Vec::new(); sequences], free: (0..room).rev().collect(), places, logits: Vec::new(), room }
    }

    /// Drops all rows.
    pub(super) fn clear(&mut self) {
        (0..self.rows.len()).for_each(|s| self.clear_sequence(s));
    }

    pub(super) fn clear_sequence(&mut self, sequence: usize) {
        self.drop_from(sequence, 0);
    }

    /// Drops the rows of a sequence from position `from` on.
    fn drop_from(&mut self, sequence: usize, from: usize) {
        let rows = &mut self.rows[sequence];
        let keep = rows.iter().position(|r| r.position >= from).unwrap_or(rows.len());
        self.free.extend(rows.drain(keep..).map(|r| r.place));
        // The lowest places first: what is touched of the buffers stays small.
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn count(&self) -> usize {
        self.room - self.free.len()
    }
}

impl Session {
    /// Can rows be kept in flight?
    ///
    /// # Errors
    /// [`Error::NeedsCpu`] on a device; [`Error::SeveralLoops`].
    pub fn can_fly(&self) -> Result<(), Error> {
        match self.model.config().loops.len() {
            1 if self.on_device.is_some() => Err(Error::NeedsCpu),
            1 => Ok(()),
            several => Err(Error::SeveralLoops(several)),
        }
    }

    /// Will rows in flight compute what they would one after the other, to the last bit? They do if every loop step has keys and
    /// values of its own.
    pub fn flies_exactly(&self, most_steps: usize) -> bool {
        self.kv_shape().slots >= most_steps
    }

    /// The rows of a sequence that are in flight, oldest first.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn in_flight(&self, sequence: usize) -> &[InFlight] {
        &self.flight.rows[sequence]
    }

    /// Rows in flight, of all sequences.
    pub fn flying(&self) -> usize {
        self.flight.count()
    }

    /// Tokens enter at the next positions of a sequence, behind those in flight. `readable` are tokens whose depth a policy may
    /// decide by their logits ([`super::Verdict::ReadOut`]), as soon as they are the oldest of their sequence.
    ///
    /// # Errors
    /// As [`can_fly`](Self::can_fly); [`Error::Empty`], [`Error::Token`], [`Error::ContextFull`], [`Error::FlightFull`] before anything has
    /// happened. (A cancelled session says so with its next step.)
    ///
    /// # Panics
    /// If there is no such sequence, or the policy's `max_steps` is 0.
    pub fn enter(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        readable: bool,
        policy: &mut dyn DepthPolicy,
    ) -> Result<(), Error> {
        self.enter_as(sequence, tokens, readable, Entry::FRESH, policy)
    }

    /// As [`enter`](Self::enter) and then [`reenter`](Self::reenter) behind a constant input of zeros: that of the new rows is
    /// `(1 − blend)·new`.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    ///
    /// # Panics
    /// As [`enter`](Self::enter).
    pub fn enter_blended(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        blend: f32,
        policy: &mut dyn DepthPolicy,
    ) -> Result<(), Error> {
        self.enter_as(sequence, tokens, false, Entry { fresh: true, blend }, policy)
    }

    fn enter_as(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        readable: bool,
        entry: Entry,
        policy: &mut dyn DepthPolicy,
    ) -> Result<(), Error> {
        self.can_fly()?;
        assert!(policy.max_steps(0) > 0, "a row takes at least one step");
        let used = self.held[sequence].len() + self.flight.rows[sequence].len();
        self.admits(tokens, used)?;
        let flight = &mut self.flight;
        if tokens.len() > flight.free.len() {
            return Err(Error::FlightFull { asked: flight.count() + tokens.len(), room: flight.room });
        }
        flight.places.which.clear();
        flight.places.wanted.clear();
        for (position, &token) in (used..).zip(tokens) {
            let Some(place) = flight.free.pop() else { break };
            flight.rows[sequence].push(InFlight::new(position, token, place, readable));
            flight.places.rows[place] = Row { sequence, position, token };
            flight.places.sees[place] = position + 1;
            flight.places.which.push(place);
        }
        let done = self.fly(policy, Task::Enter(entry));
        if done.is_err() {
            self.flight.drop_from(sequence, used);
        }
        done
    }

    /// Rows in flight become rows of these tokens, at positions `first` and following: embedding and prelude run anew, the constant input
    /// e `[D]` is `(1 − blend)·new + blend·old`, and the latent state stays (but for the inner state of models that have one). Steps are
    /// counted from 0 again, so that the KV slots are those of the first steps. It is what arXiv 2510.14961 does with its embeddings.
    ///
    /// # Errors
    /// [`Error::Option`] if some of the positions are not in flight; [`Error::Token`].
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn reenter(
        &mut self,
        sequence: usize,
        first: usize,
        tokens: &[u32],
        blend: f32,
        policy: &mut dyn DepthPolicy,
    ) -> Result<(), Error> {
        let vocab = self.model.config().vocab;
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            return Err(Error::Token { token, vocab });
        }
        let flight = &mut self.flight;
        let rows = &mut flight.rows[sequence];
        let from = rows.iter().position(|r| r.position == first).unwrap_or(rows.len());
        let Some(rows) = rows.get_mut(from..from + tokens.len()) else {
            return Err(Error::Option(format!("positions {first} and following are not in flight")));
        };
        flight.places.which.clear();
        flight.places.wanted.clear();
        for (row, &token) in rows.iter_mut().zip(tokens) {
            *row = InFlight::new(row.position, token, row.place, row.readable);
            flight.places.rows[row.place].token = token;
            flight.places.which.push(row.place);
        }
        if tokens.is_empty() {
            return Ok(());
        }
        self.fly(policy, Task::Enter(Entry { fresh: false, blend }))
    }

    /// Up to `steps` core steps of those rows in flight that are still in the loop and that `pick` (by sequence) takes. It ends after the first
    /// step with which one of them leaves, so that the caller can act on it. Gives the number of steps done, each a pass over the core.
    ///
    /// A row needs the keys of those before it. So one that would overtake another that is in the loop is left out.
    ///
    /// # Errors
    /// [`Error::NotFinite`] and [`Error::LogitsNotFinite`] for the oldest row of a sequence (others are marked as
    /// [failed](InFlight::failed): they may be wrong guesses); [`Error::Cancelled`]. All rows of all sequences are dropped then.
    pub fn advance(
        &mut self,
        mut pick: impl FnMut(usize, &InFlight) -> bool,
        steps: usize,
        policy: &mut dyn DepthPolicy,
    ) -> Result<usize, Error> {
        let Flight { rows: all, places, .. } = &mut self.flight;
        places.which.clear();
        places.wanted.clear();
        for (s, rows) in all.iter().enumerate() {
            let mut most = usize::MAX;
            for (i, row) in rows.iter().enumerate().filter(|(_, row)| !row.left) {
                let after = row.steps.saturating_add(steps);
                if !row.failed && after <= most && pick(s, row) {
                    places.which.push(row.place);
                    places.readable[row.place] = row.readable && i == 0;
                    most = after;
                } else {
                    most = most.min(row.steps);
                }
            }
        }
        let Some(&first) = places.which.first() else { return Ok(0) };
        if steps == 0 {
            return Ok(0);
        }
        let before = places.steps[first];
        self.decided.clear();
        self.decided.active.extend_from_slice(&self.flight.places.which);
        self.fly(policy, Task::Step(steps))?;
        let done = self.flight.places.steps[first] - before;
        self.ask_about(policy)?;
        let mut error = None;
        let (flight, decided) = (&mut self.flight, &self.decided);
        for rows in &mut flight.rows {
            for (i, row) in rows.iter_mut().enumerate() {
                row.steps = flight.places.steps[row.place];
                row.left |= decided.left.iter().any(|&(place, _)| place == row.place);
                row.failed |= decided.failed.contains(&row.place);
                if row.failed && i == 0 {
                    error.get_or_insert(Error::NotFinite { position: row.position, step: row.steps });
                }
            }
        }
        error.map_or(Ok(done), |error| {
            self.flight.clear();
            Err(error)
        })
    }

    /// Reads out the rows that the policy asked about, and lets it decide. Those that leave have their last logits then.
    fn ask_about(&mut self, policy: &mut dyn DepthPolicy) -> Result<(), Error> {
        if self.decided.asked.is_empty() {
            return Ok(());
        }
        let asked = std::mem::take(&mut self.decided.asked);
        self.flight.places.which.clone_from(&asked);
        self.flight.places.wanted.clear();
        self.flight.places.wanted.extend(0..asked.len());
        let left = std::mem::take(&mut self.decided.left);
        self.fly(policy, Task::Land)?;
        self.decided.left = left;
        let (vocab, max) = (self.model.config().vocab, super::policy::most_steps(policy, self.model.config(), 0));
        for (i, &place) in asked.iter().enumerate() {
            let row = self.flight.places.rows[place];
            self.keep_logits(i, place);
            let logits = &self.flight.logits[place * vocab..(place + 1) * vocab];
            let finite = logits.iter().all(|x| x.is_finite());
            let step = self.flight.places.steps[place];
            let gated = self.model.config().exit_gate;
            let gate = if gated { self.scratch.gates.get_mut()[place] } else { f32::NAN };
            let stats = LatentStats::new(0, step, &self.scratch.sums.get_mut()[place], gate);
            let leaves = policy.after_readout(place, &row, &stats, logits) || step >= max;
            // On the way they are the rule's affair.
            if leaves && !finite {
                self.flight.clear();
                return Err(Error::LogitsNotFinite { position: row.position });
            }
            let known = self.flight.rows[row.sequence].first_mut();
            if let Some(known) = known {
                (known.read_at, known.has_logits, known.is_final) = (Some(step), true, leaves);
            }
            if leaves {
                self.decided.left.push((place, step));
                self.fill_forward(&row, step);
            }
        }
        Ok(())
    }

    /// A row has left the loop: its later KV slots show its last keys.
    fn fill_forward(&mut self, row: &Row, steps: usize) {
        for segment in &self.model.plan().segments {
            if let Segment::Looped(looped) = segment {
                for block in looped.blocks() {
                    // SAFETY: no job is running, so this thread has all of the cache to itself.
                    unsafe { self.kv.fill_forward(block, row.sequence, row.position, steps) };
                }
            }
        }
    }

    /// Reads rows in flight out at their present states: `pick` says which of each sequence, and whether their logits are wanted
    /// ([`logits_of`](Self::logits_of)). Rows that stand before one of them and were never read out are read too, since it needs their keys.
    ///
    /// # Errors
    /// [`Error::LogitsNotFinite`] where they are [final](InFlight::is_final) for the oldest row of a sequence, and all rows are dropped; of
    /// others, which may be wrong guesses, there just are none.
    pub fn read(&mut self, mut pick: impl FnMut(usize, &InFlight) -> Read) -> Result<(), Error> {
        let Flight { rows: all, places, .. } = &mut self.flight;
        places.which.clear();
        places.wanted.clear();
        for (s, rows) in all.iter_mut().enumerate() {
            let from = places.which.len();
            let mut some = false;
            for row in rows.iter_mut().rev() {
                row.has_logits &= row.is_final;
                let read = match pick(s, row) {
                    Read::No if some && row.read_at.is_none() => Read::Keys,
                    read => read,
                };
                if read != Read::No {
                    some = true;
                    places.which.push(row.place);
                    row.has_logits = read == Read::Logits;
                    row.read_at = Some(row.steps);
                }
            }
            places.which[from..].reverse();
            let mut all_final = true;
            for row in rows {
                row.is_final |= all_final && row.left && places.which[from..].contains(&row.place);
                all_final &= row.is_final;
                if row.has_logits
                    && let Some(i) = places.which[from..].iter().position(|&p| p == row.place)
                {
                    places.wanted.push(from + i);
                }
            }
        }
        if places.which.is_empty() {
            return Ok(());
        }
        self.fly(&mut super::FixedDepth(1), Task::Land)?;
        let wanted = std::mem::take(&mut self.flight.places.wanted);
        for (i, &w) in wanted.iter().enumerate() {
            self.keep_logits(i, self.flight.places.which[w]);
        }
        self.flight.places.wanted = wanted;
        let vocab = self.model.config().vocab;
        let Flight { rows: all, logits, .. } = &mut self.flight;
        let mut error = None;
        for (i, row) in all.iter_mut().flat_map(|rows| rows.iter_mut().enumerate()).filter(|(_, r)| r.has_logits) {
            if !logits[row.place * vocab..(row.place + 1) * vocab].iter().all(|x| x.is_finite()) {
                row.has_logits = false;
                if row.is_final && i == 0 {
                    error.get_or_insert(Error::LogitsNotFinite { position: row.position });
                }
            }
        }
        error.map_or(Ok(()), |error| {
            self.flight.clear();
            Err(error)
        })
    }

    /// Logits `[V]` of a row in flight at its latest read-out; `None` if they were not asked for, or are not finite. `nth` counts
    /// [`in_flight`](Self::in_flight).
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn logits_of(&self, sequence: usize, nth: usize) -> Option<&[f32]> {
        let row = self.flight.rows[sequence].get(nth).filter(|r| r.has_logits)?;
        let vocab = self.model.config().vocab;
        self.flight.logits.get(row.place * vocab..(row.place + 1) * vocab)
    }

    /// The latent state `[S]` of a row in flight.
    ///
    /// # Panics
    /// If there is no such sequence, or no such row.
    pub fn latent_mut(&mut self, sequence: usize, nth: usize) -> &mut [f32] {
        let d = self.model.config().state_width;
        let place = self.flight.rows[sequence][nth].place;
        &mut self.scratch.state.get_mut()[place * d..(place + 1) * d]
    }

    /// The oldest row in flight of a sequence becomes a token that it holds. It must have left the loop and been read out last after that
    /// (for the keys), or nothing happens. Gives the row.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn commit(&mut self, sequence: usize) -> Option<InFlight> {
        self.take_first(sequence, |row| row.is_final)
    }

    /// The oldest row in flight becomes a held token with the keys that it has, finished or not, as if it had left the loop now: for
    /// samplers that decide themselves when a token is. Nothing happens if it has done no step. Gives the row.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn freeze(&mut self, sequence: usize) -> Option<InFlight> {
        let frozen = self.take_first(sequence, |row| row.steps > 0)?;
        if !frozen.left {
            // Nothing of an earlier text may show in the slots that it has not written.
            let row = Row { sequence, position: frozen.position, token: frozen.token };
            self.fill_forward(&row, frozen.steps);
        }
        Some(frozen)
    }

    fn take_first(&mut self, sequence: usize, ready: impl Fn(&InFlight) -> bool) -> Option<InFlight> {
        let rows = &mut self.flight.rows[sequence];
        if !rows.first().is_some_and(ready) {
            return None;
        }
        let row = rows.remove(0);
        self.flight.free.push(row.place);
        self.held[sequence].push(row.token);
        Some(row)
    }

    /// Drops the rows in flight of a sequence from position `from` on.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn discard(&mut self, sequence: usize, from: usize) {
        self.flight.drop_from(sequence, from);
    }

    /// Keys and values of all that a sequence holds.
    #[cfg(test)]
    pub(crate) fn kv_bytes(&mut self, sequence: usize) -> Vec<u8> {
        self.kv.bytes_of(sequence, self.held[sequence].len())
    }

    /// One job of the team for rows in flight. When it fails all are dropped: their states may be half written.
    fn fly(&mut self, policy: &mut dyn DepthPolicy, task: Task) -> Result<(), Error> {
        let mut places = std::mem::take(&mut self.flight.places);
        let done = self.job(&mut places, policy, task);
        self.flight.places = places;
        if done.is_err() {
            self.flight.clear();
        }
        done
    }

    /// Copies row `from` of the job's logits to where they stay.
    fn keep_logits(&mut self, from: usize, place: usize) {
        let vocab = self.model.config().vocab;
        let need = (place + 1) * vocab;
        if self.flight.logits.len() < need {
            self.flight.logits.resize(need, 0.0);
        }
        let logits: &mut Buffer<f32> = &mut self.scratch.logits;
        let from = &logits.get_mut()[from * vocab..(from + 1) * vocab];
        self.flight.logits[place * vocab..need].copy_from_slice(from);
    }
}
