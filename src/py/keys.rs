//! Content keys for users who want only those: the function, and `IdempotencyManager`.

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use super::clock::Clock;
use super::core::seed;
use super::errors::Error;
use super::walk;
use crate::engine::digest::Digest;
use crate::engine::idempotency::Idempotency;
use crate::engine::sync::{Mutex, lock};

/// The longest time that a key may be remembered, in seconds: some thirty years.
const LONGEST: f64 = 1e9;

fn digest(event_type: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<Digest> {
    let py = data.py();
    match event_type.cast::<PyString>() {
        Ok(event_type) => walk::content_digest(py, event_type, data),
        Err(_) => {
            let text = "type must be a string, for example \"order.paid\"";
            Err(Error::InvalidType.exception(py, "type", text))
        }
    }
}

/// The content key of an event: SHA-256 of its type and its canonical JSON.
///
/// It is the digest of the UTF-8 of
/// `f"{type}:{json.dumps(data, sort_keys=True, allow_nan=False)}"`.
#[pyfunction]
#[pyo3(signature = (r#type, data))]
pub fn content_key<'py>(
    r#type: &Bound<'py, PyAny>,
    data: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(data.py(), &digest(r#type, data)?.0))
}

/// Remembers events by their content, each for the same time, from any thread.
///
/// At the limit the oldest key goes, and is counted in `evicted`.
#[pyclass(frozen, subclass, weakref, module = "ironbus._core")]
pub struct IdempotencyManager {
    keys: Mutex<Idempotency<()>>,
    clock: Clock,
}

#[pymethods]
impl IdempotencyManager {
    #[new]
    #[pyo3(signature = (ttl_seconds=None, *, max_keys=None, clock=None))]
    #[pyo3(text_signature = "(ttl_seconds=3600, *, max_keys=1000000, clock=None)")]
    fn new(
        py: Python<'_>,
        ttl_seconds: Option<&Bound<'_, PyAny>>,
        max_keys: Option<&Bound<'_, PyAny>>,
        clock: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let ttl = match ttl_seconds {
            None => 3600.0,
            Some(given) => seconds(given)?,
        };
        let max_keys = match max_keys {
            None => 1_000_000,
            Some(given) => count(given)?,
        };
        if clock.as_ref().is_some_and(|clock| !clock.is_callable()) {
            let text = "clock must be a callable that returns seconds, for example time.monotonic";
            return Err(Error::InvalidOption.exception(py, "clock", text));
        }
        Ok(Self {
            keys: Mutex::new(Idempotency::new(
                (ttl * 1e9).round() as u64,
                max_keys,
                seed(),
            )),
            clock: Clock::new(clock.map(Bound::unbind)),
        })
    }

    /// Whether an event with this type and data was seen before; it is seen from now on.
    fn is_duplicate(
        &self,
        py: Python<'_>,
        event_type: &Bound<'_, PyAny>,
        event_data: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let digest = digest(event_type, event_data)?;
        let now = self.clock.now(py)?;
        Ok(lock(&self.keys).check_and_mark(&digest, now))
    }

    /// Forgets an event before its time. False if it was not known.
    fn forget(
        &self,
        py: Python<'_>,
        event_type: &Bound<'_, PyAny>,
        event_data: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let digest = digest(event_type, event_data)?;
        let now = self.clock.now(py)?;
        let mut keys = lock(&self.keys);
        // A key that has expired is not known, whether or not anybody has looked since.
        keys.expire(now);
        Ok(keys.forget(&digest))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let now = self.clock.now(py)?;
        let mut keys = lock(&self.keys);
        keys.expire(now);
        Ok(keys.len())
    }

    /// Always: a manager is not its keys.
    fn __bool__(&self) -> bool {
        true
    }

    /// How many keys went before their time because of the limit.
    #[getter]
    fn evicted(&self) -> u64 {
        lock(&self.keys).evicted()
    }

    // There is no `__clear__`: the clock never changes, and a cycle through it also goes through
    // the function or object that it is, which can be cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.clock
            .injected()
            .map_or(Ok(()), |clock| visit.call(clock))
    }
}

fn seconds(given: &Bound<'_, PyAny>) -> PyResult<f64> {
    let number = given.is_instance_of::<PyInt>() || given.is_instance_of::<PyFloat>();
    let seconds = match given.extract::<f64>() {
        Ok(seconds) if number && !given.is_instance_of::<PyBool>() => seconds,
        _ => f64::NAN,
    };
    // Less than a nanosecond is nothing.
    if (1e-9..LONGEST).contains(&seconds) {
        return Ok(seconds);
    }
    let text = "ttl_seconds must be a positive number of seconds below 1e9, for example 3600";
    Err(Error::InvalidOption.exception(given.py(), "ttl_seconds", text))
}

fn count(given: &Bound<'_, PyAny>) -> PyResult<usize> {
    // The index numbers its keys with 32 bits.
    let most = i32::MAX as usize;
    let number = given.is_instance_of::<PyInt>() && !given.is_instance_of::<PyBool>();
    match given.extract::<usize>() {
        Ok(count) if number && (1..=most).contains(&count) => Ok(count),
        _ => {
            let text = "max_keys must be a positive integer below 2**31, for example 1_000_000";
            Err(Error::InvalidOption.exception(given.py(), "max_keys", text))
        }
    }
}
