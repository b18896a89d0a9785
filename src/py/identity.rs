//! Event ids. Most are never looked at, so an id is a number until somebody does: then
//! it is written out behind the random nonce of the process in which it was counted.

use std::sync::atomic::{AtomicU64, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::cell::GilCell;

/// The nonces of this process and of those that it was forked from, each with the first number
/// that it goes with. Drawn from `os.urandom`, because the engine has no randomness of its own.
static NONCES: GilCell<Vec<(u64, u64)>> = GilCell::new(Vec::new());
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The id of an event: made here and not yet written out, or whatever the caller set.
pub enum Identity {
    /// The how manieth of this process. Formats to the same UUID every time.
    Number(u64),
    /// Set by the caller; the `pm.events` API allows any object.
    Object(Py<PyAny>),
}

/// The number of a new event. Two steps and no locked instruction: whoever makes one holds the GIL.
#[inline]
pub fn next_number() -> u64 {
    let number = NUMBER.load(Ordering::Relaxed);
    NUMBER.store(number + 1, Ordering::Relaxed);
    number
}

impl Identity {
    /// An id that no other event has, in this process or in its forks.
    #[inline]
    pub fn next() -> Self {
        Self::Number(next_number())
    }

    /// The same id again.
    #[inline]
    pub fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            &Self::Number(number) => Self::Number(number),
            Self::Object(object) => Self::Object(object.clone_ref(py)),
        }
    }

    /// What Python sees: a UUID string, or the caller's object.
    pub fn to_object<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        match self {
            &Self::Number(number) => {
                let nonce = NONCES.read(py, |nonces| {
                    let later = nonces.partition_point(|(first, _)| *first <= number);
                    nonces[later - 1].1
                });
                let text = format_uuid(nonce, number);
                PyString::new(
                    py,
                    std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"),
                )
                .into_any()
            }
            Self::Object(object) => object.bind(py).clone(),
        }
    }
}

/// The id of an event that a journal keeps without one.
pub fn in_journal(journal: &[u8; 16], sequence: u64) -> String {
    let mut nonce = [0; 8];
    nonce.copy_from_slice(&journal[..8]);
    let text = format_uuid(u64::from_le_bytes(nonce), sequence);
    text.into_iter().map(char::from).collect()
}

/// RFC 9562, version 8: 48 free bits, the version, 12 free bits, the variant, 62
/// free bits. The nonce comes first, whole, then 58 bits of the number, so the
/// ids of one process sort in the order in which they were made.
fn format_uuid(nonce: u64, number: u64) -> [u8; 36] {
    const VERSION: u64 = 0x8000;
    const VARIANT: u64 = 0b10 << 62;
    let high = (nonce & !0xffff) | VERSION | ((nonce >> 4) & 0x0fff);
    let low = VARIANT | ((nonce & 0xf) << 58) | (number & ((1 << 58) - 1));
    let bits = (u128::from(high) << 64) | u128::from(low);

    let mut text = [b'-'; 36];
    let mut shift = 128;
    for (index, character) in text.iter_mut().enumerate() {
        if !matches!(index, 8 | 13 | 18 | 23) {
            shift -= 4;
            *character = b"0123456789abcdef"[(bits >> shift) as usize & 0xf];
        }
    }
    text
}

/// A child continues its parent's counter; only another nonce keeps their ids apart.
#[pyfunction]
fn draw_nonce(py: Python<'_>) -> PyResult<()> {
    let bytes: [u8; 8] = py.import("os")?.call_method1("urandom", (8,))?.extract()?;
    let first = NUMBER.load(Ordering::Relaxed);
    NONCES.update(py, |nonces| {
        nonces.push((first, u64::from_le_bytes(bytes)));
    });
    Ok(())
}

/// Draws the nonce now, and again in every fork.
pub fn install(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    draw_nonce(py)?;
    let os = py.import("os")?;
    if os.hasattr("register_at_fork")? {
        let hooks = PyDict::new(py);
        hooks.set_item("after_in_child", wrap_pyfunction!(draw_nonce, m)?)?;
        os.call_method("register_at_fork", (), Some(&hooks))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::format_uuid;

    fn text(nonce: u64, number: u64) -> String {
        String::from_utf8(format_uuid(nonce, number).to_vec()).unwrap()
    }

    #[test]
    fn an_id_in_a_journal_is_of_that_and_of_the_number() {
        let journal = 0x0123_4567_89ab_cdef_u128 << 64;
        let id = super::in_journal(&journal.to_be_bytes(), 1);
        assert_eq!(id, "efcdab89-6745-8230-8400-000000000001");
    }

    #[test]
    fn every_bit_has_its_place() {
        assert_eq!(text(0, 0), "00000000-0000-8000-8000-000000000000");
        assert_eq!(
            text(0x0123_4567_89ab_cdef, 1),
            "01234567-89ab-8cde-bc00-000000000001"
        );
        assert_eq!(
            text(u64::MAX, u64::MAX),
            "ffffffff-ffff-8fff-bfff-ffffffffffff"
        );
    }
}
