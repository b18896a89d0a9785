//! `EventBus.publish`: the native coroutine of one event.

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Attempt, Wait, attempt, cancel, lane_of, unexpected};
use crate::py::bus::Bus;
use crate::py::cell::GilCell;
use crate::py::clock::{monotonic_ns, wall_at};
use crate::py::core::Core;
use crate::py::current::{self, Origin};
use crate::py::native::{self, Arguments, Coroutine, Sent};
use crate::py::ops::block_on;
use crate::py::prepare::{Options, Prepared, prepare};
use crate::py::receipt::Receipt;

/// What `publish` was called with.
struct Call {
    bus: Py<Bus>,
    event: Py<PyAny>,
    data: Option<Py<PyAny>>,
    options: Option<Box<Options>>,
    origin: Option<Box<Origin>>,
}

impl Call {
    /// The bus was set up when the call was made.
    #[inline]
    fn core(&self) -> &Arc<Core> {
        self.bus.get().core().expect("a bus stays set up")
    }
}

/// The coroutine of `EventBus.publish`.
#[pyclass(frozen, module = "ironbus._core", name = "publish")]
pub struct Publish {
    state: GilCell<State>,
}

enum State {
    Created(Call),
    Waiting(Box<Waiting>),
    /// Accepted; the loop gets a turn before the publisher goes on.
    Yielding(Py<Receipt>),
    Running,
    Over,
}

/// What a publish that waits keeps.
struct Waiting {
    call: Call,
    prepared: Prepared,
    wait: Wait,
}

impl Publish {
    #[inline(always)]
    fn swap(&self, py: Python<'_>, state: State) -> State {
        self.state.replace(py, state)
    }

    #[inline]
    fn advance<'py>(
        &self,
        py: Python<'py>,
        call: Call,
        mut prepared: Prepared,
        machine: u64,
    ) -> PyResult<Sent<'py>> {
        let now = call.core().clock.at(py, machine)?;
        match attempt(
            py,
            call.core(),
            &mut prepared,
            lane_of(call.core(), call.origin.as_deref()),
            now,
        )? {
            Attempt::Accepted { sequence, held } => {
                self.accepted(py, call.core(), prepared, sequence, held, machine)
            }
            Attempt::Duplicate => {
                let receipt = native::make(py, Receipt::of_duplicate(prepared))?;
                self.swap(py, State::Over);
                Ok(Sent::Returned(receipt.into_any()))
            }
            Attempt::Wait(wait) => {
                let (Wait::Room { future, .. } | Wait::Key { future }) = &wait;
                let future = future.clone_ref(py).into_bound(py);
                self.swap(
                    py,
                    State::Waiting(Box::new(Waiting {
                        call,
                        prepared,
                        wait,
                    })),
                );
                Ok(Sent::Yielded(future))
            }
        }
    }

    #[inline]
    fn accepted<'py>(
        &self,
        py: Python<'py>,
        core: &Arc<Core>,
        prepared: Prepared,
        sequence: u64,
        held: bool,
        machine: u64,
    ) -> PyResult<Sent<'py>> {
        let receipt = native::make(py, Receipt::accepted(prepared, sequence, held))?;
        if core.turn_is_due(1, machine) {
            core.turn_was_given(machine);
            self.swap(py, State::Yielding(receipt.unbind()));
            return Ok(Sent::Yielded(py.None().into_bound(py)));
        }
        self.swap(py, State::Over);
        Ok(Sent::Returned(receipt.into_any()))
    }

    fn fail<T>(&self, py: Python<'_>, error: PyErr) -> PyResult<T> {
        self.swap(py, State::Over);
        Err(error)
    }
}

impl native::Pooled for Publish {
    const TRACKED: bool = false;
    /// As many as a loop turn's worth of publishes may leave behind.
    const KEPT: usize = 256;

    fn pool() -> &'static native::Pool {
        static POOL: native::Pool = GilCell::new(Vec::new());
        &POOL
    }
}

impl Coroutine for Publish {
    #[inline]
    fn step<'py>(slf: &Bound<'py, Self>, _value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        match this.swap(py, State::Running) {
            State::Created(call) => {
                let data = call.data.as_ref().map(|data| data.bind(py));
                let machine = monotonic_ns();
                let prepared = call.core().check_process(py).and_then(|()| {
                    let (options, origin) = (call.options.as_deref(), call.origin.as_deref());
                    prepare(
                        py,
                        call.core(),
                        call.event.bind(py),
                        data,
                        options,
                        origin,
                        wall_at(machine),
                    )
                });
                let stepped =
                    prepared.and_then(|prepared| this.advance(py, call, prepared, machine));
                stepped.or_else(|error| this.fail(py, error))
            }
            State::Waiting(waiting) => {
                let Waiting {
                    call,
                    mut prepared,
                    wait,
                } = *waiting;
                let stepped = match wait {
                    Wait::Room { ticket, future } => match ticket.admitted() {
                        Some((sequence, route)) => {
                            prepared.route = route;
                            this.accepted(
                                py,
                                call.core(),
                                prepared,
                                sequence,
                                false,
                                monotonic_ns(),
                            )
                        }
                        None => {
                            // Stepped by somebody who did not wait for the future.
                            let again = future.clone_ref(py).into_bound(py);
                            block_on(&again)?;
                            let wait = Wait::Room { ticket, future };
                            this.swap(
                                py,
                                State::Waiting(Box::new(Waiting {
                                    call,
                                    prepared,
                                    wait,
                                })),
                            );
                            Ok(Sent::Yielded(again))
                        }
                    },
                    Wait::Key { .. } => {
                        call.core().bus.count_joined(false);
                        this.advance(py, call, prepared, monotonic_ns())
                    }
                };
                stepped.or_else(|error| this.fail(py, error))
            }
            State::Yielding(receipt) => {
                this.swap(py, State::Over);
                Ok(Sent::Returned(receipt.into_bound(py).into_any()))
            }
            State::Running | State::Over => this.fail(py, native::reused("EventBus.publish")),
        }
    }
}

#[pymethods]
impl Publish {
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
        intern!(py, "publish")
    }

    #[getter]
    fn __qualname__<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        intern!(py, "EventBus.publish")
    }

    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.state.read(py, |state| match state {
            State::Waiting(waiting) => match &waiting.wait {
                Wait::Room { future, .. } | Wait::Key { future } => Some(future.clone_ref(py)),
            },
            _ => None,
        })
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
    fn cr_running(&self, py: Python<'_>) -> bool {
        self.state.read(py, |state| matches!(state, State::Running))
    }
}

impl Publish {
    fn end(&self, py: Python<'_>) {
        if let State::Waiting(waiting) = self.swap(py, State::Over) {
            cancel(py, waiting.call.core(), &waiting.prepared, &waiting.wait);
        }
    }
}

impl Drop for Publish {
    fn drop(&mut self) {
        match std::mem::replace(self.state.get_mut(), State::Over) {
            State::Created(_) => {
                Python::attach(|py| native::warn_never_awaited(py, "EventBus.publish"));
            }
            State::Waiting(waiting) => {
                Python::attach(|py| {
                    cancel(py, waiting.call.core(), &waiting.prepared, &waiting.wait)
                });
            }
            _ => {}
        }
    }
}

/// `EventBus.publish(event, data=None, *, ...)`, called with its arguments as they are.
#[inline]
pub fn publish<'py>(
    slf: &Bound<'py, PyAny>,
    arguments: &Arguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = arguments.py();
    let bus = slf.cast::<Bus>()?;
    bus.get().core()?;
    let mut event = arguments.get(0);
    let mut data = arguments.get(1);
    let mut options: Option<Box<Options>> = None;
    if arguments.len() > 2 {
        return Err(PyTypeError::new_err(format!(
            "EventBus.publish() takes from 2 to 3 positional arguments but {} were given",
            arguments.len() + 1
        )));
    }
    for (name, value) in arguments.keywords() {
        let name = name.cast_into::<PyString>()?;
        let name = name.to_str()?;
        match name {
            "event" if event.is_none() => event = Some(value),
            "data" if data.is_none() => data = Some(value),
            "event" | "data" => {
                return Err(PyTypeError::new_err(format!(
                    "EventBus.publish() got multiple values for argument '{name}'"
                )));
            }
            _ => {
                let slot = options
                    .get_or_insert_default()
                    .slot(name)
                    .ok_or_else(|| unexpected("publish", name))?;
                if !value.is_none() {
                    *slot = Some(value.unbind());
                }
            }
        }
    }
    let Some(event) = event else {
        return Err(PyTypeError::new_err(
            "EventBus.publish() missing 1 required positional argument: 'event'",
        ));
    };
    let call = Call {
        bus: bus.clone().unbind(),
        event: event.unbind(),
        data: data.map(Bound::unbind),
        options,
        // Asked when it is called and not when it is awaited: a handler may hand it to a task.
        origin: current::origin().map(Box::new),
    };
    Ok(native::make(
        py,
        Publish {
            state: GilCell::new(State::Created(call)),
        },
    )?
    .into_any())
}
