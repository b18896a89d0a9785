//! The queue of one level under every interleaving of its producer and its consumer:
//! order, nothing lost, nothing twice, nothing read before it is written, nothing leaked.
//!
//! A segment has two slots here, so three values that wait cross a border and five recycle a segment;
//! whenever all are taken, the segment they were in begins anew. Negative controls: with
//! `Ordering::Relaxed` for the store of `written` in `Tail::push` (the run is aborted), or for that of `taken` in
//! `Head::pop` (each test fails), a slot is read while it is written; with `Relaxed` for the swap of `spare` in
//! `Tail::grow`, or without the second look at `written` in `Head::advance`, which loses what came in
//! between, `segments_are_used_again` fails.
#![cfg(loom)]

use ironbus::engine::queue::{Head, queue};
use loom::{model::Builder, sync::Arc, thread};

/// Takes until all of `expected` values have come; gives the processor away while there is none.
fn take_all(head: &mut Head<Box<u32>>, from: u32, until: u32) {
    for expected in from..until {
        loop {
            let seen = head.peek().map(|value| **value);
            let Some(value) = head.pop() else {
                thread::yield_now();
                continue;
            };
            assert_eq!(*value, expected);
            assert!(
                seen.is_none_or(|seen| seen == expected),
                "peek and pop differ"
            );
            break;
        }
    }
}

fn check(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(f);
}

#[test]
fn values_cross_the_borders_in_order() {
    check(2, || {
        let (mut tail, mut head) = queue();
        let producer = thread::spawn(move || (0..5).for_each(|n| tail.push(Box::new(n))));
        take_all(&mut head, 0, 5);
        producer.join().unwrap();
        assert!(head.peek().is_none() && head.pop().is_none());
    });
}

#[test]
fn segments_are_used_again() {
    check(2, || {
        let (mut tail, mut head) = queue();
        for n in 0..3 {
            tail.push(Box::new(n));
        }
        let producer = thread::spawn(move || (3..9).for_each(|n| tail.push(Box::new(n))));
        take_all(&mut head, 0, 9);
        producer.join().unwrap();
    });
}

#[test]
fn a_look_without_waiting_sees_a_prefix() {
    check(3, || {
        let (mut tail, mut head) = queue();
        let producer = thread::spawn(move || {
            (0..4).for_each(|n| tail.push(n));
            tail
        });
        let early: Vec<u32> = std::iter::from_fn(|| head.pop()).collect();
        assert!(early.iter().copied().eq(0..early.len() as u32));
        drop(producer.join().unwrap());
        let late: Vec<u32> = std::iter::from_fn(|| head.pop()).collect();
        assert!(early.into_iter().chain(late).eq(0..4));
    });
}

#[test]
fn what_is_left_is_dropped_once_by_whichever_end_goes_last() {
    check(3, || {
        let witness = Arc::new(());
        let (mut tail, mut head) = queue();
        let in_queue = witness.clone();
        let producer = thread::spawn(move || {
            for _ in 0..4 {
                tail.push(in_queue.clone());
            }
        });
        for _ in 0..3 {
            drop(head.pop());
        }
        drop(head);
        producer.join().unwrap();
        assert_eq!(Arc::strong_count(&witness), 1);
    });
}
