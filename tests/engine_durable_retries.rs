//! Retries over a restart of a bus with a journal: each comes at its time and in its place, whatever lies
//! in front of it on its level, and nothing waits for an event that was only put off by its publisher.

mod plain;
mod world;

use std::path::Path;
use std::sync::Arc;

use ironbus::engine::lane::{Failed, Holds, LaneOptions, Order};
use ironbus::engine::priority::Priority;
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::Durability;
use ironbus::engine::sync::lock;
use plain::{Entry, Lane, options};
use world::{SECOND, World, folder};

const BEGIN: u64 = 1;
/// Between two attempts.
const DELAY: u64 = 60 * SECOND;
const TTL: f64 = 1e6;

fn lane(world: &World, order: Order, holds: Holds) -> Arc<Lane> {
    world.lane_with(LaneOptions {
        concurrency: 2,
        order,
        holds,
        retry: Some(retry()),
        ..options("l", 100)
    })
}

fn retry() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 5,
        initial_delay: DELAY,
        max_delay: DELAY,
        exponential_base: 1.0,
        jitter: Jitter::None,
    }
}

/// The next delivery, once the lane was given what the file has.
fn take(world: &World, lane: &Arc<Lane>) -> Entry {
    loop {
        match world.bus.take(lane, world.now()) {
            Some(next) => return next.entry,
            None => std::thread::yield_now(),
        }
    }
}

/// Another process, or the same after a stop.
fn restart(world: Arc<World>, path: &Path, order: Order, holds: Holds, same: bool) -> Arc<World> {
    world.close().expect("in order");
    if same {
        world.open();
        return world;
    }
    let now = world.now();
    drop(world);
    let world = World::at(path, now, TTL);
    lane(&world, order, holds);
    world.open();
    world
}

#[test]
fn a_retry_behind_an_event_that_waits_comes_at_its_time() {
    let held = [
        (Order::Lane, Holds::Level, [2, 0], vec![2, 3]),
        (Order::Token, Holds::Key, [2, 3], vec![2]),
        (Order::Lane, Holds::Nothing, [2, 3], vec![2]),
        (Order::Computed, Holds::Level, [2, 0], vec![2, 3]),
    ];
    for (order, holds, at_once, then) in held {
        for same in [true, false] {
            let (_folder, path) = folder();
            let world = World::at(&path, BEGIN, TTL);
            lane(&world, order, holds);
            world.open();
            world.store(1, Some("a"), Some(2 * DELAY));
            world.store(2, Some("b"), None);
            world.store(3, Some("c"), None);
            let called: Vec<u64> = at_once.into_iter().filter(|n| *n > 0).collect();
            assert_eq!(world.run_out(&[2]), called, "{order:?} {holds:?}");

            let world = restart(world, &path, order, holds, same);
            world.advance(BEGIN + DELAY - SECOND);
            assert_eq!(world.run_out(&[]), [0; 0], "{order:?} {holds:?}: too early");
            world.advance(BEGIN + DELAY + 1000);
            assert_eq!(world.run_out(&[]), then, "{order:?} {holds:?}");
            world.advance(BEGIN + 2 * DELAY + 1000);
            assert_eq!(world.run_out(&[]), [1]);
            assert!(world.bus.is_quiet(None));
            world.close().expect("in order");
        }
    }
}

#[test]
fn what_was_cut_off_in_front_of_a_retry_goes_first_and_the_retry_keeps_its_time() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    let two = lane(&world, Order::Lane, Holds::Level);
    world.open();
    (1..=3).for_each(|n| world.store(n, None, None));
    // The first of them may come by way of the file, some time after it is stored.
    while two.depth(Priority::Normal) < 3 {
        std::thread::yield_now();
    }
    while world.seat.next().is_some() {}
    let first = take(&world, &two);
    let second = take(&world, &two);
    let failed = Failed::Passing(Arc::new(()));
    let verdict = two.judge(&second, &failed, 0.0);
    let next = world
        .bus
        .fail(&two, second, &failed, verdict, None, true, BEGIN);
    assert!(next.is_none(), "the second holds its level");
    world.bus.close();
    world.bus.put_back(&two, first, BEGIN);

    let world = restart(world, &path, Order::Lane, Holds::Level, false);
    assert_eq!(world.run_out(&[]), [1]);
    world.advance(BEGIN + DELAY + 1000);
    assert_eq!(world.run_out(&[]), [2, 3]);
    world.close().expect("in order");
}

#[test]
fn a_retry_that_waited_for_another_of_its_key_still_waits_for_its_time() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    lane(&world, Order::Token, Holds::Key);
    world.open();
    world.store(1, Some("a"), Some(DELAY / 2));
    world.store(2, Some("a"), None);
    assert_eq!(world.run_out(&[2]), [2]);
    world.close().expect("in order");
    drop(world);

    // The first is due by now, and runs when the second has its turn.
    let now = BEGIN + DELAY / 2 + SECOND;
    let world = World::at(&path, now, TTL);
    let two = lane(&world, Order::Token, Holds::Key);
    world.open();
    let mut first = take(&world, &two);
    assert_eq!(first.event.payload, 1);
    assert!(world.bus.take(&two, now).is_none(), "of one key");
    let next = world
        .bus
        .finish(&two, &mut first, Outcome::Done, None, true, now);
    assert!(next.is_none(), "its time has not come");
    world.advance(BEGIN + DELAY + 1000);
    assert_eq!(world.run_out(&[]), [2]);
    world.close().expect("in order");
}

#[test]
fn an_event_with_a_delay_that_was_left_behind_holds_nothing_up_after_a_restart() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    lane(&world, Order::Lane, Holds::Level);
    world.open();
    world.store(1, None, Some(3600 * SECOND));
    world.store(2, None, None);
    assert_eq!(world.run_out(&[]), [2]);
    // Written with the next, it is what holds the place back; after a while it does not any more.
    world.store(3, None, None);
    world.advance(BEGIN + 11 * SECOND);
    assert_eq!(world.run_out(&[]), [3]);
    world.store(4, None, None);
    assert_eq!(world.run_out(&[]), [4]);

    let world = restart(world, &path, Order::Lane, Holds::Level, false);
    world.store(5, None, None);
    assert_eq!(world.run_out(&[]), [5]);
    world.advance(BEGIN + 3601 * SECOND);
    assert_eq!(world.run_out(&[]), [1]);
    world.close().expect("in order");
}

#[test]
fn a_level_that_goes_first_is_looked_for_in_the_journal_before_a_retry_of_another_begins() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    lane(&world, Order::Lane, Holds::Level);
    world.open();
    world.store_at(Priority::Normal, 1, None, None);
    assert_eq!(world.run_out(&[1]), [1]);
    world.store_at(Priority::High, 2, None, None);
    world.close().expect("in order");
    drop(world);

    let now = BEGIN + DELAY + SECOND;
    let world = World::at(&path, now, TTL);
    let two = lane(&world, Order::Lane, Holds::Level);
    world.open_journal();
    {
        let _nobody_reads_the_journal = lock(&world.held_up);
        world.open_gate();
        assert_eq!(two.depth(Priority::Normal), 1, "the retry is in the lane");
        assert!(world.bus.take(&two, now).is_none(), "and is not the first");
    }
    assert_eq!(world.run_out(&[]), [2, 1]);
    world.close().expect("in order");
}

#[test]
fn a_window_that_retries_have_filled_waits_for_nothing() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    let small = |world: &World| {
        world.lane_with(LaneOptions {
            holds: Holds::Nothing,
            retry: Some(retry()),
            ..options("l", 2)
        })
    };
    let _ = small(&world);
    world.open();
    world.store(1, None, None);
    world.store(2, None, None);
    assert_eq!(world.run_out(&[1, 2]), [1, 2]);
    world.close().expect("in order");
    drop(world);

    let world = World::at(&path, BEGIN + DELAY + SECOND, TTL);
    let full = small(&world);
    world.open();
    assert_eq!(full.window_room(Priority::Normal), 0);
    assert_eq!(world.run_out(&[]), [1, 2]);
    world.close().expect("in order");
}

#[test]
fn no_level_waits_for_numbers_that_a_crash_left_out() {
    let (_folder, path) = folder();
    let world = World::at(&path, BEGIN, TTL);
    lane(&world, Order::Lane, Holds::Level);
    world.open();
    world.store(1, None, None);
    assert_eq!(world.run_out(&[1]), [1]);
    world.store_at(Priority::Low, 2, None, None);
    // As after a kill: a copy of the file is opened, whose numbers go on behind all that were reserved.
    let journal = world.durable.journal().expect("open");
    journal.flush(Durability::Os).expect("flushed");
    let copy = path.with_extension("copy");
    ironbus::engine::journal::backup(&path, &copy).expect("copied");

    let after = World::at(&copy, BEGIN + DELAY + SECOND, TTL);
    lane(&after, Order::Lane, Holds::Level);
    after.open();
    let number = after.durable.journal().expect("open").sequence();
    assert!(number > 1000, "numbers were left out");
    assert_eq!(after.run_out(&[]), [1, 2]);
    after.close().expect("in order");
    drop(journal);
    world.close().expect("in order");
}
