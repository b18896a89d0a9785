//! Whose a file is and in which version its tables are: SQLite's `application_id` and
//! `user_version`, and the way from one version to the next.

use rusqlite::{Connection, TransactionBehavior};

use super::error::Problem;

/// What a kind of file is called and how its tables came to be.
///
/// Version n is what the first n steps make; a step that was released is never changed.
#[derive(Debug)]
pub struct Schema {
    /// What users call such a file.
    pub name: &'static str,
    /// The `application_id` of such a file.
    pub id: u32,
    /// The statements from each version to the next.
    pub steps: &'static [&'static str],
}

/// The kinds of file that there are, so that one can be told from another.
pub(super) const KINDS: [(u32, &str); 2] =
    [(JOURNAL, "journal"), (DEAD_LETTERS, "dead letter queue")];

/// The id of journals: "ibJ1".
pub const JOURNAL: u32 = 0x6962_4a31;
/// The id of dead letter queues: "ibD1".
pub const DEAD_LETTERS: u32 = 0x6962_4431;

/// Which kind a file is.
pub(super) fn kind(connection: &Connection) -> Result<u32, Problem> {
    let id = header(connection, "application_id")?;
    match KINDS.iter().any(|(known, _)| *known == id) {
        true => Ok(id),
        false => Err(Problem::Foreign {
            expected: "dead letter queue or journal",
        }),
    }
}

fn header(connection: &Connection, pragma: &str) -> Result<u32, Problem> {
    let value: i64 = connection.pragma_query_value(None, pragma, |row| row.get(0))?;
    // SQLite shows the header's 32 bits as a signed number.
    Ok(value as u32)
}

impl Schema {
    /// The newest version.
    pub fn version(&self) -> u32 {
        self.steps.len() as u32
    }

    /// Whether a file is of this kind and of a version that is known; its version.
    pub(super) fn recognise(&self, connection: &Connection) -> Result<u32, Problem> {
        let id = header(connection, "application_id")?;
        if id != self.id {
            let expected = self.name;
            return Err(match KINDS.iter().find(|(known, _)| *known == id) {
                Some((_, found)) => Problem::OtherKind { found, expected },
                None => Problem::Foreign { expected },
            });
        }
        let found = header(connection, "user_version")?;
        if found > self.version() {
            let known = self.version();
            return Err(Problem::Newer { found, known });
        }
        Ok(found)
    }

    /// Brings the tables to the newest version, in one transaction.
    pub(super) fn migrate(&self, connection: &mut Connection) -> Result<(), Problem> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Now that nobody else writes: another process may have been quicker.
        let from = self.recognise(&transaction)?;
        for step in &self.steps[from as usize..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", self.version())?;
        transaction.commit()?;
        Ok(())
    }
}
