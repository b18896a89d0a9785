//! What a durable lane has set aside: it waits for its key or for a time, and takes no place in the
//! window from what could be started. Without that, one key whose handler hangs would fill the window,
//! and nothing else would be read from the journal.

use super::consumer::Consumer;
use super::{Lane, Ordering};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;

impl<O: Ops> Lane<O> {
    /// For how many more of a level its window has room. As what is set aside is in memory all the same, it
    /// makes room only up to the lane's [hard limit](super::LaneOptions::hard_limit).
    pub fn window_room(&self, level: Priority) -> usize {
        let aside = self.aside[level.index()].load(Ordering::Acquire) as usize;
        let options = &self.options;
        let spare = options.hard_limit() - options.bound;
        let counted = self.depth(level).saturating_sub(aside.min(spare));
        options.bound.saturating_sub(counted)
    }

    /// Counts what is set aside now. Under the consumer's lock. With `tell`, the backing hears of levels
    /// with more than before.
    pub(super) fn count_aside(&self, consumer: &Consumer<O>, tell: bool) {
        let Some(backing) = self.backing() else {
            return;
        };
        for level in Priority::ALL {
            let aside = consumer.aside(level.index()) as u32;
            let before = self.aside[level.index()].load(Ordering::Relaxed);
            if aside == before {
                continue;
            }
            self.aside[level.index()].store(aside, Ordering::Release);
            if tell && aside > before {
                backing.has_room(level);
            }
        }
    }
}
