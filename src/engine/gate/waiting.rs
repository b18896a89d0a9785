//! Publishers that wait for room: one line for each lane and level, first come first
//! served, and let in only when they are first in all of their lines.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::effects::Effects;
use super::{Arrival, Gate, Held, Offer, State, Timing};
use crate::engine::clock::Nanos;
use crate::engine::digest::Digest;
use crate::engine::error::EngineError;
use crate::engine::lane::{Lane, LaneId, Overflow};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::router::Route;
use crate::engine::settlement::Envelope;
use crate::engine::sync::{Arc, Mutex, Shared, lock};

/// A place in the queue before the gate, shared with the publisher.
pub struct Ticket<O: Ops> {
    state: Mutex<TicketState<O>>,
}

/// The number and the lanes of an event that was let in.
pub type Admitted<O> = (u64, Arc<Route<O>>);

struct TicketState<O: Ops> {
    fate: Option<Result<Admitted<O>, EngineError>>,
    waker: Option<O::Waker>,
    id: u64,
}

impl<O: Ops> Ticket<O> {
    /// The number and the lanes, once accepted. The lanes may be others than when the wait began.
    pub fn admitted(&self) -> Option<Admitted<O>> {
        self.fate()?.ok()
    }

    /// What became of the wait: accepted, or refused by another lane when there was room in those that
    /// it waited for. A refused event is over and done with.
    pub fn fate(&self) -> Option<Result<Admitted<O>, EngineError>> {
        lock(&self.state).fate.clone()
    }

    /// Says whom to wake when that is known; gives it back if it is.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        if state.fate.is_some() {
            return Err(waker);
        }
        state.waker = Some(waker);
        Ok(())
    }
}

/// What waits for room: all that is needed to let it in without its publisher.
pub(super) struct Waiter<O: Ops> {
    pub(super) event_type: Box<str>,
    pub(super) route: Arc<Route<O>>,
    pub(super) level: Priority,
    pub(super) token: u64,
    pub(super) event: Shared<Envelope<O>>,
    pub(super) timing: Option<Timing>,
    pub(super) claim: Option<Digest>,
    pub(super) origin: Option<LaneId>,
    pub(super) ticket: Arc<Ticket<O>>,
}

impl<O: Ops> Waiter<O> {
    fn ends(&self, fate: Result<Admitted<O>, EngineError>, effects: &mut Effects<O>) {
        let mut ticket = lock(&self.ticket.state);
        ticket.fate = Some(fate);
        effects.wake(ticket.waker.take().map(|waker| vec![waker]));
    }
}

impl<O: Ops> Gate<O> {
    /// After an event left a queue for which somebody waits: lets waiters in.
    #[cold]
    pub fn room_made(&self, lane: &Lane<O>, level: Priority, now: Nanos, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        self.admit_waiters(&mut state, lane.id, level, now, effects);
    }

    pub(super) fn admit_waiters(
        &self,
        state: &mut State<O>,
        lane: LaneId,
        level: Priority,
        now: Nanos,
        effects: &mut Effects<O>,
    ) {
        let mut to_visit = vec![(lane, level)];
        while let Some(line) = to_visit.pop() {
            while let Some(&id) = state.lines.get(&line).and_then(VecDeque::front) {
                let waiter = &state.waiters[&id];
                let first = waiter.route.lanes.iter().all(|lane| {
                    lane.options.overflow != Overflow::Block
                        || (waiter.route.has_room(lane, waiter.level)
                            && state
                                .lines
                                .get(&(lane.id, waiter.level))
                                .is_none_or(|line| line.front() == Some(&id)))
                });
                if !first {
                    break;
                }
                let waiter = state.dequeue(id).expect("it is in the line");
                // Those behind it in its other lines may have become first.
                to_visit.extend(
                    waiter
                        .route
                        .lanes
                        .iter()
                        .map(|lane| (lane.id, waiter.level)),
                );
                state.counts.waiting -= 1;
                // Behind events with lower numbers that are kept already, if there are any.
                let held = !state.open && !state.held.is_empty();
                // The others had room when it came, and may have filled up meanwhile.
                if !held && let Some(full) = waiter.route.rejecting(waiter.level) {
                    state.counts.rejected += 1;
                    effects.wake(waiter.event.routed(0));
                    waiter.ends(Err(full.is_full()), effects);
                    effects.put_off().refused.push(waiter);
                    continue;
                }
                let sequence = self.sequencer.next_in_turn();
                state.counts.accepted += 1;
                if held {
                    state.held.push_back(Held {
                        event_type: waiter.event_type.clone(),
                        sequence,
                        at: now,
                        level: waiter.level,
                        token: waiter.token,
                        event: waiter.event.clone(),
                        timing: waiter.timing,
                        durable: false,
                    });
                } else {
                    effects.wake(waiter.event.routed(waiter.route.owed));
                    for lane in &waiter.route.lanes {
                        state.push(
                            lane,
                            &Arrival {
                                sequence,
                                at: now,
                                token: waiter.token,
                                level: waiter.level,
                                event: &waiter.event,
                                timing: waiter.timing.as_ref(),
                            },
                            effects,
                        );
                    }
                }
                waiter.ends(Ok((sequence, waiter.route.clone())), effects);
                effects.put_off().admitted.push(waiter);
            }
        }
    }

    /// Ends a wait for room. False: the event was accepted before, and that stands; or refused.
    pub fn give_up(&self, ticket: &Ticket<O>, now: Nanos, effects: &mut Effects<O>) -> bool {
        let mut state = lock(&self.state);
        let id = lock(&ticket.state).id;
        let Some(waiter) = state.dequeue(id) else {
            return false;
        };
        state.counts.waiting -= 1;
        state.counts.cancelled += 1;
        for lane in &waiter.route.lanes {
            self.admit_waiters(&mut state, lane.id, waiter.level, now, effects);
        }
        self.notice_quiet(&mut state, effects);
        // The payload's destructor is outside code.
        drop(state);
        drop(waiter);
        true
    }

    /// Waiters go by the subscriptions of the moment when they get in.
    pub(super) fn reroute(&self, state: &mut State<O>, now: Nanos, effects: &mut Effects<O>) {
        if state.waiters.is_empty() {
            return;
        }
        let mut ids: Vec<u64> = state.waiters.keys().copied().collect();
        ids.sort_unstable();
        let mut waiters = Vec::with_capacity(ids.len());
        for id in &ids {
            let mut waiter = state.dequeue(*id).expect("listed");
            let route = self.router.route(&waiter.event_type);
            effects.retire([std::mem::replace(&mut waiter.route, route)]);
            waiters.push(waiter);
        }
        let mut lines = HashSet::new();
        for (id, waiter) in ids.into_iter().zip(waiters) {
            lines.extend(
                waiter
                    .route
                    .lanes
                    .iter()
                    .map(|lane| (lane.id, waiter.level)),
            );
            if !state.line_up(id, waiter) {
                // It has no lane to wait for any more: a line of its own lets it in at once.
                lines.insert((0, Priority::Critical));
            }
        }
        for (lane, level) in lines {
            self.admit_waiters(state, lane, level, now, effects);
        }
    }
}

impl<O: Ops> State<O> {
    pub(super) fn enqueue(
        &mut self,
        offer: &Offer<'_, O>,
        route: Arc<Route<O>>,
        claim: Option<&Digest>,
    ) -> Arc<Ticket<O>> {
        self.ids += 1;
        let id = self.ids;
        let state = TicketState {
            fate: None,
            waker: None,
            id,
        };
        let ticket = Arc::new(Ticket {
            state: Mutex::new(state),
        });
        let waiter = Waiter {
            event_type: offer.event_type.into(),
            route,
            level: offer.level,
            token: offer.token,
            event: offer.event.clone(),
            timing: offer.timing.copied(),
            claim: claim.cloned(),
            origin: offer.origin,
            ticket: ticket.clone(),
        };
        self.line_up(id, waiter);
        ticket
    }

    /// Queues a waiter in the line of each lane that it may have to wait for. False: there is none.
    fn line_up(&mut self, id: u64, waiter: Waiter<O>) -> bool {
        let mut lanes: Vec<_> = waiter
            .route
            .lanes
            .iter()
            .filter(|lane| lane.options.overflow == Overflow::Block)
            .collect();
        lanes.dedup_by_key(|lane| lane.id);
        for lane in &lanes {
            self.lines
                .entry((lane.id, waiter.level))
                .or_default()
                .push_back(id);
            lane.await_room(waiter.level);
        }
        let any = !lanes.is_empty();
        if !any {
            self.lines
                .entry((0, Priority::Critical))
                .or_default()
                .push_back(id);
        }
        if let Some(origin) = waiter.origin {
            let waits = self.blocked.entry(origin).or_default();
            waits.push((id, Vec::new()));
        }
        self.waiters.insert(id, waiter);
        any
    }

    pub(super) fn dequeue(&mut self, id: u64) -> Option<Waiter<O>> {
        let waiter = self.waiters.remove(&id)?;
        let mut left_line = |key: (LaneId, Priority)| {
            let Some(line) = self.lines.get_mut(&key) else {
                return false;
            };
            let Some(at) = line.iter().position(|other| *other == id) else {
                return false;
            };
            line.remove(at);
            if line.is_empty() {
                self.lines.remove(&key);
            }
            true
        };
        left_line((0, Priority::Critical));
        for lane in &waiter.route.lanes {
            if left_line((lane.id, waiter.level)) {
                lane.awaits_no_more(waiter.level);
            }
        }
        if let Some(origin) = waiter.origin {
            self.unblock(origin, id);
        }
        Some(waiter)
    }
}
