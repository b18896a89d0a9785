//! The way of a delivery that failed, or came to its end without a call: to its next
//! attempt, or through the dead letter queue to its settlement.

use super::breaker;
use super::bus::{Bus, Next};
use super::clock::Nanos;
use super::lane::{Doom, Entry, Failed, Lane, Letters, Turn, Verdict};
use super::ops::{Cause, Dying, Kept, Ops, Seat, Sink};
use super::settlement::Outcome;
use super::sync::{Arc, atomic::Ordering};

impl<O: Ops> Bus<O> {
    /// For an executor: the run failed so, and this was the lane's verdict
    /// ([`Lane::judge`]). With `proceed`, the lane's next event.
    #[allow(clippy::too_many_arguments)] // of one delivery, and each from elsewhere
    pub fn fail(
        &self,
        lane: &Arc<Lane<O>>,
        mut entry: Entry<O>,
        failed: &Failed<O::Failure>,
        verdict: Verdict<O::Failure>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Option<Next<O>> {
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, failed.blame(), now);
        }
        let turn = match verdict {
            Verdict::Again { after, counted } => {
                if let Some(backing) = &lane.options.backing
                    && entry.letter().is_none()
                {
                    let attempts = entry.attempt - u32::from(!counted);
                    backing.retry(entry.level, entry.sequence, attempts, after);
                }
                lane.hold(entry, failed, (after, counted), work, proceed, now)
            }
            Verdict::Dead(cause, failure) => {
                entry.rare().first_failure.get_or_insert(now);
                let failure = Some(failure);
                let dying = self.dying(lane, entry, cause, failure, work, now);
                self.bury(dying, proceed)?
            }
        };
        self.after(lane, turn, now)
    }

    /// For an executor, in place of [`finish`](Self::finish): a delivery of a dead letter has this
    /// outcome, which is no failure.
    #[cold]
    pub fn finish_letter(
        &self,
        lane: &Arc<Lane<O>>,
        mut entry: Entry<O>,
        outcome: &Outcome<O::Failure>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Option<Next<O>> {
        let (cause, told) = match outcome {
            Outcome::Done => (Cause::Done, breaker::Outcome::Success),
            _ => (Cause::Filtered, breaker::Outcome::Ignored),
        };
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, told, now);
        }
        let dying = self.dying(lane, entry, cause, None, work, now);
        let turn = self.bury(dying, proceed)?;
        self.after(lane, turn, now)
    }

    /// For the dead letter queue: what it had begun with [`Kept::Later`] is over, well or not.
    pub fn letter_kept(&self, mut dying: Box<Dying<O>>, kept: bool, now: Nanos) {
        let lane = dying.lane.clone();
        let turn = if kept && dying.as_one {
            let outcome = dying.outcome();
            self.settle_written(&lane, &mut dying.entry, outcome, dying.work, now)
        } else if kept {
            self.settle_dying(&mut dying, false, now)
        } else {
            self.park(*dying, now)
        };
        let next = self.after(&lane, turn, now);
        debug_assert!(next.is_none());
    }

    /// For whoever had its settlement written, as one with what its handler left to be done: the
    /// delivery is over, and well.
    pub fn finish_written(
        &self,
        lane: &Arc<Lane<O>>,
        entry: &mut Entry<O>,
        work: Option<Nanos>,
        now: Nanos,
    ) {
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, breaker::Outcome::Success, now);
        }
        let turn = self.settle_written(lane, entry, Outcome::Done, work, now);
        let next = self.after(lane, turn, now);
        debug_assert!(next.is_none());
    }

    fn settle_written(
        &self,
        lane: &Arc<Lane<O>>,
        entry: &mut Entry<O>,
        outcome: Outcome<O::Failure>,
        work: Option<Nanos>,
        now: Nanos,
    ) -> Turn<O> {
        if let Some(backing) = &lane.options.backing
            && entry.letter().is_none()
        {
            backing.settled(entry.level, entry.sequence);
        }
        self.settle_here(lane, entry, outcome, work, false, now)
    }

    /// There may be room for dead letters again.
    pub fn room_for_letters(&self) {
        // Either this sees that a lane is parked, or whoever parks it sees the room: see `park`.
        self.room.fetch_add(1, Ordering::SeqCst);
        if !self.parked.swap(false, Ordering::SeqCst) {
            return;
        }
        for lane in self.lanes() {
            if lane.unpark() {
                lane.seat().schedule(lane.clone());
            }
        }
    }

    /// The letter first: a delivery that was settled without one would be gone. None: somebody else
    /// settles it, and its lane goes on then.
    fn bury(&self, mut dying: Dying<O>, proceed: bool) -> Option<Turn<O>> {
        let now = dying.at;
        let wanted = match dying.lane.options.letters {
            Letters::None => false,
            Letters::Failed => dying.failure.is_some(),
            Letters::FailedAndExpired => true,
        };
        if !wanted && dying.entry.letter().is_none() {
            return Some(self.settle_dying(&mut dying, proceed, now));
        }
        match self.sink.keep(Box::new(dying)) {
            Kept::Now(mut dying) => Some(self.settle_dying(&mut dying, proceed, now)),
            Kept::Later => None,
            Kept::Not(dying) => Some(self.park(*dying, now)),
        }
    }

    fn settle_dying(&self, dying: &mut Dying<O>, proceed: bool, now: Nanos) -> Turn<O> {
        let (outcome, work) = (dying.outcome(), dying.work);
        self.settle(&dying.lane, &mut dying.entry, outcome, work, proceed, now)
    }

    fn park(&self, dying: Dying<O>, now: Nanos) -> Turn<O> {
        let Dying {
            lane,
            entry,
            cause,
            failure,
            work,
            heard,
            ..
        } = dying;
        let doom = failure.map(|failure| Doom { cause, failure });
        let mut turn = lane.park(entry, doom, work, now);
        self.parked.store(true, Ordering::SeqCst);
        // Room that was made since was made for nobody.
        if self.room.load(Ordering::SeqCst) != heard {
            turn.schedule |= lane.unpark();
        }
        turn
    }

    fn dying(
        &self,
        lane: &Arc<Lane<O>>,
        entry: Entry<O>,
        cause: Cause,
        failure: Option<Arc<O::Failure>>,
        work: Option<Nanos>,
        now: Nanos,
    ) -> Dying<O> {
        Dying {
            lane: lane.clone(),
            entry,
            cause,
            failure,
            again: false,
            as_one: false,
            work,
            at: now,
            heard: self.room.load(Ordering::SeqCst),
        }
    }

    /// Ends a delivery that is not to be called any more; gives back one that is. None: as in `bury`.
    #[cold]
    pub(super) fn end_unheard(
        &self,
        lane: &Arc<Lane<O>>,
        mut entry: Entry<O>,
        proceed: bool,
        now: Nanos,
    ) -> Result<Option<Turn<O>>, Entry<O>> {
        let doom = entry.rare.as_mut().and_then(|rare| rare.doom.take());
        if doom.is_none() && !entry.is_expired(now) {
            return Err(entry);
        }
        // It was counted as an attempt when it was taken.
        entry.attempt = entry.attempt.saturating_sub(1);
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, breaker::Outcome::Ignored, now);
        }
        let (cause, failure) = match doom {
            Some(Doom { cause, failure }) => (cause, Some(failure)),
            None => (Cause::Expired, None),
        };
        let again = failure.is_some();
        let dying = self.dying(lane, entry, cause, failure, None, now);
        Ok(self.bury(Dying { again, ..dying }, proceed))
    }
}
