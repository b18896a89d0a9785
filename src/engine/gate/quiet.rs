//! When nothing is queued, running or waiting any more, and who wants to know.

use super::effects::Effects;
use super::{Gate, State};
use crate::engine::lane::LaneId;
use crate::engine::ops::Ops;
use crate::engine::sync::{
    atomic::{Ordering, fence},
    lock,
};

impl<O: Ops> Gate<O> {
    /// Registers whom to wake when nothing is queued, running or waiting, but for the lane that is
    /// excused (the caller's own); gives it back if so now.
    pub fn when_quiet(&self, waker: O::Waker, excused: Option<LaneId>) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        self.draining.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if state.is_quiet(excused) {
            self.draining.fetch_sub(1, Ordering::SeqCst);
            return Err(waker);
        }
        state.drainers.push((waker, excused));
        Ok(())
    }

    /// Whether nothing is queued, running or waiting, but for the lane that is excused.
    pub fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        lock(&self.state).is_quiet(excused)
    }

    /// To be called after a handler's end in a lane that starts nothing more for now.
    #[inline]
    pub fn after_settlement(&self, effects: &mut Effects<O>) {
        // Either a drainer sees that the handler has ended, or this sees the drainer.
        fence(Ordering::SeqCst);
        if self.draining.load(Ordering::SeqCst) > 0 {
            self.notice_quiet(&mut lock(&self.state), effects);
        }
    }

    pub(super) fn notice_quiet(&self, state: &mut State<O>, effects: &mut Effects<O>) {
        let drainers = std::mem::take(&mut state.drainers);
        let before = drainers.len();
        for (waker, excused) in drainers {
            if state.is_quiet(excused) {
                effects.put_off().wakers.push(waker);
            } else {
                state.drainers.push((waker, excused));
            }
        }
        self.draining
            .fetch_sub(before - state.drainers.len(), Ordering::SeqCst);
    }
}

impl<O: Ops> State<O> {
    fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        self.waiters.is_empty()
            && self.held.is_empty()
            && self
                .doors
                .iter()
                .flatten()
                .all(|door| Some(door.lane.id) == excused || door.lane.is_quiet())
    }
}
