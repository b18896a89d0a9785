//! Memory that is about to be used, asked for in advance: what is spread over more of it than the
//! cache holds, as a thousand lanes in turn are, is there when its turn comes.

#![allow(unsafe_code)] // One instruction, which does nothing else.

/// Asks for so many lines of the cache from here on. A hint: any address will do.
#[inline(always)]
pub fn prefetch<T>(from: *const T, lines: usize) {
    const LINE: usize = 64;
    for line in 0..lines {
        let address = from.cast::<i8>().wrapping_add(line * LINE);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: nothing is read, and nothing happens where there is no such memory.
            unsafe { _mm_prefetch(address, _MM_HINT_T0) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}
