//! Lanes with work, on their way to an executor: the queue between whoever makes a
//! lane ready and whoever runs it, and the protocol that wakes the latter exactly when
//! he sleeps.

use std::collections::VecDeque;

use super::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    lock,
};

/// Ready lanes, first come first served.
pub struct Ring<T> {
    ready: Mutex<VecDeque<T>>,
    length: AtomicUsize,
    /// The executor sleeps, and the next push must wake it.
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
        {
            let mut ready = lock(&self.ready);
            ready.push_back(item);
            self.length.store(ready.len(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.disarm()
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

    /// The executor is about to sleep. False: there is something to do, or somebody is already
    /// on the way to wake it; it must look again instead.
    #[must_use]
    pub fn arm(&self) -> bool {
        // An exchange, as every other write of `armed`: one chain of exchanges has one order, which
        // is what the model checker can follow.
        self.armed.swap(true, Ordering::AcqRel);
        // Either a pusher sees `armed` after its push, or this sees the push.
        fence(Ordering::SeqCst);
        self.is_empty() || !self.disarm()
    }

    /// Claims the task of waking the executor; at most one gets it.
    #[must_use]
    pub fn disarm(&self) -> bool {
        self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel)
    }
}
