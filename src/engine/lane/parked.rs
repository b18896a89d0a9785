//! A lane that waits for room for a dead letter. It starts nothing but letters that are delivered
//! again: those have their room, and make some when they succeed. What else waits there they pass, or
//! a lane would wait for a redrive that waits for the lane. Only a run of their token they wait for, and
//! letters in front of them.

use super::consumer::{Consumer, PARKED, POPPING};
use super::entry::Entry;
use super::line::Rank;
use super::{Nanos, Order};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;

/// Where a letter waits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Among the ready, so far from the front.
    Ready(usize),
    /// Behind others of its token, so far from their front.
    Token(u64, usize),
}

impl<O: Ops> Consumer<O> {
    /// Starts nothing but letters before there is room for one; looks for itself at this time.
    pub(super) fn park(&mut self, until: Nanos) {
        self.barred |= PARKED;
        self.unpark_at = until;
    }

    pub(super) fn is_parked(&self) -> bool {
        self.barred & PARKED != 0
    }

    /// Whether the lane starts nothing now.
    #[inline]
    pub(super) fn is_barred(&self) -> bool {
        self.barred != 0 && (self.barred != PARKED || !self.has_letter())
    }

    /// Whether there is a letter that could be started in a parked lane.
    #[cold]
    pub(super) fn has_letter(&self) -> bool {
        self.first_letter().is_some()
    }

    /// The next to start in a parked lane.
    #[cold]
    pub(super) fn next_letter(&mut self) -> Option<Entry<O>> {
        let (level, place) = self.first_letter()?;
        let at = match place {
            Place::Token(token, at) => return self.keys.overtake_parked(token, level, at),
            Place::Ready(at) => at,
        };
        let (rank, entry) = self.ready.remove(level, at)?;
        if self.is_keyed() {
            if self.has_token(rank, &entry) {
                let ahead = !matches!(rank, Rank::Tail(_));
                self.keys.overtake(entry.token, level, ahead);
            } else {
                self.barred |= POPPING;
            }
        }
        Some(entry)
    }

    fn first_letter(&self) -> Option<(Priority, Place)> {
        let ready = self.ready.enumerate().filter_map(|(at, (rank, entry))| {
            let free = !self.is_keyed()
                || !self.has_token(*rank, entry)
                || self.keys.may_overtake(entry.token, entry.level);
            free.then_some((Place::Ready(at), entry))
        });
        let parked = self.keys.enumerate().filter_map(|(token, at, entry)| {
            let free = self.keys.may_overtake(token, entry.level);
            free.then_some((Place::Token(token, at), entry))
        });
        let letters = ready
            .chain(parked)
            .filter(|(_, entry)| entry.has_its_room() && !self.holding.holds_letter(entry.level));
        let (.., level, place) = letters
            .map(|(place, entry)| (entry.level.index(), entry.sequence, entry.level, place))
            .min_by_key(|(level, sequence, ..)| (*level, *sequence))?;
        Some((level, place))
    }

    /// Whether the token of one of the ready is known.
    fn has_token(&self, rank: Rank, entry: &Entry<O>) -> bool {
        let comes = matches!(rank, Rank::Tail(_)) && self.order == Order::Computed;
        !comes && !entry.is_unordered()
    }
}
