//! A context that stays entered from one handler to the next, for as long as nobody has set
//! anything in it: to enter and to leave one for every event costs more than to look.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::ffi;
use pyo3::prelude::*;

use crate::py::cell::GilCell;

/// See the module. Belongs to one thread.
#[derive(Default)]
pub struct Ambient(GilCell<Option<Py<PyAny>>>);

impl Ambient {
    /// Enters the context that `make` gives, unless one is entered in which nothing was set.
    #[inline]
    pub fn enter<'py>(
        &self,
        py: Python<'py>,
        make: impl FnOnce() -> PyResult<Bound<'py, PyAny>>,
    ) -> PyResult<()> {
        let size = self.0.read(py, |context| match context {
            // SAFETY: attached; to ask a context for its size runs no Python code.
            Some(context) => unsafe { ffi::PyMapping_Size(context.as_ptr()) },
            None => -1,
        });
        if size == 0 {
            return Ok(());
        }
        drop(self.leave(py)?);
        let context = make()?;
        // SAFETY: attached; the callee checks that it is a context. `leave` is its counterpart, on the
        // same thread, at the latest at the end of `within`.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        let before = self.0.replace(py, Some(context.unbind()));
        debug_assert!(before.is_none());
        Ok(())
    }

    /// Leaves the context that is entered, if one is.
    pub fn leave<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(context) = self.0.replace(py, None) else {
            return Ok(None);
        };
        let context = context.into_bound(py);
        // SAFETY: attached; it was entered by `enter`, and what was entered since has been left.
        if unsafe { ffi::PyContext_Exit(context.as_ptr()) } != 0 {
            return Err(PyErr::fetch(py));
        }
        Ok(Some(context))
    }

    /// Runs `body`, in which contexts are entered and left, and leaves the last.
    pub fn within<R>(&self, py: Python<'_>, body: impl FnOnce() -> R) -> R {
        let result = catch_unwind(AssertUnwindSafe(body));
        if let Err(error) = self.leave(py) {
            error.write_unraisable(py, None);
        }
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
