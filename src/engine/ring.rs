//! Lanes with work, on their way to an executor: the queue between whoever makes a
//! lane ready and whoever runs it, and the protocol that wakes the latter exactly when
//! he sleeps.
//!
//! An executor may also share a lock with some of those who make lanes ready, as event loops do with
//! all threads that hold the interpreter's lock: these put lanes in a queue under that one, and then
//! only [disarm](Ring::disarm). The executor looks into both, and holds that lock until it has armed.

use std::collections::VecDeque;

use super::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    lock,
};

/// Ready lanes, first come first served.
pub struct Ring<T> {
    ready: Mutex<VecDeque<T>>,
    length: AtomicUsize,
    /// The executor sleeps, and the next push must wake it. Changed under the lock.
    armed: AtomicBool,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self {
            ready: Mutex::new(VecDeque::new()),
            length: AtomicUsize::new(0),
            armed: AtomicBool::new(false),
        }
    }
}

impl<T> Ring<T> {
    /// Appends; true: the executor sleeps, and it is the caller's task to wake it.
    #[must_use]
    pub fn push(&self, item: T) -> bool {
        let mut ready = lock(&self.ready);
        ready.push_back(item);
        self.length.store(ready.len(), Ordering::Relaxed);
        self.take_armed()
    }

    /// Takes all, and appends them to `others`.
    #[cold]
    pub fn move_to(&self, others: &mut VecDeque<T>) {
        let mut ready = lock(&self.ready);
        others.append(&mut ready);
        self.length.store(0, Ordering::Relaxed);
    }

    /// Whether nothing is ready, at a glance.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.length.load(Ordering::Relaxed) == 0
    }

    /// The executor is about to sleep. False: there is something to do; it must look again instead.
    #[must_use]
    pub fn arm(&self) -> bool {
        let ready = lock(&self.ready);
        let sleeps = ready.is_empty();
        self.armed.store(sleeps, Ordering::Relaxed);
        sleeps
    }

    /// Claims the task of waking the executor; at most one gets it.
    #[must_use]
    pub fn disarm(&self) -> bool {
        // A sleep that begins just now is not the one that the caller means.
        self.armed.load(Ordering::Relaxed) && {
            let _still = lock(&self.ready);
            self.take_armed()
        }
    }

    /// Under the lock.
    #[inline]
    fn take_armed(&self) -> bool {
        let armed = self.armed.load(Ordering::Relaxed);
        if armed {
            self.armed.store(false, Ordering::Relaxed);
        }
        armed
    }
}
