//! A lane as a whole: whether it has come to rest, and the end of all that waits in it.

use super::consumer::{POPPING, UNFILLED};
use super::holding::NEVER;
use super::{Entry, Lane, Nanos, Order, Until};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::sync::lock;

impl<O: Ops> Lane<O> {
    /// Handlers at work, if no other could be started now; none: one could.
    pub(in crate::engine) fn at_rest(&self) -> Option<usize> {
        if self.options.passive {
            return Some(0);
        }
        let mut consumer = lock(&self.consumer);
        let on_its_way = |level| self.has_more(level) && self.wants_more(level);
        if consumer.barred & UNFILLED != 0 || Priority::ALL.into_iter().any(on_its_way) {
            return None;
        }
        let startable = self.may_start(&consumer) && self.has_work(&mut consumer);
        (!startable).then(|| self.running())
    }

    /// Whether there are events of a level that it was not given.
    pub(super) fn has_more(&self, level: Priority) -> bool {
        self.backing().is_some_and(|it| it.has_more(level))
    }

    /// Whether a level is to be given more, if there is more.
    pub(in crate::engine) fn wants_more(&self, level: Priority) -> bool {
        self.window_room(level) >= self.options.bound.div_ceil(2)
    }

    /// Lets go of everything that waits, counted as dropped. The gate must not push meanwhile.
    pub(in crate::engine) fn empty(&self) -> Vec<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        let left = consumer.drain();
        self.all_left();
        left
    }

    /// Gives everything back that waits, for who lets it in anew. The gate must not push meanwhile.
    pub(in crate::engine) fn take_back(&self) -> Vec<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        let left = consumer.take_all();
        self.all_left();
        left
    }

    /// Lets an entry in that was tried before, in the life of another process: before all that was
    /// not, and not before its time. Returns when to come by, if that is earlier than somebody does.
    pub(in crate::engine) fn resume(
        &self,
        mut entry: Entry<O>,
        until: Option<Until>,
    ) -> Option<Nanos> {
        if let Some(Until::Due(due)) = until {
            return self.put_off(entry, due);
        }
        entry.rare().unordered = self.options.order == Order::Computed;
        let mut consumer = lock(&self.consumer);
        match until {
            Some(Until::Due(due) | Until::Retry(due)) => consumer.hold_begun(entry, due),
            None => consumer.admit_begun(entry),
        }
        self.count_aside(&consumer, false);
        consumer.arm()
    }

    /// For the gate: the same for the next attempt of one that has others in front of it, which it has
    /// let in. It waits for its time when its turn has come.
    pub(in crate::engine) fn queue_retry(&self, mut entry: Entry<O>, due: Nanos) {
        entry.rare().unordered = self.options.order == Order::Computed;
        lock(&self.consumer).queue_begun(entry, due);
    }

    /// A fault on purpose, for tests of what has to notice it: what comes next, or else what waits
    /// for its time, is gone without a trace. None: nothing waits.
    pub fn lose(&self, now: Nanos) -> Option<Entry<O>> {
        let mut consumer = lock(&self.consumer);
        let next = consumer.next(now, self.occupied());
        let entry = match next {
            Some(entry) => {
                if consumer.barred & POPPING == 0 {
                    consumer.leave(entry.token, None);
                }
                consumer.barred &= !POPPING;
                entry
            }
            None => consumer.holding.pop(NEVER)?.1.entry,
        };
        self.leaves(entry.level, 1);
        Some(entry)
    }
}
