//! What was seen in the journal when somebody last looked: who asks how the bus is waits for no disk.

use std::io;
use std::path::Path;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::{Journaled, exception};
use crate::engine::bus::Bus;
use crate::engine::journal::JournalError;
use crate::engine::store::WallSeconds;
use crate::engine::sync::lock;
use crate::py::ops::PyOps;

/// See the module.
#[derive(Default)]
pub struct Seen(Mutex<State>);

#[derive(Default)]
struct State {
    /// Subscriptions that nobody here has, and when each was there for the last time.
    absent: Vec<(String, WallSeconds)>,
    /// Bytes of the file and its log.
    size: u64,
}

impl Journaled {
    /// Looks at the file, if it is open. Waits for the disk.
    pub fn look(&self, py: Python<'_>) -> PyResult<()> {
        let looked = py.detach(|| {
            let Some(journal) = self.engine.journal() else {
                return Ok(());
            };
            let absent = journal.absent()?;
            let absent = absent.into_iter().map(|row| (row.name, row.seen)).collect();
            let size = size(self.engine.path());
            *lock(&self.seen.0) = State { absent, size };
            Ok(())
        });
        match looked {
            // It was closed meanwhile.
            Ok(()) | Err(JournalError::Closed) => Ok(()),
            Err(error) => Err(exception(py, &error)),
        }
    }

    /// How the journal is, and what was seen in it; none: it is closed.
    pub fn report<'py>(
        &self,
        py: Python<'py>,
        bus: &Bus<PyOps>,
        wall: WallSeconds,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        if !self.is_open() {
            return Ok(None);
        }
        let report = PyDict::new(py);
        report.set_item("read_only", self.engine.is_read_only())?;
        let (absent, size) = {
            let seen = lock(&self.seen.0);
            (seen.absent.clone(), seen.size)
        };
        let absent = absent.into_iter();
        let absent: Vec<_> = absent
            .map(|(name, seen)| (name, (wall - seen).max(0.0)))
            .collect();
        report.set_item("absent", absent)?;
        report.set_item("size", size)?;
        let furthest = self.engine.furthest_behind(bus);
        report.set_item("backlog", furthest.events)?;
        report.set_item("backlog_of", furthest.subscription)?;
        report.set_item("backlog_bound", self.engine.max_backlog())?;
        report.set_item("publishers", furthest.publishers)?;
        self.report_kept(&report)?;
        Ok(Some(report))
    }
}

/// Bytes of a journal's file and of the log beside it, which comes and goes.
fn size(path: &Path) -> u64 {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let bytes = |path: &Path| -> io::Result<u64> { Ok(std::fs::metadata(path)?.len()) };
    [path, Path::new(&log)]
        .into_iter()
        .filter_map(|path| bytes(path).ok())
        .sum()
}
