//! The items of a list, mostly pairs that nobody has looked at for a while.

#![allow(unsafe_code)]

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::engine::prefetch::prefetch;

/// The item at a place of the list of now, if there is one; those that follow are looked for in
/// advance. Without a `Result`, which would go over the stack.
#[inline(always)]
pub fn item<'py>(list: &Bound<'py, PyList>, at: usize) -> Option<Bound<'py, PyAny>> {
    // SAFETY: attached, and no Python code runs in `place`, so the list stays as it is.
    unsafe {
        let item = place(list, at)?;
        look_ahead(list, at);
        Some(Bound::from_borrowed_ptr(list.py(), item))
    }
}

/// # Safety
/// The object may be used for as long as no Python code runs.
#[inline(always)]
unsafe fn place(list: &Bound<'_, PyList>, at: usize) -> Option<*mut ffi::PyObject> {
    // SAFETY: it is a list, and the place is within it.
    (at < list.len()).then(|| unsafe { ffi::PyList_GET_ITEM(list.as_ptr(), at.cast_signed()) })
}

/// Has the processor fetch an item that will be looked at soon, and the second part of a pair that
/// is even nearer: what has been in the memory for long takes longer to come than an item to be used.
#[inline(always)]
fn look_ahead(list: &Bound<'_, PyList>, at: usize) {
    const FAR: usize = 16;
    const NEAR: usize = 8;
    // SAFETY: attached, and no Python code runs here. The pair has a second.
    unsafe {
        if let Some(item) = place(list, at + FAR) {
            prefetch(item, 1);
        }
        if let Some(item) = place(list, at + NEAR)
            && ffi::PyTuple_CheckExact(item) != 0
            && ffi::PyTuple_GET_SIZE(item) == 2
        {
            prefetch(ffi::PyTuple_GET_ITEM(item, 1), 1);
        }
    }
}
