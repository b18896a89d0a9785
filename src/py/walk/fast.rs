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

use super::shapes::{Shapes, Trace};
use crate::engine::digest::{
    Hashing, write_code_points, write_f64, write_i64, write_latin1, write_str, write_u64,
};

/// Deeper payloads go to the standard library. It also ends the walk of one that contains itself.
const MAX_DEPTH: usize = 128;

/// So many entries are kept for the next payload of the thread.
const KEEP: usize = 1024;

/// What one walk leaves for the next: memory, so that walking a payload allocates
/// nothing, and shapes. The stacks are empty between walks.
#[derive(Default)]
pub struct Scratch {
    /// The entries of the dictionaries that are being walked.
    entries: Vec<Entry>,
    /// The same, for sorting them.
    items: Vec<Item>,
    shapes: Shapes,
}

// SAFETY: only what is between walks goes from thread to thread, in which no pointer is left.
unsafe impl Send for Scratch {}

/// A walk under way.
struct Walk<'a> {
    entries: &'a mut Vec<Entry>,
    items: &'a mut Vec<Item>,
    shapes: &'a Shapes,
    hashing: &'a mut Hashing,
    /// A dictionary whose shape shall be remembered for the next time.
    new: Option<*mut ffi::PyObject>,
    /// Gives up at a tuple, which JSON gives back as a list.
    strict: bool,
}

/// An entry of a dictionary.
#[derive(Clone, Copy)]
pub struct Entry {
    pub key: *mut ffi::PyObject,
    pub value: *mut ffi::PyObject,
}

/// An entry whose key is a `str`.
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

/// Appends the JSON of `data`, and hashes some of the text; false: this walk cannot, and the buffer
/// holds a part of it.
#[inline]
pub fn write(
    data: &Bound<'_, PyAny>,
    out: &mut Vec<u8>,
    hashing: &mut Hashing,
    scratch: &mut Scratch,
    strict: bool,
) -> bool {
    let Scratch {
        entries,
        items,
        shapes,
    } = scratch;
    let mut walk = Walk {
        entries,
        items,
        shapes,
        hashing,
        new: None,
        strict,
    };
    // SAFETY: `Bound` proves that the GIL is held and keeps the root alive; see the module.
    let written = unsafe { value(data.as_ptr(), out, &mut walk, 0) };
    let new = walk.new;
    if let (true, Some(dictionary)) = (written, new) {
        entries.clear();
        // SAFETY: a walk to the end has changed nothing, so that the dictionary is still alive.
        unsafe {
            let trace = list(dictionary, entries);
            shapes.keep(data.py(), entries, trace);
        }
    }
    entries.clear();
    items.clear();
    entries.shrink_to(KEEP);
    items.shrink_to(KEEP);
    written
}

/// # Safety
/// The object is alive, and the rules of the module hold. The same goes for all below.
#[inline(always)]
unsafe fn value(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
    walk: &mut Walk<'_>,
    depth: usize,
) -> bool {
    // SAFETY: each access is to an object of the exact type that has just been checked.
    unsafe {
        let class = ffi::Py_TYPE(object);
        if class == type_of(addr_of!(ffi::PyUnicode_Type)) {
            !(walk.strict && has_surrogates(object)) && string(object, out)
        } else if class == type_of(addr_of!(ffi::PyLong_Type)) {
            integer(object, out)
        } else if class == type_of(addr_of!(ffi::PyFloat_Type)) {
            float(object, out)
        } else {
            other(object, out, walk, depth)
        }
    }
}

/// A value of a type that is not one of the most frequent.
#[inline(never)]
unsafe fn other(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
    walk: &mut Walk<'_>,
    depth: usize,
) -> bool {
    // SAFETY: as in `value`.
    unsafe {
        let class = ffi::Py_TYPE(object);
        if class == type_of(addr_of!(ffi::PyDict_Type)) {
            depth < MAX_DEPTH && dictionary(object, out, walk, depth + 1)
        } else if class == type_of(addr_of!(ffi::PyList_Type)) {
            depth < MAX_DEPTH
                && array(out, walk, depth + 1, |index| {
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
            !walk.strict
                && depth < MAX_DEPTH
                && array(out, walk, depth + 1, |index| {
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
    walk: &mut Walk<'_>,
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
        if !unsafe { value(element, out, walk, depth) } {
            return false;
        }
        walk.hashing.advance(out);
        index += 1;
    }
    out.push(b']');
    true
}

unsafe fn dictionary(
    object: *mut ffi::PyObject,
    out: &mut Vec<u8>,
    walk: &mut Walk<'_>,
    depth: usize,
) -> bool {
    let start = walk.entries.len();
    // SAFETY: an exact dict.
    let trace = unsafe { list(object, walk.entries) };
    let written = match walk.shapes.find(&walk.entries[start..], trace) {
        Some(steps) => steps.iter().all(|step| {
            walk.hashing.advance(out);
            step.write(out);
            let element = walk.entries[start + usize::from(step.value)].value;
            // SAFETY: the value is held by the dictionary, which is alive.
            unsafe { value(element, out, walk, depth) }
        }),
        // SAFETY: as above, and so are the keys.
        None => unsafe {
            if walk.shapes.would_keep(&walk.entries[start..], trace) {
                walk.new = Some(object);
            }
            sorted(start, out, walk, depth)
        },
    };
    out.push(b'}');
    walk.entries.truncate(start);
    written
}

/// Appends the entries of an exact dict.
#[inline]
unsafe fn list(object: *mut ffi::PyObject, entries: &mut Vec<Entry>) -> Trace {
    let (mut position, mut key, mut value) = (0, null_mut(), null_mut());
    let mut trace = Trace::START;
    // SAFETY: an exact dict that nobody changes; what it yields is alive as long as it.
    while unsafe { ffi::PyDict_Next(object, &mut position, &mut key, &mut value) } != 0 {
        entries.push(Entry { key, value });
        trace = trace.then(key);
    }
    trace
}

/// Writes a dictionary, whose entries begin at `start`, up to its closing brace.
unsafe fn sorted(start: usize, out: &mut Vec<u8>, walk: &mut Walk<'_>, depth: usize) -> bool {
    let first = walk.items.len();
    for entry in &walk.entries[start..] {
        // SAFETY: the key is alive. Its UTF-8 lives as long as it.
        match unsafe { utf8(entry.key) } {
            Some(key) => walk.items.push(Item::new(key, entry.value)),
            None => return false,
        }
    }
    // SAFETY: the keys' bytes are alive, see above.
    let bytes = |item: &Item| unsafe { &*item.key };
    walk.items[first..].sort_unstable_by(|left, right| {
        left.prefix
            .cmp(&right.prefix)
            .then_with(|| bytes(left).cmp(bytes(right)))
    });

    let end = walk.items.len();
    out.push(b'{');
    for index in first..end {
        walk.hashing.advance(out);
        if index > first {
            out.extend_from_slice(b", ");
        }
        let item = walk.items[index];
        // SAFETY: `utf8` has returned these bytes as a `str`'s, and the value is alive.
        unsafe {
            write_str(out, std::str::from_utf8_unchecked(bytes(&item)));
            out.extend_from_slice(b": ");
            if !value(item.value, out, walk, depth) {
                return false;
            }
        }
    }
    walk.items.truncate(first);
    true
}

/// The UTF-8 of an exact `str` without surrogates.
///
/// # Safety
/// The object is alive, and so is what is returned as long as it.
#[inline]
pub unsafe fn utf8<'a>(object: *mut ffi::PyObject) -> Option<&'a [u8]> {
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
#[inline(never)]
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

/// Two of them side by side come back as one character.
unsafe fn has_surrogates(object: *mut ffi::PyObject) -> bool {
    let is_one = |unit: u32| (0xD800..0xE000).contains(&unit);
    // SAFETY: as in `string`.
    unsafe {
        match ffi::PyUnicode_KIND(object) {
            ffi::PyUnicode_2BYTE_KIND => units::<u16>(object).iter().any(|&it| is_one(it.into())),
            ffi::PyUnicode_4BYTE_KIND => units::<u32>(object).iter().any(|&it| is_one(it)),
            _ => false,
        }
    }
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

#[inline(never)]
unsafe fn float(object: *mut ffi::PyObject, out: &mut Vec<u8>) -> bool {
    // SAFETY: an exact `float`.
    let value = unsafe { ffi::PyFloat_AS_DOUBLE(object) };
    let finite = value.is_finite();
    if finite {
        write_f64(out, value);
    }
    finite
}

#[inline(never)]
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
