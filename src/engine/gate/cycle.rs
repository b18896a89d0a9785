//! Waits of handlers that could never end: before one begins, the search for a cycle
//! among lanes whose handlers wait and publishers that stand in line.

use hashbrown::{HashMap, HashSet};

use super::waiting::Waiter;
use super::{Gate, State};
use crate::engine::error::EngineError;
use crate::engine::lane::{Lane, LaneId, Overflow};
use crate::engine::ops::Ops;
use crate::engine::sync::{Arc, lock};

/// A wait of a handler, and the lanes that it waits for.
pub(super) type Blocked<O> = (u64, Vec<Arc<Lane<O>>>);

/// A registered wait of a handler, for the search for cycles.
pub struct WaitId(LaneId, u64);

/// See [`State::moving`].
struct Moving {
    origin: LaneId,
    /// Those of which no handler is free. The others move anyway.
    lanes: HashSet<LaneId>,
    waiters: HashSet<u64>,
    /// Who stands directly before each waiter in its lines.
    ahead: HashMap<u64, Vec<u64>>,
}

enum Lack {
    Room(LaneId),
    Turn(u64),
}

impl<O: Ops> Gate<O> {
    /// Registers that a handler in the lane `origin` waits until these lanes have gone on.
    /// An error, with nothing registered, if that closes a cycle.
    pub fn begin_wait(
        &self,
        origin: LaneId,
        lanes: Vec<Arc<Lane<O>>>,
    ) -> Result<WaitId, EngineError> {
        let mut state = lock(&self.state);
        if let Some(cycle) = state.cycle(origin, &lanes, &[]) {
            return Err(EngineError::Deadlock { cycle });
        }
        state.ids += 1;
        let id = state.ids;
        state.blocked.entry(origin).or_default().push((id, lanes));
        Ok(WaitId(origin, id))
    }

    /// Ends a wait.
    pub fn end_wait(&self, wait: &WaitId) {
        lock(&self.state).unblock(wait.0, wait.1);
    }
}

impl<O: Ops> State<O> {
    pub(super) fn unblock(&mut self, origin: LaneId, id: u64) {
        if let Some(waits) = self.blocked.get_mut(&origin) {
            waits.retain(|(other, _)| *other != id);
            if waits.is_empty() {
                self.blocked.remove(&origin);
            }
        }
    }

    /// If a handler in `origin` waited until all of `needed` have gone on and the waiters `behind`
    /// which it would stand are let in: would that be for ever? Then the names of the lanes in the cycle.
    pub(super) fn cycle(
        &self,
        origin: LaneId,
        needed: &[Arc<Lane<O>>],
        behind: &[u64],
    ) -> Option<String> {
        if behind.is_empty() && !needed.iter().any(|lane| self.is_occupied(lane, origin)) {
            return None;
        }
        let moving = self.moving(origin);
        let mut stuck = self.stuck_on(needed, behind, &moving)?;
        let mut path = vec![origin];
        while !path.contains(&stuck) {
            path.push(stuck);
            let waits = self.blocked.get(&stuck).map_or(&[][..], Vec::as_slice);
            let next = waits.iter().find_map(|(id, lanes)| {
                if self.waiters.contains_key(id) {
                    self.stuck_on(&[], &[*id], &moving)
                } else {
                    self.stuck_on(lanes, &[], &moving)
                }
            });
            // Nobody else occupies it: it waits for itself.
            stuck = next.unwrap_or(stuck);
        }
        path.push(stuck);
        let names: Vec<_> = path.into_iter().map(|lane| self.name(lane)).collect();
        Some(names.join(" waits for "))
    }

    /// Whether all handlers of the lane wait, with one more of `origin`.
    fn is_occupied(&self, lane: &Lane<O>, origin: LaneId) -> bool {
        let waiting = self.blocked.get(&lane.id).map_or(0, Vec::len);
        waiting + usize::from(lane.id == origin) >= lane.options.concurrency
    }

    /// The lanes and the waiters that will go on, each because others do. Grown from nothing, so
    /// that no two count on each other, and one that is counted on by many is found once.
    fn moving(&self, origin: LaneId) -> Moving {
        let mut ahead: HashMap<u64, Vec<u64>> = HashMap::new();
        for line in self.lines.values() {
            for (first, second) in line.iter().zip(line.iter().skip(1)) {
                if first != second {
                    ahead.entry(*second).or_default().push(*first);
                }
            }
        }
        let mut moving = Moving {
            origin,
            lanes: HashSet::new(),
            waiters: HashSet::new(),
            ahead,
        };
        loop {
            let before = moving.lanes.len() + moving.waiters.len();
            for (id, waiter) in &self.waiters {
                if !moving.waiters.contains(id) && self.lacks(*id, waiter, &moving).is_none() {
                    moving.waiters.insert(*id);
                }
            }
            for (lane, waits) in &self.blocked {
                let moves = |(id, lanes): &Blocked<O>| {
                    if self.waiters.contains_key(id) {
                        moving.waiters.contains(id)
                    } else {
                        lanes.iter().all(|lane| self.moves(lane, &moving))
                    }
                };
                if waits.iter().any(moves) {
                    moving.lanes.insert(*lane);
                }
            }
            if moving.lanes.len() + moving.waiters.len() == before {
                return moving;
            }
        }
    }

    fn moves(&self, lane: &Lane<O>, moving: &Moving) -> bool {
        moving.lanes.contains(&lane.id) || !self.is_occupied(lane, moving.origin)
    }

    /// What keeps a waiter from being let in.
    fn lacks(&self, id: u64, waiter: &Waiter<O>, moving: &Moving) -> Option<Lack> {
        let full = waiter.route.lanes.iter().find(|lane| {
            // Room that is left may be used up by those in front.
            let first = || {
                let line = self.lines.get(&(lane.id, waiter.level));
                line.is_none_or(|line| line.front() == Some(&id))
            };
            lane.options.overflow == Overflow::Block
                && !(waiter.route.has_room(lane, waiter.level) && first())
                && !self.moves(lane, moving)
        });
        let ahead = moving.ahead.get(&id).into_iter().flatten();
        let mut ahead = ahead.filter(|ahead| !moving.waiters.contains(*ahead));
        full.map(|lane| Lack::Room(lane.id))
            .or_else(|| ahead.next().map(|ahead| Lack::Turn(*ahead)))
    }

    /// The lane that one who needs these lanes and stands behind these waiters waits for in vain.
    fn stuck_on(&self, needed: &[Arc<Lane<O>>], behind: &[u64], moving: &Moving) -> Option<LaneId> {
        if let Some(lane) = needed.iter().find(|lane| !self.moves(lane, moving)) {
            return Some(lane.id);
        }
        let mut waiter = *behind.iter().find(|id| !moving.waiters.contains(*id))?;
        // Whoever stands ahead came earlier, so this ends.
        loop {
            match self.lacks(waiter, &self.waiters[&waiter], moving)? {
                Lack::Room(lane) => return Some(lane),
                Lack::Turn(ahead) => waiter = ahead,
            }
        }
    }

    fn name(&self, lane: LaneId) -> String {
        let door = self
            .doors
            .iter()
            .flatten()
            .find(|door| door.lane.id == lane);
        door.map_or_else(
            || "a cancelled subscription".into(),
            |door| door.lane.options.name.to_string(),
        )
    }
}
