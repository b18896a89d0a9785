//! What a bus keeps of its journal, and what is said of what it does not.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{Journaled, exception};
use crate::engine::dead_letters::Limits;
use crate::engine::durable::{Keep, Kept};
use crate::engine::journal::{JournalError, Keeping};

/// The longest pause between two rounds.
const PAUSE: f64 = 60.0;

/// What the rounds came to, since the bus was made.
#[derive(Default)]
pub struct Told {
    /// Events that were let go of.
    pub events: AtomicU64,
    /// Subscriptions.
    pub subscriptions: AtomicU64,
    /// The last round failed.
    pub failed: AtomicBool,
}

/// Rounds of what is to be kept: each minute, or more often where that is a long time.
pub fn keep(keeping: Keeping, told: Arc<Told>) -> Keep {
    let spans = keeping.retention.into_iter().chain(keeping.absent_ttl);
    let pause = spans.map(|span| span / 10.0).fold(PAUSE, f64::min);
    Keep {
        keeping,
        first: Duration::ZERO,
        pause: Duration::from_secs_f64(pause.max(1.0)),
        told: Box::new(move |kept| tell(&told, kept)),
    }
}

fn tell(told: &Told, kept: &Kept) {
    let failed = match kept {
        Ok(done) => {
            told.events.fetch_add(done.events, Ordering::Relaxed);
            let gone = done.subscriptions.len() as u64;
            told.subscriptions.fetch_add(gone, Ordering::Relaxed);
            for name in &done.subscriptions {
                say("subscription_expired", name);
            }
            false
        }
        // A journal that is closed, or read-only, says so by itself.
        Err(JournalError::Closed | JournalError::ReadOnly) => false,
        Err(error) => {
            if !told.failed.load(Ordering::Relaxed) {
                say("upkeep_failed", &error.to_string());
            }
            true
        }
    };
    told.failed.store(failed, Ordering::Relaxed);
}

/// Writes a line to the log.
fn say(line: &'static str, argument: &str) {
    Python::try_attach(|py| {
        let log = py.import("ironbus._log").and_then(|log| log.getattr(line));
        if let Err(error) = log.and_then(|log| log.call1((argument,))) {
            error.write_unraisable(py, None);
        }
    });
}

/// What a bus with a path was told of its journal. All values are checked by the caller.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct JournalSettings {
    path: PathBuf,
    durability: String,
    retention: Option<f64>,
    absent_ttl: Option<f64>,
    max_backlog: Option<u64>,
}

impl JournalSettings {
    /// The journal. Events are kept at least for as long as their keys count, in seconds: from there
    /// the keys come back after a restart.
    pub fn journaled(self, letters: Limits, ttl: f64) -> Journaled {
        let keeping = Keeping {
            retention: self.retention.map(|retention| retention.max(ttl)),
            absent_ttl: self.absent_ttl,
            ..Keeping::default()
        };
        let level = super::durability(&self.durability).unwrap_or_default();
        Journaled::new(self.path, self.max_backlog, level, letters, keeping)
    }
}

impl Journaled {
    /// Lets go of what is not to be kept, as is done now and then anyway. Waits for the disk.
    pub fn keep(&self, py: Python<'_>) -> PyResult<()> {
        match py.detach(|| self.engine.upkeep()) {
            // It was closed meanwhile.
            Ok(_) | Err(JournalError::Closed) => Ok(()),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// What it came to, for the report.
    pub(super) fn report_kept(&self, report: &Bound<'_, PyDict>) -> PyResult<()> {
        let told = &self.kept;
        report.set_item("retained", told.events.load(Ordering::Relaxed))?;
        report.set_item("expired", told.subscriptions.load(Ordering::Relaxed))?;
        report.set_item("upkeep_failed", told.failed.load(Ordering::Relaxed))?;
        let journal = self.engine.journal();
        let checkpoint = journal.and_then(|journal| journal.checkpoint_error());
        report.set_item("checkpoint_failed", checkpoint.is_some())
    }
}
