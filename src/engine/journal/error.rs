//! Why the journal did not do what it was asked.

use std::path::PathBuf;

use thiserror::Error;

use crate::engine::dead_letters::DeadLetterError;
use crate::engine::store::StoreError;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// Another owner has it.
    #[error(
        "the journal {} is in use by {}; one bus owns a journal, stop the other one first",
        .path.display(),
        .pid.map_or("another process".to_owned(), |pid| format!("process {pid}"))
    )]
    InUse {
        /// The journal.
        path: PathBuf,
        /// Its owner, as far as it is known.
        pid: Option<u32>,
    },
    /// The flush of the batch failed: its events may or may not be there after a restart.
    #[error(
        "the journal could not be flushed and whether the event is stored is unknown; \
         open the journal again and publish with the same idempotency key ({0})"
    )]
    DurabilityUnknown(StoreError),
    /// A flush failed before; nothing is written until the journal is opened again.
    #[error("the journal is read-only since a flush failed; stop the bus and start it again")]
    ReadOnly,
    /// The buffer before the disk is full.
    #[error(
        "the journal's buffer is full ({bound} events wait for the disk); wait, or raise max_pending"
    )]
    Busy {
        /// Its limit.
        bound: usize,
    },
    /// A payload beyond what one row can hold.
    #[error("the event has {size} bytes, the journal holds up to {bound} in one event")]
    TooBig {
        /// The event's size.
        size: usize,
        /// The limit.
        bound: usize,
    },
    /// A time that is none.
    #[error("a time of the event is not a number; give seconds since 1970")]
    NoTime,
    /// A number that is not above all others, or not reserved.
    #[error("sequence {sequence} is out of order; the numbers of a journal only rise")]
    OutOfOrder {
        /// The number.
        sequence: u64,
    },
    /// No subscription of this name.
    #[error("the journal knows no subscription {name}")]
    NoSubscription {
        /// The name.
        name: String,
    },
    /// The subscription is being used.
    #[error("subscription {name} is registered in this process; cancel it before it is dropped")]
    Registered {
        /// The name.
        name: String,
    },
    /// It was closed.
    #[error("the journal is closed")]
    Closed,
    /// A statement of a transaction failed; nothing of the transaction happened.
    #[error("statement {number} of the transaction failed, and nothing of it happened: {reason}")]
    Statement {
        /// Which one, from 1.
        number: usize,
        /// Why. It quotes no parameter.
        reason: String,
    },
    /// The delivery was settled before, by who else had it.
    #[error("the delivery was settled before, so nothing of the transaction happened")]
    Settled,
    /// The unit of an event was refused.
    #[error("the transaction was refused, and nothing of it happened")]
    Refused,
    /// The dead letter whose delivery was to be settled is not held any more.
    #[error("the dead letter {id} was removed meanwhile, or somebody else delivers it")]
    NotHeld {
        /// Its id.
        id: String,
    },
    /// This kind of journal cannot do that.
    #[error("a journal in memory runs no SQL; give the bus a path")]
    NoSql,
    /// The dead letter of a settlement was refused; the settlement did not happen.
    #[error(transparent)]
    DeadLetter(#[from] DeadLetterError),
    /// The file.
    #[error("journal {0}")]
    Store(#[from] StoreError),
}
