//! A loss of power at every moment: what was flushed is there, what was not is there, gone, torn or
//! out of order. What was reported as `fsync` is stored in each of these states.
#![cfg(not(loom))]

mod durable;
mod faulty;
mod torture;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use durable::{Bus, event, lock};
use faulty::{Change, watch};
use ironbus::engine::journal::{Event, verify};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::store::Durability;

/// A file on a medium that has not flushed everything.
#[derive(Clone, Default)]
struct Medium {
    flushed: Vec<u8>,
    pending: Vec<Change>,
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(_, at, bytes) => {
            if content.len() < at + bytes.len() {
                content.resize(at + bytes.len(), 0);
            }
            content[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Change::Truncate(_, length) => content.resize(*length, 0),
        Change::Flush(_) | Change::Mark(_) => {}
    }
}

impl Medium {
    fn change(&mut self, change: &Change) {
        match change {
            Change::Flush(_) => {
                for pending in std::mem::take(&mut self.pending) {
                    apply(&mut self.flushed, &pending);
                }
            }
            change => self.pending.push(change.clone()),
        }
    }

    /// What a loss of power leaves: of each change that was not flushed all, nothing, or some
    /// sectors; later ones without earlier ones too.
    fn after_loss(&self, dice: &mut fastrand::Rng) -> Vec<u8> {
        let mut content = self.flushed.clone();
        let fashion = dice.u64(..4);
        for change in &self.pending {
            let kept = match fashion {
                0 => 0,
                1 => 1,
                _ => dice.u64(..3),
            };
            match (kept, change) {
                (0, _) => {}
                (2, Change::Write(name, at, bytes)) => {
                    let cut = dice.usize(..=bytes.len() / 512) * 512;
                    let torn = bytes[..cut.min(bytes.len())].to_vec();
                    apply(&mut content, &Change::Write(name.clone(), *at, torn));
                }
                (_, change) => apply(&mut content, change),
            }
        }
        content
    }
}

/// Publishes with this durability, loses power at every change, and opens what is left. How many
/// states there were, and in how many something was missing that had been reported.
fn lose_power(durability: Durability, seed: u64) -> (u64, u64) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let plan = watch(folder.path());
    let bus = Bus::open(&path);
    bus.journal.flush(Durability::Fsync).expect("flushed");
    let mut files: BTreeMap<String, Medium> = BTreeMap::new();
    for name in ["x.bus", "x.bus-wal"] {
        let medium = Medium {
            flushed: fs::read(folder.path().join(name)).expect("readable"),
            pending: Vec::new(),
        };
        files.insert(name.into(), medium);
    }
    lock(&plan).record = Some(Vec::new());
    for key in 0..30 {
        let keyed = Event {
            digest: Some([key; 16]),
            // Enough for several checkpoints on the way.
            headers: Some("h".repeat(usize::from(key % 5) * 100_000)),
            ..event(0, Normal, "t")
        };
        bus.publish_event(keyed, durability)
            .1
            .wait()
            .expect("stored");
        if let Some(record) = &mut lock(&plan).record {
            record.push(Change::Mark(key));
        }
    }
    let record = lock(&plan).record.take().expect("recorded");
    let flushes = record
        .iter()
        .filter(|change| matches!(change, Change::Flush(_)))
        .count();
    assert!(flushes >= 2, "{flushes} flushes");

    let (mut states, mut missing) = (0, 0);
    let mut reported = BTreeSet::new();
    let mut dice = fastrand::Rng::with_seed(seed);
    for change in &record {
        match change {
            Change::Mark(key) => {
                reported.insert(*key);
            }
            Change::Write(name, ..) | Change::Truncate(name, _) | Change::Flush(name) => {
                files.entry(name.clone()).or_default().change(change);
            }
        }
        // Every flush and mark, and of the many pages of a write one in twenty.
        if matches!(change, Change::Write(..)) && dice.u64(..20) > 0 {
            continue;
        }
        let place = tempfile::tempdir().expect("a folder for the test");
        for (name, medium) in &files {
            let left = medium.after_loss(&mut dice);
            fs::write(place.path().join(name), left).expect("written");
        }
        states += 1;
        if !holds(&place.path().join("x.bus"), &reported) {
            missing += 1;
        }
    }
    (states, missing)
}

/// Whether what was reported is there, each once, in a journal that is whole.
fn holds(path: &Path, reported: &BTreeSet<u8>) -> bool {
    let Ok(bus) = Bus::open_with(path, Default::default()) else {
        return false;
    };
    let mut reader = bus.journal.reader().expect("a reader");
    let Ok(keys) = reader.keys(0.0, usize::MAX) else {
        return false;
    };
    let there: BTreeSet<u8> = keys.iter().map(|(digest, _)| digest[0]).collect();
    there.len() == keys.len()
        && there.is_superset(reported)
        && verify(path).is_ok_and(|found| found.is_clean())
}

#[test]
fn what_was_flushed_survives_a_loss_of_power_in_every_state_of_the_rest() {
    let mut explored = 0;
    for seed in 0..torture::times(1, 24) {
        let (states, missing) = lose_power(Durability::Fsync, seed);
        assert!(states > 100, "{states} states");
        assert_eq!(missing, 0, "of {states} states with seed {seed}");
        explored += states;
    }
    torture::done("states after a loss of power", explored);
}

/// The control: what was only with the operating system can be gone, and this test sees it.
#[test]
fn what_was_not_flushed_is_missed() {
    let (states, missing) = lose_power(Durability::Os, 0);
    println!("{missing} of {states} states miss something");
    assert!(missing > 0);
    torture::control();
}
