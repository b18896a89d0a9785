//! How an event is let in: a look at its key, room in all its lanes or none of it, the number, the push.

use super::effects::signal;
use super::full::FullLane;
use super::{Arrival, Door, Effects, Gate, Held, State, Ticket};
use crate::engine::clock::Nanos;
use crate::engine::digest::Digest;
use crate::engine::error::EngineError;
use crate::engine::idempotency::Claim;
use crate::engine::lane::{Entry, Lane, LaneId, Overflow};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::router::Route;
use crate::engine::settlement::Envelope;
use crate::engine::sync::{Arc, MutexGuard, Shared, lock};

/// What a publisher does when there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It is refused.
    None,
    /// It waits.
    Wait,
}

/// One event before the gate.
pub struct Offer<'a, O: Ops> {
    /// Its type, by which it is routed again if subscriptions changed meanwhile.
    pub event_type: &'a str,
    /// Its level.
    pub level: Priority,
    /// What it is ordered by in lanes ordered by token.
    pub token: u64,
    /// The event.
    pub event: &'a Shared<Envelope<O>>,
    /// The lane whose handler publishes it, if one does.
    pub origin: Option<LaneId>,
    /// When it may be delivered, if not always.
    pub timing: Option<&'a Timing>,
}

/// When an event may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Not before this.
    pub due: Option<Nanos>,
    /// Not later than this.
    pub expires: Option<Nanos>,
}

/// What became of a publish.
pub enum Published<O: Ops> {
    /// Accepted under this number.
    Accepted(u64),
    /// Accepted under this number and kept until the bus is started.
    Held(u64),
    /// An event with this key was accepted before.
    Duplicate,
    /// An event with this key is on its way: [join](crate::engine::bus::Bus::join) it, and publish again when
    /// woken.
    InFlight,
    /// In the queue before the gate.
    Waiting(Arc<Ticket<O>>),
    /// Not accepted, and no trace of it is left.
    Refused(EngineError),
}

/// What became of a run of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The number of the first; the others follow without a gap.
    pub first: u64,
    /// How many were let in.
    pub count: usize,
    /// They are kept until the bus is started.
    pub held: bool,
    /// The next one did not get in at once.
    pub refused: bool,
}

impl<O: Ops> Gate<O> {
    /// Lets an event in if its key, where it has one, is nobody's and there is room in all its lanes,
    /// by `route` if that is not stale; else by the one that is left in `rerouted`.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn admit(
        &self,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        rerouted: &mut Option<Arc<Route<O>>>,
        patience: Patience,
        claim: Option<&Digest>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Published<O> {
        let mut state = lock(&self.state);
        if let Some(key) = claim {
            match state.keys.look(key, now) {
                Claim::Vacant => {}
                Claim::Pending => return Published::InFlight,
                Claim::Duplicate => {
                    state.counts.offered += 1;
                    state.counts.duplicate += 1;
                    return Published::Duplicate;
                }
            }
        }
        let route = self.current(&state, offer, route, rerouted);
        let published = self.admit_one(&mut state, offer, route, patience, claim, now, effects);
        if let Some(key) = claim {
            match published {
                Published::Accepted(_) | Published::Held(_) => state.keys.mark(key, now),
                Published::Waiting(_) => state.keys.hold(key),
                // The key is as free as it was.
                _ => {}
            }
        }
        drop(state);
        if matches!(published, Published::Accepted(_)) {
            signal(route);
        }
        published
    }

    /// Lets events of one type in, one after the other, until one does not get in at once; that one
    /// is as if it had not come. Returns the first number given, how many, and whether one was left.
    pub fn admit_run<'a>(
        &self,
        offers: impl Iterator<Item = Offer<'a, O>>,
        route: &Route<O>,
        rerouted: &mut Option<Arc<Route<O>>>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Run {
        let mut offers = offers.peekable();
        let mut state = lock(&self.state);
        let route = match offers.peek() {
            Some(first) => self.current(&state, first, route, rerouted),
            None => route,
        };
        let mut run = Run {
            held: !state.open,
            ..Run::default()
        };
        // Room that was found is there until it is used up: the gate is held.
        let (mut level, mut room) = (Priority::Normal, 0);
        for offer in offers {
            if state.open {
                if room == 0 || offer.level != level {
                    (level, room) = (offer.level, route.room(offer.level));
                }
                if room > 0 {
                    room -= 1;
                    state.counts.offered += 1;
                    let sequence = self.let_in(&mut state, &offer, route, now, effects);
                    if run.count == 0 {
                        run.first = sequence;
                    }
                    run.count += 1;
                    continue;
                }
            }
            match self.admit_one(
                &mut state,
                &offer,
                route,
                Patience::None,
                None,
                now,
                effects,
            ) {
                Published::Accepted(sequence) | Published::Held(sequence) => {
                    if run.count == 0 {
                        run.first = sequence;
                    }
                    run.count += 1;
                }
                Published::Refused(_) => {
                    // Not the end of this publish: its publisher comes back with it.
                    state.counts.offered -= 1;
                    state.counts.rejected -= 1;
                    run.refused = true;
                    break;
                }
                Published::Waiting(_) => unreachable!("an impatient offer does not wait"),
                Published::Duplicate | Published::InFlight => {
                    unreachable!("an event of a run has no key")
                }
            }
        }
        drop(state);
        signal(route);
        run
    }

    /// The route by which an event goes now.
    #[inline]
    fn current<'a>(
        &self,
        state: &State<O>,
        offer: &Offer<'_, O>,
        route: &'a Route<O>,
        rerouted: &'a mut Option<Arc<Route<O>>>,
    ) -> &'a Route<O> {
        if route.epoch == state.epoch {
            route
        } else {
            rerouted.insert(self.router.route(offer.event_type))
        }
    }

    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn admit_one(
        &self,
        state: &mut MutexGuard<'_, State<O>>,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        patience: Patience,
        claim: Option<&Digest>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Published<O> {
        let state = &mut **state;
        state.counts.offered += 1;
        if !state.open {
            return self.hold(state, offer, now);
        }
        if let Some(full) = state.obstacle(route, offer.level) {
            let full = full.clone();
            match self.at_full_lane(state, &full, offer, route, patience) {
                FullLane::Exceed => {}
                FullLane::Wait => {
                    state.counts.waiting += 1;
                    let ticket = state.enqueue(offer, Arc::new(route.clone()), claim);
                    // Room that was made since the look above was made for nobody.
                    for lane in &route.lanes {
                        self.admit_waiters(state, lane.id, offer.level, now, effects);
                    }
                    return Published::Waiting(ticket);
                }
                FullLane::Refuse(error) => {
                    state.counts.rejected += 1;
                    return Published::Refused(error);
                }
            }
        }
        let sequence = self.accept(state, offer, route, effects);
        let arrival = Arrival::of(offer, sequence, now);
        for lane in &route.lanes {
            state.push(lane, &arrival, effects);
        }
        Published::Accepted(sequence)
    }

    /// An event for which there is room.
    #[inline(always)]
    fn let_in(
        &self,
        state: &mut State<O>,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> u64 {
        let sequence = self.accept(state, offer, route, effects);
        let arrival = Arrival::of(offer, sequence, now);
        for lane in &route.lanes {
            state.door(lane).enter(lane, &arrival, effects);
        }
        sequence
    }

    /// An event that is accepted.
    #[inline(always)]
    fn accept(
        &self,
        state: &mut State<O>,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        effects: &mut Effects<O>,
    ) -> u64 {
        state.counts.accepted += 1;
        effects.wake(offer.event.routed(route.owed));
        self.sequencer.next_in_turn()
    }

    fn hold(&self, state: &mut State<O>, offer: &Offer<'_, O>, now: Nanos) -> Published<O> {
        if state.held.len() >= state.bound {
            // No handler runs that could ever make room: to wait would be for ever.
            state.counts.rejected += 1;
            return Published::Refused(EngineError::NotStarted { bound: state.bound });
        }
        let sequence = self.sequencer.next_in_turn();
        state.counts.accepted += 1;
        state.held.push_back(Held {
            event_type: offer.event_type.into(),
            sequence,
            at: now,
            level: offer.level,
            token: offer.token,
            event: offer.event.clone(),
            timing: offer.timing.copied(),
            durable: false,
        });
        Published::Held(sequence)
    }
}

impl<O: Ops> State<O> {
    #[inline]
    pub(super) fn push(
        &mut self,
        lane: &Arc<Lane<O>>,
        arrival: &Arrival<'_, O>,
        effects: &mut Effects<O>,
    ) {
        let door = self.door(lane);
        let level = arrival.level;
        if !lane.has_room(level) {
            match lane.options.overflow {
                Overflow::DropOldest => match lane.evict(level) {
                    Some(evicted) => effects.let_go(lane, evicted.into_event()),
                    // Everything queued had begun before: the newcomer goes instead.
                    None => return door.turn_away(arrival.event, effects),
                },
                Overflow::DropNew => return door.turn_away(arrival.event, effects),
                Overflow::Block | Overflow::Reject | Overflow::Spill => {}
            }
        }
        door.enter(lane, arrival, effects);
    }

    #[inline(always)]
    pub(super) fn door(&mut self, lane: &Lane<O>) -> &mut Door<O> {
        let door = self.doors[lane.slot]
            .as_mut()
            .expect("a routed lane has a door");
        debug_assert_eq!(door.lane.id, lane.id);
        door
    }
}

impl<O: Ops> Door<O> {
    /// Lets an event in, whatever room there is.
    #[inline(always)]
    fn enter(&mut self, lane: &Arc<Lane<O>>, arrival: &Arrival<'_, O>, effects: &mut Effects<O>) {
        let &Arrival {
            sequence,
            at,
            token,
            level,
            event,
            timing,
        } = arrival;
        self.routed += 1;
        lane.entering(level);
        let timing = timing.filter(|_| !lane.options.untimed);
        let expires = timing.and_then(|timing| timing.expires);
        let entry = Entry::new(sequence, at, token, level, event.clone(), expires);
        match timing.and_then(|timing| timing.due) {
            None => self.tails[level.index()].push(entry),
            Some(due) => {
                if let Some(due) = lane.put_off(entry, due) {
                    effects.come_by(due, lane);
                }
            }
        }
    }

    fn turn_away(&mut self, event: &Shared<Envelope<O>>, effects: &mut Effects<O>) {
        self.routed += 1;
        self.lane.turn_away();
        effects.let_go(&self.lane, event.clone());
    }
}
