//! Lanes behind breakers: what an open one holds back, who is the probe, and that nobody
//! sleeps while it could go on.
#![cfg(not(loom))]

mod plain;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use ironbus::engine::breaker::{Breaker, BreakerConfig, State};
use ironbus::engine::gate::{Patience, Timing};
use ironbus::engine::lane::{Failed, LaneOptions, Letters, Order, Stopped};
use ironbus::engine::ops::Cause;
use ironbus::engine::priority::Priority::{self, Critical, Low, Normal};
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Entry, Graves, Lane, Published, Seat, options, publish};
use proptest::prelude::*;

const TIMEOUT: u64 = 100;

fn breaker(failure_threshold: u32, half_open_max_calls: u32) -> Arc<Breaker> {
    let config = BreakerConfig {
        failure_threshold,
        success_threshold: 2,
        timeout: TIMEOUT,
        window_size: 10,
        failure_rate: f64::INFINITY,
        half_open_max_calls,
    };
    Arc::new(Breaker::new(config, 0))
}

fn retry(max_attempts: u32) -> Option<RetryPolicy> {
    Some(RetryPolicy {
        max_attempts,
        initial_delay: 10,
        max_delay: 10,
        exponential_base: 1.0,
        jitter: Jitter::None,
    })
}

/// What a handler calls: it is up or down.
struct World {
    bus: Bus,
    seat: Arc<Seat>,
    graves: Graves,
    now: u64,
    down: bool,
    /// Time, lane and number of each call, and whether it went well.
    calls: Vec<(u64, u64, u64, bool)>,
}

impl World {
    fn new() -> Self {
        let graves = Graves::default();
        graves.room.store(1000, SeqCst);
        let keys = ironbus::engine::idempotency::Idempotency::new(1 << 60, 16, 0);
        let bus = Bus::new(16, keys, plain::Alarm::default(), graves.clone());
        bus.open(0);
        Self {
            bus,
            seat: Arc::default(),
            graves,
            now: 0,
            down: false,
            calls: Vec::new(),
        }
    }

    fn lane(&self, topic: &str, told: LaneOptions) -> Arc<Lane> {
        let lane = self.bus.make_lane(told, (), self.seat.clone());
        self.bus.subscribe(vec![Topic::new(topic)], &lane, self.now);
        lane
    }

    fn publish(&self, event_type: &str, level: Priority) -> u64 {
        match publish(&self.bus, event_type, level, 0, Patience::None) {
            Published::Accepted(number) => number,
            _ => panic!("not accepted"),
        }
    }

    fn call(&mut self, lane: &Arc<Lane>, mut entry: Entry) -> Option<Entry> {
        let well = !self.down;
        self.calls.push((self.now, lane.id, entry.sequence, well));
        let next = if well {
            let done = Outcome::Done;
            self.bus
                .finish(lane, &mut entry, done, None, true, self.now)
        } else {
            let failed = Failed::Passing(Arc::new(()));
            let verdict = lane.judge(&entry, &failed, 0.0);
            self.bus
                .fail(lane, entry, &failed, verdict, None, true, self.now)
        };
        next.map(|next| next.entry)
    }

    /// Runs what is scheduled until nothing is.
    fn serve(&mut self) {
        while let Some(lane) = self.seat.next() {
            let mut next = self.bus.take(&lane, self.now).map(|next| next.entry);
            while let Some(entry) = next {
                next = self.call(&lane, entry);
            }
        }
    }

    /// Goes to a time, by way of all that is due before.
    fn go_to(&mut self, end: u64) {
        self.serve();
        while let Some(due) = self.bus.next_due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.bus.tick(self.now);
            self.serve();
        }
        self.now = end;
    }

    fn numbers(&self, well: bool) -> Vec<u64> {
        let calls = self.calls.iter().filter(|call| call.3 == well);
        calls.map(|call| call.2).collect()
    }
}

#[test]
fn an_open_breaker_pauses_the_lane_and_the_head_is_the_probe() {
    let mut world = World::new();
    let shared = breaker(3, 1);
    let told = LaneOptions {
        retry: retry(4),
        breaker: Some(shared.clone()),
        letters: Letters::Failed,
        ..options("lane", 100)
    };
    let lane = world.lane("t", told);
    for _ in 0..5 {
        world.publish("t", Normal);
    }
    world.down = true;
    world.go_to(1000);
    // Three attempts open it; from then on one call for each timeout, always of the head.
    assert_eq!(world.numbers(false), [1; 12], "{:?}", world.calls);
    let report = lane.report();
    assert_eq!((report.tally.dead, report.depth), (0, [0, 0, 5, 0]));
    assert_eq!(report.stopped, Some(Stopped::Breaker));
    world.down = false;
    world.go_to(2000);
    assert_eq!(world.numbers(true), [1, 2, 3, 4, 5]);
    assert_eq!(shared.snapshot().state, State::Closed);
    // What the probes found out was no attempt of the event's.
    assert!(world.graves.kept().is_empty());
    assert!(lane.is_quiet());
}

#[test]
fn an_event_is_at_fault_in_the_end_that_fails_as_the_probe_again_and_again() {
    let mut world = World::new();
    let told = LaneOptions {
        retry: retry(3),
        breaker: Some(breaker(2, 1)),
        letters: Letters::Failed,
        ..options("lane", 100)
    };
    world.lane("t", told);
    world.publish("t", Normal);
    world.down = true;
    world.go_to(TIMEOUT * 1100);
    assert_eq!(world.graves.kept(), [(0, 3, Cause::Exhausted)]);
    assert_eq!(world.calls.len(), 2 + 1000 + 1);
}

#[test]
fn without_retries_a_probe_that_fails_goes_back_to_its_head() {
    let mut world = World::new();
    let told = LaneOptions {
        breaker: Some(breaker(2, 1)),
        letters: Letters::Failed,
        ..options("lane", 100)
    };
    world.lane("t", told);
    for _ in 0..4 {
        world.publish("t", Normal);
    }
    world.down = true;
    world.go_to(350);
    // The first two had their attempt while it was closed.
    assert_eq!(world.numbers(false), [1, 2, 3, 3, 3]);
    assert_eq!(world.graves.kept().len(), 2);
    world.down = false;
    world.go_to(500);
    assert_eq!(world.numbers(true), [3, 4]);
}

#[test]
fn a_more_urgent_event_is_the_probe() {
    let mut world = World::new();
    let told = LaneOptions {
        retry: retry(9),
        breaker: Some(breaker(1, 1)),
        ..options("lane", 100)
    };
    world.lane("t", told);
    world.publish("t", Low);
    world.down = true;
    world.serve();
    world.publish("t", Critical);
    world.go_to(150);
    assert_eq!(world.numbers(false), [1, 2]);
}

#[test]
fn lanes_that_share_a_breaker_go_on_together() {
    let mut world = World::new();
    let shared = breaker(2, 1);
    let lanes: Vec<_> = (0..5)
        .map(|_| {
            let told = LaneOptions {
                retry: retry(9),
                breaker: Some(shared.clone()),
                ..options("lane", 100)
            };
            world.lane("t", told)
        })
        .collect();
    world.down = true;
    for _ in 0..3 {
        world.publish("t", Normal);
    }
    world.go_to(450);
    // Two calls opened it, whoever's they were; then one probe for each timeout, of one of them.
    assert_eq!(world.calls.len(), 2 + 4, "{:?}", world.calls);
    world.down = false;
    world.go_to(550);
    assert_eq!(world.numbers(true).len(), 15);
    for lane in &lanes {
        let own = world
            .calls
            .iter()
            .filter(|call| call.1 == lane.id && call.3);
        assert_eq!(own.map(|call| call.2).collect::<Vec<_>>(), [1, 2, 3]);
    }
}

#[test]
fn somebody_else_closes_it() {
    let mut world = World::new();
    let shared = breaker(1, 1);
    let told = LaneOptions {
        retry: retry(9),
        breaker: Some(shared.clone()),
        ..options("lane", 100)
    };
    world.lane("t", told);
    shared.force(State::Open, 0);
    world.publish("t", Normal);
    world.serve();
    assert!(world.calls.is_empty());
    shared.force(State::Closed, 1);
    world.serve();
    assert_eq!(world.numbers(true), [1]);
}

#[test]
fn what_is_not_called_takes_no_place_of_a_probe() {
    let mut world = World::new();
    let shared = breaker(1, 2);
    let told = LaneOptions {
        order: Order::Token,
        concurrency: 2,
        retry: retry(9),
        breaker: Some(shared.clone()),
        ..options("lane", 100)
    };
    let lane = world.lane("t", told);
    shared.force(State::Open, 0);
    let timing = Timing {
        due: None,
        expires: Some(50),
    };
    // It is too late for the first two when it is half open, and the third is put back.
    for payload in 0..2 {
        plain::publish_timed(&world.bus, "t", Normal, payload, timing, 0);
    }
    world.publish("t", Normal);
    world.now = 120;
    let scheduled = world.seat.next().expect("it has work");
    let entry = world.bus.take(&scheduled, 120).expect("a probe").entry;
    assert_eq!((entry.sequence, shared.snapshot().probes), (3, 1));
    assert_eq!(lane.report().tally.expired, 2);
    // The next of the same token has to wait for it, without a place of its own.
    world.publish("t", Normal);
    assert!(world.bus.take(&lane, 120).is_none());
    assert_eq!((lane.depth(Normal), shared.snapshot().probes), (1, 1));
    world.bus.put_back(&lane, entry, 120);
    assert_eq!(shared.snapshot().probes, 0);
    world.serve();
    assert_eq!(world.numbers(true), [3, 4]);
}

#[test]
fn a_closed_lane_leaves_its_breaker_alone() {
    let mut world = World::new();
    let shared = breaker(1, 1);
    let told = LaneOptions {
        breaker: Some(shared.clone()),
        ..options("lane", 100)
    };
    let lane = world.bus.make_lane(told, (), world.seat.clone());
    let subscription = world.bus.subscribe(vec![Topic::new("t")], &lane, 0);
    shared.force(State::Open, 0);
    world.publish("t", Normal);
    world.serve();
    assert_eq!(lane.report().stopped, Some(Stopped::Breaker));
    world.bus.unsubscribe(subscription, &lane, true, 0);
    // Nobody holds it any more but this test: the breaker must not.
    assert_eq!(Arc::strong_count(&lane), 1);
    shared.force(State::Closed, 1);
    assert!(world.seat.next().is_none());
}

#[test]
fn a_bus_that_is_gone_leaves_its_breaker_alone() {
    let shared = breaker(1, 1);
    let lane = {
        let mut world = World::new();
        let told = LaneOptions {
            breaker: Some(shared.clone()),
            ..options("lane", 100)
        };
        let lane = world.lane("t", told);
        shared.force(State::Open, 0);
        world.publish("t", Normal);
        world.serve();
        lane
    };
    assert_eq!(Arc::strong_count(&lane), 1);
    drop(lane);
    assert_eq!(Arc::strong_count(&shared), 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(usize),
    Advance(u64),
    Down(bool),
    Force(State),
}

fn step() -> impl Strategy<Value = Step> {
    let state = prop_oneof![
        Just(State::Closed),
        Just(State::Open),
        Just(State::HalfOpen)
    ];
    prop_oneof![
        6 => (0..3usize).prop_map(Step::Publish),
        4 => (1..80u64).prop_map(Step::Advance),
        2 => any::<bool>().prop_map(Step::Down),
        1 => state.prop_map(Step::Force),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Whatever happens to the dependency and to the breaker: each event is handled once, in order,
    /// and while the breaker is open nothing is called but probes, as many at once as there may be.
    #[test]
    fn nothing_is_lost_or_overtaken_behind_breakers(
        lanes in 1..4usize,
        probes in 1..3u32,
        threshold in 1..4u32,
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new();
        let shared = breaker(threshold, probes);
        let lanes: Vec<_> = (0..lanes)
            .map(|n| {
                let told = LaneOptions {
                    retry: retry(u32::MAX),
                    breaker: Some(shared.clone()),
                    ..options("lane", 1000)
                };
                world.lane(&format!("t{n}*"), told)
            })
            .collect();
        let mut published = vec![Vec::new(); lanes.len()];
        for step in steps {
            match step {
                Step::Publish(lane) => {
                    let lane = lane % lanes.len();
                    published[lane].push(world.publish(&format!("t{lane}"), Normal));
                }
                Step::Advance(by) => world.go_to(world.now + by),
                Step::Down(down) => world.down = down,
                Step::Force(state) => shared.force(state, world.now),
            }
            let (before, called) = (shared.snapshot(), world.calls.len());
            world.serve();
            if before.state == State::Open && before.retry_at.is_some_and(|at| at > world.now) {
                prop_assert_eq!(world.calls.len(), called, "called while it was open");
            }
        }
        world.down = false;
        world.go_to(world.now + 10 * TIMEOUT);
        for (lane, published) in lanes.iter().zip(&published) {
            let done = world.calls.iter().filter(|call| call.1 == lane.id && call.3);
            prop_assert_eq!(&done.map(|call| call.2).collect::<Vec<_>>(), published);
            prop_assert!(lane.is_quiet());
        }
    }
}

#[test]
fn what_a_bus_had_at_a_fork_stays_with_the_parent() {
    let mut world = World::new();
    let shared = breaker(1, 1);
    let told = LaneOptions {
        order: Order::Token,
        concurrency: 2,
        retry: retry(9),
        breaker: Some(shared.clone()),
        ..options("lane", 2)
    };
    let lane = world.lane("t", told);
    shared.force(State::HalfOpen, 0);
    world.publish("t", Normal);
    world.publish("t", Normal);
    let probe = world.bus.take(&lane, 0).expect("the probe").entry;
    world.publish("t", Normal);
    let waits = publish(&world.bus, "t", Normal, 0, Patience::Wait);
    assert!(matches!(waits, Published::Waiting(_)));
    // In the child there is no thread that runs the first, and none that waits.
    world.bus.forked(0);
    let (counts, lanes) = world.bus.report();
    assert_eq!(
        (counts.accepted, counts.cancelled, counts.waiting),
        (3, 1, 0)
    );
    let report = &lanes[0].2;
    assert_eq!((report.running, report.depth), (0, [0; 4]));
    assert_eq!((lanes[0].1, report.tally.dropped), (3, 3));
    assert!(world.bus.is_quiet(None));
    assert_eq!(shared.snapshot().probes, 0);
    world.publish("t", Normal);
    world.serve();
    assert_eq!(world.numbers(true), [4]);
    std::mem::forget(probe);
}
