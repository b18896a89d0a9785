//! How far a subscription may be behind, and the line of publishers that wait for one which is.
//!
//! Behind is the distance from what a subscription has settled to the number that was given last.
//! Numbers are given under the gate; up to which one that may go on without a look at the
//! subscriptions is kept, and worked out again only there.

use std::collections::VecDeque;
use std::sync::Arc;

use super::publication::Publication;
use super::window::Window;
use super::{Durable, Written};
use crate::engine::bus::Bus;
use crate::engine::lane::LaneId;
use crate::engine::ops::Ops;
use crate::engine::store::Durability;
use crate::engine::sync::atomic::{AtomicU64, Ordering};
use crate::engine::sync::{Mutex, MutexGuard, lock};

/// Events that wait for their numbers.
pub(super) struct InLine<O: Ops> {
    pub(super) written: Vec<Written<O>>,
    pub(super) durability: Durability,
    pub(super) publication: Arc<Publication<O>>,
}

/// First come, first served.
pub(super) type Line<O> = VecDeque<InLine<O>>;

/// See the module.
pub(super) struct Backlog<O: Ops> {
    limit: Option<u64>,
    /// Numbers up to this one are given without a look; none, while somebody waits.
    free_through: AtomicU64,
    /// The lane that those in line wait for; 0: they wait for another reason, or nobody does.
    holder: AtomicU64,
    line: Mutex<Line<O>>,
}

/// Where the numbers that are given next stand.
pub(super) enum Standing<O: Ops> {
    /// All subscriptions are near enough.
    Free,
    /// This one is furthest behind, and too far, or others wait for it already; none: it has gone, and they still wait.
    Behind(Option<Arc<Window<O>>>),
}

/// The subscription that is furthest behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Furthest {
    /// By so many events; never fewer than it has to do, retries that wait not counted.
    pub events: u64,
    /// Its name; none: no subscription is at work.
    pub subscription: Option<String>,
    /// So many publishers wait.
    pub publishers: usize,
}

impl<O: Ops> Backlog<O> {
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self {
            limit,
            free_through: AtomicU64::new(0),
            holder: AtomicU64::new(0),
            line: Mutex::default(),
        }
    }

    pub(super) fn line(&self) -> MutexGuard<'_, Line<O>> {
        lock(&self.line)
    }

    pub(super) fn is_anybody_in_line(&self) -> bool {
        self.limit.is_some() && !self.line().is_empty()
    }

    /// Whether publishers wait for this lane.
    pub(super) fn waits_for(&self, lane: LaneId) -> bool {
        // Whoever settles something looks here afterwards, and whoever writes this looks afterwards at
        // what is settled: one of them sees the other, as both pass the lock of what is settled.
        self.holder.load(Ordering::SeqCst) == lane
    }

    /// Subscriptions have come or gone. They are counted as they are now, or they will be.
    pub(super) fn changed(&self) {
        let _nobody_looks = self.line();
        self.free_through.store(0, Ordering::Release);
    }

    /// Under the gate: somebody lines up.
    pub(super) fn line_up(&self, line: &mut Line<O>, who: InLine<O>) {
        self.free_through.store(0, Ordering::Release);
        line.push_back(who);
    }

    /// The line waits for this lane. Whether that is new: then it is to be looked at again.
    pub(super) fn wait_for(&self, lane: LaneId) -> bool {
        self.holder.swap(lane, Ordering::SeqCst) != lane
    }
}

impl<O: Ops> Durable<O> {
    /// How many events a subscription may be behind.
    pub fn max_backlog(&self) -> Option<u64> {
        self.backlog.limit
    }

    /// Under the gate: whether so many numbers may be given from `first` on, to somebody who overtakes nobody.
    pub(super) fn standing(&self, first: u64, count: usize) -> Standing<O> {
        let Some(limit) = self.backlog.limit else {
            return Standing::Free;
        };
        // More than there is ever room for come when there is nothing to do, or they would never.
        let last = (first - 1).saturating_add((count as u64).min(limit));
        if last <= self.backlog.free_through.load(Ordering::Acquire) {
            return Standing::Free;
        }
        let line = self.backlog.line();
        self.look(&line, last, limit, line.is_empty())
    }

    /// Under the gate: the same for the first in line.
    pub(super) fn standing_of_first(
        &self,
        line: &Line<O>,
        first: u64,
        count: usize,
    ) -> Standing<O> {
        let limit = self.backlog.limit.unwrap_or(u64::MAX);
        let last = (first - 1).saturating_add((count as u64).min(limit));
        self.look(line, last, limit, true)
    }

    fn look(&self, line: &Line<O>, last: u64, limit: u64, is_first: bool) -> Standing<O> {
        let Some((settled, window)) = self.furthest() else {
            return match is_first {
                true => Standing::Free,
                false => Standing::Behind(None),
            };
        };
        let free_through = settled.saturating_add(limit);
        if last > free_through || !is_first {
            return Standing::Behind(Some(window));
        }
        if line.is_empty() {
            self.backlog
                .free_through
                .store(free_through, Ordering::Release);
        }
        Standing::Free
    }

    /// Where one is held back by a few that hang, and is through with the others, nobody waits for it.
    pub(super) fn get_on(&self, window: &Window<O>) -> bool {
        let least = self.backlog.limit.map_or(1, |limit| (limit / 2).max(1));
        window.leave_behind(self.refiller.through(), least)
    }

    /// The one that is at work and furthest behind, and up to where it is through.
    fn furthest(&self) -> Option<(u64, Arc<Window<O>>)> {
        let offered = self.refiller.through();
        let gaps = lock(&self.open).as_ref().map(|open| open.gaps.clone())?;
        let windows = lock(&self.windows);
        let places = windows.values().filter_map(|window| {
            let (through, left) = window.settled_through(offered)?;
            Some((gaps.close(through).saturating_sub(left), window))
        });
        let (settled, window) = places.min_by_key(|(settled, _)| *settled)?;
        Some((settled, window.clone()))
    }

    /// The subscription that is furthest behind, of those that are here and not paused. Waits for nothing.
    pub fn furthest_behind(&self, bus: &Bus<O>) -> Furthest {
        let last = bus.gate.last_number();
        let publishers = self.backlog.line().len();
        match self.furthest() {
            None => Furthest {
                publishers,
                ..Furthest::default()
            },
            Some((settled, window)) => Furthest {
                events: last.saturating_sub(settled),
                subscription: Some(window.name().to_owned()),
                publishers,
            },
        }
    }
}
