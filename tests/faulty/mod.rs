//! A file system between SQLite and the real one that fails when it is told to: the k-th change to
//! a file in a folder does not happen, or only half. It can also record what is changed and what
//! is flushed, for a loss of power to be played afterwards. Files of other folders are left alone.
//!
//! It is a shim as SQLite's documentation describes them: every file is a small header of ours
//! with the real file behind it, and every call goes through.
#![allow(unsafe_code)]
#![allow(dead_code)] // each test file uses its part of it

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rusqlite::ffi;

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device does not answer.
    Eio,
    /// The disk is full.
    Enospc,
    /// Half of it is written, then the disk is full.
    Short,
}

/// A change of a file, in the order in which SQLite made them.
#[derive(Clone, Debug)]
pub enum Change {
    /// Bytes at a place.
    Write(String, usize, Vec<u8>),
    /// A new length.
    Truncate(String, usize),
    /// All that was written to the file before is on the medium.
    Flush(String),
    /// What the test wants to know the place of.
    Mark(u8),
}

/// What happens to the files of a folder.
#[derive(Debug, Default)]
pub struct Plan {
    /// What was changed, while it is wanted.
    pub record: Option<Vec<Change>>,
    /// Writes, truncations and flushes so far.
    pub changes: u64,
    /// The first change that fails, and how; with `true` all later ones do as well.
    pub fail: Option<(u64, Fault, bool)>,
    /// How many have failed.
    pub failed: u64,
}

type Plans = Mutex<HashMap<String, Arc<Mutex<Plan>>>>;

fn plans() -> &'static Plans {
    static PLANS: OnceLock<Plans> = OnceLock::new();
    PLANS.get_or_init(Plans::default)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A plan for the files of a folder, which does nothing yet.
pub fn watch(folder: &Path) -> Arc<Mutex<Plan>> {
    install();
    let plan = Arc::<Mutex<Plan>>::default();
    let folder = folder.canonicalize().expect("the folder is there");
    lock(plans()).insert(folder.display().to_string(), plan.clone());
    plan
}

/// Our header of a file. The real file lies behind it, in the same memory of SQLite's.
#[repr(C)]
struct Header {
    base: ffi::sqlite3_file,
    /// From `Arc::into_raw`, or null.
    plan: *const Mutex<Plan>,
    /// From `Box::into_raw`, or null: the file's name within its folder.
    name: *mut String,
}

/// The real file of one of ours.
fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: every file of this shim has `size_of::<Header>()` bytes of ours and the real file
    // behind them: SQLite allocates `szOsFile` of `install`, which is the sum of both.
    unsafe { file.cast::<u8>().add(size_of::<Header>()).cast() }
}

fn methods(file: *mut ffi::sqlite3_file) -> &'static ffi::sqlite3_io_methods {
    // SAFETY: SQLite calls these only for files that `open` has opened, whose real file has the
    // methods of the real file system, which live as long as the process.
    unsafe { &*(*real(file)).pMethods }
}

/// What is to happen to the next change of a file.
fn next(file: *mut ffi::sqlite3_file) -> Option<Fault> {
    // SAFETY: the header was filled in by `open`, and its plan is kept until `close`.
    let plan = unsafe { (*file.cast::<Header>()).plan.as_ref() }?;
    let mut plan = lock(plan);
    plan.changes += 1;
    let (at, fault, on) = plan.fail?;
    if plan.changes == at || (on && plan.changes > at) {
        plan.failed += 1;
        return Some(fault);
    }
    None
}

/// Records a change that has happened.
fn note(file: *mut ffi::sqlite3_file, change: impl FnOnce(String) -> Change) {
    // SAFETY: the header was filled in by `open`; its plan and name are kept until `close`.
    let (plan, name) = unsafe {
        let header = file.cast::<Header>();
        ((*header).plan.as_ref(), (*header).name.as_ref())
    };
    if let (Some(plan), Some(name)) = (plan, name)
        && let Some(record) = &mut lock(plan).record
    {
        record.push(change(name.clone()));
    }
}

/// A method that only hands on to the real file.
macro_rules! hand_on {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*)) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> c_int {
            match methods(file).$method {
                // SAFETY: the arguments are SQLite's own, for the same method.
                Some(method) => unsafe { method(real(file), $($argument),*) },
                None => ffi::SQLITE_IOERR,
            }
        }
    };
}

hand_on!(read, xRead, (buffer: *mut c_void, amount: c_int, offset: ffi::sqlite3_int64));
hand_on!(write_real, xWrite, (buffer: *const c_void, amount: c_int, offset: ffi::sqlite3_int64));
hand_on!(truncate_real, xTruncate, (size: ffi::sqlite3_int64));
hand_on!(sync_real, xSync, (flags: c_int));
hand_on!(file_size, xFileSize, (size: *mut ffi::sqlite3_int64));
hand_on!(lock_file, xLock, (level: c_int));
hand_on!(unlock, xUnlock, (level: c_int));
hand_on!(check_reserved, xCheckReservedLock, (answer: *mut c_int));
hand_on!(file_control, xFileControl, (op: c_int, argument: *mut c_void));
hand_on!(sector_size, xSectorSize, ());
hand_on!(characteristics, xDeviceCharacteristics, ());
hand_on!(shm_map, xShmMap, (page: c_int, size: c_int, extend: c_int, map: *mut *mut c_void));
hand_on!(shm_lock, xShmLock, (offset: c_int, count: c_int, flags: c_int));
hand_on!(shm_unmap, xShmUnmap, (delete: c_int));

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    if let Some(barrier) = methods(file).xShmBarrier {
        // SAFETY: handed on to the same method of the real file.
        unsafe { barrier(real(file)) }
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    match next(file) {
        None => {
            // SAFETY: SQLite's own arguments.
            let written = unsafe { write_real(file, buffer, amount, offset) };
            note(file, |name| {
                // SAFETY: SQLite hands in a buffer of this many bytes.
                let bytes =
                    unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), amount as usize) };
                Change::Write(name, offset as usize, bytes.to_vec())
            });
            written
        }
        Some(Fault::Eio) => ffi::SQLITE_IOERR_WRITE,
        Some(Fault::Enospc) => ffi::SQLITE_FULL,
        Some(Fault::Short) => {
            // SAFETY: SQLite's own arguments, for half of the buffer.
            let half = unsafe { write_real(file, buffer, amount / 2, offset) };
            assert_eq!(half, ffi::SQLITE_OK, "the real file takes the half");
            ffi::SQLITE_FULL
        }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    match next(file) {
        None => {
            note(file, |name| Change::Truncate(name, size as usize));
            // SAFETY: SQLite's own arguments.
            unsafe { truncate_real(file, size) }
        }
        Some(_) => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    match next(file) {
        None => {
            // SAFETY: SQLite's own arguments.
            let flushed = unsafe { sync_real(file, flags) };
            note(file, Change::Flush);
            flushed
        }
        Some(_) => ffi::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let closed = match methods(file).xClose {
        // SAFETY: handed on to the same method of the real file.
        Some(close) => unsafe { close(real(file)) },
        None => ffi::SQLITE_IOERR,
    };
    // SAFETY: the header is ours until SQLite frees it after this call; the plan and the name came
    // from `into_raw` in `open`, and are let go of once, here.
    unsafe {
        let header = file.cast::<Header>();
        let plan = std::mem::replace(&mut (*header).plan, std::ptr::null());
        if !plan.is_null() {
            drop(Arc::from_raw(plan));
        }
        let name = std::mem::replace(&mut (*header).name, std::ptr::null_mut());
        if !name.is_null() {
            drop(Box::from_raw(name));
        }
        (*file).pMethods = std::ptr::null();
    }
    closed
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock_file),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `pAppData` is the real file system, set in `install`; `file` has room for our header
    // and the real file, as `szOsFile` says; `name` is null or a C string of SQLite's.
    unsafe {
        let below = (*vfs).pAppData.cast::<ffi::sqlite3_vfs>();
        let header = file.cast::<Header>();
        (*header).plan = std::ptr::null();
        (*header).name = std::ptr::null_mut();
        (*file).pMethods = std::ptr::null();
        (*real(file)).pMethods = std::ptr::null();
        let Some(open) = (*below).xOpen else {
            return ffi::SQLITE_CANTOPEN;
        };
        let opened = open(below, name, real(file), flags, out_flags);
        if (*real(file)).pMethods.is_null() {
            return opened;
        }
        (*file).pMethods = &METHODS;
        if !name.is_null()
            && let Ok(name) = CStr::from_ptr(name).to_str()
            && let Some(folder) = Path::new(name).parent()
            && let Some(own) = Path::new(name).file_name()
            && let Some(plan) = lock(plans()).get(&folder.display().to_string())
        {
            (*header).plan = Arc::into_raw(plan.clone());
            (*header).name = Box::into_raw(Box::new(own.to_string_lossy().into_owned()));
        }
        opened
    }
}

/// Puts the shim in front of the real file system, once.
fn install() {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| {
        // SAFETY: SQLite gives its default file system, which lives as long as the process; ours is
        // a copy of it with another `xOpen` and room for our header, and is leaked to live as long.
        // Its other methods are called with our pointer and use nothing of it but what was copied.
        unsafe {
            assert_eq!(ffi::sqlite3_initialize(), ffi::SQLITE_OK);
            let below = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!below.is_null(), "SQLite has a file system");
            let mut ours = *below;
            ours.szOsFile += size_of::<Header>() as c_int;
            ours.pNext = std::ptr::null_mut();
            ours.zName = c"faulty".as_ptr();
            ours.pAppData = below.cast();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            ours.xAccess = Some(access);
            ours.xFullPathname = Some(full_pathname);
            let ours = Box::into_raw(Box::new(ours));
            assert_eq!(ffi::sqlite3_vfs_register(ours, 1), ffi::SQLITE_OK);
        }
    });
}

/// A method of the file system that only hands on to the real one, with the real one as its own.
macro_rules! hand_down {
    ($name:ident, $method:ident, ($($argument:ident: $type:ty),*)) => {
        unsafe extern "C" fn $name(vfs: *mut ffi::sqlite3_vfs, $($argument: $type),*) -> c_int {
            // SAFETY: `pAppData` is the real file system; the arguments are SQLite's own.
            unsafe {
                let below = (*vfs).pAppData.cast::<ffi::sqlite3_vfs>();
                match (*below).$method {
                    Some(method) => method(below, $($argument),*),
                    None => ffi::SQLITE_ERROR,
                }
            }
        }
    };
}

hand_down!(delete, xDelete, (name: *const c_char, sync: c_int));
hand_down!(access, xAccess, (name: *const c_char, flags: c_int, answer: *mut c_int));
hand_down!(full_pathname, xFullPathname, (name: *const c_char, room: c_int, out: *mut c_char));
