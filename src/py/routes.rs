//! The routes of the last few types, found by the address of the type's string: a
//! publisher uses the same one again and again, and looking at an address is cheaper
//! than hashing a text and taking a lock.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyString;

use super::cell::GilCell;
use super::ops::PyOps;
use crate::engine::router::Route;

const PLACES: usize = 8;

type Remembered = (Py<PyString>, Arc<Route<PyOps>>);

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
    pub fn get(&self, type_: &Bound<'_, PyString>) -> Option<Arc<Route<PyOps>>> {
        self.place(type_).read(type_.py(), |place| match place {
            Some((known, route)) if known.as_ptr() == type_.as_ptr() => Some(route.clone()),
            _ => None,
        })
    }

    /// Remembers a route.
    pub fn put(&self, type_: &Bound<'_, PyString>, route: &Arc<Route<PyOps>>) {
        let remembered = Some((type_.clone().unbind(), route.clone()));
        drop(self.place(type_).replace(type_.py(), remembered));
    }

    /// Forgets all: subscriptions have changed, and a route may keep a handler alive.
    pub fn clear(&self, py: Python<'_>) {
        self.0
            .iter()
            .for_each(|place| drop(place.replace(py, None)));
    }
}
