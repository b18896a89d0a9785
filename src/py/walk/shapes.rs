//! Dictionaries that look alike. One line of a program makes dictionaries with the same key objects
//! in the same order again and again: what their keys look like in JSON, and in which order they
//! stand there, is worked out once.
//!
//! Only interned keys are remembered, which those in a program's text are. Keys that were read from
//! a file or a socket are new objects each time, and would only push others out.

#![allow(unsafe_code)]

use std::cell::Cell;

use pyo3::ffi;
use pyo3::prelude::*;

use super::fast::{Entry, utf8};
use crate::engine::digest::{is_plain, write_start};

/// So many shapes are remembered, each in the one place that its keys choose.
const SHAPES: usize = 64;
/// Larger dictionaries are not looked up.
const MOST_KEYS: usize = 32;
/// What stands before a value: a separator of two characters, the quoted key, and a colon.
const TEXT: usize = 46;
const LONGEST_KEY: usize = TEXT - 6;

/// See the module.
pub struct Shapes([Option<Shape>; SHAPES]);

/// The keys of a dictionary in their order.
pub struct Shape {
    /// Held, so that no other object can come to have the address of one of them.
    keys: Vec<Py<PyAny>>,
    /// In the order of the JSON.
    steps: Vec<Step>,
    /// Not met since it was last in the way of another.
    idle: Cell<bool>,
}

/// A value of a dictionary, and what stands before it.
pub struct Step {
    text: [u8; TEXT],
    length: u8,
    /// Its place in the dictionary.
    pub value: u8,
}

impl Step {
    /// The parts are not longer than the text may be, nor the place greater than the most.
    fn new(parts: &[&[u8]], value: usize) -> Self {
        let parts = parts.concat();
        let mut text = [0; TEXT];
        text[..parts.len()].copy_from_slice(&parts);
        Self {
            text,
            length: parts.len() as u8,
            value: value as u8,
        }
    }

    /// Writes what stands before the value.
    #[inline(always)]
    pub fn write(&self, out: &mut Vec<u8>) {
        write_start(out, &self.text, self.length.into());
    }
}

/// A number that dictionaries of the same keys in the same order share.
#[derive(Clone, Copy)]
pub struct Trace(u64);

impl Trace {
    /// Of no key.
    pub const START: Self = Self(0);

    /// With one more key.
    #[inline(always)]
    pub fn then(self, key: *mut ffi::PyObject) -> Self {
        Self((self.0.rotate_left(29) ^ key.addr() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    #[inline(always)]
    fn place(self) -> usize {
        (self.0 >> 32) as usize % SHAPES
    }
}

impl Default for Shapes {
    fn default() -> Self {
        Self([const { None }; SHAPES])
    }
}

impl Shapes {
    /// The steps through a dictionary, if its shape is remembered.
    #[inline]
    pub fn find(&self, entries: &[Entry], trace: Trace) -> Option<&[Step]> {
        let shape = self.0[trace.place()].as_ref()?;
        let keys = shape.keys.iter().map(Py::as_ptr);
        if shape.keys.len() == entries.len() && keys.eq(entries.iter().map(|entry| entry.key)) {
            shape.idle.set(false);
            Some(&shape.steps)
        } else {
            None
        }
    }

    /// Whether it is worth remembering the shape of a dictionary that was not found. One that is in
    /// use stays the first time that another wants its place, or the two would push each other out
    /// by turns.
    ///
    /// # Safety
    /// The keys are alive.
    pub unsafe fn would_keep(&self, entries: &[Entry], trace: Trace) -> bool {
        (1..=MOST_KEYS).contains(&entries.len())
            // SAFETY: they are alive.
            && entries.iter().all(|entry| unsafe { is_worth_keeping(entry.key) })
            && self.0[trace.place()]
                .as_ref()
                .is_none_or(|shape| shape.idle.replace(true))
    }

    /// Remembers the shape of a dictionary after [`Shapes::would_keep`].
    ///
    /// # Safety
    /// The keys are alive.
    pub unsafe fn keep(&mut self, py: Python<'_>, entries: &[Entry], trace: Trace) {
        // SAFETY: they are alive.
        let text = |entry: &Entry| unsafe { utf8(entry.key) }.unwrap_or_default();
        let mut order: Vec<_> = entries.iter().enumerate().collect();
        order.sort_unstable_by_key(|(_, entry)| text(entry));
        let steps = order.into_iter().enumerate().map(|(nth, (value, entry))| {
            let before: &[u8] = if nth == 0 { b"{\"" } else { b", \"" };
            Step::new(&[before, text(entry), b"\": "], value)
        });
        let shape = Shape {
            steps: steps.collect(),
            // SAFETY: as above; the thread is attached.
            keys: (entries.iter())
                .map(|entry| unsafe { Bound::from_borrowed_ptr(py, entry.key).unbind() })
                .collect(),
            idle: Cell::new(false),
        };
        let before = self.0[trace.place()].replace(shape);
        let keys = before.into_iter().flat_map(|shape| shape.keys);
        keys.for_each(|key| key.drop_ref(py));
    }
}

/// Whether the key is one of a program's text, and short, and stands in JSON as it is.
///
/// # Safety
/// The object is alive.
unsafe fn is_worth_keeping(key: *mut ffi::PyObject) -> bool {
    // SAFETY: it is alive, and `utf8` makes sure that it is an exact `str`.
    unsafe {
        utf8(key).is_some_and(|text| text.len() <= LONGEST_KEY && is_plain(text))
            && is_interned(key)
    }
}

/// Whether the interpreter keeps one `str` for all of the same text.
///
/// # Safety
/// The object is a `str`.
unsafe fn is_interned(key: *mut ffi::PyObject) -> bool {
    // The lowest two bits say how: not at all, while it is used, or for ever. (A version that puts
    // them elsewhere would only have the wrong shapes remembered.)
    // SAFETY: every `str` begins like this.
    unsafe { (*key.cast::<ffi::PyASCIIObject>()).state & 0b11 != 0 }
}
