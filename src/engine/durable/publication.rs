//! What was handed to the journal together, and what becomes of it: known once the commit is
//! over, to whoever asks.

use crate::engine::journal::JournalError;
use crate::engine::ops::Ops;
use crate::engine::store::Durability;
use crate::engine::sync::{Mutex, lock};

/// How durable it is, or why it is not stored.
pub type Fate = Result<Durability, JournalError>;

/// See the module.
pub struct Publication<O: Ops> {
    /// The number of its first event.
    pub first: u64,
    state: Mutex<State<O>>,
}

struct State<O: Ops> {
    fate: Option<Fate>,
    /// Events whose commit is not over.
    left: usize,
    waker: Option<O::Waker>,
}

impl<O: Ops> Publication<O> {
    pub(super) fn new(first: u64, count: usize) -> Self {
        let state = State {
            fate: None,
            left: count,
            waker: None,
        };
        Self {
            first,
            state: Mutex::new(state),
        }
    }

    /// What became of it, once that is known.
    pub fn fate(&self) -> Option<Fate> {
        lock(&self.state).fate.clone()
    }

    /// Says whom to wake when that is known; gives it back if it is. One waits at a time.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        if state.fate.is_some() {
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
