//! Writes a journal as a bus does, for tests of what reads it: numbers events, settles what a
//! subscription is given, and owns the file meanwhile.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;

use super::exception;
use crate::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetters, Failure, Fingerprint, Limits,
};
use crate::engine::journal::{
    Bounds, Commit, Event, Faults, FileOptions, Journal, JournalError, JournalOptions, Observer,
    SqliteOptions, Subscription,
};
use crate::engine::store::Durability;
use crate::engine::sync::lock;
use crate::py::dead_letters;
use crate::py::errors::Error;
use crate::py::priority::to_level;

/// See the module.
#[pyclass(frozen, module = "ironbus._core")]
pub struct JournalScribe {
    now: Arc<Mutex<f64>>,
    writing: Mutex<Option<Writing>>,
}

struct Writing {
    journal: Journal,
    sequence: u64,
    subscriptions: HashMap<String, Arc<Subscription>>,
}

/// Nobody is told.
struct Deaf;

impl Observer for Deaf {
    fn committed(&self, _: &Commit) {}
}

#[pymethods]
impl JournalScribe {
    /// Opens the journal and owns it.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let now = Arc::new(Mutex::new(0.0));
        let clock = now.clone();
        let options = FileOptions {
            file: SqliteOptions {
                identity: [7; 16],
                dead_letters: Limits::default(),
                checkpoint_pages: 1000,
                create: true,
            },
            journal: JournalOptions {
                bounds: Bounds::default(),
                clock: Arc::new(move || *lock(&clock)),
                faults: Faults::default(),
            },
        };
        let opened = py.detach(|| Journal::open(&path, options, Arc::new(Deaf)));
        let journal = opened.map_err(|error| told(py, &error))?;
        let writing = Writing {
            sequence: journal.sequence(),
            journal,
            subscriptions: HashMap::new(),
        };
        Ok(Self {
            now,
            writing: Mutex::new(Some(writing)),
        })
    }

    /// Accepts an event at this time; its number.
    #[pyo3(signature = (event_type, data, now, *, priority, key=None, headers=None))]
    #[allow(clippy::too_many_arguments)]
    fn publish(
        &self,
        py: Python<'_>,
        event_type: &str,
        data: String,
        now: f64,
        priority: &Bound<'_, PyAny>,
        key: Option<String>,
        headers: Option<String>,
    ) -> PyResult<u64> {
        let level = to_level(py, priority)?;
        *lock(&self.now) = now;
        self.write(py, |writing| {
            writing.sequence += 1;
            let event = Event {
                sequence: writing.sequence,
                level,
                event_type: event_type.into(),
                data,
                accepted: now,
                timestamp: now,
                key,
                headers,
                ..Event::default()
            };
            writing
                .journal
                .append(vec![event], Durability::Os)?
                .wait()?;
            Ok(writing.sequence)
        })
    }

    /// Has a subscription from now on.
    fn subscribe(&self, py: Python<'_>, name: String, topics: Vec<String>) -> PyResult<()> {
        self.write(py, |writing| {
            let after = writing.sequence;
            let subscription = writing.journal.register(&name, &topics, after)?;
            writing.subscriptions.insert(name, subscription);
            Ok(())
        })
    }

    /// Gives a subscription so many of its next events of a level, and settles them.
    fn settle(
        &self,
        py: Python<'_>,
        name: &str,
        priority: &Bound<'_, PyAny>,
        count: usize,
    ) -> PyResult<()> {
        let level = to_level(py, priority)?;
        self.write(py, |writing| {
            let Some(subscription) = writing.subscriptions.get(name) else {
                return Err(JournalError::NoSubscription { name: name.into() });
            };
            for event in subscription.refill(level, count)?.events {
                subscription.settle(level, event.sequence);
            }
            writing.journal.flush(Durability::Os)
        })
    }

    /// Has a dead letter of this id and subscription.
    fn dead_letter(&self, py: Python<'_>, id: String, subscription: String) -> PyResult<()> {
        let now = *lock(&self.now);
        self.write(py, |writing| {
            let letter = DeadLetter {
                id,
                event: DeadEvent {
                    event_type: "order.paid".into(),
                    data: "{}".into(),
                    event_id: "e".into(),
                    source: "pm_system".into(),
                    ..DeadEvent::default()
                },
                fingerprint: Fingerprint::of(&subscription, "ValueError", ""),
                subscription,
                failure: Failure {
                    exception_type: "ValueError".into(),
                    ..Failure::default()
                },
                attempts: 1,
                ..DeadLetter::default()
            };
            let letters = writing
                .journal
                .dead_letters(Limits::default(), Durability::Os)?;
            letters.add(letter, now)?;
            Ok(())
        })
    }

    /// Ends in order.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let closed = py.detach(|| match lock(&self.writing).take() {
            Some(writing) => {
                drop(writing.subscriptions);
                writing.journal.close()
            }
            None => Ok(()),
        });
        closed.map_err(|error| told(py, &error))
    }
}

impl JournalScribe {
    fn write<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Writing) -> Result<T, JournalError> + Send,
    ) -> PyResult<T> {
        let written = py.detach(|| match &mut *lock(&self.writing) {
            Some(writing) => work(writing),
            None => Err(JournalError::Closed),
        });
        written.map_err(|error| told(py, &error))
    }
}

fn told(py: Python<'_>, error: &JournalError) -> PyErr {
    match error {
        JournalError::Store(error) => exception(py, error),
        JournalError::DeadLetter(error) => dead_letters::exception(py, error),
        error => Error::StorageError.exception(py, "", error.to_string()),
    }
}
