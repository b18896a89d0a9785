//! What can be wrong with a file, and how SQLite's errors map to it. The texts name the
//! file and the fix; of what is in the file they say nothing.

use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;
use thiserror::Error;

/// A file that cannot be used as asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: {problem}", .path.display())]
pub struct StoreError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Nothing is there, and nothing is to be made.
    #[error("there is no such file")]
    Missing,
    /// Something is there that is not to be overwritten.
    #[error("is there already; give another path or remove it first")]
    Exists,
    /// A new file has no place.
    #[error("its folder does not exist; create the folder first")]
    NoFolder,
    /// A directory, a socket, a device.
    #[error("is not a regular file; give the path of a file")]
    NotAFile,
    /// Perhaps all that is left of a file that had data.
    #[error(
        "is an empty file, which may be what is left of one with data; \
         remove it to begin anew, or restore a backup"
    )]
    Empty,
    /// A text file, an image, or a database whose first page is destroyed.
    #[error("is not a SQLite database; give another path")]
    NotADatabase,
    /// Somebody else's database.
    #[error("is a database of another program, not a {expected} of ironbus; give another path")]
    Foreign {
        /// What was to be opened.
        expected: &'static str,
    },
    /// Ours, but for another use.
    #[error("is a {found} of ironbus, not a {expected}; give another path")]
    OtherKind {
        /// What it is.
        found: &'static str,
        /// What was to be opened.
        expected: &'static str,
    },
    /// Written by an ironbus that is newer than this one.
    #[error(
        "has schema version {found}, this ironbus knows versions up to {known}; upgrade ironbus"
    )]
    Newer {
        /// The version in the file.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// May not be written.
    #[error("is read-only; make the file and its folder writable for this user")]
    ReadOnly,
    /// May not be opened.
    #[error("cannot be opened; check the permissions of the file and its folder")]
    Denied,
    /// No room.
    #[error("the disk is full; make room and try again")]
    Full,
    /// Somebody else kept it locked for longer than the timeout.
    #[error("is locked by another process; try again, or raise the timeout")]
    Busy,
    /// SQLite itself found damage.
    #[error("is damaged; restore a backup, or recover it with the sqlite3 shell (.recover)")]
    Corrupt,
    /// It was moved, replaced or deleted while it was open.
    #[error(
        "was moved, replaced or deleted, or its -wal was, while it was open; \
         restore both, or remove both to begin anew"
    )]
    Moved,
    /// A log of commits without its file: a new one must not take them for its own.
    #[error(
        "is not there, but its -wal is, with what was written last; \
         restore the file, or remove that as well to begin anew"
    )]
    Orphan,
    /// A row beyond SQLite's limits.
    #[error("the entry is larger than the database can hold")]
    TooBig,
    /// The operating system failed.
    #[error("input/output error ({0})")]
    Io(String),
    /// The SQLite in this build must not be used.
    #[error(
        "SQLite {0} is older than 3.51.3, which can lose a log in use; build with the bundled one"
    )]
    OldSqlite(&'static str),
    /// Any other error of SQLite.
    #[error("SQLite error: {0}")]
    Sqlite(String),
}

impl Problem {
    /// Whether it is one of what was asked, and not of the file or the disk.
    pub fn is_of_the_request(&self) -> bool {
        matches!(self, Self::TooBig | Self::Sqlite(_))
    }

    /// The problem of this file.
    pub fn at(self, path: &Path) -> StoreError {
        StoreError {
            path: path.to_owned(),
            problem: self,
        }
    }
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, message) = error else {
            // A value that has not the type of its column was not written by us.
            return match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..)
                | rusqlite::Error::Utf8Error(..) => Self::Corrupt,
                error => Self::Sqlite(error.to_string()),
            };
        };
        match failure.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::Busy,
            ErrorCode::ReadOnly
                if failure.extended_code == rusqlite::ffi::SQLITE_READONLY_DBMOVED =>
            {
                Self::Moved
            }
            ErrorCode::ReadOnly => Self::ReadOnly,
            ErrorCode::DiskFull => Self::Full,
            ErrorCode::CannotOpen | ErrorCode::PermissionDenied => Self::Denied,
            ErrorCode::DatabaseCorrupt => Self::Corrupt,
            ErrorCode::NotADatabase => Self::NotADatabase,
            ErrorCode::TooBig => Self::TooBig,
            ErrorCode::SystemIoFailure => Self::Io(failure.to_string()),
            _ => Self::Sqlite(message.unwrap_or_else(|| failure.to_string())),
        }
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => Self::Missing,
            ErrorKind::PermissionDenied => Self::Denied,
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full,
            kind => Self::Io(kind.to_string()),
        }
    }
}
