//! What a lane is told when it is made.

use crate::engine::backing::Backing;
use crate::engine::breaker::Breaker;
use crate::engine::retry::RetryPolicy;

/// What happens to an event for which a lane has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The publisher waits.
    Block,
    /// The publisher is refused, and nothing is accepted for any lane.
    Reject,
    /// The oldest queued event of the same level goes, counted.
    DropOldest,
    /// The new event does not reach this lane, counted.
    DropNew,
    /// The event comes later, out of the journal that backs the lane.
    Spill,
}

/// Which events of a lane may not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// All: one at a time.
    Lane,
    /// Those with equal tokens, which came with the event.
    Token,
    /// Those with equal tokens, which the executor works out before it starts them.
    Computed,
    /// None.
    Nothing,
}

/// What else waits while an event waits for its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// All later events of its level.
    Level,
    /// Later events of its level with an equal token, in a lane ordered by token.
    Key,
    /// Nothing.
    Nothing,
}

/// Which deliveries leave a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    /// None.
    None,
    /// Those that failed for good.
    Failed,
    /// Those, and those that expired.
    FailedAndExpired,
}

/// What a lane is told when it is made.
#[derive(Clone)]
#[repr(C)] // What every event is asked about last: see `Lane`.
pub struct LaneOptions {
    /// For people and reports.
    pub name: Box<str>,
    /// What remembers its deliveries beyond the process, of a durable lane.
    pub backing: Option<std::sync::Arc<dyn Backing>>,
    /// Whether and when a failed run is repeated; none: never.
    pub retry: Option<RetryPolicy>,
    /// What pauses the lane when its handler fails again and again. Others may share it.
    pub breaker: Option<std::sync::Arc<Breaker>>,
    /// What waits while an event waits for its next attempt.
    pub holds: Holds,
    /// What is kept of deliveries that fail for good.
    pub letters: Letters,
    /// Queued events per level, those included that wait for a time.
    pub bound: usize,
    /// Handlers that may run at once.
    pub concurrency: usize,
    /// Which of them may not.
    pub order: Order,
    /// What happens when a level is full.
    pub overflow: Overflow,
    /// Nobody is owed the handling of its events: they hold up no settlement, drain or stop.
    pub passive: bool,
    /// It gets events when they are accepted, whatever times their publishers have set.
    pub untimed: bool,
}

impl LaneOptions {
    /// How many a level may have at most, where it has to exceed its bound.
    pub fn hard_limit(&self) -> usize {
        self.bound.saturating_mul(4).max(1024)
    }
}
