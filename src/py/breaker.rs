//! The native half of `CircuitBreaker`: the engine's breaker, a clock, and those who
//! want to know when the state changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::once::Once;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyBaseException, PyRuntimeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::clock::{Clock, monotonic_ns, wall_at};
use super::errors::Error;
use super::failure::keep_traceback;
use super::policy::{outcome, read_config, seconds};
use crate::engine::breaker::{self, Change, Permit, State, Transition};
use crate::engine::clock::Nanos;
use crate::engine::sync::lock;

/// See the module. Subclassed by `ironbus.CircuitBreaker`, which is what people see.
#[pyclass(frozen, subclass, weakref, module = "ironbus._core")]
pub struct Breaker {
    inner: OnceLock<Inner>,
}

struct Inner {
    breaker: Arc<breaker::Breaker>,
    clock: Clock,
    /// The clock of a bus that it serves, which tells the time as long as that bus is there: the same
    /// one, unless a test has stopped it or moved it ahead.
    leader: Mutex<Weak<Clock>>,
    name: String,
    listeners: Arc<Listeners>,
}

impl Breaker {
    /// The engine's breaker, for a lane, whose clock must be this one's.
    pub fn shared(&self, py: Python<'_>, clock: &Arc<Clock>) -> PyResult<Arc<breaker::Breaker>> {
        let inner = self.inner()?;
        let same = match (inner.clock.injected(), clock.injected()) {
            (None, None) => true,
            (Some(own), Some(other)) => own.bind(py).eq(other)?,
            _ => false,
        };
        if same {
            let mut leader = lock(&inner.leader);
            if leader.strong_count() == 0 {
                *leader = Arc::downgrade(clock);
            }
            return Ok(inner.breaker.clone());
        }
        let text =
            "breaker must have the clock of the bus; give both the same clock=, or neither one";
        Err(Error::InvalidOption.exception(py, "breaker", text))
    }

    fn inner(&self) -> PyResult<&Inner> {
        self.inner.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "CircuitBreaker.__init__() was not called; call super().__init__() first",
            )
        })
    }
}

/// The state of a breaker at one moment.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Saved(breaker::Circuit);

/// The name of a state, which is the value of its `CircuitState`.
pub fn state_name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half_open",
    }
}

/// The member of `CircuitState`.
fn state_member<'py>(py: Python<'py>, state: State) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: Once<Py<PyAny>> = Once::new();
    let class = CLASS.import(py, "ironbus._breaker", "CircuitState")?;
    class.call1((state_name(state),))
}

#[pymethods]
impl Breaker {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: OnceLock::new(),
        }
    }

    /// Sets the breaker up. Name and clock are checked by the caller.
    fn _configure(
        &self,
        py: Python<'_>,
        name: String,
        config: &Bound<'_, PyAny>,
        clock: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let clock = Clock::new(clock);
        let breaker = breaker::Breaker::new(read_config(config)?, clock.now(py)?);
        let listeners = Arc::new(Listeners::new(name.clone()));
        // The listeners live as long as this object, whoever else uses the breaker.
        let weak = Arc::downgrade(&listeners);
        breaker.watch(move |change| {
            if let (Change::State(transition), Some(listeners)) = (change, weak.upgrade()) {
                // An interpreter that ends has nobody left to tell.
                let _ = Python::try_attach(|py| listeners.tell(py, transition));
            }
        });
        let inner = Inner {
            breaker: Arc::new(breaker),
            clock,
            leader: Mutex::default(),
            name,
            listeners,
        };
        self.inner
            .set(inner)
            .map_err(|_| PyRuntimeError::new_err("CircuitBreaker.__init__() was called before"))
    }

    /// Goes by other rules from now on.
    fn _reconfigure(&self, config: &Bound<'_, PyAny>) -> PyResult<()> {
        self.inner()?.breaker.set_config(read_config(config)?);
        Ok(())
    }

    /// Leave to call, to be given back to `_report`. Raises `CircuitOpenError`.
    fn _acquire(&self, py: Python<'_>) -> PyResult<u64> {
        let inner = self.inner()?;
        let now = inner.now(py)?;
        match inner.breaker.try_acquire(now) {
            Ok(permit) => Ok(permit.into_number()),
            Err(refused) => Err(inner.refusal(py, refused.retry_at, now)),
        }
    }

    /// Says how a call went: well, or with this exception.
    #[pyo3(signature = (permit, error))]
    fn _report(
        &self,
        py: Python<'_>,
        permit: u64,
        error: Option<&Bound<'_, PyBaseException>>,
    ) -> PyResult<()> {
        let inner = self.inner()?;
        let outcome = outcome(py, error)?;
        let now = inner.now(py);
        // A clock that fails has not moved; the place of a probe is given back all the same.
        let at = match &now {
            Ok(now) => *now,
            Err(_) => inner.breaker.snapshot().changed_at,
        };
        inner
            .breaker
            .report(Permit::from_number(permit), outcome, at);
        now.map(drop)
    }

    /// Goes to the state with this name.
    fn _force(&self, py: Python<'_>, state: &str) -> PyResult<()> {
        let state = match state {
            "closed" => State::Closed,
            "open" => State::Open,
            "half_open" => State::HalfOpen,
            _ => {
                let text = "state must be CircuitState.CLOSED, OPEN or HALF_OPEN";
                return Err(Error::InvalidOption.exception(py, "state", text));
            }
        };
        let inner = self.inner()?;
        inner.breaker.force(state, inner.now(py)?);
        Ok(())
    }

    /// All of its state, for `_restore`.
    fn _save(&self) -> PyResult<Saved> {
        Ok(Saved(self.inner()?.breaker.save()))
    }

    /// Goes back to a state that was saved.
    fn _restore(&self, py: Python<'_>, saved: &Saved) -> PyResult<()> {
        let inner = self.inner()?;
        inner.breaker.restore(saved.0.clone(), inner.now(py)?);
        Ok(())
    }

    /// State, counts and times.
    fn _snapshot<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let inner = self.inner()?;
        let snapshot = inner.breaker.snapshot();
        let report = PyDict::new(py);
        report.set_item("state", state_member(py, snapshot.state)?)?;
        report.set_item("failure_count", snapshot.failure_count)?;
        report.set_item("success_count", snapshot.success_count)?;
        let last_failure = snapshot.last_failure.map(|at| inner.time(at));
        report.set_item("last_failure", last_failure)?;
        report.set_item("last_state_change", inner.time(snapshot.changed_at))?;
        Ok(report)
    }

    /// Has a listener told of each change from now on.
    fn _add_listener(&self, listener: Py<PyAny>) -> PyResult<()> {
        lock(&self.inner()?.listeners.list).push(listener);
        Ok(())
    }

    /// Tells an equal listener no more. False: there is none.
    fn _remove_listener(&self, py: Python<'_>, listener: &Bound<'_, PyAny>) -> PyResult<bool> {
        let listeners = &self.inner()?.listeners;
        let list = listeners.copy(py);
        for other in &list {
            if other.bind(py).eq(listener)? {
                let gone = {
                    let mut list = lock(&listeners.list);
                    let at = list.iter().position(|each| each.is(other));
                    at.map(|at| list.remove(at))
                };
                return Ok(gone.is_some());
            }
        }
        Ok(false)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(inner) = self.inner.get() else {
            return Ok(());
        };
        if let Some(clock) = inner.clock.injected() {
            visit.call(clock)?;
        }
        // Nobody who is attached holds the lock over a collection; if someone did,
        // visiting nothing is safe: the objects only seem to be in use from outside.
        if let Ok(list) = inner.listeners.list.try_lock() {
            list.iter().try_for_each(|listener| visit.call(listener))?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        if let Some(inner) = self.inner.get() {
            let list = std::mem::take(&mut *lock(&inner.listeners.list));
            drop(list);
        }
    }
}

impl Inner {
    fn now(&self, py: Python<'_>) -> PyResult<Nanos> {
        let leader = lock(&self.leader).upgrade();
        match leader {
            Some(clock) => clock.now(py),
            None => self.clock.now(py),
        }
    }

    /// A moment of the clock for people: Unix time, or the injected clock's own.
    fn time(&self, at: Nanos) -> f64 {
        if self.clock.injected().is_some() {
            return seconds(at);
        }
        let leader = lock(&self.leader).upgrade();
        if leader.is_some_and(|clock| !clock.is_machines()) {
            // It may be far ahead of the machine's, which knows no distance for then.
            let machine = monotonic_ns();
            let ahead = seconds(at) - seconds(machine);
            return ((wall_at(machine) + ahead) * 1e3).round() / 1e3;
        }
        // The distance of the clocks is that of now, and known only from now on. It is measured
        // again and again; without the last digits, the same moment is the same number.
        wall_at(monotonic_ns());
        (wall_at(at) * 1e3).round() / 1e3
    }

    fn refusal(&self, py: Python<'_>, retry_at: Option<Nanos>, now: Nanos) -> PyErr {
        let retry_after = retry_at.map(|at| seconds(at.saturating_sub(now)));
        let made = Error::CircuitOpenError
            .class(py)
            .and_then(|class| class.call1((&self.name, retry_after)));
        made.map_or_else(|error| error, PyErr::from_value)
    }
}

/// Those who are told of changes, one change after the other, in their order.
struct Listeners {
    name: String,
    list: Mutex<Vec<Py<PyAny>>>,
    news: Mutex<News>,
}

/// Threads may come with their changes in another order than they made them.
struct News {
    next: u64,
    waiting: BTreeMap<u64, Transition>,
    telling: bool,
}

impl News {
    /// What is told next, by whoever is telling.
    fn take(&mut self) -> Option<Transition> {
        let next = self.waiting.remove(&self.next);
        self.next += u64::from(next.is_some());
        self.telling = next.is_some();
        next
    }
}

impl Listeners {
    fn new(name: String) -> Self {
        Self {
            name,
            list: Mutex::default(),
            news: Mutex::new(News {
                next: 1,
                waiting: BTreeMap::new(),
                telling: false,
            }),
        }
    }

    fn copy(&self, py: Python<'_>) -> Vec<Py<PyAny>> {
        let list = lock(&self.list);
        list.iter().map(|each| each.clone_ref(py)).collect()
    }

    /// Tells of a change; or has it told by the thread that is telling of an earlier one, which
    /// may be this one, in a listener.
    fn tell(&self, py: Python<'_>, transition: Transition) {
        {
            let mut news = lock(&self.news);
            news.waiting.insert(transition.generation, transition);
            if std::mem::replace(&mut news.telling, true) {
                return;
            }
        }
        while let Some(transition) = { lock(&self.news).take() } {
            if let Err(error) = self.tell_one(py, transition) {
                error.write_unraisable(py, None);
            }
        }
    }

    fn tell_one(&self, py: Python<'_>, transition: Transition) -> PyResult<()> {
        static CHANGED: Once<Py<PyAny>> = Once::new();
        static FAILED: Once<Py<PyAny>> = Once::new();
        let old = state_member(py, transition.from)?;
        let new = state_member(py, transition.to)?;
        let changed = CHANGED.import(py, "ironbus._log", "circuit_changed")?;
        changed.call1((&self.name, &old, &new))?;
        for listener in self.copy(py) {
            if let Err(error) = listener.bind(py).call1((&old, &new)) {
                keep_traceback(py, &error);
                let failed = FAILED.import(py, "ironbus._log", "listener_failed")?;
                failed.call1((&self.name, error.value(py)))?;
            }
        }
        Ok(())
    }
}
