//! Events whose handlers are done and that nobody kept, emptied, for the next deliveries.
//!
//! Not `#[pyclass(freelist)]`: that gives out objects that the garbage collector does
//! not track, so a payload that refers to its event would never be collected.

use pyo3::prelude::*;

use super::{Event, slots};
use crate::py::cell::GilCell;

/// About as many as there are handlers suspended at once.
const CAPACITY: usize = 64;

static POOL: GilCell<Vec<Py<Event>>> = GilCell::new(Vec::new());

/// An empty event that nobody else knows.
#[inline]
pub fn take(py: Python<'_>) -> Option<Py<Event>> {
    POOL.update(py, Vec::pop)
}

impl Event {
    /// Gives back what [`deliver`](Self::deliver) gave, once the handler is done. An event that
    /// the handler kept, in whatever way, stays the handler's.
    #[inline]
    pub fn recycle(py: Python<'_>, event: Py<PyAny>) {
        let Ok(mut event) = event.into_bound(py).cast_into::<Self>() else {
            return;
        };
        if !slots::is_unshared(&event) {
            return;
        }
        let emptied = slots::sole(&mut event, |me| {
            (!me.in_dict).then(|| {
                let call = me.delivered.call.take();
                (me.fields.empty(), call, me.delivered.extras.take())
            })
        });
        let Some((fields, call, extras)) = emptied else {
            return;
        };
        let event = event.unbind();
        let surplus = POOL.update(py, |pool| {
            if pool.len() < CAPACITY {
                pool.push(event);
                None
            } else {
                Some(event)
            }
        });
        drop(surplus);
        // Last: the payload's destructor may be Python code, and deliver events itself.
        fields.release(py);
        if let Some(call) = call {
            call.subscription.drop_ref(py);
        }
        drop(extras);
    }
}
