//! The routes of the last few types, found by the address of the type's string: a
//! publisher uses the same one again and again, and looking at an address is cheaper
//! than hashing a text and taking a lock.

use std::sync::Arc;

use hashbrown::HashMap;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::cell::GilCell;
use super::ops::PyOps;
use crate::engine::router::Route;
use crate::engine::topic::Topic;

/// A route as an object of the interpreter's, so that a publish and its receipt share it without
/// a locked instruction.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Way {
    /// The type of the events that go by it.
    pub event_type: Box<str>,
    /// Where to.
    pub route: Arc<Route<PyOps>>,
}

impl Way {
    /// The way of the same type by another route.
    pub fn by(&self, py: Python<'_>, route: Arc<Route<PyOps>>) -> PyResult<Py<Self>> {
        let event_type = self.event_type.clone();
        Py::new(py, Self { event_type, route })
    }
}

/// Types that are found by the address of their string alone.
const PLACES: usize = 8;
/// Types that are remembered before the memory starts anew, as the engine's router does.
const REMEMBERED: usize = 65_536;

type Remembered = (Py<PyString>, Py<Way>);

/// See the module. It keeps its strings alive, so that an address means one string.
#[derive(Default)]
pub struct Routes {
    last: [GilCell<Option<Remembered>>; PLACES],
    all: GilCell<HashMap<usize, Remembered>>,
}

impl Routes {
    fn place(&self, type_: &Bound<'_, PyString>) -> &GilCell<Option<Remembered>> {
        // Objects are aligned to sixteen bytes.
        &self.last[(type_.as_ptr() as usize >> 4) % PLACES]
    }

    /// The route of this very string.
    #[inline]
    pub fn get(&self, type_: &Bound<'_, PyString>) -> Option<Py<Way>> {
        let py = type_.py();
        let found = self.place(type_).read(py, |place| match place {
            Some((known, way)) if known.as_ptr() == type_.as_ptr() => Some(way.clone_ref(py)),
            _ => None,
        });
        found.or_else(|| self.recall(type_))
    }

    fn recall(&self, type_: &Bound<'_, PyString>) -> Option<Py<Way>> {
        let (py, address) = (type_.py(), type_.as_ptr() as usize);
        let way = self.all.read(py, |all| {
            all.get(&address).map(|(_, way)| way.clone_ref(py))
        })?;
        self.note(type_, &way);
        Some(way)
    }

    fn note(&self, type_: &Bound<'_, PyString>, way: &Py<Way>) {
        let py = type_.py();
        let remembered = (type_.clone().unbind(), way.clone_ref(py));
        if let Some((text, way)) = self.place(type_).replace(py, Some(remembered)) {
            text.drop_ref(py);
            way.drop_ref(py);
        }
    }

    /// Remembers a route.
    pub fn put(&self, type_: &Bound<'_, PyString>, route: Arc<Route<PyOps>>) -> PyResult<Py<Way>> {
        let py = type_.py();
        let event_type = type_.to_str()?.into();
        let way = Py::new(py, Way { event_type, route })?;
        let remembered = (type_.clone().unbind(), way.clone_ref(py));
        let forgotten = self.all.update(py, |all| {
            let forgotten = (all.len() >= REMEMBERED).then(|| std::mem::take(all));
            let replaced = all.insert(type_.as_ptr() as usize, remembered);
            (forgotten, replaced)
        });
        drop(forgotten);
        self.note(type_, &way);
        Ok(way)
    }

    /// Forgets all: subscriptions have changed, and a route may keep a handler alive.
    pub fn clear(&self, py: Python<'_>) {
        drop(self.all.update(py, std::mem::take));
        self.last
            .iter()
            .for_each(|place| drop(place.replace(py, None)));
    }
}

/// Whether `text` is what `pattern` means, by the rules of subscriptions.
#[pyfunction]
pub fn topic_matches(pattern: &str, text: &str) -> bool {
    Topic::new(pattern).matches(text)
}
