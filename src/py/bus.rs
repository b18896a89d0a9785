//! The native half of `EventBus`: subscriptions, start and stop, reports. The Python
//! class above it gives names and defaults, and decides nothing per event.

use std::sync::{Arc, OnceLock};

use pyo3::PyTraverseError;
use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::breaker::Breaker;
use super::cell::GilCell;
use super::clock::Clock;
use super::core::{Core, Settings};
use super::current;
use super::dead_letters::DeadLetterStore;
use super::durable::{self, JournalSettings};
use super::errors::Error;
use super::lane::LaneHandle;
use super::letters::{LetterBox, LetterSink};
use super::native::{self, AsyncMethods};
use super::ops::{FutureWaker, Handler, PySeat, Signal, Waker, running_loop};
use super::policy::{Policy, nanos, seconds};
use super::prepare::Options;
use super::publisher;
use super::receipt::{BatchReceipt, Receipt};
use super::report;
use super::stream::{StreamSeat, StreamSource};
use crate::engine::durable::Since;
use crate::engine::lane::{Holds, LaneOptions, Letters, Order, Overflow};
use crate::engine::retry::Jitter;
use crate::engine::topic::Topic;

/// See the module. Subclassed by `ironbus.EventBus`, which is what people see.
#[pyclass(frozen, subclass, weakref, module = "ironbus._core")]
pub struct Bus {
    core: OnceLock<Arc<Core>>,
}

impl Bus {
    /// The bus behind an instance.
    #[inline]
    pub fn core_of(slf: &Bound<'_, PyAny>) -> PyResult<Arc<Core>> {
        slf.cast::<Self>()?.get().core().cloned()
    }

    /// What `__init__` made.
    #[inline]
    pub fn core(&self) -> PyResult<&Arc<Core>> {
        self.core.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "EventBus.__init__() was not called; call super().__init__() first",
            )
        })
    }
}

fn overflow(py: Python<'_>, name: &str) -> PyResult<Overflow> {
    Ok(match name {
        "block" => Overflow::Block,
        "reject" => Overflow::Reject,
        "drop_oldest" => Overflow::DropOldest,
        "drop_new" => Overflow::DropNew,
        "spill" => Overflow::Spill,
        _ => {
            let text = "overflow must be \"block\", \"reject\", \"drop_oldest\" or \"drop_new\"";
            return Err(Error::InvalidOption.exception(py, "overflow", text));
        }
    })
}

fn options(
    priority: Option<Py<PyAny>>,
    key: Option<Py<PyAny>>,
    idempotency_key: Option<Py<PyAny>>,
    headers: Option<Py<PyAny>>,
    delay: Option<Py<PyAny>>,
    expires_in: Option<Py<PyAny>>,
    durability: Option<Py<PyAny>>,
) -> Options {
    Options {
        priority,
        key,
        idempotency_key,
        headers,
        delay,
        expires_in,
        durability,
    }
}

#[pymethods]
impl Bus {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            core: OnceLock::new(),
        }
    }

    /// Sets the bus up. All values are checked by the caller.
    #[pyo3(signature = (*, max_queue_size, overflow, by_content, ttl, max_keys, publisher_context, workers, clock, random, dead_letters, writer, window, journal))]
    #[allow(clippy::too_many_arguments)]
    fn _configure(
        &self,
        py: Python<'_>,
        max_queue_size: usize,
        overflow: &str,
        by_content: bool,
        ttl: f64,
        max_keys: usize,
        publisher_context: bool,
        workers: usize,
        clock: Option<Py<PyAny>>,
        random: Option<Py<PyAny>>,
        dead_letters: &Bound<'_, DeadLetterStore>,
        writer: Option<Py<PyAny>>,
        window: f64,
        journal: Option<JournalSettings>,
    ) -> PyResult<()> {
        let settings = Settings {
            max_queue_size,
            overflow: self::overflow(py, overflow)?,
            by_content,
            ttl: (ttl * 1e9) as u64,
            max_keys,
            publisher_context,
            workers,
        };
        let clock = Arc::new(Clock::new(clock));
        let store = dead_letters.get().store().clone();
        let sink = LetterSink::new(store, clock.clone(), writer, nanos(window));
        let limits = *sink.limits();
        let journaled = journal.map(|journal| journal.journaled(limits, ttl));
        let core = Core::new(settings, clock, random, sink, journaled);
        self.core
            .set(core)
            .map_err(|_| PyRuntimeError::new_err("EventBus.__init__() was called before"))
    }

    /// Makes a lane that no event reaches yet.
    #[pyo3(signature = (handler, *, name, is_async, filter, order_by, timeout, concurrency, order, overflow, bound, publisher_context, retry, retry_holds, breaker, dead_letters, since=None))]
    #[allow(clippy::too_many_arguments)]
    fn _make_lane(
        &self,
        py: Python<'_>,
        handler: Py<PyAny>,
        name: Py<PyString>,
        is_async: bool,
        filter: Option<Py<PyAny>>,
        order_by: Option<Py<PyAny>>,
        timeout: Option<f64>,
        concurrency: usize,
        order: &str,
        overflow: Option<&str>,
        bound: Option<usize>,
        publisher_context: Option<bool>,
        retry: Option<&Bound<'_, PyAny>>,
        retry_holds: &str,
        breaker: Option<&Bound<'_, Breaker>>,
        dead_letters: &str,
        since: Option<(&str, f64)>,
    ) -> PyResult<LaneHandle> {
        let core = self.core()?;
        let order = match order {
            "lane" => Order::Lane,
            "key" => Order::Token,
            "computed" => Order::Computed,
            _ => Order::Nothing,
        };
        let policy = retry
            .map(|policy| Policy::read(policy, Jitter::Full))
            .transpose()?;
        let options = LaneOptions {
            name: name.bind(py).to_str()?.into(),
            concurrency,
            order,
            overflow: overflow
                .map_or(Ok(core.settings.overflow), |name| self::overflow(py, name))?,
            bound: bound.unwrap_or(core.settings.max_queue_size),
            passive: false,
            untimed: false,
            retry: policy.as_ref().map(|policy| policy.retry),
            holds: match retry_holds {
                "key" => Holds::Key,
                "nothing" => Holds::Nothing,
                _ => Holds::Level,
            },
            breaker: breaker
                .map(|breaker| breaker.get().shared(py, &core.clock))
                .transpose()?,
            letters: match dead_letters {
                "none" => Letters::None,
                "failed" => Letters::Failed,
                _ => Letters::FailedAndExpired,
            },
            backing: None,
        };
        let handler = Handler {
            callable: handler,
            stand_in: GilCell::new(None),
            filter,
            order_by,
            timeout: timeout.map(|seconds| (seconds * 1e9) as u64),
            policy,
            publisher_context: core.in_publishers_context(publisher_context),
            name,
        };
        let seat = if is_async {
            core.loop_seat.clone()
        } else {
            core.pool_seat.clone()
        };
        let lane = match (&core.journaled, since) {
            (Some(journaled), Some((kind, value))) => {
                let since = match kind {
                    "start" => Since::Start,
                    "sequence" => Since::Sequence(value as u64),
                    "time" => Since::Time(value),
                    _ => Since::Now,
                };
                let (engine, bus) = (&journaled.engine, &core.bus);
                py.detach(|| engine.make_lane(bus, options, since, handler, seat))
            }
            _ => core.bus.make_lane(options, handler, seat),
        };
        Ok(LaneHandle::new(core, &lane))
    }

    /// Opens a stream of events from now on; if `untimed`, of events whose publishers have set a time as well.
    #[pyo3(signature = (topics, name, bound, untimed=false))]
    fn _open_stream(
        &self,
        py: Python<'_>,
        topics: Vec<String>,
        name: Py<PyString>,
        bound: Option<usize>,
        untimed: bool,
    ) -> PyResult<StreamSource> {
        let core = self.core()?;
        let options = LaneOptions {
            name: name.bind(py).to_str()?.into(),
            concurrency: 1,
            order: Order::Lane,
            overflow: Overflow::DropOldest,
            bound: bound.unwrap_or(core.settings.max_queue_size),
            passive: true,
            untimed,
            retry: None,
            holds: Holds::Level,
            breaker: None,
            letters: Letters::None,
            backing: None,
        };
        let handler = Handler {
            callable: py.None(),
            stand_in: GilCell::new(None),
            filter: None,
            order_by: None,
            timeout: None,
            policy: None,
            publisher_context: false,
            name: name.clone_ref(py),
        };
        let seat = Arc::new(PySeat::Stream(Arc::new(StreamSeat::default())));
        let lane = core.bus.make_lane(options, handler, seat);
        let topics = topics.iter().map(|topic| Topic::new(topic)).collect();
        let subscription = core.bus.subscribe(topics, &lane, core.now(py)?);
        core.routes.clear(py);
        Ok(StreamSource::new(core, lane, subscription, name))
    }

    /// Publishes from any thread: outside an event loop it waits for room, inside one it never
    /// blocks and raises ``QueueFull`` instead.
    #[pyo3(signature = (event, data=None, *, priority=None, key=None, idempotency_key=None, headers=None, delay=None, expires_in=None, durability=None))]
    #[allow(clippy::too_many_arguments)]
    fn publish_sync<'py>(
        slf: &Bound<'py, Self>,
        event: &Bound<'py, PyAny>,
        data: Option<&Bound<'py, PyAny>>,
        priority: Option<Py<PyAny>>,
        key: Option<Py<PyAny>>,
        idempotency_key: Option<Py<PyAny>>,
        headers: Option<Py<PyAny>>,
        delay: Option<Py<PyAny>>,
        expires_in: Option<Py<PyAny>>,
        durability: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, Receipt>> {
        let py = slf.py();
        let options = options(
            priority,
            key,
            idempotency_key,
            headers,
            delay,
            expires_in,
            durability,
        );
        let receipt = publisher::publish_sync(py, slf.get().core()?, event, data, &options)?;
        native::make(py, || receipt)
    }

    #[pyo3(signature = (events, /, *, priority=None, key=None, headers=None, delay=None, expires_in=None, durability=None))]
    #[allow(clippy::too_many_arguments)]
    fn _publish_many_sync(
        slf: &Bound<'_, Self>,
        events: &Bound<'_, PyAny>,
        priority: Option<Py<PyAny>>,
        key: Option<Py<PyAny>>,
        headers: Option<Py<PyAny>>,
        delay: Option<Py<PyAny>>,
        expires_in: Option<Py<PyAny>>,
        durability: Option<Py<PyAny>>,
    ) -> PyResult<BatchReceipt> {
        let core = Self::core_of(slf.as_any())?;
        publisher::publish_many_sync(
            slf.py(),
            &core,
            events,
            &options(priority, key, None, headers, delay, expires_in, durability),
        )
    }

    /// Starts on the loop that runs in this thread. False: it is started already.
    fn _open(slf: &Bound<'_, Self>) -> PyResult<bool> {
        let py = slf.py();
        let core = Self::core_of(slf.as_any())?;
        let event_loop = running_loop(py)?;
        if core.is_running() && core.check_process(py).is_ok() && !core.event_loop().is_closed(py) {
            return Ok(false);
        }
        let now = core.now(py)?;
        let forked = core.check_process(py).is_err();
        core.set_running(true, now);
        core.event_loop().open(py, &core, event_loop)?;
        if forked {
            core.pool().forked();
            core.loop_desk.clear(py);
            core.bus.forked(now);
            if let Some(journaled) = &core.journaled {
                journaled.open(py, &core)?;
            }
        }
        core.release_held();
        core.bus.open(now);
        // After what was kept is in the lanes: a thread would begin with what was there before.
        core.pool().open(py, &core)?;
        if let Some(journaled) = &core.journaled {
            py.detach(|| journaled.engine.resume());
        }
        core.event_loop().tick(py)?;
        Ok(true)
    }

    /// Opens the journal, if there is one and it is not open. Blocks.
    fn _open_journal(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        match &core.journaled {
            Some(journaled) => journaled.open(slf.py(), &core),
            None => Ok(()),
        }
    }

    /// Looks at the journal, if there is one and it is open, for the next report. Blocks.
    fn _look_at_journal(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        let journaled = core.journaled.as_ref();
        journaled.map_or(Ok(()), |journaled| journaled.look(slf.py()))
    }

    /// Lets go of what the journal need not keep, if it is open. Blocks.
    fn _keep_journal(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        let journaled = core.journaled.as_ref();
        journaled.map_or(Ok(()), |journaled| journaled.keep(slf.py()))
    }

    /// The subscriptions in the journal that nobody here has.
    fn _absent(&self) -> PyResult<Vec<String>> {
        let journaled = self.core()?.journaled.as_ref();
        Ok(journaled.map_or_else(Vec::new, |journaled| journaled.engine.absent()))
    }

    /// Lets go of one of them. Blocks.
    fn _forget_subscription(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let Some(journaled) = &self.core()?.journaled else {
            return Ok(());
        };
        py.detach(|| journaled.engine.forget(name))
            .map_err(|error| durable::exception(py, &error))
    }

    /// Closes the journal, if one is open. Blocks.
    fn _close_journal(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        match &core.journaled {
            Some(journaled) => journaled.close(slf.py()),
            None => Ok(()),
        }
    }

    /// Whether the bus is started, and in this process, and on a loop that is not closed.
    #[getter]
    fn _running(&self, py: Python<'_>) -> PyResult<bool> {
        let core = self.core()?;
        Ok(core.is_running() && core.check_process(py).is_ok() && !core.event_loop().is_closed(py))
    }

    /// Whether a handler ended the program since the last start: what it left waits for the next one.
    #[getter]
    fn _ending(&self) -> PyResult<bool> {
        Ok(self.core()?.is_ending())
    }

    /// The loop on which the bus is started.
    #[getter]
    fn _loop(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(self
            .core()?
            .event_loop()
            .home()
            .map(|home| home.event_loop.clone_ref(py)))
    }

    /// Stops: events are kept from now on, and handlers that wait are cancelled, but for the one in
    /// the slot `own`. Returns the tasks and the threads that end now, and how many were cancelled.
    fn _halt(slf: &Bound<'_, Self>, own: Option<u64>) -> PyResult<(Py<PyList>, Py<PyList>, usize)> {
        let py = slf.py();
        let core = Self::core_of(slf.as_any())?;
        core.halt();
        let threads = core.pool().close(py)?;
        let (tasks, interrupted) = core.event_loop().halt(py, own)?;
        Ok((tasks, threads, interrupted))
    }

    /// The interpreter ends: no more work is begun on threads. Returns those that end now.
    fn _dismiss(slf: &Bound<'_, Self>) -> PyResult<Py<PyList>> {
        let core = Self::core_of(slf.as_any())?;
        core.halt();
        core.pool().close(slf.py())
    }

    /// Lets go of the loop after `_halt`.
    fn _close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        core.event_loop().close();
        core.set_running(false, core.now(slf.py())?);
        Ok(())
    }

    /// The lane and the slot (0: a thread) of the handler of this bus that makes the call.
    fn _own(slf: &Bound<'_, Self>) -> PyResult<Option<(u64, u64)>> {
        let core = Self::core_of(slf.as_any())?;
        Ok(current::origin(slf.py())
            .filter(|origin| Arc::ptr_eq(&origin.core, &core))
            .map(|origin| (origin.lane, origin.slot)))
    }

    /// A future of the running loop that is done when nothing is queued, running or waiting, but for
    /// the lane that is excused; None if so now.
    #[pyo3(signature = (excused=None))]
    fn _quiet_future<'py>(
        slf: &Bound<'py, Self>,
        excused: Option<u64>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = slf.py();
        let core = Self::core_of(slf.as_any())?;
        if core.bus.is_quiet(excused) {
            return Ok(None);
        }
        let (waker, future) = FutureWaker::new(py)?;
        Ok(core
            .bus
            .when_quiet(Waker::Future(waker), excused)
            .is_ok()
            .then_some(future))
    }

    /// The same for a thread: waits, and says whether all is quiet.
    #[pyo3(signature = (timeout=None))]
    fn _wait_quiet(slf: &Bound<'_, Self>, timeout: Option<f64>) -> PyResult<bool> {
        let py = slf.py();
        let core = Self::core_of(slf.as_any())?;
        let signal = Arc::new(Signal::default());
        if core
            .bus
            .when_quiet(Waker::Thread(signal.clone()), None)
            .is_err()
        {
            return Ok(true);
        }
        signal.wait(py, timeout.map(super::ops::seconds))
    }

    /// Looks after everything that is due on the bus's clock. For whoever moves that clock.
    fn _tick(slf: &Bound<'_, Self>) -> PyResult<()> {
        let core = Self::core_of(slf.as_any())?;
        core.event_loop().tick(slf.py())
    }

    /// When the next thing is due, in seconds of the bus's clock: a retry, a delayed event, a breaker,
    /// the end of a handler's time.
    fn _next_due(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        let core = self.core()?;
        let due = match core.event_loop().home() {
            Some(home) => home.next_due(py),
            None => core.bus.next_due(),
        };
        Ok(due.map(seconds))
    }

    /// Events that are kept for the start.
    fn _kept(&self) -> PyResult<usize> {
        Ok(self.core()?.bus.kept())
    }

    /// The native half of ``dead_letters``.
    fn _letter_box(&self) -> PyResult<LetterBox> {
        Ok(LetterBox::new(self.core()?))
    }

    /// Counts and lanes of one moment, as plain values; with `latencies`, what takes a while as well.
    #[pyo3(signature = (latencies=false))]
    fn _report<'py>(&self, py: Python<'py>, latencies: bool) -> PyResult<Bound<'py, PyDict>> {
        report::of(py, self.core()?, latencies)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(core) = self.core.get() else {
            return Ok(());
        };
        if let Some(clock) = core.clock.injected() {
            visit.call(clock)?;
        }
        // A started bus is a root: its tasks and threads hold it, unseen by the collector. And if
        // somebody is at the gate, nothing here is garbage.
        if core.is_running() {
            return Ok(());
        }
        core.traverse(&visit)?;
        core.bus.sink().traverse(&visit)?;
        for lane in core.bus.try_lanes().into_iter().flatten() {
            let handler = &lane.handler;
            if let Some(policy) = &handler.policy {
                policy.traverse(&visit)?;
            }
            visit.call(&handler.callable)?;
            handler.stand_in.visit(&visit, |it| visit.call(it))?;
            visit.call(&handler.filter)?;
            visit.call(&handler.order_by)?;
        }
        Ok(())
    }

    fn __clear__(&self, py: Python<'_>) {
        if let Some(core) = self.core.get() {
            core.routes.clear(py);
            core.bus.clear();
            core.bus.sink().originals.clear();
            core.bus.sink().under_way.clear();
        }
    }
}

/// Gives `_core` the two async methods, made from `async def` templates in Python.
#[pyfunction]
pub fn async_methods<'py>(
    py: Python<'py>,
    publish: Bound<'py, PyAny>,
    publish_many: Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let methods = AsyncMethods::new(py)?;
    Ok((
        methods.make(publish, publisher::publish)?,
        methods.make(publish_many, publisher::publish_many)?,
    ))
}
