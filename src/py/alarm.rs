//! The one timer of a bus: a `call_later` on the loop on which it is started, for whatever
//! is due next. Nobody sleeps and no task waits for a retry, a delay or a breaker.

use std::sync::Arc;
use std::thread;

use pyo3::prelude::*;

use super::event_loop::{Home, LoopSeat};
use super::once::intern;
use super::ops::{PySeat, report_unless_closed};
use super::policy::seconds;
use super::slot::Slot;
use crate::engine::clock::Nanos;
use crate::engine::ops::Alarm;
use crate::engine::sync::lock;

/// How soon the timer looks again, in seconds, where somebody else moves the clock: it stands
/// still between two looks.
const GLANCE: f64 = 0.02;

/// A timer that runs, and when it runs out on the bus's clock.
pub type Armed = Option<(Py<PyAny>, Nanos)>;

/// See the module. While the bus is not started it does nothing: the next start looks.
pub struct LoopAlarm(pub Arc<PySeat>);

impl LoopAlarm {
    fn seat(&self) -> Option<&Arc<LoopSeat>> {
        match &*self.0 {
            PySeat::Loop(seat) => Some(seat),
            _ => None,
        }
    }
}

impl Alarm for LoopAlarm {
    fn set(&self, _due: Nanos) {
        let Some(home) = self.seat().and_then(|seat| seat.home()) else {
            return;
        };
        Python::attach(|py| {
            let set = if home.is_here() {
                home.rearm(py)
            } else {
                Py::new(py, Rearm(home.clone())).and_then(|rearm| {
                    let call = intern!(py, "call_soon_threadsafe");
                    let event_loop = home.event_loop.bind(py);
                    event_loop.call_method1(call, (rearm,)).map(drop)
                })
            };
            if let Err(error) = set {
                report_unless_closed(py, home.event_loop.bind(py), &error);
            }
        });
    }
}

impl LoopSeat {
    /// Looks after everything that is due, from whatever thread: what belongs to the loop's thread is
    /// done there.
    pub fn tick(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let Some(home) = self.home() else {
            return Ok(());
        };
        if home.is_here() {
            return home.tick(py);
        }
        home.core.bus.tick(home.core.now(py)?);
        let tick = Py::new(py, Tick(home.clone()))?;
        let call = intern!(py, "call_soon_threadsafe");
        home.event_loop
            .bind(py)
            .call_method1(call, (tick,))
            .map(drop)
    }
}

impl Home {
    /// Looks after everything that is due. On the loop's thread.
    fn tick(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        if self.is_stopping() {
            return Ok(());
        }
        self.core.bus.tick(self.core.now(py)?);
        if self.core.clock.is_driven() {
            for slot in self.suspended(py) {
                Slot::look_at_deadline(slot.bind(py))?;
            }
        }
        self.rearm(py)
    }

    fn suspended(&self, py: Python<'_>) -> Vec<Py<Slot>> {
        let suspended = lock(&self.suspended);
        suspended.values().map(|slot| slot.clone_ref(py)).collect()
    }

    /// The clock was stopped, or runs again: timers are set anew. On the loop's thread.
    pub fn retime(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        self.disarm(py)?;
        for slot in self.suspended(py) {
            Slot::watch_anew(slot.bind(py))?;
        }
        self.tick(py)
    }

    /// When the next thing is due: also the end of a handler's time, which has a timer of its own.
    pub fn next_due(&self, py: Python<'_>) -> Option<Nanos> {
        let suspended = self.suspended(py);
        let deadlines = suspended.iter().filter_map(|slot| slot.get().deadline());
        deadlines.chain(self.core.bus.next_due()).min()
    }

    /// Whether this thread is the loop's.
    pub fn is_here(&self) -> bool {
        self.thread == thread::current().id()
    }

    /// Has the loop call when the next thing is due. On the loop's thread.
    pub fn rearm(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let Some(due) = self.core.bus.next_due() else {
            return Ok(());
        };
        if lock(&self.alarm).as_ref().is_some_and(|(_, at)| *at <= due) {
            return Ok(());
        }
        self.disarm(py)?;
        let left = seconds(due.saturating_sub(self.core.now(py)?));
        if left > 0.0 && self.core.clock.is_stopped() {
            // Whoever moves it ticks.
            return Ok(());
        }
        let left = if left > 0.0 && self.core.clock.is_driven() {
            left.max(GLANCE)
        } else {
            left
        };
        let timer = self.event_loop.bind(py).call_method1(
            intern!(py, "call_later"),
            (left, Py::new(py, Tick(self.clone()))?),
        )?;
        *lock(&self.alarm) = Some((timer.unbind(), due));
        Ok(())
    }

    /// Takes the timer back.
    pub fn disarm(&self, py: Python<'_>) -> PyResult<()> {
        let armed = lock(&self.alarm).take();
        match armed {
            Some((timer, _)) => timer.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }
}

/// What another thread asks the loop to call.
#[pyclass(frozen)]
pub struct Rearm(Arc<Home>);

#[pymethods]
impl Rearm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.rearm(py)
    }
}

/// What the loop calls when the timer runs out.
#[pyclass(frozen)]
pub struct Tick(Arc<Home>);

#[pymethods]
impl Tick {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let home = &self.0;
        home.disarm(py)?;
        home.tick(py)
    }
}
