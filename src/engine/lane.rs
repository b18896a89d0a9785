//! A lane: the queue of one subscription, and the rule of what is started next.
//!
//! The gate pushes at one end, executors take at the other, one event at a time (a
//! batch taken in advance would hide a `CRITICAL` behind it). A lane knows nothing
//! of publishers, topics or other lanes.

use std::collections::{BTreeMap, VecDeque};

use hashbrown::HashMap;

use super::clock::Nanos;
use super::ledger::{Tallied, Tally};
use super::metrics::{Latencies, Percentiles};
use super::ops::Ops;
use super::priority::{Priority, Starts};
use super::queue::{Head, Tail, queue};
use super::settlement::Envelope;
use super::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, AtomicUsize, Ordering},
    lock,
};

/// The number of a lane on its bus. Numbers are not used again.
pub type LaneId = u64;

const LEVELS: usize = Priority::COUNT;

/// What happens to an event for which a lane has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The publisher waits.
    Block,
    /// The publisher is refused, and nothing is accepted for any lane.
    Reject,
    /// The oldest queued event of the same level goes, counted.
    DropOldest,
    /// The new event does not reach this lane, counted.
    DropNew,
}

/// Which events of a lane may not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All: one at a time.
    Lane,
    /// Those with equal tokens, which came with the event.
    Token,
    /// Those with equal tokens, which the executor works out before it starts them.
    Computed,
    /// None.
    Nothing,
}

/// What a lane is told when it is made.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    /// For people and reports.
    pub name: Box<str>,
    /// Handlers that may run at once.
    pub concurrency: usize,
    /// Which of them may not.
    pub order: Order,
    /// What happens when a level is full.
    pub overflow: Overflow,
    /// Queued events per level.
    pub bound: usize,
    /// Nobody is owed the handling of its events: they hold up no settlement, drain or stop.
    pub passive: bool,
}

/// One event in one lane.
pub struct Entry<O: Ops> {
    /// The event's number on the bus.
    pub sequence: u64,
    /// When it was accepted.
    pub at: Nanos,
    /// Events with equal tokens do not overlap in a lane ordered by token.
    pub token: u64,
    /// Starts so far.
    pub attempt: u32,
    /// Its level.
    pub level: Priority,
    /// The event.
    pub event: Arc<Envelope<O>>,
}

/// The end of a handler's run, told to the lane.
pub struct Finished {
    /// How it ended.
    pub tally: Tallied,
    /// The token of the entry.
    pub token: u64,
    /// How long the handler ran; none if it was not called.
    pub work: Option<Nanos>,
}

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
    /// The lane is closed and has let go of this event, counted as dropped: settle it.
    pub dropped: Option<Entry<O>>,
}

/// A lane at one moment.
#[derive(Clone, Debug)]
pub struct LaneReport {
    /// Settled deliveries.
    pub tally: Tally,
    /// Queued deliveries by level.
    pub depth: [usize; LEVELS],
    /// Handlers at work.
    pub running: usize,
    /// Whether it is paused.
    pub paused: bool,
    /// Since when the oldest queued delivery waits.
    pub oldest: Option<Nanos>,
    /// From acceptance to start.
    pub wait: Percentiles,
    /// From start to end.
    pub work: Percentiles,
}

/// Nobody has it and it has no work.
const IDLE: u8 = 0;
/// It has work and waits for an executor.
const READY: u8 = 1;
/// Whoever runs it, or holds it back, will look again.
const BUSY: u8 = 2;
/// Set beside any of them by a push.
const NUDGED: u8 = 4;

/// See the module.
pub struct Lane<O: Ops> {
    /// Its number.
    pub id: LaneId,
    /// Its place at the gate.
    pub(super) slot: usize,
    /// What it was told.
    pub options: LaneOptions,
    /// What the executor needs to run it.
    pub handler: O::Handler,
    seat: Arc<O::Seat>,
    /// What came to each level: written under the gate.
    entered: [AtomicUsize; LEVELS],
    /// What left it, less what came back: written under the consumer's lock. The two are apart so
    /// that neither side needs a locked instruction.
    left: [AtomicUsize; LEVELS],
    /// Publishers that wait for room, by level. Written under the gate.
    pub(super) waiting: [AtomicUsize; LEVELS],
    running: AtomicUsize,
    state: AtomicU8,
    consumer: Mutex<Consumer<O>>,
}

/// The taking end. One lock, held for some loads and stores; the gate takes it only
/// to evict.
struct Consumer<O: Ops> {
    heads: [Head<Entry<O>>; LEVELS],
    /// Events that go before the heads: they were started and put back.
    returned: [VecDeque<Entry<O>>; LEVELS],
    /// How many there are of them, so that nobody looks where there are none.
    returns: usize,
    starts: Starts,
    keys: Keys<O>,
    /// An executor works out the token of an event; the next one must not overtake it.
    popping: bool,
    paused: bool,
    closed: bool,
    tally: Tally,
    wait: Latencies,
    work: Latencies,
}

/// Tokens at work, and the events that wait for each.
struct Keys<O: Ops> {
    busy: HashMap<u64, BTreeMap<(Priority, u64), Entry<O>>>,
    /// Events whose token became free, and is held for them.
    freed: VecDeque<Entry<O>>,
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
        let consumer = Consumer {
            heads: heads.try_into().ok().expect(four),
            returned: Default::default(),
            returns: 0,
            starts: Starts::default(),
            keys: Keys {
                busy: HashMap::new(),
                freed: VecDeque::new(),
            },
            popping: false,
            paused: false,
            closed: false,
            tally: Tally::default(),
            wait: Latencies::default(),
            work: Latencies::default(),
        };
        let lane = Self {
            id,
            slot,
            options,
            handler,
            seat,
            entered: std::array::from_fn(|_| AtomicUsize::new(0)),
            left: std::array::from_fn(|_| AtomicUsize::new(0)),
            waiting: std::array::from_fn(|_| AtomicUsize::new(0)),
            running: AtomicUsize::new(0),
            state: AtomicU8::new(IDLE),
            consumer: Mutex::new(consumer),
        };
        (lane, tails.try_into().ok().expect(four))
    }

    /// Where the lane is run.
    pub fn seat(&self) -> &Arc<O::Seat> {
        &self.seat
    }

    /// Queued events of a level.
    #[inline]
    pub fn depth(&self, level: Priority) -> usize {
        self.depth_at(level.index())
    }

    /// What has left is looked at first, so that a level may seem fuller than it is, never emptier.
    #[inline]
    fn depth_at(&self, level: usize) -> usize {
        let left = self.left[level].load(Ordering::Acquire);
        self.entered[level]
            .load(Ordering::Acquire)
            .wrapping_sub(left)
    }

    /// Counts an event that leaves a level, or (-1) comes back. Under the consumer's lock.
    #[inline]
    fn leaves(&self, level: usize, change: isize) {
        let left = self.left[level].load(Ordering::Relaxed);
        self.left[level].store(left.wrapping_add_signed(change), Ordering::Release);
    }

    /// Whether a level has room for one more.
    #[inline]
    pub fn has_room(&self, level: Priority) -> bool {
        self.depth(level) < self.options.bound
    }

    /// Counts an event that the gate is about to push, so that the level never seems emptier
    /// than it is.
    #[inline]
    pub(super) fn entering(&self, level: Priority) {
        let entered = &self.entered[level.index()];
        entered.store(
            entered.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
    }

    /// After a push: whether the lane must be scheduled.
    #[inline]
    pub(super) fn signal(&self) -> bool {
        // A read-modify-write, though it mostly changes nothing that matters: it comes either before
        // the one in `rest` (see `enter`), which then sees the push, or after it, and then this sees IDLE.
        let state = self.state.fetch_or(NUDGED, Ordering::AcqRel) & !NUDGED;
        state == IDLE && self.wake()
    }

    #[cold]
    fn wake(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        while state & !NUDGED == IDLE {
            match self
                .state
                .compare_exchange(state, READY, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// For the gate: one more publisher waits for room. What is seen of the depth after this is
    /// enough to go by: whoever took an event before had to let go of the lock before, and whoever
    /// takes one later sees the waiter.
    pub(super) fn await_room(&self, level: Priority) {
        self.waiting[level.index()].fetch_add(1, Ordering::Relaxed);
        drop(lock(&self.consumer));
    }

    /// Nothing queued and nothing running. Exact only while nothing can be pushed.
    pub fn is_quiet(&self) -> bool {
        if self.options.passive {
            return true;
        }
        let quiet = || {
            (0..LEVELS).all(|level| self.depth_at(level) == 0)
                && self.running.load(Ordering::Acquire) == 0
        };
        // What goes from a handler back to its queue between the two looks is missed by both.
        quiet() && {
            let _still = lock(&self.consumer);
            quiet()
        }
    }

    /// Handlers at work.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Only ever changed under the consumer's lock, so it needs no locked instruction.
    #[inline]
    fn set_running(&self, change: isize) {
        let running = self
            .running
            .load(Ordering::Relaxed)
            .wrapping_add_signed(change);
        self.running.store(running, Ordering::Release);
    }

    /// For an executor that was given the lane by [`Seat::schedule`](super::ops::Seat).
    pub fn take(&self, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        self.enter(BUSY);
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
        self.leave(&mut consumer, finished.token);
        self.turn(&mut consumer, proceed, now)
    }

    /// For an executor that must let go of an entry that it has not settled: back to the head.
    /// An entry of a lane that was closed meanwhile is dropped, counted.
    pub fn put_back(&self, mut entry: Entry<O>, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        // It did not have its chance: the attempt does not count.
        entry.attempt = entry.attempt.saturating_sub(1);
        if consumer.closed {
            self.leave(&mut consumer, entry.token);
            return self.let_go(&mut consumer, entry, now);
        }
        let level = entry.level.index();
        self.leaves(level, -1);
        self.set_running(-1);
        match self.options.order {
            // Its token stays held for it, so that nothing of the same key overtakes it.
            Order::Token | Order::Computed => consumer.keys.freed.push_front(entry),
            Order::Lane | Order::Nothing => {
                // Several may come back at once, in any order.
                let returned = &mut consumer.returned[level];
                let at = returned.partition_point(|other| other.sequence < entry.sequence);
                returned.insert(at, entry);
                consumer.returns += 1;
            }
        }
        self.turn(&mut consumer, false, now)
    }

    /// For an executor that took an entry from a lane with [`Order::Computed`] and knows its
    /// token now. Gives the entry back if it may start.
    pub fn with_token(&self, mut entry: Entry<O>, token: u64, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        entry.token = token;
        consumer.popping = false;
        if consumer.closed {
            // It holds no token yet.
            self.set_running(-1);
            return self.let_go(&mut consumer, entry, now);
        }
        let level = entry.level.index();
        if !consumer.keys.is_held(token) {
            let entry = consumer.keys.hold(entry).err();
            let turn = self.turn(&mut consumer, false, now);
            return Turn { entry, ..turn };
        }
        // It was counted as started when it was taken; it was not.
        entry.attempt -= 1;
        let parked = consumer.keys.hold(entry);
        debug_assert!(parked.is_ok());
        self.leaves(level, -1);
        self.set_running(-1);
        self.turn(&mut consumer, true, now)
    }

    /// Stops or resumes the starting of handlers. Returns whether to schedule the lane.
    #[must_use]
    pub fn pause(&self, paused: bool) -> bool {
        let mut consumer = lock(&self.consumer);
        consumer.paused = paused;
        // A scheduled lane is looked at anyway, and one that is run looks again by itself.
        if self.is_ready() {
            return false;
        }
        self.rest(&mut consumer)
    }

    /// Ends the lane: starts nothing more, and returns what was queued, counted as dropped.
    /// The gate must not push to it any more.
    pub fn close(&self) -> Vec<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        consumer.closed = true;
        let mut left: Vec<Entry<O>> = consumer.keys.drain();
        for level in 0..LEVELS {
            left.extend(consumer.returned[level].drain(..));
            consumer.returns = 0;
            while let Some(entry) = consumer.heads[level].pop() {
                left.push(entry);
            }
            let entered = self.entered[level].load(Ordering::Relaxed);
            self.left[level].store(entered, Ordering::Release);
        }
        left.iter()
            .for_each(|_| consumer.tally.count(Tallied::Dropped));
        left
    }

    /// For the gate: makes room in a level by letting go of its oldest event that was never
    /// started, counted as dropped.
    pub(super) fn evict(&self, level: Priority) -> Option<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        // What waits for a busy token left the queue before what is still there.
        let entry = match consumer.keys.evict(level) {
            Some(entry) => entry,
            None => consumer.heads[level.index()].pop()?,
        };
        self.leaves(level.index(), 1);
        consumer.tally.count(Tallied::Dropped);
        Some(entry)
    }

    /// For the gate: counts an event that does not enter.
    pub(super) fn turn_away(&self) {
        lock(&self.consumer).tally.count(Tallied::Dropped);
    }

    /// For a consistent report, hold the gate meanwhile.
    pub fn report(&self) -> LaneReport {
        let mut guard = lock(&self.consumer);
        let consumer = &mut *guard;
        let heads = consumer
            .heads
            .iter_mut()
            .filter_map(|head| head.peek().map(|entry| entry.at));
        let returned = consumer
            .returned
            .iter()
            .filter_map(|level| level.front().map(|entry| entry.at));
        let oldest = heads
            .chain(returned)
            .chain(consumer.keys.entries().map(|entry| entry.at))
            .min();
        LaneReport {
            tally: consumer.tally,
            depth: std::array::from_fn(|level| self.depth_at(level)),
            running: self.running(),
            paused: consumer.paused,
            oldest,
            wait: consumer.wait.percentiles(),
            work: consumer.work.percentiles(),
        }
    }

    /// An event came back to a lane that starts nothing more.
    #[cold]
    fn let_go(&self, consumer: &mut Consumer<O>, entry: Entry<O>, now: Nanos) -> Turn<O> {
        consumer.tally.count(Tallied::Dropped);
        let turn = self.turn(consumer, false, now);
        Turn {
            dropped: Some(entry),
            ..turn
        }
    }

    fn leave(&self, consumer: &mut Consumer<O>, token: u64) {
        if matches!(self.options.order, Order::Token | Order::Computed) {
            consumer.keys.release(token);
        }
        self.set_running(-1);
    }

    /// Takes the next entry if wanted and possible, and says in which state the lane is left.
    #[inline]
    fn turn(&self, consumer: &mut Consumer<O>, take: bool, now: Nanos) -> Turn<O> {
        let entry = if take {
            self.start(consumer, now)
        } else {
            None
        };
        // Under the lock: see `await_room`.
        let room_wanted = entry
            .as_ref()
            .is_some_and(|entry| self.waiting[entry.level.index()].load(Ordering::Relaxed) > 0);
        let schedule = if self.is_ready() {
            false
        } else {
            self.rest(consumer)
        };
        Turn {
            token_wanted: consumer.popping && entry.is_some(),
            entry,
            schedule,
            room_wanted,
            dropped: None,
        }
    }

    /// Since when the head of a level waits. A level that is empty is not looked at: its queue is
    /// a line of the cache that nothing else needs.
    #[inline]
    fn since(&self, consumer: &mut Consumer<O>, level: usize) -> Option<Nanos> {
        if self.depth_at(level) == 0 {
            return None;
        }
        consumer.since(level)
    }

    #[inline]
    fn has_work(&self, consumer: &mut Consumer<O>) -> bool {
        (0..LEVELS).any(|level| self.since(consumer, level).is_some())
            || !consumer.keys.freed.is_empty()
    }

    #[inline]
    fn is_ready(&self) -> bool {
        self.state.load(Ordering::Relaxed) & !NUDGED == READY
    }

    /// Under the consumer's lock. Never by a plain store: that would hide the `signal` of a push that
    /// came just before it from the next one, and `rest` might then not see the event.
    #[inline]
    fn enter(&self, state: u8) {
        self.state.swap(state, Ordering::AcqRel);
    }

    #[inline]
    fn start(&self, consumer: &mut Consumer<O>, now: Nanos) -> Option<Entry<O>> {
        if !self.may_start(consumer) {
            return None;
        }
        let mut entry = self.next(consumer, now)?;
        entry.attempt += 1;
        consumer.wait.record(now.saturating_sub(entry.at));
        self.set_running(1);
        self.leaves(entry.level.index(), 1);
        Some(entry)
    }

    #[inline]
    fn may_start(&self, consumer: &Consumer<O>) -> bool {
        !(consumer.paused || consumer.closed || consumer.popping)
            && self.running() < self.options.concurrency
    }

    fn next(&self, consumer: &mut Consumer<O>, now: Nanos) -> Option<Entry<O>> {
        if let Some(entry) = consumer.keys.freed.pop_front() {
            return Some(entry);
        }
        loop {
            let since: [Option<Nanos>; LEVELS] =
                std::array::from_fn(|level| self.since(consumer, level));
            let level = consumer.starts.choose(now, since)?;
            let entry = match consumer.take_returned(level) {
                Some(entry) => entry,
                None => consumer.heads[level].pop()?,
            };
            match self.options.order {
                Order::Lane | Order::Nothing => return Some(entry),
                Order::Token => {
                    if let Err(entry) = consumer.keys.hold(entry) {
                        return Some(entry);
                    }
                }
                Order::Computed => {
                    consumer.popping = true;
                    return Some(entry);
                }
            }
        }
    }

    /// Leaves a lane that is not in the hands of an executor's queue in the state that says who
    /// looks at it next. True: schedule it.
    #[inline]
    fn rest(&self, consumer: &mut Consumer<O>) -> bool {
        if !self.may_start(consumer) {
            // Whoever ends a run, a pause or a pop comes by here again.
            if self.state.load(Ordering::Relaxed) & !NUDGED != BUSY {
                self.enter(BUSY);
            }
            return false;
        }
        if self.has_work(consumer) {
            self.enter(READY);
            return true;
        }
        self.enter(IDLE);
        self.has_work(consumer) && self.signal()
    }
}

impl<O: Ops> Consumer<O> {
    /// Since when the head of a level waits.
    #[inline]
    fn since(&mut self, level: usize) -> Option<Nanos> {
        if self.returns > 0
            && let Some(entry) = self.returned[level].front()
        {
            return Some(entry.at);
        }
        self.heads[level].peek().map(|entry| entry.at)
    }

    #[inline]
    fn take_returned(&mut self, level: usize) -> Option<Entry<O>> {
        if self.returns == 0 {
            return None;
        }
        let entry = self.returned[level].pop_front()?;
        self.returns -= 1;
        Some(entry)
    }
}

impl<O: Ops> Keys<O> {
    fn is_held(&self, token: u64) -> bool {
        self.busy.contains_key(&token)
    }

    /// Holds the token for the entry, and gives the entry back; or parks it behind the one that
    /// holds the token.
    fn hold(&mut self, entry: Entry<O>) -> Result<(), Entry<O>> {
        match self.busy.get_mut(&entry.token) {
            Some(parked) => {
                parked.insert((entry.level, entry.sequence), entry);
                Ok(())
            }
            None => {
                self.busy.insert(entry.token, BTreeMap::new());
                Err(entry)
            }
        }
    }

    /// Frees a token, or passes it to the first of the highest level that waits for it.
    fn release(&mut self, token: u64) {
        let Some(parked) = self.busy.get_mut(&token) else {
            return;
        };
        match parked.pop_first() {
            Some((_, entry)) => self.freed.push_back(entry),
            None => {
                self.busy.remove(&token);
            }
        }
    }

    /// Lets go of the oldest entry of a level that waits for a token and was never started.
    fn evict(&mut self, level: Priority) -> Option<Entry<O>> {
        let oldest = |parked: &BTreeMap<(Priority, u64), Entry<O>>| {
            let mut of_level = parked.range((level, 0)..=(level, u64::MAX));
            of_level.next().map(|(at, _)| *at)
        };
        let parked = self
            .busy
            .values_mut()
            .filter_map(|parked| oldest(parked).map(|at| (at, parked)));
        let (at, parked) = parked.min_by_key(|(at, _)| *at)?;
        parked.remove(&at)
    }

    fn entries(&self) -> impl Iterator<Item = &Entry<O>> {
        self.freed
            .iter()
            .chain(self.busy.values().flat_map(BTreeMap::values))
    }

    fn drain(&mut self) -> Vec<Entry<O>> {
        let mut left: Vec<Entry<O>> = self.freed.drain(..).collect();
        left.extend(
            self.busy
                .values_mut()
                .flat_map(|parked| std::mem::take(parked).into_values()),
        );
        left
    }
}
