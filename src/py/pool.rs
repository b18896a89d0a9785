//! Where sync handlers run: a bounded number of threads that are hired when there is
//! work and nobody is idle, and go when there has been none for a while.
//!
//! A worker stays attached to the interpreter from event to event. It detaches to wait,
//! and four times a millisecond for a moment, so that the event loop wakes up within one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::once::Once;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::clock::monotonic_ns;
use super::context::Base;
use super::core::{Core, TURN};
use super::current::{self, Active, Desk, Running};
use super::ops::PyLane;
use super::run::{self, Progress};
use crate::engine::bus::Next;
use crate::engine::sync::lock;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);
/// How long a worker stays attached at most, in nanoseconds. Handlers written in Python are made to
/// let go by the interpreter, after the switch interval; this is for those that are not, and for the
/// thread that cannot ask because it was on this one's processor.
const HOLD: u64 = TURN / 2;
/// Letting go takes longer than this if a thread waits and is woken, in nanoseconds.
const WAKES: u64 = 1_000;
/// Long enough for that thread to be there before this one is back. (Half as long again is added by
/// the system.)
const PAUSE: Duration = Duration::from_micros(40);
/// Threads beyond the limit that stand in for ones that wait for the bus.
const STAND_INS: usize = 64;

/// See the module.
pub struct Pool {
    /// Only ever locked by who is attached to the interpreter, so that nobody holds it at a fork.
    state: Mutex<State>,
    workers: usize,
    /// Threads that wait, inside a handler, for the bus: others stand in for them.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    ready: VecDeque<PyLane>,
    /// Threads that wait for work, the last to come last.
    idle: Vec<(u64, Thread)>,
    crew: Option<Arc<Crew>>,
    /// All threads, of former starts too: a handler that cannot be stopped keeps its place.
    threads: usize,
    hired: u64,
    /// Of all threads, by number: what each is in the middle of.
    desks: HashMap<u64, Arc<Desk>>,
}

impl State {
    /// Has all idle threads look whether they are wanted.
    fn wake_all(&mut self) {
        self.idle.drain(..).for_each(|(_, idle)| idle.unpark());
    }

    fn is_of(&self, crew: &Crew) -> bool {
        self.crew
            .as_ref()
            .is_some_and(|current| std::ptr::eq(&**current, crew))
    }
}

/// The threads of one start.
pub struct Crew {
    core: Arc<Core>,
    /// The bus's at this start: see [`Core::life`].
    life: u64,
    context: Base,
    threads: Mutex<HashMap<u64, Py<PyAny>>>,
    /// Whether one that let go is on its way back.
    returning: Mutex<bool>,
    returned: Condvar,
}

impl Pool {
    /// A pool of at most so many threads; it has none yet.
    pub fn new(workers: usize) -> Self {
        Self {
            state: Mutex::default(),
            workers,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Puts the lane in line, and sees to it that there is a thread for it.
    pub fn schedule(self: &Arc<Self>, lane: PyLane) {
        let hire = {
            let mut state = lock(&self.state);
            state.ready.push_back(lane);
            self.staff(&mut state)
        };
        if let Some((crew, id)) = hire {
            self.hire(crew, id);
        }
    }

    /// Wakes an idle thread for the work that is in line, or makes place for a new one.
    fn staff(&self, state: &mut State) -> Option<(Arc<Crew>, u64)> {
        let crew = state.crew.clone()?;
        if let Some((_, idle)) = state.idle.pop() {
            idle.unpark();
            return None;
        }
        if state.threads >= self.most_threads() {
            return None;
        }
        state.threads += 1;
        state.hired += 1;
        Some((crew, state.hired))
    }

    /// How many threads there may be now.
    pub fn most_threads(&self) -> usize {
        self.workers + self.waiting.load(Ordering::Relaxed).min(STAND_INS)
    }

    /// The runs of the handlers that the threads are in the middle of.
    pub fn running(&self, py: Python<'_>) -> Vec<Running> {
        let state = lock(&self.state);
        let desks = state.desks.values();
        desks.filter_map(|desk| desk.look(py)).collect()
    }

    fn hire(self: &Arc<Self>, crew: Arc<Crew>, id: u64) {
        static THREAD: Once<Py<PyAny>> = Once::new();
        Python::attach(|py| {
            let started = (|| {
                let worker = Bound::new(
                    py,
                    Worker {
                        pool: self.clone(),
                        crew: crew.clone(),
                        id,
                    },
                )?;
                let options = PyDict::new(py);
                options.set_item("target", worker)?;
                options.set_item("name", format!("ironbus-worker-{id}"))?;
                options.set_item("daemon", true)?;
                let thread = THREAD
                    .import(py, "threading", "Thread")?
                    .call((), Some(&options))?;
                lock(&crew.threads).insert(id, thread.clone().unbind());
                thread.call_method0("start").map(drop)
            })();
            if let Err(error) = started {
                // Its lane stays in line for the threads that there are, or for the next one hired.
                self.not_hired(&crew, id);
                error.write_unraisable(py, None);
            }
        });
    }

    /// A thread has ended. Its place may be what a lane waits for.
    fn gone(self: &Arc<Self>, crew: &Crew, id: u64) {
        let hire = {
            let mut state = lock(&self.state);
            state.desks.remove(&id);
            // Threads of an earlier crew do not count.
            if state.is_of(crew) {
                state.threads -= 1;
            }
            if state.ready.is_empty() {
                None
            } else {
                self.staff(&mut state)
            }
        };
        let thread = lock(&crew.threads).remove(&id);
        drop(thread);
        if let Some((crew, id)) = hire {
            self.hire(crew, id);
        }
    }

    /// A thread could not be started.
    fn not_hired(&self, crew: &Crew, id: u64) {
        {
            let mut state = lock(&self.state);
            if state.is_of(crew) {
                state.threads -= 1;
            }
        }
        let thread = lock(&crew.threads).remove(&id);
        drop(thread);
    }

    /// Begins to serve.
    pub fn open(self: &Arc<Self>, py: Python<'_>, core: &Arc<Core>) -> PyResult<()> {
        let context = Base::current(py)?;
        let crew = Arc::new(Crew {
            core: core.clone(),
            life: core.life(),
            context,
            threads: Mutex::default(),
            returning: Mutex::default(),
            returned: Condvar::new(),
        });
        let hired: Vec<_> = {
            let mut state = lock(&self.state);
            // Threads of an earlier crew serve no more, or did not survive a fork: they go home, if they
            // are there, and do not count.
            state.crew = Some(crew);
            state.threads = 0;
            state.wake_all();
            let lanes = state.ready.len();
            (0..lanes).map_while(|_| self.staff(&mut state)).collect()
        };
        for (crew, id) in hired {
            self.hire(crew, id);
        }
        Ok(())
    }

    /// In a child of the process that had the threads: they are not here.
    pub fn forked(&self) {
        self.waiting.store(0, Ordering::Relaxed);
        lock(&self.state).desks.clear();
    }

    /// Begins no more work. The threads end after the handler that each is in; they are returned.
    pub fn close(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let crew = {
            let mut state = lock(&self.state);
            let crew = state.crew.take();
            state.wake_all();
            crew
        };
        let threads = PyList::empty(py);
        if let Some(crew) = crew {
            let all: Vec<_> = lock(&crew.threads)
                .values()
                .map(|thread| thread.clone_ref(py))
                .collect();
            for thread in all {
                threads.append(thread)?;
            }
        }
        Ok(threads.unbind())
    }

    /// Runs `wait`, in which this thread's handler waits for the bus, while another stands in.
    pub fn while_waiting<R>(self: &Arc<Self>, wait: impl FnOnce() -> R) -> R {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let hire = {
            let mut state = lock(&self.state);
            if state.ready.is_empty() {
                None
            } else {
                self.staff(&mut state)
            }
        };
        if let Some((crew, id)) = hire {
            self.hire(crew, id);
        }
        let result = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// The next lane for a worker; none when it should go. `attached` is since when it is.
    fn take(
        &self,
        py: Python<'_>,
        crew: &Arc<Crew>,
        id: u64,
        attached: &mut u64,
    ) -> Option<PyLane> {
        let next = |state: &mut State| match &state.crew {
            Some(current) if Arc::ptr_eq(current, crew) => Some(state.ready.pop_front()),
            _ => None,
        };
        // Attached, if there is something at once.
        match next(&mut lock(&self.state)) {
            Some(Some(lane)) => return Some(lane),
            Some(None) => {}
            None => return None,
        }
        let until = Instant::now() + IDLE;
        loop {
            {
                let mut state = lock(&self.state);
                let lane = next(&mut state);
                state.idle.retain(|(other, _)| *other != id);
                match lane {
                    Some(None) if Instant::now() < until => {
                        state.idle.push((id, thread::current()));
                    }
                    lane => return lane.flatten(),
                }
            }
            // Under no lock: a fork meanwhile must not leave one taken in the child.
            py.detach(|| thread::park_timeout(until.saturating_duration_since(Instant::now())));
            *attached = monotonic_ns();
        }
    }

    /// Whether other lanes wait for a thread.
    fn is_busy(&self) -> bool {
        !lock(&self.state).ready.is_empty()
    }
}

impl Crew {
    /// Gives other threads the interpreter. One that waits for it must get it: if this thread came
    /// back first, the other's wait would begin anew, and with it the time after which it may insist.
    ///
    /// One worker at a time comes back: of all that wait, a loop's thread is one of two then, and not
    /// of as many as there are workers.
    fn let_go(&self, py: Python<'_>) {
        let before = monotonic_ns();
        py.detach(|| {
            if monotonic_ns() - before > WAKES {
                std::thread::sleep(PAUSE);
            } else {
                std::thread::yield_now();
            }
            let returning = lock(&self.returning);
            let free = self.returned.wait_while(returning, |returning| *returning);
            *free.unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        });
        *lock(&self.returning) = false;
        self.returned.notify_one();
    }
}

/// A thread's work.
#[pyclass(frozen)]
pub struct Worker {
    pool: Arc<Pool>,
    crew: Arc<Crew>,
    id: u64,
}

#[pymethods]
impl Worker {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        let result = self.work(py);
        self.pool.gone(&self.crew, self.id);
        result
    }
}

impl Worker {
    fn work(&self, py: Python<'_>) -> PyResult<()> {
        let desk = Arc::new(Desk::default());
        lock(&self.pool.state).desks.insert(self.id, desk.clone());
        let active = Active::on_thread(self.crew.core.clone(), self.crew.life, desk);
        current::during(py, &active, || self.work_as(py, &active))
    }

    fn work_as(&self, py: Python<'_>, active: &Active) -> PyResult<()> {
        let core = &self.crew.core;
        let mut attached = monotonic_ns();
        while let Some(lane) = self.pool.take(py, &self.crew, self.id, &mut attached) {
            let mut now = core.now(py)?;
            let quantum = monotonic_ns() + TURN;
            let mut next = core.bus.take(&lane, now);
            while let Some(Next {
                entry,
                token_wanted,
            }) = next
            {
                if token_wanted {
                    next = run::with_token(py, core, &lane, entry, now);
                    continue;
                }
                let started = now;
                match run::begin(py, active, &lane, entry, now, &self.crew.context, false) {
                    Progress::Ended(entry, end) => {
                        let at = monotonic_ns();
                        if at - attached > HOLD {
                            self.crew.let_go(py);
                            attached = monotonic_ns();
                        }
                        now = core.clock.at(py, at)?;
                        let proceed = self.is_wanted() && (at < quantum || !self.pool.is_busy());
                        let work = now.saturating_sub(started);
                        let end = run::in_time(py, &lane, end, work);
                        let finished =
                            run::finish(py, core, &lane, entry, end, Some(work), proceed, now);
                        next = finished?;
                    }
                    Progress::Awaitable(job) => {
                        core.event_loop().adopt(job);
                        next = None;
                    }
                    Progress::Suspended(..) => unreachable!("threads do not step"),
                }
            }
        }
        Ok(())
    }

    fn is_wanted(&self) -> bool {
        lock(&self.pool.state)
            .crew
            .as_ref()
            .is_some_and(|crew| Arc::ptr_eq(crew, &self.crew))
    }
}
