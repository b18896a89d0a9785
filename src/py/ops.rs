//! The binding's side of the engine's type parameters: what it carries, whom it wakes
//! and where lanes are run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread, ThreadId};
use std::time::{Duration, Instant};

use super::once::Once;
use super::once::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::alarm::LoopAlarm;
use super::cell::GilCell;
use super::event_loop::LoopSeat;
use super::letters::LetterSink;
use super::policy::Policy;
use super::pool::Pool;
use super::record::Record;
use super::stream::StreamSeat;
use super::transaction::Settling;
use crate::engine::lane::Lane;
use crate::engine::ops::{Ops, Seat, Wake};
use crate::engine::settlement::Envelope;
use crate::engine::sync::Shared;

/// Python, as the engine's outside world.
pub struct PyOps;

impl Ops for PyOps {
    type Payload = Record;
    type Handler = Handler;
    type Failure = PyErr;
    type Waker = Waker;
    type Seat = PySeat;
    type Alarm = LoopAlarm;
    type Sink = Arc<LetterSink>;
}

/// An event under way.
pub type Event = Shared<Envelope<PyOps>>;
/// The queue of a subscription.
pub type PyLane = Arc<Lane<PyOps>>;

/// What runs a lane's events needs to know.
#[repr(C)] // What every event needs first.
pub struct Handler {
    /// Called with each event.
    pub callable: Py<PyAny>,
    /// Called in its place while there is one, for a test.
    pub stand_in: GilCell<Option<Py<PyAny>>>,
    /// Asked first whether the event is wanted.
    pub filter: Option<Py<PyAny>>,
    /// How long one run may take, in nanoseconds.
    pub timeout: Option<u64>,
    /// The subscription's name.
    pub name: Py<pyo3::types::PyString>,
    /// Runs in the publisher's context instead of a fresh one.
    pub publisher_context: bool,
    /// Gives what events are ordered by.
    pub order_by: Option<Py<PyAny>>,
    /// Which failures may pass; none: there are no retries.
    pub policy: Option<Policy>,
}

impl Handler {
    /// Calls it with an event.
    #[inline]
    pub fn call<'py>(
        &self,
        py: Python<'py>,
        event: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if self.stand_in.read(py, Option::is_some) {
            return self.call_stand_in(py, event);
        }
        self.callable.bind(py).call1((event,))
    }

    #[cold]
    fn call_stand_in<'py>(
        &self,
        py: Python<'py>,
        event: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // It may be taken away while it runs.
        let own = |stand_in: &Option<Py<PyAny>>| stand_in.as_ref().map(|it| it.clone_ref(py));
        let stand_in = self.stand_in.read(py, own);
        let callable = stand_in.as_ref().unwrap_or(&self.callable);
        callable.bind(py).call1((event,))
    }
}

/// Where a lane is run.
pub enum PySeat {
    /// On the bus's event loop.
    Loop(Arc<LoopSeat>),
    /// On the bus's threads.
    Pool(Arc<Pool>),
    /// By whoever iterates.
    Stream(Arc<StreamSeat>),
}

impl Seat<PyOps> for PySeat {
    fn schedule(&self, lane: PyLane) {
        match self {
            Self::Loop(seat) => seat.schedule(lane),
            Self::Pool(pool) => pool.schedule(lane),
            Self::Stream(stream) => stream.notify(),
        }
    }
}

/// Whom to tell that a wait is over.
pub enum Waker {
    /// A future of an event loop.
    Future(FutureWaker),
    /// A thread.
    Thread(Arc<Signal>),
    /// A delivery that is to be settled with what its handler left.
    Settling(Arc<Settling>),
}

impl Wake for Waker {
    fn wake(self) {
        match self {
            Self::Future(waker) => waker.wake(),
            Self::Thread(signal) => signal.set(),
            Self::Settling(settling) => settling.wake(),
        }
    }

    /// One call for each loop, however many wait there.
    fn wake_many(wakers: Vec<Self>) {
        let mut futures: Vec<FutureWaker> = Vec::new();
        for waker in wakers {
            match waker {
                Self::Future(waker) => futures.push(waker),
                Self::Thread(signal) => signal.set(),
                Self::Settling(settling) => settling.wake(),
            }
        }
        if futures.is_empty() {
            return;
        }
        Python::attach(|py| {
            while let Some(first) = futures.pop() {
                let (same, others): (Vec<_>, Vec<_>) = futures
                    .into_iter()
                    .partition(|other| other.event_loop.is(&first.event_loop));
                futures = others;
                if same.is_empty() {
                    first.wake();
                    continue;
                }
                // In the order in which they came.
                let all = same.iter().chain([&first]).map(|waker| &waker.future);
                let told = PyList::new(py, all).and_then(|all| {
                    if first.thread == thread::current().id() {
                        return resolve_all(&all);
                    }
                    let call = intern!(py, "call_soon_threadsafe");
                    let event_loop = first.event_loop.bind(py);
                    event_loop
                        .call_method1(call, (all_resolver(py)?, all))
                        .map(drop)
                });
                if let Err(error) = told {
                    report_unless_closed(py, first.event_loop.bind(py), &error);
                }
            }
        });
    }
}

/// A future of the event loop that runs in the thread which made it.
pub struct FutureWaker {
    event_loop: Py<PyAny>,
    future: Py<PyAny>,
    thread: ThreadId,
}

impl FutureWaker {
    /// A new future of the running loop, and its waker.
    pub fn new<'py>(py: Python<'py>) -> PyResult<(Self, Bound<'py, PyAny>)> {
        let event_loop = running_loop(py)?;
        let future = event_loop.call_method0(intern!(py, "create_future"))?;
        let waker = Self {
            event_loop: event_loop.unbind(),
            future: future.clone().unbind(),
            thread: thread::current().id(),
        };
        Ok((waker, future))
    }

    fn wake(self) {
        Python::attach(|py| {
            let told = if self.thread == thread::current().id() {
                resolve(self.future.bind(py))
            } else {
                resolver(py).and_then(|resolver| {
                    let call = intern!(py, "call_soon_threadsafe");
                    self.event_loop
                        .bind(py)
                        .call_method1(call, (resolver, &self.future))
                        .map(drop)
                })
            };
            if let Err(error) = told {
                report_unless_closed(py, self.event_loop.bind(py), &error);
            }
        });
    }
}

/// A loop that is closed has nobody left to tell; any other failure to tell is said.
pub fn report_unless_closed(py: Python<'_>, event_loop: &Bound<'_, PyAny>, error: &PyErr) {
    let closed = event_loop
        .call_method0(intern!(py, "is_closed"))
        .and_then(|closed| closed.is_truthy());
    if !closed.unwrap_or(false) {
        error.clone_ref(py).write_unraisable(py, Some(event_loop));
    }
}

/// Ends a future that may have been cancelled meanwhile.
#[pyfunction]
pub fn resolve(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
        future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}

/// The same for several.
#[pyfunction]
pub fn resolve_all(futures: &Bound<'_, PyList>) -> PyResult<()> {
    futures.iter().try_for_each(|future| resolve(&future))
}

fn all_resolver(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static RESOLVE: Once<Py<PyAny>> = Once::new();
    let resolve = RESOLVE.get_or_try_init(py, || {
        wrap_pyfunction!(resolve_all, py).map(|f| f.into_any().unbind())
    })?;
    Ok(resolve.bind(py))
}

fn resolver(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static RESOLVE: Once<Py<PyAny>> = Once::new();
    let resolve = RESOLVE.get_or_try_init(py, || {
        wrap_pyfunction!(resolve, py).map(|f| f.into_any().unbind())
    })?;
    Ok(resolve.bind(py))
}

/// The running loop of this thread; an error if there is none.
pub fn running_loop(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static GET: Once<Py<PyAny>> = Once::new();
    GET.import(py, "asyncio", "get_running_loop")?.call0()
}

/// Whether this thread runs an event loop right now.
pub fn in_running_loop(py: Python<'_>) -> PyResult<bool> {
    static GET: Once<Py<PyAny>> = Once::new();
    Ok(!GET
        .import(py, "asyncio", "_get_running_loop")?
        .call0()?
        .is_none())
}

/// Marks a future as waited for, as `await` would, before it is handed up to the task.
pub fn block_on(future: &Bound<'_, PyAny>) -> PyResult<()> {
    future.setattr(intern!(future.py(), "_asyncio_future_blocking"), true)
}

/// As long as a number of seconds says: what is negative or no number is none, and beyond the range is for ever.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// A flag that the thread which made it waits for. No lock is held while it waits: a fork meanwhile
/// would leave it taken in the child, where somebody may raise the flag.
pub struct Signal {
    up: AtomicBool,
    waiter: Thread,
}

impl Default for Signal {
    fn default() -> Self {
        Self {
            up: AtomicBool::new(false),
            waiter: thread::current(),
        }
    }
}

impl Signal {
    /// Raises the flag.
    pub fn set(&self) {
        self.up.store(true, Ordering::Release);
        self.waiter.unpark();
    }

    /// Waits, detached, until the flag is up or `limit` is over; interruptible by Python signals.
    /// Whether the flag is up.
    pub fn wait(&self, py: Python<'_>, limit: Option<Duration>) -> PyResult<bool> {
        // Long enough to cost nothing, short enough for Ctrl-C.
        const SLICE: Duration = Duration::from_millis(50);
        debug_assert_eq!(self.waiter.id(), thread::current().id());
        let started = Instant::now();
        let is_up = || self.up.load(Ordering::Acquire);
        loop {
            let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
            let slice_over = Instant::now() + left.map_or(SLICE, |left| left.min(SLICE));
            py.detach(|| {
                while !is_up() {
                    let slice = slice_over.saturating_duration_since(Instant::now());
                    if slice.is_zero() {
                        break;
                    }
                    thread::park_timeout(slice);
                }
            });
            if is_up() || left == Some(Duration::ZERO) {
                return Ok(is_up());
            }
            py.check_signals()?;
        }
    }
}
