//! Entries that are not in the queue of their level: most go before it, in their order.

use std::collections::VecDeque;

use super::entry::Entry;
use super::{LEVELS, Nanos};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;

/// Why an entry is not in the queue, but goes before it. Those further up go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It was started before and came back; by sequence.
    Begun(u64),
    /// Its time has come; by that, then by sequence.
    Due(Nanos, u64),
    /// It had left the queue when its token was taken; by sequence.
    Left(u64),
    /// It does not: it is delivered again, and its turn comes as if it were in the queue; by sequence.
    Tail(u64),
}

impl Rank {
    pub(super) fn has_begun(self) -> bool {
        matches!(self, Self::Begun(_))
    }
}

/// Entries by rank; equal ones stay as they came.
pub(super) struct Line<O: Ops>(VecDeque<(Rank, Entry<O>)>);

impl<O: Ops> Default for Line<O> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<O: Ops> Line<O> {
    /// Mostly at one of the ends, where it costs nothing.
    pub(super) fn insert(&mut self, rank: Rank, entry: Entry<O>) {
        if self.0.back().is_none_or(|(last, _)| *last <= rank) {
            return self.0.push_back((rank, entry));
        }
        let at = self.0.partition_point(|(other, _)| *other <= rank);
        self.0.insert(at, (rank, entry));
    }

    pub(super) fn first(&self) -> Option<&(Rank, Entry<O>)> {
        self.0.front()
    }

    pub(super) fn pop(&mut self) -> Option<(Rank, Entry<O>)> {
        self.0.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sequence of the oldest that may be let go of, and its place: it was never started, and is no
    /// letter, which whoever delivers it again would only lose time over.
    pub(super) fn oldest(&self) -> Option<(u64, usize)> {
        let began = self.0.partition_point(|(rank, _)| rank.has_begun());
        let rest = self.0.iter().enumerate().skip(began);
        let rest = rest.filter(|(_, (_, entry))| entry.letter().is_none());
        rest.map(|(at, (_, entry))| (entry.sequence, at)).min()
    }

    pub(super) fn remove(&mut self, at: usize) -> Option<(Rank, Entry<O>)> {
        self.0.remove(at)
    }

    /// With their places.
    pub(super) fn enumerate(&self) -> impl Iterator<Item = (usize, &(Rank, Entry<O>))> {
        self.0.iter().enumerate()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<O>> {
        self.0.iter().map(|(_, entry)| entry)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry<O>> {
        self.0.drain(..).map(|(_, entry)| entry)
    }
}

/// The entries that may start, and are not in the queues, by level.
pub(super) struct Ready<O: Ops> {
    /// How many there are, so that nobody looks where there are none.
    count: usize,
    /// Made when first needed, so that the others stay small.
    lines: Option<Box<[Line<O>; LEVELS]>>,
}

impl<O: Ops> Default for Ready<O> {
    fn default() -> Self {
        Self {
            count: 0,
            lines: None,
        }
    }
}

impl<O: Ops> Ready<O> {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn insert(&mut self, rank: Rank, entry: Entry<O>) {
        self.count += 1;
        let lines = self.lines.get_or_insert_default();
        lines[entry.level.index()].insert(rank, entry);
    }

    pub(super) fn first(&self, level: usize) -> Option<&(Rank, Entry<O>)> {
        self.lines.as_ref()?[level].first()
    }

    pub(super) fn pop(&mut self, level: usize) -> Option<(Rank, Entry<O>)> {
        let first = self.lines.as_mut()?[level].pop()?;
        self.count -= 1;
        Some(first)
    }

    /// See [`Line::oldest`].
    pub(super) fn oldest(&self, level: Priority) -> Option<(u64, usize)> {
        self.lines.as_ref()?[level.index()].oldest()
    }

    pub(super) fn remove(&mut self, level: Priority, at: usize) -> Option<(Rank, Entry<O>)> {
        let entry = self.lines.as_mut()?[level.index()].remove(at)?;
        self.count -= 1;
        Some(entry)
    }

    /// With their places in their levels.
    pub(super) fn enumerate(&self) -> impl Iterator<Item = (usize, &(Rank, Entry<O>))> {
        let lines = self.lines.iter().flat_map(|lines| lines.iter());
        lines.flat_map(Line::enumerate)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<O>> {
        let lines = self.lines.iter().flat_map(|lines| lines.iter());
        lines.flat_map(Line::entries)
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry<O>> {
        self.count = 0;
        let lines = self.lines.iter_mut().flat_map(|lines| lines.iter_mut());
        lines.flat_map(Line::drain)
    }
}
