//! The worker team: one job per forward pass, barriers inside it.
//!
//! [`Team::run`] hands the same closure to every worker, the caller being worker 0. Workers split the work themselves
//! ([`Worker::share`]) and meet at [`Worker::barrier`], which spins a bounded time and then yields, so that a team on a busy
//! machine gives its time away instead of burning it. Between jobs workers sleep. While another program keeps a core busy, jobs
//! run on fewer of the workers, and never on more than [`Team::set_most`] allows.
//!
//! Which worker does what never changes a result: every output is computed whole by one of them.

mod pace;

use pace::Pace;
use std::alloc::Layout;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Polls before a waiting worker starts to yield (at a barrier) or goes to sleep (between jobs): some ten microseconds, longer
/// than a region of a small model, and about what it costs to be woken.
const SPINS: u32 = 4096;

/// A job: a closure that every worker calls, its lifetime erased while it is in the mailbox.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&Worker<'_>) + Sync));

// SAFETY: the closure behind the pointer is `Sync`, and `Team::run` keeps it alive until every worker has left it.
unsafe impl Send for Job {}

#[derive(Default)]
struct Mailbox {
    /// Counts jobs, so that a worker takes each once.
    number: u64,
    job: Option<Job>,
    /// Workers that take part in it.
    active: usize,
    /// Workers still inside the job.
    busy: usize,
    panic: Option<Box<dyn Any + Send>>,
    quit: bool,
}

struct Shared {
    count: usize,
    mailbox: Mutex<Mailbox>,
    /// A job has come, or the team ends.
    wake: Condvar,
    /// The last worker has left the job.
    done: Condvar,
    barrier: Barrier,
    /// Copies of `number` and `busy`, written under the lock, for those who look a while before they sleep. They decide
    /// nothing: whoever has seen a change takes the lock.
    number: Line<AtomicU64>,
    busy: Line<AtomicUsize>,
    /// The call of [`Worker::units`] that is at work, and how many units of its rest are taken, in 32 bits each.
    tickets: Line<AtomicU64>,
    /// Nanoseconds that the worker that waited longest was held up in the latest job.
    stalled: Line<AtomicU64>,
}

impl Shared {
    /// Waits a bounded time for `ready`.
    fn look(ready: impl Fn() -> bool) {
        for _ in 0..SPINS {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        // Nothing in a critical section panics, so a poisoned lock still holds a sound mailbox.
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Arrivals and generation on cache lines of their own: arriving workers do not disturb waiting ones.
#[derive(Default)]
struct Barrier {
    arrived: Line<AtomicUsize>,
    generation: Line<AtomicUsize>,
    /// A worker has panicked: nobody waits for it any more.
    broken: Line<AtomicBool>,
}

#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

/// A fixed set of threads that run jobs together.
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// One job at a time.
    turn: Mutex<Pace>,
}

/// One worker's view of the job it is in.
pub struct Worker<'a> {
    id: usize,
    /// Workers in the job.
    count: usize,
    /// Calls of [`units`](Self::units) so far.
    calls: Cell<u32>,
    /// How long this one was held up in it.
    stalled: Cell<Duration>,
    shared: &'a Shared,
}

/// Unwinds a worker out of a job in which another worker has panicked.
struct Broken;

impl Team {
    /// A team of `count` workers, the thread that calls [`Team::run`] among them.
    ///
    /// # Errors
    /// The system refuses to start a thread.
    pub fn new(count: NonZeroUsize) -> std::io::Result<Self> {
        let count = count.get();
        let shared = Arc::new(Shared {
            count,
            mailbox: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            barrier: Barrier::default(),
            number: Line::default(),
            busy: Line::default(),
            stalled: Line::default(),
            tickets: Line::default(),
        });
        let mut team = Team { shared, threads: Vec::new(), turn: Mutex::new(Pace::new(count)) };
        for id in 1..count {
            let shared = Arc::clone(&team.shared);
            let thread =
                std::thread::Builder::new().name(format!("rdt-worker-{id}")).spawn(move || work(&shared, id))?;
            team.threads.push(thread); // dropped, and so ended, with the team if a later one fails to start
        }
        Ok(team)
    }

    /// Number of workers.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Lets later jobs run on `most` of the workers, from 1 to [`count`](Self::count); a number outside is taken for the nearest. No
    /// thread is made or ended by it: those that are left out sleep. Gives the number in force.
    pub fn set_most(&self, most: usize) -> usize {
        let most = most.clamp(1, self.shared.count);
        self.turn.lock().unwrap_or_else(PoisonError::into_inner).allow(most);
        most
    }

    /// Runs `job` on every worker and waits for all of them. Calls from several threads take turns.
    ///
    /// # Panics
    /// Passes on a panic of any worker, after all have left the job.
    pub fn run(&self, job: &(dyn Fn(&Worker<'_>) + Sync)) {
        let mut pace = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        let (active, begin) = (pace.active(), Instant::now());
        let others = active - 1;
        shared.stalled.0.store(0, Ordering::Relaxed);
        shared.tickets.0.store(0, Ordering::Relaxed);
        if others > 0 {
            // SAFETY: only the lifetime changes. The pointer is used by workers that are counted in `busy`, and this
            // function does not return, nor unwind, before `busy` is zero.
            let job = Job(unsafe {
                std::mem::transmute::<*const (dyn Fn(&Worker<'_>) + Sync), *const (dyn Fn(&Worker<'_>) + Sync)>(job)
            });
            let mut mailbox = shared.mailbox();
            mailbox.number += 1;
            mailbox.job = Some(job);
            mailbox.active = active;
            mailbox.busy = others;
            shared.busy.0.store(others, Ordering::Relaxed);
            shared.number.0.store(mailbox.number, Ordering::Relaxed);
            drop(mailbox);
            shared.wake.notify_all();
        }
        let mine = attempt(shared, 0, active, job);
        let waits = Instant::now();
        Shared::look(|| shared.busy.0.load(Ordering::Relaxed) == 0);
        let mut mailbox = shared.mailbox();
        while mailbox.busy > 0 {
            mailbox = shared.done.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
        }
        if shared.count > 1 {
            let waited = u64::try_from(waits.elapsed().as_nanos()).unwrap_or(u64::MAX);
            shared.stalled.0.fetch_max(waited, Ordering::Relaxed);
            pace.note(begin.elapsed(), Duration::from_nanos(shared.stalled.0.load(Ordering::Relaxed)));
        }
        mailbox.job = None;
        let theirs = mailbox.panic.take();
        drop(mailbox);
        shared.barrier.broken.0.store(false, Ordering::Relaxed);
        shared.barrier.arrived.0.store(0, Ordering::Relaxed);
        // Whoever panicked first has the story to tell; the others were only unwound.
        let panics = [mine.err(), theirs].into_iter().flatten();
        if let Some(panic) = panics.max_by_key(|p| !p.is::<Broken>()) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.mailbox().quit = true;
        self.shared.wake.notify_all();
        for thread in self.threads.drain(..) {
            // A worker catches the panics of its jobs; there is nothing to learn from its end.
            let _ = thread.join();
        }
    }
}

/// Calls the job as one worker; a panic breaks the barrier so that no worker waits for ever.
fn attempt(
    shared: &Shared,
    id: usize,
    count: usize,
    job: &(dyn Fn(&Worker<'_>) + Sync),
) -> Result<(), Box<dyn Any + Send>> {
    let worker = Worker { id, count, calls: Cell::default(), stalled: Cell::default(), shared };
    let result = catch_unwind(AssertUnwindSafe(|| job(&worker)));
    let stalled = u64::try_from(worker.stalled.get().as_nanos()).unwrap_or(u64::MAX);
    shared.stalled.0.fetch_max(stalled, Ordering::Relaxed);
    if result.is_err() {
        shared.barrier.broken.0.store(true, Ordering::Release);
    }
    result
}

/// The life of a worker thread.
fn work(shared: &Shared, id: usize) {
    crate::cores::keep_to_fast();
    let mut seen = 0;
    loop {
        Shared::look(|| shared.number.0.load(Ordering::Relaxed) != seen);
        let mut mailbox = shared.mailbox();
        let (job, count) = loop {
            if mailbox.quit {
                return;
            }
            match mailbox.job {
                Some(job) if mailbox.number != seen => {
                    seen = mailbox.number;
                    if id < mailbox.active {
                        break (job, mailbox.active);
                    }
                    // Not this one's.
                }
                _ => mailbox = shared.wake.wait(mailbox).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(mailbox);
        // SAFETY: this worker is counted in `busy`, so `run` still waits and the closure is alive.
        let result = attempt(shared, id, count, unsafe { &*job.0 });
        let mut mailbox = shared.mailbox();
        if let Err(panic) = result
            && mailbox.panic.as_ref().is_none_or(|p| p.is::<Broken>())
        {
            mailbox.panic = Some(panic);
        }
        mailbox.busy -= 1;
        shared.busy.0.store(mailbox.busy, Ordering::Relaxed);
        if mailbox.busy == 0 {
            shared.done.notify_one();
        }
    }
}

impl Worker<'_> {
    /// This worker's number, from 0; worker 0 is the thread that called [`Team::run`].
    pub fn id(&self) -> usize {
        self.id
    }

    /// Number of workers in the job.
    pub fn count(&self) -> usize {
        self.count
    }

    /// This worker's part of `0..n`: contiguous, together disjoint and complete, sizes differing by at most one.
    pub fn share(&self, n: usize) -> Range<usize> {
        let at = |i: usize| (n as u128 * i as u128 / self.count as u128) as usize;
        at(self.id)..at(self.id + 1)
    }

    /// The units of `0..n` that this worker does: a share of the first three quarters, then of the rest whichever it is the first
    /// to come to, so that one that has a slow moment does not hold up the others. Each unit is done by one worker. All workers
    /// make the same calls in the same order, and go through to the end.
    pub fn units(&self, n: usize) -> Units<'_> {
        let fixed = if self.count == 1 { n } else { n - n / 4 };
        self.calls.set(self.calls.get() + 1);
        Units { call: self.calls.get(), own: self.share(fixed), rest: fixed..n, tickets: &self.shared.tickets.0 }
    }

    /// Waits until every worker has come here. What any of them wrote before, all of them see after.
    pub fn barrier(&self) {
        let Barrier { arrived, generation, broken } = &self.shared.barrier;
        if self.count == 1 {
            return;
        }
        let now = generation.0.load(Ordering::Relaxed);
        // AcqRel: the last one to arrive acquires what all the others released here, and releases it with the generation.
        if arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            arrived.0.store(0, Ordering::Relaxed);
            generation.0.store(now.wrapping_add(1), Ordering::Release);
            return;
        }
        let (mut spins, mut since) = (0, None);
        while generation.0.load(Ordering::Acquire) == now {
            if broken.0.load(Ordering::Acquire) {
                resume_unwind(Box::new(Broken));
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                since.get_or_insert_with(Instant::now);
                std::thread::yield_now();
            }
        }
        if let Some(since) = since {
            self.stalled.set(self.stalled.get() + since.elapsed());
        }
    }
}

/// What [`Worker::units`] gives.
pub struct Units<'a> {
    call: u32,
    own: Range<usize>,
    rest: Range<usize>,
    tickets: &'a AtomicU64,
}

impl Iterator for Units<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(unit) = self.own.next() {
            return Some(unit);
        }
        // Only who takes which unit is decided here; what the units made is seen behind a barrier.
        let mut seen = self.tickets.load(Ordering::Relaxed);
        loop {
            let taken = match ((seen >> 32) as u32).cmp(&self.call) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => seen as u32 as usize,
                // Somebody has gone on, which they do when nothing is left.
                std::cmp::Ordering::Greater => return None,
            };
            if taken >= self.rest.len() {
                return None;
            }
            let next = u64::from(self.call) << 32 | (taken as u64 + 1);
            match self.tickets.compare_exchange_weak(seen, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(self.rest.start + taken),
                Err(now) => seen = now,
            }
        }
    }
}

/// A buffer that the workers of one job write in turns.
///
/// The discipline, which every caller of the unsafe methods argues for: between two barriers an element is either written by
/// one worker or read by any number of them, never both.
pub struct Buffer<T> {
    cells: Box<[UnsafeCell<T>]>,
}

// SAFETY: access goes through unsafe methods whose contract excludes data races.
unsafe impl<T: Send + Sync> Sync for Buffer<T> {}

impl<T: Copy + Default> Buffer<T> {
    /// `len` default values. Where these are zero, memory is taken from the system only as it is touched.
    pub fn new(len: usize) -> Self {
        Self::from(vec![T::default(); len])
    }
}

impl Buffer<u8> {
    /// `len` zeros, taken from the system only as they are touched; `None` where it will not promise that many.
    pub fn try_zeroed(len: usize) -> Option<Self> {
        let layout = Layout::array::<UnsafeCell<u8>>(len).ok()?;
        if len == 0 {
            return Some(Self::new(0));
        }
        // SAFETY: the layout has a size.
        let p = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<UnsafeCell<u8>>();
        if p.is_null() {
            return None;
        }
        // SAFETY: the memory is the global allocator's, has the layout of such a box, and holds `len` zeros.
        Some(Self { cells: unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(p, len)) } })
    }
}

impl<T> From<Vec<T>> for Buffer<T> {
    fn from(values: Vec<T>) -> Self {
        let values = Box::into_raw(values.into_boxed_slice());
        // SAFETY: the pointer comes from a box, and `UnsafeCell<T>` has the layout of `T`.
        Self { cells: unsafe { Box::from_raw(values as *mut [UnsafeCell<T>]) } }
    }
}

impl<T> Buffer<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The elements.
    pub fn into_vec(self) -> Vec<T> {
        let cells = Box::into_raw(self.cells);
        // SAFETY: the pointer comes from a box, and `UnsafeCell<T>` has the layout of `T`.
        unsafe { Box::from_raw(cells as *mut [T]) }.into_vec()
    }

    /// All elements, to the only holder.
    pub fn get_mut(&mut self) -> &mut [T] {
        let (p, n) = (self.cells.as_mut_ptr(), self.cells.len());
        // SAFETY: `UnsafeCell<T>` has the layout of `T`, and `&mut self` excludes every other access.
        unsafe { std::slice::from_raw_parts_mut(p.cast::<T>(), n) }
    }

    /// Elements to read.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    ///
    /// # Safety
    /// While the slice lives, no worker writes any of its elements.
    pub unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.cells[range];
        // SAFETY: `UnsafeCell<T>` has the layout of `T`; the caller excludes writers.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast::<T>(), cells.len()) }
    }

    /// Elements to write.
    ///
    /// # Panics
    /// If the range is outside the buffer.
    ///
    /// # Safety
    /// While the slice lives, nobody else reads or writes any of its elements.
    #[expect(clippy::mut_from_ref, reason = "disjointness is the caller's promise, as with any cell")]
    pub unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.cells[range];
        // SAFETY: the pointer comes from `UnsafeCell`s, so writing through it is allowed; the caller excludes all others.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast::<T>().cast_mut(), cells.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A team whose jobs are for all of it, however busy the machine is.
    fn team(n: usize) -> Team {
        let team = Team::new(NonZeroUsize::new(n).unwrap()).unwrap();
        *team.turn.lock().unwrap() = Pace::all(n);
        team
    }

    /// Whatever else the machine does, a job is done once by each of the workers that it is for.
    #[test]
    fn jobs_for_fewer_workers_are_done_whole() {
        let team = Team::new(NonZeroUsize::new(5).unwrap()).unwrap();
        let ms = Duration::from_millis(1);
        for slow in 0..12 {
            let seen: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
            let workers = AtomicUsize::new(0);
            team.run(&|w| {
                workers.fetch_add(1, Ordering::Relaxed);
                w.share(97).for_each(|i| _ = seen[i].fetch_add(1, Ordering::Relaxed));
                w.barrier();
                assert_eq!(workers.load(Ordering::Relaxed), w.count());
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
            });
            let mut pace = team.turn.lock().unwrap();
            pace.note(ms, ms);
            pace.note(ms, ms);
            assert!(slow < 4 || pace.active() <= 2);
        }
    }

    /// Bounds that come and go between jobs, from another thread too, change who works and never what is done.
    #[test]
    fn fewer_workers_do_the_same_jobs() {
        let team = Team::new(NonZeroUsize::new(4).unwrap()).unwrap();
        for most in [4, 1, 3, 0, 2, 9] {
            let bound = team.set_most(most);
            assert_eq!(bound, most.clamp(1, 4));
            let (seen, workers) = (AtomicUsize::new(0), AtomicUsize::new(0));
            team.run(&|w| {
                workers.fetch_add(1, Ordering::Relaxed);
                seen.fetch_add(w.units(97).count(), Ordering::Relaxed);
                w.barrier();
                assert_eq!(workers.load(Ordering::Relaxed), w.count());
            });
            assert_eq!(seen.into_inner(), 97);
            assert!(workers.into_inner() <= bound);
        }
        std::thread::scope(|s| {
            s.spawn(|| (0..200).for_each(|i| _ = team.set_most(i % 5)));
            for _ in 0..200 {
                let done = AtomicUsize::new(0);
                team.run(&|w| {
                    w.barrier();
                    done.fetch_add(w.share(11).len(), Ordering::Relaxed);
                });
                assert_eq!(done.into_inner(), 11);
            }
        });
    }

    #[test]
    fn shares_are_disjoint_and_complete() {
        for n in [0, 1, 5, 7, 64] {
            for count in [1, 2, 3, 7] {
                let seen: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                team(count).run(&|w| {
                    for i in w.share(n) {
                        seen[i].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 1));
            }
        }
    }

    /// Two calls between barriers, and every size of a rest.
    #[test]
    fn units_are_done_once() {
        for count in [1, 2, 3, 7] {
            let team = team(count);
            for n in [0, 1, 3, 4, 5, 64, 1000] {
                let seen: Vec<AtomicUsize> = (0..2 * n).map(|_| AtomicUsize::new(0)).collect();
                team.run(&|w| {
                    for _ in 0..3 {
                        w.units(n).for_each(|i| _ = seen[i].fetch_add(1, Ordering::Relaxed));
                        w.units(n).for_each(|i| _ = seen[n + i].fetch_add(1, Ordering::Relaxed));
                        w.barrier();
                    }
                });
                assert!(seen.iter().all(|s| s.load(Ordering::Relaxed) == 3), "{count} workers, {n} units");
            }
        }
    }

    /// More workers than cores, many barriers: a prefix sum by pointer doubling, wrong if any barrier leaks.
    #[test]
    fn barriers_order_writes() {
        for count in [1, 2, 5, 9] {
            let team = team(count);
            let n = 257;
            for _ in 0..20 {
                let a = Buffer::<u64>::new(n);
                let b = Buffer::<u64>::new(n);
                team.run(&|w| {
                    for i in w.share(n) {
                        // SAFETY: shares are disjoint.
                        unsafe { a.write(i..i + 1)[0] = i as u64 };
                    }
                    w.barrier();
                    let (mut from, mut to) = (&a, &b);
                    let mut d = 1;
                    while d < n {
                        for i in w.share(n) {
                            // SAFETY: `from` is only read and `to` only written, in disjoint shares, until the barrier.
                            unsafe {
                                let back = if i >= d { from.read(i - d..i - d + 1)[0] } else { 0 };
                                to.write(i..i + 1)[0] = from.read(i..i + 1)[0] + back;
                            }
                        }
                        w.barrier();
                        (from, to) = (to, from);
                        d *= 2;
                    }
                    for i in w.share(n) {
                        // SAFETY: nobody writes after the last barrier.
                        let got = unsafe { from.read(i..i + 1)[0] };
                        assert_eq!(got, (i * (i + 1) / 2) as u64);
                    }
                });
            }
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_team_whole() {
        for bad in 0..3 {
            let team = team(3);
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(&|w| {
                    w.barrier();
                    assert!(w.id() != bad, "worker {bad} fails");
                    w.barrier();
                });
            }));
            let message = result.unwrap_err();
            assert_eq!(message.downcast_ref::<String>().map(String::as_str), Some(&*format!("worker {bad} fails")));
            let count = AtomicUsize::new(0);
            team.run(&|w| {
                count.fetch_add(1, Ordering::Relaxed);
                w.barrier();
            });
            assert_eq!(count.into_inner(), 3);
        }
    }

    #[test]
    fn zeroed_buffers_are_refused_rather_than_fatal() {
        for len in [0, 1, 4097] {
            assert_eq!(Buffer::try_zeroed(len).unwrap().get_mut(), vec![0; len]);
        }
        for len in [usize::MAX, isize::MAX as usize] {
            assert!(Buffer::try_zeroed(len).is_none());
        }
    }

    #[test]
    fn callers_take_turns() {
        let team = team(2);
        let (running, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        team.run(&|w| {
                            if w.id() == 0 {
                                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0);
                            }
                            w.barrier();
                            total.fetch_add(1, Ordering::Relaxed);
                            w.barrier();
                            if w.id() == 0 {
                                running.fetch_sub(1, Ordering::SeqCst);
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 400);
    }
}
