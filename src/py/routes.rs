//! The routes of the last types, found by the address of the type's string: a
//! publisher uses the same one again and again, and looking at an address is cheaper
//! than hashing a text and taking a lock.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::cell::GilCell;
use super::ops::PyOps;
use crate::engine::router::Route;
use crate::engine::topic::Topic;

/// A route as an object of the interpreter's, so that a publish and its receipt share it without
/// a locked instruction.
#[pyclass(frozen, module = "ironbus._core")]
#[repr(C)] // The route beside the object's head, which every publish looks at too.
pub struct Way {
    /// Where to: a route of its own, one step less away than one that is shared.
    pub route: Route<PyOps>,
    /// The type of the events that go by it.
    pub event_type: Box<str>,
    /// The string that it is found by.
    type_: Py<PyString>,
}

impl Way {
    /// The way of a type, which can be written as text.
    pub fn of(type_: &Bound<'_, PyString>, route: &Route<PyOps>) -> PyResult<Py<Self>> {
        let way = Self {
            route: route.clone(),
            event_type: type_.to_str()?.into(),
            type_: type_.clone().unbind(),
        };
        Py::new(type_.py(), way)
    }

    /// The way of the same type by another route.
    pub fn by(&self, py: Python<'_>, route: &Route<PyOps>) -> PyResult<Py<Self>> {
        let way = Self {
            route: route.clone(),
            event_type: self.event_type.clone(),
            type_: self.type_.clone_ref(py),
        };
        Py::new(py, way)
    }

    fn address(&self) -> usize {
        self.type_.as_ptr() as usize
    }
}

/// Types that are remembered before the memory starts anew, as the engine's router does.
const REMEMBERED: usize = 65_536;

/// A way and the address of its string, so that another's way is not looked at.
type Place = Option<(usize, Py<Way>)>;

/// Places for addresses, four for each type as long as there are not too many types: whichever was put
/// last into a place has it.
struct Places {
    places: Box<[Place]>,
    /// Of an address that is spread over a word, so many bits say where.
    bits: u32,
}

/// Of the first and of the most places.
const BITS: std::ops::RangeInclusive<u32> = 4..=13;

impl Places {
    /// For so many types.
    fn new(types: usize) -> Self {
        let bits = (types * 4).next_power_of_two().ilog2();
        let bits = bits.clamp(*BITS.start(), *BITS.end());
        Self {
            places: (0..1 << bits).map(|_| None).collect(),
            bits,
        }
    }

    fn suit(&self, types: usize) -> bool {
        types * 4 <= self.places.len() || self.bits == *BITS.end()
    }

    #[inline(always)]
    fn index(&self, address: usize) -> usize {
        // Addresses differ in few of their bits; the golden ratio spreads them.
        ((address as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - self.bits)) as usize
    }

    /// Returns what was there.
    fn put(&mut self, address: usize, way: Py<Way>) -> Place {
        let index = self.index(address);
        self.places[index].replace((address, way))
    }
}

/// See the module. Its ways keep their strings alive, so that an address means one string.
pub struct Routes {
    last: GilCell<Places>,
    /// By address. The addresses are with the ways, so that a thousand are found in a few lines of
    /// the cache.
    all: GilCell<HashTable<Py<Way>>>,
    hasher: DefaultHashBuilder,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            last: GilCell::new(Places::new(0)),
            all: GilCell::new(HashTable::new()),
            hasher: DefaultHashBuilder::default(),
        }
    }
}

impl Routes {
    /// The route of this very string.
    #[inline]
    pub fn get(&self, type_: &Bound<'_, PyString>) -> Option<Py<Way>> {
        let (py, address) = (type_.py(), type_.as_ptr() as usize);
        let found = self
            .last
            .read(py, |last| match &last.places[last.index(address)] {
                Some((of, way)) if *of == address => Some(way.clone_ref(py)),
                _ => None,
            });
        found.or_else(|| self.recall(py, address))
    }

    fn recall(&self, py: Python<'_>, address: usize) -> Option<Py<Way>> {
        let hash = self.hasher.hash_one(address);
        self.all.read(py, |all| {
            let found = all.find(hash, |way| way.get().address() == address);
            found.map(|way| way.clone_ref(py))
        })
    }

    /// Remembers a route of a string that is not remembered.
    pub fn put(&self, type_: &Bound<'_, PyString>, route: &Route<PyOps>) -> PyResult<Py<Way>> {
        let (py, address) = (type_.py(), type_.as_ptr() as usize);
        let way = Way::of(type_, route)?;
        let hash_of = |way: &Py<Way>| self.hasher.hash_one(way.get().address());
        let remembered = way.clone_ref(py);
        let forgotten = self.all.update(py, |all| {
            let forgotten = (all.len() >= REMEMBERED).then(|| std::mem::take(all));
            all.insert_unique(hash_of(&remembered), remembered, hash_of);
            forgotten
        });
        drop(forgotten);
        let outgrown = self.all.read(py, |all| {
            if self.last.read(py, |last| last.suit(all.len())) {
                return None;
            }
            Some(all.iter().map(|way| way.clone_ref(py)).collect::<Vec<_>>())
        });
        if let Some(all) = outgrown {
            let mut more = Places::new(all.len() * 2);
            for way in all {
                more.put(way.get().address(), way);
            }
            drop(self.last.replace(py, more));
        } else {
            let last = way.clone_ref(py);
            drop(self.last.update(py, |places| places.put(address, last)));
        }
        Ok(way)
    }

    /// Forgets all: subscriptions have changed, and a route may keep a handler alive.
    pub fn clear(&self, py: Python<'_>) {
        drop(self.all.update(py, std::mem::take));
        drop(self.last.replace(py, Places::new(0)));
    }
}

/// Whether `text` is what `pattern` means, by the rules of subscriptions.
#[pyfunction]
pub fn topic_matches(pattern: &str, text: &str) -> bool {
    Topic::new(pattern).matches(text)
}
