//! The clocks that the engine is handed: monotonic nanoseconds, and the wall clock
//! derived from them.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
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

/// How far apart the two clocks are is believed for so long: a steered system clock changes by at most
/// half a thousandth, so the time that it gives is exact to the microsecond.
const DISTANCE_HOLDS: u64 = SECOND / 1_000;

/// Unix time in seconds at a moment of the monotonic clock. The distance of the two clocks is
/// measured now and then, so that an event costs one look at a clock and not two.
#[inline]
pub fn wall_at(now: u64) -> f64 {
    static DISTANCE: AtomicU64 = AtomicU64::new(0);
    static HOLDS_UNTIL: AtomicU64 = AtomicU64::new(0);
    if now >= HOLDS_UNTIL.load(Ordering::Relaxed) {
        DISTANCE.store(distance().to_bits(), Ordering::Relaxed);
        HOLDS_UNTIL.store(now + DISTANCE_HOLDS, Ordering::Relaxed);
    }
    seconds(now) + f64::from_bits(DISTANCE.load(Ordering::Relaxed))
}

#[inline]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 * 1e-9
}

/// From the monotonic clock to Unix time, in seconds.
#[cold]
fn distance() -> f64 {
    let measure = || {
        let before = monotonic_ns();
        let wall = SystemTime::now();
        let took = monotonic_ns() - before;
        let wall = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        (took, wall.as_secs_f64() - seconds(before + took / 2))
    };
    // A thread that was suspended between the looks measured something else.
    const UNDISTURBED: u64 = 500;
    let mut best = measure();
    for _ in 0..4 {
        if best.0 <= UNDISTURBED {
            break;
        }
        let other = measure();
        if other.0 < best.0 {
            best = other;
        }
    }
    best.1
}

/// A bus's clock: the machine's, or one that the user handed in; and for the time of a test one that
/// stands still until it is moved.
///
/// It never goes back. One that was moved ahead and runs again stays ahead.
pub struct Clock {
    injected: Option<Py<PyAny>>,
    /// See [`MACHINE`] and the others. The interpreter's lock guards these three.
    pace: AtomicU8,
    /// What it shows while it stands still.
    stands_at: AtomicU64,
    /// How far ahead of its source it is.
    ahead: AtomicU64,
    /// Unix time where the injected clock is at 0.
    epoch: OnceLock<f64>,
}

/// The machine's.
const MACHINE: u8 = 0;
/// Another source, or ahead of it.
const OTHER: u8 = 1;
/// Stands still.
const STOPPED: u8 = 2;

impl Clock {
    /// The machine's clock, or a callable that returns seconds.
    pub fn new(injected: Option<Py<PyAny>>) -> Self {
        Self {
            pace: AtomicU8::new(if injected.is_some() { OTHER } else { MACHINE }),
            injected,
            stands_at: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            epoch: OnceLock::new(),
        }
    }

    /// Nanoseconds on this clock.
    #[inline]
    pub fn now(&self, py: Python<'_>) -> PyResult<u64> {
        self.at(py, monotonic_ns())
    }

    /// The same, for who has looked at the machine's clock already.
    #[inline]
    pub fn at(&self, py: Python<'_>, machine: u64) -> PyResult<u64> {
        match self.pace.load(Ordering::Relaxed) {
            MACHINE => Ok(machine),
            STOPPED => Ok(self.stands_at.load(Ordering::Relaxed)),
            _ => {
                let source = self.source(py, machine)?;
                Ok(source.saturating_add(self.ahead.load(Ordering::Relaxed)))
            }
        }
    }

    fn source(&self, py: Python<'_>, machine: u64) -> PyResult<u64> {
        let Some(clock) = &self.injected else {
            return Ok(machine);
        };
        let seconds: f64 = clock.bind(py).call0()?.extract()?;
        Ok((seconds.max(0.0) * 1e9) as u64)
    }

    /// Lets it stand still. False: it does so already.
    pub fn stop(&self, py: Python<'_>) -> PyResult<bool> {
        if self.is_stopped() {
            return Ok(false);
        }
        self.stands_at.store(self.now(py)?, Ordering::Relaxed);
        self.pace.store(STOPPED, Ordering::Relaxed);
        Ok(true)
    }

    /// Moves it ahead while it stands still.
    pub fn move_to(&self, _py: Python<'_>, at: u64) {
        self.stands_at.fetch_max(at, Ordering::Relaxed);
    }

    /// Lets it run again, from where it is.
    pub fn run(&self, py: Python<'_>) -> PyResult<()> {
        let source = self.source(py, monotonic_ns())?;
        let ahead = self
            .stands_at
            .load(Ordering::Relaxed)
            .saturating_sub(source);
        self.ahead.store(ahead, Ordering::Relaxed);
        let machines = self.injected.is_none() && ahead == 0;
        let pace = if machines { MACHINE } else { OTHER };
        self.pace.store(pace, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it stands still.
    pub fn is_stopped(&self) -> bool {
        self.pace.load(Ordering::Relaxed) == STOPPED
    }

    /// Whether somebody else moves it: then it may stand still between two looks.
    pub fn is_driven(&self) -> bool {
        self.injected.is_some() || self.is_stopped()
    }

    /// Whether its time is the machine's.
    pub fn is_machines(&self) -> bool {
        self.pace.load(Ordering::Relaxed) == MACHINE
    }

    /// Unix time in seconds, which passes as the clock does: an injected one begins with the machine's.
    pub fn wall(&self, py: Python<'_>) -> PyResult<f64> {
        let machine = monotonic_ns();
        let wall = wall_at(machine);
        if self.pace.load(Ordering::Relaxed) == MACHINE {
            return Ok(wall);
        }
        let now = seconds(self.at(py, machine)?);
        Ok(self.epoch.get_or_init(|| wall - now) + now)
    }

    /// Says what Unix time is where an injected clock is at 0: two that show the same then tell the same
    /// of what one of them has written. False: it has told the time already.
    pub fn set_epoch(&self, seconds: f64) -> bool {
        self.epoch.set(seconds).is_ok()
    }

    /// For the garbage collector, and to tell clocks apart.
    pub fn injected(&self) -> Option<&Py<PyAny>> {
        self.injected.as_ref()
    }
}
