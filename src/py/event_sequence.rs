//! `EventSequence`: a dataclass to its callers. What a manager gives out has
//! native numbers inside, so that making and reading one costs a single object;
//! only whoever sets a number, the time or the level pays for mutability.

use pyo3::PyTraverseError;
use pyo3::exceptions::PyAttributeError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyTuple};

use super::cell::GilCell;
use super::native::{self, Slot};
use super::{dataclass, priority};
use crate::engine::priority::Priority;

// The class's docstring is that of its shape, see `dataclass::adopt`.
#[allow(missing_docs)]
#[pyclass(frozen, subclass, module = "ironbus.ordering")]
pub struct EventSequence {
    event_id: Slot,
    rest: GilCell<Rest>,
}

/// The fields behind the id.
enum Rest {
    Given(Given),
    /// Once any of them was set: objects of any type, as a dataclass takes them.
    Set(Box<[Py<PyAny>; 3]>),
}

#[derive(Clone, Copy)]
struct Given {
    number: i64,
    timestamp: f64,
    level: Priority,
}

const NUMBER: usize = 0;
const TIMESTAMP: usize = 1;
const PRIORITY: usize = 2;

impl EventSequence {
    /// A sequence as a manager gives it out; `timestamp` in Unix seconds.
    #[inline]
    pub fn new(event_id: Py<PyAny>, number: i64, timestamp: f64, level: Priority) -> Self {
        Self {
            event_id: GilCell::new(Some(event_id)),
            rest: GilCell::new(Rest::Given(Given {
                number,
                timestamp,
                level,
            })),
        }
    }

    /// What decides the event's place, if it is as it was given out and has a string for its id:
    /// the hash of that, its number and its level.
    #[inline]
    pub fn given_place(&self, py: Python<'_>) -> Option<(isize, i64, Priority)> {
        let given = self.rest.read(py, |rest| match rest {
            Rest::Given(given) => Some(*given),
            Rest::Set(_) => None,
        })?;
        let hash = self.event_id.read(py, |id| {
            let id = id.as_ref()?;
            native::hash_of_str(id.bind(py))
        })?;
        Some((hash, given.number, given.level))
    }

    /// What decides an event's place: its id, its number and its level.
    ///
    /// Raises `TypeError` or `OverflowError` for a number that is no 64-bit
    /// integer, `InvalidPriority`, and `AttributeError` where the id was deleted.
    pub fn place<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, i64, Priority)> {
        let missing = || PyAttributeError::new_err("event_id of the sequence was deleted");
        let id = self.id(py).ok_or_else(missing)?;
        let number = self.get(py, NUMBER)?.extract(py)?;
        let level = priority::to_level(py, self.get(py, PRIORITY)?.bind(py))?;
        Ok((id, number, level))
    }

    fn id<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let id = self
            .event_id
            .read(py, |id| id.as_ref().map(|id| id.clone_ref(py)));
        id.map(|id| id.into_bound(py))
    }

    /// A field behind the id, as a Python object.
    fn get(&self, py: Python<'_>, field: usize) -> PyResult<Py<PyAny>> {
        let rest = self.rest.read(py, |rest| match rest {
            Rest::Given(given) => Ok(*given),
            Rest::Set(fields) => Err(fields[field].clone_ref(py)),
        });
        match (rest, field) {
            (Err(object), _) => Ok(object),
            (Ok(given), NUMBER) => Ok(given.number.into_pyobject(py)?.into_any().unbind()),
            (Ok(given), TIMESTAMP) => Ok(PyFloat::new(py, given.timestamp).into_any().unbind()),
            (Ok(given), _) => priority::to_member(py, given.level),
        }
    }

    fn put(&self, py: Python<'_>, field: usize, mut value: Py<PyAny>) -> PyResult<()> {
        let mut objects = Some(Box::new([
            self.get(py, NUMBER)?,
            self.get(py, TIMESTAMP)?,
            self.get(py, PRIORITY)?,
        ]));
        self.rest.update(py, |rest| {
            // Making the objects may have run anybody's code, which was faster then.
            if matches!(rest, Rest::Given(_)) {
                *rest = Rest::Set(objects.take().expect("taken once"));
            }
            if let Rest::Set(fields) = rest {
                std::mem::swap(&mut fields[field], &mut value);
            }
        });
        // What is left is dropped now that the change is made: a destructor may look at this object.
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
    fn sequence_number(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, NUMBER)
    }

    #[getter]
    fn timestamp(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, TIMESTAMP)
    }

    #[getter]
    fn priority(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get(py, PRIORITY)
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
        self.event_id.visit(&visit, |id| visit.call(id))?;
        self.rest.visit(&visit, |rest| match rest {
            Rest::Set(fields) => fields.iter().try_for_each(|field| visit.call(field)),
            Rest::Given(_) => Ok(()),
        })
    }

    fn __clear__(&self, py: Python<'_>) {
        let id = self.event_id.replace(py, Some(py.None()));
        drop(id);
        let nothing = [0; 3].map(|_: u8| py.None());
        let rest = self.rest.replace(py, Rest::Set(Box::new(nothing)));
        drop(rest);
    }
}

impl native::Pooled for EventSequence {
    const TRACKED: bool = true;
    /// As many as CPython keeps of tuples.
    const KEPT: usize = 2_000;

    fn pool() -> &'static native::Pool {
        static POOL: native::Pool = GilCell::new(Vec::new());
        &POOL
    }
}

impl native::Released for EventSequence {
    #[inline]
    fn release(self, py: Python<'_>) {
        let id = self.event_id.into_inner();
        if let Rest::Set(fields) = self.rest.into_inner() {
            for field in *fields {
                drop(field.into_bound(py));
            }
        }
        drop(id.map(|id| id.into_bound(py)));
    }
}

/// Completes the class.
pub fn install(py: Python<'_>) -> PyResult<()> {
    dataclass::adopt(&py.get_type::<EventSequence>())?;
    native::install_pool::<EventSequence>(py);
    native::install_release::<EventSequence>(py);
    let example = EventSequence::new(py.None(), 0, 0.0, Priority::default());
    native::install_slot(&Bound::new(py, example)?, c"event_id", |sequence| {
        &sequence.event_id
    })
}
