//! A fresh event for each delivery: the bus's hot path.

use std::sync::Arc;

use crate::py::once::Once;
use crate::py::once::intern;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::fields::default_source;
use super::{Event, pool, slots};
use crate::engine::priority::Priority;
use crate::py::record::{Extras, Record};

/// What the bus tells a handler beyond the five fields.
pub struct Delivered {
    pub extras: Option<Arc<Extras>>,
    /// `None` before it was published.
    pub call: Option<Call>,
    pub priority: Priority,
}

/// What [`Delivery`](crate::py::delivery::Delivery) is made of when somebody asks.
pub struct Call {
    pub subscription: Py<PyString>,
    pub sequence: u64,
    /// Infinite without a timeout: half the size of an `Option<f64>`.
    pub deadline: f64,
    pub attempt: u32,
}

impl Default for Delivered {
    fn default() -> Self {
        Self {
            extras: None,
            call: None,
            priority: Priority::Normal,
        }
    }
}

impl Delivered {
    pub fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        // `extras` is shared, and must not be visited once per owner; see there.
        match &self.call {
            Some(call) => visit.call(&call.subscription),
            None => Ok(()),
        }
    }
}

impl Event {
    /// The event that one handler is called with, once; the payload is shared by reference.
    #[inline]
    pub fn deliver(
        py: Python<'_>,
        record: &Record,
        sequence: u64,
        attempt: u32,
        subscription: &Py<PyString>,
        deadline: Option<f64>,
    ) -> PyResult<Py<PyAny>> {
        if let Some(template) = record.template() {
            let call = Call {
                subscription: subscription.clone_ref(py),
                sequence,
                deadline: deadline.unwrap_or(f64::INFINITY),
                attempt,
            };
            let delivered = Delivered {
                extras: record.extras.clone(),
                call: Some(call),
                priority: record.priority,
            };
            return deliver_copy(template.bind(py), delivered);
        }
        let source = match record.source() {
            Some(source) => source.clone_ref(py),
            None => default_source(py).unbind(),
        };
        let fill = |event: &mut Self| {
            // One by one, where they stay: what it replaces is nothing.
            event.fields.type_ = Some(record.type_.clone_ref(py).into_any());
            event.fields.data = Some(record.data.clone_ref(py));
            event.fields.timestamp = Some(record.timestamp(py));
            event.fields.identity = Some(record.identity(py));
            event.fields.source = Some(source);
            event.delivered.extras = record.extras.clone();
            event.delivered.call = Some(Call {
                subscription: subscription.clone_ref(py),
                sequence,
                deadline: deadline.unwrap_or(f64::INFINITY),
                attempt,
            });
            event.delivered.priority = record.priority;
        };
        match pool::take(py) {
            Some(used) => {
                let mut used = used.into_bound(py);
                slots::sole(&mut used, fill);
                Ok(used.into_any().unbind())
            }
            None => {
                let mut event = Self::default();
                fill(&mut event);
                let event = Bound::new(py, event)?;
                slots::forget_dict(&event);
                Ok(event.into_any().unbind())
            }
        }
    }
}

/// Handlers may change their event, so each gets a copy of the caller's object too.
#[cold]
fn deliver_copy(template: &Bound<'_, PyAny>, delivered: Delivered) -> PyResult<Py<PyAny>> {
    let event = copy(template)?;
    // A `__copy__` of the caller's may return anything; then that is what the handler gets.
    if let Ok(event) = event.cast::<Event>() {
        event.borrow_mut().delivered = delivered;
    }
    Ok(event.unbind())
}

/// `copy.copy`.
pub fn copy<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    static COPY: Once<Py<PyAny>> = Once::new();
    let py = object.py();
    let copy = COPY.get_or_try_init(py, || {
        Ok::<_, PyErr>(py.import("copy")?.getattr(intern!(py, "copy"))?.unbind())
    })?;
    copy.bind(py).call1((object,))
}
