//! A bus at rest: when nothing runs or could run, the end of all that waits, and the fault that
//! the ledger must notice.
#![cfg(not(loom))]

mod plain;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use ironbus::engine::gate::{Patience, Timing};
use ironbus::engine::idempotency::Idempotency;
use ironbus::engine::lane::{Failed, Holds, LaneOptions, Order};
use ironbus::engine::ledger::Tally;
use ironbus::engine::priority::Priority::{self, Critical, Low, Normal};
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Entry, Flag, Graves, Lane, Published, Seat, options, publish, publish_timed};
use proptest::prelude::*;

const DELAY: u64 = 10;

struct World {
    bus: Bus,
    seat: Arc<Seat>,
}

impl World {
    fn new() -> Self {
        let graves = Graves::default();
        graves.room.store(1000, SeqCst);
        let keys = Idempotency::new(1 << 60, 16, 0);
        let bus = Bus::new(16, keys, plain::Alarm::default(), graves);
        bus.open(0);
        Self {
            bus,
            seat: Arc::default(),
        }
    }

    fn lane(&self, topic: &str, told: LaneOptions) -> Arc<Lane> {
        let lane = self.bus.make_lane(told, (), self.seat.clone());
        self.bus.subscribe(vec![Topic::new(topic)], &lane, 0);
        lane
    }

    fn publish(&self, level: Priority) {
        let published = publish(&self.bus, "t", level, 0, Patience::None);
        assert!(matches!(published, Published::Accepted(_)));
    }

    fn start(&self, lane: &Arc<Lane>, now: u64) -> Option<Entry> {
        self.bus.take(lane, now).map(|next| next.entry)
    }

    fn done(&self, lane: &Arc<Lane>, mut entry: Entry) {
        let next = self
            .bus
            .finish(lane, &mut entry, Outcome::Done, None, false, 0);
        assert!(next.is_none());
    }

    fn fail(&self, lane: &Arc<Lane>, entry: Entry, now: u64) {
        let failed = Failed::Passing(Arc::new(()));
        let verdict = lane.judge(&entry, &failed, 0.0);
        let next = self
            .bus
            .fail(lane, entry, &failed, verdict, None, false, now);
        assert!(next.is_none());
    }

    fn tally(&self, lane: &Arc<Lane>) -> (u64, Tally, usize) {
        let (_, lanes) = self.bus.report();
        let mut lanes = lanes.into_iter();
        let (_, routed, report) = lanes.find(|(other, ..)| other.id == lane.id).unwrap();
        let pending = report.depth.iter().sum::<usize>() + report.running;
        (routed, report.tally, pending)
    }

    fn is_balanced(&self, lane: &Arc<Lane>) -> bool {
        let (routed, tally, pending) = self.tally(lane);
        let settled = tally.done + tally.dead + tally.dropped + tally.expired + tally.filtered;
        routed == settled + pending as u64
    }
}

fn retrying(bound: usize) -> LaneOptions {
    LaneOptions {
        retry: Some(RetryPolicy {
            max_attempts: 5,
            initial_delay: DELAY,
            max_delay: DELAY,
            exponential_base: 1.0,
            jitter: Jitter::None,
        }),
        ..options("lane", bound)
    }
}

#[test]
fn it_is_still_while_all_that_is_left_waits_for_a_time() {
    let world = World::new();
    let lane = world.lane("t", retrying(10));
    assert!(world.bus.is_still(0));
    world.publish(Normal);
    assert!(!world.bus.is_still(0), "it could be started");
    let entry = world.start(&lane, 0).unwrap();
    assert!(!world.bus.is_still(0), "it runs");
    assert!(world.bus.is_still(1), "and that is excused");
    world.publish(Normal);
    assert!(
        world.bus.is_still(1),
        "the next one waits for the one that runs"
    );
    let told = Flag::default();
    assert!(world.bus.when_still(told.waker(), 0).is_ok());
    world.fail(&lane, entry, 0);
    assert_eq!(told.told(), 1);
    assert!(world.bus.is_still(0) && !world.bus.is_quiet(None));
    world.bus.tick(DELAY);
    assert!(!world.bus.is_still(0), "its time has come");
}

#[test]
fn a_pause_is_still_and_a_stream_always_is() {
    let world = World::new();
    let lane = world.lane("t", options("lane", 10));
    let stream = LaneOptions {
        passive: true,
        ..options("stream", 10)
    };
    world.lane("t", stream);
    world.bus.pause(&lane, true);
    world.publish(Normal);
    assert!(world.bus.is_still(0));
    world.bus.pause(&lane, false);
    assert!(!world.bus.is_still(0));
    let entry = world.start(&lane, 0).unwrap();
    world.done(&lane, entry);
    assert!(world.bus.is_still(0), "the stream still has its event");
}

#[test]
fn an_untimed_lane_has_an_event_when_it_is_accepted() {
    let world = World::new();
    let lane = world.lane("t", options("lane", 10));
    let untimed = LaneOptions {
        untimed: true,
        ..options("untimed", 10)
    };
    let untimed = world.lane("t", untimed);
    let timing = Timing {
        due: Some(50),
        expires: Some(60),
    };
    publish_timed(&world.bus, "t", Normal, 7, timing, 0);
    assert!(world.start(&lane, 0).is_none());
    // Long after it has expired, too.
    let entry = world.start(&untimed, 100).unwrap();
    assert_eq!((entry.event.payload, entry.at), (7, 0));
    world.done(&untimed, entry);
}

#[test]
fn what_is_discarded_is_dropped_and_publishers_that_wait_get_in() {
    let world = World::new();
    let lane = world.lane("t", options("lane", 1));
    world.publish(Normal);
    let Published::Waiting(ticket) = publish(&world.bus, "t", Normal, 2, Patience::Wait) else {
        panic!("there is no room");
    };
    world.bus.discard(0);
    assert!(ticket.admitted().is_some());
    let (routed, tally, pending) = world.tally(&lane);
    assert_eq!((routed, tally.dropped, pending), (2, 2, 0));
    assert!(world.bus.is_quiet(None));
    // It goes on as before.
    world.publish(Normal);
    let entry = world.start(&lane, 0).unwrap();
    world.done(&lane, entry);
    assert_eq!(world.tally(&lane).1.done, 1);
}

#[test]
fn a_lost_event_is_missing_from_the_ledger() {
    for held in [false, true] {
        let world = World::new();
        let lane = world.lane("t", retrying(10));
        assert!(lane.lose(0).is_none());
        world.publish(Normal);
        if held {
            let entry = world.start(&lane, 0).unwrap();
            world.fail(&lane, entry, 0);
        }
        assert!(world.is_balanced(&lane));
        let lost = lane.lose(0).unwrap();
        assert!(!lost.event.settled());
        assert!(!world.is_balanced(&lane));
        let (routed, tally, pending) = world.tally(&lane);
        assert_eq!((routed, tally, pending), (1, Tally::default(), 0));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Priority, u64),
    Start,
    Done,
    Fail,
    PutBack,
    Pass(u64),
    Discard,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let level = prop_oneof![Just(Critical), Just(Normal), Just(Low)];
    let step = prop_oneof![
        4 => (level, 0..3u64).prop_map(|(level, token)| Step::Publish(level, token)),
        4 => Just(Step::Start),
        2 => Just(Step::Done),
        2 => Just(Step::Fail),
        1 => Just(Step::PutBack),
        1 => (1..15u64).prop_map(Step::Pass),
        1 => Just(Step::Discard),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Whatever was going on when the lanes were emptied: nothing waits then, what ran is settled
    /// once, the ledger balances, and the lane goes on.
    #[test]
    fn discarding_leaves_nothing_and_breaks_nothing(
        steps in steps(),
        keyed in any::<bool>(),
        holds in prop_oneof![Just(Holds::Level), Just(Holds::Key), Just(Holds::Nothing)],
    ) {
        let world = World::new();
        let order = if keyed { Order::Token } else { Order::Lane };
        let told = LaneOptions { concurrency: if keyed { 2 } else { 1 }, order, holds, ..retrying(100) };
        let lane = world.lane("t", told);
        let mut running = Vec::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Publish(level, token) => {
                    plain::offer(&world.bus, "t", level, 0, token, None, Patience::None, now);
                }
                Step::Start => running.extend(world.start(&lane, now)),
                Step::Done => if let Some(entry) = running.pop() {
                    world.done(&lane, entry);
                },
                Step::Fail => if let Some(entry) = running.pop() {
                    world.fail(&lane, entry, now);
                },
                Step::PutBack => if let Some(entry) = running.pop() {
                    world.bus.put_back(&lane, entry, now);
                },
                Step::Pass(time) => {
                    now += time;
                    world.bus.tick(now);
                }
                Step::Discard => {
                    world.bus.discard(now);
                    prop_assert_eq!(world.tally(&lane).2, running.len());
                    prop_assert!(world.bus.is_still(running.len()));
                }
            }
            prop_assert!(world.is_balanced(&lane));
        }
        for entry in running.drain(..) {
            world.done(&lane, entry);
        }
        world.bus.discard(now);
        prop_assert!(world.bus.is_quiet(None) && world.is_balanced(&lane));
        world.publish(Normal);
        let entry = world.start(&lane, now);
        prop_assert!(entry.is_some(), "the lane goes on");
        world.done(&lane, entry.unwrap());
    }
}
