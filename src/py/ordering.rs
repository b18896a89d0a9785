//! `EventOrderingManager` of the `pm.events` API: numbers, and four queues by level.
//!
//! The order itself is the engine's ([`Sequencer`], [`Reorder`]); here are the
//! Python objects around it. No Python code runs, and no Python object is
//! dropped, while the lock is held: so whoever holds it never waits for the
//! interpreter, and a destructor may call the manager again.

use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::errors::Error;
use super::event_sequence::EventSequence;
use super::priority::to_level;
use crate::engine::in_flight::InFlight;
use crate::engine::priority::Priority;
use crate::engine::reorder::Reorder;
use crate::engine::sequence::Sequencer;
use crate::engine::sync::{Mutex, lock};

/// v1.0's default.
const MAX_QUEUE_SIZE: usize = 10_000;

/// Gives events numbers, and gives them back by priority, then by number.
///
/// ``max_queue_size`` bounds each of the four levels. All methods may be called
/// from any thread and any event loop; none waits or blocks.
///
/// Raises :class:`ironbus.errors.InvalidOption` (a ``ValueError``) for a size below 1.
#[pyclass(frozen, subclass, module = "ironbus.ordering")]
pub struct EventOrderingManager {
    sequencer: Sequencer,
    state: Mutex<State>,
}

struct State {
    max_queue_size: usize,
    levels: [Reorder<Queued>; Priority::COUNT],
    in_flight: InFlight,
}

struct Queued {
    /// The hash of the event's id, taken when no lock was held.
    id: u64,
    sequence: Py<EventSequence>,
    event: Py<PyAny>,
}

impl State {
    fn new(max_queue_size: usize) -> Self {
        Self {
            max_queue_size,
            levels: Default::default(),
            // As many as can be queued: whoever has more in hand has lost some.
            in_flight: InFlight::new(max_queue_size.saturating_mul(Priority::COUNT)),
        }
    }
}

/// Raises `TypeError` for an unhashable id, as a table of ids does.
#[inline]
fn hash_of(id: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(id.hash()?.cast_unsigned() as u64)
}

/// Unix seconds.
fn now() -> f64 {
    // A clock before 1970 is broken; time 0 shows that as well as an error would.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

#[pymethods]
impl EventOrderingManager {
    /// Takes anything, so that subclasses may have an `__init__` of their own.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            sequencer: Sequencer::new(),
            state: Mutex::new(State::new(MAX_QUEUE_SIZE)),
        }
    }

    #[pyo3(signature = (max_queue_size=10_000))]
    fn __init__(&self, py: Python<'_>, max_queue_size: isize) -> PyResult<()> {
        match usize::try_from(max_queue_size) {
            Ok(size) if size > 0 => {
                let old = std::mem::replace(&mut *lock(&self.state), State::new(size));
                drop(old);
                Ok(())
            }
            _ => {
                let text = "max_queue_size must be 1 or more (events per priority)";
                Err(Error::InvalidOption.exception(py, "max_queue_size", text))
            }
        }
    }

    /// Gives the event ``event_id`` the next number: 1 first, then always one more.
    ///
    /// The sequence's ``timestamp`` is now, in Unix seconds. Nothing is queued yet.
    /// Any thread. Raises :class:`ironbus.errors.InvalidPriority` (a
    /// ``ValueError``), and then no number is used up.
    #[pyo3(signature = (event_id, priority=None), text_signature = "($self, event_id, priority=EventPriority.NORMAL)")]
    fn assign_sequence(
        &self,
        py: Python<'_>,
        event_id: Py<PyAny>,
        priority: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<EventSequence>> {
        let level = priority.map_or(Ok(Priority::default()), |value| to_level(py, value))?;
        let number = self.sequencer.next().cast_signed();
        Py::new(py, EventSequence::new(event_id, number, now(), level))
    }

    /// Queues an event at its sequence's priority and number.
    ///
    /// The place is read now: changing the sequence later moves nothing. Any thread.
    /// Raises :class:`ironbus.errors.QueueFull` when the level holds
    /// ``max_queue_size`` events already; nothing is lost then, fetch events and
    /// queue again. Raises ``TypeError`` for an unhashable id or a number that is
    /// no integer, ``OverflowError`` for one beyond 64 bits, and
    /// :class:`ironbus.errors.InvalidPriority`.
    fn queue_event(
        &self,
        py: Python<'_>,
        event: Py<PyAny>,
        sequence: &Bound<'_, EventSequence>,
    ) -> PyResult<()> {
        let (id, number, level) = sequence.get().place(py)?;
        let queued = Queued {
            id: hash_of(&id)?,
            sequence: sequence.clone().unbind(),
            event,
        };
        let mut state = lock(&self.state);
        let max_queue_size = state.max_queue_size;
        let queue = &mut state.levels[level.index()];
        if queue.len() < max_queue_size {
            queue.push(number, queued);
            return Ok(());
        }
        drop(state);
        let text = format!(
            "level {} holds max_queue_size={max_queue_size} events; fetch some with get_next_events() \
             and queue this one again, or make the manager larger",
            level.name()
        );
        Err(Error::QueueFull.exception(py, "max_queue_size", text))
    }

    /// Takes up to ``batch_size`` queued events out: a list of ``(sequence, event)``,
    /// higher priorities first, and by number within each.
    ///
    /// Empty when nothing is queued. They count as in flight until
    /// :meth:`mark_processed`. Any thread; an event goes to one caller only.
    #[pyo3(signature = (batch_size=10))]
    fn get_next_events<'py>(
        &self,
        py: Python<'py>,
        batch_size: isize,
    ) -> PyResult<Bound<'py, PyList>> {
        let room = usize::try_from(batch_size).unwrap_or(0);
        let mut batch = Vec::new();
        {
            let State {
                levels, in_flight, ..
            } = &mut *lock(&self.state);
            let queued = levels.iter().map(Reorder::len).sum();
            batch.reserve_exact(room.min(queued));
            'full: for queue in levels {
                loop {
                    if batch.len() == room {
                        break 'full;
                    }
                    let Some(queued) = queue.pop() else { break };
                    in_flight.insert(queued.id);
                    batch.push(queued);
                }
            }
        }
        PyList::new(
            py,
            batch
                .into_iter()
                .map(|queued| (queued.sequence, queued.event)),
        )
    }

    /// Reports an event that :meth:`get_next_events` gave out as processed.
    ///
    /// Unknown ids are harmless. Any thread. Raises ``TypeError`` for an unhashable id.
    fn mark_processed(&self, event_id: &Bound<'_, PyAny>) -> PyResult<()> {
        let id = hash_of(event_id)?;
        lock(&self.state).in_flight.remove(id);
        Ok(())
    }

    /// How many events were given out and are not marked as processed. Of those that
    /// never are, the latest ``4 * max_queue_size`` to twice as many are counted. Any thread.
    #[getter]
    fn in_flight(&self) -> usize {
        lock(&self.state).in_flight.len()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Nobody who is attached holds the lock over a collection; if someone did,
        // visiting nothing is safe: the objects only seem to be in use from outside.
        if let Ok(state) = self.state.try_lock() {
            for queued in state.levels.iter().flat_map(Reorder::iter) {
                visit.call(&queued.sequence)?;
                visit.call(&queued.event)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let old = std::mem::take(&mut lock(&self.state).levels);
        drop(old);
    }
}
