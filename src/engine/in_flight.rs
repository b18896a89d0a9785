//! What was handed out and not reported back yet, bounded even when the one it
//! was handed to never reports anything.

use std::collections::hash_map::RandomState;

use hashbrown::HashSet;

/// A bounded set of ids that forgets the oldest.
///
/// There are two generations. When the younger reaches the limit the older is
/// forgotten as a whole: no order of arrival has to be kept for each id. So
/// between `limit` and twice as many of the latest ids are remembered.
///
/// The latest of the younger are kept in a row, which is faster to look through than a
/// table: whoever reports each batch back before taking the next never has more.
///
/// An id is 64 bits, the hash of whatever names the thing. Where two share one,
/// reporting either back removes both; nothing depends on it but the count.
#[derive(Debug)]
pub struct InFlight {
    limit: usize,
    few: Vec<u64>,
    young: HashSet<u64, IdHasher>,
    old: HashSet<u64, IdHasher>,
}

impl InFlight {
    /// As many ids as are kept in a row.
    const FEW: usize = 16;

    /// An empty set that remembers the latest `limit` ids, or a few more.
    pub fn new(limit: usize) -> Self {
        let hasher = IdHasher::new();
        Self {
            limit: limit.max(1),
            few: Vec::with_capacity(Self::FEW),
            young: HashSet::with_hasher(hasher),
            old: HashSet::with_hasher(hasher),
        }
    }

    /// Notes that `id` was handed out; again is the same as once.
    #[inline]
    pub fn insert(&mut self, id: u64) {
        if self.few.contains(&id) {
            return;
        }
        if self.few.len() == Self::FEW || self.few.len() + self.young.len() >= self.limit {
            self.put_away();
        }
        self.few.push(id);
    }

    /// Moves the few into the table.
    #[cold]
    fn put_away(&mut self) {
        self.young.extend(self.few.drain(..));
        if self.young.len() >= self.limit {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
    }

    /// Notes that `id` was reported back; whether it was remembered.
    #[inline]
    pub fn remove(&mut self, id: u64) -> bool {
        let few = self.few.iter().position(|&other| other == id);
        if let Some(place) = few {
            self.few.swap_remove(place);
        }
        // Not `||`: an id that was handed out twice may be in each.
        few.is_some() | self.remove_from_table(id)
    }

    #[inline]
    fn remove_from_table(&mut self, id: u64) -> bool {
        let young = !self.young.is_empty() && self.young.remove(&id);
        young | (!self.old.is_empty() && self.old.remove(&id))
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        let only_in_old = |id: &&u64| !self.young.contains(*id);
        let table = self.young.len() + self.old.iter().filter(only_in_old).count();
        let only_here = |id: &&u64| !self.young.contains(*id) && !self.old.contains(*id);
        table + self.few.iter().filter(only_here).count()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.few.is_empty() && self.young.is_empty() && self.old.is_empty()
    }
}

/// Spreads ids over a table: one multiplication, with a random odd factor so that
/// nobody who chooses ids can choose them to collide in the table.
#[derive(Clone, Copy, Debug)]
struct IdHasher {
    factor: u64,
    state: u64,
}

impl IdHasher {
    fn new() -> Self {
        use std::hash::BuildHasher;
        Self {
            factor: RandomState::new().hash_one(0) | 1,
            state: 0,
        }
    }
}

impl std::hash::BuildHasher for IdHasher {
    type Hasher = Self;

    #[inline]
    fn build_hasher(&self) -> Self {
        *self
    }
}

impl std::hash::Hasher for IdHasher {
    #[inline]
    fn write_u64(&mut self, id: u64) {
        // The table takes its place from the low bits and its tag from the high
        // ones; folding both halves of the product gives each a share of all.
        let product = u128::from(id ^ self.state) * u128::from(self.factor);
        self.state = (product as u64) ^ (product >> 64) as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.state
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forgets_the_oldest_when_nothing_is_reported_back() {
        let mut ids = InFlight::new(10);
        for id in 0..1000 {
            ids.insert(id);
            assert!(ids.len() <= 20);
        }
        assert!((990..1000).all(|id| ids.remove(id)));
        assert!(!ids.remove(0));
    }

    #[test]
    fn keeps_to_its_bounds_whatever_the_limit() {
        for limit in 1..60 {
            let mut ids = InFlight::new(limit);
            for id in 0..1000 {
                ids.insert(id);
                assert!(ids.len() <= 2 * limit && ids.len() >= limit.min(id as usize + 1));
            }
        }
    }

    proptest! {
        #[test]
        fn is_a_set_below_its_limit(steps in proptest::collection::vec((any::<bool>(), 0..40u64), 0..200)) {
            let mut ids = InFlight::new(40);
            let mut model = std::collections::HashSet::new();
            for (insert, id) in steps {
                if insert {
                    ids.insert(id);
                    model.insert(id);
                } else {
                    prop_assert_eq!(ids.remove(id), model.remove(&id));
                }
                prop_assert_eq!((ids.len(), ids.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }
}
