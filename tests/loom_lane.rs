//! A lane between the gate and its executors under every interleaving: each event is delivered
//! exactly once and in order, and the lane never sleeps while it has work.
//!
//! Negative control: without the second `has_work` in `Lane::rest` (`false` after `enter(IDLE)`),
//! with a plain load in `Lane::signal`, or with a plain store in `Lane::enter`, the lane is lost
//! asleep; without the limit of `may_start`, `two_executors_share_a_lane_of_one` sees two at once.
#![cfg(loom)]

mod plain;

use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{LaneOptions, Order};
use ironbus::engine::priority::Priority::{self, High, Normal};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use loom::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use loom::{model::Builder, thread};
use plain::{Bus, Lane, Seat, options, publish};

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
    let (bus, seat) = (plain::bus(), Arc::new(Seat::default()));
    let options = LaneOptions {
        concurrency,
        order: if concurrency == 1 {
            Order::Lane
        } else {
            Order::Nothing
        },
        ..options("lane", 10)
    };
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
