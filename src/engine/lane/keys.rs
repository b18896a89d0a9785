//! Tokens: which of them are at work, and what waits for each.
//!
//! Two entries of one token never run at once, and on each level the next one does not
//! start before the one ahead of it is settled, however long that waits for a retry. What
//! waits on one level does not keep another level of the same token from going on.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Place;

use super::LEVELS;
use super::entry::Entry;
use super::line::{Line, Rank, Ready};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;

/// See the module.
pub(super) struct Keys<O: Ops> {
    tokens: HashMap<u64, Token<O>>,
    /// How many are parked, by level.
    parked: [usize; LEVELS],
}

/// A token that somebody has or waits for. While it does not run, a level on which
/// something is parked always has one ahead, or more after one was [overtaken](Keys::overtake).
struct Token<O: Ops> {
    running: bool,
    /// How many entries of each level go before the parked ones: they are among the ready, or wait
    /// for their next attempt.
    ahead: [u8; LEVELS],
    parked: Option<Box<[Line<O>; LEVELS]>>,
}

const NONE: [u8; LEVELS] = [0; LEVELS];

impl<O: Ops> Default for Keys<O> {
    fn default() -> Self {
        Self {
            tokens: HashMap::new(),
            parked: [0; LEVELS],
        }
    }
}

impl<O: Ops> Keys<O> {
    /// Takes the token for the entry, and gives the entry back; or parks it.
    #[inline]
    pub(super) fn claim(&mut self, rank: Rank, entry: Entry<O>) -> Option<Entry<O>> {
        match self.tokens.entry(entry.token) {
            Place::Vacant(place) => {
                place.insert(Token {
                    running: true,
                    ahead: NONE,
                    parked: None,
                });
                Some(entry)
            }
            Place::Occupied(mut place) => {
                let token = place.get_mut();
                if token.running || token.ahead[entry.level.index()] > 0 {
                    self.parked[entry.level.index()] += 1;
                    token.park(rank, entry);
                    return None;
                }
                token.running = true;
                Some(entry)
            }
        }
    }

    /// How many of a level wait for others of their token.
    pub(super) fn parked(&self, level: usize) -> usize {
        self.parked[level]
    }

    /// The same for an entry from among the ready.
    pub(super) fn resume(&mut self, rank: Rank, entry: Entry<O>) -> Option<Entry<O>> {
        let token = self.tokens.get_mut(&entry.token).expect("it is ahead");
        token.ahead[entry.level.index()] -= 1;
        if token.running {
            self.parked[entry.level.index()] += 1;
            token.park(rank, entry);
            return None;
        }
        token.running = true;
        Some(entry)
    }

    /// An entry whose time has come: among the ready, or behind those of its token.
    pub(super) fn arrive(&mut self, rank: Rank, entry: Entry<O>, ready: &mut Ready<O>) {
        let token = self.tokens.entry(entry.token).or_insert_with(|| Token {
            running: false,
            ahead: NONE,
            parked: None,
        });
        if token.running || token.ahead[entry.level.index()] > 0 {
            self.parked[entry.level.index()] += 1;
            return token.park(rank, entry);
        }
        token.ahead[entry.level.index()] += 1;
        ready.insert(rank, entry);
    }

    /// The run is over; with `stays`, its entry still goes first on this level.
    #[inline]
    pub(super) fn release(&mut self, token: u64, stays: Option<Priority>, ready: &mut Ready<O>) {
        let Place::Occupied(mut place) = self.tokens.entry(token) else {
            return;
        };
        let token = place.get_mut();
        token.running = false;
        if let Some(level) = stays {
            token.ahead[level.index()] += 1;
        }
        if token.advance(ready, &mut self.parked) {
            place.remove();
        }
    }

    /// Lets go of the oldest entry of a level that was never started, among these and the ready, if
    /// it is older than the head of the queue.
    pub(super) fn evict(
        &mut self,
        level: Priority,
        ready: &mut Ready<O>,
        head: Option<u64>,
    ) -> Option<Entry<O>> {
        let older = |sequence: u64| head.is_none_or(|head| sequence < head);
        let parked = self.tokens.iter().filter_map(|(number, token)| {
            let (sequence, at) = token.parked.as_ref()?[level.index()].oldest()?;
            Some((sequence, *number, at))
        });
        let parked = parked.filter(|(sequence, ..)| older(*sequence)).min();
        let first = ready.oldest(level).filter(|(sequence, _)| older(*sequence));
        match (parked, first) {
            (Some((sequence, number, at)), first)
                if first.is_none_or(|(other, _)| sequence < other) =>
            {
                let parked = self.tokens.get_mut(&number)?.parked.as_mut()?;
                let (_, entry) = parked[level.index()].remove(at)?;
                self.parked[level.index()] -= 1;
                Some(entry)
            }
            (_, Some((_, at))) => {
                let (_, entry) = ready.remove(level, at)?;
                if let Place::Occupied(mut place) = self.tokens.entry(entry.token)
                    && !entry.is_unordered()
                {
                    let token = place.get_mut();
                    token.ahead[level.index()] -= 1;
                    if !token.running && token.advance(ready, &mut self.parked) {
                        place.remove();
                    }
                }
                Some(entry)
            }
            _ => None,
        }
    }

    /// Whether an entry may start though others of its token and level are ahead of it.
    pub(super) fn may_overtake(&self, token: u64, level: Priority) -> bool {
        let token = self.tokens.get(&token);
        token.is_none_or(|token| !token.running && token.ahead[level.index()] < u8::MAX)
    }

    /// Takes the token for such an entry, which was itself `ahead`, or did not come to its token yet.
    pub(super) fn overtake(&mut self, token: u64, level: Priority, ahead: bool) {
        let token = self.tokens.entry(token).or_insert_with(|| Token {
            running: false,
            ahead: NONE,
            parked: None,
        });
        token.ahead[level.index()] -= u8::from(ahead);
        token.running = true;
    }

    /// The same for one that is parked.
    pub(super) fn overtake_parked(
        &mut self,
        token: u64,
        level: Priority,
        at: usize,
    ) -> Option<Entry<O>> {
        let token = self.tokens.get_mut(&token)?;
        let (_, entry) = token.parked.as_mut()?[level.index()].remove(at)?;
        self.parked[level.index()] -= 1;
        token.running = true;
        Some(entry)
    }

    /// What is parked, with its token and its place in its level.
    pub(super) fn enumerate(&self) -> impl Iterator<Item = (u64, usize, &Entry<O>)> {
        self.tokens.iter().flat_map(|(number, token)| {
            let lines = token.parked.iter().flat_map(|lines| lines.iter());
            let entries = lines.flat_map(Line::enumerate);
            entries.map(|(at, (_, entry))| (*number, at, entry))
        })
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<O>> {
        let parked = self
            .tokens
            .values()
            .filter_map(|token| token.parked.as_ref());
        parked.flat_map(|lines| lines.iter().flat_map(Line::entries))
    }

    /// Lets go of all that is parked; what runs keeps its token.
    pub(super) fn drain(&mut self, left: &mut Vec<Entry<O>>) {
        self.parked = [0; LEVELS];
        for token in self.tokens.values_mut() {
            token.ahead = NONE;
            for mut line in token.parked.take().into_iter().flat_map(|lines| *lines) {
                left.extend(line.drain());
            }
        }
    }
}

impl<O: Ops> Token<O> {
    fn park(&mut self, rank: Rank, entry: Entry<O>) {
        let lines = self.parked.get_or_insert_default();
        lines[entry.level.index()].insert(rank, entry);
    }

    /// The first of each level comes to be ahead. True: nobody has the token or waits for it.
    #[inline]
    fn advance(&mut self, ready: &mut Ready<O>, parked: &mut [usize; LEVELS]) -> bool {
        let Some(lines) = &mut self.parked else {
            return self.ahead == NONE;
        };
        let mut empty = true;
        for (level, line) in lines.iter_mut().enumerate() {
            if self.ahead[level] == 0
                && let Some((rank, entry)) = line.pop()
            {
                self.ahead[level] = 1;
                parked[level] -= 1;
                ready.insert(rank, entry);
            }
            empty &= line.is_empty();
        }
        empty && self.ahead == NONE
    }
}
