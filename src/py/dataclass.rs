//! Native classes that callers take for dataclasses.
//!
//! What makes a dataclass one (its field table, `__init__`, `__eq__`, `__repr__`)
//! is taken over from a real one in `ironbus._shapes`, so that it is what the
//! standard library of the running Python makes it, by construction. The native
//! class stores the fields, and Rust makes instances without that `__init__`.

use pyo3::prelude::*;

use super::once::intern;
use pyo3::types::{PyDict, PyString, PyTuple, PyType};

/// What `@dataclass` adds to a class. `__replace__` is there from Python 3.13 on.
const TRAITS: [&str; 10] = [
    "__annotations__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__doc__",
    "__eq__",
    "__hash__",
    "__init__",
    "__match_args__",
    "__replace__",
    "__repr__",
];

/// Makes `class` a dataclass to its callers: the one of its name in `ironbus._shapes`.
pub fn adopt(class: &Bound<'_, PyType>) -> PyResult<()> {
    let shape = class
        .py()
        .import("ironbus._shapes")?
        .getattr(class.name()?)?;
    for name in TRAITS {
        if let Some(value) = shape.getattr_opt(name)? {
            class.setattr(name, value)?;
        }
    }
    Ok(())
}

/// The state to pickle or copy: all fields, those of subclasses too, and the `__dict__`.
pub fn get_state<'py>(instance: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
    let py = instance.py();
    let fields = py
        .import("dataclasses")?
        .call_method1("fields", (instance,))?;
    let state = PyDict::new(py);
    for field in fields.cast::<PyTuple>()? {
        let name = field
            .getattr(intern!(py, "name"))?
            .cast_into::<PyString>()?;
        state.set_item(&name, instance.getattr(&name)?)?;
    }
    if let Some(rest) = instance.getattr_opt(intern!(py, "__dict__"))? {
        state.update(rest.cast()?)?;
    }
    Ok(state)
}

/// Puts a state back, attribute by attribute.
pub fn set_state(instance: &Bound<'_, PyAny>, state: &Bound<'_, PyDict>) -> PyResult<()> {
    for (name, value) in state {
        instance.setattr(name.cast_into::<PyString>()?, value)?;
    }
    Ok(())
}
