//! A bus with a journal. What differs from one without is the way to the lanes: an event is
//! numbered under the gate and handed to the journal; when its commit is flushed, it goes to the
//! lanes ([`Bus::commit`]), and its publisher is told. Durable lanes are [windows](window) over
//! the journal, refilled by a [thread](refill).
//!
//! The journal is open from the first publish or the start to the stop. In between, windows are
//! attached to their subscriptions in the journal; opened again, it says what each has still to
//! do, and what waits in a lane from before is let in anew.

mod backlog;
mod gaps;
mod hand_over;
mod keeper;
mod members;
mod publication;
mod refill;
mod together;
mod window;

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use hashbrown::HashMap;

use self::backlog::Backlog;
use self::gaps::Gaps;
use self::keeper::Keeper;
use self::members::Members;
use self::refill::{Refiller, Work};
use super::bus::Bus;
use super::clock::{Nanos, SECOND};
use super::digest::Digest;
use super::error::EngineError;
use super::gate::{Committed, Effects, Timing};
use super::journal::{Commit, Event, FileOptions, Journal, JournalError, Observer};
use super::lane::{Doom, Entry, LaneId};
use super::ops::{Cause, Ops, Wake, wake_all};
use super::settlement::Envelope;
use super::store::{Durability, Problem, WallSeconds};
use super::sync::{Mutex, Shared, lock};

pub use self::backlog::Furthest;
pub use self::hand_over::Beyond;
pub use self::keeper::{Keep, Kept};
pub use self::members::Since;
pub use self::publication::{Fate, Publication};
pub use self::together::Place;
pub use self::window::Window;

/// What comes out of a journal, in the hands of who knows what payloads are.
pub trait Revive<O: Ops>: Send + Sync {
    /// The payload of an event; where it cannot be read, what stands for it, and what is wrong.
    fn payload(&self, event: &Event) -> (O::Payload, Option<O::Failure>);
    /// What the event is ordered by.
    fn token(&self, event: &Event) -> u64;
    /// What is said of an event whose handler ends the process again and again.
    fn killed(&self) -> O::Failure;
    /// Now, on the bus's clock.
    fn now(&self) -> Nanos;
    /// The same moment, in Unix time.
    fn wall(&self) -> WallSeconds;
    /// Does work in which locks of the bus are taken: a fork must not come in between.
    fn attached(&self, work: &mut dyn FnMut());
    /// The journal cannot be read: somebody is to hear of it.
    fn unreadable(&self, subscription: &str, error: &JournalError);
}

/// An event on its way to the journal.
pub struct Written<O: Ops> {
    /// The event.
    pub event: Shared<Envelope<O>>,
    /// As it is stored; its number is set here.
    pub stored: Event,
    /// What it is ordered by.
    pub token: u64,
    /// What duplicates are found by. The publisher holds its claim.
    pub key: Option<Digest>,
    /// When it may be delivered, if not always.
    pub timing: Option<Timing>,
}

/// Why nothing was handed to the journal.
pub enum Refusal {
    /// The journal's reason. [`JournalError::Busy`] passes: see [`Durable::when_room`].
    Journal(JournalError),
    /// The gate's.
    Engine(EngineError),
}

/// What became of events that were to be handed over; those that were not come back.
pub type Handed<O> = Result<Arc<Publication<O>>, (Refusal, Vec<Written<O>>)>;

/// An event whose commit is not over.
struct Uncommitted<O: Ops> {
    committed: Committed<O>,
    key: Option<Digest>,
    publication: Arc<Publication<O>>,
}

/// How a journal is opened.
pub struct Opening<O: Ops> {
    /// How the file is.
    pub options: FileOptions,
    /// Told of commits: it calls [`Durable::committed`].
    pub observer: Arc<dyn Observer>,
    /// For the time that it is open.
    pub revive: Arc<dyn Revive<O>>,
    /// How long keys count, in seconds.
    pub ttl: WallSeconds,
    /// How many are kept.
    pub max_keys: usize,
    /// What else is kept.
    pub keep: Keep,
}

struct Open<O: Ops> {
    journal: Arc<Journal>,
    revive: Arc<dyn Revive<O>>,
    /// The number behind which those of this opening begin.
    opened_at: u64,
    gaps: Gaps,
}

impl<O: Ops> Clone for Open<O> {
    fn clone(&self) -> Self {
        Self {
            journal: self.journal.clone(),
            revive: self.revive.clone(),
            opened_at: self.opened_at,
            gaps: self.gaps.clone(),
        }
    }
}

/// See the module. What waits for the disk says so; nobody who does may hold a lock.
pub struct Durable<O: Ops> {
    path: PathBuf,
    /// Who opens, closes or subscribes; held while that waits for the disk.
    changing: Mutex<Members<O>>,
    /// By the numbers of their lanes. Held for a moment only.
    windows: Mutex<HashMap<LaneId, Arc<Window<O>>>>,
    /// The names of the subscriptions in the journal, as of its opening and with what came since.
    names: Mutex<BTreeSet<String>>,
    open: Mutex<Option<Open<O>>>,
    uncommitted: Mutex<VecDeque<Uncommitted<O>>>,
    /// Publishers that wait for room in the journal's buffer.
    crowd: Mutex<Vec<O::Waker>>,
    refiller: Arc<Refiller<O>>,
    backlog: Arc<Backlog<O>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    keeper: Mutex<Option<Keeper>>,
}

impl<O: Ops> Durable<O> {
    /// A journal that is not open yet, and how many events a subscription may be behind before publishers
    /// wait for it. Nothing is made.
    pub fn new(path: PathBuf, max_backlog: Option<u64>) -> Self {
        Self {
            path,
            changing: Mutex::new(Members::default()),
            windows: Mutex::new(HashMap::new()),
            names: Mutex::default(),
            open: Mutex::new(None),
            uncommitted: Mutex::new(VecDeque::new()),
            crowd: Mutex::new(Vec::new()),
            refiller: Arc::default(),
            backlog: Arc::new(Backlog::new(max_backlog)),
            thread: Mutex::new(None),
            keeper: Mutex::new(None),
        }
    }

    /// Its file.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// The journal, while it is open.
    pub fn journal(&self) -> Option<Arc<Journal>> {
        lock(&self.open).as_ref().map(|open| open.journal.clone())
    }

    /// Whether it is open and a flush has failed: until it is opened again nothing is written.
    pub fn is_read_only(&self) -> bool {
        self.journal().is_some_and(|journal| journal.is_read_only())
    }

    fn opened(&self) -> Option<Open<O>> {
        lock(&self.open).clone()
    }

    /// Opens the journal, unless it is open; attaches all windows. Waits for the disk.
    pub fn open(
        self: &Arc<Self>,
        bus: &Arc<impl AsRef<Bus<O>> + Send + Sync + 'static>,
        opening: impl FnOnce() -> Opening<O>,
    ) -> Result<(), JournalError> {
        let members = lock(&self.changing);
        if self.journal().is_some() {
            return Ok(());
        }
        let Opening {
            options,
            observer,
            revive,
            ttl,
            max_keys,
            keep,
        } = opening();
        let journal = Arc::new(Journal::open(&self.path, options, observer)?);
        let opened_at = journal.sequence();
        let engine = (**bus).as_ref();
        let (now, wall) = (revive.now(), revive.wall());
        let keys = journal.keys(wall - ttl, max_keys)?;
        let mut joined = Vec::new();
        revive.attached(&mut || {
            engine.gate.number_behind(opened_at);
            joined = engine.with_keys(|keys| keys.end_claims());
        });
        let mut keys = Some(keys);
        revive.attached(&mut || {
            engine.with_keys(|seen| {
                for (digest, accepted) in keys.take().unwrap_or_default() {
                    let deadline = nanos_at(accepted + ttl, wall, now);
                    seen.restore(digest, deadline, now);
                }
            });
        });
        self.refiller.reached(opened_at);
        let gaps = Gaps::of(&mut *journal.reader()?, opened_at)?;
        let open = Open {
            journal,
            revive,
            opened_at,
            gaps,
        };
        let known = open.journal.subscriptions()?;
        let names = known.into_iter().map(|(row, _)| row.name);
        let names = names.chain(members.names());
        *lock(&self.names) = names.collect();
        if let Err(error) = members.attach_all(engine, &open) {
            members.windows().for_each(|window| window.detach());
            return Err(error);
        }
        let thread = self.start_refiller(bus, &open);
        let problem = |error| JournalError::Store(Problem::from(error).at(&self.path));
        *lock(&self.thread) = Some(thread.map_err(problem)?);
        let durable = Arc::downgrade(self);
        let gone = move |names: &[String]| {
            if let Some(durable) = Weak::upgrade(&durable) {
                lock(&durable.names).retain(|known| !names.contains(known));
            }
        };
        let keeper = Keeper::start(keep, open.journal.clone(), gone);
        *lock(&self.keeper) = Some(keeper.map_err(problem)?);
        *lock(&self.open) = Some(open);
        wake_all(joined);
        Ok(())
    }

    fn start_refiller(
        self: &Arc<Self>,
        bus: &Arc<impl AsRef<Bus<O>> + Send + Sync + 'static>,
        open: &Open<O>,
    ) -> std::io::Result<JoinHandle<()>> {
        let (durable, bus) = (Arc::downgrade(self), Arc::downgrade(bus));
        let revive = open.revive.clone();
        self.refiller.begin();
        self.refiller.start(move |work| {
            let (Some(durable), Some(bus)) = (Weak::upgrade(&durable), Weak::upgrade(&bus)) else {
                return;
            };
            let refiller = &durable.refiller;
            let engine = (*bus).as_ref();
            let (window, level) = match &work {
                Work::Refill(window, level) => (window, *level),
                Work::Line => {
                    let served = &mut || durable.serve_line(engine, revive.now());
                    return revive.attached(served);
                }
            };
            if let Err(error) = refiller.refill(engine, window, level, &*revive)
                && error != JournalError::Closed
            {
                revive.unreadable(window.name(), &error);
            }
        })
    }

    /// The gate is open: lanes are given what is there. Waits for nothing.
    pub fn resume(&self) {
        for window in lock(&self.changing).windows() {
            for level in super::priority::Priority::ALL {
                window.ask(level);
            }
        }
        self.refiller.ask_line();
    }

    /// Lets go of what the journal need not keep, as is done now and then anyway. Waits for the disk.
    pub fn upkeep(&self) -> Kept {
        let keeper = lock(&self.keeper).as_ref().map(|it| it.charge.clone());
        keeper.map_or(Err(JournalError::Closed), |charge| charge.round())
    }

    /// Writes what there is, and closes the journal. Waits for the disk.
    pub fn close(&self) -> Result<(), JournalError> {
        let members = lock(&self.changing);
        drop(lock(&self.keeper).take());
        self.refiller.end();
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // One that panicked has said so.
            let _ = thread.join();
        }
        let Some(open) = self.opened() else {
            return Ok(());
        };
        let closed = open.journal.close();
        *lock(&self.open) = None;
        members.windows().for_each(|window| window.detach());
        wake_all(std::mem::take(&mut *lock(&self.crowd)));
        closed
    }

    /// In a child of the process that has the journal: it stays with the parent.
    pub fn forked(&self) {
        std::mem::forget(lock(&self.open).take());
        std::mem::forget(lock(&self.thread).take());
        std::mem::forget(lock(&self.keeper).take());
        std::mem::forget(std::mem::take(&mut *lock(&self.uncommitted)));
        std::mem::forget(std::mem::take(&mut *self.backlog.line()));
        let members = lock(&self.changing);
        members.windows().for_each(|window| window.abandon());
    }

    /// From within [`Observer::committed`].
    pub fn committed(&self, bus: &Bus<O>, commit: &Commit, now: Nanos) {
        if let Some((_, last)) = commit.sequences {
            let batch = self.take_through(last);
            let refused = |item: &Uncommitted<O>| {
                let number = item.committed.sequence;
                let mut ranges = commit.refused.iter();
                ranges.any(|(first, last)| (*first..=*last).contains(&number))
            };
            let (refused, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(refused);
            let fate = match (&commit.error, commit.durability) {
                (None, durability) => Ok(durability.unwrap_or(Durability::Os)),
                (Some(error), _) => Err(error.clone()),
            };
            self.end(bus, batch, &fate, last, now);
            if !refused.is_empty() {
                // Whoever had handed the unit in knows why.
                self.end(bus, refused, &Err(JournalError::Refused), last, now);
            }
        }
        let wakers = std::mem::take(&mut *lock(&self.crowd));
        O::Waker::wake_many(wakers);
        if self.backlog.is_anybody_in_line() {
            self.serve_line(bus, now);
        }
    }

    /// The commit of these is over, and with it all numbers up to `last`.
    fn end(&self, bus: &Bus<O>, batch: Vec<Uncommitted<O>>, fate: &Fate, last: u64, now: Nanos) {
        let mut wakers = Vec::new();
        let (mut events, mut told) = (Vec::new(), Vec::new());
        for Uncommitted {
            committed,
            key,
            publication,
        } in batch
        {
            events.push(committed);
            told.push((key, publication));
        }
        let mut effects = Effects::default();
        let mut entered = None;
        match fate {
            Ok(_) => {
                entered = Some(bus.gate.commit(&events, now, &mut effects));
                self.refiller.reached(last);
                let keys = told.iter().filter_map(|(key, _)| key.as_ref());
                bus.with_keys(|seen| {
                    wakers.extend(keys.flat_map(|key| seen.commit(key, now)));
                });
            }
            Err(error) => {
                let unknown = matches!(error, JournalError::DurabilityUnknown(_));
                bus.gate.fail_commit(events.len(), unknown, &mut effects);
                for event in &events {
                    wakers.extend(event.event.routed(0).into_iter().flatten());
                }
                let keys = told.iter().filter_map(|(key, _)| key.as_ref());
                bus.with_keys(|seen| {
                    wakers.extend(keys.flat_map(|key| match unknown {
                        // Whoever joined, or is about to, is told that nothing is written any more.
                        true => seen.leave_open(key),
                        false => seen.release(key),
                    }));
                });
            }
        }
        // Before anybody knows: who does may look when the next thing is due.
        bus.carry_out(effects, now);
        for run in told.chunk_by(|(_, one), (_, next)| Arc::ptr_eq(one, next)) {
            wakers.extend(run[0].1.are_over(run.len(), fate));
        }
        wakers.append(&mut lock(&self.crowd));
        // Publishers before the lanes, which have the events already: what is published next is
        // written while these are handled.
        O::Waker::wake_many(wakers);
        if let Some(entered) = entered {
            entered.signal();
        }
        // Payloads' destructors are outside code: with no lock held.
        drop((events, told));
    }

    fn take_through(&self, last: u64) -> Vec<Uncommitted<O>> {
        let mut uncommitted = lock(&self.uncommitted);
        let through = |item: &Uncommitted<O>| item.committed.sequence <= last;
        let count = uncommitted.partition_point(through);
        uncommitted.drain(..count).collect()
    }
}

/// When a wall time is, on a clock that shows `now` at the time `wall`.
pub(super) fn nanos_at(time: WallSeconds, wall: WallSeconds, now: Nanos) -> Nanos {
    let seconds = time - wall;
    let distance = (seconds.abs() * SECOND as f64) as Nanos;
    match seconds >= 0.0 {
        true => now.saturating_add(distance),
        false => now.saturating_sub(distance),
    }
}

/// An event that is not to be called any more.
pub(super) fn doomed<O: Ops>(
    event: &Event,
    envelope: Shared<Envelope<O>>,
    failure: O::Failure,
    now: Nanos,
) -> Entry<O> {
    let mut entry = Entry::new(event.sequence, now, 0, event.level, envelope, None);
    entry.rare().doom = Some(Doom {
        cause: Cause::Final,
        failure: Arc::new(failure),
    });
    entry
}
