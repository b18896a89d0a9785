//! A short way through a method of a native class, for calls in the ordinary form: arguments by
//! position and of the exact types. Everything else, errors included, goes through the method as
//! pyo3 made it, which stays the one place that says what the method does.

#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;
use pyo3::{Borrowed, PyClass, PyTypeInfo, ffi};

use super::bug;

/// The short way through one method.
pub trait Shortcut: 'static {
    /// Whose method it is.
    type Class: PyClass + PyTypeInfo;
    /// What it is called.
    const NAME: &'static str;

    /// Where the method itself is remembered.
    fn method() -> &'static Method;

    /// The result, or None where this call is not an ordinary one: then nothing has happened.
    /// It is not told to pyo3 that the thread is attached, so no `Py` may be dropped here.
    fn call<'py>(
        slf: &Bound<'py, Self::Class>,
        arguments: &[Bound<'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>>;
}

/// The method as pyo3 made it.
pub type Method = OnceLock<ffi::PyCFunctionFastWithKeywords>;

/// Puts the shortcut in front of its method.
pub fn install_shortcut<S: Shortcut>(py: Python<'_>) -> PyResult<()> {
    let class = py.get_type::<S::Class>();
    let found = class.getattr("__dict__")?.get_item(S::NAME)?;
    // SAFETY: attached; the descriptor's type is checked before it is looked into, and the flags
    // before the pointer is taken for what they say. The copy of the definition lives for ever, as
    // the descriptor that is made of it demands; what it points to is pyo3's, and does so as well.
    let shortcut = unsafe {
        if (*found.as_ptr()).ob_type != &raw mut ffi::PyMethodDescr_Type {
            return Err(PyTypeError::new_err("not a native method"));
        }
        let definition = &*(*found.as_ptr().cast::<ffi::PyMethodDescrObject>()).d_method;
        if definition.ml_flags != ffi::METH_FASTCALL | ffi::METH_KEYWORDS {
            return Err(PyTypeError::new_err("not a method with arguments"));
        }
        let method = definition.ml_meth.PyCFunctionFastWithKeywords;
        S::method().get_or_init(|| method);
        let definition = Box::leak(Box::new(ffi::PyMethodDef {
            ml_name: definition.ml_name,
            ml_meth: ffi::PyMethodDefPointer {
                PyCFunctionFastWithKeywords: call::<S>,
            },
            ml_flags: definition.ml_flags,
            ml_doc: definition.ml_doc,
        }));
        Bound::from_owned_ptr_or_err(py, ffi::PyDescr_NewMethod(class.as_type_ptr(), definition))?
    };
    class.setattr(PyString::new(py, S::NAME), shortcut)
}

unsafe extern "C" fn call<S: Shortcut>(
    slf: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: the contract of METH_FASTCALL: attached, and `arguments` holds `count` valid objects,
    // to each of which a `Bound` is a pointer; borrowed ones here, which are not dropped. The
    // descriptor has checked that `slf` is of the class.
    unsafe {
        if names.is_null() && count > 0 {
            let slf = Borrowed::from_ptr(Python::assume_attached(), slf);
            let slf = slf.cast_unchecked::<S::Class>();
            let given = std::slice::from_raw_parts(arguments.cast(), count.unsigned_abs());
            // A panic must not unwind into the interpreter.
            match catch_unwind(AssertUnwindSafe(|| S::call(&slf, given))) {
                Ok(Some(result)) => return result.into_ptr(),
                Ok(None) => {}
                Err(_) => return panicked(),
            }
        }
        let method = S::method().get().expect("remembered when installed");
        method(slf, arguments, count, names)
    }
}

/// Apart, so that ordinary calls have no place for an error on their stack.
#[cold]
#[inline(never)]
unsafe fn panicked() -> *mut ffi::PyObject {
    // SAFETY: called attached.
    unsafe { bug().restore(Python::assume_attached()) };
    std::ptr::null_mut()
}
