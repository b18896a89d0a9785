//! What a journal in a file goes through: restarts, a second owner, crashes in the middle, failed
//! flushes, damage.
#![cfg(not(loom))]

mod durable;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use durable::{Bus, NOW, event, lock};
use ironbus::engine::dead_letters::{DeadLetter, DeadLetters, Filter, Limits};
use ironbus::engine::journal::in_flight::Suspect;
use ironbus::engine::journal::{
    Damage, Event, EventFilter, Faults, Journal, JournalError, Range, StragglerState, Unit,
};
use ironbus::engine::priority::Priority::{Critical, High, Low, Normal};
use ironbus::engine::store::{Durability, Problem, StoreError};
use rusqlite::Connection;
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    (folder, path)
}

/// The file and its log as they are now: what a kill would leave.
fn killed(path: &Path, name: &str) -> PathBuf {
    let copy = path.with_file_name(name);
    for rest in ["", "-wal", ".inflight"] {
        let from = format!("{}{rest}", path.display());
        if Path::new(&from).exists() {
            fs::copy(from, format!("{}{rest}", copy.display())).expect("a copy");
        }
    }
    copy
}

fn names(folder: &TempDir) -> BTreeSet<String> {
    fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

fn everything(bus: &Bus) -> (Vec<u64>, Vec<Damage>) {
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
    (
        scan.events.iter().map(|event| event.sequence).collect(),
        scan.damage,
    )
}

#[test]
fn after_an_end_in_order_one_file_is_left_and_the_numbers_go_on() {
    let (folder, path) = folder();
    for round in 0..3 {
        let bus = Bus::open(&path);
        assert_eq!(bus.journal.opened().closed, round > 0);
        let lane = bus.subscribe("bill", "t");
        let first = bus.publish(Normal, "t").0;
        bus.publish(Low, "t");
        assert_eq!(first, round * 2 + 1);
        bus.flush();
        // All but the LOW one of this round is settled.
        assert_eq!(lane.drain(Normal), [first]);
        let waiting: Vec<u64> = (0..=round).map(|round| round * 2 + 2).collect();
        let seen: Vec<u64> = std::iter::from_fn(|| lane.next(Low)).collect();
        assert_eq!(seen, waiting);
        bus.journal.close().expect("in order");
        assert_eq!(names(&folder), ["x.bus".to_owned()].into());
    }
}

#[test]
fn after_a_kill_no_number_is_given_twice_and_what_was_committed_is_there() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    bus.subscribe("bill", "t");
    for _ in 0..5 {
        bus.publish(Normal, "t");
    }
    bus.flush();
    let copy = killed(&path, "killed.bus");
    let again = Bus::open(&copy);
    assert!(!again.journal.opened().closed);
    assert_eq!(everything(&again), ((1..=5).collect(), vec![]));
    let lane = again.subscribe("bill", "t");
    let (next, _) = again.publish(Normal, "t");
    assert!(
        next > 5 + 1000,
        "a number of the reserved block may have been given: {next}"
    );
    again.flush();
    assert_eq!(lane.drain(Normal), [1, 2, 3, 4, 5, next]);
}

#[test]
fn a_second_owner_is_told_so_and_a_reader_is_welcome() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    let Err(JournalError::InUse { path: told, pid }) = Bus::open_with(&path, Faults::default())
    else {
        panic!("two owners")
    };
    assert_eq!((told, pid), (path.clone(), Some(std::process::id())));
    bus.publish(Normal, "t");
    bus.flush();
    let raw = Connection::open(&path).expect("opens beside it");
    let count: i64 = raw
        .query_row("SELECT count(*) FROM event", [], |row| row.get(0))
        .expect("readable");
    assert_eq!(count, 1);
    bus.journal.close().expect("in order");
    Bus::open(&path).journal.close().expect("free again");
}

/// Whoever is told of a commit may be the last to have the journal: the writer cannot wait for
/// itself, and the file is nobody else's before it has ended.
#[test]
fn a_journal_that_its_own_writer_closes_ends_in_order() {
    let (folder, path) = folder();
    let desk = durable::Desk::new();
    let open = || {
        Journal::open(
            &path,
            durable::file_options(&desk, Faults::default()),
            desk.clone(),
        )
    };
    let journal = Arc::new(Mutex::new(Some(open().expect("a journal"))));
    let (closed, told) = std::sync::mpsc::channel();
    let last = journal.clone();
    let done = Box::new(move |_| {
        let journal = lock(&last).take().expect("it is there");
        closed.send(journal.close()).expect("the test waits");
    });
    let handed = lock(&journal).as_ref().map(|journal| {
        let ticket = journal.append(
            vec![event(journal.sequence() + 1, Normal, "t")],
            Durability::Os,
        );
        ticket.expect("taken");
        journal.unit(Unit::default(), None, Durability::Os, done)
    });
    handed.expect("it is there").expect("taken");
    assert_eq!(told.recv(), Ok(Ok(())));
    let again = loop {
        match open() {
            Err(JournalError::InUse { .. }) => std::thread::yield_now(),
            opened => break opened.expect("in order"),
        }
    };
    assert!(again.opened().closed);
    assert_eq!(everything(&Bus::over(again, desk.clone())).0, [1]);
    drop(folder);
}

#[test]
fn what_cannot_be_a_journal_is_refused_and_nothing_is_made_beside_it() {
    let (folder, path) = folder();
    fs::write(&path, "a text\n".repeat(200)).expect("written");
    let refused = |path: &Path| match Bus::open_with(path, Faults::default()) {
        Err(JournalError::Store(StoreError { problem, .. })) => problem,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("{} is no journal", path.display()),
    };
    assert_eq!(refused(&path), Problem::NotADatabase);
    assert_eq!(refused(folder.path()), Problem::NotAFile);
    assert_eq!(refused(&folder.path().join("no/x.bus")), Problem::NoFolder);
    assert_eq!(names(&folder), ["x.bus".to_owned()].into());
}

/// Lets a test hold the writer at a step, and see what it does there.
#[derive(Default)]
struct Stop {
    held: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn hold(&self, held: bool) {
        *lock(&self.held) = held;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut held = lock(&self.held);
        while *held {
            held = self.changed.wait(held).expect("no test panics with it");
        }
    }
}

#[test]
fn what_comes_while_a_batch_is_flushed_is_the_next_batch() {
    let (_folder, path) = folder();
    let stop = Arc::new(Stop::default());
    let reached = Arc::new((Mutex::new(0), Condvar::new()));
    let (gate, count) = (stop.clone(), reached.clone());
    let faults = Faults::new(Arc::new(move |step| {
        if step == "batch.commit" {
            *lock(&count.0) += 1;
            count.1.notify_all();
            gate.pass();
        }
        Ok(())
    }));
    let bus = Bus::open_with(&path, faults).expect("a journal");
    stop.hold(true);
    bus.publish(Normal, "t");
    let mut at = lock(&reached.0);
    while *at == 0 {
        at = reached.1.wait(at).expect("no test panics with it");
    }
    drop(at);
    let tickets: Vec<_> = (0..20).map(|_| bus.publish(Normal, "t").1).collect();
    assert!(tickets.iter().all(|ticket| ticket.poll().is_none()));
    assert_eq!(bus.journal.room(), 100 - 21);
    stop.hold(false);
    assert!(
        tickets
            .iter()
            .all(|ticket| ticket.wait() == Ok(Durability::Os))
    );
    let ranges: Vec<_> = lock(&bus.desk.commits)
        .iter()
        .filter_map(|commit| commit.sequences)
        .collect();
    assert_eq!(ranges, [(1, 1), (2, 21)]);
}

/// A hook that fails one step, once it is armed.
fn failing(step: &'static str, problem: Problem) -> (Faults, Arc<AtomicBool>) {
    let armed = Arc::new(AtomicBool::new(false));
    let fire = armed.clone();
    let faults = Faults::new(Arc::new(move |at| {
        if at == step && fire.swap(false, Ordering::SeqCst) {
            return Err(problem.clone());
        }
        Ok(())
    }));
    (faults, armed)
}

#[test]
fn what_fails_before_the_commit_has_not_happened_and_the_journal_goes_on() {
    for step in [
        "batch.begin",
        "batch.appended",
        "batch.settled",
        "batch.commit",
    ] {
        let (_folder, path) = folder();
        let (faults, armed) = failing(step, Problem::Full);
        let bus = Bus::open_with(&path, faults).expect("a journal");
        let lane = bus.subscribe("bill", "t");
        bus.publish(Normal, "t");
        bus.publish(Normal, "t");
        bus.flush();
        assert_eq!((lane.next(Normal), lane.next(Normal)), (Some(1), Some(2)));
        lane.subscription.settle(Normal, 2);
        armed.store(true, Ordering::SeqCst);
        let unit = Unit {
            events: vec![event(0, Normal, "t")],
            ..Unit::default()
        };
        let (ticket, fate) = bus.unit(unit, lane.delivery(Normal, 1));
        let full = JournalError::Store(Problem::Full.at(&path));
        assert_eq!(ticket.wait(), Err(full.clone()), "{step}");
        assert_eq!(*lock(&fate), Some(Err(full)));
        let (later, ticket) = bus.publish(Normal, "t");
        assert_eq!(ticket.wait(), Ok(Durability::Os));
        bus.flush();
        assert_eq!(everything(&bus).0, [1, 2, later]);
        let copy = killed(&path, "killed.bus");
        let again = Bus::open(&copy);
        let restarted = again.subscribe("bill", "t");
        let mut seen = restarted.drain(Normal);
        seen.extend(restarted.stragglers().keys());
        seen.sort_unstable();
        // 2 was settled with the next commit that went through, 1 was not.
        assert_eq!(seen, [1, later], "{step}");
    }
}

#[test]
fn a_journal_whose_settlements_cannot_be_written_ends_and_says_so() {
    for (times, ended) in [(1, true), (u64::MAX, false)] {
        let (_folder, path) = folder();
        let left = Arc::new(AtomicU64::new(0));
        let fire = left.clone();
        let faults = Faults::new(Arc::new(move |at| {
            let due = |left: u64| left.checked_sub(1);
            let count = || fire.fetch_update(Ordering::SeqCst, Ordering::SeqCst, due);
            match at == "batch.settled" && count().is_ok() {
                true => Err(Problem::Full),
                false => Ok(()),
            }
        }));
        let bus = Bus::open_with(&path, faults).expect("a journal");
        let lane = bus.subscribe("bill", "t");
        bus.publish(Normal, "t");
        bus.flush();
        assert_eq!(lane.next(Normal), Some(1));
        left.store(times, Ordering::SeqCst);
        lane.subscription.settle(Normal, 1);
        let full = JournalError::Store(Problem::Full.at(&path));
        // What was in the way once is tried again; what stays is not waited for.
        let closed = bus.journal.close();
        assert_eq!(closed, if ended { Ok(()) } else { Err(full) });
        drop((lane, bus));
        let again = Bus::open(&path);
        let left: &[u64] = if ended { &[] } else { &[1] };
        assert_eq!(again.subscribe("bill", "t").drain(Normal), left);
    }
}

#[test]
fn after_a_failed_flush_the_fate_is_unknown_and_nothing_is_written_until_it_is_opened_again() {
    let (_folder, path) = folder();
    let (faults, armed) = failing("batch.committed", Problem::Io("lost".into()));
    let bus = Bus::open_with(&path, faults).expect("a journal");
    let lane = bus.subscribe("bill", "t");
    let keyed = Event {
        digest: Some([5; 16]),
        ..event(0, Normal, "t")
    };
    bus.publish(Normal, "t");
    bus.flush();
    assert_eq!(lane.next(Normal), Some(1));
    armed.store(true, Ordering::SeqCst);
    let (_, ticket) = bus.publish_event(keyed, Durability::Fsync);
    let unknown = ticket.wait().expect_err("failed");
    assert!(
        matches!(unknown, JournalError::DurabilityUnknown(_)),
        "{unknown:?}"
    );
    let refused = bus.try_publish(event(0, Normal, "t"), Durability::Os);
    assert_eq!(refused.map(drop), Err(JournalError::ReadOnly));
    lane.subscription.settle(Normal, 1);
    assert_eq!(
        bus.journal.flush(Durability::Os),
        Err(JournalError::ReadOnly)
    );
    assert_eq!(bus.journal.retain(NOW, 1), Err(JournalError::ReadOnly));
    assert_eq!(
        lane.next(Normal),
        None,
        "an event of unknown fate is not delivered"
    );
    assert_eq!(bus.journal.close(), Err(JournalError::ReadOnly));
    // Here the event had been written; by its key the publisher learns so.
    let again = Bus::open(&path);
    let mut reader = again.journal.reader().expect("a reader");
    assert_eq!(reader.keys(NOW, 9), Ok(vec![([5; 16], NOW)]));
    assert_eq!(again.subscribe("bill", "t").drain(Normal), [1, 2]);
}

#[test]
fn a_checkpoint_that_fails_loses_nothing_and_is_said() {
    let (_folder, path) = folder();
    let (faults, armed) = failing("checkpoint.begin", Problem::Full);
    let bus = Bus::open_with(&path, faults).expect("a journal");
    armed.store(true, Ordering::SeqCst);
    let big = Event {
        event_id: Some("x".repeat(5 << 20)),
        ..event(0, Normal, "t")
    };
    bus.publish_event(big.clone(), Durability::Os)
        .1
        .wait()
        .expect("committed");
    bus.publish(Normal, "t").1.wait().expect("committed");
    // The next batch finds the log too long again.
    let first = bus.journal.checkpoint_error();
    bus.flush();
    bus.flush();
    assert!(first.is_some() || !armed.load(Ordering::SeqCst));
    assert_eq!(bus.journal.checkpoint_error(), None);
    assert_eq!(everything(&bus).0, [1, 2]);
}

#[test]
fn deliveries_that_ran_when_the_process_died_are_suspects_with_their_attempts() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    let lane = bus.subscribe("bill", "t");
    for level in [Normal, Normal, Normal, High] {
        bus.publish(level, "t");
    }
    bus.flush();
    for _ in 0..3 {
        lane.next(Normal);
    }
    lane.subscription.settle(Normal, 1);
    lane.subscription
        .defer(Normal, 3, 4, Some(NOW + 9.0), StragglerState::Retry);
    bus.flush();
    let page = bus.journal.in_flight().expect("of a file");
    let slots: Vec<_> = (0..5).map(|_| page.slot().expect("free")).collect();
    let subscription = lane.subscription.id();
    let running = |level, sequence, attempt| Suspect {
        subscription,
        level,
        sequence,
        attempt,
    };
    slots[0].note(&running(Normal, 1, 1)); // settled a moment ago
    slots[1].note(&running(Normal, 2, 2)); // handed out, above the cursor
    slots[2].note(&running(Normal, 3, 5)); // a straggler
    slots[3].note(&running(High, 4, 1)); // the cursor has not come to it
    slots[4].note(&running(Low, 99, 1)); // no such event
    let copy = killed(&path, "killed.bus");
    drop(slots);
    // The second crash, during the recovery or right after it, finds what the first one left.
    for name in ["again.bus", "and-again.bus"] {
        let again = Bus::open(&copy);
        let restarted = again.subscribe("bill", "t");
        assert_eq!(restarted.stragglers(), [(2, 2), (3, 5), (4, 1)].into());
        let found = restarted
            .subscription
            .stragglers(None, 9)
            .expect("readable");
        assert!(
            found
                .iter()
                .all(|(row, event)| row.state == StragglerState::Suspect && event.is_some())
        );
        assert_eq!((restarted.next(Normal), restarted.next(High)), (None, None));
        killed(&copy, name);
    }
    let last = Bus::open(&path.with_file_name("again.bus"));
    let lane = last.subscribe("bill", "t");
    for (level, sequence) in [(High, 4), (Normal, 2), (Normal, 3)] {
        lane.subscription.settle(level, sequence);
    }
    last.flush();
    assert!(lane.stragglers().is_empty());
}

#[test]
fn damaged_and_lost_events_are_noticed_noted_and_passed_over() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    for n in 0..12 {
        bus.publish(if n % 3 == 2 { High } else { Normal }, "t");
    }
    bus.flush();
    bus.journal.close().expect("in order");
    let raw = Connection::open(&path).expect("opens");
    raw.execute_batch(
        "UPDATE event SET data = '{\"n\": 0}' WHERE sequence = 4;
         UPDATE event SET type = 'other' WHERE sequence = 9;
         DELETE FROM event WHERE sequence IN (7, 8)",
    )
    .expect("damage");
    drop(raw);
    let bus = Bus::open(&path);
    let damaged = |sequence| Damage::Damaged { sequence };
    let lost = Damage::Lost {
        level: Normal,
        after: 5,
        through: 8,
    };
    assert_eq!(
        everything(&bus),
        (
            vec![1, 2, 3, 5, 6, 10, 11, 12],
            vec![damaged(4), damaged(9), lost]
        )
    );
    for name in ["bill", "ship"] {
        let lane = bus.subscribe_after(name, "t", 0);
        let normal = lane.subscription.refill(Normal, 99).expect("readable");
        let sequences: Vec<u64> = normal.events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, [1, 2, 5, 10, 11]);
        assert_eq!(normal.damage, [damaged(4), lost]);
        let high = lane.subscription.refill(High, 99).expect("readable");
        assert_eq!(high.events.len(), 3);
        assert_eq!(high.damage, [damaged(9)]);
        bus.flush();
    }
    let mut reader = bus.journal.reader().expect("a reader");
    let counts = reader.counts().expect("readable");
    assert_eq!((counts.events, counts.damaged, counts.lost), (8, 2, 1));
    let raw = Connection::open(&path).expect("opens beside it");
    let aside: String = raw
        .query_row(
            "SELECT group_concat(sequence || type) FROM event_damaged",
            [],
            |row| row.get(0),
        )
        .expect("the damaged rows");
    assert_eq!(aside, "4t,9other");
}

#[test]
fn a_cursor_that_is_damaged_begins_with_the_oldest_event_that_is_kept() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    let lane = bus.subscribe("bill", "t");
    for _ in 0..4 {
        bus.publish(Normal, "t");
    }
    bus.flush();
    assert_eq!(lane.drain(Normal), [1, 2, 3, 4]);
    bus.journal.close().expect("in order");
    let raw = Connection::open(&path).expect("opens");
    raw.execute("UPDATE cursor SET position = 9 WHERE priority = 2", [])
        .expect("damage");
    drop(raw);
    let bus = Bus::open(&path);
    assert_eq!(bus.subscribe("bill", "t").drain(Normal), [1, 2, 3, 4]);
    let raw = Connection::open(&path).expect("opens beside it");
    let noted: String = raw
        .query_row(
            "SELECT what || priority || sequence FROM damage",
            [],
            |row| row.get(0),
        )
        .expect("one note");
    assert_eq!(noted, "cursor21");
}

#[test]
fn the_views_say_what_people_ask() {
    let (_folder, path) = folder();
    let bus = Bus::open(&path);
    let bill = bus.subscribe("bill", "order.[!x]*");
    bus.subscribe("all", "*");
    let ship = bus.subscribe("ship", "order.paid");
    for event_type in [
        "order.paid",
        "order.xpaid",
        "order.lost",
        "other",
        "order.paid",
    ] {
        bus.publish(Normal, event_type);
    }
    bus.publish(Critical, "order.paid");
    bus.flush();
    bill.next(Normal);
    bill.next(Normal);
    bill.subscription.settle(Normal, 3);
    ship.next(Normal);
    ship.subscription
        .defer(Normal, 1, 1, None, StragglerState::Retry);
    bus.flush();
    let raw = Connection::open(&path).expect("opens beside it");
    let backlog: Vec<(String, i64, i64)> = raw
        .prepare("SELECT subscription, waiting, stragglers FROM backlog")
        .and_then(|mut backlog| {
            let rows = backlog.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect()
        })
        .expect("a view");
    let expected = [("all", 6, 0), ("bill", 3, 0), ("ship", 2, 1)];
    assert_eq!(
        backlog,
        expected.map(|(name, waiting, left)| (name.to_owned(), waiting, left))
    );
    let last: (i64, String, String) = raw
        .query_row(
            "SELECT sequence, priority, accepted FROM events LIMIT 1 OFFSET 5",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .expect("a view");
    assert_eq!(last, (6, "CRITICAL".into(), "2023-11-14 22:13:20".into()));
}

#[test]
fn dead_letters_and_their_settlements_are_one_also_after_a_kill() {
    let (_folder, path) = folder();
    let armed = Arc::new(AtomicBool::new(false));
    let (fire, from) = (armed.clone(), path.clone());
    let faults = Faults::new(Arc::new(move |step| {
        if fire.load(Ordering::SeqCst) {
            killed(&from, &format!("at-{step}.bus"));
        }
        Ok(())
    }));
    let bus = Bus::open_with(&path, faults).expect("a journal");
    let lane = bus.subscribe("bill", "t");
    bus.publish(Normal, "t");
    bus.flush();
    assert_eq!(lane.next(Normal), Some(1));
    armed.store(true, Ordering::SeqCst);
    let letter = DeadLetter {
        id: "a".into(),
        ..DeadLetter::default()
    };
    let unit = Unit {
        dead_letter: Some(letter.clone()),
        ..Unit::default()
    };
    bus.unit(unit, lane.delivery(Normal, 1))
        .0
        .wait()
        .expect("committed");
    armed.store(false, Ordering::SeqCst);
    let letters = bus
        .journal
        .dead_letters(Limits::default(), Durability::Os)
        .expect("readable");
    assert_eq!(
        letters.get("a").expect("readable").map(|kept| kept.letter),
        Some(letter)
    );
    for step in [
        "batch.begin",
        "batch.appended",
        "batch.settled",
        "batch.commit",
        "batch.committed",
    ] {
        let again = Bus::open(&path.with_file_name(format!("at-{step}.bus")));
        let letters = again
            .journal
            .dead_letters(Limits::default(), Durability::Os)
            .expect("readable");
        let dead = letters.count(&Filter::default()).expect("readable");
        let delivered = again.subscribe("bill", "t").drain(Normal).len() as u64;
        assert_eq!(dead + delivered, 1, "{step}");
        assert_eq!(dead, u64::from(step == "batch.committed"), "{step}");
    }
}
