//! A lane at one moment.

use super::{CLOSED, LEVELS, Lane, Nanos, PARKED, PAUSED, REFUSED};
use crate::engine::ledger::Tally;
use crate::engine::metrics::Percentiles;
use crate::engine::ops::Ops;
use crate::engine::sync::lock;

/// See the module.
#[derive(Clone, Debug)]
pub struct LaneReport {
    /// Settled deliveries.
    pub tally: Tally,
    /// Deliveries by level that are not settled and do not run, those included that wait for a time.
    pub depth: [usize; LEVELS],
    /// Handlers at work.
    pub running: usize,
    /// Whether one of the depth could be started now, by who looks at it.
    pub startable: bool,
    /// How many of the depth wait for their next attempt.
    pub held: usize,
    /// How many of the depth wait for the time that their publisher has set.
    pub delayed: usize,
    /// Runs that ended so that another one was to follow.
    pub retries: u64,
    /// What keeps it from starting anything, if something does.
    pub stopped: Option<Stopped>,
    /// Since when the oldest delivery waits that could have been started.
    pub oldest: Option<Nanos>,
}

/// How long deliveries of a lane took.
#[derive(Clone, Copy, Debug)]
pub struct LaneLatencies {
    /// From acceptance to the first start.
    pub wait: Percentiles,
    /// From start to end.
    pub work: Percentiles,
}

/// Why a lane starts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was paused.
    Paused,
    /// Its breaker lets nothing through.
    Breaker,
    /// There was no room for its dead letter.
    Parked,
    /// It is closed.
    Closed,
}

impl<O: Ops> Lane<O> {
    /// For a consistent report, hold the gate meanwhile.
    pub fn report(&self) -> LaneReport {
        let mut guard = lock(&self.consumer);
        let consumer = &mut *guard;
        let startable = self.has_work(consumer);
        let heads = consumer.heads.iter_mut();
        let heads = heads.filter_map(|head| head.peek().map(|entry| entry.at));
        let aside = consumer.ready.entries().chain(consumer.keys.entries());
        let aside = aside.chain(consumer.holding.retries());
        let oldest = heads.chain(aside.map(|entry| entry.at)).min();
        let (held, delayed) = consumer.holding.counts();
        let stopped = [
            (CLOSED, Stopped::Closed),
            (PAUSED, Stopped::Paused),
            (PARKED, Stopped::Parked),
            (REFUSED, Stopped::Breaker),
        ];
        let mut stopped = stopped.into_iter();
        let stopped = stopped.find(|(bar, _)| consumer.barred & bar != 0);
        // Letters that are delivered again go on.
        let stopped = stopped.filter(|(bar, _)| *bar != PARKED || !startable);
        LaneReport {
            tally: consumer.tally,
            depth: std::array::from_fn(|level| self.depth_at(level)),
            running: self.running(),
            startable,
            held,
            delayed,
            retries: consumer.retries,
            stopped: stopped.map(|(_, stopped)| stopped),
            oldest,
        }
    }

    /// Apart from the report, because that takes a while: not at the gate.
    pub fn latencies(&self) -> LaneLatencies {
        let mut consumer = lock(&self.consumer);
        LaneLatencies {
            wait: consumer.wait.percentiles(),
            work: consumer.work.percentiles(),
        }
    }
}
