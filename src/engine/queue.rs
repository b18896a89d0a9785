//! One level of a lane: an unbounded first-in-first-out queue of segments with one
//! producer and one consumer, lock-free between the two.
//!
//! The gate owns every [`Tail`] and a lane owns its [`Head`]s, so that "one
//! producer, one consumer" is a matter of ownership and not of discipline. An
//! unused queue has no segment: ten thousand quiet lanes cost pointers only.

#![allow(unsafe_code)] // Slots of raw memory shared by two threads; model-checked in tests/loom_queue.rs.

use std::mem::MaybeUninit;
use std::ptr;

use super::sync::{
    Arc, UnsafeCell,
    atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// Few, because a queue that is never long still goes through all the slots of its segments: with
/// words in them, a segment is two lines of the cache.
#[cfg(not(loom))]
const SLOTS: usize = 14;
#[cfg(loom)]
const SLOTS: usize = 2;

#[repr(C)] // What every push and pop looks at, beside the first slots.
struct Segment<T> {
    /// How many slots are written. Released by the producer, acquired by the consumer.
    filled: AtomicUsize,
    next: AtomicPtr<Segment<T>>,
    slots: [UnsafeCell<MaybeUninit<T>>; SLOTS],
}

impl<T> Segment<T> {
    fn boxed() -> *mut Self {
        Box::into_raw(Box::new(Self {
            slots: std::array::from_fn(|_| UnsafeCell::new(MaybeUninit::uninit())),
            filled: AtomicUsize::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        }))
    }
}

/// A place in the chain of segments. Null until the first push.
struct Cursor<T> {
    segment: *mut Segment<T>,
    slot: usize,
}

struct Chain<T> {
    first: AtomicPtr<Segment<T>>,
    /// An emptied segment on its way back from the consumer to the producer.
    spare: AtomicPtr<Segment<T>>,
    /// Where the head was when it was dropped.
    left: UnsafeCell<Cursor<T>>,
}

// SAFETY: `left` is only touched by the drop of the one `Head`, and by that of the chain, which
// comes after it; slots pass from one end to the other by release and acquire of `filled`.
// Values move between threads, so `T: Send` is what is needed.
unsafe impl<T: Send> Send for Chain<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Chain<T> {}

/// The end that pushes.
pub struct Tail<T> {
    cursor: Cursor<T>,
    chain: Arc<Chain<T>>,
}

/// The end that pops.
pub struct Head<T> {
    cursor: Cursor<T>,
    chain: Arc<Chain<T>>,
}

// SAFETY: a cursor points into the chain, which is shared; see there.
unsafe impl<T: Send> Send for Tail<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Head<T> {}

/// An empty queue: its two ends.
pub fn queue<T>() -> (Tail<T>, Head<T>) {
    let chain = Arc::new(Chain {
        first: AtomicPtr::new(ptr::null_mut()),
        spare: AtomicPtr::new(ptr::null_mut()),
        left: UnsafeCell::new(Cursor::start()),
    });
    let tail = Tail {
        cursor: Cursor::start(),
        chain: chain.clone(),
    };
    let head = Head {
        cursor: Cursor::start(),
        chain,
    };
    (tail, head)
}

impl<T> Cursor<T> {
    const fn start() -> Self {
        Self {
            segment: ptr::null_mut(),
            slot: 0,
        }
    }
}

impl<T> Tail<T> {
    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: T) {
        if self.cursor.segment.is_null() || self.cursor.slot == SLOTS {
            self.grow();
        }
        let slot = self.cursor.slot;
        // SAFETY: the segment lives until the consumer has read all its slots, and the
        // one at `slot` is not yet `filled`, so the consumer does not look at it.
        let segment = unsafe { &*self.cursor.segment };
        segment.slots[slot].with_mut(|slot| {
            // SAFETY: as just said, nobody else looks at this slot now.
            unsafe { (*slot).write(value) };
        });
        self.cursor.slot = slot + 1;
        segment.filled.store(slot + 1, Ordering::Release);
    }

    #[cold]
    fn grow(&mut self) {
        let spare = self.chain.spare.swap(ptr::null_mut(), Ordering::AcqRel);
        let segment = if spare.is_null() {
            Segment::boxed()
        } else {
            spare
        };
        if self.cursor.segment.is_null() {
            self.chain.first.store(segment, Ordering::Release);
        } else {
            // SAFETY: the consumer frees a segment only after it has seen its `next`, which is
            // this store, the producer's last access to the old segment.
            unsafe { &*self.cursor.segment }
                .next
                .store(segment, Ordering::Release);
        }
        self.cursor = Cursor { segment, slot: 0 };
    }
}

impl<T> Head<T> {
    /// The oldest value, which stays.
    #[inline]
    pub fn peek(&mut self) -> Option<&T> {
        let segment = self.readable()?;
        // SAFETY: `readable` says that the slot is written and not yet taken; the reference
        // borrows `self` mutably, so nothing can pop it meanwhile.
        Some(segment.slots[self.cursor.slot].with(|slot| unsafe { (*slot).assume_init_ref() }))
    }

    /// Takes the oldest value.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let segment = self.readable()?;
        let slot = self.cursor.slot;
        self.cursor.slot = slot + 1;
        // SAFETY: the slot is written, and the cursor has moved past it, so it is read once.
        Some(segment.slots[slot].with(|slot| unsafe { (*slot).assume_init_read() }))
    }

    /// The segment whose slot at the cursor is written, if there is one.
    #[inline]
    fn readable<'a>(&mut self) -> Option<&'a Segment<T>> {
        if self.cursor.segment.is_null() {
            self.cursor.segment = self.chain.first.load(Ordering::Acquire);
            if self.cursor.segment.is_null() {
                return None;
            }
        }
        if self.cursor.slot == SLOTS && !self.advance() {
            return None;
        }
        // SAFETY: only this consumer frees segments, and only ones that the cursor has left.
        let segment = unsafe { &*self.cursor.segment };
        (self.cursor.slot < segment.filled.load(Ordering::Acquire)).then_some(segment)
    }

    #[cold]
    fn advance(&mut self) -> bool {
        // SAFETY: as in `readable`.
        let next = unsafe { &*self.cursor.segment }
            .next
            .load(Ordering::Acquire);
        if next.is_null() {
            return false;
        }
        let next = Cursor {
            segment: next,
            slot: 0,
        };
        let emptied = std::mem::replace(&mut self.cursor, next).segment;
        {
            // SAFETY: the producer has left the segment (it set `next`), all its values are
            // read, and the cursor has moved on: nobody else has a reference.
            let emptied = unsafe { &*emptied };
            emptied.filled.store(0, Ordering::Relaxed);
            emptied.next.store(ptr::null_mut(), Ordering::Relaxed);
        }
        let replaced = self.chain.spare.swap(emptied, Ordering::AcqRel);
        if !replaced.is_null() {
            // SAFETY: a spare belongs to whoever swaps it out; it holds no values.
            drop(unsafe { Box::from_raw(replaced) });
        }
        true
    }
}

impl<T> Drop for Head<T> {
    fn drop(&mut self) {
        let cursor = std::mem::replace(&mut self.cursor, Cursor::start());
        self.chain.left.with_mut(|left| {
            // SAFETY: the only `Head`, and the chain is not dropped before it.
            unsafe { *left = cursor };
        });
    }
}

impl<T> Drop for Chain<T> {
    fn drop(&mut self) {
        let (mut segment, mut slot) = self.left.with_mut(|left| {
            // SAFETY: `&mut self`: both ends are gone.
            let left = unsafe { &*left };
            (left.segment, left.slot)
        });
        if segment.is_null() {
            segment = self.first.load(Ordering::Acquire);
        }
        while !segment.is_null() {
            // SAFETY: both ends are gone; every segment in the chain was made by `boxed` and is
            // reached once.
            let owned = unsafe { Box::from_raw(segment) };
            let filled = owned.filled.load(Ordering::Acquire);
            for written in &owned.slots[slot.min(filled)..filled] {
                // SAFETY: slots from the cursor up to `filled` are written and not yet read.
                written.with_mut(|value| unsafe { (*value).assume_init_drop() });
            }
            slot = 0;
            segment = owned.next.load(Ordering::Acquire);
        }
        let spare = self.spare.load(Ordering::Acquire);
        if !spare.is_null() {
            // SAFETY: as above; a spare is in no chain.
            drop(unsafe { Box::from_raw(spare) });
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn behaves_as_a_deque(operations in proptest::collection::vec(any::<Option<u8>>(), 0..400)) {
            let (mut tail, mut head) = queue();
            let mut model = VecDeque::new();
            for operation in operations {
                match operation {
                    Some(value) => { tail.push(Box::new(value)); model.push_back(value); }
                    None => {
                        prop_assert_eq!(head.peek().map(|v| **v), model.front().copied());
                        prop_assert_eq!(head.pop().map(|v| *v), model.pop_front());
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_left_is_dropped_once() {
        let witness = std::sync::Arc::new(());
        let (mut tail, mut head) = queue();
        for _ in 0..100 {
            tail.push(witness.clone());
        }
        for _ in 0..40 {
            head.pop();
        }
        drop((tail, head));
        assert_eq!(std::sync::Arc::strong_count(&witness), 1);
    }

    #[test]
    fn two_threads_keep_the_order() {
        let (mut tail, mut head) = queue();
        let producer = std::thread::spawn(move || (0..100_000).for_each(|n| tail.push(n)));
        let mut expected = 0;
        while expected < 100_000 {
            if let Some(n) = head.pop() {
                assert_eq!(n, expected);
                expected += 1;
            }
        }
        producer.join().unwrap();
        assert_eq!(head.pop(), None);
    }
}
