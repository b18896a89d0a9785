//! The forms for threads: they block for room, unless the thread runs a loop.

use std::sync::Arc;

use pyo3::prelude::*;

use super::batch::Batch;
use super::{give_up, lane_of};
use crate::engine::bus::Published;
use crate::engine::gate::Patience;
use crate::py::clock::{monotonic_ns, wall_at};
use crate::py::core::Core;
use crate::py::current::{self, Origin};
use crate::py::durable::Course;
use crate::py::errors::{self, Error};
use crate::py::ops::{Signal, Waker};
use crate::py::prepare::{Options, Prepared, prepare};
use crate::py::receipt::{BatchReceipt, Receipt};

/// Publishes from any thread. Where a loop runs it never blocks.
pub fn publish_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    event: &Bound<'_, PyAny>,
    data: Option<&Bound<'_, PyAny>>,
    options: &Options,
) -> PyResult<Receipt> {
    core.check_process(py)?;
    let origin = current::origin(py);
    let prepared = prepare(
        py,
        core,
        event.clone(),
        data.cloned(),
        options.given(),
        origin.as_ref(),
        wall_at(monotonic_ns()),
    )?;
    if core.journaled.is_some() {
        let course = store(py, core, vec![prepared], origin.as_ref())?;
        return Ok(course.receipt());
    }
    publish_prepared_sync(py, core, prepared, origin.as_ref())
}

/// Hands valid events to the journal, and waits for the flush unless a loop runs here.
fn store(
    py: Python<'_>,
    core: &Arc<Core>,
    prepared: Vec<Prepared>,
    origin: Option<&Origin>,
) -> PyResult<Course> {
    let by_handler = lane_of(core, origin).is_some();
    let mut course = Course::new(py, core, prepared, by_handler)?;
    course.finish(py, &|wait| match origin {
        Some(origin) => origin.core.pool().while_waiting(wait),
        None => wait(),
    })?;
    Ok(course)
}

/// Publishes one valid event from a thread; blocks for room unless a loop runs in it.
pub(super) fn publish_prepared_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    mut prepared: Prepared,
    origin: Option<&Origin>,
) -> PyResult<Receipt> {
    let lane = lane_of(core, origin);
    let patience = if crate::py::ops::in_running_loop(py)? {
        Patience::None
    } else {
        Patience::Wait
    };
    let blocked = |wait: &mut dyn FnMut() -> PyResult<bool>| match origin {
        // A handler on a worker thread: another worker stands in meanwhile.
        Some(origin) => origin.core.pool().while_waiting(wait),
        None => wait(),
    };
    loop {
        let now = core.now(py)?;
        match prepared.publish(py, &core.bus, lane, patience, now)? {
            Published::Accepted(sequence) => {
                return Ok(Receipt::accepted(prepared, sequence, false));
            }
            Published::Held(sequence) => {
                return Ok(Receipt::accepted(prepared, sequence, true));
            }
            Published::Duplicate => return Ok(Receipt::of_duplicate(prepared)),
            Published::Refused(error) => {
                prepared.discard();
                return Err(errors::engine(py, &error));
            }
            Published::Waiting(ticket) => {
                let signal = Arc::new(Signal::default());
                if ticket.wait(Waker::Thread(signal.clone())).is_ok()
                    && let Err(error) = blocked(&mut || signal.wait(py, None))
                {
                    give_up(core, &prepared, &ticket, core.now(py)?);
                    return Err(error);
                }
                let fate = ticket.fate().expect("a ticket wakes when that is known");
                let (sequence, route) = fate.map_err(|error| errors::engine(py, &error))?;
                prepared.went(py, route)?;
                return Ok(Receipt::accepted(prepared, sequence, false));
            }
            Published::InFlight if patience == Patience::None => {
                prepared.discard();
                core.bus.count_rejected();
                let error = Error::QueueFull.exception(
                    py,
                    "idempotency_key",
                    "an event with the same idempotency key is waiting for room, and this thread runs an event loop; \
                     use await publish(), which waits for its fate",
                );
                return Err(errors::no_room(py, error));
            }
            Published::InFlight => {
                let signal = Arc::new(Signal::default());
                let key = prepared.key.as_ref().expect("only keys are in flight");
                if core.bus.join(key, Waker::Thread(signal.clone())) {
                    core.bus.count_joined(true);
                    if let Err(error) = blocked(&mut || signal.wait(py, None)) {
                        core.bus.count_cancelled();
                        prepared.discard();
                        return Err(error);
                    }
                    core.bus.count_joined(false);
                }
            }
        }
    }
}

/// The blocking form of `publish_many`, for threads without a loop.
pub fn publish_many_sync(
    py: Python<'_>,
    core: &Arc<Core>,
    events: &Bound<'_, PyAny>,
    options: &Options,
) -> PyResult<BatchReceipt> {
    core.check_process(py)?;
    let origin = current::origin(py);
    let mut batch = Batch::prepare(py, core.clone(), events, options.given(), origin.clone())?;
    if core.journaled.is_some() {
        let course = store(py, core, batch.into_prepared(py), origin.as_ref())?;
        return Ok(course.batch_receipt());
    }
    loop {
        match batch.run(py, u64::MAX) {
            Ok(true) => {}
            Ok(false) => return Ok(batch.finish()),
            Err(error) => return Err(batch.broken(py, error)),
        }
        let Some(prepared) = batch.next(py) else {
            continue;
        };
        match publish_prepared_sync(py, core, prepared, origin.as_ref()) {
            Ok(receipt) => batch.received(receipt),
            Err(error) => {
                batch.gone();
                return Err(batch.broken(py, error));
            }
        }
    }
}
