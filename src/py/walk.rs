//! provisional
use crate::engine::digest::Digest;
use pyo3::prelude::*;
use pyo3::types::PyString;
pub fn content_digest(
    _py: Python<'_>,
    _t: &Bound<'_, PyString>,
    _d: &Bound<'_, PyAny>,
) -> PyResult<Digest> {
    Ok(Digest([0; 32]))
}
