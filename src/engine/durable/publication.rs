//! What was handed to the journal together, and what becomes of it: known once the commit is
//! over, to whoever asks.

use super::Written;
use crate::engine::journal::JournalError;
use crate::engine::ops::Ops;
use crate::engine::store::Durability;
use crate::engine::sync::{Mutex, lock};

/// How durable it is, or why it is not stored.
pub type Fate = Result<Durability, JournalError>;

/// See the module.
pub struct Publication<O: Ops> {
    /// It had to wait for its numbers.
    pub lined_up: bool,
    count: usize,
    state: Mutex<State<O>>,
}

struct State<O: Ops> {
    /// The number of its first event, once it has one.
    first: u64,
    /// Its events, to be brought anew.
    back: Option<Vec<Written<O>>>,
    fate: Option<Fate>,
    /// Events whose commit is not over.
    left: usize,
    waker: Option<O::Waker>,
}

impl<O: Ops> Publication<O> {
    /// Of events with numbers from `first` on, or (none) of such that wait for them.
    pub(super) fn new(first: Option<u64>, count: usize) -> Self {
        let state = State {
            first: first.unwrap_or_default(),
            back: None,
            fate: None,
            left: count,
            waker: None,
        };
        Self {
            lined_up: first.is_none(),
            count,
            state: Mutex::new(state),
        }
    }

    /// The number of its first event; 0 while it waits for that.
    pub fn first(&self) -> u64 {
        lock(&self.state).first
    }

    /// Its events, if they did not get in because of their keys and are to be brought anew.
    pub fn take_back(&self) -> Option<Vec<Written<O>>> {
        lock(&self.state).back.take()
    }

    /// How many events it has.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn is_numbered(&self, first: u64) {
        lock(&self.state).first = first;
    }

    /// See [`take_back`](Self::take_back). Returns whom to wake.
    pub(super) fn goes_back(&self, written: Vec<Written<O>>) -> Option<O::Waker> {
        let mut state = lock(&self.state);
        state.back = Some(written);
        state.waker.take()
    }

    /// What became of it, once that is known.
    pub fn fate(&self) -> Option<Fate> {
        lock(&self.state).fate.clone()
    }

    /// Says whom to wake when that is known; gives it back if it is. One waits at a time.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        if state.fate.is_some() || state.back.is_some() {
            return Err(waker);
        }
        state.waker = Some(waker);
        Ok(())
    }

    /// The fate of so many of its events, which all share. Returns whom to wake.
    pub(super) fn are_over(&self, count: usize, fate: &Fate) -> Option<O::Waker> {
        let mut state = lock(&self.state);
        state.left -= count;
        if state.left > 0 {
            return None;
        }
        state.fate = Some(fate.clone());
        state.waker.take()
    }
}
