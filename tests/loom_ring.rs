//! The wake-up protocol of an executor under every interleaving with two pushers: it never
//! sleeps while something is ready, and for each sleep at most one party is told to wake it.
//!
//! Negative control: with `Ring::arm` that does not look whether there is something, the executor
//! sleeps for ever. With `Ring::disarm` without the lock, two wake it.
#![cfg(loom)]

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
    /// Wake-ups on their way, as an `eventfd` would carry them. Loom reports a sleep that nobody ends.
    permits: Mutex<usize>,
    woken: Condvar,
    arms: AtomicUsize,
    wakes: AtomicUsize,
}

impl Executor {
    fn push(&self, item: u32) {
        if self.ring.push(item) {
            self.wakes.fetch_add(1, SeqCst);
            *self.permits.lock().unwrap() += 1;
            self.woken.notify_one();
        }
    }

    /// Takes `count` items, sleeping in between.
    fn run(&self, count: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        loop {
            while let Some(item) = self.ring.pop() {
                taken.push(item);
            }
            if taken.len() == count {
                return taken;
            }
            self.arms.fetch_add(1, SeqCst);
            if self.ring.arm() {
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
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.max_branches = 10_000;
    model.check(|| {
        let executor = Arc::new(Executor::default());
        let pushers: Vec<_> = [[1, 2].as_slice(), &[11]]
            .into_iter()
            .map(|items| {
                let executor = executor.clone();
                thread::spawn(move || items.iter().for_each(|item| executor.push(*item)))
            })
            .collect();
        let taken = executor.run(3);
        pushers.into_iter().for_each(|p| p.join().unwrap());
        for pusher in [[1, 2].as_slice(), &[11]] {
            let own = taken.iter().filter(|item| pusher.contains(item));
            assert!(own.eq(pusher), "the order of one pusher");
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
