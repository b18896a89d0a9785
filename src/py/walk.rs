//! From a payload to its canonical JSON and its content key.
//!
//! The canonical JSON is what `json.dumps(data, sort_keys=True, allow_nan=False)` returns.
//! Payloads of exact builtins are written here; anything rare in one (subclasses, keys that
//! are not strings, big integers, lone surrogates, NaN, great depth, cycles) sends the whole
//! of it to `json.dumps` itself, so what comes out, and what is refused, is the standard
//! library's by construction.
//!
//! The GIL is held throughout, and the walk here runs no Python code, so nobody can change a
//! list or dictionary while it is read. That does not hold for `json.dumps`, which takes care
//! of itself; nothing here is borrowed while it runs, and it may come back to this module.

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyString};

use super::errors::Error;
use super::refusal;
use super::still::{Kind, Still, hold_still};
use crate::engine::digest::{Digest, write_f64, write_i64, write_str, write_u64};

/// Containers within containers up to this depth are written here.
const DEPTH: usize = 128;

/// A thread keeps its buffers for the next payload, unless they have become larger than this.
const KEEP: usize = 1 << 16;

type Entry<'a> = (&'a str, Still<'a>);

#[derive(Default)]
struct Scratch {
    bytes: Vec<u8>,
    /// Always empty: kept for its memory.
    entries: Vec<Entry<'static>>,
}

thread_local! {
    /// Taken out while in use, so that there is no borrow that somebody could run into.
    static SCRATCH: Cell<Scratch> = const {
        Cell::new(Scratch { bytes: Vec::new(), entries: Vec::new() })
    };
}

/// SHA-256 of the UTF-8 of `f"{type}:{json.dumps(data, sort_keys=True, allow_nan=False)}"`.
/// The type is the text of the string, also where a subclass formats itself otherwise.
#[inline]
pub fn content_digest(
    py: Python<'_>,
    event_type: &Bound<'_, PyString>,
    data: &Bound<'_, PyAny>,
) -> PyResult<Digest> {
    let Ok(text) = event_type.to_str() else {
        return Err(not_utf8(py));
    };
    let mut scratch = SCRATCH.try_with(Cell::take).unwrap_or_default();
    scratch.bytes.clear();
    scratch.bytes.extend_from_slice(text.as_bytes());
    scratch.bytes.push(b':');
    let written = write_builtins(&mut scratch, data);
    let digest = written.then(|| Digest::of(&scratch.bytes));
    if scratch.bytes.capacity() <= KEEP && scratch.entries.capacity() <= KEEP {
        // At the thread's exit there is nowhere left to keep it.
        let _ = SCRATCH.try_with(|kept| kept.set(scratch));
    }
    match digest {
        Some(digest) => Ok(digest),
        None => by_json_dumps(py, text, data),
    }
}

#[cold]
fn not_utf8(py: Python<'_>) -> PyErr {
    let text = "type contains a lone surrogate, which UTF-8 cannot hold; use printable text";
    Error::InvalidType.exception(py, "type", text)
}

#[cold]
fn by_json_dumps(py: Python<'_>, event_type: &str, data: &Bound<'_, PyAny>) -> PyResult<Digest> {
    static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let options = PyDict::new(py);
    options.set_item("sort_keys", true)?;
    options.set_item("allow_nan", false)?;
    let json = DUMPS
        .import(py, "json", "dumps")?
        .call((data,), Some(&options))
        .map_err(|error| refusal::explain(data, error))?;
    let json = json.cast::<PyString>()?.to_str()?;
    Ok(Digest::of_parts(&[
        event_type.as_bytes(),
        b":",
        json.as_bytes(),
    ]))
}

/// Appends the JSON; false, with a part of it appended, if `json.dumps` must do it.
#[inline]
#[allow(unsafe_code)]
fn write_builtins(scratch: &mut Scratch, data: &Bound<'_, PyAny>) -> bool {
    // SAFETY: the walk calls nothing but the functions of `still` and the writers of the
    // engine, and is over at the first thing that is not an exact builtin.
    unsafe {
        hold_still(data, |data| {
            let mut walk = Walk {
                out: &mut scratch.bytes,
                entries: recycled(std::mem::take(&mut scratch.entries)),
            };
            let written = walk.value(data, DEPTH);
            scratch.entries = recycled(walk.entries);
            written
        })
    }
}

/// The same memory for entries of another lifetime.
#[inline]
fn recycled<'a>(mut entries: Vec<Entry<'_>>) -> Vec<Entry<'a>> {
    entries.clear();
    entries
        .into_iter()
        .map(|_| unreachable!("it is empty"))
        .collect()
}

struct Walk<'a, 'o> {
    out: &'o mut Vec<u8>,
    /// A stack: those of the dictionaries that the walk is in the middle of.
    entries: Vec<Entry<'a>>,
}

impl<'a> Walk<'a, '_> {
    fn value(&mut self, object: Still<'a>, depth: usize) -> bool {
        match object.kind() {
            Kind::Str(text) => write_str(self.out, text),
            Kind::Signed(number) => write_i64(self.out, number),
            Kind::Unsigned(number) => write_u64(self.out, number),
            Kind::Float(number) => return write_f64(self.out, number),
            Kind::None => self.out.extend_from_slice(b"null"),
            Kind::Bool(true) => self.out.extend_from_slice(b"true"),
            Kind::Bool(false) => self.out.extend_from_slice(b"false"),
            Kind::Items(_) | Kind::Dict(_) if depth == 0 => return false,
            Kind::Items(items) => return self.items(items, depth - 1),
            Kind::Dict(dict) => {
                let first = self.entries.len();
                return dict.each(|key, value| self.entries.push((key, value)))
                    && self.sorted(first, depth - 1);
            }
            Kind::Other => return false,
        }
        true
    }

    fn items(&mut self, items: &'a [Still<'a>], depth: usize) -> bool {
        self.out.push(b'[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.extend_from_slice(b", ");
            }
            if !self.value(*item, depth) {
                return false;
            }
        }
        self.out.push(b']');
        true
    }

    /// The entries from the `first` on, in the order of their keys' code points, which is that
    /// of their bytes.
    fn sorted(&mut self, first: usize, depth: usize) -> bool {
        self.entries[first..].sort_unstable_by(|left, right| left.0.cmp(right.0));
        self.out.push(b'{');
        for index in first..self.entries.len() {
            let (key, value) = self.entries[index];
            if index > first {
                self.out.extend_from_slice(b", ");
            }
            write_str(self.out, key);
            self.out.extend_from_slice(b": ");
            if !self.value(value, depth) {
                return false;
            }
        }
        self.out.push(b'}');
        self.entries.truncate(first);
        true
    }
}
