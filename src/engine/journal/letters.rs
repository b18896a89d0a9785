//! The dead letters in a journal's file. They change in the writer's commits, so a dead letter
//! and the settlement of its delivery are one; they are read beside the writer.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::sqlite::open_to_read;
use super::{Journal, JournalError, Shared};
use crate::engine::dead_letters::table::{self, Looked, Outcome};
use crate::engine::dead_letters::{
    Added, DeadLetter, DeadLetterError, DeadLetterReader, DeadLetters, Failure, Filter,
    Fingerprint, Lease, Limits, Statistics, Stored,
};
use crate::engine::store::{Durability, Problem, StoreError, WallSeconds};
use crate::engine::sync::lock;

/// See the module.
pub struct JournalDeadLetters {
    shared: Arc<Shared>,
    limits: Limits,
    durability: Durability,
}

impl Journal {
    /// The dead letters of a journal in a file, within the bounds that it was opened with.
    pub fn dead_letters(
        &self,
        limits: Limits,
        durability: Durability,
    ) -> Result<JournalDeadLetters, JournalError> {
        let path = &self.shared.path;
        let mut reader = lock(&self.shared.letters);
        if reader.is_none() {
            let opened = open_to_read(path)?;
            table::prepare(&opened).map_err(|problem| problem.at(path))?;
            *reader = Some(opened);
        }
        drop(reader);
        Ok(JournalDeadLetters {
            shared: self.shared.clone(),
            limits,
            durability,
        })
    }
}

/// Looks at the dead letters in a journal's file, whoever owns it.
pub fn read_dead_letters(journal: &Path) -> Result<DeadLetterReader, StoreError> {
    DeadLetterReader::over(journal, open_to_read(journal)?)
}

impl JournalDeadLetters {
    fn write<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, DeadLetterError> {
        self.shared
            .sql(self.durability, work)
            .map_err(|error| match error {
                JournalError::Store(error) => DeadLetterError::Store(error),
                JournalError::DeadLetter(error) => error,
                error => DeadLetterError::Unavailable(error.to_string()),
            })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, DeadLetterError> {
        let mut reader = lock(&self.shared.letters);
        let Some(reader) = &mut *reader else {
            return Err(DeadLetterError::Unavailable(
                JournalError::Closed.to_string(),
            ));
        };
        let snapshot = || {
            let transaction = reader.transaction()?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        snapshot().map_err(|problem: Problem| problem.at(&self.shared.path).into())
    }

    fn move_aside(&self, positions: Vec<i64>) -> Result<(), DeadLetterError> {
        if positions.is_empty() {
            return Ok(());
        }
        self.write(move |letters| table::move_aside(letters, &positions))
    }
}

impl DeadLetters for JournalDeadLetters {
    fn add(&self, letter: DeadLetter, now: WallSeconds) -> Result<Added, DeadLetterError> {
        let limits = self.limits;
        match self.write(move |letters| table::add(letters, letter.clone(), &limits, now))? {
            Outcome::Added(added) => Ok(added),
            Outcome::Full => Err(DeadLetterError::Full {
                bound: self.limits.max_entries,
            }),
        }
    }

    fn import(&self, name: &str, letters: Vec<DeadLetter>) -> Result<bool, DeadLetterError> {
        let (name, limits) = (name.to_owned(), self.limits);
        self.write(move |table| table::import(table, &name, letters.clone(), &limits))
    }

    fn get(&self, id: &str) -> Result<Option<Stored>, DeadLetterError> {
        match self.read(|letters| table::look(letters, id))? {
            Looked::Found(row) => Ok(Some(row.stored)),
            Looked::Nothing => Ok(None),
            Looked::Damaged(position) => {
                self.move_aside(vec![position])?;
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
        let found = self.read(|letters| table::page(letters, filter, after, limit, None))?;
        self.move_aside(found.damaged)?;
        Ok(found.entries)
    }

    fn count(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        self.read(|letters| table::matching(letters, filter))
    }

    fn remove(&self, id: &str) -> Result<bool, DeadLetterError> {
        let id = id.to_owned();
        self.write(move |letters| table::remove(letters, &id))
    }

    fn purge(&self, filter: &Filter) -> Result<u64, DeadLetterError> {
        let filter = filter.clone();
        self.write(move |letters| table::purge(letters, &filter))
    }

    fn claim(
        &self,
        filter: &Filter,
        after: u64,
        limit: usize,
        lease: Lease,
        now: WallSeconds,
    ) -> Result<Vec<Stored>, DeadLetterError> {
        let filter = filter.clone();
        self.write(move |letters| table::claim(letters, &filter, after, limit, lease, now))
    }

    fn renew(&self, lease: Lease) -> Result<u64, DeadLetterError> {
        self.write(move |letters| table::renew(letters, lease))
    }

    fn succeeded(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        let id = id.to_owned();
        self.write(move |letters| table::succeeded(letters, &id, holder))
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
        let (id, limits) = (id.to_owned(), self.limits);
        self.write(move |letters| {
            let failure = failure.clone();
            table::failed(letters, &id, holder, |letter| {
                letter.redriven(failure, fingerprint, attempts, now, &limits);
            })
        })
    }

    fn release(&self, id: &str, holder: u64) -> Result<bool, DeadLetterError> {
        let id = id.to_owned();
        self.write(move |letters| table::failed(letters, &id, holder, |_| {}))
    }

    fn expire(&self, now: WallSeconds) -> Result<u64, DeadLetterError> {
        let limits = self.limits;
        self.write(move |letters| table::expire(letters, &limits, now))
    }

    fn verify(&self) -> Result<u64, DeadLetterError> {
        let damaged = self.read(table::damaged)?;
        let count = damaged.len() as u64;
        self.move_aside(damaged)?;
        Ok(count)
    }

    fn statistics(&self) -> Result<Statistics, DeadLetterError> {
        self.read(table::statistics)
    }
}
