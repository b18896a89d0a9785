//! `EventSequence`: a dataclass to its callers. What a manager gives out has
//! native numbers inside and never changes, so making and reading one costs a
//! single object and no lock; only whoever sets a field pays for mutability.

use std::sync::OnceLock;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use super::{dataclass, priority};
use crate::engine::priority::Priority;
use crate::engine::sync::{Mutex, lock};

// The class's docstring is that of its shape, see `dataclass::adopt`.
#[allow(missing_docs)]
#[pyclass(frozen, subclass, module = "ironbus.ordering")]
pub struct EventSequence {
    event_id: Py<PyAny>,
    number: i64,
    timestamp: f64,
    level: Priority,
    /// Once any field was set: the fields as Python objects, instead of all the above.
    set: OnceLock<Box<Mutex<Fields>>>,
}

/// In the order of the constructor. Objects of any type, as a dataclass takes them.
type Fields = [Py<PyAny>; 4];

const EVENT_ID: usize = 0;
const NUMBER: usize = 1;
const TIMESTAMP: usize = 2;
const PRIORITY: usize = 3;

impl EventSequence {
    /// A sequence as a manager gives it out; `timestamp` in Unix seconds.
    #[inline]
    pub fn new(event_id: Py<PyAny>, number: i64, timestamp: f64, level: Priority) -> Self {
        Self {
            event_id,
            number,
            timestamp,
            level,
            set: OnceLock::new(),
        }
    }

    /// What decides an event's place: its id, its number and its level.
    ///
    /// Raises `TypeError` or `OverflowError` for a number that is no 64-bit
    /// integer, and `InvalidPriority`.
    #[inline]
    pub fn place<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, i64, Priority)> {
        let Some(fields) = self.set.get() else {
            return Ok((self.event_id.bind(py).clone(), self.number, self.level));
        };
        let [id, number, _, level] = {
            let fields = lock(fields);
            [0, 1, 2, 3].map(|field: usize| fields[field].bind(py).clone())
        };
        Ok((id, number.extract()?, priority::to_level(py, &level)?))
    }

    /// The field as it was set, if any was.
    #[inline]
    fn get(&self, py: Python<'_>, field: usize) -> Option<Py<PyAny>> {
        self.set
            .get()
            .map(|fields| lock(fields)[field].clone_ref(py))
    }

    fn put(&self, py: Python<'_>, field: usize, value: Py<PyAny>) -> PyResult<()> {
        if self.set.get().is_none() {
            let fields = [
                self.event_id(py),
                self.sequence_number(py)?,
                self.timestamp(py),
                self.priority(py)?,
            ];
            // Another thread may have been faster; then its fields hold.
            let lost = self.set.set(Box::new(Mutex::new(fields)));
            drop(lost);
        }
        if let Some(fields) = self.set.get() {
            // Dropped once the lock is free: a destructor may look at this object.
            let old = std::mem::replace(&mut lock(fields)[field], value);
            drop(old);
        }
        Ok(())
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
        Self::new(py.None(), 0, 0.0, Priority::default())
    }

    #[getter]
    fn event_id(&self, py: Python<'_>) -> Py<PyAny> {
        self.get(py, EVENT_ID)
            .unwrap_or_else(|| self.event_id.clone_ref(py))
    }

    #[getter]
    fn sequence_number(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.get(py, NUMBER) {
            Some(value) => Ok(value),
            None => Ok(self.number.into_pyobject(py)?.into_any().unbind()),
        }
    }

    #[getter]
    fn timestamp(&self, py: Python<'_>) -> Py<PyAny> {
        self.get(py, TIMESTAMP)
            .unwrap_or_else(|| PyFloat::new(py, self.timestamp).into_any().unbind())
    }

    #[getter]
    fn priority(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self.get(py, PRIORITY) {
            Some(value) => Ok(value),
            None => priority::to_member(py, self.level),
        }
    }

    #[setter]
    fn set_event_id(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<()> {
        self.put(py, EVENT_ID, value)
    }

    #[setter]
    fn set_sequence_number(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<()> {
        self.put(py, NUMBER, value)
    }

    #[setter]
    fn set_timestamp(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<()> {
        self.put(py, TIMESTAMP, value)
    }

    #[setter]
    fn set_priority(&self, py: Python<'_>, value: Py<PyAny>) -> PyResult<()> {
        self.put(py, PRIORITY, value)
    }

    fn __getstate__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyDict>> {
        dataclass::get_state(slf)
    }

    fn __setstate__(slf: &Bound<'_, Self>, state: &Bound<'_, PyDict>) -> PyResult<()> {
        dataclass::set_state(slf, state)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.event_id)?;
        // Nobody who is attached holds the lock over a collection; if someone did,
        // visiting nothing is safe: the objects only seem to be in use from outside.
        if let Some(Ok(fields)) = self.set.get().map(|fields| fields.try_lock()) {
            fields.iter().try_for_each(|value| visit.call(value))?;
        }
        Ok(())
    }

    /// Cuts the cycles that a setter can have made; an id that nobody set is older
    /// than this object and cannot lead back to it but through such a cycle.
    fn __clear__(&self, py: Python<'_>) {
        if let Some(fields) = self.set.get() {
            let old = std::mem::replace(&mut *lock(fields), [0; 4].map(|_: u8| py.None()));
            drop(old);
        }
    }
}
