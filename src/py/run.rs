//! One delivery, from the event in the lane's hand to its outcome; the same for loops
//! and threads. Around the handler: filter, timeout, and a fresh context.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyNone;

use super::context::Base;
use super::core::Core;
use super::current::{self, Active, Delivery};
use super::event::Event;
use super::failure::{self, Kind};
use super::native::{self, Sent};
use super::once::intern;
use super::ops::{PyLane, PyOps};
use super::record;
use super::transaction::{self, Left, Work};
use crate::engine::backing::Backing;
use crate::engine::bus::Next;
use crate::engine::lane::{Entry, Failed};
use crate::engine::settlement::Outcome;

/// How a delivery ended. Mostly well, and that is all: what was more than a word would go over the
/// stack.
pub type End = Result<(), Box<Undone>>;

/// How a delivery ended that was not handled.
pub enum Undone {
    /// The subscription does not want it.
    Filtered,
    /// The handler did not succeed.
    Failed(Failed<PyErr>),
    /// It did not end: the bus took the event back.
    PutBack,
    /// The program is being ended; the event goes back, and the exception goes on.
    Ending(PyErr),
    /// The handler has succeeded, and has left something to be done as one with the settlement.
    Left(Box<Left>),
}

impl Undone {
    fn failed(failed: Failed<PyErr>) -> Box<Self> {
        Box::new(Self::Failed(failed))
    }
}

/// How far a delivery got.
pub enum Progress {
    /// To its end.
    Ended(Entry<PyOps>, End),
    /// The handler waits for what it yielded.
    Suspended(Box<Job>, Py<PyAny>),
    /// The handler, called on a thread, returned something to await.
    Awaitable(Box<Job>),
}

/// A handler that was called and has not ended.
pub struct Job {
    /// Its lane.
    pub lane: PyLane,
    /// Its place there.
    pub entry: Entry<PyOps>,
    /// What it was given.
    pub event: Py<PyAny>,
    /// What it runs in.
    pub context: Py<PyAny>,
    /// What is stepped.
    pub iterator: Py<PyAny>,
    /// When it was called.
    pub started: u64,
    /// Its time is over, and it was cancelled for that.
    pub timed_out: bool,
    /// The bus stops, and it was cancelled for that.
    pub recalled: bool,
    /// See [`Delivery::work`].
    pub work: Option<Arc<Work>>,
    /// The life of the bus in which it was called.
    life: u64,
}

impl Job {
    /// When its time is over.
    pub fn deadline(&self) -> Option<u64> {
        let timeout = self.lane.handler.timeout;
        timeout.map(|timeout| self.started.saturating_add(timeout))
    }
}

/// What a suspended handler is resumed with.
pub enum Input<'py> {
    /// `send`.
    Value(&'py Bound<'py, PyAny>),
    /// `throw`.
    Error(&'py Bound<'py, PyAny>),
}

/// Calls the handler, and steps what it returns if `steps`.
// Always inlined, as `finish` is: what they give to each other would else go over the stack.
#[inline(always)]
pub fn begin(
    py: Python<'_>,
    active: &Active,
    lane: &PyLane,
    entry: Entry<PyOps>,
    now: u64,
    base: &Base,
    steps: bool,
) -> Progress {
    if let Some(backing) = lane.backing() {
        begin_there(backing, &entry);
    }
    let (event, own) = match prepare(py, active, lane, &entry, now, base) {
        Ok(prepared) => prepared,
        Err(error) => {
            let end = end(py, lane, error, false);
            return Progress::Ended(entry, Err(end));
        }
    };
    let argument = event.bind(py).clone();
    let delivery = Delivery {
        entry,
        event,
        lane: lane.id,
        since: now,
        work: None,
    };
    let (ended, called) = active.step(py, delivery, || {
        let call = || call(py, lane, &argument, steps);
        match &own {
            None => call(),
            Some(context) => native::in_context(context, call).and_then(|called| called),
        }
    });
    let Delivery {
        entry, event, work, ..
    } = ended;
    drop(argument);
    let (iterator, yielded) = match called {
        Ok(Called::Suspended(iterator, yielded)) => (iterator, Some(yielded)),
        Ok(Called::Awaitable(iterator)) => (iterator, None),
        ended => {
            Event::recycle(py, event);
            let end = match ended {
                Ok(Called::Filtered) => Err(Box::new(Undone::Filtered)),
                Ok(_) => Ok(()),
                Err(error) => Err(end(py, lane, error, false)),
            };
            return Progress::Ended(entry, with_work(py, lane, work, end));
        }
    };
    // It is the handler's from now on.
    let context = match own.map_or_else(|| active.context.leave(py), |own| Ok(Some(own))) {
        Ok(context) => context.expect("a handler runs in its own context or in the executor's"),
        Err(error) => {
            let end = end(py, lane, error, false);
            return Progress::Ended(entry, Err(end));
        }
    };
    let job = Box::new(Job {
        lane: lane.clone(),
        entry,
        event,
        context: context.unbind(),
        iterator: iterator.unbind(),
        started: now,
        timed_out: false,
        recalled: false,
        work,
        life: active.life,
    });
    match yielded {
        Some(yielded) => Progress::Suspended(job, yielded.unbind()),
        None => Progress::Awaitable(job),
    }
}

/// Whatever backs the lane is to know what runs.
#[cold]
fn begin_there(backing: &dyn Backing, entry: &Entry<PyOps>) {
    if entry.letter().is_none() {
        backing.begin(entry.level, entry.sequence, entry.attempt);
    }
}

/// What a handler is given: its event, and a context of its own unless it runs in the executor's.
#[inline]
fn prepare<'py>(
    py: Python<'py>,
    active: &Active,
    lane: &PyLane,
    entry: &Entry<PyOps>,
    now: u64,
    base: &Base,
) -> PyResult<(Py<PyAny>, Option<Bound<'py, PyAny>>)> {
    let (handler, record) = (&lane.handler, &entry.event.payload);
    let deadline = handler
        .timeout
        .map(|timeout| now.saturating_add(timeout) as f64 / 1e9);
    let event = Event::deliver(
        py,
        record,
        entry.sequence,
        entry.attempt,
        &handler.name,
        deadline,
    )?;
    let own = match record.context().filter(|_| handler.publisher_context) {
        Some(publishers) => Some(native::copy_context(py, Some(publishers))?),
        None if base.is_empty() => {
            active.context.enter(py, || base.fresh(py))?;
            None
        }
        None => Some(base.fresh(py)?),
    };
    Ok((event, own))
}

enum Called<'py> {
    Done,
    Filtered,
    Suspended(Bound<'py, PyAny>, Bound<'py, PyAny>),
    Awaitable(Bound<'py, PyAny>),
}

#[inline]
fn call<'py>(
    py: Python<'py>,
    lane: &PyLane,
    event: &Bound<'py, PyAny>,
    steps: bool,
) -> PyResult<Called<'py>> {
    let handler = &lane.handler;
    if let Some(filter) = &handler.filter
        && !filter.bind(py).call1((event,))?.is_truthy()?
    {
        return Ok(Called::Filtered);
    }
    let result = handler.call(py, event)?;
    if result.is_none() {
        return Ok(Called::Done);
    }
    let Some(iterator) = native::awaitable_iterator(&result)? else {
        return Ok(Called::Done);
    };
    if !steps {
        return Ok(Called::Awaitable(iterator));
    }
    match native::send(&iterator, PyNone::get(py).as_any())? {
        Sent::Returned(_) => Ok(Called::Done),
        Sent::Yielded(yielded) => Ok(Called::Suspended(iterator, yielded)),
    }
}

/// Steps a suspended handler.
pub fn resume(py: Python<'_>, core: &Arc<Core>, job: Job, slot: u64, input: Input<'_>) -> Progress {
    let Job {
        lane,
        entry,
        event,
        context,
        iterator,
        started,
        timed_out,
        recalled,
        work,
        life,
    } = job;
    let active = Active::on_loop(core.clone(), life, slot);
    let delivery = Delivery {
        entry,
        event,
        lane: lane.id,
        since: started,
        work,
    };
    let (ended, stepped) = current::during(py, &active, || {
        active.step(py, delivery, || {
            native::in_context(context.bind(py), || match input {
                Input::Value(value) => native::send(iterator.bind(py), value),
                Input::Error(error) => throw(iterator.bind(py), error),
            })
            .and_then(|stepped| stepped)
        })
    });
    let Delivery {
        entry, event, work, ..
    } = ended;
    match stepped {
        Ok(Sent::Yielded(yielded)) => {
            let job = Job {
                lane,
                entry,
                event,
                context,
                iterator,
                started,
                timed_out,
                recalled,
                work,
                life,
            };
            Progress::Suspended(Box::new(job), yielded.unbind())
        }
        Ok(Sent::Returned(_)) => {
            Event::recycle(py, event);
            Progress::Ended(entry, with_work(py, &lane, work, Ok(())))
        }
        Err(error) => {
            let limit = lane.handler.timeout.filter(|_| timed_out && !recalled);
            let end = match (limit, failure::kind(py, &error)) {
                (Some(limit), Kind::Cancelled) => {
                    let late = failure::timed_out(limit as f64 / 1e9);
                    late.set_cause(py, Some(error));
                    Undone::failed(failure::sort(py, &lane, late))
                }
                _ => end(py, &lane, error, recalled),
            };
            Progress::Ended(entry, with_work(py, &lane, work, Err(end)))
        }
    }
}

/// `throw` into a coroutine, or into an iterator that has none.
fn throw<'py>(iterator: &Bound<'py, PyAny>, error: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
    let py = iterator.py();
    let Some(method) = iterator.getattr_opt(intern!(py, "throw"))? else {
        return Err(PyErr::from_value(error.clone()));
    };
    match method.call1((error,)) {
        Ok(yielded) => Ok(Sent::Yielded(yielded)),
        Err(end) if end.is_instance_of::<pyo3::exceptions::PyStopIteration>(py) => {
            Ok(Sent::Returned(end.value(py).getattr("value")?))
        }
        Err(error) => Err(error),
    }
}

#[cold]
fn end(py: Python<'_>, lane: &PyLane, error: PyErr, recalled: bool) -> Box<Undone> {
    match failure::kind(py, &error) {
        Kind::Ending => Box::new(Undone::Ending(error)),
        Kind::Cancelled if recalled => Box::new(Undone::PutBack),
        Kind::Cancelled | Kind::Failed => {
            failure::keep_traceback(py, &error);
            Undone::failed(failure::sort(py, lane, error))
        }
    }
}

/// How it ended, with what the handler wants done together with the settlement: only if it has
/// succeeded.
#[inline]
fn with_work(py: Python<'_>, lane: &PyLane, work: Option<Arc<Work>>, end: End) -> End {
    match work {
        None => end,
        Some(work) => with_some_work(py, lane, &work, end),
    }
}

#[cold]
fn with_some_work(py: Python<'_>, lane: &PyLane, work: &Work, end: End) -> End {
    let left = work.end();
    end?;
    match left {
        Ok(None) => Ok(()),
        Ok(Some(left)) => Err(Box::new(Undone::Left(left))),
        Err(open) => Err(Undone::failed(failure::sort(py, lane, open.exception(py)))),
    }
}

/// A handler on a thread cannot be stopped when its time is over: that is recorded when it returns.
pub fn in_time(py: Python<'_>, lane: &PyLane, end: End, work: u64) -> End {
    let succeeded = match &end {
        Ok(()) => true,
        Err(undone) => matches!(**undone, Undone::Left(_)),
    };
    match (end, lane.handler.timeout) {
        (_, Some(limit)) if succeeded && work > limit => {
            let late = failure::timed_out(limit as f64 / 1e9);
            Err(Undone::failed(failure::sort(py, lane, late)))
        }
        (end, _) => end,
    }
}

/// Tells the bus how it ended. With `proceed`, the lane's next event.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // of one delivery, and each from elsewhere
pub fn finish(
    py: Python<'_>,
    core: &Core,
    lane: &PyLane,
    mut entry: Entry<PyOps>,
    end: End,
    work: Option<u64>,
    proceed: bool,
    now: u64,
) -> Result<Option<Next<PyOps>>, PyErr> {
    let outcome = match end {
        Ok(()) => Outcome::Done,
        Err(undone) => match *undone {
            Undone::Filtered => Outcome::Filtered,
            Undone::Failed(failed) => {
                return Ok(fail(py, core, lane, entry, &failed, work, proceed, now));
            }
            Undone::PutBack => {
                core.bus.put_back(lane, entry, now);
                return Ok(None);
            }
            Undone::Left(left) => {
                // The lane goes on once it is written.
                transaction::settle(py, *left, lane, entry, work);
                return Ok(None);
            }
            Undone::Ending(error) => {
                // It would be raised again and again: the subscription is held, before anybody else
                // can take the event again.
                core.hold(lane);
                failure::log_ending(py, lane, &entry, &error);
                core.bus.put_back(lane, entry, now);
                return Err(error);
            }
        },
    };
    let bus = &core.bus;
    if entry.letter().is_some() {
        return Ok(bus.finish_letter(lane, entry, &outcome, work, proceed, now));
    }
    let next = bus.finish(lane, &mut entry, outcome, work, proceed, now);
    record::let_go(py, entry.into_event());
    Ok(next)
}

/// Tells the bus that it failed, and says what becomes of it in the log.
#[cold]
#[allow(clippy::too_many_arguments)] // as of `finish`
pub fn fail(
    py: Python<'_>,
    core: &Core,
    lane: &PyLane,
    entry: Entry<PyOps>,
    failed: &Failed<PyErr>,
    work: Option<u64>,
    proceed: bool,
    now: u64,
) -> Option<Next<PyOps>> {
    let verdict = lane.judge(&entry, failed, core.random(py));
    failure::tell(py, core, lane, &entry, failed, &verdict);
    core.bus
        .fail(lane, entry, failed, verdict, work, proceed, now)
}

/// Works out what an event is ordered by in its lane, and takes what may start then.
pub fn with_token(
    py: Python<'_>,
    core: &Core,
    lane: &PyLane,
    entry: Entry<PyOps>,
    now: u64,
) -> Option<Next<PyOps>> {
    let handler = &lane.handler;
    let token = (|| {
        let order_by = handler
            .order_by
            .as_ref()
            .expect("only such lanes ask for it");
        let event = Event::deliver(
            py,
            &entry.event.payload,
            entry.sequence,
            entry.attempt,
            &handler.name,
            None,
        )?;
        order_by.bind(py).call1((event,))?.hash()
    })();
    match token {
        Ok(token) => core.bus.with_token(lane, entry, token as u64, now),
        Err(error) => {
            // It is ordered by nothing, so it holds up nothing; and it fails as its handler would.
            let entry = core.bus.without_token(lane, entry, now)?;
            failure::keep_traceback(py, &error);
            let failed = failure::sort(py, lane, error);
            fail(py, core, lane, entry, &failed, None, true, now)
        }
    }
}
