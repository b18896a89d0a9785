//! The end of an event under every interleaving: a waiter is told exactly once, and a tree of
//! causes ends exactly once, whenever the last deliveries end.
//!
//! Negative control: when `Envelope::wait` looks (`load`) before it sets the flag, or when the
//! flag does not note an end that has passed (`Envelope::flag`),
//! `a_child_published_while_its_parent_settles_leaves_no_tree_open` fails; when
//! `Envelope::family` does not set the flag, `a_tree_ends_once_after_parent_and_child` does; when
//! `Envelope::settle_last` takes the short way for an event that others have,
//! `a_waiter_whose_receipt_is_let_go_of_meanwhile_is_told_once` does.
#![cfg(loom)]

mod plain;

use ironbus::engine::settlement::Outcome;
use ironbus::engine::sync::Shared;
use loom::{model, thread};
use plain::{Envelope, Flag, lane, told};

#[test]
fn a_waiter_is_told_once() {
    model(|| {
        let lane = lane("a", 1);
        let event = Shared::new(Envelope::new(7, None));
        assert!(event.routed(2).is_none());
        let settlers: Vec<_> = (0..2)
            .map(|n| {
                let (event, lane) = (event.clone(), lane.clone());
                thread::spawn(move || {
                    let outcome = if n == 0 {
                        Outcome::Done
                    } else {
                        Outcome::Dropped
                    };
                    plain::wake(event.settle(&lane, outcome));
                })
            })
            .collect();
        let flag = Flag::default();
        let waits = event.wait(flag.waker()).is_ok();
        assert!(waits || event.settled());
        settlers.into_iter().for_each(|s| s.join().unwrap());
        assert!(event.settled());
        assert_eq!(told(&flag), usize::from(waits));
        assert!(
            event.wait(flag.waker()).is_err(),
            "nothing is left to wait for"
        );
        assert_eq!(event.outcomes().len(), 1);
    });
}

#[test]
fn a_waiter_whose_receipt_is_let_go_of_meanwhile_is_told_once() {
    model(|| {
        let lane = lane("a", 1);
        let event = Shared::new(Envelope::new(7, None));
        assert!(event.routed(2).is_none());
        let settlers: Vec<_> = (0..2)
            .map(|_| {
                let (mut event, lane) = (event.clone(), lane.clone());
                thread::spawn(move || {
                    plain::wake(Envelope::settle_last(&mut event, &lane, Outcome::Done));
                })
            })
            .collect();
        let flag = Flag::default();
        let waits = event.wait(flag.waker()).is_ok();
        drop(event);
        settlers.into_iter().for_each(|s| s.join().unwrap());
        assert_eq!(told(&flag), usize::from(waits));
    });
}

#[test]
fn a_tree_ends_once_after_parent_and_child() {
    model(|| {
        let lane = lane("a", 1);
        let parent = Shared::new(Envelope::new(1, None));
        parent.routed(2);
        // One delivery of the parent publishes a child, another one just ends.
        let other = {
            let (parent, lane) = (parent.clone(), lane.clone());
            thread::spawn(move || plain::wake(parent.settle(&lane, Outcome::Done)))
        };
        let child = Shared::new(Envelope::new(2, Some(&parent)));
        child.routed(1);
        let tree = child.tree().expect("a child has a tree");
        let flag = Flag::default();
        assert!(tree.wait(flag.waker()).is_ok(), "the child is not settled");
        let end = {
            let (child, lane) = (child.clone(), lane.clone());
            thread::spawn(move || plain::wake(child.settle(&lane, Outcome::Done)))
        };
        plain::wake(parent.settle(&lane, Outcome::Done));
        other.join().unwrap();
        end.join().unwrap();
        assert!(tree.settled());
        assert_eq!(told(&flag), 1);
    });
}

#[test]
fn a_child_published_while_its_parent_settles_leaves_no_tree_open() {
    model(|| {
        let lane = lane("a", 1);
        let parent = Shared::new(Envelope::new(1, None));
        parent.routed(1);
        let settler = {
            let (parent, lane) = (parent.clone(), lane.clone());
            thread::spawn(move || plain::wake(parent.settle(&lane, Outcome::Done)))
        };
        // A waiter who may come too late, as a receipt may be asked after the end.
        let late = Flag::default();
        let waits = parent.wait(late.waker()).is_ok();
        let child = Shared::new(Envelope::new(2, Some(&parent)));
        let tree = child.tree().expect("a child has a tree");
        let flag = Flag::default();
        let waited = tree.wait(flag.waker()).is_ok();
        assert!(waited, "the child is not settled");
        plain::wake(child.routed(0));
        settler.join().unwrap();
        assert_eq!(told(&late), usize::from(waits));
        assert!(
            tree.settled(),
            "both events are settled, but their tree never ends"
        );
        assert_eq!(told(&flag), 1);
    });
}
