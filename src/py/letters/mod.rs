//! The dead letters of a bus: what keeps them, and the native half of `bus.dead_letters`.

mod file;
mod filter;
mod originals;
mod redrive;
mod revive;
mod sink;
mod text;

use std::sync::{Arc, Weak};

use pyo3::exceptions::PyReferenceError;
use pyo3::prelude::*;

pub use self::file::LetterFile;
pub use self::filter::LetterFilter;
pub use self::redrive::Redrive;
pub use self::revive::from_text;
pub use self::sink::LetterSink;
use crate::engine::dead_letters::Filter;
use crate::py::core::Core;

/// See the module. All calls may wait for the file, without the interpreter.
#[pyclass(frozen, module = "ironbus._core")]
pub struct LetterBox {
    sink: Arc<LetterSink>,
    core: Weak<Core>,
}

impl LetterBox {
    /// That of a bus.
    pub fn new(core: &Arc<Core>) -> Self {
        Self {
            sink: core.bus.sink().clone(),
            core: Arc::downgrade(core),
        }
    }
}

#[pymethods]
impl LetterBox {
    /// Opens the file, if there is one, and looks at what there is.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        let wall = self.sink.wall(py)?;
        self.sink.with(py, wall, |_| Ok(()))
    }

    /// Lets go of the file. The next call opens it again.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.sink.store().close());
    }

    /// Up to `limit` letters behind a position, oldest first, and the position of the last.
    fn page<'py>(
        &self,
        py: Python<'py>,
        filter: &LetterFilter,
        after: u64,
        limit: usize,
    ) -> PyResult<(Vec<Bound<'py, PyAny>>, u64)> {
        let wall = self.sink.wall(py)?;
        let page = self
            .sink
            .with(py, wall, |queue| queue.page(&filter.0, after, limit))?;
        let last = page.last().map_or(after, |stored| stored.position);
        let originals = &self.sink.originals;
        let entries = page.into_iter();
        let entries = entries.map(|stored| revive::entry(py, originals, stored));
        Ok((entries.collect::<PyResult<_>>()?, last))
    }

    /// The letter of this id that the filter lets through.
    fn get<'py>(
        &self,
        py: Python<'py>,
        filter: &LetterFilter,
        id: String,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let wall = self.sink.wall(py)?;
        let found = self.sink.with(py, wall, |queue| queue.get(&id))?;
        let found = found.filter(|stored| filter.0.admits(&stored.letter));
        found
            .map(|stored| revive::entry(py, &self.sink.originals, stored))
            .transpose()
    }

    /// How many the filter lets through.
    fn count(&self, py: Python<'_>, filter: &LetterFilter) -> PyResult<u64> {
        let wall = self.sink.wall(py)?;
        self.sink.with(py, wall, |queue| queue.count(&filter.0))
    }

    /// Lets go of what the filter lets through; how many.
    fn purge(&self, py: Python<'_>, filter: &LetterFilter) -> PyResult<u64> {
        let wall = self.sink.wall(py)?;
        let gone = self.sink.with(py, wall, |queue| queue.purge(&filter.0))?;
        if gone > 0 {
            self.sink.prune(py);
            self.sink.room_made();
        }
        Ok(gone)
    }

    /// Begins to deliver again what the filter lets through now. The holder is a random number.
    #[pyo3(signature = (filter, limit, into, holder))]
    fn redrive(
        &self,
        py: Python<'_>,
        filter: &LetterFilter,
        limit: Option<u64>,
        into: Option<String>,
        holder: u64,
    ) -> PyResult<Redrive> {
        let Some(core) = self.core.upgrade() else {
            return Err(PyReferenceError::new_err(
                "the bus of these dead letters is gone",
            ));
        };
        let filter: Filter = filter.0.clone();
        let sink = self.sink.clone();
        Redrive::new(py, core, sink, filter, into, limit, holder)
    }
}
