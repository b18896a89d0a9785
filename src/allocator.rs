//! The allocator of the Python extension: mimalloc, asked in the way that is its fast one.
//!
//! The crate `mimalloc` names the alignment in every request. Where that is so and the size is no power of
//! two, mimalloc does not look through its own lists once the first is empty, but cuts the block from a
//! larger one, in several times the instructions; with a queue that grows and shrinks, that is every event.
//! An alignment that every block has anyway is not named here.

#![allow(unsafe_code)] // What a global allocator is made of.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mi;

/// See the module.
pub struct Allocator;

/// What every block is aligned to that is at least as large; a smaller one, to its own size.
const ALIGNED: usize = 16;

#[inline]
fn is_plain(layout: Layout) -> bool {
    layout.align() <= ALIGNED && layout.align() <= layout.size()
}

// SAFETY: mimalloc is an allocator: blocks are of at least the size that was asked for, are nobody else's until
// they are freed, and are aligned as asked, or as `is_plain` says. All functions know each other's blocks.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size will do, and the alignment of a layout is a power of two.
        unsafe {
            match is_plain(layout) {
                true => mi::mi_malloc(layout.size()).cast(),
                false => mi::mi_malloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            match is_plain(layout) {
                true => mi::mi_zalloc(layout.size()).cast(),
                false => mi::mi_zalloc_aligned(layout.size(), layout.align()).cast(),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _: Layout) {
        // SAFETY: the caller got the block here.
        unsafe { mi::mi_free(block.cast()) };
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc` and `dealloc`; with the alignment, `size` makes a layout.
        unsafe {
            let plain = is_plain(layout) && layout.align() <= size;
            match plain {
                true => mi::mi_realloc(block.cast(), size).cast(),
                false => mi::mi_realloc_aligned(block.cast(), size, layout.align()).cast(),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A block that is filled with a number.
    struct Block {
        at: *mut u8,
        layout: Layout,
        filled: u8,
    }

    impl Block {
        fn fill(&mut self, filled: u8) {
            self.filled = filled;
            // SAFETY: the block is of this size.
            unsafe { self.at.write_bytes(filled, self.layout.size()) };
        }

        /// Whether it is aligned, and the first bytes are what was written last.
        fn is_intact(&self, bytes: usize) -> bool {
            // SAFETY: the block is of this size at least, and written.
            let bytes = unsafe { std::slice::from_raw_parts(self.at, bytes) };
            self.at.addr().is_multiple_of(self.layout.align())
                && bytes.iter().all(|it| *it == self.filled)
        }
    }

    fn layout() -> impl Strategy<Value = Layout> {
        let size = prop_oneof![1..64_usize, 64..4_096_usize, 4_096..200_000_usize];
        (size, 0..9_u32)
            .prop_map(|(size, align)| Layout::from_size_align(size, 1 << align).unwrap())
    }

    proptest! {
        #[test]
        fn blocks_are_aligned_and_nobody_elses(
            steps in proptest::collection::vec((layout(), any::<bool>(), any::<usize>(), 0..4_u8), 1..120)
        ) {
            let mut blocks: Vec<Block> = Vec::new();
            for (n, (layout, zeroed, which, step)) in steps.into_iter().enumerate() {
                let (of, filled) = (which % blocks.len().max(1), n as u8 | 1);
                match (step, blocks.get_mut(of)) {
                    (0, Some(_)) => {
                        let block = blocks.swap_remove(of);
                        prop_assert!(block.is_intact(block.layout.size()));
                        // SAFETY: it was got here, with this layout.
                        unsafe { Allocator.dealloc(block.at, block.layout) };
                    }
                    (1, Some(block)) => {
                        let (old, size) = (block.layout, layout.size());
                        // SAFETY: it was got here, with this layout, and the size is not too large.
                        block.at = unsafe { Allocator.realloc(block.at, old, size) };
                        block.layout = Layout::from_size_align(size, old.align()).unwrap();
                        prop_assert!(block.is_intact(old.size().min(size)));
                        block.fill(filled);
                    }
                    _ => {
                        // SAFETY: no layout here is empty.
                        let at = unsafe {
                            if zeroed { Allocator.alloc_zeroed(layout) } else { Allocator.alloc(layout) }
                        };
                        let mut block = Block { at, layout, filled: 0 };
                        prop_assert!(!at.is_null() && (!zeroed || block.is_intact(layout.size())));
                        block.fill(filled);
                        blocks.push(block);
                    }
                }
            }
            for block in blocks {
                prop_assert!(block.is_intact(block.layout.size()));
                // SAFETY: as above.
                unsafe { Allocator.dealloc(block.at, block.layout) };
            }
        }
    }
}
