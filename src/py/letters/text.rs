//! From a delivery at its end to its dead letter. What a letter holds of the event and of
//! the exception is text from here on.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use crate::engine::dead_letters::{DeadEvent, DeadLetter, Failure, Fingerprint};
use crate::engine::ops::{Cause, Dying};
use crate::engine::store::WallSeconds;
use crate::py::identity::Identity;
use crate::py::ops::PyOps;
use crate::py::record::{Record, Stamp};

/// How the delivery failed, and what failures of its cause share. `subscription` is the one in which
/// it failed for the first time.
pub fn failure(
    py: Python<'_>,
    dying: &Dying<PyOps>,
    subscription: &str,
) -> PyResult<(Failure, Fingerprint)> {
    let (failure, place) = match &dying.failure {
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
    Ok((failure, fingerprint))
}

/// How often the handler was tried.
pub fn attempts(dying: &Dying<PyOps>) -> u64 {
    match dying.cause {
        Cause::Expired => u64::from(dying.entry.attempt),
        _ => u64::from(dying.entry.attempt.max(1)),
    }
}

/// The whole letter. `ended` is when the last attempt ended, `first` when the first did.
pub fn letter(
    py: Python<'_>,
    dying: &Dying<PyOps>,
    first: WallSeconds,
    ended: WallSeconds,
) -> PyResult<DeadLetter> {
    let subscription = &*dying.lane.options.name;
    let (failure, fingerprint) = failure(py, dying, subscription)?;
    let record = &dying.entry.event.payload;
    let (event, encoded) = describe_event(py, record, dying.entry.sequence, ended)?;
    Ok(DeadLetter {
        id: text(&Identity::next().to_object(py))?,
        event,
        subscription: subscription.to_owned(),
        handler: qualified_name(py, &dying.lane.handler.callable)?,
        failure,
        attempts: attempts(dying),
        first_failure: first,
        last_failure: ended,
        fingerprint,
        redrivable_in_process_only: !encoded,
    })
}

/// The texts of an exception, and the place where it was raised.
fn describe(py: Python<'_>, error: &PyErr) -> PyResult<(Failure, String)> {
    static DESCRIBE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
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
    let (data, encoded) = encode(record.data.bind(py))?;
    let extras = record.extras.as_deref();
    let string = |of: Option<&Py<PyString>>| of.map(|text| self::text(text.bind(py))).transpose();
    let identity = |of: Option<&Identity>| of.map(|id| text(&id.to_object(py))).transpose();
    let headers = match extras.and_then(|extras| extras.headers.as_ref()) {
        Some(headers) => Some(encode(&py.get_type::<PyDict>().call1((headers,))?)?.0),
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
    static TEXT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if let Ok(text) = object.cast_exact::<PyString>()
        && let Ok(text) = text.to_str()
    {
        return Ok(text.to_owned());
    }
    TEXT.import(object.py(), "ironbus._failures", "text")?
        .call1((object,))?
        .extract()
}

/// JSON, and whether it gives the object back; if not, the nearest text that there is.
fn encode(data: &Bound<'_, PyAny>) -> PyResult<(String, bool)> {
    static ENCODE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let encode = ENCODE.import(data.py(), "ironbus._failures", "encode")?;
    encode.call1((data,))?.extract()
}

fn qualified_name(py: Python<'_>, handler: &Py<PyAny>) -> PyResult<String> {
    static NAME: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let name = NAME.import(py, "ironbus._subscriptions", "qualified_name")?;
    text(&name.call1((handler,))?)
}
