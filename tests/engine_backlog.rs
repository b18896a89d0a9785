//! The limit of how far a subscription may be behind: a model of the line before it, and what wakes it.

mod plain;
mod world;

use std::collections::VecDeque;
use std::sync::Arc;

use ironbus::engine::durable::{Beyond, Publication, Refusal};
use ironbus::engine::error::EngineError;
use ironbus::engine::idempotency::Claim;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::Durability;
use ironbus::engine::sync::lock;
use plain::{Entry, Flag, Lane, Plain};
use proptest::prelude::*;
use world::{World, fate, folder, key};

type Handed = Arc<Publication<Plain>>;

impl World {
    /// A lane that has done something, and has nothing to do: all its levels have looked at what there is.
    fn idle_lane(self: &Arc<Self>, window: usize) -> Arc<Lane> {
        let lane = self.lane("slow", window);
        self.open();
        let first = self.publish(&[0], None).ok().expect("taken");
        assert_eq!(fate(&first), Ok(Durability::Os));
        self.end(&lane, self.begin());
        while self.behind() > 0 {
            std::thread::yield_now();
        }
        lane
    }

    /// Starts the next event, and does not end it.
    fn begin(&self) -> Entry {
        loop {
            let next = self.seat.next().and_then(|lane| self.bus.take(&lane, 1));
            if let Some(next) = next {
                return next.entry;
            }
            std::thread::yield_now();
        }
    }

    fn end(&self, lane: &Arc<Lane>, mut entry: Entry) {
        let next = self
            .bus
            .finish(lane, &mut entry, Outcome::Done, Some(1), false, 1);
        assert!(next.is_none());
    }

    fn behind(&self) -> u64 {
        self.durable.furthest_behind(&self.bus).events
    }
}

fn step() -> impl Strategy<Value = (u8, usize)> {
    (0..10u8, 1..4usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Against a model that knows how many events are undone: who publishes gets in if there is room and
    /// nobody is in line, else waits; each settlement lets those in who fit, in order; whoever gives up leaves
    /// nothing. No subscription is ever further behind than the limit, but by what handlers publish.
    #[test]
    fn nobody_is_further_behind_than_the_limit(
        limit in 1..8u64,
        window in 1..5usize,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (_folder, path) = folder();
        let world = World::with_limit(&path, Some(limit));
        let lane = world.idle_lane(window);
        let mut line: VecDeque<(usize, Handed)> = VecDeque::new();
        let (mut undone, mut accepted, mut cancelled) = (0, 1_usize, 0_usize);
        let mut last = 1;
        for (step, size) in steps {
            let count = size.min(limit as usize);
            let payloads = vec![7; count];
            match step {
                0..5 => {
                    let handed = world.publish(&payloads, None).ok().expect("taken");
                    let fits = line.is_empty() && undone + count as u64 <= limit;
                    prop_assert_eq!(handed.lined_up, !fits);
                    line.push_back((count, handed));
                }
                5 => {
                    // A handler waits for nobody.
                    let handed = world.publish_beyond(&payloads, None, Beyond::Exceed);
                    let handed = handed.ok().expect("taken");
                    prop_assert_eq!(fate(&handed), Ok(Durability::Os));
                    prop_assert!(handed.first() > last);
                    last = handed.first() + count as u64 - 1;
                    undone += count as u64;
                    accepted += count;
                    prop_assert_eq!(world.behind(), undone);
                    continue;
                }
                6 => {
                    let refused = world.publish_beyond(&payloads, None, Beyond::Refuse);
                    let fits = line.is_empty() && undone + count as u64 <= limit;
                    match refused {
                        Ok(handed) => {
                            prop_assert!(fits);
                            line.push_back((count, handed));
                        }
                        Err(Refusal::Engine(EngineError::Behind { .. })) => prop_assert!(!fits),
                        Err(_) => panic!("for another reason"),
                    }
                }
                7 if !line.is_empty() => {
                    let at = size % line.len();
                    let (count, gone) = line.remove(at).expect("there is one");
                    prop_assert!(world.durable.leave_line(&world.bus, &gone, 1));
                    cancelled += count;
                }
                _ if undone > 0 => {
                    world.end(&lane, world.begin());
                    undone -= 1;
                }
                _ => {}
            }
            // Those who fit by now are let in: by the thread that serves the line, or by nobody.
            while let Some((count, _)) = line.front()
                && undone + *count as u64 <= limit
            {
                let (count, first) = line.pop_front().expect("there is one");
                prop_assert_eq!(fate(&first), Ok(Durability::Os));
                prop_assert!(first.first() > last, "first come, first served");
                last = first.first() + count as u64 - 1;
                undone += count as u64;
                accepted += count;
            }
            prop_assert_eq!(world.behind(), undone);
            prop_assert!(line.iter().all(|(_, waits)| waits.fate().is_none()));
            let (counts, _) = world.bus.report();
            let waiting: usize = line.iter().map(|(count, _)| count).sum();
            prop_assert_eq!(counts.waiting, waiting as u64);
            prop_assert_eq!(counts.accepted, accepted as u64);
            prop_assert_eq!(counts.cancelled, cancelled as u64);
            let ended = counts.accepted + counts.rejected + counts.cancelled + counts.waiting;
            prop_assert_eq!(counts.offered, ended);
        }
        // Nobody waits for one who has nothing to do.
        while undone > 0 || !line.is_empty() {
            world.end(&lane, world.begin());
            undone -= 1;
            while let Some((count, _)) = line.front()
                && undone + *count as u64 <= limit
            {
                let (count, first) = line.pop_front().expect("there is one");
                prop_assert_eq!(fate(&first), Ok(Durability::Os));
                undone += count as u64;
            }
        }
        prop_assert!(world.bus.is_quiet(None));
        world.close().expect("in order");
    }
}

#[test]
fn who_waits_holds_no_key_and_looks_again_where_another_was_faster() {
    let (_folder, path) = folder();
    let world = World::with_limit(&path, Some(1));
    let lane = world.idle_lane(4);
    let first = world.publish(&[1], None).ok().expect("taken");
    assert_eq!(fate(&first), Ok(Durability::Os));
    let waits = world.publish(&[2], Some(&key(1))).ok().expect("taken");
    assert!(waits.lined_up);
    assert_eq!(world.claim(&key(1)), Claim::Vacant);

    let told = Flag::default();
    assert!(waits.wait(told.waker()).is_ok());
    let other = world.publish_beyond(&[3], Some(&key(1)), Beyond::Exceed);
    assert_eq!(fate(&other.ok().expect("taken")), Ok(Durability::Os));
    for _ in 0..2 {
        world.end(&lane, world.begin());
    }
    let back = loop {
        if let Some(back) = waits.take_back() {
            break back;
        }
        std::thread::yield_now();
    };
    // It is told right after that, from another thread.
    while told.told() == 0 {
        std::thread::yield_now();
    }
    assert_eq!((back.len(), told.told()), (1, 1));
    assert_eq!(world.claim(&key(1)), Claim::Duplicate);
    let (counts, _) = world.bus.report();
    assert_eq!((counts.offered, counts.accepted, counts.waiting), (3, 3, 0));
    world.close().expect("in order");
}

#[test]
fn whoever_keeps_nobody_waiting_any_more_frees_the_line() {
    let (_folder, path) = folder();
    let world = World::with_limit(&path, Some(2));
    let paused = world.lane("paused", 4);
    world.open();
    world.publish(&[1, 2], None).ok().expect("taken");
    let waits = world.publish(&[3], None).ok().expect("taken");
    assert!(waits.lined_up && !world.bus.is_quiet(None));
    world.bus.pause(&paused, true);
    assert_eq!(fate(&waits), Ok(Durability::Os));
    assert_eq!(world.behind(), 0);

    // It counts again as it goes on.
    world.bus.pause(&paused, false);
    assert_eq!(world.behind(), 3);
    let waits = world.publish(&[4], None).ok().expect("taken");
    assert!(waits.lined_up);
    world
        .durable
        .unsubscribe(&world.bus, 1, &paused, true, 1)
        .expect("gone");
    assert_eq!(fate(&waits), Ok(Durability::Os));
    world.close().expect("in order");
}

#[test]
fn a_journal_that_writes_no_more_tells_those_who_wait() {
    let (_folder, path) = folder();
    let world = World::with_limit(&path, Some(1));
    let lane = world.idle_lane(4);
    let first = world.publish(&[1], None).ok().expect("taken");
    assert_eq!(fate(&first), Ok(Durability::Os));
    let waits = world.publish(&[2], None).ok().expect("taken");
    let behind = world.publish(&[3], None).ok().expect("taken");
    assert!(waits.lined_up && behind.lined_up);
    *lock(&world.fails_at) = Some("batch.committed");
    world.end(&lane, world.begin());
    // The first of them is let in, and that flush fails; the other one is told that nothing is written.
    let fates = [fate(&waits), fate(&behind)];
    assert!(fates.iter().all(Result::is_err), "{fates:?}");
    let (counts, _) = world.bus.report();
    assert_eq!((counts.waiting, counts.offered), (0, 4));
}

#[test]
fn numbers_that_a_crash_left_out_are_not_counted() {
    let (_folder, path) = folder();
    let world = World::with_limit(&path, Some(10));
    world.lane("slow", 4);
    world.open();
    let three = world.publish(&[1, 2, 3], None).ok().expect("taken");
    assert_eq!(fate(&three), Ok(Durability::Os));
    assert_eq!(world.behind(), 3);
    // As after a kill: a copy of the file is opened, whose numbers go on behind all that were reserved.
    world
        .durable
        .journal()
        .expect("open")
        .flush(Durability::Os)
        .expect("flushed");
    let copy = path.with_extension("copy");
    ironbus::engine::journal::backup(&path, &copy).expect("copied");

    let after = World::with_limit(&copy, Some(10));
    let lane = after.lane("slow", 4);
    after.open();
    assert!(after.bus_is_far_on());
    assert_eq!(after.behind(), 3);
    after
        .publish(&[4, 5, 6, 7, 8, 9, 10], None)
        .ok()
        .expect("taken");
    let waits = after.publish(&[11], None).ok().expect("taken");
    assert!(waits.lined_up);
    after.end(&lane, after.begin());
    assert_eq!(fate(&waits), Ok(Durability::Os));
    after.close().expect("in order");
    world.close().expect("in order");
}

impl World {
    fn bus_is_far_on(&self) -> bool {
        self.durable.journal().expect("open").sequence() > 1000
    }
}
