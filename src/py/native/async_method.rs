//! Callables that are `async def` to everybody who asks and a C function to the interpreter.

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::ptr;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::guarded;

/// The arguments of a vectorcall.
pub struct Arguments<'a, 'py> {
    py: Python<'py>,
    positional: &'a [*mut ffi::PyObject],
    keyword: &'a [*mut ffi::PyObject],
    names: Option<Bound<'py, PyTuple>>,
}

impl<'a, 'py> Arguments<'a, 'py> {
    /// The interpreter.
    pub fn py(&self) -> Python<'py> {
        self.py
    }

    /// How many are given by position.
    #[inline]
    pub fn len(&self) -> usize {
        self.positional.len()
    }

    /// One that is given by position.
    #[inline]
    pub fn get(&self, at: usize) -> Option<Bound<'py, PyAny>> {
        // SAFETY: the interpreter keeps the arguments alive during the call.
        self.positional
            .get(at)
            .map(|object| unsafe { Bound::from_borrowed_ptr(self.py, *object) })
    }

    /// Those that are given by name.
    pub fn keywords(&self) -> impl Iterator<Item = (Bound<'py, PyAny>, Bound<'py, PyAny>)> + '_ {
        let names = self.names.iter().flatten();
        // SAFETY: as in `get`.
        names
            .zip(self.keyword)
            .map(|(name, object)| (name, unsafe { Bound::from_borrowed_ptr(self.py, *object) }))
    }
}

/// A method written in Rust that is called with its arguments as they are.
pub type NativeMethod =
    for<'a, 'py> fn(&Bound<'py, PyAny>, &Arguments<'a, 'py>) -> PyResult<Bound<'py, PyAny>>;

/// An object that calls a [`NativeMethod`], and in everything else looks like the `async def`
/// that it was made from: `inspect`, mocks and documentation see name, signature and flags.
#[repr(C)]
struct AsyncMethod {
    base: ffi::PyObject,
    vectorcall: Option<ffi::vectorcallfunc>,
    template: *mut ffi::PyObject,
    method: NativeMethod,
}

unsafe extern "C" fn call_method(
    callable: *mut ffi::PyObject,
    args: *const *mut ffi::PyObject,
    nargsf: usize,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: vectorcall's contract: attached; `callable` is an `AsyncMethod`, `args` holds the
    // positional arguments followed by one for each of `names`, which is a tuple or null.
    // Not told to pyo3, unlike in `step_slot`: a call keeps its arguments and releases nothing.
    unsafe {
        (|py: Python<'_>| {
            let count = ffi::PyVectorcall_NARGS(nargsf) as usize;
            let names = Bound::from_borrowed_ptr_or_opt(py, names)
                .map(|names| names.cast_into_unchecked::<PyTuple>());
            let named = names.as_ref().map_or(0, |names| names.len());
            let all: &[*mut ffi::PyObject] = if count + named == 0 {
                &[]
            } else {
                std::slice::from_raw_parts(args, count + named)
            };
            let (positional, keyword) = all.split_at(count);
            let Some((slf, positional)) = positional.split_first() else {
                PyTypeError::new_err("the method needs an EventBus").restore(py);
                return ptr::null_mut();
            };
            let slf = Bound::from_borrowed_ptr(py, *slf);
            let arguments = Arguments {
                py,
                positional,
                keyword,
                names,
            };
            let method = (*callable.cast::<AsyncMethod>()).method;
            match guarded(|| method(&slf, &arguments)) {
                Ok(result) => result.into_ptr(),
                Err(error) => {
                    error.restore(py);
                    ptr::null_mut()
                }
            }
        })(Python::assume_attached())
    }
}

// SAFETY: as declared in CPython's `classobject.h`, in all versions.
unsafe extern "C" {
    fn PyMethod_New(function: *mut ffi::PyObject, slf: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

unsafe extern "C" fn bind(
    method: *mut ffi::PyObject,
    instance: *mut ffi::PyObject,
    _class: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: `__get__`'s contract: attached; `instance` is an object, or null or None for the class.
    unsafe {
        if instance.is_null() || instance == ffi::Py_None() {
            return ffi::Py_NewRef(method);
        }
        PyMethod_New(method, instance)
    }
}

unsafe extern "C" fn get_attribute(
    slf: *mut ffi::PyObject,
    name: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: attached; both are valid; `template` is a function owned by `slf`.
    unsafe {
        // What the function has goes first: `__doc__` and `__class__` aside, the type has nothing
        // of its own that anybody looks for.
        let found = ffi::PyObject_GetAttr((*slf.cast::<AsyncMethod>()).template, name);
        if !found.is_null() {
            return found;
        }
        ffi::PyErr_Clear();
        ffi::PyObject_GenericGetAttr(slf, name)
    }
}

unsafe extern "C" fn traverse(
    slf: *mut ffi::PyObject,
    visit: ffi::visitproc,
    arg: *mut std::ffi::c_void,
) -> c_int {
    // SAFETY: traverse's contract; the type and the template are the references that `slf` owns.
    unsafe {
        let result = visit(ffi::Py_TYPE(slf).cast(), arg);
        if result != 0 {
            return result;
        }
        let template = (*slf.cast::<AsyncMethod>()).template;
        if template.is_null() {
            0
        } else {
            visit(template, arg)
        }
    }
}

unsafe extern "C" fn clear(slf: *mut ffi::PyObject) -> c_int {
    // SAFETY: as in `traverse`; the reference is given up once.
    unsafe {
        let method = slf.cast::<AsyncMethod>();
        let template = std::mem::replace(&mut (*method).template, ptr::null_mut());
        ffi::Py_XDECREF(template);
    }
    0
}

unsafe extern "C" fn dealloc(slf: *mut ffi::PyObject) {
    // SAFETY: the last reference is gone; the object was made by `PyObject_GC_New` of a heap type.
    unsafe {
        let class = ffi::Py_TYPE(slf);
        ffi::PyObject_GC_UnTrack(slf.cast());
        clear(slf);
        ffi::PyObject_GC_Del(slf.cast());
        ffi::Py_DECREF(class.cast());
    }
}

/// Makes the type of async methods, and one such method of each template.
pub struct AsyncMethods<'py>(Bound<'py, PyAny>);

impl<'py> AsyncMethods<'py> {
    /// The type.
    pub fn new(py: Python<'py>) -> PyResult<Self> {
        let mut members = [
            ffi::PyMemberDef {
                name: c"__vectorcalloffset__".as_ptr(),
                type_code: ffi::Py_T_PYSSIZET,
                offset: std::mem::offset_of!(AsyncMethod, vectorcall) as ffi::Py_ssize_t,
                flags: ffi::Py_READONLY,
                doc: ptr::null(),
            },
            // SAFETY: an all-zero member ends the list.
            unsafe { std::mem::zeroed() },
        ];
        let slot = |slot, pfunc| ffi::PyType_Slot { slot, pfunc };
        let mut slots = [
            slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
            slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut _),
            slot(ffi::Py_tp_descr_get, bind as *mut _),
            slot(ffi::Py_tp_getattro, get_attribute as *mut _),
            slot(ffi::Py_tp_traverse, traverse as *mut _),
            slot(ffi::Py_tp_clear, clear as *mut _),
            slot(ffi::Py_tp_dealloc, dealloc as *mut _),
            slot(0, ptr::null_mut()),
        ];
        let flags = ffi::Py_TPFLAGS_DEFAULT
            | ffi::Py_TPFLAGS_HAVE_GC
            | ffi::Py_TPFLAGS_HAVE_VECTORCALL
            | ffi::Py_TPFLAGS_METHOD_DESCRIPTOR
            | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION
            | ffi::Py_TPFLAGS_IMMUTABLETYPE;
        let mut spec = ffi::PyType_Spec {
            name: c"ironbus._core.AsyncMethod".as_ptr(),
            basicsize: size_of::<AsyncMethod>() as c_int,
            itemsize: 0,
            flags: flags as _,
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: attached; the specification outlives the call, which copies what it keeps.
        let class = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&mut spec))? };
        Ok(Self(class))
    }

    /// A method that looks like `template`, an `async def`, and calls `method`.
    pub fn make(
        &self,
        template: Bound<'py, PyAny>,
        method: NativeMethod,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = template.py();
        // SAFETY: attached; the object is of the type's size, and every field of it is written
        // before the collector is told of it.
        unsafe {
            let class = self.0.as_ptr().cast::<ffi::PyTypeObject>();
            let object: *mut ffi::PyObject = ffi::PyObject_GC_New(class);
            let object = Bound::from_owned_ptr_or_err(py, object)?;
            let raw = object.as_ptr().cast::<AsyncMethod>();
            (&raw mut (*raw).vectorcall).write(Some(call_method));
            (&raw mut (*raw).template).write(template.into_ptr());
            (&raw mut (*raw).method).write(method);
            ffi::PyObject_GC_Track(object.as_ptr().cast());
            Ok(object)
        }
    }
}
