//! What a publisher gets: the number of its event, and the way to learn what becomes of it.

use std::sync::Arc;

use super::once::Once;
use super::once::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::cell::GilCell;
use super::core::Core;
use super::current;
use super::errors::Error;
use super::native;
use super::ops::{Event, FutureWaker, PyLane, PyOps, Signal, Waker};
use super::prepare::Prepared;
use super::record;
use super::routes::Way;
use crate::engine::durable::Publication;
use crate::engine::gate::WaitId;
use crate::engine::settlement::Outcome;
use crate::engine::store::Durability;

/// The bus's answer to a publish.
///
/// Immutable, and safe to use from any thread. It keeps the event's payload alive.
#[pyclass(frozen, module = "ironbus")]
pub struct Receipt {
    event: Event,
    /// None while the event is kept for the start: its lanes are not known yet.
    way: Option<Py<Way>>,
    sequence: u64,
    /// What is known of its storage.
    stored: Stored,
}

/// What is known of an event's storage.
#[derive(Clone)]
pub enum Stored {
    /// It is in this process.
    Memory,
    /// An equal one was stored before, at least so.
    Before(Durability),
    /// Its commit says.
    Commit(Arc<Publication<PyOps>>),
}

impl Stored {
    fn durability(&self) -> Durability {
        match self {
            Self::Memory => Durability::Memory,
            Self::Before(level) => *level,
            Self::Commit(publication) => {
                let fate = publication.fate().and_then(Result::ok);
                fate.unwrap_or(Durability::Memory)
            }
        }
    }
}

impl Receipt {
    /// For an event that was handed to a journal, or (no number) is there already.
    pub fn durable(event: Event, sequence: Option<u64>, stored: Stored) -> Self {
        Self {
            event,
            way: None,
            sequence: sequence.unwrap_or_default(),
            stored,
        }
    }

    /// For an event that was accepted under a number.
    #[inline(always)]
    pub fn accepted(prepared: Prepared, sequence: u64, held: bool) -> Self {
        let way = (!held).then_some(prepared.way);
        Self {
            event: prepared.event,
            way,
            sequence,
            stored: Stored::Memory,
        }
    }

    /// For an event that was accepted before.
    pub fn of_duplicate(prepared: Prepared) -> Self {
        prepared.discard();
        Self {
            event: prepared.event,
            way: None,
            sequence: 0,
            stored: Stored::Memory,
        }
    }

    /// For an event that was seen on its way. It does not know the subscriptions.
    pub fn of_event(event: Event, sequence: u64) -> Self {
        Self {
            event,
            way: None,
            sequence,
            stored: Stored::Memory,
        }
    }

    /// Its way and its number.
    pub fn into_answer(self) -> (Option<Py<Way>>, u64) {
        (self.way, self.sequence)
    }

    /// For a dead letter that was delivered again.
    pub fn redelivered(event: Event, way: Py<Way>, sequence: u64) -> Self {
        Self {
            event,
            way: Some(way),
            sequence,
            stored: Stored::Memory,
        }
    }

    /// What it is for.
    pub fn event(&self) -> &Event {
        &self.event
    }

    fn is_over(&self, cascade: bool) -> bool {
        self.sequence == 0
            || (self.event.settled()
                && (!cascade || self.event.tree().is_none_or(|tree| tree.settled())))
    }

    fn register(&self, cascade: bool, waker: Waker) -> Result<(), Waker> {
        if self.sequence == 0 {
            return Err(waker);
        }
        match self.event.tree().filter(|_| cascade) {
            Some(tree) => tree.wait(waker),
            None => self.event.wait(waker),
        }
    }

    fn lanes(&self) -> Vec<PyLane> {
        let way = self.way.as_ref().map(|way| way.get().route.lanes.clone());
        let lanes = way.or_else(|| self.event.route().map(|route| route.lanes.clone()));
        lanes.map_or_else(Vec::new, |lanes| {
            lanes
                .iter()
                .filter(|lane| !lane.options.passive)
                .cloned()
                .collect()
        })
    }
}

impl native::Pooled for Receipt {
    const TRACKED: bool = false;
    /// As many as a loop turn's worth of publishes may leave behind.
    const KEPT: usize = 256;

    fn pool() -> &'static native::Pool {
        static POOL: native::Pool = GilCell::new(Vec::new());
        &POOL
    }
}

impl native::Released for Receipt {
    #[inline]
    fn release(self, py: Python<'_>) {
        if let Some(way) = self.way {
            way.drop_ref(py);
        }
        record::let_go(py, self.event);
    }
}

#[pymethods]
impl Receipt {
    /// The id of the event, a UUID string unless the publisher set another.
    #[getter]
    fn event_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.event.payload.identity(py).to_object(py)
    }

    /// The number of the event on its bus, rising by one; None for a duplicate.
    #[getter]
    fn sequence(&self) -> Option<u64> {
        (self.sequence != 0).then_some(self.sequence)
    }

    /// An event with this idempotency key was accepted before; this one was not.
    #[getter]
    fn duplicate(&self) -> bool {
        self.sequence == 0
    }

    /// What the acceptance survives: "memory" is lost with the process, "os" survives a kill of the process,
    /// "fsync" a loss of power, too. It rises when the journal's flush is over.
    #[getter]
    fn durability(&self) -> &'static str {
        self.stored.durability().name()
    }

    /// Waits until every subscription has its outcome; with `cascade`, also every event that
    /// handlers published because of this one. Does not raise for failed handlers: see
    /// ``Settlement.raise_for_failures``. Call it from any event loop.
    #[pyo3(signature = (*, cascade=false))]
    fn settled<'py>(slf: &Bound<'py, Self>, cascade: bool) -> PyResult<Bound<'py, PyAny>> {
        static SETTLED: Once<Py<PyAny>> = Once::new();
        SETTLED
            .import(slf.py(), "ironbus._waiting", "settled")?
            .call1((slf, cascade))
    }

    /// The same as :meth:`settled` for threads; raises :class:`ironbus.errors.Unsettled` after
    /// `timeout` seconds. Not for use on a thread that runs an event loop.
    #[pyo3(signature = (timeout=None, *, cascade=false))]
    fn wait<'py>(
        slf: &Bound<'py, Self>,
        timeout: Option<f64>,
        cascade: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, this) = (slf.py(), slf.get());
        let limit = match timeout {
            None => None,
            Some(timeout) if timeout >= 0.0 => Some(super::ops::seconds(timeout)),
            Some(_) => {
                return Err(Error::InvalidOption.exception(
                    py,
                    "timeout",
                    "timeout must be None or seconds, not negative",
                ));
            }
        };
        if super::ops::in_running_loop(py)? && !this.is_over(cascade) {
            return Err(Error::WouldDeadlock.exception(
                py,
                "",
                "wait() would block the event loop of this thread; use await receipt.settled()",
            ));
        }
        let guard = this.guard(py, cascade)?;
        let started = std::time::Instant::now();
        while !this.is_over(cascade) {
            let signal = Arc::new(Signal::default());
            if this
                .register(cascade, Waker::Thread(signal.clone()))
                .is_err()
            {
                continue;
            }
            let left = limit.map(|limit| limit.saturating_sub(started.elapsed()));
            let woken = match &guard {
                // A handler on a worker thread: another worker stands in meanwhile.
                Some(guard) => guard.core.pool().while_waiting(|| signal.wait(py, left))?,
                None => signal.wait(py, left)?,
            };
            if !woken && !this.is_over(cascade) {
                return Err(Error::Unsettled.exception(
                    py,
                    "timeout",
                    "the event is not settled yet; it goes on, and wait() or settled() may be called again",
                ));
            }
        }
        drop(guard);
        Self::settlement(slf)
    }

    /// A future of the running loop that is done when it is worth looking again; None if it is over.
    fn _settlement_future<'py>(
        &self,
        py: Python<'py>,
        cascade: bool,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.is_over(cascade) {
            return Ok(None);
        }
        let (waker, future) = FutureWaker::new(py)?;
        Ok(self
            .register(cascade, Waker::Future(waker))
            .is_ok()
            .then_some(future))
    }

    fn _is_over(&self, cascade: bool) -> bool {
        self.is_over(cascade)
    }

    /// Registers that the handler in this thread waits; raises if that closes a cycle of waits.
    fn _guard(&self, py: Python<'_>, cascade: bool) -> PyResult<Option<Guard>> {
        self.guard(py, cascade)
    }

    /// What is known now, by subscription.
    #[pyo3(name = "_settlement")]
    fn settlement<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        static SETTLEMENT: Once<Py<PyAny>> = Once::new();
        let (py, this) = (slf.py(), slf.get());
        let outcomes = PyDict::new(py);
        let failures = PyList::empty(py);
        let lanes = this.lanes();
        for lane in &lanes {
            outcomes.set_item(&lane.handler.name, intern!(py, "done"))?;
        }
        for (id, outcome) in this.event.outcomes() {
            let Some(lane) = lanes.iter().find(|lane| lane.id == id) else {
                continue;
            };
            let text = match &outcome {
                Outcome::Done => intern!(py, "done"),
                Outcome::Dead(error) => {
                    failures.append(error.value(py))?;
                    intern!(py, "dead")
                }
                Outcome::Dropped => intern!(py, "dropped"),
                Outcome::Expired => intern!(py, "expired"),
                Outcome::Filtered => intern!(py, "filtered"),
            };
            outcomes.set_item(&lane.handler.name, text)?;
        }
        SETTLEMENT
            .import(py, "ironbus._waiting", "Settlement")?
            .call1((slf, outcomes, failures.to_tuple()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let id = self.event_id(py).repr()?;
        let durability = self.durability();
        Ok(match self.sequence() {
            Some(sequence) => {
                format!(
                    "Receipt(event_id={id}, sequence={sequence}, durability='{durability}', duplicate=False)"
                )
            }
            None => format!(
                "Receipt(event_id={id}, sequence=None, durability='{durability}', duplicate=True)"
            ),
        })
    }
}

impl Receipt {
    fn guard(&self, py: Python<'_>, cascade: bool) -> PyResult<Option<Guard>> {
        if self.is_over(true) {
            return Ok(None);
        }
        let Some(origin) = current::origin(py) else {
            return Ok(None);
        };
        // All events of a cascade share one tree, and the handler's own event is not settled.
        if let (true, Some(mine), Some(tree)) = (cascade, origin.cause.tree(), self.event.tree())
            && Arc::ptr_eq(&mine, &tree)
        {
            return Err(Error::WouldDeadlock.exception(
                py,
                "cascade",
                "the event that this handler handles is part of the same cascade, which would wait for the handler itself; \
                 leave cascade out",
            ));
        }
        let lanes = self.lanes();
        // A receipt of another bus: that one cannot wait for this handler.
        if !lanes.iter().any(|lane| origin.core.owns(lane)) {
            return Ok(None);
        }
        let wait = origin.core.bus.begin_wait(origin.lane, lanes);
        let wait = wait.map_err(|error| super::errors::engine(py, &error))?;
        Ok(Some(Guard {
            core: origin.core,
            wait,
        }))
    }
}

/// A registered wait of a handler; it ends with the object.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Guard {
    core: Arc<Core>,
    wait: WaitId,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.core.bus.end_wait(&self.wait);
    }
}

/// The bus's answer to ``publish_many``.
#[pyclass(frozen, module = "ironbus")]
pub struct BatchReceipt {
    events: Vec<Event>,
    answers: Vec<Answer>,
    stored: Stored,
}

/// What became of a run of events.
pub struct Answer {
    /// The place of the first in the batch; it ends before that of the next answer.
    pub from: usize,
    /// Its number; the others follow without a gap. 0 for a duplicate, which is alone.
    pub first: u64,
    /// Where they went; None while that is not known.
    pub way: Option<Py<Way>>,
}

impl BatchReceipt {
    /// For what was published so far.
    pub fn new(events: Vec<Event>, answers: Vec<Answer>) -> Self {
        Self {
            events,
            answers,
            stored: Stored::Memory,
        }
    }

    /// For what was handed to a journal.
    pub fn durable(results: Vec<(Event, Option<u64>)>, stored: Stored) -> Self {
        let mut answers: Vec<Answer> = Vec::new();
        let mut next = None;
        let mut events = Vec::with_capacity(results.len());
        for (from, (event, number)) in results.into_iter().enumerate() {
            if number.is_none() || number != next {
                answers.push(Answer {
                    from,
                    first: number.unwrap_or_default(),
                    way: None,
                });
            }
            next = number.map(|number| number + 1);
            events.push(event);
        }
        Self {
            events,
            answers,
            stored,
        }
    }
}

impl native::Pooled for BatchReceipt {
    const TRACKED: bool = false;
    const KEPT: usize = 16;

    fn pool() -> &'static native::Pool {
        static POOL: native::Pool = GilCell::new(Vec::new());
        &POOL
    }
}

impl native::Released for BatchReceipt {
    fn release(self, py: Python<'_>) {
        native::attached(py, || {
            let mut events = self.events.into_iter();
            while let Some(event) = events.next() {
                const AHEAD: usize = 3;
                if let Some(soon) = events.as_slice().get(AHEAD) {
                    soon.prefetch();
                }
                record::let_go(py, event);
            }
            drop(self.answers);
        });
    }
}

#[pymethods]
impl BatchReceipt {
    /// How many events were accepted.
    #[getter]
    fn accepted(&self) -> usize {
        self.events.len() - self.duplicates()
    }

    /// How many were duplicates.
    #[getter]
    fn duplicates(&self) -> usize {
        let answers = self.answers.iter();
        answers.filter(|answer| answer.first == 0).count()
    }

    /// What the acceptance survives; see :attr:`Receipt.durability`.
    #[getter]
    fn durability(&self) -> &'static str {
        self.stored.durability().name()
    }

    /// One receipt for each event, in order.
    #[getter]
    fn receipts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let receipts = PyList::empty(py);
        for (at, answer) in self.answers.iter().enumerate() {
            let end = self.answers.get(at + 1).map(|next| next.from);
            let events = &self.events[answer.from..end.unwrap_or(self.events.len())];
            for (sequence, event) in (answer.first..).zip(events) {
                let receipt = Receipt {
                    event: event.clone(),
                    way: answer.way.as_ref().map(|way| way.clone_ref(py)),
                    sequence,
                    stored: self.stored.clone(),
                };
                receipts.append(native::make(py, || receipt)?)?;
            }
        }
        Ok(receipts)
    }

    fn __len__(&self) -> usize {
        self.events.len()
    }

    fn __repr__(&self) -> String {
        format!(
            "BatchReceipt(accepted={}, duplicates={})",
            self.accepted(),
            self.duplicates()
        )
    }
}
