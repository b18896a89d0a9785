//! The whole engine against a simple model of it, step by step, and its rules one by one.
#![cfg(not(loom))]

mod plain;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use ironbus::engine::error::EngineError;
use ironbus::engine::gate::Patience;
use ironbus::engine::lane::{LaneOptions, Order, Overflow};
use ironbus::engine::priority::Priority::{self, Critical, High, Low, Normal};
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Entry, Flag, Lane, Published, Seat, Ticket, options, publish};
use proptest::prelude::*;

const TYPES: [&str; 3] = ["a.x", "a.y", "b.x"];
const TOPICS: [&[&str]; 6] = [
    &["a.x"],
    &["b.x"],
    &["a.*"],
    &["*"],
    &["a.x", "a.*"],
    &["*.x", "b.x"],
];

fn wants(topics: &[&str], event_type: &str) -> bool {
    topics.iter().any(|topic| match topic.split_once('*') {
        None => *topic == event_type,
        Some((before, after)) => event_type.starts_with(before) && event_type.ends_with(after),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Subscribe {
        topics: usize,
        overflow: Overflow,
        bound: usize,
        concurrency: usize,
        order: Order,
    },
    /// A second subscription of a lane that exists.
    Again {
        lane: usize,
        topics: usize,
    },
    Unsubscribe {
        lane: usize,
    },
    Publish {
        event_type: usize,
        level: usize,
        token: u64,
        patience: Patience,
    },
    Take {
        lane: usize,
    },
    Finish {
        run: usize,
        outcome: u8,
    },
    PutBack {
        run: usize,
    },
    Pause {
        lane: usize,
        paused: bool,
    },
    Open,
    Close,
    GiveUp {
        ticket: usize,
    },
}

fn overflow() -> impl Strategy<Value = Overflow> {
    prop_oneof![
        3 => Just(Overflow::Block), 1 => Just(Overflow::Reject),
        1 => Just(Overflow::DropOldest), 1 => Just(Overflow::DropNew),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let order = prop_oneof![Just(Order::Lane), Just(Order::Nothing), Just(Order::Token)];
    let patience = prop_oneof![3 => Just(Patience::Wait), 1 => Just(Patience::None)];
    prop_oneof![
        2 => (0..TOPICS.len(), overflow(), 1..4usize, 1..4usize, order).prop_map(
            |(topics, overflow, bound, concurrency, order)| Step::Subscribe {
                topics, overflow, bound, concurrency, order,
            }),
        1 => (any::<usize>(), 0..TOPICS.len()).prop_map(|(lane, topics)| Step::Again { lane, topics }),
        1 => any::<usize>().prop_map(|lane| Step::Unsubscribe { lane }),
        12 => (0..TYPES.len(), 0..4usize, 0..3u64, patience).prop_map(
            |(event_type, level, token, patience)| Step::Publish { event_type, level, token, patience }),
        7 => any::<usize>().prop_map(|lane| Step::Take { lane }),
        6 => (any::<usize>(), 0..5u8).prop_map(|(run, outcome)| Step::Finish { run, outcome }),
        2 => any::<usize>().prop_map(|run| Step::PutBack { run }),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(lane, paused)| Step::Pause { lane, paused }),
        2 => Just(Step::Open),
        1 => Just(Step::Close),
        2 => any::<usize>().prop_map(|ticket| Step::GiveUp { ticket }),
    ]
}

/// An event in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Queued {
    number: u64,
    payload: u64,
    level: usize,
    token: u64,
    /// Began before, and came back: no eviction touches it.
    begun: bool,
}

struct ModelLane {
    lane: Arc<Lane>,
    subscriptions: Vec<(u64, &'static [&'static str])>,
    overflow: Overflow,
    bound: usize,
    concurrency: usize,
    order: Order,
    paused: bool,
    queued: Vec<Queued>,
    running: Vec<Queued>,
    routed: u64,
    ended: [u64; 5],
}

impl ModelLane {
    fn depth(&self, level: usize) -> usize {
        self.queued.iter().filter(|q| q.level == level).count()
    }

    fn room(&self, level: usize) -> bool {
        self.depth(level) < self.bound
    }

    /// Room for an event that the lane gets so many times: for all of them, or as many as it ever has.
    fn room_for(&self, level: usize, copies: usize) -> bool {
        self.depth(level) + copies.min(self.bound) <= self.bound
    }
}

struct Waiting {
    payload: u64,
    event_type: usize,
    level: usize,
    token: u64,
    ticket: Arc<Ticket>,
    flag: Flag,
}

struct World {
    bus: Bus,
    seat: Arc<Seat>,
    lanes: Vec<ModelLane>,
    runs: Vec<(usize, Entry)>,
    waiting: VecDeque<Waiting>,
    held: VecDeque<(u64, u64, usize, usize, u64)>,
    open: bool,
    published: u64,
    numbers: u64,
    rejected: u64,
    cancelled: u64,
}

const KEPT: usize = 4;

impl World {
    fn new() -> Self {
        Self {
            bus: plain::closed_bus(KEPT),
            seat: Arc::default(),
            lanes: Vec::new(),
            runs: Vec::new(),
            waiting: VecDeque::new(),
            held: VecDeque::new(),
            open: false,
            published: 0,
            numbers: 0,
            rejected: 0,
            cancelled: 0,
        }
    }

    /// The lanes of a type, one for each subscription, in their order.
    fn route(&self, event_type: usize) -> Vec<usize> {
        let mut found: Vec<(u64, usize)> = Vec::new();
        for (at, lane) in self.lanes.iter().enumerate() {
            for (subscription, topics) in &lane.subscriptions {
                if wants(topics, TYPES[event_type]) {
                    found.push((*subscription, at));
                }
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, at)| at).collect()
    }

    /// Whether a lane of the route has room for the event, as often as it gets it.
    fn has_room(&self, route: &[usize], at: usize, level: usize) -> bool {
        let copies = route.iter().filter(|other| **other == at).count();
        self.lanes[at].room_for(level, copies)
    }

    fn rejects(&self, route: &[usize], level: usize) -> bool {
        let rejecting = |at: &&usize| self.lanes[**at].overflow == Overflow::Reject;
        let mut rejecting = route.iter().filter(rejecting);
        rejecting.any(|at| !self.has_room(route, *at, level))
    }

    fn push(&mut self, number: u64, payload: u64, event_type: usize, level: usize, token: u64) {
        for at in self.route(event_type) {
            let lane = &mut self.lanes[at];
            lane.routed += 1;
            if !lane.room(level) {
                match lane.overflow {
                    Overflow::DropOldest => {
                        let oldest = lane
                            .queued
                            .iter()
                            .enumerate()
                            .filter(|(_, q)| q.level == level && !q.begun);
                        let oldest = oldest.map(|(at, q)| (q.number, at)).min();
                        lane.ended[2] += 1;
                        match oldest {
                            Some((_, at)) => drop(lane.queued.remove(at)),
                            None => continue,
                        }
                    }
                    Overflow::DropNew => {
                        lane.ended[2] += 1;
                        continue;
                    }
                    Overflow::Block | Overflow::Reject | Overflow::Spill => {}
                }
            }
            lane.queued.push(Queued {
                number,
                payload,
                level,
                token,
                begun: false,
            });
        }
    }

    /// First come, first served: whoever is first in all its lines and has room goes.
    fn let_in(&mut self) {
        loop {
            let goes = (0..self.waiting.len()).filter(|&at| {
                let waiter = &self.waiting[at];
                let blocks = |event_type: usize| -> HashSet<usize> {
                    let route = self.route(event_type).into_iter();
                    route
                        .filter(|l| self.lanes[*l].overflow == Overflow::Block)
                        .collect()
                };
                let mine = blocks(waiter.event_type);
                let first = self.waiting.iter().take(at).all(|other| {
                    other.level != waiter.level || blocks(other.event_type).is_disjoint(&mine)
                });
                let route = self.route(waiter.event_type);
                first && mine.iter().all(|l| self.has_room(&route, *l, waiter.level))
            });
            // Which of several goes first is the engine's affair, as long as nobody is overtaken.
            let fate = |at: usize| self.waiting[at].ticket.fate();
            let goes: Vec<usize> = goes.collect();
            let keeps = !self.open && !self.held.is_empty();
            let refused = goes.iter().find(|at| {
                let waiter = &self.waiting[**at];
                let rejects = self.rejects(&self.route(waiter.event_type), waiter.level);
                !keeps && rejects && matches!(fate(**at), Some(Err(_)))
            });
            if let Some(&at) = refused {
                let waiter = self.waiting.remove(at).unwrap();
                assert!(matches!(
                    waiter.ticket.fate(),
                    Some(Err(EngineError::Full { .. }))
                ));
                assert_eq!(waiter.flag.told(), 1, "the waiter was told once");
                self.rejected += 1;
                continue;
            }
            let sequence = |at: &usize| {
                let admitted = self.waiting[*at].ticket.admitted();
                admitted.map_or(u64::MAX, |(sequence, _)| sequence)
            };
            let Some(at) = goes.into_iter().min_by_key(sequence) else {
                return;
            };
            let waiter = self.waiting.remove(at).unwrap();
            let number = waiter
                .ticket
                .admitted()
                .map(|(sequence, _)| sequence)
                .expect("the engine let it in as well");
            assert!(
                keeps || !self.rejects(&self.route(waiter.event_type), waiter.level),
                "let in though a lane rejects it"
            );
            self.numbers += 1;
            assert_eq!(waiter.flag.told(), 1, "the waiter was told once");
            if !self.open && !self.held.is_empty() {
                self.held.push_back((
                    number,
                    waiter.payload,
                    waiter.event_type,
                    waiter.level,
                    waiter.token,
                ));
            } else {
                self.push(
                    number,
                    waiter.payload,
                    waiter.event_type,
                    waiter.level,
                    waiter.token,
                );
            }
        }
    }

    fn publish(&mut self, event_type: usize, level: usize, token: u64, patience: Patience) {
        self.published += 1;
        let payload = self.published;
        let published = plain::offer(
            &self.bus,
            TYPES[event_type],
            Priority::ALL[level],
            payload,
            token,
            None,
            patience,
            0,
        );
        let route = self.route(event_type);
        if !self.open {
            if self.held.len() >= KEPT {
                self.rejected += 1;
                assert!(matches!(
                    published,
                    Published::Refused(EngineError::NotStarted { .. })
                ));
                return;
            }
            self.numbers += 1;
            let Published::Held(number) = published else {
                panic!("not kept")
            };
            assert_eq!(number, self.numbers);
            self.held
                .push_back((number, payload, event_type, level, token));
            return;
        }
        let full = |o: Overflow| {
            route
                .iter()
                .any(|l| self.lanes[*l].overflow == o && !self.has_room(&route, *l, level))
        };
        let queue = self.waiting.iter().any(|w| {
            w.level == level
                && self
                    .route(w.event_type)
                    .iter()
                    .any(|l| self.lanes[*l].overflow == Overflow::Block && route.contains(l))
        });
        let rejects = full(Overflow::Reject);
        if rejects || ((full(Overflow::Block) || queue) && patience == Patience::None) {
            self.rejected += 1;
            assert!(matches!(
                published,
                Published::Refused(EngineError::Full { .. })
            ));
        } else if full(Overflow::Block) || queue {
            let Published::Waiting(ticket) = published else {
                panic!("overtook, or no room")
            };
            let flag = Flag::default();
            assert!(ticket.wait(flag.waker()).is_ok());
            self.waiting.push_back(Waiting {
                payload,
                event_type,
                level,
                token,
                ticket,
                flag,
            });
        } else {
            self.numbers += 1;
            let Published::Accepted(number) = published else {
                panic!("not accepted")
            };
            assert_eq!(number, self.numbers, "without gap");
            self.push(number, payload, event_type, level, token);
        }
    }

    fn started(&mut self, at: usize, entry: Entry) {
        let lane = &mut self.lanes[at];
        assert!(!lane.paused && lane.running.len() < lane.concurrency);
        // Of two copies, the one that came back goes first.
        let queued = lane.queued.iter().enumerate();
        let same = queued.filter(|(_, q)| q.number == entry.sequence);
        let (index, _) = same.max_by_key(|(_, q)| q.begun).expect("it was queued");
        assert_eq!(lane.queued[index].payload, entry.event.payload);
        let started = lane.queued.remove(index);
        assert_eq!(started.level, entry.level.index());
        let keyed = lane.order == Order::Token;
        if keyed {
            assert!(
                lane.running.iter().all(|r| r.token != started.token),
                "two of a token"
            );
        }
        for other in &lane.queued {
            if other.level == started.level && (!keyed || other.token == started.token) {
                assert!(
                    other.number >= started.number,
                    "overtaken: {other:?} by {started:?}"
                );
            }
            // Levels: no clock moves here, so nothing is ever aged.
            let busy = keyed && lane.running.iter().any(|r| r.token == other.token);
            if !busy && other.level < started.level {
                panic!("a lower level went first");
            }
        }
        lane.running.push(started);
        self.runs.push((at, entry));
        self.let_in();
    }

    fn take(&mut self, at: usize) {
        let lane = self.lanes[at].lane.clone();
        match self.bus.take(&lane, 0) {
            Some(next) => self.started(at, next.entry),
            None => {
                let lane = &self.lanes[at];
                let busy: HashSet<u64> = lane.running.iter().map(|r| r.token).collect();
                let ready = lane
                    .queued
                    .iter()
                    .any(|q| lane.order != Order::Token || !busy.contains(&q.token));
                assert!(
                    lane.paused || lane.running.len() >= lane.concurrency || !ready,
                    "the lane has work and gives none"
                );
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Subscribe {
                topics,
                overflow,
                bound,
                concurrency,
                order,
            } => {
                if self.lanes.len() > 6 {
                    return;
                }
                // Which of a keyed lane's events have left its queue is not for the model to say.
                let order = if overflow == Overflow::DropOldest {
                    Order::Nothing
                } else {
                    order
                };
                let concurrency = if order == Order::Lane { 1 } else { concurrency };
                let told = LaneOptions {
                    concurrency,
                    order,
                    overflow,
                    ..options("lane", bound)
                };
                let lane = self.bus.make_lane(told, (), self.seat.clone());
                let list = TOPICS[topics].iter().map(|t| Topic::new(t)).collect();
                let subscription = self.bus.subscribe(list, &lane, 0);
                self.lanes.push(ModelLane {
                    lane,
                    subscriptions: vec![(subscription, TOPICS[topics])],
                    overflow,
                    bound,
                    concurrency,
                    order,
                    paused: false,
                    queued: Vec::new(),
                    running: Vec::new(),
                    routed: 0,
                    ended: [0; 5],
                });
                self.let_in();
            }
            Step::Again { lane, topics } => {
                let Some(at) = lane.checked_rem(self.lanes.len()) else {
                    return;
                };
                let list = TOPICS[topics].iter().map(|t| Topic::new(t)).collect();
                let subscription = self.bus.subscribe(list, &self.lanes[at].lane, 0);
                self.lanes[at]
                    .subscriptions
                    .push((subscription, TOPICS[topics]));
                self.let_in();
            }
            Step::Unsubscribe { lane } => {
                let Some(at) = lane.checked_rem(self.lanes.len()) else {
                    return;
                };
                let lane = self.lanes[at].lane.clone();
                while self.lanes[at].subscriptions.len() > 1 {
                    let (subscription, _) = self.lanes[at].subscriptions.remove(0);
                    self.bus.unsubscribe(subscription, &lane, false, 0);
                    self.let_in();
                }
                let (subscription, _) = self.lanes[at].subscriptions.remove(0);
                self.bus.unsubscribe(subscription, &lane, true, 0);
                // What still runs ends after the lane.
                let (own, others) = std::mem::take(&mut self.runs)
                    .into_iter()
                    .partition(|(of, _)| *of == at);
                self.runs = others;
                let own: Vec<(usize, Entry)> = own;
                for (_, entry) in own {
                    self.bus.put_back(&lane, entry, 0);
                }
                let report = lane.report();
                let gone = self.lanes.remove(at);
                let tally = report.tally;
                assert_eq!(
                    gone.routed,
                    tally.done + tally.dead + tally.dropped + tally.expired + tally.filtered,
                    "an event of a closed lane has no outcome"
                );
                assert_eq!((report.running, report.depth), (0, [0; 4]));
                for (of, _) in &mut self.runs {
                    *of -= usize::from(*of > at);
                }
                self.let_in();
            }
            Step::Publish {
                event_type,
                level,
                token,
                patience,
            } => {
                self.publish(event_type, level, token, patience);
            }
            Step::Take { lane } => {
                if let Some(at) = lane.checked_rem(self.lanes.len()) {
                    self.take(at);
                }
            }
            Step::Finish { run, outcome } => {
                let Some(run) = run.checked_rem(self.runs.len()) else {
                    return;
                };
                let (at, mut entry) = self.runs.remove(run);
                let told = match outcome {
                    0 => Outcome::Done,
                    1 => Outcome::Dead(Arc::new(())),
                    2 => Outcome::Dropped,
                    3 => Outcome::Expired,
                    _ => Outcome::Filtered,
                };
                let model = &mut self.lanes[at];
                model.ended[usize::from(outcome)] += 1;
                let run = model
                    .running
                    .iter()
                    .position(|r| r.number == entry.sequence);
                model.running.remove(run.expect("it ran"));
                let lane = model.lane.clone();
                let next = self.bus.finish(&lane, &mut entry, told, None, true, 0);
                if let Some(next) = next {
                    self.started(at, next.entry);
                }
            }
            Step::PutBack { run } => {
                let Some(run) = run.checked_rem(self.runs.len()) else {
                    return;
                };
                let (at, entry) = self.runs.remove(run);
                let model = &mut self.lanes[at];
                let index = model
                    .running
                    .iter()
                    .position(|r| r.number == entry.sequence)
                    .unwrap();
                let begun = true;
                let queued = model.running.remove(index);
                model.queued.push(Queued { begun, ..queued });
                let lane = model.lane.clone();
                self.bus.put_back(&lane, entry, 0);
            }
            Step::Pause { lane, paused } => {
                if let Some(at) = lane.checked_rem(self.lanes.len()) {
                    self.lanes[at].paused = paused;
                    self.bus.pause(&self.lanes[at].lane, paused);
                }
            }
            Step::Open => {
                self.bus.open(0);
                self.open = true;
                for (number, payload, event_type, level, token) in std::mem::take(&mut self.held) {
                    self.push(number, payload, event_type, level, token);
                }
            }
            Step::Close => {
                self.bus.close();
                self.open = false;
            }
            Step::GiveUp { ticket } => {
                let Some(at) = ticket.checked_rem(self.waiting.len()) else {
                    return;
                };
                let waiter = self.waiting.remove(at).unwrap();
                assert!(self.bus.give_up(&waiter.ticket, None, 0));
                assert!(
                    !self.bus.give_up(&waiter.ticket, None, 0),
                    "it gave up twice"
                );
                self.cancelled += 1;
                self.let_in();
                assert_eq!(
                    (
                        waiter.ticket.admitted().map(|(sequence, _)| sequence),
                        waiter.flag.told()
                    ),
                    (None, 0)
                );
            }
        }
    }

    fn check(&self) {
        let (counts, lanes) = self.bus.report();
        assert_eq!(counts.offered, self.published);
        assert_eq!(
            (
                counts.accepted,
                counts.duplicate,
                counts.rejected,
                counts.waiting,
                counts.cancelled
            ),
            (
                self.numbers,
                0,
                self.rejected,
                self.waiting.len() as u64,
                self.cancelled
            )
        );
        assert_eq!(
            counts.offered,
            counts.accepted
                + counts.duplicate
                + counts.rejected
                + counts.waiting
                + counts.cancelled
        );
        for waiter in &self.waiting {
            assert_eq!(
                waiter.ticket.admitted().map(|(sequence, _)| sequence),
                None,
                "somebody was overtaken"
            );
        }
        assert_eq!(self.bus.kept(), self.held.len());
        let mut quiet = self.waiting.is_empty() && self.held.is_empty();
        assert_eq!(lanes.len(), self.lanes.len());
        let by_id: BTreeMap<u64, _> = lanes.iter().map(|l| (l.0.id, l)).collect();
        for model in &self.lanes {
            let (_, routed, report) = by_id[&model.lane.id];
            let t = report.tally;
            assert_eq!(*routed, model.routed);
            assert_eq!(
                [t.done, t.dead, t.dropped, t.expired, t.filtered],
                model.ended
            );
            assert_eq!(report.depth, [0, 1, 2, 3].map(|level| model.depth(level)));
            assert_eq!(report.running, model.running.len());
            let pending = report.depth.iter().sum::<usize>() + report.running;
            assert_eq!(*routed, model.ended.iter().sum::<u64>() + pending as u64);
            quiet &= pending == 0;
        }
        assert_eq!(self.bus.is_quiet(None), quiet);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        world.step(Step::Open);
        for step in steps {
            world.step(step);
            world.check();
        }
    }
}

/// One bus, its seat, and lanes made with short hands.
struct Small {
    bus: Bus,
    seat: Arc<Seat>,
}

impl Small {
    fn new() -> Self {
        Self {
            bus: plain::bus(),
            seat: Arc::default(),
        }
    }

    fn lane(&self, topics: &[&str], told: LaneOptions) -> Arc<Lane> {
        let lane = self.bus.make_lane(told, (), self.seat.clone());
        self.also(topics, &lane);
        lane
    }

    fn also(&self, topics: &[&str], lane: &Arc<Lane>) -> u64 {
        let topics = topics.iter().map(|t| Topic::new(t)).collect();
        self.bus.subscribe(topics, lane, 0)
    }

    fn accepted(&self, event_type: &str, level: Priority, payload: u64) -> u64 {
        match publish(&self.bus, event_type, level, payload, Patience::None) {
            Published::Accepted(number) => number,
            _ => panic!("not accepted"),
        }
    }

    fn waits(
        &self,
        event_type: &str,
        origin: Option<&Arc<Lane>>,
    ) -> Result<Arc<Ticket>, Published> {
        let origin = origin.map(|lane| lane.id);
        match plain::offer(
            &self.bus,
            event_type,
            Normal,
            0,
            0,
            origin,
            Patience::Wait,
            0,
        ) {
            Published::Waiting(ticket) => Ok(ticket),
            other => Err(other),
        }
    }

    fn start(&self, lane: &Arc<Lane>) -> Entry {
        self.bus.take(lane, 0).expect("there is work").entry
    }
}

#[test]
fn types_and_patterns_reach_their_lanes_once_for_each_subscription() {
    let small = Small::new();
    let exact = small.lane(&["a.x"], options("exact", 10));
    let several = small.lane(&["a.x", "a.*", "*"], options("several", 10));
    let twice = small.lane(&["a.*"], options("twice", 10));
    let second = small.also(&["*.x"], &twice);
    small.accepted("a.x", Normal, 1);
    small.accepted("a.y", Normal, 2);
    small.accepted("b.x", Normal, 3);
    small.accepted("b.y", Normal, 4);
    let depths = || [&exact, &several, &twice].map(|lane| lane.depth(Normal));
    assert_eq!(depths(), [1, 4, 4]);
    small.bus.unsubscribe(second, &twice, false, 0);
    small.accepted("a.x", Normal, 5);
    assert_eq!(depths(), [2, 5, 5]);
}

#[test]
fn higher_levels_go_first_and_each_level_has_its_own_room() {
    let small = Small::new();
    let lane = small.lane(&["t"], options("l", 2));
    for (payload, level) in [Low, Low, High, Critical, Normal].into_iter().enumerate() {
        small.accepted("t", level, payload as u64);
    }
    assert!(matches!(
        publish(&small.bus, "t", Low, 9, Patience::None),
        Published::Refused(EngineError::Full { bound: 2, .. })
    ));
    let mut started = Vec::new();
    let mut next = small.bus.take(&lane, 0);
    while let Some(mut run) = next {
        started.push(run.entry.event.payload);
        next = small
            .bus
            .finish(&lane, &mut run.entry, Outcome::Done, None, true, 0);
    }
    assert_eq!(started, [3, 2, 4, 0, 1]);
}

#[test]
fn a_computed_token_is_held_like_one_that_came_along() {
    let small = Small::new();
    let told = LaneOptions {
        order: Order::Computed,
        concurrency: 4,
        ..options("keyed", 10)
    };
    let lane = small.lane(&["t"], told);
    for payload in 1..=4 {
        small.accepted("t", Normal, payload);
    }
    // Tokens: 1 and 2 share one, 3 has another, 4 that of 1.
    let token = |payload: u64| u64::from(payload == 3);
    let mut running = Vec::new();
    let mut next = small.bus.take(&lane, 0);
    while let Some(run) = next.take() {
        assert!(run.token_wanted);
        let number = token(run.entry.event.payload);
        match small.bus.with_token(&lane, run.entry, number, 0) {
            Some(run) if run.token_wanted => next = Some(run),
            Some(run) => {
                running.push(run.entry);
                next = small.bus.take(&lane, 0);
            }
            None => {}
        }
    }
    let payloads = |running: &[Entry]| running.iter().map(|e| e.event.payload).collect::<Vec<_>>();
    assert_eq!(payloads(&running), [1, 3]);
    let mut first = running.remove(0);
    let next = small
        .bus
        .finish(&lane, &mut first, Outcome::Done, None, true, 0)
        .expect("2 is free");
    assert_eq!((next.entry.event.payload, next.token_wanted), (2, false));
}

#[test]
fn what_comes_back_to_a_closed_lane_is_settled() {
    let small = Small::new();
    let lane = small.bus.make_lane(options("l", 2), (), small.seat.clone());
    let subscription = small.also(&["t"], &lane);
    small.accepted("t", Normal, 1);
    let entry = small.start(&lane);
    let event = entry.event.clone();
    let flag = Flag::default();
    assert!(event.wait(flag.waker()).is_ok());
    small.bus.unsubscribe(subscription, &lane, true, 0);
    small.bus.put_back(&lane, entry, 0);
    assert!(event.settled());
    assert_eq!(flag.told(), 1);
}

#[test]
fn a_waiter_let_in_while_the_gate_is_closed_stays_in_order() {
    let small = Small::new();
    let lane = small.lane(&["t"], options("l", 1));
    small.accepted("t", Normal, 1);
    let ticket = small.waits("t", None).unwrap_or_else(|_| panic!("no room"));
    small.bus.close();
    assert!(matches!(
        publish(&small.bus, "t", Normal, 3, Patience::None),
        Published::Held(2)
    ));
    let mut entry = small.start(&lane);
    assert_eq!(ticket.admitted().map(|(sequence, _)| sequence), Some(3));
    small.bus.open(0);
    let mut numbers = Vec::new();
    let mut next = small
        .bus
        .finish(&lane, &mut entry, Outcome::Done, None, true, 0);
    while let Some(mut run) = next {
        numbers.push(run.entry.sequence);
        next = small
            .bus
            .finish(&lane, &mut run.entry, Outcome::Done, None, true, 0);
    }
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn a_cycle_through_a_place_in_the_line_is_found() {
    let small = Small::new();
    let a = small.lane(&["a", "both"], options("a", 1));
    let b = small.lane(&["b", "both"], options("b", 1));
    small.accepted("b", Normal, 1);
    let _running = small.start(&b);
    small.accepted("b", Normal, 2);
    // From outside, for a (which has room) and b (which has none).
    assert!(small.waits("both", None).is_ok());
    // The handler of b would stand behind that in the line of a, and so wait for itself.
    assert!(matches!(
        small.waits("a", Some(&b)),
        Err(Published::Accepted(_))
    ));
    assert_eq!(a.depth(Normal), 1);
}

#[test]
fn a_lane_that_drops_is_not_waited_for() {
    let small = Small::new();
    let told = LaneOptions {
        overflow: Overflow::DropOldest,
        ..options("drops", 1)
    };
    let drops = small.lane(&["d", "both"], told);
    small.lane(&["b", "both"], options("b", 1));
    small.accepted("d", Normal, 1);
    let _running = small.start(&drops);
    small.accepted("d", Normal, 2);
    small.accepted("b", Normal, 3);
    assert!(
        small.waits("both", Some(&drops)).is_ok(),
        "b will make room"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Handlers that wait for sets of lanes, one after the other: each is refused exactly if it
    /// could then never go on.
    #[test]
    fn cycles_are_found_and_nothing_else(
        handlers in proptest::collection::vec(1..3usize, 5),
        waits in proptest::collection::vec((0..5usize, proptest::collection::vec(0..5usize, 1..4)), 1..12),
    ) {
        let small = Small::new();
        let lanes: Vec<_> = handlers
            .iter()
            .map(|n| {
                let told = LaneOptions { concurrency: *n, order: Order::Nothing, ..options("l", 1) };
                small.bus.make_lane(told, (), small.seat.clone())
            })
            .collect();
        let mut blocked: Vec<(usize, Vec<usize>)> = Vec::new();
        for (origin, needed) in waits {
            let occupied = blocked.iter().filter(|(lane, _)| *lane == origin).count();
            if occupied == handlers[origin] {
                continue; // no handler is left there to wait
            }
            blocked.push((origin, needed.clone()));
            // Let waits end, one by one, until none can.
            let mut left = blocked.clone();
            loop {
                let free = |lane: usize| left.iter().filter(|w| w.0 == lane).count() < handlers[lane];
                match left.iter().position(|(_, needed)| needed.iter().all(|lane| free(*lane))) {
                    Some(at) => drop(left.remove(at)),
                    None => break,
                }
            }
            let list = needed.iter().map(|lane| lanes[*lane].clone()).collect();
            let begun = small.bus.begin_wait(lanes[origin].id, list);
            prop_assert_eq!(begun.is_ok(), left.is_empty(), "{:?} {:?}", blocked, left);
            if begun.is_err() {
                blocked.pop();
            }
        }
    }
}
