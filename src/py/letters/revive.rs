//! From a dead letter back to its event: the original where this process has it, else
//! what JSON gives back.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::originals::Originals;
use crate::engine::dead_letters::{DeadEvent, DeadLetter, Stored};
use crate::py::event::Event;
use crate::py::identity::{Identity, next_number};
use crate::py::record::{Extras, Given, Record};

/// The event of a letter. None: its payload was never text, and is not here.
pub fn event(
    py: Python<'_>,
    originals: &Originals,
    letter: &DeadLetter,
) -> PyResult<Option<Record>> {
    if let Some(original) = originals.get(py, &letter.id) {
        return Ok(Some(original));
    }
    if letter.redrivable_in_process_only {
        return Ok(None);
    }
    from_text(py, &letter.event).map(Some)
}

/// The letter as Python sees it. Where the payload is not here, its text stands for it.
pub fn entry<'py>(
    py: Python<'py>,
    originals: &Originals,
    stored: Stored,
) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let letter = stored.letter;
    let record = match event(py, originals, &letter)? {
        Some(record) => record,
        None => record(
            py,
            &letter.event,
            PyString::new(py, &letter.event.data).into_any(),
        )?,
    };
    let subscription = PyString::new(py, &letter.subscription).unbind();
    let event = Event::deliver(
        py,
        &record,
        letter.event.sequence.unwrap_or_default(),
        u32::try_from(letter.attempts).unwrap_or(u32::MAX),
        &subscription,
        None,
    )?;
    let failure = letter.failure;
    CLASS
        .import(py, "ironbus.dead_letters", "DeadLetter")?
        .call1((
            letter.id,
            event,
            subscription,
            letter.handler,
            failure.exception_type,
            failure.message,
            failure.traceback,
            letter.attempts,
            letter.first_failure,
            letter.last_failure,
            letter.fingerprint.to_string(),
            letter.redrivable_in_process_only,
        ))
}

/// An event of which all is text.
pub fn from_text(py: Python<'_>, event: &DeadEvent) -> PyResult<Record> {
    record(py, event, from_json(py, &event.data)?)
}

fn record(py: Python<'_>, event: &DeadEvent, data: Bound<'_, PyAny>) -> PyResult<Record> {
    let string = |text: &Option<String>| text.as_ref().map(|text| PyString::new(py, text).unbind());
    let identity = |text: &Option<String>| {
        let text = text.as_ref();
        text.map(|text| Identity::Object(PyString::new(py, text).into_any().unbind()))
    };
    let extras = Extras {
        key: string(&event.key),
        headers: event
            .headers
            .as_ref()
            .map(|headers| read_only(from_json(py, headers)?))
            .transpose()?,
        idempotency_key: string(&event.idempotency_key),
        correlation: identity(&event.correlation_id),
        causation: identity(&event.causation_id),
        context: None,
        durability: None,
    };
    let given = Given {
        timestamp: None,
        identity: identity(&Some(event.event_id.clone())),
        source: (event.source != "pm_system")
            .then(|| PyString::new(py, &event.source).into_any().unbind()),
        template: None,
    };
    Ok(Record {
        type_: PyString::new(py, &event.event_type).unbind(),
        data: data.unbind(),
        seconds: event.timestamp,
        number: next_number(),
        given: Some(Box::new(given)),
        extras: Some(Arc::new(extras)),
        priority: event.priority,
    })
}

fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    LOADS.import(py, "json", "loads")?.call1((text,))
}

fn read_only(headers: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    static PROXY: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = headers.py();
    let headers = headers.cast_into::<PyDict>()?;
    let proxy = PROXY.import(py, "types", "MappingProxyType")?;
    proxy.call1((headers,)).map(Bound::unbind)
}
