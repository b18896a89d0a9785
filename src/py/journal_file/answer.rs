//! Questions in SQL: values of Python go in, values of Python come out.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString, PyTuple};

use super::exception;
use crate::engine::journal::{self, Value};
use crate::py::errors::Error;

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
    let values = values.map(|(index, value)| from_python(value, index));
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

fn from_python(value: &Bound<'_, PyAny>, index: usize) -> PyResult<Value> {
    let found = if value.is_none() {
        Some(Value::Null)
    } else if value.is_instance_of::<PyBool>() || value.is_instance_of::<PyInt>() {
        value.extract().ok().map(Value::Integer)
    } else if value.is_instance_of::<PyFloat>() {
        value.extract().ok().map(Value::Real)
    } else if let Ok(text) = value.cast::<PyString>() {
        text.to_str().ok().map(|text| Value::Text(text.to_owned()))
    } else if let Ok(bytes) = value.cast::<PyBytes>() {
        Some(Value::Blob(bytes.as_bytes().to_owned()))
    } else {
        None
    };
    found.ok_or_else(|| {
        let field = format!("parameters[{index}]");
        let text = format!("{field} must be None, an int of 64 bits, a float, a str or bytes");
        Error::InvalidOption.exception(value.py(), &field, text)
    })
}

fn to_python(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Integer(value) => value.into_pyobject(py)?.into_any(),
        Value::Real(value) => PyFloat::new(py, value).into_any(),
        Value::Text(text) => PyString::new(py, &text).into_any(),
        Value::Blob(bytes) => PyBytes::new(py, &bytes).into_any(),
    })
}
