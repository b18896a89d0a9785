//! The engine: the way of an event from publish to settlement, without Python.
//!
//! It has no wall clock and no randomness of its own; payloads and wake-ups are
//! type parameters. Each module is one room and the only place of its rule.

pub mod in_flight;
pub mod priority;
pub mod reorder;
pub mod sequence;
pub mod sync;
