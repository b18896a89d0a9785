//! Making a file: complete, beside its place, and linked there, so that nobody ever meets half
//! a file, and two processes that make the same one end with one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::Problem;
use crate::engine::sync::atomic::{AtomicU64, Ordering};

/// Makes a private file of what `fill` writes into an empty one; false: one is there already.
pub(crate) fn make_file(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), Problem>,
) -> Result<bool, Problem> {
    let folder = folder_of(path)?;
    let draft = private_file(path)?;
    let made = fill(&draft).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        linked => Ok(linked.map(|()| true)?),
    });
    for rest in ["", "-wal", "-shm", "-journal"] {
        match fs::remove_file(beside(&draft, rest)) {
            Err(error) if made.is_ok() && error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    let made = made?;
    sync_folder(folder)?;
    Ok(made)
}

/// The folder that a file is or will be in.
pub(super) fn folder_of(path: &Path) -> Result<&Path, Problem> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    folder.is_dir().then_some(folder).ok_or(Problem::NoFolder)
}

/// An empty file of a name of its own that only its owner may read.
fn private_file(path: &Path) -> Result<PathBuf, Problem> {
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    loop {
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let draft = beside(path, &format!(".new-{}-{number}", std::process::id()));
        match options.open(&draft) {
            // Left by a process of the same number that was killed while it made a file.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            opened => {
                opened?;
                return Ok(draft);
            }
        }
    }
}

/// A file of the same name with something more.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// A new name is durable once its folder is.
fn sync_folder(folder: &Path) -> Result<(), Problem> {
    #[cfg(unix)]
    fs::File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}
