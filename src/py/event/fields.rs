//! The five fields of an event in native form.

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::py::identity::Identity;
use crate::py::once::intern;
use crate::py::record::Stamp;

/// In the order of the constructor's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Type,
    Data,
    Timestamp,
    EventId,
    Source,
}

impl Field {
    pub const ALL: [Self; 5] = [
        Self::Type,
        Self::Data,
        Self::Timestamp,
        Self::EventId,
        Self::Source,
    ];

    pub fn name(self, py: Python<'_>) -> &Bound<'_, PyString> {
        match self {
            Self::Type => intern!(py, "type"),
            Self::Data => intern!(py, "data"),
            Self::Timestamp => intern!(py, "timestamp"),
            Self::EventId => intern!(py, "event_id"),
            Self::Source => intern!(py, "source"),
        }
    }
}

/// `source` where the caller says nothing.
pub fn default_source(py: Python<'_>) -> Bound<'_, PyAny> {
    intern!(py, "pm_system").clone().into_any()
}

/// Each may be missing: before `__init__`, and after `del`.
#[derive(Default)]
pub struct Fields {
    pub type_: Option<Py<PyAny>>,
    pub data: Option<Py<PyAny>>,
    pub timestamp: Option<Stamp>,
    pub identity: Option<Identity>,
    pub source: Option<Py<PyAny>>,
}

/// What was among the fields.
pub struct Objects {
    type_: Option<Py<PyAny>>,
    data: Option<Py<PyAny>>,
    timestamp: Option<Py<PyAny>>,
    identity: Option<Py<PyAny>>,
    source: Option<Py<PyAny>>,
}

impl Objects {
    /// Drops them, for less than by themselves: each would ask whether the thread is attached.
    #[inline(always)]
    pub fn release(self, py: Python<'_>) {
        let drop_ref = |object: Option<Py<PyAny>>| {
            if let Some(object) = object {
                object.drop_ref(py);
            }
        };
        drop_ref(self.type_);
        drop_ref(self.source);
        drop_ref(self.timestamp);
        drop_ref(self.identity);
        drop_ref(self.data);
    }
}

impl Fields {
    pub fn get<'py>(&self, py: Python<'py>, field: Field) -> Option<Bound<'py, PyAny>> {
        match field {
            Field::Type => self.type_.as_ref().map(|object| object.bind(py).clone()),
            Field::Data => self.data.as_ref().map(|object| object.bind(py).clone()),
            Field::Timestamp => self.timestamp.as_ref().map(|stamp| stamp.to_object(py)),
            Field::EventId => self
                .identity
                .as_ref()
                .map(|identity| identity.to_object(py)),
            Field::Source => self.source.as_ref().map(|object| object.bind(py).clone()),
        }
    }

    /// Returns the old value, to be dropped when nothing of the event is borrowed any
    /// more: its destructor may be Python code that looks at the event.
    #[must_use]
    pub fn put(&mut self, field: Field, value: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        fn object_of_stamp(stamp: Stamp) -> Option<Py<PyAny>> {
            match stamp {
                Stamp::Seconds(_) => None,
                Stamp::Object(object) => Some(object),
            }
        }
        fn object_of_identity(identity: Identity) -> Option<Py<PyAny>> {
            match identity {
                Identity::Number { .. } => None,
                Identity::Object(object) => Some(object),
            }
        }
        match field {
            Field::Type => std::mem::replace(&mut self.type_, value),
            Field::Data => std::mem::replace(&mut self.data, value),
            Field::Source => std::mem::replace(&mut self.source, value),
            Field::Timestamp => std::mem::replace(&mut self.timestamp, value.map(Stamp::Object))
                .and_then(object_of_stamp),
            Field::EventId => std::mem::replace(&mut self.identity, value.map(Identity::Object))
                .and_then(object_of_identity),
        }
    }

    /// Takes all out, and returns the objects, to be dropped when nothing of the event is borrowed.
    #[inline]
    pub fn empty(&mut self) -> Objects {
        let timestamp = match self.timestamp.take() {
            Some(Stamp::Object(object)) => Some(object),
            _ => None,
        };
        let identity = match self.identity.take() {
            Some(Identity::Object(object)) => Some(object),
            _ => None,
        };
        Objects {
            type_: self.type_.take(),
            data: self.data.take(),
            timestamp,
            identity,
            source: self.source.take(),
        }
    }

    pub fn visit(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.type_)?;
        visit.call(&self.data)?;
        visit.call(&self.source)?;
        if let Some(Stamp::Object(object)) = &self.timestamp {
            visit.call(object)?;
        }
        if let Some(Identity::Object(object)) = &self.identity {
            visit.call(object)?;
        }
        Ok(())
    }
}
