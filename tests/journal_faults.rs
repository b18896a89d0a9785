//! The k-th change to the journal's files fails, for every k: what was reported as stored is
//! stored, and the same key again gives one event.
#![cfg(not(loom))]

mod durable;
mod faulty;
mod torture;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use durable::{Bus, NOW, event, lock};
use faulty::{Fault, watch};
use ironbus::engine::journal::{
    Event, Faults, JournalError, Parameters, Statement, Unit, Value, verify,
};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::store::{Durability, Problem};

fn keyed(key: u8) -> Event {
    Event {
        digest: Some([key; 16]),
        // Some do not fit in one page.
        headers: Some("h".repeat(usize::from(key % 4) * 3000)),
        ..event(0, Normal, "t")
    }
}

/// The keys that the journal has, each as often as it has it.
fn keys(bus: &Bus) -> Vec<u8> {
    let mut reader = bus.journal.reader().expect("a reader");
    let found = reader.keys(0.0, usize::MAX).expect("readable");
    found.into_iter().map(|(digest, _)| digest[0]).collect()
}

/// What came of a run with a fault in it.
struct Outcome {
    changes: u64,
    failed: u64,
    unknown: usize,
    refused: usize,
}

const KEYS: u8 = 12;

/// Publishes one after the other with a fault at the k-th change; opens again; publishes again
/// whatever is not known to be there.
fn run(folder: &Path, fault: Option<(u64, Fault, bool)>) -> Outcome {
    run_reporting(folder, fault, false)
}

/// With `early`, every event is reported as stored before its flush: the control.
fn run_reporting(folder: &Path, fault: Option<(u64, Fault, bool)>, early: bool) -> Outcome {
    let path = folder.join("x.bus");
    let plan = watch(folder);
    let bus = Bus::open(&path);
    {
        let mut plan = lock(&plan);
        plan.changes = 0;
        plan.fail = fault;
    }
    let mut stored = BTreeSet::new();
    let (mut unknown, mut refused) = (0, 0);
    for key in 0..KEYS {
        let published = bus
            .try_publish(keyed(key), Durability::Fsync)
            .and_then(|(_, ticket)| ticket.wait());
        if early {
            stored.insert(key);
        }
        match published {
            Ok(durability) => {
                assert_eq!(durability, Durability::Fsync);
                stored.insert(key);
            }
            Err(JournalError::DurabilityUnknown(_)) => unknown += 1,
            Err(JournalError::ReadOnly | JournalError::Store(_)) => refused += 1,
            Err(error) => panic!("{fault:?}: {error}"),
        }
    }
    // The fault may come as late as the end: what was stored is stored all the same.
    let closed = bus.journal.close();
    let outcome = {
        let mut plan = lock(&plan);
        plan.fail = None;
        Outcome {
            changes: plan.changes,
            failed: plan.failed,
            unknown,
            refused,
        }
    };
    assert!(closed.is_ok() || outcome.failed > 0, "{closed:?}");

    let bus = Bus::open(&path);
    let there = keys(&bus);
    for key in &stored {
        assert!(
            there.contains(key),
            "{fault:?}: {key} was reported as stored"
        );
    }
    for key in (0..KEYS).filter(|key| !there.contains(key)) {
        bus.publish_event(keyed(key), Durability::Fsync)
            .1
            .wait()
            .expect("the fault is gone");
    }
    let mut all = keys(&bus);
    all.sort_unstable();
    assert_eq!(all, (0..KEYS).collect::<Vec<_>>(), "{fault:?}: each once");
    bus.journal.close().expect("in order");
    let found = verify(&path).expect("readable");
    assert!(found.is_clean(), "{fault:?}: {found:?}");
    outcome
}

fn every_change(fault: Fault, on: bool) -> (usize, usize, u64) {
    let folder = |n: u64| {
        let parent = tempfile::Builder::new().prefix(&format!("k{n}-")).tempdir();
        parent.expect("a folder for the test")
    };
    let whole = run(folder(0).path(), None);
    assert_eq!((whole.failed, whole.unknown, whole.refused), (0, 0, 0));
    let (mut unknown, mut refused, mut failed) = (0, 0, 0);
    for at in 1..=whole.changes {
        let outcome = run(folder(at).path(), Some((at, fault, on)));
        assert!(outcome.failed > 0, "change {at} was come to");
        failed += outcome.failed;
        unknown += outcome.unknown;
        refused += outcome.refused;
    }
    torture::done("faults injected", whole.changes);
    (unknown, refused, failed)
}

#[test]
fn a_device_that_does_not_answer_once() {
    let (unknown, refused, _) = every_change(Fault::Eio, false);
    assert!(
        unknown > 0 && refused > 0,
        "{unknown} unknown, {refused} refused"
    );
}

#[test]
fn a_device_that_has_gone() {
    let (unknown, refused, failed) = every_change(Fault::Eio, true);
    assert!(unknown > 0 && refused > 0 && failed > 0);
}

#[test]
fn a_full_disk_that_has_room_again() {
    let (_, refused, failed) = every_change(Fault::Enospc, false);
    assert!(refused > 0 && failed > 0);
}

#[test]
fn a_full_disk_that_stays_full() {
    let (unknown, refused, _) = every_change(Fault::Enospc, true);
    assert!(unknown + refused > 0);
}

#[test]
fn a_write_of_which_half_is_done() {
    let (_, refused, failed) = every_change(Fault::Short, false);
    assert!(refused > 0 && failed > 0);
}

#[test]
fn a_journal_that_reports_before_the_flush_does_not_pass() {
    let caught = (1..=20).any(|at| {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let fault = Some((at, Fault::Eio, true));
        let run = || run_reporting(folder.path(), fault, true);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    });
    assert!(caught);
    torture::control();
}

/// A commit that finds the disk full has not happened, for sure, and the journal goes on as soon
/// as there is room: backpressure, and not the end.
#[test]
fn a_full_disk_is_told_as_such_and_nothing_has_to_be_opened_again() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let plan = watch(folder.path());
    let bus = Bus::open(&path);
    bus.publish_event(keyed(1), Durability::Fsync)
        .1
        .wait()
        .expect("stored");
    {
        let mut plan = lock(&plan);
        plan.fail = Some((plan.changes + 1, Fault::Enospc, false));
    }
    let refused = bus.publish_event(keyed(2), Durability::Fsync).1.wait();
    assert_eq!(refused, Err(JournalError::Store(Problem::Full.at(&path))));
    assert_eq!(lock(&plan).failed, 1);
    bus.publish_event(keyed(3), Durability::Fsync)
        .1
        .wait()
        .expect("there is room");
    assert_eq!(keys(&bus), [1, 3]);
}

#[test]
fn opening_on_a_full_disk_leaves_nothing_behind() {
    for at in 1..200 {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let plan = watch(folder.path());
        lock(&plan).fail = Some((at, Fault::Enospc, true));
        let path = folder.path().join("x.bus");
        let opened = Bus::open_with(&path, Faults::default());
        if lock(&plan).failed == 0 {
            assert!(at > 5, "making a file is more than {at} changes");
            assert!(opened.is_ok());
            return;
        }
        let Err(JournalError::Store(error)) = opened else {
            panic!("change {at}: opened on a full disk")
        };
        assert_ne!(error.problem, Problem::Corrupt);
        // Either there is nothing, or a journal that is whole.
        lock(&plan).fail = None;
        if path.exists() {
            assert!(verify(&path).expect("readable").is_clean(), "change {at}");
        }
        let bus = Bus::open(&path);
        *lock(&bus.desk.now) = NOW;
        bus.publish(Normal, "t").1.wait().expect("there is room");
    }
    panic!("opening came to no end");
}

// Units ---------------------------------------------------------------------------------

fn execute(sql: &str, value: &str) -> Unit {
    Unit {
        statements: vec![Statement {
            sql: sql.into(),
            parameters: Parameters::Numbered(vec![Value::Text(value.into())]),
        }],
        ..Unit::default()
    }
}

/// The texts in a table of the user's, as they came.
fn texts(path: &Path, table: &str) -> Vec<String> {
    let file = rusqlite::Connection::open(path).expect("opened");
    let sql = format!("SELECT text FROM {table} ORDER BY rowid");
    let mut asked = file.prepare(&sql).expect("the table is there");
    let rows = asked.query_map([], |row| row.get(0)).expect("asked");
    rows.collect::<Result<_, _>>().expect("read")
}

/// Holds the writer when it begins its next batch: what comes before [`Hold::go_on`] is one batch after
/// that one.
#[derive(Clone, Default)]
struct Hold(Arc<Mutex<Option<Arc<Barrier>>>>);

impl Hold {
    fn faults(&self) -> Faults {
        let held = self.clone();
        Faults::new(Arc::new(move |step| {
            let barrier = match step {
                "batch.begin" => lock(&held.0).take(),
                _ => None,
            };
            if let Some(barrier) = barrier {
                barrier.wait();
                barrier.wait();
            }
            Ok(())
        }))
    }

    /// Returns when the writer is held.
    fn hold(&self, bus: &Bus) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        *lock(&self.0) = Some(barrier.clone());
        bus.publish(Normal, "other");
        barrier.wait();
        barrier
    }
}

/// By what another program has put in the file, a statement of one unit may take back the commit that
/// all are in, or be refused with the commit only. That is the failure of its own delivery.
#[test]
fn a_unit_that_would_take_back_the_commit_fails_alone() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    Bus::open(&path).journal.close().expect("in order");
    let file = rusqlite::Connection::open(&path).expect("opened");
    file.execute_batch(
        "CREATE TABLE parent (id TEXT PRIMARY KEY);
         CREATE TABLE child (text TEXT REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE one (text TEXT UNIQUE ON CONFLICT ROLLBACK);
         CREATE TRIGGER no AFTER INSERT ON one WHEN new.text = 'no' BEGIN
             SELECT RAISE(ROLLBACK, 'not this one');
         END;
         INSERT INTO one VALUES ('a');",
    )
    .expect("made");
    drop(file);

    let hold = Hold::default();
    let bus = Bus::open_with(&path, hold.faults()).expect("a journal");
    let lane = bus.subscribe("bill", "t");
    let first: Vec<u64> = (0..8).map(|_| bus.publish(Normal, "t").0).collect();
    bus.flush();
    for sequence in &first {
        assert_eq!(lane.next(Normal), Some(*sequence));
    }
    let held = hold.hold(&bus);
    let one = "INSERT INTO one VALUES (?)";
    let sqls = [
        (one, "b", None),
        (one, "a", Some("UNIQUE constraint failed: one.text")),
        (one, "c", None),
        (one, "no", Some("constraint failed")),
        (
            "INSERT INTO child VALUES (?)",
            "nobody",
            Some("FOREIGN KEY"),
        ),
        (one, "c", Some("UNIQUE constraint failed: one.text")),
        (one, "d", None),
    ];
    let mut tickets = Vec::new();
    let mut fates = Vec::new();
    for (at, (sql, value, _)) in sqls.iter().enumerate() {
        let unit = Unit {
            events: vec![event(0, Normal, "new")],
            ..execute(sql, value)
        };
        tickets.push(bus.publish(Normal, "other").1);
        let (ticket, fate) = bus.unit(unit, lane.delivery(Normal, first[at]));
        tickets.push(ticket);
        fates.push(fate);
    }
    // The delivery of the first unit, once more: its effect is there once.
    fates.push(
        bus.unit(execute(one, "again"), lane.delivery(Normal, first[0]))
            .1,
    );
    lane.subscription.settle(Normal, first[7]);
    // Comes as well to be written then, or right after it.
    let late = std::thread::scope(|scope| {
        let late = scope.spawn(|| bus.journal.register("late", &["t".into()], 0));
        held.wait();
        late.join().expect("no panic")
    });
    assert_eq!(late.expect("made").name(), "late");
    for ticket in tickets {
        ticket.wait().expect("the others went through");
    }
    bus.flush();
    for (fate, (_, value, wrong)) in fates.iter().zip(sqls) {
        match (lock(fate).clone().expect("told"), wrong) {
            (Ok(_), None) => {}
            (Err(JournalError::Statement { number: 1, reason }), Some(wrong)) => {
                assert!(reason.contains(wrong), "{value}: {reason}");
            }
            other => panic!("{value}: {other:?}"),
        }
    }
    assert_eq!(lock(&fates[7]).clone(), Some(Err(JournalError::Settled)));
    assert_eq!(texts(&path, "one"), ["a", "b", "c", "d"]);
    assert_eq!(texts(&path, "child"), [""; 0]);
    let commits = lock(&bus.desk.commits).clone();
    let refused: usize = commits.iter().map(|commit| commit.refused.len()).sum();
    assert_eq!(refused, 4, "their numbers are nobody's");
    bus.journal.close().expect("in order");

    // After a restart the four come again, and nobody else.
    let bus = Bus::open(&path);
    let lane = bus.subscribe("bill", "t");
    let left = lane.stragglers().into_keys();
    let left: BTreeSet<u64> = left.chain(lane.drain(Normal)).collect();
    assert_eq!(left, [first[1], first[3], first[4], first[5]].into());
    bus.journal.close().expect("in order");
    assert!(verify(&path).expect("readable").is_clean());
}

/// How the effect of a delivery and its settlement are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    AsOne,
    /// The control.
    Apart,
}

/// Deliveries that have an effect, with a fault at the k-th change; opens again, and delivers again
/// whatever is not settled. How many units were told that nothing of them happened, and how many that
/// nobody knows.
fn effects(folder: &Path, fault: Option<(u64, Fault, bool)>, written: Written) -> Outcome {
    const EFFECTS: usize = 4;
    let path = folder.join("x.bus");
    let plan = watch(folder);
    let bus = Bus::open(&path);
    let table = "CREATE TABLE effect (text TEXT, fill TEXT)";
    let unit = Unit {
        statements: vec![Statement {
            sql: table.into(),
            parameters: Parameters::Numbered(vec![]),
        }],
        ..Unit::default()
    };
    bus.unit(unit, None).0.wait().expect("made");
    let lane = bus.subscribe("bill", "t");
    for _ in 0..EFFECTS {
        bus.publish(Normal, "t").1.wait().expect("stored");
    }
    {
        let mut plan = lock(&plan);
        plan.changes = 0;
        plan.fail = fault;
    }
    // Some do not fit in one page.
    let sql = "INSERT INTO effect VALUES (?1, printf('%.*c', 3000 * (?1 % 3), 'x'))";
    let unit = |sequence: u64| Unit {
        events: vec![event(0, Normal, "new")],
        ..execute(sql, &sequence.to_string())
    };
    let (mut unknown, mut refused) = (0, 0);
    let mut happened = BTreeSet::new();
    while let Some(sequence) = lane.next(Normal) {
        let delivery = match written {
            Written::AsOne => lane.delivery(Normal, sequence),
            Written::Apart => None,
        };
        let taken = bus.try_unit(unit(sequence), delivery);
        let told = taken.and_then(|(ticket, _)| ticket.wait());
        match told {
            Ok(_) => drop(happened.insert(sequence)),
            Err(JournalError::DurabilityUnknown(_)) => unknown += 1,
            Err(JournalError::ReadOnly | JournalError::Store(_)) => refused += 1,
            Err(error) => panic!("{fault:?}: {error}"),
        }
        if written == Written::Apart {
            lane.subscription.settle(Normal, sequence);
        }
    }
    drop(lane);
    let closed = bus.journal.close();
    let outcome = {
        let mut plan = lock(&plan);
        plan.fail = None;
        Outcome {
            changes: plan.changes,
            failed: plan.failed,
            unknown,
            refused,
        }
    };
    assert!(closed.is_ok() || outcome.failed > 0, "{closed:?}");
    drop(bus);

    let bus = Bus::open(&path);
    let there: BTreeSet<u64> = texts(&path, "effect")
        .iter()
        .map(|n| n.parse().expect("a number"))
        .collect();
    assert!(
        there.is_superset(&happened),
        "{fault:?}: what is told is there"
    );
    let lane = bus.subscribe("bill", "t");
    let left: BTreeSet<u64> = lane.stragglers().into_keys().collect();
    let open: Vec<u64> = std::iter::from_fn(|| lane.next(Normal)).collect();
    for sequence in left.into_iter().chain(open) {
        bus.unit(unit(sequence), lane.delivery(Normal, sequence))
            .0
            .wait()
            .expect("the fault is gone");
    }
    bus.flush();
    let mut all: Vec<u64> = texts(&path, "effect")
        .iter()
        .map(|n| n.parse().expect("a number"))
        .collect();
    all.sort_unstable();
    assert_eq!(
        all,
        (1..=EFFECTS as u64).collect::<Vec<_>>(),
        "{fault:?}: one effect each"
    );
    let mut reader = bus.journal.reader().expect("a reader");
    let events = reader.counts().expect("readable").events;
    drop(reader);
    assert_eq!(events, 2 * EFFECTS as u64, "{fault:?}: one event for each");
    bus.journal.close().expect("in order");
    assert!(verify(&path).expect("readable").is_clean());
    outcome
}

#[test]
fn a_delivery_has_its_effect_once_wherever_the_disk_fails() {
    let folder = || tempfile::tempdir().expect("a folder for the test");
    let whole = effects(folder().path(), None, Written::AsOne);
    assert_eq!((whole.failed, whole.unknown, whole.refused), (0, 0, 0));
    for (fault, on) in [
        (Fault::Eio, false),
        (Fault::Eio, true),
        (Fault::Enospc, false),
        (Fault::Short, false),
    ] {
        let (mut unknown, mut refused) = (0, 0);
        for at in 1..=whole.changes {
            let outcome = effects(folder().path(), Some((at, fault, on)), Written::AsOne);
            assert!(outcome.failed > 0, "change {at} was come to");
            unknown += outcome.unknown;
            refused += outcome.refused;
        }
        assert!(unknown + refused > 0, "{fault:?}, {on}");
        torture::done("faults injected into transactions", whole.changes);
    }
}

#[test]
fn an_effect_apart_from_its_settlement_does_not_pass() {
    let caught = (1..=20).any(|at| {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let fault = Some((at, Fault::Eio, true));
        let run = || effects(folder.path(), fault, Written::Apart);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    });
    assert!(caught);
    torture::control();
}
