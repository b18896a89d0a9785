//! The end of everything that waits in a bus, at somebody's wish.

use super::effects::Effects;
use super::{Door, Gate};
use crate::engine::clock::Nanos;
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::sync::lock;

impl<O: Ops> Gate<O> {
    /// Lets go of everything that waits in the lanes, counted as dropped. Publishers that waited for the
    /// room get in, and their events go as well.
    pub fn discard(&self, now: Nanos, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        let owed = |door: &&Door<O>| !door.lane.options.passive;
        let doors = state.doors.iter().flatten().filter(owed);
        let lanes: Vec<_> = doors.map(|door| door.lane.clone()).collect();
        let mut waiting = true;
        while std::mem::take(&mut waiting) {
            for lane in &lanes {
                for entry in lane.empty() {
                    effects.let_go(lane, entry.into_event());
                    waiting |= !state.waiters.is_empty();
                }
                for level in Priority::ALL {
                    self.admit_waiters(&mut state, lane.id, level, now, effects);
                }
            }
        }
        self.notice_quiet(&mut state, effects);
    }
}
