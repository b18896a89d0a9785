//! Opening a file. One that is refused is left as it was.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::{Problem, StoreError};
use super::make::{beside, folder_of, make_file};
use super::{Durability, Schema, schema};

/// How to open a file.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What a commit outlives.
    pub durability: Durability,
    /// How long to wait for another process that writes.
    pub busy_timeout: Duration,
    /// Whether a file that is not there is made.
    pub create: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Fsync,
            busy_timeout: Duration::from_secs(5),
            create: true,
        }
    }
}

/// Before this one, a log that is in use could be taken for a spent one.
const OLDEST_SQLITE: i32 = 3_051_003;

/// Opens a file for reading and writing; makes it (private: mode 0600) where there is none.
pub fn open(path: &Path, schema: &Schema, options: &Options) -> Result<Connection, StoreError> {
    open_or_make(path, schema, options).map_err(|problem| problem.at(path))
}

/// Opens a file for reading only. Works beside whoever writes.
pub fn open_reader(
    path: &Path,
    schema: &Schema,
    busy_timeout: Duration,
) -> Result<Connection, StoreError> {
    let open = || {
        look_at_file(path)?;
        probe(path, schema)?;
        let connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        guard(&connection, busy_timeout)?;
        schema.recognise(&connection)?;
        Ok(connection)
    };
    open().map_err(|problem: Problem| problem.at(path))
}

/// Whether a file could be opened for writing, or made, as far as that shows without touching it.
pub fn check(path: &Path, schema: &Schema, create: bool) -> Result<(), StoreError> {
    let look = || match look_at_file(path) {
        Err(Problem::Missing) if create => folder_of(path).map(drop),
        found => {
            if found?.permissions().readonly() {
                return Err(Problem::ReadOnly);
            }
            probe(path, schema)
        }
    };
    look().map_err(|problem| problem.at(path))
}

/// What kind of file of ironbus this is: the id of its [`Schema`]. Looks only at its header.
pub fn kind(path: &Path) -> Result<u32, StoreError> {
    let look = || {
        look_at_file(path)?;
        schema::kind(&open_as_it_lies(path)?)
    };
    look().map_err(|problem: Problem| problem.at(path))
}

fn open_or_make(path: &Path, schema: &Schema, options: &Options) -> Result<Connection, Problem> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(Problem::OldSqlite(rusqlite::version()));
    }
    match look_at_file(path) {
        Err(Problem::Missing) if options.create => make(path, schema)?,
        found => {
            if found?.permissions().readonly() {
                return Err(Problem::ReadOnly);
            }
        }
    }
    probe(path, schema)?;
    // What a writer that was killed left behind is not touched if the file is refused below.
    let left_behind = fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    let mut connection = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        return Err(Problem::ReadOnly);
    }
    guard(&connection, options.busy_timeout)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, left_behind)?;
    let version = schema.recognise(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    use_wal(&connection)?;
    let synchronous = match options.durability {
        Durability::Fsync => "FULL",
        Durability::Os | Durability::Memory => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // Pages. A checkpoint is two flushes whatever its size, so rarer ones cost less.
    connection.pragma_update(None, "wal_autocheckpoint", 4000)?;
    if version < schema.version() {
        schema.migrate(&mut connection)?;
    }
    Ok(connection)
}

fn look_at_file(path: &Path) -> Result<fs::Metadata, Problem> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(Problem::NotAFile);
    }
    match found.len() {
        0 => Err(Problem::Empty),
        // No database is smaller than one page, and no page smaller than this.
        1..512 => Err(Problem::NotADatabase),
        _ => Ok(found),
    }
}

/// Looks whose file it is without a lock, a recovery or a file beside it, all of which an
/// ordinary opening of somebody else's database would bring. Through SQLite all the same:
/// to open and close the file by ourselves would drop the locks of this process on it.
fn probe(path: &Path, schema: &Schema) -> Result<(), Problem> {
    let is_at_rest = || !fs::metadata(beside(path, "-wal")).is_ok_and(|wal| wal.len() > 0);
    let before = is_at_rest();
    match schema.recognise(&open_as_it_lies(path)?) {
        // A checkpoint that was killed leaves pages that only make sense with the log.
        Err(Problem::Corrupt) if !(before && is_at_rest()) => Ok(()),
        found => found.map(drop),
    }
}

fn open_as_it_lies(path: &Path) -> Result<Connection, Problem> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    Ok(Connection::open_with_flags(immutable_uri(path), flags)?)
}

fn immutable_uri(path: &Path) -> String {
    let mut uri = String::from(if cfg!(windows) { "file:///" } else { "file:" });
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b':' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            b'\\' if cfg!(windows) => uri.push('/'),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// What holds for every connection, readers too.
fn guard(connection: &Connection, busy_timeout: Duration) -> Result<(), Problem> {
    connection.busy_timeout(busy_timeout)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "locking_mode", "NORMAL")?;
    // Sorting needs no file that others could read.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    if cfg!(target_os = "macos") {
        connection.pragma_update(None, "fullfsync", true)?;
        connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    }
    Ok(())
}

fn use_wal(connection: &Connection) -> Result<(), Problem> {
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(Problem::Io(format!(
            "the file system does not support write-ahead logging, journal mode is {mode}"
        )));
    }
    Ok(())
}

/// Makes the file, complete.
fn make(path: &Path, schema: &Schema) -> Result<(), Problem> {
    let log = fs::metadata(beside(path, "-wal"));
    if log.is_ok_and(|log| log.len() > 0) && fs::metadata(path).is_err() {
        return Err(Problem::Orphan);
    }
    // Where somebody else made it in the meantime, theirs it is.
    make_file(path, |draft| fill(draft, schema)).map(drop)
}

fn fill(draft: &Path, schema: &Schema) -> Result<(), Problem> {
    let mut connection = Connection::open_with_flags(
        draft,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    guard(&connection, Duration::ZERO)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "application_id", schema.id)?;
    schema.migrate(&mut connection)?;
    use_wal(&connection)?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(())
}
