//! What a handler may ask about the call it is in.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};

use super::transaction::Transaction;

/// One call of one handler with one event.
#[pyclass(frozen, module = "ironbus")]
pub struct Delivery {
    /// Which try of the handler this is, from 1.
    #[pyo3(get)]
    pub attempt: u32,
    /// The subscription's name.
    #[pyo3(get)]
    pub subscription: Py<PyString>,
    /// When the handler's time is over, in seconds of ``time.monotonic()``; ``None`` without a timeout.
    #[pyo3(get)]
    pub deadline: Option<f64>,
    /// Of which event; none: of none, it was made by hand.
    pub sequence: Option<u64>,
}

impl Delivery {
    fn parts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        (self.attempt, &self.subscription, self.deadline).into_pyobject(py)
    }
}

#[pymethods]
impl Delivery {
    #[new]
    #[pyo3(signature = (attempt, subscription, deadline=None))]
    fn new(attempt: u32, subscription: Py<PyString>, deadline: Option<f64>) -> Self {
        Self {
            attempt,
            subscription,
            deadline,
            sequence: None,
        }
    }

    /// What is to happen together with the settlement of this delivery, or not at all: a context
    /// manager, see :class:`ironbus.Transaction`. For the handler that is called, on its own thread and in its own
    /// task. Raises :class:`ironbus.errors.InvalidTransaction` elsewhere, and on a bus without a path.
    fn transaction(&self, py: Python<'_>) -> PyResult<Transaction> {
        Transaction::of(py, self)
    }

    /// An event makes its delivery anew each time it is asked, so equality is by value.
    fn __eq__<'py>(&self, other: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = other.py();
        match other.cast_exact::<Self>() {
            Ok(other) => self
                .parts(py)?
                .eq(other.get().parts(py)?)?
                .into_bound_py_any(py),
            Err(_) => Ok(py.NotImplemented().into_bound(py)),
        }
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.parts(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let deadline = self.deadline.into_bound_py_any(py)?;
        Ok(format!(
            "Delivery(attempt={}, subscription={}, deadline={})",
            self.attempt,
            self.subscription.bind(py).repr()?,
            deadline.repr()?
        ))
    }

    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        Ok((slf.get_type().into_any(), slf.get().parts(slf.py())?))
    }
}
