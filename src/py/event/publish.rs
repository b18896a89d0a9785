//! From an event that a caller publishes to what the bus remembers of it.

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::fields::default_source;
use super::{Event, delivered, slots};
use crate::py::errors::Error;
use crate::py::identity::Identity;
use crate::py::once::intern;
use crate::py::record::Stamp;

/// The caller's part of a [`Record`](crate::py::record::Record), not yet validated.
/// What the caller does to the event afterwards does not reach it.
pub struct Published {
    pub type_: Py<PyAny>,
    pub data: Py<PyAny>,
    pub timestamp: Stamp,
    pub identity: Identity,
    /// `None` for the default.
    pub source: Option<Py<PyAny>>,
    /// A copy of the event, where it is more than a plain `Event`.
    pub template: Option<Py<PyAny>>,
}

/// Captures an instance of [`Event`] or of a subclass; `TypeError` for anything else.
pub fn record_of(event: &Bound<'_, PyAny>) -> PyResult<Published> {
    let event = event.cast::<Event>()?;
    let py = event.py();
    let source_of =
        |source: Bound<'_, PyAny>| (!source.is(default_source(py))).then(|| source.unbind());

    if !event.borrow().in_dict && slots::is_plain(event) {
        let me = event.borrow();
        if let (Some(type_), Some(data)) = (&me.fields.type_, &me.fields.data) {
            return Ok(Published {
                type_: type_.clone_ref(py),
                data: data.clone_ref(py),
                timestamp: me
                    .fields
                    .timestamp
                    .as_ref()
                    .map_or_else(Stamp::now, |stamp| stamp.clone_ref(py)),
                identity: me
                    .fields
                    .identity
                    .as_ref()
                    .map_or_else(Identity::next, |id| id.clone_ref(py)),
                source: me
                    .fields
                    .source
                    .as_ref()
                    .and_then(|source| source_of(source.bind(py).clone())),
                template: None,
            });
        }
    }

    // The copy first, so that its fields and ours are of one moment.
    let template = delivered::copy(event)?;
    let given = |value: Bound<'_, PyAny>| (!value.is_none()).then(|| value.unbind());
    Ok(Published {
        type_: get(event, intern!(py, "type"))?.unbind(),
        data: get(event, intern!(py, "data"))?.unbind(),
        timestamp: given(get(event, intern!(py, "timestamp"))?)
            .map_or_else(Stamp::now, Stamp::Object),
        identity: given(get(event, intern!(py, "event_id"))?)
            .map_or_else(Identity::next, Identity::Object),
        source: source_of(get(event, intern!(py, "source"))?),
        template: Some(template.unbind()),
    })
}

fn get<'py>(event: &Bound<'py, Event>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
    let py = event.py();
    event.getattr(name).map_err(|error| {
        if error.is_instance_of::<PyAttributeError>(py) {
            let text =
                format!("{name} of the event was never set: call super().__init__(type, data)");
            Error::InvalidEvent.exception(py, &name.to_string_lossy(), text)
        } else {
            error
        }
    })
}
