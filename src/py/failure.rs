//! What a handler's failure is to the bus: its kind, and the line in the log.

use std::sync::Arc;

use super::once::Once;
use super::once::intern;
use pyo3::exceptions::{PyKeyboardInterrupt, PySystemExit, PyTimeoutError};
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::core::Core;
use super::errors::Error;
use super::ops::{PyLane, PyOps};
use super::policy;
use crate::engine::lane::{Entry, Failed, Verdict};
use crate::engine::retry::Failure;

/// What an exception out of a handler means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The handler failed.
    Failed,
    /// The handler, or its task, was cancelled.
    Cancelled,
    /// The program is being ended; the event is not at fault.
    Ending,
}

/// Tells the kinds apart.
pub fn kind(py: Python<'_>, error: &PyErr) -> Kind {
    static CANCELLED: Once<Py<PyType>> = Once::new();
    if error.is_instance_of::<PyKeyboardInterrupt>(py) || error.is_instance_of::<PySystemExit>(py) {
        return Kind::Ending;
    }
    match CANCELLED.import(py, "asyncio", "CancelledError") {
        Ok(cancelled) if error.is_instance(py, cancelled) => Kind::Cancelled,
        _ => Kind::Failed,
    }
}

/// Gives the exception its traceback, which Python 3.11 keeps beside it until somebody catches it in Python.
pub fn keep_traceback(py: Python<'_>, error: &PyErr) {
    if let Some(traceback) = error.traceback(py)
        && let Err(error) = error
            .value(py)
            .setattr(intern!(py, "__traceback__"), traceback)
    {
        error.write_unraisable(py, None);
    }
}

/// Tells what an exception means for the event and for the breaker.
pub fn sort(py: Python<'_>, lane: &PyLane, error: PyErr) -> Failed<PyErr> {
    if kind(py, &error) == Kind::Cancelled {
        return Failed::Cancelled(Arc::new(error));
    }
    let meaning = meaning(py, lane, &error).unwrap_or_else(|broken| {
        broken.write_unraisable(py, None);
        Meaning::Policy(Failure::Passing)
    });
    match meaning {
        Meaning::Rejected => Failed::Rejected(Arc::new(error)),
        Meaning::Crowded | Meaning::Policy(Failure::Refused(None)) => Failed::Crowded,
        Meaning::Policy(Failure::Later(after) | Failure::Refused(Some(after))) => {
            Failed::Later(after)
        }
        Meaning::Policy(Failure::Passing) => Failed::Passing(Arc::new(error)),
        Meaning::Policy(Failure::Final) => Failed::Final(Arc::new(error)),
    }
}

enum Meaning {
    /// `Reject`.
    Rejected,
    /// `QueueFull`, raised by a bus to what the handler publishes.
    Crowded,
    Policy(Failure),
}

fn meaning(py: Python<'_>, lane: &PyLane, error: &PyErr) -> PyResult<Meaning> {
    let error = error.value(py);
    if error.is_instance(Error::Reject.class(py)?)? {
        return Ok(Meaning::Rejected);
    }
    if error.is_instance(Error::QueueFull.class(py)?)?
        && error.getattr(intern!(py, "_by_bus"))?.is_truthy()?
    {
        return Ok(Meaning::Crowded);
    }
    let failure = match &lane.handler.policy {
        Some(policy) => policy.failure(py, error)?,
        None => policy::without_policy(py, error)?,
    };
    // What is no `Exception` is none of the policy's business: it is the end of this event.
    Ok(Meaning::Policy(failure.unwrap_or(Failure::Final)))
}

/// Says in the log that a handler failed, and what comes next: where and how, never with which
/// words, for an exception's message may hold what the event held. A test is told the exception itself.
pub fn tell(
    py: Python<'_>,
    core: &Core,
    lane: &PyLane,
    entry: &Entry<PyOps>,
    failed: &Failed<PyErr>,
    verdict: &Verdict<PyErr>,
) {
    static LOG: Once<Py<PyAny>> = Once::new();
    // Who says when to come again has not failed.
    let (Failed::Passing(error)
    | Failed::Cancelled(error)
    | Failed::Final(error)
    | Failed::Rejected(error)) = failed
    else {
        return;
    };
    let again = match verdict {
        Verdict::Again { after, .. } => Some(policy::seconds(*after)),
        Verdict::Dead(..) => None,
    };
    let log = LOG.import(py, "ironbus._log", "handler_failed");
    let watcher = core.failure_watcher(py).map(|it| it.into_bound(py));
    for told in log.cloned().into_iter().chain(watcher) {
        let (name, event_type) = (&lane.handler.name, &entry.event.payload.type_);
        let (sequence, attempt) = (entry.sequence, entry.attempt);
        let error = error.value(py);
        if let Err(error) = told.call1((name, event_type, sequence, attempt, error, again)) {
            error.write_unraisable(py, Some(&told));
        }
    }
}

/// Says in the log that a handler ends the program, and that its subscription is held for that.
pub fn log_ending(py: Python<'_>, lane: &PyLane, entry: &Entry<PyOps>, error: &PyErr) {
    static LOG: Once<Py<PyAny>> = Once::new();
    let logged = LOG
        .import(py, "ironbus._log", "handler_ended_the_program")
        .and_then(|log| {
            let kind = error.get_type(py).name()?;
            log.call1((&lane.handler.name, entry.sequence, kind))
        });
    if let Err(error) = logged {
        error.write_unraisable(py, None);
    }
}

/// The error of a handler that took longer than its limit.
pub fn timed_out(seconds: f64) -> PyErr {
    PyTimeoutError::new_err(format!("the handler exceeded its timeout of {seconds} s"))
}
