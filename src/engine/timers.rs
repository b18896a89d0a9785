//! When which lane wants to be looked at: the only thing that waits for a time. A lane
//! that waits owns neither task nor thread, only a place in here.

use std::collections::BTreeSet;

use super::clock::Nanos;
use super::lane::LaneId;
use super::sync::{Mutex, lock};

/// A lane's place at the gate and its number, which is another once the place is given to another.
pub type Place = (usize, LaneId);

/// See the module.
#[derive(Default)]
pub struct Timers {
    due: Mutex<BTreeSet<(Nanos, Place)>>,
}

impl Timers {
    /// Has the lane looked at then. True: nothing is due before, so somebody must be told.
    #[must_use]
    pub fn set(&self, due: Nanos, place: Place) -> bool {
        let mut timers = lock(&self.due);
        let first = timers.first().is_none_or(|(first, _)| due < *first);
        timers.insert((due, place));
        first
    }

    /// A lane that wants to be looked at now.
    pub fn pop(&self, now: Nanos) -> Option<Place> {
        let mut timers = lock(&self.due);
        if timers.first()?.0 > now {
            return None;
        }
        timers.pop_first().map(|(_, place)| place)
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Nanos> {
        lock(&self.due).first().map(|(due, _)| *due)
    }

    /// Forgets all.
    pub fn clear(&self) {
        lock(&self.due).clear();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tells_only_of_what_comes_before_everything_else() {
        let timers = Timers::default();
        assert!(timers.set(10, (0, 1)));
        assert!(!timers.set(10, (1, 2)));
        assert!(!timers.set(20, (0, 1)));
        assert!(timers.set(5, (1, 2)));
        assert_eq!(timers.next(), Some(5));
    }

    proptest! {
        /// Everything is popped at the first look after its time, and nothing before.
        #[test]
        fn pops_what_is_due(
            set in proptest::collection::vec((0..100u64, 0..5u64), 0..50),
            looks in proptest::collection::vec(0..120u64, 0..10),
        ) {
            let timers = Timers::default();
            let mut model = std::collections::BTreeSet::new();
            for (due, lane) in set {
                let first = model.iter().all(|(other, _)| *other > due);
                prop_assert_eq!(timers.set(due, (0, lane)), first);
                model.insert((due, lane));
            }
            for now in looks {
                let mut popped = Vec::new();
                while let Some((_, lane)) = timers.pop(now) {
                    popped.push(lane);
                }
                let due: Vec<_> = model.iter().filter(|(due, _)| *due <= now).copied().collect();
                prop_assert_eq!(&popped, &due.iter().map(|(_, lane)| *lane).collect::<Vec<_>>());
                model.retain(|(due, _)| *due > now);
                prop_assert_eq!(timers.next(), model.first().map(|(due, _)| *due));
            }
        }
    }
}
