//! One owner: an operating system's lock on a file beside the journal. It ends with its process,
//! however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::error::JournalError;
use crate::engine::store::{Problem, beside};

/// The right to write to a journal. Dropped, somebody else may have it.
#[derive(Debug)]
pub struct Owner {
    file: File,
    path: PathBuf,
}

/// Whether a bus has a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// No.
    Free,
    /// Yes; the number of its process, as far as it is known.
    Owned {
        /// The number.
        pid: Option<u32>,
    },
}

/// Looks whether a journal has an owner, and disturbs neither it nor who is about to become one.
pub fn owner_of(journal: &Path) -> Result<Ownership, Problem> {
    let mut file = match File::open(beside(journal, ".lock")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Ownership::Free),
        opened => opened?,
    };
    Ok(match is_owned(&file) {
        true => Ownership::Owned {
            pid: pid_in(&mut file),
        },
        false => Ownership::Free,
    })
}

/// An owner's lock lets nobody else have one; those who look share theirs.
fn is_owned(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Where the lock keeps others from reading, it stays unknown.
fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Only its owner may read it.
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

impl Owner {
    /// Takes the journal, or says at once who has it.
    pub fn claim(journal: &Path) -> Result<Self, JournalError> {
        let path = beside(journal, ".lock");
        let lost = |error: std::io::Error| JournalError::Store(Problem::from(error).at(&path));
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            let mut file = private(&mut options).open(&path).map_err(lost)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if is_owned(&file) => {
                    return Err(JournalError::InUse {
                        path: journal.to_owned(),
                        pid: pid_in(&mut file),
                    });
                }
                // Somebody looks whether there is an owner, for a moment.
                Err(TryLockError::WouldBlock) => {
                    std::thread::yield_now();
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(lost(error)),
            }
            // Its last owner may have taken the file away just before we locked it.
            if !is_at(&file, &path) {
                continue;
            }
            // From here on it is taken away again, whatever fails.
            let mut owner = Self { file, path };
            return match owner.sign() {
                Ok(()) => Ok(owner),
                Err(error) => Err(JournalError::Store(Problem::from(error).at(&owner.path))),
            };
        }
    }

    /// Leaves word of who it is.
    fn sign(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{}", std::process::id())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // While it is locked, so that whoever has opened it notices. Where it cannot be taken
        // away it stays, which does no harm.
        if cfg!(unix) && is_at(&self.file, &self.path) {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

/// Whether the file is (still) the one of this name.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        match (file.metadata(), std::fs::metadata(path)) {
            (Ok(file), Ok(path)) => place(file) == place(path),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_second_owner_is_told_who_the_first_is() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let first = Owner::claim(&journal).expect("nobody has it");
        let pid = cfg!(unix).then(std::process::id);
        let second = Owner::claim(&journal).expect_err("somebody has it");
        let path = journal.clone();
        assert_eq!(second, JournalError::InUse { path, pid });
        assert_eq!(owner_of(&journal), Ok(Ownership::Owned { pid }));
        drop(first);
        assert_eq!(owner_of(&journal), Ok(Ownership::Free));
        let again = Owner::claim(&journal).expect("nobody has it any more");
        drop(again);
        assert_eq!(
            std::fs::read_dir(&folder).expect("a folder").count(),
            usize::from(!cfg!(unix))
        );
    }

    #[test]
    fn whoever_looks_keeps_nobody_from_owning() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let (looks, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    owner_of(&journal).expect("it can be looked at");
                    looks.fetch_add(1, Ordering::SeqCst);
                }
            });
            let (mut claims, mut refused) = (0, 0);
            while claims < 200 || looks.load(Ordering::SeqCst) < 200 {
                refused += usize::from(Owner::claim(&journal).is_err());
                claims += 1;
            }
            done.store(true, Ordering::SeqCst);
            assert_eq!(refused, 0);
        });
    }

    #[test]
    fn of_many_that_come_and_go_one_at_a_time_owns() {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let journal = folder.path().join("x.bus");
        let owners = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut had = 0;
                    while had < 50 {
                        let Ok(_owner) = Owner::claim(&journal) else {
                            continue;
                        };
                        assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                        owners.fetch_sub(1, Ordering::SeqCst);
                        had += 1;
                    }
                });
            }
        });
    }
}
