//! One turn of a lane: what an executor that asks, or that has ended a run, is given next, and in which
//! state the lane is left.

use super::consumer::{self, CLOSED, Consumer, POPPING};
use super::guard::Guard;
use super::line::Rank;
use super::{AWAKE, Entry, Finished, IDLE, LEVELS, Lane, holding};
use crate::engine::breaker::{Change, Permit};
use crate::engine::clock::Nanos;
use crate::engine::ledger::Tallied;
use crate::engine::ops::Ops;
use crate::engine::sync::{atomic::Ordering, lock};

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

impl<O: Ops> Lane<O> {
    /// For an executor that was given the lane by [`Seat::schedule`](crate::engine::ops::Seat).
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
    pub(super) fn come_back(
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

    /// For an executor that took an entry from a lane with [`Order::Computed`](super::Order::Computed) and knows its
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
    pub(super) fn turn(&self, consumer: &mut Consumer<O>, take: bool, now: Nanos) -> Turn<O> {
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
    pub(super) fn look(&self, consumer: &mut Consumer<O>) -> bool {
        !self.is_scheduled(consumer) && self.rest(consumer)
    }

    #[inline]
    pub(super) fn has_work(&self, consumer: &mut Consumer<O>) -> bool {
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
    pub(super) fn may_start(&self, consumer: &Consumer<O>) -> bool {
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
