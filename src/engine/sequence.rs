//! Sequence numbers: 1, 2, 3, … each given once, to whichever thread asks.
//!
//! The counter knows nothing of what it numbers. That an event which is refused
//! gets no number is the caller's part: it asks only once nothing can go wrong.

use super::sync::atomic::{AtomicU64, Ordering};

/// Gives every caller, on any thread, a number of its own.
///
/// At a thousand million numbers a second, 64 bits last for 584 years.
///
/// ```
/// use ironbus::engine::sequence::Sequencer;
///
/// let sequencer = Sequencer::new();
/// assert_eq!((sequencer.next(), sequencer.next(), sequencer.last()), (1, 2, 2));
/// ```
#[derive(Debug)]
pub struct Sequencer {
    last: AtomicU64,
}

impl Default for Sequencer {
    fn default() -> Self {
        Self::new()
    }
}

impl Sequencer {
    /// A sequencer that begins with 1.
    pub fn new() -> Self {
        Self::after(0)
    }

    /// A sequencer that goes on behind `last`, a number that was given before.
    pub fn after(last: u64) -> Self {
        Self {
            last: AtomicU64::new(last),
        }
    }

    /// The next number: one above the one before, never given twice.
    // Relaxed is enough: the number's uniqueness rests on the atomicity of the
    // addition alone, and whoever publishes data with it orders that data itself.
    #[inline]
    #[allow(clippy::should_implement_trait)] // an iterator would need `&mut self`
    pub fn next(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// [`next`](Self::next) for callers that take turns, by a lock of theirs: without the price of
    /// a locked instruction.
    #[inline]
    pub fn next_in_turn(&self) -> u64 {
        let next = self.last.load(Ordering::Relaxed) + 1;
        self.last.store(next, Ordering::Relaxed);
        next
    }

    /// The number that was given last, 0 before the first.
    #[inline]
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_by_one_from_one() {
        let sequencer = Sequencer::default();
        assert_eq!(sequencer.last(), 0);
        for expected in 1..=1000 {
            assert_eq!(sequencer.next(), expected);
            assert_eq!(sequencer.last(), expected);
        }
    }

    #[test]
    fn callers_that_take_turns_share_the_numbers_too() {
        let sequencer = Sequencer::new();
        assert_eq!(
            (
                sequencer.next_in_turn(),
                sequencer.next(),
                sequencer.next_in_turn()
            ),
            (1, 2, 3)
        );
    }

    #[test]
    fn goes_on_behind_what_was_given_before() {
        let sequencer = Sequencer::after(41);
        assert_eq!((sequencer.last(), sequencer.next()), (41, 42));
    }

    #[test]
    fn threads_share_the_numbers_without_gap_or_repeat() {
        let sequencer = Sequencer::new();
        let mut given: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..1000).map(|_| sequencer.next()).collect::<Vec<_>>()))
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
