//! The thread that gives durable lanes what they had no room for: it reads the journal, with
//! no lock held, and is the only one that does so on behalf of lanes.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use super::Revive;
use super::window::Window;
use crate::engine::backing::Backing;
use crate::engine::bus::Bus;
use crate::engine::clock::Nanos;
use crate::engine::gate::{Committed, Effects, Timing};
use crate::engine::journal::{Event, JournalError};
use crate::engine::lane::Lane;
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::settlement::Envelope;
use crate::engine::store::WallSeconds;
use crate::engine::sync::atomic::{AtomicU64, Ordering};
use crate::engine::sync::{Condvar, Mutex, Shared, lock, share};

/// So many events are read at once.
const PIECE: usize = 1024;

/// What is to be done, and whether there is somebody who does it.
pub struct Refiller<O: Ops> {
    state: Mutex<State<O>>,
    asked: Condvar,
    /// The last event that was brought before the lanes.
    through: AtomicU64,
}

/// A level of a window to be looked at.
type Job<O> = (Arc<Window<O>>, Priority);

/// What the thread is to do.
pub(super) enum Work<O: Ops> {
    /// Give a level of a lane what it has room for.
    Refill(Arc<Window<O>>, Priority),
    /// Look whether publishers wait no more.
    Line,
}

struct State<O: Ops> {
    jobs: VecDeque<Job<O>>,
    /// Those that can go on once more has been brought before the lanes.
    later: Vec<Job<O>>,
    /// Those who are behind have got on.
    line: bool,
    ends: bool,
}

impl<O: Ops> State<O> {
    fn add(&mut self, job: Job<O>) {
        let same = |(window, level): &Job<O>| Arc::ptr_eq(window, &job.0) && *level == job.1;
        if !self.jobs.iter().any(same) {
            self.jobs.push_back(job);
        }
    }
}

impl<O: Ops> Default for Refiller<O> {
    fn default() -> Self {
        let state = State {
            jobs: VecDeque::new(),
            later: Vec::new(),
            line: false,
            ends: false,
        };
        Self {
            state: Mutex::new(state),
            asked: Condvar::new(),
            through: AtomicU64::new(0),
        }
    }
}

impl<O: Ops> Refiller<O> {
    /// Has a level of a window looked at.
    pub(super) fn ask(&self, window: &Weak<Window<O>>, level: Priority) {
        let Some(window) = window.upgrade() else {
            return;
        };
        let mut state = lock(&self.state);
        if !state.ends {
            state.add((window, level));
            self.asked.notify_one();
        }
    }

    /// Has the line of publishers looked at.
    pub(super) fn ask_line(&self) {
        let mut state = lock(&self.state);
        if !state.ends && !std::mem::replace(&mut state.line, true) {
            self.asked.notify_one();
        }
    }

    /// The last event that was brought before the lanes.
    pub(super) fn through(&self) -> u64 {
        self.through.load(Ordering::Acquire)
    }

    /// Everything up to this number was brought before the lanes.
    pub(super) fn reached(&self, through: u64) {
        let mut state = lock(&self.state);
        self.through.store(through, Ordering::Release);
        if state.later.is_empty() {
            return;
        }
        for job in std::mem::take(&mut state.later) {
            state.add(job);
        }
        self.asked.notify_one();
    }

    /// Has it looked at once there is something new; or at once, if there is.
    fn ask_later(&self, job: Job<O>, seen: u64) {
        let mut state = lock(&self.state);
        if state.ends {
            return;
        }
        if self.through.load(Ordering::Acquire) == seen {
            state.later.push(job);
        } else {
            state.add(job);
        }
    }

    fn next(&self) -> Option<Work<O>> {
        let mut state = lock(&self.state);
        loop {
            if state.ends {
                return None;
            }
            if std::mem::take(&mut state.line) {
                return Some(Work::Line);
            }
            if let Some((window, level)) = state.jobs.pop_front() {
                return Some(Work::Refill(window, level));
            }
            state = self
                .asked
                .wait(state)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Begins to work.
    pub(super) fn start(
        self: &Arc<Self>,
        work: impl Fn(Work<O>) + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        let refiller = self.clone();
        std::thread::Builder::new()
            .name("ironbus-refill".into())
            .spawn(move || {
                while let Some(next) = refiller.next() {
                    work(next);
                }
            })
    }

    /// Takes work in from now on.
    pub(super) fn begin(&self) {
        lock(&self.state).ends = false;
    }

    /// Has the thread end, and forgets what is left to do.
    pub(super) fn end(&self) {
        let jobs = {
            let mut state = lock(&self.state);
            state.ends = true;
            state.line = false;
            let later = std::mem::take(&mut state.later);
            (std::mem::take(&mut state.jobs), later)
        };
        self.asked.notify_all();
        drop(jobs);
    }

    /// Gives a level of a lane what it has room for.
    pub(super) fn refill(
        &self,
        bus: &Bus<O>,
        window: &Arc<Window<O>>,
        level: Priority,
        revive: &dyn Revive<O>,
    ) -> Result<(), JournalError> {
        let (Some(subscription), Some(lane)) = (window.subscription(), window.lane()) else {
            return Ok(());
        };
        let lane = &lane;
        let mut room = None;
        revive.attached(&mut || {
            room = bus.gate.begin_refill(lane, level);
            if room.is_none() && bus.gate.is_open() {
                // It is full.
                window.filled(level, lane);
            }
        });
        let Some(room) = room else { return Ok(()) };
        let through = self.through.load(Ordering::Acquire);
        let refilled = subscription.refill_through(level, room.min(PIECE), through);
        let (events, result) = match refilled {
            Ok(refill) => (refill.events, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        let mut events = Some(events);
        let mut seen_all = false;
        revive.attached(&mut || {
            let events = events.take().unwrap_or_default();
            let now = revive.now();
            let numbers = events.iter().map(|event| event.sequence);
            let kept = bus.gate.take_kept(lane, numbers);
            let (mut given, mut doomed) = (Vec::with_capacity(events.len()), Vec::new());
            for (event, kept) in events.into_iter().zip(kept) {
                match kept.map_or_else(|| revived(revive, &event), |kept| (kept, None)) {
                    (kept, None) => given.push(committed(revive, event, kept, now)),
                    (kept, Some(failure)) => {
                        doomed.push((super::doomed(&event, kept, failure, now), None));
                    }
                }
            }
            let mut effects = Effects::default();
            let mut brought = !doomed.is_empty();
            bus.gate.resume(lane, doomed, Vec::new(), &mut effects);
            let over = || window.look(level, &subscription);
            let scanned = subscription.place(level).scanned;
            brought |= bus
                .gate
                .end_refill(lane, level, &given, scanned, over, now, &mut effects);
            bus.carry_out(effects, now);
            if brought {
                Lane::rouse(lane);
            }
            seen_all = scanned >= through;
            let comes_again = window.has_more(level) && !seen_all && lane.wants_more(level);
            if !comes_again || result.is_err() {
                window.filled(level, lane);
            }
        });
        window.moved();
        result?;
        if window.has_more(level) && seen_all {
            self.ask_later((window.clone(), level), through);
        } else {
            window.ask(level);
        }
        Ok(())
    }
}

/// The event anew, and what is wrong with its payload, if it cannot be read.
pub(super) fn revived<O: Ops>(
    revive: &dyn Revive<O>,
    event: &Event,
) -> (Shared<Envelope<O>>, Option<O::Failure>) {
    let (payload, wrong) = revive.payload(event);
    (share(Envelope::new(payload, None)), wrong)
}

/// The event of the journal as it goes into a lane.
fn committed<O: Ops>(
    revive: &dyn Revive<O>,
    event: Event,
    kept: Shared<Envelope<O>>,
    now: Nanos,
) -> Committed<O> {
    let wall = revive.wall();
    let at = |time: WallSeconds| super::nanos_at(time, wall, now);
    let timing = Timing {
        due: event.due.map(at).filter(|due| *due > now),
        expires: event.expires.map(at),
    };
    let any = timing.due.is_some() || timing.expires.is_some();
    Committed {
        token: revive.token(&event),
        event_type: event.event_type,
        sequence: event.sequence,
        level: event.level,
        event: kept,
        timing: any.then_some(timing),
    }
}
