//! Between the engine's levels and the members of Python's `EventPriority`.

use super::once::Once;
use pyo3::prelude::*;
use pyo3::types::PyBool;

use super::errors::Error;
use crate::engine::priority::Priority;

/// The members of `ironbus.EventPriority` by level, imported once.
fn members(py: Python<'_>) -> PyResult<&[Py<PyAny>; Priority::COUNT]> {
    static MEMBERS: Once<[Py<PyAny>; Priority::COUNT]> = Once::new();
    MEMBERS.get_or_try_init(py, || {
        let class = py.import("ironbus.priority")?.getattr("EventPriority")?;
        let member = |level: Priority| class.getattr(level.name()).map(Bound::unbind);
        let [critical, high, normal, low] = Priority::ALL;
        Ok([
            member(critical)?,
            member(high)?,
            member(normal)?,
            member(low)?,
        ])
    })
}

/// The `EventPriority` of a level.
pub fn to_member(py: Python<'_>, level: Priority) -> PyResult<Py<PyAny>> {
    Ok(members(py)?[level.index()].clone_ref(py))
}

/// The level, when `value` is itself a member: nothing is called or converted.
pub fn member_level(py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Option<Priority>> {
    let found = members(py)?.iter().position(|member| member.is(value));
    Ok(found.map(|index| Priority::ALL[index]))
}

/// The level of a member or of the integer that equals one.
///
/// Raises `InvalidPriority` for everything else.
pub fn to_level(py: Python<'_>, value: &Bound<'_, PyAny>) -> PyResult<Priority> {
    if let Some(level) = member_level(py, value)? {
        return Ok(level);
    }
    // A bool is an int to Python, and a mistake here.
    let number = (!value.is_instance_of::<PyBool>())
        .then(|| value.extract::<u8>().ok())
        .flatten();
    let level = number.and_then(|number| Priority::try_from(number).ok());
    level.ok_or_else(|| {
        let text =
            "priority must be an EventPriority: CRITICAL (0), HIGH (1), NORMAL (2) or LOW (3)";
        Error::InvalidPriority.exception(py, "priority", text)
    })
}
