//! The queue of a bus without a file: bounded, counted, gone with the process.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use super::entry::{DeadLetter, Failure, Fingerprint, Stored};
use super::filter::Filter;
use super::limits::{Limits, WhenFull};
use super::{Added, DeadLetterError, DeadLetters, Lease, Statistics};
use crate::engine::store::WallSeconds;
use crate::engine::sync::{Mutex, MutexGuard, lock};

/// See the module.
#[derive(Debug)]
pub struct MemoryDeadLetters {
    limits: Limits,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    last: u64,
    entries: BTreeMap<u64, Entry>,
    positions: HashMap<String, u64>,
    imported: HashSet<String>,
    statistics: Statistics,
}

#[derive(Debug)]
struct Entry {
    letter: DeadLetter,
    lease: Option<Lease>,
}

impl Entry {
    fn is_free(&self, now: WallSeconds) -> bool {
        self.lease.is_none_or(|lease| lease.until <= now)
    }
}

impl Queue {
    fn insert(&mut self, letter: DeadLetter) {
        self.last += 1;
        self.positions.insert(letter.id.clone(), self.last);
        let lease = None;
        self.entries.insert(self.last, Entry { letter, lease });
    }

    fn remove(&mut self, position: u64) {
        if let Some(entry) = self.entries.remove(&position) {
            self.positions.remove(&entry.letter.id);
        }
    }

    /// Removes what is meant; how many.
    fn sweep(&mut self, meant: impl Fn(&Entry) -> bool, limit: usize) -> u64 {
        let going: Vec<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| meant(entry))
            .map(|(position, _)| *position)
            .take(limit)
            .collect();
        for position in &going {
            self.remove(*position);
        }
        going.len() as u64
    }

    fn expire(&mut self, limits: &Limits, now: WallSeconds) -> u64 {
        let Some(horizon) = limits.horizon(now) else {
            return 0;
        };
        let old = |entry: &Entry| entry.letter.last_failure < horizon && entry.is_free(now);
        let expired = self.sweep(old, usize::MAX);
        self.statistics.expired += expired;
        expired
    }

    fn has_room(&mut self, limits: &Limits, now: WallSeconds) -> bool {
        if (self.entries.len() as u64) < limits.max_entries {
            return true;
        }
        self.expire(limits, now);
        let Some(surplus) = (self.entries.len() as u64 + 1).checked_sub(limits.max_entries) else {
            return true;
        };
        if surplus == 0 {
            return true;
        }
        if limits.when_full == WhenFull::Refuse || limits.max_entries == 0 {
            return false;
        }
        let dropped = self.sweep(|entry| entry.is_free(now), surplus as usize);
        self.statistics.dropped += dropped;
        dropped == surplus
    }

    fn held(&mut self, id: &str, holder: u64) -> Option<(u64, &mut Entry)> {
        let position = *self.positions.get(id)?;
        let entry = self.entries.get_mut(&position)?;
        let held = entry.lease.is_some_and(|lease| lease.holder == holder);
        held.then_some((position, entry))
    }
}

impl MemoryDeadLetters {
    /// An empty queue.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

fn stored((position, entry): (&u64, &Entry)) -> Stored {
    Stored {
        position: *position,
        letter: entry.letter.clone(),
    }
}

impl DeadLetters for MemoryDeadLetters {
    fn add(&self, mut letter: DeadLetter, now: WallSeconds) -> Result<Added, DeadLetterError> {
        self.limits.trim(&mut letter.failure);
        let mut queue = self.queue();
        if let Some(position) = queue.positions.get(&letter.id).copied()
            && let Some(entry) = queue.entries.get_mut(&position)
        {
            entry.letter.fail_again(letter);
            let attempts = entry.letter.attempts;
            return Ok(Added::Again { attempts });
        }
        if !queue.has_room(&self.limits, now) {
            let bound = self.limits.max_entries;
            return Err(DeadLetterError::Full { bound });
        }
        queue.insert(letter);
        Ok(Added::New)
    }

    fn import(&self, name: &str, letters: Vec<DeadLetter>) -> Result<bool, DeadLetterError> {
        let mut queue = self.queue();
        if !queue.imported.insert(name.to_owned()) {
            return Ok(false);
        }
        for mut letter in letters {
            self.limits.trim(&mut letter.failure);
            if !queue.positions.contains_key(&letter.id) {
                queue.insert(letter);
            }
        }
        Ok(true)
    }

    fn get(&self, id: &str) -> Result<Option<Stored>, DeadLetterError> {
        let queue = self.queue();
        let position = queue.positions.get(id);
        Ok(position
            .and_then(|position| queue.entries.get_key_value(position))
            .map(stored))
    }

    fn page(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Stored>, DeadLetterError> {
        Ok(self
            .queue()
            .entries
            .range((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(_, entry)| filter.admits(&entry.letter))
            .take(limit)
            .map(stored)
            .collect())
    }

    fn count(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        let queue = self.queue();
        let meant = queue
            .entries
            .values()
            .filter(|entry| filter.admits(&entry.letter));
        Ok(meant.count() as u64)
    }

    fn remove(&self, id: &str) -> Result<bool, DeadLetterError> {
        let mut queue = self.queue();
        let position = queue.positions.get(id).copied();
        if let Some(position) = position {
            queue.remove(position);
        }
        Ok(position.is_some())
    }

    fn purge(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        let meant = |entry: &Entry| filter.admits(&entry.letter);
        Ok(self.queue().sweep(meant, usize::MAX))
    }

    fn claim(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
        lease: Lease,
        now: WallSeconds,
    ) -> Result<Vec<Stored>, DeadLetterError> {
        Ok(self
            .queue()
            .entries
            .range_mut((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(_, entry)| entry.is_free(now) && filter.admits(&entry.letter))
            .take(limit)
            .map(|(position, entry)| {
                entry.lease = Some(lease);
                stored((position, entry))
            })
            .collect())
    }

    fn renew(&self, lease: Lease) -> Result<u64, DeadLetterError> {
        let mut renewed = 0;
        for held in self
            .queue()
            .entries
            .values_mut()
            .filter_map(|entry| entry.lease.as_mut())
            .filter(|held| held.holder == lease.holder)
        {
            *held = lease;
            renewed += 1;
        }
        Ok(renewed)
    }

    fn succeeded(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        let mut queue = self.queue();
        let position = queue.held(id, holder).map(|(position, _)| position);
        if let Some(position) = position {
            queue.remove(position);
        }
        Ok(position.is_some())
    }

    fn failed(
        &self,
        id: &str,
        holder: u64,
        failure: Failure,
        fingerprint: Fingerprint,
        attempts: u64,
        now: WallSeconds,
    ) -> Result<bool, DeadLetterError> {
        let mut queue = self.queue();
        let Some((_, entry)) = queue.held(id, holder) else {
            return Ok(false);
        };
        entry.lease = None;
        entry
            .letter
            .redriven(failure, fingerprint, attempts, now, &self.limits);
        Ok(true)
    }

    fn release(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        let mut queue = self.queue();
        let held = queue.held(id, holder);
        Ok(held.map(|(_, entry)| entry.lease = None).is_some())
    }

    fn expire(&self, now: WallSeconds) -> Result<u64, DeadLetterError> {
        Ok(self.queue().expire(&self.limits, now))
    }

    fn verify(&self) -> Result<u64, DeadLetterError> {
        Ok(0)
    }

    fn statistics(&self) -> Result<Statistics, DeadLetterError> {
        let queue = self.queue();
        Ok(Statistics {
            entries: queue.entries.len() as u64,
            ..queue.statistics
        })
    }
}
