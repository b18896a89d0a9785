//! One suite that both journals pass.
#![cfg(not(loom))]

mod durable;

use std::sync::Arc;

use durable::{Bus, NOW, event, lock};
use ironbus::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetters, Limits, MemoryDeadLetters,
};
use ironbus::engine::journal::{
    Event, EventFilter, JournalError, Keeping, Parameters, Range, Statement, StragglerState, Unit,
    Upkeep, Value,
};
use ironbus::engine::priority::Priority::{self, Critical, High, Low, Normal};
use ironbus::engine::store::Durability;
use ironbus::engine::topic::Topic;

/// Runs a test with each implementation; `true`: in a file.
fn each(test: impl Fn(&Bus, bool)) {
    let bus = Bus::in_memory(Arc::new(MemoryDeadLetters::new(Limits::default())));
    test(&bus, false);
    let folder = tempfile::tempdir().expect("a folder for the test");
    test(&Bus::open(&folder.path().join("x.bus")), true);
}

fn everything(bus: &Bus) -> Vec<Event> {
    let mut reader = bus.journal.reader().expect("a reader");
    let all = Range {
        after: 0,
        through: u64::MAX >> 1,
        limit: usize::MAX,
        budget: usize::MAX,
    };
    let scan = reader
        .events(&EventFilter::default(), all)
        .expect("readable");
    assert_eq!(scan.damage, []);
    scan.events
}

fn sequences(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.sequence).collect()
}

#[test]
fn an_event_comes_back_as_it_was_given() {
    each(|bus, _| {
        let full = Event {
            event_id: Some("id".into()),
            source: Some("shop".into()),
            key: Some("k".into()),
            headers: Some(r#"{"trace": "1"}"#.into()),
            idempotency_key: Some("pay-7".into()),
            digest: Some([9; 16]),
            correlation_id: Some("c".into()),
            causation_id: Some("b".into()),
            due: Some(NOW + 5.0),
            expires: Some(NOW + 50.5),
            ..event(0, Critical, "order.paid")
        };
        let bare = event(0, Low, "Ä type");
        let (first, _) = bus.publish_event(full.clone(), Durability::Os);
        let (second, ticket) = bus.publish_event(bare.clone(), Durability::Fsync);
        assert_eq!((first, second), (1, 2));
        assert_eq!(ticket.wait(), Ok(Durability::Fsync));
        let data = |n| format!(r#"{{"n": {n}}}"#);
        let expected = [
            Event {
                sequence: 1,
                data: data(1),
                ..full
            },
            Event {
                sequence: 2,
                data: data(2),
                ..bare
            },
        ];
        assert_eq!(everything(bus), expected);
        let mut reader = bus.journal.reader().expect("a reader");
        assert_eq!(reader.event(2), Ok(Some(expected[1].clone())));
        assert_eq!(reader.event(3), Ok(None));
    });
}

#[test]
fn commits_are_told_in_order_and_are_as_durable_as_the_strongest_in_them() {
    each(|bus, _| {
        let tickets: Vec<_> = (0..50)
            .map(|n| {
                let durability = if n == 30 {
                    Durability::Fsync
                } else {
                    Durability::Os
                };
                bus.publish_event(event(0, Normal, "t"), durability).1
            })
            .collect();
        bus.flush();
        assert_eq!(tickets[30].poll(), Some(Ok(Durability::Fsync)));
        assert!(
            tickets
                .iter()
                .all(|ticket| matches!(ticket.poll(), Some(Ok(_))))
        );
        let commits = lock(&bus.desk.commits);
        let ranges: Vec<_> = commits
            .iter()
            .filter_map(|commit| commit.sequences)
            .collect();
        assert_eq!(ranges[0].0, 1);
        assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0));
        assert_eq!(ranges[ranges.len() - 1].1, 50);
    });
}

#[test]
fn numbers_only_rise_and_the_buffer_is_bounded() {
    each(|bus, _| {
        let append = |events| bus.journal.append(events, Durability::Os).map(drop);
        let busy = JournalError::Busy { bound: 100 };
        let many = (1..=101).map(|n| event(n, Normal, "t")).collect();
        assert_eq!(append(many), Err(busy));
        assert_eq!(bus.journal.room(), 100);
        assert_eq!(
            append(vec![event(3, Normal, "t"), event(4, Low, "t")]),
            Ok(())
        );
        for (events, sequence) in [
            (vec![event(4, Normal, "t")], 4),
            (vec![event(6, Normal, "t"), event(5, Normal, "t")], 5),
            (vec![event(1 << 40, Normal, "t")], 1 << 40),
        ] {
            assert_eq!(append(events), Err(JournalError::OutOfOrder { sequence }));
        }
        let no_time = Event {
            timestamp: f64::NAN,
            ..event(5, Normal, "t")
        };
        assert_eq!(append(vec![no_time]), Err(JournalError::NoTime));
        bus.flush();
        assert_eq!(sequences(&everything(bus)), [3, 4]);
        assert_eq!((bus.journal.room(), bus.journal.committed()), (100, 4));
    });
}

#[test]
fn a_lane_gets_what_is_its_own_in_order_through_its_window_and_beyond() {
    each(|bus, _| {
        let early = bus.publish(Normal, "order.paid").0;
        let lane = bus.subscribe("bill", "order.*");
        let mut expected: [Vec<u64>; 4] = Default::default();
        for n in 0..60 {
            let level = Priority::ALL[n % 4];
            let event_type = ["order.paid", "order.lost", "other"][n % 3];
            let (sequence, ticket) = bus.publish(level, event_type);
            if event_type != "other" {
                expected[level.index()].push(sequence);
            }
            if n % 7 == 0 {
                ticket.wait().expect("committed");
            }
        }
        bus.flush();
        for level in Priority::ALL {
            assert_eq!(lane.drain(level), expected[level.index()], "{level:?}");
            assert!(lane.subscription.place(level).caught_up);
        }
        assert!(!expected.concat().contains(&early), "it was not there yet");
        // Caught up, it is handed what comes.
        let (next, ticket) = bus.publish(High, "order.paid");
        ticket.wait().expect("committed");
        bus.flush();
        assert_eq!(lock(&lane.levels[High.index()]).front(), Some(&next));
    });
}

#[test]
fn a_late_subscription_may_begin_anywhere() {
    each(|bus, _| {
        for n in 0..10 {
            bus.publish_event(
                Event {
                    accepted: NOW + f64::from(n),
                    ..event(0, Normal, "t")
                },
                Durability::Os,
            );
        }
        bus.flush();
        assert_eq!(
            bus.subscribe_after("start", "t", 0).drain(Normal),
            (1..=10).collect::<Vec<_>>()
        );
        assert_eq!(
            bus.subscribe_after("seven", "t", 7).drain(Normal),
            [8, 9, 10]
        );
        let mut reader = bus.journal.reader().expect("a reader");
        for (time, last) in [
            (-1.0, 0),
            (0.0, 0),
            (0.5, 1),
            (5.0, 5),
            (9.5, 10),
            (99.0, 10),
        ] {
            assert_eq!(reader.position_at(NOW + time), Ok(last), "{time}");
        }
    });
}

#[test]
fn settlements_out_of_order_are_kept_as_runs_and_what_holds_up_is_left_behind() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for _ in 0..8 {
            bus.publish(Normal, "t");
        }
        bus.flush();
        let all: Vec<u64> = std::iter::from_fn(|| lane.next(Normal)).collect();
        assert_eq!(all, (1..=8).collect::<Vec<_>>());
        for sequence in [2, 3, 5] {
            lane.subscription.settle(Normal, sequence);
        }
        lane.subscription.retry(Normal, 4, 2, Some(NOW + 30.0));
        bus.flush();
        let place = lane.subscription.place(Normal);
        assert_eq!((place.position, place.runs, place.open), (0, 2, 5));
        assert!(lane.stragglers().is_empty());
        // Ten seconds later the cursor goes on without 1 and 4.
        *lock(&bus.desk.now) += 10.0;
        lane.subscription.settle(Normal, 6);
        bus.flush();
        let place = lane.subscription.place(Normal);
        assert_eq!((place.position, place.runs, place.open), (6, 0, 2));
        assert_eq!(lane.stragglers(), [(1, 0), (4, 2)].into());
        let found = lane
            .subscription
            .stragglers(Some((Normal, 1)), 9)
            .expect("readable");
        assert_eq!(
            (found[0].0.due, found[0].0.state),
            (Some(NOW + 30.0), StragglerState::Retry)
        );
        assert_eq!(found[0].1.as_ref().map(|event| event.sequence), Some(4));
        lane.subscription.retry(Normal, 1, 1, None);
        lane.subscription.settle(Normal, 4);
        bus.flush();
        assert_eq!(lane.stragglers(), [(1, 1)].into());
        lane.subscription.settle(Normal, 1);
        bus.flush();
        assert!(lane.stragglers().is_empty());
    });
}

#[test]
fn beyond_1024_runs_the_cursor_goes_on_at_once() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for _ in 0..2100 {
            bus.publish(Normal, "t").1.wait().expect("committed");
            let next = lane.next(Normal).expect("it was committed");
            if next % 2 == 0 {
                lane.subscription.settle(Normal, next);
            }
        }
        bus.flush();
        let place = lane.subscription.place(Normal);
        assert!(place.runs <= 1024 && place.position > 1000, "{place:?}");
        assert_eq!(lane.stragglers().len() + place.open, 1050);
    });
}

#[test]
fn deferred_deliveries_and_redrives_are_stragglers_until_they_are_settled() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for _ in 0..3 {
            bus.publish(Normal, "t");
        }
        bus.flush();
        assert_eq!(lane.next(Normal), Some(1));
        lane.subscription
            .defer(Normal, 1, 3, Some(NOW + 60.0), StragglerState::Retry);
        assert_eq!((lane.next(Normal), lane.next(Normal)), (Some(2), Some(3)));
        lane.subscription
            .defer(Normal, 3, 0, None, StragglerState::Waiting);
        lane.subscription.redrive(High, 77, "letter");
        bus.flush();
        let found = lane.subscription.stragglers(None, 9).expect("readable");
        let states: Vec<_> = found
            .iter()
            .map(|(row, event)| {
                (
                    row.level,
                    row.sequence,
                    row.attempt,
                    row.state,
                    event.is_some(),
                )
            })
            .collect();
        assert_eq!(
            states,
            [
                (High, 77, 0, StragglerState::Redrive, false),
                (Normal, 1, 3, StragglerState::Retry, true),
                (Normal, 3, 0, StragglerState::Waiting, true),
            ]
        );
        assert_eq!(found[0].0.dead_letter.as_deref(), Some("letter"));
        assert_eq!(lane.subscription.place(Normal).position, 1);
        lane.subscription.settle(Normal, 2);
        assert_eq!(lane.subscription.place(Normal).position, 3);
        for (level, sequence) in [(Normal, 1), (Normal, 3), (High, 77)] {
            lane.subscription.settle(level, sequence);
        }
        bus.flush();
        assert!(lane.stragglers().is_empty());
    });
}

fn letter(id: &str, sequence: u64) -> DeadLetter {
    DeadLetter {
        id: id.into(),
        event: DeadEvent {
            event_type: "t".into(),
            data: "{}".into(),
            sequence: Some(sequence),
            ..DeadEvent::default()
        },
        subscription: "bill".into(),
        attempts: 3,
        ..DeadLetter::default()
    }
}

#[test]
fn a_unit_happens_whole_or_not_at_all() {
    each(|bus, in_file| {
        let lane = bus.subscribe("bill", "t");
        bus.publish(Normal, "t");
        bus.publish(Normal, "t");
        bus.flush();
        assert_eq!((lane.next(Normal), lane.next(Normal)), (Some(1), Some(2)));
        let unit = Unit {
            events: vec![event(0, High, "other"), event(0, Normal, "t")],
            dead_letter: Some(letter("a", 1)),
            bookmark: Some(("input".into(), "12".into())),
            ..Unit::default()
        };
        let (ticket, fate) = bus.unit(unit, lane.delivery(Normal, 1));
        assert_eq!(ticket.wait(), Ok(Durability::Os));
        assert_eq!(*lock(&fate), Some(Ok(Durability::Os)));
        assert_eq!(sequences(&everything(bus)), [1, 2, 3, 4]);
        let mut reader = bus.journal.reader().expect("a reader");
        assert_eq!(reader.bookmark("input"), Ok(Some("12".into())));
        assert_eq!(lane.next(Normal), Some(4));
        assert_eq!(lane.subscription.place(Normal).position, 1);

        // One statement that cannot be, and nothing of it has been.
        let unit = Unit {
            events: vec![event(0, Normal, "t")],
            bookmark: Some(("input".into(), "13".into())),
            statements: vec![Statement {
                sql: "INSERT INTO nowhere VALUES (1)".into(),
                parameters: Parameters::Numbered(vec![]),
            }],
            ..Unit::default()
        };
        let (ticket, fate) = bus.unit(unit, lane.delivery(Normal, 2));
        assert_eq!(ticket.wait(), Ok(Durability::Os), "the others went through");
        bus.flush();
        let refused = lock(&fate).clone().expect("told").expect_err("refused");
        if in_file {
            let JournalError::Statement { number: 1, reason } = &refused else {
                panic!("{refused:?}")
            };
            assert_eq!(reason, "no such table: nowhere");
        } else {
            assert_eq!(refused, JournalError::NoSql);
        }
        assert_eq!(reader.bookmark("input"), Ok(Some("12".into())));
        assert_eq!(lane.subscription.place(Normal).open, 2);
        let (next, ticket) = bus.publish(Normal, "t");
        ticket.wait().expect("committed");
        assert_eq!(next, 6, "the number of the refused one is not given again");
        assert_eq!(sequences(&everything(bus)), [1, 2, 3, 4, 6]);
    });
}

#[test]
fn a_unit_settles_a_delivery_once_whatever_has_become_of_it_meanwhile() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for _ in 0..6 {
            bus.publish(Normal, "t");
        }
        bus.flush();
        let settle = |sequence: u64| {
            let unit = Unit {
                bookmark: Some(("input".into(), sequence.to_string())),
                ..Unit::default()
            };
            let (ticket, fate) = bus.unit(unit, lane.delivery(Normal, sequence));
            ticket.wait().expect("committed");
            bus.flush();
            let fate = lock(&fate).clone();
            fate.expect("told").map(drop)
        };
        let settled = Err(JournalError::Settled);
        for sequence in 1..=6 {
            assert_eq!(lane.next(Normal), Some(sequence));
        }
        // In front, and above what is open.
        for sequence in [1, 3] {
            assert_eq!(settle(sequence), Ok(()));
            assert_eq!(settle(sequence), settled);
        }
        // One that is tried again is a straggler: not written yet, or in its table.
        for flush in [false, true] {
            let sequence = 4 + u64::from(flush);
            lane.subscription.try_again(Normal, sequence, 1, 0.0);
            if flush {
                bus.flush();
            }
            assert_eq!(settle(sequence), Ok(()));
            assert_eq!(settle(sequence), settled);
        }
        // Without a unit.
        lane.subscription.settle(Normal, 2);
        assert_eq!(settle(2), settled);
        assert_eq!(settle(6), Ok(()));
        let mut reader = bus.journal.reader().expect("a reader");
        assert_eq!(reader.bookmark("input"), Ok(Some("6".into())));
    });
}

#[test]
fn a_dead_letter_for_which_there_is_no_room_leaves_its_delivery_open() {
    let letters = Arc::new(MemoryDeadLetters::new(Limits {
        max_entries: 1,
        ..Limits::default()
    }));
    let bus = Bus::in_memory(letters.clone());
    let lane = bus.subscribe("bill", "t");
    bus.publish(Normal, "t");
    bus.publish(Normal, "t");
    bus.flush();
    for (sequence, fits) in [(1, true), (2, false)] {
        assert_eq!(lane.next(Normal), Some(sequence));
        let unit = Unit {
            dead_letter: Some(letter(&sequence.to_string(), sequence)),
            ..Unit::default()
        };
        let (_, fate) = bus.unit(unit, lane.delivery(Normal, sequence));
        bus.flush();
        assert_eq!(lock(&fate).clone().expect("told").is_ok(), fits);
    }
    assert_eq!(lane.subscription.place(Normal).open, 1);
    assert_eq!(letters.statistics().expect("counts").entries, 1);
}

#[test]
fn retention_lets_go_of_what_is_old_and_nobody_needs() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for n in 0..10 {
            bus.publish_event(
                Event {
                    accepted: NOW + f64::from(n),
                    ..event(0, Normal, "t")
                },
                Durability::Os,
            );
        }
        bus.flush();
        let retain = |before| {
            let mut gone = 0;
            loop {
                let now = bus.journal.retain(NOW + before, 2).expect("written");
                gone += now.events;
                if now.again == Some(0) {
                    return gone;
                }
            }
        };
        assert_eq!(retain(99.0), 0, "nothing is settled");
        for sequence in 1..=7 {
            assert_eq!(lane.next(Normal), Some(sequence));
            match sequence {
                2 => lane
                    .subscription
                    .defer(Normal, 2, 1, None, StragglerState::Retry),
                _ => lane.subscription.settle(Normal, sequence),
            }
        }
        // All levels count, idle ones too: they go on when the journal is tidied up.
        bus.flush();
        for level in [Critical, High, Low] {
            assert_eq!(lane.next(level), None);
        }
        bus.flush();
        assert_eq!(retain(4.0), 3);
        assert_eq!(sequences(&everything(bus)), [2, 5, 6, 7, 8, 9, 10]);
        assert_eq!(retain(99.0), 3);
        lane.subscription.settle(Normal, 2);
        bus.flush();
        assert_eq!(retain(99.0), 1);
        assert_eq!(sequences(&everything(bus)), [8, 9, 10]);
        assert_eq!(lane.drain(Normal), [8, 9, 10]);
        bus.flush();
        assert_eq!(retain(99.0), 3);
        // Somebody who begins at the beginning begins with what is there.
        let late = bus.subscribe_after("late", "t", 0);
        let (next, _) = bus.publish(Normal, "t");
        bus.flush();
        assert_eq!(late.drain(Normal), [next]);
    });
}

#[test]
fn numbers_that_others_take_are_reserved_as_well() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let bus = Bus::open_with_block(&path, 8);
    assert_eq!(bus.publish(Normal, "t").0, 1);
    for taken in 2..=100 {
        // As a dead letter does that is delivered again.
        assert_eq!(bus.take_number(), taken);
        bus.flush();
        assert!(bus.journal.room() > 0);
    }
    let (next, ticket) = bus.publish(Normal, "t");
    ticket.wait().expect("committed");
    assert_eq!(next, 101);
    assert_eq!(bus.take_number(), 102);
    bus.journal.close().expect("in order");
    drop(bus);
    let bus = Bus::open(&path);
    assert_eq!(bus.publish(Normal, "t").0, 103, "none is given again");
}

#[test]
fn who_takes_more_numbers_than_there_are_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let bus = Bus::open_with_block(&folder.path().join("x.bus"), 8);
    bus.publish(Normal, "t").1.wait().expect("committed");
    // Faster than the disk, or while it fails: there is no room until some are reserved, and no error.
    bus.journal.given(100);
    while bus.journal.room() == 0 {
        std::thread::yield_now();
    }
}

#[test]
fn upkeep_bounds_what_is_kept_in_portions_and_looks_again_at_what_was_needed() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        for n in 0..20 {
            let event = Event {
                accepted: NOW + f64::from(n),
                ..event(0, Normal, "t")
            };
            bus.publish_event(event, Durability::Os);
        }
        bus.flush();
        for sequence in 1..=20 {
            assert_eq!(lane.next(Normal), Some(sequence));
            match sequence % 2 {
                0 => lane.subscription.settle(Normal, sequence),
                _ => lane
                    .subscription
                    .defer(Normal, sequence, 1, None, StragglerState::Retry),
            }
        }
        for level in [Critical, High, Low] {
            assert_eq!(lane.next(level), None);
        }
        bus.flush();
        *lock(&bus.desk.now) = NOW + 100.0;
        let keeping = Keeping {
            retention: Some(85.5),
            portion: 3,
            ..Keeping::default()
        };
        let upkeep = |keeping: &Keeping| bus.journal.upkeep(keeping, &|| true).expect("written");
        let stopped = bus.journal.upkeep(&keeping, &|| false);
        assert_eq!(stopped.expect("written").events, 0);
        assert_eq!(upkeep(&keeping).events, 7, "those accepted until 14.5");
        let left: Vec<u64> = (1..=20).filter(|n| n % 2 == 1 || *n > 15).collect();
        assert_eq!(sequences(&everything(bus)), left);
        assert_eq!(upkeep(&keeping).events, 0);
        // From the middle of those that were needed, and then the rest.
        for sequence in [3, 9, 11] {
            lane.subscription.settle(Normal, sequence);
        }
        bus.flush();
        assert_eq!(upkeep(&keeping).events, 3);
        let keeping = Keeping {
            retention: Some(0.0),
            ..keeping
        };
        assert_eq!(upkeep(&keeping).events, 3);
        for sequence in (1..=20).filter(|n| n % 2 == 1) {
            lane.subscription.settle(Normal, sequence);
        }
        bus.flush();
        assert_eq!(upkeep(&keeping).events, 7);
        assert_eq!(everything(bus), []);
        assert_eq!(upkeep(&Keeping::default()), Upkeep::default());
    });
}

#[test]
fn an_absent_subscription_holds_events_back_until_it_is_let_go_of() {
    each(|bus, _| {
        let lane = bus.subscribe("here", "t");
        let gone = bus.subscribe("gone", "t");
        bus.publish(Normal, "t").1.wait().expect("committed");
        assert_eq!(lane.drain(Normal), [1]);
        for level in [Critical, High, Low] {
            assert_eq!(lane.next(level), None);
        }
        bus.leave(gone);
        let keeping = Keeping {
            retention: Some(1.0),
            absent_ttl: Some(50.0),
            ..Keeping::default()
        };
        let upkeep = || bus.journal.upkeep(&keeping, &|| true).expect("written");
        *lock(&bus.desk.now) = NOW + 40.0;
        assert_eq!(upkeep(), Upkeep::default());
        *lock(&bus.desk.now) = NOW + 80.0;
        let expected = Upkeep {
            events: 1,
            subscriptions: vec!["gone".into()],
        };
        assert_eq!(upkeep(), expected);
        *lock(&bus.desk.now) = NOW + 1000.0;
        assert_eq!(upkeep(), Upkeep::default(), "who is here stays");
        assert_eq!(bus.journal.subscriptions().expect("readable").len(), 1);
    });
}

#[test]
fn events_are_found_by_type_key_and_time_in_pages() {
    each(|bus, _| {
        for n in 0..20u32 {
            let event_type = if n % 2 == 0 {
                "order.paid"
            } else {
                "order.lost"
            };
            let event = Event {
                key: Some(format!("k{}", n % 3)),
                accepted: NOW + f64::from(n),
                ..event(0, Priority::ALL[n as usize % 4], event_type)
            };
            bus.publish_event(event, Durability::Os);
        }
        bus.flush();
        let mut reader = bus.journal.reader().expect("a reader");
        let filters = [
            (EventFilter::default(), 20),
            (
                EventFilter {
                    topics: vec![Topic::new("order.paid")],
                    ..Default::default()
                },
                10,
            ),
            (
                EventFilter {
                    topics: vec![Topic::new("*.lost"), Topic::new("x")],
                    ..Default::default()
                },
                10,
            ),
            (
                EventFilter {
                    key: Some("k1".into()),
                    ..Default::default()
                },
                7,
            ),
            (
                EventFilter {
                    since: Some(NOW + 5.0),
                    until: Some(NOW + 8.0),
                    ..Default::default()
                },
                3,
            ),
            (
                EventFilter {
                    since: Some(NOW + 99.0),
                    ..Default::default()
                },
                0,
            ),
        ];
        for (filter, expected) in filters {
            let mut found = Vec::new();
            let mut after = 0;
            while after < 20 {
                let range = Range {
                    after,
                    through: 20,
                    limit: 3,
                    budget: 8,
                };
                let scan = reader.events(&filter, range).expect("readable");
                assert!(scan.events.len() <= 3 && scan.through >= after);
                found.extend(scan.events);
                after = scan.through.max(after + 1);
                if scan.through >= 20 {
                    break;
                }
            }
            assert_eq!(found.len(), expected, "{filter:?}");
            assert!(found.iter().all(|event| filter.admits(event)));
            assert!(
                found
                    .windows(2)
                    .all(|pair| pair[0].sequence < pair[1].sequence)
            );
        }
    });
}

#[test]
fn keys_come_back_oldest_first_as_far_as_they_are_asked_for() {
    each(|bus, _| {
        for n in 0..10u8 {
            let event = Event {
                digest: (n % 2 == 0).then_some([n; 16]),
                accepted: NOW + f64::from(n),
                ..event(0, Normal, "t")
            };
            bus.publish_event(event, Durability::Os);
        }
        // A clock that steps back does not make a key older than those before it.
        let stepped = Event {
            digest: Some([99; 16]),
            accepted: NOW - 50.0,
            ..event(0, Normal, "t")
        };
        bus.publish_event(stepped, Durability::Os);
        bus.flush();
        let mut reader = bus.journal.reader().expect("a reader");
        let key = |n: u8, at: u8| ([n; 16], NOW + f64::from(at));
        let all = [
            key(0, 0),
            key(2, 2),
            key(4, 4),
            key(6, 6),
            key(8, 8),
            key(99, 9),
        ];
        assert_eq!(reader.keys(NOW, 99).expect("readable"), all);
        assert_eq!(reader.keys(NOW + 4.0, 99).expect("readable"), all[2..]);
        assert_eq!(reader.keys(NOW, 2).expect("readable"), all[4..]);
    });
}

#[test]
fn a_subscription_is_found_again_by_its_name_and_can_be_let_go_of() {
    each(|bus, _| {
        let lane = bus.subscribe("bill", "t");
        bus.publish(Normal, "t");
        bus.publish(Normal, "t");
        bus.flush();
        assert_eq!(lane.next(Normal), Some(1));
        lane.subscription.settle(Normal, 1);
        bus.flush();
        let registered = JournalError::Registered {
            name: "bill".into(),
        };
        assert_eq!(bus.journal.forget("bill"), Err(registered));
        let unknown = JournalError::NoSubscription {
            name: "ship".into(),
        };
        assert_eq!(bus.journal.forget("ship"), Err(unknown));
        let again = bus
            .journal
            .register("bill", &["t".into(), "u\"\\".into()], 99)
            .expect("found");
        assert_eq!(again.id(), lane.subscription.id());
        assert_eq!(again.place(Normal).position, 1);
        assert!(again.wants("t") && again.wants("u\"\\") && !again.wants("v"));
        let mut reader = bus.journal.reader().expect("a reader");
        let known = reader.subscriptions().expect("readable");
        assert_eq!(known[0].0.topics, ["t", "u\"\\"]);
        assert_eq!((known.len(), known[0].1.len()), (1, 4));
    });
}

#[test]
fn statements_of_the_user_commit_with_the_settlement_and_reach_no_table_of_the_journal() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let bus = Bus::open(&path);
    let run = |sql: &str, parameters: Vec<Value>| {
        let statements = vec![Statement {
            sql: sql.into(),
            parameters: Parameters::Numbered(parameters),
        }];
        let (ticket, fate) = bus.unit(
            Unit {
                statements,
                ..Unit::default()
            },
            None,
        );
        ticket.wait().expect("committed");
        bus.flush();
        let fate = lock(&fate).clone();
        fate.expect("told")
    };
    run(
        "CREATE TABLE account (name TEXT UNIQUE, cents INTEGER, note BLOB, rate REAL)",
        vec![],
    )
    .expect("their own table");
    let values = vec![
        Value::Text("ada".into()),
        Value::Integer(7),
        Value::Blob(vec![1, 2]),
        Value::Real(0.5),
    ];
    run("INSERT INTO account VALUES (?, ?, ?, ?)", values).expect("their own row");
    run(
        "UPDATE account SET cents = cents + ?1, note = ?2",
        vec![Value::Integer(3), Value::Null],
    )
    .expect("their own row");
    for sql in [
        "DELETE FROM event",
        "UPDATE cursor SET position = 0",
        "INSERT INTO Dead_Letter (id) VALUES ('x')",
        "DROP TABLE straggler",
        "DROP VIEW backlog",
        "CREATE TRIGGER t AFTER INSERT ON event BEGIN SELECT 1; END",
        "COMMIT",
        "SAVEPOINT x",
        "PRAGMA user_version = 9",
        "ATTACH ':memory:' AS other",
        "INSERT INTO account VALUES ('ada', 1, NULL, NULL)",
        "this is no SQL",
        "SELECT ?2",
        "SELECT 1; SELECT 2",
        "INSERT OR ROLLBACK INTO account VALUES ('ada', 1, NULL, NULL)",
    ] {
        let refused = run(sql, vec![]);
        assert!(
            matches!(refused, Err(JournalError::Statement { number: 1, .. })),
            "{sql}: {refused:?}"
        );
    }
    assert!(
        run(
            "INSERT INTO account (name) VALUES (?)",
            vec![Value::Null, Value::Null]
        )
        .is_err()
    );
    bus.publish(Normal, "t")
        .1
        .wait()
        .expect("the journal goes on");
    bus.journal.close().expect("in order");
    let raw = rusqlite::Connection::open(&path).expect("opens");
    let cents: i64 = raw
        .query_row("SELECT cents FROM account", [], |row| row.get(0))
        .expect("one row");
    assert_eq!(cents, 10);
}
