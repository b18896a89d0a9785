//! Reads the journal's file beside the writer. Every call is one short snapshot, so that no
//! reader keeps the log from being brought into the file.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, ToSql, params};

use super::super::event::{Event, KeyDigest};
use super::super::storage::{
    Counts, CursorRow, Damage, EventFilter, Range, Reader, Scan, Straggler, SubscriptionId,
    SubscriptionRow,
};
use super::rows::{self, EventRow};
use super::{BUSY, SCHEMA, upkeep};
use crate::engine::priority::Priority;
use crate::engine::store::{self, Checksum, Problem, StoreError, WallSeconds};

/// See the module.
pub struct SqliteReader {
    path: PathBuf,
    connection: Connection,
}

/// A connection that reads the journal's file.
pub(crate) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    store::open_reader(path, &SCHEMA, BUSY)
}

impl SqliteReader {
    /// Opens a journal to read it, whoever owns it.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = open_to_read(path)?;
        Ok(Self {
            path: path.to_owned(),
            connection,
        })
    }

    /// What tells this journal from all others.
    pub fn identity(&mut self) -> Result<[u8; 16], StoreError> {
        self.at(|connection| Ok(rows::read_head(connection)?.1))
    }

    /// The last event that was committed and is kept.
    pub fn last(&mut self) -> Result<u64, StoreError> {
        self.at(|connection| {
            let sql = "SELECT coalesce(max(sequence), 0) FROM event";
            let last: i64 = connection
                .prepare_cached(sql)?
                .query_row([], |row| row.get(0))?;
            Ok(last as u64)
        })
    }

    /// What the file itself says is read in one snapshot.
    fn at<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, Problem>,
    ) -> Result<T, StoreError> {
        let snapshot = || {
            let transaction = self.connection.transaction()?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        snapshot().map_err(|problem: Problem| problem.at(&self.path))
    }
}

/// Goes over rows of events in order, and looks at each whether it is whole and follows the last.
pub(super) struct Walk<'c> {
    connection: &'c Connection,
    range: Range,
    /// The last event of each level that was looked at.
    pub(super) seen: [u64; Priority::COUNT],
    looked: usize,
    scan: Scan,
}

impl<'c> Walk<'c> {
    pub(super) fn new(connection: &'c Connection, range: Range) -> Self {
        Self {
            connection,
            range,
            seen: [range.after; Priority::COUNT],
            looked: 0,
            scan: Scan::default(),
        }
    }

    /// Takes those that are wanted, until the limit or the budget is reached; and the last ones
    /// of the levels.
    pub(super) fn run(
        mut self,
        condition: &str,
        parameters: &[&dyn ToSql],
        mut wanted: impl FnMut(&EventRow<'_, '_>) -> Result<bool, Problem>,
    ) -> Result<(Scan, [u64; Priority::COUNT]), Problem> {
        let sql = rows::select_events(condition);
        let mut statement = self.connection.prepare_cached(&sql)?;
        let mut rows = statement.query(parameters)?;
        self.scan.through = self.range.through.max(self.range.after);
        while let Some(row) = rows.next()? {
            let sequence = EventRow::sequence(row)?;
            match EventRow::read(row)? {
                Some(event) => {
                    self.follows(&event, sequence)?;
                    if wanted(&event)? {
                        self.scan.events.push(event.event()?);
                    }
                }
                None => self.scan.damage.push(Damage::Damaged { sequence }),
            }
            self.looked += 1;
            if self.scan.events.len() == self.range.limit || self.looked == self.range.budget {
                self.scan.through = sequence;
                break;
            }
        }
        Ok((self.scan, self.seen))
    }

    fn follows(&mut self, event: &EventRow<'_, '_>, sequence: u64) -> Result<(), Problem> {
        let level = event.level()?;
        let (seen, previous) = (self.seen[level.index()], event.previous()?);
        self.seen[level.index()] = sequence;
        // A damaged row that was just met is the one that seems to be missing.
        let met = |damage: &Damage| matches!(damage, Damage::Damaged { sequence } if *sequence == previous);
        if previous <= seen || self.scan.damage.iter().any(met) {
            return Ok(());
        }
        let (head, _) = rows::read_head(self.connection)?;
        if previous <= head.deleted_through {
            return Ok(());
        }
        let moved_aside = self
            .connection
            .prepare_cached("SELECT 1 FROM damage WHERE what = 'damaged' AND sequence = ?1")?
            .query_row([previous as i64], |_| Ok(()))
            .optional()?;
        self.scan.damage.push(match moved_aside {
            Some(()) => Damage::Damaged { sequence: previous },
            None => Damage::Lost {
                level,
                after: seen,
                through: previous,
            },
        });
        Ok(())
    }
}

impl Reader for SqliteReader {
    fn scan(
        &mut self,
        level: Priority,
        range: Range,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Scan, StoreError> {
        self.at(|connection| {
            // The others' index has no NORMAL events; those are passed over by number.
            let condition = match level {
                Priority::Normal => "priority = ?3 AND sequence > ?1 AND sequence <= ?2 ORDER BY sequence",
                _ => {
                    "priority <> 2 AND priority = ?3 AND sequence > ?1 AND sequence <= ?2 ORDER BY sequence"
                }
            };
            let bounds: [&dyn ToSql; 3] =
                [&(range.after as i64), &(range.through as i64), &(level as i64)];
            Walk::new(connection, range).run(condition, &bounds, |event| {
                Ok(wanted(event.event_type()?))
            })
            .map(|(scan, _)| scan)
        })
    }

    fn events(&mut self, filter: &EventFilter, range: Range) -> Result<Scan, StoreError> {
        self.at(|connection| {
            let mut range = range;
            if let Some(since) = filter.since {
                range.after = range.after.max(upkeep::position_at(connection, since)?);
            }
            if let Some(until) = filter.until {
                range.through = range.through.min(upkeep::position_at(connection, until)?);
            }
            let bounds: [&dyn ToSql; 2] = [&(range.after as i64), &(range.through as i64)];
            Walk::new(connection, range)
                .run(
                    "sequence > ?1 AND sequence <= ?2 ORDER BY sequence",
                    &bounds,
                    |event| event.admitted_by(filter),
                )
                .map(|(scan, _)| scan)
        })
    }

    fn event(&mut self, sequence: u64) -> Result<Option<Event>, StoreError> {
        self.at(|connection| {
            let sql = rows::select_events("sequence = ?1");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([sequence as i64])?;
            let Some(row) = rows.next()? else {
                return Ok(None);
            };
            EventRow::read(row)?.map(|event| event.event()).transpose()
        })
    }

    fn around(&mut self, sequence: u64) -> Result<(u64, Option<u64>), StoreError> {
        self.at(|connection| {
            let at = |sql: &str| -> Result<Option<u64>, Problem> {
                let found: Option<i64> = connection
                    .prepare_cached(sql)?
                    .query_row([sequence as i64], |row| row.get(0))?;
                Ok(found.map(|found| found as u64))
            };
            Ok((
                at("SELECT max(sequence) FROM event WHERE sequence <= ?1")?.unwrap_or(0),
                at("SELECT min(sequence) FROM event WHERE sequence > ?1")?,
            ))
        })
    }

    fn stragglers(
        &mut self,
        subscription: SubscriptionId,
        after: Option<(Priority, u64)>,
        limit: usize,
    ) -> Result<Vec<Straggler>, StoreError> {
        self.at(|connection| {
            let sql = rows::select_stragglers(
                "subscription = ?1 AND (priority, sequence) > (?2, ?3) \
                 ORDER BY priority, sequence LIMIT ?4",
            );
            let (level, sequence) =
                after.map_or((-1, 0), |(level, sequence)| (level as i64, sequence as i64));
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query(params![subscription, level, sequence, limit])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(rows::read_straggler(row)?);
            }
            Ok(found)
        })
    }

    fn keys(
        &mut self,
        since: WallSeconds,
        limit: usize,
    ) -> Result<Vec<(KeyDigest, WallSeconds)>, StoreError> {
        self.at(|connection| {
            let begin = upkeep::position_at(connection, since)?;
            let sql =
                rows::select_events("sequence > ?1 AND digest IS NOT NULL ORDER BY sequence DESC");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([begin as i64])?;
            let mut found = Vec::new();
            while found.len() < limit {
                let Some(row) = rows.next()? else { break };
                // A damaged row is met again by whoever is to be given the event.
                if let Some(event) = EventRow::read(row)? {
                    found.extend(event.key_digest()?);
                }
            }
            found.reverse();
            Ok(found)
        })
    }

    fn position_at(&mut self, time: WallSeconds) -> Result<u64, StoreError> {
        self.at(|connection| upkeep::position_at(connection, time))
    }

    fn subscriptions(&mut self) -> Result<Vec<(SubscriptionRow, Vec<CursorRow>)>, StoreError> {
        self.at(upkeep::subscriptions)
    }

    fn straggler_count(&mut self, subscription: SubscriptionId) -> Result<u64, StoreError> {
        self.at(|connection| {
            let count: i64 = connection
                .prepare_cached("SELECT count(*) FROM straggler WHERE subscription = ?1")?
                .query_row([subscription], |row| row.get(0))?;
            Ok(count as u64)
        })
    }

    fn bookmark(&mut self, name: &str) -> Result<Option<String>, StoreError> {
        self.at(|connection| {
            let found: Option<(String, i64)> = connection
                .prepare_cached("SELECT value, checksum FROM bookmark WHERE name = ?1")?
                .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match found {
                Some((value, sum))
                    if sum == Checksum::of("bookmark").text(name).text(&value).finish() =>
                {
                    Ok(Some(value))
                }
                Some(_) => Err(Problem::Corrupt),
                None => Ok(None),
            }
        })
    }

    fn counts(&mut self) -> Result<Counts, StoreError> {
        self.at(|connection| {
            let count = |sql| -> Result<u64, Problem> {
                let count: i64 = connection.query_row(sql, [], |row| row.get(0))?;
                Ok(count as u64)
            };
            Ok(Counts {
                events: count("SELECT count(*) FROM event")?,
                damaged: count("SELECT count(*) FROM damage WHERE what = 'damaged'")?,
                lost: count("SELECT count(*) FROM damage WHERE what = 'lost'")?,
            })
        })
    }
}
