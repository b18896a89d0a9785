//! What an entry through the gate leaves to be done once no lock is held: payloads to
//! drop, parties to wake, lanes to signal.

use super::waiting::Waiter;
use crate::engine::clock::Nanos;
use crate::engine::digest::Digest;
use crate::engine::lane::Lane;
use crate::engine::ops::{Ops, wake_all};
use crate::engine::router::Route;
use crate::engine::settlement::{Envelope, Outcome, Woken};
use crate::engine::sync::{Arc, Shared};
use crate::engine::timers::Place;

/// A lane, and an event that it let go of.
type Dropped<O> = (Arc<Lane<O>>, Shared<Envelope<O>>);

/// What is to be done once no lock is held.
///
/// Mostly there is nothing, which costs one word.
pub struct Effects<O: Ops>(Option<Box<PutOff<O>>>);

pub(super) struct PutOff<O: Ops> {
    /// Events that lanes let go of; their outcome is [`Outcome::Dropped`].
    dropped: Vec<Dropped<O>>,
    /// Waiters that were let in: their lanes are to be signalled, and their keys are seen.
    pub(super) admitted: Vec<Waiter<O>>,
    /// Waiters that were refused: their keys are as free as they were.
    pub(super) refused: Vec<Waiter<O>>,
    pub(super) wakers: Vec<O::Waker>,
    /// Lanes to look at, and when.
    timers: Vec<(Nanos, Place)>,
    /// Only to be dropped: a route may be the last to hold a lane and its handler.
    retired: Vec<Arc<Route<O>>>,
    /// Only to be dropped: the payload's destructor is outside code.
    forgotten: Vec<Shared<Envelope<O>>>,
}

impl<O: Ops> Default for Effects<O> {
    fn default() -> Self {
        Self(None)
    }
}

impl<O: Ops> Effects<O> {
    #[cold]
    pub(super) fn put_off(&mut self) -> &mut PutOff<O> {
        self.0.get_or_insert_with(|| {
            Box::new(PutOff {
                dropped: Vec::new(),
                admitted: Vec::new(),
                refused: Vec::new(),
                wakers: Vec::new(),
                timers: Vec::new(),
                retired: Vec::new(),
                forgotten: Vec::new(),
            })
        })
    }

    /// A lane has let go of an event and counted that.
    pub(in crate::engine) fn let_go(&mut self, lane: &Arc<Lane<O>>, event: Shared<Envelope<O>>) {
        self.put_off().dropped.push((lane.clone(), event));
    }

    #[inline]
    pub(super) fn wake(&mut self, woken: Woken<O>) {
        if let Some(woken) = woken {
            self.put_off().wakers.extend(woken);
        }
    }

    pub(super) fn come_by(&mut self, due: Nanos, lane: &Lane<O>) {
        self.put_off().timers.push((due, lane.place()));
    }

    /// When to come by where.
    pub(in crate::engine) fn timers(&mut self) -> Vec<(Nanos, Place)> {
        let put_off = self.0.as_mut();
        put_off.map_or_else(Vec::new, |put_off| std::mem::take(&mut put_off.timers))
    }

    pub(super) fn retire(&mut self, routes: impl IntoIterator<Item = Arc<Route<O>>>) {
        self.put_off().retired.extend(routes);
    }

    pub(super) fn forget(&mut self, events: impl IntoIterator<Item = Shared<Envelope<O>>>) {
        self.put_off().forgotten.extend(events);
    }

    /// Whether there is nothing to do.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Does what was put off. Called with no lock held. Returns the keys of events that were let in,
    /// and of those that were refused.
    pub fn carry_out(self) -> (Vec<Digest>, Vec<Digest>) {
        let Some(put_off) = self.0 else {
            return (Vec::new(), Vec::new());
        };
        let PutOff {
            dropped,
            admitted,
            refused,
            mut wakers,
            timers: _,
            retired,
            forgotten,
        } = *put_off;
        for (lane, event) in dropped {
            wakers.extend(event.settle(&lane, Outcome::Dropped).into_iter().flatten());
        }
        let mut claims = Vec::new();
        for waiter in admitted {
            signal(&waiter.route);
            claims.extend(waiter.claim);
        }
        let free = refused.into_iter().filter_map(|waiter| waiter.claim);
        let free = free.collect();
        wake_all(wakers);
        drop((retired, forgotten));
        (claims, free)
    }
}

/// Schedules lanes that got work and were idle. Called with no lock held.
#[inline]
pub(super) fn signal<O: Ops>(route: &Route<O>) {
    route.lanes.iter().for_each(Lane::rouse);
}
