//! Dead letters as lanes see them: nothing is settled before its letter is kept, whoever
//! writes it, and what is delivered again comes to its own lane only.
#![cfg(not(loom))]

mod graveyard;
mod plain;

use std::sync::atomic::Ordering::SeqCst;

use graveyard::{World, told};
use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{Holds, LaneOptions, Letters, Order, Overflow};
use ironbus::engine::ops::Cause;
use ironbus::engine::priority::Priority::{Low, Normal};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Entry, publish};
use proptest::prelude::*;

#[test]
fn a_lane_waits_for_its_letter_to_be_written() {
    let world = World::new(10);
    let lane = world.lane(told(Letters::Failed));
    world.graves.later.store(true, SeqCst);
    world.publish(0..2);
    let entry = world.take();
    let event = entry.event.clone();
    assert!(world.fail(&lane, entry).is_none());
    assert!(!event.settled());
    assert_eq!(world.tally(&lane), (0, 0, 2));
    assert!(world.scheduled().is_none());
    world.written(true);
    assert!(event.settled());
    assert_eq!(world.tally(&lane), (0, 1, 1));
    assert_eq!(world.take().event.payload, 1);
}

#[test]
fn a_letter_that_cannot_be_written_parks_the_lane_and_is_written_first_thing() {
    let world = World::new(10);
    let lane = world.lane(told(Letters::Failed));
    world.graves.later.store(true, SeqCst);
    world.publish(0..2);
    world.fail(&lane, world.take());
    world.written(false);
    assert_eq!(world.tally(&lane), (0, 0, 2));
    assert!(world.scheduled().is_none());
    world.bus.room_for_letters();
    // To its letter again, not to its handler.
    assert!(world.scheduled().is_none());
    world.written(true);
    assert_eq!(world.tally(&lane), (0, 1, 1));
    assert_eq!(world.take().event.payload, 1);
    assert_eq!(
        world.graves.kept(),
        [(0, 1, Cause::Exhausted), (0, 1, Cause::Exhausted)]
    );
}

#[test]
fn room_that_is_made_while_a_letter_is_refused_is_not_missed() {
    let world = World::new(0);
    let lane = world.lane(told(Letters::Failed));
    world.publish(0..1);
    world.graves.later.store(true, SeqCst);
    world.graves.room.store(1, SeqCst);
    world.fail(&lane, world.take());
    world.graves.room.store(1, SeqCst);
    world.bus.room_for_letters();
    // It was found full before that.
    world.written(false);
    assert!(world.scheduled().is_none());
    world.written(true);
    assert_eq!(world.tally(&lane), (0, 1, 0));
}

#[test]
fn other_runs_of_the_lane_go_on_meanwhile() {
    let world = World::new(10);
    let lane = world.lane(LaneOptions {
        concurrency: 2,
        order: Order::Token,
        ..told(Letters::Failed)
    });
    world.graves.later.store(true, SeqCst);
    let token = |payload: u64| {
        plain::offer(
            &world.bus,
            "t",
            Normal,
            payload,
            payload % 2,
            None,
            Patience::None,
            0,
        )
    };
    for payload in [0, 2, 1] {
        token(payload);
    }
    assert!(world.fail(&lane, world.take()).is_none());
    // Its key waits with it, the other does not.
    let next = world.take();
    assert_eq!(next.event.payload, 1);
    assert!(world.done(&lane, next).is_none());
    world.written(true);
    assert_eq!(world.take().event.payload, 2);
}

#[test]
fn a_dead_letter_comes_back_to_its_own_lane_at_the_tail() {
    let world = World::new(10);
    let lane = world.lane(told(Letters::Failed));
    let other = world.lane(told(Letters::Failed));
    world.publish(0..1);
    let (sequence, event) = world.redeliver(&lane, 9).expect("the lane is open");
    assert_eq!(sequence, 2);
    world.publish(1..2);
    let entry = world.take();
    assert_eq!(entry.event.payload, 0);
    let entry = world.done(&lane, entry).expect("the next");
    assert_eq!((entry.event.payload, entry.sequence), (9, 2));
    assert_eq!(entry.letter().map(|letter| letter.holder), Some(7));
    let next = world
        .bus
        .finish_letter(&lane, entry, &Outcome::Done, None, true, 0);
    assert_eq!(next.expect("the next").entry.event.payload, 1);
    assert!(event.settled());
    assert_eq!(world.graves.kept(), [(9, 1, Cause::Done)]);
    assert_eq!(world.tally(&lane), (2, 0, 1));
    assert_eq!(world.tally(&other).2, 2);
}

#[test]
fn a_dead_letter_that_fails_again_goes_to_its_queue_whatever_the_lane_keeps() {
    for letters in [Letters::None, Letters::Failed] {
        let world = World::new(10);
        let lane = world.lane(told(letters));
        world.redeliver(&lane, 9);
        world.fail(&lane, world.take());
        assert_eq!(world.graves.kept(), [(9, 1, Cause::Exhausted)]);
        assert_eq!(world.tally(&lane), (0, 1, 0));
    }
}

#[test]
fn a_dead_letter_exceeds_the_bound_and_pushes_nobody_out() {
    for overflow in [
        Overflow::Block,
        Overflow::Reject,
        Overflow::DropOldest,
        Overflow::DropNew,
    ] {
        let world = World::new(10);
        let lane = world.lane(LaneOptions {
            overflow,
            bound: 2,
            ..told(Letters::Failed)
        });
        world.publish(0..2);
        world.redeliver(&lane, 9).expect("the lane is open");
        assert_eq!(world.tally(&lane), (0, 0, 3));
    }
}

#[test]
fn a_dead_letter_of_a_closed_lane_or_bus_stays_where_it_is() {
    let world = World::new(10);
    let lane = world.lane(told(Letters::Failed));
    world.bus.close();
    assert!(world.redeliver(&lane, 9).is_none());
    world.bus.open(0);
    assert!(world.redeliver(&lane, 9).is_some());
    let subscription = world.bus.subscribe(vec![Topic::new("u")], &lane, 0);
    world.bus.unsubscribe(subscription, &lane, true, 0);
    assert!(world.redeliver(&lane, 9).is_none());
    let newer = world.lane(told(Letters::Failed));
    assert!(world.redeliver(&lane, 9).is_none());
    assert_eq!(world.tally(&newer), (0, 0, 0));
}

/// Payloads from here on are of dead letters.
const REDELIVERED: u64 = 1000;

proptest! {
    /// Letters that are written later, or not at all, in any order among the steps of a lane: each
    /// event is settled once, in order, and none before its letter.
    #[test]
    fn every_death_is_settled_once_and_after_its_letter(
        concurrency in 1..3usize,
        holds in prop_oneof![Just(Holds::Level), Just(Holds::Nothing)],
        steps in proptest::collection::vec((0..9u8, any::<bool>()), 1..60),
    ) {
        let world = World::new(1000);
        let order = if concurrency == 1 { Order::Lane } else { Order::Nothing };
        let lane = world.lane(LaneOptions { concurrency, order, holds, ..told(Letters::Failed) });
        let (mut next, mut again) = (0, 0);
        let mut running: Vec<Entry> = Vec::new();
        for (step, flag) in steps {
            match step {
                0 | 1 => {
                    world.publish(next..next + 1);
                    next += 1;
                }
                2 => world.graves.later.store(flag, SeqCst),
                3 => world.bus.room_for_letters(),
                4 if !world.graves.writing.lock().unwrap().is_empty() => {
                    world.written(flag);
                }
                5 | 6 => running.extend(world.scheduled()),
                7 => {
                    // One that died before, or any number; it is told to the queue in any case.
                    prop_assert!(world.redeliver(&lane, REDELIVERED + next).is_some());
                    again += 1;
                }
                _ if !running.is_empty() => {
                    let entry = running.remove(0);
                    running.extend(world.fail(&lane, entry));
                }
                _ => {}
            }
            let (done, dead, pending) = world.tally(&lane);
            prop_assert_eq!((done, dead + pending as u64), (0, next + again));
            prop_assert!(dead as usize <= world.graves.kept().len());
        }
        world.graves.later.store(false, SeqCst);
        loop {
            world.bus.room_for_letters();
            running.extend(world.scheduled());
            if let Some(entry) = running.pop() {
                running.extend(world.fail(&lane, entry));
            } else if !world.graves.writing.lock().unwrap().is_empty() {
                world.written(true);
            } else if world.tally(&lane).2 == 0 {
                break;
            }
        }
        prop_assert_eq!(world.tally(&lane), (0, next + again, 0));
        let mut kept = world.kept();
        kept.retain(|payload| *payload < REDELIVERED);
        if concurrency > 1 {
            kept.sort_unstable();
        }
        prop_assert_eq!(kept, (0..next).collect::<Vec<_>>());
    }
}

#[test]
fn a_letter_on_another_level_waits_like_anything_else() {
    let world = World::new(10);
    let lane = world.lane(told(Letters::Failed));
    world.graves.later.store(true, SeqCst);
    publish(&world.bus, "t", Low, 5, Patience::None);
    world.fail(&lane, world.take());
    world.publish(0..1);
    // One run at a time: the letter is part of it.
    assert!(world.scheduled().is_none());
    world.written(true);
    assert_eq!(world.take().event.payload, 0);
}
