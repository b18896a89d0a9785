//! A cell that the interpreter's lock guards: what is only looked at by threads that
//! hold the GIL needs no lock of its own, and a publish touches such state five times.
//!
//! The module asks for the GIL (`gil_used = true`); on an interpreter without one it
//! would have to be a mutex.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

/// See the module. Values go in and out whole; nobody holds a reference into it while
/// Python code may run.
pub struct GilCell<T>(UnsafeCell<T>);

// SAFETY: every access needs a `Python` token, so that the thread holds the GIL, and ends
// before the GIL can be released: `replace` and `read` run no outside code, not even a
// destructor. Values may be dropped by another thread than the one that put them in.
unsafe impl<T: Send> Sync for GilCell<T> {}

impl<T: Default> Default for GilCell<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T> GilCell<T> {
    /// A cell with a value.
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Puts a value in and takes the other out.
    #[inline(always)]
    pub fn replace(&self, _py: Python<'_>, value: T) -> T {
        // SAFETY: see `Sync` above; `mem::replace` drops nothing.
        unsafe { std::mem::replace(&mut *self.0.get(), value) }
    }

    /// Reads something out of the value. `look` must not call into Python, and cannot keep a
    /// reference.
    #[inline(always)]
    pub fn read<R: 'static>(&self, _py: Python<'_>, look: impl FnOnce(&T) -> R) -> R {
        // SAFETY: see `Sync` above; a shared reference for the length of a plain look.
        look(unsafe { &*self.0.get() })
    }

    /// Changes the value in place. `change` must not call into Python, and must not drop an object.
    #[inline(always)]
    pub fn update<R: 'static>(&self, _py: Python<'_>, change: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: see `Sync` above; a unique reference for the length of a plain change.
        change(unsafe { &mut *self.0.get() })
    }

    /// Shows the objects in the value to the garbage collector, whose visit proves the GIL.
    pub fn visit(
        &self,
        _visit: &PyVisit<'_>,
        look: impl FnOnce(&T) -> Result<(), PyTraverseError>,
    ) -> Result<(), PyTraverseError> {
        // SAFETY: see `Sync` above. The collector is never called during a look or a change, which
        // do not call into Python.
        look(unsafe { &*self.0.get() })
    }

    /// The value alone.
    #[inline]
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}
