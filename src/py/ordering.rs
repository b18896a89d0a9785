//! `EventOrderingManager` of the `pm.events` API: numbers, and four queues by level.
//!
//! The order itself is the engine's ([`Reorder`]); here are the Python objects around
//! it. The GIL guards them: no Python code runs, and no Python object is dropped, while
//! they are looked at, so a destructor may call the manager again.

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyList, PyTuple};

use super::cell::GilCell;
use super::clock::{monotonic_ns, wall_at};
use super::errors::Error;
use super::event_sequence::EventSequence;
use super::native::{self, Method, Shortcut};
use super::priority::{member_level, to_level};
use crate::engine::in_flight::InFlight;
use crate::engine::priority::Priority;
use crate::engine::reorder::Reorder;

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
    /// The number that was given last.
    last: GilCell<i64>,
    state: GilCell<State>,
}

struct State {
    max_queue_size: usize,
    levels: [Reorder<Queued>; Priority::COUNT],
    in_flight: InFlight,
}

struct Queued {
    /// The hash of the event's id.
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

    /// Queues the event, unless its level is full.
    #[inline(always)]
    fn queue(&mut self, number: i64, level: Priority, queued: Queued) -> Result<(), Full> {
        let queue = &mut self.levels[level.index()];
        if queue.len() >= self.max_queue_size {
            return Err(Full {
                queued,
                max_queue_size: self.max_queue_size,
            });
        }
        queue.push(number, queued);
        Ok(())
    }

    /// Takes out so many events at most, which are in flight then.
    #[inline]
    fn next(&mut self, room: usize) -> Vec<Queued> {
        let queued = self.levels.iter().map(Reorder::len).sum();
        let mut batch = Vec::with_capacity(room.min(queued));
        for queue in &mut self.levels {
            while batch.len() < batch.capacity()
                && let Some(queued) = queue.pop()
            {
                self.in_flight.insert(queued.id);
                batch.push(queued);
            }
        }
        batch
    }
}

/// An event that found no room.
struct Full {
    queued: Queued,
    max_queue_size: usize,
}

/// Raises `TypeError` for an unhashable id, as a table of ids does.
#[inline]
fn hash_of(id: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(id.hash()?.cast_unsigned() as u64)
}

#[pymethods]
impl EventOrderingManager {
    /// Takes anything, so that subclasses may have an `__init__` of their own.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            last: GilCell::new(0),
            state: GilCell::new(State::new(MAX_QUEUE_SIZE)),
        }
    }

    #[pyo3(signature = (max_queue_size=10_000))]
    fn __init__(&self, py: Python<'_>, max_queue_size: isize) -> PyResult<()> {
        match usize::try_from(max_queue_size) {
            Ok(size) if size > 0 => {
                let old = self.state.replace(py, State::new(size));
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
        self.number(py, event_id, level).map(Bound::unbind)
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
        let full = self
            .state
            .update(py, |state| state.queue(number, level, queued));
        full.map_err(|full| {
            let text = format!(
                "level {} holds max_queue_size={} events; fetch some with get_next_events() \
                 and queue this one again, or make the manager larger",
                level.name(),
                full.max_queue_size
            );
            Error::QueueFull.exception(py, "max_queue_size", text)
        })
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
        self.give_out(py, batch_size)
    }

    /// Reports an event that :meth:`get_next_events` gave out as processed.
    ///
    /// Unknown ids are harmless. Any thread. Raises ``TypeError`` for an unhashable id.
    fn mark_processed(&self, py: Python<'_>, event_id: &Bound<'_, PyAny>) -> PyResult<()> {
        let id = hash_of(event_id)?;
        self.state.update(py, |state| state.in_flight.remove(id));
        Ok(())
    }

    /// How many events were given out and are not marked as processed. Of those that
    /// never are, the latest ``4 * max_queue_size`` to twice as many are counted. Any thread.
    #[getter]
    fn in_flight(&self, py: Python<'_>) -> usize {
        self.state.read(py, |state| state.in_flight.len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.state.visit(&visit, |state| {
            let mut all = state.levels.iter().flat_map(Reorder::iter);
            all.try_for_each(|queued| {
                visit.call(&queued.sequence)?;
                visit.call(&queued.event)
            })
        })
    }

    fn __clear__(&self, py: Python<'_>) {
        let old = self
            .state
            .update(py, |state| std::mem::take(&mut state.levels));
        drop(old);
    }
}

impl EventOrderingManager {
    #[inline(always)]
    fn number<'py>(
        &self,
        py: Python<'py>,
        event_id: Py<PyAny>,
        level: Priority,
    ) -> PyResult<Bound<'py, EventSequence>> {
        let number = self.last.update(py, |last| {
            *last += 1;
            *last
        });
        let now = wall_at(monotonic_ns());
        native::make(py, || EventSequence::new(event_id, number, now, level))
    }

    #[inline]
    fn give_out<'py>(&self, py: Python<'py>, batch_size: isize) -> PyResult<Bound<'py, PyList>> {
        let room = usize::try_from(batch_size).unwrap_or(0);
        let batch = self.state.update(py, |state| state.next(room));
        let batch = batch.into_iter();
        PyList::new(py, batch.map(|queued| (queued.sequence, queued.event)))
    }
}

// The ordinary calls, in which most of the time would otherwise go into taking arguments apart.

struct AssignSequence;

impl Shortcut for AssignSequence {
    type Class = EventOrderingManager;
    const NAME: &'static str = "assign_sequence";

    fn method() -> &'static Method {
        static METHOD: Method = Method::new();
        &METHOD
    }

    #[inline]
    fn call<'py>(
        slf: &Bound<'py, EventOrderingManager>,
        arguments: &[Bound<'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        let (event_id, level) = match arguments {
            [event_id] => (event_id, Priority::default()),
            [event_id, priority] => (event_id, member_level(py, priority).ok()??),
            _ => return None,
        };
        let event_id = event_id.clone().unbind();
        Some(slf.get().number(py, event_id, level).ok()?.into_any())
    }
}

struct QueueEvent;

impl Shortcut for QueueEvent {
    type Class = EventOrderingManager;
    const NAME: &'static str = "queue_event";

    fn method() -> &'static Method {
        static METHOD: Method = Method::new();
        &METHOD
    }

    #[inline]
    fn call<'py>(
        slf: &Bound<'py, EventOrderingManager>,
        arguments: &[Bound<'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        let [event, sequence] = arguments else {
            return None;
        };
        let sequence = sequence.cast_exact::<EventSequence>().ok()?;
        let (hash, number, level) = sequence.get().given_place(py)?;
        let queued = Queued {
            id: hash.cast_unsigned() as u64,
            sequence: sequence.clone().unbind(),
            event: event.clone().unbind(),
        };
        match slf
            .get()
            .state
            .update(py, |state| state.queue(number, level, queued))
        {
            Ok(()) => Some(py.None().into_bound(py)),
            Err(full) => {
                drop(full.queued.sequence.into_bound(py));
                drop(full.queued.event.into_bound(py));
                None
            }
        }
    }
}

struct GetNextEvents;

impl Shortcut for GetNextEvents {
    type Class = EventOrderingManager;
    const NAME: &'static str = "get_next_events";

    fn method() -> &'static Method {
        static METHOD: Method = Method::new();
        &METHOD
    }

    #[inline]
    fn call<'py>(
        slf: &Bound<'py, EventOrderingManager>,
        arguments: &[Bound<'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        let [batch_size] = arguments else {
            return None;
        };
        let batch_size = batch_size.cast_exact::<PyInt>().ok()?.extract().ok()?;
        let batch = slf.get().give_out(slf.py(), batch_size);
        Some(batch.expect("a list of pairs").into_any())
    }
}

struct MarkProcessed;

impl Shortcut for MarkProcessed {
    type Class = EventOrderingManager;
    const NAME: &'static str = "mark_processed";

    fn method() -> &'static Method {
        static METHOD: Method = Method::new();
        &METHOD
    }

    #[inline]
    fn call<'py>(
        slf: &Bound<'py, EventOrderingManager>,
        arguments: &[Bound<'py, PyAny>],
    ) -> Option<Bound<'py, PyAny>> {
        let py = slf.py();
        let [event_id] = arguments else {
            return None;
        };
        let id = native::hash_of_str(event_id)?.cast_unsigned() as u64;
        slf.get()
            .state
            .update(py, |state| state.in_flight.remove(id));
        Some(py.None().into_bound(py))
    }
}

/// Completes the class.
pub fn install(py: Python<'_>) -> PyResult<()> {
    native::install_shortcut::<AssignSequence>(py)?;
    native::install_shortcut::<QueueEvent>(py)?;
    native::install_shortcut::<GetNextEvents>(py)?;
    native::install_shortcut::<MarkProcessed>(py)
}
