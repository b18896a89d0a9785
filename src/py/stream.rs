//! Where events of a stream are "run": handed to whoever iterates. A stream's lane is
//! passive: it drops its own oldest when nobody comes for them, and holds up nobody.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::clock::monotonic_ns;
use super::core::Core;
use super::event::Event;
use super::native;
use super::ops::{self, FutureWaker, PyLane, PySeat, Signal, Waker};
use super::receipt::Receipt;
use crate::engine::ops::Wake;
use crate::engine::settlement::Outcome;
use crate::engine::sync::lock;

/// Tells the iterator that there is something.
#[derive(Default)]
pub struct StreamSeat {
    waiter: Mutex<Option<Waker>>,
    scheduled: AtomicBool,
}

impl StreamSeat {
    /// Called by the engine when the lane has work.
    pub fn notify(&self) {
        self.scheduled.store(true, Ordering::Release);
        let waiter = lock(&self.waiter).take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

/// The taking end of a stream.
#[pyclass(frozen, module = "ironbus._core")]
pub struct StreamSource {
    core: Weak<Core>,
    lane: PyLane,
    subscription: u64,
    name: Py<PyString>,
    closed: AtomicBool,
}

impl StreamSource {
    /// For a lane whose seat is a stream's.
    pub fn new(core: &Arc<Core>, lane: PyLane, subscription: u64, name: Py<PyString>) -> Self {
        Self {
            core: Arc::downgrade(core),
            lane,
            subscription,
            name,
            closed: Default::default(),
        }
    }

    fn seat(&self) -> &StreamSeat {
        match &**self.lane.seat() {
            PySeat::Stream(seat) => seat,
            _ => unreachable!("made so by the bus"),
        }
    }

    fn take(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&ops::Event, u64),
    ) -> PyResult<Option<Py<PyAny>>> {
        let Some(core) = self.core.upgrade() else {
            return Ok(None);
        };
        let now = core.now(py)?;
        self.seat().scheduled.store(false, Ordering::Release);
        let Some(next) = core.bus.take(&self.lane, now) else {
            return Ok(None);
        };
        let mut entry = next.entry;
        let event = Event::deliver(
            py,
            &entry.event.payload,
            entry.sequence,
            entry.attempt,
            &self.name,
            None,
        );
        look(&entry.event, entry.sequence);
        // Handed over is done: a stream has no handler that could fail.
        core.bus
            .finish(&self.lane, &mut entry, Outcome::Done, None, false, now);
        event.map(Some)
    }

    fn register(&self, waker: Waker) -> Option<Waker> {
        let mut waiter = lock(&self.seat().waiter);
        if self.seat().scheduled.load(Ordering::Acquire) {
            return Some(waker);
        }
        waiter.replace(waker)
    }
}

#[pymethods]
impl StreamSource {
    /// The next event, if there is one.
    fn take_now(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.take(py, |_, _| {})
    }

    /// The same with its receipt, which can be asked whether the event is settled, and not for its outcomes.
    fn take_with_receipt(&self, py: Python<'_>) -> PyResult<Option<(Py<PyAny>, Py<Receipt>)>> {
        let mut receipt = None;
        let event = self.take(py, |event, sequence| {
            receipt = Some(Receipt::of_event(event.clone(), sequence));
        })?;
        let receipt = receipt
            .map(|receipt| native::make(py, || receipt))
            .transpose()?;
        Ok(event.zip(receipt.map(Bound::unbind)))
    }

    /// A future of the running loop that is done when it is worth looking again.
    fn ready<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (waker, future) = FutureWaker::new(py)?;
        if let Some(waker) = self.register(Waker::Future(waker)) {
            waker.wake();
        }
        Ok(future)
    }

    /// Waits, on this thread, until it is worth looking again; false after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let signal = Arc::new(Signal::default());
        if let Some(waker) = self.register(Waker::Thread(signal.clone())) {
            waker.wake();
        }
        signal.wait(py, timeout.map(ops::seconds))
    }

    /// How many events were dropped because nobody came for them.
    #[getter]
    fn lagged(&self) -> u64 {
        self.lane.report().tally.dropped
    }

    /// Ends the stream; nothing is queued for it any more.
    fn close(&self, py: Python<'_>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(core) = self.core.upgrade() {
            core.bus
                .unsubscribe(self.subscription, &self.lane, true, monotonic_ns());
            core.routes.clear(py);
        }
        self.seat().notify();
    }
}
