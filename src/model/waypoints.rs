//! Where the residual stream is as it enters and leaves every block: how far blocks move it, and in which directions.

use super::Row;
use crate::team::Buffer;
use std::ops::Range;

/// Which positions [`super::Session::record_waypoints`] looks at. The default takes the first 4096 that come in sequence 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaypointOptions {
    /// The sequence.
    pub sequence: usize,
    /// Positions of it.
    pub positions: Range<usize>,
    /// Only every so manieth of them, from the first on; at least 1.
    pub every: usize,
    /// Positions to record at most, which bounds the memory: the first that come. One that is run again after
    /// [`super::Session::truncate`] is another, so several texts that go through one sequence add up.
    pub most: usize,
    /// Keep the streams themselves (4 bytes for each of their values at each block), not only norms and cosines.
    pub streams: bool,
}

impl Default for WaypointOptions {
    fn default() -> Self {
        Self { sequence: 0, positions: 0..usize::MAX, every: 1, most: 4096, streams: false }
    }
}

/// One run of one block over one position: the stream x_in that entered it and x_out that left it.
///
/// x_out is what the next block of the same stack takes in; behind the last block it is the stream before any norm that ends a pass
/// over the stack, a loop or the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Passage {
    /// Segment of the plan ([`super::LoopPlan::segments`]), from 0.
    pub segment: usize,
    /// Loop step, from 1; 0 outside loops.
    pub step: usize,
    /// Which of the step's passes over block stacks ([`super::Looped::passes`]), from 0; 0 outside loops.
    pub pass: usize,
    /// Physical block, from 0.
    pub block: usize,
    /// ‖x_in‖.
    pub in_norm: f64,
    /// ‖x_out − x_in‖.
    pub move_norm: f64,
    /// Cosine of x_out − x_in with that of the block before it; NaN for the first block of a pass over a stack, and where either did
    /// not move.
    pub cosine: f64,
}

/// Everything that was seen of one position.
#[derive(Debug, Clone, PartialEq)]
pub struct Visited {
    /// The position, with its token.
    pub row: Row,
    /// What it went through, in order.
    passages: Vec<Passage>,
    /// Where each passage's x_in stands in `streams`; x_out follows it.
    at: Vec<usize>,
    streams: Vec<f32>,
    /// The block that it is in.
    inside: Option<(Place, usize)>,
    /// The latest waypoint, and the move that led there.
    last: Vec<f32>,
    moved: Vec<f64>,
    /// Has `moved` been set in this pass over a stack?
    has_moved: bool,
}

/// Segment, step and pass: how far a row has come, in the order of these numbers.
pub(super) type Place = (usize, usize, usize);

impl Visited {
    fn new(row: Row) -> Self {
        Self {
            row,
            passages: Vec::new(),
            at: Vec::new(),
            streams: Vec::new(),
            inside: None,
            last: Vec::new(),
            moved: Vec::new(),
            has_moved: false,
        }
    }

    /// What it went through, in order. Blocks that ran for a read-out inside the loop ([`super::Verdict::ReadOut`]) are among them
    /// only if that was the last one.
    pub fn passages(&self) -> &[Passage] {
        &self.passages
    }

    /// x_in and x_out of passage number `i`, each as wide as the block; `None` if there is no such passage, or streams were not
    /// to be kept.
    pub fn streams(&self, i: usize) -> Option<(&[f32], &[f32])> {
        let &from = self.at.get(i)?;
        // The runs over a stack lie one after the other, all waypoints of a run being of one width.
        let end = self.at.get(i + 1).copied().unwrap_or(self.streams.len());
        let same_run = self.passages.get(i + 1).is_some_and(|next| place(next) == place(&self.passages[i]));
        let width = if same_run { end - from } else { (end - from) / 2 };
        Some((&self.streams[from..from + width], &self.streams[from + width..from + 2 * width]))
    }

    /// The stream `x` enters a block.
    fn enter(&mut self, at: Place, block: usize, x: &[f32], streams: bool) {
        self.arrive(x, streams);
        let first = self.inside.is_none();
        if first {
            // A read-out inside the loop is over once the loop goes on, or is done again when it has ended.
            let kept = self.passages.iter().take_while(|p| place(p) < at).count();
            self.passages.truncate(kept);
            if let Some(&from) = self.at.get(kept) {
                self.streams.truncate(from);
                self.at.truncate(kept);
            }
            self.has_moved = false;
            if streams {
                self.streams.extend_from_slice(x);
            }
            self.last.clear();
            self.last.extend_from_slice(x);
        }
        self.inside = Some((at, block));
    }

    /// The stream `x` leaves a stack of blocks.
    fn leave(&mut self, x: &[f32], streams: bool) {
        self.arrive(x, streams);
        self.inside = None;
    }

    /// Completes the passage through the block that the position is in, if it is in one.
    fn arrive(&mut self, x: &[f32], streams: bool) {
        let Some((at, block)) = self.inside else { return };
        // Sums run over the row in order, in f64: they do not depend on who computes them.
        let (mut square, mut step, mut before, mut dot) = (0.0, 0.0, 0.0, 0.0);
        self.moved.resize(x.len(), 0.0);
        for ((last, moved), &x) in self.last.iter_mut().zip(&mut self.moved).zip(x) {
            let (from, now) = (f64::from(*last), f64::from(x) - f64::from(*last));
            square += from * from;
            step += now * now;
            before += *moved * *moved;
            dot += now * *moved;
            (*last, *moved) = (x, now);
        }
        let cosine = if self.has_moved { dot / libm::sqrt(step * before) } else { f64::NAN };
        self.has_moved = true;
        let (segment, step_number, pass) = at;
        if streams {
            self.at.push(self.streams.len() - x.len());
            self.streams.extend_from_slice(x);
        }
        self.passages.push(Passage {
            segment,
            step: step_number,
            pass,
            block,
            in_norm: libm::sqrt(square),
            move_norm: libm::sqrt(step),
            cosine,
        });
    }
}

fn place(p: &Passage) -> Place {
    (p.segment, p.step, p.pass)
}

/// Where the residual streams of some positions were as they entered and left every block. See
/// [`super::Session::record_waypoints`].
pub struct Waypoints {
    options: WaypointOptions,
    visited: Buffer<Visited>,
    /// Per row of the running chunk: its place in `visited`.
    slots: Vec<Option<usize>>,
}

impl Waypoints {
    pub(super) fn new(options: WaypointOptions) -> Self {
        let options = WaypointOptions { every: options.every.max(1), ..options };
        Self { options, visited: Buffer::from(Vec::new()), slots: Vec::new() }
    }

    /// A chunk of rows is about to run: makes room for those that are to be looked at.
    pub(super) fn expect(&mut self, rows: &[Row]) {
        let o = &self.options;
        let mut visited = std::mem::replace(&mut self.visited, Buffer::from(Vec::new())).into_vec();
        self.slots.clear();
        for &row in rows {
            let chosen = row.sequence == o.sequence
                && o.positions.contains(&row.position)
                && (row.position - o.positions.start).is_multiple_of(o.every)
                && visited.len() < o.most;
            self.slots.push(chosen.then_some(visited.len()));
            if chosen {
                visited.push(Visited::new(row));
            }
        }
        self.visited = Buffer::from(visited);
    }

    /// Is this row of the chunk looked at?
    pub(super) fn watches(&self, row: usize) -> bool {
        self.slots.get(row).is_some_and(Option::is_some)
    }

    /// The stream `x` of a chunk row enters a block.
    ///
    /// # Safety
    /// No other worker calls this, or [`leave`](Self::leave), for the same row before the next barrier.
    pub(super) unsafe fn enter(&self, row: usize, at: Place, block: usize, x: &[f32]) {
        if let Some(&Some(slot)) = self.slots.get(row) {
            // SAFETY: rows have slots of their own, and this row is the caller's alone.
            unsafe { self.visited.write(slot..slot + 1)[0].enter(at, block, x, self.options.streams) };
        }
    }

    /// The stream `x` of a chunk row leaves a stack of blocks.
    ///
    /// # Safety
    /// As [`enter`](Self::enter).
    pub(super) unsafe fn leave(&self, row: usize, x: &[f32]) {
        if let Some(&Some(slot)) = self.slots.get(row) {
            // SAFETY: as in `enter`.
            unsafe { self.visited.write(slot..slot + 1)[0].leave(x, self.options.streams) };
        }
    }

    /// The positions that were looked at, in the order in which they came.
    pub fn visited(&mut self) -> &[Visited] {
        self.visited.get_mut()
    }
}

impl std::fmt::Debug for Waypoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waypoints")
            .field("options", &self.options)
            .field("visited", &self.visited.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(position: usize) -> Row {
        Row { sequence: 0, position, token: 0 }
    }

    /// Two blocks by hand: (3, 4) → (3, 5) → (5, 5), moves at a right angle.
    #[test]
    fn moves_by_hand() {
        let mut v = Visited::new(row(0));
        v.enter((0, 0, 0), 0, &[3.0, 4.0], true);
        v.enter((0, 0, 0), 1, &[3.0, 5.0], true);
        v.leave(&[5.0, 5.0], true);
        // A loop on a wider stream, two steps, then a read-out that is done again.
        for (at, to) in [((1, 1, 0), 2.0), ((1, 2, 0), 3.0), ((2, 0, 0), 9.0), ((1, 3, 0), 4.0), ((2, 0, 0), 5.0)] {
            v.enter(at, at.0 + 1, &[1.0; 4], true);
            v.leave(&[to; 4], true);
        }
        let short = |p: &Passage| (p.segment, p.step, p.block, p.in_norm, p.move_norm);
        assert_eq!(
            v.passages().iter().map(short).collect::<Vec<_>>(),
            [
                (0, 0, 0, 5.0, 1.0),
                (0, 0, 1, 34f64.sqrt(), 2.0),
                (1, 1, 2, 2.0, 2.0),
                (1, 2, 2, 2.0, 4.0),
                (1, 3, 2, 2.0, 6.0),
                (2, 0, 3, 2.0, 8.0)
            ]
        );
        assert_eq!(v.passages()[1].cosine, 0.0);
        assert!(v.passages().iter().enumerate().all(|(i, p)| p.cosine.is_nan() == (i != 1)));
        assert_eq!(v.streams(0), Some((&[3.0, 4.0][..], &[3.0, 5.0][..])));
        assert_eq!(v.streams(1), Some((&[3.0, 5.0][..], &[5.0, 5.0][..])));
        assert_eq!(v.streams(2), Some((&[1.0; 4][..], &[2.0; 4][..])));
        assert_eq!(v.streams(5), Some((&[1.0; 4][..], &[5.0; 4][..])));
        assert_eq!(v.streams(6), None);
    }

    #[test]
    fn the_first_of_those_asked_for_are_recorded() {
        let options = WaypointOptions { positions: 2..9, every: 3, most: 4, ..WaypointOptions::default() };
        let mut points = Waypoints::new(options);
        let rows: Vec<Row> = (0..12).map(row).collect();
        let other: Vec<Row> = rows.iter().map(|r| Row { sequence: 1, ..*r }).collect();
        points.expect(&rows);
        assert_eq!((0..12).filter(|&i| points.watches(i)).collect::<Vec<_>>(), [2, 5, 8]);
        points.expect(&other);
        assert!((0..13).all(|i| !points.watches(i)));
        points.expect(&rows[4..]);
        assert_eq!((0..8).filter(|&i| points.watches(i)).collect::<Vec<_>>(), [1], "one more is the most");
        assert_eq!(points.visited().iter().map(|v| v.row.position).collect::<Vec<_>>(), [2, 5, 8, 5]);
        // No streams, no memory for them.
        let mut v = Visited::new(row(0));
        v.enter((0, 0, 0), 0, &[3.0, 4.0], false);
        v.leave(&[3.0, 4.0], false);
        assert_eq!((v.passages()[0].move_norm, v.streams(0), v.streams.len()), (0.0, None, 0));
    }
}
