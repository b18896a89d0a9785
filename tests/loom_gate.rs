//! The gate under every interleaving: a waiter for room is let in by whoever makes room, giving
//! up and being let in exclude each other, and the numbers have neither gap nor repeat.
//!
//! Negative control: with `Gate::admit_one` not looking for room again after it queued the
//! waiter, or `Lane::await_room` not passing the lane's lock, `room_made_lets_the_waiter_in`
//! fails; with `Gate::give_up` returning `true` for a ticket that is no longer queued,
//! `giving_up_or_let_in_but_not_both` does.
#![cfg(loom)]

mod plain;

use ironbus::engine::digest::Digest;
use ironbus::engine::gate::Patience;
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use loom::sync::Arc;
use loom::{model::Builder, thread};
use plain::{Bus, Flag, Lane, Published, Seat, options, publish, publish_keyed, told};

fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 20_000;
    model.check(f);
}

/// A bus with one lane that has room for one, and the lane.
fn narrow() -> (Arc<Bus>, Arc<Lane>, Arc<Seat>) {
    let (bus, seat) = (plain::bus(), Arc::new(Seat::default()));
    let lane = bus.make_lane(options("narrow", 1), (), seat.clone());
    bus.subscribe(vec![Topic::new("t")], &lane, 0);
    (Arc::new(bus), lane, seat)
}

const KEY: Digest = Digest([7; 32]);

fn accepted(published: Published) -> u64 {
    match published {
        Published::Accepted(number) => number,
        _ => panic!("not accepted"),
    }
}

#[test]
fn room_made_lets_the_waiter_in() {
    check(3, || {
        let (bus, lane, seat) = narrow();
        assert_eq!(accepted(publish(&bus, "t", Normal, 1, Patience::Wait)), 1);
        let consumer = {
            let (bus, lane) = (bus.clone(), lane.clone());
            thread::spawn(move || bus.take(&lane, 0).expect("there is one").entry)
        };
        let flag = Flag::default();
        match publish(&bus, "t", Normal, 2, Patience::Wait) {
            Published::Accepted(number) => assert_eq!(number, 2),
            Published::Waiting(ticket) => {
                let waits = ticket.wait(flag.waker()).is_ok();
                drop(consumer.join().unwrap());
                assert_eq!(
                    ticket.admitted().map(|(sequence, _)| sequence),
                    Some(2),
                    "the room was made for nobody"
                );
                assert_eq!(told(&flag), usize::from(waits));
                return drop(seat.scheduled());
            }
            _ => panic!("refused"),
        }
        drop(consumer.join().unwrap());
        seat.scheduled();
    });
}

#[test]
fn two_waiters_are_let_in_as_they_came() {
    check(2, || {
        let (bus, lane, seat) = narrow();
        publish(&bus, "t", Normal, 1, Patience::Wait);
        let Published::Waiting(first) = publish(&bus, "t", Normal, 2, Patience::Wait) else {
            panic!("there was no room");
        };
        let consumer = {
            let (bus, lane) = (bus.clone(), lane.clone());
            thread::spawn(move || {
                let mut entry = bus.take(&lane, 0).expect("there is one").entry;
                let next = bus.finish(&lane, &mut entry, Outcome::Done, None, true, 0);
                next.map(|next| next.entry.event.payload)
            })
        };
        let second = publish(&bus, "t", Normal, 3, Patience::Wait);
        let next = consumer.join().unwrap();
        assert_eq!(next, Some(2), "the first to wait was let in first");
        assert_eq!(first.admitted().map(|(sequence, _)| sequence), Some(2));
        match second {
            Published::Accepted(number) => assert_eq!(number, 3),
            Published::Waiting(ticket) => {
                assert_eq!(ticket.admitted().map(|(sequence, _)| sequence), Some(3))
            }
            _ => panic!("refused"),
        }
        seat.scheduled();
    });
}

#[test]
fn giving_up_or_let_in_but_not_both() {
    check(3, || {
        let (bus, lane, seat) = narrow();
        publish(&bus, "t", Normal, 1, Patience::Wait);
        let Published::Waiting(ticket) = publish(&bus, "t", Normal, 2, Patience::Wait) else {
            panic!("there was no room");
        };
        let flag = Flag::default();
        assert!(ticket.wait(flag.waker()).is_ok());
        let consumer = {
            let (bus, lane) = (bus.clone(), lane.clone());
            thread::spawn(move || drop(bus.take(&lane, 0)))
        };
        let given_up = bus.give_up(&ticket, None, 0);
        consumer.join().unwrap();
        assert_eq!(
            ticket.admitted().map(|(sequence, _)| sequence).is_none(),
            given_up
        );
        assert_eq!(told(&flag), usize::from(!given_up));
        let (counts, lanes) = bus.report();
        assert_eq!(
            (
                counts.offered,
                counts.waiting,
                counts.accepted,
                counts.cancelled
            ),
            (2, 0, 2 - u64::from(given_up), u64::from(given_up))
        );
        assert_eq!(lanes[0].1, counts.accepted);
        seat.scheduled();
    });
}

#[test]
fn numbers_have_no_gap_and_no_repeat() {
    check(2, || {
        let (bus, lane, seat) = narrow();
        let wide = bus.make_lane(options("wide", 10), (), seat.clone());
        bus.subscribe(vec![Topic::new("*")], &wide, 0);
        let publisher = {
            let bus = bus.clone();
            thread::spawn(move || {
                let both = publish(&bus, "t", Normal, 1, Patience::None);
                let one = publish(&bus, "u", Normal, 2, Patience::None);
                [both, one].map(|published| match published {
                    Published::Accepted(number) => Some(number),
                    _ => None,
                })
            })
        };
        let here = match publish(&bus, "t", Normal, 3, Patience::None) {
            Published::Accepted(number) => Some(number),
            _ => None,
        };
        let there = publisher.join().unwrap();
        let mut given: Vec<u64> = there.into_iter().chain([here]).flatten().collect();
        given.sort_unstable();
        assert_eq!(
            given,
            [1, 2],
            "one of two had room, and the third needed none"
        );
        assert_eq!(lane.depth(Normal), 1, "room in all lanes or in none");
        assert_eq!(wide.depth(Normal), 2);
        seat.scheduled();
    });
}

/// A publisher that waits for room gives up while another comes with the same key: that one joins it
/// and is woken, or comes late enough to find the key free. Either way it takes the key over.
#[test]
fn an_equal_key_takes_over_from_who_gave_up() {
    check(3, || {
        let (bus, _lane, seat) = narrow();
        assert_eq!(accepted(publish(&bus, "t", Normal, 1, Patience::Wait)), 1);
        let Published::Waiting(first) = publish_keyed(&bus, "t", KEY, Patience::Wait) else {
            panic!("there was no room");
        };
        let second = {
            let bus = bus.clone();
            thread::spawn(move || {
                let flag = Flag::default();
                match publish_keyed(&bus, "t", KEY, Patience::Wait) {
                    Published::InFlight => Err((bus.join(&KEY, flag.waker()), flag)),
                    other => Ok(other),
                }
            })
        };
        assert!(bus.give_up(&first, Some(&KEY), 0));
        let second = second.join().unwrap().unwrap_or_else(|(joined, flag)| {
            assert_eq!(told(&flag), usize::from(joined), "nobody told who joined");
            publish_keyed(&bus, "t", KEY, Patience::Wait)
        });
        let Published::Waiting(second) = second else {
            panic!("the key is still somebody's");
        };
        assert!(bus.give_up(&second, Some(&KEY), 0));
        assert!(matches!(
            publish_keyed(&bus, "u", KEY, Patience::Wait),
            Published::Accepted(2)
        ));
        seat.scheduled();
    });
}

/// Of three with the same key one is accepted, and the others are told.
#[test]
fn one_of_three_wins_a_key() {
    check(2, || {
        let bus = Arc::new(plain::bus());
        let offer = |bus: Arc<Bus>| move || publish_keyed(&bus, "t", KEY, Patience::Wait);
        let others = [(); 2].map(|()| thread::spawn(offer(bus.clone())));
        let own = offer(bus.clone())();
        let all = others.map(|other| other.join().unwrap());
        let won = all
            .iter()
            .chain([&own])
            .filter(|published| matches!(published, Published::Accepted(1)));
        assert_eq!(won.count(), 1);
        let (counts, _) = bus.report();
        assert_eq!((counts.accepted, counts.duplicate), (1, 2));
    });
}
