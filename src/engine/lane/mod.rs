//! A lane: the queue of one subscription, and the rule of what is started next.
//!
//! The gate pushes at one end, executors take at the other, one event at a time (a
//! batch taken in advance would hide a `CRITICAL` behind it). What comes back, or waits for
//! its key or for a time, goes before the queue of its level. A lane knows nothing of
//! publishers, topics or other lanes.

mod aside;
mod consumer;
mod entry;
mod guard;
mod holding;
mod keys;
mod line;
mod options;
mod parked;
mod report;
mod rest;
mod retry;
mod turn;

use self::consumer::{CLOSED, Consumer, PARKED, PAUSED, REFUSED, UNFILLED};
use self::guard::Guard;
use super::backing::Backing;
use super::clock::Nanos;
use super::ledger::Tallied;
use super::ops::{Ops, Seat};
use super::prefetch::prefetch;
use super::priority::Priority;
use super::queue::{Tail, queue};
use super::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, AtomicU32, Ordering},
    lock,
};

pub use self::entry::{Doom, Entry, Finished, Letter, Rare, Until};
pub use self::options::{Holds, LaneOptions, Letters, Order, Overflow};
pub use self::report::{LaneLatencies, LaneReport, Stopped};
pub use self::retry::{Failed, Verdict};
pub use self::turn::{Aside, Turn};

/// The number of a lane on its bus. Numbers are not used again.
pub type LaneId = u64;

const LEVELS: usize = Priority::COUNT;

/// Nobody has it and it has no work: the next push schedules it.
const IDLE: u8 = 0;
/// It waits for an executor; or, if it is [`Consumer::attended`], whoever runs it, or holds it back,
/// will look again.
const AWAKE: u8 = 1;

/// See the module.
///
/// Of a thousand lanes in turn, the cache holds none. So what every event needs lies in as few lines of it as
/// can be: the counts, then the beginning of the handler, then from the end of the options to the middle of
/// the consumer.
#[repr(C)]
pub struct Lane<O: Ops> {
    state: AtomicU8,
    /// Whether it has a backing: most have none, and this lies at hand.
    backed: bool,
    running: AtomicU32,
    levels: [Level; LEVELS],
    /// Its place at the gate.
    pub(super) slot: usize,
    guard: Option<Box<Guard<O>>>,
    /// What the executor needs to run it.
    pub handler: O::Handler,
    /// What it was told.
    pub options: LaneOptions,
    seat: Arc<O::Seat>,
    /// Publishers that wait for room, by level. Written under the gate.
    waiting: [AtomicU32; LEVELS],
    /// Its number.
    pub id: LaneId,
    consumer: Mutex<Consumer<O>>,
    /// Of a durable lane: how many of each level are set aside. Written under the consumer's lock.
    aside: [AtomicU32; LEVELS],
}

/// A level in numbers. They come around, long after what they count has filled every memory.
#[derive(Default)]
struct Level {
    /// What came: written under the gate.
    entered: AtomicU32,
    /// What left, less what came back: written under the consumer's lock. The two are apart so
    /// that neither side needs a locked instruction.
    left: AtomicU32,
}

/// The pushing ends of a lane's levels. The gate owns them.
pub type Tails<O> = [Tail<Entry<O>>; LEVELS];

impl<O: Ops> Lane<O> {
    /// A lane and its pushing ends.
    pub(super) fn new(
        id: LaneId,
        slot: usize,
        options: LaneOptions,
        handler: O::Handler,
        seat: Arc<O::Seat>,
    ) -> (Self, Tails<O>) {
        let (tails, heads): (Vec<_>, Vec<_>) = (0..LEVELS).map(|_| queue()).unzip();
        let four = "one queue for each level";
        let heads = heads.try_into().ok().expect(four);
        let consumer = Consumer::new(heads, options.order, options.holds);
        let lane = Self {
            state: AtomicU8::new(IDLE),
            backed: options.backing.is_some(),
            running: AtomicU32::new(0),
            levels: Default::default(),
            slot,
            seat,
            guard: options.breaker.as_ref().map(Guard::new).map(Box::new),
            handler,
            options,
            waiting: Default::default(),
            id,
            consumer: Mutex::new(consumer),
            aside: Default::default(),
        };
        (lane, tails.try_into().ok().expect(four))
    }

    /// What remembers its deliveries, of a durable lane.
    #[inline(always)]
    pub fn backing(&self) -> Option<&dyn Backing> {
        if !self.backed {
            return None;
        }
        self.options.backing.as_deref()
    }

    /// For who will push to the lane soon.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self, 1);
        prefetch(&self.seat, 1);
    }

    /// For who will run the lane soon.
    #[inline]
    pub fn prefetch_all(&self) {
        self.prefetch();
        prefetch(&self.guard, 1);
        prefetch(&self.consumer, Consumer::<O>::LINES);
    }

    /// Where the lane is run.
    pub fn seat(&self) -> &Arc<O::Seat> {
        &self.seat
    }

    /// Where it is found at the gate.
    pub(super) fn place(&self) -> (usize, LaneId) {
        (self.slot, self.id)
    }

    /// Events of a level that are not settled and do not run.
    #[inline]
    pub fn depth(&self, level: Priority) -> usize {
        self.depth_at(level.index())
    }

    /// What has left is looked at first, so that a level may seem fuller than it is, never emptier.
    #[inline]
    fn depth_at(&self, level: usize) -> usize {
        let level = &self.levels[level];
        let left = level.left.load(Ordering::Acquire);
        level.entered.load(Ordering::Acquire).wrapping_sub(left) as usize
    }

    /// The levels that are not empty, a bit for each.
    #[inline]
    fn occupied(&self) -> u8 {
        (0..LEVELS).fold(0, |occupied, level| {
            occupied | u8::from(self.depth_at(level) != 0) << level
        })
    }

    /// Counts an event that leaves a level, or (-1) comes back. Under the consumer's lock.
    #[inline]
    fn leaves(&self, level: Priority, change: i32) {
        let left = &self.levels[level.index()].left;
        let count = left.load(Ordering::Relaxed).wrapping_add_signed(change);
        left.store(count, Ordering::Release);
    }

    /// Whether a level has room for one more.
    #[inline]
    pub fn has_room(&self, level: Priority) -> bool {
        self.depth(level) < self.options.bound
    }

    /// For how many more a level has room, beside those that wait for it. As only the gate pushes, it
    /// has that much as long as the gate pushes nothing.
    pub(super) fn room(&self, level: Priority) -> usize {
        match self.is_awaited(level) {
            true => 0,
            false => self.options.bound.saturating_sub(self.depth(level)),
        }
    }

    /// Counts an event that the gate is about to push, so that the level never seems emptier
    /// than it is.
    #[inline]
    pub(super) fn entering(&self, level: Priority) {
        let entered = &self.levels[level.index()].entered;
        entered.store(
            entered.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }

    /// After a push: whether the lane must be scheduled.
    #[inline]
    pub(super) fn signal(&self) -> bool {
        // An exchange, though it mostly changes nothing: it comes either before the one in `rest`,
        // which then sees the push, or after it, and then this sees IDLE.
        self.state.swap(AWAKE, Ordering::AcqRel) == IDLE
    }

    /// The same, and schedules it. Called with no lock held, and once somebody comes by for what waits
    /// for a time: who sees the lane at rest goes by that.
    // One step of every publish: in line, it is among what rarely happens.
    #[inline(never)]
    pub(super) fn rouse(lane: &Arc<Self>) {
        if lane.signal() {
            lane.seat.schedule(lane.clone());
        }
    }

    /// For the gate: one more publisher waits for room. What is seen of the depth after this is
    /// enough to go by: whoever took an event before had to let go of the lock before, and whoever
    /// takes one later sees the waiter.
    pub(super) fn await_room(&self, level: Priority) {
        self.waiting[level.index()].fetch_add(1, Ordering::Relaxed);
        drop(lock(&self.consumer));
    }

    /// Whether publishers wait for room.
    pub(super) fn is_awaited(&self, level: Priority) -> bool {
        self.waiting[level.index()].load(Ordering::Relaxed) > 0
    }

    /// For the gate: a publisher waits no more.
    pub(super) fn awaits_no_more(&self, level: Priority) {
        self.waiting[level.index()].fetch_sub(1, Ordering::Relaxed);
    }

    /// Nothing queued and nothing running. Exact only while nothing can be pushed.
    pub fn is_quiet(&self) -> bool {
        if self.options.passive {
            return true;
        }
        if Priority::ALL.into_iter().any(|level| self.has_more(level)) {
            drop(lock(&self.consumer));
            return false;
        }
        // Else what goes from a handler back to its queue might be missed in both. And whoever finds
        // a lane at work has been here before the lane does its next step: see `after_settlement`.
        let _still = lock(&self.consumer);
        (0..LEVELS).all(|level| self.depth_at(level) == 0) && self.running() == 0
    }

    /// Handlers at work.
    #[inline]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire) as usize
    }

    /// Only ever changed under the consumer's lock, so it needs no locked instruction.
    #[inline]
    fn set_running(&self, change: i32) {
        let running = self
            .running
            .load(Ordering::Relaxed)
            .wrapping_add_signed(change);
        self.running.store(running, Ordering::Release);
    }

    /// Stops or resumes the starting of handlers. Returns whether to schedule the lane.
    #[must_use]
    pub fn pause(&self, paused: bool) -> bool {
        self.bar(PAUSED, paused)
    }

    /// While it waits for a level of its window to be filled, a durable lane starts nothing: what comes first
    /// may be there. Returns whether to schedule the lane.
    #[must_use]
    pub(in crate::engine) fn await_window(&self, waits: bool) -> bool {
        self.bar(UNFILLED, waits)
    }

    fn bar(&self, bar: u8, barred: bool) -> bool {
        let mut consumer = lock(&self.consumer);
        match barred {
            true => consumer.barred |= bar,
            false => consumer.barred &= !bar,
        }
        self.look(&mut consumer)
    }

    /// Whether somebody has paused it.
    pub fn is_paused(&self) -> bool {
        lock(&self.consumer).barred & PAUSED != 0
    }

    /// Lets the lane ask its breaker again. Returns whether to schedule it.
    #[must_use]
    fn ask_again(&self) -> bool {
        let mut consumer = lock(&self.consumer);
        consumer.ask_again();
        self.look(&mut consumer)
    }

    fn is_refused(&self) -> bool {
        lock(&self.consumer).barred & (REFUSED | CLOSED) == REFUSED
    }

    /// Ends the lane: starts nothing more, and returns what was queued, counted as dropped.
    /// The gate must not push to it any more.
    pub fn close(&self) -> Vec<Entry<O>> {
        lock(&self.consumer).barred |= CLOSED;
        let left = self.empty();
        self.forsake();
        left
    }

    /// In a child of the process that ran the lane: what it had stays with the parent, and counts as
    /// dropped here; also what ran on threads that are not here. Returns what was queued.
    pub(super) fn forked(&self, now: Nanos) -> Vec<Entry<O>> {
        self.forsake();
        let mut consumer = lock(&self.consumer);
        let left = consumer.drain();
        for _ in 0..self.running() {
            consumer.tally.count(Tallied::Dropped);
        }
        consumer.begin_anew();
        self.all_left();
        self.running.store(0, Ordering::Release);
        self.state.swap(IDLE, Ordering::AcqRel);
        drop(consumer);
        if let Some(guard) = &self.guard {
            guard.forked(now);
        }
        left
    }

    /// Counts all that came as gone. Under the consumer's lock.
    fn all_left(&self) {
        for level in &self.levels {
            let entered = level.entered.load(Ordering::Relaxed);
            level.left.store(entered, Ordering::Release);
        }
        for aside in &self.aside {
            aside.store(0, Ordering::Release);
        }
    }

    /// Lets go of what may hold the lane from outside.
    pub(super) fn forsake(&self) {
        if let Some(guard) = &self.guard {
            guard.forsake();
        }
    }

    /// For the gate: makes room in a level by letting go of its oldest event that was never
    /// started, counted as dropped.
    pub(super) fn evict(&self, level: Priority) -> Option<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        let entry = consumer.evict(level)?;
        self.leaves(level, 1);
        consumer.tally.count(Tallied::Dropped);
        Some(entry)
    }

    /// For the gate: counts an event that does not enter.
    pub(super) fn turn_away(&self) {
        lock(&self.consumer).tally.count(Tallied::Dropped);
    }
}
