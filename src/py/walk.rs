//! provisional
use pyo3::prelude::*;
use pyo3::types::PyString;
use crate::engine::digest::Digest;
pub fn content_digest(_py: Python<'_>, _t: &Bound<'_, PyString>, _d: &Bound<'_, PyAny>) -> PyResult<Digest> { Ok(Digest([0;32])) }
