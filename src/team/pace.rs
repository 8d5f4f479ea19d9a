//! How many workers a job is worth while other programs want the processor.
//!
//! A worker that the system has taken off its core holds up all the others at the next barrier, for the milliseconds that a time
//! slice lasts: on two cores, of which another program keeps one busy, two workers get a quarter of their speed, and one alone
//! gets more than half. So a job that spent much of its time waiting is followed by jobs with a worker less, and from time to
//! time by one with a worker more, to see whether the other program is gone. Results do not depend on the number of workers.

use std::time::Duration;

/// Waiting that makes a job a slow one, as a share of its time: less is a matter of uneven shares.
const STALLED: f64 = 0.3;
/// And at least so much of it: shorter ones are noise.
const LEAST: Duration = Duration::from_micros(500);
/// Slow jobs, of the latest few, before a worker is left out.
const PATIENCE: u32 = 2;
/// Jobs before another try, at first and at most.
const FIRST_TRY: u32 = 8;
const LAST_TRY: u32 = 256;

/// What is remembered from job to job.
#[derive(Debug)]
pub(super) struct Pace {
    /// 0: this one does not change.
    most: usize,
    active: usize,
    slow: u32,
    /// Jobs until a worker more is tried, and the number that this counts from.
    left: u32,
    wait: u32,
    /// The latest job tried a worker more.
    trial: bool,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        Self { most, active: most, slow: 0, left: 0, wait: FIRST_TRY, trial: false }
    }

    /// As many as there are, always.
    #[cfg(test)]
    pub(super) fn all(count: usize) -> Self {
        Self { most: 0, active: count, slow: 0, left: 0, wait: 0, trial: false }
    }

    /// Workers of the next job.
    pub(super) fn active(&self) -> usize {
        self.active
    }

    /// Allows up to `most` workers, at least one, from the next job on. What busy programs took away stays away until it is tried.
    pub(super) fn allow(&mut self, most: usize) {
        let most = most.max(1);
        // Where nothing but the old bound held it, it follows the new one at once.
        if self.active >= self.most || self.active > most {
            (self.active, self.slow, self.left, self.trial) = (most, 0, 0, false);
        }
        if self.most != 0 {
            self.most = most;
        }
    }

    /// Takes note of a job: how long it took, and how long the worker that waited longest was held up.
    pub(super) fn note(&mut self, took: Duration, stalled: Duration) {
        if self.most == 0 {
            return;
        }
        let slow = stalled >= LEAST && stalled.as_secs_f64() > STALLED * took.as_secs_f64();
        if slow {
            self.slow += 1;
            if self.trial || self.slow >= PATIENCE {
                // A trial that failed: the other program is still there, so the next one can wait longer.
                self.wait = if self.trial { (2 * self.wait).min(LAST_TRY) } else { FIRST_TRY };
                self.active = (self.active - 1).max(1);
                (self.left, self.slow) = (self.wait, 0);
            }
            self.trial = false;
            return;
        }
        self.slow = self.slow.saturating_sub(1);
        self.trial = false;
        if self.active < self.most {
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                self.active += 1;
                self.left = self.wait;
                self.trial = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn workers_that_hold_up_the_others_are_left_out_and_tried_again() {
        let mut pace = Pace::new(4);
        pace.note(10 * MS, 5 * MS);
        assert_eq!(pace.active(), 4, "once is chance");
        pace.note(10 * MS, 5 * MS);
        assert_eq!(pace.active(), 3);
        for _ in 0..FIRST_TRY - 1 {
            pace.note(10 * MS, MS);
            assert_eq!(pace.active(), 3);
        }
        pace.note(10 * MS, MS);
        assert_eq!(pace.active(), 4, "a trial");
        pace.note(10 * MS, 5 * MS);
        assert_eq!(pace.active(), 3, "which failed, so the next comes later");
        for _ in 0..2 * FIRST_TRY {
            assert_eq!(pace.active(), 3);
            pace.note(10 * MS, MS);
        }
        assert_eq!(pace.active(), 4);
        for _ in 0..1000 {
            pace.note(10 * MS, MS);
            assert_eq!(pace.active(), 4, "which went well");
        }
    }

    #[test]
    fn there_is_always_one_and_never_too_many() {
        let mut pace = Pace::new(2);
        for _ in 0..100 {
            pace.note(MS, MS);
            assert!((1..=2).contains(&pace.active()));
        }
        assert_eq!(pace.active(), 1);
        // One alone waits for nobody, so it comes back, however often it was slow.
        for _ in 0..=LAST_TRY {
            pace.note(MS, Duration::ZERO);
        }
        assert_eq!(pace.active(), 2);
        let mut alone = Pace::new(1);
        alone.note(MS, MS);
        alone.note(MS, MS);
        assert_eq!(alone.active(), 1);
    }

    #[test]
    fn a_bound_holds_and_is_lifted_at_once() {
        let mut pace = Pace::new(4);
        pace.allow(2);
        for _ in 0..3 * FIRST_TRY {
            assert_eq!(pace.active(), 2);
            pace.note(10 * MS, MS);
        }
        pace.allow(0);
        assert_eq!(pace.active(), 1, "one is left in any case");
        pace.allow(4);
        assert_eq!(pace.active(), 4);
        // A busy program took one away: a bound above that changes nothing, and lifting it neither.
        pace.note(10 * MS, 5 * MS);
        pace.note(10 * MS, 5 * MS);
        assert_eq!(pace.active(), 3);
        pace.allow(3);
        pace.allow(4);
        assert_eq!(pace.active(), 4, "what the bound was equal to it follows");
        pace.note(10 * MS, 5 * MS);
        pace.note(10 * MS, 5 * MS);
        pace.note(10 * MS, 5 * MS);
        pace.note(10 * MS, 5 * MS);
        assert_eq!(pace.active(), 2);
        pace.allow(3);
        assert_eq!(pace.active(), 2);
        for _ in 0..2 * FIRST_TRY {
            pace.note(10 * MS, MS);
        }
        assert_eq!(pace.active(), 3, "tried again, and up to the bound only");
    }

    #[test]
    fn short_waits_and_small_shares_are_nothing() {
        let mut pace = Pace::new(2);
        for _ in 0..10 {
            pace.note(MS, Duration::from_micros(400));
            pace.note(100 * MS, 20 * MS);
        }
        assert_eq!(pace.active(), 2);
    }
}
