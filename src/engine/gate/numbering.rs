//! How events of a bus with a journal get their numbers: at once, or when their publishers have
//! waited until those who are behind have less to do. Who waits where is not known here: the gate
//! counts them, and has the line looked at and the numbers given in one step.

use super::effects::Effects;
use super::{Gate, State};
use crate::engine::error::EngineError;
use crate::engine::idempotency::Idempotency;
use crate::engine::ops::Ops;
use crate::engine::sync::lock;

/// Why events got no numbers.
pub enum Unnumbered<E> {
    /// They would have to wait, and do not; or the bus keeps no more of them for its start.
    Refused(EngineError),
    /// The journal did not take them.
    Journal(E),
}

/// What became of events that were brought.
pub enum Taken {
    /// They have numbers.
    Numbered,
    /// They wait in line.
    LinedUp,
}

/// What became of those who were first in line.
pub enum Turn {
    /// They have numbers.
    Numbered,
    /// The journal takes nothing any more.
    Refused,
    /// Their publisher has to look at its keys again, and brings them anew.
    Back,
}

/// The gate, to who numbers events.
pub struct Numbering<'a, W> {
    /// The first number that may be given.
    pub first: u64,
    /// Events go to lanes, and are not kept.
    pub open: bool,
    /// The keys that were seen.
    pub keys: &'a mut Idempotency<W>,
}

impl<O: Ops> Gate<O> {
    /// Gives numbers to events, whose first `append` is told and hands to the journal; or has them wait
    /// in line. It does not wait for anything. They count as waiting until their
    /// [commit](Self::commit).
    pub fn number<E>(
        &self,
        count: usize,
        append: impl FnOnce(Numbering<'_, O::Waker>) -> Result<Taken, Unnumbered<E>>,
    ) -> Result<(), Unnumbered<E>> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let kept = state.held.len() + state.uncommitted;
        let numbering = Numbering {
            first: self.sequencer.last() + 1,
            open: state.open,
            keys: &mut state.keys,
        };
        let taken = match !state.open && kept + count > state.bound {
            true => Err(Unnumbered::Refused(EngineError::NotStarted {
                bound: state.bound,
            })),
            false => append(numbering),
        };
        match taken {
            Ok(Taken::Numbered) => self.give(state, count),
            Ok(Taken::LinedUp) => state.in_line += count,
            Err(refused) => {
                if let Unnumbered::Refused(_) = refused {
                    state.counts.offered += count as u64;
                    state.counts.rejected += count as u64;
                }
                return Err(refused);
            }
        }
        state.counts.offered += count as u64;
        state.counts.waiting += count as u64;
        Ok(())
    }

    fn give(&self, state: &mut State<O>, count: usize) {
        let last = self.sequencer.last() + count as u64;
        self.sequencer.go_on_behind(last);
        state.uncommitted += count;
    }

    /// While the gate is open, asks `next` what became of those who are first in line, and how many
    /// events that is, until it has nothing more to say.
    pub fn serve_line(
        &self,
        effects: &mut Effects<O>,
        mut next: impl FnMut(Numbering<'_, O::Waker>) -> Option<(usize, Turn)>,
    ) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        while state.open {
            let numbering = Numbering {
                first: self.sequencer.last() + 1,
                open: true,
                keys: &mut state.keys,
            };
            let Some((count, turn)) = next(numbering) else {
                break;
            };
            state.in_line -= count;
            match turn {
                Turn::Numbered => {
                    self.give(state, count);
                    continue;
                }
                Turn::Refused => state.counts.rejected += count as u64,
                Turn::Back => state.counts.offered -= count as u64,
            }
            state.counts.waiting -= count as u64;
        }
        self.notice_quiet(state, effects);
    }

    /// So many events leave the line without a number, if `leave` finds them there.
    pub fn leave_line(
        &self,
        count: usize,
        leave: impl FnOnce() -> bool,
        effects: &mut Effects<O>,
    ) -> bool {
        let mut state = lock(&self.state);
        let left = leave();
        if left {
            state.in_line -= count;
            state.counts.waiting -= count as u64;
            state.counts.cancelled += count as u64;
            self.notice_quiet(&mut state, effects);
        }
        left
    }
}
