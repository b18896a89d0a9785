//! The native half of `RetryManager`: the attempts at one call, and the random numbers
//! that its delays are spread with.

use std::sync::Mutex;

use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;

use super::policy::{Policy, seconds};
use crate::engine::retry::{Attempts, Failure, Jitter, Next};
use crate::engine::sync::lock;

/// Random numbers, from a seed if there is one.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Random {
    generator: Mutex<fastrand::Rng>,
}

#[pymethods]
impl Random {
    #[new]
    #[pyo3(signature = (seed=None))]
    fn new(seed: Option<u64>) -> Self {
        Self {
            generator: Mutex::new(seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed)),
        }
    }

    /// The next number, from 0.0 up to, and without, 1.0.
    fn random(&self) -> f64 {
        lock(&self.generator).f64()
    }
}

/// The attempts at one call, by a policy.
#[pyclass(frozen, module = "ironbus._core")]
pub struct Retries {
    policy: Policy,
    random: Py<PyAny>,
    attempts: Mutex<Attempts>,
}

#[pymethods]
impl Retries {
    /// `random` is called for a number from 0.0 up to 1.0.
    #[new]
    fn new(policy: &Bound<'_, PyAny>, random: Py<PyAny>) -> PyResult<Self> {
        Ok(Self {
            policy: Policy::read(policy, Jitter::Factor)?,
            random,
            attempts: Mutex::default(),
        })
    }

    /// The attempt that runs, or comes next. The first is 1.
    #[getter]
    fn attempt(&self) -> u32 {
        lock(&self.attempts).number()
    }

    /// Takes note of a failure: the seconds to wait before the next attempt, or `None` if there is
    /// none. Who is not `patient` does not wait for a circuit breaker either.
    fn fail(
        &self,
        py: Python<'_>,
        error: &Bound<'_, PyAny>,
        patient: bool,
    ) -> PyResult<Option<f64>> {
        let Some(failure) = self.policy.failure(py, error)? else {
            return Ok(None);
        };
        if matches!(failure, Failure::Refused(_)) && !patient {
            return Ok(None);
        }
        let random: f64 = self.random.bind(py).call0()?.extract()?;
        Ok(
            match lock(&self.attempts).fail(&self.policy.retry, failure, random) {
                Next::Retry(after) => Some(seconds(after)),
                Next::GiveUp => None,
            },
        )
    }

    // There is no `__clear__`: nothing in here changes, and a cycle also goes through the
    // function or class that it refers to, which can be cleared.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.policy.traverse(&visit)?;
        visit.call(&self.random)
    }
}
