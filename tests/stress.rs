//! Real threads for some seconds: what loom proves in the small must hold in the large.
#![cfg(not(loom))]

mod plain;

use std::collections::HashMap;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use std::time::{Duration, Instant};

use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{LaneOptions, Order};
use ironbus::engine::priority::Priority;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Flag, Lane, Published, Seat, options};

const PUBLISHERS: u64 = 8;
const EACH: u64 = 50_000;

/// What a lane was given, by level or token: the numbers in the order of their starts.
type Seen = Mutex<HashMap<(u64, u64), Vec<u64>>>;

fn execute(
    bus: &Bus,
    seat: &Seat,
    seen: &Seen,
    at_work: &Mutex<HashMap<(u64, u64), usize>>,
) -> bool {
    let Some(lane) = seat.next() else {
        return false;
    };
    let mut next = bus.take(&lane, 0);
    while let Some(run) = next {
        let mut entry = run.entry;
        let keyed = lane.options.order == Order::Token;
        if keyed {
            let mut at_work = at_work.lock().unwrap();
            let busy = at_work.entry((lane.id, entry.token)).or_default();
            *busy += 1;
            assert_eq!(*busy, 1, "two of a token at once");
        }
        // In a keyed lane order is per token and level, elsewhere per level.
        let token = if keyed { 1 + entry.token } else { 0 };
        seen.lock()
            .unwrap()
            .entry((lane.id, token * 4 + entry.level as u64))
            .or_default()
            .push(entry.sequence);
        if keyed {
            *at_work
                .lock()
                .unwrap()
                .get_mut(&(lane.id, entry.token))
                .unwrap() -= 1;
        }
        next = bus.finish(&lane, &mut entry, Outcome::Done, Some(1), true, 0);
    }
    true
}

fn stress(executors: usize) {
    let (bus, seat) = (plain::bus(), Arc::new(Seat::default()));
    let make = |name: &str, topic: &str, told: LaneOptions| -> Arc<Lane> {
        let lane = bus.make_lane(
            LaneOptions {
                name: name.into(),
                ..told
            },
            (),
            seat.clone(),
        );
        bus.subscribe(vec![Topic::new(topic)], &lane, 0);
        lane
    };
    let narrow = make("narrow", "a", options("", 3));
    let wide = make("wide", "*", options("", 100));
    let keyed = make(
        "keyed",
        "*",
        LaneOptions {
            order: Order::Token,
            concurrency: 4,
            ..options("", 16)
        },
    );
    let seen = Seen::default();
    let at_work = Mutex::new(HashMap::new());
    let over = AtomicBool::new(false);
    let (accepted, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..executors {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if !execute(&bus, &seat, &seen, &at_work) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (bus, accepted, cancelled) = (&bus, &accepted, &cancelled);
                scope.spawn(move || {
                    for n in 0..EACH {
                        let level = Priority::ALL[(n % 4) as usize];
                        let event_type = if n % 3 == 0 { "a" } else { "b" };
                        let payload = publisher * EACH + n;
                        let published = plain::offer(
                            bus,
                            event_type,
                            level,
                            payload,
                            n % 5,
                            None,
                            Patience::Wait,
                            0,
                        );
                        let ticket = match published {
                            Published::Accepted(_) => {
                                accepted.fetch_add(1, Ordering::Relaxed);
                                continue;
                            }
                            Published::Waiting(ticket) => ticket,
                            _ => panic!("refused"),
                        };
                        if n % 7 == 0 && bus.give_up(&ticket, None, 0) {
                            cancelled.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        let flag = Flag::default();
                        if ticket.wait(flag.waker()).is_ok() {
                            while flag.told() == 0 {
                                assert!(Instant::now() < end, "a waiter was forgotten");
                                std::thread::yield_now();
                            }
                        }
                        assert!(ticket.admitted().map(|(sequence, _)| sequence).is_some());
                        accepted.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let failed = publishers.into_iter().map(|p| p.join().is_err()).max();
        let drained = Flag::default();
        if failed == Some(false) && bus.when_quiet(drained.waker(), None).is_ok() {
            while drained.told() == 0 && Instant::now() < end {
                std::thread::yield_now();
            }
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(failed, Some(false));
    });
    assert!(bus.is_quiet(None), "a lane was lost asleep");
    let accepted = accepted.into_inner() as u64;
    let (counts, lanes) = bus.report();
    assert_eq!(counts.offered, PUBLISHERS * EACH);
    assert_eq!(
        (counts.accepted, counts.waiting, counts.cancelled),
        (accepted, 0, cancelled.into_inner() as u64)
    );
    for (_, routed, report) in &lanes {
        assert_eq!(*routed, report.tally.done);
    }
    let seen = seen.into_inner().unwrap();
    for ((lane, order), numbers) in &seen {
        // In the narrow and the wide lane one handler runs at a time, and of a token as well.
        assert!(numbers.is_sorted(), "lane {lane}, {order}: out of order");
    }
    for lane in [&wide, &keyed] {
        let of_lane = seen.iter().filter(|((id, _), _)| *id == lane.id);
        let mut all: Vec<u64> = of_lane.flat_map(|(_, numbers)| numbers.clone()).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(1..=accepted), "each number once");
    }
    assert!(narrow.is_quiet());
}

#[test]
fn eight_publishers_and_two_executors() {
    stress(2);
}

#[test]
fn eight_publishers_and_four_executors() {
    stress(4);
}
