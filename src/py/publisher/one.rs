//! `EventBus.publish`: the native coroutine of one event.

use std::cell::Cell;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::{Attempt, Wait, attempt, attempt_briefly, cancel, lane_of, unexpected};
use crate::py::bus::Bus;
use crate::py::cell::GilCell;
use crate::py::clock::{monotonic_ns, wall_at};
use crate::py::core::Core;
use crate::py::current::{self, Origin};
use crate::py::durable::Course;
use crate::py::errors;
use crate::py::native::{self, Arguments, Coroutine, Sent};
use crate::py::once::intern;
use crate::py::ops::block_on;
use crate::py::prepare::{Options, Prepared, Then, prepare, prepare_and};
use crate::py::receipt::Receipt;

/// What `publish` was called with.
struct Call {
    event: Py<PyAny>,
    data: Option<Py<PyAny>>,
    options: Option<Box<Options>>,
    caller: Caller,
}

/// Who publishes.
struct Caller {
    bus: Py<Bus>,
    origin: Option<Box<Origin>>,
}

impl Caller {
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
    /// On its way to the journal, and the future that it waits for.
    Storing(Box<Course>, Py<PyAny>),
    /// Accepted; the loop gets a turn before the publisher goes on.
    Yielding(Py<Receipt>),
    Running,
    Over,
}

/// Brings the event before the gate where it was made. To move it first would take longer: what is
/// written to the stack and read back at once, in larger pieces, has to wait.
struct Offering<'a, 'py> {
    py: Python<'py>,
    publish: &'a Publish,
    core: &'a Arc<Core>,
    lane: Option<u64>,
    /// The time of the event, once it has one.
    machine: &'a Cell<u64>,
}

impl<'py> Then for Offering<'_, 'py> {
    /// The end of most, or what there is besides.
    type Answer = Result<Sent<'py>, Box<PyResult<(Prepared, Attempt)>>>;

    #[inline(always)]
    fn seconds(&self) -> f64 {
        self.machine.set(monotonic_ns());
        wall_at(self.machine.get())
    }

    #[inline(always)]
    fn then(self, mut prepared: Prepared) -> Self::Answer {
        let Self { py, core, .. } = self;
        let machine = self.machine.get();
        let now = core.clock.at(py, machine).map_err(failed)?;
        match attempt_briefly(py, core, &mut prepared, self.lane, now) {
            Ok(sequence) => self
                .publish
                .accepted(py, core, prepared, sequence, false, machine)
                .map_err(failed),
            Err(attempted) => Err(Box::new(attempted.map(|attempted| (prepared, attempted)))),
        }
    }
}

#[cold]
fn failed<T>(error: PyErr) -> Box<PyResult<T>> {
    Box::new(Err(error))
}

/// What a publish that waits keeps.
struct Waiting {
    caller: Caller,
    prepared: Prepared,
    wait: Wait,
}

impl Publish {
    #[inline(always)]
    fn swap(&self, py: Python<'_>, state: State) -> State {
        self.state.replace(py, state)
    }

    /// The first step: all of it, for most.
    #[inline(always)]
    fn begin<'py>(&self, py: Python<'py>, call: Call) -> PyResult<Sent<'py>> {
        let Call {
            event,
            data,
            options,
            caller,
        } = call;
        let core = caller.core();
        core.check_process(py)?;
        if core.journaled.is_some() {
            let data = data.map(|data| data.into_bound(py));
            return native::attached(py, || {
                self.begin_durable(py, event.into_bound(py), data, options.as_deref(), &caller)
            });
        }
        let machine = Cell::new(0);
        let offering = Offering {
            py,
            publish: self,
            core,
            lane: lane_of(core, caller.origin.as_deref()),
            machine: &machine,
        };
        let offered = prepare_and(
            py,
            core,
            event.into_bound(py),
            data.map(|data| data.into_bound(py)),
            options.as_deref(),
            caller.origin.as_deref(),
            offering,
        );
        match offered {
            Ok(Ok(sent)) => {
                caller.bus.drop_ref(py);
                Ok(sent)
            }
            Ok(Err(undecided)) => native::attached(py, || {
                let (prepared, attempted) = (*undecided)?;
                self.go_on(py, caller, prepared, attempted, machine.get())
            }),
            Err(error) => Err(*error),
        }
    }

    #[inline(never)]
    fn begin_durable<'py>(
        &self,
        py: Python<'py>,
        event: Bound<'py, PyAny>,
        data: Option<Bound<'py, PyAny>>,
        options: Option<&Options>,
        caller: &Caller,
    ) -> PyResult<Sent<'py>> {
        let core = caller.core();
        let origin = caller.origin.as_deref();
        let wall = wall_at(monotonic_ns());
        let prepared = prepare(py, core, event, data, options, origin, wall)?;
        let by_handler = lane_of(core, origin).is_some();
        let course = Course::new(py, core, vec![prepared], by_handler)?;
        self.drive(py, Box::new(course))
    }

    fn drive<'py>(&self, py: Python<'py>, mut course: Box<Course>) -> PyResult<Sent<'py>> {
        Ok(match course.drive(py)? {
            Some(future) => {
                let waits = future.clone().unbind();
                self.swap(py, State::Storing(course, waits));
                Sent::Yielded(future)
            }
            None => {
                let receipt = native::make(py, || course.receipt())?;
                self.swap(py, State::Over);
                Sent::Returned(receipt.into_any())
            }
        })
    }

    #[cold]
    fn go_on<'py>(
        &self,
        py: Python<'py>,
        caller: Caller,
        prepared: Prepared,
        attempted: Attempt,
        machine: u64,
    ) -> PyResult<Sent<'py>> {
        match attempted {
            Attempt::Accepted { sequence, held } => {
                self.accepted(py, caller.core(), prepared, sequence, held, machine)
            }
            Attempt::Duplicate => {
                let receipt = native::make(py, || Receipt::of_duplicate(prepared))?;
                self.swap(py, State::Over);
                Ok(Sent::Returned(receipt.into_any()))
            }
            Attempt::Wait(wait) => {
                let (Wait::Room { future, .. } | Wait::Key { future }) = &wait;
                let future = future.clone_ref(py).into_bound(py);
                let waiting = Waiting {
                    caller,
                    prepared,
                    wait,
                };
                self.swap(py, State::Waiting(Box::new(waiting)));
                Ok(Sent::Yielded(future))
            }
        }
    }

    #[inline(always)]
    fn accepted<'py>(
        &self,
        py: Python<'py>,
        core: &Arc<Core>,
        prepared: Prepared,
        sequence: u64,
        held: bool,
        machine: u64,
    ) -> PyResult<Sent<'py>> {
        let receipt = native::make(py, || Receipt::accepted(prepared, sequence, held))?;
        if core.turn_is_due(1, machine) {
            core.turn_was_given(machine);
            self.swap(py, State::Yielding(receipt.unbind()));
            return Ok(Sent::Yielded(py.None().into_bound(py)));
        }
        self.swap(py, State::Over);
        Ok(Sent::Returned(receipt.into_any()))
    }

    /// The wait may be over.
    #[cold]
    fn look_again<'py>(&self, py: Python<'py>, waiting: Waiting) -> PyResult<Sent<'py>> {
        let Waiting {
            caller,
            mut prepared,
            wait,
        } = waiting;
        let machine = monotonic_ns();
        let attempted = match wait {
            Wait::Room { ticket, future } => match ticket.fate() {
                Some(Err(refused)) => return Err(errors::engine(py, &refused)),
                Some(Ok((sequence, route))) => {
                    prepared.went(py, route)?;
                    Attempt::Accepted {
                        sequence,
                        held: false,
                    }
                }
                None => {
                    // Stepped by somebody who did not wait for the future.
                    block_on(future.bind(py))?;
                    Attempt::Wait(Wait::Room { ticket, future })
                }
            },
            Wait::Key { .. } => {
                let core = caller.core();
                core.bus.count_joined(false);
                let now = core.clock.at(py, machine)?;
                let lane = lane_of(core, caller.origin.as_deref());
                attempt(py, core, &mut prepared, lane, now)?
            }
        };
        self.go_on(py, caller, prepared, attempted, machine)
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

impl native::Released for Publish {
    #[inline]
    fn release(self, py: Python<'_>) {
        match self.state.into_inner() {
            State::Over => {}
            state => native::attached(py, || Self::abandon(py, state)),
        }
    }
}

impl Coroutine for Publish {
    #[inline]
    fn step<'py>(slf: &Bound<'py, Self>, _value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let stepped = match this.swap(py, State::Running) {
            State::Created(call) => this.begin(py, call),
            State::Waiting(waiting) => native::attached(py, || this.look_again(py, *waiting)),
            State::Storing(course, _) => native::attached(py, || this.drive(py, course)),
            State::Yielding(receipt) => {
                this.swap(py, State::Over);
                Ok(Sent::Returned(receipt.into_bound(py).into_any()))
            }
            State::Running | State::Over => Err(native::reused("EventBus.publish")),
        };
        stepped.or_else(|error| this.fail(py, error))
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
            State::Storing(_, future) => Some(future.clone_ref(py)),
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
        match self.swap(py, State::Over) {
            State::Waiting(waiting) => waiting.cancel(py),
            State::Storing(course, _) => course.give_up(py),
            _ => {}
        }
    }

    /// Nobody steps it any more.
    #[cold]
    fn abandon(py: Python<'_>, state: State) {
        match state {
            State::Created(_) => native::warn_never_awaited(py, "EventBus.publish"),
            State::Waiting(waiting) => waiting.cancel(py),
            State::Storing(course, _) => course.give_up(py),
            State::Yielding(_) | State::Running | State::Over => {}
        }
    }
}

impl Waiting {
    fn cancel(&self, py: Python<'_>) {
        cancel(py, self.caller.core(), &self.prepared, &self.wait);
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
        event: event.unbind(),
        data: data.map(Bound::unbind),
        options,
        caller: Caller {
            bus: bus.clone().unbind(),
            // Asked when it is called and not when it is awaited: a handler may hand it to a task.
            origin: current::origin(py).map(Box::new),
        },
    };
    let publish = Publish {
        state: GilCell::new(State::Created(call)),
    };
    Ok(native::make(py, || publish)?.into_any())
}
