//! Lanes with work, on their way to an executor: the queue between whoever makes a
//! lane ready and whoever runs it, and the protocol that wakes the latter exactly when
//! he sleeps.

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

    /// Takes the first.
    pub fn pop(&self) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let mut ready = lock(&self.ready);
        let item = ready.pop_front();
        self.length.store(ready.len(), Ordering::Relaxed);
        item
    }

    /// Takes all, in exchange for an empty queue.
    pub fn swap(&self, empty: &mut VecDeque<T>) {
        debug_assert!(empty.is_empty());
        let mut ready = lock(&self.ready);
        std::mem::swap(&mut *ready, empty);
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
