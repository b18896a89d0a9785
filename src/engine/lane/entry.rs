//! One delivery: an event in one lane, on its way from the gate to its end.

use std::ops::{Deref, DerefMut};

use crate::engine::breaker::Permit;
use crate::engine::clock::Nanos;
use crate::engine::ledger::Tallied;
use crate::engine::ops::{Cause, Ops};
use crate::engine::priority::Priority;
use crate::engine::settlement::Envelope;
use crate::engine::sync::{Arc, Shared};

/// One event in one lane. It changes hands several times on its way, and each time it is one word.
pub struct Entry<O: Ops>(Box<Delivery<O>>);

/// What an [`Entry`] is of.
pub struct Delivery<O: Ops> {
    /// The event's number on the bus.
    pub sequence: u64,
    /// When it was accepted; if that was ahead of its time, when it was due.
    pub at: Nanos,
    /// Events with equal tokens do not overlap in a lane ordered by token.
    pub token: u64,
    /// The event.
    pub event: Shared<Envelope<O>>,
    /// What few deliveries have.
    pub rare: Option<Box<Rare<O>>>,
    /// While it runs: the breaker's permit, as a number.
    permit: u64,
    /// Starts so far that count as attempts.
    pub attempt: u32,
    /// Its level.
    pub level: Priority,
}

/// What few deliveries have, apart so that the others stay small.
pub struct Rare<O: Ops> {
    /// When it is too late to start it.
    pub expires: Option<Nanos>,
    /// When it failed for the first time.
    pub first_failure: Option<Nanos>,
    /// How often in a row it failed as the probe of a breaker.
    pub(super) probes: u32,
    /// How often in a row there was no room on the bus for what its handler publishes.
    pub(in crate::engine) crowded: u32,
    /// What it is ordered by is not worked out yet, though it did not come from the queue.
    pub(super) unordered: bool,
    /// It came ahead of its time.
    pub(super) delayed: bool,
    /// Its next attempt is not to be started before this, though its turn may come.
    pub(super) not_before: Nanos,
    /// It has failed for good, and there was no room for its dead letter.
    pub(in crate::engine) doom: Option<Doom<O>>,
    /// It is delivered again.
    pub letter: Option<Letter>,
}

/// What a delivery waits for that another process, or an earlier opening of the journal, has begun or was to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// The time to which its publisher has put it off.
    Due(Nanos),
    /// The time of its next attempt.
    Retry(Nanos),
}

/// The dead letter that a delivery is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Its id.
    pub id: String,
    /// Who holds it in the queue.
    pub holder: u64,
    /// The subscription that it failed in, by which failures of one cause are told.
    pub subscription: String,
}

/// How a delivery failed for good.
pub struct Doom<O: Ops> {
    /// Why.
    pub cause: Cause,
    /// With what.
    pub failure: Arc<O::Failure>,
}

impl<O: Ops> Default for Rare<O> {
    fn default() -> Self {
        Self {
            expires: None,
            first_failure: None,
            probes: 0,
            crowded: 0,
            unordered: false,
            delayed: false,
            not_before: 0,
            doom: None,
            letter: None,
        }
    }
}

const NO_PERMIT: u64 = u64::MAX;

impl<O: Ops> Deref for Entry<O> {
    type Target = Delivery<O>;

    #[inline]
    fn deref(&self) -> &Delivery<O> {
        &self.0
    }
}

impl<O: Ops> DerefMut for Entry<O> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Delivery<O> {
        &mut self.0
    }
}

impl<O: Ops> Entry<O> {
    /// For the gate: an event that was accepted.
    #[inline]
    pub(in crate::engine) fn new(
        sequence: u64,
        at: Nanos,
        token: u64,
        level: Priority,
        event: Shared<Envelope<O>>,
        expires: Option<Nanos>,
    ) -> Self {
        let rare = expires.map(|expires| {
            Box::new(Rare {
                expires: Some(expires),
                ..Rare::default()
            })
        });
        Self(Box::new(Delivery {
            sequence,
            at,
            token,
            event,
            rare,
            permit: NO_PERMIT,
            attempt: 0,
            level,
        }))
    }

    /// The event alone.
    #[inline]
    pub fn into_event(self) -> Shared<Envelope<O>> {
        self.0.event
    }

    /// Its rare part, made when first needed.
    pub(in crate::engine) fn rare(&mut self) -> &mut Rare<O> {
        self.rare.get_or_insert_default()
    }

    #[inline]
    pub(super) fn permit(&mut self, permit: Option<Permit>) {
        self.permit = permit.map_or(NO_PERMIT, Permit::into_number);
    }

    /// The breaker's permit, to be reported with how it went.
    #[inline]
    pub(in crate::engine) fn take_permit(&mut self) -> Option<Permit> {
        let permit = std::mem::replace(&mut self.permit, NO_PERMIT);
        (permit != NO_PERMIT).then(|| Permit::from_number(permit))
    }

    /// Whether it runs in order to find out if calls succeed again.
    pub(super) fn is_probe(&self) -> bool {
        self.permit != NO_PERMIT && Permit::from_number(self.permit).is_probe()
    }

    /// The dead letter that it is of, if it is of one.
    #[inline]
    pub fn letter(&self) -> Option<&Letter> {
        self.rare.as_ref()?.letter.as_ref()
    }

    /// Whether it is of a dead letter, which has its room in the queue, and may be started.
    pub(super) fn has_its_room(&self) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| rare.letter.is_some() && rare.doom.is_none())
    }

    /// Whether it is too late to start it.
    pub(in crate::engine) fn is_expired(&self, now: Nanos) -> bool {
        let expires = self.rare.as_ref().and_then(|rare| rare.expires);
        expires.is_some_and(|expires| expires <= now)
    }

    /// The time of its next attempt, if that has not come.
    pub(super) fn early(&self, now: Nanos) -> Option<Nanos> {
        let rare = self.rare.as_ref()?;
        (rare.not_before > now).then_some(rare.not_before)
    }

    /// A token that no other entry is likely to have.
    pub(in crate::engine) fn own_token(&self) -> u64 {
        self.sequence.rotate_left(32) ^ u64::MAX
    }

    /// What it is ordered by could not be worked out: it holds no token while it waits, and is asked
    /// again.
    pub(in crate::engine) fn unordered(&mut self) {
        self.rare().unordered = true;
    }

    pub(super) fn is_unordered(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.unordered)
    }
}

/// The end of a handler's run, told to the lane.
pub struct Finished {
    /// How it ended.
    pub tally: Tallied,
    /// The token of the entry.
    pub token: u64,
    /// How long the handler ran; none if it was not called.
    pub work: Option<Nanos>,
}
