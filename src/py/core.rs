//! The bus behind the Python object: the engine, the executors and the settings.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::alarm::LoopAlarm;
use super::cell::GilCell;
use super::clock::Clock;
use super::current::{Desk, Running};
use super::durable::Journaled;
use super::errors::Error;
use super::event_loop::LoopSeat;
use super::letters::LetterSink;
use super::ops::{PyLane, PyOps, PySeat};
use super::pool::Pool;
use super::process;
use super::routes::Routes;
use crate::engine::bus::Bus;
use crate::engine::idempotency::Idempotency;
use crate::engine::sync::lock;

/// What one publish in this many does at the latest: give the loop a turn.
const PUBLISHES_PER_TURN: u32 = 256;
/// How long publishes and handlers may go on before the loop gets a turn, in nanoseconds.
pub const TURN: u64 = 500_000;

/// What an `EventBus` was told when it was made.
pub struct Settings {
    /// Queued events per subscription and level.
    pub max_queue_size: usize,
    /// What happens when a level is full.
    pub overflow: crate::engine::lane::Overflow,
    /// Events with equal type and data are duplicates.
    pub by_content: bool,
    /// How long a key is remembered, in nanoseconds.
    pub ttl: u64,
    /// How many keys are remembered.
    pub max_keys: usize,
    /// Handlers run in the context of their publisher.
    pub publisher_context: bool,
    /// Threads for sync handlers.
    pub workers: usize,
}

/// See the module.
pub struct Core {
    /// The engine.
    pub bus: Bus<PyOps>,
    /// What it was told.
    pub settings: Settings,
    /// Where its events are kept, of a bus with a path.
    pub journaled: Option<Journaled>,
    /// The clock of deadlines, ages and latencies.
    pub clock: Arc<Clock>,
    /// Where the spread of delays comes from: a callable, or the machine.
    random: Option<Py<PyAny>>,
    /// What a test has put in its place.
    random_stand_in: GilCell<Option<Py<PyAny>>>,
    /// Told by a test to be told of failures.
    failure_watcher: GilCell<Option<Py<PyAny>>>,
    /// Where events of the last types go.
    pub routes: Routes,
    /// Async handlers.
    pub loop_seat: Arc<PySeat>,
    /// Sync handlers.
    pub pool_seat: Arc<PySeat>,
    /// Lanes that are paused because their handler ended the program.
    held: Mutex<Vec<PyLane>>,
    /// What the loop is in the middle of.
    pub loop_desk: Desk,
    contexts_wanted: AtomicBool,
    running: AtomicBool,
    /// The process in which the bus was started.
    generation: AtomicU32,
    started: AtomicU64,
    /// How often it was stopped.
    halts: AtomicU64,
    /// How long it was started before that, in all.
    ran: AtomicU64,
    /// Publishes since the loop had its last turn, and when that was.
    publishes: AtomicU32,
    last_turn: AtomicU64,
}

impl AsRef<Bus<PyOps>> for Core {
    fn as_ref(&self) -> &Bus<PyOps> {
        &self.bus
    }
}

impl Core {
    /// A bus that is not started. Nothing outside the object changes by this.
    pub fn new(
        settings: Settings,
        clock: Arc<Clock>,
        random: Option<Py<PyAny>>,
        sink: LetterSink,
        journaled: Option<Journaled>,
    ) -> Arc<Self> {
        let keys = Idempotency::new(settings.ttl, settings.max_keys, seed());
        let loop_seat = Arc::new(PySeat::Loop(Arc::new(LoopSeat::default())));
        let alarm = LoopAlarm(loop_seat.clone());
        let sink = Arc::new(sink);
        let bus = Bus::new(settings.max_queue_size, keys, alarm, sink.clone());
        let workers = settings.workers;
        let core = Arc::new(Self {
            bus,
            settings,
            journaled,
            clock,
            random,
            random_stand_in: GilCell::new(None),
            failure_watcher: GilCell::new(None),
            routes: Routes::default(),
            loop_seat,
            pool_seat: Arc::new(PySeat::Pool(Arc::new(Pool::new(workers)))),
            held: Mutex::default(),
            loop_desk: Desk::default(),
            contexts_wanted: AtomicBool::new(false),
            running: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            started: AtomicU64::new(0),
            halts: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            publishes: AtomicU32::new(0),
            last_turn: AtomicU64::new(0),
        });
        sink.belongs_to(&core);
        core
    }

    /// Starts nothing more in a lane whose handler ended the program.
    pub fn hold(&self, lane: &PyLane) {
        lock(&self.held).push(lane.clone());
        self.bus.pause(lane, true);
    }

    /// Whether a handler ended the program since the last start.
    pub fn is_ending(&self) -> bool {
        !lock(&self.held).is_empty()
    }

    /// At a new start, lanes that were held go on.
    pub fn release_held(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        held.iter().for_each(|lane| self.bus.pause(lane, false));
    }

    /// The executor of async handlers.
    pub fn event_loop(&self) -> &Arc<LoopSeat> {
        match &*self.loop_seat {
            PySeat::Loop(seat) => seat,
            _ => unreachable!("made so above"),
        }
    }

    /// The executor of sync handlers.
    pub fn pool(&self) -> &Arc<Pool> {
        match &*self.pool_seat {
            PySeat::Pool(pool) => pool,
            _ => unreachable!("made so above"),
        }
    }

    /// Whether a lane is one of this bus's.
    pub fn owns(&self, lane: &PyLane) -> bool {
        Arc::ptr_eq(lane.seat(), &self.loop_seat) || Arc::ptr_eq(lane.seat(), &self.pool_seat)
    }

    /// Whether a subscription's handler runs in its publisher's context, by its own option or by
    /// the bus's. If so, publishers leave theirs from now on.
    pub fn in_publishers_context(&self, own: Option<bool>) -> bool {
        let wanted = own.unwrap_or(self.settings.publisher_context);
        if wanted {
            self.contexts_wanted.store(true, Ordering::Relaxed);
        }
        wanted
    }

    /// Whether publishers leave their context.
    #[inline]
    pub fn wants_contexts(&self) -> bool {
        self.contexts_wanted.load(Ordering::Relaxed)
    }

    /// A number from 0.0 up to 1.0.
    pub fn random(&self, py: Python<'_>) -> f64 {
        let stand_in = own(py, &self.random_stand_in);
        let Some(random) = stand_in.as_ref().or(self.random.as_ref()) else {
            return fastrand::f64();
        };
        let number = random.bind(py).call0().and_then(|number| number.extract());
        number.unwrap_or_else(|error: PyErr| {
            // The retry comes all the same, only not spread.
            error.write_unraisable(py, Some(random.bind(py)));
            1.0
        })
    }

    /// Who is told of failures beside the log.
    pub fn failure_watcher(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        own(py, &self.failure_watcher)
    }

    /// Has a test told of failures, or none. Returns who was told before.
    pub fn watch_failures(&self, py: Python<'_>, watcher: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        self.failure_watcher.replace(py, watcher)
    }

    /// Spreads delays by these numbers, for a test, or by its own. Returns what was in their place.
    pub fn replace_random(&self, py: Python<'_>, random: Option<Py<PyAny>>) -> Option<Py<PyAny>> {
        self.random_stand_in.replace(py, random)
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.random)?;
        self.random_stand_in.visit(visit, |it| visit.call(it))?;
        self.failure_watcher.visit(visit, |it| visit.call(it))
    }

    /// Now, on the bus's clock.
    #[inline]
    pub fn now(&self, py: Python<'_>) -> PyResult<u64> {
        self.clock.now(py)
    }

    /// Whether the bus is started, and in this process.
    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Says that the bus is started, or is not.
    pub fn set_running(&self, running: bool, now: u64) {
        self.ran.fetch_add(self.uptime(now), Ordering::Relaxed);
        self.generation
            .store(process::generation(), Ordering::Relaxed);
        self.started.store(now, Ordering::Relaxed);
        self.running.store(running, Ordering::Release);
    }

    /// The bus begins no more work. What an executor was made for by then is another life of the bus.
    pub fn halt(&self) {
        self.bus.close();
        self.halts.fetch_add(1, Ordering::AcqRel);
    }

    /// Which life of the bus this is: how often it was stopped before.
    pub fn life(&self) -> u64 {
        self.halts.load(Ordering::Acquire)
    }

    /// For how long it has been started; 0 while it is not.
    pub fn uptime(&self, now: u64) -> u64 {
        if self.is_running() {
            now.saturating_sub(self.started.load(Ordering::Relaxed))
        } else {
            0
        }
    }

    /// For how long it has been started in all.
    pub fn ran(&self, now: u64) -> u64 {
        self.ran.load(Ordering::Relaxed) + self.uptime(now)
    }

    /// The runs of all handlers that have not ended, those on threads first; and how many those are.
    pub fn at_work(&self, py: Python<'_>) -> (Vec<Running>, usize) {
        if self.check_process(py).is_err() {
            // They run in the parent of this process.
            return (Vec::new(), 0);
        }
        let mut runs = self.pool().running(py);
        let on_threads = runs.len();
        runs.extend(self.loop_desk.look(py));
        if let Some(home) = self.event_loop().home() {
            runs.extend(home.waiting(py));
        }
        (runs, on_threads)
    }

    /// In a child of the process that started the bus, its threads and its loop do not exist.
    #[inline]
    pub fn check_process(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_running() && self.generation.load(Ordering::Relaxed) != process::generation() {
            return Err(Error::Forked.exception(
                py,
                "",
                "this bus was started by a parent of this process and does not run in this one; call start() here first",
            ));
        }
        Ok(())
    }

    /// Whether it is time for a publisher, who has published so many more, to give the loop a turn.
    #[inline]
    pub fn turn_is_due(&self, publishes: usize, now: u64) -> bool {
        let before = self.publishes.load(Ordering::Relaxed);
        if before == 0 {
            // The time counts from the first publish: one after a pause has kept nobody waiting.
            self.last_turn.store(now, Ordering::Relaxed);
        }
        let publishes = before.saturating_add(publishes as u32);
        self.publishes.store(publishes, Ordering::Relaxed);
        publishes >= PUBLISHES_PER_TURN
            || now.saturating_sub(self.last_turn.load(Ordering::Relaxed)) > TURN
    }

    /// The loop has had a turn.
    #[inline]
    pub fn turn_was_given(&self, now: u64) {
        self.publishes.store(0, Ordering::Relaxed);
        self.last_turn.store(now, Ordering::Relaxed);
    }
}

fn own(py: Python<'_>, cell: &GilCell<Option<Py<PyAny>>>) -> Option<Py<PyAny>> {
    cell.read(py, |object| object.as_ref().map(|it| it.clone_ref(py)))
}

/// A random seed of this process, for hash tables.
pub fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static STATE: OnceLock<RandomState> = OnceLock::new();
    STATE.get_or_init(RandomState::new).hash_one(0u8)
}
