//! Values of SQL: those of Python go in, those of Python come out.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyString};

use super::errors::Error;
use crate::engine::journal::Value;

/// The value of the parameter that `field` names.
pub fn from_python(value: &Bound<'_, PyAny>, field: impl FnOnce() -> String) -> PyResult<Value> {
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
        let field = field();
        let text = format!("{field} must be None, an int of 64 bits, a float, a str or bytes");
        Error::InvalidOption.exception(value.py(), &field, text)
    })
}

/// A value as Python has it.
pub fn to_python(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Integer(value) => value.into_pyobject(py)?.into_any(),
        Value::Real(value) => PyFloat::new(py, value).into_any(),
        Value::Text(text) => PyString::new(py, &text).into_any(),
        Value::Blob(bytes) => PyBytes::new(py, &bytes).into_any(),
    })
}
