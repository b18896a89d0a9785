//! Entries that wait for a time: for their next attempt, or for the first one that their
//! publisher has put off. They own neither task nor thread; the lane says when the next
//! is due, and somebody comes by then.

use std::collections::BTreeMap;

use super::entry::Entry;
use super::line::Rank;
use super::{LEVELS, Nanos};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;

/// No time at all.
pub(super) const NEVER: Nanos = Nanos::MAX;

/// See the module. In most lanes nothing ever waits for a time.
#[repr(C)]
pub(super) struct Holding<O: Ops> {
    /// When the first is due.
    next: Nanos,
    /// Made with the first.
    held: Option<Box<All<O>>>,
}

struct All<O: Ops> {
    /// By time and sequence, and in the order of coming where both are equal.
    waiting: BTreeMap<(Nanos, u64, u64), Held<O>>,
    /// How many hold their level back.
    levels: [usize; LEVELS],
    /// How many there are, by level.
    counts: [usize; LEVELS],
    retries: usize,
    came: u64,
}

/// An entry that waits.
pub(super) struct Held<O: Ops> {
    pub(super) entry: Entry<O>,
    pub(super) kind: Kind,
}

/// What an entry waits for, and what waits with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For its time.
    Delayed,
    /// For its next attempt, with the rest of its level.
    Level,
    /// For its next attempt, in its place before the others of its token, if there are any.
    Place,
    /// For its next attempt; the others go on.
    Free,
}

impl<O: Ops> Default for Holding<O> {
    fn default() -> Self {
        Self {
            next: NEVER,
            held: None,
        }
    }
}

impl<O: Ops> Default for All<O> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            levels: [0; LEVELS],
            counts: [0; LEVELS],
            retries: 0,
            came: 0,
        }
    }
}

impl<O: Ops> Holding<O> {
    /// When the first is due.
    #[inline]
    pub(super) fn next(&self) -> Nanos {
        self.next
    }

    /// Whether nothing waits for a time.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.next == NEVER
    }

    /// Whether the level is held back.
    #[inline]
    pub(super) fn holds(&self, level: usize) -> bool {
        self.held.as_ref().is_some_and(|all| all.levels[level] > 0)
    }

    /// How many of a level wait for their time.
    pub(super) fn count(&self, level: usize) -> usize {
        self.held.as_ref().map_or(0, |all| all.counts[level])
    }

    /// Whether a letter that is delivered again waits for its next attempt in its place on this level.
    pub(super) fn holds_letter(&self, level: Priority) -> bool {
        self.all().any(|held| {
            held.kind != Kind::Free && held.entry.level == level && held.entry.letter().is_some()
        })
    }

    /// How many wait for a retry, and how many for their time.
    pub(super) fn counts(&self) -> (usize, usize) {
        self.held
            .as_ref()
            .map_or((0, 0), |all| (all.retries, all.waiting.len() - all.retries))
    }

    pub(super) fn add(&mut self, due: Nanos, entry: Entry<O>, kind: Kind) {
        self.next = self.next.min(due);
        self.held.get_or_insert_default().add(due, entry, kind);
    }

    /// The next whose time has come, and its rank.
    pub(super) fn pop(&mut self, now: Nanos) -> Option<(Rank, Held<O>)> {
        if self.next > now {
            return None;
        }
        let all = self.held.as_mut()?;
        let ((due, sequence, _), held) = all.waiting.pop_first()?;
        self.next = all.let_go(&held);
        let rank = match held.kind {
            Kind::Delayed | Kind::Free => Rank::Due(due, sequence),
            Kind::Level | Kind::Place => Rank::Begun(sequence),
        };
        Some((rank, held))
    }

    /// Lets go of the first of a level that was never started.
    pub(super) fn evict(&mut self, level: Priority) -> Option<Entry<O>> {
        let all = self.held.as_mut()?;
        let mut of_level = all
            .waiting
            .iter()
            .filter(|(_, held)| held.kind == Kind::Delayed && held.entry.level == level);
        let at = *of_level.next()?.0;
        let held = all.waiting.remove(&at)?;
        self.next = all.let_go(&held);
        Some(held.entry)
    }

    fn all(&self) -> impl Iterator<Item = &Held<O>> {
        self.held.iter().flat_map(|all| all.waiting.values())
    }

    /// Those that wait for a retry.
    pub(super) fn retries(&self) -> impl Iterator<Item = &Entry<O>> {
        let retries = self.all().filter(|held| held.kind != Kind::Delayed);
        retries.map(|held| &held.entry)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry<O>> + use<O> {
        let all = std::mem::take(self).held;
        let all = all.into_iter().flat_map(|all| all.waiting.into_values());
        all.map(|held| held.entry)
    }
}

impl<O: Ops> All<O> {
    fn add(&mut self, due: Nanos, entry: Entry<O>, kind: Kind) {
        self.levels[entry.level.index()] += usize::from(kind == Kind::Level);
        self.counts[entry.level.index()] += 1;
        self.retries += usize::from(kind != Kind::Delayed);
        self.came += 1;
        self.waiting
            .insert((due, entry.sequence, self.came), Held { entry, kind });
    }

    /// One has been taken out. Returns when the first of the others is due.
    fn let_go(&mut self, held: &Held<O>) -> Nanos {
        self.levels[held.entry.level.index()] -= usize::from(held.kind == Kind::Level);
        self.counts[held.entry.level.index()] -= 1;
        self.retries -= usize::from(held.kind != Kind::Delayed);
        let first = self.waiting.first_key_value();
        first.map_or(NEVER, |((due, ..), _)| *due)
    }
}
