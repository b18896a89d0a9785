//! The journal in a SQLite file: the storage that the writer thread owns. One transaction per
//! commit; checkpoints happen here and nowhere else.

mod copy;
mod guard;
mod reader;
mod rows;
mod statement;
mod status;
mod upkeep;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, params};

use super::error::JournalError;
use super::event::Event;
use super::storage::{
    Change, CommitError, CursorRow, Damage, Head, Horizon, Reader, Retained, Storage,
    SubscriptionId, SubscriptionRow, Unit,
};
use crate::engine::dead_letters::table::{self, Outcome};
use crate::engine::dead_letters::{DeadLetterError, Limits};
use crate::engine::priority::Priority;
use crate::engine::store::{
    self, Checksum, Durability, Options, Problem, Schema, StoreError, WallSeconds,
};

pub use self::copy::{Answer, backup, query};
use self::guard::Guard;
pub use self::reader::SqliteReader;
pub(super) use self::reader::open_to_read;
pub use self::status::{Level, Standing, Status, status};
pub use self::verify::{Verification, verify};

pub(super) const SCHEMA: Schema = Schema {
    name: "journal",
    id: store::JOURNAL,
    steps: &[concat!(
        include_str!("schema.sql"),
        include_str!("../../dead_letters/schema.sql"),
        "CREATE INDEX dead_letter_by_sequence ON dead_letter (sequence) WHERE sequence IS NOT NULL;"
    )],
};

/// How long a reader or the writer waits for somebody else's lock. There is hardly one to wait
/// for: writers there is one, and readers of a WAL wait for nobody.
const BUSY: Duration = Duration::from_secs(5);

/// See the module.
pub struct SqliteStorage {
    path: PathBuf,
    connection: Connection,
    identity: [u8; 16],
    limits: Limits,
    durability: Durability,
    checkpoint_pages: u32,
    /// Pages in the log after the last commit, told by SQLite, and after the last checkpoint.
    log: Arc<AtomicU32>,
    tidied: u32,
    guard: Guard,
}

/// How a journal's file is opened.
#[derive(Clone, Copy, Debug)]
pub struct SqliteOptions {
    /// Random bytes that a new journal is told from all others by.
    pub identity: [u8; 16],
    /// The bounds of its dead letters.
    pub dead_letters: Limits,
    /// After so many pages of log they are brought into the file. A checkpoint is two flushes,
    /// whatever its size.
    pub checkpoint_pages: u32,
    /// Whether a file that is not there is made.
    pub create: bool,
}

impl SqliteStorage {
    /// Opens the file, and makes it where there is none; what the journal knows of itself.
    /// Whoever calls this owns the journal (see [`super::owner`]).
    pub fn open(path: &Path, options: &SqliteOptions) -> Result<(Self, Head), StoreError> {
        let opening = Options {
            durability: Durability::Fsync,
            busy_timeout: BUSY,
            create: options.create,
        };
        let connection = store::open(path, &SCHEMA, &opening)?;
        let mut storage = Self {
            path: path.to_owned(),
            connection,
            identity: options.identity,
            limits: options.dead_letters,
            durability: Durability::Fsync,
            checkpoint_pages: options.checkpoint_pages,
            log: Arc::default(),
            tidied: 0,
            guard: Guard::default(),
        };
        let head = storage.at(|storage| {
            storage.guard.install(&mut storage.connection)?;
            // In place of SQLite's own, which makes checkpoints.
            let log = storage.log.clone();
            storage
                .connection
                .wal_hook(Some(move |_: &mut Wal, pages| {
                    log.store(u32::try_from(pages).unwrap_or_default(), Ordering::Relaxed);
                    Ok(())
                }))?;
            let connection = &storage.connection;
            connection.set_prepared_statement_cache_capacity(64);
            table::prepare(connection)?;
            let new = upkeep::is_new(connection)?;
            if new {
                rows::write_head(connection, &Head::default(), &storage.identity)?;
            }
            let (head, identity) = rows::read_head(connection)?;
            storage.identity = identity;
            Ok(head)
        })?;
        Ok((storage, head))
    }

    /// What tells this journal from all others.
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    fn at<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, StoreError> {
        work(self).map_err(|problem| problem.at(&self.path))
    }

    /// Does all of it or nothing. What is wrong with the request is the inner error; one of the
    /// medium ends the whole commit.
    fn savepoint(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<Result<(), JournalError>, Problem>,
    ) -> Result<Result<(), JournalError>, StoreError> {
        self.at(|storage| {
            storage.connection.execute_batch("SAVEPOINT unit")?;
            let result = match work(storage) {
                Err(problem) if problem.is_of_the_request() => {
                    Err(JournalError::Store(problem.at(&storage.path)))
                }
                result => result?,
            };
            if result.is_ok() || storage.has_begun() {
                storage.connection.execute_batch(match result {
                    Ok(()) => "RELEASE unit",
                    Err(_) => "ROLLBACK TO unit; RELEASE unit",
                })?;
            }
            Ok(result)
        })
    }

    fn run_unit(
        &mut self,
        unit: &Unit,
        now: WallSeconds,
        head: &mut Head,
    ) -> Result<Result<(), JournalError>, Problem> {
        for (at, theirs) in unit.statements.iter().enumerate() {
            let run = {
                let _guarded = self.guard.raise();
                statement::run(&self.connection, theirs)
            };
            match run {
                Ok(()) => {}
                // The user's mistake is theirs alone.
                Err(Problem::Sqlite(reason)) => {
                    let number = at + 1;
                    return Ok(Err(JournalError::Statement { number, reason }));
                }
                Err(problem) => return Err(problem),
            }
        }
        if !unit.statements.is_empty() && statement::owes_a_key(&self.connection) {
            // SQLite looks at these with the commit, and would refuse all of it.
            return Ok(Err(JournalError::Statement {
                number: unit.statements.len(),
                reason: "a deferred FOREIGN KEY constraint fails at the end of the transaction"
                    .into(),
            }));
        }
        if let Some((id, holder)) = &unit.redriven
            && !table::succeeded(&self.connection, id, *holder)?
        {
            return Ok(Err(JournalError::NotHeld { id: id.clone() }));
        }
        if let Some(letter) = &unit.dead_letter
            && table::add(&self.connection, letter.clone(), &self.limits, now)? == Outcome::Full
        {
            let bound = self.limits.max_entries;
            return Ok(Err(DeadLetterError::Full { bound }.into()));
        }
        if let Some((name, value)) = &unit.bookmark {
            let sum = Checksum::of("bookmark").text(name).text(value).finish();
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO bookmark VALUES (?1, ?2, ?3)")?
                .execute(params![name, value, sum])?;
        }
        rows::insert_events(&self.connection, &mut unit.events.iter(), head)?;
        Ok(Ok(()))
    }
}

impl Storage for SqliteStorage {
    fn begin(&mut self, durability: Durability) -> Result<(), StoreError> {
        self.at(|storage| {
            if storage.durability != durability {
                let level = match durability {
                    Durability::Fsync => "FULL",
                    Durability::Os | Durability::Memory => "NORMAL",
                };
                storage
                    .connection
                    .pragma_update(None, "synchronous", level)?;
                storage.durability = durability;
            }
            storage
                .connection
                .prepare_cached("BEGIN IMMEDIATE")?
                .execute([])?;
            Ok(())
        })
    }

    fn append(
        &mut self,
        events: &mut dyn Iterator<Item = &Event>,
        head: &mut Head,
    ) -> Result<(), StoreError> {
        rows::insert_events(&self.connection, events, head)
            .map_err(|problem| problem.at(&self.path))
    }

    fn unit(
        &mut self,
        unit: &Unit,
        now: WallSeconds,
        head: &mut Head,
    ) -> Result<Result<(), JournalError>, StoreError> {
        let before = *head;
        let result = self.savepoint(|storage| storage.run_unit(unit, now, head));
        if !matches!(result, Ok(Ok(()))) {
            *head = before;
        }
        result
    }

    fn has_begun(&self) -> bool {
        !self.connection.is_autocommit()
    }

    fn settle(&mut self, cursors: &[CursorRow], changes: &[Change]) -> Result<(), StoreError> {
        self.at(|storage| {
            for cursor in cursors {
                rows::write_cursor(&storage.connection, cursor)?;
            }
            for change in changes {
                match change {
                    Change::Put(straggler) => {
                        rows::write_straggler(&storage.connection, straggler)?
                    }
                    Change::Gone(subscription, level, sequence) => {
                        storage
                            .connection
                            .prepare_cached(
                                "DELETE FROM straggler \
                                 WHERE subscription = ?1 AND priority = ?2 AND sequence = ?3",
                            )?
                            .execute(params![subscription, *level as i64, *sequence as i64])?;
                    }
                }
            }
            Ok(())
        })
    }

    fn is_straggler(
        &mut self,
        subscription: SubscriptionId,
        level: Priority,
        sequence: u64,
    ) -> Result<bool, StoreError> {
        self.at(|storage| {
            let mut known = storage.connection.prepare_cached(
                "SELECT 1 FROM straggler \
                 WHERE subscription = ?1 AND priority = ?2 AND sequence = ?3",
            )?;
            Ok(known.exists(params![subscription, level as i64, sequence as i64])?)
        })
    }

    fn write_head(&mut self, head: &Head) -> Result<(), StoreError> {
        self.at(|storage| rows::write_head(&storage.connection, head, &storage.identity))
    }

    fn commit(&mut self) -> Result<(), CommitError> {
        let committed = self.at(|storage| {
            storage.connection.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        });
        let Err(error) = committed else { return Ok(()) };
        // The commit's last page may lie in the log, whole, and count after a crash.
        if error.problem != Problem::Full || self.rollback().is_err() {
            return Err(CommitError::Unknown(error));
        }
        // Where the disk is only full, a small commit still finds room, over the one that failed:
        // what lay in the log can no longer come back.
        let fence = self.at(|storage| {
            let (head, identity) = rows::read_head(&storage.connection)?;
            storage.connection.execute_batch("BEGIN IMMEDIATE")?;
            rows::write_head(&storage.connection, &head, &identity)?;
            storage.connection.execute_batch("COMMIT")?;
            Ok(())
        });
        match fence {
            Ok(()) => Err(CommitError::Undone(error)),
            Err(_) => Err(CommitError::Unknown(error)),
        }
    }

    fn rollback(&mut self) -> Result<(), StoreError> {
        self.at(|storage| {
            // After some errors SQLite has rolled back by itself.
            if storage.has_begun() {
                storage.connection.execute_batch("ROLLBACK")?;
            }
            Ok(())
        })
    }

    fn register(
        &mut self,
        name: &str,
        topics: &[String],
        after: u64,
        now: WallSeconds,
    ) -> Result<(SubscriptionRow, Vec<CursorRow>), StoreError> {
        self.at(|storage| upkeep::register(&storage.connection, name, topics, after, now))
    }

    fn see(
        &mut self,
        subscriptions: &[SubscriptionId],
        now: WallSeconds,
    ) -> Result<(), StoreError> {
        self.at(|storage| upkeep::see(&storage.connection, subscriptions, now))
    }

    fn forget(&mut self, subscription: SubscriptionId) -> Result<(), StoreError> {
        self.at(|storage| upkeep::forget(&storage.connection, subscription))
    }

    fn expire(
        &mut self,
        here: &[SubscriptionId],
        since: WallSeconds,
    ) -> Result<Vec<String>, StoreError> {
        self.at(|storage| upkeep::expire(&storage.connection, here, since))
    }

    fn retain(&mut self, horizon: Horizon, head: &mut Head) -> Result<Retained, StoreError> {
        self.at(|storage| upkeep::retain(&storage.connection, horizon, head))
    }

    fn quarantine(&mut self, damage: Damage, now: WallSeconds) -> Result<(), StoreError> {
        self.at(|storage| upkeep::quarantine(&storage.connection, damage, now))
    }

    fn sql(
        &mut self,
        work: &mut dyn FnMut(&Connection) -> Result<(), Problem>,
    ) -> Result<Result<(), JournalError>, StoreError> {
        let ran = self.savepoint(|storage| work(&storage.connection).map(Ok))?;
        match ran {
            // Those statements are not the user's: SQLite itself could not go on.
            Err(JournalError::Store(error)) if !self.has_begun() => Err(error),
            ran => Ok(ran),
        }
    }

    fn wants_checkpoint(&self) -> bool {
        let pages = self.log.load(Ordering::Relaxed);
        // A log with fewer pages than before was begun anew. One that was not, because somebody
        // reads in it, is not gone over with every commit.
        let tidied = if pages < self.tidied { 0 } else { self.tidied };
        pages - tidied >= self.checkpoint_pages
    }

    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.at(|storage| {
            // Passive: it neither waits for readers nor disturbs them.
            storage
                .connection
                .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
            storage.tidied = storage.log.load(Ordering::Relaxed);
            Ok(())
        })
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(SqliteReader::open(&self.path)?))
    }
}

/// The levels in the order of their numbers.
const LEVELS: [Priority; Priority::COUNT] = Priority::ALL;
