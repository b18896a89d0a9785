//! From a Python payload to canonical JSON: what `json.dumps(data, sort_keys=True,
//! allow_nan=False)` returns. Exact builtins are written by a walk of our own ([`fast`]);
//! as soon as it meets anything else the whole payload goes to the standard library, so that
//! the result, and what is refused, is the standard library's by construction.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::cell::GilCell;
use super::errors::Error;
use super::once::Once;
use super::refusal;
use crate::engine::digest::{Digest, Hashing};
use fast::Scratch;

mod fast;
mod shapes;

/// More than this is not kept for the next payload.
const KEEP: usize = 64 * 1024;

// Taken out while they are used, so that Python code which is called meanwhile, and comes back here,
// finds none instead of those that are in use.
static BUFFER: GilCell<Vec<u8>> = GilCell::new(Vec::new());
static SCRATCH: GilCell<Option<Box<Scratch>>> = GilCell::new(None);

/// SHA-256 of the UTF-8 of `f"{type}:{json.dumps(data, sort_keys=True, allow_nan=False)}"`: the
/// identity of an event's content.
///
/// The caller has checked that the type is a `str`. The walk accepts what `json.dumps` accepts
/// with its whole stack before it; how deep that is depends on the interpreter.
#[inline(never)]
pub fn content_digest(
    py: Python<'_>,
    type_: &Bound<'_, PyString>,
    data: &Bound<'_, PyAny>,
) -> PyResult<Digest> {
    let mut buffer = BUFFER.replace(py, Vec::new());
    buffer.clear();
    let mut hashing = Hashing::default();
    let digest = write_type(py, type_, &mut buffer)
        .and_then(|()| write_json(py, data, &mut buffer, &mut hashing))
        .map(|()| hashing.finish(&mut buffer));
    if buffer.capacity() <= KEEP {
        BUFFER.replace(py, buffer);
    }
    digest
}

#[inline]
fn write_type(py: Python<'_>, type_: &Bound<'_, PyString>, buffer: &mut Vec<u8>) -> PyResult<()> {
    // The text counts, by which the event is routed too; what an f-string makes of an enumeration
    // is another thing in each version of Python.
    match type_.to_str() {
        Ok(text) => {
            buffer.extend_from_slice(text.as_bytes());
            buffer.push(b':');
            Ok(())
        }
        Err(_) => Err(Error::InvalidType.exception(
            py,
            "type",
            "type: a lone surrogate has no UTF-8 form; use printable text",
        )),
    }
}

/// Appends the canonical JSON of a payload, and hashes some of it.
#[inline]
fn write_json(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    buffer: &mut Vec<u8>,
    hashing: &mut Hashing,
) -> PyResult<()> {
    let start = buffer.len();
    let mut scratch = SCRATCH.replace(py, None).unwrap_or_default();
    let written = fast::write(data, buffer, hashing, &mut scratch, false);
    SCRATCH.replace(py, Some(scratch));
    if written {
        return Ok(());
    }
    buffer.truncate(start);
    *hashing = Hashing::default();
    write_by_standard_library(py, data, buffer)
}

/// The same for what JSON gives back as it is; anything else is refused with its path.
pub fn write_round_trip(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    buffer: &mut Vec<u8>,
) -> PyResult<()> {
    static CHECK: Once<Py<PyAny>> = Once::new();
    let start = buffer.len();
    let mut scratch = SCRATCH.replace(py, None).unwrap_or_default();
    let mut hashing = Hashing::default();
    let written = fast::write(data, buffer, &mut hashing, &mut scratch, true);
    SCRATCH.replace(py, Some(scratch));
    if written {
        return Ok(());
    }
    buffer.truncate(start);
    write_by_standard_library(py, data, buffer)?;
    let text = String::from_utf8_lossy(&buffer[start..]);
    CHECK
        .import(py, "ironbus._durable", "check_round_trip")?
        .call1((data, text))
        .map(drop)
}

#[cold]
fn write_by_standard_library(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    buffer: &mut Vec<u8>,
) -> PyResult<()> {
    let text = encode(py)?
        .call1((data,))
        .map_err(|error| refusal::explain(data, error))?;
    buffer.extend_from_slice(text.cast::<PyString>()?.to_str()?.as_bytes());
    Ok(())
}

/// What `json.dumps` makes for each of its calls, made once.
fn encode(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static ENCODE: Once<Py<PyAny>> = Once::new();
    let encode = ENCODE.get_or_try_init(py, || {
        let options = PyDict::new(py);
        options.set_item("sort_keys", true)?;
        options.set_item("allow_nan", false)?;
        let encoder = py
            .import("json")?
            .getattr("JSONEncoder")?
            .call((), Some(&options))?;
        encoder.getattr("encode").map(Bound::unbind)
    })?;
    Ok(encode.bind(py))
}
