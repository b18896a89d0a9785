//! The taking end of a lane: what there is to start, and what goes first.

use super::entry::Entry;
use super::holding::{Holding, Kind, NEVER};
use super::keys::Keys;
use super::line::{Rank, Ready};
use super::{Holds, LEVELS, Nanos, Order};
use crate::engine::ledger::{Tallied, Tally};
use crate::engine::metrics::Latencies;
use crate::engine::ops::Ops;
use crate::engine::priority::{Priority, Starts};
use crate::engine::queue::Head;

/// Somebody has paused the lane.
pub(super) const PAUSED: u8 = 1;
/// It is at its end.
pub(super) const CLOSED: u8 = 2;
/// An executor works out the token of an event; the next one must not overtake it.
pub(super) const POPPING: u8 = 4;
/// The breaker has refused.
pub(super) const REFUSED: u8 = 8;
/// There was no room for a dead letter: only those start that need none. See `parked`.
pub(super) const PARKED: u8 = 16;
/// Not all levels of its window were filled since the journal was opened: see `await_window`.
pub(super) const UNFILLED: u8 = 32;

/// See the module. One lock, held for some loads and stores; the gate takes it only to
/// evict and to put off.
#[repr(C)] // What every event needs first, as of the lane.
pub(super) struct Consumer<O: Ops> {
    /// What keeps the lane from starting anything.
    pub(super) barred: u8,
    /// An awake lane is not scheduled: somebody who runs it, or holds it back, will look again.
    pub(super) attended: bool,
    pub(super) order: Order,
    holds: Holds,
    pub(super) heads: [Head<Entry<O>>; LEVELS],
    /// What is not in the queues.
    pub(super) ready: Ready<O>,
    /// When somebody comes by.
    armed: Nanos,
    pub(super) holding: Holding<O>,
    starts: Starts,
    pub(super) wait: Latencies,
    pub(super) work: Latencies,
    pub(super) tally: Tally,
    /// When to ask the breaker again, and when to look for room for the dead: of a lane that is refused or
    /// parked.
    ask_at: Nanos,
    pub(super) unpark_at: Nanos,
    pub(super) retries: u64,
    pub(super) keys: Keys<O>,
}

/// Where an entry goes that leaves the lane's hand before it is settled, and whose token was to be worked out.
pub(super) fn rank<O: Ops>(entry: &mut Entry<O>) -> Rank {
    match &mut entry.rare {
        Some(rare) if rare.unordered => {
            rare.unordered = false;
            if rare.delayed && rare.first_failure.is_none() {
                Rank::Due(entry.at, entry.sequence)
            } else {
                Rank::Begun(entry.sequence)
            }
        }
        _ => Rank::Left(entry.sequence),
    }
}

impl<O: Ops> Consumer<O> {
    /// So many lines of the cache have what every event needs.
    pub(super) const LINES: usize = 4;

    pub(super) fn new(heads: [Head<Entry<O>>; LEVELS], order: Order, holds: Holds) -> Self {
        Self {
            heads,
            ready: Ready::default(),
            starts: Starts::default(),
            order,
            holds,
            keys: Keys::default(),
            holding: Holding::default(),
            barred: 0,
            attended: false,
            ask_at: NEVER,
            unpark_at: NEVER,
            armed: NEVER,
            retries: 0,
            tally: Tally::default(),
            wait: Latencies::default(),
            work: Latencies::default(),
        }
    }

    #[inline]
    pub(super) fn is_keyed(&self) -> bool {
        matches!(self.order, Order::Token | Order::Computed)
    }

    /// How many of a level wait for their token or for a time.
    pub(super) fn aside(&self, level: usize) -> usize {
        self.keys.parked(level) + self.holding.count(level)
    }

    /// A run is over; with `stays`, its entry still goes first among those of its token there.
    #[inline]
    pub(super) fn leave(&mut self, token: u64, stays: Option<Priority>) {
        if self.is_keyed() {
            self.keys.release(token, stays, &mut self.ready);
        }
    }

    /// Since when the first that may start of a level waits.
    #[inline]
    pub(super) fn since(&mut self, level: usize) -> Option<Nanos> {
        let held = self.holding.holds(level);
        if let Some((rank, at)) = self.first_ready(level)
            && (rank.has_begun() || !held)
        {
            return Some(at);
        }
        if held {
            return None;
        }
        self.heads[level].peek().map(|entry| entry.at)
    }

    /// The first of those that are not in the queue, if it goes before that.
    #[inline]
    fn first_ready(&mut self, level: usize) -> Option<(Rank, Nanos)> {
        if self.ready.is_empty() {
            return None;
        }
        let (rank, entry) = self.ready.first(level)?;
        if let Rank::Tail(sequence) = rank
            && let Some(head) = self.heads[level].peek()
            && head.sequence < *sequence
        {
            return None;
        }
        Some((*rank, entry.at))
    }

    /// The next to start, of the levels that were `occupied` at the last look, a bit for each.
    #[inline]
    pub(super) fn next(&mut self, now: Nanos, occupied: u8) -> Option<Entry<O>> {
        if self.order == Order::Lane && self.ready.is_empty() && self.holding.is_empty() {
            // Then what is first is at a head. One that was counted and is not there yet is missed
            // here, and found or awaited below.
            if let Some(entry) = self.next_at_head(now, occupied) {
                return Some(entry);
            }
        }
        if self.is_parked() {
            return self.next_letter();
        }
        loop {
            let since: [Option<Nanos>; LEVELS] = std::array::from_fn(|level| {
                if occupied & 1 << level == 0 {
                    return None;
                }
                self.since(level)
            });
            let level = self.starts.choose(now, since)?;
            // What is first there is what may start: see `since`.
            if self.first_ready(level).is_some() {
                if let Some(entry) = self.next_ready(level, now) {
                    return Some(entry);
                }
                continue;
            }
            let entry = self.heads[level].pop()?;
            if let Some(entry) = self.begin(entry) {
                return Some(entry);
            }
        }
    }

    /// Takes its token, if it has one, for an entry from the queue; or parks it.
    #[inline]
    fn begin(&mut self, entry: Entry<O>) -> Option<Entry<O>> {
        match self.order {
            Order::Lane | Order::Nothing => Some(entry),
            Order::Token => {
                let rank = Rank::Left(entry.sequence);
                self.keys.claim(rank, entry)
            }
            Order::Computed => {
                self.barred |= POPPING;
                Some(entry)
            }
        }
    }

    /// The common way: looks at the heads only where the choice depends on them.
    #[inline(always)]
    fn next_at_head(&mut self, now: Nanos, occupied: u8) -> Option<Entry<O>> {
        let Self { heads, starts, .. } = self;
        let level = starts.choose_lazily(occupied, || {
            let since = |level: usize| heads[level].peek().map(|entry| entry.at);
            (now, std::array::from_fn(since))
        })?;
        heads[level].pop()
    }

    fn next_ready(&mut self, level: usize, now: Nanos) -> Option<Entry<O>> {
        let (rank, entry) = self.ready.pop(level)?;
        if let Some(due) = entry.early(now) {
            match rank {
                Rank::Tail(_) => self.hold_begun(entry, due),
                // It is ahead of the others of its token, and stays so.
                _ => self.holding.add(due, entry, self.kind_in_place()),
            }
            return None;
        }
        if let Rank::Tail(_) = rank {
            return self.begin(entry);
        }
        if !self.is_keyed() {
            return Some(entry);
        }
        if entry.is_unordered() {
            self.barred |= POPPING;
            return Some(entry);
        }
        self.keys.resume(rank, entry)
    }

    /// Puts those whose time has come where they can be started.
    #[cold]
    pub(super) fn ripen(&mut self, now: Nanos) {
        while let Some((rank, held)) = self.holding.pop(now) {
            let entry = held.entry;
            // Those that kept their place, or have no token yet, come to it when they start.
            let comes = matches!(held.kind, Kind::Delayed | Kind::Free) && !entry.is_unordered();
            if comes && self.is_keyed() {
                self.keys.arrive(rank, entry, &mut self.ready);
            } else {
                self.ready.insert(rank, entry);
            }
        }
    }

    /// Puts an entry that was begun in its place before those that were not.
    pub(super) fn admit_begun(&mut self, entry: Entry<O>) {
        let rank = Rank::Begun(entry.sequence);
        if self.is_keyed() && !entry.is_unordered() {
            self.keys.arrive(rank, entry, &mut self.ready);
        } else {
            self.ready.insert(rank, entry);
        }
    }

    /// The same, once its time has come; what waits for it then waits for it now.
    pub(super) fn hold_begun(&mut self, mut entry: Entry<O>, due: Nanos) {
        entry.rare().not_before = due;
        if self.holds != Holds::Nothing && self.is_keyed() && !entry.is_unordered() {
            // One that has to wait for another of its token does so first.
            let rank = Rank::Begun(entry.sequence);
            if let Some(entry) = self.keys.claim(rank, entry) {
                self.leave(entry.token, Some(entry.level));
                self.holding.add(due, entry, self.kind_in_place());
            }
            return;
        }
        let kind = match self.holds {
            Holds::Level => Kind::Level,
            Holds::Key | Holds::Nothing => Kind::Free,
        };
        self.holding.add(due, entry, kind);
    }

    /// Of an entry that waits for its next attempt before the others of its token.
    fn kind_in_place(&self) -> Kind {
        match self.holds {
            Holds::Level => Kind::Level,
            Holds::Key | Holds::Nothing => Kind::Place,
        }
    }

    /// The same when its turn comes, for one with others in front of it that come first.
    pub(super) fn queue_begun(&mut self, mut entry: Entry<O>, due: Nanos) {
        entry.rare().not_before = due;
        self.ready.insert(Rank::Tail(entry.sequence), entry);
    }

    /// Starts nothing before the breaker changes, or this time has come.
    pub(super) fn refuse(&mut self, until: Option<Nanos>) {
        self.barred |= REFUSED;
        self.ask_at = until.unwrap_or(NEVER);
    }

    pub(super) fn ask_again(&mut self) {
        self.ask_at = NEVER;
        self.barred &= !REFUSED;
    }

    /// Somebody comes by: takes away what bars the lane until now.
    pub(super) fn tick(&mut self, now: Nanos) {
        self.armed = NEVER;
        if self.ask_at <= now {
            self.ask_again();
        }
        if self.unpark_at <= now {
            self.unpark();
        }
    }

    pub(super) fn unpark(&mut self) {
        self.unpark_at = NEVER;
        self.barred &= !PARKED;
    }

    /// When somebody must come by.
    #[inline]
    pub(super) fn due(&self) -> Nanos {
        let due = self.holding.next();
        if self.barred & (REFUSED | PARKED) == 0 {
            debug_assert_eq!(self.ask_at.min(self.unpark_at), NEVER);
            return due;
        }
        due.min(self.ask_at).min(self.unpark_at)
    }

    /// The same, if that is earlier than somebody does.
    #[inline]
    pub(super) fn arm(&mut self) -> Option<Nanos> {
        let due = self.due();
        if due >= self.armed {
            return None;
        }
        self.armed = due;
        Some(due)
    }

    /// Lets go of the oldest of a level that was never started.
    pub(super) fn evict(&mut self, level: Priority) -> Option<Entry<O>> {
        let head = self.heads[level.index()].peek();
        let head = head.map(|entry| entry.sequence);
        if let Some(entry) = self.keys.evict(level, &mut self.ready, head) {
            return Some(entry);
        }
        let entry = self.heads[level.index()].pop();
        entry.or_else(|| self.holding.evict(level))
    }

    /// Nothing runs any more, and nobody comes by.
    pub(super) fn begin_anew(&mut self) {
        self.keys = Keys::default();
        self.barred &= PAUSED | CLOSED;
        self.attended = false;
        (self.ask_at, self.unpark_at, self.armed) = (NEVER, NEVER, NEVER);
    }

    /// Lets go of everything, counted as dropped.
    pub(super) fn drain(&mut self) -> Vec<Entry<O>> {
        let left = self.take_all();
        left.iter().for_each(|_| self.tally.count(Tallied::Dropped));
        left
    }

    /// Lets go of everything.
    pub(super) fn take_all(&mut self) -> Vec<Entry<O>> {
        let mut left: Vec<_> = self.ready.drain().collect();
        self.keys.drain(&mut left);
        left.extend(self.holding.drain());
        for head in &mut self.heads {
            while let Some(entry) = head.pop() {
                left.push(entry);
            }
        }
        left
    }
}
