//! What happens to the tables beside appending and settling: subscriptions come and go,
//! old events are let go of, damage is moved aside.

use rusqlite::{Connection, OptionalExtension, params};

use super::super::storage::{
    CursorRow, Damage, Head, Horizon, Retained, SubscriptionId, SubscriptionRow,
};
use super::LEVELS;
use super::rows::{self, EventRow};
use crate::engine::store::{Problem, WallSeconds};

/// Whether nothing was ever written. A journal that has lost its own row is not new: its numbers
/// would begin again.
pub(super) fn is_new(connection: &Connection) -> Result<bool, Problem> {
    let sql = "SELECT NOT EXISTS (SELECT 1 FROM journal) AND NOT EXISTS (SELECT 1 FROM event) \
        AND NOT EXISTS (SELECT 1 FROM subscription) AND NOT EXISTS (SELECT 1 FROM dead_letter)";
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

pub(super) fn register(
    connection: &Connection,
    name: &str,
    topics: &[String],
    after: u64,
    now: WallSeconds,
) -> Result<(SubscriptionRow, Vec<CursorRow>), Problem> {
    let known = rows::read_subscriptions(connection, Some(name))?.pop();
    let existed = known.is_some();
    let row = match known {
        Some(known) => SubscriptionRow {
            topics: topics.to_vec(),
            seen: known.seen.max(now),
            ..known
        },
        None => {
            // Numbers are not used again: a straggler that was left behind is nobody's.
            let id: i64 = connection.query_row(
                "SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name = 'subscription'",
                [],
                |row| row.get(0),
            )?;
            SubscriptionRow {
                id,
                name: name.to_owned(),
                topics: topics.to_vec(),
                created: now,
                seen: now,
            }
        }
    };
    rows::write_subscription(connection, &row)?;
    let known = cursors(connection, row.id)?;
    // Whoever was there before and has lost its place begins with the oldest event that is kept:
    // to deliver again is right, to leave out is not.
    let begin = match existed {
        true => rows::read_head(connection)?.0.deleted_through,
        false => after,
    };
    let mut cursors = Vec::new();
    for level in LEVELS {
        let cursor = match known.iter().find(|cursor| cursor.level == level) {
            Some(cursor) => cursor.clone(),
            None => {
                if existed {
                    note(connection, "cursor", level as i64, row.id, row.id, now)?;
                }
                let new = CursorRow {
                    subscription: row.id,
                    level,
                    position: begin,
                    runs: Vec::new(),
                };
                rows::write_cursor(connection, &new)?;
                new
            }
        };
        cursors.push(cursor);
    }
    Ok((row, cursors))
}

fn note(
    connection: &Connection,
    what: &str,
    level: i64,
    sequence: i64,
    through: i64,
    now: WallSeconds,
) -> Result<(), Problem> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO damage VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![what, level, sequence, through, now])?;
    Ok(())
}

/// All subscriptions and where they are.
pub(super) fn subscriptions(
    connection: &Connection,
) -> Result<Vec<(SubscriptionRow, Vec<CursorRow>)>, Problem> {
    rows::read_subscriptions(connection, None)?
        .into_iter()
        .map(|row| {
            let cursors = cursors(connection, row.id)?;
            Ok((row, cursors))
        })
        .collect()
}

fn cursors(
    connection: &Connection,
    subscription: SubscriptionId,
) -> Result<Vec<CursorRow>, Problem> {
    let mut statement = connection.prepare_cached(rows::CURSORS)?;
    let mut found = Vec::new();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(0)? == subscription {
            // One that is damaged is as good as gone.
            match rows::read_cursor(row) {
                Err(Problem::Corrupt) => {}
                cursor => found.push(cursor?),
            }
        }
    }
    Ok(found)
}

/// Notes that these subscriptions are there.
pub(super) fn see(
    connection: &Connection,
    subscriptions: &[SubscriptionId],
    now: WallSeconds,
) -> Result<(), Problem> {
    for row in rows::read_subscriptions(connection, None)? {
        if subscriptions.contains(&row.id) && row.seen < now {
            let row = SubscriptionRow { seen: now, ..row };
            rows::write_subscription(connection, &row)?;
        }
    }
    Ok(())
}

pub(super) fn forget(connection: &Connection, subscription: SubscriptionId) -> Result<(), Problem> {
    for table in ["straggler", "cursor"] {
        connection.execute(
            &format!("DELETE FROM {table} WHERE subscription = ?1"),
            [subscription],
        )?;
    }
    connection.execute("DELETE FROM subscription WHERE id = ?1", [subscription])?;
    Ok(())
}

/// Lets go of those that are not here and were not seen since a time.
pub(super) fn expire(
    connection: &Connection,
    here: &[SubscriptionId],
    since: WallSeconds,
) -> Result<Vec<String>, Problem> {
    let mut gone = rows::read_subscriptions(connection, None)?;
    gone.retain(|row| row.seen < since && !here.contains(&row.id));
    for row in &gone {
        forget(connection, row.id)?;
    }
    Ok(gone.into_iter().map(|row| row.name).collect())
}

/// Old events below all cursors that no straggler and no dead letter needs. What is needed now stays
/// behind, and is looked at again in a second round: so both are walks of bounded steps, however
/// much is kept.
pub(super) fn retain(
    connection: &Connection,
    horizon: Horizon,
    head: &mut Head,
) -> Result<Retained, Problem> {
    let old = position_at(connection, horizon.accepted_before)?;
    let through = old.min(settled(connection, head)?);
    if through > head.deleted_through {
        let (events, reached) = let_go(connection, head.deleted_through, through, horizon.limit)?;
        head.deleted_through = reached;
        return Ok(Retained {
            events,
            again: None,
        });
    }
    let through = head.deleted_through;
    let (events, reached) = let_go(connection, horizon.again, through, horizon.limit)?;
    Ok(Retained {
        events,
        again: Some(if reached < through { reached } else { 0 }),
    })
}

/// Every subscription has settled everything up to here, or it is a straggler. A cursor that is damaged
/// is as good as none: nothing is known to be settled.
fn settled(connection: &Connection, head: &Head) -> Result<u64, Problem> {
    let listening = rows::read_subscriptions(connection, None)?.len();
    let (mut places, mut lowest) = (0, u64::MAX);
    let mut statement = connection.prepare_cached(rows::CURSORS)?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        match rows::read_cursor(row) {
            Err(Problem::Corrupt) => {}
            cursor => {
                places += 1;
                lowest = lowest.min(cursor?.position);
            }
        }
    }
    Ok(match places < listening * LEVELS.len() {
        true => head.deleted_through,
        false => lowest,
    })
}

/// Each event is looked for by number: left to itself, SQLite goes over all stragglers for each.
const LET_GO: &str = "DELETE FROM event WHERE sequence > ?1 AND sequence <= ?2 AND NOT EXISTS ( \
         SELECT 1 FROM subscription s CROSS JOIN straggler t ON t.subscription = s.id \
         AND t.priority = event.priority AND t.sequence = event.sequence) \
     AND NOT EXISTS (SELECT 1 FROM dead_letter d WHERE d.sequence = event.sequence)";

/// Looks at so many events behind one and up to another, and lets go of those that nobody needs: how
/// many, and up to which it has looked.
fn let_go(
    connection: &Connection,
    after: u64,
    through: u64,
    limit: usize,
) -> Result<(usize, u64), Problem> {
    let last: Option<i64> = connection
        .prepare_cached(
            "SELECT sequence FROM event WHERE sequence > ?1 AND sequence <= ?2 \
             ORDER BY sequence LIMIT 1 OFFSET ?3",
        )?
        .query_row(
            params![after as i64, through as i64, limit.saturating_sub(1) as i64],
            |row| row.get(0),
        )
        .optional()?;
    let reached = last.map_or(through, |last| last as u64);
    let gone = connection
        .prepare_cached(LET_GO)?
        .execute(params![after as i64, reached as i64])?;
    Ok((gone, reached))
}

/// The last event that was accepted before a time. Acceptance never goes back along the numbers,
/// so it is found by halves.
pub(super) fn position_at(connection: &Connection, time: WallSeconds) -> Result<u64, Problem> {
    let bound = |which| -> Result<i64, Problem> {
        let sql = format!("SELECT coalesce({which}(sequence), 0) FROM event");
        Ok(connection.query_row(&sql, [], |row| row.get(0))?)
    };
    let (mut before, mut after) = (bound("min")? - 1, bound("max")? + 1);
    let mut at = connection.prepare_cached(
        "SELECT sequence, accepted FROM event WHERE sequence <= ?1 ORDER BY sequence DESC LIMIT 1",
    )?;
    // Invariant: all up to `before` were accepted before the time, all from `after` on were not.
    while after - before > 1 {
        let middle = before + (after - before) / 2;
        let found: Option<(i64, f64)> = at
            .query_row([middle], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match found {
            Some((sequence, accepted)) if sequence > before && accepted >= time => after = sequence,
            _ => before = middle,
        }
    }
    Ok(before.max(0) as u64)
}

/// Notes damage, and moves a damaged event aside, unless it has turned out to be sound.
pub(super) fn quarantine(
    connection: &Connection,
    damage: Damage,
    now: WallSeconds,
) -> Result<(), Problem> {
    if let Damage::Damaged { sequence } = damage
        && is_sound(connection, sequence)?
    {
        return Ok(());
    }
    match damage {
        Damage::Damaged { sequence } => {
            let sequence = sequence as i64;
            note(connection, "damaged", -1, sequence, sequence, now)?;
        }
        Damage::Lost {
            level,
            after,
            through,
        } => {
            note(
                connection,
                "lost",
                level as i64,
                after as i64,
                through as i64,
                now,
            )?;
        }
    }
    if let Damage::Damaged { sequence } = damage {
        let copied = connection.execute(
            "INSERT OR REPLACE INTO event_damaged SELECT * FROM event WHERE sequence = ?1",
            [sequence as i64],
        );
        match copied.map_err(Problem::from) {
            // Not even its columns can be told apart.
            Err(Problem::Corrupt) => {}
            copied => {
                copied?;
            }
        }
        connection.execute("DELETE FROM event WHERE sequence = ?1", [sequence as i64])?;
    }
    Ok(())
}

fn is_sound(connection: &Connection, sequence: u64) -> Result<bool, Problem> {
    let sql = rows::select_events("sequence = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([sequence as i64])?;
    let read = match rows.next() {
        Ok(Some(row)) => EventRow::read(row).map(|event| event.is_some()),
        Ok(None) => Ok(false),
        Err(error) => Err(error.into()),
    };
    match read {
        Err(Problem::Corrupt) => Ok(false),
        read => read,
    }
}

#[cfg(test)]
mod tests {
    use super::super::SCHEMA;
    use super::*;

    #[test]
    fn to_let_go_of_an_event_goes_over_no_stragglers_and_no_dead_letters() {
        let connection = Connection::open_in_memory().expect("a database");
        for step in SCHEMA.steps {
            connection.execute_batch(step).expect("tables");
        }
        let scans = |sql: &str| -> Vec<String> {
            let mut plan = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .expect("a plan");
            let steps = plan.query_map([0, 9], |row| row.get::<_, String>(3));
            let steps = steps.expect("steps").map(|step| step.expect("a step"));
            steps.filter(|step| step.starts_with("SCAN")).collect()
        };
        let [scan] = &scans(LET_GO)[..] else {
            panic!("{:?}", scans(LET_GO));
        };
        assert!(scan.starts_with("SCAN s "), "{scan}");
        // The same as SQLite would have it by itself.
        let [scan] = &scans(&LET_GO.replace("CROSS JOIN", "JOIN"))[..] else {
            panic!("another plan");
        };
        assert!(scan.starts_with("SCAN t"), "{scan}");
    }
}
