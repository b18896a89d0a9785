//! The engine's bus over a journal in a file: flushes that fail, windows that are too small for what
//! comes, restarts.

mod plain;
mod world;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ironbus::engine::durable::Refusal;
use ironbus::engine::idempotency::Claim;
use ironbus::engine::journal::{Bounds, JournalError, Parameters, Statement, Unit};
use ironbus::engine::lane::{LaneOptions, Order};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::Durability;
use ironbus::engine::sync::lock;
use plain::{Flag, options};
use world::{World, fate, folder, key};

#[test]
fn a_commit_that_is_undone_frees_the_keys_and_whoever_waits_takes_over() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 10);
    world.open();
    *lock(&world.fails_at) = Some("batch.appended");
    let publication = world.publish(&[1], Some(&key(1))).ok().expect("taken");
    let told = Flag::default();
    let joined = world.bus.join(&key(1), told.waker());
    assert!(matches!(fate(&publication), Err(JournalError::Store(_))));
    while joined && told.told() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(world.claim(&key(1)), Claim::Vacant, "it is free");
    let (counts, _) = world.bus.report();
    assert_eq!((counts.rejected, counts.waiting, counts.unknown), (1, 0, 0));

    *lock(&world.fails_at) = None;
    let again = world.publish(&[2], Some(&key(1))).ok().expect("taken");
    assert_eq!(fate(&again), Ok(Durability::Os));
    assert!(
        again.first() > publication.first(),
        "no number is given twice"
    );
    assert_eq!(world.run(1), [("l".into(), 2)]);
    world.close().expect("in order");
}

#[test]
fn events_of_a_unit_come_with_it_or_leave_nothing() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    let lane = world.lane("l", 10);
    world.open();
    let place = world.durable.place(lane.id).expect("it is open");
    // With an unknown table, with a fault of the disk, and well.
    for (n, (sql, fault)) in [
        ("INSERT INTO nowhere VALUES (1)", None),
        ("SELECT 1", Some("batch.appended")),
        ("CREATE TABLE theirs (n)", None),
    ]
    .into_iter()
    .enumerate()
    {
        *lock(&world.fails_at) = fault;
        world.bus.with_keys(|keys| keys.hold(&key(1)));
        let told = Arc::new(Mutex::new(None));
        let tell = told.clone();
        let mut unit = Unit {
            statements: vec![Statement {
                sql: sql.into(),
                parameters: Parameters::Numbered(Vec::new()),
            }],
            ..Unit::default()
        };
        let joined = Flag::default();
        assert!(world.bus.join(&key(1), joined.waker()));
        let written = world.written(&[n as u64, 7], Some(&key(1)));
        let done = Box::new(move |outcome| *lock(&tell) = Some(outcome));
        let (bus, os) = (&world.bus, Durability::Os);
        let handed = world
            .durable
            .settle_with(bus, &place, None, &mut unit, written, os, done);
        assert!(handed.is_ok());
        // Another one, in the same commit or the next: it is nothing to it.
        let other = loop {
            *lock(&world.fails_at) = fault.filter(|_| lock(&told).is_none());
            match world.publish(&[9], None).ok().map(|other| fate(&other)) {
                Some(Ok(_)) => break true,
                _ if fault.is_some() => {}
                _ => break false,
            }
        };
        assert!(other);
        let outcome = lock(&told).take().expect("told, before the other");
        let good = n == 2;
        assert_eq!(outcome.is_ok(), good, "{outcome:?}");
        let claim = if good {
            Claim::Duplicate
        } else {
            Claim::Vacant
        };
        // Where both were in one commit, the other is told first.
        while joined.told() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(world.claim(&key(1)), claim);
        assert_eq!(joined.told(), 1, "who joined looks again");
    }
    let delivered = world.run(5).into_iter().map(|(_, payload)| payload);
    assert_eq!(delivered.collect::<Vec<_>>(), [9, 9, 2, 7, 9]);
    let (counts, lanes) = world.bus.report();
    assert_eq!((counts.waiting, counts.unknown), (0, 0));
    assert_eq!(counts.offered, counts.accepted + counts.rejected);
    assert_eq!((counts.accepted, lanes[0].1), (5, 5));
    world.close().expect("in order");
}

#[test]
fn after_a_flush_that_fails_nothing_is_told_that_is_not_known() {
    for stored in [true, false] {
        let (_folder, path) = folder();
        let world = World::new(&path);
        world.lane("l", 10);
        world.open();
        // The first is stored and nobody hears of it.
        *lock(&world.fails_at) = Some("batch.committed");
        let publication = world.publish(&[1], Some(&key(1))).ok().expect("taken");
        assert!(matches!(
            fate(&publication),
            Err(JournalError::DurabilityUnknown(_))
        ));
        assert_eq!(world.claim(&key(1)), Claim::Pending, "it stays claimed");
        let told = Flag::default();
        assert!(
            !world.bus.join(&key(1), told.waker()),
            "and nobody can wait for what nobody decides"
        );
        assert!(world.durable.is_read_only());
        let refused = world.publish(&[2], Some(&key(2)));
        assert!(matches!(
            refused,
            Err(Refusal::Journal(JournalError::ReadOnly))
        ));
        assert_eq!(world.claim(&key(2)), Claim::Vacant);
        let (counts, lanes) = world.bus.report();
        assert_eq!((counts.unknown, counts.accepted, counts.waiting), (1, 0, 0));
        assert_eq!(lanes[0].1, 0, "it went to no lane");
        assert_eq!(world.close(), Err(JournalError::ReadOnly));

        *lock(&world.fails_at) = None;
        if !stored {
            // As if the machine had lost it: an older copy of the file.
            for beside in ["", "-wal", "-shm"] {
                let file = path.with_file_name(format!("x.bus{beside}"));
                if file.exists() {
                    std::fs::remove_file(file).expect("ours");
                }
            }
        }
        world.open();
        match stored {
            true => {
                assert_eq!(world.claim(&key(1)), Claim::Duplicate, "the key tells");
                assert_eq!(world.run(1), [("l".into(), 1)], "and it is delivered");
            }
            false => assert_eq!(world.claim(&key(1)), Claim::Vacant, "the key tells"),
        }
        world.close().expect("in order");
    }
}

#[test]
fn windows_smaller_than_what_comes_lose_nothing_and_keep_the_order() {
    const EACH: u64 = 400;
    let (_folder, path) = folder();
    let world = World::new(&path);
    let lanes = ["one", "three", "many"];
    for (name, bound) in lanes.into_iter().zip([1, 3, 10_000]) {
        world.lane(name, bound);
    }
    world.open();
    let order = Mutex::new(HashMap::new());
    let done = std::thread::scope(|scope| {
        for publisher in 0..4_u64 {
            let (world, order) = (&world, &order);
            scope.spawn(move || {
                for n in 0..EACH / 4 {
                    let payload = publisher * 1_000_000 + n;
                    let several = [payload, payload + 500_000];
                    let handed = world.publish(&several, None).ok().expect("room");
                    lock(order).insert(handed.first(), several);
                    if n % 16 == 0 {
                        assert_eq!(fate(&handed), Ok(Durability::Os));
                    }
                }
            });
        }
        world.run((EACH * 2) as usize * lanes.len())
    });
    let mut order: Vec<_> = lock(&order).drain().collect();
    order.sort_unstable();
    let expected: Vec<u64> = order.into_iter().flat_map(|(_, several)| several).collect();
    for name in lanes {
        let of_lane = done.iter().filter(|(lane, _)| &**lane == name);
        let seen: Vec<u64> = of_lane.map(|(_, payload)| *payload).collect();
        assert_eq!(seen, expected, "{name}");
    }
    assert!(world.bus.is_quiet(None));
    let (_, reports) = world.bus.report();
    for (lane, routed, report) in reports {
        assert_eq!(routed, report.tally.done, "{}", lane.options.name);
    }
    world.close().expect("in order");

    // And nothing of it comes again.
    let world = World::new(&path);
    for name in lanes {
        world.lane(name, 2);
    }
    world.open();
    let last = world.publish(&[7], None).ok().expect("room");
    assert_eq!(fate(&last), Ok(Durability::Os));
    let mut done = world.run(lanes.len());
    done.sort();
    assert_eq!(
        done,
        [("many".into(), 7), ("one".into(), 7), ("three".into(), 7)]
    );
    world.close().expect("in order");
}

#[test]
fn a_window_is_filled_again_while_all_that_was_in_it_runs() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    let lane = world.lane_with(LaneOptions {
        concurrency: 6,
        order: Order::Nothing,
        ..options("l", 2)
    });
    world.open();
    (1..=6).for_each(|n| world.store(n, None, None));
    let mut running = Vec::new();
    while running.len() < 6 {
        match world.bus.take(&lane, world.now()) {
            Some(next) => running.push(next.entry),
            None => std::thread::yield_now(),
        }
    }
    for mut entry in running {
        let done = Outcome::Done;
        let next = world
            .bus
            .finish(&lane, &mut entry, done, None, false, world.now());
        assert!(next.is_none());
    }
    assert!(world.bus.is_quiet(None));
    world.close().expect("in order");
}

#[test]
fn stops_and_starts_in_the_middle_deliver_all_of_it_in_order() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 3);
    let (mut seen, mut next) = (Vec::new(), 0);
    for round in 0..10 {
        world.open();
        let several: Vec<u64> = (next..next + 5).collect();
        next += 5;
        let handed = world.publish(&several, None).ok().expect("room");
        assert_eq!(fate(&handed), Ok(Durability::Os));
        let more = world.run(round % 4);
        seen.extend(more.into_iter().map(|(_, payload)| payload));
        world.close().expect("in order");
    }
    world.open();
    let rest = world.run(next as usize - seen.len());
    seen.extend(rest.into_iter().map(|(_, payload)| payload));
    assert_eq!(seen, (0..next).collect::<Vec<_>>());
    world.close().expect("in order");
}

#[test]
fn publishers_wait_for_room_in_the_buffer_and_are_woken() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.open();
    let most = Bounds::default().max_pending;
    let (full, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let payloads: Vec<u64> = (0..most as u64).collect();
    let told = Flag::default();
    for _ in 0..3 {
        match world.publish(&payloads, None) {
            Ok(handed) => {
                seen.fetch_add(1, Ordering::Relaxed);
                drop(handed);
            }
            Err(Refusal::Journal(JournalError::Busy { .. })) => {
                full.store(true, Ordering::Relaxed);
                if world.durable.when_room(most, told.waker()).is_ok() {
                    while told.told() == 0 {
                        std::thread::yield_now();
                    }
                }
                break;
            }
            Err(_) => panic!("refused"),
        }
    }
    assert!(full.into_inner() && seen.into_inner() > 0);
    let (counts, _) = world.bus.report();
    assert_eq!(counts.rejected, 0, "who waits is not refused");
    world.close().expect("in order");
}
