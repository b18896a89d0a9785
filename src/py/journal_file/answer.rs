//! Questions in SQL: values of Python go in, values of Python come out.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::exception;
use crate::engine::journal::{self, Value};
use crate::py::values::{from_python, to_python};

/// Asks a journal in SQL, up to so many rows: the columns, the rows, and whether there were more.
/// Nothing can be changed this way.
#[pyfunction]
#[allow(clippy::type_complexity)]
pub fn query_journal<'py>(
    py: Python<'py>,
    path: PathBuf,
    sql: &str,
    parameters: Vec<Bound<'py, PyAny>>,
    limit: usize,
) -> PyResult<(Vec<String>, Vec<Bound<'py, PyTuple>>, bool)> {
    let values = parameters.iter().enumerate();
    let values = values.map(|(index, value)| from_python(value, || format!("parameters[{index}]")));
    let values = values.collect::<PyResult<Vec<_>>>()?;
    let answer = py.detach(|| journal::query(&path, sql, &values, limit));
    let answer = answer.map_err(|error| exception(py, &error))?;
    let row = |row: Vec<Value>| {
        let values = row.into_iter().map(|value| to_python(py, value));
        PyTuple::new(py, values.collect::<PyResult<Vec<_>>>()?)
    };
    let rows = answer.rows.into_iter().map(row);
    Ok((answer.columns, rows.collect::<PyResult<_>>()?, answer.cut))
}
