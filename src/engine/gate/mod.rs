//! The gate: one short critical section per bus that every event passes.
//!
//! Room in all lanes or in none; then the number; then the push. So the order of the
//! numbers and the order in every lane are one fact, and a number is never given to an
//! event that is then refused. Subscribing passes the gate too, which defines which
//! subscriptions "existed when the event was accepted". No outside code, no destructor
//! of a payload and no I/O happens inside: what must be dropped or woken is handed out
//! as [`Effects`].

mod committed;
mod cycle;
mod discard;
mod effects;
mod full;
mod numbering;
mod quiet;
mod redeliver;
mod waiting;

use std::collections::VecDeque;

use hashbrown::HashMap;

use self::committed::Spill;
use self::cycle::Blocked;
use self::effects::signal;
use self::full::FullLane;
use self::waiting::Waiter;
use super::clock::Nanos;
use super::digest::Digest;
use super::error::EngineError;
use super::idempotency::{Claim, Idempotency};
use super::lane::{Entry, Lane, LaneId, LaneOptions, LaneReport, Overflow, Tails};
use super::ledger::Counts;
use super::ops::Ops;
use super::priority::Priority;
use super::router::{Route, Router};
use super::sequence::Sequencer;
use super::settlement::Envelope;
use super::sync::{Arc, Mutex, MutexGuard, Shared, atomic::AtomicUsize, lock};
use super::topic::Topic;

pub use self::committed::{Begun, Committed, Entered};
pub use self::cycle::WaitId;
pub use self::effects::Effects;
pub use self::numbering::{Numbering, Taken, Turn, Unnumbered};
pub use self::quiet::Calm;
pub use self::redeliver::Redelivery;
pub use self::waiting::Ticket;

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
    /// An event with this key is on its way: [join](super::bus::Bus::join) it, and publish again when
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

/// An event that was accepted while the bus was not running.
struct Held<O: Ops> {
    event_type: Box<str>,
    sequence: u64,
    at: Nanos,
    level: Priority,
    token: u64,
    event: Shared<Envelope<O>>,
    timing: Option<Timing>,
    /// It is in a journal as well.
    durable: bool,
}

impl<O: Ops> Held<O> {
    fn arrival(&self, at: Nanos) -> Arrival<'_, O> {
        Arrival {
            sequence: self.sequence,
            at,
            token: self.token,
            level: self.level,
            event: &self.event,
            timing: self.timing.as_ref(),
        }
    }
}

/// A lane, as the gate sees it.
struct Door<O: Ops> {
    lane: Arc<Lane<O>>,
    tails: Tails<O>,
    routed: u64,
    /// Of a durable lane.
    spill: Option<Box<Spill<O>>>,
}

/// The ledger's counts, and each lane with what was routed to it.
pub type Report<O> = (Counts, Vec<(Arc<Lane<O>>, u64, LaneReport)>);

/// An event that is accepted, as its lanes get it.
struct Arrival<'a, O: Ops> {
    sequence: u64,
    at: Nanos,
    token: u64,
    level: Priority,
    event: &'a Shared<Envelope<O>>,
    timing: Option<&'a Timing>,
}

impl<'a, O: Ops> Arrival<'a, O> {
    #[inline(always)]
    fn of(offer: &Offer<'a, O>, sequence: u64, at: Nanos) -> Self {
        Self {
            sequence,
            at,
            token: offer.token,
            level: offer.level,
            event: offer.event,
            timing: offer.timing,
        }
    }
}

struct State<O: Ops> {
    epoch: u64,
    keys: Idempotency<O::Waker>,
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
    /// Whom to wake when all is so calm.
    drainers: Vec<(O::Waker, Calm)>,
    /// Events that are numbered and whose commit is not over.
    uncommitted: usize,
    /// Events that wait for their number until others have less to do.
    in_line: usize,
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
    pub fn new(bound: usize, keys: Idempotency<O::Waker>) -> Self {
        let state = State {
            epoch: 0,
            keys,
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
            uncommitted: 0,
            in_line: 0,
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

    /// Lets an event in if its key, where it has one, is nobody's and there is room in all its lanes,
    /// by `route` if that is not stale; else by the one that is left in `rerouted`.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    pub fn admit(
        &self,
        offer: &Offer<'_, O>,
        route: &Arc<Route<O>>,
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

    /// Does something with the keys that were seen.
    pub fn with_keys<R>(&self, act: impl FnOnce(&mut Idempotency<O::Waker>) -> R) -> R {
        act(&mut lock(&self.state).keys)
    }

    /// Lets events of one type in, one after the other, until one does not get in at once; that one
    /// is as if it had not come. Returns the first number given, how many, and whether one was left.
    pub fn admit_run<'a>(
        &self,
        offers: impl Iterator<Item = Offer<'a, O>>,
        route: &Arc<Route<O>>,
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
        route: &'a Arc<Route<O>>,
        rerouted: &'a mut Option<Arc<Route<O>>>,
    ) -> &'a Arc<Route<O>> {
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
        route: &Arc<Route<O>>,
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
                    let ticket = state.enqueue(offer, route.clone(), claim);
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
        route: &Arc<Route<O>>,
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

    /// Counts a publish that was refused before the gate.
    pub fn count_rejected(&self) {
        let counts = &mut lock(&self.state).counts;
        counts.offered += 1;
        counts.rejected += 1;
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
        let spill = options.backing.as_ref().map(|_| Box::default());
        let (lane, tails) = Lane::new(state.lanes_made, slot, options, handler, seat);
        let lane = Arc::new(lane);
        let door = Some(Door {
            lane: lane.clone(),
            tails,
            routed: 0,
            spill,
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
            effects.let_go(lane, entry.into_event());
        }
        let door = state.doors[lane.slot].take();
        self.notice_quiet(&mut state, effects);
        drop(state);
        drop(door);
    }

    /// Opens the gate: what was kept goes to the lanes of now, in order.
    pub fn open(&self, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        state.open = true;
        let held = std::mem::take(&mut state.held);
        let mut routes = Vec::with_capacity(held.len());
        for held in &held {
            if held.durable {
                state.let_in(&self.router, held, held.at, effects, &mut routes);
                continue;
            }
            let route = self.router.route(&held.event_type);
            effects.wake(held.event.routed(route.owed));
            held.event.set_route(route.clone());
            for lane in &route.lanes {
                state.push(lane, &held.arrival(held.at), effects);
            }
            routes.push(route);
        }
        self.notice_quiet(&mut state, effects);
        drop(state);
        routes.iter().for_each(signal);
        drop(held);
    }

    /// In a child of the process in which the gate was open: what was let in stays with the parent,
    /// and so do the publishers that wait. See [`Lane::forked`].
    pub fn forked(&self, now: Nanos, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        for door in state.doors.iter().flatten() {
            for entry in door.lane.forked(now) {
                effects.let_go(&door.lane, entry.into_event());
            }
        }
        let ids: Vec<u64> = state.waiters.keys().copied().collect();
        for id in ids {
            let waiter = state.dequeue(id).expect("listed");
            state.counts.waiting -= 1;
            state.counts.cancelled += 1;
            effects.put_off().refused.push(waiter);
        }
        state.counts.cancelled += state.counts.waiting;
        state.counts.waiting = 0;
        state.in_line = 0;
        state.blocked.clear();
        self.notice_quiet(&mut state, effects);
    }

    /// Closes the gate: from now on events are kept for the next start.
    pub fn close(&self) {
        lock(&self.state).open = false;
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

    /// The lane of this number at this place, if it is still there.
    pub fn lane(&self, slot: usize, id: LaneId) -> Option<Arc<Lane<O>>> {
        let state = lock(&self.state);
        let door = state.doors.get(slot)?.as_ref();
        door.filter(|door| door.lane.id == id)
            .map(|door| door.lane.clone())
    }

    /// All lanes.
    pub fn lanes(&self) -> Vec<Arc<Lane<O>>> {
        let state = lock(&self.state);
        let doors = state.doors.iter().flatten();
        doors.map(|door| door.lane.clone()).collect()
    }

    /// Nobody can reach the bus any more: has nobody outside hold its lanes.
    pub(super) fn forsake(&self) {
        self.lanes().iter().for_each(|lane| lane.forsake());
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
        self.forsake();
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

impl<O: Ops> State<O> {
    #[inline]
    fn push(&mut self, lane: &Arc<Lane<O>>, arrival: &Arrival<'_, O>, effects: &mut Effects<O>) {
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
    fn door(&mut self, lane: &Lane<O>) -> &mut Door<O> {
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
