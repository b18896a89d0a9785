//! A journal seen from outside, whoever owns it: its events, how it stands, whether it is
//! whole, a copy, an answer to a question in SQL. Changes nothing.

mod answer;
mod report;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

pub use self::answer::query_journal;
pub use self::report::{journal_status, verify_journal};
use super::durable;
use super::errors::Error;
use super::event::Event;
use super::identity;
use super::letters::from_text;
use super::process;
use crate::engine::dead_letters::{DeadEvent, Limits};
use crate::engine::journal::{
    self, Bounds, Commit, Faults, FileOptions, Journal, JournalError, JournalOptions, Observer,
    Range, Reader, SqliteOptions, SqliteReader,
};
use crate::engine::store::StoreError;
use crate::engine::sync::lock;
use crate::engine::topic::Topic;

/// So many events are looked at for one page, so that a rare one keeps no caller for a whole journal.
const BUDGET: usize = 10_000;

/// Which events are meant. The values were checked. Immutable.
#[pyclass(frozen, module = "ironbus._core")]
pub struct EventFilter(journal::EventFilter);

#[pymethods]
impl EventFilter {
    /// Of one of these types or patterns (none: all), with this key.
    #[new]
    fn new(topics: Vec<String>, key: Option<String>) -> Self {
        Self(journal::EventFilter {
            topics: topics.iter().map(|topic| Topic::new(topic)).collect(),
            key,
            ..journal::EventFilter::default()
        })
    }
}

/// The events of a journal. All calls may wait for the file, without the interpreter.
#[pyclass(frozen, module = "ironbus._core")]
pub struct JournalFile {
    path: PathBuf,
    /// Once it is open, with the process that opened it: a file must not be used across a fork.
    opened: Mutex<Option<(u32, Opened)>>,
}

struct Opened {
    reader: SqliteReader,
    identity: [u8; 16],
}

#[pymethods]
impl JournalFile {
    /// Nothing is opened yet.
    #[new]
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            opened: Mutex::default(),
        }
    }

    /// The last event that is there.
    fn last(&self, py: Python<'_>) -> PyResult<u64> {
        self.read(py, |opened| opened.reader.last())
    }

    /// The last event that was accepted before a time.
    fn position_at(&self, py: Python<'_>, time: f64) -> PyResult<u64> {
        self.read(py, |opened| opened.reader.position_at(time))
    }

    /// The next events that are meant behind a position and up to another, at most so many; how far
    /// that went, which is the end where there are no more; and what is damaged on the way.
    #[allow(clippy::type_complexity)]
    fn page<'py>(
        &self,
        py: Python<'py>,
        filter: &EventFilter,
        after: u64,
        through: u64,
        limit: usize,
    ) -> PyResult<(Vec<Py<PyAny>>, u64, Vec<Bound<'py, PyDict>>)> {
        let range = Range {
            after,
            through,
            limit,
            budget: BUDGET,
        };
        let (scan, identity) = self.read(py, |opened| {
            Ok((opened.reader.events(&filter.0, range)?, opened.identity))
        })?;
        let nobody = PyString::new(py, "").unbind();
        let event = |event: journal::Event| {
            let sequence = event.sequence;
            let record = from_text(py, &described(event, &identity))?;
            Event::deliver(py, &record, sequence, 0, &nobody, None)
        };
        let events = scan.events.into_iter().map(event);
        let events = events.collect::<PyResult<_>>()?;
        let damage = scan.damage.iter().map(|damage| report::damage(py, damage));
        Ok((events, scan.through, damage.collect::<PyResult<_>>()?))
    }

    /// Lets go of the file. The next call opens it again.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let opened = lock(&self.opened).take();
            forget_if_foreign(opened);
        });
    }
}

impl JournalFile {
    fn read<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Opened) -> Result<T, StoreError> + Send,
    ) -> PyResult<T> {
        let read = py.detach(|| {
            let mut opened = lock(&self.opened);
            if opened
                .as_ref()
                .is_some_and(|(process, _)| *process != process::generation())
            {
                forget_if_foreign(opened.take());
            }
            if opened.is_none() {
                let mut reader = SqliteReader::open(&self.path)?;
                let identity = reader.identity()?;
                *opened = Some((process::generation(), Opened { reader, identity }));
            }
            match &mut *opened {
                Some((_, opened)) => work(opened),
                None => unreachable!("it was opened above"),
            }
        });
        read.map_err(|error| exception(py, &error))
    }
}

impl Drop for JournalFile {
    fn drop(&mut self) {
        forget_if_foreign(lock(&self.opened).take());
    }
}

/// The parent's connection is not ours to close.
fn forget_if_foreign(opened: Option<(u32, Opened)>) {
    if let Some((process, opened)) = opened
        && process != process::generation()
    {
        std::mem::forget(opened);
    }
}

fn described(event: journal::Event, journal: &[u8; 16]) -> DeadEvent {
    let sequence = event.sequence;
    let made = || identity::in_journal(journal, sequence);
    DeadEvent {
        event_type: event.event_type.to_string(),
        data: event.data,
        event_id: event.event_id.unwrap_or_else(made),
        timestamp: event.timestamp,
        source: event.source.unwrap_or_else(|| "pm_system".into()),
        sequence: Some(sequence),
        priority: event.level,
        key: event.key,
        headers: event.headers,
        idempotency_key: event.idempotency_key,
        correlation_id: event.correlation_id,
        causation_id: event.causation_id,
    }
}

/// Copies a journal, as it is at one moment, into a new private file.
#[pyfunction]
pub fn backup_journal(py: Python<'_>, path: PathBuf, copy: PathBuf) -> PyResult<()> {
    py.detach(|| journal::backup(&path, &copy))
        .map_err(|error| exception(py, &error))
}

/// Lets go of a subscription, with its backlog, in a journal that nobody has. False: there is none of
/// this name.
#[pyfunction]
pub fn forget_subscription(py: Python<'_>, path: PathBuf, name: &str) -> PyResult<bool> {
    let forget = || {
        let journal = owned(&path)?;
        let forgotten = match journal.forget(name) {
            Err(JournalError::NoSubscription { .. }) => Ok(false),
            forgotten => forgotten.map(|()| true),
        };
        journal.close()?;
        forgotten
    };
    py.detach(forget)
        .map_err(|error| durable::exception(py, &error))
}

/// A journal of our own, for a moment. Nobody is told of its commits.
fn owned(path: &Path) -> Result<Journal, JournalError> {
    struct Deaf;
    impl Observer for Deaf {
        fn committed(&self, _: &Commit) {}
    }
    let now = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.unwrap_or_default().as_secs_f64()
    };
    let options = FileOptions {
        file: SqliteOptions {
            // It has one, and limits are for new letters.
            identity: [0; 16],
            dead_letters: Limits::default(),
            checkpoint_pages: 1000,
            create: false,
        },
        journal: JournalOptions {
            bounds: Bounds::default(),
            clock: Arc::new(now),
            faults: Faults::default(),
        },
    };
    Journal::open(path, options, Arc::new(Deaf))
}

/// A file's error as Python sees it.
fn exception(py: Python<'_>, error: &StoreError) -> PyErr {
    Error::StorageError.exception(py, "path", format!("journal {error}"))
}
