//! What handlers run in: a fresh context each, so that nothing that one sets is seen
//! by the next.
//!
//! A context that was empty when a handler began and is empty when it is done is as good as
//! new, and the next one runs in it too (see `native::Ambient`): most programs use no
//! context variables, and a copy for every event would be a tenth of a delivery.

use pyo3::prelude::*;

use super::native;

/// What fresh contexts are copies of.
pub struct Base {
    context: Py<PyAny>,
    empty: bool,
}

impl Base {
    /// The context of the moment.
    pub fn current(py: Python<'_>) -> PyResult<Self> {
        let context = native::copy_context(py, None)?;
        Ok(Self {
            empty: context.len()? == 0,
            context: context.unbind(),
        })
    }

    /// Whether nothing was set in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// A context for one handler.
    #[inline]
    pub fn fresh<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        native::copy_context(py, Some(&self.context))
    }
}
