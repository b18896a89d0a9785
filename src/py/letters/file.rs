//! The dead letters in a file, seen from outside: that of a queue or a journal, whoever writes to it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pyo3::prelude::*;

use super::filter::LetterFilter;
use super::originals::Originals;
use super::revive;
use crate::engine::dead_letters::{DeadLetterError, DeadLetterReader};
use crate::engine::journal::read_dead_letters;
use crate::engine::store;
use crate::engine::sync::lock;
use crate::py::dead_letters::exception;

/// See the module. Changes nothing. Calls may wait for the file, without the interpreter.
#[pyclass(frozen, module = "ironbus._core")]
pub struct LetterFile {
    path: PathBuf,
    reader: Mutex<Option<DeadLetterReader>>,
    journal: bool,
    /// There are none: nothing of it was published here.
    originals: Originals,
}

#[pymethods]
impl LetterFile {
    /// Opens the file, whichever kind it is.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(|| {
            let journal = store::kind(&path)? == store::JOURNAL;
            Ok((journal, open(&path, journal)?))
        });
        let (journal, reader) = opened.map_err(|error| exception(py, &error))?;
        Ok(Self {
            path,
            reader: Mutex::new(Some(reader)),
            journal,
            originals: Originals::default(),
        })
    }

    /// Whether it is a journal, which only its owner writes to.
    #[getter]
    fn is_journal(&self) -> bool {
        self.journal
    }

    /// Up to `limit` letters behind a position, oldest first; the position of the last; and how
    /// many on the way are damaged.
    fn page<'py>(
        &self,
        py: Python<'py>,
        filter: &LetterFilter,
        after: u64,
        limit: usize,
    ) -> PyResult<(Vec<Bound<'py, PyAny>>, u64, u64)> {
        let page = self.read(py, |reader| reader.page(&filter.0, after, limit))?;
        let last = page.entries.last().map_or(after, |stored| stored.position);
        let entries = page.entries.into_iter();
        let entries = entries.map(|stored| revive::entry(py, &self.originals, stored));
        Ok((entries.collect::<PyResult<_>>()?, last, page.damaged))
    }

    /// How many the filter lets through, damaged ones included.
    fn count(&self, py: Python<'_>, filter: &LetterFilter) -> PyResult<u64> {
        self.read(py, |reader| reader.count(&filter.0))
    }

    /// Lets go of the file. The next call opens it again.
    fn close(&self, py: Python<'_>) {
        py.detach(|| *lock(&self.reader) = None);
    }
}

impl LetterFile {
    fn read<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut DeadLetterReader) -> Result<T, DeadLetterError> + Send,
    ) -> PyResult<T> {
        let read = py.detach(|| {
            let mut reader = lock(&self.reader);
            match &mut *reader {
                Some(reader) => work(reader),
                closed => work(closed.insert(open(&self.path, self.journal)?)),
            }
        });
        read.map_err(|error| exception(py, &error))
    }
}

fn open(path: &Path, journal: bool) -> Result<DeadLetterReader, DeadLetterError> {
    Ok(match journal {
        true => read_dead_letters(path)?,
        false => DeadLetterReader::open(path)?,
    })
}
