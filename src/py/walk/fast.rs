//! The walk over exact builtins, on borrowed references: nothing is copied, counted or called.
//! It gives up at the first object that it does not know; it never raises.
//!
//! # Why borrowed references are safe here
//! The GIL is held from beginning to end (the module declares that it needs one), and nothing in
//! here runs Python code or drops a reference: reading exact `str`, `int`, `float`, `list`,
//! `tuple` and `dict` objects calls no method of theirs, and no object that the garbage collector
//! tracks is created, so it does not run either. (The two calls that may set an exception end
//! the walk.) No other thread, finaliser or callback can therefore change a container meanwhile,
//! and what a container holds lives as long as the container, which the caller keeps alive.
#![allow(unsafe_code)]

use std::os::raw::c_void;
use std::ptr::{addr_of, null_mut};
use std::slice;

use pyo3::ffi;
use pyo3::prelude::*;

use crate::engine::digest::{
    write_code_points, write_f64, write_i64, write_latin1, write_str, write_u64,
};

/// Deeper payloads go to the standard library. It also ends the walk of one that contains itself.
const MAX_DEPTH: usize = 128;

/// So many items are kept for the next payload of the thread.
const KEEP: usize = 1024;

/// The items of the dictionaries that are being walked, as a stack, so that sorting the keys of a
/// payload allocates nothing. Empty between walks.
#[derive(Default)]
pub struct Scratch(Vec<Item>);

impl Scratch {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether it is worth keeping.
    #[inline]
    pub fn is_small(&self) -> bool {
        self.0.capacity() <= KEEP
    }
}

/// One item of a dictionary.
#[derive(Clone, Copy)]
struct Item {
    /// The first eight bytes of the key, so that most comparisons are of two numbers.
    prefix: u64,
    /// The key in UTF-8, whose order is that of the code points.
    key: *const [u8],
    value: *mut ffi::PyObject,
}

impl Item {
    #[inline]
    fn new(key: &[u8], value: *mut ffi::PyObject) -> Self {
        let prefix = match key.first_chunk() {
            Some(first) => u64::from_be_bytes(*first),
            None => {
                key.iter()
                    .fold(0, |prefix, &byte| prefix << 8 | u64::from(byte))
                    << (64 - 8 * key.len().max(1))
            }
        };
        Self { prefix, key, value }
    }
}

/// Appends the JSON of `data`; false: this walk cannot, and the buffer holds a part of it.
#[inline]
pub fn write(data: &Bound<'_, PyAny>, out: &mut Vec<u8>, scratch: &mut Scratch) -> bool {
    // SAFETY: `Bound` proves that the GIL is held and keeps the root alive; see the module.
    let written = unsafe { value(data.as_ptr(), out, &mut scratch.0, 0) };
    scratch.0.clear();
    written
}

/// # Safety
/// The object is alive, and the rules of the module hold. The same goes for all below.
unsafe fn value(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
    items: &mut Vec<Item>,
    depth: usize,
) -> bool {
    // SAFETY: each access is to an object of the exact type that has just been checked.
    unsafe {
        let class = ffi::Py_TYPE(object);
        if class == type_of(addr_of!(ffi::PyUnicode_Type)) {
            string(object, out)
        } else if class == type_of(addr_of!(ffi::PyLong_Type)) {
            integer(object, out)
        } else if class == type_of(addr_of!(ffi::PyFloat_Type)) {
            let float = ffi::PyFloat_AS_DOUBLE(object);
            let finite = float.is_finite();
            if finite {
                write_f64(out, float);
            }
            finite
        } else if class == type_of(addr_of!(ffi::PyDict_Type)) {
            depth < MAX_DEPTH && dictionary(object, out, items, depth + 1)
        } else if class == type_of(addr_of!(ffi::PyList_Type)) {
            depth < MAX_DEPTH
                && array(out, items, depth + 1, |index| {
                    // SAFETY: the index is checked against the length of the same list.
                    (index < ffi::PyList_GET_SIZE(object))
                        .then(|| ffi::PyList_GET_ITEM(object, index))
                })
        } else if object == ffi::Py_None() {
            out.extend_from_slice(b"null");
            true
        } else if object == ffi::Py_True() {
            out.extend_from_slice(b"true");
            true
        } else if object == ffi::Py_False() {
            out.extend_from_slice(b"false");
            true
        } else if class == type_of(addr_of!(ffi::PyTuple_Type)) {
            depth < MAX_DEPTH
                && array(out, items, depth + 1, |index| {
                    // SAFETY: the index is checked against the length of the same tuple.
                    (index < ffi::PyTuple_GET_SIZE(object))
                        .then(|| ffi::PyTuple_GET_ITEM(object, index))
                })
        } else {
            false
        }
    }
}

#[inline(always)]
fn type_of(class: *const ffi::PyTypeObject) -> *mut ffi::PyTypeObject {
    class.cast_mut()
}

#[inline]
unsafe fn array(
    out: &mut Vec<u8>,
    items: &mut Vec<Item>,
    depth: usize,
    at: impl Fn(ffi::Py_ssize_t) -> Option<*mut ffi::PyObject>,
) -> bool {
    out.push(b'[');
    let mut index = 0;
    while let Some(element) = at(index) {
        if index > 0 {
            out.extend_from_slice(b", ");
        }
        // SAFETY: the element is held by the array, which is alive.
        if !unsafe { value(element, out, items, depth) } {
            return false;
        }
        index += 1;
    }
    out.push(b']');
    true
}

unsafe fn dictionary(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
    items: &mut Vec<Item>,
    depth: usize,
) -> bool {
    let start = items.len();
    let (mut position, mut key, mut element) = (0, null_mut(), null_mut());
    // SAFETY: an exact dict that nobody changes; what it yields is alive as long as it.
    while unsafe { ffi::PyDict_Next(object, &mut position, &mut key, &mut element) } != 0 {
        // SAFETY: as above. The UTF-8 of a key lives as long as the key.
        match unsafe { utf8(key) } {
            Some(key) => items.push(Item::new(key, element)),
            None => return false,
        }
    }
    // SAFETY: the keys' bytes are alive, see above.
    let bytes = |item: &Item| unsafe { &*item.key };
    items[start..].sort_unstable_by(|left, right| {
        left.prefix
            .cmp(&right.prefix)
            .then_with(|| bytes(left).cmp(bytes(right)))
    });

    let end = items.len();
    out.push(b'{');
    for index in start..end {
        if index > start {
            out.extend_from_slice(b", ");
        }
        let item = items[index];
        // SAFETY: `utf8` has returned these bytes as a `str`'s, and the value is alive.
        unsafe {
            write_str(out, std::str::from_utf8_unchecked(bytes(&item)));
            out.extend_from_slice(b": ");
            if !value(item.value, out, items, depth) {
                return false;
            }
        }
    }
    out.push(b'}');
    items.truncate(start);
    true
}

/// The UTF-8 of an exact `str` without surrogates.
#[inline]
unsafe fn utf8<'a>(object: *mut ffi::PyObject) -> Option<&'a [u8]> {
    // SAFETY: an exact `str`, checked first; its storage lives as long as it and never changes.
    unsafe {
        if ffi::Py_TYPE(object) != type_of(addr_of!(ffi::PyUnicode_Type)) {
            return None;
        }
        if ffi::PyUnicode_KIND(object) == ffi::PyUnicode_1BYTE_KIND {
            let bytes = units::<u8>(object);
            if bytes.is_ascii() {
                return Some(bytes);
            }
        }
        let mut length = 0;
        let start = ffi::PyUnicode_AsUTF8AndSize(object, &mut length);
        if start.is_null() {
            ffi::PyErr_Clear();
            return None;
        }
        Some(slice::from_raw_parts(start.cast(), length as usize))
    }
}

/// Writes from the string's own storage: asking for its UTF-8 would make it keep a copy.
#[inline]
unsafe fn string(object: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    // SAFETY: an exact `str`; its kind says what its storage consists of.
    unsafe {
        match ffi::PyUnicode_KIND(object) {
            ffi::PyUnicode_1BYTE_KIND => write_latin1(out, units(object)),
            ffi::PyUnicode_2BYTE_KIND => write_units::<u16>(object, out),
            ffi::PyUnicode_4BYTE_KIND => write_units::<u32>(object, out),
            _ => return false,
        }
    }
    true
}

#[cold]
unsafe fn write_units<T: Copy + Into<u32> + 'static>(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
) {
    // SAFETY: the caller has checked the kind.
    write_code_points(
        out,
        unsafe { units::<T>(object) }
            .iter()
            .map(|&unit| unit.into()),
    );
}

#[inline(always)]
unsafe fn units<'a, T>(object: *mut ffi::PyObject) -> &'a [T] {
    // SAFETY: the storage of a `str` whose kind is that of `T` is so many aligned `T`.
    unsafe {
        let start: *const c_void = ffi::PyUnicode_DATA(object);
        slice::from_raw_parts(start.cast(), ffi::PyUnicode_GET_LENGTH(object) as usize)
    }
}

#[inline]
unsafe fn integer(object: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    let mut overflow = 0;
    // SAFETY: an exact `int`, of which these two call no method.
    unsafe {
        let value = ffi::PyLong_AsLongLongAndOverflow(object, &mut overflow);
        if overflow == 0 {
            write_i64(out, value);
            return true;
        }
        if overflow > 0 {
            let value = ffi::PyLong_AsUnsignedLongLong(object);
            if ffi::PyErr_Occurred().is_null() {
                write_u64(out, value);
                return true;
            }
            ffi::PyErr_Clear();
        }
    }
    false
}
