//! Keys in the order of their deadlines: a queue that is numbered from the first key ever, and
//! grows and shrinks by blocks, so that no key is ever copied to another place and no memory waits
//! for keys that may never come.

use std::collections::VecDeque;

use crate::engine::clock::Nanos;

/// What an index in memory keeps of a digest.
pub type Short = [u8; 16];

struct Seen {
    digest: Short,
    deadline: Nanos,
}

/// So many keys are in a block, which so fits into a page.
const BLOCK: usize = 170;

/// See the module. The numbers wrap: there may be 2^32 - 1 keys at once, and any number in turn.
#[derive(Default)]
pub struct Log {
    /// All but the last are full. The first begins with keys that are gone.
    blocks: VecDeque<Vec<Seen>>,
    /// The number with which the first block begins.
    begin: u32,
    /// How many keys of the first block are gone, or of the next where there is none.
    gone: usize,
    len: usize,
    /// The deadline of the last key.
    latest: Nanos,
}

impl Log {
    /// The first key, its number and its deadline.
    #[inline]
    pub fn first(&self) -> Option<(Short, u32, Nanos)> {
        let seen = self.blocks.front()?.get(self.gone)?;
        let number = self.begin.wrapping_add(self.gone as u32);
        Some((seen.digest, number, seen.deadline))
    }

    /// A key by its number.
    #[inline]
    pub fn get(&self, number: u32) -> &Short {
        let place = number.wrapping_sub(self.begin) as usize;
        &self.blocks[place / BLOCK][place % BLOCK].digest
    }

    /// Appends a key, and returns its number. The log is in the order of the deadlines even if a
    /// clock steps back.
    #[inline]
    pub fn push(&mut self, digest: Short, deadline: Nanos) -> u32 {
        let number = self.begin.wrapping_add((self.gone + self.len) as u32);
        self.latest = self.latest.max(deadline);
        let deadline = self.latest;
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK => block.push(Seen { digest, deadline }),
            _ => self.begin_block(Seen { digest, deadline }),
        }
        self.len += 1;
        number
    }

    #[cold]
    fn begin_block(&mut self, seen: Seen) {
        let mut block = Vec::with_capacity(BLOCK);
        block.push(seen);
        self.blocks.push_back(block);
    }

    /// Lets go of the first key. There is one.
    pub fn pop(&mut self) {
        self.len -= 1;
        self.gone += 1;
        if self.gone == BLOCK {
            self.blocks.pop_front();
            self.begin = self.begin.wrapping_add(BLOCK as u32);
            self.gone = 0;
            if self.blocks.len() < self.blocks.capacity() / 4 {
                self.blocks.shrink_to(self.blocks.len() * 2);
            }
        }
        if self.len == 0 {
            self.latest = 0;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Log {
        /// How many keys it has memory for.
        pub fn capacity(&self) -> usize {
            self.blocks.iter().map(Vec::capacity).sum()
        }
    }

    proptest! {
        /// Against a queue and a number, from anywhere, across the wrap of the numbers too, with a
        /// clock that steps back.
        #[test]
        fn it_is_a_numbered_queue(
            start in prop_oneof![any::<u32>(), (0_u32..500).prop_map(|back| u32::MAX - back)],
            runs in proptest::collection::vec((0_u64..400, 0_usize..400, 0_u64..500), 0..20),
        ) {
            let mut log = Log { begin: start, ..Log::default() };
            let (mut model, mut first) = (VecDeque::new(), start);
            for (pushes, pops, clock) in runs {
                for now in clock..clock + pushes {
                    let number = log.push([now as u8; 16], now);
                    prop_assert_eq!(number, first.wrapping_add(model.len() as u32));
                    let latest = model.back().map_or(0, |&(_, deadline)| deadline);
                    model.push_back(([now as u8; 16], now.max(latest)));
                }
                for _ in 0..pops.min(model.len()) {
                    log.pop();
                    model.pop_front();
                    first = first.wrapping_add(1);
                }
                prop_assert_eq!(log.len, model.len());
                let expected = model.front().map(|&(digest, deadline)| (digest, first, deadline));
                prop_assert_eq!(log.first(), expected);
                for (at, (digest, _)) in model.iter().enumerate() {
                    prop_assert_eq!(log.get(first.wrapping_add(at as u32)), digest);
                }
                prop_assert!(log.capacity() < model.len() + 2 * BLOCK);
            }
        }
    }
}
