//! What becomes of a failed run: another one, now or later, or the end.

use super::consumer::PARKED;
use super::entry::{Doom, Entry, Rare};
use super::holding::Kind;
use super::line::Rank;
use super::{Holds, Lane, Nanos, Order, Turn};
use crate::engine::breaker;
use crate::engine::clock::SECOND;
use crate::engine::ops::{Cause, Ops};
use crate::engine::retry::{Attempts, Failure, Jitter, Next, RetryPolicy};
use crate::engine::sync::{Arc, lock};

/// How a run ended that did not succeed.
pub enum Failed<F> {
    /// The handler failed, and may do better the next time.
    Passing(Arc<F>),
    /// The same, by a cancellation: it says nothing about what the breaker looks after.
    Cancelled(Arc<F>),
    /// The handler failed, and will again.
    Final(Arc<F>),
    /// The handler does not want the event, now or ever.
    Rejected(Arc<F>),
    /// The handler wants it after this time.
    Later(Nanos),
    /// There was no room on the bus for what the handler publishes.
    Crowded,
}

/// What becomes of it.
pub enum Verdict<F> {
    /// Another run, after this long. Not `counted`: this one was no attempt.
    Again {
        /// How long.
        after: Nanos,
        /// Whether this one was an attempt.
        counted: bool,
    },
    /// It is the end.
    Dead(Cause, Arc<F>),
}

/// How long a handler waits that found no room on the bus.
const CROWDED: RetryPolicy = RetryPolicy {
    max_attempts: u32::MAX,
    initial_delay: SECOND / 100,
    max_delay: SECOND,
    exponential_base: 2.0,
    jitter: Jitter::Factor,
};

/// So many failures in a row of one event as the probe of a breaker are no attempts of its own; then
/// it is taken to be at fault itself.
const PROBES: u32 = 1000;

/// How long a lane whose dead letter found no room waits before it looks by itself.
const PARKED_FOR: Nanos = 5 * SECOND;

impl<F> Failed<F> {
    /// What it says to the breaker.
    pub(in crate::engine) fn blame(&self) -> breaker::Outcome {
        match self {
            Self::Passing(_) | Self::Final(_) => breaker::Outcome::Failure,
            _ => breaker::Outcome::Ignored,
        }
    }
}

impl<O: Ops> Lane<O> {
    /// What becomes of an entry whose run failed so. `random` is uniform in `0.0..1.0`.
    pub fn judge(
        &self,
        entry: &Entry<O>,
        failed: &Failed<O::Failure>,
        random: f64,
    ) -> Verdict<O::Failure> {
        let again = |after| Verdict::Again {
            after,
            counted: false,
        };
        let rare = |of: fn(&Rare<O>) -> u32| entry.rare.as_deref().map_or(0, of);
        let before = entry.attempt.saturating_sub(1);
        let (error, failure, cause) = match failed {
            Failed::Later(after) => return again(*after),
            Failed::Crowded => return again(CROWDED.delay(rare(|rare| rare.crowded) + 1, random)),
            // What a probe finds out is that the breaker was right, and nothing about the event.
            Failed::Passing(_) if entry.is_probe() && rare(|rare| rare.probes) < PROBES => {
                let policy = self.options.retry.as_ref();
                return again(policy.map_or(0, |policy| policy.delay(before.max(1), random)));
            }
            Failed::Rejected(error) => return Verdict::Dead(Cause::Rejected, error.clone()),
            Failed::Final(error) => (error, Failure::Final, Cause::Final),
            Failed::Passing(error) | Failed::Cancelled(error) => {
                (error, Failure::Passing, Cause::Exhausted)
            }
        };
        let mut attempts = Attempts::after(before);
        let next = self.options.retry.as_ref();
        let next = next.map(|policy| attempts.fail(policy, failure, random));
        match next {
            Some(Next::Retry(after)) => Verdict::Again {
                after,
                counted: true,
            },
            Some(Next::GiveUp) | None => Verdict::Dead(cause, error.clone()),
        }
    }

    /// Puts an entry whose run failed off for its next attempt.
    pub(in crate::engine) fn hold(
        &self,
        mut entry: Entry<O>,
        failed: &Failed<O::Failure>,
        (after, counted): (Nanos, bool),
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Turn<O> {
        let keyed = matches!(self.options.order, Order::Token | Order::Computed);
        let unordered = entry.is_unordered();
        entry.attempt -= u32::from(!counted);
        let crowded = matches!(failed, Failed::Crowded);
        let probe = !counted && matches!(failed, Failed::Passing(_));
        let rare = entry.rare();
        rare.crowded = if crowded { rare.crowded + 1 } else { 0 };
        if !(crowded || matches!(failed, Failed::Later(_))) {
            rare.probes = if probe { rare.probes + 1 } else { 0 };
            rare.first_failure.get_or_insert(now);
        }
        let (kind, stays) = match self.options.holds {
            Holds::Level => (Kind::Level, true),
            Holds::Key => (Kind::Place, true),
            Holds::Nothing => (Kind::Free, false),
        };
        // A token that is not known holds nothing.
        let stays = (stays && keyed && !unordered).then_some(entry.level);
        let kind = if unordered && kind == Kind::Free {
            Kind::Place
        } else {
            kind
        };
        let mut consumer = lock(&self.consumer);
        consumer.retries += 1;
        if let Some(work) = work {
            consumer.work.record(work);
        }
        self.come_back(&mut consumer, entry, proceed, now, |consumer, entry| {
            consumer.leave(entry.token, stays);
            consumer.holding.add(now.saturating_add(after), entry, kind);
        })
    }

    /// Takes an entry back that is at its end, and starts nothing but letters before there is room for
    /// its own.
    pub(in crate::engine) fn park(
        &self,
        mut entry: Entry<O>,
        doom: Option<Doom<O>>,
        work: Option<Nanos>,
        now: Nanos,
    ) -> Turn<O> {
        let rare = entry.rare();
        rare.doom = doom;
        rare.unordered = false;
        let mut consumer = lock(&self.consumer);
        if let Some(work) = work {
            consumer.work.record(work);
        }
        consumer.park(now.saturating_add(PARKED_FOR));
        self.come_back(&mut consumer, entry, false, now, |consumer, entry| {
            consumer.leave(entry.token, Some(entry.level));
            let rank = Rank::Begun(entry.sequence);
            consumer.ready.insert(rank, entry);
        })
    }

    /// There may be room for dead letters again. Returns whether to schedule the lane.
    #[must_use]
    pub(in crate::engine) fn unpark(&self) -> bool {
        let mut consumer = lock(&self.consumer);
        if consumer.barred & PARKED == 0 {
            return false;
        }
        consumer.unpark();
        self.look(&mut consumer)
    }

    /// For the gate: a dead letter that is delivered again, behind all that has come. Returns whether
    /// to schedule the lane.
    #[must_use]
    pub(in crate::engine) fn readmit(&self, entry: Entry<O>) -> bool {
        let mut consumer = lock(&self.consumer);
        let rank = Rank::Tail(entry.sequence);
        consumer.ready.insert(rank, entry);
        self.look(&mut consumer)
    }

    /// For the gate: an event that comes ahead of its time. Returns when to come by, if that is
    /// earlier than somebody does.
    pub(in crate::engine) fn put_off(&self, mut entry: Entry<O>, due: Nanos) -> Option<Nanos> {
        let unordered = self.options.order == Order::Computed;
        let rare = entry.rare();
        rare.delayed = true;
        rare.unordered = unordered;
        entry.at = due;
        let mut consumer = lock(&self.consumer);
        consumer.holding.add(due, entry, Kind::Delayed);
        self.count_aside(&consumer, false);
        consumer.arm()
    }

    /// For whoever keeps the time: the lane wanted to be looked at now.
    pub(in crate::engine) fn tick(&self, now: Nanos) -> Turn<O> {
        let mut consumer = lock(&self.consumer);
        consumer.tick(now);
        self.turn(&mut consumer, false, now)
    }
}
