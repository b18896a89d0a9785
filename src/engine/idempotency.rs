//! Keys that were seen: one winner per key, an exact deadline for each, a limit.
//!
//! A key is claimed by the first publisher and committed when its event is accepted.
//! In the common case both happen under one lock of one of 64 shards; where the event
//! must wait, the claim stays open, later publishers of the key join it, and the first
//! of them takes over if it fails.
//!
//! All keys of an index live equally long, so a shard keeps them in the order of their
//! deadlines and an index into that log: an expired key is gone at the first look at its
//! shard, in constant time, and at the limit the oldest goes.

use std::collections::VecDeque;

use hashbrown::{HashMap, HashTable};

use super::clock::Nanos;
use super::digest::Digest;
use super::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
    lock,
};

#[cfg(not(loom))]
const SHARDS: usize = 64;
#[cfg(loom)]
const SHARDS: usize = 1;

/// A log smaller than this is not worth shrinking.
const SMALL: usize = 64;

type Short = [u8; 16];

/// See the module. `W` tells a publisher that joined a claim to look again.
pub struct Idempotency<W> {
    ttl: Nanos,
    max_keys: usize,
    seed: u64,
    shards: [Mutex<Shard<W>>; SHARDS],
    keys: AtomicUsize,
    evicted: AtomicU64,
}

struct Shard<W> {
    /// Seen keys, the first to expire in front.
    log: VecDeque<Seen>,
    /// Positions in the log, counted from the first key ever (and wrapping).
    index: HashTable<u32>,
    /// How many keys have left the log.
    gone: u32,
    claims: HashMap<Short, Vec<W>>,
}

struct Seen {
    digest: Short,
    deadline: Nanos,
}

/// What a publisher finds under its key. Holds the key's shard.
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
    shard: MutexGuard<'a, Shard<W>>,
    digest: Short,
}

/// A key that nobody has. Dropped, it stays so.
pub struct Vacant<'a, W> {
    index: &'a Idempotency<W>,
    shard: MutexGuard<'a, Shard<W>>,
    digest: Short,
}

impl<W> Pending<'_, W> {
    /// Asks to be told when the claim is decided.
    pub fn join(mut self, waker: W) {
        self.shard
            .claims
            .entry(self.digest)
            .or_default()
            .push(waker);
    }
}

impl<W> Vacant<'_, W> {
    /// The event is accepted: the key is seen from now on.
    #[inline]
    pub fn commit(mut self, now: Nanos) {
        self.index.insert(&mut self.shard, self.digest, now);
    }

    /// The event's fate is open: see [`Idempotency::commit`] and [`Idempotency::release`].
    pub fn hold(mut self) {
        self.shard.claims.insert(self.digest, Vec::new());
    }
}

impl<W> Idempotency<W> {
    /// An empty index. `seed` should be random: keys come from outside.
    pub fn new(ttl: Nanos, max_keys: usize, seed: u64) -> Self {
        let shard = || Shard {
            log: VecDeque::new(),
            index: HashTable::new(),
            gone: 0,
            claims: HashMap::new(),
        };
        Self {
            ttl,
            max_keys,
            seed,
            shards: std::array::from_fn(|_| Mutex::new(shard())),
            keys: AtomicUsize::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Looks at a key, and keeps its shard until the answer is dealt with.
    #[inline]
    pub fn claim(&self, digest: &Digest, now: Nanos) -> Claim<'_, W> {
        let digest = digest.short();
        let mut shard = self.shard(&digest);
        self.expire(&mut shard, now);
        if shard.position(&digest, self.hash(&digest)).is_some() {
            return Claim::Duplicate;
        }
        if !shard.claims.is_empty() && shard.claims.contains_key(&digest) {
            return Claim::Pending(Pending { shard, digest });
        }
        Claim::Vacant(Vacant {
            index: self,
            shard,
            digest,
        })
    }

    /// Whether the key was seen; it is from now on. For users without claims.
    #[inline]
    pub fn check_and_mark(&self, digest: &Digest, now: Nanos) -> bool {
        let digest = digest.short();
        let mut shard = self.shard(&digest);
        self.expire(&mut shard, now);
        let seen = shard.position(&digest, self.hash(&digest)).is_some();
        if !seen {
            self.insert(&mut shard, digest, now);
        }
        seen
    }

    /// The event of an open claim was accepted. Returns those who joined.
    pub fn commit(&self, digest: &Digest, now: Nanos) -> Vec<W> {
        let digest = digest.short();
        let mut shard = self.shard(&digest);
        self.expire(&mut shard, now);
        let Some(joined) = shard.claims.remove(&digest) else {
            return Vec::new();
        };
        self.insert(&mut shard, digest, now);
        joined
    }

    /// The event of an open claim was not accepted: the key is free. Returns those who joined.
    pub fn release(&self, digest: &Digest) -> Vec<W> {
        let digest = digest.short();
        self.shard(&digest)
            .claims
            .remove(&digest)
            .unwrap_or_default()
    }

    /// Forgets a key before its time; false: it was not known.
    pub fn forget(&self, digest: &Digest) -> bool {
        let digest = digest.short();
        let hash = self.hash(&digest);
        let mut shard = self.shard(&digest);
        let Some(at) = shard.position(&digest, hash) else {
            return false;
        };
        let position = shard.gone.wrapping_add(at as u32);
        shard.unlink(hash, position);
        // Its place in the log stays, and expires, as that of a key which is nobody's.
        self.keys.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Keys that are remembered, including ones that have expired since anybody looked.
    pub fn len(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys that went before their time because of the limit.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Lets go of all expired keys and of the memory that they took.
    pub fn sweep(&self, now: Nanos) {
        for shard in &self.shards {
            self.expire(&mut lock(shard), now);
        }
    }

    fn shard(&self, digest: &Short) -> MutexGuard<'_, Shard<W>> {
        lock(&self.shards[usize::from(digest[0]) % SHARDS])
    }

    /// The digest is uniform already; the seed keeps outsiders from choosing collisions.
    #[inline]
    fn hash(&self, digest: &Short) -> u64 {
        hash(self.seed, digest)
    }

    #[inline]
    fn expire(&self, shard: &mut Shard<W>, now: Nanos) {
        while shard.log.front().is_some_and(|seen| seen.deadline <= now) {
            self.drop_front(shard);
        }
    }

    fn drop_front(&self, shard: &mut Shard<W>) -> bool {
        let Some(seen) = shard.log.pop_front() else {
            return false;
        };
        let position = shard.gone;
        shard.gone = shard.gone.wrapping_add(1);
        let known = shard.unlink(hash(self.seed, &seen.digest), position);
        if known {
            self.keys.fetch_sub(1, Ordering::Relaxed);
        }
        shard.shrink(self.seed);
        known
    }

    #[inline]
    fn insert(&self, shard: &mut Shard<W>, digest: Short, now: Nanos) {
        if self.keys.fetch_add(1, Ordering::Relaxed) >= self.max_keys {
            self.make_room(shard);
        }
        // The log is in the order of the deadlines even if a clock steps back.
        let deadline = now
            .saturating_add(self.ttl)
            .max(shard.log.back().map_or(0, |seen| seen.deadline));
        let position = shard.gone.wrapping_add(shard.log.len() as u32);
        shard.log.push_back(Seen { digest, deadline });
        let (seed, gone, log) = (self.seed, shard.gone, &shard.log);
        shard
            .index
            .insert_unique(hash(seed, &digest), position, |position| {
                hash(seed, &log[position.wrapping_sub(gone) as usize].digest)
            });
    }

    /// At the limit the oldest key of the same shard goes, or, where the shard has none, the oldest
    /// of the next shard that has one and that nobody is busy with.
    #[cold]
    fn make_room(&self, shard: &mut Shard<W>) {
        let evict = |shard: &mut Shard<W>| {
            while !shard.log.is_empty() {
                if self.drop_front(shard) {
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
            }
            false
        };
        if !evict(shard) {
            // Never waits: the other shard's holder may be doing the same.
            let _ = self
                .shards
                .iter()
                .filter_map(|other| other.try_lock().ok())
                .any(|mut other| evict(&mut other));
        }
    }
}

#[inline]
fn hash(seed: u64, digest: &Short) -> u64 {
    let word = u64::from_le_bytes(digest[8..].try_into().expect("eight of sixteen bytes"));
    (word ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

impl<W> Shard<W> {
    /// The place of a key in the log.
    #[inline]
    fn position(&self, digest: &Short, hash: u64) -> Option<usize> {
        let (gone, log) = (self.gone, &self.log);
        let found = self.index.find(hash, |position| {
            log[position.wrapping_sub(gone) as usize].digest == *digest
        })?;
        Some(found.wrapping_sub(gone) as usize)
    }

    fn unlink(&mut self, hash: u64, position: u32) -> bool {
        match self.index.find_entry(hash, |other| *other == position) {
            Ok(entry) => {
                entry.remove();
                true
            }
            Err(_) => false,
        }
    }

    /// Gives memory back after a burst has expired.
    fn shrink(&mut self, seed: u64) {
        if self.log.capacity() > SMALL && self.log.len() < self.log.capacity() / 4 {
            let room = self.log.len() * 2;
            self.log.shrink_to(room);
            let (gone, log) = (self.gone, &self.log);
            self.index.shrink_to(room, |position| {
                hash(seed, &log[position.wrapping_sub(gone) as usize].digest)
            });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

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
    fn the_limit_holds_and_is_counted() {
        let keys = Idempotency::<()>::new(u64::MAX, 100, 7);
        for n in 0..1_000 {
            assert!(!keys.check_and_mark(&digest(n), n));
            assert!(keys.len() <= 100);
        }
        assert_eq!(keys.len() as u64 + keys.evicted(), 1_000);
        assert!(
            keys.check_and_mark(&digest(999), 1_000),
            "the youngest is never the one that goes"
        );
    }

    #[test]
    fn memory_is_given_back() {
        let keys = Idempotency::<()>::new(10, usize::MAX, 7);
        for n in 0..100_000 {
            keys.check_and_mark(&digest(n), 0);
        }
        keys.sweep(10);
        assert!(keys.is_empty());
        let left: usize = keys
            .shards
            .iter()
            .map(|shard| lock(shard).log.capacity())
            .sum();
        assert!(left <= SHARDS * SMALL * 4, "{left}");
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
