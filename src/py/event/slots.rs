//! What CPython keeps in the object of an event beside our fields: the reference
//! count, the weak references, and the `__dict__` without the attribute that [`Event`]
//! puts in front of it. The only unsafe code of the class.
#![allow(unsafe_code)]

use std::ptr;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use pyo3::{PyErr, ffi};

use super::Event;

/// The instance's dict, made if there is none.
pub fn get_dict<'py>(event: &Bound<'py, Event>) -> PyResult<Bound<'py, PyDict>> {
    let py = event.py();
    // SAFETY: the class has a dict slot (`#[pyclass(dict)]`), and `event` is a live
    // instance of it; the function returns a new reference or sets an exception.
    let dict = unsafe {
        let dict = ffi::PyObject_GenericGetDict(event.as_ptr(), ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, dict)?
    };
    Ok(dict.cast_into()?)
}

/// Puts another dict in its place.
pub fn set_dict(event: &Bound<'_, Event>, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    // SAFETY: as above; the function takes a reference of its own to the dict.
    let status =
        unsafe { ffi::PyObject_GenericSetDict(event.as_ptr(), dict.as_ptr(), ptr::null_mut()) };
    if status == 0 {
        Ok(())
    } else {
        Err(PyErr::fetch(event.py()))
    }
}

/// Lets go of the empty dict that CPython 3.11 gives a new object, which few events need: the next
/// who asks for it gets another.
pub fn forget_dict(event: &Bound<'_, Event>) {
    // SAFETY: as in `is_plain`; the class's own code, which clears and visits the dict, expects none too.
    unsafe {
        let object = event.as_ptr();
        let dict = object
            .byte_offset((*ffi::Py_TYPE(object)).tp_dictoffset)
            .cast::<*mut ffi::PyObject>();
        debug_assert!((*dict).is_null() || ffi::PyDict_Size(*dict) == 0);
        ffi::Py_XDECREF(std::mem::replace(&mut *dict, ptr::null_mut()));
    }
}

/// Whether this is a plain `Event` with nothing in its `__dict__`. Makes no dict to find out.
#[inline]
pub fn is_plain(event: &Bound<'_, Event>) -> bool {
    event.is_exact_instance_of::<Event>() && {
        // SAFETY: the type is exactly `Event`, whose dict offset is positive and leads to
        // a pointer that is null or a dict; the dict is only asked for its size.
        unsafe {
            let object = event.as_ptr();
            let dict = *object
                .byte_offset((*ffi::Py_TYPE(object)).tp_dictoffset)
                .cast::<*mut ffi::PyObject>();
            dict.is_null() || ffi::PyDict_Size(dict) == 0
        }
    }
}

/// Where the value lies in the object: pyo3 puts it first behind the head.
const VALUE: usize = size_of::<ffi::PyObject>().next_multiple_of(align_of::<Event>());

/// Checks what [`sole`] goes by.
pub fn install(py: Python<'_>) -> PyResult<()> {
    let event = Bound::new(py, Event::default())?;
    let there = ptr::from_ref(&*event.borrow()).addr();
    assert_eq!(there, event.as_ptr().addr() + VALUE);
    Ok(())
}

/// Changes an event to which the caller has the only reference, without the two locked
/// instructions of a borrow. `change` must not run Python code.
///
/// # Panics
/// If there are other references.
#[inline]
pub fn sole<R>(event: &mut Bound<'_, Event>, change: impl FnOnce(&mut Event) -> R) -> R {
    // SAFETY: the value lies there, as `install` has checked. Borrows hold references of their own,
    // so there is none; and the collector does not come by while no Python code runs.
    unsafe {
        let object = event.as_ptr();
        assert_eq!(ffi::Py_REFCNT(object), 1);
        change(&mut *object.byte_add(VALUE).cast::<Event>())
    }
}

/// Whether the caller holds the only reference to a plain `Event`, weak ones included:
/// then nobody can tell it from a new one.
#[inline]
pub fn is_unshared(event: &Bound<'_, Event>) -> bool {
    // The count means this only under the GIL, which the module therefore asks for.
    is_plain(event) && {
        // SAFETY: as above, for the list of weak references.
        unsafe {
            let object = event.as_ptr();
            let weak = *object
                .byte_offset((*ffi::Py_TYPE(object)).tp_weaklistoffset)
                .cast::<*mut ffi::PyObject>();
            ffi::Py_REFCNT(object) == 1 && weak.is_null()
        }
    }
}
