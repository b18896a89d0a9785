//! The rows of the journal: written with their checksum, read only if they still have it.

use std::sync::Arc;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, Statement, ToSql, params};

use super::super::cursor::Run;
use super::super::event::{Event, KeyDigest};
use super::super::storage::{
    CursorRow, EventFilter, Head, Straggler, StragglerState, SubscriptionRow,
};
use crate::engine::priority::Priority;
use crate::engine::store::{Checksum, Problem, WallSeconds};

/// The columns of an event, without the checksum.
const EVENT: &str = "sequence, previous, priority, type, key, accepted, timestamp, due, expires, event_id, \
    source, headers, idempotency_key, digest, correlation_id, causation_id, data";
const EVENT_COLUMNS: usize = 17;

/// The statement that reads the events of a condition.
pub(super) fn select_events(condition: &str) -> String {
    format!("SELECT {EVENT}, checksum FROM event WHERE {condition}")
}

/// Writes new events, each behind the last one of its level, which it then is itself.
pub(super) fn insert_events(
    connection: &Connection,
    events: &mut dyn Iterator<Item = &Event>,
    head: &mut Head,
) -> Result<(), Problem> {
    let mut statement = connection.prepare_cached(
        "INSERT INTO event VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, \
         ?15, ?16, ?17, ?18)",
    )?;
    for event in events {
        let last = &mut head.last[event.level.index()];
        bind_event(&mut statement, event, *last)?;
        statement.raw_execute()?;
        *last = event.sequence;
    }
    Ok(())
}

fn bind_event(statement: &mut Statement<'_>, event: &Event, previous: u64) -> Result<(), Problem> {
    // Half of the columns are NULL in most events; what is not bound is.
    statement.clear_bindings();
    let mut row = Bound {
        statement,
        sum: Checksum::of("event"),
        column: 0,
    };
    row.integer(event.sequence as i64)?;
    row.integer(previous as i64)?;
    row.integer(event.level as i64)?;
    row.text(Some(&event.event_type))?;
    row.text(event.key.as_deref())?;
    row.real(Some(event.accepted))?;
    row.real(Some(event.timestamp))?;
    row.real(event.due)?;
    row.real(event.expires)?;
    row.text(event.event_id.as_deref())?;
    row.text(event.source.as_deref())?;
    row.text(event.headers.as_deref())?;
    row.text(event.idempotency_key.as_deref())?;
    row.blob(event.digest.as_ref().map(|digest| &digest[..]))?;
    row.text(event.correlation_id.as_deref())?;
    row.text(event.causation_id.as_deref())?;
    row.text(Some(&event.data))?;
    row.finish()
}

/// Binds the values of a row from left to right, and its checksum as the last one.
struct Bound<'s, 'c> {
    statement: &'s mut Statement<'c>,
    sum: Checksum,
    column: usize,
}

impl Bound<'_, '_> {
    fn next(&mut self, value: Option<impl ToSql>) -> Result<(), Problem> {
        self.column += 1;
        if let Some(value) = value {
            self.statement.raw_bind_parameter(self.column, value)?;
        }
        Ok(())
    }

    fn integer(&mut self, value: i64) -> Result<(), Problem> {
        self.sum.integer(value);
        self.next(Some(value))
    }

    fn real(&mut self, value: Option<f64>) -> Result<(), Problem> {
        self.sum.maybe_real(value);
        self.next(value)
    }

    fn text(&mut self, value: Option<&str>) -> Result<(), Problem> {
        self.sum.maybe_text(value);
        self.next(value)
    }

    fn blob(&mut self, value: Option<&[u8]>) -> Result<(), Problem> {
        match value {
            Some(value) => self.sum.blob(value),
            None => self.sum.null(),
        };
        self.next(value)
    }

    fn finish(mut self) -> Result<(), Problem> {
        let sum = self.sum.finish();
        self.next(Some(sum))
    }
}

/// The row's own checksum, and the one that its values have.
pub(super) fn sound(row: &Row<'_>, table: &str, columns: usize) -> Result<bool, Problem> {
    let mut sum = Checksum::of(table);
    for column in 0..columns {
        sum.value(row.get_ref(column)?);
    }
    Ok(row.get_ref(columns)? == ValueRef::Integer(sum.finish()))
}

/// A row of [`select_events`] as it lies in the page: nothing is copied before it is wanted.
pub(super) struct EventRow<'a, 'b>(&'a Row<'b>);

impl<'a, 'b> EventRow<'a, 'b> {
    /// `None`: it does not have its checksum.
    pub(super) fn read(row: &'a Row<'b>) -> Result<Option<Self>, Problem> {
        let sound = sound(row, "event", EVENT_COLUMNS)?;
        Ok(sound.then_some(Self(row)))
    }

    pub(super) fn sequence(row: &Row<'_>) -> Result<u64, Problem> {
        Ok(row.get::<_, i64>(0)? as u64)
    }

    pub(super) fn previous(&self) -> Result<u64, Problem> {
        Ok(self.0.get::<_, i64>(1)? as u64)
    }

    pub(super) fn level(&self) -> Result<Priority, Problem> {
        level(self.0.get(2)?)
    }

    pub(super) fn event_type(&self) -> Result<&str, Problem> {
        self.0.get_ref(3)?.as_str().map_err(|_| Problem::Corrupt)
    }

    /// Whether a filter lets it through, as far as that is not a matter of its time.
    pub(super) fn admitted_by(&self, filter: &EventFilter) -> Result<bool, Problem> {
        let event_type = self.event_type()?;
        let topics = &filter.topics;
        if !topics.is_empty() && !topics.iter().any(|topic| topic.matches(event_type)) {
            return Ok(false);
        }
        Ok(match &filter.key {
            Some(key) => self.0.get_ref(4)? == ValueRef::Text(key.as_bytes()),
            None => true,
        })
    }

    /// What duplicates are found by, and since when it counts.
    pub(super) fn key_digest(&self) -> Result<Option<(KeyDigest, WallSeconds)>, Problem> {
        let digest: Option<Vec<u8>> = self.0.get(13)?;
        let Some(digest) = digest else {
            return Ok(None);
        };
        let digest = digest.try_into().map_err(|_| Problem::Corrupt)?;
        Ok(Some((digest, self.0.get(5)?)))
    }

    pub(super) fn event(&self) -> Result<Event, Problem> {
        let row = self.0;
        let digest: Option<Vec<u8>> = row.get(13)?;
        Ok(Event {
            sequence: Self::sequence(row)?,
            level: self.level()?,
            event_type: Arc::from(self.event_type()?),
            data: row.get(16)?,
            accepted: row.get(5)?,
            timestamp: row.get(6)?,
            event_id: row.get(9)?,
            source: row.get(10)?,
            key: row.get(4)?,
            headers: row.get(11)?,
            idempotency_key: row.get(12)?,
            digest: digest
                .map(|bytes| bytes.try_into().map_err(|_| Problem::Corrupt))
                .transpose()?,
            correlation_id: row.get(14)?,
            causation_id: row.get(15)?,
            due: row.get(7)?,
            expires: row.get(8)?,
        })
    }
}

pub(super) fn level(number: i64) -> Result<Priority, Problem> {
    u8::try_from(number)
        .ok()
        .and_then(|number| Priority::try_from(number).ok())
        .ok_or(Problem::Corrupt)
}

/// Reads the row of the journal itself.
pub(super) fn read_head(connection: &Connection) -> Result<(Head, [u8; 16]), Problem> {
    let sql = "SELECT identity, reserved, last_critical, last_high, last_normal, last_low, accepted, \
        deleted_through, closed, checksum FROM journal WHERE id = 1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let row = rows.next()?.ok_or(Problem::Corrupt)?;
    if !sound(row, "journal", 9)? {
        return Err(Problem::Corrupt);
    }
    let number = |column| -> Result<u64, Problem> { Ok(row.get::<_, i64>(column)? as u64) };
    let identity: Vec<u8> = row.get(0)?;
    let head = Head {
        reserved: number(1)?,
        last: [number(2)?, number(3)?, number(4)?, number(5)?],
        accepted: row.get(6)?,
        deleted_through: number(7)?,
        closed: row.get(8)?,
    };
    Ok((head, identity.try_into().map_err(|_| Problem::Corrupt)?))
}

/// Writes the row of the journal itself.
pub(super) fn write_head(
    connection: &Connection,
    head: &Head,
    identity: &[u8; 16],
) -> Result<(), Problem> {
    let [critical, high, normal, low] = head.last.map(|last| last as i64);
    let sum = Checksum::of("journal")
        .blob(identity)
        .integer(head.reserved as i64)
        .integer(critical)
        .integer(high)
        .integer(normal)
        .integer(low)
        .real(head.accepted)
        .integer(head.deleted_through as i64)
        .integer(head.closed.into())
        .finish();
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO journal VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            identity,
            head.reserved as i64,
            critical,
            high,
            normal,
            low,
            head.accepted,
            head.deleted_through as i64,
            head.closed,
            sum,
        ])?;
    Ok(())
}

/// Runs as a JSON array of pairs.
fn runs_text(runs: &[Run]) -> String {
    let pairs: Vec<String> = runs
        .iter()
        .map(|(from, to)| format!("[{from},{to}]"))
        .collect();
    format!("[{}]", pairs.join(","))
}

fn parse_runs(text: &str) -> Option<Vec<Run>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() {
        return Some(Vec::new());
    }
    let pairs = inner.strip_prefix('[')?.strip_suffix(']')?.split("],[");
    pairs
        .map(|pair| {
            let (from, to) = pair.split_once(',')?;
            Some((from.parse().ok()?, to.parse().ok()?))
        })
        .collect()
}

pub(super) fn write_cursor(connection: &Connection, cursor: &CursorRow) -> Result<(), Problem> {
    let runs = runs_text(&cursor.runs);
    let (level, position) = (cursor.level as i64, cursor.position as i64);
    let sum = Checksum::of("cursor")
        .integer(cursor.subscription)
        .integer(level)
        .integer(position)
        .text(&runs)
        .finish();
    connection
        .prepare_cached("INSERT OR REPLACE INTO cursor VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![cursor.subscription, level, position, runs, sum])?;
    Ok(())
}

pub(super) const CURSORS: &str = "SELECT subscription, priority, position, runs, checksum FROM cursor ORDER BY subscription, priority";

/// A row of [`CURSORS`]; a damaged one is an error: without it nobody knows what is settled.
pub(super) fn read_cursor(row: &Row<'_>) -> Result<CursorRow, Problem> {
    if !sound(row, "cursor", 4)? {
        return Err(Problem::Corrupt);
    }
    Ok(CursorRow {
        subscription: row.get(0)?,
        level: level(row.get(1)?)?,
        position: row.get::<_, i64>(2)? as u64,
        runs: row
            .get_ref(3)?
            .as_str()
            .ok()
            .and_then(parse_runs)
            .ok_or(Problem::Corrupt)?,
    })
}

/// Topics as a JSON array; types are printable, so quotes and backslashes are all to escape.
fn topics_text(topics: &[String]) -> String {
    let quoted: Vec<String> = topics
        .iter()
        .map(|topic| {
            let mut text = Vec::new();
            crate::engine::digest::write_str(&mut text, topic);
            String::from_utf8_lossy(&text).into_owned()
        })
        .collect();
    format!("[{}]", quoted.join(","))
}

pub(super) fn write_subscription(
    connection: &Connection,
    row: &SubscriptionRow,
) -> Result<(), Problem> {
    let topics = topics_text(&row.topics);
    let sum = Checksum::of("subscription")
        .integer(row.id)
        .text(&row.name)
        .text(&topics)
        .real(row.created)
        .real(row.seen)
        .finish();
    connection
        .prepare_cached("INSERT OR REPLACE INTO subscription VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            row.id,
            row.name,
            topics,
            row.created,
            row.seen,
            sum
        ])?;
    Ok(())
}

/// All subscriptions, or the one of this name.
pub(super) fn read_subscriptions(
    connection: &Connection,
    name: Option<&str>,
) -> Result<Vec<SubscriptionRow>, Problem> {
    let sql = "SELECT id, name, topics, created, seen, checksum FROM subscription \
        WHERE ?1 IS NULL OR name = ?1 ORDER BY id";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([name])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        if !sound(row, "subscription", 5)? {
            return Err(Problem::Corrupt);
        }
        found.push(SubscriptionRow {
            id: row.get(0)?,
            name: row.get(1)?,
            topics: Vec::new(),
            created: row.get(3)?,
            seen: row.get(4)?,
        });
    }
    drop(rows);
    for row in &mut found {
        row.topics = connection
            .prepare_cached(
                "SELECT topic.value FROM subscription s, json_each(s.topics) topic WHERE s.id = ?1 \
                 ORDER BY topic.key",
            )?
            .query_map([row.id], |topic| topic.get(0))?
            .collect::<Result<_, _>>()?;
    }
    Ok(found)
}

const STATES: [StragglerState; 4] = [
    StragglerState::Waiting,
    StragglerState::Retry,
    StragglerState::Suspect,
    StragglerState::Redrive,
];

/// The state of this name.
pub(super) fn state(name: &str) -> Result<StragglerState, Problem> {
    let known = STATES.into_iter().find(|state| state.name() == name);
    known.ok_or(Problem::Corrupt)
}

pub(super) fn write_straggler(connection: &Connection, row: &Straggler) -> Result<(), Problem> {
    let state = row.state.name();
    let (level, sequence, attempt) = (
        row.level as i64,
        row.sequence as i64,
        i64::from(row.attempt),
    );
    let sum = Checksum::of("straggler")
        .integer(row.subscription)
        .integer(level)
        .integer(sequence)
        .integer(attempt)
        .maybe_real(row.due)
        .text(state)
        .maybe_text(row.dead_letter.as_deref())
        .finish();
    connection
        .prepare_cached("INSERT OR REPLACE INTO straggler VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute(params![
            row.subscription,
            level,
            sequence,
            attempt,
            row.due,
            state,
            row.dead_letter,
            sum
        ])?;
    Ok(())
}

pub(super) const STRAGGLER_COLUMNS: usize = 7;

/// The statement that reads the stragglers of a condition.
pub(super) fn select_stragglers(condition: &str) -> String {
    format!(
        "SELECT subscription, priority, sequence, attempt, due, state, dead_letter, checksum \
         FROM straggler WHERE {condition}"
    )
}

/// A row of [`select_stragglers`]; a damaged one comes back with its key and no attempts: to
/// deliver once more is right, to forget is not.
pub(super) fn read_straggler(row: &Row<'_>) -> Result<Straggler, Problem> {
    let key = Straggler {
        subscription: row.get(0)?,
        level: level(row.get(1)?)?,
        sequence: row.get::<_, i64>(2)? as u64,
        attempt: 0,
        due: None,
        state: StragglerState::Waiting,
        dead_letter: None,
    };
    if !sound(row, "straggler", STRAGGLER_COLUMNS)? {
        return Ok(key);
    }
    let name = row.get_ref(5)?.as_str().map_err(|_| Problem::Corrupt)?;
    Ok(Straggler {
        attempt: row.get(3)?,
        due: row.get(4)?,
        state: state(name)?,
        dead_letter: row.get(6)?,
        ..key
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_read_as_they_were_written() {
        for runs in [vec![], vec![(1, 1)], vec![(3, 9), (12, u64::MAX >> 1)]] {
            assert_eq!(parse_runs(&runs_text(&runs)), Some(runs));
        }
        for wrong in ["", "[", "[1,2]", "[[1]]", "[[1,2],]", "[[a,b]]"] {
            assert_eq!(parse_runs(wrong), None, "{wrong}");
        }
    }
}
