//! The payloads of dead letters that this process still has as they were: a redrive
//! delivers those, and not what their texts give back.

use std::collections::HashMap;
use std::sync::Mutex;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use crate::engine::sync::lock;
use crate::py::record::Record;

/// See the module. Each record has its own references, so that the garbage collector sees them once.
#[derive(Default)]
pub struct Originals(Mutex<HashMap<String, Record>>);

impl Originals {
    /// Remembers the event of a letter.
    pub fn put(&self, id: String, record: Record) {
        let previous = lock(&self.0).insert(id, record);
        drop(previous);
    }

    /// The event of a letter.
    pub fn get(&self, py: Python<'_>, id: &str) -> Option<Record> {
        // Increments of counts, no outside code.
        lock(&self.0).get(id).map(|record| record.clone_ref(py))
    }

    /// Whether the event of a letter is here.
    pub fn has(&self, id: &str) -> bool {
        lock(&self.0).contains_key(id)
    }

    /// Forgets it. The payload's destructor is outside code, and runs with no lock held.
    pub fn remove(&self, id: &str) {
        let removed = lock(&self.0).remove(id);
        drop(removed);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whose they are.
    pub fn ids(&self) -> Vec<String> {
        lock(&self.0).keys().cloned().collect()
    }

    /// Forgets all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.0));
        drop(all);
    }

    /// For the garbage collector, which must not wait: if somebody is at it, nothing here is garbage.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Ok(all) = self.0.try_lock() else {
            return Ok(());
        };
        all.values().try_for_each(|record| record.traverse(visit))
    }
}
