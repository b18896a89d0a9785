//! Values that are made at their first use. Like pyo3's `PyOnceLock`, but nobody waits for
//! whoever makes one: after a fork in the middle of that, the child would wait for ever. So
//! several threads may make it; the first to be ready is kept.

use std::sync::OnceLock;

use pyo3::PyTypeCheck;
use pyo3::prelude::*;

/// See the module.
pub struct Once<T>(OnceLock<T>);

impl<T> Once<T> {
    /// Not made yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value.
    #[inline]
    pub fn get_or_try_init(
        &self,
        _py: Python<'_>,
        make: impl FnOnce() -> PyResult<T>,
    ) -> PyResult<&T> {
        match self.0.get() {
            Some(value) => Ok(value),
            None => self.make(make),
        }
    }

    /// The value, which cannot fail to be made.
    #[inline]
    pub fn get_or_init(&self, _py: Python<'_>, make: impl FnOnce() -> T) -> &T {
        match self.0.get() {
            Some(value) => value,
            None => self.keep(make()),
        }
    }

    #[cold]
    fn make(&self, make: impl FnOnce() -> PyResult<T>) -> PyResult<&T> {
        make().map(|value| self.keep(value))
    }

    /// With the interpreter's lock from beginning to end: no fork comes in between.
    fn keep(&self, value: T) -> &T {
        // Another thread's may be there by now.
        let late = self.0.set(value).err();
        drop(late);
        self.0.get().expect("it is set")
    }
}

impl<T: PyTypeCheck> Once<Py<T>> {
    /// What a module has under this name.
    #[inline]
    pub fn import<'py>(
        &self,
        py: Python<'py>,
        module: &str,
        name: &str,
    ) -> PyResult<&Bound<'py, T>> {
        let value = self.get_or_try_init(py, || {
            let value = py.import(module)?.getattr(name)?;
            Ok(value.cast_into::<T>()?.unbind())
        })?;
        Ok(value.bind(py))
    }
}

/// The string, interned at the first use; pyo3's macro lets go of the interpreter while it makes one.
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static INTERNED: $crate::py::once::Once<::pyo3::Py<::pyo3::types::PyString>> =
            $crate::py::once::Once::new();
        let py: ::pyo3::Python<'_> = $py;
        let make = || ::pyo3::types::PyString::intern(py, $text).unbind();
        INTERNED.get_or_init(py, make).bind(py)
    }};
}
pub(crate) use intern;
