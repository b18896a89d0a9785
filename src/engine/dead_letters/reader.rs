//! Looks at the dead letters in a file, whoever writes to it, and changes nothing: what is
//! damaged is counted, and left for the queue itself to move aside.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

use super::DeadLetterError;
use super::entry::Stored;
use super::filter::Filter;
use super::sqlite::SCHEMA;
use super::table;
use crate::engine::store::{self, Problem, StoreError};

/// How long a call waits for a lock. There is hardly one to wait for: readers of a WAL wait for
/// nobody.
const BUSY: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct DeadLetterReader {
    path: PathBuf,
    connection: Connection,
}

/// Some entries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// Those that are whole.
    pub entries: Vec<Stored>,
    /// How many on the way are not.
    pub damaged: u64,
}

impl DeadLetterReader {
    /// Opens the file of a dead letter queue.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::over(path, store::open_reader(path, &SCHEMA, BUSY)?)
    }

    /// Reads the tables of dead letters in a file of another kind, which is open.
    pub(crate) fn over(path: &Path, connection: Connection) -> Result<Self, StoreError> {
        table::prepare(&connection).map_err(|problem| problem.at(path))?;
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    /// Up to `limit` entries behind a position, in the order in which they came.
    pub fn page(
        &mut self,
        filter: &Filter,
        after: u64,
        limit: usize,
    ) -> Result<Page, DeadLetterError> {
        let found = self.read(|table| table::page(table, filter, after, limit, None))?;
        Ok(Page {
            entries: found.entries,
            damaged: found.damaged.len() as u64,
        })
    }

    /// How many entries a filter lets through, damaged ones included.
    pub fn count(&mut self, filter: &Filter) -> Result<u64, DeadLetterError> {
        self.read(|table| table::matching(table, filter))
    }

    /// One short snapshot: no reader keeps the log from being brought into the file.
    fn read<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, DeadLetterError> {
        let snapshot = || {
            let transaction = self.connection.transaction()?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        snapshot().map_err(|problem: Problem| problem.at(&self.path).into())
    }
}
