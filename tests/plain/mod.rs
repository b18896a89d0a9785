//! The plainest outside world for the engine: numbers as payloads, counters as wakers,
//! a list of scheduled lanes as a seat. Shared by the tests of the engine.
#![allow(dead_code)] // each test binary uses its part

use ironbus::engine::digest::Digest;
use ironbus::engine::gate::{Offer, Patience, Timing};
use ironbus::engine::idempotency::Idempotency;
use ironbus::engine::lane::{self, Holds, LaneOptions, Letters, Order, Overflow};
use ironbus::engine::ops::{self, Cause, Dying, Kept, Ops, Seat as _, Wake, wake_all};
use ironbus::engine::priority::Priority;
use ironbus::engine::sync::{
    Arc, Mutex, Shared,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    lock,
};
use ironbus::engine::{bus, gate, router, settlement};

pub struct Plain;

impl Ops for Plain {
    type Payload = u64;
    type Handler = ();
    type Failure = ();
    type Waker = Told;
    type Seat = Seat;
    type Alarm = Alarm;
    type Sink = Graves;
}

pub type Bus = bus::Bus<Plain>;
pub type Lane = lane::Lane<Plain>;
pub type Entry = lane::Entry<Plain>;
pub type Envelope = settlement::Envelope<Plain>;
pub type Route = router::Route<Plain>;
pub type Ticket = gate::Ticket<Plain>;
pub type Published = bus::Published<Plain>;

/// Counts how often it was told.
#[derive(Clone, Default)]
pub struct Flag(Arc<AtomicUsize>);

/// What is done at once.
pub type Then = Box<dyn Fn() + Send + Sync>;

impl Flag {
    pub fn waker(&self) -> Told {
        self.waker_then(Box::new(|| ()))
    }

    /// One that also does this.
    pub fn waker_then(&self, then: Then) -> Told {
        Told(self.0.clone(), then)
    }

    pub fn told(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

pub fn told(flag: &Flag) -> usize {
    flag.told()
}

pub struct Told(Arc<AtomicUsize>, Then);

impl Wake for Told {
    fn wake(self) {
        (self.1)();
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub fn wake(woken: Option<Vec<Told>>) {
    wake_all(woken.into_iter().flatten());
}

/// Remembers which lanes were scheduled.
pub struct Seat {
    ready: Mutex<Vec<Arc<Lane>>>,
    /// Done whenever a lane is scheduled.
    pub also: Mutex<Option<Then>>,
}

impl Default for Seat {
    fn default() -> Self {
        Self {
            ready: Mutex::new(Vec::new()),
            also: Mutex::new(None),
        }
    }
}

impl ironbus::engine::ops::Seat<Plain> for Seat {
    fn schedule(&self, lane: Arc<Lane>) {
        if let Some(also) = &*lock(&self.also) {
            also();
        }
        lock(&self.ready).push(lane);
    }
}

impl Seat {
    /// The lanes that were scheduled, first come first served.
    pub fn scheduled(&self) -> Vec<Arc<Lane>> {
        std::mem::take(&mut *lock(&self.ready))
    }

    /// The lane that was scheduled first.
    pub fn next(&self) -> Option<Arc<Lane>> {
        let mut ready = lock(&self.ready);
        (!ready.is_empty()).then(|| ready.remove(0))
    }

    pub fn again(&self, lane: Arc<Lane>) {
        self.schedule(lane);
    }
}

/// Remembers what it was set to.
#[derive(Clone, Default)]
pub struct Alarm(Arc<Mutex<Vec<u64>>>);

impl ops::Alarm for Alarm {
    fn set(&self, due: u64) {
        lock(&self.0).push(due);
    }
}

impl Alarm {
    pub fn set_to(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.0))
    }
}

/// What was kept of a delivery: its payload, how often it was tried, why it ended.
pub type Letter = (u64, u32, Cause);

/// A dead letter queue with room for some.
#[derive(Clone, Default)]
pub struct Graves {
    pub room: Arc<AtomicUsize>,
    pub letters: Arc<Mutex<Vec<Letter>>>,
    /// It writes as a file does, which takes time.
    pub later: Arc<AtomicBool>,
    pub writing: Arc<Mutex<Vec<Dying<Plain>>>>,
}

impl ops::Sink<Plain> for Graves {
    fn keep(&self, dying: Box<Dying<Plain>>) -> Kept<Plain> {
        assert!(!dying.entry.event.settled(), "the letter comes first");
        let order = Ordering::SeqCst;
        // One that is delivered again has its room, and leaves it when it succeeds.
        let room = |room: usize| match (dying.entry.letter(), dying.cause) {
            (None, _) => room.checked_sub(1),
            (Some(_), Cause::Done) => Some(room + 1),
            (Some(_), _) => Some(room),
        };
        if self.room.fetch_update(order, order, room).is_err() {
            return Kept::Not(dying);
        }
        let entry = &dying.entry;
        lock(&self.letters).push((entry.event.payload, entry.attempt, dying.cause));
        if self.later.load(order) {
            lock(&self.writing).push(*dying);
            return Kept::Later;
        }
        Kept::Now(dying)
    }
}

impl Graves {
    pub fn kept(&self) -> Vec<Letter> {
        lock(&self.letters).clone()
    }
}

pub fn options(name: &str, bound: usize) -> LaneOptions {
    LaneOptions {
        name: name.into(),
        concurrency: 1,
        order: Order::Lane,
        overflow: Overflow::Block,
        bound,
        passive: false,
        untimed: false,
        retry: None,
        holds: Holds::Level,
        breaker: None,
        letters: Letters::None,
        backing: None,
    }
}

/// An open bus.
pub fn bus() -> Bus {
    let bus = closed_bus(1024);
    bus.open(0);
    bus
}

/// One that keeps so many events until it is opened.
pub fn closed_bus(kept: usize) -> Bus {
    closed_bus_with(kept, 1 << 60)
}

/// The same, on which keys count so long.
pub fn closed_bus_with(kept: usize, ttl: u64) -> Bus {
    let keys = Idempotency::new(ttl, 1024, 0);
    Bus::new(kept, keys, Alarm::default(), Graves::default())
}

/// A lane that belongs to no bus any more.
pub fn lane(name: &str, bound: usize) -> Arc<Lane> {
    bus().make_lane(options(name, bound), (), Arc::default())
}

pub fn event(payload: u64) -> Shared<Envelope> {
    Shared::new(Envelope::new(payload, None))
}

/// Publishes without a key, from outside.
pub fn publish(
    bus: &Bus,
    event_type: &str,
    level: Priority,
    payload: u64,
    patience: Patience,
) -> Published {
    offer(bus, event_type, level, payload, payload, None, patience, 0)
}

#[allow(clippy::too_many_arguments)]
pub fn offer(
    bus: &Bus,
    event_type: &str,
    level: Priority,
    payload: u64,
    token: u64,
    origin: Option<u64>,
    patience: Patience,
    now: u64,
) -> Published {
    let event = event(payload);
    let offer = Offer {
        event_type,
        level,
        token,
        event: &event,
        origin,
        timing: None,
    };
    bus.publish(
        &offer,
        &bus.route(event_type),
        &mut None,
        None,
        patience,
        now,
    )
}

/// Publishes an event that comes at its time.
/// An event with an idempotency key.
pub fn publish_keyed(bus: &Bus, event_type: &str, key: Digest, patience: Patience) -> Published {
    let event = event(0);
    let offer = Offer {
        event_type,
        level: Priority::Normal,
        token: 0,
        event: &event,
        origin: None,
        timing: None,
    };
    bus.publish(
        &offer,
        &bus.route(event_type),
        &mut None,
        Some(&key),
        patience,
        0,
    )
}

pub fn publish_timed(
    bus: &Bus,
    event_type: &str,
    level: Priority,
    payload: u64,
    timing: Timing,
    now: u64,
) -> Published {
    let event = event(payload);
    let offer = Offer {
        event_type,
        level,
        token: payload,
        event: &event,
        origin: None,
        timing: Some(&timing),
    };
    bus.publish(
        &offer,
        &bus.route(event_type),
        &mut None,
        None,
        Patience::None,
        now,
    )
}
