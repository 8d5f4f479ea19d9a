//! Ctrl-C: what it means depends on what the program is doing.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Stops what is running, from another thread. Points at the cancel flag of whichever session is at work.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<Mutex<Arc<AtomicBool>>>);

impl Cancel {
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops whatever runs now.
    pub fn cancel(&self) {
        self.flag().store(true, Ordering::Relaxed);
    }

    /// From now on `flag` is what [`cancel`](Self::cancel) sets.
    pub(super) fn watch(&self, flag: Arc<AtomicBool>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = flag;
    }

    /// Whether [`cancel`](Self::cancel) was called since the last [`clear`](Self::clear).
    pub fn is_set(&self) -> bool {
        self.flag().load(Ordering::Relaxed)
    }

    /// Forgets a cancellation that came too late.
    pub fn clear(&self) {
        self.flag().store(false, Ordering::Relaxed);
    }
}

/// What the program is doing when Ctrl-C comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Doing {
    /// Something that may as well end: the program ends.
    Other = 0,
    /// Answering: the answer ends.
    Answering = 1,
    /// Waiting in the line editor, which sees the key itself and holds the terminal: nothing happens.
    Editing = 2,
}

/// The handler of Ctrl-C.
#[derive(Debug, Clone)]
pub struct Interrupts {
    doing: Arc<AtomicU8>,
}

impl Interrupts {
    /// Installs the handler. To be called once per program.
    ///
    /// # Errors
    /// The system refuses.
    pub fn install(cancel: Cancel) -> Result<Self, ctrlc::Error> {
        let doing = Arc::new(AtomicU8::new(Doing::Other as u8));
        let seen = Arc::clone(&doing);
        ctrlc::set_handler(move || {
            let doing = seen.load(Ordering::Relaxed);
            if doing == Doing::Answering as u8 {
                cancel.cancel();
            } else if doing == Doing::Other as u8 {
                // What a shell reports for a program that Ctrl-C has ended.
                std::process::exit(130);
            }
        })?;
        Ok(Self { doing })
    }

    /// Says what is being done until the guard is dropped.
    #[must_use]
    pub fn doing(&self, what: Doing) -> impl Drop + use<> {
        self.doing.store(what as u8, Ordering::Relaxed);
        Guard(Arc::clone(&self.doing))
    }
}

struct Guard(Arc<AtomicU8>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.store(Doing::Other as u8, Ordering::Relaxed);
    }
}
