//! How a journal stands: who owns it, who listens and where, what waits, how large it is. Looks
//! beside whoever owns it, and changes nothing.

use std::collections::HashMap;
use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::super::cursor::Run;
use super::super::owner::{Ownership, owner_of};
use super::super::storage::{CursorRow, Head, StragglerState, SubscriptionRow};
use super::reader::open_to_read;
use super::rows;
use super::upkeep;
use crate::engine::priority::Priority;
use crate::engine::store::{Problem, StoreError, WallSeconds, beside};
use crate::engine::topic::Topic;

/// So many events are looked at in one snapshot: the log is not kept from being begun anew.
const PAGE: i64 = 50_000;

/// So many types are remembered with who wants them.
const TYPES: usize = 10_000;

/// How a journal stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Whether a bus has it.
    pub owner: Ownership,
    /// What the journal knows of itself.
    pub head: Head,
    /// Events that are kept.
    pub events: u64,
    /// The first of them, with the time of its acceptance.
    pub first: Option<(u64, WallSeconds)>,
    /// The last of them.
    pub last: Option<(u64, WallSeconds)>,
    /// Dead letters.
    pub dead_letters: u64,
    /// Damage that was noticed: events that were moved aside, and places where some are missing.
    pub noted: u64,
    /// The file's bytes.
    pub bytes: u64,
    /// Of those, the ones that new events will use.
    pub free_bytes: u64,
    /// The bytes of the log beside it, which a checkpoint brings into the file.
    pub log_bytes: u64,
    /// Who listens, by name.
    pub subscriptions: Vec<Standing>,
}

/// How a subscription stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// What is stored of it.
    pub row: SubscriptionRow,
    /// The levels, in the order of their numbers.
    pub levels: [Level; Priority::COUNT],
    /// Deliveries that were left behind, by state.
    pub stragglers: Vec<(StragglerState, u64)>,
    /// When the next of them is due that has a time.
    pub next_due: Option<WallSeconds>,
}

/// How it stands on one level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Everything up to here is settled, or a straggler. `None`: the row is damaged.
    pub position: Option<u64>,
    /// Events behind it that are the subscription's and not settled.
    pub waiting: u64,
}

/// Looks how it stands.
pub fn status(path: &Path) -> Result<Status, StoreError> {
    let owner = owner_of(path).map_err(|problem| problem.at(path))?;
    let mut connection = open_to_read(path)?;
    let log = std::fs::metadata(beside(path, "-wal"));
    let log_bytes = log.map_or(0, |log| log.len());
    look(&mut connection, owner, log_bytes).map_err(|problem| problem.at(path))
}

fn look(connection: &mut Connection, owner: Ownership, log: u64) -> Result<Status, Problem> {
    let snapshot = connection.transaction()?;
    let count = |sql| -> Result<u64, Problem> {
        let count: i64 = snapshot.query_row(sql, [], |row| row.get(0))?;
        Ok(count as u64)
    };
    let end = |order| -> Result<Option<(u64, WallSeconds)>, Problem> {
        let sql = format!("SELECT sequence, accepted FROM event ORDER BY sequence {order} LIMIT 1");
        let found = snapshot.query_row(&sql, [], |row| {
            Ok((row.get::<_, i64>(0)? as u64, row.get(1)?))
        });
        Ok(found.optional()?)
    };
    let head = match upkeep::is_new(&snapshot)? {
        true => Head::default(),
        false => rows::read_head(&snapshot)?.0,
    };
    let page = count("PRAGMA page_size")?;
    let mut status = Status {
        owner,
        head,
        events: count("SELECT count(*) FROM event")?,
        first: end("ASC")?,
        last: end("DESC")?,
        dead_letters: count("SELECT count(*) FROM dead_letter")?,
        noted: count("SELECT count(*) FROM damage")?,
        bytes: count("PRAGMA page_count")? * page,
        free_bytes: count("PRAGMA freelist_count")? * page,
        log_bytes: log,
        subscriptions: Vec::new(),
    };
    let mut all = Vec::new();
    for (row, cursors) in upkeep::subscriptions(&snapshot)? {
        let (stragglers, next_due) = stragglers(&snapshot, &row)?;
        all.push(Wanting::new(row, cursors, stragglers, next_due));
    }
    snapshot.commit()?;
    count_waiting(
        connection,
        &mut all,
        status.last.map_or(0, |(last, _)| last),
    )?;
    status.subscriptions = all.into_iter().map(|wanting| wanting.standing).collect();
    status
        .subscriptions
        .sort_by(|a, b| a.row.name.cmp(&b.row.name));
    Ok(status)
}

type Left = (Vec<(StragglerState, u64)>, Option<WallSeconds>);

fn stragglers(connection: &Connection, row: &SubscriptionRow) -> Result<Left, Problem> {
    let mut statement = connection.prepare_cached(
        "SELECT state, count(*), min(due) FROM straggler WHERE subscription = ?1 GROUP BY state ORDER BY state",
    )?;
    let mut found = statement.query([row.id])?;
    let (mut states, mut next) = (Vec::new(), None::<f64>);
    while let Some(row) = found.next()? {
        let state = rows::state(row.get_ref(0)?.as_str().map_err(|_| Problem::Corrupt)?)?;
        states.push((state, row.get::<_, i64>(1)? as u64));
        if let Some(due) = row.get::<_, Option<f64>>(2)? {
            next = Some(next.map_or(due, |next| next.min(due)));
        }
    }
    Ok((states, next))
}

/// A subscription whose events are being counted.
struct Wanting {
    standing: Standing,
    topics: Vec<Topic>,
    runs: [Vec<Run>; Priority::COUNT],
}

impl Wanting {
    fn new(
        row: SubscriptionRow,
        cursors: Vec<CursorRow>,
        stragglers: Vec<(StragglerState, u64)>,
        next_due: Option<WallSeconds>,
    ) -> Self {
        let topics = row.topics.iter().map(|topic| Topic::new(topic)).collect();
        let mut levels: [Level; Priority::COUNT] = Default::default();
        let mut runs: [Vec<Run>; Priority::COUNT] = Default::default();
        for cursor in cursors {
            levels[cursor.level.index()].position = Some(cursor.position);
            runs[cursor.level.index()] = cursor.runs;
        }
        let standing = Standing {
            row,
            levels,
            stragglers,
            next_due,
        };
        Self {
            standing,
            topics,
            runs,
        }
    }

    fn first_position(&self) -> Option<u64> {
        self.standing
            .levels
            .iter()
            .filter_map(|level| level.position)
            .min()
    }

    fn meet(&mut self, level: Priority, sequence: u64) {
        let place = &mut self.standing.levels[level.index()];
        let settled = |(from, to): &Run| (*from..=*to).contains(&sequence);
        if place.position.is_some_and(|position| position < sequence)
            && !self.runs[level.index()].iter().any(settled)
        {
            place.waiting += 1;
        }
    }
}

/// One pass over the events behind the last of all, for all together.
fn count_waiting(
    connection: &mut Connection,
    all: &mut [Wanting],
    through: u64,
) -> Result<(), Problem> {
    let Some(mut after) = all.iter().filter_map(Wanting::first_position).min() else {
        return Ok(());
    };
    let mut known: HashMap<Box<str>, Vec<usize>> = HashMap::new();
    while after < through {
        let snapshot = connection.transaction()?;
        let mut statement = snapshot.prepare_cached(
            "SELECT sequence, priority, type FROM event WHERE sequence > ?1 AND sequence <= ?2 \
             ORDER BY sequence LIMIT ?3",
        )?;
        let mut found = statement.query(params![after as i64, through as i64, PAGE])?;
        let before = after;
        while let Some(row) = found.next()? {
            after = row.get::<_, i64>(0)? as u64;
            let level = rows::level(row.get(1)?)?;
            let event_type = row.get_ref(2)?.as_str().map_err(|_| Problem::Corrupt)?;
            if !known.contains_key(event_type) {
                if known.len() == TYPES {
                    known.clear();
                }
                let wants = |wanting: &Wanting| {
                    wanting.topics.iter().any(|topic| topic.matches(event_type))
                };
                let who = all.iter().enumerate().filter(|(_, wanting)| wants(wanting));
                known.insert(event_type.into(), who.map(|(index, _)| index).collect());
            }
            for &index in &known[event_type] {
                all[index].meet(level, after);
            }
        }
        if after == before {
            break;
        }
    }
    Ok(())
}
