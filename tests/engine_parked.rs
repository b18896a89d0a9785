//! A lane that waits for room for a dead letter: what it still starts, and that nobody who
//! redrives waits for it.
//!
//! Negative control: where a parked lane starts nothing (`barred != 0` as `Consumer::is_barred`), or where
//! letters wait for what is ahead of their token, `no_redrive_waits_for_room` finds one that does.
#![cfg(not(loom))]

mod graveyard;
mod plain;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use graveyard::{World, told};
use ironbus::engine::bus::Next;
use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{Failed, Holds, LaneOptions, Letters, Order, Overflow};
use ironbus::engine::priority::Priority::Critical;
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use plain::{Entry, Lane, Plain, publish};
use proptest::prelude::*;

/// Else nobody could ever make the room that the lane waits for.
#[test]
fn a_parked_lane_starts_dead_letters_alone() {
    for order in [Order::Lane, Order::Token, Order::Nothing] {
        let world = World::new(0);
        let lane = world.lane(LaneOptions {
            order,
            ..told(Letters::Failed)
        });
        publish(&world.bus, "t", Critical, 0, Patience::None);
        world.publish(1..3);
        world.redeliver(&lane, 8).expect("the lane is there");
        world.publish(3..4);
        // It parks in front of a letter, which is behind others.
        let entry = world.fail(&lane, world.take());
        assert!(entry.is_none());
        let entry = world.take();
        assert_eq!(entry.event.payload, 8);
        assert!(world.fail(&lane, entry).is_none());
        assert_eq!(world.tally(&lane), (0, 1, 4));
        assert!(world.scheduled().is_none());
        world.publish(4..5);
        assert!(world.scheduled().is_none());
        world.redeliver(&lane, 9).expect("the lane is there");
        let entry = world.take();
        assert_eq!(entry.event.payload, 9);
        let next = world
            .bus
            .finish_letter(&lane, entry, &Outcome::Done, None, true, 0);
        assert!(next.is_none());
        // The letter that the lane waited with is kept first.
        world.bus.room_for_letters();
        assert_eq!(world.take().event.payload, 1);
        assert_eq!(world.kept(), [8, 9, 0]);
        assert_eq!(world.tally(&lane), (1, 2, 4));
    }
}

#[test]
fn once_there_is_room_a_dead_letter_comes_behind_what_came_before() {
    let world = World::new(0);
    let lane = world.lane(told(Letters::Failed));
    world.publish(0..2);
    world.redeliver(&lane, 8).expect("the lane is there");
    world.redeliver(&lane, 9).expect("the lane is there");
    world.publish(2..3);
    assert!(world.fail(&lane, world.take()).is_none());
    world.graves.room.store(10, SeqCst);
    world.bus.room_for_letters();
    let mut order = Vec::new();
    let mut next = world.scheduled();
    while let Some(entry) = next {
        order.push(entry.event.payload);
        next = world.fail(&lane, entry);
    }
    assert_eq!(order, [1, 8, 9, 2]);
}

/// Whatever is ahead of it, a letter of the same token included that waits for its next attempt.
#[test]
fn in_a_parked_lane_a_dead_letter_passes_those_of_its_token() {
    for holds in [Holds::Key, Holds::Level, Holds::Nothing] {
        let world = World::new(0);
        let lane = world.lane(LaneOptions {
            concurrency: 2,
            order: Order::Token,
            holds,
            retry: Some(RetryPolicy {
                max_attempts: 2,
                initial_delay: 5,
                max_delay: 5,
                exponential_base: 1.0,
                jitter: Jitter::None,
            }),
            ..told(Letters::Failed)
        });
        world.offer(0, 7);
        world.offer(1, 7);
        let poison = world.take();
        world.redeliver_of(&lane, 9, 7).expect("the lane is there");
        let reject = Failed::Rejected(Arc::new(()));
        let verdict = lane.judge(&poison, &reject, 0.0);
        let next = world
            .bus
            .fail(&lane, poison, &reject, verdict, None, true, 0);
        let letter = next.map(|next| next.entry);
        let letter = letter.or_else(|| world.scheduled()).expect("the letter");
        assert_eq!(letter.event.payload, 9);
        // It waits for its next attempt while the lane goes on.
        assert!(world.fail(&lane, letter).is_none());
        world.graves.room.store(1, SeqCst);
        world.bus.room_for_letters();
        let mut order = Vec::new();
        for now in [0, 5, 10, 20] {
            let _ = world.bus.tick(now);
            while let Some(mut entry) = world.scheduled() {
                order.push((entry.event.payload, entry.attempt));
                if entry.letter().is_some() {
                    let done = Outcome::Done;
                    let next = world
                        .bus
                        .finish_letter(&lane, entry, &done, None, false, now);
                    assert!(next.is_none());
                } else {
                    let done = Outcome::Done;
                    let next = world.bus.finish(&lane, &mut entry, done, None, false, now);
                    assert!(next.is_none());
                }
            }
        }
        order.sort_unstable();
        assert_eq!(order, [(1, 1), (9, 2)]);
        assert_eq!(world.tally(&lane), (2, 1, 0));
    }
}

#[test]
fn a_dead_letter_is_not_let_go_for_a_newcomer() {
    let world = World::new(10);
    let lane = world.lane(LaneOptions {
        overflow: Overflow::DropOldest,
        bound: 2,
        ..told(Letters::Failed)
    });
    world.redeliver(&lane, 8).expect("the lane is there");
    world.publish(0..3);
    let mut order = Vec::new();
    let mut next = world.scheduled();
    while let Some(entry) = next {
        order.push(entry.event.payload);
        next = world.fail(&lane, entry);
    }
    assert_eq!(order, [8, 2]);
}

/// Payloads from here on are of dead letters.
const REDELIVERED: u64 = 1000;

proptest! {
    /// A lane that waits for room for ever, whatever it has begun, put off or queued: those who redrive
    /// do not wait for it. With room again, it does everything else, and in order.
    #[test]
    fn no_redrive_waits_for_room(
        concurrency in 1..3usize,
        keyed in any::<bool>(),
        computed in any::<bool>(),
        holds in prop_oneof![Just(Holds::Level), Just(Holds::Key), Just(Holds::Nothing)],
        steps in proptest::collection::vec((0..10u8, 0..3u64, any::<bool>()), 1..60),
    ) {
        let order = match (keyed, computed, concurrency) {
            (true, true, _) => Order::Computed,
            (true, false, _) => Order::Token,
            (false, _, 1) => Order::Lane,
            (false, ..) => Order::Nothing,
        };
        let retry = Some(RetryPolicy {
            max_attempts: 2,
            initial_delay: 5,
            max_delay: 5,
            exponential_base: 1.0,
            jitter: Jitter::None,
        });
        let mut world = World::new(1);
        let lane = world.lane(LaneOptions { concurrency, order, holds, retry, ..told(Letters::Failed) });
        let mut run = Run { world: &mut world, lane: &lane, running: Vec::new(), begun: Vec::new() };
        let (mut next, mut events) = (0, Vec::new());
        for (step, token, flag) in steps {
            match step {
                0..=2 => {
                    run.world.offer(10 * next + token, token);
                    next += 1;
                }
                3 | 4 => {
                    let payload = REDELIVERED + 10 * next + token;
                    let (_, event) = run.world.redeliver_of(&lane, payload, token).expect("it is open");
                    events.push(event);
                    next += 1;
                }
                5 => run.pass(3),
                6 => run.put_back(),
                _ => run.step(flag),
            }
        }
        // Nobody makes room, but for those that are delivered again; they fail.
        for _ in 0..200 {
            run.pass(5);
            run.step(true);
        }
        prop_assert!(events.iter().all(|event| event.settled()));
        run.world.graves.room.store(1 << 20, SeqCst);
        run.world.bus.room_for_letters();
        for _ in 0..400 {
            run.pass(5);
            run.step(true);
        }
        prop_assert!(run.running.is_empty());
        let (_, dead, pending) = run.world.tally(&lane);
        prop_assert_eq!((dead, pending), (next, 0));
        // Of each token in order, where nothing goes on beside what waits.
        if order != Order::Nothing && holds != Holds::Nothing {
            let first: Vec<u64> = run.begun.iter().copied().filter(|payload| *payload < REDELIVERED).collect();
            for token in 0..3 {
                let of_token: Vec<_> = first.iter().filter(|payload| *payload % 10 == token).collect();
                prop_assert!(of_token.is_sorted());
            }
        }
    }
}

/// Executors that take what is to be had and fail it, one step at a time.
struct Run<'a> {
    world: &'a mut World,
    lane: &'a Arc<Lane>,
    running: Vec<Entry>,
    /// Payloads at their first starts.
    begun: Vec<u64>,
}

impl Run<'_> {
    fn pass(&mut self, time: u64) {
        self.world.now += time;
        let _ = self.world.bus.tick(self.world.now);
    }

    fn begin(&mut self, next: Option<Next<Plain>>) {
        let Some(Next {
            entry,
            token_wanted,
        }) = next
        else {
            return;
        };
        if token_wanted {
            let (token, now) = (entry.event.payload % 10, self.world.now);
            let next = self.world.bus.with_token(self.lane, entry, token, now);
            return self.begin(next);
        }
        let token = |entry: &Entry| entry.event.payload % 10;
        if matches!(self.lane.options.order, Order::Token | Order::Computed) {
            assert!(
                self.running
                    .iter()
                    .all(|other| token(other) != token(&entry))
            );
        }
        if entry.attempt == 1 {
            self.begun.push(entry.event.payload);
        }
        self.running.push(entry);
        assert!(self.running.len() <= self.lane.options.concurrency);
    }

    fn put_back(&mut self) {
        if let Some(entry) = self.running.pop() {
            self.world.bus.put_back(self.lane, entry, self.world.now);
        }
    }

    fn step(&mut self, ends: bool) {
        if let Some(lane) = self.world.seat.next() {
            let next = self.world.bus.take(&lane, self.world.now);
            self.begin(next);
        }
        if ends && !self.running.is_empty() {
            let entry = self.running.remove(0);
            let failed = Failed::Passing(Arc::new(()));
            let verdict = self.lane.judge(&entry, &failed, 0.0);
            let (bus, now) = (&self.world.bus, self.world.now);
            let next = bus.fail(self.lane, entry, &failed, verdict, None, true, now);
            self.begin(next);
        }
    }
}
