//! When there is nothing left to do, or nothing for now, and who wants to know.

use super::effects::Effects;
use super::{Gate, State};
use crate::engine::lane::LaneId;
use crate::engine::ops::Ops;
use crate::engine::sync::{atomic::Ordering, lock};

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calm {
    /// Nothing is queued, running or waiting, but for the lane that is excused (the caller's own).
    Quiet(Option<LaneId>),
    /// At most so many handlers run, and none could be started before time passes or somebody does
    /// something.
    Still(usize),
}

impl<O: Ops> Gate<O> {
    /// Registers whom to wake when it is so calm; gives it back if so now.
    pub fn when(&self, calm: Calm, waker: O::Waker) -> Result<(), O::Waker> {
        let mut state = lock(&self.state);
        self.draining.fetch_add(1, Ordering::Relaxed);
        if state.is(calm) {
            self.draining.fetch_sub(1, Ordering::Relaxed);
            return Err(waker);
        }
        state.drainers.push((waker, calm));
        Ok(())
    }

    /// Whether it is so calm now.
    pub fn is(&self, calm: Calm) -> bool {
        lock(&self.state).is(calm)
    }

    /// To be called after a handler's end in a lane that starts nothing more for now.
    #[inline]
    pub fn after_settlement(&self, effects: &mut Effects<O>) {
        if self.is_watched() {
            self.notice_quiet(&mut lock(&self.state), effects);
        }
    }

    /// Whether somebody waits for it to be calm.
    #[inline]
    pub fn is_watched(&self) -> bool {
        // After a handler's end: either a drainer sees that the handler has ended, or this sees the
        // drainer; who comes second gets the lane's lock from the first.
        self.draining.load(Ordering::Relaxed) > 0
    }

    pub(super) fn notice_quiet(&self, state: &mut State<O>, effects: &mut Effects<O>) {
        let drainers = std::mem::take(&mut state.drainers);
        let before = drainers.len();
        for (waker, calm) in drainers {
            if state.is(calm) {
                effects.put_off().wakers.push(waker);
            } else {
                state.drainers.push((waker, calm));
            }
        }
        self.draining
            .fetch_sub(before - state.drainers.len(), Ordering::Relaxed);
    }
}

impl<O: Ops> State<O> {
    fn is(&self, calm: Calm) -> bool {
        match calm {
            Calm::Quiet(excused) => self.is_quiet(excused),
            Calm::Still(running) => self.is_still(running),
        }
    }

    fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        self.waiters.is_empty()
            && self.held.is_empty()
            && self.uncommitted == 0
            && self.in_line == 0
            && self
                .doors
                .iter()
                .flatten()
                .all(|door| Some(door.lane.id) == excused || door.lane.is_quiet())
    }

    /// No handler can add to a lane that was looked at before its own: what it publishes has to pass
    /// the gate, which is locked.
    fn is_still(&self, running: usize) -> bool {
        let mut left = running;
        self.uncommitted == 0
            && self.doors.iter().flatten().all(|door| {
                if door.is_refilled() {
                    return false;
                }
                let Some(running) = door.lane.at_rest() else {
                    return false;
                };
                let enough = running <= left;
                left = left.saturating_sub(running);
                enough
            })
    }
}
