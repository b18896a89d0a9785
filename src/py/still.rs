//! Looking at Python objects without taking references to them.
//!
//! A payload is made of many small objects, and a content key looks at each of them once.
//! Taking and giving back a reference to each costs a third of that look, so this module
//! borrows them instead, which is sound for as long as the payload holds still: see
//! [`Still::new`].
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::marker::PhantomData;

use pyo3::ffi;
use pyo3::prelude::*;

/// An object that cannot change or go away for the lifetime `'a`, nor can what it contains.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Still<'a> {
    object: *mut ffi::PyObject,
    lifetime: PhantomData<&'a PyAny>,
}

/// What an object is. Only exact builtins are anything but `Other`.
pub enum Kind<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer that fits.
    Signed(i64),
    /// An integer above all of those that still fits.
    Unsigned(u64),
    /// A float.
    Float(f64),
    /// A string without lone surrogates.
    Str(&'a str),
    /// A list's or a tuple's items.
    Items(&'a [Still<'a>]),
    /// A dictionary.
    Dict(StillDict<'a>),
    /// Anything else. An exception may be set in the interpreter: see [`Still::new`].
    Other,
}

/// An exact `dict`.
#[derive(Clone, Copy)]
pub struct StillDict<'a>(Still<'a>);

/// Runs `look` on an object, and whatever it contains, while nobody can change it.
///
/// # Safety
///
/// Until `look` returns, nothing on this thread may run Python code, drop a Python object, or
/// give up the GIL, apart from the functions of this module; and once one of them has answered
/// [`Kind::Other`], `look` may not ask for any more. All the functions here keep to that: they
/// read fields, and allocate at most plain memory that the garbage collector does not track.
/// Only the way to `Other` may make an exception, and with it set off a collection; what is
/// left of the exception is cleared when `look` is done.
pub unsafe fn hold_still<R>(object: &Bound<'_, PyAny>, look: impl FnOnce(Still<'_>) -> R) -> R {
    let result = look(Still {
        object: object.as_ptr(),
        lifetime: PhantomData,
    });
    // SAFETY: the GIL is held, as the existence of a `Bound` shows.
    unsafe {
        if !ffi::PyErr_Occurred().is_null() {
            ffi::PyErr_Clear();
        }
    }
    result
}

impl<'a> Still<'a> {
    /// What this is.
    #[inline]
    pub fn kind(self) -> Kind<'a> {
        let object = self.object;
        // SAFETY: the object is alive and the GIL is held (`hold_still`). Each branch has
        // checked the exact type that its accessor expects.
        unsafe {
            let class = ffi::Py_TYPE(object);
            if class == &raw mut ffi::PyUnicode_Type {
                self.str().map_or(Kind::Other, Kind::Str)
            } else if class == &raw mut ffi::PyLong_Type {
                self.int()
            } else if class == &raw mut ffi::PyFloat_Type {
                Kind::Float(ffi::PyFloat_AS_DOUBLE(object))
            } else if class == &raw mut ffi::PyDict_Type {
                Kind::Dict(StillDict(self))
            } else if class == &raw mut ffi::PyList_Type {
                let list = object.cast::<ffi::PyListObject>();
                Kind::Items(items((*list).ob_item, ffi::PyList_GET_SIZE(object)))
            } else if class == &raw mut ffi::PyTuple_Type {
                let tuple = object.cast::<ffi::PyTupleObject>();
                let first = (&raw const (*tuple).ob_item).cast();
                Kind::Items(items(first, ffi::PyTuple_GET_SIZE(object)))
            } else if object == ffi::Py_None() {
                Kind::None
            } else if class == &raw mut ffi::PyBool_Type {
                Kind::Bool(object == ffi::Py_True())
            } else {
                Kind::Other
            }
        }
    }

    /// The text of an exact `str`.
    ///
    /// # Safety
    ///
    /// It is one.
    #[inline]
    unsafe fn str(self) -> Option<&'a str> {
        let mut size = 0;
        // SAFETY: the bytes belong to the string object, which lives for `'a`, and CPython
        // vouches that they are UTF-8. Null, with an exception, for lone surrogates.
        unsafe {
            let bytes = ffi::PyUnicode_AsUTF8AndSize(self.object, &mut size);
            if bytes.is_null() {
                return None;
            }
            let bytes = std::slice::from_raw_parts(bytes.cast::<u8>(), size as usize);
            Some(std::str::from_utf8_unchecked(bytes))
        }
    }

    /// # Safety
    ///
    /// It is an exact `int`.
    #[inline]
    unsafe fn int(self) -> Kind<'a> {
        let mut overflow: c_int = 0;
        // SAFETY: it is an int, so no `__index__` is called. The second conversion sets an
        // exception if the number does not fit, and then returns -1, which no number above
        // i64::MAX but u64::MAX itself could mean.
        unsafe {
            let signed = ffi::PyLong_AsLongLongAndOverflow(self.object, &mut overflow);
            if overflow == 0 {
                return Kind::Signed(signed);
            }
            if overflow < 0 {
                return Kind::Other;
            }
            let unsigned = ffi::PyLong_AsUnsignedLongLong(self.object);
            if unsigned == u64::MAX && !ffi::PyErr_Occurred().is_null() {
                return Kind::Other;
            }
            Kind::Unsigned(unsigned)
        }
    }
}

/// # Safety
///
/// `first` points to `size` objects that live, and stay there, for `'a`.
#[inline]
unsafe fn items<'a>(first: *const *mut ffi::PyObject, size: ffi::Py_ssize_t) -> &'a [Still<'a>] {
    const { assert!(size_of::<Still<'_>>() == size_of::<*mut ffi::PyObject>()) };
    if size == 0 {
        // An empty list has no array.
        return &[];
    }
    // SAFETY: the caller's word, and a `Still` is a pointer and nothing else.
    unsafe { std::slice::from_raw_parts(first.cast(), size as usize) }
}

impl<'a> StillDict<'a> {
    /// Hands over each key and value, until one key is not an exact `str` without lone
    /// surrogates. Whether there was none such.
    #[inline]
    pub fn each(self, mut entry: impl FnMut(&'a str, Still<'a>)) -> bool {
        let mut position = 0;
        let mut key = std::ptr::null_mut();
        let mut value = std::ptr::null_mut();
        let still = |object| Still {
            object,
            lifetime: PhantomData,
        };
        // SAFETY: an exact dict that nobody changes meanwhile; key and value are borrowed
        // from it.
        unsafe {
            while ffi::PyDict_Next(self.0.object, &mut position, &mut key, &mut value) != 0 {
                if ffi::PyUnicode_CheckExact(key) == 0 {
                    return false;
                }
                let Some(key) = still(key).str() else {
                    return false;
                };
                entry(key, still(value));
            }
        }
        true
    }
}
