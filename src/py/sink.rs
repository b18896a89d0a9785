//! From a delivery that failed for good to its dead letter. What a letter holds of the
//! event and of the exception is text from here on.

use std::sync::Arc;

use super::once::Once;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString};

use super::clock::{Clock, monotonic_ns, wall_at};
use super::dead_letters;
use super::identity::Identity;
use super::ops::PyOps;
use super::record::{Record, Stamp};
use crate::engine::clock::Nanos;
use crate::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetters, Failure, Filter, Fingerprint, Limits, MemoryDeadLetters,
    Stored,
};
use crate::engine::ops::{Cause, Dying, NotKept, Sink};
use crate::engine::store::WallSeconds;

/// The dead letter queue of a bus: in memory, until the bus is given a file.
pub struct LetterSink {
    store: Arc<dyn DeadLetters>,
    clock: Arc<Clock>,
}

impl LetterSink {
    /// An empty queue.
    pub fn in_memory(limits: Limits, clock: Arc<Clock>) -> Self {
        Self {
            store: Arc::new(MemoryDeadLetters::new(limits)),
            clock,
        }
    }

    /// The queue itself.
    pub fn store(&self) -> &Arc<dyn DeadLetters> {
        &self.store
    }

    /// Now in Unix time, and how to get from a moment of the bus's clock there.
    fn wall(&self, py: Python<'_>) -> PyResult<(WallSeconds, impl Fn(Nanos) -> WallSeconds)> {
        let wall = wall_at(monotonic_ns());
        let now = self.clock.now(py)?;
        let then = move |at: Nanos| wall - now.saturating_sub(at) as f64 / 1e9;
        Ok((wall, then))
    }
}

impl Sink<PyOps> for LetterSink {
    fn keep(&self, dying: &Dying<'_, PyOps>) -> Result<(), NotKept> {
        Python::attach(|py| {
            let kept = self.letter(py, dying).map(|(letter, now)| {
                let added = self.store.add(letter, now);
                added.map(drop).map_err(|error| error.to_string())
            });
            let reason = match kept {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(reason)) => reason,
                Err(error) => {
                    let kind = error.get_type(py).name();
                    kind.map_or_else(|_| String::new(), |kind| kind.to_string())
                }
            };
            if let Err(error) = say_parked(py, dying, &reason) {
                error.write_unraisable(py, None);
            }
            Err(NotKept)
        })
    }
}

/// What a letter says, as plain values.
fn plain<'py>(py: Python<'py>, stored: &Stored) -> PyResult<Bound<'py, PyDict>> {
    let (letter, event) = (&stored.letter, &stored.letter.event);
    let plain = PyDict::new(py);
    plain.set_item("id", &letter.id)?;
    plain.set_item("event_type", &event.event_type)?;
    plain.set_item("data", &event.data)?;
    plain.set_item("event_id", &event.event_id)?;
    plain.set_item("timestamp", event.timestamp)?;
    plain.set_item("source", &event.source)?;
    plain.set_item("sequence", event.sequence)?;
    plain.set_item("priority", event.priority as u8)?;
    plain.set_item("key", &event.key)?;
    plain.set_item("headers", &event.headers)?;
    plain.set_item("idempotency_key", &event.idempotency_key)?;
    plain.set_item("correlation_id", &event.correlation_id)?;
    plain.set_item("causation_id", &event.causation_id)?;
    plain.set_item("subscription", &letter.subscription)?;
    plain.set_item("handler", &letter.handler)?;
    plain.set_item("exception_type", &letter.failure.exception_type)?;
    plain.set_item("message", &letter.failure.message)?;
    plain.set_item("traceback", &letter.failure.traceback)?;
    plain.set_item("attempts", letter.attempts)?;
    plain.set_item("first_failure", letter.first_failure)?;
    plain.set_item("last_failure", letter.last_failure)?;
    plain.set_item("fingerprint", letter.fingerprint.to_string())?;
    plain.set_item("in_process_only", letter.redrivable_in_process_only)?;
    Ok(plain)
}

impl LetterSink {
    /// All letters, the oldest first.
    pub fn letters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let stored = py
            .detach(|| self.store.page(&Filter::default(), 0, usize::MAX))
            .map_err(|error| dead_letters::exception(py, &error))?;
        let letters = PyList::empty(py);
        for stored in &stored {
            letters.append(plain(py, stored)?)?;
        }
        Ok(letters)
    }

    fn letter(
        &self,
        py: Python<'_>,
        dying: &Dying<'_, PyOps>,
    ) -> PyResult<(DeadLetter, WallSeconds)> {
        let (entry, handler) = (dying.entry, &dying.lane.handler);
        let subscription = &*dying.lane.options.name;
        let record = &entry.event.payload;
        let (now, wall) = self.wall(py)?;
        let (failure, place) = match dying.failure {
            Some(error) => describe(py, error)?,
            None => (
                Failure {
                    exception_type: "expired".into(),
                    ..Failure::default()
                },
                String::new(),
            ),
        };
        let fingerprint = Fingerprint::of(subscription, &failure.exception_type, &place);
        let (event, encoded) = describe_event(py, record, entry.sequence, now)?;
        let last = wall(dying.now);
        let first = entry.rare.as_ref().and_then(|rare| rare.first_failure);
        let letter = DeadLetter {
            id: text(&Identity::next().to_object(py))?,
            event,
            subscription: subscription.to_owned(),
            handler: qualified_name(py, &handler.callable)?,
            failure,
            attempts: match dying.cause {
                Cause::Expired => u64::from(entry.attempt),
                _ => u64::from(entry.attempt.max(1)),
            },
            first_failure: first.map_or(last, wall),
            last_failure: last,
            fingerprint,
            redrivable_in_process_only: !encoded,
        };
        Ok((letter, now))
    }
}

/// The texts of an exception, and the place where it was raised.
fn describe(py: Python<'_>, error: &PyErr) -> PyResult<(Failure, String)> {
    static DESCRIBE: Once<Py<PyAny>> = Once::new();
    let describe = DESCRIBE.import(py, "ironbus._failures", "describe")?;
    let (exception_type, message, traceback, place) =
        describe.call1((error.value(py),))?.extract()?;
    let failure = Failure {
        exception_type,
        message,
        traceback,
    };
    Ok((failure, place))
}

/// The event as text, and whether its payload is JSON.
fn describe_event(
    py: Python<'_>,
    record: &Record,
    sequence: u64,
    now: WallSeconds,
) -> PyResult<(DeadEvent, bool)> {
    static ENCODE: Once<Py<PyAny>> = Once::new();
    let encode = ENCODE.import(py, "ironbus._failures", "encode")?;
    let (data, encoded): (String, bool) = encode.call1((&record.data,))?.extract()?;
    let extras = record.extras.as_deref();
    let string = |of: Option<&Py<PyString>>| of.map(|text| self::text(text.bind(py))).transpose();
    let identity = |of: Option<&Identity>| of.map(|id| text(&id.to_object(py))).transpose();
    let headers = match extras.and_then(|extras| extras.headers.as_ref()) {
        Some(headers) => {
            let plain = py.get_type::<PyDict>().call1((headers,))?;
            let (json, _): (String, bool) = encode.call1((plain,))?.extract()?;
            Some(json)
        }
        None => None,
    };
    let event = DeadEvent {
        event_type: text(record.type_.bind(py))?,
        data,
        event_id: text(&record.identity(py).to_object(py))?,
        timestamp: match record.timestamp(py) {
            Stamp::Seconds(seconds) => seconds,
            // The `pm.events` API allows any object.
            Stamp::Object(object) => object.extract(py).unwrap_or(now),
        },
        source: match record.source() {
            Some(source) => text(source.bind(py))?,
            None => "pm_system".into(),
        },
        sequence: Some(sequence),
        priority: record.priority,
        key: string(extras.and_then(|extras| extras.key.as_ref()))?,
        headers,
        idempotency_key: string(extras.and_then(|extras| extras.idempotency_key.as_ref()))?,
        correlation_id: identity(extras.and_then(|extras| extras.correlation.as_ref()))?,
        causation_id: identity(extras.and_then(|extras| extras.causation.as_ref()))?,
    };
    Ok((event, encoded))
}

/// Text of any object that has some; a lone surrogate, which UTF-8 has no place for, is escaped.
fn text(object: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(object.str()?.to_string_lossy().into_owned())
}

fn qualified_name(py: Python<'_>, handler: &Py<PyAny>) -> PyResult<String> {
    static NAME: Once<Py<PyAny>> = Once::new();
    let name = NAME.import(py, "ironbus._subscriptions", "qualified_name")?;
    text(&name.call1((handler,))?)
}

fn say_parked(py: Python<'_>, dying: &Dying<'_, PyOps>, reason: &str) -> PyResult<()> {
    static LOG: Once<Py<PyAny>> = Once::new();
    let log = LOG.import(py, "ironbus._log", "parked")?;
    let name = &dying.lane.handler.name;
    log.call1((name, dying.entry.sequence, reason)).map(drop)
}
