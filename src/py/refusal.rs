//! Why `json.dumps` refused a payload, and where in it: the path of the field, never a value.
//!
//! The standard library does not say where. This walk looks at the payload again, in the same
//! order, until it finds the first thing that the encoder cannot have liked. It runs Python
//! code as the encoder does (`items()` of a dictionary's subclass, the comparison of keys), so
//! everything that it walks over is a copy, and it may find nothing.

use std::collections::HashSet;

use pyo3::exceptions::{PyException, PyMemoryError, PyRecursionError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};

use super::errors::Error;

/// How much of a key a path shows, and how long a path gets, in characters.
const KEY: usize = 40;
const PATH: usize = 200;

/// Where the search for something too deep is content, and where any search gives up.
const TOO_DEEP: usize = 128;
const GIVE_UP: usize = 10_000;

const ROOT: &str = "data";

const NOT_FINITE: &str =
    "is NaN or infinite, which JSON cannot hold; send None or a string instead";
const CYCLE: &str = "contains itself; send a copy without the reference back";
const DEEP: &str =
    "is nested deeper than the interpreter can walk; flatten it, or send a reference to it";

/// What is wrong with a field. The text follows the field's path.
struct Fault {
    class: Error,
    text: String,
}

impl Fault {
    fn new(class: Error, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { class, text }
    }

    fn exception(self, py: Python<'_>, path: &str) -> PyErr {
        self.class
            .exception(py, path, format!("{path} {}", self.text))
    }
}

/// The exception of ours for what `json.dumps` raised. It is an instance of the same builtin
/// category. The original is not its cause, because its text may contain values.
pub fn explain(data: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let py = data.py();
    if !error.is_instance_of::<PyException>(py) || error.is_instance_of::<PyMemoryError>(py) {
        return error;
    }
    let too_deep = error.is_instance_of::<PyRecursionError>(py);
    let mut search = Search::new(too_deep);
    if let Some(fault) = search.run(data.clone()) {
        let only_value_error = matches!(fault.class, Error::PayloadNotFinite | Error::PayloadCycle);
        if !(only_value_error && error.is_instance_of::<PyTypeError>(py)) {
            return fault.exception(py, &search.path());
        }
    }
    closest(&error, py).exception(py, ROOT)
}

/// When the payload looks fine by now, or never was at fault.
fn closest(error: &PyErr, py: Python<'_>) -> Fault {
    if error.is_instance_of::<PyRecursionError>(py) {
        return Fault::new(Error::PayloadTooDeep, DEEP);
    }
    if error.is_instance_of::<PyValueError>(py) {
        let text = error.value(py).to_string();
        if text.starts_with("Circular") {
            return Fault::new(Error::PayloadCycle, CYCLE);
        }
        if text.starts_with("Out of range float") {
            return Fault::new(Error::PayloadNotFinite, NOT_FINITE);
        }
    }
    let name = error.get_type(py).name().map_or_else(
        |_| "an error".into(),
        |name| cut(&name.to_string_lossy(), KEY),
    );
    Fault::new(
        Error::PayloadNotEncodable,
        format!("was refused by json.dumps ({name}); send plain dicts, lists, strings and numbers"),
    )
}

/// A container that the search is in the middle of.
struct Frame<'py> {
    object: usize,
    entries: Entries<'py>,
    /// The entry that is being looked at, and one more.
    next: usize,
}

enum Entries<'py> {
    Items(Vec<Bound<'py, PyAny>>),
    Pairs(Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>),
}

struct Search<'py> {
    too_deep: bool,
    frames: Vec<Frame<'py>>,
    /// The containers in `frames`, by address. They are alive: the payload, or a copy, has them.
    open: HashSet<usize>,
}

impl<'py> Search<'py> {
    fn new(too_deep: bool) -> Self {
        Self {
            too_deep,
            frames: Vec::new(),
            open: HashSet::new(),
        }
    }

    /// The first fault; [`path`](Self::path) is then its place.
    fn run(&mut self, data: Bound<'py, PyAny>) -> Option<Fault> {
        let mut value = data;
        loop {
            if let Some(fault) = self.look(&value) {
                return Some(fault);
            }
            if self.frames.len() > GIVE_UP {
                return None;
            }
            // On to the next value: of the innermost container that has one left.
            value = loop {
                let frame = self.frames.last_mut()?;
                let index = frame.next;
                frame.next += 1;
                match &frame.entries {
                    Entries::Items(items) if index < items.len() => break items[index].clone(),
                    Entries::Pairs(pairs) if index < pairs.len() => {
                        let (key, value) = pairs[index].clone();
                        if let Some(fault) = key_fault(&key) {
                            // It is the dictionary that has the fault, and its place is known.
                            frame.next = 0;
                            return Some(fault);
                        }
                        break value;
                    }
                    _ => {
                        self.open.remove(&frame.object);
                        self.frames.pop();
                    }
                }
            };
        }
    }

    /// Looks at one value, and opens it if it is a container.
    fn look(&mut self, value: &Bound<'py, PyAny>) -> Option<Fault> {
        if value.is_none() || value.is_instance_of::<PyString>() {
            return None;
        }
        if value.is_instance_of::<PyInt>() {
            return too_long(value).then(|| Fault::new(Error::PayloadNotEncodable, TOO_LONG));
        }
        if let Ok(float) = value.cast::<PyFloat>() {
            let finite = float.value().is_finite();
            return (!finite).then(|| Fault::new(Error::PayloadNotFinite, NOT_FINITE));
        }
        let object = value.as_ptr() as usize;
        let entries = if value.is_instance_of::<PyList>() || value.is_instance_of::<PyTuple>() {
            match items(value) {
                Ok(items) if items.is_empty() => return None,
                Ok(items) => Entries::Items(items),
                Err(fault) => return Some(fault),
            }
        } else if let Ok(dict) = value.cast::<PyDict>() {
            if dict.is_empty() {
                return None;
            }
            if self.open.contains(&object) {
                return Some(Fault::new(Error::PayloadCycle, CYCLE));
            }
            match sorted_pairs(dict) {
                Ok(pairs) => Entries::Pairs(pairs),
                Err(fault) => return Some(fault),
            }
        } else {
            let name = type_name(value);
            return Some(Fault::new(
                Error::PayloadNotEncodable,
                format!(
                    "is of type {name}, which has no JSON form; turn it into a string, number, list or dict first"
                ),
            ));
        };
        if !self.open.insert(object) {
            return Some(Fault::new(Error::PayloadCycle, CYCLE));
        }
        if self.too_deep && self.frames.len() >= TOO_DEEP {
            return Some(Fault::new(Error::PayloadTooDeep, DEEP));
        }
        self.frames.push(Frame {
            object,
            entries,
            next: 0,
        });
        None
    }

    /// The place of the value that was looked at last.
    fn path(&self) -> String {
        let mut path = ROOT.to_owned();
        let mut length = path.len();
        for frame in &self.frames {
            let Some(index) = frame.next.checked_sub(1) else {
                break;
            };
            let step = match &frame.entries {
                Entries::Items(_) => format!("[{index}]"),
                Entries::Pairs(pairs) => step_of(&pairs[index].0),
            };
            length += step.chars().count();
            path.push_str(&step);
            if length > PATH {
                break;
            }
        }
        cut(&path, PATH)
    }
}

const TOO_LONG: &str = "is an integer with more digits than the interpreter converts \
    (sys.set_int_max_str_digits); send it as a hexadecimal string";

/// Whether the interpreter refuses to write the integer in decimal.
fn too_long(int: &Bound<'_, PyAny>) -> bool {
    let written = int
        .py()
        .get_type::<PyInt>()
        .getattr("__repr__")
        .and_then(|repr| repr.call1((int,)));
    written.is_err()
}

fn key_fault(key: &Bound<'_, PyAny>) -> Option<Fault> {
    if key.is_none() || key.is_instance_of::<PyString>() {
        return None;
    }
    if key.is_instance_of::<PyInt>() {
        let text =
            "has an integer key with more digits than the interpreter converts; use str keys";
        return too_long(key).then(|| Fault::new(Error::PayloadNotEncodable, text));
    }
    if let Ok(float) = key.cast::<PyFloat>() {
        let text = "has a key that is NaN or infinite, which JSON cannot hold; use str keys";
        let finite = float.value().is_finite();
        return (!finite).then(|| Fault::new(Error::PayloadNotFinite, text));
    }
    let text = format!(
        "has a key of type {}, which has no JSON form; use str keys",
        type_name(key)
    );
    Some(Fault::new(Error::PayloadNotEncodable, text))
}

/// The items of a list or tuple as the encoder sees them: those that a subclass iterates over.
fn items<'py>(sequence: &Bound<'py, PyAny>) -> Result<Vec<Bound<'py, PyAny>>, Fault> {
    let items = sequence.try_iter().and_then(Iterator::collect);
    items.map_err(|_: PyErr| {
        let name = type_name(sequence);
        Fault::new(
            Error::PayloadNotEncodable,
            format!("is of type {name}, which cannot be iterated over; turn it into a list first"),
        )
    })
}

/// The items of a dictionary as the encoder sees them.
#[allow(clippy::type_complexity)]
fn sorted_pairs<'py>(
    dict: &Bound<'py, PyDict>,
) -> Result<Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>, Fault> {
    let wrong = |text: String| Fault::new(Error::PayloadNotEncodable, text);
    let name = || type_name(dict);
    let items = dict.as_mapping().items().map_err(|_| {
        wrong(format!(
            "is of type {}, whose items() failed; turn it into a plain dict first",
            name()
        ))
    })?;
    items.sort().map_err(|_| {
        wrong("has keys that cannot be sorted, because their types differ; use str keys".into())
    })?;
    let pairs = items.iter().map(|item| item.extract());
    pairs.collect::<PyResult<_>>().map_err(|_| {
        wrong(format!(
            "is of type {}, whose items() are not pairs; turn it into a plain dict first",
            name()
        ))
    })
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    let name = object.get_type().name();
    name.map_or_else(
        |_| "unknown".into(),
        |name| cut(&name.to_string_lossy(), KEY),
    )
}

/// One step of a path: `.name`, `["another key"]` or `[7]`.
fn step_of(key: &Bound<'_, PyAny>) -> String {
    if let Ok(key) = key.cast::<PyString>() {
        let key = key.to_string_lossy();
        let name = cut(&key, KEY);
        let mut characters = key.chars();
        let is_name = characters
            .next()
            .is_some_and(|first| first == '_' || first.is_alphabetic())
            && characters.all(|character| character == '_' || character.is_alphanumeric());
        if is_name {
            format!(".{name}")
        } else {
            format!("[\"{}\"]", name.escape_debug())
        }
    } else if key.is_none() {
        "[None]".into()
    } else if let Ok(key) = key.cast::<PyBool>() {
        if key.is_true() { "[True]" } else { "[False]" }.into()
    } else if let Ok(number) = key.extract::<i64>()
        && key.is_instance_of::<PyInt>()
    {
        format!("[{number}]")
    } else {
        format!("[{}]", type_name(key))
    }
}

/// At most so many characters.
fn cut(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        None => text.to_owned(),
        Some(_) => {
            let mut short: String = text.chars().take(characters - 1).collect();
            short.push('…');
            short
        }
    }
}
