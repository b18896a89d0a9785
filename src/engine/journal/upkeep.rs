//! A journal is bounded: old events that nobody needs go, and so do subscriptions that nobody has
//! had for long. In portions, each a commit of its own between those of publishers.

use std::sync::{Arc, Weak};

use super::storage::{Horizon, Retained, SubscriptionId, SubscriptionRow};
use super::{Journal, JournalError, Registry};
use crate::engine::store::{Durability, WallSeconds};
use crate::engine::sync::lock;

/// So many kept events are looked at again in one [`Journal::upkeep`], whether they are needed still:
/// the next one goes on where it ended.
const LOOKED_AT_AGAIN: usize = 100_000;

/// What a journal keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keeping {
    /// Seconds for which an event is kept at least. `None`: for ever.
    pub retention: Option<WallSeconds>,
    /// Seconds after which a subscription that nobody has had is let go of. `None`: never.
    pub absent_ttl: Option<WallSeconds>,
    /// So many events are looked at in one commit at most.
    pub portion: usize,
}

impl Default for Keeping {
    /// Everything, for ever.
    fn default() -> Self {
        Self {
            retention: None,
            absent_ttl: None,
            portion: 2000,
        }
    }
}

/// What was let go of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// So many events.
    pub events: u64,
    /// The subscriptions of these names.
    pub subscriptions: Vec<String>,
}

impl Journal {
    /// Lets go of a subscription that nobody in this process has, with its backlog. Waits for the
    /// disk.
    pub fn forget(&self, name: &str) -> Result<(), JournalError> {
        let registered = lock(&self.registry)
            .iter()
            .filter_map(Weak::upgrade)
            .any(|known| known.name() == name);
        if registered {
            return Err(JournalError::Registered { name: name.into() });
        }
        let known = self.shared.read(|reader| reader.subscriptions())?;
        let Some((row, _)) = known.into_iter().find(|(row, _)| row.name == name) else {
            return Err(JournalError::NoSubscription { name: name.into() });
        };
        self.run(Durability::Fsync, move |storage, _| storage.forget(row.id))
    }

    /// The subscriptions that nobody in this process has. Waits for the disk.
    pub fn absent(&self) -> Result<Vec<SubscriptionRow>, JournalError> {
        let known = self.shared.read(|reader| reader.subscriptions())?;
        // Whoever comes meanwhile is here.
        let here = here(&self.registry);
        let rows = known.into_iter().map(|(row, _)| row);
        Ok(rows.filter(|row| !here.contains(&row.id)).collect())
    }

    /// Notes who is here, and lets go of the subscriptions that have not been since a time, with their
    /// backlogs; their names. `None`: of none. Waits for the disk.
    pub fn forget_absent(&self, since: Option<WallSeconds>) -> Result<Vec<String>, JournalError> {
        let (registry, shared) = (self.registry.clone(), Arc::downgrade(&self.shared));
        self.run(Durability::Os, move |storage, _| {
            let Some(shared) = shared.upgrade() else {
                return Ok(Vec::new());
            };
            // The writer makes subscriptions as well: nobody comes in between.
            let here = here(&registry);
            storage.see(&here, (shared.clock)())?;
            match since {
                Some(since) => storage.expire(&here, since),
                None => Ok(Vec::new()),
            }
        })
    }

    /// Lets go of events that were accepted before a time and that nobody needs, and looks at `limit` for
    /// that at most: first at those that have become old, then again at those that were needed. Waits
    /// for the disk.
    pub fn retain(
        &self,
        accepted_before: WallSeconds,
        limit: usize,
    ) -> Result<Retained, JournalError> {
        let place = self.again.clone();
        self.run(Durability::Os, move |storage, head| {
            let mut place = lock(&place);
            let horizon = Horizon {
                accepted_before,
                limit,
                again: *place,
            };
            let retained = storage.retain(horizon, head)?;
            // Should the commit fail, that part is looked at in the next round.
            *place = retained.again.unwrap_or(*place);
            Ok(retained)
        })
    }

    /// To be called now and then: lets go of what need not be kept. `goes_on` is asked between two
    /// commits. Waits for the disk, for many commits perhaps.
    pub fn upkeep(
        &self,
        keeping: &Keeping,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Upkeep, JournalError> {
        let now = (self.shared.clock)();
        let since = keeping.absent_ttl.map(|ttl| now - ttl);
        let mut done = Upkeep {
            subscriptions: self.forget_absent(since)?,
            ..Upkeep::default()
        };
        let Some(retention) = keeping.retention else {
            return Ok(done);
        };
        self.advance()?;
        let mut left = LOOKED_AT_AGAIN;
        while left > 0 && goes_on() {
            let retained = self.retain(now - retention, keeping.portion)?;
            done.events += retained.events as u64;
            match retained.again {
                None => {}
                Some(0) => break,
                Some(_) => left = left.saturating_sub(keeping.portion),
            }
        }
        Ok(done)
    }

    /// Lanes that are caught up go on behind events that are not theirs, in the file as well.
    fn advance(&self) -> Result<(), JournalError> {
        let (registry, shared) = (self.registry.clone(), Arc::downgrade(&self.shared));
        self.run(Durability::Os, move |_, _| {
            if let Some(shared) = shared.upgrade() {
                // What was committed before this has been offered to the lanes: the writer does that.
                super::advance(&registry, shared.committed());
            }
            Ok(())
        })?;
        self.flush(Durability::Os)
    }
}

/// The subscriptions of this process.
pub(super) fn here(registry: &Registry) -> Vec<SubscriptionId> {
    let registry = lock(registry);
    let here = registry.iter().filter_map(Weak::upgrade);
    here.map(|subscription| subscription.id()).collect()
}
