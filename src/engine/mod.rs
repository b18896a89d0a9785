//! The engine: the way of an event from publish to settlement, without Python.
//!
//! It has no wall clock and no randomness of its own; payloads, handlers and wake-ups
//! are type parameters ([`ops::Ops`]). Each module is one room and the only place of
//! its rule; [`bus`] puts them together.

pub mod backing;
pub mod breaker;
pub mod bus;
pub mod clock;
#[cfg(not(loom))]
pub mod dead_letters;
pub mod digest;
#[cfg(not(loom))]
pub mod durable;
pub mod error;
mod failing;
pub mod gate;
pub mod idempotency;
pub mod in_flight;
#[cfg(not(loom))]
pub mod journal;
pub mod lane;
pub mod ledger;
pub mod metrics;
pub mod ops;
pub mod prefetch;
pub mod priority;
pub mod queue;
pub mod reorder;
pub mod retry;
pub mod router;
pub mod sequence;
pub mod settlement;
#[cfg(not(loom))]
pub mod store;
pub mod sync;
pub mod timers;
pub mod topic;
