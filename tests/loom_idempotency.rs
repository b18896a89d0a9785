//! The idempotency index under every interleaving of a few threads:
//! `RUSTFLAGS="--cfg loom" cargo test --release --test loom_idempotency --target-dir target/loom`
#![cfg(loom)]

use ironbus::engine::digest::Digest;
use ironbus::engine::idempotency::{Claim, Idempotency};
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

/// What wakes a publisher that has joined a claim.
type Signal = Arc<(Mutex<bool>, Condvar)>;

fn wake(joined: Vec<Signal>) {
    for signal in joined {
        *signal.0.lock().unwrap() = true;
        signal.1.notify_one();
    }
}

fn wait(signal: &Signal) {
    let mut told = signal.0.lock().unwrap();
    while !*told {
        told = signal.1.wait(told).unwrap();
    }
}

fn digest(key: u8) -> Digest {
    Digest([key; 32])
}

#[test]
fn one_of_three_wins_a_key() {
    loom::model(|| {
        let index = Arc::new(Idempotency::<()>::new(100, 10, 7));
        let wins = Arc::new(AtomicUsize::new(0));
        let mark = |index: Arc<Idempotency<()>>, wins: Arc<AtomicUsize>| {
            move || {
                if !index.check_and_mark(&digest(1), 0) {
                    wins.fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        let threads = [(); 2].map(|()| thread::spawn(mark(index.clone(), wins.clone())));
        mark(index.clone(), wins.clone())();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(wins.load(Ordering::Relaxed), 1);
        assert_eq!(index.len(), 1);
    });
}

/// A publisher that claims, waits for the claims of others, and fails its event if `fails`.
/// Returns whether its event was accepted.
fn publish(index: &Idempotency<Signal>, fails: bool) -> bool {
    loop {
        match index.claim(&digest(1), 0) {
            Claim::Duplicate => return false,
            Claim::Pending(pending) => {
                let signal = Signal::default();
                pending.join(signal.clone());
                wait(&signal);
            }
            Claim::Vacant(vacant) => {
                vacant.hold();
                thread::yield_now();
                wake(if fails {
                    index.release(&digest(1))
                } else {
                    index.commit(&digest(1), 0)
                });
                return !fails;
            }
        }
    }
}

fn publishers(fails: &'static [bool]) {
    let accepted = fails.iter().any(|fails| !fails);
    // Each thread more multiplies the interleavings; what goes wrong does so with few preemptions.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let index = Arc::new(Idempotency::<Signal>::new(100, 10, 7));
        let threads: Vec<_> = fails[1..]
            .iter()
            .map(|&fails| {
                let index = index.clone();
                thread::spawn(move || publish(&index, fails))
            })
            .collect();
        let first = publish(&index, fails[0]);
        let others = threads.into_iter().map(|thread| thread.join().unwrap());
        // Loom fails the test by itself if somebody waits for ever.
        let wins = others.filter(|&won| won).count() + usize::from(first);
        assert_eq!(wins, usize::from(accepted));
        assert_eq!(index.len(), usize::from(accepted));
    });
}

#[test]
fn a_failed_publisher_is_succeeded_by_who_joined() {
    publishers(&[true, false]);
}

#[test]
fn nobody_waits_for_ever() {
    publishers(&[true, false, false]);
}

#[test]
fn all_may_fail() {
    publishers(&[true, true]);
}

#[test]
fn eviction_keeps_the_limit() {
    // Two threads, each of which is over it with the other's key.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let index = Arc::new(Idempotency::<()>::new(100, 1, 7));
        let other = {
            let index = index.clone();
            thread::spawn(move || {
                (1..3).for_each(|key| assert!(!index.check_and_mark(&digest(key), 1)))
            })
        };
        (3..5).for_each(|key| assert!(!index.check_and_mark(&digest(key), 1)));
        other.join().unwrap();
        assert_eq!(index.len(), 1);
        assert_eq!(index.evicted(), 3);
    });
}
