//! The gate: one short critical section per bus that every event passes.
//!
//! Room in all lanes or in none; then the number; then the push. So the order of the
//! numbers and the order in every lane are one fact, and a number is never given to an
//! event that is then refused. Subscribing passes the gate too, which defines which
//! subscriptions "existed when the event was accepted". No outside code, no destructor
//! of a payload and no I/O happens inside: what must be dropped or woken is handed out
//! as [`Effects`].

use std::collections::VecDeque;

use hashbrown::{HashMap, HashSet};

use super::clock::Nanos;
use super::digest::Digest;
use super::error::EngineError;
use super::lane::{Entry, Lane, LaneId, LaneOptions, LaneReport, Overflow, Tails};
use super::ledger::{Counts, Ended};
use super::ops::{Ops, Seat};
use super::priority::Priority;
use super::router::{Route, Router};
use super::sequence::Sequencer;
use super::settlement::{Envelope, Outcome};
use super::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering, fence},
    lock,
};
use super::topic::Topic;

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
    pub event: &'a Arc<Envelope<O>>,
    /// The lane whose handler publishes it, if one does.
    pub origin: Option<LaneId>,
}

/// The gate's answer.
pub enum Admission<O: Ops> {
    /// Accepted under this number.
    Accepted(u64),
    /// Accepted under this number and kept until the bus is started.
    Held(u64),
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

/// A lane, and an event that it let go of.
type Dropped<O> = (Arc<Lane<O>>, Arc<Envelope<O>>);

/// What is to be done once no lock is held.
///
/// Mostly there is nothing, which costs one word.
pub struct Effects<O: Ops>(Option<Box<PutOff<O>>>);

struct PutOff<O: Ops> {
    /// Events that lanes let go of; their outcome is [`Outcome::Dropped`].
    dropped: Vec<Dropped<O>>,
    /// Waiters that were let in: their lanes are to be signalled, and their keys are seen.
    admitted: Vec<Waiter<O>>,
    wakers: Vec<O::Waker>,
    /// Only to be dropped: a route may be the last to hold a lane and its handler.
    retired: Vec<Arc<Route<O>>>,
}

impl<O: Ops> Default for Effects<O> {
    fn default() -> Self {
        Self(None)
    }
}

/// A place in the queue before the gate, shared with the publisher.
pub struct Ticket<O: Ops> {
    state: Mutex<TicketState<O>>,
}

struct TicketState<O: Ops> {
    admitted: Option<(u64, Arc<Route<O>>)>,
    waker: Option<O::Waker>,
    id: u64,
}

impl<O: Ops> Ticket<O> {
    /// The number and the lanes, once accepted. The lanes may be others than when the wait began.
    pub fn admitted(&self) -> Option<(u64, Arc<Route<O>>)> {
        lock(&self.state).admitted.clone()
    }

    /// Says whom to wake on acceptance; gives it back if that is past.
    pub fn wait(&self, waker: O::Waker) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        if state.admitted.is_some() {
            return Err(waker);
        }
        state.waker = Some(waker);
        Ok(())
    }
}

/// What waits for room: all that is needed to let it in without its publisher.
struct Waiter<O: Ops> {
    event_type: Box<str>,
    route: Arc<Route<O>>,
    level: Priority,
    token: u64,
    event: Arc<Envelope<O>>,
    claim: Option<Digest>,
    origin: Option<LaneId>,
    ticket: Arc<Ticket<O>>,
}

/// An event that was accepted while the bus was not running.
struct Held<O: Ops> {
    event_type: Box<str>,
    sequence: u64,
    at: Nanos,
    level: Priority,
    token: u64,
    event: Arc<Envelope<O>>,
}

/// A lane, as the gate sees it.
struct Door<O: Ops> {
    lane: Arc<Lane<O>>,
    tails: Tails<O>,
    routed: u64,
}

/// A wait of a handler, and the lanes that it waits for.
type Blocked<O> = (u64, Vec<Arc<Lane<O>>>);

/// The ledger's counts, and each lane with what was routed to it.
pub type Report<O> = (Counts, Vec<(Arc<Lane<O>>, u64, LaneReport)>);

/// A registered wait of a handler, for the search for cycles.
pub struct WaitId(LaneId, u64);

struct State<O: Ops> {
    epoch: u64,
    open: bool,
    bound: usize,
    lanes_made: LaneId,
    doors: Vec<Option<Door<O>>>,
    held: VecDeque<Held<O>>,
    waiters: HashMap<u64, Waiter<O>>,
    /// Waiters by what they need room in, first come first served.
    lines: HashMap<(LaneId, Priority), VecDeque<u64>>,
    ids: u64,
    /// Handlers that wait, by the lane that they occupy: for lanes to go on, or as one of the
    /// waiters, which has no lanes here.
    blocked: HashMap<LaneId, Vec<Blocked<O>>>,
    /// Whom to wake when all is quiet, or all but one lane.
    drainers: Vec<(O::Waker, Option<LaneId>)>,
    counts: Counts,
}

/// See the module.
pub struct Gate<O: Ops> {
    state: Mutex<State<O>>,
    sequencer: Sequencer,
    router: Router<O>,
    /// Number of drainers, so that a lane that becomes quiet need not come by for nothing.
    draining: AtomicUsize,
}

impl<O: Ops> Gate<O> {
    /// A closed gate that keeps up to `bound` events until it is opened.
    pub fn new(bound: usize) -> Self {
        let state = State {
            epoch: 0,
            open: false,
            bound,
            lanes_made: 0,
            doors: Vec::new(),
            held: VecDeque::new(),
            waiters: HashMap::new(),
            lines: HashMap::new(),
            ids: 0,
            blocked: HashMap::new(),
            drainers: Vec::new(),
            counts: Counts::default(),
        };
        Self {
            state: Mutex::new(state),
            sequencer: Sequencer::default(),
            router: Router::default(),
            draining: AtomicUsize::new(0),
        }
    }

    /// The lanes of a type now.
    pub fn route(&self, event_type: &str) -> Arc<Route<O>> {
        self.router.route(event_type)
    }

    /// The lanes of a type that was published before.
    #[inline]
    pub fn remembered(&self, event_type: &str) -> Option<Arc<Route<O>>> {
        self.router.remembered(event_type)
    }

    /// Lets an event in if there is room in all its lanes, by `route` if that is not stale.
    #[inline]
    pub fn admit(
        &self,
        offer: &Offer<'_, O>,
        route: &mut Arc<Route<O>>,
        patience: Patience,
        claim: Option<&Digest>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Admission<O> {
        let mut state = lock(&self.state);
        let admission = self.admit_one(&mut state, offer, route, patience, claim, now, effects);
        drop(state);
        if matches!(admission, Admission::Accepted(_)) {
            signal(route);
        }
        admission
    }

    /// Lets events of one type in, one after the other, until one does not get in at once; that one
    /// is as if it had not come. Returns the first number given, how many, and whether one was left.
    pub fn admit_run<'a>(
        &self,
        offers: impl Iterator<Item = Offer<'a, O>>,
        route: &mut Arc<Route<O>>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Run {
        let mut state = lock(&self.state);
        let mut run = Run {
            held: !state.open,
            ..Run::default()
        };
        for offer in offers {
            match self.admit_one(
                &mut state,
                &offer,
                route,
                Patience::None,
                None,
                now,
                effects,
            ) {
                Admission::Accepted(sequence) | Admission::Held(sequence) => {
                    if run.count == 0 {
                        run.first = sequence;
                    }
                    run.count += 1;
                }
                Admission::Refused(_) => {
                    // Not the end of this publish: its publisher comes back with it.
                    state.counts.offered -= 1;
                    state.counts.rejected -= 1;
                    run.refused = true;
                    break;
                }
                Admission::Waiting(_) => unreachable!("an impatient offer does not wait"),
            }
        }
        drop(state);
        signal(route);
        run
    }

    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn admit_one(
        &self,
        state: &mut MutexGuard<'_, State<O>>,
        offer: &Offer<'_, O>,
        route: &mut Arc<Route<O>>,
        patience: Patience,
        claim: Option<&Digest>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Admission<O> {
        let state = &mut **state;
        if route.epoch != state.epoch {
            effects.retire([std::mem::replace(
                route,
                self.router.route(offer.event_type),
            )]);
        }
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
                    let ticket = state.enqueue(offer, route.clone(), claim);
                    // Room that was made since the look above was made for nobody.
                    for lane in &route.lanes {
                        self.admit_waiters(state, lane.id, offer.level, now, effects);
                    }
                    return Admission::Waiting(ticket);
                }
                FullLane::Refuse(error) => {
                    state.counts.rejected += 1;
                    return Admission::Refused(error);
                }
            }
        }
        let sequence = self.sequencer.next();
        state.counts.accepted += 1;
        effects.wake(offer.event.routed(route.owed));
        for lane in &route.lanes {
            state.push(
                lane,
                sequence,
                now,
                offer.token,
                offer.level,
                offer.event,
                effects,
            );
        }
        Admission::Accepted(sequence)
    }

    fn hold(&self, state: &mut State<O>, offer: &Offer<'_, O>, now: Nanos) -> Admission<O> {
        if state.held.len() >= state.bound {
            // No handler runs that could ever make room: to wait would be for ever.
            state.counts.rejected += 1;
            return Admission::Refused(EngineError::NotStarted { bound: state.bound });
        }
        let sequence = self.sequencer.next();
        state.counts.accepted += 1;
        state.held.push_back(Held {
            event_type: offer.event_type.into(),
            sequence,
            at: now,
            level: offer.level,
            token: offer.token,
            event: offer.event.clone(),
        });
        Admission::Held(sequence)
    }

    #[cold]
    fn at_full_lane(
        &self,
        state: &mut State<O>,
        full: &Arc<Lane<O>>,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        patience: Patience,
    ) -> FullLane {
        let bound = full.options.bound;
        let refuse = || {
            FullLane::Refuse(EngineError::Full {
                subscription: full.options.name.to_string(),
                bound,
            })
        };
        let rejects = |lane: &Arc<Lane<O>>| {
            lane.options.overflow == Overflow::Reject && !lane.has_room(offer.level)
        };
        if route.lanes.iter().any(rejects) {
            return refuse();
        }
        if let Some(origin) = offer.origin {
            let waited_for = route
                .lanes
                .iter()
                .filter(|lane| lane.options.overflow == Overflow::Block);
            let behind: Vec<_> = waited_for
                .clone()
                .filter_map(|lane| state.lines.get(&(lane.id, offer.level))?.back().copied())
                .collect();
            // Room that is left may be used up by those in front.
            let scarce = |lane: &&Arc<Lane<O>>| {
                !lane.has_room(offer.level) || state.lines.contains_key(&(lane.id, offer.level))
            };
            let needed: Vec<_> = waited_for.filter(scarce).cloned().collect();
            if let Some(cycle) = state.cycle(origin, &needed, &behind) {
                // Waiting would be for ever. A bounded excess is the lesser evil; beyond it, an error.
                let within = needed
                    .iter()
                    .all(|lane| lane.depth(offer.level) < hard_limit(lane.options.bound));
                return if within {
                    FullLane::Exceed
                } else {
                    FullLane::Refuse(EngineError::Deadlock { cycle })
                };
            }
        }
        if patience == Patience::None {
            refuse()
        } else {
            FullLane::Wait
        }
    }

    /// After an event left a queue for which somebody waits: lets waiters in.
    #[cold]
    pub fn room_made(&self, lane: &Lane<O>, level: Priority, now: Nanos, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        self.admit_waiters(&mut state, lane.id, level, now, effects);
    }

    fn admit_waiters(
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
                        || (lane.has_room(waiter.level)
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
                let sequence = self.sequencer.next();
                state.counts.waiting -= 1;
                state.counts.accepted += 1;
                if !state.open && !state.held.is_empty() {
                    // Events with lower numbers are kept already: it goes behind them.
                    state.held.push_back(Held {
                        event_type: waiter.event_type.clone(),
                        sequence,
                        at: now,
                        level: waiter.level,
                        token: waiter.token,
                        event: waiter.event.clone(),
                    });
                } else {
                    effects.wake(waiter.event.routed(waiter.route.owed));
                    for lane in &waiter.route.lanes {
                        state.push(
                            lane,
                            sequence,
                            now,
                            waiter.token,
                            waiter.level,
                            &waiter.event,
                            effects,
                        );
                    }
                }
                let mut ticket = lock(&waiter.ticket.state);
                ticket.admitted = Some((sequence, waiter.route.clone()));
                effects.wake(ticket.waker.take().into_iter().collect());
                drop(ticket);
                effects.put_off().admitted.push(waiter);
            }
        }
    }

    /// Ends a wait for room. False: the event was accepted before, and that stands.
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

    /// Counts a publish that ended before the gate.
    pub fn count(&self, ended: Ended) {
        let counts = &mut lock(&self.state).counts;
        counts.offered += 1;
        match ended {
            Ended::Duplicate => counts.duplicate += 1,
            Ended::Rejected => counts.rejected += 1,
        }
    }

    /// A publish waits for the fate of an equal key (`true`), or does so no more.
    pub fn count_joined(&self, joined: bool) {
        let counts = &mut lock(&self.state).counts;
        if joined {
            counts.offered += 1;
            counts.waiting += 1;
        } else {
            counts.offered -= 1;
            counts.waiting -= 1;
        }
    }

    /// A publish that waited for the fate of an equal key gave up.
    pub fn count_cancelled(&self) {
        let counts = &mut lock(&self.state).counts;
        counts.waiting -= 1;
        counts.cancelled += 1;
    }

    /// Makes a lane that no event reaches yet.
    pub fn make_lane(
        &self,
        options: LaneOptions,
        handler: O::Handler,
        seat: Arc<O::Seat>,
    ) -> Arc<Lane<O>> {
        let mut state = lock(&self.state);
        state.lanes_made += 1;
        let slot = state
            .doors
            .iter()
            .position(Option::is_none)
            .unwrap_or(state.doors.len());
        let (lane, tails) = Lane::new(state.lanes_made, slot, options, handler, seat);
        let lane = Arc::new(lane);
        let door = Some(Door {
            lane: lane.clone(),
            tails,
            routed: 0,
        });
        if slot == state.doors.len() {
            state.doors.push(door);
        } else {
            state.doors[slot] = door;
        }
        lane
    }

    /// From now on, events of these topics go to the lane, each once. Returns the subscription's number.
    pub fn subscribe(
        &self,
        topics: Vec<Topic>,
        lane: &Arc<Lane<O>>,
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> u64 {
        let mut state = lock(&self.state);
        state.ids += 1;
        let subscription = state.ids;
        for topic in topics {
            let epoch = self.router.add(topic, subscription, lane.clone());
            state.epoch = epoch.number;
            effects.retire(epoch.retired);
        }
        self.reroute(&mut state, now, effects);
        subscription
    }

    /// From now on, the subscription gets nothing.
    pub fn unsubscribe(&self, subscription: u64, now: Nanos, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        let epoch = self.router.remove(subscription);
        state.epoch = epoch.number;
        effects.retire(epoch.retired);
        self.reroute(&mut state, now, effects);
    }

    /// Ends a lane that has no subscription left; what it still had is dropped and counted.
    pub fn close_lane(&self, lane: &Arc<Lane<O>>, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        let left = lane.close();
        for entry in left {
            effects.let_go(lane, entry.event);
        }
        let door = state.doors[lane.slot].take();
        self.notice_quiet(&mut state, effects);
        drop(state);
        drop(door);
    }

    /// Waiters go by the subscriptions of the moment when they get in.
    fn reroute(&self, state: &mut State<O>, now: Nanos, effects: &mut Effects<O>) {
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

    /// Opens the gate: what was kept goes to the lanes of now, in order.
    pub fn open(&self, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        state.open = true;
        let held = std::mem::take(&mut state.held);
        let mut routes = Vec::with_capacity(held.len());
        for held in &held {
            let route = self.router.route(&held.event_type);
            effects.wake(held.event.routed(route.owed));
            held.event.set_route(route.clone());
            for lane in &route.lanes {
                state.push(
                    lane,
                    held.sequence,
                    held.at,
                    held.token,
                    held.level,
                    &held.event,
                    effects,
                );
            }
            routes.push(route);
        }
        self.notice_quiet(&mut state, effects);
        drop(state);
        routes.iter().for_each(signal);
        drop(held);
    }

    /// Closes the gate: from now on events are kept for the next start.
    pub fn close(&self) {
        lock(&self.state).open = false;
    }

    /// Registers whom to wake when nothing is queued, running or waiting, but for the lane that is
    /// excused (the caller's own); gives it back if so now.
    pub fn when_quiet(&self, waker: O::Waker, excused: Option<LaneId>) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        self.draining.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if state.is_quiet(excused) {
            self.draining.fetch_sub(1, Ordering::SeqCst);
            return Err(waker);
        }
        state.drainers.push((waker, excused));
        Ok(())
    }

    /// Whether nothing is queued, running or waiting, but for the lane that is excused.
    pub fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        lock(&self.state).is_quiet(excused)
    }

    /// To be called after a handler's end in a lane that starts nothing more for now.
    #[inline]
    pub fn after_settlement(&self, effects: &mut Effects<O>) {
        // Either a drainer sees that the handler has ended, or this sees the drainer.
        fence(Ordering::SeqCst);
        if self.draining.load(Ordering::SeqCst) > 0 {
            self.notice_quiet(&mut lock(&self.state), effects);
        }
    }

    fn notice_quiet(&self, state: &mut State<O>, effects: &mut Effects<O>) {
        let drainers = std::mem::take(&mut state.drainers);
        let before = drainers.len();
        for (waker, excused) in drainers {
            if state.is_quiet(excused) {
                effects.put_off().wakers.push(waker);
            } else {
                state.drainers.push((waker, excused));
            }
        }
        self.draining
            .fetch_sub(before - state.drainers.len(), Ordering::SeqCst);
    }

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

    /// The ledger's counts, and each lane with what was routed to it: one consistent moment.
    pub fn report(&self) -> Report<O> {
        let state = lock(&self.state);
        let doors = state.doors.iter().flatten();
        (
            state.counts,
            doors
                .map(|door| (door.lane.clone(), door.routed, door.lane.report()))
                .collect(),
        )
    }

    /// The lanes, unless somebody is at the gate: for the garbage collector, which must not wait.
    pub fn try_lanes(&self) -> Option<Vec<Arc<Lane<O>>>> {
        let state = self.state.try_lock().ok()?;
        Some(
            state
                .doors
                .iter()
                .flatten()
                .map(|door| door.lane.clone())
                .collect(),
        )
    }

    /// Lets go of all lanes and of all events: the end of a bus that nobody can reach any more.
    pub fn clear(&self) {
        let mut state = lock(&self.state);
        let routes = self.router.clear();
        let doors = std::mem::take(&mut state.doors);
        let held = std::mem::take(&mut state.held);
        drop(state);
        // Outside code, all of it.
        drop((routes, doors, held));
    }

    /// Events that are kept for the start.
    pub fn held(&self) -> usize {
        lock(&self.state).held.len()
    }
}

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

enum FullLane {
    Exceed,
    Wait,
    Refuse(EngineError),
}

/// How far a cycle of publishing handlers may exceed a bound.
fn hard_limit(bound: usize) -> usize {
    bound.saturating_mul(4).max(1024)
}

/// Schedules lanes that got work and were idle. Called with no lock held.
#[inline]
fn signal<O: Ops>(route: &Arc<Route<O>>) {
    for lane in &route.lanes {
        if lane.signal() {
            lane.seat().schedule(lane.clone());
        }
    }
}

impl<O: Ops> Effects<O> {
    #[cold]
    fn put_off(&mut self) -> &mut PutOff<O> {
        self.0.get_or_insert_with(|| {
            Box::new(PutOff {
                dropped: Vec::new(),
                admitted: Vec::new(),
                wakers: Vec::new(),
                retired: Vec::new(),
            })
        })
    }

    /// A lane has let go of an event and counted that.
    pub(super) fn let_go(&mut self, lane: &Arc<Lane<O>>, event: Arc<Envelope<O>>) {
        self.put_off().dropped.push((lane.clone(), event));
    }

    #[inline]
    fn wake(&mut self, wakers: Vec<O::Waker>) {
        if !wakers.is_empty() {
            self.put_off().wakers.extend(wakers);
        }
    }

    fn retire(&mut self, routes: impl IntoIterator<Item = Arc<Route<O>>>) {
        self.put_off().retired.extend(routes);
    }

    /// Whether there is nothing to do.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Does what was put off. Called with no lock held. Returns the keys of events that were let in.
    pub fn carry_out(self) -> Vec<Digest> {
        let Some(put_off) = self.0 else {
            return Vec::new();
        };
        let PutOff {
            dropped,
            admitted,
            mut wakers,
            retired,
        } = *put_off;
        for (lane, event) in dropped {
            wakers.extend(event.settle(&lane, Outcome::Dropped));
        }
        let mut claims = Vec::new();
        for waiter in admitted {
            signal(&waiter.route);
            claims.extend(waiter.claim);
        }
        super::ops::wake_all(wakers);
        drop(retired);
        claims
    }
}

impl<O: Ops> State<O> {
    /// The first lane that keeps an event from being admitted at once.
    #[inline]
    fn obstacle<'a>(&self, route: &'a Route<O>, level: Priority) -> Option<&'a Arc<Lane<O>>> {
        route.lanes.iter().find(|lane| match lane.options.overflow {
            Overflow::Block => {
                // Nobody overtakes those who wait already.
                !lane.has_room(level) || lane.waiting[level.index()].load(Ordering::Relaxed) > 0
            }
            Overflow::Reject => !lane.has_room(level),
            Overflow::DropOldest | Overflow::DropNew => false,
        })
    }

    #[inline]
    #[allow(clippy::too_many_arguments)]
    fn push(
        &mut self,
        lane: &Arc<Lane<O>>,
        sequence: u64,
        at: Nanos,
        token: u64,
        level: Priority,
        event: &Arc<Envelope<O>>,
        effects: &mut Effects<O>,
    ) {
        let door = self.doors[lane.slot]
            .as_mut()
            .expect("a routed lane has a door");
        debug_assert_eq!(door.lane.id, lane.id);
        door.routed += 1;
        if !lane.has_room(level) {
            match lane.options.overflow {
                Overflow::DropOldest => match lane.evict(level) {
                    Some(evicted) => effects.let_go(lane, evicted.event),
                    // Everything queued had begun before: the newcomer goes instead.
                    None => return Self::turn_away(lane, event, effects),
                },
                Overflow::DropNew => return Self::turn_away(lane, event, effects),
                Overflow::Block | Overflow::Reject => {}
            }
        }
        lane.entering(level);
        door.tails[level.index()].push(Entry {
            sequence,
            at,
            token,
            attempt: 0,
            level,
            event: event.clone(),
        });
    }

    fn turn_away(lane: &Arc<Lane<O>>, event: &Arc<Envelope<O>>, effects: &mut Effects<O>) {
        lane.turn_away();
        effects.let_go(lane, event.clone());
    }

    fn enqueue(
        &mut self,
        offer: &Offer<'_, O>,
        route: Arc<Route<O>>,
        claim: Option<&Digest>,
    ) -> Arc<Ticket<O>> {
        self.ids += 1;
        let id = self.ids;
        let state = TicketState {
            admitted: None,
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

    fn dequeue(&mut self, id: u64) -> Option<Waiter<O>> {
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
                lane.waiting[waiter.level.index()].fetch_sub(1, Ordering::Relaxed);
            }
        }
        if let Some(origin) = waiter.origin {
            self.unblock(origin, id);
        }
        Some(waiter)
    }

    fn unblock(&mut self, origin: LaneId, id: u64) {
        if let Some(waits) = self.blocked.get_mut(&origin) {
            waits.retain(|(other, _)| *other != id);
            if waits.is_empty() {
                self.blocked.remove(&origin);
            }
        }
    }

    fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        self.waiters.is_empty()
            && self.held.is_empty()
            && self
                .doors
                .iter()
                .flatten()
                .all(|door| Some(door.lane.id) == excused || door.lane.is_quiet())
    }

    /// If a handler in `origin` waited until all of `needed` have gone on and the waiters `behind`
    /// which it would stand are let in: would that be for ever? Then the names of the lanes in the cycle.
    fn cycle(&self, origin: LaneId, needed: &[Arc<Lane<O>>], behind: &[u64]) -> Option<String> {
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
                && !(lane.has_room(waiter.level) && first())
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
