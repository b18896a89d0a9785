//! Dead letters: deliveries that failed for good, kept with all that is needed to
//! understand them, to deliver them again, or to let go of them on purpose.
//!
//! Two implementations pass one suite of tests: in memory, and in a SQLite file that
//! several processes may use at once. Neither knows lanes or handlers; whoever redrives
//! claims entries for a time, and an entry leaves only when its holder says that it
//! succeeded. Times are handed in.

mod entry;
mod filter;
mod limits;
mod memory;
mod reader;
mod redrive;
mod row;
mod sqlite;
pub(crate) mod table;

use thiserror::Error;

pub use entry::{DeadEvent, DeadLetter, Failure, Fingerprint, Stored};
pub use filter::Filter;
pub use limits::{Limits, WhenFull};
pub use memory::MemoryDeadLetters;
pub use reader::{DeadLetterReader, Page};
pub use redrive::{Ended, LEASE, Redrive, Report, Skipped, Step, WINDOW};
pub use sqlite::SqliteDeadLetters;

use super::store::{StoreError, WallSeconds};

/// Why a dead letter queue did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeadLetterError {
    /// At its bound, and nothing may be dropped.
    #[error(
        "the dead letter queue is full ({bound} entries); \
         redrive or purge some, or raise its max_entries"
    )]
    Full {
        /// Its limit.
        bound: u64,
    },
    /// The entry does not have its checksum; it was moved aside.
    #[error("the dead letter {id} is damaged and was moved aside; restore a backup to see it")]
    Damaged {
        /// The entry.
        id: String,
    },
    /// The journal that it is in writes nothing any more.
    #[error("dead letters cannot be written: {0}")]
    Unavailable(String),
    /// Its file.
    #[error("dead letter queue {0}")]
    Store(#[from] StoreError),
}

/// What [`DeadLetters::add`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// Nothing under this id.
    New,
    /// An entry of the same id, which now has this many attempts.
    Again {
        /// The attempts of all its failures together.
        attempts: u64,
    },
}

/// Counts since the queue was made; a file keeps them over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Entries in the queue.
    pub entries: u64,
    /// Let go because the queue was full and drops its oldest.
    pub dropped: u64,
    /// Let go because they were too old.
    pub expired: u64,
    /// Moved aside because they were damaged.
    pub damaged: u64,
}

/// A claim on entries: while it lasts, nobody else is given them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lease {
    /// Who holds it: a number that no other redriver of the queue has.
    pub holder: u64,
    /// When it ends by itself, because its holder has died.
    pub until: WallSeconds,
}

/// A dead letter queue. Any thread may call it; calls on a file may wait for other processes.
pub trait DeadLetters: Send + Sync {
    /// Keeps a dead letter. Under an id that is known, the attempts are added to those of the
    /// entry, whose place and first failure stay; all else is as in the new failure.
    fn add(&self, letter: DeadLetter, now: WallSeconds) -> Result<Added, DeadLetterError>;

    /// Takes over the entries of an older store, all or none, even beyond the bound; false: that
    /// was done under this name before. Entries whose ids are known are left out.
    fn import(&self, name: &str, letters: Vec<DeadLetter>) -> Result<bool, DeadLetterError>;

    /// The entry of this id.
    fn get(&self, id: &str) -> Result<Option<Stored>, DeadLetterError>;

    /// Up to `limit` entries behind a position, in the order in which they came.
    fn page(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Stored>, DeadLetterError>;

    /// How many entries a filter lets through.
    fn count(&self, filter: &Filter) -> Result<u64, DeadLetterError>;

    /// Lets go of an entry, claimed or not; false: there was none.
    fn remove(&self, id: &str) -> Result<bool, DeadLetterError>;

    /// Lets go of all entries that the filter lets through, claimed or not; how many.
    fn purge(&self, filter: &Filter) -> Result<u64, DeadLetterError>;

    /// Up to `limit` entries behind a position that nobody holds, which the caller holds now.
    fn claim(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
        lease: Lease,
        now: WallSeconds,
    ) -> Result<Vec<Stored>, DeadLetterError>;

    /// Moves the end of all leases of a holder; how many it (still) has.
    fn renew(&self, lease: Lease) -> Result<u64, DeadLetterError>;

    /// The delivery succeeded: the entry leaves. False: the lease had ended and the entry is
    /// somebody else's or gone; then nothing changes.
    fn succeeded(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError>;

    /// The delivery failed again: as [`add`](Self::add), and the lease ends. False: as in
    /// [`succeeded`](Self::succeeded).
    fn failed(
        &self,
        id: &str,
        holder: u64,
        failure: Failure,
        fingerprint: Fingerprint,
        attempts: u64,
        now: WallSeconds,
    ) -> Result<bool, DeadLetterError>;

    /// The lease ends and nothing else changes. False: as in [`succeeded`](Self::succeeded).
    fn release(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError>;

    /// Lets go of entries that are older than the limit, if there is one; how many.
    fn expire(&self, now: WallSeconds) -> Result<u64, DeadLetterError>;

    /// Reads every entry and moves those that are damaged aside; how many.
    fn verify(&self) -> Result<u64, DeadLetterError>;

    /// What the queue has and had.
    fn statistics(&self) -> Result<Statistics, DeadLetterError>;
}
