//! A run of events through the gate, against the same events one by one: the same are let in, by the
//! same numbers, into the same lanes, and the same accounts are left.
#![cfg(not(loom))]

mod plain;

use std::sync::Arc;

use ironbus::engine::gate::{Offer, Patience, Run};
use ironbus::engine::lane::{LaneOptions, Overflow};
use ironbus::engine::priority::Priority;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Lane, Published, bus, event, options, publish};
use proptest::prelude::*;

const LEVELS: [Priority; Priority::COUNT] = [
    Priority::Critical,
    Priority::High,
    Priority::Normal,
    Priority::Low,
];

/// Of a lane: its bound, what it does when it is full, and how many subscriptions it has.
type Told = (usize, Overflow, usize);

fn lanes(bus: &Bus, told: &[Told]) -> Vec<Arc<Lane>> {
    let make = |(number, &(bound, overflow, subscriptions)): (usize, &Told)| {
        let options = LaneOptions {
            overflow,
            ..options(&number.to_string(), bound)
        };
        let lane = bus.make_lane(options, (), Arc::default());
        for _ in 0..subscriptions {
            bus.subscribe(vec![Topic::new("t")], &lane, 0);
        }
        lane
    };
    told.iter().enumerate().map(make).collect()
}

/// What comes out of a lane, in order.
fn drain(bus: &Bus, lane: &Arc<Lane>) -> Vec<(u64, u64)> {
    let mut came = Vec::new();
    let mut next = bus.take(lane, 0);
    while let Some(mut run) = next {
        came.push((run.entry.sequence, run.entry.event.payload));
        next = bus.finish(lane, &mut run.entry, Outcome::Done, None, true, 0);
    }
    came
}

fn run(bus: &Bus, levels: &[usize]) -> Run {
    let events: Vec<_> = (0..levels.len() as u64).map(event).collect();
    let offers = levels.iter().zip(&events).map(|(&level, event)| Offer {
        event_type: "t",
        level: LEVELS[level],
        token: 0,
        event,
        origin: None,
        timing: None,
    });
    bus.publish_run(offers, &bus.route("t"), &mut None, 0)
}

/// The same, one by one. One that is refused is counted, where a run leaves that to its publisher.
fn one_by_one(bus: &Bus, levels: &[usize]) -> Run {
    let mut run = Run::default();
    for (payload, &level) in levels.iter().enumerate() {
        match publish(bus, "t", LEVELS[level], payload as u64, Patience::None) {
            Published::Accepted(sequence) => {
                if run.count == 0 {
                    run.first = sequence;
                }
                run.count += 1;
            }
            Published::Refused(_) => {
                run.refused = true;
                break;
            }
            _ => unreachable!("no key, and no patience"),
        }
    }
    run
}

fn overflow() -> impl Strategy<Value = Overflow> {
    prop_oneof![
        3 => Just(Overflow::Block),
        1 => Just(Overflow::Reject),
        1 => Just(Overflow::DropOldest),
        1 => Just(Overflow::DropNew),
    ]
}

proptest! {
    #[test]
    fn a_run_is_its_events_one_by_one(
        told in proptest::collection::vec((1..6usize, overflow(), 1..3usize), 0..4),
        runs in proptest::collection::vec(proptest::collection::vec(0..LEVELS.len(), 0..12), 1..4),
    ) {
        let (at_once, singly) = (bus(), bus());
        let (these, those) = (lanes(&at_once, &told), lanes(&singly, &told));
        let mut refused = 0;
        for levels in &runs {
            let (here, there) = (run(&at_once, levels), one_by_one(&singly, levels));
            prop_assert_eq!(here, there);
            refused += u64::from(here.refused);
            let (here, there) = (at_once.report(), singly.report());
            prop_assert_eq!(here.0.accepted, there.0.accepted);
            prop_assert_eq!(here.0.offered + refused, there.0.offered);
            prop_assert_eq!(here.0.rejected + refused, there.0.rejected);
            for (here, there) in here.1.iter().zip(&there.1) {
                prop_assert_eq!(here.1, there.1, "routed");
                prop_assert_eq!(here.0.depth(Priority::Normal), there.0.depth(Priority::Normal));
            }
        }
        for (this, that) in these.iter().zip(&those) {
            prop_assert_eq!(drain(&at_once, this), drain(&singly, that));
        }
    }
}
