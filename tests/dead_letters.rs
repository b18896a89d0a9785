//! One suite that both dead letter queues pass.
#![cfg(not(loom))]

mod letters;

use ironbus::engine::dead_letters::{
    Added, DeadLetter, DeadLetterError, DeadLetters, Filter, Fingerprint, Lease, Limits,
    MemoryDeadLetters, SqliteDeadLetters, Statistics, Stored, WhenFull,
};
use ironbus::engine::topic::Topic;
use letters::{NOW, all, failure, letter, options};

/// Runs a test with each implementation.
fn each(limits: Limits, test: impl Fn(&dyn DeadLetters)) {
    test(&MemoryDeadLetters::new(limits));
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    test(&SqliteDeadLetters::open(&path, limits, &options()).expect("a queue"));
}

fn ids(entries: &[Stored]) -> Vec<&str> {
    entries.iter().map(|stored| &*stored.letter.id).collect()
}

fn fill(queue: &dyn DeadLetters, ids: &[&str]) {
    for id in ids {
        assert_eq!(queue.add(letter(id), NOW), Ok(Added::New));
    }
}

#[test]
fn an_entry_comes_back_as_it_was_given() {
    each(Limits::default(), |queue| {
        let mut bare = DeadLetter {
            id: "bare".into(),
            redrivable_in_process_only: true,
            ..DeadLetter::default()
        };
        bare.event.data = "a text\0 that is no JSON".into();
        for given in [letter("a"), bare] {
            queue.add(given.clone(), NOW).expect("added");
            let kept = queue.get(&given.id).expect("read").expect("is there");
            assert_eq!(kept.letter, given);
        }
        assert_eq!(queue.get("nobody"), Ok(None));
    });
}

#[test]
fn the_same_id_again_raises_attempts_and_keeps_place_and_first_failure() {
    each(Limits::default(), |queue| {
        fill(queue, &["a", "b"]);
        let mut again = letter("a");
        again.attempts = 2;
        again.first_failure = NOW + 5.0;
        again.last_failure = NOW + 5.0;
        again.failure = failure("second");
        assert_eq!(
            queue.add(again, NOW + 5.0),
            Ok(Added::Again { attempts: 5 })
        );
        let kept = all(queue);
        assert_eq!(ids(&kept), ["a", "b"]);
        let first = &kept[0].letter;
        assert_eq!(
            (first.first_failure, first.last_failure),
            (NOW - 10.0, NOW + 5.0)
        );
        assert_eq!(first.failure, failure("second"));
        assert_eq!(queue.statistics().expect("counts").entries, 2);
    });
}

#[test]
fn filters_pages_counts_and_purges_mean_the_same() {
    each(Limits::default(), |queue| {
        let other = Fingerprint::of("ship", "KeyError", "ship.py:1 in ship");
        for n in 0..10 {
            let mut one = letter(&format!("e{n}"));
            one.last_failure = NOW + f64::from(n);
            if n % 2 == 1 {
                one.event.event_type = "order.lost".into();
                one.subscription = "ship".into();
                one.fingerprint = other;
            }
            queue.add(one, NOW).expect("added");
        }
        let filters = [
            (Filter::default(), 10),
            (
                Filter {
                    id: Some("e3".into()),
                    ..Filter::default()
                },
                1,
            ),
            (
                Filter {
                    topic: Some(Topic::new("order.lost")),
                    ..Filter::default()
                },
                5,
            ),
            (
                Filter {
                    topic: Some(Topic::new("*.lost")),
                    ..Filter::default()
                },
                5,
            ),
            (
                Filter {
                    topic: Some(Topic::new("order.[!l]*")),
                    ..Filter::default()
                },
                5,
            ),
            (
                Filter {
                    subscription: Some("bill".into()),
                    ..Filter::default()
                },
                5,
            ),
            (
                Filter {
                    handler: Some("shop.bill".into()),
                    exception_type: Some("ValueError".into()),
                    ..Filter::default()
                },
                10,
            ),
            (
                Filter {
                    handler: Some("shop".into()),
                    ..Filter::default()
                },
                0,
            ),
            (
                Filter {
                    exception_type: Some("KeyError".into()),
                    ..Filter::default()
                },
                0,
            ),
            (
                Filter {
                    fingerprint: Some(other),
                    ..Filter::default()
                },
                5,
            ),
            (
                Filter {
                    since: Some(NOW + 3.0),
                    until: Some(NOW + 6.0),
                    ..Filter::default()
                },
                3,
            ),
            (
                Filter {
                    since: Some(NOW + 3.0),
                    fingerprint: Some(other),
                    ..Filter::default()
                },
                4,
            ),
            (
                Filter {
                    topic: Some(Topic::new("nothing.*")),
                    ..Filter::default()
                },
                0,
            ),
        ];
        for (filter, expected) in filters {
            assert_eq!(queue.count(&filter), Ok(expected), "{filter:?}");
            let mut paged = Vec::new();
            let mut after = 0;
            loop {
                let page = queue.page(&filter, after, 2).expect("a page");
                assert!(page.len() <= 2);
                let Some(last) = page.last() else { break };
                after = last.position;
                paged.extend(page);
            }
            assert_eq!(paged, queue.page(&filter, 0, 99).expect("a page"));
            assert_eq!(paged.len() as u64, expected);
            assert!(paged.iter().all(|stored| filter.admits(&stored.letter)));
        }
        let lost = Filter {
            topic: Some(Topic::new("*.lost")),
            ..Filter::default()
        };
        assert_eq!(queue.purge(&lost), Ok(5));
        assert_eq!(ids(&all(queue)), ["e0", "e2", "e4", "e6", "e8"]);
        assert_eq!(queue.remove("e4"), Ok(true));
        assert_eq!(queue.remove("e4"), Ok(false));
        assert_eq!(queue.statistics().expect("counts").entries, 4);
    });
}

#[test]
fn a_place_is_never_given_twice() {
    each(Limits::default(), |queue| {
        fill(queue, &["a", "b"]);
        let last = all(queue)[1].position;
        queue.purge(&Filter::default()).expect("purged");
        fill(queue, &["b"]);
        assert!(all(queue)[0].position > last);
    });
}

#[test]
fn a_full_queue_refuses_and_takes_the_known() {
    let limits = Limits {
        max_entries: 2,
        ..Limits::default()
    };
    each(limits, |queue| {
        fill(queue, &["a", "b"]);
        assert_eq!(
            queue.add(letter("c"), NOW),
            Err(DeadLetterError::Full { bound: 2 })
        );
        assert_eq!(
            queue.add(letter("a"), NOW),
            Ok(Added::Again { attempts: 6 })
        );
        assert_eq!(ids(&all(queue)), ["a", "b"]);
        queue.remove("a").expect("removed");
        fill(queue, &["c"]);
        assert_eq!(
            queue.statistics(),
            Ok(Statistics {
                entries: 2,
                ..Statistics::default()
            })
        );
    });
}

#[test]
fn a_full_queue_that_may_drops_its_oldest_that_nobody_holds() {
    let limits = Limits {
        max_entries: 2,
        when_full: WhenFull::DropOldest,
        ..Limits::default()
    };
    each(limits, |queue| {
        fill(queue, &["a", "b"]);
        let lease = Lease {
            holder: 1,
            until: NOW + 10.0,
        };
        queue
            .claim(&Filter::default(), 0, 1, lease, NOW)
            .expect("claimed");
        fill(queue, &["c"]);
        assert_eq!(ids(&all(queue)), ["a", "c"]);
        queue
            .claim(&Filter::default(), 0, 1, lease, NOW)
            .expect("claimed");
        assert_eq!(
            queue.add(letter("d"), NOW),
            Err(DeadLetterError::Full { bound: 2 })
        );
        assert_eq!(queue.add(letter("d"), NOW + 10.0), Ok(Added::New));
        assert_eq!(ids(&all(queue)), ["c", "d"]);
        assert_eq!(queue.statistics().expect("counts").dropped, 2);
    });
}

#[test]
fn what_is_too_old_goes_when_asked_or_when_the_room_is_needed() {
    let limits = Limits {
        max_entries: 2,
        max_age: Some(60.0),
        ..Limits::default()
    };
    each(limits, |queue| {
        fill(queue, &["a", "b"]);
        assert_eq!(queue.expire(NOW + 60.0), Ok(0));
        let lease = Lease {
            holder: 1,
            until: NOW + 100.0,
        };
        queue
            .claim(&Filter::default(), 0, 1, lease, NOW)
            .expect("claimed");
        assert_eq!(queue.expire(NOW + 60.5), Ok(1), "what somebody holds stays");
        fill(queue, &["c"]);
        let mut late = letter("d");
        late.last_failure = NOW + 101.0;
        assert_eq!(queue.add(late, NOW + 101.0), Ok(Added::New));
        assert_eq!(ids(&all(queue)), ["d"]);
        assert_eq!(
            queue.statistics(),
            Ok(Statistics {
                entries: 1,
                expired: 3,
                ..Statistics::default()
            })
        );
    });
}

#[test]
fn texts_are_cut_or_left_out_as_the_limits_say() {
    let limits = Limits {
        max_text: 4,
        tracebacks: false,
        ..Limits::default()
    };
    each(limits, |queue| {
        fill(queue, &["a"]);
        let kept = queue
            .get("a")
            .expect("read")
            .expect("is there")
            .letter
            .failure;
        assert_eq!(
            (&*kept.message, &*kept.traceback),
            ("firs… [1 bytes cut]", "")
        );
    });
}

#[test]
fn an_older_store_is_taken_over_once_whole_and_even_beyond_the_bound() {
    let limits = Limits {
        max_entries: 2,
        ..Limits::default()
    };
    each(limits, |queue| {
        let mut known = letter("a");
        known.attempts = 9;
        queue.add(known, NOW).expect("added");
        let old = || vec![letter("a"), letter("b"), letter("c"), letter("c")];
        assert_eq!(queue.import("dead_letters.json", old()), Ok(true));
        assert_eq!(queue.import("dead_letters.json", old()), Ok(false));
        let kept = all(queue);
        assert_eq!(ids(&kept), ["a", "b", "c"]);
        assert_eq!(kept[0].letter.attempts, 9);
        assert_eq!(
            queue.add(letter("d"), NOW),
            Err(DeadLetterError::Full { bound: 2 })
        );
        assert_eq!(queue.import("another", vec![letter("d")]), Ok(true));
    });
}

#[test]
fn an_entry_is_one_holders_until_it_succeeds_fails_is_released_or_the_lease_ends() {
    each(Limits::default(), |queue| {
        fill(queue, &["a", "b", "c"]);
        let everything = Filter::default();
        let lease = |holder, until| Lease {
            holder,
            until: NOW + until,
        };
        let one = queue
            .claim(&everything, 0, 2, lease(1, 10.0), NOW)
            .expect("claimed");
        assert_eq!(ids(&one), ["a", "b"]);
        let two = queue
            .claim(&everything, 0, 9, lease(2, 10.0), NOW)
            .expect("claimed");
        assert_eq!(ids(&two), ["c"]);
        assert_eq!(
            ids(&all(queue)),
            ["a", "b", "c"],
            "claimed entries stay to be seen"
        );

        assert_eq!(queue.succeeded("c", 1), Ok(false), "not its holder");
        assert_eq!(queue.succeeded("a", 1), Ok(true));
        assert_eq!(queue.succeeded("a", 1), Ok(false), "gone");
        let cause = Fingerprint(7);
        assert_eq!(queue.failed("b", 2, failure("x"), cause, 1, NOW), Ok(false));
        assert_eq!(
            queue.failed("b", 1, failure("x"), cause, 1, NOW + 1.0),
            Ok(true)
        );
        let b = queue.get("b").expect("read").expect("is there").letter;
        assert_eq!((b.attempts, b.fingerprint), (4, cause));
        assert_eq!((b.first_failure, b.last_failure), (NOW - 10.0, NOW + 1.0));
        assert_eq!(b.failure, failure("x"));
        assert_eq!(queue.release("c", 1), Ok(false));
        assert_eq!(queue.release("c", 2), Ok(true));
        assert_eq!(queue.release("c", 2), Ok(false));

        let three = queue
            .claim(&everything, 0, 9, lease(3, 10.0), NOW)
            .expect("claimed");
        assert_eq!(ids(&three), ["b", "c"]);
        assert_eq!(queue.renew(lease(3, 20.0)), Ok(2));
        assert_eq!(queue.renew(lease(4, 20.0)), Ok(0));
        let nothing = queue
            .claim(&everything, 0, 9, lease(4, 30.0), NOW + 19.9)
            .expect("claimed");
        assert!(nothing.is_empty());
        // Its holder has died: another one takes over, and the dead one's word no longer counts.
        let b = three[0].position;
        let late = queue
            .claim(&everything, b, 9, lease(4, 30.0), NOW + 20.0)
            .expect("claimed");
        assert_eq!(ids(&late), ["c"], "behind the position");
        assert_eq!(queue.succeeded("c", 3), Ok(false));
        assert_eq!(queue.succeeded("c", 4), Ok(true));
        assert_eq!(
            queue.succeeded("b", 3),
            Ok(true),
            "late, but nobody else took it"
        );
        assert_eq!(queue.statistics().expect("counts").entries, 0);
    });
}
