//! A subscription's place in the journal: a window that the bus fills its lane from, and the
//! settlements that come back.
//!
//! A level is *caught up* when everything that was committed has been offered to it; from then on
//! a commit hands events over directly. Where the lane has no room it falls behind, and is
//! refilled from the journal when it has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::cursor::{Cursor, MAX_RUNS, Settled};
use super::error::JournalError;
use super::event::Event;
use super::storage::{
    Change, CursorRow, Damage, Range, Straggler, StragglerState, SubscriptionId, SubscriptionRow,
};
use crate::engine::priority::Priority;
use crate::engine::store::WallSeconds;
use crate::engine::sync::{Mutex, lock};
use crate::engine::topic::Topic;

/// What holds a cursor back for longer than this is left behind.
const PATIENCE: WallSeconds = 10.0;

/// So many events are looked at in one refill, so that a lane for few of them waits for no scan
/// of a whole journal.
const BUDGET: usize = 20_000;

#[derive(Default)]
struct Level {
    cursor: Cursor,
    caught_up: bool,
    /// The cursor differs from what is stored.
    touched: bool,
    /// Where the cursor has been, and since when.
    held: Option<(u64, WallSeconds)>,
}

#[derive(Default)]
struct Progress {
    levels: [Level; Priority::COUNT],
    changes: Vec<Change>,
    /// Failed attempts of events that are handed out, and when the next one is.
    attempts: HashMap<(Priority, u64), (u32, Option<WallSeconds>)>,
    /// Left behind so that nobody waits for them, and handed out still.
    left: HashSet<(Priority, u64)>,
    /// The queue has it.
    marked: bool,
}

/// See the module.
pub struct Subscription {
    id: SubscriptionId,
    name: Box<str>,
    topics: Mutex<Arc<[Topic]>>,
    shared: Arc<Shared>,
    progress: Mutex<Progress>,
    refilling: Mutex<()>,
}

/// The next events of a level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Refill {
    /// In their order. They are handed out: each is to be settled.
    pub events: Vec<Event>,
    /// Nothing is left to refill: commits hand over from now on.
    pub caught_up: bool,
    /// What was missing or damaged on the way.
    pub damage: Vec<Damage>,
}

/// Where a subscription is on a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Everything up to here is settled, or a straggler.
    pub position: u64,
    /// Everything up to here was handed out.
    pub scanned: u64,
    /// Handed out and not settled.
    pub open: usize,
    /// Settled out of order.
    pub runs: usize,
    /// Commits hand over.
    pub caught_up: bool,
}

impl Subscription {
    pub(super) fn new(row: &SubscriptionRow, cursors: Vec<CursorRow>, shared: Arc<Shared>) -> Self {
        let mut progress = Progress::default();
        for row in cursors {
            progress.levels[row.level.index()].cursor = Cursor::new(row.position, row.runs);
        }
        Self {
            id: row.id,
            name: row.name.as_str().into(),
            topics: Mutex::new(row.topics.iter().map(|topic| Topic::new(topic)).collect()),
            shared,
            progress: Mutex::new(progress),
            refilling: Mutex::new(()),
        }
    }

    /// Its number in the journal.
    pub fn id(&self) -> SubscriptionId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is on a level.
    pub fn place(&self, level: Priority) -> Place {
        let progress = lock(&self.progress);
        let level = &progress.levels[level.index()];
        Place {
            position: level.cursor.position(),
            scanned: level.cursor.scanned(),
            open: level.cursor.open(),
            runs: level.cursor.runs().len(),
            caught_up: level.caught_up,
        }
    }

    /// Everything up to here is settled on all levels, or a straggler, if everything up to `offered` was
    /// [offered](Self::accept) to it; and how much of that it has [left behind](Self::leave_behind).
    pub fn settled_through(&self, offered: u64) -> (u64, u64) {
        let progress = lock(&self.progress);
        let left = progress.left.len() as u64;
        let levels = progress.levels.iter().map(|level| {
            let position = level.cursor.position();
            match level.caught_up && level.cursor.open() == 0 {
                // An idle one looks only now and then at what is not its own.
                true => position.max(offered),
                false => position,
            }
        });
        (levels.min().unwrap_or(offered), left)
    }

    /// Where few events that are handed out hold a level back at many that are done, or not its own, leaves
    /// them behind, if it gets on by `least` at least. False: there is no such level.
    pub fn leave_behind(self: &Arc<Self>, offered: u64, least: u64) -> bool {
        let mut progress = lock(&self.progress);
        let mut moved = false;
        for level in Priority::ALL {
            let place = &mut progress.levels[level.index()];
            let cursor = &mut place.cursor;
            let through = match place.caught_up {
                true => offered.max(cursor.scanned()),
                false => cursor.scanned(),
            };
            let gain = through.saturating_sub(cursor.position());
            let open = cursor.open();
            if open == 0 || open > MAX_RUNS || gain < least || open as u64 * 2 > gain {
                continue;
            }
            let left = cursor.leave(through);
            progress.left.extend(left.iter().map(|it| (level, *it)));
            self.put_aside(&mut progress, level, left);
            self.touch(&mut progress, level);
            moved = true;
        }
        moved
    }

    /// The cursor goes on without these.
    fn put_aside(&self, progress: &mut Progress, level: Priority, left: Vec<u64>) {
        for sequence in left {
            let attempts = progress.attempts.remove(&(level, sequence));
            let (attempt, due) = attempts.unwrap_or_default();
            let state = match attempt {
                0 => StragglerState::Waiting,
                _ => StragglerState::Retry,
            };
            let straggler = self.straggler(level, sequence, attempt, due, state);
            progress.changes.push(Change::Put(straggler));
        }
    }

    /// From within [`Observer::committed`](super::Observer::committed), for every event that is
    /// this subscription's, in order: whether the lane is to be given it now. Without room the
    /// level falls behind, and is refilled.
    pub fn accept(&self, level: Priority, sequence: u64, room: bool) -> bool {
        let mut progress = lock(&self.progress);
        let level = &mut progress.levels[level.index()];
        if !level.caught_up || sequence <= level.cursor.scanned() {
            return false;
        }
        level.caught_up = room;
        if room {
            level.cursor.hand(sequence);
        } else {
            level.cursor.pass(sequence - 1);
        }
        room
    }

    /// Up to `limit` of the next events of a level. Few or none without being caught up: call
    /// again. Reads the file; to be called with no lock held.
    pub fn refill(self: &Arc<Self>, level: Priority, limit: usize) -> Result<Refill, JournalError> {
        self.refill_through(level, limit, u64::MAX)
    }

    /// The same, and nothing beyond a number: what [`accept`](Self::accept) has not been asked
    /// about yet.
    pub fn refill_through(
        self: &Arc<Self>,
        level: Priority,
        limit: usize,
        through: u64,
    ) -> Result<Refill, JournalError> {
        let _one_at_a_time = lock(&self.refilling);
        let through = through.min(self.shared.committed.load(Ordering::Acquire));
        let after = {
            let progress = lock(&self.progress);
            let level = &progress.levels[level.index()];
            if level.caught_up {
                return Ok(Refill {
                    caught_up: true,
                    ..Refill::default()
                });
            }
            level.cursor.scanned()
        };
        let mut scan = super::storage::Scan {
            through: through.max(after),
            ..Default::default()
        };
        if through > after {
            let range = Range {
                after,
                through,
                limit,
                budget: BUDGET,
            };
            let topics = lock(&self.topics).clone();
            let wanted = |event_type: &str| wants(&topics, event_type);
            scan = self
                .shared
                .read(|reader| reader.scan(level, range, &wanted))?;
        }
        for damage in &scan.damage {
            self.shared.report(*damage);
        }
        let mut progress = lock(&self.progress);
        let place = &mut progress.levels[level.index()];
        let before = place.cursor.position();
        let mut events = scan.events;
        events.retain(|event| {
            let new = !place.cursor.is_settled(event.sequence);
            if new {
                place.cursor.hand(event.sequence);
            }
            new
        });
        place.cursor.pass(scan.through);
        // Whatever is committed from here on finds the level caught up; what was, we have read.
        place.caught_up = place.cursor.scanned() >= self.shared.committed.load(Ordering::Acquire);
        let caught_up = place.caught_up;
        if place.cursor.position() != before {
            self.touch(&mut progress, level);
        }
        Ok(Refill {
            events,
            caught_up,
            damage: scan.damage,
        })
    }

    /// Whether an event of this type is this subscription's.
    pub fn wants(&self, event_type: &str) -> bool {
        wants(&lock(&self.topics), event_type)
    }

    /// Listens to these from now on.
    pub(super) fn listen(&self, topics: &[String]) {
        *lock(&self.topics) = topics.iter().map(|topic| Topic::new(topic)).collect();
    }

    /// A delivery has its outcome. Written with the next batch: a crash before delivers again.
    pub fn settle(self: &Arc<Self>, level: Priority, sequence: u64) {
        let mut progress = lock(&self.progress);
        progress.settle(self.id, level, sequence);
        self.touch(&mut progress, level);
    }

    /// By the writer: whether a delivery is settled. None: it is, unless it is in the table of
    /// stragglers.
    pub(super) fn is_settled(&self, level: Priority, sequence: u64) -> Option<bool> {
        let progress = lock(&self.progress);
        let cursor = &progress.levels[level.index()].cursor;
        if cursor.is_open(sequence) || !cursor.is_settled(sequence) {
            return Some(false);
        }
        // What is not written yet counts.
        progress
            .changes
            .iter()
            .rev()
            .find_map(|change| match change {
                Change::Put(row) => {
                    (row.level == level && row.sequence == sequence).then_some(false)
                }
                Change::Gone(_, of, number) => {
                    (*of == level && *number == sequence).then_some(true)
                }
            })
    }

    /// By the writer: a unit that settles this is in the batch that is being written, and the
    /// writer takes the settlement right afterwards.
    pub(super) fn settle_with_unit(&self, level: Priority, sequence: u64) {
        lock(&self.progress).settle(self.id, level, sequence);
    }

    /// An attempt has failed and there will be another one.
    pub fn retry(
        self: &Arc<Self>,
        level: Priority,
        sequence: u64,
        attempt: u32,
        due: Option<WallSeconds>,
    ) {
        let mut progress = lock(&self.progress);
        if progress.levels[level.index()].cursor.is_open(sequence) {
            progress.attempts.insert((level, sequence), (attempt, due));
            return;
        }
        let straggler = self.straggler(level, sequence, attempt, due, StragglerState::Retry);
        progress.changes.push(Change::Put(straggler));
        self.touch(&mut progress, level);
    }

    /// An attempt has failed, and there will be another one, not before so many seconds have passed.
    /// It is left behind, so that a crash does not lose count.
    pub fn try_again(
        self: &Arc<Self>,
        level: Priority,
        sequence: u64,
        attempt: u32,
        after: WallSeconds,
    ) {
        let due = (after > 0.0).then(|| (self.shared.clock)() + after);
        self.defer(level, sequence, attempt, due, StragglerState::Retry);
    }

    /// Leaves a delivery behind: the cursor goes on without it, and the journal keeps what is to
    /// be known of it. It is settled like any other.
    pub fn defer(
        self: &Arc<Self>,
        level: Priority,
        sequence: u64,
        attempt: u32,
        due: Option<WallSeconds>,
        state: StragglerState,
    ) {
        let mut progress = lock(&self.progress);
        progress.attempts.remove(&(level, sequence));
        progress.left.remove(&(level, sequence));
        progress.levels[level.index()].cursor.settle(sequence);
        let straggler = self.straggler(level, sequence, attempt, due, state);
        progress.changes.push(Change::Put(straggler));
        self.touch(&mut progress, level);
    }

    /// Begins the redrive of a dead letter: a delivery that is a straggler from its beginning.
    pub fn redrive(self: &Arc<Self>, level: Priority, sequence: u64, dead_letter: &str) {
        let mut progress = lock(&self.progress);
        let straggler = Straggler {
            dead_letter: Some(dead_letter.to_owned()),
            ..self.straggler(level, sequence, 0, None, StragglerState::Redrive)
        };
        progress.changes.push(Change::Put(straggler));
        self.touch(&mut progress, level);
    }

    /// Stragglers behind this one, by level and sequence, with their events as far as they are
    /// there. Of a restart: those that were left when the journal was opened.
    pub fn stragglers(
        &self,
        after: Option<(Priority, u64)>,
        limit: usize,
    ) -> Result<Vec<(Straggler, Option<Event>)>, JournalError> {
        self.shared.read(|reader| {
            let found = reader.stragglers(self.id, after, limit)?;
            let mut with_events = Vec::with_capacity(found.len());
            for straggler in found {
                let event = reader.event(straggler.sequence)?;
                with_events.push((straggler, event));
            }
            Ok(with_events)
        })
    }

    fn straggler(
        &self,
        level: Priority,
        sequence: u64,
        attempt: u32,
        due: Option<WallSeconds>,
        state: StragglerState,
    ) -> Straggler {
        Straggler {
            subscription: self.id,
            level,
            sequence,
            attempt,
            due,
            state,
            dead_letter: None,
        }
    }

    fn touch(self: &Arc<Self>, progress: &mut Progress, level: Priority) {
        progress.levels[level.index()].touched = true;
        if !std::mem::replace(&mut progress.marked, true) {
            self.shared.queue.mark(self.clone());
        }
    }

    /// By the writer: what is to be stored now.
    pub(super) fn take(&self, now: WallSeconds) -> (Vec<CursorRow>, Vec<Change>) {
        let mut progress = lock(&self.progress);
        progress.marked = false;
        let mut rows = Vec::new();
        for level in Priority::ALL {
            let left = progress.levels[level.index()].left_behind(now);
            self.put_aside(&mut progress, level, left);
            let place = &mut progress.levels[level.index()];
            if std::mem::take(&mut place.touched) {
                rows.push(CursorRow {
                    subscription: self.id,
                    level,
                    position: place.cursor.position(),
                    runs: place.cursor.runs().collect(),
                });
            }
        }
        (rows, std::mem::take(&mut progress.changes))
    }

    /// By the writer: the batch failed before this was taken.
    pub(super) fn mark_again(self: &Arc<Self>) {
        lock(&self.progress).marked = true;
        self.shared.queue.mark(self.clone());
    }

    /// By the writer: what was taken did not get stored.
    pub(super) fn put_back(self: &Arc<Self>, rows: &[CursorRow], mut changes: Vec<Change>) {
        let mut progress = lock(&self.progress);
        changes.append(&mut progress.changes);
        progress.changes = changes;
        for row in rows {
            self.touch(&mut progress, row.level);
        }
    }

    /// By the writer: the batch of that unit did not get stored. The cursor has passed the
    /// delivery, so it is a straggler from now on.
    pub(super) fn unsettle(self: &Arc<Self>, level: Priority, sequence: u64) {
        let mut progress = lock(&self.progress);
        let straggler = self.straggler(level, sequence, 0, None, StragglerState::Waiting);
        progress.changes.push(Change::Put(straggler));
        self.touch(&mut progress, level);
    }

    /// By the writer, at times: levels that are caught up need not look at what was not theirs.
    pub(super) fn advance(self: &Arc<Self>, through: u64) {
        let mut progress = lock(&self.progress);
        for level in Priority::ALL {
            let place = &mut progress.levels[level.index()];
            let before = place.cursor.position();
            if place.caught_up {
                place.cursor.pass(through);
            }
            if place.cursor.position() != before {
                self.touch(&mut progress, level);
            }
        }
    }
}

fn wants(topics: &[Topic], event_type: &str) -> bool {
    topics.iter().any(|topic| topic.matches(event_type))
}

impl Progress {
    fn settle(&mut self, subscription: SubscriptionId, level: Priority, sequence: u64) {
        self.attempts.remove(&(level, sequence));
        let place = &mut self.levels[level.index()];
        place.touched = true;
        if place.cursor.settle(sequence) == Settled::Straggler {
            self.left.remove(&(level, sequence));
            self.changes
                .push(Change::Gone(subscription, level, sequence));
        }
    }
}

impl Level {
    /// What holds the cursor back for too long, or in too many places.
    fn left_behind(&mut self, now: WallSeconds) -> Vec<u64> {
        let position = self.cursor.position();
        if self.cursor.runs().len() == 0 {
            self.held = None;
            return Vec::new();
        }
        let since = match self.held {
            Some((at, since)) if at == position => since,
            _ => now,
        };
        self.held = Some((position, since));
        if self.cursor.runs().len() <= MAX_RUNS && now - since < PATIENCE {
            return Vec::new();
        }
        self.held = None;
        let left = self.cursor.jump();
        self.touched |= self.cursor.position() != position;
        left
    }
}
