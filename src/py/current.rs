//! Which delivery this thread is in the middle of.
//!
//! A publish asks it where it comes from, a wait asks it whom it would hold up. It
//! points to the executor's own record for as long as the handler is stepped.

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

/// An executor at work on a lane. It goes from one delivery to the next, so that an event costs
/// it no reference counts.
pub struct Runner {
    /// Whose bus.
    pub core: Arc<Core>,
    /// The lane.
    pub lane: PyLane,
    /// The slot; 0 for a thread.
    pub slot: u64,
}

scoped_tls::scoped_thread_local!(static ACTIVE: Active);

/// Runs `body` in the middle of the delivery. What it says to other threads or later, nobody hears.
#[inline(always)]
pub fn during<R>(active: &Active, body: impl FnOnce() -> R) -> R {
    ACTIVE.set(active, body)
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
    ACTIVE.is_set().then(|| {
        ACTIVE.with(|active| Origin {
            core: active.runner.core.clone(),
            lane: active.runner.lane.id,
            cause: active.entry.event.clone(),
            slot: active.runner.slot,
        })
    })
}

/// The event that this thread's innermost handler was given.
pub fn event(py: Python<'_>) -> Option<Py<PyAny>> {
    ACTIVE
        .is_set()
        .then(|| ACTIVE.with(|active| active.event.clone_ref(py)))
}
