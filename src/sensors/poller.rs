//! Readings on a thread of their own, so that nobody who computes waits for them.

use super::{EnergyMeter, Machine, State};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

/// What was read last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Polled {
    /// Counts readings from 1; 0: there was none yet.
    pub number: u64,
    /// The machine's state.
    pub state: State,
    /// Joules since the poller began, as far as energy can be read; `None`: it cannot.
    pub joules: Option<f64>,
}

/// Reads a machine's state from time to time, until it is dropped.
#[derive(Debug)]
pub struct Poller {
    latest: Arc<Mutex<Polled>>,
    stop: Arc<AtomicBool>,
    thread: Thread,
}

impl Poller {
    /// Seconds between two readings where nobody says: what `/sys` can bear, and seldom where programs must be run.
    pub const EVERY: Duration = Duration::from_secs(if cfg!(target_os = "macos") { 10 } else { 1 });

    /// Begins, with the first reading at once.
    ///
    /// # Errors
    /// The system refuses to start a thread.
    pub fn start(machine: Machine, every: Duration) -> io::Result<Self> {
        let (latest, stop) = (Arc::new(Mutex::default()), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&latest), Arc::clone(&stop));
        // It is not waited for in the end: a driver may take its time, and there is nothing to be lost.
        let thread = std::thread::Builder::new()
            .name("rdt-sensors".into())
            .spawn(move || poll(&machine, every, &shared, &stopped))?;
        Ok(Self { latest, stop, thread: thread.thread().clone() })
    }

    /// What was read last, if that is newer than reading `number`.
    pub fn newer(&self, number: u64) -> Option<Polled> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        (latest.number > number).then(|| latest.clone())
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

fn poll(machine: &Machine, every: Duration, latest: &Mutex<Polled>, stop: &AtomicBool) {
    let meter = EnergyMeter::new(machine);
    let (mut sample, mut joules, mut number) = (meter.sample(), None, 0);
    while !stop.load(Ordering::Relaxed) {
        let state = machine.state();
        let now = meter.sample();
        if let Some(spent) = sample.as_ref().zip(now.as_ref()).and_then(|(a, b)| meter.joules(a, b)) {
            joules = Some(joules.unwrap_or(0.0) + spent);
        }
        sample = now;
        number += 1;
        *latest.lock().unwrap_or_else(PoisonError::into_inner) = Polled { number, state, joules };
        // Waking up too early does no harm.
        std::thread::park_timeout(every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sensors::Fake;

    fn next(poller: &Poller, number: u64) -> Polled {
        loop {
            if let Some(polled) = poller.newer(number) {
                return polled;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn readings_come_by_themselves() {
        let fake = Fake::new(&[
            ("sys/class/thermal/thermal_zone0/temp", "40000"),
            ("sys/class/powercap/intel-rapl:0/name", "package-0"),
            ("sys/class/powercap/intel-rapl:0/energy_uj", "1000000"),
        ]);
        let poller = Poller::start(fake.machine(), Duration::from_millis(2)).unwrap();
        let first = next(&poller, 0);
        assert_eq!(first.state.hottest().map(|t| t.celsius), Some(40.0));
        fake.write("sys/class/powercap/intel-rapl:0/energy_uj", "3500000");
        let mut polled = first;
        while polled.joules != Some(2.5) {
            polled = next(&poller, polled.number);
        }
        drop(fake);
        while polled.state.hottest().is_some() {
            polled = next(&poller, polled.number);
        }
    }
}
