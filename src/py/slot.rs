//! One slot of the event loop: the coroutine of a real task that runs handlers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::once::Once;
use super::once::intern;
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::clock::monotonic_ns;
use super::core::TURN;
use super::current::{self, Active, Running};
use super::event_loop::{Home, Work};
use super::native::{self, Coroutine, Sent};
use super::ops::{PyLane, PyOps, block_on};
use super::run::{self, End, Input, Job, Progress};
use crate::engine::bus::Next;
use crate::engine::lane::Entry;
use crate::engine::sync::lock;

/// Slots that stay when there is nothing to do.
const IDLE_SLOTS: usize = 4;
/// Events of one lane in a row while other lanes wait.
const QUANTUM: usize = 32;

/// See the module.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Slot {
    home: Arc<Home>,
    id: u64,
    state: Mutex<State>,
    /// The task.
    task: OnceLock<Py<PyAny>>,
    /// The task was cancelled since somebody asked.
    cancels: AtomicBool,
    /// The timer, and when it runs out.
    timer: Mutex<Option<(Py<PyAny>, u64)>>,
}

enum State {
    /// It has been woken, or has only given the loop a turn.
    Serving,
    /// It sleeps.
    Idle,
    /// Its handler waits.
    Suspended(Box<Job>),
    /// It is being stepped, or has ended.
    Away,
}

/// What a slot does after it came to the end of what it can do now.
enum Rest<'py> {
    Again,
    Sleep(Bound<'py, PyAny>),
    End,
}

impl Slot {
    /// A new slot and its task.
    pub fn spawn(py: Python<'_>, home: Arc<Home>, id: u64) -> PyResult<()> {
        static TASK: Once<Py<PyAny>> = Once::new();
        let event_loop = home.event_loop.clone_ref(py);
        let context = home.context.fresh(py)?;
        let slot = Slot {
            home: home.clone(),
            id,
            state: Mutex::new(State::Serving),
            task: OnceLock::new(),
            cancels: AtomicBool::new(false),
            timer: Mutex::new(None),
        };
        let slot = Bound::new(py, slot)?;
        let options = PyDict::new(py);
        options.set_item("loop", event_loop)?;
        options.set_item("name", format!("ironbus-slot-{id}"))?;
        options.set_item("context", context)?;
        // Made directly: a task factory of the program's might start it at once, or elsewhere.
        let task = TASK
            .import(py, "ironbus._slot_task", "SlotTask")?
            .call((&slot,), Some(&options))?;
        lock(&home.tasks).insert(id, task.clone().unbind());
        let set = slot.get().task.set(task.unbind());
        debug_assert!(set.is_ok());
        Ok(())
    }

    /// Cancels the handler that waits here; its event goes back.
    pub fn recall(&self, py: Python<'_>) -> PyResult<()> {
        match &mut *lock(&self.state) {
            State::Suspended(job) => job.recalled = true,
            _ => return Ok(()),
        }
        self.task()
            .call_method0(py, intern!(py, "cancel"))
            .map(drop)
    }

    /// The run of the handler that waits here.
    pub fn running(&self) -> Option<Running> {
        match &*lock(&self.state) {
            State::Suspended(job) => Some(Running {
                lane: job.lane.id,
                since: job.started,
            }),
            _ => None,
        }
    }

    /// When the handler that waits here has had its time.
    pub fn deadline(&self) -> Option<u64> {
        match &*lock(&self.state) {
            State::Suspended(job) if !job.timed_out => job.deadline(),
            _ => None,
        }
    }

    /// Cancels the handler that waits here if it has had its time. On the loop's thread.
    pub fn look_at_deadline(slf: &Bound<'_, Self>) -> PyResult<()> {
        match slf.get().deadline() {
            Some(deadline) if deadline <= slf.get().now(slf.py())? => Self::_on_timer(slf),
            _ => Ok(()),
        }
    }

    /// The clock was stopped, or runs again. On the loop's thread.
    pub fn watch_anew(slf: &Bound<'_, Self>) -> PyResult<()> {
        slf.get().cancel_timer(slf.py())?;
        match slf.get().deadline() {
            Some(deadline) => Self::watch(slf, deadline),
            None => Ok(()),
        }
    }

    fn task(&self) -> &Py<PyAny> {
        self.task.get().expect("a slot is stepped by its task")
    }

    fn set(&self, state: State) {
        let previous = std::mem::replace(&mut *lock(&self.state), state);
        drop(previous);
    }

    fn now(&self, py: Python<'_>) -> PyResult<u64> {
        self.home.core.now(py)
    }

    /// Serves ready lanes until there are none, the turn is over, or a handler suspends.
    fn serve<'py>(slf: &Bound<'py, Self>) -> PyResult<Sent<'py>> {
        let this = slf.get();
        let active = Active::on_loop(this.home.core.clone(), this.home.life, this.id);
        current::during(slf.py(), &active, || Self::serve_with(slf, &active))
    }

    fn serve_with<'py>(slf: &Bound<'py, Self>, active: &Active) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let core = &this.home.core;
        let seat = core.event_loop();
        let mut machine = monotonic_ns();
        let mut now = core.clock.at(py, machine)?;
        let turn_over = machine + TURN;
        core.turn_was_given(machine);
        loop {
            if this.home.stopping.load(Ordering::Relaxed) {
                return this.leave(py);
            }
            let lane = match seat.next(py) {
                None => match Self::rest(slf)? {
                    Rest::Again => continue,
                    Rest::Sleep(future) => return Ok(Sent::Yielded(future)),
                    Rest::End => return this.leave(py),
                },
                Some(Work::Lane(lane)) => lane,
                Some(Work::Adopted(job)) => {
                    let none = py.None();
                    let lane = job.lane.clone();
                    let started = job.started;
                    match run::resume(py, core, *job, this.id, Input::Value(none.bind(py))) {
                        Progress::Ended(entry, end) => {
                            now = this.now(py)?;
                            let spent = this.is_spent(py)?;
                            // Its lane belongs to the threads.
                            this.finish_last(py, &lane, entry, end, started, now)?;
                            if spent {
                                return this.replace(py);
                            }
                            continue;
                        }
                        Progress::Suspended(job, yielded) => {
                            return Self::suspend(slf, job, yielded);
                        }
                        Progress::Awaitable(_) => unreachable!("it was stepped"),
                    }
                }
            };
            let mut next = core.bus.take(&lane, now);
            let mut in_a_row = 0;
            while let Some(Next {
                entry,
                token_wanted,
            }) = next
            {
                if token_wanted {
                    next = run::with_token(py, core, &lane, entry, now);
                    continue;
                }
                in_a_row += 1;
                let started = now;
                match run::begin(py, active, &lane, entry, now, &this.home.context, true) {
                    Progress::Ended(entry, end) => {
                        machine = monotonic_ns();
                        now = core.clock.at(py, machine)?;
                        if this.is_spent(py)? {
                            this.finish_last(py, &lane, entry, end, started, now)?;
                            return this.replace(py);
                        }
                        let proceed = machine < turn_over
                            && (in_a_row < QUANTUM || !seat.has_more(py))
                            && !this.home.stopping.load(Ordering::Relaxed);
                        next = this.finish(py, &lane, entry, end, started, proceed, now)?;
                    }
                    Progress::Suspended(job, yielded) => return Self::suspend(slf, job, yielded),
                    Progress::Awaitable(_) => unreachable!("it was stepped"),
                }
            }
            if machine >= turn_over && seat.has_more(py) {
                this.set(State::Serving);
                return Ok(Sent::Yielded(py.None().into_bound(py)));
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // as of run::finish
    fn finish(
        &self,
        py: Python<'_>,
        lane: &PyLane,
        entry: Entry<PyOps>,
        end: End,
        started: u64,
        proceed: bool,
        now: u64,
    ) -> PyResult<Option<Next<PyOps>>> {
        let work = Some(now.saturating_sub(started));
        match run::finish(py, &self.home.core, lane, entry, end, work, proceed, now) {
            Ok(next) => Ok(next),
            Err(ending) => {
                self.retire(py);
                self.pass_on(py)?;
                Err(ending)
            }
        }
    }

    /// Keeps the handler's place and hands up what it waits for; another slot goes on.
    fn suspend<'py>(
        slf: &Bound<'py, Self>,
        job: Box<Job>,
        yielded: Py<PyAny>,
    ) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        this.keep(slf, job)?;
        this.pass_on(py)?;
        Ok(Sent::Yielded(yielded.into_bound(py)))
    }

    fn keep(&self, slf: &Bound<'_, Self>, job: Box<Job>) -> PyResult<()> {
        let timeout = job.deadline().map(|deadline| (deadline, job.timed_out));
        self.set(State::Suspended(job));
        lock(&self.home.suspended).insert(self.id, slf.clone().unbind());
        match timeout {
            Some((deadline, false)) => Self::watch(slf, deadline),
            _ => Ok(()),
        }
    }

    /// Serves no more; another slot does, now or when there is something to do.
    fn pass_on(&self, py: Python<'_>) -> PyResult<()> {
        let seat = self.home.core.event_loop();
        if self.home.stopping.load(Ordering::Relaxed) || seat.arm(py) {
            Ok(())
        } else {
            self.home.rouse(py)
        }
    }

    /// Sleeps if there is nothing to do.
    fn rest<'py>(slf: &Bound<'py, Self>) -> PyResult<Rest<'py>> {
        let (py, this) = (slf.py(), slf.get());
        if lock(&this.home.idle).len() >= IDLE_SLOTS {
            return Ok(if this.home.core.event_loop().arm(py) {
                Rest::End
            } else {
                Rest::Again
            });
        }
        let future = this
            .home
            .event_loop
            .bind(py)
            .call_method0(intern!(py, "create_future"))?;
        block_on(&future)?;
        if !this.home.core.event_loop().arm(py) {
            return Ok(Rest::Again);
        }
        this.set(State::Idle);
        lock(&this.home.idle).push((slf.clone().unbind(), future.clone().unbind()));
        Ok(Rest::Sleep(future))
    }

    /// Ends the slot.
    fn leave<'py>(&self, py: Python<'py>) -> PyResult<Sent<'py>> {
        self.retire(py);
        Ok(Sent::Returned(py.None().into_bound(py)))
    }

    /// Ends the slot that serves; another takes its place.
    fn replace<'py>(&self, py: Python<'py>) -> PyResult<Sent<'py>> {
        self.pass_on(py)?;
        self.leave(py)
    }

    fn retire(&self, py: Python<'_>) {
        self.set(State::Away);
        let task = lock(&self.home.tasks).remove(&self.id);
        drop(task);
        let suspended = lock(&self.home.suspended).remove(&self.id);
        drop(suspended);
        if let Err(error) = self.cancel_timer(py) {
            error.write_unraisable(py, None);
        }
    }

    fn cancel_timer(&self, py: Python<'_>) -> PyResult<()> {
        let timer = lock(&self.timer).take();
        match timer {
            Some((timer, _)) => timer.call_method0(py, intern!(py, "cancel")).map(drop),
            None => Ok(()),
        }
    }

    /// Whether the task was cancelled, by the handler, for it, or because the loop ends. Such a
    /// task serves no more, so that neither the cancellation nor its count hits the next handler,
    /// and so that whoever waits for the end of a cancelled task does not wait for ever.
    #[inline]
    fn is_spent(&self, py: Python<'_>) -> PyResult<bool> {
        if self.cancels.load(Ordering::Relaxed) {
            self.ask_whether_spent(py)
        } else {
            Ok(false)
        }
    }

    /// A handler may have taken a cancellation back, as `asyncio.timeout` does.
    #[cold]
    fn ask_whether_spent(&self, py: Python<'_>) -> PyResult<bool> {
        self.cancels.store(false, Ordering::Relaxed);
        self.task()
            .call_method0(py, intern!(py, "cancelling"))?
            .is_truthy(py)
    }

    /// The next step of the handler that waits here.
    fn go_on<'py>(slf: &Bound<'py, Self>, job: Job, input: Input<'_>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        let core = &this.home.core;
        let suspended = lock(&this.home.suspended).remove(&this.id);
        drop(suspended);
        let (lane, started) = (job.lane.clone(), job.started);
        let (entry, end) = match run::resume(py, core, job, this.id, input) {
            Progress::Suspended(job, yielded) => {
                this.keep(slf, job)?;
                return Ok(Sent::Yielded(yielded.into_bound(py)));
            }
            Progress::Ended(entry, end) => (entry, end),
            Progress::Awaitable(_) => unreachable!("it was stepped"),
        };
        let now = this.now(py)?;
        let spent = this.is_spent(py)?;
        // From here on it serves, if no other slot does.
        let serves = core.event_loop().disarm(py);
        this.finish_last(py, &lane, entry, end, started, now)?;
        if spent {
            return if serves {
                this.replace(py)
            } else {
                this.leave(py)
            };
        }
        if serves || this.home.stopping.load(Ordering::Relaxed) {
            return Self::serve(slf);
        }
        Self::stand_by(slf)
    }

    /// Without taking the next.
    #[inline(never)]
    fn finish_last(
        &self,
        py: Python<'_>,
        lane: &PyLane,
        entry: Entry<PyOps>,
        end: End,
        started: u64,
        now: u64,
    ) -> PyResult<()> {
        let next = self.finish(py, lane, entry, end, started, false, now)?;
        debug_assert!(next.is_none());
        Ok(())
    }

    /// Sleeps, or ends, without having served.
    fn stand_by<'py>(slf: &Bound<'py, Self>) -> PyResult<Sent<'py>> {
        let (py, this) = (slf.py(), slf.get());
        if lock(&this.home.idle).len() >= IDLE_SLOTS {
            return this.leave(py);
        }
        let future = this
            .home
            .event_loop
            .bind(py)
            .call_method0(intern!(py, "create_future"))?;
        block_on(&future)?;
        this.set(State::Idle);
        lock(&this.home.idle).push((slf.clone().unbind(), future.clone().unbind()));
        Ok(Sent::Yielded(future))
    }

    /// Looks after the deadline of the handler that waits here, with one timer that is armed
    /// anew only when it has run out, or would run out too late.
    fn watch(slf: &Bound<'_, Self>, deadline: u64) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        if lock(&this.timer)
            .as_ref()
            .is_some_and(|(_, armed)| *armed <= deadline)
        {
            return Ok(());
        }
        this.cancel_timer(py)?;
        if this.home.core.clock.is_stopped() {
            // Whoever moves it looks.
            return Ok(());
        }
        let left = deadline.saturating_sub(this.now(py)?) as f64 / 1e9;
        let on_timer = slf.getattr(intern!(py, "_on_timer"))?;
        let timer = this
            .home
            .event_loop
            .bind(py)
            .call_method1(intern!(py, "call_later"), (left, on_timer))?;
        *lock(&this.timer) = Some((timer.unbind(), deadline));
        Ok(())
    }
}

impl Coroutine for Slot {
    fn step<'py>(slf: &Bound<'py, Self>, value: &Bound<'py, PyAny>) -> PyResult<Sent<'py>> {
        let state = std::mem::replace(&mut *lock(&slf.get().state), State::Away);
        // Once for all the events of this turn: handlers and payloads are released in it.
        native::attached(slf.py(), || match state {
            State::Serving | State::Idle => Self::serve(slf),
            State::Suspended(job) => Self::go_on(slf, *job, Input::Value(value)),
            State::Away => Err(native::reused("ironbus slot")),
        })
    }
}

#[pymethods]
impl Slot {
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
        let (py, this) = (slf.py(), slf.get());
        let error = native::thrown(kind, value, traceback)?;
        let state = std::mem::replace(&mut *lock(&this.state), State::Away);
        let stepped = match state {
            State::Suspended(job) => Self::go_on(slf, *job, Input::Error(&error)),
            State::Serving | State::Idle => {
                // Somebody cancels all tasks of the loop. The slot ends; if it was the one that
                // serves, another takes its place.
                let slept = {
                    let mut idle = lock(&this.home.idle);
                    let at = idle.iter().position(|(slot, _)| slot.is(slf));
                    at.map(|at| idle.remove(at))
                };
                this.retire(py);
                if slept.is_none() {
                    this.pass_on(py)?;
                }
                Err(PyErr::from_value(error))
            }
            State::Away => Err(PyErr::from_value(error)),
        };
        native::yield_or_stop(py, stepped?)
    }

    fn close(slf: &Bound<'_, Self>) -> PyResult<()> {
        let this = slf.get();
        let state = std::mem::replace(&mut *lock(&this.state), State::Away);
        if let State::Suspended(job) = state {
            job.iterator
                .call_method0(slf.py(), intern!(slf.py(), "close"))?;
            if let Some(work) = &job.work {
                // Nothing of it is wanted.
                drop(work.end());
            }
            let now = this.now(slf.py())?;
            this.home.core.bus.put_back(&job.lane, job.entry, now);
        }
        this.retire(slf.py());
        Ok(())
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
        intern!(py, "ironbus_slot")
    }

    #[getter]
    fn __qualname__<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        intern!(py, "ironbus_slot")
    }

    /// The awaitable of the handler that waits here, for tools that show where tasks are.
    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match &*lock(&self.state) {
            State::Suspended(job) => Some(job.iterator.clone_ref(py)),
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
        matches!(*lock(&self.state), State::Away)
    }

    // The task that has ended still refers to its coroutine, and that to it. There is no `__clear__`:
    // the task has one.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.task.get())
    }

    /// The task is being cancelled.
    fn _note_cancel(&self) {
        self.cancels.store(true, Ordering::Relaxed);
    }

    fn _on_timer(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, this) = (slf.py(), slf.get());
        this.cancel_timer(py)?;
        let now = this.now(py)?;
        let again = match &mut *lock(&this.state) {
            State::Suspended(job) => match job.deadline() {
                Some(deadline) if deadline > now => Some(deadline),
                Some(_) if !job.timed_out && !job.recalled => {
                    job.timed_out = true;
                    None
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        };
        match again {
            Some(deadline) => Self::watch(slf, deadline),
            None => this
                .task()
                .call_method0(py, intern!(py, "cancel"))
                .map(drop),
        }
    }
}
