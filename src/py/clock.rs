//! The clocks that the engine is handed: monotonic nanoseconds, and the wall clock
//! derived from them.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;

fn base() -> &'static (Instant, f64) {
    static BASE: OnceLock<(Instant, f64)> = OnceLock::new();
    BASE.get_or_init(|| {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        (Instant::now(), wall.as_secs_f64())
    })
}

/// Nanoseconds since the first call in this process.
#[inline]
pub fn monotonic_ns() -> u64 {
    base().0.elapsed().as_nanos() as u64
}

/// Unix time in seconds. Derived from the monotonic clock, and set right once a second, so
/// that it costs one clock and not two.
#[inline]
pub fn wall() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A bus's clock: the machine's, or one that the user handed in.
pub struct Clock {
    injected: Option<Py<PyAny>>,
}

impl Clock {
    /// The machine's clock, or a callable that returns seconds.
    pub fn new(injected: Option<Py<PyAny>>) -> Self {
        Self { injected }
    }

    /// Nanoseconds on this clock.
    #[inline]
    pub fn now(&self, py: Python<'_>) -> PyResult<u64> {
        match &self.injected {
            None => Ok(monotonic_ns()),
            Some(clock) => {
                let seconds: f64 = clock.bind(py).call0()?.extract()?;
                Ok((seconds.max(0.0) * 1e9) as u64)
            }
        }
    }

    /// For the garbage collector.
    pub fn injected(&self) -> Option<&Py<PyAny>> {
        self.injected.as_ref()
    }
}
