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

use self::consumer::{CLOSED, Consumer, PARKED, PAUSED, POPPING, REFUSED, UNFILLED};
use self::guard::Guard;
use self::line::Rank;
use super::backing::Backing;
use super::breaker::{Change, Permit};
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

/// The number of a lane on its bus. Numbers are not used again.
pub type LaneId = u64;

const LEVELS: usize = Priority::COUNT;

/// What a lane answers to an executor.
#[must_use]
pub struct Turn<O: Ops> {
    /// The next event, which the executor now runs.
    pub entry: Option<Entry<O>>,
    /// The entry's token is not known yet: see [`Lane::with_token`].
    pub token_wanted: bool,
    /// There is work for one more: schedule the lane (again).
    pub schedule: bool,
    /// Publishers wait for the room that the entry left: let them in.
    pub room_wanted: bool,
    /// What there rarely is.
    pub aside: Option<Box<Aside<O>>>,
}

/// What else a lane has to say now and then.
pub struct Aside<O: Ops> {
    /// The lane is closed and has let go of this event, counted as dropped: settle it.
    pub dropped: Option<Entry<O>>,
    /// Come by at this time: see [`Lane::tick`].
    pub due: Option<Nanos>,
    /// The breaker has changed: tell its watchers.
    pub change: Option<Change>,
    /// Leave of the breaker that was not used: give it back.
    pub unused: Option<Permit>,
    /// The breaker has refused: see [`Lane::await_breaker`].
    pub refused: bool,
}

impl<O: Ops> Default for Aside<O> {
    fn default() -> Self {
        Self {
            dropped: None,
            due: None,
            change: None,
            unused: None,
            refused: false,
        }
    }
}

impl<O: Ops> Turn<O> {
    fn aside(&mut self) -> &mut Aside<O> {
        self.aside.get_or_insert_default()
    }
}

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

    /// For an executor that was given the lane by [`Seat::schedule`](super::ops::Seat).
    pub fn take(&self, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        consumer.attended = true;
        self.turn(&mut consumer, true, now)
    }

    /// For an executor whose run of an entry has ended. With `proceed` it also takes the next.
    #[inline]
    pub fn finish(&self, finished: &Finished, proceed: bool, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        consumer.tally.count(finished.tally);
        if let Some(work) = finished.work {
            consumer.work.record(work);
        }
        consumer.leave(finished.token, None);
        self.set_running(-1);
        self.turn(&mut consumer, proceed, now)
    }

    /// For an executor that must let go of an entry that it has not settled: back to the head.
    /// An entry of a lane that was closed meanwhile is dropped, counted.
    pub fn put_back(&self, mut entry: Entry<O>, now: Nanos) -> Turn<O> {
        // It did not have its chance: the attempt does not count.
        entry.attempt = entry.attempt.saturating_sub(1);
        let mut consumer = lock(&self.consumer);
        self.come_back(&mut consumer, entry, false, now, |consumer, entry| {
            // Its place stays held for it, so that nothing of the same key overtakes it there.
            consumer.leave(entry.token, Some(entry.level));
            let rank = Rank::Begun(entry.sequence);
            consumer.ready.insert(rank, entry);
        })
    }

    /// A run has ended, and its entry has not: it goes where `place` puts it.
    fn come_back(
        &self,
        consumer: &mut Consumer<O>,
        entry: Entry<O>,
        proceed: bool,
        now: Nanos,
        place: impl FnOnce(&mut Consumer<O>, Entry<O>),
    ) -> Turn<O> {
        if consumer.barred & CLOSED != 0 {
            consumer.leave(entry.token, None);
            self.set_running(-1);
            return self.let_go(consumer, entry, now);
        }
        self.leaves(entry.level, -1);
        place(consumer, entry);
        self.set_running(-1);
        self.turn(consumer, proceed, now)
    }

    /// For an executor that took an entry from a lane with [`Order::Computed`] and knows its
    /// token now. Gives the entry back if it may start.
    pub fn with_token(&self, mut entry: Entry<O>, token: u64, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        entry.token = token;
        consumer.barred &= !POPPING;
        if consumer.barred & CLOSED != 0 {
            // It holds no token yet.
            self.set_running(-1);
            return self.let_go(&mut consumer, entry, now);
        }
        let rank = consumer::rank(&mut entry);
        let level = entry.level;
        // Should it have to wait, it does so without these.
        let permit = entry.take_permit();
        entry.attempt -= 1;
        match consumer.keys.claim(rank, entry) {
            Some(mut entry) => {
                entry.permit(permit);
                entry.attempt += 1;
                let turn = self.turn(&mut consumer, false, now);
                Turn {
                    entry: Some(entry),
                    ..turn
                }
            }
            None => {
                self.leaves(level, -1);
                self.set_running(-1);
                let mut turn = self.turn(&mut consumer, permit.is_none(), now);
                if permit.is_some() {
                    // The next one asks once this leave is given back.
                    turn.aside().unused = permit;
                }
                turn
            }
        }
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

    /// An event came back to a lane that starts nothing more.
    #[cold]
    fn let_go(&self, consumer: &mut Consumer<O>, entry: Entry<O>, now: Nanos) -> Turn<O> {
        consumer.tally.count(Tallied::Dropped);
        let mut turn = self.turn(consumer, false, now);
        turn.aside().dropped = Some(entry);
        turn
    }

    /// Takes the next entry if wanted and possible, and says in which state the lane is left.
    #[inline]
    fn turn(&self, consumer: &mut Consumer<O>, take: bool, now: Nanos) -> Turn<O> {
        let occupied = self.occupied();
        if occupied == 0 && consumer.barred == 0 && !self.backed {
            return self.nothing_left(consumer);
        }
        let mut aside = None;
        if consumer.holding.next() <= now {
            consumer.ripen(now);
        }
        let entry = if take {
            self.start(consumer, occupied, now, &mut aside)
        } else {
            None
        };
        if let Some(due) = consumer.arm() {
            aside.get_or_insert_default().due = Some(due);
        }
        if let Some(backing) = self.backing() {
            self.count_aside(consumer, true);
            if let Some(entry) = &entry {
                backing.has_room(entry.level);
            }
        }
        // Under the lock: see `await_room`.
        let room_wanted = entry
            .as_ref()
            .is_some_and(|entry| self.is_awaited(entry.level));
        let token_wanted = entry.is_some() && consumer.barred & POPPING != 0;
        let schedule = self.look(consumer);
        Turn {
            entry,
            token_wanted,
            schedule,
            room_wanted,
            aside,
        }
    }

    /// A turn in which nothing is left, of a lane that nothing bars: most often, where many lanes have an
    /// event each.
    #[inline]
    fn nothing_left(&self, consumer: &mut Consumer<O>) -> Turn<O> {
        debug_assert_eq!(consumer.due(), holding::NEVER);
        Turn {
            entry: None,
            token_wanted: false,
            schedule: std::mem::take(&mut consumer.attended) && self.leave_idle(consumer),
            room_wanted: false,
            aside: None,
        }
    }

    /// Whether to schedule the lane. One that is scheduled is looked at anyway.
    #[inline]
    fn look(&self, consumer: &mut Consumer<O>) -> bool {
        !self.is_scheduled(consumer) && self.rest(consumer)
    }

    #[inline]
    fn has_work(&self, consumer: &mut Consumer<O>) -> bool {
        if consumer.is_parked() {
            return consumer.has_letter();
        }
        (0..LEVELS).any(|level| self.since(consumer, level).is_some())
    }

    /// Since when the first of a level waits. A level that is empty is not looked at: its queue is
    /// a line of the cache that nothing else needs.
    #[inline]
    fn since(&self, consumer: &mut Consumer<O>, level: usize) -> Option<Nanos> {
        if self.depth_at(level) == 0 {
            return None;
        }
        consumer.since(level)
    }

    /// Whether it waits for an executor.
    #[inline]
    fn is_scheduled(&self, consumer: &Consumer<O>) -> bool {
        !consumer.attended && self.state.load(Ordering::Relaxed) == AWAKE
    }

    #[inline]
    fn start(
        &self,
        consumer: &mut Consumer<O>,
        occupied: u8,
        now: Nanos,
        aside: &mut Option<Box<Aside<O>>>,
    ) -> Option<Entry<O>> {
        if !self.may_start(consumer) {
            return None;
        }
        let permit = match &self.guard {
            None => None,
            Some(guard) => Some(self.ask(guard, consumer, now, aside)?),
        };
        let Some(mut entry) = consumer.next(now, occupied) else {
            if permit.is_some() {
                aside.get_or_insert_default().unused = permit;
            }
            return None;
        };
        entry.permit(permit);
        entry.attempt += 1;
        if entry.attempt == 1 {
            consumer.wait.record(now.saturating_sub(entry.at));
        }
        self.set_running(1);
        self.leaves(entry.level, 1);
        Some(entry)
    }

    /// Leave of the breaker to start one, if there is one to start.
    #[inline]
    fn ask(
        &self,
        guard: &Guard<O>,
        consumer: &mut Consumer<O>,
        now: Nanos,
        aside: &mut Option<Box<Aside<O>>>,
    ) -> Option<Permit> {
        if !self.has_work(consumer) {
            return None;
        }
        let (answer, change) = guard.ask(now);
        if change.is_some() {
            aside.get_or_insert_default().change = change;
        }
        match answer {
            Ok(permit) => Some(permit),
            Err(refused) => {
                consumer.refuse(refused.retry_at);
                aside.get_or_insert_default().refused = true;
                None
            }
        }
    }

    #[inline]
    fn may_start(&self, consumer: &Consumer<O>) -> bool {
        !consumer.is_barred() && self.running() < self.options.concurrency
    }

    /// Leaves a lane that is not scheduled to who looks at it next. True: schedule it.
    #[inline]
    fn rest(&self, consumer: &mut Consumer<O>) -> bool {
        if !self.may_start(consumer) {
            // Whoever ends a run, or takes away what bars the lane, comes by here again. Unless
            // a push has just scheduled it: then that executor does.
            if !consumer.attended {
                consumer.attended = self.signal();
            }
            return false;
        }
        if self.has_work(consumer) {
            return std::mem::take(&mut consumer.attended) || self.signal();
        }
        std::mem::take(&mut consumer.attended) && self.leave_idle(consumer)
    }

    /// Leaves a lane that has no work to the next push. True: that has come already; schedule it.
    #[inline]
    fn leave_idle(&self, consumer: &mut Consumer<O>) -> bool {
        // Never by a plain store: that would hide the `signal` of a push that came just before it from
        // the look after it.
        self.state.swap(IDLE, Ordering::AcqRel);
        self.has_work(consumer) && self.signal()
    }
}
