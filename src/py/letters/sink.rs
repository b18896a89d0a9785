//! Where the deliveries of a bus go that failed for good. A queue in memory is written at
//! once; a file by a thread of its own, while the delivery's lane waits: an event loop
//! never waits for a disk, nor for another process.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use pyo3::PyTraverseError;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::originals::Originals;
use super::redrive::UnderWay;
use super::text;
use crate::engine::clock::Nanos;
use crate::engine::dead_letters::{
    DeadLetter, DeadLetterError, DeadLetters, Failure, Fingerprint, Limits, Statistics,
};
use crate::engine::durable::Refusal;
use crate::engine::journal::{JournalError, Unit};
use crate::engine::lane::Letter;
use crate::engine::metrics::Recent;
use crate::engine::ops::{Cause, Dying, Kept, Sink};
use crate::engine::store::{Durability, WallSeconds};
use crate::engine::sync::lock;
use crate::py::clock::Clock;
use crate::py::core::Core;
use crate::py::dead_letters::Store;
use crate::py::ops::PyOps;

/// The dead letter queue of a bus.
pub struct LetterSink {
    store: Arc<Store>,
    clock: Arc<Clock>,
    /// Takes what is to be called by the thread that writes; none: nothing ever waits.
    writer: Option<Py<PyAny>>,
    core: OnceLock<Weak<Core>>,
    /// Payloads that are here, and not only as text.
    pub originals: Originals,
    /// Letters that are being delivered again.
    pub under_way: UnderWay,
    /// New letters of the last while.
    growth: Mutex<Recent>,
    /// The queue's, when it was last asked: nobody waits for a file to count.
    seen: Mutex<Seen>,
    /// The same of the file, while a test keeps it out of use.
    set_aside: Mutex<Seen>,
    /// When to look again for letters that are too old.
    next_expiry: Mutex<WallSeconds>,
}

/// What a queue was seen to have.
#[derive(Clone, Copy, Default)]
struct Seen {
    last: Statistics,
    /// A file's, when it was first asked: what it had then is not this bus's.
    first: Option<Statistics>,
}

/// What is to be written of a delivery.
enum Note {
    /// A new letter.
    New(Box<DeadLetter>),
    /// How a letter fared that was delivered again.
    Again(Letter, Fate),
}

enum Fate {
    Succeeded,
    Failed(Failure, Fingerprint, u64),
    Released,
}

impl LetterSink {
    /// For a bus that is about to be made; `window` is what counts as the last while.
    pub fn new(
        store: Arc<Store>,
        clock: Arc<Clock>,
        writer: Option<Py<PyAny>>,
        window: Nanos,
    ) -> Self {
        Self {
            store,
            clock,
            writer,
            core: OnceLock::new(),
            originals: Originals::default(),
            under_way: UnderWay::default(),
            growth: Mutex::new(Recent::new(window)),
            seen: Mutex::default(),
            set_aside: Mutex::default(),
            next_expiry: Mutex::default(),
        }
    }

    /// Whose it is.
    pub fn belongs_to(&self, core: &Arc<Core>) {
        let set = self.core.set(Arc::downgrade(core));
        debug_assert!(set.is_ok());
    }

    /// The queue itself.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// For a test, keeps letters in memory instead of the file. False: it does so already, or has no file.
    pub fn stand_in(&self) -> bool {
        let begins = self.store.stand_in();
        if begins {
            *lock(&self.set_aside) = std::mem::take(&mut *lock(&self.seen));
        }
        begins
    }

    /// Uses the file again; what was in memory is gone.
    pub fn stand_back(&self) {
        self.store.stand_back();
        *lock(&self.seen) = *lock(&self.set_aside);
        self.room_made();
    }

    /// How much it keeps.
    pub fn limits(&self) -> &Limits {
        &self.store.limits
    }

    /// What the queue has and had, when it was last asked.
    pub fn statistics(&self) -> Statistics {
        lock(&self.seen).last
    }

    /// How many letters the queue has dropped, and moved aside as damaged, since this bus has it.
    pub fn lost_here(&self) -> (u64, u64) {
        let Seen { last, first } = *lock(&self.seen);
        let first = first.unwrap_or_default();
        // Somebody may have put another file in its place.
        let new = |last: u64, first: u64| last.saturating_sub(first);
        (
            new(last.dropped, first.dropped),
            new(last.damaged, first.damaged),
        )
    }

    /// New letters within the window.
    pub fn growth(&self, now: Nanos) -> u64 {
        lock(&self.growth).total(now)
    }

    /// Now, in Unix time.
    pub fn wall(&self, py: Python<'_>) -> PyResult<WallSeconds> {
        self.clock.wall(py)
    }

    /// Works on the queue, without what is too old, and remembers what there is afterwards.
    pub fn with<T: Send>(
        &self,
        py: Python<'_>,
        wall: WallSeconds,
        work: impl FnOnce(&dyn DeadLetters) -> Result<T, DeadLetterError> + Send,
    ) -> PyResult<T> {
        self.with_queue(py, |queue| {
            queue.expire(wall)?;
            let result = work(queue)?;
            self.look(queue)?;
            Ok(result)
        })
    }

    /// Works on the queue, without the interpreter.
    pub fn with_queue<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&dyn DeadLetters) -> Result<T, DeadLetterError> + Send,
    ) -> PyResult<T> {
        self.store.with(py, work)
    }

    fn look(&self, queue: &dyn DeadLetters) -> Result<(), DeadLetterError> {
        let statistics = queue.statistics()?;
        let mut seen = lock(&self.seen);
        seen.last = statistics;
        if !self.store.in_memory() {
            seen.first.get_or_insert(statistics);
        }
        Ok(())
    }

    /// To look for what is too old takes a while, so that is done now and then.
    fn expire(&self, queue: &dyn DeadLetters, wall: WallSeconds) -> Result<(), DeadLetterError> {
        let Some(age) = self.limits().max_age else {
            return Ok(());
        };
        {
            let mut next = lock(&self.next_expiry);
            if wall < *next {
                return Ok(());
            }
            *next = wall + (age / 10.0).min(MINUTE);
        }
        queue.expire(wall).map(drop)
    }

    /// Something has left the queue.
    pub fn room_made(&self) {
        if let Some(core) = self.core.get().and_then(Weak::upgrade) {
            core.bus.room_for_letters();
        }
    }

    fn note(&self, py: Python<'_>, dying: &Dying<PyOps>) -> PyResult<(Note, WallSeconds)> {
        let (wall, now) = (self.clock.wall(py)?, self.clock.now(py)?);
        let then = |at: Nanos| wall - now.saturating_sub(at) as f64 / 1e9;
        let ended = then(dying.at);
        if let Some(letter) = dying.entry.letter() {
            let fate = match dying.cause {
                Cause::Done => Fate::Succeeded,
                Cause::Filtered => Fate::Released,
                _ => {
                    let (failure, fingerprint) = text::failure(py, dying, &letter.subscription)?;
                    Fate::Failed(failure, fingerprint, text::attempts(dying))
                }
            };
            return Ok((Note::Again(letter.clone(), fate), ended));
        }
        let rare = dying.entry.rare.as_ref();
        let first = rare.and_then(|rare| rare.first_failure).map_or(ended, then);
        let letter = text::letter(py, dying, first, ended)?;
        Ok((Note::New(Box::new(letter)), ended))
    }

    /// Writes it. False: it is a new letter and could not be kept.
    fn write(&self, py: Python<'_>, dying: &Dying<PyOps>, note: Note, ended: WallSeconds) -> bool {
        match note {
            Note::New(letter) => self.add(py, dying, *letter, ended),
            Note::Again(letter, fate) => {
                self.tell(py, dying, &letter, fate, ended);
                true
            }
        }
    }

    fn add(
        &self,
        py: Python<'_>,
        dying: &Dying<PyOps>,
        letter: DeadLetter,
        ended: WallSeconds,
    ) -> bool {
        let id = letter.id.clone();
        // Of a file, only what it cannot hold.
        let keep = self.store.in_memory() || letter.redrivable_in_process_only;
        if keep {
            let original = dying.entry.event.payload.clone_ref(py);
            self.originals.put(id.clone(), original);
        }
        let added = py.detach(|| {
            self.store.work(|queue| {
                self.expire(queue, ended)?;
                queue.add(letter, ended)?;
                self.look(queue)
            })
        });
        if let Err(error) = added {
            self.originals.remove(&id);
            self.say_parked(py, dying, &error.to_string());
            return false;
        }
        lock(&self.growth).count(dying.at);
        if self.originals.len() > self.statistics().entries as usize + SPARE {
            self.prune(py);
        }
        true
    }

    /// A letter has left with the settlement of its delivery.
    pub fn left(&self, id: &str) {
        self.under_way.remove(id);
        self.originals.remove(id);
        {
            let mut seen = lock(&self.seen);
            seen.last.entries = seen.last.entries.saturating_sub(1);
        }
        self.room_made();
    }

    /// Lets go of payloads whose letters have gone.
    pub fn prune(&self, py: Python<'_>) {
        let ids = self.originals.ids();
        let gone = py.detach(|| {
            self.store.work(|queue| {
                let mut gone = Vec::new();
                for id in ids {
                    if let Ok(None) = queue.get(&id) {
                        gone.push(id);
                    }
                }
                Ok(gone)
            })
        });
        for id in gone.iter().flatten() {
            self.originals.remove(id);
        }
    }

    fn tell(
        &self,
        py: Python<'_>,
        dying: &Dying<PyOps>,
        letter: &Letter,
        fate: Fate,
        ended: WallSeconds,
    ) {
        let Letter { id, holder, .. } = letter;
        let succeeded = matches!(fate, Fate::Succeeded);
        let told = py.detach(|| {
            self.store.work(|queue| {
                match fate {
                    Fate::Succeeded => queue.succeeded(id, *holder),
                    Fate::Failed(failure, fingerprint, attempts) => {
                        queue.failed(id, *holder, failure, fingerprint, attempts, ended)
                    }
                    Fate::Released => queue.release(id, *holder),
                }?;
                self.look(queue)
            })
        });
        // Not before: its lease may have ended, and then another redrive would deliver it once more.
        self.under_way.remove(id);
        match told {
            Ok(()) if succeeded => {
                self.originals.remove(id);
                self.room_made();
            }
            Ok(()) => {}
            Err(error) => self.say_unchanged(py, dying, id, &error.to_string()),
        }
    }

    /// Says, once, that the lane starts nothing more before the letter can be kept.
    fn say_parked(&self, py: Python<'_>, dying: &Dying<PyOps>, reason: &str) {
        static LOG: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        if dying.again {
            return;
        }
        let said = LOG.import(py, "ironbus._log", "parked").and_then(|log| {
            let name = &dying.lane.handler.name;
            log.call1((name, dying.entry.sequence, reason))
        });
        if let Err(error) = said {
            error.write_unraisable(py, None);
        }
    }

    fn say_unchanged(&self, py: Python<'_>, dying: &Dying<PyOps>, id: &str, reason: &str) {
        static LOG: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let log = LOG.import(py, "ironbus._log", "dead_letter_unchanged");
        let said = log.and_then(|log| {
            let name = &dying.lane.handler.name;
            log.call1((name, dying.entry.sequence, id, reason))
        });
        if let Err(error) = said {
            error.write_unraisable(py, None);
        }
    }

    /// Its texts could not be made: that is said by the kind of the error alone.
    fn say_broken(&self, py: Python<'_>, dying: &Dying<PyOps>, error: &PyErr) {
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            // It came just now, and is meant for the program.
            let interrupted = py.import("_thread");
            let interrupted = interrupted.and_then(|thread| thread.call_method0("interrupt_main"));
            if let Err(error) = interrupted {
                error.write_unraisable(py, None);
            }
        }
        let kind = error.get_type(py).name();
        let kind = kind.map_or_else(|_| String::new(), |kind| kind.to_string());
        self.say_parked(py, dying, &kind);
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.writer)?;
        self.originals.traverse(visit)
    }
}

const MINUTE: WallSeconds = 60.0;

/// So many payloads more than letters are not looked at one by one.
const SPARE: usize = 64;

impl LetterSink {
    /// Has the journal write the letter and the settlement of its delivery, both or neither.
    fn keep_as_one(
        self: &Arc<Self>,
        py: Python<'_>,
        core: &Arc<Core>,
        mut dying: Box<Dying<PyOps>>,
        letter: Box<DeadLetter>,
    ) -> Kept<PyOps> {
        let journaled = core.journaled.as_ref();
        let engine = journaled.map(|journaled| &journaled.engine);
        let bus = &core.bus;
        let mut unit = Unit {
            dead_letter: Some(*letter),
            ..Unit::default()
        };
        dying.as_one = true;
        let (lane, level, sequence) = (dying.lane.clone(), dying.entry.level, dying.entry.sequence);
        let waiting = Arc::new(Mutex::new(Some(dying)));
        let (weak, sink, told) = (Arc::downgrade(core), self.clone(), waiting.clone());
        let done = move |outcome: Result<Durability, JournalError>| {
            Python::try_attach(|py| {
                let (Some(core), Some(dying)) = (weak.upgrade(), lock(&told).take()) else {
                    return;
                };
                match &outcome {
                    Ok(_) => {
                        lock(&sink.growth).count(dying.at);
                        lock(&sink.seen).last.entries += 1;
                    }
                    Err(error) => sink.say_parked(py, &dying, &error.to_string()),
                }
                let now = core.now(py).unwrap_or_else(|error| {
                    error.write_unraisable(py, None);
                    dying.at
                });
                core.bus.letter_kept(dying, outcome.is_ok(), now);
            });
        };
        let place = engine.and_then(|engine| Some((engine, engine.place(lane.id)?)));
        let handed = place.map(|(engine, place)| {
            let delivery = Some((level, sequence));
            let (os, done) = (Durability::Os, Box::new(done));
            engine.settle_with(bus, &place, delivery, &mut unit, Vec::new(), os, done)
        });
        match handed {
            Some(Ok(())) => Kept::Later,
            refused => {
                let reason = match refused.and_then(Result::err) {
                    Some((Refusal::Journal(reason), _)) => reason,
                    _ => JournalError::Closed,
                };
                let Some(dying) = lock(&waiting).take() else {
                    return Kept::Later;
                };
                self.say_parked(py, &dying, &reason.to_string());
                Kept::Not(dying)
            }
        }
    }
}

impl Sink<PyOps> for Arc<LetterSink> {
    fn keep(&self, dying: Box<Dying<PyOps>>) -> Kept<PyOps> {
        Python::attach(|py| {
            let (note, ended) = match self.note(py, &dying) {
                Ok(note) => note,
                Err(error) => {
                    self.say_broken(py, &dying, &error);
                    return Kept::Not(dying);
                }
            };
            let core = self.core.get().and_then(Weak::upgrade);
            let note = match (note, &core) {
                (Note::New(letter), Some(core)) if dying.lane.options.backing.is_some() => {
                    return self.keep_as_one(py, core, dying, letter);
                }
                (note, _) => note,
            };
            let (Some(writer), Some(core)) = (&self.writer, core) else {
                return if self.write(py, &dying, note, ended) {
                    Kept::Now(dying)
                } else {
                    Kept::Not(dying)
                };
            };
            let work = Mutex::default();
            let mail = match Py::new(py, Mail { core, work }) {
                Ok(mail) => mail,
                Err(error) => {
                    self.say_broken(py, &dying, &error);
                    return Kept::Not(dying);
                }
            };
            *lock(&mail.get().work) = Some((dying, note, ended));
            let Err(error) = writer.call1(py, (&mail,)) else {
                return Kept::Later;
            };
            let Some((dying, ..)) = lock(&mail.get().work).take() else {
                return Kept::Later;
            };
            self.say_broken(py, &dying, &error);
            Kept::Not(dying)
        })
    }
}

/// The delivery, what is to be written of it, and when it ended.
type Work = (Box<Dying<PyOps>>, Note, WallSeconds);

/// A delivery on its way to the file.
#[pyclass(frozen)]
struct Mail {
    core: Arc<Core>,
    work: Mutex<Option<Work>>,
}

#[pymethods]
impl Mail {
    /// On the thread that writes.
    fn __call__(&self, py: Python<'_>) {
        let Some((dying, note, ended)) = lock(&self.work).take() else {
            return;
        };
        let kept = self.core.bus.sink().write(py, &dying, note, ended);
        // A clock of the user's that fails must not keep the lane waiting for ever.
        let now = self.core.now(py).unwrap_or_else(|error| {
            error.write_unraisable(py, None);
            dying.at
        });
        self.core.bus.letter_kept(dying, kept, now);
    }
}
