//! How fast memory can be read: sums over buffers, by as many threads as the model is run with.

use crate::sensors::Facts;
use crate::team::Team;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A buffer this many times as large as the last cache leaves little of itself in it.
const CACHES: u64 = 4;
/// Smallest buffer that is taken for memory: there are caches that the system does not tell of.
const SMALLEST: u64 = 256 << 20;
/// Time for one measurement, and how many are made.
const AT_LEAST: Duration = Duration::from_millis(30);
const TRIES: usize = 5;

/// How large a buffer is, and whether that is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
    /// The caches that it should exceed, where they are known.
    pub(super) cache: Option<u64>,
}

impl Size {
    /// Several times the last cache, but no more than a quarter of the memory that is free.
    pub(super) fn choose(facts: &Facts) -> Self {
        let cache = facts.last_level_cache();
        let wanted = cache.map_or(SMALLEST, |n| n.saturating_mul(CACHES).max(SMALLEST));
        // Where nobody tells what is free, half of the memory is taken to be.
        let free = facts.memory_available.or(facts.memory_total.map(|n| n / 2));
        let most = free.map_or(SMALLEST, |n| n / 4);
        Self { bytes: wanted.min(most), cache }
    }

    /// What to tell the user of a buffer that may lie in a cache.
    pub(super) fn doubt(&self) -> Option<String> {
        let cache = self.cache.filter(|&cache| self.bytes < 2 * cache)?;
        let [bytes, cache] = [self.bytes, cache].map(crate::cli::human_bytes);
        Some(format!(
            "memory bandwidth is measured over {bytes}, and the last cache has {cache}: part of it is the cache's"
        ))
    }
}

/// A buffer, in one part per thread.
pub(super) struct Streams {
    team: Team,
    parts: Vec<Mutex<Vec<u64>>>,
    bytes: u64,
}

impl Streams {
    /// A buffer of `bytes`, each part written by the thread that will read it.
    pub(super) fn new(threads: NonZeroUsize, bytes: u64) -> std::io::Result<Self> {
        let team = Team::new(threads)?;
        let words = usize::try_from(bytes / 8).unwrap_or(usize::MAX);
        let parts: Vec<Mutex<Vec<u64>>> = std::iter::repeat_with(Mutex::default).take(threads.get()).collect();
        let failed = Mutex::new(false);
        team.run(&|w| {
            let mut part = Vec::new();
            let words = w.share(words).len();
            if part.try_reserve_exact(words).is_err() {
                *lock(&failed) = true;
                return;
            }
            // Not zeros: pages of zeros may all be the same page.
            part.resize(words, 0x0123_4567_89ab_cdef);
            *lock(&parts[w.id()]) = part;
        });
        if *lock(&failed) {
            return Err(std::io::Error::new(std::io::ErrorKind::OutOfMemory, "no memory for a buffer to measure with"));
        }
        Ok(Self { team, parts, bytes: words as u64 * 8 })
    }

    /// Reads all of it some times; gives the time that took, and the sum of what was read.
    fn read(&self, rounds: u32) -> (Duration, u64) {
        let total = Mutex::new(0u64);
        let start = Instant::now();
        self.team.run(&|w| {
            let part = lock(&self.parts[w.id()]);
            let mut mine = 0u64;
            for _ in 0..rounds {
                mine = mine.wrapping_add(sum(black_box(&part)));
            }
            let mut total = lock(&total);
            *total = total.wrapping_add(mine);
        });
        let time = start.elapsed();
        (time, *lock(&total))
    }

    /// Bytes per second: the best of several tries.
    pub(super) fn bytes_per_second(&self) -> f64 {
        let mut rounds = 1u32;
        let mut time = self.read(rounds).0;
        while time < AT_LEAST && rounds < 1 << 24 {
            rounds *= 2;
            time = self.read(rounds).0;
        }
        let times = (0..TRIES).map(|_| self.read(rounds).0);
        let best = times.fold(time, Duration::min);
        self.bytes as f64 * f64::from(rounds) / best.as_secs_f64().max(1e-9)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sum of all words, by vectors as wide as the kernels use.
fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { sum_avx2(words) };
    }
    sum_lanes(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_lanes(words)
}

/// Thirty-two sums side by side: eight vectors of 256 bits, so that no addition waits for another.
#[inline(always)]
fn sum_lanes(words: &[u64]) -> u64 {
    let mut lanes = [0u64; 32];
    let (chunks, rest) = words.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, &x| sum.wrapping_add(x))
}

/// Bandwidths that were measured, so that none is measured twice.
#[derive(Default)]
pub(super) struct Bandwidths {
    known: Vec<(NonZeroUsize, u64, f64)>,
}

impl Bandwidths {
    /// Bytes per second of `threads` threads over `bytes` bytes.
    pub(super) fn of(&mut self, threads: NonZeroUsize, bytes: u64) -> std::io::Result<f64> {
        if let Some(&(.., rate)) = self.known.iter().find(|&&(t, b, _)| (t, b) == (threads, bytes)) {
            return Ok(rate);
        }
        let rate = Streams::new(threads, bytes)?.bytes_per_second();
        self.known.push((threads, bytes, rate));
        Ok(rate)
    }

    /// Threads, bytes, and bytes per second of all that was measured.
    pub(super) fn known(&self) -> impl Iterator<Item = (NonZeroUsize, u64, f64)> {
        self.known.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Cache;

    #[test]
    fn every_word_is_read_as_often_as_said() {
        for threads in [1, 2, 3] {
            let streams = Streams::new(NonZeroUsize::new(threads).unwrap(), 8 * 1001).unwrap();
            let mut next = 0;
            for part in &streams.parts {
                lock(part).fill_with(|| {
                    next += 1;
                    next
                });
            }
            assert_eq!(next, 1001);
            assert_eq!(streams.read(3).1, 3 * 1001 * 1002 / 2, "{threads} threads");
        }
        let words: Vec<u64> = (0..77).map(|i| u64::MAX - i).collect();
        assert_eq!(sum(&words), words.iter().fold(0, |a: u64, &b| a.wrapping_add(b)));
    }

    #[test]
    fn a_bandwidth_is_measured_once() {
        let mut known = Bandwidths::default();
        let rate = known.of(NonZeroUsize::MIN, 1 << 16).unwrap();
        assert!(rate > 0.0 && rate.is_finite());
        assert_eq!(known.of(NonZeroUsize::MIN, 1 << 16).unwrap(), rate);
        assert_eq!(known.known.len(), 1);
    }

    #[test]
    fn buffers_exceed_caches_where_memory_allows() {
        let facts = |cache: Option<u64>, free: Option<u64>, total: Option<u64>| Facts {
            caches: cache.map(|bytes| Cache { level: 3, bytes, cpus: String::new() }).into_iter().collect(),
            memory_available: free,
            memory_total: total,
            ..Facts::default()
        };
        let of = |cache, free, total| Size::choose(&facts(cache, free, total));
        let (mib, gib) = (1 << 20, 1u64 << 30);
        assert_eq!(of(Some(480 * mib), Some(16 * gib), None).bytes, 1920 * mib);
        assert_eq!(of(Some(2 * mib), Some(16 * gib), None).bytes, 256 * mib);
        let capped = of(Some(480 * mib), Some(2 * gib), None);
        assert_eq!(capped.bytes, 512 * mib);
        assert!(capped.doubt().unwrap().contains("512.0 MiB, and the last cache has 480.0 MiB"));
        assert!(of(Some(480 * mib), Some(16 * gib), None).doubt().is_none());
        assert_eq!(of(None, None, Some(gib)).bytes, 128 * mib);
        assert_eq!(of(None, None, None).bytes, 256 * mib);
        assert!(of(None, None, None).doubt().is_none());
    }
}
