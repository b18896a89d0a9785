//! A lane between the gate and its executors under every interleaving: each event is delivered
//! exactly once and in order, and the lane never sleeps while it has work.
//!
//! The same for a lane whose event waits for its next attempt, or for a breaker that others change.
//!
//! Negative control: without the second `has_work` in `Lane::rest` (`false` after the exchange for
//! IDLE), with a load and a store in `Lane::signal`, or with a plain store of IDLE, the lane is lost
//! asleep; without the limit of `may_start`, `two_executors_share_a_lane_of_one` sees two at once.
//! Without the second look in `Lane::await_breaker`, a lane sleeps behind a breaker that is closed;
//! without the lock in `Lane::is_quiet`, a drain ends before a retry, or never.
#![cfg(loom)]

mod plain;

use ironbus::engine::breaker::{Breaker, BreakerConfig, State};
use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{Failed, LaneOptions, Order};
use ironbus::engine::priority::Priority::{self, High, Normal};
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use loom::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use loom::{model::Builder, thread};
use plain::{Bus, Flag, Lane, Seat, options, publish};

fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 50_000;
    model.check(f);
}

struct World {
    bus: Bus,
    seat: Arc<Seat>,
    lane: Arc<Lane>,
    /// Level, number and payload of each delivery, as they ended.
    ended: Mutex<Vec<(Priority, u64, u64)>>,
    at_work: AtomicUsize,
}

fn world(concurrency: usize) -> Arc<World> {
    world_with(LaneOptions {
        concurrency,
        order: if concurrency == 1 {
            Order::Lane
        } else {
            Order::Nothing
        },
        ..options("lane", 10)
    })
}

fn world_with(options: LaneOptions) -> Arc<World> {
    let (bus, seat) = (plain::bus(), Arc::new(Seat::default()));
    let lane = bus.make_lane(options, (), seat.clone());
    bus.subscribe(vec![Topic::new("t")], &lane, 0);
    Arc::new(World {
        bus,
        seat,
        lane,
        ended: Mutex::new(Vec::new()),
        at_work: AtomicUsize::new(0),
    })
}

impl World {
    fn publish(&self, level: Priority, payload: u64) {
        let published = publish(&self.bus, "t", level, payload, Patience::None);
        assert!(matches!(published, plain::Published::Accepted(_)));
    }

    /// Runs what is scheduled until nothing is.
    fn serve(&self) {
        while let Some(lane) = self.seat.next() {
            let mut next = self.bus.take(&lane, 0);
            while let Some(run) = next {
                let limit = lane.options.concurrency;
                assert!(
                    self.at_work.fetch_add(1, SeqCst) < limit,
                    "too many at once"
                );
                let mut entry = run.entry;
                self.ended
                    .lock()
                    .unwrap()
                    .push((entry.level, entry.sequence, entry.event.payload));
                self.at_work.fetch_sub(1, SeqCst);
                next = self
                    .bus
                    .finish(&lane, &mut entry, Outcome::Done, None, true, 0);
            }
        }
    }

    /// Nobody publishes or runs any more: what is scheduled is run, and nothing may be left.
    fn end(&self, events: usize) -> Vec<(Priority, u64, u64)> {
        self.serve();
        let ended = std::mem::take(&mut *self.ended.lock().unwrap());
        assert_eq!(ended.len(), events, "lost asleep, or delivered twice");
        assert!(self.lane.is_quiet());
        let mut payloads: Vec<u64> = ended.iter().map(|(.., payload)| *payload).collect();
        payloads.sort_unstable();
        payloads.dedup();
        assert_eq!(payloads.len(), events);
        ended
    }
}

fn in_order(ended: &[(Priority, u64, u64)]) {
    for level in Priority::ALL {
        let numbers = ended.iter().filter(|e| e.0 == level).map(|e| e.1);
        assert!(numbers.is_sorted(), "{ended:?}");
    }
}

#[test]
fn two_publishers_and_one_executor() {
    check(2, || {
        let world = world(1);
        let publishers: Vec<_> = [[1, 2].as_slice(), &[3]]
            .into_iter()
            .map(|payloads| {
                let world = world.clone();
                thread::spawn(move || {
                    for payload in payloads {
                        let level = if *payload == 2 { High } else { Normal };
                        world.publish(level, *payload);
                    }
                })
            })
            .collect();
        world.serve();
        publishers.into_iter().for_each(|p| p.join().unwrap());
        in_order(&world.end(3));
    });
}

#[test]
fn an_executor_that_goes_idle_while_one_publishes() {
    check(3, || {
        let world = world(1);
        world.publish(Normal, 1);
        let executor = {
            let world = world.clone();
            thread::spawn(move || world.serve())
        };
        world.publish(Normal, 2);
        executor.join().unwrap();
        in_order(&world.end(2));
    });
}

#[test]
fn two_executors_share_a_lane_of_one() {
    check(2, || {
        let world = world(1);
        world.publish(Normal, 1);
        let executor = {
            let world = world.clone();
            thread::spawn(move || world.serve())
        };
        world.publish(Normal, 2);
        world.serve();
        executor.join().unwrap();
        in_order(&world.end(2));
    });
}

#[test]
fn two_executors_share_a_lane_of_two() {
    check(2, || {
        let world = world(2);
        world.publish(Normal, 1);
        world.publish(Normal, 2);
        let executor = {
            let world = world.clone();
            thread::spawn(move || world.serve())
        };
        world.publish(Normal, 3);
        world.serve();
        executor.join().unwrap();
        world.end(3);
    });
}

#[test]
fn a_pause_that_ends_while_one_publishes() {
    check(2, || {
        let world = world(1);
        world.bus.pause(&world.lane, true);
        let publisher = {
            let world = world.clone();
            thread::spawn(move || world.publish(Normal, 1))
        };
        world.bus.pause(&world.lane, false);
        world.serve();
        publisher.join().unwrap();
        in_order(&world.end(1));
    });
}

/// Runs what is scheduled; the first attempt of each event fails.
fn serve_failing(world: &World) {
    while let Some(lane) = world.seat.next() {
        let mut next = world.bus.take(&lane, 0);
        while let Some(run) = next {
            let mut entry = run.entry;
            next = if entry.attempt == 1 {
                let failed = Failed::Passing(Arc::new(()));
                let verdict = lane.judge(&entry, &failed, 0.0);
                let bus = &world.bus;
                bus.fail(&lane, entry, &failed, verdict, None, true, 0)
            } else {
                let ended = (entry.level, entry.sequence, entry.event.payload);
                world.ended.lock().unwrap().push(ended);
                let bus = &world.bus;
                bus.finish(&lane, &mut entry, Outcome::Done, None, true, 0)
            };
        }
    }
}

fn retry() -> Option<RetryPolicy> {
    Some(RetryPolicy {
        max_attempts: 2,
        initial_delay: 5,
        max_delay: 5,
        exponential_base: 1.0,
        jitter: Jitter::None,
    })
}

#[test]
fn a_retry_that_falls_due_while_one_publishes() {
    check(2, || {
        let world = world_with(LaneOptions {
            retry: retry(),
            ..options("lane", 10)
        });
        world.publish(Normal, 1);
        serve_failing(&world);
        let clock = {
            let world = world.clone();
            thread::spawn(move || {
                world.bus.tick(5);
                serve_failing(&world);
            })
        };
        world.publish(Normal, 2);
        serve_failing(&world);
        clock.join().unwrap();
        // The second fails as well, and comes again.
        world.bus.tick(5);
        serve_failing(&world);
        world.bus.tick(5);
        serve_failing(&world);
        in_order(&world.end(2));
    });
}

#[test]
fn a_drain_does_not_end_before_a_retry() {
    check(3, || {
        let world = world_with(LaneOptions {
            retry: retry(),
            ..options("lane", 10)
        });
        world.publish(Normal, 1);
        let executor = {
            let world = world.clone();
            thread::spawn(move || serve_failing(&world))
        };
        let drained = Flag::default();
        let waits = world.bus.when_quiet(drained.waker(), None).is_ok();
        assert!(waits, "it is not settled");
        executor.join().unwrap();
        assert_eq!(drained.told(), 0);
        world.bus.tick(5);
        serve_failing(&world);
        assert_eq!(drained.told(), 1);
        world.end(1);
    });
}

#[test]
fn a_drain_that_begins_while_the_last_event_ends() {
    check(3, || {
        let world = world(1);
        world.publish(Normal, 1);
        let executor = {
            let world = world.clone();
            thread::spawn(move || world.serve())
        };
        let drained = Flag::default();
        let waits = world.bus.when_quiet(drained.waker(), None).is_ok();
        executor.join().unwrap();
        assert_eq!(drained.told(), usize::from(waits));
        world.end(1);
    });
}

#[test]
fn who_waits_for_stillness_is_told() {
    check(3, || {
        let world = world_with(LaneOptions {
            retry: retry(),
            ..options("lane", 10)
        });
        world.publish(Normal, 1);
        let executor = {
            let world = world.clone();
            thread::spawn(move || serve_failing(&world))
        };
        let still = Flag::default();
        let waits = world.bus.when_still(still.waker(), 0).is_ok();
        executor.join().unwrap();
        assert_eq!(still.told(), usize::from(waits));
        assert!(world.bus.is_still(0), "what is left waits for its time");
        assert!(!world.bus.is_quiet(None));
    });
}

fn breaker() -> std::sync::Arc<Breaker> {
    let config = BreakerConfig {
        failure_threshold: 1,
        success_threshold: 1,
        timeout: 100,
        window_size: 10,
        failure_rate: f64::INFINITY,
        half_open_max_calls: 1,
    };
    std::sync::Arc::new(Breaker::new(config, 0))
}

#[test]
fn a_breaker_that_closes_while_a_lane_is_refused() {
    check(3, || {
        let shared = breaker();
        let world = world_with(LaneOptions {
            breaker: Some(shared.clone()),
            ..options("lane", 10)
        });
        shared.force(State::Open, 0);
        world.publish(Normal, 1);
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.force(State::Closed, 0))
        };
        world.serve();
        other.join().unwrap();
        in_order(&world.end(1));
    });
}

#[test]
fn two_lanes_and_the_place_of_one_probe() {
    check(2, || {
        let shared = breaker();
        let options = LaneOptions {
            breaker: Some(shared.clone()),
            ..options("lane", 10)
        };
        let world = world_with(options.clone());
        let second = world.bus.make_lane(options, (), world.seat.clone());
        world.bus.subscribe(vec![Topic::new("u")], &second, 0);
        shared.force(State::HalfOpen, 0);
        world.publish(Normal, 1);
        publish(&world.bus, "u", Normal, 2, Patience::None);
        let executor = {
            let world = world.clone();
            thread::spawn(move || world.serve())
        };
        world.serve();
        executor.join().unwrap();
        world.end(2);
        assert!(second.is_quiet());
    });
}
