//! Circuit breakers: no calls to what has failed again and again, until it is time to
//! look whether it is back.
//!
//! [`Circuit`] is the state machine, a plain value; [`Breaker`] is the one that many
//! lanes and callers share. Neither knows what is called, nor looks at a clock.
//!
//! A call gets a [`Permit`] and reports with it how it went. A permit is of one generation,
//! and each change of state begins another, so the result of a call that began before the
//! change says nothing about the time after it, and is ignored.

use std::collections::VecDeque;

use super::clock::Nanos;
use super::sync::{Mutex, lock};

/// Whether calls are let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All are.
    Closed,
    /// None is.
    Open,
    /// A few are, as probes.
    HalfOpen,
}

/// When a breaker changes its state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerConfig {
    /// So many failures in a row open it.
    pub failure_threshold: u32,
    /// So many successes of probes close it.
    pub success_threshold: u32,
    /// How long it is open before it lets probes through.
    pub timeout: Nanos,
    /// How many of the last calls the rate is taken of.
    pub window_size: u32,
    /// This share of failures among them opens it; above 1: never.
    pub failure_rate: f64,
    /// So many probes at once.
    pub half_open_max_calls: u32,
}

/// Leave to call. Give it back, with the result, to the breaker that gave it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a probe that is never reported keeps its place for ever"]
pub struct Permit {
    generation: u64,
    probe: bool,
}

impl Permit {
    /// Whether the call is to find out if calls succeed again.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The permit as a number, for a binding that keeps it elsewhere.
    #[inline]
    pub fn into_number(self) -> u64 {
        self.generation << 1 | u64::from(self.probe)
    }

    /// The permit that such a number stands for.
    #[inline]
    pub fn from_number(number: u64) -> Self {
        Self {
            generation: number >> 1,
            probe: number & 1 != 0,
        }
    }
}

/// No call now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// When to ask again. `None`: when the probes are over, see [`Change`].
    pub retry_at: Option<Nanos>,
}

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Success,
    /// Not well.
    Failure,
    /// It says nothing: cancelled, rejected, not really made.
    Ignored,
}

/// What is new. Whoever was refused without a time should ask again, whichever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is room for a probe again.
    Room,
    /// The state has changed.
    State(Transition),
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Rises by exactly one with each change, so that they can be put in order.
    pub generation: u64,
    /// If it has opened: when it lets probes through.
    pub retry_at: Option<Nanos>,
}

/// A breaker at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Whether calls are let through.
    pub state: State,
    /// Failures in a row, also over changes of state, up to now.
    pub failure_count: u32,
    /// Successes of probes since the breaker is half open.
    pub success_count: u32,
    /// Probes that are not over.
    pub probes: u32,
    /// When a call failed last.
    pub last_failure: Option<Nanos>,
    /// When the state changed last, or the breaker was made.
    pub changed_at: Nanos,
    /// While it is open: when it lets probes through.
    pub retry_at: Option<Nanos>,
}

/// The state machine.
#[derive(Clone, Debug)]
pub struct Circuit {
    config: BreakerConfig,
    state: State,
    generation: u64,
    changed_at: Nanos,
    last_failure: Option<Nanos>,
    failure_count: u32,
    success_count: u32,
    probes: u32,
    /// Of the last calls, oldest first: whether they failed. Only while closed.
    window: VecDeque<bool>,
    /// How many of them did.
    failures: u32,
}

impl Circuit {
    /// A closed one.
    pub fn new(config: BreakerConfig, now: Nanos) -> Self {
        Self {
            config,
            state: State::Closed,
            generation: 0,
            changed_at: now,
            last_failure: None,
            failure_count: 0,
            success_count: 0,
            probes: 0,
            window: VecDeque::new(),
            failures: 0,
        }
    }

    /// Asks for leave to call. The first who asks once the timeout has passed makes it half open.
    pub fn try_acquire(&mut self, now: Nanos) -> (Result<Permit, Refused>, Option<Change>) {
        let mut change = None;
        if let Some(retry_at) = self.retry_at() {
            if now < retry_at {
                let retry_at = Some(retry_at);
                return (Err(Refused { retry_at }), None);
            }
            change = self.go(State::HalfOpen, now);
        }
        let probe = self.state == State::HalfOpen;
        if probe {
            if self.probes >= self.config.half_open_max_calls {
                return (Err(Refused { retry_at: None }), change);
            }
            self.probes += 1;
        }
        let generation = self.generation;
        (Ok(Permit { generation, probe }), change)
    }

    /// Whether whoever asked now would be refused.
    pub fn is_refusing(&self, now: Nanos) -> bool {
        match self.state {
            State::Closed => false,
            State::Open => self.retry_at().is_some_and(|retry_at| now < retry_at),
            State::HalfOpen => self.probes >= self.config.half_open_max_calls,
        }
    }

    /// Takes the result of a call.
    pub fn report(&mut self, permit: Permit, outcome: Outcome, now: Nanos) -> Option<Change> {
        if permit.generation != self.generation {
            return None;
        }
        // A permit of this generation exists, so the breaker is closed, or this was a probe.
        let probe = self.state == State::HalfOpen;
        self.probes = self.probes.saturating_sub(u32::from(probe));
        let config = self.config;
        match outcome {
            Outcome::Ignored => {}
            Outcome::Success if probe => {
                self.failure_count = 0;
                self.success_count = self.success_count.saturating_add(1);
                if self.success_count >= config.success_threshold {
                    return self.go(State::Closed, now);
                }
            }
            Outcome::Success => {
                self.failure_count = 0;
                if self.note(false) {
                    return self.go(State::Open, now);
                }
            }
            Outcome::Failure => {
                self.failure_count = self.failure_count.saturating_add(1);
                self.last_failure = Some(now);
                if probe || self.note(true) || self.failure_count >= config.failure_threshold {
                    return self.go(State::Open, now);
                }
            }
        }
        probe.then_some(Change::Room)
    }

    /// Goes to a state at somebody's wish. Calls that run are ignored when they end.
    pub fn force(&mut self, state: State, now: Nanos) -> Option<Change> {
        if state == self.state {
            return None;
        }
        self.go(state, now)
    }

    /// Calls failed in an earlier life, and nobody knows whether they still do: if it lets all through,
    /// it asks with a probe first.
    pub fn doubt(&mut self, now: Nanos) -> Option<Change> {
        match self.state {
            State::Closed => self.go(State::HalfOpen, now),
            State::Open | State::HalfOpen => None,
        }
    }

    /// Goes back to how it was, by the rules of now. Its generation does not go back: a change of state
    /// is one, and calls that run over it are ignored when they end.
    pub fn restore(&mut self, before: Self, now: Nanos) -> Option<Change> {
        let changes = before.state != self.state;
        let mut change = changes.then(|| self.go(before.state, now)).flatten();
        *self = Self {
            config: self.config,
            generation: self.generation,
            probes: self.probes,
            ..before
        };
        self.trim();
        if let Some(Change::State(transition)) = &mut change {
            transition.retry_at = self.retry_at();
        }
        change
    }

    /// No probe that was let through comes back: others may take their places.
    pub fn forget_probes(&mut self, now: Nanos) -> Option<Change> {
        if self.state == State::HalfOpen && self.probes > 0 {
            return self.go(State::HalfOpen, now);
        }
        None
    }

    /// Goes by other rules from now on; nothing changes before the next call.
    pub fn set_config(&mut self, config: BreakerConfig) {
        self.config = config;
        self.trim();
    }

    /// How it is.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            state: self.state,
            failure_count: self.failure_count,
            success_count: self.success_count,
            probes: self.probes,
            last_failure: self.last_failure,
            changed_at: self.changed_at,
            retry_at: self.retry_at(),
        }
    }

    fn retry_at(&self) -> Option<Nanos> {
        (self.state == State::Open).then(|| self.changed_at.saturating_add(self.config.timeout))
    }

    /// Adds a result to the window; whether it says that the breaker must open.
    fn note(&mut self, failed: bool) -> bool {
        self.window.push_back(failed);
        self.failures += u32::from(failed);
        self.trim();
        let (calls, failures) = (f64::from(self.config.window_size), f64::from(self.failures));
        // A division is rounded as the decimal rate was when it was read: 7 of 100 is 0.07.
        self.window.len() >= self.config.window_size as usize
            && failures / calls >= self.config.failure_rate
    }

    fn trim(&mut self) {
        while self.window.len() > self.config.window_size as usize {
            self.failures -= u32::from(self.window.pop_front() == Some(true));
        }
    }

    fn go(&mut self, to: State, now: Nanos) -> Option<Change> {
        let from = std::mem::replace(&mut self.state, to);
        self.generation += 1;
        self.changed_at = now;
        self.success_count = 0;
        self.probes = 0;
        self.failures = 0;
        self.window.clear();
        if to == State::Closed {
            self.failure_count = 0;
        }
        Some(Change::State(Transition {
            from,
            to,
            generation: self.generation,
            retry_at: self.retry_at(),
        }))
    }
}

type Watcher = std::sync::Arc<dyn Fn(Change) + Send + Sync>;

/// A breaker that lanes and callers share, on any threads.
///
/// All who watch are told of each change, by the thread that made it, outside of the
/// breaker's lock: call it while holding no lock that a watcher takes. Two changes may
/// be told at the same time; [`Transition::generation`] is their order.
pub struct Breaker {
    circuit: Mutex<Circuit>,
    watchers: Mutex<Watchers>,
}

#[derive(Default)]
struct Watchers {
    last: u64,
    list: Vec<(u64, Watcher)>,
}

impl Breaker {
    /// A closed one.
    pub fn new(config: BreakerConfig, now: Nanos) -> Self {
        Self {
            circuit: Mutex::new(Circuit::new(config, now)),
            watchers: Mutex::new(Watchers::default()),
        }
    }

    /// See [`Circuit::try_acquire`].
    pub fn try_acquire(&self, now: Nanos) -> Result<Permit, Refused> {
        let (answer, change) = lock(&self.circuit).try_acquire(now);
        self.tell(change);
        answer
    }

    /// The same for who holds a lock that a watcher takes: the change, if there is one, is for the
    /// caller to [`tell`](Self::tell) once the lock is free.
    #[inline]
    pub fn ask(&self, now: Nanos) -> (Result<Permit, Refused>, Option<Change>) {
        lock(&self.circuit).try_acquire(now)
    }

    /// Whether whoever asked now would be refused.
    pub fn is_refusing(&self, now: Nanos) -> bool {
        lock(&self.circuit).is_refusing(now)
    }

    /// See [`Circuit::report`].
    #[inline]
    pub fn report(&self, permit: Permit, outcome: Outcome, now: Nanos) {
        let change = lock(&self.circuit).report(permit, outcome, now);
        self.tell(change);
    }

    /// See [`Circuit::force`].
    pub fn force(&self, state: State, now: Nanos) {
        let change = lock(&self.circuit).force(state, now);
        self.tell(change);
    }

    /// See [`Circuit::doubt`].
    pub fn doubt(&self, now: Nanos) {
        let change = lock(&self.circuit).doubt(now);
        self.tell(change);
    }

    /// All of it at this moment, for [`restore`](Self::restore).
    pub fn save(&self) -> Circuit {
        lock(&self.circuit).clone()
    }

    /// See [`Circuit::restore`].
    pub fn restore(&self, before: Circuit, now: Nanos) {
        let change = lock(&self.circuit).restore(before, now);
        self.tell(change);
    }

    /// See [`Circuit::forget_probes`].
    pub fn forget_probes(&self, now: Nanos) {
        let change = lock(&self.circuit).forget_probes(now);
        self.tell(change);
    }

    /// See [`Circuit::set_config`].
    pub fn set_config(&self, config: BreakerConfig) {
        lock(&self.circuit).set_config(config);
    }

    /// See [`Circuit::snapshot`].
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.circuit).snapshot()
    }

    /// Has `watcher` told of every change from now on; the number ends that, see [`Breaker::unwatch`].
    pub fn watch(&self, watcher: impl Fn(Change) + Send + Sync + 'static) -> u64 {
        let mut watchers = lock(&self.watchers);
        watchers.last += 1;
        let number = watchers.last;
        watchers.list.push((number, std::sync::Arc::new(watcher)));
        number
    }

    /// Tells a watcher no more. One that is being told just now is told to the end.
    pub fn unwatch(&self, number: u64) {
        let mut watchers = lock(&self.watchers);
        let at = watchers.list.iter().position(|(other, _)| *other == number);
        let gone = at.map(|at| watchers.list.remove(at));
        drop(watchers);
        // What it holds is let go outside of the lock.
        drop(gone);
    }

    /// Tells the watchers of a change that [`ask`](Self::ask) made.
    #[inline]
    pub fn tell(&self, change: Option<Change>) {
        if let Some(change) = change {
            self.tell_all(change);
        }
    }

    #[cold]
    fn tell_all(&self, change: Change) {
        let watchers: Vec<Watcher> = {
            let watchers = lock(&self.watchers);
            watchers.list.iter().map(|(_, each)| each.clone()).collect()
        };
        for watcher in watchers {
            watcher(change);
        }
    }
}
