//! The k-th change to the journal's files fails, for every k: what was reported as stored is
//! stored, and the same key again gives one event.
#![cfg(not(loom))]

mod durable;
mod faulty;
mod torture;

use std::collections::BTreeSet;
use std::path::Path;

use durable::{Bus, NOW, event, lock};
use faulty::{Fault, watch};
use ironbus::engine::journal::{Event, Faults, JournalError, verify};
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
