//! The one thread that writes. It takes what has come, writes it as one commit, and tells
//! everybody; then it takes what has come meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::error::JournalError;
use super::faults::Faults;
use super::queue::{Batch, Delivery, Op, PendingUnit};
use super::storage::{Change, CommitError, CursorRow, Head, Storage, SubscriptionId};
use super::subscription::Subscription;
use super::upkeep::here;
use super::{Commit, Observer, Registry, Shared};
use crate::engine::priority::Priority;
use crate::engine::store::{Durability, StoreError};
use crate::engine::sync::lock;

pub(super) struct Writer {
    pub(super) storage: Box<dyn Storage>,
    pub(super) head: Head,
    pub(super) shared: Arc<Shared>,
    pub(super) registry: Arc<Registry>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) faults: Faults,
    /// Why the last batch was not written.
    pub(super) failed: Option<JournalError>,
}

/// What was taken from the subscriptions for one batch.
type Settlements = Vec<(Arc<Subscription>, Vec<CursorRow>, Vec<Change>)>;

/// What the units of one batch settle.
type Settled = BTreeMap<(SubscriptionId, Priority, u64), Delivery>;

/// Why a batch is not ready to be committed.
enum Unready {
    /// The medium.
    Failed(StoreError),
    /// A unit has taken back all of it. That unit is refused: the others are written again.
    Again,
}

impl From<StoreError> for Unready {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl Writer {
    /// Writes until the journal is closed. Whatever ends it, nobody waits for ever.
    pub(super) fn run(mut self) {
        let _guard = Guard(self.shared.clone());
        while let Some(batch) = self.shared.queue.take() {
            self.write_batch(batch);
            self.keep_tidy();
        }
        self.advance();
        while let Some(batch) = self.shared.queue.take() {
            self.write_batch(batch);
        }
        let unsettled = self
            .failed
            .take()
            .filter(|_| self.shared.queue.is_unsettled());
        let ended = match (self.shared.queue.is_broken(), unsettled) {
            (true, _) => Err(JournalError::ReadOnly),
            // As after a crash: what was settled and is not written is delivered again.
            (false, Some(error)) => Err(error),
            (false, None) => self.end().map_err(JournalError::from),
        };
        let in_order = ended.is_ok();
        *lock(&self.shared.ended) = Some(ended);
        // The writer's connection is the last one: it takes the log away.
        *lock(&self.shared.reader) = None;
        *lock(&self.shared.letters) = None;
        let left = lock(&self.shared.left).take();
        drop(self.storage);
        if let Some(held) = left.filter(|_| in_order) {
            // Nobody is left to be told: the next owner looks at a page that could not be removed.
            let _ = held.in_flight.remove();
        }
    }

    /// In order: the numbers go on where they were, and one file is left.
    fn end(&mut self) -> Result<(), StoreError> {
        self.head.reserved = self.shared.queue.sequence();
        self.head.closed = true;
        let here = here(&self.registry);
        self.storage.begin(Durability::Fsync)?;
        self.storage.see(&here, (self.shared.clock)())?;
        self.storage.write_head(&self.head)?;
        self.storage.commit().map_err(|error| match error {
            CommitError::Undone(error) | CommitError::Unknown(error) => error,
        })?;
        self.storage.checkpoint()
    }

    fn write_batch(&mut self, mut batch: Batch) {
        let mut head = self.head;
        let mut settlements = Vec::new();
        let mut settled = Settled::new();
        let written = self.write(&mut batch, &mut head, &mut settlements, &mut settled);
        let durability = batch.durability.unwrap_or(Durability::Os);
        let outcome = match written {
            Ok(()) => {
                self.head = head;
                self.shared.committed.store(head.last(), Ordering::Release);
                Ok(durability)
            }
            Err(error) => {
                for subscription in batch.dirty.drain(..) {
                    subscription.mark_again();
                }
                for (subscription, rows, changes) in settlements {
                    subscription.put_back(&rows, changes);
                }
                for unit in settled.into_values() {
                    unit.subscription.unsettle(unit.level, unit.sequence);
                }
                Err(match error {
                    CommitError::Undone(error) => JournalError::Store(error),
                    CommitError::Unknown(error) => JournalError::DurabilityUnknown(error),
                })
            }
        };
        let unknown = matches!(outcome, Err(JournalError::DurabilityUnknown(_)));
        let left = unknown.then(|| self.shared.queue.fail());
        self.shared
            .queue
            .done(&batch, self.head.reserved, outcome.is_err());
        self.failed = outcome.as_ref().err().cloned();
        self.tell(batch, outcome);
        if let Some(left) = left {
            self.shared.queue.done(&left, 0, true);
            self.tell(left, Err(JournalError::ReadOnly));
        }
    }

    fn write(
        &mut self,
        batch: &mut Batch,
        head: &mut Head,
        settlements: &mut Settlements,
        settled: &mut Settled,
    ) -> Result<(), CommitError> {
        let now = (self.shared.clock)();
        let block = self.shared.queue.block();
        let last = batch.sequences.map(|(_, last)| last).max(batch.given);
        if let Some(last) = last
            && head.reserved.saturating_sub(last) < block / 2
        {
            head.reserved = head.reserved.max(last) + block;
            // A number that may be given is to be known to be, whatever happens.
            batch.durability = batch.durability.max(Some(Durability::Fsync));
        }
        let prepared = self.prepare(batch, head, now).and_then(|units| {
            *settled = units;
            for unit in settled.values() {
                unit.subscription
                    .settle_with_unit(unit.level, unit.sequence);
                batch.dirty.push(unit.subscription.clone());
            }
            for subscription in std::mem::take(&mut batch.dirty) {
                let (rows, changes) = subscription.take(now);
                settlements.push((subscription, rows, changes));
                let (_, rows, changes) = &settlements[settlements.len() - 1];
                self.storage.settle(rows, changes)?;
            }
            self.step("batch.settled")?;
            if *head != self.head {
                self.storage.write_head(head)?;
            }
            self.step("batch.commit")
        });
        if let Err(error) = prepared {
            return Err(match self.storage.rollback() {
                Ok(()) => CommitError::Undone(error),
                Err(_) => CommitError::Unknown(error),
            });
        }
        self.storage.commit()?;
        self.step("batch.committed").map_err(CommitError::Unknown)
    }

    fn prepare(
        &mut self,
        batch: &mut Batch,
        head: &mut Head,
        now: f64,
    ) -> Result<Settled, StoreError> {
        let before = *head;
        loop {
            match self.try_prepare(batch, head, now) {
                Ok(settled) => return Ok(settled),
                Err(Unready::Failed(error)) => return Err(error),
                // One unit fewer each time.
                Err(Unready::Again) => *head = before,
            }
        }
    }

    fn try_prepare(
        &mut self,
        batch: &mut Batch,
        head: &mut Head,
        now: f64,
    ) -> Result<Settled, Unready> {
        let mut settled = Settled::new();
        self.step("batch.begin")?;
        self.storage
            .begin(batch.durability.unwrap_or(Durability::Os))?;
        head.accepted = head.accepted.max(batch.accepted);
        let mut at = 0;
        while at < batch.ops.len() {
            let events = batch.ops[at..].iter().map_while(|op| match op {
                Op::Event(event) => Some(event),
                _ => None,
            });
            let run = events.clone().count();
            if run > 0 {
                self.storage.append(&mut events.into_iter(), head)?;
                at += run;
                continue;
            }
            match &mut batch.ops[at] {
                Op::Event(_) => {}
                Op::Unit(unit) => self.run_unit(unit, head, now, &mut settled)?,
                Op::Task(task) => {
                    if let Some(task) = task {
                        task(&mut *self.storage, head)?;
                    }
                }
            }
            at += 1;
        }
        self.step("batch.appended")?;
        Ok(settled)
    }

    fn run_unit(
        &mut self,
        pending: &mut PendingUnit,
        head: &mut Head,
        now: f64,
        settled: &mut Settled,
    ) -> Result<(), Unready> {
        if pending.refused.is_some() {
            return Ok(());
        }
        let key_of = |it: &Delivery| (it.subscription.id(), it.level, it.sequence);
        let key = pending.delivery.as_ref().map(key_of);
        if let Some((key, delivery)) = key.zip(pending.delivery.as_ref())
            && (settled.contains_key(&key) || self.is_settled(delivery)?)
        {
            pending.refused = Some(JournalError::Settled);
            return Ok(());
        }
        match self.storage.unit(&pending.unit, now, head)? {
            Ok(()) => {
                settled.extend(key.zip(pending.delivery.clone()));
                Ok(())
            }
            Err(refused) => {
                pending.refused = Some(refused);
                match self.storage.has_begun() {
                    true => Ok(()),
                    false => Err(Unready::Again),
                }
            }
        }
    }

    /// A delivery may come back from another life of its lane, when the journal has given it anew.
    fn is_settled(&mut self, delivery: &Delivery) -> Result<bool, StoreError> {
        let (of, level, sequence) = (&delivery.subscription, delivery.level, delivery.sequence);
        match of.is_settled(level, sequence) {
            Some(settled) => Ok(settled),
            None => Ok(!self.storage.is_straggler(of.id(), level, sequence)?),
        }
    }

    fn tell(&self, mut batch: Batch, outcome: Result<Durability, JournalError>) {
        let mut nothing = Vec::new();
        for op in std::mem::take(&mut batch.ops) {
            if let Op::Unit(unit) = op {
                let events = &unit.unit.events;
                if unit.refused.is_some()
                    && let (Some(first), Some(last)) = (events.first(), events.last())
                {
                    nothing.push((first.sequence, last.sequence));
                }
                (unit.done)(match unit.refused {
                    Some(refused) => Err(refused),
                    None => outcome.clone(),
                });
            }
        }
        let commit = Commit {
            sequences: batch.sequences,
            refused: nothing,
            durability: outcome.as_ref().ok().copied(),
            error: outcome.clone().err(),
        };
        // First the lanes: whoever is told that an event is stored may ask what is pending.
        self.observer.committed(&commit);
        batch.fate.decide(outcome);
    }

    fn keep_tidy(&mut self) {
        if !self.storage.wants_checkpoint() {
            return;
        }
        self.advance();
        let done = self
            .step("checkpoint.begin")
            .and_then(|()| self.storage.checkpoint())
            .and_then(|()| self.step("checkpoint.end"));
        *lock(&self.shared.checkpoint_error) = done.err();
    }

    fn advance(&self) {
        super::advance(&self.registry, self.head.last());
    }

    fn step(&self, name: &'static str) -> Result<(), StoreError> {
        self.faults
            .at(name)
            .map_err(|problem| problem.at(&self.shared.path))
    }
}

/// However the writer ends, what waits is told.
struct Guard(Arc<Shared>);

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.queue.fail());
    }
}
