//! `EventBus.publish_many`: the native coroutine of a batch.

use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::batch::Batch;
use super::{Attempt, Wait, attempt, cancel, lane_of, unexpected};
use crate::engine::sync::lock;
use crate::py::bus::Bus;
use crate::py::clock::monotonic_ns;
use crate::py::core::{Core, TURN};
use crate::py::current::{self, Origin};
use crate::py::durable::Course;
use crate::py::native::{self, Arguments, Coroutine, Sent};
use crate::py::once::intern;
use crate::py::ops::block_on;
use crate::py::prepare::{Options, Prepared};

/// The coroutine of `EventBus.publish_many`.
#[pyclass(frozen, module = "ironbus._core", name = "publish_many")]
pub struct PublishMany {
    state: Mutex<ManyState>,
}

enum ManyState {
    Created {
        core: Arc<Core>,
        events: Py<PyAny>,
        options: Box<Options>,
        origin: Option<Origin>,
    },
    Going(Batch),
    Waiting(Batch, Prepared, Wait),
    /// On its way to the journal, and the future that it waits for.
    Storing(Box<Course>, Py<PyAny>),
    Running,
    Over,
}

impl PublishMany {
    fn swap(&self, state: ManyState) -> ManyState {
        std::mem::replace(&mut *lock(&self.state), state)
    }

    fn advance<'py>(&self, py: Python<'py>, mut batch: Batch) -> PyResult<Sent<'py>> {
        let turn_over = monotonic_ns() + TURN;
        loop {
            match batch.run(py, turn_over) {
                Ok(true) => {}
                Ok(false)
                    if batch
                        .core
                        .turn_is_due(std::mem::take(&mut batch.uncounted), turn_over - TURN) =>
                {
                    batch.core.turn_was_given(monotonic_ns());
                    self.swap(ManyState::Going(batch));
                    return Ok(Sent::Yielded(py.None().into_bound(py)));
                }
                Ok(false) => {
                    self.swap(ManyState::Over);
                    return Ok(Sent::Returned(Bound::new(py, batch.finish())?.into_any()));
                }
                Err(error) => return Err(batch.broken(py, error)),
            }
            if monotonic_ns() > turn_over {
                batch.core.turn_was_given(monotonic_ns());
                self.swap(ManyState::Going(batch));
                return Ok(Sent::Yielded(py.None().into_bound(py)));
            }
            // One that has a key, or found no room: alone, as `publish` would.
            let Some(prepared) = batch.next(py) else {
                continue;
            };
            if let Some(sent) = self.single(py, &mut batch, prepared)? {
                let (prepared, wait) = sent;
                let (Wait::Room { future, .. } | Wait::Key { future }) = &wait;
                let future = future.clone_ref(py).into_bound(py);
                self.swap(ManyState::Waiting(batch, prepared, wait));
                return Ok(Sent::Yielded(future));
            }
        }
    }

    fn begin<'py>(&self, py: Python<'py>, batch: Batch) -> PyResult<Sent<'py>> {
        let core = batch.core.clone();
        if core.journaled.is_none() {
            return self.advance(py, batch);
        }
        let by_handler = lane_of(&core, batch.origin.as_ref()).is_some();
        let course = Course::new(py, &core, batch.into_prepared(py), by_handler)?;
        self.drive(py, Box::new(course))
    }

    fn drive<'py>(&self, py: Python<'py>, mut course: Box<Course>) -> PyResult<Sent<'py>> {
        Ok(match course.drive(py)? {
            Some(future) => {
                let waits = future.clone().unbind();
                self.swap(ManyState::Storing(course, waits));
                Sent::Yielded(future)
            }
            None => {
                self.swap(ManyState::Over);
                Sent::Returned(Bound::new(py, course.batch_receipt())?.into_any())
            }
        })
    }

    fn single(
        &self,
        py: Python<'_>,
        batch: &mut Batch,
        mut prepared: Prepared,
    ) -> PyResult<Option<(Prepared, Wait)>> {
        let lane = lane_of(&batch.core, batch.origin.as_ref());
        let now = batch.core.now(py)?;
        match attempt(py, &batch.core, &mut prepared, lane, now) {
            Ok(Attempt::Accepted { sequence, held }) => {
                batch.accepted(prepared, sequence, held);
                Ok(None)
            }
            Ok(Attempt::Duplicate) => {
                batch.duplicate(&prepared);
                Ok(None)
            }
            Ok(Attempt::Wait(wait)) => Ok(Some((prepared, wait))),
            Err(error) => {
                batch.gone();
                Err(batch.broken(py, error))
            }
        }
    }

    fn end(&self, py: Python<'_>) {
        match self.swap(ManyState::Over) {
            ManyState::Waiting(mut batch, prepared, wait) => {
                cancel(py, &batch.core, &prepared, &wait);
                batch.gone();
                batch.discard_rest();
            }
            ManyState::Going(mut batch) => batch.discard_rest(),
            ManyState::Storing(course, _) => course.give_up(py),
            _ => {}
        }
    }
}

impl Coroutine for PublishMany {
    fn step<'py>(slf: &Bound<'py, Self>, _value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        native::attached(slf.py(), || Self::attached_step(slf))
    }
}

impl PublishMany {
    fn attached_step<'py>(slf: &Bound<'py, Self>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let stepped = match this.swap(ManyState::Running) {
            ManyState::Created {
                core,
                events,
                options,
                origin,
            } => core
                .check_process(py)
                .and_then(|()| Batch::prepare(py, core, events.bind(py), options.given(), origin))
                .and_then(|batch| this.begin(py, batch)),
            ManyState::Storing(course, _) => this.drive(py, course),
            ManyState::Going(batch) => this.advance(py, batch),
            ManyState::Waiting(mut batch, mut prepared, wait) => match wait {
                Wait::Room { ticket, future } => match ticket.fate() {
                    Some(Err(refused)) => {
                        batch.gone();
                        Err(batch.broken(py, crate::py::errors::engine(py, &refused)))
                    }
                    Some(Ok((sequence, route))) => {
                        prepared.went(py, route)?;
                        batch.accepted(prepared, sequence, false);
                        this.advance(py, batch)
                    }
                    None => {
                        let again = future.clone_ref(py).into_bound(py);
                        block_on(&again)?;
                        this.swap(ManyState::Waiting(
                            batch,
                            prepared,
                            Wait::Room { ticket, future },
                        ));
                        Ok(Sent::Yielded(again))
                    }
                },
                Wait::Key { .. } => {
                    batch.core.bus.count_joined(false);
                    match this.single(py, &mut batch, prepared) {
                        Ok(None) => this.advance(py, batch),
                        Ok(Some((prepared, wait))) => {
                            let (Wait::Room { future, .. } | Wait::Key { future }) = &wait;
                            let future = future.clone_ref(py).into_bound(py);
                            this.swap(ManyState::Waiting(batch, prepared, wait));
                            Ok(Sent::Yielded(future))
                        }
                        Err(error) => Err(error),
                    }
                }
            },
            ManyState::Running | ManyState::Over => Err(native::reused("EventBus.publish_many")),
        };
        stepped.inspect_err(|_| {
            this.swap(ManyState::Over);
        })
    }
}

#[pymethods]
impl PublishMany {
    fn send<'py>(slf: &Bound<'py, Self>, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        native::yield_or_stop(slf.py(), Self::step(slf, value)?)
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw<'py>(
        slf: &Bound<'py, Self>,
        kind: &Bound<'py, PyAny>,
        value: Option<&Bound<'py, PyAny>>,
        traceback: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let error = native::thrown(kind, value, traceback)?;
        slf.get().end(slf.py());
        Err(PyErr::from_value(error))
    }

    fn close(slf: &Bound<'_, Self>) {
        slf.get().end(slf.py());
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        native::next_step(slf)
    }

    #[getter]
    fn __name__<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        intern!(py, "publish_many")
    }

    #[getter]
    fn __qualname__<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        intern!(py, "EventBus.publish_many")
    }

    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match &*lock(&self.state) {
            ManyState::Waiting(_, _, Wait::Room { future, .. } | Wait::Key { future }) => {
                Some(future.clone_ref(py))
            }
            ManyState::Storing(_, future) => Some(future.clone_ref(py)),
            _ => None,
        }
    }

    #[getter]
    fn cr_frame(&self) -> Option<Py<PyAny>> {
        None
    }

    #[getter]
    fn cr_code(&self) -> Option<Py<PyAny>> {
        None
    }

    #[getter]
    fn cr_running(&self) -> bool {
        matches!(*lock(&self.state), ManyState::Running)
    }
}

impl Drop for PublishMany {
    fn drop(&mut self) {
        if matches!(*lock(&self.state), ManyState::Created { .. }) {
            Python::attach(|py| native::warn_never_awaited(py, "EventBus.publish_many"));
        }
        if matches!(
            *lock(&self.state),
            ManyState::Waiting(..) | ManyState::Going(_) | ManyState::Storing(..)
        ) {
            Python::attach(|py| self.end(py));
        }
    }
}

/// `EventBus.publish_many(events, /, *, ...)`.
pub fn publish_many<'py>(
    slf: &Bound<'py, PyAny>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = arguments.py();
    let core = Bus::core_of(slf)?;
    let (Some(events), 1) = (arguments.get(0), arguments.len()) else {
        return Err(PyTypeError::new_err(format!(
            "EventBus.publish_many() takes 2 positional arguments but {} were given",
            arguments.len() + 1
        )));
    };
    let options = many_options(arguments)?;
    let state = ManyState::Created {
        core,
        events: events.unbind(),
        options: Box::new(options),
        origin: current::origin(py),
    };
    Ok(Bound::new(
        py,
        PublishMany {
            state: Mutex::new(state),
        },
    )?
    .into_any())
}

fn many_options(arguments: &Arguments<'_, '_>) -> PyResult<Options> {
    let mut options = Options::default();
    for (name, value) in arguments.keywords() {
        let name = name.cast_into::<PyString>()?;
        // One key for all would make all but the first a duplicate.
        let slot = options
            .slot(name.to_str()?)
            .filter(|_| name != "idempotency_key");
        let slot = slot.ok_or_else(|| unexpected("publish_many", &name.to_string_lossy()))?;
        *slot = (!value.is_none()).then(|| value.unbind());
    }
    Ok(options)
}
