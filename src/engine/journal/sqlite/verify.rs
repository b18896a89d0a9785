//! Looks at everything in a journal's file, whoever owns it, and changes nothing.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::super::storage::{Damage, Range};
use super::reader::{Walk, open_to_read};
use super::rows;
use super::{LEVELS, upkeep};
use crate::engine::dead_letters::table;
use crate::engine::store::{Problem, StoreError};

/// So many events are looked at in one snapshot: the log is not kept from being begun anew.
const PAGE: usize = 10_000;

/// What a journal looks like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verification {
    /// Events that are whole.
    pub events: u64,
    /// Dead letters, damaged ones included.
    pub dead_letters: u64,
    /// Events that are damaged or missing.
    pub damage: Vec<Damage>,
    /// What else is wrong, in words.
    pub findings: Vec<String>,
    /// Damage that was noticed before and is dealt with: rows that were moved aside and places
    /// that are known to be empty.
    pub noted: u64,
}

impl Verification {
    /// Whether nothing is wrong now.
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty() && self.findings.is_empty()
    }
}

/// Looks at everything.
pub fn verify(path: &Path) -> Result<Verification, StoreError> {
    let mut connection = open_to_read(path)?;
    let mut found = Verification::default();
    look(&mut connection, &mut found).map_err(|problem| problem.at(path))?;
    Ok(found)
}

fn look(connection: &mut Connection, found: &mut Verification) -> Result<(), Problem> {
    integrity(connection, found)?;
    events(connection, found)?;
    let snapshot = connection.transaction()?;
    ends(&snapshot, found)?;
    places(&snapshot, found)?;
    let count = |sql| -> Result<u64, Problem> {
        let count: i64 = snapshot.query_row(sql, [], |row| row.get(0))?;
        Ok(count as u64)
    };
    found.dead_letters = count("SELECT count(*) FROM dead_letter")?;
    found.noted = count("SELECT count(*) FROM damage")?;
    for position in table::damaged(&snapshot)? {
        found
            .findings
            .push(format!("dead letter at position {position} is damaged"));
    }
    Ok(())
}

/// What SQLite says of its own structures.
fn integrity(connection: &Connection, found: &mut Verification) -> Result<(), Problem> {
    let mut check = connection.prepare("PRAGMA integrity_check(100)")?;
    let mut rows = check.query([])?;
    while let Some(row) = rows.next()? {
        let text: String = row.get(0)?;
        if text != "ok" {
            found.findings.push(format!("SQLite: {text}"));
        }
    }
    Ok(())
}

fn events(connection: &mut Connection, found: &mut Verification) -> Result<(), Problem> {
    let mut seen = None;
    let mut after = 0;
    loop {
        let snapshot = connection.transaction()?;
        let range = Range {
            after,
            through: i64::MAX as u64,
            limit: PAGE,
            budget: PAGE,
        };
        let mut walk = Walk::new(&snapshot, range);
        if let Some(seen) = seen {
            walk.seen = seen;
        }
        let mut whole = 0;
        let (scan, reached) = walk.run(
            "sequence > ?1 AND sequence <= ?2 ORDER BY sequence",
            &[&(after as i64), &i64::MAX],
            |_| {
                whole += 1;
                Ok(false)
            },
        )?;
        found.events += whole;
        found.damage.extend(scan.damage);
        if scan.through >= range.through {
            return Ok(());
        }
        seen = Some(reached);
        after = scan.through;
    }
}

/// The last events are those that the journal remembers.
fn ends(connection: &Connection, found: &mut Verification) -> Result<(), Problem> {
    if upkeep::is_new(connection)? {
        return Ok(());
    }
    let head = match rows::read_head(connection) {
        Ok((head, _)) => head,
        Err(Problem::Corrupt) => {
            found
                .findings
                .push("the row of the journal itself is damaged".into());
            return Ok(());
        }
        Err(problem) => return Err(problem),
    };
    for level in LEVELS {
        let last: Option<i64> = connection
            .query_row(
                "SELECT sequence FROM event WHERE priority = ?1 ORDER BY sequence DESC LIMIT 1",
                [level as i64],
                |row| row.get(0),
            )
            .optional()?;
        let (after, through) = (last.unwrap_or(0) as u64, head.last[level.index()]);
        if after < through && through > head.deleted_through {
            let noted = connection
                .query_row(
                    "SELECT 1 FROM damage WHERE through = ?1 AND what IN ('damaged', 'lost')",
                    [through as i64],
                    |_| Ok(()),
                )
                .optional()?;
            if noted.is_none() {
                found.damage.push(Damage::Lost {
                    level,
                    after,
                    through,
                });
            }
        }
    }
    Ok(())
}

/// Subscriptions, where they are, and what they have left behind.
fn places(connection: &Connection, found: &mut Verification) -> Result<(), Problem> {
    let subscriptions = match upkeep::subscriptions(connection) {
        Ok(subscriptions) => subscriptions,
        Err(Problem::Corrupt) => {
            found.findings.push("a subscription is damaged".into());
            Vec::new()
        }
        Err(problem) => return Err(problem),
    };
    for (row, cursors) in &subscriptions {
        for level in LEVELS {
            if !cursors.iter().any(|cursor| cursor.level == level) {
                found.findings.push(format!(
                    "the position of subscription {} on level {} is damaged",
                    row.name,
                    level.name()
                ));
            }
        }
    }
    let mut statement = connection.prepare(&rows::select_stragglers("TRUE"))?;
    let mut stragglers = statement.query([])?;
    while let Some(row) = stragglers.next()? {
        if !rows::sound(row, "straggler", rows::STRAGGLER_COLUMNS)? {
            let (subscription, sequence): (i64, i64) = (row.get(0)?, row.get(2)?);
            found.findings.push(format!(
                "the straggler of subscription {subscription} at event {sequence} is damaged"
            ));
        }
    }
    Ok(())
}
