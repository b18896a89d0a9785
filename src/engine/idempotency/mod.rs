//! Keys that were seen: one winner per key, an exact deadline for each, a limit.
//!
//! A key is claimed by the first publisher and committed when its event is accepted.
//! In the common case both happen under one lock; where the event must wait, the claim
//! stays open, later publishers of the key join it, and the first of them takes over if
//! it fails. One lock, because all events of a bus pass one gate anyhow, and because a
//! second one, and counters between several, would cost each publish more than it spares.
//!
//! All keys live equally long, so they are kept in the order of their deadlines with an
//! index into that log: an expired key is gone at the first look, in constant time, and
//! at the limit the oldest goes.

use hashbrown::HashMap;

use super::clock::Nanos;
use super::digest::Digest;
use super::sync::{Mutex, MutexGuard, lock};
use index::Index;
use log::{Log, Short};

mod index;
mod log;

/// See the module. `W` tells a publisher that joined a claim to look again.
pub struct Idempotency<W> {
    ttl: Nanos,
    max_keys: usize,
    keys: Mutex<Keys<W>>,
}

struct Keys<W> {
    seed: u64,
    /// Seen keys, the first to expire in front.
    log: Log,
    /// Their numbers in the log, by digest.
    index: Index,
    claims: HashMap<Short, Vec<W>>,
    evicted: u64,
}

/// What a publisher finds under its key. Holds the lock.
pub enum Claim<'a, W> {
    /// An event with this key was accepted.
    Duplicate,
    /// One is on its way.
    Pending(Pending<'a, W>),
    /// This publisher is the first.
    Vacant(Vacant<'a, W>),
}

/// An open claim of somebody else.
pub struct Pending<'a, W> {
    keys: MutexGuard<'a, Keys<W>>,
    digest: Short,
}

/// A key that nobody has. Dropped, it stays so.
pub struct Vacant<'a, W> {
    settings: &'a Idempotency<W>,
    keys: MutexGuard<'a, Keys<W>>,
    digest: Short,
}

impl<W> Pending<'_, W> {
    /// Asks to be told when the claim is decided.
    pub fn join(mut self, waker: W) {
        let joined = self.keys.claims.entry(self.digest).or_default();
        joined.push(waker);
    }
}

impl<W> Vacant<'_, W> {
    /// The event is accepted: the key is seen from now on.
    #[inline]
    pub fn commit(mut self, now: Nanos) {
        self.keys.insert(self.settings, self.digest, now);
    }

    /// The event's fate is open: see [`Idempotency::commit`] and [`Idempotency::release`].
    pub fn hold(mut self) {
        self.keys.claims.insert(self.digest, Vec::new());
    }
}

impl<W> Idempotency<W> {
    /// An empty index. `seed` should be random: keys come from outside.
    pub fn new(ttl: Nanos, max_keys: usize, seed: u64) -> Self {
        Self {
            ttl,
            max_keys,
            keys: Mutex::new(Keys {
                seed,
                log: Log::default(),
                index: Index::default(),
                claims: HashMap::new(),
                evicted: 0,
            }),
        }
    }

    /// Looks at a key, and keeps the lock until the answer is dealt with.
    #[inline]
    pub fn claim(&self, digest: &Digest, now: Nanos) -> Claim<'_, W> {
        let digest = digest.short();
        let mut keys = lock(&self.keys);
        keys.expire(now);
        if keys.find(&digest).is_some() {
            return Claim::Duplicate;
        }
        if !keys.claims.is_empty() && keys.claims.contains_key(&digest) {
            return Claim::Pending(Pending { keys, digest });
        }
        Claim::Vacant(Vacant {
            settings: self,
            keys,
            digest,
        })
    }

    /// Whether the key was seen; it is from now on. For users without claims.
    #[inline]
    pub fn check_and_mark(&self, digest: &Digest, now: Nanos) -> bool {
        let digest = digest.short();
        let mut keys = lock(&self.keys);
        keys.expire(now);
        let seen = keys.find(&digest).is_some();
        if !seen {
            keys.insert(self, digest, now);
        }
        seen
    }

    /// The event of an open claim was accepted. Returns those who joined.
    pub fn commit(&self, digest: &Digest, now: Nanos) -> Vec<W> {
        let digest = digest.short();
        let mut keys = lock(&self.keys);
        keys.expire(now);
        let Some(joined) = keys.claims.remove(&digest) else {
            return Vec::new();
        };
        keys.insert(self, digest, now);
        joined
    }

    /// The event of an open claim was not accepted: the key is free. Returns those who joined.
    pub fn release(&self, digest: &Digest) -> Vec<W> {
        let claim = lock(&self.keys).claims.remove(&digest.short());
        claim.unwrap_or_default()
    }

    /// Forgets a key before its time; false: it was not known.
    pub fn forget(&self, digest: &Digest) -> bool {
        let digest = digest.short();
        let mut keys = lock(&self.keys);
        // Its place in the log stays, and expires, as that of a key which is nobody's.
        keys.find(&digest)
            .is_some_and(|number| keys.unlink(&digest, number))
    }

    /// Keys that are remembered, including ones that have expired since anybody looked.
    pub fn len(&self) -> usize {
        lock(&self.keys).index.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys that went before their time because of the limit.
    pub fn evicted(&self) -> u64 {
        lock(&self.keys).evicted
    }

    /// Lets go of all expired keys and of the memory that they took.
    pub fn sweep(&self, now: Nanos) {
        lock(&self.keys).expire(now);
    }
}

impl<W> Keys<W> {
    /// The number of a key in the log.
    #[inline]
    fn find(&self, digest: &Short) -> Option<u32> {
        self.index.find(hash(self.seed, digest), |number| {
            self.log.get(number) == digest
        })
    }

    #[inline]
    fn insert(&mut self, settings: &Idempotency<W>, digest: Short, now: Nanos) {
        if self.index.len() >= settings.max_keys {
            self.evict();
        }
        let deadline = now.saturating_add(settings.ttl);
        let number = self.log.push(digest, deadline);
        let (seed, log) = (self.seed, &self.log);
        self.index.insert(hash(seed, &digest), number, |number| {
            hash(seed, log.get(number))
        });
    }

    #[inline]
    fn expire(&mut self, now: Nanos) {
        if self.has_expired(now) {
            self.expire_some(now);
        }
    }

    #[inline]
    fn has_expired(&self, now: Nanos) -> bool {
        let first = self.log.first();
        first.is_some_and(|(_, _, deadline)| deadline <= now)
    }

    #[inline(never)]
    fn expire_some(&mut self, now: Nanos) {
        while self.has_expired(now) {
            self.drop_first();
        }
    }

    /// At the limit the oldest key goes.
    #[cold]
    fn evict(&mut self) {
        while let Some(known) = self.drop_first() {
            if known {
                self.evicted += 1;
                break;
            }
        }
    }

    /// Lets go of the first in the log, if there is one. False: it had been forgotten before.
    fn drop_first(&mut self) -> Option<bool> {
        let (digest, number, _) = self.log.first()?;
        let known = self.unlink(&digest, number);
        self.log.pop();
        Some(known)
    }

    fn unlink(&mut self, digest: &Short, number: u32) -> bool {
        let (seed, log) = (self.seed, &self.log);
        self.index.remove(hash(seed, digest), number, |number| {
            hash(seed, log.get(number))
        })
    }
}

/// The digest is uniform already; the seed keeps outsiders from choosing collisions.
#[inline]
fn hash(seed: u64, digest: &Short) -> u64 {
    let word = u64::from_le_bytes(digest[8..].try_into().expect("eight of sixteen bytes"));
    (word ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn digest(n: u64) -> Digest {
        Digest::of_parts(&[&n.to_le_bytes()])
    }

    proptest! {
        /// Against a model that looks at every key every time.
        #[test]
        fn deadlines_are_exact(steps in proptest::collection::vec((0u64..20, 0u64..5), 0..300)) {
            let keys = Idempotency::<()>::new(10, 1_000, 7);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0;
            for (key, pause) in steps {
                now += pause;
                model.retain(|_, deadline| *deadline > now);
                let expected = model.contains_key(&key);
                model.entry(key).or_insert(now + 10);
                prop_assert_eq!(keys.check_and_mark(&digest(key), now), expected);
            }
            keys.sweep(now);
            prop_assert_eq!(keys.len(), model.len());
        }
    }

    #[test]
    fn at_the_limit_the_oldest_goes() {
        let keys = Idempotency::<()>::new(u64::MAX, 100, 7);
        for n in 0..1_000 {
            assert!(!keys.check_and_mark(&digest(n), n));
            assert_eq!(keys.len() as u64, (n + 1).min(100));
        }
        assert_eq!(keys.evicted(), 900);
        let known = |n: u64| matches!(keys.claim(&digest(n), 1_000), Claim::Duplicate);
        assert!((900..1_000).all(known));
        assert!(!(0..900).any(known));
    }

    #[test]
    fn memory_is_given_back() {
        let keys = Idempotency::<()>::new(10, usize::MAX, 7);
        for n in 0..100_000 {
            keys.check_and_mark(&digest(n), 0);
        }
        keys.sweep(10);
        assert!(keys.is_empty());
        let keys = lock(&keys.keys);
        let left = keys.log.capacity() + keys.index.capacity();
        assert!(left < 10_000, "{left}");
    }

    #[test]
    fn a_forgotten_key_may_come_again() {
        let keys = Idempotency::<()>::new(10, 100, 7);
        assert!(!keys.check_and_mark(&digest(1), 0));
        assert!(keys.forget(&digest(1)));
        assert!(!keys.forget(&digest(1)));
        assert!(!keys.check_and_mark(&digest(1), 5));
        assert!(
            keys.check_and_mark(&digest(1), 14),
            "its new deadline counts, not its old one"
        );
        assert!(!keys.check_and_mark(&digest(1), 15));
        assert_eq!(keys.len(), 1);
    }

    #[test]
    fn a_claim_is_joined_and_decided() {
        let keys = Idempotency::new(10, 100, 7);
        let Claim::Vacant(vacant) = keys.claim(&digest(1), 0) else {
            panic!("free")
        };
        vacant.hold();
        let Claim::Pending(pending) = keys.claim(&digest(1), 0) else {
            panic!("held")
        };
        pending.join("second");
        assert_eq!(keys.release(&digest(1)), ["second"]);
        let Claim::Vacant(vacant) = keys.claim(&digest(1), 0) else {
            panic!("free again")
        };
        vacant.hold();
        assert!(keys.commit(&digest(1), 3).is_empty());
        assert!(matches!(keys.claim(&digest(1), 12), Claim::Duplicate));
        assert!(matches!(keys.claim(&digest(1), 13), Claim::Vacant(_)));
    }

    #[test]
    fn eight_threads_have_one_winner_for_each_key() {
        let keys = Idempotency::<()>::new(u64::MAX, usize::MAX, 7);
        let wins = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..10_000 {
                        if !keys.check_and_mark(&digest(n), 0) {
                            wins.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(wins.into_inner(), 10_000);
    }
}
