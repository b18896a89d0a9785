//! Which delivery this thread is in the middle of.
//!
//! A publish asks it where it comes from, a wait asks it whom it would hold up. It
//! points to the executor's own record for as long as the handler is stepped.

use std::sync::Arc;

use pyo3::prelude::*;

use super::cell::GilCell;
use super::core::Core;
use super::native::Ambient;
use super::once::intern;
use super::ops::{Event, PyOps};
use super::transaction::Work;
use crate::engine::lane::{Entry, LaneId};

/// What an executor is in the middle of, for who looks from another thread.
#[derive(Default)]
pub struct Desk(GilCell<Option<Running>>);

/// A handler's run that has not ended.
#[derive(Clone, Copy)]
pub struct Running {
    /// Its lane.
    pub lane: LaneId,
    /// When it was called.
    pub since: u64,
}

impl Desk {
    /// What is on it now.
    pub fn look(&self, py: Python<'_>) -> Option<Running> {
        self.0.read(py, |running| *running)
    }

    /// Nothing is on it any more: the thread that sat there is not in this process.
    pub fn clear(&self, py: Python<'_>) {
        self.0.replace(py, None);
    }
}

/// An executor at work, and the delivery in its hands. It stays from one delivery to the next, so
/// that an event costs it no reference counts.
pub struct Active {
    /// Whose bus.
    pub core: Arc<Core>,
    /// The life of that bus which it is made for.
    pub life: u64,
    /// The slot; 0 for a thread.
    pub slot: u64,
    /// What its handlers run in, where they may share it.
    pub context: Ambient,
    /// A thread's own; the loop's belongs to the bus.
    desk: Option<Arc<Desk>>,
    delivery: GilCell<Option<Delivery>>,
}

/// One delivery in the hands of an executor.
pub struct Delivery {
    /// Its place in the lane.
    pub entry: Entry<PyOps>,
    /// What the handler was given.
    pub event: Py<PyAny>,
    /// The lane.
    pub lane: LaneId,
    /// When the handler was called.
    pub since: u64,
    /// What the handler wants done with the settlement, once it has asked for a transaction.
    pub work: Option<Arc<Work>>,
}

impl Active {
    /// A slot of the event loop, with nothing in its hands.
    pub fn on_loop(core: Arc<Core>, life: u64, slot: u64) -> Self {
        Self::new(core, life, slot, None)
    }

    /// A thread, with nothing in its hands.
    pub fn on_thread(core: Arc<Core>, life: u64, desk: Arc<Desk>) -> Self {
        Self::new(core, life, 0, Some(desk))
    }

    fn new(core: Arc<Core>, life: u64, slot: u64, desk: Option<Arc<Desk>>) -> Self {
        Self {
            core,
            life,
            slot,
            context: Ambient::default(),
            desk,
            delivery: GilCell::new(None),
        }
    }

    /// Steps the handler of a delivery, and gives the delivery back.
    #[inline(always)]
    pub fn step<R>(
        &self,
        py: Python<'_>,
        delivery: Delivery,
        body: impl FnOnce() -> R,
    ) -> (Delivery, R) {
        let desk = self.desk.as_deref().unwrap_or(&self.core.loop_desk);
        let running = Running {
            lane: delivery.lane,
            since: delivery.since,
        };
        // A handler may step another one, through a loop of its own.
        let outer = desk.0.replace(py, Some(running));
        self.delivery.replace(py, Some(delivery));
        let result = body();
        desk.0.replace(py, outer);
        let delivery = self.delivery.replace(py, None);
        (delivery.expect("it was put there"), result)
    }
}

scoped_tls::scoped_thread_local!(static ACTIVE: Active);

/// Runs `body`, in which the executor steps handlers. What they say to other threads or later,
/// nobody hears.
#[inline(always)]
pub fn during<R>(py: Python<'_>, active: &Active, body: impl FnOnce() -> R) -> R {
    ACTIVE.set(active, || active.context.within(py, body))
}

/// Where a publish comes from.
#[derive(Clone)]
pub struct Origin {
    /// The bus of the handler.
    pub core: Arc<Core>,
    /// The handler's lane.
    pub lane: LaneId,
    /// The event that it handles.
    pub cause: Event,
    /// The slot that runs it; 0 for a thread.
    pub slot: u64,
}

/// The delivery that this thread is in the middle of.
#[inline]
pub fn origin(py: Python<'_>) -> Option<Origin> {
    if !ACTIVE.is_set() {
        return None;
    }
    ACTIVE.with(|active| {
        active.delivery.read(py, |delivery| {
            delivery.as_ref().map(|delivery| Origin {
                core: active.core.clone(),
                lane: delivery.lane,
                cause: delivery.entry.event.clone(),
                slot: active.slot,
            })
        })
    })
}

/// Looks at the delivery that this thread is in the middle of, with the life of the bus that its
/// executor is made for, and may change it; neither may call into Python.
pub fn with<R: 'static>(py: Python<'_>, look: impl FnOnce(u64, &mut Delivery) -> R) -> Option<R> {
    if !ACTIVE.is_set() {
        return None;
    }
    ACTIVE.with(|active| {
        active.delivery.update(py, |delivery| {
            delivery
                .as_mut()
                .map(|delivery| look(active.life, delivery))
        })
    })
}

/// The event that this thread's innermost handler was given.
pub fn event(py: Python<'_>) -> Option<Py<PyAny>> {
    if !ACTIVE.is_set() {
        return None;
    }
    ACTIVE.with(|active| {
        active.delivery.read(py, |delivery| {
            delivery
                .as_ref()
                .map(|delivery| delivery.event.clone_ref(py))
        })
    })
}

/// The delivery that this thread's handler is in the middle of, or None.
#[pyfunction]
pub fn current_delivery(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    event(py)
        .map(|event| event.into_bound(py).getattr(intern!(py, "delivery")))
        .transpose()
}
