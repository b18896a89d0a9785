//! The gate: one short critical section per bus that every event passes.
//!
//! Room in all lanes or in none; then the number; then the push. So the order of the
//! numbers and the order in every lane are one fact, and a number is never given to an
//! event that is then refused. Subscribing passes the gate too, which defines which
//! subscriptions "existed when the event was accepted". No outside code, no destructor
//! of a payload and no I/O happens inside: what must be dropped or woken is handed out
//! as [`Effects`].

mod admit;
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
use self::waiting::Waiter;
use super::clock::Nanos;
use super::idempotency::Idempotency;
use super::lane::{Lane, LaneId, LaneOptions, LaneReport, Tails};
use super::ledger::Counts;
use super::ops::Ops;
use super::priority::Priority;
use super::router::{Route, Router};
use super::sequence::Sequencer;
use super::settlement::Envelope;
use super::sync::{Arc, Mutex, Shared, atomic::AtomicUsize, lock};
use super::topic::Topic;

pub use self::admit::{Offer, Patience, Published, Run, Timing};
pub use self::committed::{Begun, Committed, Entered};
pub use self::cycle::WaitId;
pub use self::effects::Effects;
pub use self::numbering::{Numbering, Taken, Turn, Unnumbered};
pub use self::quiet::Calm;
pub use self::redeliver::Redelivery;
pub use self::waiting::Ticket;

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

    /// Does something with the keys that were seen.
    pub fn with_keys<R>(&self, act: impl FnOnce(&mut Idempotency<O::Waker>) -> R) -> R {
        act(&mut lock(&self.state).keys)
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
        routes.iter().for_each(|route| signal(route));
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
