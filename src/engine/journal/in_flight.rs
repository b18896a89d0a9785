//! Which deliveries were running when the process died: a small page beside the journal, in
//! memory that the operating system keeps. To note a start costs a few stores, where a write
//! into the database would halve the throughput. After a loss of power it may be out of date.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::JournalError;
use super::owner::private;
use super::page::Page;
use super::storage::SubscriptionId;
use crate::engine::priority::Priority;
use crate::engine::store::{Problem, beside};
use crate::engine::sync::{Mutex, lock};

/// Deliveries that are noted at once. Those beyond are not noted.
pub const SLOTS: usize = 4096;

/// Words of a slot: one line of the cache, so that slots do not disturb each other.
const WORDS: usize = 8;
const BYTES: usize = (SLOTS + 1) * WORDS * 8;
const MAGIC: u64 = u64::from_le_bytes(*b"ibinfl\x00\x01");

/// A delivery that was running when its process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// To whom.
    pub subscription: SubscriptionId,
    /// On which level.
    pub level: Priority,
    /// Of which event.
    pub sequence: u64,
    /// Which attempt it was.
    pub attempt: u32,
}

/// See the module.
pub struct InFlight {
    page: Page,
    path: PathBuf,
    free: Mutex<Vec<usize>>,
}

/// A place to note one running delivery at a time.
pub struct Slot {
    page: Arc<InFlight>,
    number: usize,
}

impl InFlight {
    /// What the page of a journal says; nothing if it is another journal's or none.
    pub fn suspects(journal: &Path, identity: &[u8; 16]) -> Result<Vec<Suspect>, JournalError> {
        let path = beside(journal, ".inflight");
        let mut bytes = Vec::new();
        match OpenOptions::new().read(true).open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            opened => opened
                .and_then(|mut file| file.read_to_end(&mut bytes))
                .map_err(|error| lost(error, &path))?,
        };
        let words: Vec<u64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word))
            .collect();
        let Some((head, slots)) = words.split_first_chunk::<WORDS>() else {
            return Ok(Vec::new());
        };
        if *head != header(identity) {
            return Ok(Vec::new());
        }
        Ok(slots
            .as_chunks::<WORDS>()
            .0
            .iter()
            .filter_map(read)
            .collect())
    }

    /// A new page, empty. What an older one said is gone: note it first.
    pub fn make(journal: &Path, identity: &[u8; 16]) -> Result<Arc<Self>, JournalError> {
        let path = beside(journal, ".inflight");
        let make = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = private(&mut options).open(&path)?;
            // Written and not only made longer, so that the room on the disk is there.
            file.write_all(&[0; BYTES])?;
            file.set_len(BYTES as u64)?;
            Page::map(&file, BYTES)
        };
        let page = make().map_err(|error| lost(error, &path))?;
        for (word, value) in page.words().iter().zip(header(identity)) {
            word.store(value.to_le(), Ordering::Release);
        }
        let free = Mutex::new((1..=SLOTS).rev().collect());
        Ok(Arc::new(Self { page, path, free }))
    }

    /// A slot for somebody who runs handlers; `None`: all are taken.
    pub fn slot(self: &Arc<Self>) -> Option<Slot> {
        let number = lock(&self.free).pop()?;
        let page = self.clone();
        Some(Slot { page, number })
    }

    /// In order: nothing is running, and the page goes.
    pub fn remove(&self) -> Result<(), JournalError> {
        std::fs::remove_file(&self.path).map_err(|error| lost(error, &self.path))
    }
}

impl Slot {
    /// This delivery is running from now on, and what ran here before is not.
    #[inline]
    pub fn note(&self, delivery: &Suspect) {
        let [sequence, subscription, rest, sum, ..] = self.words();
        let values = values(delivery);
        // A slot that is half written has no sum.
        sum.store(0, Ordering::Release);
        for (word, value) in [sequence, subscription, rest].into_iter().zip(values) {
            word.store(value.to_le(), Ordering::Release);
        }
        sum.store(checksum(&values).to_le(), Ordering::Release);
    }

    /// Nothing is running here.
    #[inline]
    pub fn clear(&self) {
        self.words()[3].store(0, Ordering::Release);
    }

    fn words(&self) -> &[AtomicU64; WORDS] {
        &self.page.page.words().as_chunks().0[self.number]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.clear();
        lock(&self.page.free).push(self.number);
    }
}

fn lost(error: std::io::Error, path: &Path) -> JournalError {
    JournalError::Store(Problem::from(error).at(path))
}

fn header(identity: &[u8; 16]) -> [u64; WORDS] {
    let [first, second] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&identity[at..at + 8]);
        u64::from_le_bytes(half)
    });
    [MAGIC, first, second, 0, 0, 0, 0, 0]
}

fn values(delivery: &Suspect) -> [u64; 3] {
    let rest = (delivery.level as u64) << 32 | u64::from(delivery.attempt);
    [delivery.sequence, delivery.subscription as u64, rest]
}

/// Never 0, which is no sum.
fn checksum(values: &[u64; 3]) -> u64 {
    let sum = values.iter().fold(0, |sum, value| {
        crc32c::crc32c_append(sum, &value.to_le_bytes())
    });
    u64::from(sum) | 1 << 32
}

fn read(slot: &[u64; WORDS]) -> Option<Suspect> {
    let [sequence, subscription, rest, sum, ..] = *slot;
    if sum != checksum(&[sequence, subscription, rest]) {
        return None;
    }
    Some(Suspect {
        subscription: subscription as i64,
        level: Priority::try_from(u8::try_from(rest >> 32).ok()?).ok()?,
        sequence,
        attempt: rest as u32,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(sequence: u64) -> Suspect {
        Suspect {
            subscription: 3,
            level: Priority::Low,
            sequence,
            attempt: 2,
        }
    }

    #[test]
    fn what_runs_is_noted_until_it_has_ended() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let suspects = |identity| InFlight::suspects(&journal, &[identity; 16]).expect("readable");
        assert_eq!(suspects(1), []);
        let page = InFlight::make(&journal, &[1; 16]).expect("a page");
        assert_eq!(suspects(1), []);
        let (one, two) = (page.slot().expect("free"), page.slot().expect("free"));
        one.note(&suspect(7));
        two.note(&suspect(8));
        assert_eq!(suspects(1), [suspect(7), suspect(8)]);
        assert_eq!(suspects(2), [], "another journal's");
        one.note(&suspect(9));
        two.clear();
        assert_eq!(suspects(1), [suspect(9)]);
        drop(one);
        assert_eq!(suspects(1), []);
        page.slot().expect("free again").note(&suspect(1));
        InFlight::make(&journal, &[1; 16]).expect("a new page");
        assert_eq!(suspects(1), []);
        page.remove().expect("it is there");
        assert_eq!(suspects(1), []);
    }

    #[test]
    fn half_a_note_is_none() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let page = InFlight::make(&journal, &[1; 16]).expect("a page");
        let slot = page.slot().expect("free");
        slot.note(&suspect(7));
        let path = beside(&journal, ".inflight");
        let whole = std::fs::read(&path).expect("readable");
        for byte in WORDS * 8..WORDS * 8 + 32 {
            let mut torn = whole.clone();
            torn[byte] ^= 0x10;
            std::fs::write(&path, &torn).expect("written");
            assert_eq!(
                InFlight::suspects(&journal, &[1; 16]).expect("readable"),
                [],
                "{byte}"
            );
        }
        std::fs::write(&path, &whole[..100]).expect("written");
        assert_eq!(
            InFlight::suspects(&journal, &[1; 16]).expect("readable"),
            []
        );
    }

    #[test]
    fn slots_on_many_threads_do_not_mix() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let page = InFlight::make(&journal, &[1; 16]).expect("a page");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let page = &page;
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..50 {
                        let slot = page.slot().expect("free");
                        let mine = suspect(thread * 1000 + n);
                        slot.note(&mine);
                        let all = InFlight::suspects(journal, &[1; 16]).expect("readable");
                        assert!(all.contains(&mine));
                        assert!(all.len() <= 4);
                    }
                });
            }
        });
    }
}
