//! The journal: what a bus with a path has accepted, and what of it is settled for whom.
//!
//! # How it works
//!
//! One *writer* thread owns the [`Storage`]. Whoever has something to write hands it to the
//! [queue](queue) in memory and goes on; the writer takes all that has come, writes it as one
//! commit, flushes once, and tells everybody: [group commit](writer), without a pause for more to
//! come. The commit is as durable as the strongest that was asked for in it. Under the gate, an
//! event only gets its number and goes into the queue, so the gate is never held during I/O; when
//! its commit is flushed, [`Observer::committed`] says so, in the order of the numbers, and only
//! then is the event given to lanes and its publisher told.
//!
//! A durable lane is a window over the journal: a [`Subscription`] knows how far it was read and
//! what of that is settled ([`cursor`]). Commits hand events over as long as the lane has room; a
//! lane that has fallen behind is refilled by level and number. Settlements go into the next
//! commit as one row for each level, however many they are. What holds a cursor back for long
//! becomes a *straggler*, a row of its own, and the cursor goes on.
//!
//! A [`Unit`] is a settlement together with what must happen with it or not at all: a dead
//! letter, new events, statements on the user's tables.
//!
//! When a flush fails, nobody knows whether its events are stored: they are
//! [`DurabilityUnknown`](JournalError::DurabilityUnknown), and nothing more is written until the
//! journal is opened again, which tells. Numbers are reserved in blocks before they may be given,
//! so that none is given twice, whatever happens.
//!
//! The journal reads no clock and knows no lanes, handlers or payloads.

pub mod cursor;
mod error;
mod event;
mod faults;
mod file;
pub mod in_flight;
mod letters;
mod memory;
mod owner;
mod page;
mod queue;
mod sqlite;
mod storage;
mod subscription;
mod upkeep;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

pub use self::error::JournalError;
pub use self::event::{Event, KeyDigest};
pub use self::faults::Faults;
#[cfg(feature = "faults")]
pub use self::faults::Hook;
pub use self::file::FileOptions;
pub use self::letters::{JournalDeadLetters, read_dead_letters};
pub use self::memory::{MemoryReader, MemoryStorage};
pub use self::owner::{Owner, Ownership, owner_of};
pub use self::queue::{Bounds, Delivery, Ticket, UnitDone};
pub use self::sqlite::{Answer, Verification, backup, query, verify};
pub use self::sqlite::{Level, Standing, Status, status};
pub use self::sqlite::{SqliteOptions, SqliteReader, SqliteStorage};
pub use self::storage::{
    Change, CommitError, Counts, CursorRow, Damage, EventFilter, Head, Horizon, Parameters, Range,
    Reader, Retained, Scan, Statement, Storage, Straggler, StragglerState, SubscriptionId,
    SubscriptionRow, Unit, Value,
};
pub use self::subscription::{Place, Refill, Subscription};
pub use self::upkeep::{Keeping, Upkeep};

use rusqlite::Connection;

use self::queue::{Queue, Task};
use self::writer::Writer;
use super::store::{Durability, Problem, StoreError, WallSeconds};
use super::sync::{Mutex, lock};

/// Tells the time, in seconds since 1970.
pub type Clock = Arc<dyn Fn() -> WallSeconds + Send + Sync>;

/// The subscriptions of this process.
type Registry = Mutex<Vec<Weak<Subscription>>>;

/// Told of every commit by the writer, with no lock of the journal held.
pub trait Observer: Send + Sync {
    /// A commit is done or has failed. The next one waits for the end of this call, and so do those
    /// who wait for a ticket: this must not wait for the journal.
    fn committed(&self, commit: &Commit);
}

/// What became of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The first and the last number in it, if it had events.
    pub sequences: Option<(u64, u64)>,
    /// Those of them that nothing has: the first and the last event of each unit that was refused,
    /// which was told so before this.
    pub refused: Vec<(u64, u64)>,
    /// How durable it is; `None`: it failed.
    pub durability: Option<Durability>,
    /// Why it failed.
    pub error: Option<JournalError>,
}

/// What the journal's parts share.
pub(crate) struct Shared {
    path: PathBuf,
    queue: Queue,
    /// The last event that was committed.
    committed: AtomicU64,
    /// Until it is closed.
    reader: Mutex<Option<Box<dyn Reader>>>,
    /// A reader of the dead letters, once somebody has asked for them.
    letters: Mutex<Option<Connection>>,
    clock: Clock,
    checkpoint_error: Mutex<Option<StoreError>>,
    ended: Mutex<Option<Result<(), JournalError>>>,
    /// What the writer lets go of at its end, where nobody waits for that.
    left: Mutex<Option<file::Held>>,
}

impl Shared {
    fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Has damage noted and moved aside. Whoever met it reports it as well, so that nothing is
    /// lost where nothing can be written any more.
    fn report(&self, damage: Damage) {
        let now = (self.clock)();
        let task: Task = Box::new(move |storage, _| storage.quarantine(damage, now));
        self.queue.push_task(task, Durability::Os).ok();
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&mut dyn Reader) -> Result<T, StoreError>,
    ) -> Result<T, JournalError> {
        match &mut *lock(&self.reader) {
            Some(reader) => Ok(work(&mut **reader)?),
            None => Err(JournalError::Closed),
        }
    }

    /// Has the writer do something between others, and waits for the commit that it is in.
    fn run<T: Send + 'static>(
        &self,
        durability: Durability,
        mut work: impl FnMut(&mut dyn Storage, &mut Head) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let result = Arc::new(Mutex::new(None));
        let slot = result.clone();
        let task: Task = Box::new(move |storage, head| {
            *lock(&slot) = Some(work(storage, head)?);
            Ok(())
        });
        self.queue.push_task(task, durability)?.wait()?;
        lock(&result).take().ok_or(JournalError::Closed)
    }

    /// The same for statements on tables of other modules.
    fn sql<T: Send + 'static>(
        &self,
        durability: Durability,
        mut work: impl FnMut(&Connection) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, JournalError> {
        self.run(durability, move |storage, _| {
            let mut result = None;
            let ran = storage.sql(&mut |connection| {
                result = Some(work(connection)?);
                Ok(())
            })?;
            Ok(ran.and_then(|()| result.ok_or(JournalError::Closed)))
        })?
    }
}

/// How a journal works.
#[derive(Clone)]
pub struct JournalOptions {
    /// What may wait.
    pub bounds: Bounds,
    /// Handed in: the journal reads no clock by itself.
    pub clock: Clock,
    /// For tests.
    pub faults: Faults,
}

/// See the module.
pub struct Journal {
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    head: Head,
    /// Where upkeep looks on whether kept events are needed still.
    again: Arc<Mutex<u64>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Of a journal in a file. Let go of when the writer has ended.
    held: Mutex<Option<file::Held>>,
}

/// What a journal starts with.
pub struct Start {
    /// What keeps it.
    pub storage: Box<dyn Storage>,
    /// What it knows of itself.
    pub head: Head,
    /// Its name in errors.
    pub path: PathBuf,
    /// What the opening has to set right.
    pub settlements: (Vec<CursorRow>, Vec<Change>),
}

impl Journal {
    /// Starts the writer over a storage that was opened.
    pub fn start(
        start: Start,
        options: JournalOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, JournalError> {
        let Start {
            mut storage,
            mut head,
            path,
            settlements,
        } = start;
        let found = head;
        head.reserved = head.reserved.max(head.last());
        let sequence = head.reserved;
        head.reserved += options.bounds.block;
        head.closed = false;
        storage.begin(Durability::Fsync)?;
        storage.settle(&settlements.0, &settlements.1)?;
        storage.write_head(&head)?;
        storage.commit().map_err(|error| match error {
            CommitError::Undone(error) | CommitError::Unknown(error) => JournalError::Store(error),
        })?;
        let shared = Arc::new(Shared {
            path,
            queue: Queue::new(options.bounds, sequence, &head),
            committed: AtomicU64::new(head.last()),
            reader: Mutex::new(Some(storage.reader()?)),
            letters: Mutex::default(),
            clock: options.clock,
            checkpoint_error: Mutex::default(),
            ended: Mutex::default(),
            left: Mutex::default(),
        });
        let registry = Arc::<Registry>::default();
        let writer = Writer {
            storage,
            head,
            shared: shared.clone(),
            registry: registry.clone(),
            observer,
            faults: options.faults,
            failed: None,
        };
        let thread = std::thread::Builder::new()
            .name("ironbus-journal".into())
            .spawn(move || writer.run())
            .map_err(|error| JournalError::Store(Problem::from(error).at(&shared.path)))?;
        Ok(Self {
            shared,
            registry,
            head: found,
            again: Arc::default(),
            writer: Mutex::new(Some(thread)),
            held: Mutex::default(),
        })
    }

    /// What the journal knew of itself when it was opened.
    pub fn opened(&self) -> Head {
        self.head
    }

    /// The number behind which the gate's numbers begin.
    pub fn sequence(&self) -> u64 {
        self.shared.queue.sequence()
    }

    /// The last event that was committed.
    pub fn committed(&self) -> u64 {
        self.shared.committed()
    }

    /// How many events may be appended now. Only the gate appends, so it stays true until it does.
    pub fn room(&self) -> usize {
        self.shared.queue.room()
    }

    /// The gate has given a number to something else than an event of the journal. Does no I/O.
    pub fn given(&self, sequence: u64) {
        self.shared.queue.given(sequence);
    }

    /// Hands events in, numbered and in the order of their numbers: all or none. Does no I/O, so
    /// the gate may be held.
    pub fn append(
        &self,
        events: Vec<Event>,
        durability: Durability,
    ) -> Result<Ticket, JournalError> {
        self.shared.queue.push_events(events, durability)
    }

    /// Hands in a unit and the delivery that it settles. Does no I/O. `done` is told its fate.
    pub fn unit(
        &self,
        unit: Unit,
        delivery: Option<Delivery>,
        durability: Durability,
        done: UnitDone,
    ) -> Result<Ticket, JournalError> {
        self.shared
            .queue
            .push_unit(unit, delivery, durability, done)
    }

    /// Makes a subscription that begins behind a number, or finds the one of this name where it
    /// was. Waits for the disk.
    pub fn register(
        &self,
        name: &str,
        topics: &[String],
        after: u64,
    ) -> Result<Arc<Subscription>, JournalError> {
        let wanted = (name.to_owned(), topics.to_vec(), after);
        let registered = self.register_all(vec![wanted])?.pop();
        registered.ok_or(JournalError::Closed)
    }

    /// The same for several at once: a name, its topics, and the number that it begins behind each.
    pub fn register_all(
        &self,
        wanted: Vec<(String, Vec<String>, u64)>,
    ) -> Result<Vec<Arc<Subscription>>, JournalError> {
        let now = (self.shared.clock)();
        let rows = self.run(Durability::Fsync, move |storage, _| {
            let register = |(name, topics, after): &(String, Vec<String>, u64)| {
                storage.register(name, topics, *after, now)
            };
            wanted.iter().map(register).collect::<Result<Vec<_>, _>>()
        })?;
        let made = rows
            .into_iter()
            .map(|(row, cursors)| Arc::new(Subscription::new(&row, cursors, self.shared.clone())));
        let made: Vec<_> = made.collect();
        let mut registry = lock(&self.registry);
        registry.retain(|known| known.strong_count() > 0);
        registry.extend(made.iter().map(Arc::downgrade));
        Ok(made)
    }

    /// Says what a subscription listens to from now on. Waits for the disk; `change` is called when it
    /// is there.
    pub fn listen(
        &self,
        subscription: &Arc<Subscription>,
        topics: Vec<String>,
        change: impl FnOnce(),
    ) -> Result<(), JournalError> {
        let now = (self.shared.clock)();
        let (name, stored) = (subscription.name().to_owned(), topics.clone());
        self.run(Durability::Fsync, move |storage, _| {
            storage.register(&name, &stored, 0, now).map(drop)
        })?;
        subscription.listen(&topics);
        change();
        Ok(())
    }

    /// All subscriptions in the journal and where they are, those of this process or not.
    pub fn subscriptions(&self) -> Result<Vec<(SubscriptionRow, Vec<CursorRow>)>, JournalError> {
        self.shared.read(|reader| reader.subscriptions())
    }

    /// The keys that were accepted at this time or later, the newest `limit`, oldest first.
    pub fn keys(
        &self,
        since: WallSeconds,
        limit: usize,
    ) -> Result<Vec<(KeyDigest, WallSeconds)>, JournalError> {
        self.shared.read(|reader| reader.keys(since, limit))
    }

    /// The last event that was accepted before a time.
    pub fn position_at(&self, time: WallSeconds) -> Result<u64, JournalError> {
        self.shared.read(|reader| reader.position_at(time))
    }

    /// How many events there are, and how much of them was damaged or lost.
    pub fn counts(&self) -> Result<Counts, JournalError> {
        self.shared.read(|reader| reader.counts())
    }

    /// Writes all that is here, settlements too, and waits for it.
    pub fn flush(&self, durability: Durability) -> Result<(), JournalError> {
        self.run(durability, |_, _| Ok(()))
    }

    /// Another way to read: for one reader at a time. As long as one is open, the log stays beside
    /// a journal that was closed.
    pub fn reader(&self) -> Result<Box<dyn Reader>, JournalError> {
        self.run(Durability::Os, |storage, _| storage.reader())
    }

    /// Why it writes nothing any more, if it does not.
    pub fn refuses(&self) -> Result<(), JournalError> {
        self.shared.queue.refuses()
    }

    /// Whether a flush has failed, after which nothing is written.
    pub fn is_read_only(&self) -> bool {
        self.shared.queue.is_broken()
    }

    /// Why the last checkpoint failed, if it did: the log grows until one succeeds.
    pub fn checkpoint_error(&self) -> Option<StoreError> {
        lock(&self.shared.checkpoint_error).clone()
    }

    fn run<T: Send + 'static>(
        &self,
        durability: Durability,
        work: impl FnMut(&mut dyn Storage, &mut Head) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, JournalError> {
        self.shared.run(durability, work)
    }

    /// Writes all that is here, and ends. What went wrong at the end is the error. Called by the
    /// writer itself, in what it tells of a commit, this only begins the end.
    pub fn close(&self) -> Result<(), JournalError> {
        if !self.end() {
            return Ok(());
        }
        // Whatever went wrong, somebody else may have it now.
        let held = lock(&self.held).take();
        lock(&self.shared.ended)
            .take()
            .unwrap_or(Err(JournalError::ReadOnly))?;
        held.map_or(Ok(()), |held| held.in_flight.remove())
    }

    /// False: this is the writer, which cannot wait for itself and takes with it what is held.
    fn end(&self) -> bool {
        self.shared.queue.close();
        let Some(writer) = lock(&self.writer).take() else {
            return true;
        };
        if writer.thread().id() == std::thread::current().id() {
            *lock(&self.shared.left) = lock(&self.held).take();
            return false;
        }
        // One that panicked has told those who wait by its guard.
        let _ = writer.join();
        true
    }
}

/// Who is caught up need not look at what was committed so far, and offered to the lanes.
fn advance(registry: &Registry, through: u64) {
    for subscription in lock(registry).iter().filter_map(Weak::upgrade) {
        subscription.advance(through);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.end();
    }
}
