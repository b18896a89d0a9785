//! The keys under every interleaving of a few threads that share them behind a lock, as the bus does:
//! `RUSTFLAGS="--cfg loom" cargo test --release --test loom_idempotency --target-dir target/loom`
#![cfg(loom)]

use ironbus::engine::digest::Digest;
use ironbus::engine::idempotency::{Claim, Idempotency};
use ironbus::engine::sync::lock;
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
        let index = Arc::new(Mutex::new(Idempotency::<()>::new(100, 10, 7)));
        let wins = Arc::new(AtomicUsize::new(0));
        let mark = |index: Arc<Mutex<Idempotency<()>>>, wins: Arc<AtomicUsize>| {
            move || {
                if !lock(&index).check_and_mark(&digest(1), 0) {
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
        assert_eq!(lock(&index).len(), 1);
    });
}

/// A publisher that claims, waits for the claims of others, and fails its event if `fails`.
/// Returns whether its event was accepted.
fn publish(index: &Mutex<Idempotency<Signal>>, fails: bool) -> bool {
    loop {
        let mut keys = lock(index);
        match keys.look(&digest(1), 0) {
            Claim::Duplicate => return false,
            Claim::Pending => {
                // As on the bus: the claim may be decided before it is joined.
                drop(keys);
                let signal = Signal::default();
                if lock(index).join(&digest(1), signal.clone()).is_ok() {
                    wait(&signal);
                }
            }
            Claim::Vacant => {
                keys.hold(&digest(1));
                drop(keys);
                thread::yield_now();
                let mut keys = lock(index);
                let joined = if fails {
                    keys.release(&digest(1))
                } else {
                    keys.commit(&digest(1), 0)
                };
                drop(keys);
                wake(joined);
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
        let index = Arc::new(Mutex::new(Idempotency::<Signal>::new(100, 10, 7)));
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
        assert_eq!(lock(&index).len(), usize::from(accepted));
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
        let index = Arc::new(Mutex::new(Idempotency::<()>::new(100, 1, 7)));
        let other = {
            let index = index.clone();
            thread::spawn(move || {
                (1..3).for_each(|key| assert!(!lock(&index).check_and_mark(&digest(key), 1)))
            })
        };
        (3..5).for_each(|key| assert!(!lock(&index).check_and_mark(&digest(key), 1)));
        other.join().unwrap();
        assert_eq!(lock(&index).len(), 1);
        assert_eq!(lock(&index).evicted(), 3);
    });
}
