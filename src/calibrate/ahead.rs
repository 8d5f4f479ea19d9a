//! Windows that are read token by token, several at a time.

use super::Windows;
use crate::generate::{Due, Lanes};
use crate::model::{DepthPolicy, Error, Session};
use std::ops::Range;

/// Bytes of logits that are held until it is their window's turn. More windows at a time would gain little.
const HELD: usize = 256 << 20;

/// Logits `[n][V]` and loop steps `[n]` of positions.
type Rows<'a> = (&'a [f32], &'a [usize]);

/// Reads windows ahead of their turn, one in each sequence of a session.
#[derive(Debug)]
pub(super) struct Ahead {
    lanes: Lanes,
    /// Windows at a time; 1: there is nothing to gain.
    most: usize,
    /// Those at hand.
    windows: Range<usize>,
    /// Of each of them, `[scored][V]` and `[scored]`.
    rows: Vec<(Vec<f32>, Vec<usize>)>,
}

impl Ahead {
    /// For windows of `session`'s sequences; `wanted`: are they read token by token at all?
    pub(super) fn new(session: &Session, windows: &Windows, wanted: bool) -> Self {
        let window = windows.scored().len() * session.model().config().vocab * size_of::<f32>();
        let sequences = if wanted && Lanes::suit(session) { session.kv_shape().sequences } else { 1 };
        let most = sequences.min(windows.len()).min(HELD / window.max(1)).max(1);
        Self { lanes: Lanes::new(most), most, windows: 0..0, rows: vec![Default::default(); most] }
    }

    /// Windows that are read at a time.
    pub(super) fn at_a_time(&self) -> usize {
        self.most
    }

    /// The scored positions `piece` of a window, logits and loop steps; reads it, and others behind it, if that has not been done.
    /// `None`: they are to be read one by one, so that it shows which one an error belongs to.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub(super) fn rows(
        &mut self,
        session: &mut Session,
        policy: &mut dyn DepthPolicy,
        windows: &Windows,
        (window, piece): (usize, &Range<usize>),
    ) -> Result<Option<Rows<'_>>, Error> {
        if self.most > 1 && !self.windows.contains(&window) {
            self.windows = window..windows.len().min(window + self.most);
            let done = self.read(session, policy, windows);
            // One by one, windows are read from scratch, in sequence 0.
            self.lanes.clear(session);
            match done {
                Err(Error::Cancelled) => return Err(Error::Cancelled),
                Err(_) => self.most = 1,
                Ok(()) => {}
            }
        }
        if self.most < 2 {
            return Ok(None);
        }
        let (logits, steps) = &self.rows[window - self.windows.start];
        let (first, vocab) = (windows.scored().start, session.model().config().vocab);
        let (start, end) = (piece.start - first, piece.end - first);
        Ok(Some((&logits[start * vocab..end * vocab], &steps[start..end])))
    }

    fn read(&mut self, session: &mut Session, policy: &mut dyn DepthPolicy, windows: &Windows) -> Result<(), Error> {
        let scored = windows.scored();
        self.lanes.clear(session);
        for (s, window) in self.windows.clone().enumerate() {
            let tokens = &windows.get(window).tokens[..scored.end];
            let due = |(i, &token)| Due { token, alone: true, logits: scored.contains(&i) };
            session.admits(tokens, 0)?;
            self.lanes.push(s, tokens.iter().enumerate().map(due));
            self.rows[s].0.clear();
            self.rows[s].1.clear();
        }
        while self.lanes.pass(session, policy)? {
            for (s, (logits, steps)) in self.rows.iter_mut().enumerate() {
                self.lanes.land(session, s, |row, of_row| {
                    if !of_row.is_empty() {
                        logits.extend_from_slice(of_row);
                        steps.push(row.steps);
                    }
                });
            }
        }
        Ok(())
    }
}
