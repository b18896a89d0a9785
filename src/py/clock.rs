//! The clocks that the engine is handed: monotonic nanoseconds, and the wall clock
//! derived from them.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;

use crate::engine::clock::SECOND;

/// The processor's own counter where it is steady, which is half the price of the system's clock.
static CLOCK: LazyLock<(quanta::Clock, u64)> = LazyLock::new(|| {
    let clock = quanta::Clock::new();
    let first = clock.raw();
    (clock, first)
});

/// Nanoseconds since the first call in this process.
#[inline]
pub fn monotonic_ns() -> u64 {
    let (clock, first) = &*CLOCK;
    clock.delta_as_nanos(*first, clock.raw())
}

/// Unix time in seconds at a moment of the monotonic clock. The distance of the two clocks is
/// measured once a second, so that an event costs one look at a clock and not two.
#[inline]
pub fn wall_at(now: u64) -> f64 {
    const NEVER: u64 = u64::MAX;
    static DISTANCE: AtomicU64 = AtomicU64::new(0);
    static MEASURED: AtomicU64 = AtomicU64::new(NEVER);
    let measured = MEASURED.load(Ordering::Relaxed);
    if measured == NEVER || now.saturating_sub(measured) > SECOND {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        DISTANCE.store(
            (wall.as_secs_f64() - now as f64 / 1e9).to_bits(),
            Ordering::Relaxed,
        );
        MEASURED.store(now, Ordering::Relaxed);
    }
    now as f64 / 1e9 + f64::from_bits(DISTANCE.load(Ordering::Relaxed))
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
        self.at(py, monotonic_ns())
    }

    /// The same, for who has looked at the machine's clock already.
    #[inline]
    pub fn at(&self, py: Python<'_>, machine: u64) -> PyResult<u64> {
        match &self.injected {
            None => Ok(machine),
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
