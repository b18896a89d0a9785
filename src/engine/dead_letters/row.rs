//! A dead letter as a row: written with its checksum, read only if it still has it.

use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Row, params_from_iter};

use super::Lease;
use super::entry::{DeadEvent, DeadLetter, Failure, Stored};
use super::filter::Filter;
use crate::engine::priority::Priority;
use crate::engine::store::{Checksum, Problem};

/// The columns that the checksum is over, in the order of the table.
const COLUMNS: &str = "id, type, subscription, fingerprint, exception_type, attempts, first_failure, \
    last_failure, lease_holder, lease_until, redrivable_in_process_only, handler, event_id, sequence, \
    timestamp, source, priority, key, headers, idempotency_key, correlation_id, causation_id, message, \
    traceback, data";
const COUNT: usize = 25;

/// An entry with what only the table needs.
pub(crate) struct Held {
    pub(crate) stored: Stored,
    pub(crate) lease: Option<Lease>,
}

/// The statement that reads the rows of a condition.
pub(super) fn select(condition: &str) -> String {
    format!("SELECT position, {COLUMNS}, checksum FROM dead_letter WHERE {condition}")
}

/// A row of [`select`]: its position, and the entry unless it is damaged.
pub(super) fn read(row: &Row<'_>) -> Result<(i64, Option<Held>), Problem> {
    let position = row.get(0)?;
    let mut sum = Checksum::of("dead_letter");
    for column in 1..=COUNT {
        sum.value(row.get_ref(column)?);
    }
    if row.get_ref(COUNT + 1)? != ValueRef::Integer(sum.finish()) {
        return Ok((position, None));
    }
    // What does not read although it has its checksum was not written by us.
    Ok((position, decode(row).ok()))
}

fn decode(row: &Row<'_>) -> rusqlite::Result<Held> {
    let mismatch = |column, name: &str| {
        rusqlite::Error::InvalidColumnType(column, name.to_owned(), rusqlite::types::Type::Text)
    };
    let number = |column| -> rusqlite::Result<u64> { Ok(row.get::<_, i64>(column)? as u64) };
    let lease = match (
        row.get::<_, Option<i64>>(9)?,
        row.get::<_, Option<f64>>(10)?,
    ) {
        (Some(holder), Some(until)) => Some(Lease {
            holder: holder as u64,
            until,
        }),
        _ => None,
    };
    let letter = DeadLetter {
        id: row.get(1)?,
        event: DeadEvent {
            event_type: row.get(2)?,
            data: row.get(25)?,
            event_id: row.get(13)?,
            timestamp: row.get(15)?,
            source: row.get(16)?,
            sequence: row.get::<_, Option<i64>>(14)?.map(|number| number as u64),
            priority: Priority::try_from(row.get::<_, u8>(17)?)
                .map_err(|_| mismatch(17, "priority"))?,
            key: row.get(18)?,
            headers: row.get(19)?,
            idempotency_key: row.get(20)?,
            correlation_id: row.get(21)?,
            causation_id: row.get(22)?,
        },
        subscription: row.get(3)?,
        handler: row.get(12)?,
        failure: Failure {
            exception_type: row.get(5)?,
            message: row.get(23)?,
            traceback: row.get(24)?,
        },
        attempts: number(6)?,
        first_failure: row.get(7)?,
        last_failure: row.get(8)?,
        fingerprint: row
            .get_ref(4)?
            .as_str()?
            .parse()
            .map_err(|_| mismatch(4, "fingerprint"))?,
        redrivable_in_process_only: row.get(11)?,
    };
    let position = number(0)?;
    Ok(Held {
        stored: Stored { position, letter },
        lease,
    })
}

fn encode(letter: &DeadLetter, lease: Option<Lease>) -> [Value; COUNT + 1] {
    let text = |text: &str| Value::Text(text.to_owned());
    let maybe = |value: &Option<String>| value.clone().map_or(Value::Null, Value::Text);
    let integer = |value: u64| Value::Integer(value as i64);
    let event = &letter.event;
    let values = [
        text(&letter.id),
        text(&event.event_type),
        text(&letter.subscription),
        Value::Text(letter.fingerprint.to_string()),
        text(&letter.failure.exception_type),
        integer(letter.attempts),
        Value::Real(letter.first_failure),
        Value::Real(letter.last_failure),
        lease.map_or(Value::Null, |lease| integer(lease.holder)),
        lease.map_or(Value::Null, |lease| Value::Real(lease.until)),
        Value::Integer(letter.redrivable_in_process_only.into()),
        text(&letter.handler),
        text(&event.event_id),
        event.sequence.map_or(Value::Null, integer),
        Value::Real(event.timestamp),
        text(&event.source),
        integer(event.priority.index() as u64),
        maybe(&event.key),
        maybe(&event.headers),
        maybe(&event.idempotency_key),
        maybe(&event.correlation_id),
        maybe(&event.causation_id),
        text(&letter.failure.message),
        text(&letter.failure.traceback),
        text(&event.data),
    ];
    let mut sum = Checksum::of("dead_letter");
    for value in &values {
        sum.value(value.into());
    }
    let mut row = [const { Value::Null }; COUNT + 1];
    for (place, value) in row.iter_mut().zip(values) {
        *place = value;
    }
    row[COUNT] = Value::Integer(sum.finish());
    row
}

/// Writes a new entry, which nobody holds.
pub(super) fn insert(connection: &Connection, letter: &DeadLetter) -> Result<(), Problem> {
    let marks = vec!["?"; COUNT + 1].join(", ");
    let sql = format!("INSERT INTO dead_letter ({COLUMNS}, checksum) VALUES ({marks})");
    connection
        .prepare_cached(&sql)?
        .execute(params_from_iter(encode(letter, None)))?;
    Ok(())
}

/// Writes an entry anew in its place.
pub(super) fn update(connection: &Connection, row: &Held) -> Result<(), Problem> {
    let marks = vec!["?"; COUNT + 1].join(", ");
    let sql =
        format!("UPDATE dead_letter SET ({COLUMNS}, checksum) = ({marks}) WHERE position = ?");
    let position = Value::Integer(row.stored.position as i64);
    let values = encode(&row.stored.letter, row.lease)
        .into_iter()
        .chain([position]);
    connection
        .prepare_cached(&sql)?
        .execute(params_from_iter(values))?;
    Ok(())
}

/// A filter as a condition of SQL.
pub(super) struct Clause {
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
}

impl Clause {
    pub(super) fn new(filter: &Filter) -> Self {
        let mut clause = Self {
            sql: "TRUE".into(),
            values: Vec::new(),
        };
        if let Some(id) = &filter.id {
            clause.and("id = ?", id.clone());
        }
        if let Some(topic) = &filter.topic {
            let condition = if topic.is_pattern() {
                "topic_matches(?, type)"
            } else {
                "type = ?"
            };
            clause.and(condition, topic.text().to_owned());
        }
        if let Some(name) = &filter.subscription {
            clause.and("subscription = ?", name.clone());
        }
        if let Some(name) = &filter.handler {
            clause.and("handler = ?", name.clone());
        }
        if let Some(name) = &filter.exception_type {
            clause.and("exception_type = ?", name.clone());
        }
        if let Some(cause) = filter.fingerprint {
            clause.and("fingerprint = ?", cause.to_string());
        }
        if let Some(since) = filter.since {
            clause.and("last_failure >= ?", since);
        }
        if let Some(until) = filter.until {
            clause.and("last_failure < ?", until);
        }
        clause
    }

    pub(super) fn and(&mut self, condition: &str, value: impl Into<Value>) {
        self.sql.push_str(" AND ");
        self.sql.push_str(condition);
        self.values.push(value.into());
    }
}
