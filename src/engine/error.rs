//! What the engine refuses, in one enum. The texts name the limit and the fix.

use thiserror::Error;

/// Why the engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EngineError {
    /// A lane has no room, and its policy or the publisher does not wait.
    #[error(
        "the queue of subscription {subscription} is full ({bound} events of this priority); \
         await publish() to wait for room, or raise max_queue_size"
    )]
    Full {
        /// The subscription whose queue is full.
        subscription: String,
        /// Its limit, per level.
        bound: usize,
    },
    /// The bus is not running and keeps no more events for its start.
    #[error(
        "the bus is not started and already keeps {bound} events; start() it, or raise max_queue_size"
    )]
    NotStarted {
        /// How many events are kept for the start.
        bound: usize,
    },
    /// A subscription has too much to do in the file of the bus, and the publisher does not wait.
    #[error(
        "subscription {subscription} is max_backlog={limit} events behind, and publishers wait for it; \
         await publish() to wait as well, or raise max_backlog"
    )]
    Behind {
        /// The subscription that is furthest behind.
        subscription: String,
        /// The limit.
        limit: u64,
    },
    /// The same in a bus that is not running.
    #[error(
        "the bus is not started, and subscription {subscription} is max_backlog={limit} events behind; \
         start() it, or raise max_backlog"
    )]
    BehindAtRest {
        /// The subscription that is furthest behind.
        subscription: String,
        /// The limit.
        limit: u64,
    },
    /// The wait would close a cycle of waits.
    #[error("this wait can never end: {cycle}")]
    Deadlock {
        /// The subscriptions in the cycle, in order.
        cycle: String,
    },
}
