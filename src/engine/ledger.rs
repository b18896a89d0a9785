//! The ledger: what became of everything that was offered. Every figure is counted
//! where it happens, none is derived from the others, so that an event that got lost
//! shows as a difference.

use super::settlement::Outcome;

/// The publishers' half of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Publishes that came to an end or wait.
    pub offered: u64,
    /// Got a number.
    pub accepted: u64,
    /// Had a key that was seen.
    pub duplicate: u64,
    /// Were refused.
    pub rejected: u64,
    /// Wait for room, or for the fate of the same key.
    pub waiting: u64,
    /// Gave up while they waited.
    pub cancelled: u64,
    /// May or may not be stored: their flush failed.
    pub unknown: u64,
}

/// Outcomes, as the ledger counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tallied {
    /// See [`Outcome::Done`].
    Done,
    /// See [`Outcome::Dead`].
    Dead,
    /// See [`Outcome::Dropped`].
    Dropped,
    /// See [`Outcome::Expired`].
    Expired,
    /// See [`Outcome::Filtered`].
    Filtered,
}

impl<F> From<&Outcome<F>> for Tallied {
    fn from(outcome: &Outcome<F>) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Dead(_) => Self::Dead,
            Outcome::Dropped => Self::Dropped,
            Outcome::Expired => Self::Expired,
            Outcome::Filtered => Self::Filtered,
        }
    }
}

/// The counted outcomes of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Handled.
    pub done: u64,
    /// Failed for good.
    pub dead: u64,
    /// Let go by a policy.
    pub dropped: u64,
    /// Too old when their turn came.
    pub expired: u64,
    /// Not wanted by the filter.
    pub filtered: u64,
}

impl Tally {
    /// Counts one.
    pub fn count(&mut self, tallied: Tallied) {
        *match tallied {
            Tallied::Done => &mut self.done,
            Tallied::Dead => &mut self.dead,
            Tallied::Dropped => &mut self.dropped,
            Tallied::Expired => &mut self.expired,
            Tallied::Filtered => &mut self.filtered,
        } += 1;
    }
}
