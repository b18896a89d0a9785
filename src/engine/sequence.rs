//! Sequence numbers: 1, 2, 3, … each given once.
//!
//! The counter knows nothing of what it numbers. That an event which is refused
//! gets no number is the caller's part: it asks only once nothing can go wrong.

use super::sync::atomic::{AtomicU64, Ordering};

/// Gives every caller a number of its own. Callers take turns, by a lock of theirs (the gate's), so
/// that a number costs no locked instruction.
///
/// At a thousand million numbers a second, 64 bits last for 584 years.
///
/// ```
/// use ironbus::engine::sequence::Sequencer;
///
/// let sequencer = Sequencer::default();
/// assert_eq!((sequencer.next_in_turn(), sequencer.next_in_turn()), (1, 2));
/// ```
#[derive(Debug)]
pub struct Sequencer {
    last: AtomicU64,
}

impl Default for Sequencer {
    /// A sequencer that begins with 1.
    fn default() -> Self {
        Self {
            last: AtomicU64::new(0),
        }
    }
}

impl Sequencer {
    /// The number that was given last. In turn, too.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Goes on behind this number. In turn, too.
    pub fn go_on_behind(&self, last: u64) {
        self.last.store(last, Ordering::Relaxed);
    }

    /// The next number: one above the one before.
    // Relaxed is enough: the callers' lock puts their turns in order.
    #[inline]
    pub fn next_in_turn(&self) -> u64 {
        let next = self.last.load(Ordering::Relaxed) + 1;
        self.last.store(next, Ordering::Relaxed);
        next
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::sync::{Mutex, lock};

    #[test]
    fn numbers_rise_by_one_from_one() {
        let sequencer = Sequencer::default();
        for expected in 1..=1000 {
            assert_eq!(sequencer.next_in_turn(), expected);
        }
    }

    #[test]
    fn threads_that_take_turns_share_the_numbers_without_gap_or_repeat() {
        let sequencer = Mutex::new(Sequencer::default());
        let next = || lock(&sequencer).next_in_turn();
        let mut given: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..1000).map(|_| next()).collect::<Vec<_>>()))
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().expect("the thread only counts"))
                .collect()
        });
        given.sort_unstable();
        assert!(given.into_iter().eq(1..=8000));
    }
}
