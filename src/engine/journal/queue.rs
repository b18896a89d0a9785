//! What waits for the disk. A batch is what has come while the one before was being flushed:
//! nobody waits for more to come, except settlements, for which nobody waits.

use std::sync::Arc;
use std::time::Duration;

use super::error::JournalError;
use super::event::Event;
use super::storage::{Head, Storage, Unit};
use super::subscription::Subscription;
use crate::engine::priority::Priority;
use crate::engine::store::{Durability, StoreError, WallSeconds};
use crate::engine::sync::{Condvar, Mutex, lock};

/// An error of the medium here fails the whole batch. It is called again where the batch is written
/// again.
pub(super) type Task = Box<dyn FnMut(&mut dyn Storage, &mut Head) -> Result<(), StoreError> + Send>;

/// Told the fate of a unit, by the writer, with no lock held.
pub type UnitDone = Box<dyn FnOnce(Result<Durability, JournalError>) + Send>;

/// A delivery that a unit settles.
#[derive(Clone)]
pub struct Delivery {
    /// To whom.
    pub subscription: Arc<Subscription>,
    /// On which level.
    pub level: Priority,
    /// Of which event.
    pub sequence: u64,
}

pub(super) struct PendingUnit {
    pub(super) unit: Unit,
    pub(super) delivery: Option<Delivery>,
    pub(super) done: UnitDone,
    pub(super) refused: Option<JournalError>,
}

// Nearly all of them are events: a box for each would cost more than the room of the others.
#[allow(clippy::large_enum_variant)]
pub(super) enum Op {
    Event(Event),
    Unit(Box<PendingUnit>),
    /// None: only the head is to be written.
    Task(Option<Task>),
}

/// What is written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) ops: Vec<Op>,
    pub(super) dirty: Vec<Arc<Subscription>>,
    pub(super) durability: Option<Durability>,
    pub(super) fate: Arc<Fate>,
    /// The first and the last number in it.
    pub(super) sequences: Option<(u64, u64)>,
    pub(super) accepted: WallSeconds,
    /// The last number that was given without an event.
    pub(super) given: Option<u64>,
    events: usize,
    bytes: usize,
}

/// A batch that nobody decided about, because its writer died, is not waited for.
impl Drop for Batch {
    fn drop(&mut self) {
        let mut outcome = lock(&self.fate.outcome);
        if outcome.is_none() {
            *outcome = Some(Err(JournalError::ReadOnly));
            self.fate.known.notify_all();
        }
    }
}

/// What becomes of a batch.
#[derive(Default)]
pub(super) struct Fate {
    outcome: Mutex<Option<Result<Durability, JournalError>>>,
    known: Condvar,
}

impl Fate {
    pub(super) fn decide(&self, outcome: Result<Durability, JournalError>) {
        *lock(&self.outcome) = Some(outcome);
        self.known.notify_all();
    }
}

/// The fate of what was handed in: known once its batch is flushed.
#[derive(Clone)]
pub struct Ticket(Arc<Fate>);

impl Ticket {
    /// Waits until it is known. How durable it is, or why it is not.
    pub fn wait(&self) -> Result<Durability, JournalError> {
        let mut outcome = lock(&self.0.outcome);
        loop {
            if let Some(known) = &*outcome {
                return known.clone();
            }
            outcome = self
                .0
                .known
                .wait(outcome)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// What is known by now.
    pub fn poll(&self) -> Option<Result<Durability, JournalError>> {
        lock(&self.0.outcome).clone()
    }
}

/// How much may wait, and for how long settlements may.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events that wait for the disk.
    pub max_pending: usize,
    /// Bytes that wait for the disk.
    pub max_pending_bytes: usize,
    /// Bytes of one event.
    pub max_event_bytes: usize,
    /// Settlements alone are written after so long, and with the next event if one comes before.
    pub settle_after: Duration,
    /// Numbers are reserved in blocks of this size, the next one when half is used up.
    pub block: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_pending: 65_536,
            max_pending_bytes: 64 << 20,
            max_event_bytes: 256 << 20,
            settle_after: Duration::from_millis(5),
            block: 1 << 20,
        }
    }
}

struct State {
    next: Batch,
    /// A flush has failed: nothing is written any more.
    broken: bool,
    closed: bool,
    /// Pending events and bytes, those of the batch that is being written included.
    events: usize,
    bytes: usize,
    /// The last number that was handed in, and up to which they may be given.
    sequence: u64,
    reserved: u64,
    accepted: WallSeconds,
    /// The last batch did not go through for lack of room: settlements are not to spin.
    held_back: bool,
    /// That was tried again since it was closed.
    last_try: bool,
}

/// See the module.
pub(super) struct Queue {
    bounds: Bounds,
    state: Mutex<State>,
    work: Condvar,
}

/// After a failure, settlements alone are tried again so often.
const RETRY: Duration = Duration::from_millis(200);

impl Queue {
    pub(super) fn new(bounds: Bounds, sequence: u64, head: &Head) -> Self {
        let state = State {
            next: Batch::default(),
            broken: false,
            closed: false,
            events: 0,
            bytes: 0,
            sequence,
            reserved: head.reserved,
            accepted: head.accepted,
            held_back: false,
            last_try: false,
        };
        Self {
            bounds,
            state: Mutex::new(state),
            work: Condvar::new(),
        }
    }

    /// How many events may be handed in now.
    pub(super) fn room(&self) -> usize {
        let state = lock(&self.state);
        if state.bytes >= self.bounds.max_pending_bytes {
            return 0;
        }
        let numbers = state.reserved.saturating_sub(state.sequence);
        let numbers = usize::try_from(numbers).unwrap_or(usize::MAX);
        numbers.min(self.bounds.max_pending.saturating_sub(state.events))
    }

    /// The gate has given this number to something else than an event. The next block is reserved in
    /// time, as for events.
    pub(super) fn given(&self, sequence: u64) {
        let mut state = lock(&self.state);
        state.sequence = state.sequence.max(sequence);
        let left = state.reserved.saturating_sub(state.sequence);
        if left >= self.bounds.block / 2 || state.closed || state.broken {
            return;
        }
        let first = state.next.ops.is_empty();
        let last = Some(state.sequence);
        if std::mem::replace(&mut state.next.given, last).is_none() {
            state.next.ops.push(Op::Task(None));
        }
        drop(state);
        if first {
            self.work.notify_one();
        }
    }

    /// See [`Bounds::block`].
    pub(super) fn block(&self) -> u64 {
        self.bounds.block
    }

    pub(super) fn sequence(&self) -> u64 {
        lock(&self.state).sequence
    }

    pub(super) fn push_events(
        &self,
        events: Vec<Event>,
        durability: Durability,
    ) -> Result<Ticket, JournalError> {
        self.push(durability, |queue, state| {
            queue.admit(state, &events)?;
            for mut event in events {
                state.number(&mut event);
                state.next.ops.push(Op::Event(event));
            }
            Ok(())
        })
    }

    pub(super) fn push_unit(
        &self,
        mut unit: Unit,
        delivery: Option<Delivery>,
        durability: Durability,
        done: UnitDone,
    ) -> Result<Ticket, JournalError> {
        self.push(durability, |queue, state| {
            queue.admit(state, &unit.events)?;
            for event in &mut unit.events {
                state.number(event);
            }
            state.next.ops.push(Op::Unit(Box::new(PendingUnit {
                unit,
                delivery,
                done,
                refused: None,
            })));
            Ok(())
        })
    }

    pub(super) fn push_task(
        &self,
        task: Task,
        durability: Durability,
    ) -> Result<Ticket, JournalError> {
        self.push(durability, |_, state| {
            state.next.ops.push(Op::Task(Some(task)));
            Ok(())
        })
    }

    fn push(
        &self,
        durability: Durability,
        enter: impl FnOnce(&Self, &mut State) -> Result<(), JournalError>,
    ) -> Result<Ticket, JournalError> {
        let mut state = lock(&self.state);
        state.refuses()?;
        let first = state.next.ops.is_empty();
        enter(self, &mut state)?;
        let next = &mut state.next;
        next.durability = next.durability.max(Some(durability));
        let ticket = Ticket(next.fate.clone());
        drop(state);
        if first {
            self.work.notify_one();
        }
        Ok(ticket)
    }

    fn admit(&self, state: &State, events: &[Event]) -> Result<(), JournalError> {
        let bound = self.bounds.max_pending;
        let full = state.bytes >= self.bounds.max_pending_bytes;
        if !events.is_empty() && (full || state.events + events.len() > bound) {
            return Err(JournalError::Busy { bound });
        }
        let mut last = state.sequence;
        for event in events {
            let (size, bound) = (event.size(), self.bounds.max_event_bytes);
            if size > bound {
                return Err(JournalError::TooBig { size, bound });
            }
            if event.has_no_time() {
                return Err(JournalError::NoTime);
            }
            if event.sequence <= last || event.sequence > state.reserved {
                let sequence = event.sequence;
                return Err(JournalError::OutOfOrder { sequence });
            }
            last = event.sequence;
        }
        Ok(())
    }

    /// A subscription has settled something. It says so once per batch.
    pub(super) fn mark(&self, subscription: Arc<Subscription>) {
        let mut state = lock(&self.state);
        state.next.dirty.push(subscription);
        let first = state.next.ops.is_empty() && state.next.dirty.len() == 1;
        drop(state);
        if first {
            self.work.notify_one();
        }
    }

    /// For the writer: what has come meanwhile; waits for something to come. `None`: closed, and
    /// nothing is left but settlements that could not be written.
    pub(super) fn take(&self) -> Option<Batch> {
        let mut state = lock(&self.state);
        loop {
            // Nobody waits for ever for the end: once closed they are tried once more.
            let given_up = state.closed && state.held_back && state.last_try;
            let settlements = !state.next.dirty.is_empty() && !state.broken && !given_up;
            if !state.next.ops.is_empty() || (state.closed && settlements) {
                break;
            }
            if state.closed {
                return None;
            }
            if !settlements {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            let pause = if state.held_back {
                RETRY
            } else {
                self.bounds.settle_after
            };
            let (woken, waited) = self
                .work
                .wait_timeout(state, pause)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            state = woken;
            if waited.timed_out() {
                break;
            }
        }
        state.last_try = state.closed && state.held_back;
        let mut batch = std::mem::take(&mut state.next);
        batch.accepted = state.accepted;
        Some(batch)
    }

    /// The batch that was taken is dealt with.
    pub(super) fn done(&self, batch: &Batch, reserved: u64, held_back: bool) {
        let mut state = lock(&self.state);
        state.events -= batch.events;
        state.bytes -= batch.bytes;
        state.reserved = state.reserved.max(reserved);
        state.held_back = held_back;
    }

    /// Takes nothing more in, after a failed flush.
    pub(super) fn fail(&self) -> Batch {
        let mut state = lock(&self.state);
        state.broken = true;
        std::mem::take(&mut state.next)
    }

    /// Takes nothing more in; the writer ends when it has written what is here.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.work.notify_one();
    }

    /// Whether settlements were left that could not be written.
    pub(super) fn is_unsettled(&self) -> bool {
        !lock(&self.state).next.dirty.is_empty()
    }

    /// Why it takes nothing in, if it does not.
    pub(super) fn refuses(&self) -> Result<(), JournalError> {
        lock(&self.state).refuses()
    }

    /// Whether a flush has failed.
    pub(super) fn is_broken(&self) -> bool {
        lock(&self.state).broken
    }
}

impl State {
    fn refuses(&self) -> Result<(), JournalError> {
        match (self.closed, self.broken) {
            (true, _) => Err(JournalError::Closed),
            (false, true) => Err(JournalError::ReadOnly),
            (false, false) => Ok(()),
        }
    }

    fn number(&mut self, event: &mut Event) {
        self.accepted = self.accepted.max(event.accepted);
        event.accepted = self.accepted;
        self.sequence = event.sequence;
        let size = event.size();
        self.events += 1;
        self.bytes += size;
        let next = &mut self.next;
        next.events += 1;
        next.bytes += size;
        let first = next.sequences.map_or(event.sequence, |(first, _)| first);
        next.sequences = Some((first, event.sequence));
    }
}
