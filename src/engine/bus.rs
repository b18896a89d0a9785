//! The way of an event, one function a step: publish (claim, route, gate), then for
//! each lane start, finish or put back, settle. Rooms are put together here and
//! nowhere else; none of them knows another's rule.

use super::backing::Backing;
use super::clock::Nanos;
use super::digest::Digest;
use super::error::EngineError;
pub use super::gate::Published;
use super::gate::{Calm, Effects, Gate, Offer, Patience, Redelivery, Report, Run, Ticket, WaitId};
use super::idempotency::Idempotency;
use super::lane::{Aside, Entry, Finished, Lane, LaneId, LaneOptions, Turn};
use super::ops::{Alarm, Ops, Seat, wake_all};
use super::router::Route;
use super::settlement::{Envelope, Outcome};
use super::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize},
};
use super::timers::Timers;
use super::topic::Topic;
use super::{breaker, timers};

/// The next event of a lane for an executor.
pub struct Next<O: Ops> {
    /// The event.
    pub entry: Entry<O>,
    /// Its token is to be worked out and told to [`Bus::with_token`] first.
    pub token_wanted: bool,
}

/// Entries of one lane that end without a call before other lanes get their turn.
const UNHEARD_IN_A_ROW: usize = 64;

/// See the module.
pub struct Bus<O: Ops> {
    pub(super) gate: Gate<O>,
    timers: Timers,
    alarm: O::Alarm,
    pub(super) sink: O::Sink,
    /// How often somebody said that there may be room for letters, and whether a lane may wait for it.
    pub(super) room: AtomicUsize,
    pub(super) parked: AtomicBool,
}

/// A dead letter that is delivered again is not the backing's.
#[cold]
fn settle_there<O: Ops>(backing: &dyn Backing, entry: &Entry<O>) {
    if entry.letter().is_none() {
        backing.settle(entry.level, entry.sequence);
    }
}

impl<O: Ops> Drop for Bus<O> {
    fn drop(&mut self) {
        self.gate.forsake();
    }
}

impl<O: Ops> Bus<O> {
    /// A bus that is not open yet. `kept` is how many events it keeps until it is.
    pub fn new(kept: usize, keys: Idempotency<O::Waker>, alarm: O::Alarm, sink: O::Sink) -> Self {
        Self {
            gate: Gate::new(kept, keys),
            timers: Timers::default(),
            alarm,
            sink,
            room: AtomicUsize::new(0),
            parked: AtomicBool::new(false),
        }
    }

    /// Where deliveries go that failed for good.
    pub fn sink(&self) -> &O::Sink {
        &self.sink
    }

    /// Does something with the keys that were seen. See [`Gate::with_keys`].
    pub fn with_keys<R>(&self, act: impl FnOnce(&mut Idempotency<O::Waker>) -> R) -> R {
        self.gate.with_keys(act)
    }

    /// Brings an event before the gate. `route` may be stale; then the one that counted is left in
    /// `rerouted`.
    #[inline]
    pub fn publish(
        &self,
        offer: &Offer<'_, O>,
        route: &Route<O>,
        rerouted: &mut Option<Arc<Route<O>>>,
        key: Option<&Digest>,
        patience: Patience,
        now: Nanos,
    ) -> Published<O> {
        let mut effects = Effects::default();
        let published = self
            .gate
            .admit(offer, route, rerouted, patience, key, now, &mut effects);
        self.carry_out(effects, now);
        published
    }

    /// Publishes events without keys until one does not get in at once. See [`Gate::admit_run`].
    pub fn publish_run<'a>(
        &self,
        offers: impl Iterator<Item = Offer<'a, O>>,
        route: &Route<O>,
        rerouted: &mut Option<Arc<Route<O>>>,
        now: Nanos,
    ) -> Run {
        let mut effects = Effects::default();
        let run = self
            .gate
            .admit_run(offers, route, rerouted, now, &mut effects);
        self.carry_out(effects, now);
        run
    }

    /// Brings a dead letter back to its lane. See [`Gate::redeliver`].
    pub fn redeliver(
        &self,
        redelivery: Redelivery<'_, O>,
        now: Nanos,
    ) -> Option<(u64, Arc<Route<O>>)> {
        let mut effects = Effects::default();
        let delivered = self.gate.redeliver(redelivery, now, &mut effects);
        self.carry_out(effects, now);
        delivered
    }

    /// Waits for the fate of the event in flight that has this key; false: it is decided already.
    pub fn join(&self, key: &Digest, waker: O::Waker) -> bool {
        // A waker that comes back is dropped after the lock.
        self.with_keys(|keys| keys.join(key, waker)).is_ok()
    }

    /// Ends a wait for room. False: the event had been accepted, and that stands; or refused.
    pub fn give_up(&self, ticket: &Ticket<O>, key: Option<&Digest>, now: Nanos) -> bool {
        let mut effects = Effects::default();
        let given_up = self.gate.give_up(ticket, now, &mut effects);
        if given_up && let Some(key) = key {
            wake_all(self.with_keys(|keys| keys.release(key)));
        }
        self.carry_out(effects, now);
        given_up
    }

    /// The lanes of a type now, if it was published before; a type that was has been checked.
    #[inline]
    pub fn remembered_route(&self, event_type: &str) -> Option<Arc<Route<O>>> {
        self.gate.remembered(event_type)
    }

    /// The lanes of a type now.
    #[inline]
    pub fn route(&self, event_type: &str) -> Arc<Route<O>> {
        self.gate.route(event_type)
    }

    /// Makes a lane that no event reaches yet.
    pub fn make_lane(
        &self,
        options: LaneOptions,
        handler: O::Handler,
        seat: Arc<O::Seat>,
    ) -> Arc<Lane<O>> {
        self.gate.make_lane(options, handler, seat)
    }

    /// Begins a subscription and returns its number.
    pub fn subscribe(&self, topics: Vec<Topic>, lane: &Arc<Lane<O>>, now: Nanos) -> u64 {
        let mut effects = Effects::default();
        let subscription = self.gate.subscribe(topics, lane, now, &mut effects);
        self.carry_out(effects, now);
        subscription
    }

    /// Ends a subscription; with `close`, also its lane, and what that still had is dropped and counted.
    pub fn unsubscribe(&self, subscription: u64, lane: &Arc<Lane<O>>, close: bool, now: Nanos) {
        let mut effects = Effects::default();
        self.gate.unsubscribe(subscription, now, &mut effects);
        if close {
            self.gate.close_lane(lane, &mut effects);
        }
        self.carry_out(effects, now);
    }

    /// Lets events through to the lanes, beginning with those that were kept.
    pub fn open(&self, now: Nanos) {
        let mut effects = Effects::default();
        self.gate.open(&mut effects);
        self.carry_out(effects, now);
    }

    /// In a child of the process in which the bus was open, before it is opened here. See
    /// [`Gate::forked`].
    pub fn forked(&self, now: Nanos) {
        self.timers.clear();
        let mut effects = Effects::default();
        self.gate.forked(now, &mut effects);
        self.carry_out(effects, now);
    }

    /// Keeps events from now on.
    pub fn close(&self) {
        self.gate.close();
    }

    /// For an executor that was given a lane: its next event.
    pub fn take(&self, lane: &Arc<Lane<O>>, now: Nanos) -> Option<Next<O>> {
        let turn = lane.take(now);
        self.after(lane, turn, now)
    }

    /// For an executor: the event has this outcome. With `proceed`, the lane's next event.
    #[inline(always)]
    pub fn finish(
        &self,
        lane: &Arc<Lane<O>>,
        entry: &mut Entry<O>,
        outcome: Outcome<O::Failure>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Option<Next<O>> {
        if let Some(permit) = entry.take_permit() {
            let told = match &outcome {
                Outcome::Done => breaker::Outcome::Success,
                _ => breaker::Outcome::Ignored,
            };
            lane.report_to_breaker(permit, told, now);
        }
        let turn = self.settle(lane, entry, outcome, work, proceed, now);
        self.after(lane, turn, now)
    }

    /// Settled before the next one starts: that is the order that is promised.
    #[inline]
    pub(super) fn settle(
        &self,
        lane: &Arc<Lane<O>>,
        entry: &mut Entry<O>,
        outcome: Outcome<O::Failure>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Turn<O> {
        if let Some(backing) = lane.backing() {
            settle_there(backing, entry);
        }
        self.settle_here(lane, entry, outcome, work, proceed, now)
    }

    /// The same where whatever backs the lane knows.
    #[inline(always)]
    pub(super) fn settle_here(
        &self,
        lane: &Arc<Lane<O>>,
        entry: &mut Entry<O>,
        outcome: Outcome<O::Failure>,
        work: Option<Nanos>,
        proceed: bool,
        now: Nanos,
    ) -> Turn<O> {
        let finished = Finished {
            tally: (&outcome).into(),
            token: entry.token,
            work,
        };
        let woken = Envelope::settle_last(&mut entry.event, lane, outcome);
        let turn = lane.finish(&finished, proceed, now);
        if let Some(woken) = woken {
            wake_all(woken);
        }
        turn
    }

    /// For an executor that must let go of an event: back to the head of its lane.
    pub fn put_back(&self, lane: &Arc<Lane<O>>, mut entry: Entry<O>, now: Nanos) {
        if let Some(permit) = entry.take_permit() {
            lane.report_to_breaker(permit, breaker::Outcome::Ignored, now);
        }
        if let Some(backing) = lane.backing() {
            backing.put_back(entry.sequence);
        }
        let turn = lane.put_back(entry, now);
        let next = self.after(lane, turn, now);
        debug_assert!(next.is_none());
    }

    /// For an executor that worked out a token. The event to start now, which may be another.
    pub fn with_token(
        &self,
        lane: &Arc<Lane<O>>,
        entry: Entry<O>,
        token: u64,
        now: Nanos,
    ) -> Option<Next<O>> {
        let turn = lane.with_token(entry, token, now);
        self.after(lane, turn, now)
    }

    /// For an executor that could not work a token out: the event back, to be failed, in the order of
    /// nothing. None: its lane is closed, and it is settled.
    pub fn without_token(
        &self,
        lane: &Arc<Lane<O>>,
        entry: Entry<O>,
        now: Nanos,
    ) -> Option<Entry<O>> {
        let token = entry.own_token();
        let mut entry = self.with_token(lane, entry, token, now)?.entry;
        entry.unordered();
        Some(entry)
    }

    /// Pauses or resumes a lane.
    pub fn pause(&self, lane: &Arc<Lane<O>>, paused: bool) {
        let schedule = lane.pause(paused);
        if let Some(backing) = lane.backing() {
            backing.paused();
        }
        if schedule {
            lane.seat().schedule(lane.clone());
        }
    }

    /// Looks after everything that is due by now. Returns when the next thing is.
    pub fn tick(&self, now: Nanos) -> Option<Nanos> {
        while let Some((slot, id)) = self.timers.pop(now) {
            if let Some(lane) = self.gate.lane(slot, id) {
                let turn = lane.tick(now);
                let next = self.after(&lane, turn, now);
                debug_assert!(next.is_none());
            }
        }
        self.timers.next()
    }

    /// When something is due that has to be looked after.
    pub fn next_due(&self) -> Option<Nanos> {
        self.timers.next()
    }

    fn set_timer(&self, due: Nanos, place: timers::Place) {
        if self.timers.set(due, place) {
            self.alarm.set(due);
        }
    }

    /// What follows from a turn: mostly the next entry, or none, and nothing else.
    #[inline(always)]
    pub(super) fn after(&self, lane: &Arc<Lane<O>>, turn: Turn<O>, now: Nanos) -> Option<Next<O>> {
        match turn {
            Turn {
                entry: Some(entry),
                token_wanted,
                schedule: false,
                room_wanted: false,
                aside: None,
            } if entry.rare.is_none() => Some(Next {
                entry,
                token_wanted,
            }),
            Turn {
                entry: None,
                schedule: false,
                aside: None,
                ..
            } if !self.gate.is_watched() => None,
            turn => self.after_all(lane, turn, now),
        }
    }

    #[inline(never)]
    fn after_all(&self, lane: &Arc<Lane<O>>, mut turn: Turn<O>, now: Nanos) -> Option<Next<O>> {
        // Entries that end without a call, one after the other, but not for ever.
        let mut left = UNHEARD_IN_A_ROW;
        loop {
            let mut effects = Effects::default();
            if let Some(aside) = turn.aside {
                self.look_aside(lane, *aside, &mut effects, now);
            }
            if turn.schedule {
                lane.seat().schedule(lane.clone());
            }
            match &turn.entry {
                Some(entry) if turn.room_wanted => {
                    self.gate.room_made(lane, entry.level, now, &mut effects);
                }
                Some(_) => {}
                None => self.gate.after_settlement(&mut effects),
            }
            self.carry_out(effects, now);
            let entry = turn.entry?;
            let token_wanted = turn.token_wanted;
            if entry.rare.is_none() || (token_wanted && !entry.is_expired(now)) {
                return Some(Next {
                    entry,
                    token_wanted,
                });
            }
            if token_wanted {
                let token = entry.own_token();
                turn = lane.with_token(entry, token, now);
                continue;
            }
            left -= 1;
            match self.end_unheard(lane, entry, left > 0, now) {
                Ok(Some(ended)) => turn = ended,
                Ok(None) => return None,
                Err(entry) => {
                    return Some(Next {
                        entry,
                        token_wanted: false,
                    });
                }
            }
        }
    }

    #[cold]
    fn look_aside(
        &self,
        lane: &Arc<Lane<O>>,
        aside: Aside<O>,
        effects: &mut Effects<O>,
        now: Nanos,
    ) {
        if let Some(entry) = aside.dropped {
            effects.let_go(lane, entry.into_event());
        }
        if let Some(due) = aside.due {
            self.set_timer(due, lane.place());
        }
        lane.tell_breaker(aside.change);
        if let Some(permit) = aside.unused {
            lane.report_to_breaker(permit, breaker::Outcome::Ignored, now);
        }
        if aside.refused && Lane::await_breaker(lane, now) {
            lane.seat().schedule(lane.clone());
        }
    }

    /// Mostly there is nothing to do.
    #[inline(always)]
    pub(super) fn carry_out(&self, effects: Effects<O>, now: Nanos) {
        if !effects.is_empty() {
            self.carry_out_all(effects, now);
        }
    }

    #[cold]
    fn carry_out_all(&self, mut effects: Effects<O>, now: Nanos) {
        for (due, place) in effects.timers() {
            self.set_timer(due, place);
        }
        let (seen, free) = effects.carry_out();
        for key in seen {
            wake_all(self.with_keys(|keys| keys.commit(&key, now)));
        }
        for key in free {
            wake_all(self.with_keys(|keys| keys.release(&key)));
        }
    }

    /// Registers whom to wake when all is quiet; gives it back if so now. See [`Calm`].
    pub fn when_quiet(&self, waker: O::Waker, excused: Option<LaneId>) -> Result<(), O::Waker> {
        self.gate.when(Calm::Quiet(excused), waker)
    }

    /// Whether all is quiet. See [`Calm`].
    pub fn is_quiet(&self, excused: Option<LaneId>) -> bool {
        self.gate.is(Calm::Quiet(excused))
    }

    /// Registers whom to wake when at most so many handlers run and none could be started; gives it
    /// back if so now. See [`Calm`].
    pub fn when_still(&self, waker: O::Waker, running: usize) -> Result<(), O::Waker> {
        self.gate.when(Calm::Still(running), waker)
    }

    /// Whether at most so many handlers run and none could be started. See [`Calm`].
    pub fn is_still(&self, running: usize) -> bool {
        self.gate.is(Calm::Still(running))
    }

    /// See [`Gate::discard`].
    pub fn discard(&self, now: Nanos) {
        let mut effects = Effects::default();
        self.gate.discard(now, &mut effects);
        self.carry_out(effects, now);
    }

    /// All lanes.
    pub fn lanes(&self) -> Vec<Arc<Lane<O>>> {
        self.gate.lanes()
    }

    /// See [`Gate::try_lanes`].
    pub fn try_lanes(&self) -> Option<Vec<Arc<Lane<O>>>> {
        self.gate.try_lanes()
    }

    /// See [`Gate::begin_wait`].
    pub fn begin_wait(
        &self,
        origin: LaneId,
        lanes: Vec<Arc<Lane<O>>>,
    ) -> Result<WaitId, EngineError> {
        self.gate.begin_wait(origin, lanes)
    }

    /// Ends a wait.
    pub fn end_wait(&self, wait: &WaitId) {
        self.gate.end_wait(wait);
    }

    /// Counts a publish of a key that was seen, which did not come to the gate.
    pub fn count_duplicate(&self) {
        self.gate.count_duplicate();
    }

    /// Counts a publish that was refused before it came here.
    pub fn count_rejected(&self) {
        self.gate.count_rejected();
    }

    /// A publisher begins to wait for the fate of an equal key, or stops doing so.
    pub fn count_joined(&self, joined: bool) {
        self.gate.count_joined(joined);
    }

    /// A publisher that waited for the fate of an equal key gave up.
    pub fn count_cancelled(&self) {
        self.gate.count_cancelled();
    }

    /// The whole ledger, of one moment.
    pub fn report(&self) -> Report<O> {
        self.gate.report()
    }

    /// See [`Gate::clear`].
    pub fn clear(&self) {
        self.timers.clear();
        self.gate.clear();
    }

    /// Events that are kept for the start.
    pub fn kept(&self) -> usize {
        self.gate.held()
    }
}
