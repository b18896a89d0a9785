//! Random work with crashes in the middle, against sets that are kept outside the journal: what
//! was acknowledged is there, what is not settled is delivered, what is settled is not.
#![cfg(not(loom))]

mod durable;
mod torture;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use durable::{Bus, Lane, lock};
use ironbus::engine::dead_letters::{DeadLetter, DeadLetters, Filter, Limits};
use ironbus::engine::journal::{EventFilter, Faults, Range, StragglerState, Ticket, Unit, verify};
use ironbus::engine::priority::Priority;
use ironbus::engine::store::Durability;
use proptest::prelude::*;

const STEPS: [&str; 5] = [
    "batch.begin",
    "batch.appended",
    "batch.settled",
    "batch.commit",
    "batch.committed",
];

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    Take(usize, usize),
    Settle(usize, usize),
    Defer(usize, usize),
    Retry(usize, usize),
    Bury(usize, usize),
    Flush,
    Wait,
    Crash(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || (0..2usize, 0..8usize);
    prop_oneof![
        8 => (0..4usize).prop_map(Step::Publish),
        8 => (0..2usize, 0..4usize).prop_map(|(lane, level)| Step::Take(lane, level)),
        6 => pick().prop_map(|(lane, which)| Step::Settle(lane, which)),
        1 => pick().prop_map(|(lane, which)| Step::Defer(lane, which)),
        1 => pick().prop_map(|(lane, which)| Step::Retry(lane, which)),
        1 => pick().prop_map(|(lane, which)| Step::Bury(lane, which)),
        2 => Just(Step::Flush),
        1 => Just(Step::Wait),
        1 => (0..STEPS.len()).prop_map(Step::Crash),
        1 => Just(Step::Reopen),
    ]
}

/// What is known of one subscription.
#[derive(Default)]
struct Known {
    in_hand: Vec<(Priority, u64)>,
    /// Settled, and flushed since.
    settled: BTreeSet<u64>,
    /// Settled; a crash may take it back.
    perhaps: BTreeSet<u64>,
    /// Settled when a crash came: either is right, until it is delivered again.
    unknown: BTreeSet<u64>,
}

/// At which step of the writer the files are copied, and where to.
type Copy = (&'static str, PathBuf);

struct World {
    bus: Bus,
    lanes: Vec<Arc<Lane>>,
    known: [Known; 2],
    published: BTreeMap<u64, Option<Ticket>>,
    copy: Arc<Mutex<Option<Copy>>>,
    path: PathBuf,
    opened: usize,
}

const NAMES: [&str; 2] = ["bill", "ship"];

impl World {
    fn open(path: &Path) -> (Bus, Arc<Mutex<Option<Copy>>>) {
        let copy = Arc::new(Mutex::new(None::<Copy>));
        let (wanted, from) = (copy.clone(), path.to_owned());
        let faults = Faults::new(Arc::new(move |step| {
            let mut wanted = lock(&wanted);
            if let Some((_, to)) = wanted.take_if(|(at, _)| *at == step) {
                for rest in ["", "-wal", ".inflight"] {
                    let name = |path: &Path| format!("{}{rest}", path.display());
                    fs::copy(name(&from), name(&to)).expect("a copy");
                }
            }
            Ok(())
        }));
        (Bus::open_with(path, faults).expect("a journal"), copy)
    }

    fn new(path: &Path) -> Self {
        let (bus, copy) = Self::open(path);
        let lanes = NAMES.map(|name| bus.subscribe_after(name, "t", 0)).into();
        Self {
            bus,
            lanes,
            known: Default::default(),
            published: BTreeMap::new(),
            copy,
            path: path.to_owned(),
            opened: 0,
        }
    }

    fn pick(&mut self, lane: usize, which: usize) -> Option<(Priority, u64)> {
        let in_hand = &mut self.known[lane].in_hand;
        (!in_hand.is_empty()).then(|| in_hand.swap_remove(which % in_hand.len()))
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Publish(level) => {
                let (sequence, ticket) = self.bus.publish(Priority::ALL[level], "t");
                let before = self.published.insert(sequence, Some(ticket));
                assert!(before.is_none(), "{sequence} was given twice");
            }
            Step::Take(lane, level) => {
                let level = Priority::ALL[level];
                if let Some(next) = self.lanes[lane].next(level) {
                    let known = &mut self.known[lane];
                    assert!(!known.settled.contains(&next), "{next} was settled");
                    assert!(!known.in_hand.contains(&(level, next)), "{next} came twice");
                    known.unknown.remove(&next);
                    known.in_hand.push((level, next));
                }
            }
            Step::Settle(lane, which) => {
                if let Some((level, sequence)) = self.pick(lane, which) {
                    self.lanes[lane].subscription.settle(level, sequence);
                    self.known[lane].perhaps.insert(sequence);
                }
            }
            Step::Defer(lane, which) => {
                if let Some((level, sequence)) = self.pick(lane, which) {
                    let state = StragglerState::Retry;
                    self.lanes[lane]
                        .subscription
                        .defer(level, sequence, 1, None, state);
                    self.known[lane].in_hand.push((level, sequence));
                }
            }
            Step::Retry(lane, which) => {
                if let Some((level, sequence)) = self.pick(lane, which) {
                    self.lanes[lane]
                        .subscription
                        .retry(level, sequence, 2, None);
                    self.known[lane].in_hand.push((level, sequence));
                }
            }
            Step::Bury(lane, which) => {
                if let Some((level, sequence)) = self.pick(lane, which) {
                    let letter = DeadLetter {
                        id: format!("{lane}:{sequence}"),
                        ..DeadLetter::default()
                    };
                    let unit = Unit {
                        dead_letter: Some(letter),
                        ..Unit::default()
                    };
                    let delivery = self.lanes[lane].delivery(level, sequence);
                    self.bus.unit(unit, delivery).0.wait().expect("committed");
                    self.known[lane].settled.insert(sequence);
                }
            }
            Step::Flush => self.flush(),
            Step::Wait => *lock(&self.bus.desk.now) += 11.0,
            Step::Crash(step) => self.crash(STEPS[step]),
            Step::Reopen => {
                self.flush();
                self.restart(self.path.clone());
            }
        }
    }

    fn flush(&mut self) {
        self.bus.flush();
        for known in &mut self.known {
            known.settled.append(&mut known.perhaps);
        }
    }

    /// What a kill at this step of the next commit would leave, is gone on with.
    fn crash(&mut self, step: &'static str) {
        let to = self.path.with_file_name(format!("{}.bus", self.opened));
        self.acknowledge();
        // A commit on its way may be the one that is copied, without what was settled since.
        let idle = self.published.values().all(Option::is_none);
        *lock(&self.copy) = Some((step, to.clone()));
        self.acknowledge();
        self.bus.flush();
        assert!(lock(&self.copy).is_none(), "the writer came by {step}");
        for known in &mut self.known {
            let fate = match step {
                "batch.committed" if idle => &mut known.settled,
                _ => &mut known.unknown,
            };
            fate.append(&mut known.perhaps);
        }
        self.restart(to);
    }

    /// Forgets the tickets of what is acknowledged by now.
    fn acknowledge(&mut self) {
        for ticket in self.published.values_mut() {
            if ticket
                .as_ref()
                .is_some_and(|ticket| ticket.poll().is_some())
            {
                *ticket = None;
            }
        }
    }

    fn restart(&mut self, path: PathBuf) {
        if path == self.path {
            self.acknowledge();
        }
        self.lanes.clear();
        // Let go of the old owner first; a copy has no owner.
        let scratch = path.with_file_name(format!("scratch-{}.bus", self.opened));
        let (old, _) = Self::open(&scratch);
        drop(std::mem::replace(&mut self.bus, old));
        assert_eq!(verify(&path).map(|found| found.damage), Ok(vec![]));
        let (bus, copy) = Self::open(&path);
        let last = self.published.keys().next_back().copied().unwrap_or(0);
        assert!(
            bus.journal.sequence() >= last,
            "numbers would be given again"
        );
        self.lanes = NAMES.map(|name| bus.subscribe(name, "t")).into();
        (self.bus, self.copy, self.path) = (bus, copy, path);
        self.opened += 1;

        let present = self.present();
        self.published.retain(|sequence, ticket| {
            assert!(
                ticket.is_some() || present.contains(sequence),
                "{sequence} was acknowledged"
            );
            *ticket = None;
            present.contains(sequence)
        });
        assert_eq!(self.published.len(), present.len());
        for (lane, known) in self.lanes.iter().zip(&mut self.known) {
            // What was left behind is in hand again, unless its settlement is in the journal.
            let left = lane
                .subscription
                .stragglers(None, usize::MAX)
                .expect("readable");
            known.in_hand = left
                .iter()
                .map(|(row, _)| (row.level, row.sequence))
                .collect();
            for (_, sequence) in &known.in_hand {
                assert!(!known.settled.contains(sequence), "{sequence} was settled");
                known.unknown.remove(sequence);
            }
        }
    }

    fn present(&self) -> BTreeSet<u64> {
        let mut reader = self.bus.journal.reader().expect("a reader");
        let all = Range {
            after: 0,
            through: u64::MAX >> 1,
            limit: usize::MAX,
            budget: usize::MAX,
        };
        let scan = reader
            .events(&EventFilter::default(), all)
            .expect("readable");
        scan.events.iter().map(|event| event.sequence).collect()
    }

    /// After a last restart: everything that is not settled is delivered once, in order.
    fn end(mut self) {
        self.flush();
        self.restart(self.path.clone());
        let letters = self
            .bus
            .journal
            .dead_letters(Limits::default(), Durability::Os)
            .expect("readable");
        let mut dead = 0;
        for (at, lane) in self.lanes.iter().enumerate() {
            let known = &self.known[at];
            let mut delivered: BTreeSet<u64> = known.in_hand.iter().map(|(_, n)| *n).collect();
            for level in Priority::ALL {
                let drained = lane.drain(level);
                assert!(
                    drained.windows(2).all(|pair| pair[0] < pair[1]),
                    "{drained:?}"
                );
                for sequence in drained {
                    assert!(delivered.insert(sequence), "{sequence} came twice");
                }
            }
            for sequence in self.published.keys() {
                // Before the last restart all settlements were flushed.
                let settled = known.settled.contains(sequence);
                let again = delivered.contains(sequence);
                let either = known.unknown.contains(sequence) && !settled;
                assert!(either || settled != again, "{sequence} of {}", NAMES[at]);
            }
            dead += known
                .settled
                .iter()
                .filter(|n| {
                    letters
                        .get(&format!("{at}:{n}"))
                        .expect("readable")
                        .is_some()
                })
                .count() as u64;
        }
        assert_eq!(
            letters.count(&Filter::default()),
            Ok(dead),
            "dead and delivered"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: torture::times(24, 200) as u32, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_and_nothing_settled_comes_again(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let mut world = World::new(&folder.path().join("first.bus"));
        for step in &steps {
            world.run(step);
        }
        world.end();
    }
}

/// The control: the same world, with a row tampered with between two owners, does not hold.
#[test]
fn a_journal_that_lost_an_event_or_a_cursor_does_not_pass() {
    for (sql, holds) in [
        ("SELECT 1", true),
        ("DELETE FROM event WHERE sequence = 2", false),
        ("UPDATE cursor SET position = 0 WHERE priority = 2", false),
    ] {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("first.bus");
        let mut world = World::new(&path);
        for step in [
            Step::Publish(2),
            Step::Publish(2),
            Step::Publish(2),
            Step::Flush,
            Step::Take(0, 2),
            Step::Settle(0, 0),
            Step::Flush,
        ] {
            world.run(&step);
        }
        // A reader beside the owner may not write; a plain connection can.
        let raw = rusqlite::Connection::open(&path).expect("opens beside it");
        raw.execute_batch(sql).expect("tampered with");
        drop(raw);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.end()));
        assert_eq!(ended.is_ok(), holds, "{sql}");
        if !holds {
            torture::control();
        }
    }
}
