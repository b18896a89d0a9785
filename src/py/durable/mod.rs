//! A bus with a journal, as Python sees it: what is written of an event, what is made of it
//! again, and how publishers wait for the disk.

mod course;
mod encode;
mod items;
mod keep;
mod revive;
mod seen;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use pyo3::prelude::*;

use self::keep::keep;
use self::revive::Reviver;
use self::seen::Seen;
use super::clock::{Clock, monotonic_ns, wall_at};
use super::core::Core;
use super::errors::Error;
use super::ops::PyOps;
use super::process;
use crate::engine::dead_letters::Limits;
use crate::engine::durable::{Durable, Opening};
use crate::engine::journal::{
    Bounds, Commit, Faults, FileOptions, JournalError, JournalOptions, Keeping, Observer,
    SqliteOptions,
};
use crate::engine::store::Durability;

pub use self::course::Course;
pub use self::encode::stored;
pub use self::items::{Item, Items};
pub use self::keep::JournalSettings;

/// After so many pages of log, 4 KiB each, they are brought into the file.
const CHECKPOINT_PAGES: u32 = 4096;

/// The journal of a bus.
pub struct Journaled {
    /// The engine's part.
    pub engine: Arc<Durable<PyOps>>,
    /// How durable a publish is that says nothing else.
    pub level: Durability,
    letters: Limits,
    keeping: Keeping,
    seen: Seen,
    kept: Arc<keep::Told>,
    /// The process that opened it.
    generation: AtomicU32,
}

impl Journaled {
    /// In this file, which is not touched yet.
    pub fn new(
        path: PathBuf,
        max_backlog: Option<u64>,
        level: Durability,
        letters: Limits,
        keeping: Keeping,
    ) -> Self {
        Self {
            engine: Arc::new(Durable::new(path, max_backlog)),
            level,
            letters,
            keeping,
            seen: Seen::default(),
            kept: Arc::default(),
            generation: AtomicU32::new(0),
        }
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.engine.journal().is_some()
    }

    /// Opens it, unless it is open. Waits for the disk.
    pub fn open(&self, py: Python<'_>, core: &Arc<Core>) -> PyResult<()> {
        if self.is_open() {
            if self.generation.load(Ordering::Relaxed) == process::generation() {
                return Ok(());
            }
            // What a parent has open stays with it.
            self.engine.forked();
        }
        let identity: [u8; 16] = py.import("os")?.call_method1("urandom", (16,))?.extract()?;
        let opening = || Opening {
            options: self.options(core, identity),
            observer: Arc::new(Watch(Arc::downgrade(core))),
            revive: Arc::new(Reviver::new(core.clock.clone())),
            ttl: core.settings.ttl as f64 / 1e9,
            max_keys: core.settings.max_keys,
            keep: keep(self.keeping, self.kept.clone()),
        };
        self.generation
            .store(process::generation(), Ordering::Relaxed);
        py.detach(|| {
            self.engine.open(core, opening)?;
            let store = core.bus.sink().store();
            if let Some(journal) = self.engine.journal() {
                let letters = journal.dead_letters(store.limits, store.durability())?;
                store.is_in(Arc::new(letters));
            }
            Ok(())
        })
        .map_err(|error: JournalError| exception(py, &error))
    }

    fn options(&self, core: &Arc<Core>, identity: [u8; 16]) -> FileOptions {
        let clock = core.clock.clone();
        FileOptions {
            file: SqliteOptions {
                identity,
                dead_letters: self.letters,
                checkpoint_pages: CHECKPOINT_PAGES,
                create: true,
            },
            journal: JournalOptions {
                bounds: Bounds::default(),
                clock: Arc::new(move || wall(&clock)),
                faults: Faults::default(),
            },
        }
    }

    /// Closes it. Waits for the disk.
    pub fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.engine.close())
            .map_err(|error| exception(py, &error))
    }
}

impl Drop for Journaled {
    fn drop(&mut self) {
        if !self.is_open() {
            return;
        }
        if self.generation.load(Ordering::Relaxed) != process::generation() {
            return self.engine.forked();
        }
        // The writer may be about to tell somebody, and wait for the interpreter.
        let closed = Python::try_attach(|py| py.detach(|| self.engine.close()));
        let closed = closed.unwrap_or_else(|| self.engine.close());
        if let Err(error) = closed {
            Python::try_attach(|py| exception(py, &error).write_unraisable(py, None));
        }
    }
}

/// Unix time on the bus's clock. The machine's needs no interpreter.
fn wall(clock: &Clock) -> f64 {
    let machine = || wall_at(monotonic_ns());
    if clock.is_machines() {
        return machine();
    }
    let told = Python::try_attach(|py| {
        clock.wall(py).unwrap_or_else(|error| {
            error.write_unraisable(py, clock.injected().map(|clock| clock.bind(py)));
            machine()
        })
    });
    told.unwrap_or_else(machine)
}

/// Now, on the bus's clock and in Unix time: one moment.
pub fn moment(py: Python<'_>, clock: &Clock) -> PyResult<(u64, f64)> {
    let machine = monotonic_ns();
    let now = clock.at(py, machine)?;
    let wall = match clock.is_machines() {
        true => wall_at(machine),
        false => clock.wall(py)?,
    };
    Ok((now, wall))
}

/// Told of commits.
struct Watch(Weak<Core>);

impl Observer for Watch {
    fn committed(&self, commit: &Commit) {
        // At the end of the interpreter there is nobody left to tell.
        Python::try_attach(|py| {
            let Some(core) = self.0.upgrade() else { return };
            let Some(journaled) = &core.journaled else {
                return;
            };
            let now = core.now(py).unwrap_or_else(|error| {
                error.write_unraisable(py, None);
                monotonic_ns()
            });
            journaled.engine.committed(&core.bus, commit, now);
        });
    }
}

/// A level as users write it.
pub fn durability(name: &str) -> Option<Durability> {
    match name {
        "memory" => Some(Durability::Memory),
        "os" => Some(Durability::Os),
        "fsync" => Some(Durability::Fsync),
        _ => None,
    }
}

/// A journal's error as Python sees it.
pub fn exception(py: Python<'_>, error: &JournalError) -> PyErr {
    let (class, field) = match error {
        JournalError::InUse { .. } => (Error::JournalInUse, "path"),
        JournalError::DurabilityUnknown(_) => (Error::DurabilityUnknown, ""),
        JournalError::ReadOnly => (Error::JournalReadOnly, ""),
        JournalError::Busy { .. } => (Error::QueueFull, ""),
        JournalError::TooBig { .. } => (Error::InvalidData, "data"),
        JournalError::NoTime => (Error::InvalidTiming, ""),
        JournalError::NoSubscription { .. } | JournalError::Registered { .. } => {
            (Error::InvalidOption, "name")
        }
        JournalError::Statement { .. } | JournalError::NotHeld { .. } => {
            (Error::TransactionFailed, "")
        }
        JournalError::DeadLetter(error) => {
            return super::dead_letters::exception(py, error);
        }
        JournalError::OutOfOrder { .. }
        | JournalError::Closed
        | JournalError::Refused
        | JournalError::Settled
        | JournalError::NoSql
        | JournalError::Store(_) => (Error::StorageError, "path"),
    };
    class.exception(py, field, error.to_string())
}
