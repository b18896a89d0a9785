//! The queue in a SQLite file. Several processes may use one file at once: each call is
//! one short transaction that waits for those of the others.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::entry::{DeadLetter, Failure, Fingerprint, Stored};
use super::filter::Filter;
use super::limits::Limits;
use super::table::{self, Looked, Outcome};
use super::{Added, DeadLetterError, DeadLetters, Lease, Statistics};
use crate::engine::store::{self, Anchor, Options, Problem, Schema, StoreError, WallSeconds};
use crate::engine::sync::{Mutex, lock};

pub(super) const SCHEMA: Schema = Schema {
    name: "dead letter queue",
    id: store::DEAD_LETTERS,
    steps: &[table::SCHEMA],
};

/// See the module.
#[derive(Debug)]
pub struct SqliteDeadLetters {
    path: PathBuf,
    limits: Limits,
    anchor: Anchor,
    connection: Mutex<Connection>,
}

impl SqliteDeadLetters {
    /// Opens the queue's file, and makes it where there is none.
    pub fn open(path: &Path, limits: Limits, options: &Options) -> Result<Self, DeadLetterError> {
        let connection = store::open(path, &SCHEMA, options)?;
        table::prepare(&connection).map_err(|problem| problem.at(path))?;
        Ok(Self {
            anchor: Anchor::of(path).map_err(|problem| problem.at(path))?,
            path: path.to_owned(),
            limits,
            connection: Mutex::new(connection),
        })
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn write<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, DeadLetterError> {
        self.transaction(TransactionBehavior::Immediate, work)
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, DeadLetterError> {
        self.transaction(TransactionBehavior::Deferred, work)
    }

    /// Where SQLite itself stumbles over a row, moves that aside and tries once more.
    fn past_damage<T>(
        &self,
        work: impl Fn() -> Result<T, DeadLetterError>,
    ) -> Result<T, DeadLetterError> {
        match work() {
            Err(DeadLetterError::Store(StoreError {
                problem: Problem::Corrupt,
                ..
            })) => {
                self.verify()?;
                work()
            }
            result => result,
        }
    }

    fn transaction<T>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, DeadLetterError> {
        let mut connection = lock(&self.connection);
        let run = || {
            // Dropped without a commit, it rolls back.
            let transaction = connection.transaction_with_behavior(behavior)?;
            let result = work(&transaction)?;
            self.anchor.look()?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|problem: Problem| problem.at(&self.path).into())
    }
}

impl DeadLetters for SqliteDeadLetters {
    fn add(&self, letter: DeadLetter, now: WallSeconds) -> Result<Added, DeadLetterError> {
        match self.write(|table| table::add(table, letter, &self.limits, now))? {
            Outcome::Added(added) => Ok(added),
            Outcome::Full => Err(DeadLetterError::Full {
                bound: self.limits.max_entries,
            }),
        }
    }

    fn import(&self, name: &str, letters: Vec<DeadLetter>) -> Result<bool, DeadLetterError> {
        self.write(|table| table::import(table, name, letters, &self.limits))
    }

    fn get(&self, id: &str) -> Result<Option<Stored>, DeadLetterError> {
        match self.read(|table| table::look(table, id))? {
            Looked::Found(row) => Ok(Some(row.stored)),
            Looked::Nothing => Ok(None),
            Looked::Damaged(position) => {
                self.write(|table| table::move_aside(table, &[position]))?;
                Err(DeadLetterError::Damaged { id: id.to_owned() })
            }
        }
    }

    fn page(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
    ) -> Result<Vec<Stored>, DeadLetterError> {
        let found =
            self.past_damage(|| self.read(|table| table::page(table, filter, after, limit, None)))?;
        if !found.damaged.is_empty() {
            self.write(|table| table::move_aside(table, &found.damaged))?;
        }
        Ok(found.entries)
    }

    fn count(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        self.read(|table| table::matching(table, filter))
    }

    fn remove(&self, id: &str) -> Result<bool, DeadLetterError> {
        self.write(|table| table::remove(table, id))
    }

    fn purge(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        self.write(|table| table::purge(table, filter))
    }

    fn claim(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
        lease: Lease,
        now: WallSeconds,
    ) -> Result<Vec<Stored>, DeadLetterError> {
        self.past_damage(|| {
            self.write(|table| table::claim(table, filter, after, limit, lease, now))
        })
    }

    fn renew(&self, lease: Lease) -> Result<u64, DeadLetterError> {
        self.write(|table| table::renew(table, lease))
    }

    fn succeeded(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        self.write(|table| table::succeeded(table, id, holder))
    }

    fn failed(
        &self,
        id: &str,
        holder: u64,
        failure: Failure,
        fingerprint: Fingerprint,
        attempts: u64,
        now: WallSeconds,
    ) -> Result<bool, DeadLetterError> {
        self.write(|table| {
            table::failed(table, id, holder, |letter| {
                letter.redriven(failure, fingerprint, attempts, now, &self.limits);
            })
        })
    }

    fn release(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        self.write(|table| table::failed(table, id, holder, |_| {}))
    }

    fn expire(&self, now: WallSeconds) -> Result<u64, DeadLetterError> {
        self.write(|table| table::expire(table, &self.limits, now))
    }

    fn verify(&self) -> Result<u64, DeadLetterError> {
        let damaged = self.read(table::damaged)?;
        if !damaged.is_empty() {
            self.write(|table| table::move_aside(table, &damaged))?;
        }
        Ok(damaged.len() as u64)
    }

    fn statistics(&self) -> Result<Statistics, DeadLetterError> {
        self.read(table::statistics)
    }
}
