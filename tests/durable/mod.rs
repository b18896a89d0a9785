//! A bus as small as it can be over a journal: a gate that numbers, lanes that are windows, and
//! nothing that decides anything else. Tests drive it by hand.
#![allow(dead_code)] // each test file uses its part of it

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ironbus::engine::dead_letters::{Limits, MemoryDeadLetters};
use ironbus::engine::journal::{
    Bounds, Commit, Delivery, Event, Faults, FileOptions, Head, Journal, JournalError,
    JournalOptions, MemoryStorage, Observer, SqliteOptions, Start, Subscription, Ticket, Unit,
};
use ironbus::engine::priority::Priority;
use ironbus::engine::store::Durability;

pub const NOW: f64 = 1_700_000_000.0;
const ROOM: usize = 4;

/// What a unit is told.
pub type Fate = Arc<Mutex<Option<Result<Durability, JournalError>>>>;

/// What the observer and the test share.
#[derive(Default)]
pub struct Desk {
    pub commits: Mutex<Vec<Commit>>,
    /// Numbered, and not yet known to be committed.
    pending: Mutex<VecDeque<(u64, Priority, String)>>,
    lanes: Mutex<Vec<Arc<Lane>>>,
    pub now: Mutex<f64>,
}

pub struct Lane {
    pub subscription: Arc<Subscription>,
    pub levels: [Mutex<VecDeque<u64>>; Priority::COUNT],
}

impl Observer for Desk {
    fn committed(&self, commit: &Commit) {
        if let Some((_, last)) = commit.sequences {
            let lanes = lock(&self.lanes).clone();
            let mut pending = lock(&self.pending);
            while pending
                .front()
                .is_some_and(|(sequence, ..)| *sequence <= last)
            {
                let Some((sequence, level, event_type)) = pending.pop_front() else {
                    break;
                };
                if commit.error.is_some() {
                    continue;
                }
                for lane in lanes
                    .iter()
                    .filter(|lane| lane.subscription.wants(&event_type))
                {
                    let mut queue = lock(&lane.levels[level.index()]);
                    if lane
                        .subscription
                        .accept(level, sequence, queue.len() < ROOM)
                    {
                        queue.push_back(sequence);
                    }
                }
            }
        }
        lock(&self.commits).push(commit.clone());
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

pub struct Bus {
    pub journal: Journal,
    pub desk: Arc<Desk>,
    sequence: Mutex<u64>,
}

pub fn event(sequence: u64, level: Priority, event_type: &str) -> Event {
    Event {
        sequence,
        level,
        event_type: event_type.into(),
        data: format!(r#"{{"n": {sequence}}}"#),
        accepted: NOW,
        timestamp: NOW,
        ..Event::default()
    }
}

pub fn options(desk: &Arc<Desk>, faults: Faults) -> JournalOptions {
    let clock = desk.clone();
    JournalOptions {
        bounds: Bounds {
            max_pending: 100,
            // Only with something else, or a flush: tests say when.
            settle_after: Duration::from_secs(3600),
            ..Bounds::default()
        },
        clock: Arc::new(move || *lock(&clock.now)),
        faults,
    }
}

pub fn file_options(desk: &Arc<Desk>, faults: Faults) -> FileOptions {
    FileOptions {
        file: SqliteOptions {
            identity: [7; 16],
            dead_letters: Limits::default(),
            checkpoint_pages: 1000,
            create: true,
        },
        journal: options(desk, faults),
    }
}

impl Bus {
    pub fn in_memory(letters: Arc<MemoryDeadLetters>) -> Self {
        let desk = Desk::new();
        let start = Start {
            storage: Box::new(MemoryStorage::new(letters)),
            head: Head::default(),
            path: "memory".into(),
            settlements: Default::default(),
        };
        let options = options(&desk, Faults::default());
        let journal = Journal::start(start, options, desk.clone()).expect("a journal");
        Self::over(journal, desk)
    }

    pub fn open(path: &Path) -> Self {
        Self::open_with(path, Faults::default()).expect("a journal")
    }

    pub fn open_with(path: &Path, faults: Faults) -> Result<Self, JournalError> {
        let desk = Desk::new();
        let journal = Journal::open(path, file_options(&desk, faults), desk.clone())?;
        Ok(Self::over(journal, desk))
    }

    /// Numbers are reserved in blocks of this size.
    pub fn open_with_block(path: &Path, block: u64) -> Self {
        let desk = Desk::new();
        let mut options = file_options(&desk, Faults::default());
        options.journal.bounds.block = block;
        let journal = Journal::open(path, options, desk.clone()).expect("a journal");
        Self::over(journal, desk)
    }

    /// A number for something else than an event.
    pub fn take_number(&self) -> u64 {
        let mut sequence = lock(&self.sequence);
        *sequence += 1;
        self.journal.given(*sequence);
        *sequence
    }

    pub fn over(journal: Journal, desk: Arc<Desk>) -> Self {
        let sequence = Mutex::new(journal.sequence());
        Self {
            journal,
            desk,
            sequence,
        }
    }

    pub fn publish(&self, level: Priority, event_type: &str) -> (u64, Ticket) {
        self.publish_event(event(0, level, event_type), Durability::Os)
    }

    pub fn publish_event(&self, event: Event, durability: Durability) -> (u64, Ticket) {
        self.try_publish(event, durability).expect("taken")
    }

    /// Numbers an event and hands it in, as under the gate.
    pub fn try_publish(
        &self,
        event: Event,
        durability: Durability,
    ) -> Result<(u64, Ticket), JournalError> {
        let mut sequence = lock(&self.sequence);
        *sequence += 1;
        let event = Event {
            sequence: *sequence,
            data: format!(r#"{{"n": {}}}"#, *sequence),
            ..event
        };
        let mine = (*sequence, event.level, event.event_type.to_string());
        lock(&self.desk.pending).push_back(mine);
        match self.journal.append(vec![event], durability) {
            Ok(ticket) => Ok((*sequence, ticket)),
            Err(error) => {
                lock(&self.desk.pending).pop_back();
                Err(error)
            }
        }
    }

    /// Numbers the events of a unit and hands it in.
    pub fn unit(&self, unit: Unit, delivery: Option<Delivery>) -> (Ticket, Fate) {
        self.try_unit(unit, delivery).expect("taken")
    }

    /// The same; with a ticket whether the batch, and with a fate whether the unit went through.
    pub fn try_unit(
        &self,
        mut unit: Unit,
        delivery: Option<Delivery>,
    ) -> Result<(Ticket, Fate), JournalError> {
        let fate = Arc::new(Mutex::new(None));
        let (told, desk) = (fate.clone(), self.desk.clone());
        let mut sequence = lock(&self.sequence);
        for event in &mut unit.events {
            *sequence += 1;
            event.sequence = *sequence;
            let mine = (*sequence, event.level, event.event_type.to_string());
            lock(&self.desk.pending).push_back(mine);
        }
        let numbers: Vec<u64> = unit.events.iter().map(|event| event.sequence).collect();
        let done = Box::new(move |outcome: Result<Durability, JournalError>| {
            if outcome.is_err() {
                lock(&desk.pending).retain(|(sequence, ..)| !numbers.contains(sequence));
            }
            *lock(&told) = Some(outcome);
        });
        let ticket = self.journal.unit(unit, delivery, Durability::Os, done);
        Ok((ticket?, fate))
    }

    /// Registers at the end of what was numbered so far.
    pub fn subscribe(&self, name: &str, topic: &str) -> Arc<Lane> {
        let after = *lock(&self.sequence);
        self.subscribe_after(name, topic, after)
    }

    pub fn subscribe_after(&self, name: &str, topic: &str, after: u64) -> Arc<Lane> {
        let subscription = self
            .journal
            .register(name, &[topic.to_owned()], after)
            .expect("registered");
        let lane = Arc::new(Lane {
            subscription,
            levels: Default::default(),
        });
        lock(&self.desk.lanes).push(lane.clone());
        lane
    }

    /// Ends a subscription as the end of its process does.
    pub fn leave(&self, lane: Arc<Lane>) {
        lock(&self.desk.lanes).retain(|it| !Arc::ptr_eq(it, &lane));
        let subscription = Arc::downgrade(&lane.subscription);
        drop(lane);
        self.flush();
        assert!(subscription.upgrade().is_none());
    }

    pub fn flush(&self) {
        self.journal.flush(Durability::Os).expect("flushed");
    }
}

impl Lane {
    /// The next event of a level, refilled when the window is empty.
    pub fn next(&self, level: Priority) -> Option<u64> {
        loop {
            if let Some(next) = lock(&self.levels[level.index()]).pop_front() {
                return Some(next);
            }
            let refill = self.subscription.refill(level, ROOM).expect("readable");
            assert_eq!(refill.damage, []);
            let mut queue = lock(&self.levels[level.index()]);
            if refill.caught_up && refill.events.is_empty() && queue.is_empty() {
                return None;
            }
            // What a commit has handed over since the level was caught up comes behind.
            for event in refill.events.iter().rev() {
                queue.push_front(event.sequence);
            }
        }
    }

    /// Takes and settles all that is left on a level.
    pub fn drain(&self, level: Priority) -> Vec<u64> {
        let mut drained = Vec::new();
        while let Some(next) = self.next(level) {
            self.subscription.settle(level, next);
            drained.push(next);
        }
        drained
    }

    pub fn delivery(&self, level: Priority, sequence: u64) -> Option<Delivery> {
        Some(Delivery {
            subscription: self.subscription.clone(),
            level,
            sequence,
        })
    }

    /// The sequences that were left behind, with attempts.
    pub fn stragglers(&self) -> BTreeMap<u64, u32> {
        let found = self
            .subscription
            .stragglers(None, usize::MAX)
            .expect("readable");
        found
            .into_iter()
            .map(|(straggler, _)| (straggler.sequence, straggler.attempt))
            .collect()
    }
}

impl Desk {
    pub fn new() -> Arc<Self> {
        let desk = Self::default();
        *lock(&desk.now) = NOW;
        Arc::new(desk)
    }
}
