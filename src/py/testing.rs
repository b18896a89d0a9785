//! What `ironbus.testing` needs of a bus beside its public face: time that stands still
//! until it is moved, stand-ins for handlers and random numbers, and word of failures.
//! While nobody tests, all of it costs a bus nothing.

use std::sync::{Arc, Weak};

use pyo3::exceptions::PyReferenceError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::bus::Bus;
use super::core::Core;
use super::event_loop::Home;
use super::lane::LaneHandle;
use super::once::intern;
use super::ops::{FutureWaker, Waker};
use super::prepare::key_digest;
use super::walk;

/// See the module.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Harness {
    core: Weak<Core>,
}

impl Harness {
    fn core(&self) -> PyResult<Arc<Core>> {
        let core = self.core.upgrade();
        core.ok_or_else(|| PyReferenceError::new_err("the bus of this harness is gone"))
    }

    fn retime(py: Python<'_>, core: &Core) -> PyResult<()> {
        let seat = core.event_loop();
        let Some(home) = seat.home() else {
            return Ok(());
        };
        if home.is_here() {
            return home.retime(py);
        }
        if seat.is_closed(py) {
            return Ok(());
        }
        let retime = Py::new(py, Retime(home.clone()))?;
        let call = intern!(py, "call_soon_threadsafe");
        let event_loop = home.event_loop.bind(py);
        event_loop.call_method1(call, (retime,)).map(drop)
    }
}

#[pymethods]
impl Harness {
    #[new]
    fn new(bus: &Bound<'_, Bus>) -> PyResult<Self> {
        Ok(Self {
            core: Arc::downgrade(bus.get().core()?),
        })
    }

    // Time ------------------------------------------------------------------------

    /// Nanoseconds on the bus's clock.
    fn now(&self, py: Python<'_>) -> PyResult<u64> {
        self.core()?.now(py)
    }

    /// Lets the bus's clock stand still. False: it does so already.
    fn stop_clock(&self, py: Python<'_>) -> PyResult<bool> {
        let core = self.core()?;
        let stopped = core.clock.stop(py)?;
        if stopped {
            Self::retime(py, &core)?;
        }
        Ok(stopped)
    }

    /// Moves the clock, which stands still, to the next time at which something is due, and looks after
    /// that. False: nothing is due until then, and the clock is moved there.
    fn step_clock(&self, py: Python<'_>, until: u64) -> PyResult<bool> {
        let core = self.core()?;
        let home = core.event_loop().home().filter(|home| !home.is_stopping());
        let due = home.and_then(|home| home.next_due(py));
        let due = due.filter(|due| *due <= until);
        core.clock.move_to(py, due.unwrap_or(until));
        if due.is_some() {
            core.event_loop().tick(py)?;
        }
        Ok(due.is_some())
    }

    /// Lets the clock run again, from where it stands.
    fn run_clock(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        core.clock.run(py)?;
        Self::retime(py, &core)
    }

    /// Says what Unix time is where the injected clock is at 0, which is the machine's otherwise: for
    /// buses that come after each other on one file. False: the bus has told the time already.
    fn set_epoch(&self, seconds: f64) -> PyResult<bool> {
        Ok(self.core()?.clock.set_epoch(seconds))
    }

    /// Whether somebody else than time moves the clock.
    fn is_driven(&self) -> PyResult<bool> {
        Ok(self.core()?.clock.is_driven())
    }

    /// Whether at most so many handlers run, and none could be started now.
    fn is_still(&self, running: usize) -> PyResult<bool> {
        Ok(self.core()?.bus.is_still(running))
    }

    /// A future of the running loop that is done when it is worth looking whether that is so; None if
    /// it is so now.
    fn still_future<'py>(
        &self,
        py: Python<'py>,
        running: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let (waker, future) = FutureWaker::new(py)?;
        let waits = self.core()?.bus.when_still(Waker::Future(waker), running);
        Ok(waits.is_ok().then_some(future))
    }

    // Stand-ins -------------------------------------------------------------------

    /// Has this called in place of a lane's handler; None: the handler itself. Returns what was called
    /// in its place before.
    #[pyo3(signature = (lane, stand_in))]
    fn replace_handler(
        &self,
        py: Python<'_>,
        lane: &Bound<'_, LaneHandle>,
        stand_in: Option<Py<PyAny>>,
    ) -> Option<Py<PyAny>> {
        let (_, lane) = lane.get().both()?;
        lane.handler.stand_in.replace(py, stand_in)
    }

    /// Spreads the delays of retries by these numbers; None: by the bus's own. Returns what did before.
    #[pyo3(signature = (random))]
    fn replace_random(
        &self,
        py: Python<'_>,
        random: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.core()?.replace_random(py, random))
    }

    /// Calls this with what `_log.handler_failed` is called with; None: nothing. Returns what was
    /// called before.
    #[pyo3(signature = (watcher))]
    fn watch_failures(
        &self,
        py: Python<'_>,
        watcher: Option<Py<PyAny>>,
    ) -> PyResult<Option<Py<PyAny>>> {
        Ok(self.core()?.watch_failures(py, watcher))
    }

    /// Keeps dead letters in memory instead of their file. False: it does so already, or there is no file.
    fn keep_letters_in_memory(&self) -> PyResult<bool> {
        Ok(self.core()?.bus.sink().stand_in())
    }

    /// Uses the file of dead letters again; those in memory are gone.
    fn use_letters_file(&self) -> PyResult<()> {
        self.core()?.bus.sink().stand_back();
        Ok(())
    }

    // The end ---------------------------------------------------------------------

    /// Lets go of everything that waits in the lanes, counted as dropped.
    fn discard(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        core.bus.discard(core.now(py)?);
        Ok(())
    }

    /// Forgets the idempotency key of an event that was accepted. False: it is not known.
    fn forget_key(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<bool> {
        let core = self.core()?;
        let key = event.getattr(intern!(py, "idempotency_key"))?;
        let digest = if let Ok(key) = key.cast::<PyString>() {
            key_digest(key.to_str()?)
        } else if core.settings.by_content {
            let type_ = event.getattr(intern!(py, "type"))?;
            let data = event.getattr(intern!(py, "data"))?;
            walk::content_digest(py, type_.cast::<PyString>()?, &data)?
        } else {
            return Ok(false);
        };
        Ok(core.bus.with_keys(|keys| keys.forget(&digest)))
    }

    /// Lets go of a loop that was closed under the started bus. Events go back to their lanes; the
    /// bus is stopped.
    fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        let core = self.core()?;
        core.bus.close();
        core.pool().close(py)?;
        core.event_loop().abandon(py);
        core.set_running(false, core.now(py)?);
        Ok(())
    }

    /// A fault on purpose: the next event of a lane is gone without a trace. False: none is queued.
    fn lose(&self, py: Python<'_>, lane: &Bound<'_, LaneHandle>) -> PyResult<bool> {
        let Some((core, lane)) = lane.get().both() else {
            return Ok(false);
        };
        let lost = lane.lose(core.now(py)?);
        Ok(lost.is_some())
    }
}

/// What another thread asks the loop to call.
#[pyclass(frozen)]
struct Retime(Arc<Home>);

#[pymethods]
impl Retime {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.retime(py)
    }
}
