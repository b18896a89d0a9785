//! Publishing: the native coroutines of `publish` and `publish_many`, and the blocking
//! form. Each is lazy, does all its work in its first step, and waits only for room or
//! for the fate of an equal key.

use std::sync::{Arc, Mutex};

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use super::bus::Bus;
use super::cell::GilCell;
use super::clock::{monotonic_ns, wall_at};
use super::core::{Core, TURN};
use super::current::{self, Origin};
use super::errors::{self, Error};
use super::event::Event as PyEvent;
use super::native::{self, Arguments, Coroutine, Sent};
use super::ops::{FutureWaker, PyOps, Signal, Waker, block_on};
use super::prepare::{Options, Prepared, prepare};
use super::receipt::{BatchReceipt, Receipt};
use crate::engine::bus::Published;
use crate::engine::gate::{Patience, Ticket};
use crate::engine::sync::lock;

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

/// A publish that waits.
enum Wait {
    /// For room.
    Room {
        ticket: Arc<Ticket<PyOps>>,
        future: Py<PyAny>,
    },
    /// For the fate of an equal key.
    Key { future: Py<PyAny> },
}

/// One step of a publish.
enum Attempt {
    Accepted { sequence: u64, held: bool },
    Duplicate,
    Wait(Wait),
}

/// Brings an event before the gate once, from a task.
#[inline]
fn attempt(
    py: Python<'_>,
    core: &Core,
    prepared: &mut Prepared,
    origin: Option<u64>,
    now: u64,
) -> PyResult<Attempt> {
    loop {
        let published = prepared.publish(py, &core.bus, origin, Patience::Wait, now)?;
        return Ok(match published {
            Published::Accepted(sequence) => Attempt::Accepted {
                sequence,
                held: false,
            },
            Published::Held(sequence) => Attempt::Accepted {
                sequence,
                held: true,
            },
            Published::Duplicate => Attempt::Duplicate,
            Published::Refused(error) => {
                prepared.discard();
                return Err(errors::engine(py, &error));
            }
            Published::Waiting(ticket) => {
                let waker = FutureWaker::new(py).and_then(|(waker, future)| {
                    block_on(&future)?;
                    Ok((waker, future.unbind()))
                });
                let (waker, future) = match waker {
                    Ok(waker) => waker,
                    Err(error) => {
                        give_up(core, prepared, &ticket, now);
                        return Err(error);
                    }
                };
                match ticket.wait(Waker::Future(waker)) {
                    Ok(()) => Attempt::Wait(Wait::Room { ticket, future }),
                    Err(_) => {
                        let (sequence, route) = ticket.admitted().expect("it was let in");
                        prepared.route = route;
                        Attempt::Accepted {
                            sequence,
                            held: false,
                        }
                    }
                }
            }
            Published::InFlight => {
                let (waker, future) = FutureWaker::new(py)?;
                block_on(&future)?;
                let key = prepared.key.as_ref().expect("only keys are in flight");
                if !core.bus.join(key, Waker::Future(waker), now) {
                    continue;
                }
                core.bus.count_joined(true);
                Attempt::Wait(Wait::Key {
                    future: future.unbind(),
                })
            }
        });
    }
}

fn give_up(core: &Core, prepared: &Prepared, ticket: &Ticket<PyOps>, now: u64) {
    if core.bus.give_up(ticket, prepared.key.as_ref(), now) {
        prepared.discard();
    }
}

/// Ends a wait whose publisher was cancelled. What was accepted stays accepted.
fn cancel(py: Python<'_>, core: &Core, prepared: &Prepared, wait: &Wait) {
    match wait {
        Wait::Room { ticket, .. } => give_up(
            core,
            prepared,
            ticket,
            core.now(py).unwrap_or_else(|_| monotonic_ns()),
        ),
        Wait::Key { .. } => {
            core.bus.count_cancelled();
            prepared.discard();
        }
    }
}

/// The lane whose handler publishes, if that handler is this bus's.
#[inline]
fn lane_of(core: &Arc<Core>, origin: Option<&Origin>) -> Option<u64> {
    origin
        .filter(|origin| Arc::ptr_eq(&origin.core, core))
        .map(|origin| origin.lane)
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
                let receipt = Bound::new(py, Receipt::of_duplicate(prepared))?;
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
        let receipt = Bound::new(py, Receipt::accepted(prepared, sequence, held))?;
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
    Ok(Bound::new(
        py,
        Publish {
            state: GilCell::new(State::Created(call)),
        },
    )?
    .into_any())
}

fn unexpected(method: &str, name: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "EventBus.{method}() got an unexpected keyword argument '{name}'"
    ))
}

/// Publishes from any thread. Where a loop runs it never blocks.
pub fn publish_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    event: &Bound<'_, PyAny>,
    data: Option<&Bound<'_, PyAny>>,
    options: &Options,
) -> PyResult<Receipt> {
    core.check_process(py)?;
    let origin = current::origin();
    let prepared = prepare(
        py,
        core,
        event,
        data,
        Some(options),
        origin.as_ref(),
        wall_at(monotonic_ns()),
    )?;
    publish_prepared_sync(py, core, prepared, origin.as_ref())
}

/// Publishes one valid event from a thread; blocks for room unless a loop runs in it.
fn publish_prepared_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    mut prepared: Prepared,
    origin: Option<&Origin>,
) -> PyResult<Receipt> {
    let lane = lane_of(core, origin);
    let patience = if super::ops::in_running_loop(py)? {
        Patience::None
    } else {
        Patience::Wait
    };
    let blocked = |wait: &mut dyn FnMut() -> PyResult<bool>| match origin {
        // A handler on a worker thread: another worker stands in meanwhile.
        Some(origin) => origin.core.pool().while_waiting(wait),
        None => wait(),
    };
    loop {
        let now = core.now(py)?;
        match prepared.publish(py, &core.bus, lane, patience, now)? {
            Published::Accepted(sequence) => {
                return Ok(Receipt::accepted(prepared, sequence, false));
            }
            Published::Held(sequence) => {
                return Ok(Receipt::accepted(prepared, sequence, true));
            }
            Published::Duplicate => return Ok(Receipt::of_duplicate(prepared)),
            Published::Refused(error) => {
                prepared.discard();
                return Err(errors::engine(py, &error));
            }
            Published::Waiting(ticket) => {
                let signal = Arc::new(Signal::default());
                if ticket.wait(Waker::Thread(signal.clone())).is_ok()
                    && let Err(error) = blocked(&mut || signal.wait(py, None))
                {
                    give_up(core, &prepared, &ticket, core.now(py)?);
                    return Err(error);
                }
                let (sequence, route) =
                    ticket.admitted().expect("a ticket wakes when it is let in");
                prepared.route = route;
                return Ok(Receipt::accepted(prepared, sequence, false));
            }
            Published::InFlight if patience == Patience::None => {
                prepared.discard();
                core.bus.count_rejected();
                return Err(Error::QueueFull.exception(
                    py,
                    "idempotency_key",
                    "an event with the same idempotency key is waiting for room, and this thread runs an event loop; \
                     use await publish(), which waits for its fate",
                ));
            }
            Published::InFlight => {
                let signal = Arc::new(Signal::default());
                let key = prepared.key.as_ref().expect("only keys are in flight");
                if core.bus.join(key, Waker::Thread(signal.clone()), now) {
                    core.bus.count_joined(true);
                    if let Err(error) = blocked(&mut || signal.wait(py, None)) {
                        core.bus.count_cancelled();
                        prepared.discard();
                        return Err(error);
                    }
                    core.bus.count_joined(false);
                }
            }
        }
    }
}

/// Validates all events of a batch; none is accepted unless all are valid.
fn prepare_all(
    py: Python<'_>,
    core: &Arc<Core>,
    events: &Bound<'_, PyAny>,
    shared: Option<&Options>,
    origin: Option<&Origin>,
) -> PyResult<Vec<Prepared>> {
    let mut batch: Vec<Prepared> = Vec::with_capacity(events.len().unwrap_or(0));
    let wall = wall_at(monotonic_ns());
    for (index, item) in events.try_iter()?.enumerate() {
        let prepared = item.and_then(|item| prepare_item(py, core, &item, shared, origin, wall));
        match prepared {
            Ok(prepared) => batch.push(prepared),
            Err(error) => {
                batch.iter().for_each(Prepared::discard);
                return Err(errors::at_index(py, error, index));
            }
        }
    }
    Ok(batch)
}

fn prepare_item(
    py: Python<'_>,
    core: &Arc<Core>,
    item: &Bound<'_, PyAny>,
    shared: Option<&Options>,
    origin: Option<&Origin>,
    wall: f64,
) -> PyResult<Prepared> {
    if item.is_instance_of::<PyEvent>() {
        return prepare(py, core, item, None, shared, origin, wall);
    }
    let parts = item
        .cast::<PyTuple>()
        .ok()
        .filter(|parts| matches!(parts.len(), 2 | 3));
    let Some(parts) = parts else {
        core.bus.count_rejected();
        return Err(Error::InvalidEvent.exception(
            py,
            "",
            "each event must be an ironbus.Event, or a tuple (type, data) or (type, data, options)",
        ));
    };
    let (event, data) = (parts.get_item(0)?, parts.get_item(1)?);
    if parts.len() == 2 {
        return prepare(py, core, &event, Some(&data), shared, origin, wall);
    }
    let own = parts.get_item(2)?;
    let own = own.cast::<PyDict>().map_err(|_| {
        core.bus.count_rejected();
        Error::InvalidOption.exception(
            py,
            "options",
            "the third of (type, data, options) must be a dict of publish options",
        )
    })?;
    let options = options_of(py, own, shared).inspect_err(|_| core.bus.count_rejected())?;
    prepare(py, core, &event, Some(&data), Some(&options), origin, wall)
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
    });
    for (name, value) in own {
        let name = name.cast_into::<PyString>().ok();
        let name = name.as_ref().and_then(|name| name.to_str().ok());
        let slot = name.and_then(|name| options.slot(name)).ok_or_else(|| {
            let text = "unknown option in (type, data, options); there are priority, key, idempotency_key and headers";
            Error::InvalidOption.exception(py, "options", text)
        })?;
        *slot = (!value.is_none()).then(|| value.unbind());
    }
    Ok(options)
}

/// A batch on its way through the gate.
struct Batch {
    core: Arc<Core>,
    origin: Option<Origin>,
    rest: std::vec::IntoIter<Prepared>,
    receipts: Vec<Receipt>,
    /// Events let in that nobody has counted towards a turn of the loop.
    uncounted: usize,
}

impl Batch {
    fn new(core: Arc<Core>, origin: Option<Origin>, batch: Vec<Prepared>) -> Self {
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
    fn run(&mut self, py: Python<'_>, turn_over: u64) -> PyResult<bool> {
        const RUN: usize = 256;
        while let Some(first) = self.rest.as_slice().first() {
            if first.key.is_some() {
                return Ok(true);
            }
            let same =
                |other: &&Prepared| other.key.is_none() && Arc::ptr_eq(&other.route, &first.route);
            let length = self
                .rest
                .as_slice()
                .iter()
                .take(RUN)
                .take_while(same)
                .count();
            let lane = lane_of(&self.core, self.origin.as_ref());
            let now = self.core.now(py)?;
            let mut route = first.route.clone();
            let run = &self.rest.as_slice()[..length];
            let event_type = first.event.payload.type_.bind(py).to_str()?;
            let offers = run.iter().map(|prepared| crate::engine::gate::Offer {
                event_type,
                level: prepared.level,
                token: prepared.token,
                event: &prepared.event,
                origin: lane,
            });
            let admitted = self.core.bus.publish_run(offers, &mut route, now);
            self.uncounted += admitted.count;
            for (at, mut prepared) in self.rest.by_ref().take(admitted.count).enumerate() {
                if !Arc::ptr_eq(&prepared.route, &route) {
                    prepared.route = route.clone();
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

    fn discard_rest(&mut self) {
        self.rest.by_ref().for_each(|prepared| prepared.discard());
    }

    fn finish(&mut self) -> BatchReceipt {
        BatchReceipt::new(std::mem::take(&mut self.receipts))
    }

    /// An error in the middle of a batch: it tells what was accepted before.
    fn broken(&mut self, py: Python<'_>, error: PyErr) -> PyErr {
        self.discard_rest();
        let told = Bound::new(py, self.finish())
            .and_then(|receipt| error.value(py).setattr("receipt", receipt));
        told.err().unwrap_or(error)
    }
}

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
            let Some(prepared) = batch.rest.next() else {
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
                batch
                    .receipts
                    .push(Receipt::accepted(prepared, sequence, held));
                Ok(None)
            }
            Ok(Attempt::Duplicate) => {
                batch.receipts.push(Receipt::of_duplicate(prepared));
                Ok(None)
            }
            Ok(Attempt::Wait(wait)) => Ok(Some((prepared, wait))),
            Err(error) => Err(batch.broken(py, error)),
        }
    }

    fn end(&self, py: Python<'_>) {
        match self.swap(ManyState::Over) {
            ManyState::Waiting(mut batch, prepared, wait) => {
                cancel(py, &batch.core, &prepared, &wait);
                batch.discard_rest();
            }
            ManyState::Going(mut batch) => batch.discard_rest(),
            _ => {}
        }
    }
}

impl Coroutine for PublishMany {
    fn step<'py>(slf: &Bound<'py, Self>, _value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let stepped = match this.swap(ManyState::Running) {
            ManyState::Created {
                core,
                events,
                options,
                origin,
            } => core
                .check_process(py)
                .and_then(|()| {
                    prepare_all(py, &core, events.bind(py), Some(&options), origin.as_ref())
                })
                .and_then(|batch| this.advance(py, Batch::new(core, origin, batch))),
            ManyState::Going(batch) => this.advance(py, batch),
            ManyState::Waiting(mut batch, mut prepared, wait) => match wait {
                Wait::Room { ticket, future } => match ticket.admitted() {
                    Some((sequence, route)) => {
                        prepared.route = route;
                        batch
                            .receipts
                            .push(Receipt::accepted(prepared, sequence, false));
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
            ManyState::Waiting(..) | ManyState::Going(_)
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
        origin: current::origin(),
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

/// The blocking form of `publish_many`, for threads without a loop.
pub fn publish_many_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    events: &Bound<'_, PyAny>,
    options: &Options,
) -> PyResult<BatchReceipt> {
    core.check_process(py)?;
    let origin = current::origin();
    let prepared = prepare_all(py, core, events, Some(options), origin.as_ref())?;
    let mut batch = Batch::new(core.clone(), origin.clone(), prepared);
    loop {
        match batch.run(py, u64::MAX) {
            Ok(true) => {}
            Ok(false) => return Ok(batch.finish()),
            Err(error) => return Err(batch.broken(py, error)),
        }
        let Some(prepared) = batch.rest.next() else {
            continue;
        };
        match publish_prepared_sync(py, core, prepared, origin.as_ref()) {
            Ok(receipt) => batch.receipts.push(receipt),
            Err(error) => return Err(batch.broken(py, error)),
        }
    }
}
