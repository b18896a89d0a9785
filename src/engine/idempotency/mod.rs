//! Keys that were seen: one winner per key, an exact deadline for each, a limit.
//!
//! A key is claimed by the first publisher and committed when its event is accepted.
//! In the common case both happen at once; where the event must wait, the claim stays
//! open, later publishers of the key join it, and the first of them takes over if it
//! fails. There is no lock in here: whoever shares the keys has one already, as the gate
//! that all events of a bus pass, and a second would cost each publish more than all else.
//!
//! All keys live equally long, so they are kept in the order of their deadlines with an
//! index into that log: an expired key is gone at the first look, in constant time, and
//! at the limit the oldest goes.

use hashbrown::HashMap;

use super::clock::Nanos;
use super::digest::Digest;
use super::prefetch::prefetch;
use index::Index;
use log::{Log, Short};

mod index;
mod log;

/// See the module. `W` tells a publisher that joined a claim to look again.
pub struct Idempotency<W> {
    ttl: Nanos,
    max_keys: usize,
    seed: u64,
    /// Seen keys, the first to expire in front.
    log: Log,
    /// Their numbers in the log, by digest.
    index: Index,
    /// Who has joined each; none any more where nobody will decide it.
    claims: HashMap<Short, Option<Vec<W>>>,
    evicted: u64,
}

/// What a publisher finds under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// An event with this key was accepted.
    Duplicate,
    /// One is on its way.
    Pending,
    /// This publisher is the first.
    Vacant,
}

impl<W> Idempotency<W> {
    /// No keys. `seed` should be random: keys come from outside.
    pub fn new(ttl: Nanos, max_keys: usize, seed: u64) -> Self {
        Self {
            ttl,
            max_keys,
            seed,
            log: Log::default(),
            index: Index::default(),
            claims: HashMap::new(),
            evicted: 0,
        }
    }

    /// Looks at a key. Who finds it vacant says at once what becomes of it, or it stays so.
    #[inline]
    pub fn look(&mut self, digest: &Digest, now: Nanos) -> Claim {
        let digest = digest.short();
        self.expire(now);
        if self.find(&digest).is_some() {
            Claim::Duplicate
        } else if !self.claims.is_empty() && self.claims.contains_key(&digest) {
            Claim::Pending
        } else {
            Claim::Vacant
        }
    }

    /// The event of a vacant key is accepted: the key is seen from now on.
    #[inline]
    pub fn mark(&mut self, digest: &Digest, now: Nanos) {
        self.insert(digest.short(), now);
    }

    /// The fate of the event of a vacant key is open: see [`commit`](Self::commit) and
    /// [`release`](Self::release).
    pub fn hold(&mut self, digest: &Digest) {
        self.claims.insert(digest.short(), Some(Vec::new()));
    }

    /// Asks to be told when an open claim is decided. It may be so already, or [stay
    /// open](Self::leave_open): then the waker comes back, and it is time to look again.
    pub fn join(&mut self, digest: &Digest, waker: W) -> Result<(), W> {
        match self.claims.get_mut(&digest.short()) {
            Some(Some(joined)) => {
                joined.push(waker);
                Ok(())
            }
            Some(None) | None => Err(waker),
        }
    }

    /// Whether the key was seen; it is from now on. For users without claims.
    #[inline]
    pub fn check_and_mark(&mut self, digest: &Digest, now: Nanos) -> bool {
        let digest = digest.short();
        self.expire(now);
        let seen = self.find(&digest).is_some();
        if !seen {
            self.insert(digest, now);
        }
        seen
    }

    /// The event of an open claim was accepted. Returns those who joined.
    pub fn commit(&mut self, digest: &Digest, now: Nanos) -> Vec<W> {
        let digest = digest.short();
        self.expire(now);
        let Some(joined) = self.claims.remove(&digest) else {
            return Vec::new();
        };
        self.insert(digest, now);
        joined.unwrap_or_default()
    }

    /// The event of an open claim was not accepted: the key is free. Returns those who joined.
    pub fn release(&mut self, digest: &Digest) -> Vec<W> {
        let claim = self.claims.remove(&digest.short());
        claim.flatten().unwrap_or_default()
    }

    /// The fate of an open claim stays open until its [end](Self::end_claims). Returns those who joined; nobody
    /// can any more, or it would wait for what nobody decides.
    pub fn leave_open(&mut self, digest: &Digest) -> Vec<W> {
        let claim = self.claims.get_mut(&digest.short());
        claim.and_then(Option::take).unwrap_or_default()
    }

    /// Ends all open claims, whose fates are known by what is [restored](Self::restore) next.
    /// Returns those who joined.
    pub fn end_claims(&mut self) -> Vec<W> {
        let claims = std::mem::take(&mut self.claims);
        claims.into_values().flatten().flatten().collect()
    }

    /// Remembers a key that was seen in another life, until its deadline. They come in the order of
    /// their deadlines.
    pub fn restore(&mut self, digest: Short, deadline: Nanos, now: Nanos) {
        self.expire(now);
        if deadline > now && self.find(&digest).is_none() {
            self.insert_until(digest, deadline);
        }
    }

    /// Forgets a key before its time; false: it was not known.
    pub fn forget(&mut self, digest: &Digest) -> bool {
        let digest = digest.short();
        // Its place in the log stays, and expires, as that of a key which is nobody's.
        self.find(&digest)
            .is_some_and(|number| self.unlink(&digest, number))
    }

    /// Keys that are remembered, including ones that have expired since anybody looked.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys that went before their time because of the limit.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Lets go of all expired keys and of the memory that they took.
    #[inline]
    pub fn expire(&mut self, now: Nanos) {
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

    /// The number of a key in the log.
    #[inline]
    fn find(&self, digest: &Short) -> Option<u32> {
        self.index.find(hash(self.seed, digest), |number| {
            self.log.get(number) == digest
        })
    }

    #[inline]
    fn insert(&mut self, digest: Short, now: Nanos) {
        self.insert_until(digest, now.saturating_add(self.ttl));
    }

    #[inline]
    fn insert_until(&mut self, digest: Short, deadline: Nanos) {
        if self.index.len() >= self.max_keys {
            self.evict();
        }
        let number = self.log.push(digest, deadline);
        let (seed, log) = (self.seed, &self.log);
        let rehash = |number| hash(seed, log.get(number));
        let prefetch = |number| prefetch(log.get(number), 1);
        self.index
            .insert(hash(seed, &digest), number, rehash, prefetch);
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

    fn digest(n: u64) -> Digest {
        Digest::of_parts(&[&n.to_le_bytes()])
    }

    proptest! {
        /// Against a model that looks at every key every time.
        #[test]
        fn deadlines_are_exact(steps in proptest::collection::vec((0u64..20, 0u64..5), 0..300)) {
            let mut keys = Idempotency::<()>::new(10, 1_000, 7);
            let mut model: BTreeMap<u64, u64> = BTreeMap::new();
            let mut now = 0;
            for (key, pause) in steps {
                now += pause;
                model.retain(|_, deadline| *deadline > now);
                let expected = model.contains_key(&key);
                model.entry(key).or_insert(now + 10);
                prop_assert_eq!(keys.check_and_mark(&digest(key), now), expected);
            }
            keys.expire(now);
            prop_assert_eq!(keys.len(), model.len());
        }
    }

    #[test]
    fn at_the_limit_the_oldest_goes() {
        let mut keys = Idempotency::<()>::new(u64::MAX, 100, 7);
        for n in 0..1_000 {
            assert!(!keys.check_and_mark(&digest(n), n));
            assert_eq!(keys.len() as u64, (n + 1).min(100));
        }
        assert_eq!(keys.evicted(), 900);
        let mut known = |n: u64| keys.look(&digest(n), 1_000) == Claim::Duplicate;
        assert!((900..1_000).all(&mut known));
        assert!(!(0..900).any(known));
    }

    #[test]
    fn memory_is_given_back() {
        let mut keys = Idempotency::<()>::new(10, usize::MAX, 7);
        for n in 0..100_000 {
            keys.check_and_mark(&digest(n), 0);
        }
        keys.expire(10);
        assert!(keys.is_empty());
        let left = keys.log.capacity() + keys.index.capacity();
        assert!(left < 10_000, "{left}");
    }

    #[test]
    fn a_forgotten_key_may_come_again() {
        let mut keys = Idempotency::<()>::new(10, 100, 7);
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
        let mut keys = Idempotency::new(10, 100, 7);
        assert_eq!(keys.look(&digest(1), 0), Claim::Vacant);
        keys.hold(&digest(1));
        assert_eq!(keys.look(&digest(1), 0), Claim::Pending);
        assert_eq!(keys.join(&digest(1), "second"), Ok(()));
        assert_eq!(keys.join(&digest(2), "nobody's"), Err("nobody's"));
        assert_eq!(keys.release(&digest(1)), ["second"]);
        assert_eq!(keys.join(&digest(1), "too late"), Err("too late"));
        assert_eq!(keys.look(&digest(1), 0), Claim::Vacant);
        keys.hold(&digest(1));
        assert!(keys.commit(&digest(1), 3).is_empty());
        assert_eq!(keys.look(&digest(1), 12), Claim::Duplicate);
        assert_eq!(keys.look(&digest(1), 13), Claim::Vacant);
    }

    #[test]
    fn nobody_joins_a_claim_that_stays_open() {
        let mut keys = Idempotency::new(10, 100, 7);
        keys.hold(&digest(1));
        assert_eq!(keys.join(&digest(1), "second"), Ok(()));
        assert_eq!(keys.leave_open(&digest(1)), ["second"]);
        assert_eq!(keys.look(&digest(1), 0), Claim::Pending);
        assert_eq!(keys.join(&digest(1), "third"), Err("third"));
        assert!(keys.end_claims().is_empty());
        assert_eq!(keys.look(&digest(1), 0), Claim::Vacant);
    }
}
