//! Which delivery this thread is in the middle of.
//!
//! A publish asks it where it comes from, a wait asks it whom it would hold up. It
//! holds the entry itself while the handler is stepped, so keeping it up to date costs
//! two moves and no reference counts.

use std::cell::RefCell;
use std::sync::Arc;

use pyo3::prelude::*;

use super::core::Core;
use super::ops::{Event, PyLane, PyOps};
use crate::engine::lane::{Entry, LaneId};

/// One delivery in the hands of an executor.
pub struct Active {
    /// Who runs it.
    pub runner: Runner,
    /// Its place in the lane.
    pub entry: Entry<PyOps>,
    /// What the handler was given.
        pub event: Py<PyAny>,
}

/// An executor at work on a lane. It goes into each delivery and comes out of it again, so that
/// an event costs it no reference counts.
pub struct Runner {
    /// Whose bus.
    pub core: Arc<Core>,
    /// The lane.
    pub lane: PyLane,
    /// The slot; 0 for a thread.
    pub slot: u64,
}

thread_local! {
    static STACK: RefCell<Vec<Active>> = const { RefCell::new(Vec::new()) };
}

/// Runs `body` in the middle of the delivery.
#[inline]
pub fn during<R>(active: Active, body: impl FnOnce() -> R) -> (Active, R) {
    struct Unwound;
    impl Drop for Unwound {
        fn drop(&mut self) {
            if std::thread::panicking() {
                STACK.with_borrow_mut(|stack| stack.pop());
            }
        }
    }
    STACK.with_borrow_mut(|stack| stack.push(active));
    let unwound = Unwound;
    let result = body();
    drop(unwound);
    let active = STACK
        .with_borrow_mut(|stack| stack.pop())
        .expect("pushed above");
    (active, result)
}

/// Where a publish comes from.
#[derive(Clone)]
pub struct Origin {
    /// The bus of the handler.
    pub core: Arc<Core>,
    /// The handler's lane.
    pub lane: LaneId,
    /// The event that it handles.
    pub cause: Event,
    /// The slot that runs it; 0 for a thread.
    pub slot: u64,
}

/// The delivery that this thread is in the middle of.
#[inline]
pub fn origin() -> Option<Origin> {
    STACK.with_borrow(|stack| {
        stack.last().map(|active| Origin {
            core: active.runner.core.clone(),
            lane: active.runner.lane.id,
            cause: active.entry.event.clone(),
            slot: active.runner.slot,
        })
    })
}

/// The event that this thread's innermost handler was given.
pub fn event(py: Python<'_>) -> Option<Py<PyAny>> {
    STACK.with_borrow(|stack| stack.last().map(|active| active.event.clone_ref(py)))
}
