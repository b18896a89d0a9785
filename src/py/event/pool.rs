//! Events whose handlers are done and that nobody kept, emptied, for the next deliveries.
//!
//! Not `#[pyclass(freelist)]`: that gives out objects that the garbage collector does
//! not track, so a payload that refers to its event would never be collected.

use std::cell::RefCell;

use pyo3::prelude::*;

use super::delivered::Delivered;
use super::fields::Fields;
use super::{Event, slots};

/// A thread has about as many events in flight as it has handlers suspended.
const CAPACITY: usize = 64;

thread_local! {
    static POOL: RefCell<Vec<Py<Event>>> = const { RefCell::new(Vec::new()) };
}

/// An empty event that nobody else knows.
#[inline]
pub fn take() -> Option<Py<Event>> {
    POOL.with_borrow_mut(Vec::pop)
}

#[allow(dead_code)] // used by the slots, which call handlers
impl Event {
    /// Gives back what [`deliver`](Self::deliver) gave, once the handler is done. An event that
    /// the handler kept, in whatever way, stays the handler's.
    #[inline]
    pub fn recycle(py: Python<'_>, event: Py<PyAny>) {
        let Ok(event) = event.into_bound(py).cast_into::<Self>() else {
            return;
        };
        if !slots::is_unshared(&event) {
            return;
        }
        let old = {
            let mut me = event.borrow_mut();
            if me.in_dict {
                return;
            }
            (
                std::mem::take(&mut me.fields),
                std::mem::take(&mut me.delivered),
            )
        };
        POOL.with_borrow_mut(|pool| {
            if pool.len() < CAPACITY {
                pool.push(event.unbind());
            }
        });
        // Last: the payload's destructor may be Python code, and deliver events itself.
        drop::<(Fields, Delivered)>(old);
    }
}
