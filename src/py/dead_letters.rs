//! Dead letter queues as Python sees them: in memory, or in a file that is opened at the
//! first use. All work on the file is done without the interpreter.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::Error;
use super::process;
use crate::engine::dead_letters::{
    Added, DeadEvent, DeadLetter, DeadLetterError, DeadLetters, Failure, Filter, Fingerprint,
    Lease, Limits, MemoryDeadLetters, SqliteDeadLetters, Stored, WhenFull,
};
use crate::engine::store::{Durability, Options, Problem, StoreError};
use crate::engine::sync::lock;

/// How long a call waits for another process that writes to the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
#[pyclass(frozen, module = "ironbus._core")]
pub struct DeadLetterStore(Arc<Store>);

/// A queue, opened or not yet.
pub struct Store {
    path: Option<PathBuf>,
    /// The queue is in the journal of a bus, which opens and closes it.
    in_journal: bool,
    /// How much it keeps.
    pub limits: Limits,
    durability: Durability,
    /// The queue, and the process that opened it: a file must not be used across a fork.
    opened: Mutex<Option<(u32, Arc<dyn DeadLetters>)>>,
    /// What takes the place of a file for a test.
    stand_in: Mutex<Option<Arc<dyn DeadLetters>>>,
}

/// How a handler failed: the exception's type, its text, its traceback, and the place for the fingerprint.
type Described = (String, String, String, String);

/// Id, type, data as text, whether only the process that has the object can redrive it, the
/// failure's text (its type where texts are not kept), attempts, first and last failure.
type Entry = (String, String, String, bool, String, u64, f64, f64);

impl Store {
    /// Whether it is in memory, where no call waits for anything.
    pub fn in_memory(&self) -> bool {
        self.path.is_none() && !self.in_journal
    }

    /// The journal is open, and this is its queue.
    pub fn is_in(&self, queue: Arc<dyn DeadLetters>) {
        let opened = (process::generation(), queue);
        std::mem::forget(lock(&self.opened).replace(opened));
    }

    /// How far a letter's write has gone when it is told.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// The queue; opens it if that is still to be done.
    pub fn queue(&self) -> Result<Arc<dyn DeadLetters>, DeadLetterError> {
        let stand_in = lock(&self.stand_in).clone();
        if let Some(queue) = stand_in {
            return Ok(queue);
        }
        let generation = process::generation();
        let mut opened = lock(&self.opened);
        if let Some((process, queue)) = &*opened
            && (*process == generation || self.in_memory())
        {
            return Ok(queue.clone());
        }
        let queue: Arc<dyn DeadLetters> = match &self.path {
            None if self.in_journal => {
                let text = "the journal is closed; start the bus first";
                return Err(DeadLetterError::Unavailable(text.into()));
            }
            None => Arc::new(MemoryDeadLetters::new(self.limits)),
            Some(path) => {
                let options = Options {
                    durability: self.durability,
                    busy_timeout: BUSY_TIMEOUT,
                    create: true,
                };
                Arc::new(SqliteDeadLetters::open(path, self.limits, &options)?)
            }
        };
        // The parent's connection is not ours to close.
        std::mem::forget(opened.replace((generation, queue.clone())));
        Ok(queue)
    }

    /// Has an empty queue in memory take the place of the file. False: one does already, or there is no file.
    pub fn stand_in(&self) -> bool {
        let mut stand_in = lock(&self.stand_in);
        if stand_in.is_some() || self.in_memory() {
            return false;
        }
        *stand_in = Some(Arc::new(MemoryDeadLetters::new(self.limits)));
        true
    }

    /// The file is used again; what was in memory is gone.
    pub fn stand_back(&self) {
        let stand_in = lock(&self.stand_in).take();
        drop(stand_in);
    }

    /// Lets go of the file. The next call opens it again.
    pub fn close(&self) {
        let mut opened = lock(&self.opened);
        match &*opened {
            // The parent's connection is not ours to close.
            Some((process, _)) if *process != process::generation() => {}
            _ if self.in_memory() => {}
            _ => *opened = None,
        }
    }

    /// The same, for who holds the interpreter.
    pub fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&dyn DeadLetters) -> Result<T, DeadLetterError> + Send,
    ) -> PyResult<T> {
        py.detach(|| self.work(work))
            .map_err(|error| exception(py, &error))
    }

    /// Works on the queue, without the interpreter. One whose file is not there any more is opened anew by
    /// the next call.
    pub fn work<T>(
        &self,
        work: impl FnOnce(&dyn DeadLetters) -> Result<T, DeadLetterError>,
    ) -> Result<T, DeadLetterError> {
        let result = work(&*self.queue()?);
        if let Err(DeadLetterError::Store(StoreError {
            problem: Problem::Moved,
            ..
        })) = result
        {
            self.close();
        }
        result
    }
}

impl DeadLetterStore {
    /// The queue behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.0
    }
}

#[pymethods]
impl DeadLetterStore {
    /// Without a path it is in memory. Nothing is opened yet.
    #[new]
    #[pyo3(signature = (path, *, max_entries, max_age, drop_oldest, messages, tracebacks, fsync, in_journal=false))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        path: Option<PathBuf>,
        max_entries: u64,
        max_age: Option<f64>,
        drop_oldest: bool,
        messages: bool,
        tracebacks: bool,
        fsync: bool,
        in_journal: bool,
    ) -> Self {
        Self(Arc::new(Store {
            path,
            in_journal,
            limits: Limits {
                max_entries,
                max_age,
                when_full: if drop_oldest {
                    WhenFull::DropOldest
                } else {
                    WhenFull::Refuse
                },
                messages,
                tracebacks,
                ..Limits::default()
            },
            durability: if fsync {
                Durability::Fsync
            } else {
                Durability::Os
            },
            opened: Mutex::new(None),
            stand_in: Mutex::new(None),
        }))
    }

    /// Keeps a dead letter; all its attempts so far.
    #[allow(clippy::too_many_arguments)]
    fn add(
        &self,
        py: Python<'_>,
        id: String,
        event_type: String,
        data: String,
        in_process_only: bool,
        subscription: String,
        handler: String,
        failure: Described,
        now: f64,
    ) -> PyResult<u64> {
        let (failure, fingerprint) = described(&subscription, failure);
        let letter = DeadLetter {
            id: id.clone(),
            event: DeadEvent {
                event_type,
                data,
                event_id: id,
                timestamp: now,
                ..DeadEvent::default()
            },
            subscription,
            handler,
            failure,
            attempts: 1,
            first_failure: now,
            last_failure: now,
            fingerprint,
            redrivable_in_process_only: in_process_only,
        };
        let added = self.0.with(py, move |queue| queue.add(letter, now))?;
        Ok(match added {
            Added::New => 1,
            Added::Again { attempts } => attempts,
        })
    }

    /// Takes over the entries of an older store, once for each name, all or none. False: that was
    /// done before. An entry is (id, type, data, error, attempts, first failure, last failure).
    #[allow(clippy::type_complexity)]
    fn take_over(
        &self,
        py: Python<'_>,
        name: String,
        entries: Vec<(String, String, String, String, u64, f64, f64)>,
    ) -> PyResult<bool> {
        let letters = entries.into_iter().map(
            |(id, event_type, data, error, attempts, first_failure, last_failure)| DeadLetter {
                id: id.clone(),
                event: DeadEvent {
                    event_type,
                    data,
                    event_id: id,
                    timestamp: first_failure,
                    ..DeadEvent::default()
                },
                failure: Failure {
                    message: error,
                    ..Failure::default()
                },
                attempts,
                first_failure,
                last_failure,
                fingerprint: Fingerprint::of("", "", ""),
                ..DeadLetter::default()
            },
        );
        let letters = letters.collect();
        self.0.with(py, move |queue| queue.import(&name, letters))
    }

    /// All entries, oldest first, that failed last at this time or later.
    #[pyo3(signature = (since, now))]
    fn entries(&self, py: Python<'_>, since: Option<f64>, now: f64) -> PyResult<Vec<Entry>> {
        let filter = Filter {
            since,
            ..Filter::default()
        };
        let stored = self.0.with(py, move |queue| {
            queue.expire(now)?;
            queue.page(&filter, 0, usize::MAX)
        })?;
        Ok(stored.into_iter().map(entry).collect())
    }

    /// Lets go of an entry. False: there is none.
    fn remove(&self, py: Python<'_>, id: &str) -> PyResult<bool> {
        self.0.with(py, |queue| queue.remove(id))
    }

    /// The next entry behind a position that nobody holds, held now; with its position.
    fn claim(
        &self,
        py: Python<'_>,
        after: u64,
        holder: u64,
        until: f64,
        now: f64,
    ) -> PyResult<Option<(u64, Entry)>> {
        let claimed = self.0.with(py, |queue| {
            queue.expire(now)?;
            queue.claim(&Filter::default(), after, 1, Lease { holder, until }, now)
        })?;
        Ok(claimed
            .into_iter()
            .next()
            .map(|stored| (stored.position, entry(stored))))
    }

    /// A claimed entry leaves.
    fn succeeded(&self, py: Python<'_>, id: &str, holder: u64) -> PyResult<bool> {
        self.0.with(py, |queue| queue.succeeded(id, holder))
    }

    /// A claimed entry failed once more, and is free again.
    fn failed(
        &self,
        py: Python<'_>,
        id: &str,
        holder: u64,
        subscription: &str,
        failure: Described,
        now: f64,
    ) -> PyResult<bool> {
        let (failure, fingerprint) = described(subscription, failure);
        self.0.with(py, |queue| {
            queue.failed(id, holder, failure, fingerprint, 1, now)
        })
    }

    /// A claimed entry is free again, as it was.
    fn release(&self, py: Python<'_>, id: &str, holder: u64) -> PyResult<bool> {
        self.0.with(py, |queue| queue.release(id, holder))
    }

    /// Lets go of the file. The next call opens it again.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

fn described(subscription: &str, failure: Described) -> (Failure, Fingerprint) {
    let (exception_type, message, traceback, place) = failure;
    let fingerprint = Fingerprint::of(subscription, &exception_type, &place);
    let failure = Failure {
        exception_type,
        message,
        traceback,
    };
    (failure, fingerprint)
}

fn entry(Stored { letter, .. }: Stored) -> Entry {
    let failure = letter.failure;
    let error = if failure.message.is_empty() {
        failure.exception_type
    } else {
        failure.message
    };
    (
        letter.id,
        letter.event.event_type,
        letter.event.data,
        letter.redrivable_in_process_only,
        error,
        letter.attempts,
        letter.first_failure,
        letter.last_failure,
    )
}

/// A queue's error as Python sees it.
pub fn exception(py: Python<'_>, error: &DeadLetterError) -> PyErr {
    let class = match error {
        DeadLetterError::Full { .. } => Error::DeadLetterQueueFull,
        DeadLetterError::Damaged { .. }
        | DeadLetterError::Store(_)
        | DeadLetterError::Unavailable(_) => Error::StorageError,
    };
    class.exception(py, "", error.to_string())
}
