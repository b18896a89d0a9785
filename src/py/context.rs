//! What handlers run in: a fresh context each, so that nothing that one sets is seen
//! by the next.
//!
//! A context that was empty when a handler entered it and is empty when it is done is
//! as good as new, and goes to the next one: most programs use no context variables,
//! and a copy for every event would be a tenth of a delivery.

use pyo3::prelude::*;

use super::cell::GilCell;
use super::native;

/// Handlers on threads take turns with those on the loop, so there are seldom more.
static EMPTY: GilCell<Option<Py<PyAny>>> = GilCell::new(None);

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

    /// A context for one handler.
    #[inline]
    pub fn fresh<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.empty.then(|| EMPTY.replace(py, None)).flatten() {
            Some(context) => Ok(context.into_bound(py)),
            None => native::copy_context(py, Some(&self.context)),
        }
    }

    /// Gives back what [`fresh`](Self::fresh) gave, once the handler is done with it.
    #[inline]
    pub fn done(&self, context: Bound<'_, PyAny>) {
        // No Python code can get at the object itself, only at copies; so what it does not hold
        // now it will not hold later.
        if self.empty && context.len().is_ok_and(|variables| variables == 0) {
            let py = context.py();
            drop(EMPTY.replace(py, Some(context.unbind())));
        }
    }
}
