//! The way of a delivery that failed, or came to its end without a call: to its next
//! attempt, or through the dead letter queue to its settlement.

use super::breaker;
use super::bus::{Bus, Next};
use super::clock::Nanos;
use super::lane::{Doom, Entry, Failed, Lane, Letters, Turn, Verdict};
use super::ops::{Cause, Dying, Ops, Seat, Sink};
use super::settlement::Outcome;
use super::sync::Arc;

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
                lane.hold(entry, failed, (after, counted), work, proceed, now)
            }
            Verdict::Dead(cause, failure) => {
                entry.rare().first_failure.get_or_insert(now);
                let doom = Doom { cause, failure };
                self.bury(lane, entry, doom, work, proceed, now)
            }
        };
        self.after(lane, turn, now)
    }

    /// There may be room for dead letters again.
    pub fn room_for_letters(&self) {
        for lane in self.lanes() {
            if lane.unpark() {
                lane.seat().schedule(lane.clone());
            }
        }
    }

    /// The letter first: a delivery that was settled without one would be gone.
    fn bury(
        &self,
        lane: &Arc<Lane<O>>,
        entry: Entry<O>,
        doom: Doom<O>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Turn<O> {
        if lane.options.letters != Letters::None {
            let dying = Dying {
                lane,
                entry: &entry,
                cause: doom.cause,
                failure: Some(&doom.failure),
                now,
            };
            if self.sink.keep(&dying).is_err() {
                return lane.park(entry, Some(doom), work, now);
            }
        }
        self.settle(
            lane,
            &entry,
            Outcome::Dead(doom.failure),
            work,
            proceed,
            now,
        )
    }

    /// Ends a delivery that is not to be called any more; gives back one that is.
    #[cold]
    pub(super) fn end_unheard(
        &self,
        lane: &Arc<Lane<O>>,
        mut entry: Entry<O>,
        proceed: bool,
        now: Nanos,
    ) -> Result<Turn<O>, Entry<O>> {
        let doom = entry.rare.as_mut().and_then(|rare| rare.doom.take());
        if doom.is_none() && !entry.is_expired(now) {
            return Err(entry);
        }
        // It was counted as an attempt when it was taken.
        entry.attempt = entry.attempt.saturating_sub(1);
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, breaker::Outcome::Ignored, now);
        }
        if let Some(doom) = doom {
            return Ok(self.bury(lane, entry, doom, None, proceed, now));
        }
        if lane.options.letters == Letters::FailedAndExpired {
            let dying = Dying {
                lane,
                entry: &entry,
                cause: Cause::Expired,
                failure: None,
                now,
            };
            if self.sink.keep(&dying).is_err() {
                return Ok(lane.park(entry, None, None, now));
            }
        }
        Ok(self.settle(lane, &entry, Outcome::Expired, None, proceed, now))
    }
}
