//! Which dead letters are meant, as Python says it.

use pyo3::prelude::*;

use crate::engine::dead_letters::Filter;
use crate::engine::topic::Topic;
use crate::py::errors::Error;

/// See the module. Immutable.
#[pyclass(frozen, module = "ironbus._core")]
pub struct LetterFilter(pub Filter);

#[pymethods]
impl LetterFilter {
    /// What fits everything that is given. The values were checked; a fingerprint is looked at here.
    #[new]
    #[pyo3(signature = (*, id=None, topic=None, subscription=None, handler=None, exception_type=None, fingerprint=None, since=None, until=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        id: Option<String>,
        topic: Option<&str>,
        subscription: Option<String>,
        handler: Option<String>,
        exception_type: Option<String>,
        fingerprint: Option<&str>,
        since: Option<f64>,
        until: Option<f64>,
    ) -> PyResult<Self> {
        let fingerprint = fingerprint.map(str::parse).transpose();
        let fingerprint = fingerprint.map_err(|_| {
            let text = "fingerprint must be 16 hexadecimal digits, as dead letters have it";
            Error::InvalidOption.exception(py, "fingerprint", text)
        })?;
        Ok(Self(Filter {
            id,
            topic: topic.map(Topic::new),
            subscription,
            handler,
            exception_type,
            fingerprint,
            since,
            until,
        }))
    }
}
