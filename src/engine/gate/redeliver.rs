//! A dead letter on its way back to its subscription, and to no other: a new number, at the
//! tail of the lane. It was accepted once, so neither keys nor the lane's bound are asked;
//! whoever redrives has few of them under way.

use super::{Effects, Gate};
use crate::engine::clock::Nanos;
use crate::engine::lane::{Entry, Lane, Letter};
use crate::engine::ops::{Ops, Seat};
use crate::engine::priority::Priority;
use crate::engine::router::Route;
use crate::engine::settlement::Envelope;
use crate::engine::sync::{Arc, Shared, lock};

/// A dead letter's event before the gate.
pub struct Redelivery<'a, O: Ops> {
    /// Where it goes.
    pub lane: &'a Arc<Lane<O>>,
    /// Its level.
    pub level: Priority,
    /// What it is ordered by in lanes ordered by token.
    pub token: u64,
    /// The event.
    pub event: &'a Shared<Envelope<O>>,
    /// What it was.
    pub letter: Letter,
}

impl<O: Ops> Gate<O> {
    /// Lets a dead letter in. Its number and its way; none: the gate or the lane is closed.
    pub fn redeliver(
        &self,
        redelivery: Redelivery<'_, O>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Option<(u64, Arc<Route<O>>)> {
        let Redelivery {
            lane,
            level,
            token,
            event,
            letter,
        } = redelivery;
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let door = state.doors.get_mut(lane.slot)?.as_mut();
        let door = door.filter(|door| state.open && door.lane.id == lane.id)?;
        let sequence = self.sequencer.next_in_turn();
        state.counts.offered += 1;
        state.counts.accepted += 1;
        door.routed += 1;
        effects.wake(event.routed(1));
        lane.entering(level);
        let mut entry = Entry::new(sequence, now, token, level, event.clone(), None);
        entry.rare().letter = Some(letter);
        let schedule = lane.readmit(entry);
        let route = Route::to(lane, state.epoch);
        drop(guard);
        if schedule {
            lane.seat().schedule(lane.clone());
        }
        Some((sequence, Arc::new(route)))
    }
}
