//! The table of dead letters, in whatever file it is: the standalone queue's or the
//! journal's. Every function works inside the caller's transaction and begins none.

use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::entry::{DeadLetter, Stored};
use super::filter::Filter;
use super::limits::{Limits, WhenFull};
use super::row::{self, Clause, Held, read};
use super::{Added, Lease, Statistics};
use crate::engine::store::{Problem, WallSeconds};
use crate::engine::topic::Topic;

/// The statements that make the tables.
pub(crate) const SCHEMA: &str = include_str!("schema.sql");

/// What came of adding.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Added(Added),
    /// At the bound.
    Full,
}

/// What came of reading.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) entries: Vec<Stored>,
    /// Rows that do not have their checksum, for [`move_aside`].
    pub(crate) damaged: Vec<i64>,
}

/// What came of looking for one entry.
pub(crate) enum Looked {
    Nothing,
    Damaged(i64),
    Found(Box<Held>),
}

/// Teaches a connection the patterns of topics.
pub(crate) fn prepare(connection: &Connection) -> Result<(), Problem> {
    let flags = FunctionFlags::SQLITE_UTF8
        | FunctionFlags::SQLITE_DETERMINISTIC
        | FunctionFlags::SQLITE_DIRECTONLY;
    connection.create_scalar_function("topic_matches", 2, flags, |context| {
        let topic = context.get_or_create_aux(0, |topic| topic.as_str().map(Topic::new))?;
        Ok(topic.matches(context.get_raw(1).as_str().unwrap_or_default()))
    })?;
    Ok(())
}

/// See [`DeadLetters::add`](super::DeadLetters::add).
pub(crate) fn add(
    connection: &Connection,
    mut letter: DeadLetter,
    limits: &Limits,
    now: WallSeconds,
) -> Result<Outcome, Problem> {
    limits.trim(&mut letter.failure);
    match look(connection, &letter.id)? {
        Looked::Found(mut row) => {
            row.stored.letter.fail_again(letter);
            let attempts = row.stored.letter.attempts;
            row::update(connection, &row)?;
            return Ok(Outcome::Added(Added::Again { attempts }));
        }
        Looked::Damaged(position) => move_aside(connection, &[position])?,
        Looked::Nothing => {}
    }
    if total(connection, "entries")? >= limits.max_entries && !make_room(connection, limits, now)? {
        return Ok(Outcome::Full);
    }
    row::insert(connection, &letter)?;
    Ok(Outcome::Added(Added::New))
}

fn make_room(connection: &Connection, limits: &Limits, now: WallSeconds) -> Result<bool, Problem> {
    expire(connection, limits, now)?;
    let entries = total(connection, "entries")?;
    if entries < limits.max_entries {
        return Ok(true);
    }
    if limits.when_full == WhenFull::Refuse || limits.max_entries == 0 {
        return Ok(false);
    }
    let surplus = entries - limits.max_entries + 1;
    let dropped = connection
        .prepare_cached(
            "DELETE FROM dead_letter WHERE position IN (SELECT position FROM dead_letter \
             WHERE lease_until IS NULL OR lease_until <= ?1 ORDER BY position LIMIT ?2)",
        )?
        .execute(params![now, surplus as i64])?;
    count(connection, "dropped", dropped)?;
    Ok(dropped as u64 == surplus)
}

/// See [`DeadLetters::import`](super::DeadLetters::import).
pub(crate) fn import(
    connection: &Connection,
    name: &str,
    letters: Vec<DeadLetter>,
    limits: &Limits,
) -> Result<bool, Problem> {
    let new = connection.execute(
        "INSERT OR IGNORE INTO dead_letter_import VALUES (?1)",
        [name],
    )?;
    if new == 0 {
        return Ok(false);
    }
    for mut letter in letters {
        limits.trim(&mut letter.failure);
        if let Looked::Nothing = look(connection, &letter.id)? {
            row::insert(connection, &letter)?;
        }
    }
    Ok(true)
}

/// The entry of this id.
pub(crate) fn look(connection: &Connection, id: &str) -> Result<Looked, Problem> {
    let sql = row::select("id = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([id])?;
    let Some(row) = rows.next()? else {
        return Ok(Looked::Nothing);
    };
    Ok(match read(row)? {
        (_, Some(row)) => Looked::Found(Box::new(row)),
        (position, None) => Looked::Damaged(position),
    })
}

/// Entries behind a position; with `free_at`, only those that nobody holds then.
pub(crate) fn page(
    connection: &Connection,
    filter: &Filter,
    after: u64,
    limit: usize,
    free_at: Option<WallSeconds>,
) -> Result<Found, Problem> {
    let mut wanted = Clause::new(filter);
    wanted.and("position > ?", i64::try_from(after).unwrap_or(i64::MAX));
    if let Some(now) = free_at {
        wanted.and("(lease_until IS NULL OR lease_until <= ?)", now);
    }
    let sql = row::select(&format!("{} ORDER BY position", wanted.sql));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(wanted.values))?;
    let mut found = Found::default();
    while found.entries.len() < limit {
        let Some(row) = rows.next()? else { break };
        match read(row)? {
            (_, Some(row)) => found.entries.push(row.stored),
            (position, None) => found.damaged.push(position),
        }
    }
    Ok(found)
}

/// How many entries a filter lets through.
pub(crate) fn matching(connection: &Connection, filter: &Filter) -> Result<u64, Problem> {
    let wanted = Clause::new(filter);
    let sql = format!("SELECT count(*) FROM dead_letter WHERE {}", wanted.sql);
    let count: i64 = connection
        .prepare_cached(&sql)?
        .query_row(params_from_iter(wanted.values), |row| row.get(0))?;
    Ok(count as u64)
}

/// Lets go of all that a filter lets through.
pub(crate) fn purge(connection: &Connection, filter: &Filter) -> Result<u64, Problem> {
    let wanted = Clause::new(filter);
    let sql = format!("DELETE FROM dead_letter WHERE {}", wanted.sql);
    let gone = connection
        .prepare_cached(&sql)?
        .execute(params_from_iter(wanted.values))?;
    Ok(gone as u64)
}

/// Lets go of one entry.
pub(crate) fn remove(connection: &Connection, id: &str) -> Result<bool, Problem> {
    let gone = connection
        .prepare_cached("DELETE FROM dead_letter WHERE id = ?1")?
        .execute([id])?;
    Ok(gone > 0)
}

/// Gives entries to a holder.
pub(crate) fn claim(
    connection: &Connection,
    filter: &Filter,
    after: u64,
    limit: usize,
    lease: Lease,
    now: WallSeconds,
) -> Result<Vec<Stored>, Problem> {
    let found = page(connection, filter, after, limit, Some(now))?;
    move_aside(connection, &found.damaged)?;
    let mut claimed = Vec::with_capacity(found.entries.len());
    for stored in found.entries {
        let row = Held {
            stored,
            lease: Some(lease),
        };
        row::update(connection, &row)?;
        claimed.push(row.stored);
    }
    Ok(claimed)
}

/// See [`DeadLetters::renew`](super::DeadLetters::renew).
pub(crate) fn renew(connection: &Connection, lease: Lease) -> Result<u64, Problem> {
    let sql = row::select("lease_holder = ?1");
    let mut held = Vec::new();
    let mut damaged = Vec::new();
    {
        let mut statement = connection.prepare_cached(&sql)?;
        let mut rows = statement.query([lease.holder as i64])?;
        while let Some(row) = rows.next()? {
            match read(row)? {
                (_, Some(row)) => held.push(row),
                (position, None) => damaged.push(position),
            }
        }
    }
    move_aside(connection, &damaged)?;
    for row in &mut held {
        row.lease = Some(lease);
        row::update(connection, row)?;
    }
    Ok(held.len() as u64)
}

/// The entry leaves, if it is this holder's.
pub(crate) fn succeeded(connection: &Connection, id: &str, holder: u64) -> Result<bool, Problem> {
    match held(connection, id, holder)? {
        Some(_) => remove(connection, id),
        None => Ok(false),
    }
}

/// The entry is nobody's any more, and changed, if it is this holder's.
pub(crate) fn failed(
    connection: &Connection,
    id: &str,
    holder: u64,
    change: impl FnOnce(&mut DeadLetter),
) -> Result<bool, Problem> {
    let Some(mut row) = held(connection, id, holder)? else {
        return Ok(false);
    };
    row.lease = None;
    change(&mut row.stored.letter);
    row::update(connection, &row)?;
    Ok(true)
}

fn held(connection: &Connection, id: &str, holder: u64) -> Result<Option<Box<Held>>, Problem> {
    Ok(match look(connection, id)? {
        Looked::Found(row) => row
            .lease
            .is_some_and(|lease| lease.holder == holder)
            .then_some(row),
        Looked::Damaged(position) => {
            move_aside(connection, &[position])?;
            None
        }
        Looked::Nothing => None,
    })
}

/// Lets go of what is too old, unless somebody holds it.
pub(crate) fn expire(
    connection: &Connection,
    limits: &Limits,
    now: WallSeconds,
) -> Result<u64, Problem> {
    let Some(horizon) = limits.horizon(now) else {
        return Ok(0);
    };
    let expired = connection
        .prepare_cached(
            "DELETE FROM dead_letter WHERE last_failure < ?1 \
             AND (lease_until IS NULL OR lease_until <= ?2)",
        )?
        .execute(params![horizon, now])?;
    count(connection, "expired", expired)?;
    Ok(expired as u64)
}

/// Rows that do not have their checksum.
pub(crate) fn damaged(connection: &Connection) -> Result<Vec<i64>, Problem> {
    let positions: Vec<i64> = connection
        .prepare("SELECT position FROM dead_letter ORDER BY position")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut damaged = Vec::new();
    for position in positions {
        if !is_sound(connection, position)? {
            damaged.push(position);
        }
    }
    Ok(damaged)
}

fn is_sound(connection: &Connection, position: i64) -> Result<bool, Problem> {
    let sql = row::select("position = ?1");
    let read = connection
        .prepare_cached(&sql)?
        .query_row([position], |row| {
            Ok(read(row).is_ok_and(|(_, row)| row.is_some()))
        })
        .optional();
    match read.map_err(Problem::from) {
        // SQLite cannot find the row that it has just shown, or makes no sense of it.
        Ok(None) | Err(Problem::Corrupt) => Ok(false),
        Ok(Some(sound)) => Ok(sound),
        Err(problem) => Err(problem),
    }
}

/// Moves damaged rows out of the way, as they are, and counts them.
pub(crate) fn move_aside(connection: &Connection, positions: &[i64]) -> Result<(), Problem> {
    for &position in positions {
        // Another process may have seen to it.
        let there = connection
            .prepare_cached("SELECT 1 FROM dead_letter WHERE position = ?1")?
            .query_row([position], |_| Ok(()))
            .optional()?;
        if there.is_none() || is_sound(connection, position)? {
            continue;
        }
        let copied = connection
            .prepare_cached(
                "INSERT OR REPLACE INTO dead_letter_damaged SELECT * FROM dead_letter WHERE position = ?1",
            )?
            .execute([position]);
        match copied.map_err(Problem::from) {
            // Not even its columns can be told apart.
            Err(Problem::Corrupt) => {
                connection.execute(
                    "INSERT INTO dead_letter_damaged (position) VALUES (?1)",
                    [position],
                )?;
            }
            copied => {
                copied?;
            }
        }
        connection
            .prepare_cached("DELETE FROM dead_letter WHERE position = ?1")?
            .execute([position])?;
        count(connection, "damaged", 1)?;
    }
    Ok(())
}

/// What the table has and had.
pub(crate) fn statistics(connection: &Connection) -> Result<Statistics, Problem> {
    Ok(Statistics {
        entries: total(connection, "entries")?,
        dropped: total(connection, "dropped")?,
        expired: total(connection, "expired")?,
        damaged: total(connection, "damaged")?,
    })
}

fn total(connection: &Connection, name: &str) -> Result<u64, Problem> {
    let value: i64 = connection
        .prepare_cached("SELECT value FROM dead_letter_total WHERE name = ?1")?
        .query_row([name], |row| row.get(0))?;
    Ok(value.max(0) as u64)
}

fn count(connection: &Connection, name: &str, more: usize) -> Result<(), Problem> {
    if more > 0 {
        connection
            .prepare_cached("UPDATE dead_letter_total SET value = value + ?2 WHERE name = ?1")?
            .execute(params![name, more as i64])?;
    }
    Ok(())
}
