//! `EventSequence`: a dataclass to its callers, native numbers inside, so that
//! giving one out creates a single object.

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyTuple};

use super::{dataclass, priority};
use crate::engine::priority::Priority;

/// A field that nearly always holds a `T`, but takes any object, as a dataclass does.
enum Field<T> {
    Native(T),
    Object(Py<PyAny>),
}

/// The Python documentation is that of the shape it stands in for.
#[pyclass(subclass, module = "ironbus.ordering")]
pub struct EventSequence {
    event_id: Py<PyAny>,
    sequence_number: Field<i64>,
    timestamp: Field<f64>,
    priority: Field<Priority>,
}

impl EventSequence {
    /// A sequence whose fields have the types they should.
    pub fn new(event_id: Py<PyAny>, number: i64, timestamp: f64, level: Priority) -> Self {
        Self {
            event_id,
            sequence_number: Field::Native(number),
            timestamp: Field::Native(timestamp),
            priority: Field::Native(level),
        }
    }

    /// What decides an event's place: its id, its number and its level.
    ///
    /// Raises `TypeError` or `OverflowError` for a number that is no 64-bit
    /// integer, and `InvalidPriority`.
    #[inline]
    pub fn place<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, i64, Priority)> {
        let py = slf.py();
        let this = slf.borrow();
        let id = this.event_id.bind(py).clone();
        if let (Field::Native(number), Field::Native(level)) =
            (&this.sequence_number, &this.priority)
        {
            return Ok((id, *number, *level));
        }
        drop(this); // what follows may run Python code, which may set these fields
        let number = slf.getattr("sequence_number")?.extract()?;
        let level = priority::to_level(py, &slf.getattr("priority")?)?;
        Ok((id, number, level))
    }
}

#[pymethods]
impl EventSequence {
    /// Takes anything, so that subclasses may have an `__init__` of their own.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn py_new(
        py: Python<'_>,
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> Self {
        Self {
            event_id: py.None(),
            sequence_number: Field::Object(py.None()),
            timestamp: Field::Object(py.None()),
            priority: Field::Native(Priority::default()),
        }
    }

    #[getter]
    fn event_id(&self, py: Python<'_>) -> Py<PyAny> {
        self.event_id.clone_ref(py)
    }

    #[getter]
    fn sequence_number(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.sequence_number {
            Field::Native(number) => Ok(number.into_pyobject(py)?.into_any().unbind()),
            Field::Object(value) => Ok(value.clone_ref(py)),
        }
    }

    #[getter]
    fn timestamp(&self, py: Python<'_>) -> Py<PyAny> {
        match &self.timestamp {
            Field::Native(seconds) => PyFloat::new(py, *seconds).into_any().unbind(),
            Field::Object(value) => value.clone_ref(py),
        }
    }

    #[getter]
    fn priority(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match &self.priority {
            Field::Native(level) => priority::to_member(py, *level),
            Field::Object(value) => Ok(value.clone_ref(py)),
        }
    }

    // The setters drop the old value last: its destructor may look at this object.

    #[setter]
    fn set_event_id(slf: &Bound<'_, Self>, value: Py<PyAny>) {
        let old = std::mem::replace(&mut slf.borrow_mut().event_id, value);
        drop(old);
    }

    #[setter]
    fn set_sequence_number(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) {
        let native = value
            .cast_exact::<PyInt>()
            .ok()
            .and_then(|number| number.extract().ok());
        let new = native.map_or_else(|| Field::Object(value.unbind()), Field::Native);
        let old = std::mem::replace(&mut slf.borrow_mut().sequence_number, new);
        drop(old);
    }

    #[setter]
    fn set_timestamp(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) {
        let new = match value.cast_exact::<PyFloat>() {
            Ok(seconds) => Field::Native(seconds.value()),
            Err(_) => Field::Object(value.unbind()),
        };
        let old = std::mem::replace(&mut slf.borrow_mut().timestamp, new);
        drop(old);
    }

    #[setter]
    fn set_priority(slf: &Bound<'_, Self>, value: Bound<'_, PyAny>) -> PyResult<()> {
        let new = match priority::member_level(slf.py(), &value)? {
            Some(level) => Field::Native(level),
            None => Field::Object(value.unbind()),
        };
        let old = std::mem::replace(&mut slf.borrow_mut().priority, new);
        drop(old);
        Ok(())
    }

    fn __getstate__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        dataclass::get_state(slf)
    }

    fn __setstate__(slf: &Bound<'_, Self>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        dataclass::set_state(slf, state)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_id)?;
        if let Field::Object(value) = &self.sequence_number {
            visit.call(value)?;
        }
        if let Field::Object(value) = &self.timestamp {
            visit.call(value)?;
        }
        if let Field::Object(value) = &self.priority {
            visit.call(value)?;
        }
        Ok(())
    }

    fn __clear__(mut slf: PyRefMut<'_, Self>) {
        let none = slf.py().None();
        let empty = Self::new(none, 0, 0.0, Priority::default());
        let old = std::mem::replace(&mut *slf, empty);
        drop(slf);
        drop(old);
    }
}
