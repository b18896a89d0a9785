//! Statements of the user, run by the writer within a unit. What is wrong with one is told without
//! the values of its parameters, which may be anybody's secrets.

use rusqlite::types::{Null, ToSql};
use rusqlite::{Connection, Error, ErrorCode, Statement as Prepared, ffi};

use crate::engine::journal::storage::{Parameters, Statement, Value};
use crate::engine::store::Problem;

/// Runs one. [`Problem::Sqlite`] is the user's; any other is that of the whole commit.
pub(super) fn run(connection: &Connection, theirs: &Statement) -> Result<(), Problem> {
    // As a conflict clause or in a trigger it would end the commit, with what others have in it.
    if theirs.sql.to_ascii_lowercase().contains("rollback") {
        let reason = "it says ROLLBACK, and the commit is not its own; OR ABORT undoes the transaction of the delivery";
        return Err(Problem::Sqlite(reason.into()));
    }
    let mut statement = connection.prepare(&theirs.sql).map_err(in_text)?;
    bind_all(&mut statement, &theirs.parameters)?;
    let mut rows = statement.raw_query();
    while rows.next().map_err(in_values)?.is_some() {}
    Ok(())
}

/// Whether a row lacks the one that its foreign key is of, which a deferred constraint allows until
/// the commit.
#[allow(unsafe_code)] // a figure of SQLite's that rusqlite does not hand on
pub(super) fn owes_a_key(connection: &Connection) -> bool {
    let (mut owed, mut most) = (0, 0);
    // SAFETY: the connection is open as long as it is borrowed, and used by this thread alone, which
    // only asks for a number; both places for it live longer than the call.
    let asked = unsafe {
        let handle = connection.handle();
        ffi::sqlite3_db_status(
            handle,
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &mut owed,
            &mut most,
            0,
        )
    };
    asked != ffi::SQLITE_OK || owed != 0
}

fn bind_all(statement: &mut Prepared<'_>, parameters: &Parameters) -> Result<(), Problem> {
    let count = statement.parameter_count();
    match parameters {
        Parameters::Numbered(values) => {
            if values.len() != count {
                let given = values.len();
                let reason = format!("it has {count} parameters, and {given} were given");
                return Err(Problem::Sqlite(reason));
            }
            for (at, value) in values.iter().enumerate() {
                bind(statement, at + 1, value)?;
            }
        }
        Parameters::Named(values) => {
            for at in 1..=count {
                // With its sign, which is one byte.
                let name = statement.parameter_name(at).and_then(|name| name.get(1..));
                let value = values
                    .iter()
                    .find(|(given, _)| Some(given.as_str()) == name);
                let Some((_, value)) = value else {
                    let reason = match name {
                        Some(name) => format!("its parameter {name} was not given"),
                        None => "its parameters have no names; give a sequence of values".into(),
                    };
                    return Err(Problem::Sqlite(reason));
                };
                bind(statement, at, value)?;
            }
        }
    }
    Ok(())
}

/// Gives a parameter its value; they count from 1.
pub(super) fn bind(statement: &mut Prepared<'_>, at: usize, value: &Value) -> Result<(), Problem> {
    let value: &dyn ToSql = match value {
        Value::Null => &Null,
        Value::Integer(value) => value,
        Value::Real(value) => value,
        Value::Text(value) => value,
        Value::Blob(value) => value,
    };
    statement.raw_bind_parameter(at, value).map_err(in_values)
}

/// What is wrong before the values are known: SQLite's own words are about the text alone.
fn in_text(error: Error) -> Problem {
    match error {
        Error::SqliteFailure(failure, _)
            if failure.code == ErrorCode::AuthorizationForStatementDenied =>
        {
            let reason = "it touches a table of ironbus, or the transaction that it runs in, \
                          or is a PRAGMA, ATTACH or DETACH; use tables of your own";
            Problem::Sqlite(reason.into())
        }
        Error::SqlInputError { msg, offset, .. } => {
            Problem::Sqlite(format!("{msg} (at byte {offset})"))
        }
        Error::MultipleStatement => {
            Problem::Sqlite("it is more than one; execute them one by one".into())
        }
        Error::Empty => Problem::Sqlite("it is empty".into()),
        error => error.into(),
    }
}

/// What is wrong with the values: SQLite may quote them, but for constraints, which it names.
fn in_values(error: Error) -> Problem {
    const NAMED: [i32; 7] = [
        ffi::SQLITE_CONSTRAINT_UNIQUE,
        ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
        ffi::SQLITE_CONSTRAINT_NOTNULL,
        ffi::SQLITE_CONSTRAINT_CHECK,
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY,
        ffi::SQLITE_CONSTRAINT_ROWID,
        ffi::SQLITE_CONSTRAINT_DATATYPE,
    ];
    match error {
        Error::SqliteFailure(failure, message) => {
            let message = message.filter(|_| NAMED.contains(&failure.extended_code));
            Error::SqliteFailure(failure, message).into()
        }
        error => error.into(),
    }
}
