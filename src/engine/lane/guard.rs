//! The breaker before a lane's handler. A lane that is refused waits for the breaker's
//! next change; it is in the breaker's hands only for so long.

use super::{Lane, Nanos};
use crate::engine::breaker::{Breaker, Change, Outcome, Permit, Refused};
use crate::engine::ops::{Ops, Seat};
use crate::engine::sync::{Arc, Mutex, lock};

/// See the module.
pub(super) struct Guard<O: Ops> {
    breaker: std::sync::Arc<Breaker>,
    bell: std::sync::Arc<Bell<O>>,
    watch: u64,
}

/// Which lane to let go on with the next change, if it waits for that.
struct Bell<O: Ops>(Mutex<Option<Arc<Lane<O>>>>);

impl<O: Ops> Bell<O> {
    fn ring(&self) {
        let lane = lock(&self.0).take();
        if let Some(lane) = lane
            && lane.ask_again()
        {
            lane.seat().schedule(lane.clone());
        }
    }
}

impl<O: Ops> Guard<O> {
    pub(super) fn new(breaker: &std::sync::Arc<Breaker>) -> Self {
        let bell = std::sync::Arc::new(Bell(Mutex::new(None)));
        let watch = breaker.watch({
            let bell = bell.clone();
            move |_| bell.ring()
        });
        Self {
            breaker: breaker.clone(),
            bell,
            watch,
        }
    }

    #[inline]
    pub(super) fn ask(&self, now: Nanos) -> (Result<Permit, Refused>, Option<Change>) {
        self.breaker.ask(now)
    }

    /// Probes that run in another process do not come back.
    pub(super) fn forked(&self, now: Nanos) {
        self.breaker.forget_probes(now);
    }

    /// Waits no more.
    pub(super) fn forsake(&self) {
        let lane = lock(&self.bell.0).take();
        drop(lane);
    }
}

impl<O: Ops> Drop for Guard<O> {
    fn drop(&mut self) {
        self.breaker.unwatch(self.watch);
    }
}

impl<O: Ops> Lane<O> {
    /// How a call went that the breaker had given leave to. Called with no lock held.
    #[inline]
    pub(in crate::engine) fn report_to_breaker(
        &self,
        permit: Permit,
        outcome: Outcome,
        now: Nanos,
    ) {
        if let Some(guard) = &self.guard {
            guard.breaker.report(permit, outcome, now);
        }
    }

    /// What the lane is given was failing in an earlier life. Called with no lock held.
    pub(in crate::engine) fn doubt_breaker(&self, now: Nanos) {
        if let Some(guard) = &self.guard {
            guard.breaker.doubt(now);
        }
    }

    /// A change that the lane's question made. Called with no lock held.
    pub(in crate::engine) fn tell_breaker(&self, change: Option<Change>) {
        if let Some(guard) = &self.guard {
            guard.breaker.tell(change);
        }
    }

    /// For the bus, with no lock held, when a turn was refused: the next change of the breaker lets
    /// the lane go on. True: it can at once, schedule it.
    pub(in crate::engine) fn await_breaker(lane: &Arc<Self>, now: Nanos) -> bool {
        let Some(guard) = &lane.guard else {
            return false;
        };
        let previous = lock(&guard.bell.0).replace(lane.clone());
        drop(previous);
        // A change before this rang for nobody.
        if lane.is_refused() && guard.breaker.is_refusing(now) {
            return false;
        }
        guard.forsake();
        lane.ask_again()
    }
}
