//! The durable lanes of a bus, and how each comes to its subscription in the journal.

use std::sync::Arc;

use super::refill::revived;
use super::{Durable, Open, Revive, Window, doomed, nanos_at};
use crate::engine::backing::Backing;
use crate::engine::bus::Bus;
use crate::engine::clock::Nanos;
use crate::engine::gate::{Begun, Effects};
use crate::engine::journal::{
    Event, Journal, JournalError, Straggler, StragglerState, Subscription,
};
use crate::engine::lane::{Entry, Lane, LaneOptions, Overflow, Until};
use crate::engine::ops::Ops;
use crate::engine::priority::Priority;
use crate::engine::store::{Durability, WallSeconds};
use crate::engine::sync::lock;
use crate::engine::topic::Topic;

/// Where a new subscription begins. One that is in the journal goes on where it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Since {
    /// With what comes.
    Now,
    /// With the oldest event that is kept.
    Start,
    /// With this number.
    Sequence(u64),
    /// With what was accepted at this time or later.
    Time(WallSeconds),
}

/// A handler that has ended its process so often is not called again for the same event, unless its
/// retries allow more.
const KILLS: u32 = 3;

/// Stragglers that are read at once.
const PAGE: usize = 1024;

struct Member<O: Ops> {
    window: Arc<Window<O>>,
    since: Since,
    /// By the numbers of the bus's subscriptions.
    topics: Vec<(u64, Vec<String>)>,
}

/// See the module.
pub(super) struct Members<O: Ops>(Vec<Member<O>>);

impl<O: Ops> Default for Members<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<O: Ops> Member<O> {
    fn topics(&self) -> Vec<String> {
        let mut topics: Vec<String> = Vec::new();
        for topic in self.topics.iter().flat_map(|(_, topics)| topics) {
            if !topics.contains(topic) {
                topics.push(topic.clone());
            }
        }
        topics
    }

    fn after(&self, journal: &Journal, now: u64) -> Result<u64, JournalError> {
        Ok(match self.since {
            Since::Now => now,
            Since::Start => 0,
            Since::Sequence(first) => first.saturating_sub(1).min(now),
            Since::Time(time) => journal.position_at(time)?,
        })
    }
}

impl<O: Ops> Members<O> {
    pub(super) fn windows(&self) -> impl Iterator<Item = &Arc<Window<O>>> {
        self.0.iter().map(|member| &member.window)
    }

    /// The names of those that listen to something.
    pub(super) fn names(&self) -> impl Iterator<Item = String> + '_ {
        let here = self.0.iter().filter(|member| !member.topics.is_empty());
        here.map(|member| member.window.name().to_owned())
    }

    /// Attaches all windows to a journal that was just opened.
    pub(super) fn attach_all(&self, bus: &Bus<O>, open: &Open<O>) -> Result<(), JournalError> {
        let here = self.0.iter().filter(|member| !member.topics.is_empty());
        let here: Vec<_> = here.collect();
        let mut wanted = Vec::with_capacity(here.len());
        for member in &here {
            let after = member.after(&open.journal, open.opened_at)?;
            wanted.push((member.window.name().to_owned(), member.topics(), after));
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let subscriptions = open.journal.register_all(wanted)?;
        for (member, subscription) in here.into_iter().zip(subscriptions) {
            attach(bus, open, &member.window, subscription)?;
        }
        Ok(())
    }
}

fn attach<O: Ops>(
    bus: &Bus<O>,
    open: &Open<O>,
    window: &Arc<Window<O>>,
    subscription: Arc<Subscription>,
) -> Result<(), JournalError> {
    let Some(lane) = window.lane() else {
        return Ok(());
    };
    let mut stragglers = Vec::new();
    let mut after = None;
    loop {
        let page = subscription.stragglers(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some((last.level, last.sequence));
        stragglers.extend(page);
    }
    let mut left = Some(stragglers);
    let revive = &*open.revive;
    revive.attached(&mut || {
        let now = revive.now();
        let mut effects = Effects::default();
        window.empty(&lane);
        bus.gate.take_back(&lane, &mut effects);
        window.attach(subscription.clone(), open.journal.in_flight());
        let stragglers = left.take().unwrap_or_default();
        // One that only died has not failed for that; but it may have before.
        let failing = |(it, _): &(Straggler, _)| match it.state {
            StragglerState::Retry => it.attempt > 0,
            StragglerState::Suspect => it.attempt > 1,
            StragglerState::Waiting | StragglerState::Redrive => false,
        };
        if stragglers.iter().any(failing) {
            // A breaker that forgot that would cost them attempts.
            lane.doubt_breaker(now);
        }
        let (mut entries, mut later) = (Vec::new(), Vec::new());
        for (straggler, event) in stragglers {
            let (level, sequence) = (straggler.level, straggler.sequence);
            let Some(event) = event else {
                // It is gone, or damaged: that is noted where it is. Nobody can be given it.
                subscription.settle(level, sequence);
                continue;
            };
            let (entry, until) = begun(bus, revive, &lane, &straggler, event, now);
            if sequence <= subscription.place(level).position {
                entries.push((entry, until));
            } else {
                // What is in front of it may be settled, and that was not written any more: it comes
                // again, and comes first.
                later.push((entry, until));
            }
        }
        bus.gate.resume(&lane, entries, later, &mut effects);
        bus.carry_out(effects, now);
        // It may be further behind than all others.
        window.paused();
        for level in Priority::ALL {
            if !lane.wants_more(level) {
                // Nobody will ask for it.
                window.filled(level, &lane);
            }
        }
    });
    Ok(())
}

/// A delivery that was begun by another process, or before the journal was closed.
fn begun<O: Ops>(
    bus: &Bus<O>,
    revive: &dyn Revive<O>,
    lane: &Arc<Lane<O>>,
    straggler: &Straggler,
    event: Event,
    now: Nanos,
) -> Begun<O> {
    let kept = bus.gate.take_kept(lane, std::iter::once(event.sequence));
    let kept = kept.into_iter().flatten().next();
    let (envelope, wrong) = kept.map_or_else(|| revived(revive, &event), |kept| (kept, None));
    let attempts = lane.options.retry.as_ref();
    let allowed = attempts.map_or(1, |retry| retry.max_attempts).max(KILLS);
    let killed = straggler.state == StragglerState::Suspect && straggler.attempt >= allowed;
    let wrong = wrong.or_else(|| killed.then(|| revive.killed()));
    if let Some(failure) = wrong {
        let mut entry = doomed(&event, envelope, failure, now);
        entry.attempt = straggler.attempt;
        return (entry, None);
    }
    let wall = revive.wall();
    let at = |time: WallSeconds| nanos_at(time, wall, now);
    let expires = event.expires.map(at);
    let token = revive.token(&event);
    let mut entry = Entry::new(event.sequence, now, token, event.level, envelope, expires);
    entry.attempt = straggler.attempt;
    if straggler.attempt > 0 {
        entry.rare().first_failure = Some(now);
    }
    let due = straggler.due.or(event.due).map(at);
    let until = match straggler.state {
        StragglerState::Waiting => Until::Due,
        _ => Until::Retry,
    };
    (entry, due.filter(|due| *due > now).map(until))
}

impl<O: Ops> Durable<O> {
    /// The window of a durable lane.
    fn window(&self, lane: &Lane<O>) -> Option<Arc<Window<O>>> {
        lock(&self.windows).get(&lane.id).cloned()
    }

    /// Makes a durable lane that no event reaches yet.
    pub fn make_lane(
        &self,
        bus: &Bus<O>,
        options: LaneOptions,
        since: Since,
        handler: O::Handler,
        seat: Arc<O::Seat>,
    ) -> Arc<Lane<O>> {
        let window = Window::new(&options.name, self.refiller.clone(), self.backlog.clone());
        let options = LaneOptions {
            overflow: Overflow::Spill,
            backing: Some(window.clone()),
            ..options
        };
        let lane = bus.make_lane(options, handler, seat);
        window.belongs_to(&lane);
        lock(&self.windows).insert(lane.id, window.clone());
        lock(&self.changing).0.push(Member {
            window,
            since,
            topics: Vec::new(),
        });
        lane
    }

    /// Begins a subscription of a durable lane and returns its number. Waits for the disk while the
    /// journal is open.
    pub fn subscribe(
        &self,
        bus: &Bus<O>,
        topics: Vec<String>,
        lane: &Arc<Lane<O>>,
        now: Nanos,
    ) -> Result<u64, JournalError> {
        let mut members = lock(&self.changing);
        let parsed: Vec<Topic> = topics.iter().map(|topic| Topic::new(topic)).collect();
        let Some(window) = self.window(lane) else {
            return Ok(bus.subscribe(parsed, lane, now));
        };
        let member = members.0.iter_mut();
        let member = member
            .into_iter()
            .find(|it| Arc::ptr_eq(&it.window, &window));
        let Some(member) = member else {
            return Ok(bus.subscribe(parsed, lane, now));
        };
        member.topics.push((0, topics));
        let number = match (self.opened(), window.subscription()) {
            (None, _) => Ok(bus.subscribe(parsed, lane, now)),
            (Some(open), Some(subscription)) => {
                let mut number = 0;
                let added = || number = bus.subscribe(parsed, lane, now);
                open.journal
                    .listen(&subscription, member.topics(), added)
                    .map(|()| number)
            }
            (Some(open), None) => {
                let begin = match bus.gate.is_open() {
                    true => bus.gate.last_number(),
                    // What was published before the start also reaches who subscribes before it.
                    false => open.opened_at,
                };
                let name = window.name().to_owned();
                let after = member.after(&open.journal, begin);
                after
                    .and_then(|after| {
                        let wanted = vec![(name, member.topics(), after)];
                        open.journal.register_all(wanted)
                    })
                    .and_then(|made| {
                        made.into_iter()
                            .try_for_each(|it| attach(bus, &open, &window, it))
                    })
                    .map(|()| bus.subscribe(parsed, lane, now))
            }
        };
        match number {
            Ok(number) => {
                if let Some((it, _)) = member.topics.last_mut() {
                    *it = number;
                }
                lock(&self.names).insert(window.name().to_owned());
                Priority::ALL
                    .into_iter()
                    .for_each(|level| window.ask(level));
                Ok(number)
            }
            Err(error) => {
                member.topics.pop();
                Err(error)
            }
        }
    }

    /// The subscriptions in the journal that nobody here has, as of the last opening. Waits for nothing.
    pub fn absent(&self) -> Vec<String> {
        let here: Vec<_> = lock(&self.windows).values().cloned().collect();
        let names = lock(&self.names);
        let absent = names
            .iter()
            .filter(|name| here.iter().all(|window| window.name() != name.as_str()));
        absent.cloned().collect()
    }

    /// Lets go of such a subscription, with all that it had still to do. Waits for the disk.
    pub fn forget(&self, name: &str) -> Result<(), JournalError> {
        let _nobody_comes_meanwhile = lock(&self.changing);
        let journal = self.journal().ok_or(JournalError::Closed)?;
        if lock(&self.windows).values().any(|it| it.name() == name) {
            return Err(JournalError::Registered { name: name.into() });
        }
        journal.forget(name)?;
        lock(&self.names).remove(name);
        Ok(())
    }

    /// Ends a subscription; with `close`, also its lane: what it has still to do stays in the journal.
    /// Waits for the disk while the journal is open.
    pub fn unsubscribe(
        &self,
        bus: &Bus<O>,
        number: u64,
        lane: &Arc<Lane<O>>,
        close: bool,
        now: Nanos,
    ) -> Result<(), JournalError> {
        let mut members = lock(&self.changing);
        bus.unsubscribe(number, lane, close, now);
        let Some(window) = self.window(lane) else {
            return Ok(());
        };
        if close {
            lock(&self.windows).remove(&lane.id);
            window.detach();
            // Nobody waits for it any more.
            self.backlog.changed();
            self.refiller.ask_line();
            members
                .0
                .retain(|member| !Arc::ptr_eq(&member.window, &window));
            // Who takes its name next finds in the file what it has settled.
            let journal = self.journal();
            return journal.map_or(Ok(()), |journal| journal.flush(Durability::Os));
        }
        let of_window = |it: &&mut Member<O>| Arc::ptr_eq(&it.window, &window);
        let Some(member) = members.0.iter_mut().find(of_window) else {
            return Ok(());
        };
        member.topics.retain(|(it, _)| *it != number);
        match (self.opened(), window.subscription()) {
            (Some(open), Some(subscription)) => {
                open.journal.listen(&subscription, member.topics(), || ())
            }
            _ => Ok(()),
        }
    }
}
