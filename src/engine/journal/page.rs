//! A file as words in memory. The only unsafe code of the journal but for a question to SQLite; `in_flight` tests it with
//! threads.

#![allow(unsafe_code)]

use std::fs::File;
use std::sync::atomic::AtomicU64;

use memmap2::MmapRaw;

/// A file of which every word can be written by any thread, and stays written if the process dies.
pub(super) struct Page {
    map: MmapRaw,
}

impl Page {
    /// The first bytes of a file that is at least as long.
    pub(super) fn map(file: &File, bytes: usize) -> std::io::Result<Self> {
        let map = memmap2::MmapOptions::new().len(bytes).map_raw(file)?;
        Ok(Self { map })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        let length = self.map.len() / size_of::<AtomicU64>();
        // SAFETY: the map begins at a page, so it is aligned for words, has this many of them, and
        // lives as long as `self`. Within this process it is only reached through these atomics;
        // what another process writes into the file can change a value and nothing else, and every
        // value is a valid `AtomicU64`. The file is as long as the map, and is private and next
        // to a locked journal: nobody makes it shorter.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast(), length) }
    }
}
