//! Publishing: the native coroutines of `publish` and `publish_many`, and the blocking
//! form. Each is lazy, does all its work in its first step, and waits only for room or
//! for the fate of an equal key.

mod batch;
mod blocking;
mod many;
mod one;

use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::engine::bus::Published;
use crate::engine::gate::{Patience, Ticket};
use crate::py::clock::monotonic_ns;
use crate::py::core::Core;
use crate::py::current::Origin;
use crate::py::errors::{self};
use crate::py::ops::{FutureWaker, PyOps, Waker, block_on};
use crate::py::prepare::Prepared;

pub use self::blocking::{publish_many_sync, publish_sync};
pub use self::many::{PublishMany, publish_many};
pub use self::one::{Publish, publish};

/// A publish that waits.
enum Wait {
    /// For room.
    Room {
        ticket: Arc<Ticket<PyOps>>,
        future: Py<PyAny>,
    },
    /// For the fate of an equal key.
    Key { future: Py<PyAny> },
}

/// One step of a publish.
enum Attempt {
    Accepted { sequence: u64, held: bool },
    Duplicate,
    Wait(Wait),
}

/// Brings an event before the gate once, from a task.
fn attempt(
    py: Python<'_>,
    core: &Core,
    prepared: &mut Prepared,
    origin: Option<u64>,
    now: u64,
) -> PyResult<Attempt> {
    match attempt_briefly(py, core, prepared, origin, now) {
        Ok(sequence) => Ok(Attempt::Accepted {
            sequence,
            held: false,
        }),
        Err(attempt) => *attempt,
    }
}

/// The same, with the common answer apart from the others, so that it stays in a register.
#[inline(always)]
fn attempt_briefly(
    py: Python<'_>,
    core: &Core,
    prepared: &mut Prepared,
    origin: Option<u64>,
    now: u64,
) -> Result<u64, Box<PyResult<Attempt>>> {
    let mut rerouted = None;
    let published = prepared.offer(&core.bus, &mut rerouted, origin, Patience::Wait, now);
    if let (Published::Accepted(sequence), None) = (&published, &rerouted) {
        return Ok(*sequence);
    }
    Err(Box::new(
        match rerouted.map(|route| prepared.went(py, route)) {
            Some(Err(error)) => Err(error),
            _ => not_at_once(py, core, prepared, origin, now, published),
        },
    ))
}

/// Everything but the common answer of the gate.
#[cold]
fn not_at_once(
    py: Python<'_>,
    core: &Core,
    prepared: &mut Prepared,
    origin: Option<u64>,
    now: u64,
    mut published: Published<PyOps>,
) -> PyResult<Attempt> {
    loop {
        return Ok(match published {
            Published::Accepted(sequence) => Attempt::Accepted {
                sequence,
                held: false,
            },
            Published::Held(sequence) => Attempt::Accepted {
                sequence,
                held: true,
            },
            Published::Duplicate => Attempt::Duplicate,
            Published::Refused(error) => {
                prepared.discard();
                return Err(errors::engine(py, &error));
            }
            Published::Waiting(ticket) => {
                let waker = FutureWaker::new(py).and_then(|(waker, future)| {
                    block_on(&future)?;
                    Ok((waker, future.unbind()))
                });
                let (waker, future) = match waker {
                    Ok(waker) => waker,
                    Err(error) => {
                        give_up(core, prepared, &ticket, now);
                        return Err(error);
                    }
                };
                match ticket.wait(Waker::Future(waker)) {
                    Ok(()) => Attempt::Wait(Wait::Room { ticket, future }),
                    Err(_) => {
                        let fate = ticket.fate().expect("it is known");
                        let (sequence, route) = fate.map_err(|error| errors::engine(py, &error))?;
                        prepared.went(py, route)?;
                        Attempt::Accepted {
                            sequence,
                            held: false,
                        }
                    }
                }
            }
            Published::InFlight => {
                let (waker, future) = FutureWaker::new(py)?;
                block_on(&future)?;
                let key = prepared.key.as_ref().expect("only keys are in flight");
                if !core.bus.join(key, Waker::Future(waker)) {
                    published = prepared.publish(py, &core.bus, origin, Patience::Wait, now)?;
                    continue;
                }
                core.bus.count_joined(true);
                Attempt::Wait(Wait::Key {
                    future: future.unbind(),
                })
            }
        });
    }
}

fn give_up(core: &Core, prepared: &Prepared, ticket: &Ticket<PyOps>, now: u64) {
    if core.bus.give_up(ticket, prepared.key.as_ref(), now) {
        prepared.discard();
    }
}

/// Ends a wait whose publisher was cancelled. What was accepted stays accepted.
fn cancel(py: Python<'_>, core: &Core, prepared: &Prepared, wait: &Wait) {
    match wait {
        Wait::Room { ticket, .. } => give_up(
            core,
            prepared,
            ticket,
            core.now(py).unwrap_or_else(|_| monotonic_ns()),
        ),
        Wait::Key { .. } => {
            core.bus.count_cancelled();
            prepared.discard();
        }
    }
}

/// The lane whose handler publishes, if that handler is this bus's.
#[inline]
fn lane_of(core: &Arc<Core>, origin: Option<&Origin>) -> Option<u64> {
    origin
        .filter(|origin| Arc::ptr_eq(&origin.core, core))
        .map(|origin| origin.lane)
}

fn unexpected(method: &str, name: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "EventBus.{method}() got an unexpected keyword argument '{name}'"
    ))
}
