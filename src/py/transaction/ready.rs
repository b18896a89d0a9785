//! An awaitable that has its result already.

use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;

/// See the module. It is its own iterator.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Ready(Py<PyAny>);

impl Ready {
    /// With this result.
    pub fn with(result: Py<PyAny>) -> Self {
        Self(result)
    }
}

#[pymethods]
impl Ready {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Err(PyStopIteration::new_err((self.0.clone_ref(py),)))
    }
}
