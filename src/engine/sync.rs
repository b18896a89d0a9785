//! The synchronisation primitives of the engine: the standard library's, or
//! loom's when the crate is built to be model-checked (`--cfg loom`).

#[cfg(loom)]
pub use loom::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

#[cfg(not(loom))]
use std::mem::ManuallyDrop;
#[cfg(not(loom))]
pub use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// `std`'s cell with the closure interface of loom's, so that one text serves both.
#[cfg(not(loom))]
#[derive(Debug, Default)]
pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Calls `f` with a shared pointer to the value.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    /// Calls `f` with a unique pointer to the value.
    #[inline(always)]
    pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// A reference count without weak references, for what comes and goes with every event: letting go
/// of the last is one step less, and none at all for who knows to be the last.
#[cfg(not(loom))]
pub use triomphe::Arc as Shared;

#[cfg(loom)]
pub use loom::sync::Arc as Shared;

/// Shares a value that is made where it stays: what is made on the stack in words and read back in
/// larger pieces waits for each of them.
#[inline(always)]
#[allow(unsafe_code)] // The one step from memory to value.
pub fn share<T>(value: T) -> Shared<T> {
    #[cfg(not(loom))]
    {
        let mut place = triomphe::UniqueArc::new_uninit();
        place.write(value);
        // SAFETY: it has just been written.
        unsafe { triomphe::UniqueArc::assume_init(place) }.shareable()
    }
    #[cfg(loom)]
    Shared::new(value)
}

/// Lets go. If nobody else shares the value, `last` takes it to pieces where it is: taken out whole,
/// it would go over the stack.
///
/// # Safety
/// `last` must drop, or take, every part of it once.
#[cfg(not(loom))]
#[inline]
#[allow(unsafe_code)]
pub unsafe fn let_go<T>(shared: Shared<T>, last: impl FnOnce(&mut ManuallyDrop<T>)) {
    let unique = match Shared::try_unique(shared) {
        Ok(unique) => unique,
        Err(shared) => match Shared::into_unique(shared) {
            Some(unique) => unique,
            None => return,
        },
    };
    let place = Shared::into_raw(unique.shareable()).cast::<ManuallyDrop<T>>();
    // SAFETY: it comes from `into_raw`, of a value that differs in nothing but its destructor.
    let shared = unsafe { Shared::from_raw(place) };
    let Ok(mut unique) = Shared::try_unique(shared) else {
        unreachable!("nobody else shares it")
    };
    last(&mut unique);
    // Dropped as such, it would be counted down.
    let _ = triomphe::UniqueArc::into_inner(unique);
}

/// Locks, and goes on with the data if another thread panicked while it held the
/// lock: every critical section of the engine leaves its data consistent at each
/// step, and a bus that answers is better than one that is poisoned for ever.
#[inline]
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}
