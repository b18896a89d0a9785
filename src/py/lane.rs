//! A lane in Python's hands: what a subscription does to it.

use std::sync::{Arc, Weak};

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::clock::monotonic_ns;
use super::core::Core;
use super::durable;
use super::ops::{PyLane, PyOps};
use crate::engine::lane::Lane;
use crate::engine::topic::Topic;

/// See the module. It keeps neither the bus nor the handler alive.
#[pyclass(frozen, module = "ironbus._core")]
pub struct LaneHandle {
    core: Weak<Core>,
    lane: Weak<Lane<PyOps>>,
}

impl LaneHandle {
    /// For a lane of a bus.
    pub fn new(core: &Arc<Core>, lane: &PyLane) -> Self {
        Self {
            core: Arc::downgrade(core),
            lane: Arc::downgrade(lane),
        }
    }

    /// The bus and the lane, as long as both are there.
    pub fn both(&self) -> Option<(Arc<Core>, PyLane)> {
        Some((self.core.upgrade()?, self.lane.upgrade()?))
    }
}

#[pymethods]
impl LaneHandle {
    /// Begins a subscription of the lane to these topics; returns its number.
    fn subscribe(&self, py: Python<'_>, topics: Vec<String>) -> PyResult<u64> {
        let Some((core, lane)) = self.both() else {
            return Err(PyRuntimeError::new_err(
                "the bus of this subscription is gone",
            ));
        };
        let now = core.now(py)?;
        let subscription = match &core.journaled {
            Some(journaled) => {
                let engine = &journaled.engine;
                py.detach(|| engine.subscribe(&core.bus, topics, &lane, now))
                    .map_err(|error| durable::exception(py, &error))?
            }
            None => {
                let topics = topics.iter().map(|topic| Topic::new(topic)).collect();
                core.bus.subscribe(topics, &lane, now)
            }
        };
        core.routes.clear(py);
        Ok(subscription)
    }

    /// Ends a subscription; with `close`, the lane as well.
    fn unsubscribe(&self, py: Python<'_>, subscription: u64, close: bool) -> PyResult<()> {
        let Some((core, lane)) = self.both() else {
            return Ok(());
        };
        let now = monotonic_ns();
        let ended = match &core.journaled {
            Some(journaled) => {
                let engine = &journaled.engine;
                py.detach(|| engine.unsubscribe(&core.bus, subscription, &lane, close, now))
            }
            None => {
                core.bus.unsubscribe(subscription, &lane, close, now);
                Ok(())
            }
        };
        core.routes.clear(py);
        ended.map_err(|error| durable::exception(py, &error))
    }

    /// Stops or resumes the starting of handlers.
    fn pause(&self, paused: bool) {
        if let Some((core, lane)) = self.both() {
            core.bus.pause(&lane, paused);
        }
    }

    /// The number of the lane; None when it is gone.
    #[getter]
    fn id(&self) -> Option<u64> {
        self.lane.upgrade().map(|lane| lane.id)
    }

    /// How many handlers may run at once.
    #[getter]
    fn concurrency(&self) -> usize {
        self.lane
            .upgrade()
            .map_or(0, |lane| lane.options.concurrency)
    }
}
