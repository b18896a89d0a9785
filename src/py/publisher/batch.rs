//! A batch of events: validated as a whole, and let in a run at a time.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::lane_of;
use crate::py::clock::{monotonic_ns, wall_at};
use crate::py::core::Core;
use crate::py::current::Origin;
use crate::py::errors::{self, Error};
use crate::py::event::Event as PyEvent;
use crate::py::prepare::{Options, Prepared, prepare_and};
use crate::py::receipt::{BatchReceipt, Receipt};

/// Validates all events of a batch; none is accepted unless all are valid.
pub(super) fn prepare_all(
    py: Python<'_>,
    core: &Arc<Core>,
    events: &Bound<'_, PyAny>,
    shared: Option<&Options>,
    origin: Option<&Origin>,
) -> PyResult<Vec<Prepared>> {
    let mut batch: Vec<Prepared> = Vec::with_capacity(events.len().unwrap_or(0));
    let wall = wall_at(monotonic_ns());
    for (index, item) in events.try_iter()?.enumerate() {
        let prepared = match item {
            Ok(item) => prepare_item(py, core, &item, shared, origin, wall, &mut batch),
            Err(error) => Err(error),
        };
        if let Err(error) = prepared {
            batch.iter().for_each(Prepared::discard);
            return Err(errors::at_index(py, error, index));
        }
    }
    Ok(batch)
}

#[inline(always)]
fn prepare_item(
    py: Python<'_>,
    core: &Arc<Core>,
    item: &Bound<'_, PyAny>,
    shared: Option<&Options>,
    origin: Option<&Origin>,
    wall: f64,
    batch: &mut Vec<Prepared>,
) -> PyResult<()> {
    let own;
    let (event, data, options) = match item.cast_exact::<PyTuple>() {
        Ok(pair) if pair.len() == 2 => (pair.get_item(0)?, Some(pair.get_item(1)?), shared),
        _ => {
            let parts = parts_of(py, item, shared).inspect_err(|_| core.bus.count_rejected())?;
            own = parts.2;
            (parts.0, parts.1, own.as_ref().or(shared))
        }
    };
    prepare_and(py, core, event, data, options, origin, wall, |prepared| {
        batch.push(prepared)
    })
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
    });
    for (name, value) in own {
        let name = name.cast_into::<PyString>().ok();
        let name = name.as_ref().and_then(|name| name.to_str().ok());
        let slot = name.and_then(|name| options.slot(name)).ok_or_else(|| {
            let text = "unknown option in (type, data, options); there are priority, key, idempotency_key, headers, delay and expires_in";
            Error::InvalidOption.exception(py, "options", text)
        })?;
        *slot = (!value.is_none()).then(|| value.unbind());
    }
    Ok(options)
}

/// A batch on its way through the gate.
pub(super) struct Batch {
    pub(super) core: Arc<Core>,
    pub(super) origin: Option<Origin>,
    pub(super) rest: std::vec::IntoIter<Prepared>,
    pub(super) receipts: Vec<Receipt>,
    /// Events let in that nobody has counted towards a turn of the loop.
    pub(super) uncounted: usize,
}

impl Batch {
    pub(super) fn new(core: Arc<Core>, origin: Option<Origin>, batch: Vec<Prepared>) -> Self {
        let receipts = Vec::with_capacity(batch.len());
        Self {
            core,
            origin,
            rest: batch.into_iter(),
            receipts,
            uncounted: 0,
        }
    }

    /// Admits events of one type without keys under one lock, as far as there is room, for
    /// at most one turn. Whether anything is left.
    pub(super) fn run(&mut self, py: Python<'_>, turn_over: u64) -> PyResult<bool> {
        const RUN: usize = 256;
        while let Some(first) = self.rest.as_slice().first() {
            if first.key.is_some() {
                return Ok(true);
            }
            let same = |other: &&Prepared| other.key.is_none() && other.way.is(&first.way);
            let length = self
                .rest
                .as_slice()
                .iter()
                .take(RUN)
                .take_while(same)
                .count();
            let lane = lane_of(&self.core, self.origin.as_ref());
            let now = self.core.now(py)?;
            let way = first.way.clone_ref(py);
            let mut rerouted = None;
            let run = &self.rest.as_slice()[..length];
            let event_type = &*way.get().event_type;
            let offers = run.iter().map(|prepared| crate::engine::gate::Offer {
                event_type,
                level: prepared.level,
                token: prepared.token,
                event: &prepared.event,
                origin: lane,
                timing: prepared.timing.as_deref(),
            });
            let admitted = self
                .core
                .bus
                .publish_run(offers, &way.get().route, &mut rerouted, now);
            let way = match rerouted {
                Some(route) => Some(way.get().by(py, route)?),
                None => None,
            };
            self.uncounted += admitted.count;
            for (at, mut prepared) in self.rest.by_ref().take(admitted.count).enumerate() {
                if let Some(way) = &way {
                    prepared.way = way.clone_ref(py);
                }
                self.receipts.push(Receipt::accepted(
                    prepared,
                    admitted.first + at as u64,
                    admitted.held,
                ));
            }
            if admitted.refused {
                return Ok(true);
            }
            if monotonic_ns() > turn_over && !self.rest.as_slice().is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn discard_rest(&mut self) {
        self.rest.by_ref().for_each(|prepared| prepared.discard());
    }

    pub(super) fn finish(&mut self) -> BatchReceipt {
        BatchReceipt::new(std::mem::take(&mut self.receipts))
    }

    /// An error in the middle of a batch: it tells what was accepted before.
    pub(super) fn broken(&mut self, py: Python<'_>, error: PyErr) -> PyErr {
        self.discard_rest();
        let told = Bound::new(py, self.finish())
            .and_then(|receipt| error.value(py).setattr("receipt", receipt));
        told.err().unwrap_or(error)
    }
}
