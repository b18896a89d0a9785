//! A bus over a journal at rest: nobody may take it to be at rest, or look when the next thing is due,
//! while an event is on its way to a lane.

mod plain;
mod world;

use std::sync::{Arc, Mutex};

use ironbus::engine::durable::Beyond;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::sync::lock;
use plain::{Flag, Then};
use world::{SECOND, World, fate, folder};

const HOUR: u64 = 3600 * SECOND;

/// Notes when the next thing is due, whenever it is called.
fn looks_for_due(world: &Arc<World>) -> (Then, Arc<Mutex<Vec<Option<u64>>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (note, world) = (seen.clone(), Arc::downgrade(world));
    let look = move || {
        if let Some(world) = world.upgrade() {
            lock(&note).push(world.bus.next_due());
        }
    };
    (Box::new(look), seen)
}

#[test]
fn it_is_not_still_while_a_lane_is_about_to_be_given_what_it_could_start() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 4);
    world.open();
    assert_eq!(world.run_out(&[]), [0; 0], "nothing was stored before");
    // A window of four, beside one event that waits for its time: the last has no room.
    world.store(1, None, Some(HOUR));
    (2..=6).for_each(|n| world.store(n, None, None));
    let held_up = lock(&world.held_up);
    let lane = world.seat.next().expect("it has events");
    let (now, mut called) = (world.now(), Vec::new());
    let mut next = world.bus.take(&lane, now);
    while let Some(found) = next {
        let mut entry = found.entry;
        called.push(entry.event.payload);
        let done = Outcome::Done;
        next = world.bus.finish(&lane, &mut entry, done, None, true, now);
    }
    assert_eq!(called, [2, 3, 4, 5]);
    assert!(!world.bus.is_still(0), "the last is on its way");
    let told = Flag::default();
    assert!(world.bus.when_still(told.waker(), 0).is_ok());
    drop(held_up);
    assert_eq!(world.run_out(&[]), [6]);
    assert_eq!(told.told(), 1);
    world.close().expect("in order");
}

#[test]
fn a_publisher_is_told_once_somebody_comes_by_when_its_event_is_due() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 4);
    world.open();
    assert_eq!(world.run_out(&[]), [0; 0]);
    let (look, seen) = looks_for_due(&world);
    let mut written = world.written(&[1], None);
    written[0].timing = Some(ironbus::engine::gate::Timing {
        due: Some(HOUR),
        expires: None,
    });
    // Until the publisher waits, the journal cannot tell it anything.
    let writer = lock(&world.writer);
    let publication = world.hand_over(written, Beyond::Wait).ok().expect("taken");
    assert!(publication.wait(Flag::default().waker_then(look)).is_ok());
    drop(writer);
    assert!(fate(&publication).is_ok());
    while lock(&seen).is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(*lock(&seen), [Some(HOUR)]);
    world.close().expect("in order");
}

#[test]
fn a_lane_that_was_given_older_events_is_roused_once_somebody_comes_by_when_they_are_due() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 4);
    world.open();
    world.store(1, None, Some(HOUR));
    world.store(2, None, None);
    world.close().expect("in order");
    drop(world);

    let world = World::new(&path);
    world.lane("l", 4);
    world.open_journal();
    while let Some(lane) = world.seat.next() {
        assert!(world.bus.take(&lane, world.now()).is_none(), "it is empty");
    }
    let (look, seen) = looks_for_due(&world);
    *lock(&world.seat.also) = Some(look);
    world.open_gate();
    assert_eq!(world.run_out(&[]), [2]);
    assert!(lock(&seen).first().is_some_and(Option::is_some));
    world.close().expect("in order");
}
