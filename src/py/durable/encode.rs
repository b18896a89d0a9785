//! What the journal keeps of an event: text alone, so that what a handler is given after a
//! restart is what it was given before. What JSON does not give back is refused.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::engine::journal::Event;
use crate::py::errors::Error;
use crate::py::identity::Identity;
use crate::py::prepare::Prepared;
use crate::py::record::Stamp;
use crate::py::walk;

/// The event as it is stored, but for its number. `now` and `wall` are one moment.
pub fn stored(py: Python<'_>, prepared: &Prepared, now: u64, wall: f64) -> PyResult<Event> {
    let record = &prepared.event.payload;
    if record.template().is_some() {
        return Err(Error::InvalidEvent.exception(
            py,
            "event",
            "event: a bus with a path keeps the five fields of an ironbus.Event, and this one has more \
             (it is of a subclass, or has attributes of its own); put them into its data",
        ));
    }
    let data = json(py, record.data.bind(py))?;
    let timestamp = match record.timestamp(py) {
        Stamp::Seconds(seconds) => seconds,
        Stamp::Object(object) => object.extract(py).map_err(|_| field(py, "timestamp"))?,
    };
    let source = record.source().map(|source| text(py, source, "source"));
    let extras = record.extras.as_deref();
    let string =
        |of: Option<&Py<PyString>>, name| of.map(|string| utf8(string.bind(py), name)).transpose();
    let identity = |of: Option<&Identity>| {
        of.map(|id| text(py, &id.to_object(py).unbind(), "event_id"))
            .transpose()
    };
    let headers = extras.and_then(|extras| extras.headers.as_ref());
    let headers = headers
        .map(|headers| json(py, &py.get_type::<PyDict>().call1((headers,))?))
        .transpose()?;
    let timing = prepared.timing.as_deref();
    let at = |nanos: u64| {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        match nanos >= now {
            true => wall + seconds(nanos - now),
            false => wall - seconds(now - nanos),
        }
    };
    Ok(Event {
        sequence: 0,
        level: prepared.level,
        event_type: (*prepared.way.get().event_type).into(),
        data,
        accepted: wall,
        timestamp,
        event_id: identity(Some(&record.identity(py)))?,
        source: source.transpose()?,
        key: string(extras.and_then(|it| it.key.as_ref()), "key")?,
        headers,
        idempotency_key: string(
            extras.and_then(|it| it.idempotency_key.as_ref()),
            "idempotency_key",
        )?,
        digest: prepared.key.as_ref().map(|key| key.short()),
        correlation_id: identity(extras.and_then(|it| it.correlation.as_ref()))?,
        causation_id: identity(extras.and_then(|it| it.causation.as_ref()))?,
        due: timing.and_then(|timing| timing.due).map(at),
        expires: timing.and_then(|timing| timing.expires).map(at),
    })
}

fn json(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<String> {
    let mut buffer = Vec::new();
    walk::write_round_trip(py, data, &mut buffer)?;
    // JSON with everything escaped that is not ASCII.
    String::from_utf8(buffer).map_err(|error| PyValueError::new_err(error.to_string()))
}

fn text(py: Python<'_>, object: &Py<PyAny>, name: &str) -> PyResult<String> {
    match object.bind(py).cast::<PyString>() {
        Ok(string) => utf8(string, name),
        Err(_) => Err(field(py, name)),
    }
}

fn utf8(string: &Bound<'_, PyString>, name: &str) -> PyResult<String> {
    match string.to_str() {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(field(string.py(), name)),
    }
}

fn field(py: Python<'_>, name: &str) -> PyErr {
    let kind = match name {
        "timestamp" => "a number of seconds",
        _ => "a string that UTF-8 can hold",
    };
    let text = format!("{name} must be {kind}: a bus with a path writes it to its journal");
    Error::InvalidEvent.exception(py, name, text)
}
