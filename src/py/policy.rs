//! What a failure means: to the policy of retries that somebody set, and to a breaker.
//!
//! The decisions are the engine's ([`crate::engine::retry`], [`crate::engine::breaker`]);
//! here exceptions are sorted for it, and settings read. They were checked when they were made,
//! but they are ordinary objects and may have been changed since.

use pyo3::exceptions::PyException;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3::{PyTraverseError, exceptions::PyBaseException};

use super::errors::Error;
use super::once::intern;
use crate::engine::breaker::{BreakerConfig, Outcome};
use crate::engine::clock::Nanos;
use crate::engine::retry::{Failure, Jitter, RetryPolicy};

/// A `RetryPolicy` as it was when it was read.
pub struct Policy {
    /// The numbers.
    pub retry: RetryPolicy,
    /// Classes of exceptions that may pass.
    retry_on: Py<PyTuple>,
    /// Classes that do not; they come first.
    give_up_on: Py<PyTuple>,
}

impl Policy {
    /// Reads an `ironbus.RetryPolicy`; `jitter` is what its `True` stands for.
    ///
    /// Raises `InvalidOption` for a field that is out of its range.
    pub fn read(policy: &Bound<'_, PyAny>, jitter: Jitter) -> PyResult<Self> {
        let py = policy.py();
        policy.call_method0(intern!(py, "_check"))?;
        let seconds = |name| -> PyResult<Nanos> { Ok(nanos(policy.getattr(name)?.extract()?)) };
        Ok(Self {
            retry: RetryPolicy {
                max_attempts: count(&policy.getattr(intern!(py, "max_attempts"))?)?,
                initial_delay: seconds(intern!(py, "initial_delay"))?,
                max_delay: seconds(intern!(py, "max_delay"))?,
                exponential_base: policy.getattr(intern!(py, "exponential_base"))?.extract()?,
                jitter: if policy.getattr(intern!(py, "jitter"))?.is_truthy()? {
                    jitter
                } else {
                    Jitter::None
                },
            },
            retry_on: classes(policy, intern!(py, "retry_on"))?,
            give_up_on: classes(policy, intern!(py, "give_up_on"))?,
        })
    }

    /// What an exception means for the next attempt. `None`: it is none of the policy's business,
    /// because the program, the task or the generator is being ended.
    pub fn failure(&self, py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<Option<Failure>> {
        if let Some(said) = said(py, error)? {
            return Ok(Some(said));
        }
        if !error.is_instance_of::<PyException>() {
            return Ok(None);
        }
        if error.is_instance(self.give_up_on.bind(py))? {
            return Ok(Some(Failure::Final));
        }
        if let Some(refused) = refused(py, error)? {
            return Ok(Some(refused));
        }
        Ok(Some(if error.is_instance(self.retry_on.bind(py))? {
            Failure::Passing
        } else {
            Failure::Final
        }))
    }

    /// For the garbage collector.
    pub fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.retry_on)?;
        visit.call(&self.give_up_on)
    }
}

/// What an exception means where nobody has set a policy.
pub fn without_policy(py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<Option<Failure>> {
    let passing = error.is_instance_of::<PyException>();
    Ok(match said(py, error)? {
        Some(said) => Some(said),
        None => refused(py, error)?.or(passing.then_some(Failure::Passing)),
    })
}

/// What the exception itself says.
fn said(py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<Option<Failure>> {
    if error.is_instance(Error::Reject.class(py)?)? {
        return Ok(Some(Failure::Final));
    }
    if error.is_instance(Error::RetryLater.class(py)?)? {
        let seconds = error.getattr(intern!(py, "seconds"))?.extract()?;
        return Ok(Some(Failure::Later(nanos(seconds))));
    }
    Ok(None)
}

/// A breaker of the handler's own let nothing through.
fn refused(py: Python<'_>, error: &Bound<'_, PyAny>) -> PyResult<Option<Failure>> {
    if !error.is_instance(Error::CircuitOpenError.class(py)?)? {
        return Ok(None);
    }
    let after: Option<f64> = error.getattr(intern!(py, "retry_after"))?.extract()?;
    Ok(Some(Failure::Refused(after.map(nanos))))
}

/// Reads an `ironbus.CircuitBreakerConfig`. Raises `InvalidOption` for a field that is out of its range.
pub fn read_config(config: &Bound<'_, PyAny>) -> PyResult<BreakerConfig> {
    let py = config.py();
    config.call_method0(intern!(py, "_check"))?;
    let number = |name| count(&config.getattr(name)?);
    let rate: Option<f64> = config.getattr(intern!(py, "failure_rate"))?.extract()?;
    Ok(BreakerConfig {
        failure_threshold: number(intern!(py, "failure_threshold"))?,
        success_threshold: number(intern!(py, "success_threshold"))?,
        timeout: nanos(config.getattr(intern!(py, "timeout"))?.extract()?),
        window_size: number(intern!(py, "window_size"))?,
        failure_rate: rate.unwrap_or(f64::INFINITY),
        half_open_max_calls: number(intern!(py, "half_open_max_calls"))?,
    })
}

/// What the end of a call says to a breaker. Only what a program may catch says that it failed:
/// cancellation and the end of the program say nothing, and `Reject` and `RetryLater` speak of the event.
pub fn outcome(py: Python<'_>, error: Option<&Bound<'_, PyBaseException>>) -> PyResult<Outcome> {
    let Some(error) = error else {
        return Ok(Outcome::Success);
    };
    if !error.is_instance_of::<PyException>()
        || error.is_instance(Error::Reject.class(py)?)?
        || error.is_instance(Error::RetryLater.class(py)?)?
    {
        return Ok(Outcome::Ignored);
    }
    Ok(Outcome::Failure)
}

/// Seconds as nanoseconds; what is below nothing is nothing, and what is too long is the longest.
pub fn nanos(seconds: f64) -> Nanos {
    // To the nearest, for 0.3 s are 300 ms.
    (seconds * 1e9).round() as Nanos
}

/// Nanoseconds as seconds.
pub fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e9
}

/// A positive number; what is beyond 32 bits is never reached.
fn count(number: &Bound<'_, PyAny>) -> PyResult<u32> {
    Ok(u32::try_from(number.extract::<u64>()?).unwrap_or(u32::MAX))
}

fn classes(
    policy: &Bound<'_, PyAny>,
    name: &Bound<'_, pyo3::types::PyString>,
) -> PyResult<Py<PyTuple>> {
    Ok(policy.getattr(name)?.cast_into::<PyTuple>()?.unbind())
}
