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

/// With words in them, a segment is two lines of the cache.
#[cfg(not(loom))]
const SLOTS: usize = 13;
#[cfg(loom)]
const SLOTS: usize = 2;

/// How far a segment is used, as a word: the round in which it is used, above the slots that were used in it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark(usize);

impl Mark {
    const START: Self = Self(0);
    const SLOT_BITS: u32 = 8;

    const fn slot(self) -> usize {
        self.0 & ((1 << Self::SLOT_BITS) - 1)
    }

    const fn round(self) -> usize {
        self.0 >> Self::SLOT_BITS
    }

    /// One more slot.
    const fn further(self) -> Self {
        Self(self.0 + 1)
    }

    /// The start of the next round. Rounds come around, long after both ends have seen the one before.
    const fn anew(self) -> Self {
        Self::of_round(self.round().wrapping_add(1))
    }

    const fn of_round(round: usize) -> Self {
        Self(round << Self::SLOT_BITS)
    }
}

#[repr(C)] // What every push and pop looks at, beside the first slots.
struct Segment<T> {
    /// The [`Mark`] up to which slots are written. Released by the producer, acquired by the consumer.
    written: AtomicUsize,
    /// The one up to which they are taken. Released by the consumer, acquired by the producer.
    taken: AtomicUsize,
    next: AtomicPtr<Segment<T>>,
    slots: [UnsafeCell<MaybeUninit<T>>; SLOTS],
}

impl<T> Segment<T> {
    fn boxed() -> *mut Self {
        Box::into_raw(Box::new(Self {
            slots: std::array::from_fn(|_| UnsafeCell::new(MaybeUninit::uninit())),
            written: AtomicUsize::new(Mark::START.0),
            taken: AtomicUsize::new(Mark::START.0),
            next: AtomicPtr::new(ptr::null_mut()),
        }))
    }

    #[inline]
    fn written(&self) -> Mark {
        Mark(self.written.load(Ordering::Acquire))
    }

    #[inline]
    fn taken(&self) -> Mark {
        Mark(self.taken.load(Ordering::Acquire))
    }
}

/// A place in the chain of segments. Null until the first push.
struct Cursor<T> {
    segment: *mut Segment<T>,
    mark: Mark,
}

struct Chain<T> {
    first: AtomicPtr<Segment<T>>,
    /// An emptied segment on its way back from the consumer to the producer.
    spare: AtomicPtr<Segment<T>>,
    /// Where the head was when it was dropped.
    left: UnsafeCell<Cursor<T>>,
}

// SAFETY: `left` is only touched by the drop of the one `Head`, and by that of the chain, which
// comes after it; slots pass from one end to the other by release and acquire of `written`, and back by
// those of `taken`.
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
            mark: Mark::START,
        }
    }
}

impl<T> Tail<T> {
    /// Appends a value.
    #[inline]
    pub fn push(&mut self, value: T) {
        self.make_room();
        let slot = self.cursor.mark.slot();
        // SAFETY: the segment lives until the consumer has taken all of its last round.
        let segment = unsafe { &*self.cursor.segment };
        segment.slots[slot].with_mut(|slot| {
            // SAFETY: the one at `slot` is not `written` in this round, and was taken in the one
            // before, so the consumer does not look at it.
            unsafe { (*slot).write(value) };
        });
        self.cursor.mark = self.cursor.mark.further();
        segment.written.store(self.cursor.mark.0, Ordering::Release);
    }

    /// Sees to it that the slot at the cursor can be written. An empty queue begins its segment anew:
    /// one that is never long then uses the same line of the cache again and again.
    #[inline]
    fn make_room(&mut self) {
        let Cursor { segment, mark } = self.cursor;
        if segment.is_null() {
            return self.grow();
        }
        // SAFETY: the producer is in the segment, so the consumer does not free it.
        if unsafe { &*segment }.taken() == mark {
            self.cursor.mark = mark.anew();
        } else if mark.slot() == SLOTS {
            self.grow();
        }
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
        self.cursor = Cursor {
            segment,
            mark: Mark::START,
        };
    }
}

impl<T> Head<T> {
    /// The oldest value, which stays.
    #[inline]
    pub fn peek(&mut self) -> Option<&T> {
        let segment = self.readable()?;
        let slot = self.cursor.mark.slot();
        // SAFETY: `readable` says that the slot is written and not yet taken; the reference
        // borrows `self` mutably, so nothing can pop it meanwhile.
        Some(segment.slots[slot].with(|slot| unsafe { (*slot).assume_init_ref() }))
    }

    /// Takes the oldest value.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let segment = self.readable()?;
        let slot = self.cursor.mark.slot();
        self.cursor.mark = self.cursor.mark.further();
        // SAFETY: the slot is written, and the cursor has moved past it, so it is read once.
        let value = segment.slots[slot].with(|slot| unsafe { (*slot).assume_init_read() });
        segment.taken.store(self.cursor.mark.0, Ordering::Release);
        Some(value)
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
        // SAFETY: only this consumer frees segments, and only ones that the cursor has left.
        let mut written = unsafe { &*self.cursor.segment }.written();
        if written == self.cursor.mark {
            if self.cursor.mark.slot() < SLOTS {
                return None;
            }
            written = self.advance()?;
        }
        if written.round() != self.cursor.mark.round() {
            self.cursor.mark = Mark::of_round(written.round());
        }
        // SAFETY: as above.
        Some(unsafe { &*self.cursor.segment })
    }

    /// From a full segment that is taken, to the next. Returns how far the one is written in which
    /// the cursor is then, if there is something to take.
    #[cold]
    fn advance(&mut self) -> Option<Mark> {
        // SAFETY: as in `readable`.
        let full = unsafe { &*self.cursor.segment };
        let next = full.next.load(Ordering::Acquire);
        if next.is_null() {
            return None;
        }
        // Only now: since the look before, it may have been begun anew, filled again and left.
        let written = full.written();
        if written != self.cursor.mark {
            return Some(written);
        }
        // The producer has left the segment (it set `next`), all its values are read, and the
        // cursor moves on: nobody else has a reference.
        full.written.store(Mark::START.0, Ordering::Relaxed);
        full.taken.store(Mark::START.0, Ordering::Relaxed);
        full.next.store(ptr::null_mut(), Ordering::Relaxed);
        let next = Cursor {
            segment: next,
            mark: Mark::START,
        };
        let emptied = std::mem::replace(&mut self.cursor, next).segment;
        let replaced = self.chain.spare.swap(emptied, Ordering::AcqRel);
        if !replaced.is_null() {
            // SAFETY: a spare belongs to whoever swaps it out; it holds no values.
            drop(unsafe { Box::from_raw(replaced) });
        }
        // SAFETY: as in `readable`.
        let written = unsafe { &*self.cursor.segment }.written();
        (written != Mark::START).then_some(written)
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
        let (mut segment, left) = self.left.with_mut(|left| {
            // SAFETY: `&mut self`: both ends are gone.
            let left = unsafe { &*left };
            (left.segment, left.mark)
        });
        if segment.is_null() {
            segment = self.first.load(Ordering::Acquire);
        }
        let mut taken = left;
        while !segment.is_null() {
            // SAFETY: both ends are gone; every segment in the chain was made by `boxed` and is
            // reached once.
            let owned = unsafe { Box::from_raw(segment) };
            let written = owned.written();
            let first = match taken.round() == written.round() {
                true => taken.slot(),
                false => 0,
            };
            for value in &owned.slots[first..written.slot()] {
                // SAFETY: slots from the cursor up to what is `written` are not yet read.
                value.with_mut(|value| unsafe { (*value).assume_init_drop() });
            }
            taken = Mark::START;
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
