//! A durable lane as a window over the journal: what stands between the lane and its
//! [`Subscription`], which there is while the journal is open.

use std::sync::{Arc, OnceLock, Weak};

use super::backlog::Backlog;
use super::refill::Refiller;
use crate::engine::backing::Backing;
use crate::engine::clock::{Nanos, SECOND};
use crate::engine::journal::Subscription;
use crate::engine::journal::in_flight::{InFlight, Slot, Suspect};
use crate::engine::lane::{Lane, LaneId};
use crate::engine::ops::{Ops, Seat};
use crate::engine::priority::Priority;
use crate::engine::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::engine::sync::{Mutex, lock};

/// A bit for each.
const ALL_LEVELS: u8 = (1 << Priority::COUNT) - 1;

/// See the module.
pub struct Window<O: Ops> {
    me: Weak<Self>,
    name: Box<str>,
    lane: OnceLock<(LaneId, Weak<Lane<O>>)>,
    refiller: Arc<Refiller<O>>,
    backlog: Arc<Backlog<O>>,
    attached: Mutex<Option<Attached>>,
    /// As its lane is: that is not looked for under the gate, to let go of it may be the end of it.
    paused: Mutex<bool>,
    /// Levels with events that the lane was not given.
    behind: [AtomicBool; Priority::COUNT],
    /// A bit for each level that the lane waits for before it starts anything.
    unfilled: AtomicU8,
}

/// While the journal is open.
struct Attached {
    subscription: Arc<Subscription>,
    page: Option<Arc<InFlight>>,
    /// Handlers that run.
    running: Vec<(u64, Slot)>,
    /// Places for others.
    spare: Vec<Slot>,
}

impl<O: Ops> Window<O> {
    pub(super) fn new(
        name: &str,
        refiller: Arc<Refiller<O>>,
        backlog: Arc<Backlog<O>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            name: name.into(),
            lane: OnceLock::new(),
            refiller,
            backlog,
            attached: Mutex::new(None),
            paused: Mutex::default(),
            behind: Default::default(),
            unfilled: AtomicU8::new(0),
        })
    }

    /// The name of its subscription.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn belongs_to(&self, lane: &Arc<Lane<O>>) {
        let set = self.lane.set((lane.id, Arc::downgrade(lane)));
        debug_assert!(set.is_ok());
    }

    pub(super) fn lane(&self) -> Option<Arc<Lane<O>>> {
        self.lane.get()?.1.upgrade()
    }

    /// The number of its lane.
    pub(super) fn lane_id(&self) -> LaneId {
        self.lane.get().map_or(0, |(id, _)| *id)
    }

    /// See [`Subscription::settled_through`]; none: it is not at work, and nobody waits for it.
    pub(super) fn settled_through(&self, offered: u64) -> Option<(u64, u64)> {
        if *lock(&self.paused) {
            return None;
        }
        Some(self.subscription()?.settled_through(offered))
    }

    /// Gets on by so many at least, if it is only held back by a few.
    pub(super) fn leave_behind(&self, offered: u64, least: u64) -> bool {
        self.subscription()
            .is_some_and(|subscription| subscription.leave_behind(offered, least))
    }

    /// It may be through with more than before.
    pub(super) fn moved(&self) {
        if self.backlog.waits_for(self.lane_id()) {
            self.refiller.ask_line();
        }
    }

    /// Its place in the journal, while that is open.
    pub fn subscription(&self) -> Option<Arc<Subscription>> {
        let attached = lock(&self.attached);
        attached.as_ref().map(|it| it.subscription.clone())
    }

    pub(super) fn attach(&self, subscription: Arc<Subscription>, page: Option<Arc<InFlight>>) {
        for behind in &self.behind {
            behind.store(true, Ordering::SeqCst);
        }
        *lock(&self.attached) = Some(Attached {
            subscription,
            page,
            running: Vec::new(),
            spare: Vec::new(),
        });
    }

    pub(super) fn detach(&self) {
        let attached = lock(&self.attached).take();
        drop(attached);
    }

    /// In a child of the process that has the journal: nothing of it is touched.
    pub(super) fn abandon(&self) {
        std::mem::forget(lock(&self.attached).take());
    }

    /// The lane starts nothing before each level was filled: what comes first may be among that.
    pub(super) fn empty(&self, lane: &Arc<Lane<O>>) {
        self.unfilled.store(ALL_LEVELS, Ordering::SeqCst);
        let schedule = lane.await_window(true);
        debug_assert!(!schedule);
    }

    /// A level was given what it has room for, or cannot be: the lane does not wait for that any more.
    pub(super) fn filled(&self, level: Priority, lane: &Arc<Lane<O>>) {
        let level = 1 << level.index();
        let before = self.unfilled.fetch_and(!level, Ordering::SeqCst);
        if before == level && lane.await_window(false) {
            lane.seat().schedule(lane.clone());
        }
    }

    /// Under the gate, after the lane was given older events.
    pub(super) fn look(&self, level: Priority, subscription: &Subscription) {
        let behind = !subscription.place(level).caught_up;
        self.behind[level.index()].store(behind, Ordering::SeqCst);
    }

    /// Has the lane given what there is, as soon as it has room for some.
    pub(super) fn ask(&self, level: Priority) {
        if self.has_more(level)
            && let Some(lane) = self.lane()
            && lane.wants_more(level)
        {
            self.refiller.ask(&self.me, level);
        }
    }

    /// The handler of a delivery runs no more. Its subscription, while the journal is open.
    fn over(&self, sequence: u64) -> Option<Arc<Subscription>> {
        let mut attached = lock(&self.attached);
        let attached = attached.as_mut()?;
        let at = attached.running.iter().position(|(it, _)| *it == sequence);
        if let Some(at) = at {
            let (_, slot) = attached.running.swap_remove(at);
            slot.clear();
            attached.spare.push(slot);
        }
        Some(attached.subscription.clone())
    }
}

impl<O: Ops> Backing for Window<O> {
    fn accept(&self, level: Priority, sequence: u64, room: bool) -> bool {
        let Some(subscription) = self.subscription() else {
            return false;
        };
        let accepted = subscription.accept(level, sequence, room);
        if !accepted && !subscription.place(level).caught_up {
            self.behind[level.index()].store(true, Ordering::SeqCst);
        }
        accepted
    }

    fn has_more(&self, level: Priority) -> bool {
        self.behind[level.index()].load(Ordering::SeqCst)
    }

    fn begin(&self, level: Priority, sequence: u64, attempt: u32) {
        let mut attached = lock(&self.attached);
        let Some(attached) = attached.as_mut() else {
            return;
        };
        let page = attached.page.as_ref();
        let slot = attached
            .spare
            .pop()
            .or_else(|| page.and_then(InFlight::slot));
        let Some(slot) = slot else { return };
        slot.note(&Suspect {
            subscription: attached.subscription.id(),
            level,
            sequence,
            attempt,
        });
        attached.running.push((sequence, slot));
    }

    fn settle(&self, level: Priority, sequence: u64) {
        if let Some(subscription) = self.over(sequence) {
            subscription.settle(level, sequence);
        }
        self.moved();
        self.ask(level);
    }

    fn settled(&self, level: Priority, sequence: u64) {
        self.over(sequence);
        self.moved();
        self.ask(level);
    }

    fn retry(&self, level: Priority, sequence: u64, attempts: u32, after: Nanos) {
        if let Some(subscription) = self.over(sequence) {
            let after = after as f64 / SECOND as f64;
            subscription.try_again(level, sequence, attempts, after);
        }
        self.moved();
        self.ask(level);
    }

    fn paused(&self) {
        let lane = self.lane();
        {
            let mut paused = lock(&self.paused);
            *paused = lane.as_ref().is_some_and(|lane| lane.is_paused());
        }
        self.backlog.changed();
        self.refiller.ask_line();
    }

    fn put_back(&self, sequence: u64) {
        self.over(sequence);
    }

    fn has_room(&self, level: Priority) {
        self.ask(level);
    }
}
