//! Whether the files that a connection has open are still those of their names. One that was
//! deleted, moved or replaced goes on to take writes without an error, and nobody can ever read them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::Problem;
use super::make::beside;

/// See the module. For a file that is open in WAL mode.
#[derive(Debug)]
pub(crate) struct Anchor {
    database: Held,
    log: Held,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The device and the number of the file, from when it was first seen.
    place: OnceLock<(u64, u64)>,
}

impl Anchor {
    /// For a file that was just opened; a change of the working directory does not move it.
    pub(crate) fn of(path: &Path) -> Result<Self, Problem> {
        let path = std::path::absolute(path)?;
        let held = |path| Held {
            path,
            place: OnceLock::new(),
        };
        let anchor = Self {
            log: held(beside(&path, "-wal")),
            database: held(path),
        };
        anchor.database.look()?;
        Ok(anchor)
    }

    /// To be called in a transaction, before its commit.
    pub(crate) fn look(&self) -> Result<(), Problem> {
        self.database.look()?;
        self.log.look()
    }
}

impl Held {
    #[cfg(unix)]
    fn look(&self) -> Result<(), Problem> {
        use std::os::unix::fs::MetadataExt;
        let Ok(found) = std::fs::metadata(&self.path) else {
            return Err(Problem::Moved);
        };
        let place = (found.dev(), found.ino());
        if *self.place.get_or_init(|| place) != place {
            return Err(Problem::Moved);
        }
        Ok(())
    }

    /// Elsewhere an open file cannot be moved.
    #[cfg(not(unix))]
    fn look(&self) -> Result<(), Problem> {
        let _ = (&self.path, &self.place);
        Ok(())
    }
}
