//! Events of a bus with a journal. They are numbered under the gate, in the order in which
//! the journal gets them, and let into lanes once their commit is flushed. A durable lane
//! is given what it has room for; the rest spills: it is in the journal, and comes from there
//! when there is room, with the event that a publisher may still ask about.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::effects::{Effects, signal};
use super::{Arrival, Door, Gate, Held, State, Timing};
use crate::engine::clock::Nanos;
use crate::engine::lane::{Entry, Lane, Until};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::router::{Route, Router};
use crate::engine::settlement::Envelope;
use crate::engine::sync::{Arc, Shared, lock};

/// An event whose commit is over, or that comes out of the journal again.
pub struct Committed<O: Ops> {
    /// Its type.
    pub event_type: std::sync::Arc<str>,
    /// Its number.
    pub sequence: u64,
    /// Its level.
    pub level: Priority,
    /// What it is ordered by.
    pub token: u64,
    /// The event.
    pub event: Shared<Envelope<O>>,
    /// When it may be delivered, if not always.
    pub timing: Option<Timing>,
}

/// The routes of events that have just entered lanes.
#[must_use = "idle lanes do not look by themselves"]
pub struct Entered<O: Ops>(Vec<Arc<Route<O>>>);

impl<O: Ops> Entered<O> {
    /// Schedules the lanes that were idle. Called with no lock held.
    pub fn signal(self) {
        self.0.iter().for_each(|route| signal(route));
    }
}

/// What a durable lane was not given.
pub(super) struct Spill<O: Ops> {
    /// Events that somebody may ask about, or that are at hand anyway.
    kept: HashMap<u64, Shared<Envelope<O>>>,
    /// With so many, those that nobody can ask about go.
    prune_at: usize,
    refills: [Option<Refilling<O>>; Priority::COUNT],
    /// Deliveries that were begun before, and have their place among those that are still to come out of
    /// the journal.
    begun: [VecDeque<Begun<O>>; Priority::COUNT],
}

/// A delivery that was begun before, and what it waits for.
pub type Begun<O> = (Entry<O>, Option<Until>);

/// A level that is being given older events.
struct Refilling<O: Ops> {
    /// For how many at most there must be room.
    room: usize,
    /// Newer ones, which come behind them.
    overtaken: Vec<Newcomer<O>>,
}

/// An event for a lane.
struct Newcomer<O: Ops> {
    sequence: u64,
    at: Nanos,
    token: u64,
    event: Shared<Envelope<O>>,
    timing: Option<Timing>,
}

const FEW: usize = 1024;

impl<O: Ops> Default for Spill<O> {
    fn default() -> Self {
        Self {
            kept: HashMap::new(),
            prune_at: FEW,
            refills: Default::default(),
            begun: Default::default(),
        }
    }
}

impl<O: Ops> Spill<O> {
    fn keep(&mut self, sequence: u64, event: Shared<Envelope<O>>, effects: &mut Effects<O>) {
        if self.kept.len() >= self.prune_at {
            let alone = |_: &u64, event: &mut Shared<Envelope<O>>| Shared::strong_count(event) == 1;
            let gone = self.kept.extract_if(alone);
            effects.forget(gone.map(|(_, event)| event));
            self.prune_at = (self.kept.len() * 2).max(FEW);
        }
        self.kept.insert(sequence, event);
    }
}

impl<O: Ops> Gate<O> {
    /// Whether events go to lanes, and are not kept.
    pub fn is_open(&self) -> bool {
        lock(&self.state).open
    }

    /// Numbers go on behind this one.
    pub fn number_behind(&self, last: u64) {
        let _state = lock(&self.state);
        self.sequencer.go_on_behind(last);
    }

    /// The number that was given last.
    pub fn last_number(&self) -> u64 {
        let _state = lock(&self.state);
        self.sequencer.last()
    }

    /// Counts a publish of a key that was seen.
    pub fn count_duplicate(&self) {
        let counts = &mut lock(&self.state).counts;
        counts.offered += 1;
        counts.duplicate += 1;
    }

    /// Lets events in whose commit is flushed, in their order. Their lanes are yet to be told.
    pub fn commit(
        &self,
        events: &[Committed<O>],
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> Entered<O> {
        let mut routes = Vec::new();
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        state.counts.waiting -= events.len() as u64;
        state.counts.accepted += events.len() as u64;
        state.uncommitted -= events.len();
        for event in events {
            let held = Held {
                event_type: (&*event.event_type).into(),
                sequence: event.sequence,
                at: now,
                level: event.level,
                token: event.token,
                event: event.event.clone(),
                timing: event.timing,
                durable: true,
            };
            if state.open {
                // Whoever called has the event, too: nothing is dropped here.
                state.let_in(&self.router, &held, now, effects, &mut routes);
            } else {
                // A lane that was through with all until now is not any more: it is not to go on
                // behind an event that it was not given.
                for lane in &self.router.route(&held.event_type).lanes {
                    if let Some(backing) = &lane.options.backing {
                        backing.accept(held.level, held.sequence, false);
                    }
                }
                state.held.push_back(held);
            }
        }
        self.notice_quiet(state, effects);
        Entered(routes)
    }

    /// The commit of so many events has failed; `unknown`: perhaps.
    pub fn fail_commit(&self, count: usize, unknown: bool, effects: &mut Effects<O>) {
        let mut state = lock(&self.state);
        state.counts.waiting -= count as u64;
        state.uncommitted -= count;
        if unknown {
            state.counts.unknown += count as u64;
        } else {
            state.counts.rejected += count as u64;
        }
        self.notice_quiet(&mut state, effects);
    }

    /// Begins to give a durable lane older events of a level: how many there is room for. None: there is
    /// no room, or it is being done already, or the bus or the lane is closed.
    pub fn begin_refill(&self, lane: &Lane<O>, level: Priority) -> Option<usize> {
        let mut state = lock(&self.state);
        let open = state.open;
        let spill = state.spill(lane).filter(|_| open)?;
        let refilling = &mut spill.refills[level.index()];
        let room = lane.window_room(level);
        if refilling.is_some() || room == 0 {
            return None;
        }
        *refilling = Some(Refilling {
            room,
            overtaken: Vec::new(),
        });
        Some(room)
    }

    /// The events of these numbers that are at hand.
    pub fn take_kept(
        &self,
        lane: &Lane<O>,
        numbers: impl Iterator<Item = u64>,
    ) -> Vec<Option<Shared<Envelope<O>>>> {
        let mut state = lock(&self.state);
        match state.spill(lane) {
            Some(spill) => numbers.map(|number| spill.kept.remove(&number)).collect(),
            None => numbers.map(|_| None).collect(),
        }
    }

    /// Gives the lane those events, and what was begun before up to a number, in order; then what came
    /// meanwhile. `over` is called in between. Whether there was any: then the lane is yet to be roused.
    #[allow(clippy::too_many_arguments)] // of one refill, and each from elsewhere
    pub fn end_refill(
        &self,
        lane: &Arc<Lane<O>>,
        level: Priority,
        events: &[Committed<O>],
        through: u64,
        over: impl FnOnce(),
        now: Nanos,
        effects: &mut Effects<O>,
    ) -> bool {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let refilling = state
            .spill(lane)
            .and_then(|spill| spill.refills[level.index()].take());
        over();
        let Some(refilling) = refilling else {
            return false;
        };
        let before = state.door(lane).routed;
        for event in events {
            let timing = event.timing.as_ref();
            let (sequence, token) = (event.sequence, event.token);
            state.push_begun(lane, level, sequence, effects);
            state.push(
                lane,
                &Arrival {
                    sequence,
                    at: now,
                    token,
                    level,
                    event: &event.event,
                    timing,
                },
                effects,
            );
        }
        state.push_begun(lane, level, through + 1, effects);
        let overtaken = refilling.overtaken.into_iter().map(|newcomer| {
            let timing = newcomer.timing.as_ref();
            let (sequence, at, token) = (newcomer.sequence, newcomer.at, newcomer.token);
            state.push(
                lane,
                &Arrival {
                    sequence,
                    at,
                    token,
                    level,
                    event: &newcomer.event,
                    timing,
                },
                effects,
            );
            newcomer.event
        });
        let overtaken: Vec<_> = overtaken.collect();
        effects.forget(overtaken);
        self.notice_quiet(state, effects);
        state.door(lane).routed != before
    }

    /// Takes everything out of a durable lane that waits there, as if it had never come: the journal has it.
    pub fn take_back(&self, lane: &Lane<O>, effects: &mut Effects<O>) {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some(door) = state.doors.get_mut(lane.slot).and_then(Option::as_mut) else {
            return;
        };
        if door.lane.id != lane.id {
            return;
        }
        let Some(spill) = &mut door.spill else {
            return;
        };
        spill.refills = Default::default();
        let begun = std::mem::take(&mut spill.begun).into_iter().flatten();
        for (entry, _) in begun {
            spill.keep(entry.sequence, entry.into_event(), effects);
        }
        let mut letters = Vec::new();
        for entry in lane.take_back() {
            if entry.letter().is_some() {
                // A dead letter that is delivered again is not the journal's.
                letters.push(entry);
                continue;
            }
            door.routed -= 1;
            spill.keep(entry.sequence, entry.into_event(), effects);
        }
        for letter in letters {
            lane.entering(letter.level);
            // Nothing runs while the journal is closed: the start looks at all lanes.
            let _ = lane.readmit(letter);
        }
    }

    /// Lets entries into a durable lane that were begun before. Those of `later` wait for what is in front of
    /// them in the journal. The lane is yet to be roused.
    pub fn resume(
        &self,
        lane: &Arc<Lane<O>>,
        entries: Vec<Begun<O>>,
        later: Vec<Begun<O>>,
        effects: &mut Effects<O>,
    ) {
        let mut state = lock(&self.state);
        let door = state.doors.get_mut(lane.slot).and_then(Option::as_mut);
        let Some(door) = door.filter(|door| door.lane.id == lane.id) else {
            let all = entries.into_iter().chain(later);
            return effects.forget(all.map(|(entry, _)| entry.into_event()));
        };
        if let Some(spill) = &mut door.spill {
            for (entry, until) in later {
                spill.begun[entry.level.index()].push_back((entry, until));
            }
        }
        for (entry, until) in entries {
            door.routed += 1;
            lane.entering(entry.level);
            if let Some(due) = lane.resume(entry, until) {
                effects.come_by(due, lane);
            }
        }
    }
}

impl<O: Ops> Door<O> {
    /// Whether the lane is being given older events.
    pub(super) fn is_refilled(&self) -> bool {
        let spill = self.spill.as_ref();
        spill.is_some_and(|spill| spill.refills.iter().any(Option::is_some))
    }
}

impl<O: Ops> State<O> {
    fn spill(&mut self, lane: &Lane<O>) -> Option<&mut Spill<O>> {
        let door = self.doors.get_mut(lane.slot)?.as_mut();
        door.filter(|door| door.lane.id == lane.id)?
            .spill
            .as_deref_mut()
    }

    /// Pushes what was begun before, and comes before this number.
    fn push_begun(
        &mut self,
        lane: &Lane<O>,
        level: Priority,
        before: u64,
        effects: &mut Effects<O>,
    ) {
        let door = self.doors.get_mut(lane.slot).and_then(Option::as_mut);
        let Some(door) = door.filter(|door| door.lane.id == lane.id) else {
            return;
        };
        let Some(spill) = &mut door.spill else { return };
        let begun = &mut spill.begun[level.index()];
        while let Some((entry, _)) = begun.front()
            && entry.sequence < before
            && let Some((entry, until)) = begun.pop_front()
        {
            door.routed += 1;
            lane.entering(level);
            match until {
                None => door.tails[level.index()].push(entry),
                Some(Until::Retry(due)) => lane.queue_retry(entry, due),
                Some(Until::Due(due)) => {
                    if let Some(due) = lane.put_off(entry, due) {
                        effects.come_by(due, lane);
                    }
                }
            }
        }
    }

    /// An event of the journal, to all its lanes.
    pub(super) fn let_in(
        &mut self,
        router: &Router<O>,
        held: &Held<O>,
        now: Nanos,
        effects: &mut Effects<O>,
        routes: &mut Vec<Arc<Route<O>>>,
    ) {
        let route = router.route(&held.event_type);
        // However many of its subscriptions want the event, the journal has it once.
        let again = |at: usize, lane: &Arc<Lane<O>>| {
            lane.options.backing.is_some()
                && route.lanes[..at].iter().any(|other| other.id == lane.id)
        };
        let lanes = route.lanes.iter().enumerate();
        let doubles = lanes.clone().filter(|(at, lane)| again(*at, lane)).count();
        held.event.set_route(route.clone());
        effects.wake(held.event.routed(route.owed - doubles));
        for (at, lane) in lanes {
            match &lane.options.backing {
                None => self.push(lane, &held.arrival(held.at), effects),
                Some(_) if again(at, lane) => {}
                Some(backing) => {
                    let Some(spill) = self.spill(lane) else {
                        continue;
                    };
                    let refilling = &mut spill.refills[held.level.index()];
                    let coming = refilling.as_ref();
                    let coming = coming.map_or(0, |it| it.room + it.overtaken.len());
                    let room = lane.window_room(held.level) > coming;
                    if !backing.accept(held.level, held.sequence, room) {
                        spill.keep(held.sequence, held.event.clone(), effects);
                    } else if let Some(refilling) = refilling {
                        refilling.overtaken.push(Newcomer {
                            sequence: held.sequence,
                            at: now,
                            token: held.token,
                            event: held.event.clone(),
                            timing: held.timing,
                        });
                    } else {
                        self.push(lane, &held.arrival(now), effects);
                    }
                }
            }
        }
        // One entry for a run of events that go the same way.
        if routes.last().is_none_or(|last| !Arc::ptr_eq(last, &route)) {
            routes.push(route);
        }
    }
}
