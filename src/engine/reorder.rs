//! A queue that gives its items out in the order of their numbers, whatever the
//! order in which they came. Nearly always the two are the same, so an item that
//! comes in order costs a push to a ring, and only a late one costs a heap.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// Items by number; items of one number in the order in which they came.
#[derive(Debug)]
pub struct Reorder<T> {
    /// Numbers rise from front to back.
    ring: VecDeque<(i64, T)>,
    /// What came after a higher number, the lowest on top.
    late: BinaryHeap<Late<T>>,
    /// Counts late arrivals, to keep equal numbers in order of arrival.
    arrivals: u64,
}

#[derive(Debug)]
struct Late<T> {
    number: i64,
    arrival: u64,
    item: T,
}

impl<T> Default for Reorder<T> {
    fn default() -> Self {
        Self {
            ring: VecDeque::new(),
            late: BinaryHeap::new(),
            arrivals: 0,
        }
    }
}

impl<T> Reorder<T> {
    /// How many items wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.ring.len() + self.late.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds an item.
    #[inline]
    pub fn push(&mut self, number: i64, item: T) {
        if self.ring.back().is_none_or(|&(last, _)| last <= number) {
            self.ring.push_back((number, item));
        } else {
            self.push_late(number, item);
        }
    }

    #[cold]
    fn push_late(&mut self, number: i64, item: T) {
        self.arrivals += 1;
        self.late.push(Late {
            number,
            arrival: self.arrivals,
            item,
        });
    }

    /// Takes the item with the lowest number.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        // On equal numbers the ring's came first: a late one is late because a
        // higher number was in the ring, and that one leaves after it.
        if let Some(late) = self.late.peek()
            && self
                .ring
                .front()
                .is_none_or(|&(first, _)| late.number < first)
        {
            return self.late.pop().map(|late| late.item);
        }
        self.ring.pop_front().map(|(_, item)| item)
    }

    /// All items, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let late = self.late.iter().map(|late| &late.item);
        self.ring.iter().map(|(_, item)| item).chain(late)
    }
}

impl<T> Ord for Late<T> {
    /// Reversed, because the heap's top is its greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.number, other.arrival).cmp(&(self.number, self.arrival))
    }
}

impl<T> PartialOrd for Late<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Late<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<T> Eq for Late<T> {}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// `Some(n)` queues n, `None` takes one; the model is a sorted list.
        #[test]
        fn gives_the_lowest_number_and_of_equals_the_first(
            steps in proptest::collection::vec(prop::option::weighted(0.6, -8..8i64), 0..200)
        ) {
            let mut queue = Reorder::default();
            let mut model = Vec::new();
            for (arrival, step) in steps.into_iter().enumerate() {
                if let Some(number) = step {
                    queue.push(number, (number, arrival));
                    model.push((number, arrival));
                    model.sort_unstable();
                } else {
                    let expected = (!model.is_empty()).then(|| model.remove(0));
                    prop_assert_eq!(queue.pop(), expected);
                }
                prop_assert_eq!(queue.len(), model.len());
                let mut all: Vec<_> = queue.iter().copied().collect();
                all.sort_unstable();
                prop_assert_eq!(&all, &model);
            }
        }
    }

    #[test]
    fn items_in_order_never_touch_the_heap() {
        let mut queue = Reorder::default();
        for number in 0..100 {
            queue.push(number, number);
        }
        assert!(queue.late.is_empty() && !queue.is_empty());
        assert!(std::iter::from_fn(|| queue.pop()).eq(0..100));
    }
}
