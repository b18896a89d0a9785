//! What the journal needs of whatever keeps it. The writer is the only caller of a
//! [`Storage`]; a [`Reader`] works beside it and sees what was committed.

use rusqlite::Connection;

use super::cursor::Run;
use super::error::JournalError;
use super::event::{Event, KeyDigest};
use crate::engine::dead_letters::DeadLetter;
use crate::engine::priority::Priority;
use crate::engine::store::{Durability, Problem, StoreError, WallSeconds};
use crate::engine::topic::Topic;

/// The number of a subscription in its journal.
pub type SubscriptionId = i64;

/// What the journal knows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Head {
    /// Sequence numbers up to here may have been given.
    pub reserved: u64,
    /// The last event of each level.
    pub last: [u64; Priority::COUNT],
    /// When the last event was accepted.
    pub accepted: WallSeconds,
    /// Retention has let go of events up to here.
    pub deleted_through: u64,
    /// Its owner ended in order.
    pub closed: bool,
}

impl Head {
    /// The last event of all.
    pub fn last(&self) -> u64 {
        self.last.into_iter().max().unwrap_or_default()
    }
}

/// Where a subscription is on one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CursorRow {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The level.
    pub level: Priority,
    /// Settled up to here.
    pub position: u64,
    /// And in these.
    pub runs: Vec<Run>,
}

/// A subscription as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct SubscriptionRow {
    /// Its number.
    pub id: SubscriptionId,
    /// Its name.
    pub name: String,
    /// What it listens to.
    pub topics: Vec<String>,
    /// When it was made.
    pub created: WallSeconds,
    /// When it was there for the last time.
    pub seen: WallSeconds,
}

/// Why a delivery was left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StragglerState {
    /// The cursor went on without it: its key or its handler holds it up.
    Waiting,
    /// It failed and is tried again.
    Retry,
    /// It was running when its process died.
    Suspect,
    /// A dead letter that is delivered again.
    Redrive,
}

impl StragglerState {
    /// Its name, as the journal has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Retry => "retry",
            Self::Suspect => "suspect",
            Self::Redrive => "redrive",
        }
    }
}

/// A delivery that the cursor has left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Straggler {
    /// Whose.
    pub subscription: SubscriptionId,
    /// The event's level.
    pub level: Priority,
    /// The event.
    pub sequence: u64,
    /// Attempts so far.
    pub attempt: u32,
    /// Not before.
    pub due: Option<WallSeconds>,
    /// Why.
    pub state: StragglerState,
    /// Of a redrive, the id of the dead letter.
    pub dead_letter: Option<String>,
}

/// What happens to the table of stragglers.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It is one now, or in a new state.
    Put(Straggler),
    /// It is settled.
    Gone(SubscriptionId, Priority, u64),
}

/// A value in a statement of the user.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// NULL.
    Null,
    /// An integer.
    Integer(i64),
    /// A floating-point number.
    Real(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// The values for the parameters of a statement: one for each, no more and no fewer.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameters {
    /// In the order of their numbers.
    Numbered(Vec<Value>),
    /// By their names, without the sign in front. What the statement does not name is not needed.
    Named(Vec<(String, Value)>),
}

/// A statement of the user on tables of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// One statement of SQL.
    pub sql: String,
    /// Its parameters.
    pub parameters: Parameters,
}

/// What happens together or not at all, beside the rest of its commit.
#[derive(Clone, Debug, Default)]
pub struct Unit {
    /// New events, numbered by the gate.
    pub events: Vec<Event>,
    /// What becomes of the delivery that failed for good.
    pub dead_letter: Option<DeadLetter>,
    /// The dead letter that was delivered again and leaves: its id, and who holds it.
    pub redriven: Option<(String, u64)>,
    /// What the handler wants done on the user's tables.
    pub statements: Vec<Statement>,
    /// A text to keep.
    pub bookmark: Option<(String, String)>,
}

/// What came of a commit that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommitError {
    /// Nothing of it happened, nor will it come back.
    Undone(StoreError),
    /// It may or may not be there after a restart.
    Unknown(StoreError),
}

/// What was found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Damage {
    /// The row does not have its checksum.
    Damaged {
        /// Where it is.
        sequence: u64,
    },
    /// Between these two, events are missing: after the first, up to the second.
    Lost {
        /// Their level.
        level: Priority,
        /// The last one before them.
        after: u64,
        /// The last of them.
        through: u64,
    },
}

/// How much retention lets go of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Horizon {
    /// Events that were accepted before.
    pub accepted_before: WallSeconds,
    /// Looking at so many in one commit at most.
    pub limit: usize,
    /// Behind this one, what was needed is looked at again once all that has become old is gone.
    pub again: u64,
}

/// What retention has let go of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// So many events.
    pub events: usize,
    /// Where the second look goes on, if it was its turn; 0: it has come to its end.
    pub again: Option<u64>,
}

/// Keeps the journal. One caller; everything happens between `begin` and `commit`.
pub trait Storage: Send {
    /// Begins a commit of this durability.
    fn begin(&mut self, durability: Durability) -> Result<(), StoreError>;
    /// New events, in their order. `head` has the last ones of the levels, and is brought up to
    /// date.
    fn append(
        &mut self,
        events: &mut dyn Iterator<Item = &Event>,
        head: &mut Head,
    ) -> Result<(), StoreError>;
    /// All of a unit or nothing. The outer error is that of the whole commit. `head` has the last
    /// events of the levels, and is brought up to date.
    fn unit(
        &mut self,
        unit: &Unit,
        now: WallSeconds,
        head: &mut Head,
    ) -> Result<Result<(), JournalError>, StoreError>;
    /// Whether what was begun still is. A unit's statement may have ended it and taken back all of
    /// it, by a table of the user's that says ON CONFLICT ROLLBACK; that unit was refused.
    fn has_begun(&self) -> bool;
    /// Cursors and stragglers as they are now.
    fn settle(&mut self, cursors: &[CursorRow], changes: &[Change]) -> Result<(), StoreError>;
    /// Whether a delivery is in the table of stragglers.
    fn is_straggler(
        &mut self,
        subscription: SubscriptionId,
        level: Priority,
        sequence: u64,
    ) -> Result<bool, StoreError>;
    /// The head as it is now.
    fn write_head(&mut self, head: &Head) -> Result<(), StoreError>;
    /// Ends the commit.
    fn commit(&mut self) -> Result<(), CommitError>;
    /// Takes back all since `begin`.
    fn rollback(&mut self) -> Result<(), StoreError>;

    /// Makes a subscription behind a position, or finds it and notes its topics.
    fn register(
        &mut self,
        name: &str,
        topics: &[String],
        after: u64,
        now: WallSeconds,
    ) -> Result<(SubscriptionRow, Vec<CursorRow>), StoreError>;
    /// Notes that these subscriptions are there.
    fn see(&mut self, subscriptions: &[SubscriptionId], now: WallSeconds)
    -> Result<(), StoreError>;
    /// Lets go of a subscription and its stragglers.
    fn forget(&mut self, subscription: SubscriptionId) -> Result<(), StoreError>;
    /// Lets go of the subscriptions that are not of these and were not seen since a time; their
    /// names.
    fn expire(
        &mut self,
        here: &[SubscriptionId],
        since: WallSeconds,
    ) -> Result<Vec<String>, StoreError>;
    /// Lets go of old events that nobody needs. The head says up to which.
    fn retain(&mut self, horizon: Horizon, head: &mut Head) -> Result<Retained, StoreError>;
    /// Moves a damaged event aside, or notes that some are lost.
    fn quarantine(&mut self, damage: Damage, now: WallSeconds) -> Result<(), StoreError>;

    /// Runs statements of other modules on tables of theirs, all or none. A journal in memory has
    /// none. The outer error is that of the whole commit.
    fn sql(
        &mut self,
        work: &mut dyn FnMut(&Connection) -> Result<(), Problem>,
    ) -> Result<Result<(), JournalError>, StoreError>;

    /// Whether it is time to [`checkpoint`](Self::checkpoint).
    fn wants_checkpoint(&self) -> bool;
    /// Between commits: tidies up what commits leave behind.
    fn checkpoint(&mut self) -> Result<(), StoreError>;
    /// Another way to read.
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError>;
}

/// The next events of a level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scan {
    /// Those that were wanted.
    pub events: Vec<Event>,
    /// What is wrong on the way.
    pub damage: Vec<Damage>,
    /// How far it got.
    pub through: u64,
}

/// Which events are meant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventFilter {
    /// Of one of these types or patterns; none given: all.
    pub topics: Vec<Topic>,
    /// With this key.
    pub key: Option<String>,
    /// Accepted then or later.
    pub since: Option<WallSeconds>,
    /// Accepted before then.
    pub until: Option<WallSeconds>,
}

impl EventFilter {
    /// Whether an event is meant.
    pub fn admits(&self, event: &Event) -> bool {
        (self.topics.is_empty()
            || self
                .topics
                .iter()
                .any(|topic| topic.matches(&event.event_type)))
            && (self.key.is_none() || self.key == event.key)
            && self.since.is_none_or(|since| event.accepted >= since)
            && self.until.is_none_or(|until| event.accepted < until)
    }
}

/// Where a scan goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Behind this one.
    pub after: u64,
    /// Up to this one.
    pub through: u64,
    /// So many events at most.
    pub limit: usize,
    /// Looking at so many at most.
    pub budget: usize,
}

/// Reads what was committed.
pub trait Reader: Send {
    /// The next events of a level that are wanted.
    fn scan(
        &mut self,
        level: Priority,
        range: Range,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Scan, StoreError>;
    /// The next events of all levels that a filter lets through.
    fn events(&mut self, filter: &EventFilter, range: Range) -> Result<Scan, StoreError>;
    /// One event; `None`: it is not there or damaged.
    fn event(&mut self, sequence: u64) -> Result<Option<Event>, StoreError>;
    /// The last event up to this number, or 0, and the first behind it.
    fn around(&mut self, sequence: u64) -> Result<(u64, Option<u64>), StoreError>;
    /// The stragglers of a subscription behind this one, by level and sequence.
    fn stragglers(
        &mut self,
        subscription: SubscriptionId,
        after: Option<(Priority, u64)>,
        limit: usize,
    ) -> Result<Vec<Straggler>, StoreError>;
    /// Keys that were accepted at this time or later, the newest `limit`, oldest first.
    fn keys(
        &mut self,
        since: WallSeconds,
        limit: usize,
    ) -> Result<Vec<(KeyDigest, WallSeconds)>, StoreError>;
    /// The last event that was accepted before a time.
    fn position_at(&mut self, time: WallSeconds) -> Result<u64, StoreError>;
    /// All subscriptions and where they are.
    fn subscriptions(&mut self) -> Result<Vec<(SubscriptionRow, Vec<CursorRow>)>, StoreError>;
    /// How many stragglers a subscription has.
    fn straggler_count(&mut self, subscription: SubscriptionId) -> Result<u64, StoreError>;
    /// A text that was kept.
    fn bookmark(&mut self, name: &str) -> Result<Option<String>, StoreError>;
    /// How many events there are, and how much of them was damaged or lost.
    fn counts(&mut self) -> Result<Counts, StoreError>;
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Events.
    pub events: u64,
    /// Rows that were moved aside.
    pub damaged: u64,
    /// Places where events are missing.
    pub lost: u64,
}
