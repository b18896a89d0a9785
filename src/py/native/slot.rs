//! A field of a native class that Python reads and sets in place, as it does those of `__slots__`:
//! the interpreter reads such a field in its own code, without a call.

#![allow(unsafe_code)]

use std::ffi::CStr;

use pyo3::prelude::*;
use pyo3::{PyClass, PyTypeInfo, ffi};

use crate::py::cell::GilCell;

/// A field that holds an object, or nothing once it is deleted.
pub type Slot = GilCell<Option<Py<PyAny>>>;

/// Shows a field as an attribute. `example` is any instance of the class.
pub fn install_slot<
    T: PyClass<Frozen = pyo3::pyclass::boolean_struct::True> + PyTypeInfo + Sync,
>(
    example: &Bound<'_, T>,
    name: &'static CStr,
    field: fn(&T) -> &Slot,
) -> PyResult<()> {
    // A null pointer and nothing else is the missing object.
    const { assert!(size_of::<Slot>() == size_of::<*mut ffi::PyObject>()) };
    let py = example.py();
    let place = std::ptr::from_ref(field(example.get())).addr();
    let member = Box::leak(Box::new(ffi::PyMemberDef {
        name: name.as_ptr(),
        type_code: ffi::Py_T_OBJECT_EX,
        offset: (place - example.as_ptr().addr()).cast_signed(),
        flags: 0,
        doc: std::ptr::null(),
    }));
    let class = py.get_type::<T>();
    // SAFETY: attached. All instances have one layout, subclasses' included, so that the field is at
    // the same offset in each; it is a cell, which may be changed by whoever holds the GIL; and it is
    // an object or null, which is what the descriptor takes it for. The definition lives for ever.
    let descriptor = unsafe {
        Bound::from_owned_ptr_or_err(py, ffi::PyDescr_NewMember(class.as_type_ptr(), member))?
    };
    class.setattr(name, descriptor)
}
