//! The wake-up protocol of an executor under every interleaving with two pushers, one of which shares
//! a lock with it and needs no other, as threads do that hold the interpreter's: it never sleeps while
//! something is ready, and for each sleep at most one party is told to wake it.
//!
//! Negative controls: with `Ring::arm` that does not look whether there is something, the executor
//! sleeps for ever; so it does if it lets go of the shared lock before it arms, or if the pusher that
//! shares the lock does not disarm. With `Ring::disarm` without the lock, two wake it.
#![cfg(loom)]

use std::collections::VecDeque;

use ironbus::engine::ring::Ring;
use loom::model::Builder;
use loom::sync::{
    Arc, Condvar, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};
use loom::thread;

#[derive(Default)]
struct Executor {
    ring: Ring<u32>,
    /// The lock that is shared, and what its holders found ready.
    ready: Mutex<VecDeque<u32>>,
    /// Wake-ups on their way, as an `eventfd` would carry them. Loom reports a sleep that nobody ends.
    permits: Mutex<usize>,
    woken: Condvar,
    arms: AtomicUsize,
    wakes: AtomicUsize,
}

impl Executor {
    fn push(&self, item: u32) {
        let asleep = self.ring.push(item);
        self.wake_if(asleep);
    }

    fn push_under_lock(&self, item: u32) {
        let mut ready = self.ready.lock().unwrap();
        ready.push_back(item);
        let asleep = self.ring.disarm();
        drop(ready);
        self.wake_if(asleep);
    }

    fn wake_if(&self, asleep: bool) {
        if asleep {
            self.wakes.fetch_add(1, SeqCst);
            *self.permits.lock().unwrap() += 1;
            self.woken.notify_one();
        }
    }

    /// Takes `count` items, sleeping in between.
    fn run(&self, count: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        loop {
            let mut ready = self.ready.lock().unwrap();
            if !self.ring.is_empty() {
                self.ring.move_to(&mut ready);
            }
            taken.extend(ready.drain(..));
            if taken.len() == count {
                return taken;
            }
            self.arms.fetch_add(1, SeqCst);
            let sleeps = self.ring.arm();
            drop(ready);
            if sleeps {
                let mut permits = self.permits.lock().unwrap();
                while *permits == 0 {
                    permits = self.woken.wait(permits).unwrap();
                }
                *permits -= 1;
            }
        }
    }
}

#[test]
fn no_wake_up_is_lost_and_none_is_doubled() {
    type Push = fn(&Executor, u32);
    let pushers: [(Push, &[u32]); 2] = [
        (Executor::push_under_lock, &[1, 2]),
        (Executor::push, &[11]),
    ];
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.check(move || {
        let executor = Arc::new(Executor::default());
        let threads = pushers.map(|(push, items)| {
            let executor = executor.clone();
            thread::spawn(move || items.iter().for_each(|item| push(&executor, *item)))
        });
        let taken = executor.run(3);
        threads.into_iter().for_each(|p| p.join().unwrap());
        for (_, pushed) in pushers {
            let own = taken.iter().filter(|item| pushed.contains(item));
            assert!(own.eq(pushed), "the order of one pusher");
        }
        let (arms, wakes) = (executor.arms.load(SeqCst), executor.wakes.load(SeqCst));
        assert!(wakes <= arms, "{wakes} wake-ups for {arms} sleeps");
    });
}

#[test]
fn one_of_two_claims_the_wake_up() {
    loom::model(|| {
        let executor = Arc::new(Executor::default());
        assert!(executor.ring.arm());
        let other = executor.clone();
        let thread = thread::spawn(move || usize::from(other.ring.push(1)));
        let here = usize::from(executor.ring.disarm());
        assert_eq!(here + thread.join().unwrap(), 1);
    });
}
