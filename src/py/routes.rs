//! The routes of the last few types, found by the address of the type's string: a
//! publisher uses the same one again and again, and looking at an address is cheaper
//! than hashing a text and taking a lock.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::cell::GilCell;
use super::ops::PyOps;
use crate::engine::router::Route;

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

const PLACES: usize = 8;

type Remembered = (Py<PyString>, Py<Way>);

/// See the module. It keeps its strings alive, so that an address means one string.
pub struct Routes([GilCell<Option<Remembered>>; PLACES]);

impl Default for Routes {
    fn default() -> Self {
        Self([const { GilCell::new(None) }; PLACES])
    }
}

impl Routes {
    fn place(&self, type_: &Bound<'_, PyString>) -> &GilCell<Option<Remembered>> {
        // Objects are aligned to sixteen bytes.
        &self.0[(type_.as_ptr() as usize >> 4) % PLACES]
    }

    /// The route of this very string.
    #[inline]
    pub fn get(&self, type_: &Bound<'_, PyString>) -> Option<Py<Way>> {
        let py = type_.py();
        self.place(type_).read(py, |place| match place {
            Some((known, way)) if known.as_ptr() == type_.as_ptr() => Some(way.clone_ref(py)),
            _ => None,
        })
    }

    /// Remembers a route.
    pub fn put(&self, type_: &Bound<'_, PyString>, route: Arc<Route<PyOps>>) -> PyResult<Py<Way>> {
        let event_type = type_.to_str()?.into();
        let way = Py::new(type_.py(), Way { event_type, route })?;
        let remembered = Some((type_.clone().unbind(), way.clone_ref(type_.py())));
        drop(self.place(type_).replace(type_.py(), remembered));
        Ok(way)
    }

    /// Forgets all: subscriptions have changed, and a route may keep a handler alive.
    pub fn clear(&self, py: Python<'_>) {
        self.0
            .iter()
            .for_each(|place| drop(place.replace(py, None)));
    }
}
