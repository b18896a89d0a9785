//! A lane whose events fail, against an independent model of what is promised: what holds what
//! while it waits, how often and when it is tried, and that everything ends exactly once.
#![cfg(not(loom))]

mod plain;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use ironbus::engine::gate::Timing;
use ironbus::engine::lane::{Failed, Holds, LaneOptions, Letters, Order, Stopped};
use ironbus::engine::ops::Cause;
use ironbus::engine::priority::Priority;
use ironbus::engine::retry::{Jitter, RetryPolicy};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::sync::Shared;
use ironbus::engine::topic::Topic;
use plain::{Bus, Entry, Envelope, Lane, Published, Seat, options};
use proptest::prelude::*;

const ATTEMPTS: u32 = 3;
const DELAY: u64 = 10;

fn policy() -> RetryPolicy {
    RetryPolicy {
        max_attempts: ATTEMPTS,
        initial_delay: DELAY,
        max_delay: 1000,
        exponential_base: 1.0,
        jitter: Jitter::None,
    }
}

#[derive(Clone, Copy, Debug)]
enum How {
    Done,
    Passing,
    Cancelled,
    Final,
    Rejected,
    Later(u64),
    Crowded,
    PutBack,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish {
        level: usize,
        token: u64,
        delay: Option<u64>,
        expires: Option<u64>,
    },
    Take,
    End {
        run: usize,
        how: How,
        proceed: bool,
    },
    Advance(u64),
    Pause(bool),
    Room(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let how = prop_oneof![
        4 => Just(How::Done),
        4 => Just(How::Passing),
        1 => Just(How::Cancelled),
        1 => Just(How::Final),
        1 => Just(How::Rejected),
        2 => (0..20u64).prop_map(How::Later),
        1 => Just(How::Crowded),
        2 => Just(How::PutBack),
    ];
    let delay = prop_oneof![4 => Just(None), 1 => (1..30u64).prop_map(Some)];
    let expires = prop_oneof![6 => Just(None), 1 => (1..60u64).prop_map(Some)];
    prop_oneof![
        6 => (0..4usize, 0..3u64, delay, expires).prop_map(|(level, token, delay, expires)| {
            Step::Publish { level, token, delay, expires }
        }),
        6 => Just(Step::Take),
        6 => (any::<usize>(), how, any::<bool>())
            .prop_map(|(run, how, proceed)| Step::End { run, how, proceed }),
        4 => prop_oneof![1..15u64, Just(20_000_000u64)].prop_map(Step::Advance),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => (0..3usize).prop_map(Step::Room),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Since when it could be started: at once, or at its time.
    Queued,
    /// Until its first time, or for a retry that holds nothing.
    Apart(u64),
    /// For its next attempt.
    Retry(u64),
    Running,
    /// It failed for good, and its letter found no room.
    Doomed,
    Ended,
}

#[derive(Clone)]
struct Item {
    event: Shared<Envelope>,
    number: u64,
    level: usize,
    token: u64,
    expires: Option<u64>,
    state: State,
    /// Its place among those of its level: what began, what came at a time, the rest.
    class: u8,
    due: u64,
    attempts: u32,
    crowded: u32,
    /// Its letter, for which there was no room.
    doom: Option<plain::Letter>,
}

struct World {
    bus: Bus,
    lane: Arc<Lane>,
    seat: Arc<Seat>,
    graves: plain::Graves,
    order: Order,
    holds: Holds,
    concurrency: usize,
    now: u64,
    items: Vec<Item>,
    runs: Vec<Entry>,
    paused: bool,
    parked: bool,
    letters: Vec<plain::Letter>,
}

impl World {
    fn new(order: Order, holds: Holds, concurrency: usize) -> Self {
        let graves = plain::Graves::default();
        let keys = ironbus::engine::idempotency::Idempotency::new(1 << 60, 16, 0);
        let bus = Bus::new(16, keys, plain::Alarm::default(), graves.clone());
        bus.open(0);
        let told = LaneOptions {
            order,
            holds,
            concurrency,
            retry: Some(policy()),
            letters: Letters::Failed,
            ..options("lane", 1000)
        };
        let seat = Arc::new(Seat::default());
        let lane = bus.make_lane(told, (), seat.clone());
        bus.subscribe(vec![Topic::new("t")], &lane, 0);
        Self {
            bus,
            lane,
            seat,
            graves,
            order,
            holds,
            concurrency,
            now: 0,
            items: Vec::new(),
            runs: Vec::new(),
            paused: false,
            parked: false,
            letters: Vec::new(),
        }
    }

    fn keyed(&self) -> bool {
        self.order == Order::Token
    }

    fn time_has_come(&self, item: &Item) -> bool {
        match item.state {
            State::Queued | State::Doomed => true,
            State::Apart(due) | State::Retry(due) => due <= self.now,
            State::Running | State::Ended => false,
        }
    }

    /// What the promises say, read off the items alone.
    fn may_start(&self, at: usize) -> bool {
        let item = &self.items[at];
        if !self.time_has_come(item) {
            return false;
        }
        self.items.iter().enumerate().all(|(other_at, other)| {
            if other_at == at {
                return true;
            }
            if self.keyed() && other.state == State::Running && other.token == item.token {
                return false;
            }
            if other.level != item.level {
                return true;
            }
            let same_token = !self.keyed() || other.token == item.token;
            if let State::Retry(due) = other.state
                && due > self.now
            {
                let held = match self.holds {
                    Holds::Level => item.class > 0 || (same_token && self.order != Order::Nothing),
                    Holds::Key => same_token,
                    Holds::Nothing => false,
                };
                return !held;
            }
            if !self.time_has_come(other) || !same_token {
                return true;
            }
            // Nobody is overtaken in the line. Of one token, which of two new ones goes first
            // is left open where one of them came at a time of its own.
            let place = |item: &Item| match item.class {
                1 => (1, item.due, item.number),
                class => (class, 0, item.number),
            };
            let came = |item: &Item| item.class == 1;
            let open = came(item) && (other.class == 2 || came(other) && item.due == other.due)
                || came(other) && item.class == 2;
            (self.keyed() && open) || place(item) < place(other)
        })
    }

    /// Those that were to end without a call have ended, and nobody else.
    fn collect(&mut self) {
        for item in &mut self.items {
            if !item.event.settled() || item.state == State::Ended {
                continue;
            }
            let expired = item.expires.is_some_and(|expires| expires <= self.now);
            match item.state {
                State::Doomed => self.letters.extend(item.doom.take()),
                State::Running => panic!("ended while it ran"),
                _ => assert!(expired, "ended without a call: {}", item.number),
            }
            item.state = State::Ended;
        }
        let mut kept = self.graves.kept();
        kept.sort_unstable_by_key(|letter| letter.0);
        self.letters.sort_unstable_by_key(|letter| letter.0);
        assert_eq!(kept, self.letters, "letters");
    }

    fn started(&mut self, entry: Option<Entry>) {
        self.collect();
        self.parked =
            self.lane.report().stopped == Some(Stopped::Parked) || self.parked && self.paused;
        let Some(entry) = entry else { return };
        let found = self
            .items
            .iter()
            .position(|item| item.number == entry.sequence);
        let at = found.expect("it was published");
        assert!(!self.paused && !self.parked);
        assert!(self.runs.len() < self.concurrency);
        let item = &self.items[at];
        assert_ne!(item.state, State::Doomed, "called after its end");
        assert!(
            item.expires.is_none_or(|expires| expires > self.now),
            "too late"
        );
        assert!(self.may_start(at), "{} must not start", item.number);
        // Nothing is aged before a second has passed.
        for higher in 0..self.items.len() {
            let better = self.items[higher].level < item.level && self.may_start(higher);
            assert!(
                !better || self.now > 1_000_000_000,
                "a lower level went first"
            );
        }
        assert_eq!(entry.attempt, item.attempts + 1);
        let item = &mut self.items[at];
        item.state = State::Running;
        item.attempts += 1;
        self.runs.push(entry);
    }

    fn take(&mut self) {
        let lane = self.lane.clone();
        let next = self.bus.take(&lane, self.now).map(|next| next.entry);
        let none = next.is_none();
        self.started(next);
        if none && !self.paused && !self.parked && self.runs.len() < self.concurrency {
            let left = (0..self.items.len()).find(|at| self.may_start(*at));
            let left = left.map(|at| self.items[at].number);
            assert_eq!(left, None, "it gives nothing though this may start");
        }
    }

    fn publish(&mut self, level: usize, token: u64, delay: Option<u64>, expires: Option<u64>) {
        let payload = self.items.len() as u64 + 1;
        let due = delay.map(|delay| self.now + delay);
        let expires = expires.map(|expires| self.now + expires);
        let event = plain::event(payload);
        let timing = Timing { due, expires };
        let offer = ironbus::engine::gate::Offer {
            event_type: "t",
            level: Priority::ALL[level],
            token,
            event: &event,
            origin: None,
            timing: Some(&timing),
        };
        let patience = ironbus::engine::gate::Patience::None;
        let route = self.bus.route("t");
        let published = self
            .bus
            .publish(&offer, &route, &mut None, None, patience, self.now);
        let Published::Accepted(number) = published else {
            panic!("there is room")
        };
        self.items.push(Item {
            event,
            number,
            level,
            token,
            expires,
            state: due.map_or(State::Queued, State::Apart),
            class: if due.is_some() { 1 } else { 2 },
            due: due.unwrap_or(0),
            attempts: 0,
            crowded: 0,
            doom: None,
        });
    }

    fn end(&mut self, run: usize, how: How, proceed: bool) {
        let Some(run) = run.checked_rem(self.runs.len()) else {
            return;
        };
        let mut entry = self.runs.remove(run);
        let at = self
            .items
            .iter()
            .position(|item| item.number == entry.sequence);
        let item = &mut self.items[at.expect("it was published")];
        let (lane, now, room) = (self.lane.clone(), self.now, self.graves.room.load(SeqCst));
        let failed = match how {
            How::Done => {
                item.state = State::Ended;
                let next = self
                    .bus
                    .finish(&lane, &mut entry, Outcome::Done, None, proceed, now);
                return self.started(next.map(|next| next.entry));
            }
            How::PutBack => {
                item.state = State::Queued;
                item.class = 0;
                item.attempts -= 1;
                self.bus.put_back(&lane, entry, now);
                return self.started(None);
            }
            How::Passing => Failed::Passing(Arc::new(())),
            How::Cancelled => Failed::Cancelled(Arc::new(())),
            How::Final => Failed::Final(Arc::new(())),
            How::Rejected => Failed::Rejected(Arc::new(())),
            How::Later(after) => Failed::Later(after),
            How::Crowded => Failed::Crowded,
        };
        // Crowded, and jitter is at its middle: 10 ms, doubled each time in a row, up to a second.
        let backoff = (10_000_000u64 << item.crowded.min(10)).min(1_000_000_000);
        let crowded = (backoff / 2 + (backoff * 3 / 2).min(1_000_000_000)) / 2;
        item.crowded = if matches!(how, How::Crowded) {
            item.crowded + 1
        } else {
            0
        };
        let again = match how {
            How::Later(after) => Some(after),
            How::Crowded => Some(crowded),
            How::Passing | How::Cancelled if item.attempts < ATTEMPTS => Some(DELAY),
            _ => None,
        };
        match again {
            Some(after) => {
                item.attempts -= u32::from(matches!(how, How::Later(_) | How::Crowded));
                item.due = now + after;
                (item.state, item.class) = match self.holds {
                    Holds::Nothing => (State::Apart(item.due), 1),
                    _ => (State::Retry(item.due), 0),
                };
            }
            None => {
                let cause = match how {
                    How::Final => Cause::Final,
                    How::Rejected => Cause::Rejected,
                    _ => Cause::Exhausted,
                };
                let letter = (item.event.payload, item.attempts, cause);
                item.class = 0;
                if room > 0 {
                    item.state = State::Ended;
                    self.letters.push(letter);
                } else {
                    item.state = State::Doomed;
                    item.doom = Some(letter);
                }
            }
        }
        let verdict = self.lane.judge(&entry, &failed, 0.5);
        let next = self
            .bus
            .fail(&lane, entry, &failed, verdict, None, proceed, now);
        self.started(next.map(|next| next.entry));
    }

    fn check(&self) {
        let (_, lanes) = self.bus.report();
        let (_, routed, report) = &lanes[0];
        let count = |of: &dyn Fn(&Item) -> bool| self.items.iter().filter(|item| of(item)).count();
        assert_eq!(*routed as usize, self.items.len());
        assert_eq!(report.running, count(&|item| item.state == State::Running));
        for level in 0..4 {
            let waits = |item: &Item| {
                item.level == level && !matches!(item.state, State::Running | State::Ended)
            };
            assert_eq!(report.depth[level], count(&waits));
        }
        let tally = &report.tally;
        let ended = tally.done + tally.dead + tally.dropped + tally.expired + tally.filtered;
        assert_eq!(ended as usize, count(&|item| item.state == State::Ended));
        assert_eq!(tally.dead as usize, self.letters.len());
        assert!(report.held + report.delayed <= report.depth.iter().sum());
        let quiet = count(&|item| item.state != State::Ended) == 0;
        assert_eq!(self.bus.is_quiet(None), quiet);
    }

    /// From here on only those are asked who were told to come: what is left ends all the same.
    fn end_all(&mut self) {
        self.step(Step::Room(1000));
        self.step(Step::Pause(false));
        while !self.runs.is_empty() {
            self.end(0, How::Done, false);
            self.check();
        }
        loop {
            while let Some(lane) = self.seat.next() {
                let next = self.bus.take(&lane, self.now);
                self.started(next.map(|next| next.entry));
                if !self.runs.is_empty() {
                    self.end(0, How::Done, false);
                }
                self.check();
            }
            match self.bus.next_due() {
                Some(due) => self.step(Step::Advance(due.saturating_sub(self.now))),
                None => break,
            }
        }
        assert!(
            self.items.iter().all(|item| item.state == State::Ended),
            "something sleeps"
        );
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish {
                level,
                token,
                delay,
                expires,
            } => self.publish(level, token, delay, expires),
            Step::Take => self.take(),
            Step::End { run, how, proceed } => self.end(run, how, proceed),
            Step::Advance(by) => {
                self.now += by;
                self.bus.tick(self.now);
            }
            Step::Pause(paused) => {
                self.paused = paused;
                self.bus.pause(&self.lane, paused);
            }
            Step::Room(room) => {
                self.graves.room.store(room, SeqCst);
                self.bus.room_for_letters();
                self.parked = false;
            }
        }
    }
}

fn kinds() -> impl Strategy<Value = (Order, Holds, usize)> {
    let un_keyed = prop_oneof![Just(Holds::Level), Just(Holds::Nothing)];
    let keyed = prop_oneof![Just(Holds::Level), Just(Holds::Key), Just(Holds::Nothing)];
    prop_oneof![
        un_keyed.clone().prop_map(|holds| (Order::Lane, holds, 1)),
        (un_keyed, 1..4usize).prop_map(|(holds, many)| (Order::Nothing, holds, many)),
        (keyed, 1..4usize).prop_map(|(holds, many)| (Order::Token, holds, many)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn a_failing_lane_does_what_is_promised(
        (order, holds, concurrency) in kinds(),
        room in 0..3usize,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = World::new(order, holds, concurrency);
        world.step(Step::Room(room));
        for step in steps {
            world.step(step);
            world.check();
        }
        world.end_all();
    }
}
