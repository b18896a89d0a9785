//! The `__dict__` slot of an event, without the `__dict__` attribute that
//! [`Event`] puts in front of it. The only unsafe code of the class.
#![allow(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyErr, ffi};

use super::Event;

/// The dict, made if there is none.
pub fn get<'py>(event: &Bound<'py, Event>) -> PyResult<Bound<'py, PyDict>> {
    let py = event.py();
    // SAFETY: the class has a dict slot (`#[pyclass(dict)]`), and `event` is a live
    // instance of it; the function returns a new reference or sets an exception.
    let dict = unsafe {
        let dict = ffi::PyObject_GenericGetDict(event.as_ptr(), std::ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, dict)?
    };
    Ok(dict.cast_into()?)
}

/// Puts another dict in its place.
pub fn set(event: &Bound<'_, Event>, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    // SAFETY: as above; the function takes a reference of its own to the dict.
    let status = unsafe {
        ffi::PyObject_GenericSetDict(event.as_ptr(), dict.as_ptr(), std::ptr::null_mut())
    };
    if status == 0 {
        Ok(())
    } else {
        Err(PyErr::fetch(event.py()))
    }
}
