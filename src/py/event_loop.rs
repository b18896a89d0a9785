//! Where async handlers run: slots on the event loop on which the bus was started.
//!
//! A slot is a real `asyncio.Task` around one native coroutine that serves all ready
//! lanes of the loop, round-robin, within one time budget per loop turn. A handler that
//! ends without suspending costs no task and no turn; one that suspends keeps its slot,
//! and another slot goes on. At most one slot serves at a time; `armed` says that none does and that
//! whoever finds something ready next must wake one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::alarm::Armed;
use super::cell::GilCell;
use super::context::Base;
use super::core::Core;
use super::current::Running;
use super::native;
use super::once::intern;
use super::ops::{PyLane, report_unless_closed, resolve};
use super::run::Job;
use super::slot::Slot;
use crate::engine::sync::lock;

/// Something for a slot to do.
pub enum Work {
    /// The lane has events.
    Lane(PyLane),
    /// A sync handler returned an awaitable, which is run here.
    Adopted(Box<Job>),
}

/// Async lanes, and the loop that serves them while the bus is started.
#[derive(Default)]
pub struct LoopSeat {
    line: GilCell<Line>,
    home: Mutex<Option<Arc<Home>>>,
}

/// What is ready, and whether somebody sees to it. Nearly everything is found ready by who holds the
/// interpreter's lock anyway, so that no other is needed.
#[derive(Default)]
struct Line {
    ready: VecDeque<Work>,
    /// No slot serves.
    armed: bool,
}

/// The loop of one start.
pub struct Home {
    /// The bus; a started bus is a root.
    pub core: Arc<Core>,
    /// The loop.
    pub event_loop: Py<PyAny>,
    /// What handlers run in a copy of.
    pub context: Base,
    /// No more work is begun.
    pub stopping: AtomicBool,
    /// Slots that sleep, each with the future that wakes it.
    pub idle: Mutex<Vec<(Py<Slot>, Py<PyAny>)>>,
    /// Slots whose handler waits.
    pub suspended: Mutex<HashMap<u64, Py<Slot>>>,
    /// What looks after the bus's timers.
    pub alarm: Mutex<Armed>,
    /// The tasks of all slots, by slot number.
    pub tasks: Mutex<HashMap<u64, Py<PyAny>>>,
    /// The loop's.
    pub thread: ThreadId,
    slots: AtomicU64,
    /// The bus's at this start: see [`Core::life`].
    pub life: u64,
}

impl LoopSeat {
    /// The next to be served.
    #[inline]
    pub fn next(&self, py: Python<'_>) -> Option<Work> {
        self.line.update(py, |line| {
            let next = line.ready.pop_front();
            if let Some(Work::Lane(after)) = line.ready.front() {
                after.prefetch_all();
            }
            next
        })
    }

    /// Whether there is more to be served, at a glance.
    #[inline]
    pub fn has_more(&self, py: Python<'_>) -> bool {
        self.line.read(py, |line| !line.ready.is_empty())
    }

    /// No slot is about to serve. False: there is something to do, or somebody is on the way to wake one.
    #[must_use]
    pub fn arm(&self, py: Python<'_>) -> bool {
        self.line.update(py, |line| {
            line.armed = line.ready.is_empty();
            line.armed
        })
    }

    /// A slot is about to serve. False: one is already, or somebody is on the way to wake one.
    pub fn disarm(&self, py: Python<'_>) -> bool {
        self.line.update(py, |line| std::mem::take(&mut line.armed))
    }

    /// Puts the lane in line, and wakes a slot if none is awake.
    pub fn schedule(self: &Arc<Self>, lane: PyLane) {
        self.push(Work::Lane(lane));
    }

    /// Runs the rest of a sync handler's work on the loop.
    pub fn adopt(self: &Arc<Self>, job: Box<Job>) {
        self.push(Work::Adopted(job));
    }

    #[inline(never)]
    fn push(self: &Arc<Self>, work: Work) {
        let asleep = native::attached_here(|py| {
            self.line.update(py, |line| line.ready.push_back(work));
            self.disarm(py)
        });
        // Where there is no interpreter any more, nobody serves.
        if asleep == Some(true) {
            Python::attach(|py| self.wake(py));
        }
    }

    // Apart from what is done for each lane, as `try_attach` below is.
    #[inline(never)]
    fn wake(self: &Arc<Self>, py: Python<'_>) {
        let Some(home) = self.home() else { return };
        let woken = if home.is_here() {
            home.rouse(py)
        } else {
            let call = intern!(py, "call_soon_threadsafe");
            Py::new(py, Rouser(home.clone())).and_then(|rouser| {
                home.event_loop
                    .bind(py)
                    .call_method1(call, (rouser,))
                    .map(drop)
            })
        };
        if let Err(error) = woken {
            // What is ready stays so; the next start looks at it.
            report_unless_closed(py, home.event_loop.bind(py), &error);
        }
    }

    /// The loop's side, while the bus is started.
    pub fn home(&self) -> Option<Arc<Home>> {
        lock(&self.home).clone()
    }

    /// Whether this thread is the one whose loop serves the lanes.
    pub fn is_home(&self) -> bool {
        lock(&self.home).as_ref().is_some_and(|home| home.is_here())
    }

    /// Whether the loop on which the bus was started is closed.
    pub fn is_closed(&self, py: Python<'_>) -> bool {
        let Some(home) = self.home() else {
            return false;
        };
        let closed = home
            .event_loop
            .bind(py)
            .call_method0(intern!(py, "is_closed"));
        closed.and_then(|closed| closed.is_truthy()).unwrap_or(true)
    }

    /// Begins to serve lanes on the loop, which runs in this thread.
    pub fn open(
        self: &Arc<Self>,
        py: Python<'_>,
        core: &Arc<Core>,
        event_loop: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let home = Arc::new(Home {
            core: core.clone(),
            event_loop: event_loop.unbind(),
            context: Base::current(py)?,
            stopping: AtomicBool::new(false),
            idle: Mutex::default(),
            suspended: Mutex::default(),
            alarm: Mutex::default(),
            tasks: Mutex::default(),
            thread: thread::current().id(),
            slots: AtomicU64::new(0),
            life: core.life(),
        });
        let previous = lock(&self.home).replace(home.clone());
        if let Some(previous) = previous {
            previous.abandon(py);
        }
        if !self.arm(py) {
            home.rouse(py)?;
        }
        home.rearm(py)
    }

    /// Begins no more work. Handlers that wait are cancelled, but for the caller's own; their
    /// events go back. Returns the tasks that will end then, and how many handlers were cancelled.
    pub fn halt(&self, py: Python<'_>, own: Option<u64>) -> PyResult<(Py<PyList>, usize)> {
        let tasks = PyList::empty(py);
        let Some(home) = self.home() else {
            return Ok((tasks.unbind(), 0));
        };
        home.stopping.store(true, Ordering::Relaxed);
        home.disarm(py)?;
        self.disarm(py);
        let idle = std::mem::take(&mut *lock(&home.idle));
        for (_, future) in idle {
            resolve(future.bind(py))?;
        }
        let suspended: Vec<_> = {
            let suspended = lock(&home.suspended);
            suspended
                .iter()
                .filter(|(id, _)| Some(**id) != own)
                .map(|(_, slot)| slot.clone_ref(py))
                .collect()
        };
        for slot in &suspended {
            slot.get().recall(py)?;
        }
        let all: Vec<_> = {
            let tasks = lock(&home.tasks);
            tasks
                .iter()
                .filter(|(id, _)| Some(**id) != own)
                .map(|(_, task)| task.clone_ref(py))
                .collect()
        };
        for task in all {
            tasks.append(task)?;
        }
        Ok((tasks.unbind(), suspended.len()))
    }

    /// Lets go of a loop that is closed, with all that waits on it.
    pub fn abandon(&self, py: Python<'_>) {
        let home = lock(&self.home).take();
        if let Some(home) = home {
            self.disarm(py);
            home.abandon(py);
        }
    }

    /// Lets go of the loop.
    pub fn close(&self) {
        let home = lock(&self.home).take();
        drop(home);
    }
}

impl Home {
    /// Whether no more work is begun.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// The runs of the handlers that wait.
    pub fn waiting(&self, py: Python<'_>) -> Vec<Running> {
        let suspended: Vec<_> = {
            let suspended = lock(&self.suspended);
            suspended.values().map(|slot| slot.clone_ref(py)).collect()
        };
        let runs = suspended.iter().filter_map(|slot| slot.get().running());
        runs.collect()
    }

    /// The loop was closed, or belongs to another process, before the bus was stopped: handlers
    /// that waited on it never go on, and their events go back.
    fn abandon(&self, py: Python<'_>) {
        self.stopping.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *lock(&self.idle));
        drop(idle);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for task in tasks.values() {
            // It never ends, and nobody is to hear that.
            if let Err(error) = task.setattr(py, intern!(py, "_log_destroy_pending"), false) {
                error.write_unraisable(py, None);
            }
        }
        let suspended = std::mem::take(&mut *lock(&self.suspended));
        for slot in suspended.values() {
            if let Err(error) = slot.call_method0(py, intern!(py, "close")) {
                error.write_unraisable(py, None);
            }
        }
    }

    /// Wakes a slot that sleeps, or makes one. On the loop's thread.
    pub fn rouse(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        loop {
            let Some((slot, future)) = lock(&self.idle).pop() else {
                break;
            };
            drop(slot);
            let future = future.bind(py);
            // A sleeper that was cancelled from outside ends instead of waking.
            if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
                future.call_method1(intern!(py, "set_result"), (py.None(),))?;
                return Ok(());
            }
        }
        let id = self.slots.fetch_add(1, Ordering::Relaxed) + 1;
        Slot::spawn(py, self.clone(), id)
    }
}

/// What another thread asks the loop to call.
#[pyclass(frozen)]
pub struct Rouser(Arc<Home>);

#[pymethods]
impl Rouser {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        self.0.rouse(py)
    }
}
