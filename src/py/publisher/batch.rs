//! A batch of events: validated as a whole, and let in a run at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyTuple};

use super::lane_of;
use crate::engine::digest::Digest;
use crate::engine::gate::{Offer, Timing};
use crate::py::clock::{monotonic_ns, wall_at};
use crate::py::core::Core;
use crate::py::current::Origin;
use crate::py::errors::{self, Error};
use crate::py::event::Event as PyEvent;
use crate::py::native;
use crate::py::ops::Event;
use crate::py::prepare::{Options, Prepared, Then, discard, prepare_and};
use crate::py::receipt::{Answer, BatchReceipt, Receipt};
use crate::py::routes::Way;

/// An event of a batch.
struct Item {
    event: Event,
    /// What plain events do not have.
    rest: Option<Box<Rest>>,
}

struct Rest {
    token: u64,
    key: Option<Digest>,
    timing: Option<Box<Timing>>,
}

/// Valid events on their way through the gate, and what became of those that have passed it.
pub(super) struct Batch {
    pub(super) core: Arc<Core>,
    pub(super) origin: Option<Origin>,
    items: Vec<Item>,
    /// From which item on events go by which way.
    ways: VecDeque<(usize, Py<Way>)>,
    /// How many are through, and how many of them nobody has counted towards a turn of the loop.
    through: usize,
    pub(super) uncounted: usize,
    answers: Vec<Answer>,
}

/// Adds an event to a batch.
struct Adding<'a, 'py> {
    py: Python<'py>,
    /// The time of the batch.
    wall: f64,
    items: &'a mut Vec<Item>,
    ways: &'a mut VecDeque<(usize, Py<Way>)>,
}

impl Then for Adding<'_, '_> {
    type Answer = ();

    #[inline(always)]
    fn seconds(&self) -> f64 {
        self.wall
    }

    #[inline(always)]
    fn then(self, prepared: Prepared) {
        let Self {
            py, items, ways, ..
        } = self;
        match ways.back() {
            Some((_, last)) if last.is(&prepared.way) => prepared.way.drop_ref(py),
            _ => ways.push_back((items.len(), prepared.way)),
        }
        let plain = prepared.key.is_none() && prepared.token == 0 && prepared.timing.is_none();
        let rest = (!plain).then(|| {
            Box::new(Rest {
                token: prepared.token,
                key: prepared.key,
                timing: prepared.timing,
            })
        });
        items.push(Item {
            event: prepared.event,
            rest,
        });
    }
}

impl Batch {
    /// Validates all events; none is accepted unless all are valid.
    pub(super) fn prepare(
        py: Python<'_>,
        core: Arc<Core>,
        events: &Bound<'_, PyAny>,
        shared: Option<&Options>,
        origin: Option<Origin>,
    ) -> PyResult<Self> {
        let mut batch = Self {
            core,
            origin,
            items: Vec::with_capacity(events.len().unwrap_or(0)),
            ways: VecDeque::new(),
            through: 0,
            uncounted: 0,
            answers: Vec::new(),
        };
        let wall = wall_at(monotonic_ns());
        let mut index = 0;
        let prepared = match events.cast_exact::<PyList>() {
            Ok(list) => loop {
                let Some(item) = native::item(list, index) else {
                    break Ok(());
                };
                if let Err(error) = batch.prepare_item(py, &item, shared, wall) {
                    break Err(error);
                }
                index += 1;
            },
            Err(_) => batch.prepare_each(py, events, shared, wall, &mut index),
        };
        match prepared {
            Ok(()) => Ok(batch),
            Err(error) => {
                batch.discard_rest();
                Err(errors::at_index(py, error, index))
            }
        }
    }

    /// The items of any iterable.
    #[inline(never)]
    fn prepare_each(
        &mut self,
        py: Python<'_>,
        events: &Bound<'_, PyAny>,
        shared: Option<&Options>,
        wall: f64,
        index: &mut usize,
    ) -> PyResult<()> {
        for item in events.try_iter()? {
            self.prepare_item(py, &item?, shared, wall)?;
            *index += 1;
        }
        Ok(())
    }

    #[inline(always)]
    fn prepare_item(
        &mut self,
        py: Python<'_>,
        item: &Bound<'_, PyAny>,
        shared: Option<&Options>,
        wall: f64,
    ) -> PyResult<()> {
        let own;
        let (event, data, options) = match item.cast_exact::<PyTuple>() {
            Ok(pair) if pair.len() == 2 => {
                let [event, data] = pair.as_slice() else {
                    unreachable!("there are two")
                };
                (event.clone(), Some(data.clone()), shared)
            }
            _ => {
                let parts =
                    parts_of(py, item, shared).inspect_err(|_| self.core.bus.count_rejected())?;
                own = parts.2;
                (parts.0, parts.1, own.as_ref().or(shared))
            }
        };
        let Self {
            core,
            origin,
            items,
            ways,
            ..
        } = self;
        let origin = origin.as_ref();
        let adding = Adding {
            py,
            wall,
            items,
            ways,
        };
        let added = prepare_and(py, core, event, data, options, origin, adding);
        added.map_err(|error| *error)
    }

    /// The way of the next item.
    fn way(&mut self) -> Option<&Py<Way>> {
        while self
            .ways
            .get(1)
            .is_some_and(|(from, _)| *from <= self.through)
        {
            drop(self.ways.pop_front());
        }
        self.ways.front().map(|(_, way)| way)
    }

    /// Whether none is left.
    pub(super) fn is_through(&self) -> bool {
        self.through == self.items.len()
    }

    /// Admits events of one type without keys under one lock, as far as there is room, for
    /// at most one turn. Whether anything is left.
    pub(super) fn run(&mut self, py: Python<'_>, turn_over: u64) -> PyResult<bool> {
        const RUN: usize = 256;
        while let Some(way) = self.way() {
            let way = way.clone_ref(py);
            let end = self.ways.get(1).map_or(self.items.len(), |(from, _)| *from);
            let has_no_key =
                |item: &&Item| item.rest.as_ref().is_none_or(|rest| rest.key.is_none());
            let items = self.items[self.through..end].iter().take(RUN);
            let length = items.take_while(has_no_key).count();
            if length == 0 {
                return Ok(!self.is_through());
            }
            let origin = lane_of(&self.core, self.origin.as_ref());
            let now = self.core.now(py)?;
            let event_type = &*way.get().event_type;
            let run = &self.items[self.through..self.through + length];
            let offers = run.iter().enumerate().map(|(at, item)| {
                const AHEAD: usize = 4;
                if let Some(soon) = run.get(at + AHEAD) {
                    soon.event.prefetch();
                }
                let rest = item.rest.as_deref();
                Offer {
                    event_type,
                    level: item.event.payload.priority,
                    token: rest.map_or(0, |rest| rest.token),
                    event: &item.event,
                    origin,
                    timing: rest.and_then(|rest| rest.timing.as_deref()),
                }
            });
            let mut rerouted = None;
            let bus = &self.core.bus;
            let admitted = bus.publish_run(offers, &way.get().route, &mut rerouted, now);
            let way = match rerouted {
                Some(route) => way.get().by(py, &route)?,
                None => way,
            };
            if admitted.count > 0 {
                let way = (!admitted.held).then_some(way);
                self.answer(admitted.first, way, admitted.count);
                self.uncounted += admitted.count;
            }
            if admitted.refused || (monotonic_ns() > turn_over && !self.is_through()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notes what became of the next items: they have these numbers, or (0) were duplicates.
    fn answer(&mut self, first: u64, way: Option<Py<Way>>, count: usize) {
        self.answers.push(Answer {
            from: self.through,
            first,
            way,
        });
        self.through += count;
    }

    /// Notes what became of the item that [`next`](Self::next) gave.
    pub(super) fn accepted(&mut self, prepared: Prepared, sequence: u64, held: bool) {
        self.answer(sequence, (!held).then_some(prepared.way), 1);
    }

    /// The same for one that was accepted before.
    pub(super) fn duplicate(&mut self, prepared: &Prepared) {
        prepared.discard();
        self.answer(0, None, 1);
    }

    /// The same, from a receipt.
    pub(super) fn received(&mut self, receipt: Receipt) {
        let (way, sequence) = receipt.into_answer();
        self.answer(sequence, way, 1);
    }

    /// The next item, to be published alone; it counts as left until its answer is noted.
    pub(super) fn next(&mut self, py: Python<'_>) -> Option<Prepared> {
        let way = self.way()?.clone_ref(py);
        let item = self.items.get_mut(self.through)?;
        let event = item.event.clone();
        let level = event.payload.priority;
        let (token, key, timing) = match item.rest.take() {
            Some(rest) => (rest.token, rest.key, rest.timing),
            None => (0, None, None),
        };
        Some(Prepared {
            event,
            way,
            level,
            token,
            key,
            timing,
        })
    }

    /// All that are left, to be published another way.
    pub(super) fn into_prepared(mut self, py: Python<'_>) -> Vec<Prepared> {
        let mut all = Vec::with_capacity(self.items.len() - self.through);
        while let Some(prepared) = self.next(py) {
            self.through += 1;
            all.push(prepared);
        }
        all
    }

    /// The item that [`next`](Self::next) gave came to nothing.
    pub(super) fn gone(&mut self) {
        self.items.remove(self.through);
    }

    /// Those that are left do not come.
    pub(super) fn discard_rest(&mut self) {
        for item in self.items.drain(self.through..) {
            discard(&item.event);
        }
    }

    pub(super) fn finish(&mut self) -> BatchReceipt {
        let items = std::mem::take(&mut self.items);
        let events = items.into_iter().map(|item| item.event).collect();
        BatchReceipt::new(events, std::mem::take(&mut self.answers))
    }

    /// An error in the middle of a batch: it tells what was accepted before.
    pub(super) fn broken(&mut self, py: Python<'_>, error: PyErr) -> PyErr {
        self.discard_rest();
        let told = Bound::new(py, self.finish())
            .and_then(|receipt| error.value(py).setattr("receipt", receipt));
        told.err().unwrap_or(error)
    }
}

type Parts<'py> = (
    Bound<'py, PyAny>,
    Option<Bound<'py, PyAny>>,
    Option<Options>,
);

/// The parts of an item that is no plain pair: an event, or a tuple of some kind.
#[cold]
fn parts_of<'py>(
    py: Python<'py>,
    item: &Bound<'py, PyAny>,
    shared: Option<&Options>,
) -> PyResult<Parts<'py>> {
    if item.is_instance_of::<PyEvent>() {
        return Ok((item.clone(), None, None));
    }
    let parts = item
        .cast::<PyTuple>()
        .ok()
        .filter(|parts| matches!(parts.len(), 2 | 3));
    let Some(parts) = parts else {
        return Err(Error::InvalidEvent.exception(
            py,
            "",
            "each event must be an ironbus.Event, or a tuple (type, data) or (type, data, options)",
        ));
    };
    let (event, data) = (parts.get_item(0)?, Some(parts.get_item(1)?));
    if parts.len() == 2 {
        return Ok((event, data, None));
    }
    let own = parts.get_item(2)?;
    let own = own.cast::<PyDict>().map_err(|_| {
        Error::InvalidOption.exception(
            py,
            "options",
            "the third of (type, data, options) must be a dict of publish options",
        )
    })?;
    Ok((event, data, Some(options_of(py, own, shared)?)))
}

fn options_of(
    py: Python<'_>,
    own: &Bound<'_, PyDict>,
    shared: Option<&Options>,
) -> PyResult<Options> {
    let clone = |value: &Option<Py<PyAny>>| value.as_ref().map(|value| value.clone_ref(py));
    let mut options = shared.map_or_else(Options::default, |shared| Options {
        priority: clone(&shared.priority),
        key: clone(&shared.key),
        idempotency_key: clone(&shared.idempotency_key),
        headers: clone(&shared.headers),
        delay: clone(&shared.delay),
        expires_in: clone(&shared.expires_in),
        durability: clone(&shared.durability),
    });
    for (name, value) in own {
        let name = name.cast_into::<PyString>().ok();
        let name = name.as_ref().and_then(|name| name.to_str().ok());
        let slot = name.and_then(|name| options.slot(name)).ok_or_else(|| {
            let text = "unknown option in (type, data, options); there are priority, key, idempotency_key, headers, delay, expires_in and durability";
            Error::InvalidOption.exception(py, "options", text)
        })?;
        *slot = (!value.is_none()).then(|| value.unbind());
    }
    Ok(options)
}
