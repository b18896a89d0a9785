//! A journal that ends with its process: for tests of what stands on a journal, and for a bus
//! that is to behave as a durable one without a disk.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use rusqlite::Connection;

use super::error::JournalError;
use super::event::{Event, KeyDigest};
use super::storage::{
    Change, CommitError, Counts, CursorRow, Damage, EventFilter, Head, Horizon, Range, Reader,
    Retained, Scan, Storage, Straggler, SubscriptionId, SubscriptionRow, Unit,
};
use crate::engine::dead_letters::{DeadLetterError, DeadLetters, MemoryDeadLetters};
use crate::engine::priority::Priority;
use crate::engine::store::{Durability, Problem, StoreError, WallSeconds};
use crate::engine::sync::{Mutex, MutexGuard, lock};

#[derive(Default)]
struct Tables {
    events: BTreeMap<u64, Event>,
    levels: [BTreeSet<u64>; Priority::COUNT],
    subscriptions: BTreeMap<SubscriptionId, SubscriptionRow>,
    cursors: BTreeMap<(SubscriptionId, Priority), CursorRow>,
    stragglers: BTreeMap<(SubscriptionId, Priority, u64), Straggler>,
    bookmarks: BTreeMap<String, String>,
    subscriptions_made: SubscriptionId,
}

type Undo = Box<dyn FnOnce(&mut Tables) + Send>;

/// See the module.
pub struct MemoryStorage {
    tables: Arc<Mutex<Tables>>,
    letters: Arc<MemoryDeadLetters>,
    undo: Vec<Undo>,
}

/// Reads a journal in memory.
pub struct MemoryReader(Arc<Mutex<Tables>>);

impl MemoryStorage {
    /// An empty journal with these dead letters.
    pub fn new(letters: Arc<MemoryDeadLetters>) -> Self {
        Self {
            tables: Arc::default(),
            letters,
            undo: Vec::new(),
        }
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Tables, &mut Vec<Undo>) -> T) -> T {
        change(&mut lock(&self.tables), &mut self.undo)
    }
}

impl Tables {
    fn insert(&mut self, event: Event) {
        self.levels[event.level.index()].insert(event.sequence);
        self.events.insert(event.sequence, event);
    }

    fn remove(&mut self, sequence: u64) -> Option<Event> {
        let event = self.events.remove(&sequence)?;
        self.levels[event.level.index()].remove(&sequence);
        Some(event)
    }

    fn position_at(&self, time: WallSeconds) -> u64 {
        let before = self
            .events
            .values()
            .take_while(|event| event.accepted < time);
        before.last().map_or(0, |event| event.sequence)
    }
}

/// Sets a row, or takes it away, and remembers how it was.
fn put<K: Ord + Clone + Send + 'static, V: Clone + Send + 'static>(
    tables: &mut Tables,
    undo: &mut Vec<Undo>,
    table: fn(&mut Tables) -> &mut BTreeMap<K, V>,
    key: K,
    value: Option<V>,
) {
    let before = match value {
        Some(value) => table(tables).insert(key.clone(), value),
        None => table(tables).remove(&key),
    };
    undo.push(Box::new(move |tables| {
        match before {
            Some(before) => table(tables).insert(key, before),
            None => table(tables).remove(&key),
        };
    }));
}

impl Storage for MemoryStorage {
    fn begin(&mut self, _durability: Durability) -> Result<(), StoreError> {
        self.undo.clear();
        Ok(())
    }

    fn append(
        &mut self,
        events: &mut dyn Iterator<Item = &Event>,
        head: &mut Head,
    ) -> Result<(), StoreError> {
        self.change(|tables, undo| {
            for event in events {
                let sequence = event.sequence;
                head.last[event.level.index()] = sequence;
                tables.insert(event.clone());
                undo.push(Box::new(move |tables| {
                    tables.remove(sequence);
                }));
            }
        });
        Ok(())
    }

    fn unit(
        &mut self,
        unit: &Unit,
        now: WallSeconds,
        head: &mut Head,
    ) -> Result<Result<(), JournalError>, StoreError> {
        // What can be refused comes first: nothing is to be taken back then.
        if !unit.statements.is_empty() {
            return Ok(Err(JournalError::NoSql));
        }
        if let Some(letter) = &unit.dead_letter {
            let letters = self.letters.clone();
            let before = letters.get(&letter.id).ok().flatten();
            match letters.add(letter.clone(), now) {
                Err(DeadLetterError::Store(error)) => return Err(error),
                Err(refused) => return Ok(Err(refused.into())),
                Ok(_) => {}
            }
            let id = letter.id.clone();
            self.undo.push(Box::new(move |_| {
                let removed = letters.remove(&id);
                debug_assert!(
                    removed.is_ok(),
                    "a queue in memory has no file that could fail"
                );
                if let Some(before) = before {
                    let restored = letters.import(&format!("undo {id} {now}"), vec![before.letter]);
                    debug_assert!(restored.is_ok());
                }
            }));
        }
        if let Some((id, holder)) = &unit.redriven {
            let before = self.letters.get(id).ok().flatten();
            match self.letters.succeeded(id, *holder) {
                Err(DeadLetterError::Store(error)) => return Err(error),
                Err(refused) => return Ok(Err(refused.into())),
                Ok(false) => return Ok(Err(JournalError::NotHeld { id: id.clone() })),
                Ok(true) => {}
            }
            let (letters, name) = (self.letters.clone(), format!("undo {id} {now}"));
            self.undo.push(Box::new(move |_| {
                let before = before.into_iter().map(|before| before.letter).collect();
                let restored = letters.import(&name, before);
                debug_assert!(restored.is_ok());
            }));
        }
        if let Some((name, value)) = unit.bookmark.clone() {
            self.change(|tables, undo| {
                put(
                    tables,
                    undo,
                    |tables| &mut tables.bookmarks,
                    name,
                    Some(value),
                );
            });
        }
        self.append(&mut unit.events.iter(), head)?;
        Ok(Ok(()))
    }

    fn settle(&mut self, cursors: &[CursorRow], changes: &[Change]) -> Result<(), StoreError> {
        self.change(|tables, undo| {
            for row in cursors {
                let key = (row.subscription, row.level);
                put(
                    tables,
                    undo,
                    |tables| &mut tables.cursors,
                    key,
                    Some(row.clone()),
                );
            }
            for change in changes {
                let (key, value) = match change {
                    Change::Put(row) => (
                        (row.subscription, row.level, row.sequence),
                        Some(row.clone()),
                    ),
                    Change::Gone(subscription, level, sequence) => {
                        ((*subscription, *level, *sequence), None)
                    }
                };
                put(tables, undo, |tables| &mut tables.stragglers, key, value);
            }
        });
        Ok(())
    }

    fn has_begun(&self) -> bool {
        true
    }

    fn is_straggler(
        &mut self,
        subscription: SubscriptionId,
        level: Priority,
        sequence: u64,
    ) -> Result<bool, StoreError> {
        let key = (subscription, level, sequence);
        Ok(lock(&self.tables).stragglers.contains_key(&key))
    }

    fn write_head(&mut self, _head: &Head) -> Result<(), StoreError> {
        Ok(())
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        self.undo.clear();
        Ok(())
    }

    fn rollback(&mut self) -> Result<(), StoreError> {
        let undo = std::mem::take(&mut self.undo);
        let mut tables = lock(&self.tables);
        undo.into_iter().rev().for_each(|undo| undo(&mut tables));
        Ok(())
    }

    fn register(
        &mut self,
        name: &str,
        topics: &[String],
        after: u64,
        now: WallSeconds,
    ) -> Result<(SubscriptionRow, Vec<CursorRow>), StoreError> {
        Ok(self.change(|tables, undo| {
            let known = tables.subscriptions.values().find(|row| row.name == name);
            let row = match known {
                Some(known) => SubscriptionRow {
                    topics: topics.to_vec(),
                    seen: known.seen.max(now),
                    ..known.clone()
                },
                None => {
                    tables.subscriptions_made += 1;
                    SubscriptionRow {
                        id: tables.subscriptions_made,
                        name: name.to_owned(),
                        topics: topics.to_vec(),
                        created: now,
                        seen: now,
                    }
                }
            };
            put(
                tables,
                undo,
                |tables| &mut tables.subscriptions,
                row.id,
                Some(row.clone()),
            );
            let mut cursors = Vec::new();
            for level in Priority::ALL {
                let key = (row.id, level);
                let cursor = tables.cursors.get(&key).cloned().unwrap_or(CursorRow {
                    subscription: row.id,
                    level,
                    position: after,
                    runs: Vec::new(),
                });
                put(
                    tables,
                    undo,
                    |tables| &mut tables.cursors,
                    key,
                    Some(cursor.clone()),
                );
                cursors.push(cursor);
            }
            (row, cursors)
        }))
    }

    fn see(
        &mut self,
        subscriptions: &[SubscriptionId],
        now: WallSeconds,
    ) -> Result<(), StoreError> {
        self.change(|tables, undo| {
            for id in subscriptions {
                let seen = tables.subscriptions.get(id).map(|row| SubscriptionRow {
                    seen: row.seen.max(now),
                    ..row.clone()
                });
                put(tables, undo, |tables| &mut tables.subscriptions, *id, seen);
            }
        });
        Ok(())
    }

    fn forget(&mut self, subscription: SubscriptionId) -> Result<(), StoreError> {
        self.change(|tables, undo| {
            put(
                tables,
                undo,
                |tables| &mut tables.subscriptions,
                subscription,
                None,
            );
            for level in Priority::ALL {
                put(
                    tables,
                    undo,
                    |tables| &mut tables.cursors,
                    (subscription, level),
                    None,
                );
            }
            let stragglers: Vec<_> = tables.stragglers.keys().copied().collect();
            for key in stragglers.into_iter().filter(|key| key.0 == subscription) {
                put(tables, undo, |tables| &mut tables.stragglers, key, None);
            }
        });
        Ok(())
    }

    fn expire(
        &mut self,
        here: &[SubscriptionId],
        since: WallSeconds,
    ) -> Result<Vec<String>, StoreError> {
        let gone: Vec<_> = {
            let tables = lock(&self.tables);
            let rows = tables.subscriptions.values();
            rows.filter(|row| row.seen < since && !here.contains(&row.id))
                .map(|row| (row.id, row.name.clone()))
                .collect()
        };
        gone.iter().try_for_each(|(id, _)| self.forget(*id))?;
        Ok(gone.into_iter().map(|(_, name)| name).collect())
    }

    fn retain(&mut self, horizon: Horizon, head: &mut Head) -> Result<Retained, StoreError> {
        let letters = self.letters.page(&Default::default(), 0, usize::MAX);
        let letters: BTreeSet<u64> = letters
            .map_err(|_| Problem::Corrupt.at("memory".as_ref()))?
            .iter()
            .filter_map(|stored| stored.letter.event.sequence)
            .collect();
        Ok(self.change(|tables, undo| {
            let settled = tables.cursors.values().map(|row| row.position).min();
            let through = settled
                .unwrap_or(u64::MAX)
                .min(tables.position_at(horizon.accepted_before));
            let forward = through > head.deleted_through;
            let (after, through) = match forward {
                true => (head.deleted_through, through),
                false => (horizon.again, head.deleted_through),
            };
            let needed: BTreeSet<u64> = tables.stragglers.keys().map(|key| key.2).collect();
            let range = (
                Bound::Excluded(after),
                Bound::Included(through.max(after + 1)),
            );
            let looked = tables.events.range(range).map(|(sequence, _)| *sequence);
            let looked = looked.take_while(|sequence| *sequence <= through);
            let looked: Vec<u64> = looked.take(horizon.limit).collect();
            let reached = match looked.last() {
                Some(&last) if looked.len() == horizon.limit => last,
                _ => through,
            };
            let needless =
                |sequence: &u64| !needed.contains(sequence) && !letters.contains(sequence);
            let needless: Vec<u64> = looked.into_iter().filter(needless).collect();
            for sequence in &needless {
                let event = tables.remove(*sequence);
                undo.push(Box::new(move |tables| {
                    event.into_iter().for_each(|event| tables.insert(event));
                }));
            }
            if forward {
                head.deleted_through = reached;
            }
            Retained {
                events: needless.len(),
                again: (!forward).then_some(if reached < through { reached } else { 0 }),
            }
        }))
    }

    fn quarantine(&mut self, _damage: Damage, _now: WallSeconds) -> Result<(), StoreError> {
        Ok(())
    }

    fn sql(
        &mut self,
        _work: &mut dyn FnMut(&Connection) -> Result<(), Problem>,
    ) -> Result<Result<(), JournalError>, StoreError> {
        Ok(Err(JournalError::NoSql))
    }

    fn wants_checkpoint(&self) -> bool {
        false
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(MemoryReader(self.tables.clone())))
    }
}

impl MemoryReader {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        lock(&self.0)
    }
}

/// Takes those that are wanted, until the limit or the budget is reached.
fn walk<'a>(
    events: impl Iterator<Item = &'a Event>,
    range: Range,
    wanted: impl Fn(&Event) -> bool,
) -> Scan {
    let mut scan = Scan {
        through: range.through,
        ..Scan::default()
    };
    for (looked, event) in events.enumerate() {
        if wanted(event) {
            scan.events.push(event.clone());
        }
        if scan.events.len() == range.limit || looked + 1 == range.budget {
            scan.through = event.sequence;
            break;
        }
    }
    scan
}

fn bounds(range: Range) -> (Bound<u64>, Bound<u64>) {
    (
        Bound::Excluded(range.after),
        Bound::Included(range.through.max(range.after + 1)),
    )
}

impl Reader for MemoryReader {
    fn scan(
        &mut self,
        level: Priority,
        range: Range,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Scan, StoreError> {
        let tables = self.tables();
        let events = tables.levels[level.index()]
            .range(bounds(range))
            .filter_map(|sequence| tables.events.get(sequence))
            .take_while(|event| event.sequence <= range.through);
        Ok(walk(events, range, |event| wanted(&event.event_type)))
    }

    fn events(&mut self, filter: &EventFilter, range: Range) -> Result<Scan, StoreError> {
        let tables = self.tables();
        let events = tables
            .events
            .range(bounds(range))
            .map(|(_, event)| event)
            .take_while(|event| event.sequence <= range.through);
        Ok(walk(events, range, |event| filter.admits(event)))
    }

    fn event(&mut self, sequence: u64) -> Result<Option<Event>, StoreError> {
        Ok(self.tables().events.get(&sequence).cloned())
    }

    fn around(&mut self, sequence: u64) -> Result<(u64, Option<u64>), StoreError> {
        let tables = self.tables();
        let before = tables.events.range(..=sequence).next_back();
        let behind = (Bound::Excluded(sequence), Bound::Unbounded);
        let behind = tables.events.range(behind).next();
        Ok((before.map_or(0, |(at, _)| *at), behind.map(|(at, _)| *at)))
    }

    fn stragglers(
        &mut self,
        subscription: SubscriptionId,
        after: Option<(Priority, u64)>,
        limit: usize,
    ) -> Result<Vec<Straggler>, StoreError> {
        let from = match after {
            Some((level, sequence)) => Bound::Excluded((subscription, level, sequence)),
            None => Bound::Included((subscription, Priority::Critical, 0)),
        };
        Ok(self
            .tables()
            .stragglers
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| key.0 == subscription)
            .take(limit)
            .map(|(_, row)| row.clone())
            .collect())
    }

    fn keys(
        &mut self,
        since: WallSeconds,
        limit: usize,
    ) -> Result<Vec<(KeyDigest, WallSeconds)>, StoreError> {
        let tables = self.tables();
        let newest = tables.events.values().rev();
        let mut keys: Vec<_> = newest
            .take_while(|event| event.accepted >= since)
            .filter_map(|event| Some((event.digest?, event.accepted)))
            .take(limit)
            .collect();
        keys.reverse();
        Ok(keys)
    }

    fn position_at(&mut self, time: WallSeconds) -> Result<u64, StoreError> {
        Ok(self.tables().position_at(time))
    }

    fn subscriptions(&mut self) -> Result<Vec<(SubscriptionRow, Vec<CursorRow>)>, StoreError> {
        let tables = self.tables();
        Ok(tables
            .subscriptions
            .values()
            .map(|row| {
                let cursors = tables.cursors.values();
                let own = cursors.filter(|cursor| cursor.subscription == row.id);
                (row.clone(), own.cloned().collect())
            })
            .collect())
    }

    fn straggler_count(&mut self, subscription: SubscriptionId) -> Result<u64, StoreError> {
        let tables = self.tables();
        let own = tables.stragglers.keys().filter(|key| key.0 == subscription);
        Ok(own.count() as u64)
    }

    fn bookmark(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.tables().bookmarks.get(name).cloned())
    }

    fn counts(&mut self) -> Result<Counts, StoreError> {
        Ok(Counts {
            events: self.tables().events.len() as u64,
            ..Counts::default()
        })
    }
}
