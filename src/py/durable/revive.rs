//! From the journal back to an event: what JSON gives back, and the five fields as they were.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::engine::clock::Nanos;
use crate::engine::durable::Revive;
use crate::engine::journal::{Event, JournalError};
use crate::engine::store::WallSeconds;
use crate::py::clock::{Clock, monotonic_ns};
use crate::py::errors::Error;
use crate::py::identity::Identity;
use crate::py::once::Once;
use crate::py::ops::PyOps;
use crate::py::record::{Extras, Given, Record};

/// See the module.
pub struct Reviver {
    clock: Arc<Clock>,
}

impl Reviver {
    /// For a bus with this clock.
    pub fn new(clock: Arc<Clock>) -> Self {
        Self { clock }
    }
}

impl Revive<PyOps> for Reviver {
    fn payload(&self, event: &Event) -> (Record, Option<PyErr>) {
        Python::attach(|py| match record(py, event) {
            Ok(record) => (record, None),
            // What does not read as JSON is shown as it is, and goes no further.
            Err(error) => {
                let text = PyString::new(py, &event.data).into_any();
                (plain(py, event, text), Some(error))
            }
        })
    }

    fn token(&self, event: &Event) -> u64 {
        let Some(key) = &event.key else { return 0 };
        Python::attach(|py| {
            let hash = PyString::new(py, key).hash();
            hash.map_or(0, |hash| hash as u64)
        })
    }

    fn killed(&self) -> PyErr {
        Python::attach(|py| {
            let text =
                "the process ended while the handler ran, as often as the event may be tried";
            Error::HandlerKilledProcess.exception(py, "", text)
        })
    }

    fn now(&self) -> Nanos {
        Python::attach(|py| {
            self.clock.now(py).unwrap_or_else(|error| {
                error.write_unraisable(py, None);
                monotonic_ns()
            })
        })
    }

    fn wall(&self) -> WallSeconds {
        super::wall(&self.clock)
    }

    fn attached(&self, work: &mut dyn FnMut()) {
        Python::attach(|_| work());
    }

    fn unreadable(&self, subscription: &str, error: &JournalError) {
        static LOG: Once<Py<PyAny>> = Once::new();
        Python::try_attach(|py| {
            let log = LOG.import(py, "ironbus._log", "unreadable");
            let said = log.and_then(|log| log.call1((subscription, error.to_string())));
            if let Err(error) = said {
                error.write_unraisable(py, None);
            }
        });
    }
}

fn record(py: Python<'_>, event: &Event) -> PyResult<Record> {
    let data = from_json(py, &event.data)?;
    let mut record = plain(py, event, data);
    let string = |text: &Option<String>| text.as_ref().map(|text| PyString::new(py, text).unbind());
    let extras = Extras {
        key: string(&event.key),
        headers: event
            .headers
            .as_ref()
            .map(|headers| read_only(from_json(py, headers)?))
            .transpose()?,
        idempotency_key: string(&event.idempotency_key),
        correlation: identity(py, &event.correlation_id),
        causation: identity(py, &event.causation_id),
        ..Extras::default()
    };
    record.extras = Some(Arc::new(extras));
    Ok(record)
}

fn plain(py: Python<'_>, event: &Event, data: Bound<'_, PyAny>) -> Record {
    let source = event.source.as_ref();
    let given = Given {
        identity: identity(py, &event.event_id),
        source: source.map(|source| PyString::new(py, source).into_any().unbind()),
        ..Given::default()
    };
    Record {
        type_: PyString::intern(py, &event.event_type).unbind(),
        data: data.unbind(),
        seconds: event.timestamp,
        number: 0,
        given: Some(Box::new(given)),
        extras: None,
        priority: event.level,
    }
}

fn identity(py: Python<'_>, text: &Option<String>) -> Option<Identity> {
    let text = text.as_ref()?;
    Some(Identity::Object(
        PyString::new(py, text).into_any().unbind(),
    ))
}

fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: Once<Py<PyAny>> = Once::new();
    LOADS.import(py, "json", "loads")?.call1((text,))
}

fn read_only(headers: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    static PROXY: Once<Py<PyAny>> = Once::new();
    let py = headers.py();
    let headers = headers.cast_into::<PyDict>()?;
    let proxy = PROXY.import(py, "types", "MappingProxyType")?;
    proxy.call1((headers,)).map(Bound::unbind)
}
