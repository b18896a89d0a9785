//! A copy of a journal while its bus works, and the answer to a question in SQL. Both read
//! beside whoever owns the journal.

use std::path::Path;

use rusqlite::Connection;
use rusqlite::backup::Backup;
use rusqlite::types::ValueRef;

use super::super::storage::Value;
use super::reader::open_to_read;
use super::statement::bind;
use crate::engine::store::{Problem, StoreError, make_file};

/// Pages that are copied before the operating system may want something else.
const STEP: i32 = 1024;

/// Copies a journal, as it is at one moment, into a new private file.
pub fn backup(journal: &Path, copy: &Path) -> Result<(), StoreError> {
    if copy.exists() {
        return Err(Problem::Exists.at(copy));
    }
    let mut from = open_to_read(journal)?;
    let made = make_file(copy, |draft| {
        // What is read first is what is copied, whatever is written meanwhile.
        let snapshot = from.transaction()?;
        snapshot.query_row("SELECT count(*) FROM journal", [], |_| Ok(()))?;
        let mut to = Connection::open(draft)?;
        Backup::new(&snapshot, &mut to)?.run_to_completion(
            STEP,
            std::time::Duration::ZERO,
            None,
        )?;
        to.close().map_err(|(_, error)| error)?;
        Ok(())
    });
    match made {
        Ok(true) => Ok(()),
        Ok(false) => Err(Problem::Exists.at(copy)),
        Err(problem) => Err(problem.at(copy)),
    }
}

/// What a question in SQL is answered with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
    /// There were more rows than were to be read.
    pub cut: bool,
}

/// Asks a journal in SQL, up to so many rows. Nothing can be changed this way.
pub fn query(
    journal: &Path,
    sql: &str,
    parameters: &[Value],
    limit: usize,
) -> Result<Answer, StoreError> {
    let connection = open_to_read(journal)?;
    let answer = ask(&connection, sql, parameters, limit);
    answer.map_err(|problem| match problem {
        Problem::ReadOnly => {
            Problem::Sqlite("a question may not change anything".into()).at(journal)
        }
        problem => problem.at(journal),
    })
}

fn ask(
    connection: &Connection,
    sql: &str,
    parameters: &[Value],
    limit: usize,
) -> Result<Answer, Problem> {
    connection.pragma_update(None, "query_only", true)?;
    let mut statement = connection.prepare(sql)?;
    let mut answer = Answer {
        columns: statement.column_names().map(str::to_owned).collect(),
        ..Answer::default()
    };
    if statement.parameter_count() != parameters.len() {
        let (wanted, given) = (statement.parameter_count(), parameters.len());
        let text = format!("the question has {wanted} parameters, and {given} were given");
        return Err(Problem::Sqlite(text));
    }
    for (at, value) in parameters.iter().enumerate() {
        bind(&mut statement, at + 1, value)?;
    }
    let mut rows = statement.raw_query();
    while let Some(row) = rows.next()? {
        if answer.rows.len() == limit {
            answer.cut = true;
            break;
        }
        let value = |column| -> Result<Value, Problem> {
            Ok(match row.get_ref(column)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(value) => Value::Integer(value),
                ValueRef::Real(value) => Value::Real(value),
                ValueRef::Text(value) => Value::Text(String::from_utf8_lossy(value).into_owned()),
                ValueRef::Blob(value) => Value::Blob(value.to_owned()),
            })
        };
        let values: Result<Vec<Value>, Problem> = (0..answer.columns.len()).map(value).collect();
        answer.rows.push(values?);
    }
    Ok(answer)
}
